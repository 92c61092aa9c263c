"""Waits that end together where they may."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from lightning_store import SystemClock
from lightning_store.testing import FakeClock
from lightning_store_client.rounds import Rounds


@pytest.fixture
def clock():
    return FakeClock()


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_those_that_have_slept_enough_wake_together(clock):
    rounds = Rounds(clock)
    woken = []

    async def sleep(name, seconds, seconds_max):
        await rounds.sleep(seconds, seconds_max)
        woken.append(name)

    sleeping = [
        asyncio.create_task(sleep(*one)) for one in [("a", 9, 10), ("b", 9.9, 10.5), ("c", 10.2, 10.7), ("d", 50, 60)]
    ]
    await clock.until_waiting(clock.now() + 10)
    clock.advance(9.5)
    await settled()
    assert woken == []
    clock.advance(0.5)
    await asyncio.wait(sleeping[:2])
    assert woken == ["a", "b"]
    await clock.until_waiting(clock.now() + 0.7)
    clock.advance(0.7)
    await asyncio.wait(sleeping[:3])
    assert woken == ["a", "b", "c"]
    sleeping[3].cancel()
    await asyncio.wait(sleeping)
    await settled()
    assert clock.pending() == []


@pytest.mark.asyncio
async def test_one_that_must_wake_earlier_does(clock):
    rounds = Rounds(clock)
    late = asyncio.create_task(rounds.sleep(95, 100))
    await clock.until_waiting(clock.now() + 100)
    early = asyncio.create_task(rounds.sleep(1, 2))
    await clock.until_waiting(clock.now() + 2)
    clock.advance(2)
    await early
    await clock.until_waiting(clock.now() + 98)
    clock.advance(98)
    await late


def test_another_loop_begins_anew(clock):
    """As in a forked child, whose parent's sleepers are none of its own."""
    rounds = Rounds(clock)

    async def left_alone():
        asyncio.get_running_loop().set_debug(False)
        task = asyncio.create_task(rounds.sleep(1, 2))
        await settled()
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(left_alone())

    async def anew():
        sleeping = asyncio.create_task(rounds.sleep(3, 4))
        await clock.until_waiting(clock.now() + 4)
        clock.advance(4)
        await sleeping

    asyncio.run(anew())
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    assert isinstance(pickle.loads(pickle.dumps(Rounds(SystemClock()))), Rounds)
