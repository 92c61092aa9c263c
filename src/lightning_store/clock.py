"""Time, injected. No rule reads a clock or sleeps by itself, in the store or in the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback that has been scheduled."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Where the store and the client get the time from. A test gives a fake one."""

    def now(self) -> float:
        """Seconds since the Unix epoch: the time that is stored and shown. It may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment, never backwards: for lengths of time."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Suspend the calling task."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop after ``seconds``. A loop that ends forgets it silently."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


class SteadyClock(SystemClock):
    """The machine's time as it was when this was made, and since then the monotonic clock: within a process it neither
    jumps nor goes back. ``monotonic`` is the same time, so that it means something to the next process too."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()

    def monotonic(self) -> float:
        return self.now()
