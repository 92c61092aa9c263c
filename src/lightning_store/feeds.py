"""Feeds: what ``watch_rollouts`` and ``watch_groups`` return."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeAlias, TypeVar, cast

from lightning_store import arguments
from lightning_store.errors import InternalError
from lightning_store.model import CompletedRollout, Group

T = TypeVar("T")

NOW: Final = "now"
"""The cursor of the present moment."""

OpenFeed: TypeAlias = Callable[[list[str] | None, str | None], AsyncGenerator[Any, None]]
"""Yields the completions of these rollouts (None: of all) after a cursor (None: from the first). After ``NOW`` it first
yields the cursor of that moment."""


class Feed(AsyncIterator[T]):
    """Items, one by one. A wait for the next one that is cancelled, by ``asyncio.timeout`` say, or that fails, loses
    nothing: the feed goes on after the last item that it returned. Arguments are checked when the feed is first read.

    Args:
        wanted: What is to come, each once; None is all.
    """

    _argument = "rollout_ids"

    def __init__(self, wanted: Sequence[str] | None) -> None:
        self._wanted = wanted
        self._pending: dict[str, None] | None = None
        """Those of the wanted that have not come; None if all are wanted, or before the feed is read."""
        self._items: AsyncGenerator[Any, None] | None = None
        self._reading = False
        self._closed = False

    @abstractmethod
    def _opened(self, pending: list[str] | None) -> AsyncGenerator[Any, None]:
        """Begin to read what is pending (None: all), after what has come."""

    async def _next(self) -> Any:
        if self._reading:
            raise RuntimeError("another task is reading this feed; give each task a feed of its own")
        if self._closed:
            raise StopAsyncIteration
        if self._items is None:
            if self._pending is None and self._wanted is not None:
                self._pending = arguments.distinct_ids(self._wanted, self._argument)
            self._items = self._opened(None if self._pending is None else list(self._pending))
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

    def _note(self, id_: str) -> None:
        """It has come."""
        if self._pending is not None:
            self._pending.pop(id_, None)

    async def aclose(self) -> None:
        """Read no further."""
        self._closed = True
        if self._items is not None:
            await self._items.aclose()


class RolloutFeed(Feed[CompletedRollout]):
    """Completions, one by one.

    Args:
        open_: Begins to read the completions.
        rollout_ids: Only these; None is all.
        after: The cursor to begin after; None begins with the first.
    """

    def __init__(self, open_: OpenFeed, rollout_ids: Sequence[str] | None, after: str | None) -> None:
        super().__init__(rollout_ids)
        self._open = open_
        self._cursor = after

    def _opened(self, pending: list[str] | None) -> AsyncGenerator[Any, None]:
        return self._open(pending, self._cursor)

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
        self._note(completed.rollout.rollout_id)
        return completed


class GroupFeed(Feed[Group]):
    """Groups, one by one.

    Args:
        open_: Begins to read these groups (None: all), those first that are done.
        group_ids: Only these; None is all.
    """

    _argument = "group_ids"

    def __init__(
        self, open_: Callable[[list[str] | None], AsyncGenerator[Group, None]], group_ids: Sequence[str] | None
    ) -> None:
        super().__init__(group_ids)
        self._open = open_
        self._returned: set[str] = set()

    def _opened(self, pending: list[str] | None) -> AsyncGenerator[Group, None]:
        return self._open(pending)

    async def __anext__(self) -> Group:
        while True:
            group = cast(Group, await self._next())
            if group.group_id not in self._returned:  # a feed that is opened anew begins at the beginning
                self._returned.add(group.group_id)
                self._note(group.group_id)
                return group


async def begun_feed(feed: AsyncIterator[Any]) -> str:
    """The cursor at which a feed after ``NOW`` begins. One of another class does not tell, and so cannot go on from
    there."""
    return (await feed.begin() or NOW) if isinstance(feed, RolloutFeed) else NOW


async def close_feed(feed: AsyncIterator[Any]) -> None:
    """Close a feed of any class: one that is left where it stands goes on being served."""
    aclose = getattr(feed, "aclose", None)
    if aclose is not None:
        await aclose()
