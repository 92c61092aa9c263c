"""Facts 25-27: what the store knows of workers."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lightning_store.errors import NotJsonError
from lightning_store.model import AttemptStatus, RolloutConfig, Worker
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
)


async def holding(store: LightningStore, worker_id: str) -> tuple[str, str | None, str | None]:
    """The worker's status, and the rollout and attempt that it holds."""
    worker = await look_at_worker(store, worker_id)
    return worker.status, worker.current_rollout_id, worker.current_attempt_id


class AssignmentContract(ContractBase):
    """Fact 25: a worker's status follows the attempt that it holds."""

    async def test_f25_asking_an_empty_queue_makes_a_record(self, store: LightningStore, clock: FakeClock) -> None:
        await store.dequeue_rollout(worker_id="w")
        assert await holding(store, "w") == ("idle", None, None)
        assert (await look_at_worker(store, "w")).last_dequeue_time == clock.now()

    async def test_f25_asking_for_many_makes_a_record(self, store: LightningStore, clock: FakeClock) -> None:
        await store.dequeue_many_rollouts(limit=3, worker_id="w")
        assert (await look_at_worker(store, "w")).last_dequeue_time == clock.now()

    async def test_f25_a_claim_makes_busy(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task")
        claimed = await claim(store, "w")
        assert await look_at_worker(store, "w") == Worker(
            worker_id="w",
            status="busy",
            last_dequeue_time=clock.now(),
            last_busy_time=clock.now(),
            current_rollout_id=claimed.rollout_id,
            current_attempt_id=claimed.attempt.attempt_id,
        )

    async def test_f25_a_worker_holds_the_last_of_many(self, store: LightningStore) -> None:
        await store.enqueue_rollout(1)
        await store.enqueue_rollout(2)
        claimed = await store.dequeue_many_rollouts(limit=2, worker_id="w")
        assert await holding(store, "w") == ("busy", claimed[1].rollout_id, claimed[1].attempt.attempt_id)

    async def test_f25_starting_makes_busy_without_asking(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", worker_id="w1")
        again = await store.start_attempt(started.rollout_id, worker_id="w2")
        for worker_id, rollout in (("w1", started), ("w2", again)):
            assert await look_at_worker(store, worker_id) == Worker(
                worker_id=worker_id,
                status="busy",
                last_busy_time=clock.now(),
                current_rollout_id=rollout.rollout_id,
                current_attempt_id=rollout.attempt.attempt_id,
            )

    async def test_f25_naming_a_worker_in_an_update_makes_it_busy(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task")
        clock.advance(5)
        await store.update_attempt(started.rollout_id, "latest", worker_id="w")
        assert await holding(store, "w") == ("busy", started.rollout_id, started.attempt.attempt_id)
        assert (await look_at_worker(store, "w")).last_busy_time == clock.now()

    async def test_f25_naming_a_worker_in_a_last_report_makes_a_record(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.update_attempt(started.rollout_id, "latest", status="succeeded", worker_id="w")
        assert await holding(store, "w") == ("idle", None, None)

    async def test_f25_a_heartbeat_makes_a_record(self, store: LightningStore, clock: FakeClock) -> None:
        beat = await store.update_worker("w", {"cpu": 0.5})
        assert beat == Worker(
            worker_id="w", status="unknown", heartbeat_stats={"cpu": 0.5}, last_heartbeat_time=clock.now()
        )
        assert await look_at_worker(store, "w") == beat

    async def test_f25_without_a_worker_id_there_is_no_record(self, store: LightningStore) -> None:
        await store.dequeue_rollout()
        await store.enqueue_rollout("task")
        claimed = await claim(store)
        await report(store, claimed, "succeeded")
        assert list(await store.query_workers()) == []

    @pytest.mark.parametrize("status", ["succeeded", "failed"])
    async def test_f25_a_reported_end_makes_idle(
        self, store: LightningStore, clock: FakeClock, status: AttemptStatus
    ) -> None:
        started = await store.start_rollout("task", worker_id="w")
        busy = await look_at_worker(store, "w")
        clock.advance(5)
        await report(store, started, status)
        idle = {"status": "idle", "last_idle_time": clock.now(), "current_rollout_id": None, "current_attempt_id": None}
        assert await look_at_worker(store, "w") == busy.model_copy(update=idle)

    @pytest.mark.parametrize("status", ["timeout", "unresponsive"])
    async def test_f25_giving_up_makes_unknown(self, store: LightningStore, status: AttemptStatus) -> None:
        started = await store.start_rollout("task", worker_id="w")
        busy = await look_at_worker(store, "w")
        await report(store, started, status)
        unknown = {"status": "unknown", "current_rollout_id": None, "current_attempt_id": None}
        assert await look_at_worker(store, "w") == busy.model_copy(update=unknown)

    @pytest.mark.parametrize("limit", ["timeout_seconds", "unresponsive_seconds"])
    async def test_f25_a_deadline_makes_unknown(self, store: LightningStore, clock: FakeClock, limit: str) -> None:
        started = await store.start_rollout("task", config=RolloutConfig.model_validate({limit: 10}), worker_id="w")
        clock.advance(11)
        assert (await look(store, started)).status == "failed"
        assert await holding(store, "w") == ("unknown", None, None)

    @pytest.mark.parametrize("status", ["succeeded", "failed", "timeout", "unresponsive"])
    async def test_f25_only_the_attempt_that_it_holds_counts(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        former = await store.start_rollout("former", worker_id="w")
        held = await store.start_rollout("held", worker_id="w")
        before = await look_at_worker(store, "w")
        await report(store, former, status)
        assert await look_at_worker(store, "w") == before
        await report(store, held, "succeeded")
        assert await holding(store, "w") == ("idle", None, None)

    @pytest.mark.parametrize("status", ["succeeded", "failed", "timeout", "unresponsive"])
    @pytest.mark.parametrize("over", ["before it is named", "by the same call"])
    async def test_f25_naming_a_worker_on_what_is_over_leaves_what_it_holds_alone(
        self, store: LightningStore, status: AttemptStatus, over: str
    ) -> None:
        await store.start_rollout("held", worker_id="w")
        ended = await store.start_rollout("ended")
        before = await look_at_worker(store, "w")
        if over == "by the same call":
            await store.update_attempt(ended.rollout_id, "latest", status=status, worker_id="w")
        else:
            await report(store, ended, status)
            await store.update_attempt(ended.rollout_id, "latest", worker_id="w")
        assert await look_at_worker(store, "w") == before

    async def test_f25_a_report_on_what_goes_on_is_told_of_its_worker(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task", worker_id="w")
        clock.advance(5)
        await report(store, started, "running")
        assert (await look_at_worker(store, "w")).last_busy_time == clock.now()

    async def test_f25_an_attempt_that_moves_on_releases_its_worker(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task", worker_id="w1")
        clock.advance(5)
        await store.update_attempt(started.rollout_id, "latest", worker_id="w2")
        assert await holding(store, "w1") == ("idle", None, None)
        assert (await look_at_worker(store, "w1")).last_idle_time == clock.now()
        assert await holding(store, "w2") == ("busy", started.rollout_id, started.attempt.attempt_id)

    async def test_f25_a_worker_that_holds_another_attempt_is_not_released(self, store: LightningStore) -> None:
        former = await store.start_rollout("former", worker_id="w1")
        held = await store.start_rollout("held", worker_id="w1")
        await store.update_attempt(former.rollout_id, "latest", worker_id="w2")
        assert await holding(store, "w1") == ("busy", held.rollout_id, held.attempt.attempt_id)

    async def test_f25_a_late_report_of_a_former_attempt_does_not_touch_its_next_worker(
        self, store: LightningStore
    ) -> None:
        first = await store.start_rollout("task", config=retrying(), worker_id="w1")
        await report(store, first, "timeout")
        second = await claim(store, "w2")
        await report(store, first, "failed")
        assert await holding(store, "w2") == ("busy", second.rollout_id, second.attempt.attempt_id)

    async def test_f25_a_late_report_of_its_own_former_attempt_does_not_touch_a_worker(
        self, store: LightningStore
    ) -> None:
        first = await store.start_rollout("task", config=retrying(), worker_id="w")
        await report(store, first, "timeout")
        second = await claim(store, "w")
        await report(store, first, "failed")
        assert await holding(store, "w") == ("busy", second.rollout_id, second.attempt.attempt_id)

    async def test_f25_a_worker_holds_what_it_was_given_last(self, store: LightningStore) -> None:
        given = await store.start_rollout("given")
        await store.start_rollout("held before", worker_id="w")
        await store.update_attempt(given.rollout_id, "latest", worker_id="w")
        assert await holding(store, "w") == ("busy", given.rollout_id, given.attempt.attempt_id)

    async def test_f25_an_attempt_that_goes_on_makes_its_worker_busy_again(self, store: LightningStore) -> None:
        started = await store.start_rollout("task", worker_id="w")
        await report(store, started, "unresponsive")
        assert await holding(store, "w") == ("unknown", None, None)
        await report(store, started, "running")
        assert await holding(store, "w") == ("busy", started.rollout_id, started.attempt.attempt_id)

    @pytest.mark.parametrize("max_attempts", [1, 2])
    async def test_f25_an_attempt_that_a_span_revives_makes_its_worker_busy_again(
        self, store: LightningStore, max_attempts: int
    ) -> None:
        started = await store.start_rollout("task", config=retrying(max_attempts), worker_id="w")
        await report(store, started, "unresponsive")
        await store.add_span(make_span(started))
        assert await holding(store, "w") == ("busy", started.rollout_id, started.attempt.attempt_id)

    async def test_f25_an_older_attempt_that_a_span_revives_makes_its_worker_busy_again(
        self, store: LightningStore
    ) -> None:
        first = await store.start_rollout("task", config=retrying(), worker_id="w1")
        await report(store, first, "unresponsive")
        second = await claim(store, "w2")
        await store.add_span(make_span(first))
        assert await holding(store, "w1") == ("busy", first.rollout_id, first.attempt.attempt_id)
        assert await holding(store, "w2") == ("busy", second.rollout_id, second.attempt.attempt_id)

    async def test_f25_a_revived_attempt_does_not_take_its_worker_from_another(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying(), worker_id="w")
        await report(store, first, "unresponsive")
        second = await claim(store, "w")
        await store.add_span(make_span(first))
        assert await holding(store, "w") == ("busy", second.rollout_id, second.attempt.attempt_id)

    async def test_f25_workers_are_snapshots(self, store: LightningStore) -> None:
        stats = {"cpu": [1]}
        beat = await store.update_worker("w", stats)
        unchanged = beat.model_copy(deep=True)
        stats["cpu"].append(2)
        beat.status = "busy"
        assert await look_at_worker(store, "w") == unchanged


class HeartbeatContract(ContractBase):
    """Facts 26 and 27: asking in vain, heartbeats, and the attempts that they keep alive."""

    async def test_f26_a_busy_worker_that_asks_in_vain_keeps_its_assignment(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        await store.start_rollout("task", worker_id="w")
        busy = await look_at_worker(store, "w")
        clock.advance(5)
        assert await store.dequeue_rollout(worker_id="w") is None
        assert await look_at_worker(store, "w") == busy.model_copy(update={"last_dequeue_time": clock.now()})

    async def test_f26_an_idle_worker_that_asks_in_vain_stays_idle(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task", worker_id="w")
        await report(store, started, "succeeded")
        clock.advance(5)
        await store.dequeue_rollout(worker_id="w")
        assert await holding(store, "w") == ("idle", None, None)
        assert (await look_at_worker(store, "w")).last_dequeue_time == clock.now()

    async def test_f26_stats_are_replaced_when_given(self, store: LightningStore) -> None:
        await store.update_worker("w", {"cpu": 0.5, "gpu": 1})
        assert (await store.update_worker("w", {"cpu": 0.7})).heartbeat_stats == {"cpu": 0.7}
        assert (await store.update_worker("w", {})).heartbeat_stats == {}

    async def test_f26_stats_are_kept_when_omitted(self, store: LightningStore, clock: FakeClock) -> None:
        await store.update_worker("w", {"cpu": 0.5})
        clock.advance(5)
        beat = await store.update_worker("w")
        assert (beat.heartbeat_stats, beat.last_heartbeat_time) == ({"cpu": 0.5}, clock.now())

    async def test_f26_none_is_no_stats(self, store: LightningStore) -> None:
        before = await store.update_worker("w", {"cpu": 0.5})
        with pytest.raises(TypeError):
            await store.update_worker("w", cast(Any, None))
        with pytest.raises(NotJsonError, match=r"heartbeat_stats\.f"):
            await store.update_worker("w", {"f": print})
        assert await look_at_worker(store, "w") == before

    async def test_f26_a_heartbeat_leaves_the_assignment(self, store: LightningStore, clock: FakeClock) -> None:
        await store.start_rollout("task", worker_id="w")
        busy = await look_at_worker(store, "w")
        clock.advance(5)
        beat = await store.update_worker("w", {"cpu": 1})
        assert beat == busy.model_copy(update={"heartbeat_stats": {"cpu": 1}, "last_heartbeat_time": clock.now()})

    async def test_f27_a_heartbeat_keeps_the_held_attempt_alive(self, store: LightningStore, clock: FakeClock) -> None:
        config = RolloutConfig(unresponsive_seconds=10)
        started = await store.start_rollout("task", config=config, worker_id="w")
        for _ in range(3):
            clock.advance(8)
            await store.update_worker("w")
            attempt = await look_at_attempt(store, started)
            assert attempt == started.attempt.model_copy(update={"last_heartbeat_time": clock.now()})
        clock.advance(11)
        assert (await look_at_attempt(store, started)).status == "unresponsive"

    async def test_f27_a_heartbeat_does_not_put_off_a_timeout(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(timeout_seconds=10), worker_id="w")
        clock.advance(8)
        await store.update_worker("w")
        clock.advance(3)
        assert (await look_at_attempt(store, started)).status == "timeout"

    async def test_f27_a_heartbeat_is_not_for_attempts_of_others(self, store: LightningStore, clock: FakeClock) -> None:
        config = RolloutConfig(unresponsive_seconds=10)
        started = await store.start_rollout("task", config=config, worker_id="w")
        former = await store.start_rollout("former", worker_id="other")
        await store.start_rollout("held", worker_id="other")
        await store.update_worker("other")
        assert await look_at_attempt(store, started) == started.attempt
        assert await look_at_attempt(store, former) == former.attempt

    async def test_f27_a_heartbeat_does_not_touch_an_ended_attempt(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task", worker_id="w")
        ended = await report(store, started, "succeeded")
        clock.advance(5)
        await store.update_worker("w")
        assert await look_at_attempt(store, started) == ended

    async def test_f27_an_empty_worker_id_makes_no_record(self, store: LightningStore) -> None:
        await store.enqueue_rollout("task")
        assert await store.dequeue_rollout(worker_id="") is not None
        assert await store.dequeue_rollout(worker_id="") is None
        started = await store.start_rollout("task", worker_id="")
        await store.start_attempt(started.rollout_id, worker_id="")
        await store.add_span(make_span(started))
        with pytest.raises(ValueError, match="worker_id"):
            await store.update_worker("")
        assert list(await store.query_workers()) == []
