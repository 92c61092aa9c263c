"""Waits that are longer than one call, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import math
import queue

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.testing.contract.base import until


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def timed(make_rig, clock):
    """Server and client on one fake clock."""
    return make_rig(InMemoryLightningStore(clock=clock))


def begin_waiting(timed, clock, rollouts, timeout):
    client = timed.client(clock=clock)
    ids = [rollout.rollout_id for rollout in rollouts]
    return asyncio.create_task(client.wait_for_rollouts(rollout_ids=ids, timeout=timeout))


async def pass_time(clock, *leaps):
    """Move the time on, each leap when the server is waiting until its end."""
    for leap in leaps:
        await clock.until_waiting(clock.now() + leap)
        clock.advance(leap)


@pytest.mark.parametrize("timeout", [None, 1000.0, 1e300, math.inf, pytest.param(10**400, id="large")])
def test_a_wait_goes_on_over_several_calls(timed, clock, timeout):
    async def scenario():
        rollout = await timed.store.enqueue_rollout("task")
        wait = begin_waiting(timed, clock, [rollout], timeout)
        await pass_time(clock, 20.0, 20.0, 20.0)
        await clock.until_waiting(clock.now() + 20.0)
        assert not wait.done()
        ended = await timed.store.update_rollout(rollout.rollout_id, status="succeeded")
        assert await asyncio.wait_for(wait, SAFETY_SECONDS) == [ended]

    asyncio.run(scenario())
    assert len(timed.proxy.calls("WaitForRollouts")) == 4


def test_a_wait_ends_at_its_timeout_with_what_is_terminal_by_then(timed, clock):
    async def scenario():
        rollouts = [await timed.store.enqueue_rollout(number) for number in range(2)]
        wait = begin_waiting(timed, clock, [*rollouts, *rollouts], 50.0)
        await pass_time(clock, 20.0)
        ended = await timed.store.update_rollout(rollouts[1].rollout_id, status="failed")
        await pass_time(clock, 20.0, 10.0)
        assert await asyncio.wait_for(wait, SAFETY_SECONDS) == [ended, ended]

    asyncio.run(scenario())
    waits = [sent.message.wait.ToTimedelta().total_seconds() for sent in timed.proxy.calls("WaitForRollouts")]
    assert waits == [20.0, 20.0, 10.0]


@pytest.mark.parametrize("timeout", [0, -5.0, -math.inf, pytest.param(-(10**400), id="large")])
def test_no_time_to_wait_is_one_look(timed, clock, timeout):
    async def scenario():
        rollout = await timed.store.enqueue_rollout("task")
        assert await begin_waiting(timed, clock, [rollout], timeout) == []

    asyncio.run(scenario())
    assert len(timed.proxy.calls("WaitForRollouts")) == 1


def test_nothing_to_wait_for_needs_no_call(timed, clock):
    async def scenario():
        assert await begin_waiting(timed, clock, [], None) == []

    asyncio.run(scenario())
    assert timed.proxy.order() == []


def test_a_wait_survives_a_lost_connection(timed, clock, broken):
    timed.proxy.breaks("WaitForRollouts", broken(), broken(lose_reply=True))

    async def scenario():
        rollout = await timed.store.enqueue_rollout("task")
        client = timed.client(clock=clock, retry_delays=(0.0, 0.0))
        wait = asyncio.create_task(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await pass_time(clock, 20.0)
        await clock.until_waiting(clock.now() + 20.0)
        ended = await timed.store.update_rollout(rollout.rollout_id, status="cancelled")
        assert await asyncio.wait_for(wait, SAFETY_SECONDS) == [ended]

    asyncio.run(scenario())


def test_a_wait_may_take_longer_than_the_timeout_of_calls(timed, clock):
    """The time that a long poll waits does not count as time without an answer."""

    async def scenario():
        rollout = await timed.store.enqueue_rollout("task")
        client = timed.client(clock=clock, timeout=1.0)
        wait = asyncio.create_task(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        for calls in (1, 2, 3):
            await timed.proxy.until_sent("WaitForRollouts", calls)
            await until(clock.pending)
            clock.advance(20.0)
        ended = await timed.store.update_rollout(rollout.rollout_id, status="cancelled")
        assert await asyncio.wait_for(wait, SAFETY_SECONDS) == [ended]

    asyncio.run(scenario())
    assert all(sent.seconds_left > 5.0 for sent in timed.proxy.calls("WaitForRollouts"))


def test_work_is_waited_for_over_several_calls(timed, clock):
    async def scenario():
        claim = asyncio.create_task(timed.client(clock=clock).dequeue_rollout(worker_id="w", max_wait=70.0))
        await pass_time(clock, 20.0, 20.0, 20.0)
        await clock.until_waiting(clock.now() + 10.0)
        rollout = await timed.store.enqueue_rollout("task")
        claimed = await asyncio.wait_for(claim, SAFETY_SECONDS)
        assert claimed is not None
        assert claimed.rollout_id == rollout.rollout_id

    asyncio.run(scenario())
    sent = timed.proxy.calls("DequeueRollouts")
    assert len({one.message.request_id for one in sent}) == len(sent) == 4


@pytest.mark.parametrize("max_wait", [math.inf, pytest.param(10**400, id="large")])
def test_work_is_waited_for_however_long(timed, clock, max_wait):
    async def scenario():
        claim = asyncio.create_task(timed.client(clock=clock).dequeue_rollout(max_wait=max_wait))
        await pass_time(clock, 20.0)
        await clock.until_waiting(clock.now() + 20.0)
        rollout = await timed.store.enqueue_rollout("task")
        claimed = await asyncio.wait_for(claim, SAFETY_SECONDS)
        assert claimed.rollout_id == rollout.rollout_id

    asyncio.run(scenario())


@pytest.mark.parametrize("max_wait", [0, -1.0, -math.inf, pytest.param(-(10**400), id="large")])
def test_no_time_to_wait_for_work_is_one_look(timed, clock, max_wait):
    assert asyncio.run(timed.client(clock=clock).dequeue_rollout(max_wait=max_wait)) is None
    assert len(timed.proxy.calls("DequeueRollouts")) == 1


def test_a_worker_that_gives_up_waiting_leaves_the_work_to_others(timed, clock):
    async def scenario():
        client = timed.client(clock=clock)
        claim = asyncio.create_task(client.dequeue_rollout(worker_id="w", max_wait=10.0))
        await clock.until_waiting(clock.now() + 10.0)
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
        await until(lambda: not clock.pending())  # the server has noticed
        rollout = await client.enqueue_rollout("task")
        claimed = await client.dequeue_rollout(worker_id="other")
        assert claimed is not None
        assert claimed.rollout_id == rollout.rollout_id

    asyncio.run(scenario())


# --- Cancelling ------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(make_rig, hooked):
    """A store that claims nothing until it is told to, and tells when a call comes and when it is cancelled."""
    inner = InMemoryLightningStore()
    events: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def dequeue_many_rollouts(**arguments):
        events.put("asked")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.put("cancelled")
            raise

    async def wait_for_rollouts(**arguments):
        events.put("asked")
        try:
            return await inner.wait_for_rollouts(**arguments)
        except asyncio.CancelledError:
            events.put("cancelled")
            raise

    rig = make_rig(hooked(inner, dequeue_many_rollouts=dequeue_many_rollouts, wait_for_rollouts=wait_for_rollouts))
    return rig, inner, events


@pytest.mark.parametrize("method", ["wait", "dequeue"])
def test_a_task_that_is_cancelled_cancels_the_call_and_loses_nothing(held, method):
    rig, inner, events = held

    async def scenario():
        rollout = await inner.enqueue_rollout("task")
        client = rig.client()
        work = (
            client.dequeue_rollout()
            if method == "dequeue"
            else client.wait_for_rollouts(rollout_ids=[rollout.rollout_id])
        )
        task = asyncio.create_task(work)
        assert await asyncio.to_thread(events.get, timeout=SAFETY_SECONDS) == "asked"
        other = asyncio.create_task(client.enqueue_rollout("meanwhile"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, SAFETY_SECONDS)
        assert await asyncio.to_thread(events.get, timeout=SAFETY_SECONDS) == "cancelled"
        await asyncio.wait_for(other, SAFETY_SECONDS)
        assert await client.get_rollout_by_id(rollout.rollout_id) == rollout
        claimed = await inner.dequeue_rollout()
        assert claimed is not None
        assert claimed.rollout_id == rollout.rollout_id

    asyncio.run(scenario())
    assert len(rig.proxy.calls("DequeueRollouts")) == (method == "dequeue")


def test_a_timeout_around_a_call_is_a_timeout(held):
    rig, inner, _ = held

    async def scenario():
        rollout = await inner.enqueue_rollout("task")
        client = rig.client()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.wait_for_rollouts(rollout_ids=[rollout.rollout_id])
        assert (await client.statistics())["total_rollouts"] == 1

    asyncio.run(scenario())
