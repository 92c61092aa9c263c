"""LightningStoreThreaded: any store, callable from any thread and any event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeVar

from lightning_store.feeds import NOW, begun_feed, close_feed
from lightning_store.forwarding import ForwardingStore
from lightning_store.loop_thread import LoopThread
from lightning_store.model import Group, GroupTerms, WatchFilters
from lightning_store.store import LightningStore, LightningStoreCapabilities

T = TypeVar("T")

_END: Final = object()


class _Stream:
    """A stream of the store, on the store's event loop."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items
        self._turn = asyncio.Lock()

    async def next(self) -> Any:
        """The next item; ``_END`` after the last."""
        async with self._turn:
            return await anext(self._items, _END)

    async def close(self) -> None:
        """Also while a ``next`` that was cancelled has not come to its end yet."""
        async with self._turn:
            await close_feed(self._items)


class LightningStoreThreaded(ForwardingStore):
    """Runs every call of ``store`` on one event loop, in a thread of its own.

    So the store sees a single loop, whoever calls, and a call that waits holds nobody up. (A lock around each call
    would do neither: held across an await, it deadlocks as soon as two loops call.) ``close()`` ends the thread; it is
    a daemon, so forgetting to does not keep the process alive.
    """

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self._starting = threading.Lock()
        self._thread: LoopThread | None = None

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {**self.store.capabilities, "thread_safe": True, "async_safe": True}

    @property
    def strict(self) -> bool:
        return self.store.strict

    @property
    def replay_window_seconds(self) -> float:
        return self.store.replay_window_seconds

    def otlp_traces_endpoint(self) -> str:
        return self.store.otlp_traces_endpoint()

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of ``call``, which is one of ``store``'s own, on the event loop that this has."""
        try:
            thread = self._running_thread()
        except BaseException:  # it was closed
            call.close()
            raise
        return await thread.run(call)

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await self.run(getattr(self.store, method)(*args, **kwargs))

    async def _completions(
        self, filters: WatchFilters, rollout_ids: list[str] | None, after: str | None
    ) -> AsyncGenerator[Any, None]:
        feed = self.store.watch_rollouts(rollout_ids, after=after, **filters)
        if after == NOW:
            yield await self.run(begun_feed(feed))
        async with aclosing(self._read(feed)) as items:
            async for item in items:
                yield item

    async def _groups(self, terms: GroupTerms, group_ids: list[str] | None) -> AsyncGenerator[Group, None]:
        async with aclosing(self._read(self.store.watch_groups(group_ids, **terms))) as items:
            async for item in items:
                yield item

    async def _read(self, feed: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        stream = _Stream(feed)
        thread = self._running_thread()
        try:
            while (item := await thread.run(stream.next())) is not _END:
                yield item
        finally:
            if thread.is_alive:
                await thread.run(stream.close())

    def _running_thread(self) -> LoopThread:
        with self._starting:
            if self._thread is None or not self._thread.is_alive:
                self._thread = LoopThread("lightning-store-threaded")
            return self._thread

    def close(self) -> None:
        """Cancel the calls that are under way and end the thread. The store itself stays as it is."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def __enter__(self) -> LightningStoreThreaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
