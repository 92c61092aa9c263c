"""Facts 28-30: deadlines, and how they come about without anybody calling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from lightning_store.model import AttemptedRollout, RolloutConfig, RolloutStatus
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import (
    ContractBase,
    claim,
    look,
    look_at_attempt,
    look_at_worker,
    make_span,
    report,
    retrying,
    statuses,
    within_safety,
)

TIMEOUT_10 = RolloutConfig(timeout_seconds=10)
UNRESPONSIVE_10 = RolloutConfig(unresponsive_seconds=10)


class DeadlinesContract(ContractBase):
    """Fact 28: which attempts are given up, when, and as what."""

    @pytest.mark.parametrize(
        ("config", "status"), [(TIMEOUT_10, "timeout"), (UNRESPONSIVE_10, "unresponsive")], ids=str
    )
    async def test_f28_past_the_limit_an_attempt_is_given_up(
        self, store: LightningStore, clock: FakeClock, config: RolloutConfig, status: str
    ) -> None:
        started = await store.start_rollout("task", config=config)
        clock.advance(10)
        assert await statuses(store, started) == ("preparing", "preparing")
        clock.advance(0.25)
        assert await statuses(store, started) == ("failed", status)

    async def test_f28_running_attempts_time_out_too(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=TIMEOUT_10)
        clock.advance(5)
        await store.add_span(make_span(started))
        clock.advance(6)
        assert await statuses(store, started) == ("failed", "timeout")

    async def test_f28_silence_counts_from_the_last_heartbeat(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=UNRESPONSIVE_10)
        clock.advance(8)
        await store.add_span(make_span(started))
        clock.advance(10)
        assert await statuses(store, started) == ("running", "running")
        clock.advance(0.25)
        assert await statuses(store, started) == ("failed", "unresponsive")

    async def test_f28_timeout_wins(self, store: LightningStore, clock: FakeClock) -> None:
        config = RolloutConfig(timeout_seconds=10, unresponsive_seconds=5)
        started = await store.start_rollout("task", config=config)
        clock.advance(11)
        assert await statuses(store, started) == ("failed", "timeout")

    async def test_f28_unresponsive_when_the_timeout_is_still_to_come(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        config = RolloutConfig(timeout_seconds=10, unresponsive_seconds=5)
        started = await store.start_rollout("task", config=config)
        clock.advance(6)
        assert await statuses(store, started) == ("failed", "unresponsive")

    async def test_f28_the_retry_has_a_time_of_its_own(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=retrying(timeout_seconds=10))
        clock.advance(11)
        assert await statuses(store, started) == ("requeuing", "timeout")
        clock.advance(100)
        second = await claim(store)
        clock.advance(10)
        assert await look(store, started) == second
        clock.advance(1)
        assert await statuses(store, started) == ("failed", "timeout")

    async def test_f28_without_limits_nothing_expires(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        clock.advance(1_000_000)
        assert await look(store, started) == started

    async def test_f28_a_limit_set_later_counts_from_the_start(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        clock.advance(8)
        await store.update_rollout(started.rollout_id, config=TIMEOUT_10)
        assert await statuses(store, started) == ("preparing", "preparing")
        clock.advance(3)
        assert await statuses(store, started) == ("failed", "timeout")

    async def test_f28_a_limit_taken_away_counts_no_more(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=TIMEOUT_10)
        await store.update_rollout(started.rollout_id, config=RolloutConfig())
        clock.advance(11)
        assert await statuses(store, started) == ("preparing", "preparing")

    @pytest.mark.parametrize("status", ["queuing", "requeuing", "failed", "succeeded", "cancelled"])
    async def test_f28_rollouts_that_are_not_under_way_are_not_touched(
        self, store: LightningStore, clock: FakeClock, status: RolloutStatus
    ) -> None:
        config = RolloutConfig(timeout_seconds=10, unresponsive_seconds=5)
        started = await store.start_rollout("task", config=config)
        await store.update_rollout(started.rollout_id, status=status)
        before = await look(store, started)
        clock.advance(11)
        assert await look(store, started) == before

    async def test_f28_a_rollout_that_was_never_claimed_is_not_touched(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        made = await store.enqueue_rollout("task", config=TIMEOUT_10)
        clock.advance(11)
        assert await store.get_rollout_by_id(made.rollout_id) == made
        assert (await claim(store)).attempt.start_time == clock.now()

    async def test_f28_only_the_latest_attempt_is_watched(self, store: LightningStore, clock: FakeClock) -> None:
        first = await store.start_rollout("task", config=TIMEOUT_10)
        clock.advance(8)
        second = await store.start_attempt(first.rollout_id)
        clock.advance(8)
        assert await look(store, first) == second
        assert await look_at_attempt(store, first) == first.attempt

    async def test_f28_a_rollout_taken_up_again_is_watched_again(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=TIMEOUT_10)
        await store.update_rollout(started.rollout_id, status="cancelled")
        clock.advance(11)
        await store.update_rollout(started.rollout_id, status="running")
        assert await statuses(store, started) == ("failed", "timeout")

    async def test_f28_a_revived_attempt_is_watched_again(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=retrying(unresponsive_seconds=10))
        clock.advance(11)
        await store.add_span(make_span(started))
        assert await statuses(store, started) == ("running", "running")
        clock.advance(11)
        assert await statuses(store, started) == ("requeuing", "unresponsive")

    # --- Fact 30 -----------------------------------------------------------------------------------------------------

    async def test_f30_a_heartbeat_time_that_is_given_counts(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=UNRESPONSIVE_10)
        clock.advance(8)
        await store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=clock.now())
        clock.advance(8)
        assert await statuses(store, started) == ("preparing", "preparing")
        clock.advance(3)
        assert await statuses(store, started) == ("failed", "unresponsive")

    async def test_f30_it_may_lie_ahead(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=UNRESPONSIVE_10)
        await store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=clock.now() + 100)
        clock.advance(110)
        assert await statuses(store, started) == ("preparing", "preparing")
        clock.advance(1)
        assert await statuses(store, started) == ("failed", "unresponsive")

    async def test_f30_it_may_lie_behind(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=UNRESPONSIVE_10)
        await store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=clock.now() - 7)
        clock.advance(4)
        assert await statuses(store, started) == ("failed", "unresponsive")

    async def test_f30_a_report_of_another_kind_is_no_heartbeat(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=UNRESPONSIVE_10)
        clock.advance(8)
        changed = await store.update_attempt(started.rollout_id, "latest", metadata={"a": 1})
        assert changed.last_heartbeat_time is None
        clock.advance(3)
        assert await statuses(store, started) == ("failed", "unresponsive")


Look = Callable[[LightningStore, AttemptedRollout], Awaitable[str]]


async def by_rollout(store: LightningStore, started: AttemptedRollout) -> str:
    return (await look(store, started)).status


async def by_rollouts(store: LightningStore, started: AttemptedRollout) -> str:
    return (await store.query_rollouts(status_in=["requeuing"]))[0].status


async def by_latest_attempt(store: LightningStore, started: AttemptedRollout) -> str:
    attempt = await store.get_latest_attempt(started.rollout_id)
    assert attempt is not None
    return "requeuing" if attempt.status == "timeout" else attempt.status


async def by_attempts(store: LightningStore, started: AttemptedRollout) -> str:
    [attempt] = await store.query_attempts(started.rollout_id)
    return "requeuing" if attempt.status == "timeout" else attempt.status


async def by_update(store: LightningStore, started: AttemptedRollout) -> str:
    return (await store.update_rollout(started.rollout_id, metadata={})).status


async def by_worker(store: LightningStore, started: AttemptedRollout) -> str:
    return "requeuing" if (await look_at_worker(store, "w")).status == "unknown" else "running"


async def by_span(store: LightningStore, started: AttemptedRollout) -> str:
    await store.add_span(make_span(started))
    return (await look(store, started)).status


LEASE_SECONDS = 120.0


class PausesContract(ContractBase):
    """Nobody is judged for silence while the judge was away: its program stopped, or the machine's time was set."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def leasing_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        async with self.opened(clock, worker_timeout_seconds=LEASE_SECONDS) as store:
            yield store

    async def held(self, store: LightningStore, config: RolloutConfig | None = None) -> AttemptedRollout:
        await store.update_worker("w")
        return await store.start_rollout("task", config=config, worker_id="w")

    @pytest.mark.parametrize("config", [None, UNRESPONSIVE_10], ids=str)
    async def test_x_a_heartbeat_after_a_pause_counts(
        self, leasing_store: LightningStore, clock: FakeClock, config: RolloutConfig | None
    ) -> None:
        """It was sent during the pause, and is read after it."""
        started = await self.held(leasing_store, config)
        clock.pause(10 * LEASE_SECONDS)
        assert (await leasing_store.update_worker("w")).status == "busy"
        assert await statuses(leasing_store, started) == ("preparing", "preparing")

    @pytest.mark.parametrize(
        ("config", "seconds"), [(None, LEASE_SECONDS), (UNRESPONSIVE_10, 10)], ids=["worker timeout", "unresponsive"]
    )
    async def test_x_silence_counts_from_the_end_of_a_pause(
        self, leasing_store: LightningStore, clock: FakeClock, config: RolloutConfig | None, seconds: float
    ) -> None:
        started = await self.held(leasing_store, config)
        clock.advance(seconds - 1)
        clock.pause(1000)
        clock.advance(seconds)
        assert await statuses(leasing_store, started) == ("preparing", "preparing")
        clock.advance(0.25)
        assert await statuses(leasing_store, started) == ("failed", "unresponsive")

    async def test_x_silence_after_a_pause_ends_an_attempt_without_any_call(
        self, leasing_store: LightningStore, clock: FakeClock
    ) -> None:
        started = await self.held(leasing_store, RolloutConfig(unresponsive_seconds=4))
        waiter = asyncio.create_task(leasing_store.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=15))
        await clock.until_waiting(clock.now() + 15)
        clock.pause(5)
        assert await statuses(leasing_store, started) == ("preparing", "preparing")
        clock.advance(4.25)
        while not waiter.done():  # a timer that was being set when the time leapt counts from after the leap
            await asyncio.sleep(0.001)
            clock.advance(0.002)
        assert [one.status for one in await within_safety(waiter)] == ["failed"]

    async def test_x_what_begins_after_a_pause_has_no_grace(self, store: LightningStore, clock: FakeClock) -> None:
        clock.pause(1000)
        started = await store.start_rollout("task", config=UNRESPONSIVE_10)
        clock.advance(10.25)
        assert await statuses(store, started) == ("failed", "unresponsive")

    async def test_x_a_timeout_counts_on_through_a_pause(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=TIMEOUT_10)
        clock.pause(10.25)
        assert await statuses(store, started) == ("failed", "timeout")

    @pytest.mark.parametrize("seconds", [86_400, -86_400])
    async def test_x_the_machine_s_time_may_be_set(
        self, leasing_store: LightningStore, clock: FakeClock, seconds: float
    ) -> None:
        """A jump forward ends nothing, a jump back keeps nothing, and the times of the store go on."""
        begun = clock.now()
        held = await self.held(leasing_store)
        timed = await leasing_store.start_rollout("task", config=TIMEOUT_10)
        clock.jump(seconds)
        assert await statuses(leasing_store, held) == ("preparing", "preparing")
        assert await statuses(leasing_store, timed) == ("preparing", "preparing")
        clock.advance(10.25)
        assert await statuses(leasing_store, timed) == ("failed", "timeout")
        clock.advance(LEASE_SECONDS - 10)
        assert await statuses(leasing_store, held) == ("failed", "unresponsive")
        ended = (await look(leasing_store, held)).end_time
        assert ended is not None
        assert ended == pytest.approx(begun + LEASE_SECONDS + 0.25, abs=1e-3)


