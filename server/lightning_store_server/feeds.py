"""A store's feed as runs of what is there, so that many items that come at once make one message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Generic, TypeVar, cast

from lightning_store.feeds import close_feed

T = TypeVar("T")

AHEAD_MAX: Final = 256
"""Items that are taken from a feed and not sent yet."""

_END: Final = object()


class FeedRuns(Generic[T]):
    """Reads ``feed`` in a task of its own, until its end or ``cancel``; iterate over it once, for lists of items."""

    def __init__(self, feed: AsyncIterator[T]) -> None:
        self._items: asyncio.Queue[object] = asyncio.Queue()
        self._room = asyncio.Semaphore(AHEAD_MAX)
        self.cancelled = False
        """Whether it ended because of ``cancel``."""
        self._error: BaseException | None = None
        self._reading: asyncio.Task[None] | None = asyncio.create_task(_read(feed, self._items, self._room))
        self._reading.add_done_callback(self._note_end)

    def _note_end(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        self.cancelled = reading.cancelled()
        self._error = None if self.cancelled else reading.exception()
        self._items.put_nowait(_END)

    def cancel(self) -> None:
        """Read no further; iteration ends after what is there."""
        if self._reading is not None:
            self._reading.cancel()

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
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error


async def _read(feed: AsyncIterator[object], items: asyncio.Queue[object], room: asyncio.Semaphore) -> None:
    """(No method: its error, which the runs keep until somebody wants it, knows this frame.)"""
    try:
        async for item in feed:
            await room.acquire()
            items.put_nowait(item)
    finally:
        await close_feed(feed)
