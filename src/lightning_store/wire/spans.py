"""Spans on the wire: their documents, and the columns of stored spans as typed fields.

A document is handed on as it is: the server checks it when it comes in, and its readers decode it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_store.backends.records import SpanRecord
from lightning_store.model import Span
from lightning_store.spans.document import decode, validate
from lightning_store.v1 import span_pb2
from lightning_store.wire.checks import not_negative
from lightning_store.wire.times import write_timestamp


def add_spans_to_proto(request_id: str, records: Iterable[SpanRecord]) -> span_pb2.AddSpansRequest:
    """Make a request that stores spans.

    Args:
        request_id: The id of the call.
        records: The spans. The server allocates the sequence ids that are None.

    Returns:
        The request.
    """
    request = span_pb2.AddSpansRequest(request_id=request_id)
    add = request.spans.add  # a list of messages would be copied
    for record in records:
        document: Any = record.document  # protobuf takes UTF-8 for text, and copies it once
        add(sequence_id=record.sequence_id, document_json=document)
    return request


def span_record_from_proto(message: span_pb2.NewSpan, field: str) -> SpanRecord:
    """Check a span that is to be stored.

    Args:
        message: The message.
        field: Its path, for error messages.

    Returns:
        The record of the span. Every reader can decode its document.

    Raises:
        InvalidArgumentError: The sequence id is negative, or the document is missing or malformed.
            ``details["field"]`` is the path of the field or member at fault.
    """
    sequence_id = None
    if message.HasField("sequence_id"):
        sequence_id = not_negative(message.sequence_id, f"{field}.sequence_id")
    return validate(message.document_json, sequence_id, f"{field}.document_json")


def span_record_to_proto(record: SpanRecord) -> span_pb2.Span:
    """Make the message of a stored span.

    Args:
        record: The span, whose sequence id is set.

    Returns:
        The message.
    """
    document: Any = record.document  # protobuf takes UTF-8 for text, and copies it once
    message = span_pb2.Span(
        rollout_id=record.rollout_id,
        attempt_id=record.attempt_id,
        sequence_id=record.sequence_id,
        document_json=document,
        trace_id=record.trace_id,
        span_id=record.span_id,
        parent_id=record.parent_id,
        name=record.name,
    )
    write_timestamp(message.start_time, record.start_time)
    write_timestamp(message.end_time, record.end_time)
    return message


def span_from_proto(message: span_pb2.Span, field: str) -> Span:
    """Read a stored span.

    Args:
        message: The message.
        field: Its path, for error messages.

    Returns:
        The span.

    Raises:
        InvalidArgumentError: The message has no document of a span.
    """
    return decode(message.document_json, message.sequence_id, f"{field}.document_json")
