"""ForwardingStore: a store that hands every call on to another one."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack, cast

from lightning_store.errors import UnsupportedError
from lightning_store.feeds import NOW, GroupFeed, RolloutFeed, begun_feed, close_feed
from lightning_store.model import CompletedRollout, Group, GroupTerms, WatchFilters
from lightning_store.store import LightningStore

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


def _forwarded(method: F) -> F:
    """The method of the same name and signature that goes through ``_forward``."""

    @functools.wraps(method, updated=())
    async def forward(self: ForwardingStore, *args: Any, **kwargs: Any) -> Any:
        return await self._forward(method.__name__, args, kwargs)

    return cast(F, forward)


class ForwardingStore(LightningStore):
    """Base of stores that only decide where, or on which thread, a call runs."""

    @abstractmethod
    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Make the call ``method(*args, **kwargs)`` on the other store."""

    def _forward_stream(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        """As ``_forward``, for a method whose results come one by one."""
        raise UnsupportedError(f"{type(self).__name__} does not forward {method}")

    statistics = _forwarded(LightningStore.statistics)
    start_rollout = _forwarded(LightningStore.start_rollout)
    enqueue_rollout = _forwarded(LightningStore.enqueue_rollout)
    enqueue_many_rollouts = _forwarded(LightningStore.enqueue_many_rollouts)
    dequeue_rollout = _forwarded(LightningStore.dequeue_rollout)
    dequeue_many_rollouts = _forwarded(LightningStore.dequeue_many_rollouts)
    start_attempt = _forwarded(LightningStore.start_attempt)
    add_span = _forwarded(LightningStore.add_span)
    add_many_spans = _forwarded(LightningStore.add_many_spans)
    add_otel_span = _forwarded(LightningStore.add_otel_span)
    get_next_span_sequence_id = _forwarded(LightningStore.get_next_span_sequence_id)
    get_many_span_sequence_ids = _forwarded(LightningStore.get_many_span_sequence_ids)
    query_rollouts = _forwarded(LightningStore.query_rollouts)
    query_attempts = _forwarded(LightningStore.query_attempts)
    query_spans = _forwarded(LightningStore.query_spans)
    query_many_spans = _forwarded(LightningStore.query_many_spans)
    query_resources = _forwarded(LightningStore.query_resources)
    query_workers = _forwarded(LightningStore.query_workers)
    get_rollout_by_id = _forwarded(LightningStore.get_rollout_by_id)
    get_latest_attempt = _forwarded(LightningStore.get_latest_attempt)
    get_resources_by_id = _forwarded(LightningStore.get_resources_by_id)
    get_latest_resources = _forwarded(LightningStore.get_latest_resources)
    get_worker_by_id = _forwarded(LightningStore.get_worker_by_id)
    add_resources = _forwarded(LightningStore.add_resources)
    update_resources = _forwarded(LightningStore.update_resources)
    update_rollout = _forwarded(LightningStore.update_rollout)
    cancel_rollouts = _forwarded(LightningStore.cancel_rollouts)
    requeue_rollouts = _forwarded(LightningStore.requeue_rollouts)
    update_attempt = _forwarded(LightningStore.update_attempt)
    update_worker = _forwarded(LightningStore.update_worker)
    wait_for_rollouts = _forwarded(LightningStore.wait_for_rollouts)
    set_admission = _forwarded(LightningStore.set_admission)
    get_admission = _forwarded(LightningStore.get_admission)
    query_admissions = _forwarded(LightningStore.query_admissions)
    mark_consumed = _forwarded(LightningStore.mark_consumed)
    rewind_consumer = _forwarded(LightningStore.rewind_consumer)
    delete_rollouts = _forwarded(LightningStore.delete_rollouts)
    delete_workers = _forwarded(LightningStore.delete_workers)
    delete_resources = _forwarded(LightningStore.delete_resources)
    release_worker = _forwarded(LightningStore.release_worker)

    def watch_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        after: str | None = None,
        **filters: Unpack[WatchFilters],
    ) -> AsyncIterator[CompletedRollout]:
        return RolloutFeed(functools.partial(self._completions, filters), rollout_ids, after)

    def watch_groups(self, group_ids: Sequence[str] | None = None, **terms: Unpack[GroupTerms]) -> AsyncIterator[Group]:
        return GroupFeed(functools.partial(self._groups, terms), group_ids)

    async def _groups(self, terms: GroupTerms, group_ids: list[str] | None) -> AsyncGenerator[Group, None]:
        feed = self._forward_stream("watch_groups", (group_ids,), terms)
        try:
            async for group in feed:
                yield group
        finally:
            await close_feed(feed)

    async def _completions(
        self, filters: WatchFilters, rollout_ids: list[str] | None, after: str | None
    ) -> AsyncGenerator[Any, None]:
        feed = self._forward_stream("watch_rollouts", (rollout_ids,), {"after": after, **filters})
        try:
            if after == NOW:
                yield await begun_feed(feed)
            async for completed in feed:
                yield completed
        finally:
            await close_feed(feed)
