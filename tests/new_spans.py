"""Spans as other clients send them."""

from __future__ import annotations

from lightning_store.model import Span
from lightning_store.spans.document import encode
from lightning_store.v1.span_pb2 import NewSpan
from lightning_store.wire.spans import add_spans_to_proto


def new_span(span: Span) -> NewSpan:
    """The message that stores a span."""
    [message] = add_spans_to_proto("", [encode(span)]).spans
    return message
