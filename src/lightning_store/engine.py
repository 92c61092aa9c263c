"""The engine: LightningStore on a Backend. It checks arguments, runs steps, replays, waits and watches deadlines.

The rules that change records are in ``lightning_store.step``, the status rules in ``lightning_store.lifecycle``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lightning_store import arguments, json_text, queries
from lightning_store.backends.base import (
    AttemptRecord,
    Backend,
    Claim,
    NewRollout,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    Rows,
    SpanCodec,
    SpanRecord,
)
from lightning_store.clock import Clock, SystemClock
from lightning_store.errors import (
    SpansEvictedError,
    StoreError,
)
from lightning_store.feed import Feed, cursor_of, position_of
from lightning_store.lazy import eagerly
from lightning_store.lifecycle import TERMINAL
from lightning_store.memory_limits import MemoryLimits
from lightning_store.model import (
    UNSET,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    AttemptUpdate,
    CompletedRollout,
    EnqueueRolloutRequest,
    FilterLogic,
    PaginatedResult,
    Resource,
    ResourcesUpdate,
    ReturnWhen,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    RolloutUpdate,
    SortOrder,
    Span,
    Unset,
    Worker,
    WorkerStatus,
    given,
)
from lightning_store.outcomes import SpanOutcome, add_legal, stored_number, stored_of
from lightning_store.replay import current_request, part_scope
from lightning_store.snapshots import (
    attempt_of,
    attempted_rollout_of,
    resources_of,
    rollout_of,
    rollout_with_attempt,
    rollouts_at_first_look,
    worker_of,
)
from lightning_store.step import Deletion, Policy, Step
from lightning_store.steps import Steps
from lightning_store.store import LightningStore, LightningStoreCapabilities, LightningStoreStatistics

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

R = TypeVar("R")
T = TypeVar("T")

SLICE_ROWS = 256
"""Rows of a query that are converted at a stretch."""


class Engine(LightningStore):
    """Every rule of the contract, once. ``memory`` bounds the bytes of spans; None where there is no such bound."""

    def __init__(
        self,
        backend: Backend,
        spans: SpanCodec,
        *,
        policy: Policy,
        clock: Clock | None = None,
        memory: MemoryLimits | None = None,
    ) -> None:
        self._backend = backend
        self._codec = spans
        self._policy = policy
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._memory = memory
        self._started = self._clock.monotonic()
        self._steps = Steps(backend, policy, self._clock, memory)

    @property
    def strict(self) -> bool:
        return self._policy.strict

    @property
    def replay_window_seconds(self) -> float:
        return self._backend.replay_window_seconds

    # --- About the store ---------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {"thread_safe": True, "async_safe": True, "zero_copy": False, "otlp_traces": False}

    async def statistics(self) -> LightningStoreStatistics:
        counts = await self._steps.run(lambda step: step.tx.counts())
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
        }
        if self._memory is not None:
            statistics["eviction_threshold_bytes"] = self._memory.eviction_bytes
            statistics["safe_threshold_bytes"] = self._memory.safe_bytes
            statistics["memory_capacity_bytes"] = self._memory.capacity_bytes
            statistics["memory_limit_bytes"] = self._memory.limit_bytes
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
        return attempted_rollout_of(await self.start_rollout_record(new, arguments.worker_name(worker_id)))

    async def start_rollout_record(self, new: NewRollout, worker_id: str | None) -> Claim:
        async def start(step: Step) -> Claim:
            await step.check_resources(new.resources_id)
            return await step.begin_attempt(await step.create(new, "preparing"), worker_id)

        return await self._steps.once("start_rollout", start, stores=True)

    async def enqueue_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rollout:
        new = _new_rollout(arguments.rollout_request(input, mode, resources_id, config, metadata))
        return rollout_of((await self.enqueue_records([new]))[0])

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        checked = arguments.checked_requests(rollouts)
        new = [_new_rollout(request, f"rollouts[{i}].") for i, request in enumerate(checked)]
        return [rollout_of(record) for record in await self.enqueue_records(new)]

    async def enqueue_records(self, new: Sequence[NewRollout]) -> list[RolloutRecord]:
        return await self._steps.once("enqueue_rollouts", lambda step: step.enqueue(new), stores=True)

    async def dequeue_rollout(self, worker_id: str | None = None, *, max_wait: float = 0.0) -> AttemptedRollout | None:
        claimed = await self.dequeue_many_rollouts(limit=1, worker_id=worker_id, max_wait=max_wait)
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None, max_wait: float = 0.0
    ) -> Sequence[AttemptedRollout]:
        max_wait = arguments.wait_seconds("max_wait", max_wait)
        if limit <= 0:
            return []
        claims = await self.claim_records(limit, arguments.worker_name(worker_id), max_wait)
        return [attempted_rollout_of(claim) for claim in claims]

    async def claim_records(self, limit: int, worker_id: str | None, max_wait: float) -> list[Claim]:
        claim = partial(Step.claim, limit=limit, worker_id=worker_id)
        if max_wait <= 0:
            return await self._steps.once("dequeue_rollouts", claim)
        request = current_request()
        until = self._clock.monotonic() + max_wait
        claimants, watchdog = self._steps.claimants, self._steps.watchdog
        with claimants.register(None if request is None else request.id) as claimant, watchdog.waiting():
            woken = True
            while True:
                claimants.follow_call(claimant)
                left = until - self._clock.monotonic()
                last_look = left <= 0 or not woken
                claims = await self._steps.once("dequeue_rollouts", claim, final=last_look)
                if claims:
                    claimants.answered(claimant)
                if claims or last_look:
                    return claims
                woken = await claimant.wakeup.wait(self._clock, left)

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        arguments.check_id("rollout_id", rollout_id)
        return attempted_rollout_of(await self.start_attempt_record(rollout_id, arguments.worker_name(worker_id)))

    async def start_attempt_record(self, rollout_id: str, worker_id: str | None) -> Claim:
        async def start(step: Step) -> Claim:
            return await step.begin_attempt(await step.rollout(rollout_id), worker_id)

        return await self._steps.once("start_attempt", start)

    # --- Spans -------------------------------------------------------------------------------------------------------

    async def add_span(self, span: Span) -> Span | None:
        [span] = arguments.checked_spans([span])
        return None if await self._add_span_record(self._codec.encode(span)) is None else span

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        spans = arguments.checked_spans(spans)
        outcomes = await add_legal([self._encoded(span) for span in spans], self.add_span_records)
        return stored_of(spans, outcomes)

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        span = Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        record = self._codec.encode(span)
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
            return self._codec.encode(span)
        except StoreError as error:
            return error

    async def _add_span_record(self, record: SpanRecord) -> int | None:
        """The number under which it is stored; None for a duplicate."""
        [outcome] = await self.add_span_records([record])
        return stored_number(outcome)

    async def add_span_records(self, records: Sequence[SpanRecord]) -> Sequence[SpanOutcome]:
        """Store encoded spans, whatever codec made them; one outcome for each, in order. Refusals are not raised."""
        sized = [(record, self._span_size(record)) for record in records]
        return await self._steps.once("add_spans", lambda step: step.add_spans(sized), stores=True)

    def _span_size(self, record: SpanRecord) -> int:
        if self._memory is None or self._memory.span_size_estimator is None:
            return record.size_bytes
        return self._memory.span_size_estimator(*self._codec.decode([record]))

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        return (await self.get_many_span_sequence_ids([(rollout_id, attempt_id)]))[0]

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        rollout_ids: list[str] = []
        for rollout_id, attempt_id in rollout_attempt_ids:
            arguments.check_id("rollout_id", rollout_id)
            arguments.check_id("attempt_id", attempt_id)
            rollout_ids.append(rollout_id)
        return await self._steps.once("get_many_span_sequence_ids", lambda step: step.allocate(rollout_ids))

    # --- Queries -----------------------------------------------------------------------------------------------------

    async def query_rollouts(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[RolloutStatus] | None = None,
        rollout_ids: Sequence[str] | None = None,
    ) -> PaginatedResult[Rollout]:
        rows = await self.query_rollout_records(
            status_in=status if status_in is None else status_in,
            rollout_id_in=rollout_ids if rollout_id_in is None else rollout_id_in,
            rollout_id_contains=rollout_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return PaginatedResult(await _converted(rollouts_at_first_look, rows.items), limit, offset, rows.total)

    async def query_rollout_records(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> Rows[RolloutRow]:
        query = queries.build_query(
            queries.ROLLOUTS,
            filters=[
                queries.one_of("status", "status_in", status_in, queries.ROLLOUT_STATUSES),
                queries.one_of("rollout_id", "rollout_id_in", rollout_id_in),
                queries.contains("rollout_id", rollout_id_contains),
            ],
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )

        async def select(step: Step) -> Rows[RolloutRow]:
            rows = await step.tx.list_rollouts(query)
            latest = await step.tx.latest_attempts([row.rollout_id for row in rows.items])
            return Rows(list(map(RolloutRow, rows.items, latest)), rows.total)

        return await self._steps.run(select)

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Attempt]:
        arguments.check_id("rollout_id", rollout_id)
        query = queries.build_query(
            queries.ATTEMPTS, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset
        )

        async def select(step: Step) -> Rows[Any]:
            await step.known_if_strict(rollout_id)
            return await step.tx.list_attempts(rollout_id, query)

        rows = await self._steps.run(select)
        return PaginatedResult(await _converted(eagerly(attempt_of), rows.items), limit, offset, rows.total)

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
    ) -> PaginatedResult[Span]:
        rows = await self.query_span_records(
            rollout_id,
            attempt_id,
            trace_id=trace_id,
            trace_id_contains=trace_id_contains,
            span_id=span_id,
            span_id_contains=span_id_contains,
            parent_id=parent_id,
            parent_id_contains=parent_id_contains,
            name=name,
            name_contains=name_contains,
            filter_logic=filter_logic,
            limit=limit,
            offset=offset,
            sort_by=sort_by,
            sort_order=sort_order,
        )
        return PaginatedResult(await _converted(self._codec.decode, rows.items), limit, offset, rows.total)

    async def query_span_records(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        filter_logic: FilterLogic = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
        **texts: str | None,
    ) -> Rows[SpanRecord]:
        """As ``query_spans``, with the spans still encoded. ``texts`` are its filters, by name."""
        arguments.check_id("rollout_id", rollout_id)
        if attempt_id is not None:
            arguments.check_id("attempt_id", attempt_id)
        query = queries.build_query(
            queries.SPANS,
            filters=[queries.text_filter(argument, value) for argument, value in texts.items()],
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )

        async def select(step: Step) -> Rows[SpanRecord]:
            await step.known_if_strict(rollout_id)
            if await step.tx.spans_evicted(rollout_id):
                raise SpansEvictedError.of(rollout_id)
            if attempt_id != "latest":
                return await step.tx.list_spans(rollout_id, attempt_id, query)
            latest = await step.tx.latest_attempt(rollout_id)
            return Rows([], 0) if latest is None else await step.tx.list_spans(rollout_id, latest.attempt_id, query)

        return await self._steps.run(select)

    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[ResourcesUpdate]:
        query = queries.build_query(
            queries.RESOURCES,
            filters=[
                queries.equals("resources_id", resources_id),
                queries.contains("resources_id", resources_id_contains),
            ],
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        rows = await self._steps.run(lambda step: step.tx.list_resources(query))
        return PaginatedResult(await _converted(eagerly(resources_of), rows.items), limit, offset, rows.total)

    async def query_workers(
        self,
        *,
        status_in: Sequence[WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Worker]:
        query = queries.build_query(
            queries.WORKERS,
            filters=[
                queries.one_of("status", "status_in", status_in, queries.WORKER_STATUSES),
                queries.contains("worker_id", worker_id_contains),
            ],
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        rows = await self._steps.run(lambda step: step.tx.list_workers(query))
        return PaginatedResult(await _converted(eagerly(worker_of), rows.items), limit, offset, rows.total)

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        arguments.check_id("rollout_id", rollout_id)

        row = await self.get_rollout_record(rollout_id)
        return None if row is None else rollout_with_attempt(row)

    async def get_rollout_record(self, rollout_id: str) -> RolloutRow | None:
        async def select(step: Step) -> RolloutRow | None:
            record = await step.tx.get_rollout(rollout_id)
            return None if record is None else RolloutRow(record, await step.tx.latest_attempt(rollout_id))

        return await self._steps.run(select)

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        arguments.check_id("rollout_id", rollout_id)

        async def select(step: Step) -> Any:
            await step.known_if_strict(rollout_id)
            return await step.tx.latest_attempt(rollout_id)

        record = await self._steps.run(select)
        return None if record is None else attempt_of(record)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        arguments.check_id("resources_id", resources_id)
        record = await self._steps.run(lambda step: step.tx.get_resources(resources_id))
        return None if record is None else resources_of(record)

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        record = await self._steps.run(lambda step: step.tx.latest_resources())
        return None if record is None else resources_of(record)

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        arguments.check_id("worker_id", worker_id)
        record = await self._steps.run(lambda step: step.tx.get_worker(worker_id))
        return None if record is None else worker_of(record)

    # --- Resources ---------------------------------------------------------------------------------------------------

    async def add_resources(self, resources: Mapping[str, Resource]) -> ResourcesUpdate:
        return await self._publish("add_resources", None, resources)

    async def update_resources(self, resources_id: str, resources: Mapping[str, Resource]) -> ResourcesUpdate:
        arguments.check_id("resources_id", resources_id)
        return await self._publish("update_resources", resources_id, resources)

    async def _publish(
        self, operation: str, resources_id: str | None, resources: Mapping[str, Resource]
    ) -> ResourcesUpdate:
        fields = {name: resource.model_dump() for name, resource in arguments.named_resources(resources).items()}
        resources_json = json_text.dumps(fields, "resources")

        async def publish(step: Step) -> ResourcesRecord:
            return await step.publish(resources_id, resources_json)

        return resources_of(await self._steps.once(operation, publish, stores=True))

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
        columns = {name: getattr(update, name) for name in update.model_fields_set - {"status", "input", "metadata"}}
        columns |= _json_columns(update, "input", "metadata")
        new_status = update.status if "status" in update.model_fields_set else None

        async def change(step: Step) -> RolloutRecord:
            return await step.update_rollout(rollout_id, columns, new_status)

        return rollout_of(await self._steps.once("update_rollout", change))

    async def cancel_rollouts(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        arguments.distinct_ids(rollout_ids)
        records = await self._steps.once("cancel_rollouts", lambda step: step.cancel(rollout_ids))
        return [rollout_of(record) for record in records]

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | None | Unset = UNSET,
        last_heartbeat_time: float | None | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
    ) -> Attempt:
        arguments.check_id("rollout_id", rollout_id)
        arguments.check_id("attempt_id", attempt_id)
        update = AttemptUpdate(
            **given(status=status, worker_id=worker_id, last_heartbeat_time=last_heartbeat_time, metadata=metadata)
        )
        arguments.check_text("worker_id", update.worker_id)
        columns = {name: getattr(update, name) for name in update.model_fields_set - {"status", "metadata"}}
        columns |= _json_columns(update, "metadata")
        new_status = update.status if "status" in update.model_fields_set else None
        return attempt_of(await self.update_attempt_record(rollout_id, attempt_id, columns, new_status))

    async def update_attempt_record(
        self, rollout_id: str, attempt_id: str, columns: Mapping[str, Any], status: AttemptStatus | None
    ) -> AttemptRecord:
        async def change(step: Step) -> AttemptRecord:
            return await step.update_attempt(rollout_id, attempt_id, columns, status)

        return await self._steps.once("update_attempt", change)

    async def update_worker(self, worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset = UNSET) -> Worker:
        arguments.check_heartbeat(worker_id, heartbeat_stats)
        stats_json = None if isinstance(heartbeat_stats, Unset) else json_text.dumps(heartbeat_stats, "heartbeat_stats")
        return worker_of(await self._steps.run(lambda step: step.heartbeat(worker_id, stats_json)))

    # --- Waiting -----------------------------------------------------------------------------------------------------

    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None, return_when: ReturnWhen = "all"
    ) -> list[Rollout]:
        distinct = arguments.distinct_ids(rollout_ids)
        one_is_enough = arguments.is_any(return_when)
        until = None if timeout is None else self._clock.monotonic() + arguments.wait_seconds("timeout", timeout)
        woken = True
        waiters, watchdog = self._steps.waiters, self._steps.watchdog
        while True:
            with waiters.register(distinct, one_is_enough=one_is_enough) as waiter, watchdog.waiting():
                ended, unknown = await self._ended_rollouts(distinct)
                left = None if until is None else until - self._clock.monotonic()
                done = len(ended) + len(unknown) == len(distinct) or (one_is_enough and ended)
                if done or not woken or (left is not None and left <= 0):
                    return [rollout_of(ended[rollout_id]) for rollout_id in rollout_ids if rollout_id in ended]
                for rollout_id in ended:
                    waiter.note_end(rollout_id)
                for rollout_id in unknown:
                    waiter.pass_over(rollout_id)
                woken = await waiter.wait(self._clock, left)

    async def _ended_rollouts(self, rollout_ids: Mapping[str, None]) -> tuple[dict[str, RolloutRecord], list[str]]:
        async def select(step: Step) -> tuple[dict[str, RolloutRecord], list[str]]:
            ended: dict[str, RolloutRecord] = {}
            unknown: list[str] = []
            for rollout_id in rollout_ids:
                await step.known_if_strict(rollout_id)
                record = await step.tx.get_rollout(rollout_id)
                if record is None:
                    unknown.append(rollout_id)
                elif record.status in TERMINAL:
                    ended[rollout_id] = record
            return ended, unknown

        return await self._steps.run(select)

    async def watch_rollouts(
        self, rollout_ids: Sequence[str] | None = None, *, after: str | None = None
    ) -> AsyncIterator[CompletedRollout]:
        store_id = self._backend.store_id
        wanted = None if rollout_ids is None else set(arguments.distinct_ids(rollout_ids))
        feed = Feed(wanted, position_of(store_id, after))
        with self._steps.watchers.register(wanted) as watcher, self._steps.watchdog.waiting():
            while not feed.done:
                feed.pass_over(watcher.before_look())
                for told in await self._steps.run(feed.look):
                    yield CompletedRollout(rollout_with_attempt(told.row), cursor_of(store_id, told.position))
                if feed.caught_up and not feed.done:
                    await watcher.wakeup.wait(self._clock, None)

    # --- Deleting ----------------------------------------------------------------------------------------------------

    async def delete_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        older_than: float | None = None,
        status_in: Sequence[RolloutStatus] | None = None,
    ) -> list[str]:
        arguments.check_deletion(rollout_ids, older_than, status_in)
        which = Deletion(
            None if rollout_ids is None else list(arguments.distinct_ids(rollout_ids)),
            older_than,
            None if status_in is None else frozenset(status_in),
        )
        deleted: list[str] = []
        place: int | None = 0
        while place is not None:
            # The first part has the id of the call itself, which nothing else may have then.
            with part_scope(f"{place}") if place else nullcontext():
                delete = partial(Step.delete_some, which=which, after=place)
                place, some = await self._steps.once("delete_rollouts", delete)
            deleted += some
            await asyncio.sleep(0)  # let others in between
        return deleted


async def _converted(convert: Callable[[Sequence[Any]], list[T]], records: Sequence[Any]) -> list[T]:
    """The records as objects; of many of them, a slice at a time, so that other calls get their turn in between."""
    converted: list[T] = []
    for start in range(0, len(records), SLICE_ROWS):
        if start:
            await asyncio.sleep(0)
        converted += convert(records[start : start + SLICE_ROWS])
    return converted


def _new_rollout(request: EnqueueRolloutRequest, prefix: str = "") -> NewRollout:
    return NewRollout(
        input_json=json_text.dumps(request.input, f"{prefix}input"),
        mode=request.mode,
        resources_id=request.resources_id,
        config=request.config if request.config is not None else RolloutConfig(),
        metadata_json=json_text.dumps(request.metadata or {}, f"{prefix}metadata"),
    )


def _json_columns(update: RolloutUpdate | AttemptUpdate, *fields: str) -> dict[str, str | None]:
    """The columns of those payload fields that the update sets. None clears: it is JSON null for an input."""
    columns: dict[str, str | None] = {}
    for field in update.model_fields_set.intersection(fields):
        value = getattr(update, field)
        keeps_null = field != "input"
        columns[f"{field}_json"] = None if value is None and keeps_null else json_text.dumps(value, field)
    return columns
