"""EngineStore: the contract in process. It checks arguments, has the engine act, and makes objects of records."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast

from lightning_store import arguments, json_text, otel
from lightning_store.backends.base import Backend, Rows
from lightning_store.backends.records import AdmissionRecord, NewRollout, SpanRecord
from lightning_store.clock import Clock, SleepCountingClock
from lightning_store.engine.completion_feed import cursor_of
from lightning_store.engine.conversion import (
    attempt_of,
    attempted_rollout_of,
    resources_of,
    rollout_of,
    rollout_with_attempt,
    span_of,
    worker_of,
)
from lightning_store.engine.engine import Engine
from lightning_store.engine.operations import (
    AllocateSequenceIds,
    DeleteResources,
    DeleteWorkers,
    EnqueueRollouts,
    Heartbeat,
    MarkConsumed,
    PublishResources,
    ReleaseWorker,
    RequeueRollouts,
    RewindConsumer,
    SetAdmission,
    StartAttempt,
    StartRollout,
    UpdateAttempt,
    UpdateRollout,
)
from lightning_store.engine.policy import Policy
from lightning_store.engine.rules import Deletion
from lightning_store.errors import StoreError
from lightning_store.feeds import NOW, GroupFeed, RolloutFeed
from lightning_store.memory_limits import MemoryLimits
from lightning_store.model import (
    DEFAULT_CONFIG,
    UNSET,
    Admission,
    AdmissionState,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    AttemptUpdate,
    CompletedRollout,
    EnqueueRolloutRequest,
    Group,
    GroupTerms,
    LazyRows,
    PaginatedResult,
    Resource,
    ResourcesUpdate,
    ReturnWhen,
    Rollout,
    RolloutConfig,
    RolloutFilters,
    RolloutMode,
    RolloutStatus,
    RolloutUpdate,
    Span,
    Unset,
    WatchFilters,
    Worker,
    given,
)
from lightning_store.outcomes import add_legal, stored_number, stored_of
from lightning_store.queries import (
    AttemptQuery,
    GroupQuery,
    Query,
    ResourcesQuery,
    RolloutQuery,
    SpanBatchQuery,
    SpanQuery,
    WorkerQuery,
    cancelled_where,
    rollout_filters,
)
from lightning_store.query_methods import QueryMethods
from lightning_store.reserved import with_reserved
from lightning_store.spans.document import encode
from lightning_store.store import LightningStoreCapabilities, LightningStoreStatistics

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

T = TypeVar("T")


class EngineStore(QueryMethods):
    """A LightningStore on a backend in this process.

    Args:
        backend: Where the data is.
        policy: Which of the rules hold.
        clock: The time; the machine's clock for None.
        memory: Limits of what is stored; None where there are none.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        policy: Policy,
        clock: Clock | None = None,
        memory: MemoryLimits | None = None,
    ) -> None:
        self._clock: Clock = clock if clock is not None else SleepCountingClock()
        self._started = self._clock.monotonic()
        self._thread_safe = backend.inline  # else it belongs to one event loop
        self.engine = Engine(backend, policy=policy, clock=self._clock, memory=memory)
        """The same store on records, for a server."""

    @property
    def strict(self) -> bool:
        return self.engine.policy.strict

    @property
    def replay_window_seconds(self) -> float:
        return self.engine.replay_window_seconds

    # --- About the store ---------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {"thread_safe": self._thread_safe, "async_safe": True, "zero_copy": False, "otlp_traces": False}

    async def statistics(self) -> LightningStoreStatistics:
        counts, queue, completed = await self.engine.totals()
        statistics: LightningStoreStatistics = {
            "name": type(self).__name__,
            "total_rollouts": counts.rollouts,
            "total_attempts": counts.attempts,
            "total_spans": counts.spans,
            "total_resources": counts.resources,
            "total_workers": counts.workers,
            "uptime": self._clock.monotonic() - self._started,
            "total_span_bytes": counts.span_bytes,
            "total_bytes": counts.bytes,
            "rollouts_by_status": dict(queue.by_status),
            "completed_last_minute": completed,
        }
        if queue.oldest_queued_time is not None:
            statistics["oldest_queued_time"] = queue.oldest_queued_time
        memory = self.engine.memory
        if memory is not None:
            statistics["eviction_threshold_bytes"] = memory.eviction_bytes
            statistics["safe_threshold_bytes"] = memory.safe_bytes
            statistics["memory_capacity_bytes"] = memory.capacity_bytes
            statistics["memory_limit_bytes"] = memory.limit_bytes
        disk = self.engine.disk_use
        if disk is not None:
            statistics["disk_used_bytes"] = disk.used_bytes
            statistics["disk_file_bytes"] = disk.file_bytes
            statistics["disk_free_bytes"] = disk.free_bytes
            if disk.limit_bytes is not None:
                statistics["disk_limit_bytes"] = disk.limit_bytes
        return statistics

    # --- The queue ---------------------------------------------------------------------------------------------------

    async def start_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        new = _new_rollout(arguments.rollout_request(input, mode, resources_id, config, metadata))
        return attempted_rollout_of(await self.engine.execute(StartRollout(new, arguments.worker_name(worker_id))))

    async def enqueue_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        group_id: str | None = None,
        group_size: int | None = None,
    ) -> Rollout:
        new = _new_rollout(
            arguments.rollout_request(input, mode, resources_id, config, metadata, priority, group_id, group_size)
        )
        [record] = await self.engine.execute(EnqueueRollouts([new]))
        return rollout_of(record)

    async def enqueue_many_rollouts(
        self, rollouts: Sequence[EnqueueRolloutRequest], *, idempotency_key: str | None = None
    ) -> Sequence[Rollout]:
        arguments.check_optional_id("idempotency_key", idempotency_key)
        checked = arguments.checked_requests(rollouts)
        new = [_new_rollout(request, f"rollouts[{i}].") for i, request in enumerate(checked)]
        return [rollout_of(record) for record in await self.engine.execute(EnqueueRollouts(new, idempotency_key))]

    async def dequeue_rollout(self, worker_id: str | None = None, *, max_wait: float = 0.0) -> AttemptedRollout | None:
        claimed = await self.dequeue_many_rollouts(limit=1, worker_id=worker_id, max_wait=max_wait)
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None, max_wait: float = 0.0
    ) -> Sequence[AttemptedRollout]:
        max_wait = arguments.wait_seconds("max_wait", max_wait)
        if limit <= 0:
            return []
        claims = await self.engine.claim(limit, arguments.worker_name(worker_id), max_wait)
        return [attempted_rollout_of(claim) for claim in claims]

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        arguments.check_id("rollout_id", rollout_id)
        operation = StartAttempt(rollout_id, arguments.worker_name(worker_id))
        return attempted_rollout_of(await self.engine.execute(operation))

    # --- Spans -------------------------------------------------------------------------------------------------------

    async def add_span(self, span: Span) -> Span | None:
        [span] = arguments.checked_spans([span])
        return None if await self._add_span_record(encode(span)) is None else span

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        spans = arguments.checked_spans(spans)
        outcomes = await add_legal([self._encoded(span) for span in spans], self.engine.add_spans)
        return stored_of(spans, outcomes)

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        otel.check_finished(readable_span)
        span = Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        record = encode(span)
        if sequence_id is None:
            record = record._replace(sequence_id=None)
        number = await self._add_span_record(record)
        if number is None:
            return None
        span.sequence_id = number
        return span

    def _encoded(self, span: Span) -> SpanRecord | StoreError:
        """The record of a span, or why it cannot be stored."""
        try:
            return encode(span)
        except StoreError as error:
            return error

    async def _add_span_record(self, record: SpanRecord) -> int | None:
        """The number under which it is stored; None for a duplicate."""
        [outcome] = await self.engine.add_spans([record])
        return stored_number(outcome)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        return (await self.get_many_span_sequence_ids([(rollout_id, attempt_id)]))[0]

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        keys = [(rollout_id, attempt_id) for rollout_id, attempt_id in rollout_attempt_ids]
        for rollout_id, attempt_id in keys:
            arguments.check_id("rollout_id", rollout_id)
            arguments.check_id("attempt_id", attempt_id)
        return await self.engine.execute(AllocateSequenceIds(keys))

    # --- Queries -----------------------------------------------------------------------------------------------------

    async def run_query(self, query: Query[T]) -> PaginatedResult[T]:
        return cast(PaginatedResult[T], await self._rows(query))

    async def _rows(self, query: Query[Any]) -> PaginatedResult[Any]:
        engine = self.engine
        match query:
            case RolloutQuery():
                return _page(query, await engine.query_rollouts(query), rollout_with_attempt)
            case AttemptQuery():
                return _page(query, await engine.query_attempts(query), attempt_of)
            case SpanQuery():
                return _page(query, await engine.query_spans(query), span_of)
            case SpanBatchQuery():
                return _page(query, await engine.query_many_spans(query), span_of)
            case ResourcesQuery():
                return _page(query, await engine.query_resources(query), resources_of)
            case WorkerQuery():
                return _page(query, await engine.query_workers(query), worker_of)
        raise TypeError(f"{type(query).__name__} is no query of a store")

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        arguments.check_id("rollout_id", rollout_id)
        row = await self.engine.rollout(rollout_id)
        return None if row is None else rollout_with_attempt(row)

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        arguments.check_id("rollout_id", rollout_id)
        record = await self.engine.latest_attempt(rollout_id)
        return None if record is None else attempt_of(record)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        arguments.check_id("resources_id", resources_id)
        record = await self.engine.resources(resources_id)
        return None if record is None else resources_of(record)

    async def get_latest_resources(self, *, run: str | None = None) -> ResourcesUpdate | None:
        arguments.check_optional_id("run", run)
        record = await self.engine.latest_resources(run)
        return None if record is None else resources_of(record)

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        arguments.check_id("worker_id", worker_id)
        record = await self.engine.worker(worker_id)
        return None if record is None else worker_of(record)

    # --- Resources ---------------------------------------------------------------------------------------------------

    async def add_resources(
        self, resources: Mapping[str, Resource], *, policy_version: int | None = None, run: str | None = None
    ) -> ResourcesUpdate:
        return await self._publish(None, resources, policy_version, run)

    async def update_resources(
        self,
        resources_id: str,
        resources: Mapping[str, Resource],
        *,
        policy_version: int | None = None,
        run: str | None = None,
    ) -> ResourcesUpdate:
        arguments.check_id("resources_id", resources_id)
        return await self._publish(resources_id, resources, policy_version, run)

    async def _publish(
        self, resources_id: str | None, resources: Mapping[str, Resource], policy_version: int | None, run: str | None
    ) -> ResourcesUpdate:
        arguments.check_policy_version(policy_version)
        arguments.check_optional_id("run", run)
        fields = {name: resource.model_dump() for name, resource in arguments.named_resources(resources).items()}
        operation = PublishResources(resources_id, json_text.dumps(fields, "resources"), policy_version, run)
        return resources_of(await self.engine.execute(operation))

    # --- Updates -----------------------------------------------------------------------------------------------------

    async def update_rollout(
        self,
        rollout_id: str,
        input: Any | Unset = UNSET,
        mode: RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
    ) -> Rollout:
        arguments.check_id("rollout_id", rollout_id)
        update = RolloutUpdate(
            **given(input=input, mode=mode, resources_id=resources_id, status=status, config=config, metadata=metadata)
        )
        arguments.check_text("resources_id", update.resources_id)
        columns = _columns_of(update)
        new_status = columns.pop("status", None)
        return rollout_of(await self.engine.execute(UpdateRollout(rollout_id, columns, new_status)))

    async def cancel_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> list[Rollout]:
        where = cancelled_where(rollout_ids, status_in, filters)
        return [rollout_with_attempt(row) for row in await self.engine.cancel(rollout_ids, where)]

    async def requeue_rollouts(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        arguments.distinct_ids(rollout_ids)
        return [rollout_with_attempt(row) for row in await self.engine.execute(RequeueRollouts(list(rollout_ids)))]

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | None | Unset = UNSET,
        last_heartbeat_time: float | None | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
        *,
        counts: bool | Unset = UNSET,
    ) -> Attempt:
        arguments.check_id("rollout_id", rollout_id)
        arguments.check_id("attempt_id", attempt_id)
        fields = given(
            status=status,
            worker_id=worker_id,
            last_heartbeat_time=last_heartbeat_time,
            metadata=metadata,
            counts=counts,
        )
        update = AttemptUpdate(**fields)
        arguments.check_text("worker_id", update.worker_id)
        columns = _columns_of(update)
        new_status = columns.pop("status", None)
        return attempt_of(await self.engine.execute(UpdateAttempt(rollout_id, attempt_id, columns, new_status)))

    async def update_worker(self, worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset = UNSET) -> Worker:
        arguments.check_heartbeat(worker_id, heartbeat_stats)
        stats_json = None if isinstance(heartbeat_stats, Unset) else json_text.dumps(heartbeat_stats, "heartbeat_stats")
        return worker_of(await self.engine.execute(Heartbeat(worker_id, stats_json)))

    # --- Waiting -----------------------------------------------------------------------------------------------------

    async def wait_for_rollouts(
        self, rollout_ids: Sequence[str], *, timeout: float | None = None, return_when: ReturnWhen = "all"
    ) -> list[Rollout]:
        distinct = arguments.distinct_ids(rollout_ids)
        one_is_enough = arguments.is_any(return_when)
        seconds = None if timeout is None else arguments.wait_seconds("timeout", timeout)
        ended = await self.engine.wait(distinct, seconds, one_is_enough=one_is_enough)
        return [rollout_with_attempt(ended[rollout_id]) for rollout_id in rollout_ids if rollout_id in ended]

    def watch_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        after: str | None = None,
        **filters: Unpack[WatchFilters],
    ) -> AsyncIterator[CompletedRollout]:
        return RolloutFeed(partial(self._completions, filters), rollout_ids, after)

    async def _completions(
        self, filters: WatchFilters, wanted: list[str] | None, after: str | None
    ) -> AsyncGenerator[Any, None]:
        where = RolloutQuery(**rollout_filters(filters))
        if after == NOW:
            after = await self.engine.present_cursor()
            yield after
        async with aclosing(self.engine.watch(wanted, after, where, filters.get("consumer"))) as completions:
            async for one in completions:
                yield CompletedRollout(rollout_with_attempt(one.row), cursor_of(self.engine.store_id, one.position))

    def watch_groups(self, group_ids: Sequence[str] | None = None, **terms: Unpack[GroupTerms]) -> AsyncIterator[Group]:
        return GroupFeed(partial(self._groups, GroupQuery(**terms)), group_ids)

    async def _groups(self, terms: GroupQuery, wanted: list[str] | None) -> AsyncGenerator[Group, None]:
        async with aclosing(self.engine.watch_groups(wanted, terms)) as groups:
            async for one in groups:
                rollouts = [rollout_with_attempt(row) for row in one.group.rows]
                yield Group(one.group.group_id, one.group.size, one.status, rollouts)

    # --- Consuming ---------------------------------------------------------------------------------------------------

    async def mark_consumed(
        self, consumer: str, rollout_ids: Sequence[str], *, checkpoint: str | None = None
    ) -> list[str]:
        arguments.check_id("consumer", consumer)
        arguments.check_optional_id("checkpoint", checkpoint)
        distinct = list(arguments.distinct_ids(rollout_ids))
        return await self.engine.execute(MarkConsumed(consumer, distinct, checkpoint))

    async def rewind_consumer(self, consumer: str, *, checkpoint: str | None = None) -> list[str]:
        arguments.check_id("consumer", consumer)
        arguments.check_optional_id("checkpoint", checkpoint)
        return await self.engine.execute(RewindConsumer(consumer, checkpoint))

    async def set_admission(self, run: str, *, max_open_groups: int | None = None, paused: bool = False) -> Admission:
        arguments.check_admission(run, max_open_groups, paused)
        stored = await self.engine.execute(SetAdmission(AdmissionRecord(run, max_open_groups, paused)))
        return Admission(*stored)

    async def get_admission(self, run: str) -> AdmissionState:
        arguments.check_id("run", run)
        return await self.engine.admission(run)

    async def query_admissions(self) -> list[Admission]:
        return [Admission(*one) for one in await self.engine.admissions()]

    # --- Deleting ----------------------------------------------------------------------------------------------------

    async def delete_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        older_than: float | None = None,
        status_in: Sequence[RolloutStatus] | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> list[str]:
        arguments.check_deletion(rollout_ids, older_than, status_in)
        which = Deletion(
            None if rollout_ids is None else list(arguments.distinct_ids(rollout_ids)),
            older_than,
            None if status_in is None else frozenset(status_in),
            RolloutQuery(**filters),
        )
        return await self.engine.delete(which)

    async def delete_workers(self, worker_ids: Sequence[str]) -> list[str]:
        return await self.engine.execute(DeleteWorkers(list(arguments.distinct_ids(worker_ids, "worker_ids"))))

    async def delete_resources(self, resources_ids: Sequence[str]) -> list[str]:
        return await self.engine.execute(DeleteResources(list(arguments.distinct_ids(resources_ids, "resources_ids"))))

    async def release_worker(self, worker_id: str) -> Worker | None:
        arguments.check_id("worker_id", worker_id)
        record = await self.engine.execute(ReleaseWorker(worker_id))
        return None if record is None else worker_of(record)


