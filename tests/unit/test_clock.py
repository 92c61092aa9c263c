"""The clocks of a store: time that neither jumps nor goes back, and pauses that are noticed."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from lightning_store import clock as clock_module
from lightning_store.clock import PAUSE_SECONDS, SleepCountingClock, SteadyClock, SystemClock
from lightning_store.testing import FakeClock


class StoppedWatch(SystemClock):
    """Its monotonic time is set by hand."""

    time = 100.0

    def monotonic(self) -> float:
        return self.time


@pytest.fixture(autouse=True)
def _tick_in_each_turn(monkeypatch):
    monkeypatch.setattr(clock_module, "TICK_SECONDS", 0)


async def ticks() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_time_follows_the_monotonic_clock_whatever_becomes_of_the_machine_s():
    source = FakeClock(start=1000.0)
    clock = SteadyClock(source)
    for seconds in (3600, -7200):
        source.jump(seconds)
        assert clock.now() == clock.monotonic() == 1000.0
    source.advance(2)
    assert clock.now() == 1002.0


def test_time_goes_on_from_the_newest_that_is_stored():
    source = FakeClock(start=1000.0)
    assert SteadyClock(source, not_before=900.0).now() == 1000.0
    late = SteadyClock(source, not_before=5000.0)
    source.advance(2)
    assert late.now() == 5002.0


def test_the_end_of_a_pause_is_a_time_of_the_store():
    source = FakeClock(start=1000.0)
    clock = SteadyClock(source, not_before=5000.0)
    source.pause(60)
    source.advance(1)
    assert (clock.awake_since(), clock.now()) == (5060.0, 5061.0)


def test_the_time_for_which_the_machine_slept_counts():
    without = SystemClock().monotonic()
    assert SleepCountingClock().monotonic() >= without


@pytest.mark.asyncio
async def test_a_pause_is_noticed_before_the_loop_has_come_to_its_timers():
    clock = StoppedWatch()
    assert clock.awake_since() == 100.0
    clock.time += PAUSE_SECONDS + 1
    assert clock.awake_since() == clock.time
    ended = clock.time
    await ticks()
    clock.time += PAUSE_SECONDS
    await ticks()
    clock.time += PAUSE_SECONDS
    assert clock.awake_since() == ended


@pytest.mark.asyncio
async def test_a_pause_is_noticed_though_nobody_asks():
    clock = StoppedWatch()
    clock.awake_since()
    clock.time += PAUSE_SECONDS + 1
    ended = clock.time
    await ticks()
    clock.time += 1
    assert clock.awake_since() == ended


def test_time_between_event_loops_is_no_pause():
    clock = StoppedWatch()

    async def ask() -> float:
        return clock.awake_since()

    assert asyncio.run(ask()) == 100.0
    clock.time += 1000
    assert asyncio.run(ask()) == 100.0


@pytest.mark.asyncio
async def test_a_clock_that_nobody_uses_any_more_ticks_no_more():
    clock = StoppedWatch()
    clock.awake_since()
    known = weakref.ref(clock)
    del clock
    await ticks()
    gc.collect()
    assert known() is None
