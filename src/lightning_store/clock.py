"""Time, injected. No rule reads a clock or sleeps by itself, in the store or in the client."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from lightning_store.loops import forget_closed

PAUSE_SECONDS: Final = 2.0
"""An event loop that has not run for longer was paused, by itself or with its process."""
TICK_SECONDS: Final = 0.5
"""How often an event loop notes that it runs."""


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

    def awake_since(self) -> float:
        """Since when the program has run without a pause, on :meth:`monotonic`: before, it heard nobody. Called on a
        running event loop."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Suspend the calling task."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop after ``seconds``. A loop that ends forgets it silently."""
        ...


class SystemClock:
    """The machine's clock.

    It notices a pause of the program (SIGSTOP, a machine that sleeps, a blocked event loop) on each event loop that has
    asked for ``awake_since``: a timer notes every half second that the loop runs.
    """

    def __init__(self) -> None:
        self._awake_since = self.monotonic()
        self._ran_at: dict[asyncio.AbstractEventLoop, float] = {}

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def awake_since(self) -> float:
        loop = asyncio.get_running_loop()
        if loop in self._ran_at:
            self._note_run(loop)
        else:
            forget_closed(self._ran_at)
            self._tick(loop)
        return self._awake_since

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._note_run(loop)
        clock: weakref.ref[SystemClock] = weakref.ref(self)
        loop.call_later(TICK_SECONDS, _tick_again, clock, loop)

    def _note_run(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self.monotonic()
        if now - self._ran_at.get(loop, now) > PAUSE_SECONDS:
            self._awake_since = now
        self._ran_at[loop] = now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


def _tick_again(clock: weakref.ref[SystemClock], loop: asyncio.AbstractEventLoop) -> None:
    """Unless nobody uses the clock any more."""
    alive = clock()
    if alive is not None:
        alive._tick(loop)


class SleepCountingClock(SystemClock):
    """The same, and ``monotonic`` counts the time for which the machine sleeps, where the system can tell."""

    def monotonic(self) -> float:
        return time.monotonic() if _SLEEP_COUNTING is None else time.clock_gettime(_SLEEP_COUNTING)


_SLEEP_COUNTING: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
"""Linux has a clock for that, on macOS ``CLOCK_MONOTONIC`` is one, and on Windows there is no other."""


class SteadyClock:
    """The time of a store: what ``source.now()`` was when this was made, and since then ``source.monotonic()``.

    It neither jumps nor goes back, whatever is done to the machine's clock. ``monotonic`` is the same time.

    Args:
        source: The time, and the timers.
        not_before: The earliest time to begin with, in seconds since the epoch.
    """

    def __init__(self, source: Clock, not_before: float = -math.inf) -> None:
        self._source = source
        self._offset = max(source.now(), not_before) - source.monotonic()

    def now(self) -> float:
        return self._offset + self._source.monotonic()

    def monotonic(self) -> float:
        return self.now()

    def awake_since(self) -> float:
        return self._offset + self._source.awake_since()

    async def sleep(self, seconds: float) -> None:
        await self._source.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return self._source.call_later(seconds, callback)


class ShiftedClock:
    """Another clock, with the time of day of a machine whose clock is ahead of it, or behind.

    Args:
        source: The time, and the timers.
        ahead_seconds: How far the other machine's clock is ahead; negative if it is behind.
    """

    def __init__(self, source: Clock, ahead_seconds: float) -> None:
        self._source = source
        self._ahead_seconds = ahead_seconds

    def now(self) -> float:
        return self._source.now() + self._ahead_seconds

    def monotonic(self) -> float:
        return self._source.monotonic()

    def awake_since(self) -> float:
        return self._source.awake_since()

    async def sleep(self, seconds: float) -> None:
        await self._source.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return self._source.call_later(seconds, callback)
