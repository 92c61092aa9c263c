"""How long a store keeps what is finished: for a time, or so many, or both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_store import EnqueueRolloutRequest, InMemoryLightningStore, InvalidArgumentError
from lightning_store.engine.engine import DELETION_BATCH
from lightning_store.engine.executor import DUE_BATCH
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span, report, within_safety

pytestmark = pytest.mark.asyncio

MANY = 2 * DELETION_BATCH + 10


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def ended(store: InMemoryLightningStore, count: int = 1) -> list[str]:
    ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(count)]
    for rollout_id in ids:
        await store.update_rollout(rollout_id, status="succeeded")
    return ids


async def kept(store: InMemoryLightningStore) -> list[str]:
    return [rollout.rollout_id for rollout in await store.query_rollouts()]


async def kept_without_a_call(store: InMemoryLightningStore) -> list[str]:
    """What is in memory when the timers that are due have run; a call would look at what is overdue."""
    for _ in range(10):
        await asyncio.sleep(0)
    backend: Any = store.engine._executor._backend
    return [entry.record.rollout_id for entry in backend._data._in_order]


class TestForATime:
    async def test_not_longer(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60)
        ids = await ended(store, 2)
        clock.advance(60)
        assert await kept(store) == ids
        clock.advance(0.25)
        assert await kept(store) == []
        assert await store.get_rollout_by_id(ids[0]) is None

    async def test_what_is_not_finished_stays(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60)
        queued = await store.enqueue_rollout("queued")
        running = await store.start_rollout("running")
        [put_back] = await ended(store)
        await store.update_rollout(put_back, status="requeuing")
        clock.advance(1e6)
        assert await kept(store) == [queued.rollout_id, running.rollout_id, put_back]

    async def test_it_counts_from_the_last_end(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60)
        again, changed, same = await ended(store, 3)
        clock.advance(40)
        await store.update_rollout(again, status="queuing")
        await store.update_rollout(again, status="succeeded")
        await store.update_rollout(changed, status="failed")
        await store.update_rollout(same, status="succeeded")
        clock.advance(40)
        assert await kept(store) == [again, changed]

    async def test_each_goes_at_its_time_without_any_call(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60)
        ids = []
        for _ in range(3):
            ids += await ended(store)
            clock.advance(10)
        clock.advance(30.5)
        for left in (2, 1, 0):
            assert await kept_without_a_call(store) == ids[3 - left :]
            clock.advance(10)

    async def test_its_worker_is_set_free(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60)
        cancelled = await store.start_rollout("task", worker_id="w")
        await store.cancel_rollouts([cancelled.rollout_id])
        clock.advance(61)
        worker = await store.get_worker_by_id("w")
        assert worker is not None
        assert (worker.status, worker.current_rollout_id) == ("idle", None)


class TestSoMany:
    async def test_those_that_ended_last_stay(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_count=3)
        ids = await ended(store, 5)
        assert await kept(store) == ids[2:]
        await store.update_rollout(ids[2], status="failed")
        others = await ended(store, 2)
        assert await kept(store) == [ids[2], *others]

    async def test_what_is_not_finished_does_not_count(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_count=1)
        started = [await store.start_rollout(number) for number in range(3)]
        await report(store, started[0], "succeeded")
        await report(store, started[1], "failed")
        assert await kept(store) == [started[1].rollout_id, started[2].rollout_id]

    async def test_time_alone_takes_nothing(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_count=2)
        ids = await ended(store, 2)
        clock.advance(1e9)
        assert await kept(store) == ids

    async def test_who_waits_still_sees_the_end(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_count=1)
        await ended(store, 3)
        queued = await store.enqueue_rollout("task")
        waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[queued.rollout_id]))
        await asyncio.sleep(0)
        done = await store.update_rollout(queued.rollout_id, status="succeeded")
        assert await within_safety(waiting) == [done]


class TestBoth:
    async def test_whichever_comes_first(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60, retain_finished_count=2)
        ids = await ended(store, 3)
        assert await kept(store) == ids[1:]
        clock.advance(50)
        ids += await ended(store)
        assert await kept(store) == ids[2:]
        clock.advance(11)
        assert await kept(store) == ids[3:]

    async def test_nobody_sees_what_is_too_old_when_there_are_too_many(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, retain_finished_seconds=10, retain_finished_count=3)
        queued = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * 5)
        await store.cancel_rollouts([rollout.rollout_id for rollout in queued])
        clock.advance(11)
        assert await kept(store) == []


@pytest.mark.parametrize("policy", [{"retain_finished_seconds": 60}, {"retain_finished_count": 1}], ids=str)
async def test_any_number_may_go_at_once(clock: FakeClock, policy: dict[str, Any]):
    store = InMemoryLightningStore(clock=clock, **policy)
    queued = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * MANY)
    await store.cancel_rollouts([rollout.rollout_id for rollout in queued])
    clock.advance(61)
    [last] = await ended(store)
    assert await kept(store) == [last]


async def test_no_call_waits_for_all_that_goes(clock: FakeClock):
    """Each deletes some of it, and the rest goes without any call."""
    store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60)
    finished = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * (2 * MANY))
    await store.cancel_rollouts([rollout.rollout_id for rollout in finished])
    clock.advance(61)
    new = await store.enqueue_rollout("new")
    left = await kept_without_a_call(store)
    assert len(left) == 2 * MANY - 2 * DUE_BATCH + 1  # the timer has fired too
    for _ in range(4):
        clock.advance(0.01)
        left = await kept_without_a_call(store)
    assert left == [new.rollout_id]


async def test_nothing_of_it_is_left_in_memory(clock: FakeClock):
    store = InMemoryLightningStore(clock=clock, retain_finished_seconds=60)
    empty = (await store.statistics())["total_bytes"]
    started = await store.start_rollout("x" * 1000)
    await store.add_span(make_span(started))
    await report(store, started, "succeeded")
    clock.advance(61)
    statistics = await store.statistics()
    assert statistics["total_bytes"] == empty
    assert (statistics["total_rollouts"], statistics["total_attempts"], statistics["total_spans"]) == (0, 0, 0)


async def test_by_default_everything_is_kept(clock: FakeClock):
    store = InMemoryLightningStore(clock=clock)
    ids = await ended(store, 3)
    clock.advance(1e9)
    assert await kept(store) == ids


@pytest.mark.parametrize("name", ["retain_finished_seconds", "retain_finished_count"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
async def test_nothing_less_than_one_can_be_kept(name: str, value: Any):
    with pytest.raises(InvalidArgumentError, match=name) as caught:
        InMemoryLightningStore(**{name: value})
    assert caught.value.details["field"] == name
