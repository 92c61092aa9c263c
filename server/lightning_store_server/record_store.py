"""A served store on records: payloads and spans as JSON text. A store of ours has an engine that speaks so; for any
other store, records are read and written here. What is called rarely needs no such form."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

from lightning_store import json_text
from lightning_store.arguments import named_resources
from lightning_store.backends.base import Rows
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    Claim,
    NewRollout,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    SpanRecord,
    StoredRollout,
    WorkerRecord,
)
from lightning_store.engine.engine import Engine
from lightning_store.engine.idempotency import part_scope
from lightning_store.engine.operations import (
    EnqueueRollouts,
    Operation,
    PublishResources,
    StartAttempt,
    StartRollout,
    UpdateAttempt,
    UpdateRollout,
)
from lightning_store.engine.store import EngineStore
from lightning_store.engine.transfer import Imported, Page, Place
from lightning_store.errors import SpansRejectedError, StoreError, UnsupportedError
from lightning_store.in_memory import InMemoryLightningStore
from lightning_store.model import Attempt, AttemptedRollout, EnqueueRolloutRequest, ResourcesUpdate, Rollout, Span
from lightning_store.outcomes import SpanOutcome, add_legal
from lightning_store.queries import RolloutQuery, SpanBatchQuery, SpanQuery
from lightning_store.spans.document import decode, encode
from lightning_store.sqlite_store import SqliteEngineStore
from lightning_store.store import LightningStore
from lightning_store.threaded import LightningStoreThreaded

R = TypeVar("R")

OURS: Final = (EngineStore, InMemoryLightningStore, SqliteEngineStore)
"""The classes whose public methods do what their engine does."""


class RecordStore(Protocol):
    """The calls that a store gets most, on records. Their arguments have been checked."""

    @property
    def inline(self) -> bool:
        """Whether no call suspends but one that waits, deletes or lists."""
        ...

    def execute(self, operation: Operation[R]) -> Coroutine[Any, Any, R]:
        """One of StartRollout, EnqueueRollouts, StartAttempt, UpdateRollout, UpdateAttempt, PublishResources."""
        ...

    async def claim(self, limit: int, worker_id: str | None, max_wait: float) -> Sequence[Claim]: ...

    async def add_spans(self, records: Sequence[SpanRecord]) -> Sequence[SpanOutcome]: ...

    async def rollout(self, rollout_id: str) -> RolloutRow | None: ...

    async def resources(self, resources_id: str) -> ResourcesRecord | None: ...

    async def latest_resources(self, run: str | None) -> ResourcesRecord | None:
        """Those of a run; the latest of all for None."""
        ...

    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]: ...

    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]: ...

    async def query_many_spans(self, query: SpanBatchQuery) -> Rows[SpanRecord]: ...

    async def export_page(self, which: RolloutQuery, begin: Place) -> Page: ...

    async def import_rollouts(
        self,
        rollouts: Sequence[StoredRollout],
        resources: Sequence[ResourcesRecord],
        workers: Sequence[WorkerRecord],
        checkpoints: Sequence[CheckpointRecord],
        admissions: Sequence[AdmissionRecord],
    ) -> Imported: ...


def records_of(store: LightningStore) -> RecordStore:
    """The engine of a store of ours; an adapter around the public methods of any other.

    A subclass of ours counts as another: it may have put something in the place of a public method.
    """
    return engine_of(store) or _Adapter(store)


def engine_of(store: LightningStore) -> Engine | None:
    """That of a store of ours; None of any other."""
    return cast(EngineStore, store).engine if type(store) in OURS or _is_postgres(store) else None


def _is_postgres(store: LightningStore) -> bool:
    """Whether it is a store in PostgreSQL, whose class needs a package that not every server has."""
    module = sys.modules.get("lightning_store.postgres_store")
    return module is not None and type(store) is module.PostgresEngineStore


class _Adapter:
    """Speaks for a store that knows only objects. It has to number a span before it adds it, so one that is then
    refused leaves a gap."""

    inline = False

    def __init__(self, store: LightningStore) -> None:
        self._store = store

    async def execute(self, operation: Operation[R]) -> R:
        return cast(R, await self._execute(operation))

    async def _execute(self, operation: Operation[Any]) -> Any:
        match operation:
            case StartRollout(new=new, worker_id=worker_id):
                request = _request_of(new)
                fields = {name: getattr(request, name) for name in ("mode", "resources_id", "config", "metadata")}
                return _claim_of(await self._store.start_rollout(request.input, **fields, worker_id=worker_id))
            case EnqueueRollouts(new=many, idempotency_key=key):
                keyed = {} if key is None else {"idempotency_key": key}  # a store need not know of it
                made = await self._store.enqueue_many_rollouts(list(map(_request_of, many)), **keyed)
                return list(map(_record_of, made))
            case StartAttempt(rollout_id=rollout_id, worker_id=worker_id):
                return _claim_of(await self._store.start_attempt(rollout_id, worker_id=worker_id))
            case UpdateRollout(rollout_id=rollout_id):
                return _record_of(await self._store.update_rollout(rollout_id, **_fields_of(operation)))
            case UpdateAttempt(rollout_id=rollout_id, attempt_id=attempt_id):
                return _attempt_record_of(
                    await self._store.update_attempt(rollout_id, attempt_id, **_fields_of(operation))
                )
            case PublishResources():
                return _resources_record_of(await self._publish(operation))
        raise TypeError(f"{type(operation).__name__} is no call of a RecordStore")

    async def claim(self, limit: int, worker_id: str | None, max_wait: float) -> Sequence[Claim]:
        wait = {"max_wait": max_wait} if max_wait > 0 else {}  # a store need not know of it
        claimed = await self._store.dequeue_many_rollouts(limit=limit, worker_id=worker_id, **wait)
        return list(map(_claim_of, claimed))

    async def rollout(self, rollout_id: str) -> RolloutRow | None:
        found = await self._store.get_rollout_by_id(rollout_id)
        return None if found is None else _row_of(found)

    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        found = await self._store.query_rollouts(**query.arguments())
        return Rows(list(map(_row_of, found)), found.total)

    async def resources(self, resources_id: str) -> ResourcesRecord | None:
        found = await self._store.get_resources_by_id(resources_id)
        return None if found is None else _resources_record_of(found)

    async def latest_resources(self, run: str | None) -> ResourcesRecord | None:
        found = await self._store.get_latest_resources(**({} if run is None else {"run": run}))
        return None if found is None else _resources_record_of(found)

    async def _publish(self, operation: PublishResources) -> ResourcesUpdate:
        named = named_resources(json_text.loads(operation.resources_json, "resources"))
        options: dict[str, Any] = {"policy_version": operation.policy_version, "run": operation.run}
        given = {name: value for name, value in options.items() if value is not None}  # a store need not know of them
        if operation.resources_id is None:
            return await self._store.add_resources(named, **given)
        return await self._store.update_resources(operation.resources_id, named, **given)

    async def add_spans(self, records: Sequence[SpanRecord]) -> Sequence[SpanOutcome]:
        numbered: list[Span | StoreError] = []
        for index, record in enumerate(records):
            try:
                number = await self._number(record, index)
                numbered.append(decode(record.document, number))
            except StoreError as error:
                numbered.append(error)
        with part_scope("spans"):
            return await add_legal(numbered, self._add)

    async def _number(self, record: SpanRecord, index: int) -> int:
        if record.sequence_id is not None:
            return record.sequence_id
        with part_scope(f"number-{index}"):
            return await self._store.get_next_span_sequence_id(record.rollout_id, record.attempt_id)

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

    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]:
        result = await self._store.query_spans(**query.arguments())
        return Rows([encode(span) for span in result], result.total)

    async def query_many_spans(self, query: SpanBatchQuery) -> Rows[SpanRecord]:
        found = await self._store.query_many_spans(**query.arguments())
        records = [encode(span) for spans in found.values() for span in spans]
        return Rows(records, len(records))

    async def export_page(self, which: RolloutQuery, begin: Place) -> Page:
        threaded, engine = self._behind_threads()
        return await threaded.run(engine.export_page(which, begin))

    async def import_rollouts(
        self,
        rollouts: Sequence[StoredRollout],
        resources: Sequence[ResourcesRecord],
        workers: Sequence[WorkerRecord],
        checkpoints: Sequence[CheckpointRecord],
        admissions: Sequence[AdmissionRecord],
    ) -> Imported:
        threaded, engine = self._behind_threads()
        return await threaded.run(engine.import_rollouts(rollouts, resources, workers, checkpoints, admissions))

    def _behind_threads(self) -> tuple[LightningStoreThreaded, Engine]:
        """A store of ours that has a thread of its own. There are no public methods for these calls."""
        store = self._store
        if isinstance(store, LightningStoreThreaded) and type(store.store) in OURS:
            return store, cast(EngineStore, store.store).engine
        kind = type(store).__name__
        raise UnsupportedError(f"{kind}, the store behind the server, neither exports nor imports rollouts")


def _fields_of(update: UpdateRollout | UpdateAttempt) -> dict[str, Any]:
    """The arguments that stand for what an update sets."""
    fields = dict(update.columns)
    for name in ("input", "metadata"):
        if f"{name}_json" in fields:
            text = fields.pop(f"{name}_json")
            fields[name] = None if text is None else json_text.loads(text, name)
    return fields if update.status is None else {**fields, "status": update.status}


def _key(span: Span) -> tuple[str, str, str]:
    return span.rollout_id, span.attempt_id, span.span_id


def _request_of(new: NewRollout) -> EnqueueRolloutRequest:
    return EnqueueRolloutRequest(
        input=json_text.loads(new.input_json, "input"),
        mode=new.mode,
        resources_id=new.resources_id,
        config=new.config,
        metadata=json_text.loads(new.metadata_json, "metadata"),
        priority=new.priority,
        group_id=new.group_id,
        group_size=new.group_size,
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
        end_reason=rollout.end_reason,
        priority=rollout.priority,
        group_id=rollout.group_id,
        group_size=rollout.group_size,
    )


def _resources_record_of(resources: ResourcesUpdate) -> ResourcesRecord:
    named = {name: one.model_dump() for name, one in resources.resources.items()}
    return ResourcesRecord(
        resources_id=resources.resources_id,
        resources_json=json_text.dumps(named, "resources"),
        create_time=resources.create_time,
        update_time=resources.update_time,
        version=resources.version,
        policy_version=resources.policy_version,
        run=resources.run,
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
        counts=attempt.counts,
        resources_id=attempt.resources_id,
        resources_version=attempt.resources_version,
        policy_version=attempt.policy_version,
        policy_version_min=attempt.policy_version_min,
        policy_version_max=attempt.policy_version_max,
    )
