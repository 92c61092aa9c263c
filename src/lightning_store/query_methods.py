"""The ``query_…`` methods of stores that take a query as an object."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, TypeVar, Unpack

from lightning_store.model import (
    Attempt,
    FilterLogic,
    PaginatedResult,
    ResourcesUpdate,
    Rollout,
    RolloutFilters,
    RolloutStatus,
    SortOrder,
    Span,
    Worker,
    WorkerStatus,
)
from lightning_store.queries import (
    AttemptQuery,
    Query,
    ResourcesQuery,
    RolloutQuery,
    SpanBatchQuery,
    SpanQuery,
    WorkerQuery,
)
from lightning_store.store import LightningStore

RowT = TypeVar("RowT")


class QueryMethods(LightningStore):
    """Makes a query of the arguments, which checks them, and has ``run_query`` run it."""

    @abstractmethod
    async def run_query(self, query: Query[RowT]) -> PaginatedResult[RowT]:
        """The rows of a query.

        Args:
            query: One of the classes of ``lightning_store.queries``.

        Returns:
            What the ``query_…`` method of these arguments returns.
        """

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
        **filters: Unpack[RolloutFilters],
    ) -> PaginatedResult[Rollout]:
        query = RolloutQuery(
            status_in=status if status_in is None else status_in,
            rollout_id_in=rollout_ids if rollout_id_in is None else rollout_id_in,
            rollout_id_contains=rollout_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            **filters,
        )
        return await self.run_query(query)

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Attempt]:
        query = AttemptQuery(
            rollout_id=rollout_id,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return await self.run_query(query)

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
        query = SpanQuery(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
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
        return await self.run_query(query)

    async def query_many_spans(
        self,
        rollout_ids: Sequence[str],
        attempt: Literal["latest"] | None = "latest",
        *,
        name_in: Sequence[str] | None = None,
        attributes: Sequence[str] | None = None,
    ) -> dict[str, list[Span]]:
        query = SpanBatchQuery(rollout_ids=rollout_ids, attempt=attempt, name_in=name_in, attributes=attributes)
        found: dict[str, list[Span]] = {rollout_id: [] for rollout_id in query.rollout_ids}
        for span in await self.run_query(query):
            found[span.rollout_id].append(span)
        return found

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
        query = ResourcesQuery(
            resources_id=resources_id,
            resources_id_contains=resources_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return await self.run_query(query)

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
        query = WorkerQuery(
            status_in=status_in,
            worker_id_contains=worker_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return await self.run_query(query)
