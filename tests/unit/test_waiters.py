"""Waits for rollouts and for the queue: no wake-up is lost, and who is gone is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any, TypeVar

import pytest

from lightning_store import AttemptedRollout, InMemoryLightningStore
from lightning_store.engine.idempotency import request_scope
from lightning_store.engine.waiting import Claimant, Claimants, RolloutWaiters, Wakeup
from lightning_store.testing import SAFETY_SECONDS, FakeClock

T = TypeVar("T")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def is_woken(wakeup: Wakeup) -> bool:
    """Whether it was woken before now."""
    return await asyncio.wait_for(wakeup.wait(FakeClock(), 0), SAFETY_SECONDS)


@contextmanager
def registered_on_a_closed_loop(registration: AbstractContextManager[T]) -> Iterator[T]:
    """What was registered on a loop that has been closed since, with the waiting task in the middle of its wait."""

    async def register() -> T:
        return registration.__enter__()

    with closing(asyncio.new_event_loop()) as loop:
        registered = loop.run_until_complete(register())
    try:
        yield registered
    finally:
        registration.__exit__(None, None, None)


class TestWaiters:
    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        ("ends", "woken"),
        [
            ([], False),
            (["a"], False),
            (["a", "a"], False),
            (["a", "b"], True),
            (["b", "a"], True),
            (["a", "b", "a"], True),  # a is put back in between
            (["a", "a", "b"], True),  # the same, told out of order
        ],
    )
    async def test_it_wakes_once_each_of_its_rollouts_has_ended(self, ends: list[str], woken: bool):
        waiters = RolloutWaiters()
        with waiters.register(["a", "b"]) as waiter:
            for rollout_id in ends:
                waiters.notify([rollout_id])
            assert await is_woken(waiter) is woken

    @pytest.mark.asyncio
    async def test_rollouts_put_back_from_other_threads_lose_no_wake_up(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock)
        ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(2)]
        waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids, timeout=15))
        await clock.until_waiting(clock.now() + 15)
        for rollout_id, status in ((0, "failed"), (0, "queuing"), (1, "succeeded"), (0, "succeeded")):
            await asyncio.to_thread(asyncio.run, store.update_rollout(ids[rollout_id], status=status))
        ended = await asyncio.wait_for(waiter, SAFETY_SECONDS)
        assert [(rollout.rollout_id, rollout.status) for rollout in ended] == [(id_, "succeeded") for id_ in ids]

    def test_a_waiter_whose_loop_was_closed_is_forgotten(self):
        waiters = RolloutWaiters()
        with registered_on_a_closed_loop(waiters.register(["a", "b"])):
            waiters.notify(["a"])
            assert sorted(waiters._by_rollout) == ["a", "b"]
            waiters.notify(["b"])
            assert waiters._by_rollout == {}

    @pytest.mark.asyncio
    async def test_who_has_left_is_forgotten(self):
        waiters = RolloutWaiters()
        with waiters.register(["a", "b"]), waiters.register(["b"]):
            assert sorted(waiters._by_rollout) == ["a", "b"]
        assert waiters._by_rollout == {}


class TestClaimants:
    pytestmark = pytest.mark.asyncio

    def join(self, claimants: Claimants, stack: ExitStack, *request_ids: str | None) -> list[Claimant]:
        return [stack.enter_context(claimants.register(request_id)) for request_id in request_ids]

    def called(self, line: list[Claimant]) -> list[bool]:
        return [claimant.called for claimant in line]

    async def test_who_came_first_is_called_first(self):
        claimants = Claimants()
        with ExitStack() as stack:
            line = self.join(claimants, stack, None, None, None)
            claimants.notify(1)
            assert self.called(line) == [True, False, False]
            claimants.notify(1)
            assert self.called(line) == [True, True, False]
            assert [await is_woken(claimant.wakeup) for claimant in line] == [True, True, False]

    async def test_as_many_are_called_as_were_queued(self):
        claimants = Claimants()
        with ExitStack() as stack:
            line = self.join(claimants, stack, None, None, None)
            claimants.notify(0)
            assert self.called(line) == [False, False, False]
            claimants.notify(2)
            assert self.called(line) == [True, True, False]
            claimants.notify(100)
            assert self.called(line) == [True, True, True]

    async def test_a_call_that_was_followed_is_used_up(self):
        claimants = Claimants()
        with ExitStack() as stack:
            [second] = self.join(claimants, stack, None)
            with claimants.register(None) as late:
                claimants.notify(2)
                claimants.follow_call(late)
            claimants.follow_call(second)
            assert not second.called
            assert not await is_woken(second.wakeup)

    async def test_who_leaves_passes_the_call_on(self):
        claimants = Claimants()
        with ExitStack() as stack:
            with claimants.register(None) as first:
                line = self.join(claimants, stack, None, None)
                claimants.notify(1)
                assert first.called
                assert self.called(line) == [False, False]
            assert self.called(line) == [True, False]

    async def test_who_has_claimed_wakes_the_twin_of_the_same_request(self):
        claimants = Claimants()
        with ExitStack() as stack:
            one, other, none, twin = self.join(claimants, stack, "r", "another", None, "r")
            claimants.answered(one)
            assert [await is_woken(each.wakeup) for each in (one, other, none, twin)] == [False, False, False, True]
            claimants.answered(none)
            assert not await is_woken(other.wakeup)
        assert claimants._waiting == {}

    async def test_a_closed_loop_takes_no_call(self):
        claimants = Claimants()
        registration = claimants.register(None)
        with ExitStack() as stack:
            gone = await asyncio.to_thread(stack.enter_context, registered_on_a_closed_loop(registration))
            [here] = self.join(claimants, stack, None)
            claimants.notify(1)
            assert (gone.called, here.called) == (False, True)
            assert list(claimants._waiting.values()) == [here]


class TestClaims:
    """The same through the store."""

    pytestmark = pytest.mark.asyncio

    async def waiting(
        self, store: InMemoryLightningStore, clock: FakeClock, max_wait: float, request_id: str | None = None
    ) -> asyncio.Task[AttemptedRollout | None]:
        async def dequeue() -> AttemptedRollout | None:
            if request_id is None:
                return await store.dequeue_rollout(max_wait=max_wait)
            with request_scope(request_id):
                return await store.dequeue_rollout(max_wait=max_wait)

        task = asyncio.create_task(dequeue())
        await clock.until_waiting(clock.now() + max_wait)
        return task

    async def test_a_request_made_again_gets_what_the_first_waited_for(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock)
        first = await self.waiting(store, clock, 15, "r")
        second = await self.waiting(store, clock, 16, "r")
        made = await store.enqueue_rollout("task")
        claimed = await asyncio.wait_for(second, SAFETY_SECONDS)
        assert claimed is not None
        assert claimed.rollout_id == made.rollout_id
        assert await asyncio.wait_for(first, SAFETY_SECONDS) == claimed
        with request_scope("r"):
            assert await store.dequeue_rollout(max_wait=17) == claimed

    async def test_a_claim_given_up_after_its_call_leaves_the_rollout_to_the_next(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock)
        first, second = [await self.waiting(store, clock, seconds) for seconds in (15, 16)]
        made = await store.enqueue_rollout("task")
        first.cancel()
        claimed = await asyncio.wait_for(second, SAFETY_SECONDS)
        assert claimed is not None
        assert (claimed.rollout_id, claimed.attempt.sequence_id) == (made.rollout_id, 1)
        with pytest.raises(asyncio.CancelledError):
            await first

    async def test_a_claim_on_a_loop_that_was_closed_costs_no_rollout(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock)

        def leave_waiting() -> Any:
            with closing(asyncio.new_event_loop()) as loop:
                claim = store.dequeue_rollout(max_wait=15)
                loop.run_until_complete(first_step_of(claim))
                return claim

        abandoned = await asyncio.to_thread(leave_waiting)
        second = await self.waiting(store, clock, 16)
        made = await store.enqueue_rollout("task")
        claimed = await asyncio.wait_for(second, SAFETY_SECONDS)
        assert claimed is not None
        assert claimed.rollout_id == made.rollout_id
        abandoned.close()


async def first_step_of(coroutine: Any) -> None:
    """Run it until it waits for something, and leave it there."""
    coroutine.send(None)
