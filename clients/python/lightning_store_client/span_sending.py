"""How a client sends spans: single ones gathered, many in batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from lightning_store.backends.records import SpanRecord
from lightning_store.errors import (
    InternalError,
    InvalidArgumentError,
    InvalidTypeError,
    MessageTooLargeError,
    ResourceExhaustedError,
    StoreError,
    UnsupportedError,
)
from lightning_store.items import ITEMS_MAX
from lightning_store.model import Span
from lightning_store.outcomes import SpanOutcome, stored_number
from lightning_store.spans.document import encode
from lightning_store.v1 import span_pb2
from lightning_store.wire import spans
from lightning_store.wire.errors import span_outcome_from_proto
from lightning_store_client.batcher import BATCHED_BYTES_MAX, Batcher
from lightning_store_client.calls import Calls, new_request_id, too_large
from lightning_store_client.channel import MIB

SPAN_BATCH_BYTES = 4 * MIB
"""Spans of one AddSpans call, unless one span alone is larger."""
SPAN_FRAME_BYTES: Final = 24
"""What a span adds to its message beside its document, at most."""
REQUEST_FRAME_BYTES: Final = 40
"""What a request id adds to its message."""
REFUSALS: Final = (InvalidArgumentError, InvalidTypeError, ResourceExhaustedError, UnsupportedError)
"""Errors of a call that did not happen for sure."""


class SpanSender:
    """Sends the spans of one client."""

    def __init__(self, calls: Calls, max_message_bytes: int) -> None:
        self._calls = calls
        self._max_message_bytes = max_message_bytes
        self._span_bytes_max = max_message_bytes - REQUEST_FRAME_BYTES
        self._single = Batcher(partial(_send, calls), calls.is_idle)

    def encoded(self, span: Span) -> SpanRecord | StoreError:
        """The span as it is sent, or why it cannot be sent."""
        try:
            record = encode(span)
            self._check_size(record)
        except StoreError as error:
            return error
        return record

    def _check_size(self, record: SpanRecord) -> None:
        size_bytes = len(record.document)
        if size_bytes + SPAN_FRAME_BYTES > self._span_bytes_max:
            raise too_large("the span", size_bytes, self._max_message_bytes, "store less in it")

    async def add(self, record: SpanRecord) -> int | None:
        """The span's number; None for a duplicate."""
        if len(record.document) > BATCHED_BYTES_MAX:
            [outcome] = await _send(self._calls, [record])
        else:
            outcome = await self._single.call(record)
        return stored_number(span_outcome_from_proto(outcome, "outcomes"))

    async def add_many(self, records: Sequence[SpanRecord]) -> list[SpanOutcome]:
        """One outcome for each, in order. Sent in batches; each batch is stored once, however often it is sent.

        What is too large for the server goes in smaller batches, down to a single span. Any other refusal is the
        outcome of all spans that are left, if some are stored already, and is raised if none is.
        """
        outcomes: list[SpanOutcome] = []
        bytes_max = min(SPAN_BATCH_BYTES, self._span_bytes_max)
        while len(outcomes) < len(records):
            batch = _batch(records, len(outcomes), bytes_max)
            try:
                added = await _send(self._calls, batch)
            except MessageTooLargeError as error:
                if len(batch) > 1:
                    bytes_max = sum(len(record.document) for record in batch) // 2
                else:
                    outcomes.append(error)
            except REFUSALS as error:
                if not any(isinstance(outcome, int) for outcome in outcomes):
                    raise
                outcomes.extend([error] * (len(records) - len(outcomes)))
            else:
                outcomes.extend(span_outcome_from_proto(outcome, "outcomes") for outcome in added)
        return outcomes


async def _send(calls: Calls, records: Sequence[SpanRecord]) -> Sequence[span_pb2.SpanOutcome]:
    request = spans.add_spans_to_proto(new_request_id(), records)
    outcomes: Sequence[span_pb2.SpanOutcome] = (await calls.unary("AddSpans", request)).outcomes
    if len(outcomes) != len(records):
        raise InternalError(f"the server told of {len(outcomes)} of {len(records)} spans what became of them")
    return outcomes


def _batch(records: Sequence[SpanRecord], start: int, bytes_max: int) -> Sequence[SpanRecord]:
    """As many of the spans from ``start`` on as one request takes and go into ``bytes_max``, but at least one."""
    size_bytes = 0
    last = min(len(records), start + ITEMS_MAX)
    for end in range(start, last):
        size_bytes += len(records[end].document) + SPAN_FRAME_BYTES
        if size_bytes > bytes_max and end > start:
            return records[start:end]
    return records[start:last]
