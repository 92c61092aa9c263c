"""A clock that moves only when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import threading
from collections.abc import Callable

SAFETY_SECONDS = 120.0
"""Real seconds after which a test that waits for something that never comes fails, rather than hangs."""

_SAME_TIME_SECONDS = 1e-6


class FakeTimer:
    """A callback that a :class:`FakeClock` will run on the event loop that asked for it."""

    def __init__(self, due: float, callback: Callable[[], object]) -> None:
        self.due = due
        self.cancelled = False
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()

    def cancel(self) -> None:
        """Never run the callback, also when the time has come already but the loop has not got round to it."""
        self.cancelled = True

    def fire(self) -> None:
        """Hand the callback to its loop, from any thread. A loop that has been closed forgets it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._run, context=self._context)

    def _run(self) -> None:
        if not self.cancelled:
            self._callback()


class FakeClock:
    """A :class:`lightning_store.clock.Clock` for tests, shared by any number of event loops and threads.

    Time stands still until :meth:`advance`. A test that must know that somebody waits awaits :meth:`until_waiting`.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        """``start`` is the first :meth:`now`, in seconds since the Unix epoch."""
        self._start = start
        self._now = start
        self._jumped = 0.0
        self._awake_since = 0.0
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._watchers: list[tuple[float, FakeTimer]] = []

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._now + self._jumped

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._now - self._start

    def awake_since(self) -> float:
        """When the last :meth:`pause` ended."""
        return self._awake_since

    async def sleep(self, seconds: float) -> None:
        """Suspend the calling task until the clock has been advanced by ``seconds``."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        timer = self.call_later(seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> FakeTimer:
        """Run ``callback`` on the running event loop once the clock has been advanced by ``seconds``."""
        with self._lock:
            timer = FakeTimer(self._now + max(seconds, 0.0), callback)
            if timer.due <= self._now:
                timer.fire()
            else:
                heapq.heappush(self._timers, (timer.due, next(self._order), timer))
            for due, watcher in self._watchers:
                if _same_time(due, timer.due):
                    watcher.fire()
        return timer

    def advance(self, seconds: float) -> None:
        """Move the time on in one leap, and fire the timers that have come due in the order of their times.

        Nobody sees a time in between, whichever thread they run on: not the callbacks either, which run when their
        event loops get to it.
        """
        if seconds < 0:
            raise ValueError(f"time does not go backwards: {seconds}")
        with self._lock:
            self._now += seconds
            while self._timers and self._timers[0][0] <= self._now:
                heapq.heappop(self._timers)[2].fire()

    def pause(self, seconds: float) -> None:
        """The same, and the program did not run meanwhile: it was stopped, or its machine slept."""
        self._awake_since = self.monotonic() + seconds
        self.advance(seconds)

    def jump(self, seconds: float) -> None:
        """Somebody sets the machine's time: :meth:`now` is so much later, or earlier, and no time has passed."""
        self._jumped += seconds

    async def until_waiting(self, due: float) -> None:
        """Return as soon as a timer or a sleeper is due at ``due`` (within a microsecond).

        TimeoutError, with the times that are due, if that does not happen within ``SAFETY_SECONDS`` of real time.
        """
        seen = asyncio.Event()
        due -= self._jumped
        watcher = (due, FakeTimer(due, seen.set))
        with self._lock:
            if any(_same_time(due + self._jumped, pending) for pending in self._pending()):
                return
            self._watchers.append(watcher)
        try:
            async with asyncio.timeout(SAFETY_SECONDS):
                await seen.wait()
        except TimeoutError:
            raise TimeoutError(f"nothing waits for {due + self._jumped}, only for {self.pending()}") from None
        finally:
            with self._lock:
                self._watchers.remove(watcher)

    def pending(self) -> list[float]:
        """The times that timers and sleepers are due at, earliest first."""
        with self._lock:
            return self._pending()

    def _pending(self) -> list[float]:
        return sorted(due + self._jumped for due, _, timer in self._timers if not timer.cancelled)


def _same_time(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME_TIME_SECONDS