class WatchdogContract(ContractBase):
    """Fact 29: deadlines come about at their time, and nobody sees what is past them."""

    @pytest.mark.parametrize(
        "see", [by_rollout, by_rollouts, by_latest_attempt, by_attempts, by_update, by_worker, by_span]
    )
    async def test_f29_a_call_after_the_deadline_sees_the_outcome(
        self, store: LightningStore, clock: FakeClock, see: Look
    ) -> None:
        started = await store.start_rollout("task", config=retrying(timeout_seconds=10), worker_id="w")
        clock.advance(11)
        assert await see(store, started) == "requeuing"

    async def test_f29_a_dequeue_hands_out_what_just_expired(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=retrying(timeout_seconds=10))
        clock.advance(11)
        claimed = await claim(store)
        assert (claimed.rollout_id, claimed.attempt.sequence_id) == (started.rollout_id, 2)

    async def test_f29_a_look_without_waiting_sees_the_outcome(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=TIMEOUT_10)
        clock.advance(11)
        [failed] = await store.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=0)
        assert failed.status == "failed"

    async def test_f29_a_heartbeat_after_the_deadline_comes_too_late(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task", config=UNRESPONSIVE_10, worker_id="w")
        clock.advance(11)
        assert (await store.update_worker("w")).status == "unknown"
        assert await statuses(store, started) == ("failed", "unresponsive")

    async def test_f29_success_after_the_deadline_is_a_late_success(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task", config=TIMEOUT_10)
        clock.advance(11)
        await report(store, started, "succeeded")
        assert await statuses(store, started) == ("succeeded", "succeeded")

    @pytest.mark.parametrize("config", [TIMEOUT_10, UNRESPONSIVE_10], ids=str)
    async def test_f29_a_deadline_wakes_a_waiter_without_any_call(
        self, store: LightningStore, clock: FakeClock, config: RolloutConfig
    ) -> None:
        started = await store.start_rollout("task", config=config)
        waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=17))
        await clock.until_waiting(clock.now() + 17)
        clock.advance(11)
        [failed] = await within_safety(waiter)
        assert failed.status == "failed"

    async def test_f29_each_deadline_comes_about_by_itself(self, store: LightningStore, clock: FakeClock) -> None:
        started = [
            await store.start_rollout(seconds, config=RolloutConfig(timeout_seconds=seconds)) for seconds in (9, 3, 6)
        ]
        ids = [rollout.rollout_id for rollout in started]
        waiters = [
            asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=15 + index))
            for index, rollout_id in enumerate(ids)
        ]
        for index in range(3):
            await clock.until_waiting(clock.now() + 15 + index)
        for index in (1, 2, 0):
            clock.advance(3.5)
            [failed] = await within_safety(waiters[index])
            assert failed.rollout_id == ids[index]
