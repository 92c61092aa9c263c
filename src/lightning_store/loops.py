"""What is kept for each event loop, and long work on it that is cut into slices."""

from __future__ import annotations

import asyncio
from typing import Any, Final


def forget_closed(by_loop: dict[asyncio.AbstractEventLoop, Any]) -> None:
    """Drop what belongs to loops that were closed, of which nobody is told. Other threads may use it meanwhile."""
    for loop in list(by_loop):
        if loop.is_closed():
            by_loop.pop(loop, None)


SLICE_SECONDS: Final = 0.005
"""How long work goes on that can be cut, before others get their turn."""

_slicing: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}


async def next_turn() -> None:
    """Let others in between two slices of long work.

    Of all the work that is cut into slices on an event loop, one slice is done in each turn of it: however many callers
    want such work done, another call waits for one slice.
    """
    loop = asyncio.get_running_loop()
    lock = _slicing.get(loop)
    if lock is None:
        forget_closed(_slicing)
        lock = _slicing[loop] = asyncio.Lock()
    async with lock:
        await asyncio.sleep(0)


class Slicer:
    """Tells when a slice of long work is over: ``if slicer.is_over(): await slicer.next_turn()``.

    Args:
        seconds: How long a slice may take; None is :data:`SLICE_SECONDS`.
        in_line: Whether its slices wait for those of other work. Not so that of a transaction, for which others wait.
    """

    __slots__ = ("_began", "_in_line", "_now", "_seconds")

    def __init__(self, seconds: float | None = None, *, in_line: bool = True) -> None:
        self._seconds = SLICE_SECONDS if seconds is None else seconds
        self._in_line = in_line
        self._now = asyncio.get_running_loop().time
        self._began = self._now()

    def is_over(self) -> bool:
        """Whether others should have their turn now."""
        return self._now() - self._began > self._seconds

    async def next_turn(self) -> None:
        """Let them have it, and begin another slice."""
        await (next_turn() if self._in_line else asyncio.sleep(0))
        self._began = self._now()

    async def breathe(self) -> None:
        """Let others have their turn if it is time."""
        if self.is_over():
            await self.next_turn()
