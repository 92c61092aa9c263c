"""The deadline timer wakes whoever waits, whatever became of the event loop that set the deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore, Rollout, RolloutConfig
from lightning_store.engine.deadlines import SLACK_SECONDS, SLEEP_SECONDS_MAX, DeadlineTimer
from lightning_store.testing import SAFETY_SECONDS, FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> InMemoryLightningStore:
    return InMemoryLightningStore(clock=clock)


async def waiting_for_one_that_times_out(
    store: InMemoryLightningStore, clock: FakeClock
) -> asyncio.Task[list[Rollout]]:
    """A wait for the one rollout of the queue, whose attempts last 10 seconds."""
    made = await store.enqueue_rollout("task", config=RolloutConfig(timeout_seconds=10))
    waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[made.rollout_id], timeout=15))
    await clock.until_waiting(clock.now() + 15)
    return waiter


async def expect_timeout(waiter: asyncio.Task[list[Rollout]], clock: FakeClock) -> None:
    clock.advance(11)
    [rollout] = await asyncio.wait_for(waiter, SAFETY_SECONDS)
    assert (rollout.status, rollout.end_time) == ("failed", clock.now())


@pytest.mark.asyncio
async def test_a_deadline_outlives_the_loop_that_set_it(store: InMemoryLightningStore, clock: FakeClock):
    waiter = await waiting_for_one_that_times_out(store, clock)
    await asyncio.to_thread(asyncio.run, store.dequeue_rollout())
    await expect_timeout(waiter, clock)


@pytest.mark.asyncio
async def test_a_deadline_does_not_wait_for_the_loop_that_set_it(store: InMemoryLightningStore, clock: FakeClock):
    waiter = await waiting_for_one_that_times_out(store, clock)
    claimed, released = threading.Event(), threading.Event()

    async def claim_and_block() -> bool:
        await store.dequeue_rollout()
        claimed.set()
        return released.wait(SAFETY_SECONDS)

    blocked = asyncio.create_task(asyncio.to_thread(asyncio.run, claim_and_block()))
    try:
        assert await asyncio.to_thread(claimed.wait, SAFETY_SECONDS)
        await expect_timeout(waiter, clock)
    finally:
        released.set()
    assert await blocked


WAITS: dict[str, Callable[[InMemoryLightningStore, str], Awaitable[object]]] = {
    "wait": lambda store, rollout_id: store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=15),
    "claim": lambda store, _: store.dequeue_rollout(max_wait=15),
    "feed": lambda store, rollout_id: anext(aiter(store.watch_rollouts([rollout_id]))),
}


LOOKS = {"wait": "read", "claim": "execute", "feed": "read"}
"""The method of the executor by which each of them looks at the store."""


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", ["timer", "look"])
@pytest.mark.parametrize("name", WAITS)
async def test_a_deadline_that_is_set_right_after_the_look_is_not_missed(
    store: InMemoryLightningStore, clock: FakeClock, name: str, moment: str
):
    """Nor one that is set when the timer was armed for those that were there, before the look."""
    started = await store.start_rollout("task")
    retried = RolloutConfig(timeout_seconds=10, max_attempts=2, retry_condition=["timeout"])
    config = retried if name == "claim" else RolloutConfig(timeout_seconds=10)
    executor, method = store.engine._executor, "arm_timer" if moment == "timer" else LOOKS[name]
    act, changed = getattr(executor, method), asyncio.Event()

    async def act_and_set_a_deadline(*args: Any, **kwargs: Any) -> Any:
        result = await act(*args, **kwargs)
        setattr(executor, method, act)
        await asyncio.to_thread(asyncio.run, store.update_rollout(started.rollout_id, config=config))
        changed.set()
        return result

    setattr(executor, method, act_and_set_a_deadline)
    waiting = asyncio.ensure_future(WAITS[name](store, started.rollout_id))
    await asyncio.wait_for(changed.wait(), SAFETY_SECONDS)
    for _ in range(100):
        await asyncio.sleep(0)
    clock.advance(11)
    for _ in range(100):
        await asyncio.sleep(0)
    assert waiting.done()
    assert await waiting


@pytest.mark.asyncio
async def test_a_waiting_claim_is_told_of_deadlines_of_other_loops(store: InMemoryLightningStore, clock: FakeClock):
    waiter = asyncio.create_task(store.dequeue_rollout(max_wait=15))
    await clock.until_waiting(clock.now() + 15)
    config = RolloutConfig(timeout_seconds=10, max_attempts=2, retry_condition=["timeout"])
    started = await asyncio.to_thread(asyncio.run, store.start_rollout("task", config=config))
    clock.advance(11)
    again = await asyncio.wait_for(waiter, SAFETY_SECONDS)
    assert again is not None
    assert (again.rollout_id, again.attempt.sequence_id) == (started.rollout_id, 2)


def test_loops_that_are_closed_are_forgotten(clock: FakeClock):
    async def look() -> None:
        raise AssertionError("nothing is due")

    timer = DeadlineTimer(clock, look)

    async def watch_and_wait(deadline: float) -> None:
        with timer.waiting():
            timer.watch(deadline)

    for number in range(50):
        asyncio.run(watch_and_wait(clock.now() + 10 + number))
    assert len(timer._armed) == 1
    assert not timer._waiting


class TestTimers:
    """When the timer of one loop fires."""

    pytestmark = pytest.mark.asyncio

    async def armed(self, clock: FakeClock, *deadlines: float | None) -> list[float]:
        """In how many seconds it fires after these deadlines, in seconds from now, were watched in turn."""

        async def look() -> None:
            pass

        timer = DeadlineTimer(clock, look)
        for deadline in deadlines:
            timer.watch(None if deadline is None else clock.now() + deadline)
        return [due - clock.now() for due in clock.pending()]

    async def test_soon_after_the_deadline(self, clock: FakeClock):
        assert await self.armed(clock, 10) == [pytest.approx(10 + SLACK_SECONDS)]

    async def test_only_for_the_earliest(self, clock: FakeClock):
        assert await self.armed(clock, 10, 20, 5, 7) == [pytest.approx(5 + SLACK_SECONDS)]

    async def test_at_once_where_the_deadline_has_passed(self, clock: FakeClock):
        assert await self.armed(clock, -10) == [pytest.approx(SLACK_SECONDS, abs=1e-6)]

    async def test_now_and_then_where_it_is_far(self, clock: FakeClock):
        assert await self.armed(clock, 1e9) == [SLEEP_SECONDS_MAX]

    async def test_never_without_a_deadline(self, clock: FakeClock):
        assert await self.armed(clock, None) == []
