"""Timers for deadlines, on the event loops that use the store; no thread.

A timer ends with its loop and is late while its loop is blocked. So each loop on which a call waits has a timer of its
own. A call that comes after a deadline sees its outcome anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from lightning_store.clock import Clock, Timer
from lightning_store.loops import forget_closed

SLACK_SECONDS: Final = 0.001
"""How long after a deadline the timer fires: a deadline counts once the clock is past it."""
SLEEP_SECONDS_MAX: Final = 60.0
"""It looks at the clock at least this often, in case the machine slept: timers do not count that."""


class DeadlineTimer:
    """Calls ``look`` soon after the earliest deadline, on each loop that needs it.

    Args:
        clock: The time, and the timers.
        look: Acts on what is due, and then watches the next deadline.
    """

    def __init__(self, clock: Clock, look: Callable[[], Awaitable[None]]) -> None:
        self._clock = clock
        self._look = look
        self._armed: dict[asyncio.AbstractEventLoop, tuple[float, Timer]] = {}
        self._waiting: Counter[asyncio.AbstractEventLoop] = Counter()
        self._looks: set[asyncio.Future[None]] = set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the calling task waits for the store, its loop has a timer for every deadline, whoever set it. Enter it
        before looking at the store: the look sees the deadlines that were set by then."""
        loop = asyncio.get_running_loop()
        self._waiting[loop] += 1
        try:
            yield
        finally:
            self._waiting[loop] -= 1
            if not self._waiting[loop]:
                del self._waiting[loop]

    def watch(self, deadline: float | None) -> None:
        """Call ``look`` after ``deadline``; None does nothing. An earlier one that is watched already stays."""
        if deadline is None:
            return
        here = asyncio.get_running_loop()
        self._arm(deadline)
        for loop in list(self._waiting):
            if loop is not here and self._needs(loop, deadline):
                with contextlib.suppress(RuntimeError):  # it was closed while somebody waited on it
                    loop.call_soon_threadsafe(self._arm, deadline)

    def _needs(self, loop: asyncio.AbstractEventLoop, deadline: float) -> bool:
        armed = self._armed.get(loop)
        return armed is None or deadline < armed[0]

    def _arm(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        if not self._needs(loop, deadline):
            return
        former = self._armed.pop(loop, None)
        if former is not None:
            former[1].cancel()
        forget_closed(self._armed)
        delay = min(max(0.0, deadline - self._clock.now()) + SLACK_SECONDS, SLEEP_SECONDS_MAX)
        self._armed[loop] = (deadline, self._clock.call_later(delay, self._wake))

    def _wake(self) -> None:
        self._armed.pop(asyncio.get_running_loop(), None)
        look = asyncio.ensure_future(self._look())
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
