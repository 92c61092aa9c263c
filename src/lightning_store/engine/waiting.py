"""Waits for rollouts, for the queue and for completions. A wait is a future that the change which ends it resolves: no
thread, no polling."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from lightning_store.backends.base import Elsewhere
from lightning_store.clock import Clock
from lightning_store.engine.view import Effects


class Wakeup:
    """One wait on one event loop, that any thread can end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] = self._loop.create_future()

    async def wait(self, clock: Clock, seconds: float | None) -> bool:
        """Whether the wake-up came before ``seconds`` had passed."""
        if seconds is None:
            return await self._future
        timer = clock.call_later(seconds, lambda: self._resolve(False))
        try:
            return await self._future
        finally:
            timer.cancel()

    def wake(self) -> bool:
        """Whether there is still a loop to wake: one that was closed has nobody on it that waits."""
        try:
            self._loop.call_soon_threadsafe(self._resolve, True)
        except RuntimeError:
            return False
        return True

    def _resolve(self, woken: bool) -> None:
        if not self._future.done():
            self._future.set_result(woken)


class Waiter(Wakeup):
    """A wait until each of its rollouts has been terminal at some time, or any one of them."""

    def __init__(self, rollout_ids: Iterable[str], one_is_enough: bool) -> None:
        super().__init__()
        self.rollout_ids = tuple(rollout_ids)
        self._pending = set(self.rollout_ids)
        self._one_is_enough = one_is_enough

    def note_end(self, rollout_id: str) -> bool:
        """Wake up if this was the last that was missing. False if nobody waits here any more. From any thread.

        A rollout that is put back does not count as pending again: notifications from several threads may come out of
        order, and a waiter that wakes up reads the state anyway.
        """
        self._pending.discard(rollout_id)
        return (bool(self._pending) and not self._one_is_enough) or self.wake()

    def pass_over(self, rollout_id: str) -> None:
        """Do not wait for this one, which is not there."""
        self._pending.discard(rollout_id)
        if not self._pending:
            self.wake()


