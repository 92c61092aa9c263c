"""Waits that end together where they may, so that what follows them is sent together."""

from __future__ import annotations

import asyncio
from typing import Any

from lightning_store.clock import Clock


class Rounds:
    """Sleepers on one event loop. Whenever one has slept as long as it may, all those wake that have slept enough."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sleepers: dict[asyncio.Future[None], tuple[float, float]] = {}
        """From when on each may wake, and when it must."""
        self._waking: asyncio.Task[None] | None = None
        self._next = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without sleepers."""
        return Rounds, (self._clock,)

    async def sleep(self, seconds: float, seconds_max: float) -> None:
        """Sleep for ``seconds`` at least, and ``seconds_max`` at most."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # of a parent process
            self._loop, self._sleepers, self._waking = loop, {}, None
        now = self._clock.monotonic()
        woken = loop.create_future()
        self._sleepers[woken] = now + seconds, now + seconds_max
        if self._waking is None or now + seconds_max < self._next:
            self._wake_anew()
        try:
            await woken
        finally:
            self._sleepers.pop(woken, None)
            if not self._sleepers and self._waking is not None:
                self._waking.cancel()
                self._waking = None

    def _wake_anew(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
        self._next = min(must for _, must in self._sleepers.values())
        self._waking = asyncio.create_task(self._wake(self._next))

    async def _wake(self, time: float) -> None:
        await self._clock.sleep(max(0.0, time - self._clock.monotonic()))
        now = self._clock.monotonic()
        for woken, (may, _) in list(self._sleepers.items()):
            if may <= now:
                del self._sleepers[woken]
                if not woken.done():
                    woken.set_result(None)
        self._waking = None
        if self._sleepers:
            self._wake_anew()
