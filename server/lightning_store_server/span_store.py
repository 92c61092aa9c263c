"""Spans of a served store, encoded. The engine keeps them so; for any other store they are decoded and encoded here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from lightning_store.backends.base import Rows, SpanCodec, SpanRecord
from lightning_store.errors import SpansRejectedError, StoreError
from lightning_store.model import Span
from lightning_store.replay import part_scope
from lightning_store.step import SpanOutcome
from lightning_store.store import LightningStore
from lightning_store.wire.spans import ProtoSpanCodec


@runtime_checkable
class SpanRecordStore(Protocol):
    """A store that takes and returns spans as they are on the wire. See ``lightning_store.engine.Engine``."""

    async def add_span_records(self, records: Sequence[SpanRecord]) -> Sequence[SpanOutcome]: ...

    async def query_span_records(self, rollout_id: str, **query: Any) -> Rows[SpanRecord]: ...


def span_records_of(store: LightningStore) -> SpanRecordStore:
    """``store`` itself if it can, else an adapter around its public methods."""
    return store if isinstance(store, SpanRecordStore) else _Adapter(store)


class _Adapter:
    """Speaks for a store that knows spans only as objects. It has to number a span before it adds it, so one that is
    then refused leaves a gap."""

    def __init__(self, store: LightningStore) -> None:
        self._store = store
        self._codec: SpanCodec = ProtoSpanCodec()

    async def add_span_records(self, records: Sequence[SpanRecord]) -> Sequence[SpanOutcome]:
        outcomes: dict[int, SpanOutcome] = {}
        spans: dict[int, Span] = {}
        for index, record in enumerate(records):
            try:
                spans[index] = self._codec.decode(await self._numbered(record, index))
            except StoreError as error:
                outcomes[index] = SpanOutcome(error=error)
        with part_scope("spans"):
            added = await self._add(list(spans.values()))
        outcomes.update(zip(spans, added, strict=True))
        return [outcomes[index] for index in range(len(records))]

    async def _numbered(self, record: SpanRecord, index: int) -> SpanRecord:
        if record.sequence_id is not None:
            return record
        with part_scope(f"number-{index}"):
            number = await self._store.get_next_span_sequence_id(record.rollout_id, record.attempt_id)
        return dataclasses.replace(record, sequence_id=number)

    async def _add(self, spans: Sequence[Span]) -> list[SpanOutcome]:
        errors: dict[int, SpanOutcome] = {}
        try:
            stored = await self._store.add_many_spans(spans)
        except SpansRejectedError as error:
            stored = error.stored
            errors = {rejected.index: SpanOutcome(error=rejected.error) for rejected in error.rejected}
        kept = {_key(span): span.sequence_id for span in stored}
        # The first of two equal keys in one batch is the one that was stored, so each key is taken once.
        return [errors.get(index) or SpanOutcome(kept.pop(_key(span), None)) for index, span in enumerate(spans)]

    async def query_span_records(self, rollout_id: str, **query: Any) -> Rows[SpanRecord]:
        result = await self._store.query_spans(rollout_id, **query)
        return Rows([self._codec.encode(span) for span in result], result.total)


def _key(span: Span) -> tuple[str, str, str]:
    return span.rollout_id, span.attempt_id, span.span_id
