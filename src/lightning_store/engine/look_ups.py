"""Look-ups of rollouts by their ids, where each read of the backend is a round trip: all that are ready share them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Final, TypeAlias, TypeVar

from lightning_store.backends.base import Snapshot, SnapshotEndedError
from lightning_store.backends.records import RolloutRow
from lightning_store.errors import StoreError

R = TypeVar("R")

Found: TypeAlias = Sequence[RolloutRow | None]
"""Rollouts in the order of their ids; None where there is no such rollout."""

GROUP_MAX: Final = 200
"""Look-ups that share a snapshot."""
SLOW_SECONDS: Final = 0.01
"""How long the others of a group have to read from the snapshot until those that are ready do not wait for it."""


class _LookUp:
    """One on its way."""

    __slots__ = ("found", "left", "rollout_ids")

    def __init__(self, rollout_ids: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        self.rollout_ids = rollout_ids
        self.found: asyncio.Future[tuple[Snapshot, Found]] = loop.create_future()
        self.left: asyncio.Future[None] = loop.create_future()
        """Set when the snapshot is not needed for it any more."""

    def answer(self, snapshot: Snapshot, rows: Mapping[str, RolloutRow | None]) -> None:
        if not self.found.done():
            self.found.set_result((snapshot, [rows[one] for one in self.rollout_ids]))

    def fail(self, error: Exception) -> None:
        if not self.found.done():
            self.found.set_exception(copy(error) if isinstance(error, StoreError) else error)


class LookUps:
    """Those of one store. While a group is read the next ones gather, unless it reads for long.

    Args:
        read: Calls what it is given with a snapshot in which nothing is overdue.
    """

    def __init__(self, read: Callable[[Callable[[Snapshot], Awaitable[None]]], Awaitable[None]]) -> None:
        self._read = read
        self._ready: deque[_LookUp] = deque()
        self._newest: Sequence[_LookUp] = ()
        """The group for which those that are ready wait."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def rollouts(self, rollout_ids: Sequence[str], select: Callable[[Snapshot, Found], Awaitable[R]]) -> R:
        """What ``select`` makes of these rollouts, and of the snapshot in which they were found. Where another one's
        read has ended that, of a second one."""
        try:
            return await self._rollouts(rollout_ids, select)
        except SnapshotEndedError:
            return await self._rollouts(rollout_ids, select)

    async def _rollouts(self, rollout_ids: Sequence[str], select: Callable[[Snapshot, Found], Awaitable[R]]) -> R:
        one = _LookUp(rollout_ids)
        self._ready.append(one)
        if not self._newest:
            self._begin()
        try:
            snapshot, rows = await one.found
            return await select(snapshot, rows)
        finally:
            one.left.set_result(None)

    def _begin(self) -> None:
        """A group of all that are ready, if there are any."""
        self._newest = [self._ready.popleft() for _ in range(min(GROUP_MAX, len(self._ready)))]
        if self._newest:
            task = asyncio.create_task(self._run(self._newest))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, group: Sequence[_LookUp]) -> None:
        try:
            await self._read(partial(self._look, group))
        except Exception as error:
            for one in group:
                one.fail(error)
        finally:
            self._go_on_after(group)

    async def _look(self, group: Sequence[_LookUp], snapshot: Snapshot) -> None:
        ids = list(dict.fromkeys(rollout_id for one in group for rollout_id in one.rollout_ids))
        rows = dict(zip(ids, await snapshot.rollouts(ids), strict=True))
        for one in group:
            one.answer(snapshot, rows)
        _, reading = await asyncio.wait([one.left for one in group], timeout=SLOW_SECONDS)
        if reading:
            self._go_on_after(group)
            await asyncio.wait(reading)

    def _go_on_after(self, group: Sequence[_LookUp]) -> None:
        if self._newest is group:
            self._begin()
