"""A store's feed as runs of what is there, so that many items that come at once make one message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, Generic, TypeVar, cast

T = TypeVar("T")

AHEAD_MAX: Final = 256
"""Items that are taken from a feed and not sent yet."""

_END: Final = object()


class FeedRuns(Generic[T]):
    """Reads ``feed`` in a task of its own, until its end or ``cancel``; iterate over it once, for lists of items."""

    def __init__(self, feed: AsyncIterator[T]) -> None:
        self._items: asyncio.Queue[object] = asyncio.Queue()
        self._room = asyncio.Semaphore(AHEAD_MAX)
        self._reading = asyncio.ensure_future(self._read(feed))
        self._reading.add_done_callback(lambda _: self._items.put_nowait(_END))

    async def _read(self, feed: AsyncIterator[T]) -> None:
        try:
            async for item in feed:
                await self._room.acquire()
                self._items.put_nowait(item)
        finally:
            if isinstance(feed, AsyncGenerator):  # a feed that is left where it stands goes on being served
                await feed.aclose()

    def cancel(self) -> None:
        """Read no further; iteration ends after what is there."""
        self._reading.cancel()

    @property
    def cancelled(self) -> bool:
        return self._reading.cancelled()

    async def __aiter__(self) -> AsyncIterator[list[T]]:
        """The error of the feed, if it fails, comes after what was read before."""
        ended = False
        while not ended:
            run = [await self._items.get()]
            while not self._items.empty():
                run.append(self._items.get_nowait())
            if run[-1] is _END:
                run.pop()
                ended = True
            if run:
                yield cast(list[T], run)
            for _ in run:
                self._room.release()
        if not self.cancelled:
            self._reading.result()
