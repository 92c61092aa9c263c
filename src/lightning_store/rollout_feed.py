"""RolloutFeed: what ``watch_rollouts`` returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from lightning_store import arguments
from lightning_store.errors import InternalError
from lightning_store.model import CompletedRollout

NOW: Final = "now"
"""The cursor of the present moment."""

OpenFeed: TypeAlias = Callable[[list[str] | None, str | None], AsyncGenerator[Any, None]]
"""Yields the completions of these rollouts (None: of all) after a cursor (None: from the first). After ``NOW`` it first
yields the cursor of that moment."""


class RolloutFeed(AsyncIterator[CompletedRollout]):
    """Completions, one by one.

    A wait for the next one that is cancelled, by ``asyncio.timeout`` say, or that fails, loses nothing: the feed goes
    on after the last completion that it returned. Arguments are checked when the feed is first read.

    Args:
        open_: Begins to read the completions.
        rollout_ids: Only these; None is all.
        after: The cursor to begin after; None begins with the first.
    """

    def __init__(self, open_: OpenFeed, rollout_ids: Sequence[str] | None, after: str | None) -> None:
        self._open = open_
        self._wanted = rollout_ids
        self._pending: dict[str, None] | None = None
        """Those of the wanted that have not come; None if all are wanted, or before the feed is read."""
        self._cursor = after
        self._items: AsyncGenerator[Any, None] | None = None
        self._reading = False
        self._closed = False

    async def begin(self) -> str | None:
        """Return the cursor after which the feed goes on. After this, "now" is a moment of the past."""
        if self._cursor == NOW:
            cursor = await self._next()
            if not isinstance(cursor, str):
                raise InternalError(f"the feed began after 'now' with {cursor!r} instead of a cursor")
            self._cursor = cursor
        return self._cursor

    async def __anext__(self) -> CompletedRollout:
        await self.begin()
        completed = cast(CompletedRollout, await self._next())
        self._cursor = completed.cursor
        if self._pending is not None:
            self._pending.pop(completed.rollout.rollout_id, None)
        return completed

    async def _next(self) -> Any:
        if self._reading:
            raise RuntimeError("another task is reading this feed; give each task a feed of its own")
        if self._closed:
            raise StopAsyncIteration
        if self._items is None:
            if self._pending is None and self._wanted is not None:
                self._pending = arguments.distinct_ids(self._wanted)
            self._items = self._open(None if self._pending is None else list(self._pending), self._cursor)
        self._reading = True
        try:
            return await anext(self._items)
        except StopAsyncIteration:
            raise
        except (Exception, asyncio.CancelledError):
            self._items = None  # it has ended with this; the next call opens it anew
            raise
        finally:
            self._reading = False

    async def aclose(self) -> None:
        """Read no further."""
        self._closed = True
        if self._items is not None:
            await self._items.aclose()


async def begun_feed(feed: AsyncIterator[Any]) -> str:
    """The cursor at which a feed after ``NOW`` begins. One of another class does not tell, and so cannot go on from
    there."""
    return (await feed.begin() or NOW) if isinstance(feed, RolloutFeed) else NOW


async def close_feed(feed: AsyncIterator[Any]) -> None:
    """Close a feed of any class: one that is left where it stands goes on being served."""
    aclose = getattr(feed, "aclose", None)
    if aclose is not None:
        await aclose()