class RolloutWaiters:
    """All waits for rollouts of one store."""

    def __init__(self) -> None:
        self._by_rollout: dict[str, set[Waiter]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def register(self, rollout_ids: Iterable[str], *, one_is_enough: bool = False) -> Iterator[Waiter]:
        """A waiter to which all the rollouts count as pending.

        Read their state after registering, and ``note_end`` of those found terminal: an end that falls between is noted
        by ``notify``, so no wake-up is lost. At worst the waiter wakes too early; read again then.
        """
        waiter = Waiter(rollout_ids, one_is_enough)
        with self._lock:
            for rollout_id in waiter.rollout_ids:
                self._by_rollout.setdefault(rollout_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._forget(waiter)

    def notify(self, ended: Sequence[str]) -> None:
        """Rollouts became terminal, or were deleted."""
        if not ended or not self._by_rollout:
            return
        with self._lock:
            for rollout_id in ended:
                for waiter in tuple(self._by_rollout.get(rollout_id, ())):
                    if not waiter.note_end(rollout_id):
                        self._forget(waiter)

    def wake_all(self) -> None:
        """Have everybody look again."""
        with self._lock:
            for waiter in {waiter for waiting in self._by_rollout.values() for waiter in waiting}:
                waiter.wake()

    def _forget(self, waiter: Waiter) -> None:
        for rollout_id in waiter.rollout_ids:
            waiting = self._by_rollout.get(rollout_id)
            if waiting is not None:
                waiting.discard(waiter)
                if not waiting:
                    del self._by_rollout[rollout_id]


class Watcher:
    """A caller that follows rollouts as they end, from one look to the next."""

    def __init__(self, wanted: Collection[str] | None, heeds_deletions: bool) -> None:
        self.wanted = wanted
        """The rollouts that it follows; None: all."""
        self._heeds_deletions = heeds_deletions or wanted is not None
        self.wakeup = Wakeup()
        self.gone: list[str] = []

    def before_look(self) -> list[str]:
        """The rollouts that it followed and that are gone. What ends from now on wakes it again."""
        self.wakeup = Wakeup()  # first: a deletion on another thread that is not in the list below wakes this one
        gone, self.gone = self.gone, []
        return gone

    def note(self, ended: Sequence[str], deleted: Sequence[str]) -> bool:
        """Wake it if this concerns it. False if nobody follows here any more."""
        wanted = self.wanted
        if wanted is not None:
            ended = [rollout_id for rollout_id in ended if rollout_id in wanted]
            deleted = [rollout_id for rollout_id in deleted if rollout_id in wanted]
        if self._heeds_deletions:
            self.gone += deleted
        return not (ended or self.gone) or self.wakeup.wake()


class Watchers:
    """All callers that follow rollouts of one store."""

    def __init__(self) -> None:
        self._watching: set[Watcher] = set()
        self._lock = threading.Lock()

    @contextmanager
    def register(self, wanted: Collection[str] | None, *, heeds_deletions: bool = False) -> Iterator[Watcher]:
        """Begin to follow. Look after registering, then wait.

        Args:
            wanted: The rollouts to follow; None: all.
            heeds_deletions: Whether deletions matter even if all are followed.
        """
        watcher = Watcher(wanted, heeds_deletions)
        with self._lock:
            self._watching.add(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                self._watching.discard(watcher)

    def notify(self, ended: Sequence[str], deleted: Sequence[str]) -> None:
        """Wake the watchers of rollouts that became terminal or were deleted."""
        if not self._watching or not (ended or deleted):
            return
        with self._lock:
            for watcher in tuple(self._watching):
                if not watcher.note(ended, deleted):
                    self._watching.discard(watcher)

    def wake_all(self) -> None:
        """Have everybody look again."""
        with self._lock:
            for watcher in self._watching:
                watcher.wakeup.wake()


class Claimant:
    """A caller that waits for the queue, in the order of arrival."""

    def __init__(self, request_id: str | None) -> None:
        self.request_id = request_id
        self.wakeup = Wakeup()
        self.called = False
        """A rollout was queued for it, which it has not tried to claim yet."""
        self.following = False
        """It is trying to claim what it was called for."""


class Claimants:
    """All callers that wait for the queue of one store: one rollout queued wakes one of them, the first that came."""

    def __init__(self) -> None:
        self._waiting: dict[int, Claimant] = {}
        self._lock = threading.Lock()

    @contextmanager
    def register(self, request_id: str | None) -> Iterator[Claimant]:
        """Join the waiting claimants. Try to claim after registering, then wait: a rollout that is queued in between
        wakes the claimant too.

        A claimant that leaves before it has followed its wake-up to the end forwards it to the next.
        """
        claimant = Claimant(request_id)
        with self._lock:
            self._waiting[id(claimant)] = claimant
        try:
            yield claimant
        finally:
            with self._lock:
                self._waiting.pop(id(claimant), None)
            if claimant.called or claimant.following:
                self.notify(1)

    def follow_call(self, claimant: Claimant) -> None:
        """Before each try to claim: what was queued until now is what it will find. Call ``followed`` after it: a try
        that is cancelled or fails has found nothing."""
        with self._lock:
            claimant.following = claimant.called
            claimant.called = False
            claimant.wakeup = Wakeup()

    def followed(self, claimant: Claimant) -> None:
        """The try to claim is over, whatever it found."""
        claimant.following = False

    def notify(self, queued: int) -> None:
        """Wake as many callers as rollouts were queued."""
        if not queued or not self._waiting:
            return
        with self._lock:
            for key, claimant in list(self._waiting.items()):
                if queued and not claimant.called:
                    if claimant.wakeup.wake():
                        claimant.called = True
                        queued -= 1
                    else:
                        del self._waiting[key]

    def answered(self, claimant: Claimant) -> None:
        """``claimant`` has claimed. If its request was made twice, wake the other caller, who gets the same reply:
        which of the two somebody still waits for, nobody here can know."""
        with self._lock:
            for other in self._waiting.values():
                if other is not claimant and other.request_id == claimant.request_id is not None:
                    other.wakeup.wake()


class Waiting:
    """All waits on one store, in this process."""

    def __init__(self) -> None:
        self.rollouts = RolloutWaiters()
        self.claimants = Claimants()
        self.watchers = Watchers()

    def notify(self, effects: Effects) -> None:
        """Wake the waiters that a transaction concerns."""
        self._notify(len(effects.queued), effects.ended, effects.deleted)

    def notify_of_others(self, done: Elsewhere) -> None:
        """Wake the waiters that something concerns which other servers did."""
        if done.missed:
            self.claimants.notify(sys.maxsize)
            self.rollouts.wake_all()
            self.watchers.wake_all()
        self._notify(done.queued, done.ended, done.deleted)

    def _notify(self, queued: int, ended: Sequence[str], deleted: Sequence[str]) -> None:
        if queued:
            self.claimants.notify(queued)
        if ended or deleted:
            self.rollouts.notify(ended)
            self.rollouts.notify(deleted)
            self.watchers.notify(ended, deleted)
