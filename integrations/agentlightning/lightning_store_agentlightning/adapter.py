"""AdaptedStore: any store of ours as one of Agent Lightning's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import agentlightning as agl
from agentlightning.store.base import UNSET, LightningStoreCapabilities, LightningStoreStatistics, Unset
from agentlightning.types import PaginatedResult, TaskInput
from opentelemetry.sdk.trace import ReadableSpan

from lightning_store.errors import RolloutNotFoundError, SpansRejectedError
from lightning_store.store import LightningStore
from lightning_store_agentlightning import convert


class AdaptedStore(agl.LightningStore):
    """Speaks Agent Lightning's types to its caller and ours to ``store``.

    Its methods, their arguments and their results are those of ``agentlightning.LightningStore``; what they do is told
    in the docstrings of ``lightning_store.LightningStore``. Errors are those of ``store``: a ValueError where Agent
    Lightning has one.

    :param otlp_traces_endpoint: URL where the store takes spans over OTLP/HTTP, such as
        ``"http://localhost:4318/v1/traces"``. Given, ``capabilities["otlp_traces"]`` is true and Agent Lightning sends
        spans there, instead of calling ``add_otel_span``.
    """

    def __init__(self, store: LightningStore, *, otlp_traces_endpoint: str | None = None) -> None:
        super().__init__()
        self._store = store
        self._otlp_traces_endpoint = otlp_traces_endpoint

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store!r})"

    @property
    def store(self) -> LightningStore:
        """The store behind this one, with what Agent Lightning's interface has no name for (``cancel_rollouts``, …)."""
        return self._store

    # --- About the store ---------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Those of ``store``. ``otlp_traces`` only if asked for, since Agent Lightning then sends all its spans so."""
        otlp_traces = self._otlp_traces_endpoint is not None
        return cast(LightningStoreCapabilities, {**self._store.capabilities, "otlp_traces": otlp_traces})

    def otlp_traces_endpoint(self) -> str:
        """The URL that was given. NotImplementedError if none was."""
        if self._otlp_traces_endpoint is None:
            raise NotImplementedError("to export spans over OTLP, make the store with otlp_traces_endpoint=URL")
        return self._otlp_traces_endpoint

    async def statistics(self) -> LightningStoreStatistics:
        known = LightningStoreStatistics.__annotations__
        found = await self._store.statistics()
        values = {name: value for name, value in found.items() if name in known}
        return cast(LightningStoreStatistics, {**values, "name": type(self).__name__})

    # --- The queue ---------------------------------------------------------------------------------------------------

    async def start_rollout(
        self,
        input: TaskInput,
        mode: agl.RolloutMode | None = None,
        resources_id: str | None = None,
        config: agl.RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> agl.AttemptedRollout:
        started = await self._store.start_rollout(
            convert.plain(input),
            mode,
            resources_id,
            None if config is None else convert.config_from_agl(config),
            convert.plain(metadata),
            worker_id,
        )
        return convert.attempted_rollout_to_agl(started)

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: agl.RolloutMode | None = None,
        resources_id: str | None = None,
        config: agl.RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> agl.Rollout:
        queued = await self._store.enqueue_rollout(
            convert.plain(input),
            mode,
            resources_id,
            None if config is None else convert.config_from_agl(config),
            convert.plain(metadata),
        )
        return convert.rollout_to_agl(queued)

    async def enqueue_many_rollouts(self, rollouts: Sequence[agl.EnqueueRolloutRequest]) -> Sequence[agl.Rollout]:
        requests = [convert.request_from_agl(request) for request in rollouts]
        return [convert.rollout_to_agl(queued) for queued in await self._store.enqueue_many_rollouts(requests)]

    async def dequeue_rollout(self, worker_id: str | None = None) -> agl.AttemptedRollout | None:
        claimed = await self._store.dequeue_rollout(worker_id)
        return None if claimed is None else convert.attempted_rollout_to_agl(claimed)

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None
    ) -> Sequence[agl.AttemptedRollout]:
        claimed = await self._store.dequeue_many_rollouts(limit=limit, worker_id=worker_id)
        return [convert.attempted_rollout_to_agl(one) for one in claimed]

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> agl.AttemptedRollout:
        return convert.attempted_rollout_to_agl(await self._store.start_attempt(rollout_id, worker_id))

    # --- Spans -------------------------------------------------------------------------------------------------------

    async def add_span(self, span: agl.Span) -> agl.Span | None:
        """The very object that was given, or None for a duplicate."""
        stored = await self._store.add_span(convert.span_from_agl(span))
        return None if stored is None else span

    async def add_many_spans(self, spans: Sequence[agl.Span]) -> Sequence[agl.Span]:
        """Those of the objects given that were stored."""
        converted = [convert.span_from_agl(span) for span in spans]
        given = {id(ours): theirs for ours, theirs in zip(converted, spans, strict=True)}
        try:
            stored = await self._store.add_many_spans(converted)
        except SpansRejectedError as error:
            error.stored = cast(Any, tuple(given[id(one)] for one in error.stored))
            raise
        return [given[id(one)] for one in stored]

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> agl.Span | None:
        """Converted here, by Agent Lightning's own class: the span may be a test double, or have what only this
        process knows."""
        if sequence_id is None:
            sequence_id = await self._store.get_next_span_sequence_id(rollout_id, attempt_id)
        span = agl.Span.from_opentelemetry(
            readable_span, rollout_id=rollout_id, attempt_id=attempt_id, sequence_id=sequence_id
        )
        return await self.add_span(span)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        return await self._store.get_next_span_sequence_id(rollout_id, attempt_id)

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        return list(await self._store.get_many_span_sequence_ids(rollout_attempt_ids))

    # --- Queries -----------------------------------------------------------------------------------------------------

    async def query_rollouts(
        self,
        *,
        status_in: Sequence[agl.RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[agl.RolloutStatus] | None = None,
        rollout_ids: Sequence[str] | None = None,
    ) -> PaginatedResult[agl.Rollout]:
        page = await self._store.query_rollouts(
            status_in=status_in,
            rollout_id_in=rollout_id_in,
            rollout_id_contains=rollout_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            status=status,
            rollout_ids=rollout_ids,
        )
        return convert.page_to_agl(page, convert.rollout_to_agl)

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[agl.Attempt]:
        page = await self._store.query_attempts(
            rollout_id, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset
        )
        return convert.page_to_agl(page, convert.attempt_to_agl)

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
        filter_logic: Literal["and", "or"] = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
    ) -> PaginatedResult[agl.Span]:
        page = await self._store.query_spans(
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
        return convert.page_to_agl(page, convert.span_to_agl)

    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[agl.ResourcesUpdate]:
        page = await self._store.query_resources(
            resources_id=resources_id,
            resources_id_contains=resources_id_contains,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return convert.page_to_agl(page, convert.resources_to_agl)

    async def query_workers(
        self,
        *,
        status_in: Sequence[agl.WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[agl.Worker]:
        page = await self._store.query_workers(
            status_in=status_in,
            worker_id_contains=worker_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return convert.page_to_agl(page, convert.worker_to_agl)

    async def get_rollout_by_id(self, rollout_id: str) -> agl.Rollout | None:
        rollout = await self._store.get_rollout_by_id(rollout_id)
        return None if rollout is None else convert.rollout_to_agl(rollout)

    async def get_latest_attempt(self, rollout_id: str) -> agl.Attempt | None:
        attempt = await self._store.get_latest_attempt(rollout_id)
        return None if attempt is None else convert.attempt_to_agl(attempt)

    async def get_resources_by_id(self, resources_id: str) -> agl.ResourcesUpdate | None:
        update = await self._store.get_resources_by_id(resources_id)
        return None if update is None else convert.resources_to_agl(update)

    async def get_latest_resources(self) -> agl.ResourcesUpdate | None:
        update = await self._store.get_latest_resources()
        return None if update is None else convert.resources_to_agl(update)

    async def get_worker_by_id(self, worker_id: str) -> agl.Worker | None:
        worker = await self._store.get_worker_by_id(worker_id)
        return None if worker is None else convert.worker_to_agl(worker)

    # --- Resources ---------------------------------------------------------------------------------------------------

    async def add_resources(self, resources: agl.NamedResources) -> agl.ResourcesUpdate:
        return convert.resources_to_agl(await self._store.add_resources(convert.named_resources_from_agl(resources)))

    async def update_resources(self, resources_id: str, resources: agl.NamedResources) -> agl.ResourcesUpdate:
        named = convert.named_resources_from_agl(resources)
        return convert.resources_to_agl(await self._store.update_resources(resources_id, named))

    # --- Updates -----------------------------------------------------------------------------------------------------

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,
        mode: agl.RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: agl.RolloutStatus | Unset = UNSET,
        config: agl.RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> agl.Rollout:
        fields = _given(
            input=input, mode=mode, resources_id=resources_id, status=status, config=config, metadata=metadata
        )
        try:
            updated = await self._store.update_rollout(rollout_id, **fields)
        except RolloutNotFoundError as error:
            # Agent Lightning's message for this call alone; programs and tests of its users match it.
            raise RolloutNotFoundError(f"Item does not exist: {error}", **error.details) from error
        return convert.rollout_to_agl(updated)

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: agl.AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> agl.Attempt:
        fields = _given(status=status, worker_id=worker_id, last_heartbeat_time=last_heartbeat_time, metadata=metadata)
        return convert.attempt_to_agl(await self._store.update_attempt(rollout_id, attempt_id, **fields))

    async def update_worker(self, worker_id: str, heartbeat_stats: dict[str, Any] | Unset = UNSET) -> agl.Worker:
        fields = _given(heartbeat_stats=heartbeat_stats)
        return convert.worker_to_agl(await self._store.update_worker(worker_id, **fields))

    # --- Waiting -----------------------------------------------------------------------------------------------------

    async def wait_for_rollouts(self, *, rollout_ids: list[str], timeout: float | None = None) -> list[agl.Rollout]:
        ended = await self._store.wait_for_rollouts(rollout_ids=rollout_ids, timeout=timeout)
        return [convert.plain_rollout_to_agl(rollout) for rollout in ended]


def _given(**fields: Any) -> dict[str, Any]:
    """The arguments that are not Agent Lightning's UNSET, as plain values, which our stores check and convert."""
    return {name: convert.plain(value) for name, value in fields.items() if not isinstance(value, Unset)}