def _page(query: Query[Any], rows: Rows[Any], convert: Callable[[Any], Any]) -> PaginatedResult[Any]:
    return PaginatedResult(LazyRows(rows.items, convert), query.limit, query.offset, rows.total)


def _new_rollout(request: EnqueueRolloutRequest, prefix: str = "") -> NewRollout:
    new = NewRollout(
        input_json=json_text.dumps(request.input, f"{prefix}input"),
        mode=request.mode,
        resources_id=request.resources_id,
        config=request.config if request.config is not None else DEFAULT_CONFIG,
        metadata_json=json_text.dumps(request.metadata, f"{prefix}metadata") if request.metadata else "{}",
        priority=request.priority,
        group_id=request.group_id,
        group_size=request.group_size,
    )
    return with_reserved(new) if request.metadata else new


def _columns_of(update: RolloutUpdate | AttemptUpdate) -> dict[str, Any]:
    """The columns that an update sets, its status among them. None clears: it is JSON null for an input."""
    columns: dict[str, Any] = {}
    for name in update.model_fields_set:
        value = getattr(update, name)
        if name in ("input", "metadata"):
            clears = value is None and name != "input"
            columns[f"{name}_json"] = None if clears else json_text.dumps(value, name)
        else:
            columns[name] = value
    return columns
