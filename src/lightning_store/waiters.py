"""Who waits for which rollouts. A wait is a future that the change which ends it resolves: no thread, no polling."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from lightning_store.clock import Clock


class Waiter:
    """One wait, on one event loop, until every one of its rollouts is terminal."""

    def __init__(self, rollout_ids: Iterable[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] = self._loop.create_future()
        self.pending = set(rollout_ids)

    def mark(self, rollout_id: str, terminal: bool) -> None:
        """Note a rollout's present state; wake up when none is pending. From any thread."""
        if not terminal:
            self.pending.add(rollout_id)
            return
        self.pending.discard(rollout_id)
        if not self.pending:
            self._wake()

    async def wait(self, clock: Clock, seconds: float | None) -> bool:
        """Whether the wake-up came before ``seconds`` had passed."""
        if seconds is None:
            return await self._future
        timer = clock.call_later(seconds, lambda: self._resolve(False))
        try:
            return await self._future
        finally:
            timer.cancel()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve, True)

    def _resolve(self, woken: bool) -> None:
        if not self._future.done():
            self._future.set_result(woken)


class Waiters:
    """All waits of one store."""

    def __init__(self) -> None:
        self._by_rollout: dict[str, set[Waiter]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def register(self, rollout_ids: Iterable[str]) -> Iterator[Waiter]:
        """A waiter to which all the rollouts count as pending.

        Read their state after registering, and ``mark`` only those found terminal: a change that falls between is
        noted by ``notify``, so no wake-up is lost. At worst the waiter wakes too early; read again then.
        """
        waiter = Waiter(rollout_ids)
        watched = tuple(waiter.pending)
        with self._lock:
            for rollout_id in watched:
                self._by_rollout.setdefault(rollout_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                for rollout_id in watched:
                    waiting = self._by_rollout[rollout_id]
                    waiting.discard(waiter)
                    if not waiting:
                        del self._by_rollout[rollout_id]

    def notify(self, changes: Mapping[str, bool]) -> None:
        """Tell the waits which rollouts changed, and whether each is terminal now."""
        if not self._by_rollout:
            return
        with self._lock:
            for rollout_id, terminal in changes.items():
                for waiter in self._by_rollout.get(rollout_id, ()):
                    waiter.mark(rollout_id, terminal)
