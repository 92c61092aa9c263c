"""A served store as its records: payloads as text, spans as bytes. The engine keeps them so; for any other store they
are read and written here. What is called rarely needs no such form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import getmembers, isroutine
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

from lightning_store import json_text
from lightning_store.backends.base import (
    AttemptRecord,
    Claim,
    NewRollout,
    RolloutRecord,
    RolloutRow,
    Rows,
    SpanCodec,
    SpanRecord,
)
from lightning_store.errors import SpansRejectedError, StoreError
from lightning_store.model import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    Rollout,
    Span,
)
from lightning_store.outcomes import SpanOutcome, add_legal
from lightning_store.replay import part_scope
from lightning_store.store import LightningStore
from lightning_store.wire.spans import ProtoSpanCodec


@runtime_checkable
class RecordStore(Protocol):
    """The methods of a LightningStore that are called most, on records. Their arguments have been checked.

    No method of such a store asks for the current task before it first waits: see :mod:`lightning_store_server.eager`.
    """

    async def start_rollout_record(self, new: NewRollout, worker_id: str | None) -> Claim: ...

    async def enqueue_records(self, new: Sequence[NewRollout]) -> Sequence[RolloutRecord]: ...

    async def claim_records(self, limit: int, worker_id: str | None, max_wait: float) -> Sequence[Claim]: ...

    async def start_attempt_record(self, rollout_id: str, worker_id: str | None) -> Claim: ...

    async def get_rollout_record(self, rollout_id: str) -> RolloutRow | None: ...

    async def query_rollout_records(self, **query: Any) -> Rows[RolloutRow]: ...

    async def update_attempt_record(
        self, rollout_id: str, attempt_id: str, columns: Mapping[str, Any], status: AttemptStatus | None
    ) -> AttemptRecord: ...

    async def add_span_records(self, records: Sequence[SpanRecord]) -> Sequence[SpanOutcome]: ...

    async def query_span_records(self, rollout_id: str, **query: Any) -> Rows[SpanRecord]: ...


def records_of(store: LightningStore) -> RecordStore:
    """``store`` itself if it speaks for itself, else an adapter around its public methods."""
    return store if _speaks_in_records(store) else _Adapter(store)


def is_known(store: LightningStore) -> bool:
    """Whether every public method of it comes from where those on records come from, so that all keep the promise of a
    RecordStore."""
    if not isinstance(store, RecordStore):
        return False
    promised = max(_place(store, name) for name in _STAND_FOR)
    return all(_place(store, name) >= promised for name in _PUBLIC_METHODS)


def _speaks_in_records(store: LightningStore) -> TypeGuard[RecordStore]:
    """Whether it has the methods on records, and no subclass, nor a test on the object, put something in the place of a
    public method that these stand for: that is to be called."""
    return isinstance(store, RecordStore) and all(
        _place(store, on_records) <= _place(store, public)
        for on_records, publics in _STAND_FOR.items()
        for public in publics
    )


def _place(store: LightningStore, method: str) -> int:
    """How far it is to where the store has the method from: -1 from the object itself, 0 from its class, and so on."""
    if method in vars(store):
        return -1
    return next(place for place, kind in enumerate(type(store).__mro__) if method in vars(kind))


_PUBLIC_METHODS: Final = [name for name, _ in getmembers(LightningStore, isroutine) if not name.startswith("_")]
_STAND_FOR: Final[Mapping[str, Sequence[str]]] = {
    "start_rollout_record": ["start_rollout"],
    "enqueue_records": ["enqueue_rollout", "enqueue_many_rollouts"],
    "claim_records": ["dequeue_rollout", "dequeue_many_rollouts"],
    "start_attempt_record": ["start_attempt"],
    "get_rollout_record": ["get_rollout_by_id"],
    "query_rollout_records": ["query_rollouts"],
    "update_attempt_record": ["update_attempt"],
    "add_span_records": ["add_span", "add_many_spans", "add_otel_span"],
    "query_span_records": ["query_spans"],
}
"""Methods on records, and the public ones that the server calls by them."""


class _Adapter:
    """Speaks for a store that knows only objects. It has to number a span before it adds it, so one that is then
    refused leaves a gap."""

    def __init__(self, store: LightningStore) -> None:
        self._store = store
        self._codec: SpanCodec = ProtoSpanCodec()

    async def start_rollout_record(self, new: NewRollout, worker_id: str | None) -> Claim:
        request = _request_of(new)
        fields = {name: getattr(request, name) for name in ("mode", "resources_id", "config", "metadata")}
        return _claim_of(await self._store.start_rollout(request.input, **fields, worker_id=worker_id))

    async def enqueue_records(self, new: Sequence[NewRollout]) -> Sequence[RolloutRecord]:
        return [_record_of(made) for made in await self._store.enqueue_many_rollouts(list(map(_request_of, new)))]

    async def claim_records(self, limit: int, worker_id: str | None, max_wait: float) -> Sequence[Claim]:
        wait = {"max_wait": max_wait} if max_wait > 0 else {}  # a store need not know of it
        claimed = await self._store.dequeue_many_rollouts(limit=limit, worker_id=worker_id, **wait)
        return list(map(_claim_of, claimed))

    async def start_attempt_record(self, rollout_id: str, worker_id: str | None) -> Claim:
        return _claim_of(await self._store.start_attempt(rollout_id, worker_id=worker_id))

    async def get_rollout_record(self, rollout_id: str) -> RolloutRow | None:
        found = await self._store.get_rollout_by_id(rollout_id)
        return None if found is None else _row_of(found)

    async def query_rollout_records(self, **query: Any) -> Rows[RolloutRow]:
        found = await self._store.query_rollouts(**query)
        return Rows(list(map(_row_of, found)), found.total)

    async def update_attempt_record(
        self, rollout_id: str, attempt_id: str, columns: Mapping[str, Any], status: AttemptStatus | None
    ) -> AttemptRecord:
        fields = dict(columns)
        if "metadata_json" in fields:
            text = fields.pop("metadata_json")
            fields["metadata"] = None if text is None else json_text.loads(text, "metadata")
        if status is not None:
            fields["status"] = status
        return _attempt_record_of(await self._store.update_attempt(rollout_id, attempt_id, **fields))

    async def add_span_records(self, records: Sequence[SpanRecord]) -> Sequence[SpanOutcome]:
        numbered: list[Span | StoreError] = []
        for index, record in enumerate(records):
            try:
                numbered += self._codec.decode([await self._numbered(record, index)])
            except StoreError as error:
                numbered.append(error)
        with part_scope("spans"):
            return await add_legal(numbered, self._add)

    async def _numbered(self, record: SpanRecord, index: int) -> SpanRecord:
        if record.sequence_id is not None:
            return record
        with part_scope(f"number-{index}"):
            number = await self._store.get_next_span_sequence_id(record.rollout_id, record.attempt_id)
        return record._replace(sequence_id=number)

    async def _add(self, spans: Sequence[Span]) -> list[SpanOutcome]:
        errors: dict[int, StoreError] = {}
        try:
            stored = await self._store.add_many_spans(spans)
        except SpansRejectedError as error:
            stored = error.stored
            errors = {rejected.index: rejected.error for rejected in error.rejected}
        kept = {_key(span): span.sequence_id for span in stored}
        # The first of two equal keys in one batch is the one that was stored, so each key is taken once.
        return [errors.get(index) or kept.pop(_key(span), None) for index, span in enumerate(spans)]

    async def query_span_records(self, rollout_id: str, **query: Any) -> Rows[SpanRecord]:
        result = await self._store.query_spans(rollout_id, **query)
        return Rows([self._codec.encode(span) for span in result], result.total)


def _key(span: Span) -> tuple[str, str, str]:
    return span.rollout_id, span.attempt_id, span.span_id


def _request_of(new: NewRollout) -> EnqueueRolloutRequest:
    return EnqueueRolloutRequest(
        input=json_text.loads(new.input_json, "input"),
        mode=new.mode,
        resources_id=new.resources_id,
        config=new.config,
        metadata=json_text.loads(new.metadata_json, "metadata"),
    )


def _row_of(rollout: Rollout) -> RolloutRow:
    latest = _attempt_record_of(rollout.attempt) if isinstance(rollout, AttemptedRollout) else None
    return RolloutRow(_record_of(rollout), latest)


def _claim_of(rollout: AttemptedRollout) -> Claim:
    return Claim(_record_of(rollout), _attempt_record_of(rollout.attempt))


def _record_of(rollout: Rollout) -> RolloutRecord:
    return RolloutRecord(
        rollout_id=rollout.rollout_id,
        input_json=json_text.dumps(rollout.input, "input"),
        start_time=rollout.start_time,
        end_time=rollout.end_time,
        mode=rollout.mode,
        resources_id=rollout.resources_id,
        status=rollout.status,
        config=rollout.config,
        metadata_json=None if rollout.metadata is None else json_text.dumps(rollout.metadata, "metadata"),
    )


def _attempt_record_of(attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        rollout_id=attempt.rollout_id,
        attempt_id=attempt.attempt_id,
        sequence_id=attempt.sequence_id,
        start_time=attempt.start_time,
        end_time=attempt.end_time,
        status=attempt.status,
        worker_id=attempt.worker_id,
        last_heartbeat_time=attempt.last_heartbeat_time,
        metadata_json=None if attempt.metadata is None else json_text.dumps(attempt.metadata, "metadata"),
    )
