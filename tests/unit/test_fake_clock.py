"""The fake clock: time that stands still, timers in their order, and knowing that somebody waits."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest

from lightning_store.clock import Clock
from lightning_store.testing import FakeClock
from lightning_store.testing import clock as clock_module

pytestmark = pytest.mark.asyncio


async def test_time_stands_still_until_advanced():
    clock: Clock = (fake := FakeClock(start=100.0))
    assert (clock.now(), clock.monotonic()) == (100.0, 0.0)
    fake.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (102.5, 2.5)


async def test_time_does_not_go_backwards():
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1)


async def test_a_pause_is_told_and_a_jump_takes_no_time():
    clock = FakeClock(start=100.0)
    clock.pause(5)
    assert (clock.now(), clock.monotonic(), clock.awake_since()) == (105.0, 5.0, 5.0)
    fired: list[int] = []
    clock.call_later(1, functools.partial(fired.append, 1))
    clock.jump(-50)
    assert (clock.now(), clock.monotonic(), clock.pending()) == (55.0, 5.0, [56.0])
    await clock.until_waiting(56.0)
    clock.advance(1)
    await asyncio.sleep(0)
    assert (fired, clock.awake_since()) == ([1], 5.0)


async def test_timers_fire_in_the_order_of_their_time():
    clock = FakeClock()
    fired: list[float] = []
    for seconds in (3, 1, 2, 1):
        clock.call_later(seconds, functools.partial(fired.append, seconds))
    clock.advance(2)
    await asyncio.sleep(0)
    assert fired == [1, 1, 2]
    clock.advance(1)
    await asyncio.sleep(0)
    assert fired == [1, 1, 2, 3]


async def test_a_timer_without_delay_fires_at_once():
    clock, fired = FakeClock(), []
    clock.call_later(0, lambda: fired.append(0))
    clock.call_later(-5, lambda: fired.append(-5))
    assert fired == []
    await asyncio.sleep(0)
    assert fired == [0, -5]


async def test_a_cancelled_timer_never_fires():
    clock, fired = FakeClock(), []
    early = clock.call_later(1, lambda: fired.append("early"))
    late = clock.call_later(1, lambda: fired.append("late"))
    early.cancel()
    assert clock.pending() == [clock.now() + 1]
    clock.advance(1)
    late.cancel()
    await asyncio.sleep(0)
    assert fired == []


async def test_a_sleeper_wakes_when_its_time_has_come():
    clock = FakeClock()
    sleeper = asyncio.create_task(clock.sleep(5))
    await clock.until_waiting(clock.now() + 5)
    clock.advance(4.5)
    await asyncio.sleep(0)
    assert not sleeper.done()
    clock.advance(0.5)
    await sleeper


async def test_no_sleep_lets_others_run():
    clock = FakeClock()
    ran: list[int] = []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    await clock.sleep(0)
    assert ran == [1]


async def test_a_cancelled_sleeper_leaves_nothing_behind():
    clock = FakeClock()
    sleeper = asyncio.create_task(clock.sleep(5))
    await clock.until_waiting(clock.now() + 5)
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    assert clock.pending() == []


async def test_until_waiting_sees_who_waits_already_and_who_comes_later():
    clock = FakeClock()
    clock.call_later(3, int)
    await clock.until_waiting(clock.now() + 3)
    watcher = asyncio.create_task(clock.until_waiting(clock.now() + 4))
    await asyncio.sleep(0)
    clock.call_later(5, int)
    await asyncio.sleep(0)
    assert not watcher.done()
    clock.call_later(4, int)
    await watcher


async def test_until_waiting_gives_up_and_says_what_is_due(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clock_module, "SAFETY_SECONDS", 0.001)
    clock = FakeClock(start=100.0)
    clock.call_later(7, int)
    with pytest.raises(TimeoutError, match=r"nothing waits for 103.0, only for \[107.0\]"):
        await clock.until_waiting(103.0)


async def test_timers_of_another_thread_fire_on_its_own_event_loop():
    clock = FakeClock()

    async def sleeper() -> int:
        await clock.sleep(5)
        return threading.get_ident()

    elsewhere = asyncio.create_task(asyncio.to_thread(asyncio.run, sleeper()))
    await clock.until_waiting(clock.now() + 5)
    clock.advance(5)
    assert await elsewhere != threading.get_ident()


async def test_a_closed_event_loop_is_forgotten():
    clock = FakeClock()

    async def leave_a_timer() -> None:
        clock.call_later(1, int)

    await asyncio.to_thread(asyncio.run, leave_a_timer())
    clock.advance(1)
    assert clock.pending() == []
