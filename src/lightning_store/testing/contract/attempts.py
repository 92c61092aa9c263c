"""Facts 10-16: attempts, and how a rollout's status follows from them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lightning_store.errors import AttemptNotFoundError, NoAttemptsError, RolloutNotFoundError
from lightning_store.model import Attempt, AttemptedRollout, AttemptStatus, RolloutConfig, RolloutStatus
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import (
    ContractBase,
    claim,
    drain,
    look,
    look_at_attempt,
    make_span,
    report,
    retrying,
    statuses,
    with_attempt,
)

WENT_WRONG: tuple[AttemptStatus, ...] = ("failed", "timeout", "unresponsive")


async def timed_out(store: LightningStore, clock: FakeClock, config: RolloutConfig) -> AttemptedRollout:
    """A rollout as it was claimed, one second past its ``config.timeout_seconds``."""
    await store.enqueue_rollout("task", config=config)
    claimed = await claim(store)
    assert config.timeout_seconds is not None
    clock.advance(config.timeout_seconds + 1)
    assert (await look(store, claimed)).attempt.status == "timeout"
    return claimed


class StatusContract(ContractBase):
    """Facts 10-13: what a rollout becomes when an attempt is updated."""

    @pytest.mark.parametrize("status", ["preparing", "running", "succeeded"])
    async def test_f10_the_status_passes_through(self, store: LightningStore, status: AttemptStatus) -> None:
        started = await store.start_rollout("task", config=retrying())
        updated = await report(store, started, status)
        assert updated.status == status
        assert await statuses(store, started) == (status, status)

    @pytest.mark.parametrize("status", WENT_WRONG)
    async def test_f10_without_retries_the_rollout_fails(
        self, store: LightningStore, clock: FakeClock, status: AttemptStatus
    ) -> None:
        started = await store.start_rollout("task")
        clock.advance(5)
        await report(store, started, status)
        assert await statuses(store, started) == ("failed", status)
        assert (await look(store, started)).end_time == clock.now()

    @pytest.mark.parametrize("status", WENT_WRONG)
    async def test_f10_a_status_to_retry_requeues(self, store: LightningStore, status: AttemptStatus) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(max_attempts=2, retry_condition=[status]))
        await report(store, started, status)
        assert await statuses(store, started) == ("requeuing", status)
        assert (await look(store, started)).end_time is None
        second = await claim(store)
        assert (second.rollout_id, second.attempt.sequence_id) == (started.rollout_id, 2)

    @pytest.mark.parametrize("status", WENT_WRONG)
    async def test_f10_another_status_than_those_to_retry_fails(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        others: list[AttemptStatus] = [other for other in WENT_WRONG if other != status]
        started = await store.start_rollout("task", config=RolloutConfig(max_attempts=2, retry_condition=others))
        await report(store, started, status)
        assert await statuses(store, started) == ("failed", status)
        assert await store.dequeue_rollout() is None

    async def test_f10_the_last_attempt_fails(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying(3))
        await report(store, first, "failed")
        for expected in ("requeuing", "failed"):
            again = await claim(store)
            await report(store, again, "timeout")
            assert (await look(store, first)).status == expected
        assert await store.dequeue_rollout() is None

    async def test_f10_a_succeeded_attempt_is_not_retried(self, store: LightningStore) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(max_attempts=2, retry_condition=["succeeded"]))
        await report(store, started, "succeeded")
        assert await statuses(store, started) == ("succeeded", "succeeded")

    async def test_f10_the_config_of_the_moment_decides(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.update_rollout(started.rollout_id, config=retrying())
        await report(store, started, "failed")
        assert await statuses(store, started) == ("requeuing", "failed")

    async def test_f10_an_older_attempt_moves_nothing(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying())
        second = await store.start_attempt(first.rollout_id)
        reports: list[AttemptStatus] = ["running", *WENT_WRONG, "succeeded"]
        for status in reports:
            await report(store, first, status)
            assert await look(store, first) == second
        assert await store.dequeue_rollout() is None

    async def test_f10_latest_names_the_newest_attempt(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        updated = await store.update_attempt(first.rollout_id, "latest", status="running")
        assert updated == second.attempt.model_copy(update={"status": "running"})
        assert await look_at_attempt(store, first) == first.attempt

    # --- Fact 11 -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("status", ["succeeded", *WENT_WRONG])
    async def test_f11_an_ended_attempt_has_an_end_time(
        self, store: LightningStore, clock: FakeClock, status: AttemptStatus
    ) -> None:
        started = await store.start_rollout("task")
        clock.advance(5)
        updated = await report(store, started, status)
        assert updated == started.attempt.model_copy(update={"status": status, "end_time": clock.now()})
        assert await look_at_attempt(store, started) == updated

    @pytest.mark.parametrize("status", ["preparing", "running"])
    async def test_f11_an_attempt_that_goes_on_has_none(self, store: LightningStore, status: AttemptStatus) -> None:
        started = await store.start_rollout("task")
        assert (await report(store, started, status)).end_time is None
        await report(store, started, "failed")
        assert (await report(store, started, status)).end_time is None

    async def test_f11_a_deadline_sets_the_end_time(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(timeout_seconds=10))
        clock.advance(11)
        ended = (await look(store, started)).attempt.end_time
        assert ended is not None
        assert started.attempt.start_time + 10 <= ended <= clock.now()

    async def test_f11_a_revived_attempt_has_no_end_time(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=retrying(unresponsive_seconds=10))
        clock.advance(11)
        assert (await look(store, started)).attempt.end_time is not None
        await store.add_span(make_span(started))
        assert (await look(store, started)).attempt.end_time is None

    # --- Fact 12 -----------------------------------------------------------------------------------------------------

    async def test_f12_a_change_of_metadata_derives_the_status_anew(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await report(store, started, "running")
        await store.update_rollout(started.rollout_id, status="cancelled")
        await store.update_attempt(started.rollout_id, "latest", metadata={"a": 1})
        assert await statuses(store, started) == ("running", "running")

    async def test_f12_a_change_of_metadata_takes_a_rollout_out_of_the_queue(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.update_rollout(started.rollout_id, status="queuing")
        await store.update_attempt(started.rollout_id, "latest", metadata={"a": 1})
        assert await statuses(store, started) == ("preparing", "preparing")
        assert await store.dequeue_rollout() is None

    async def test_f12_a_change_of_metadata_leaves_a_retry_in_its_place(self, store: LightningStore) -> None:
        first = await store.start_rollout("first", config=retrying())
        await report(store, first, "failed")
        second = await store.enqueue_rollout("second")
        await store.update_attempt(first.rollout_id, "latest", metadata={"a": 1})
        assert await drain(store) == [first.rollout_id, second.rollout_id]

    @pytest.mark.parametrize("terminal", ["failed", "succeeded", "cancelled"])
    async def test_f12_a_report_after_the_end_counts(
        self, store: LightningStore, clock: FakeClock, terminal: RolloutStatus
    ) -> None:
        started = await store.start_rollout("task")
        await store.update_rollout(started.rollout_id, status=terminal)
        clock.advance(5)
        await report(store, started, "succeeded")
        found = await look(store, started)
        assert (found.status, found.end_time, found.attempt.status) == ("succeeded", clock.now(), "succeeded")

    @pytest.mark.parametrize("terminal", ["failed", "succeeded", "cancelled"])
    async def test_f12_strict_a_report_after_the_end_is_only_recorded(
        self, strict_store: LightningStore, clock: FakeClock, terminal: RolloutStatus
    ) -> None:
        started = await strict_store.start_rollout("task", config=retrying())
        ended = await strict_store.update_rollout(started.rollout_id, status=terminal)
        clock.advance(5)
        reports: list[AttemptStatus] = ["running", "failed", "succeeded"]
        for status in reports:
            updated = await report(strict_store, started, status)
            assert await look(strict_store, started) == with_attempt(ended, updated)
            assert updated.status == status

    async def test_f12_strict_metadata_after_the_end_is_only_recorded(self, strict_store: LightningStore) -> None:
        started = await strict_store.start_rollout("task")
        await strict_store.update_rollout(started.rollout_id, status="cancelled")
        updated = await strict_store.update_attempt(started.rollout_id, "latest", metadata={"a": 1})
        assert updated.metadata == {"a": 1}
        assert await statuses(strict_store, started) == ("cancelled", "preparing")

    # --- Fact 13 -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("status", ["succeeded", "failed"])
    async def test_f13_a_late_report_after_the_next_attempt_began(
        self, store: LightningStore, clock: FakeClock, status: AttemptStatus
    ) -> None:
        first = await timed_out(store, clock, retrying(timeout_seconds=10))
        second = await claim(store)
        clock.advance(1)
        late = await report(store, first, status)
        assert (late.status, late.end_time) == (status, clock.now())
        assert await look_at_attempt(store, first) == late
        assert await look(store, first) == second

    async def test_f13_late_success_before_the_retry_began(self, store: LightningStore, clock: FakeClock) -> None:
        first = await timed_out(store, clock, retrying(timeout_seconds=10))
        clock.advance(1)
        late = await report(store, first, "succeeded")
        found = await look(store, first)
        assert (found.status, found.end_time, found.attempt) == ("succeeded", clock.now(), late)
        assert (late.status, late.end_time) == ("succeeded", clock.now())
        assert await store.dequeue_rollout() is None
        assert len(await store.query_attempts(first.rollout_id)) == 1

    async def test_f13_late_failure_before_the_retry_that_is_still_to_be_retried(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        first = await timed_out(store, clock, retrying(timeout_seconds=10))
        await report(store, first, "failed")
        assert await statuses(store, first) == ("requeuing", "failed")
        assert await drain(store) == [first.rollout_id]

    async def test_f13_late_failure_before_the_retry_that_is_not_to_be_retried(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        config = RolloutConfig(timeout_seconds=10, max_attempts=2, retry_condition=["timeout"])
        first = await timed_out(store, clock, config)
        await report(store, first, "failed")
        assert await statuses(store, first) == ("failed", "failed")
        assert await store.dequeue_rollout() is None

    async def test_f13_late_success_after_the_rollout_failed(self, store: LightningStore, clock: FakeClock) -> None:
        first = await timed_out(store, clock, RolloutConfig(timeout_seconds=10))
        assert (await look(store, first)).status == "failed"
        clock.advance(1)
        await report(store, first, "succeeded")
        found = await look(store, first)
        assert (found.status, found.end_time) == ("succeeded", clock.now())

    async def test_f13_strict_late_success_after_the_rollout_failed(
        self, strict_store: LightningStore, clock: FakeClock
    ) -> None:
        first = await timed_out(strict_store, clock, RolloutConfig(timeout_seconds=10))
        await report(strict_store, first, "succeeded")
        assert await statuses(strict_store, first) == ("failed", "succeeded")


class RevivalContract(ContractBase):
    """Facts 14-16: spans of attempts that were given up, unknown ids, clearing fields."""

    async def test_f14_a_span_revives_an_unresponsive_attempt(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=retrying(unresponsive_seconds=10))
        clock.advance(11)
        assert await statuses(store, started) == ("requeuing", "unresponsive")
        await store.add_span(make_span(started))
        revived = started.attempt.model_copy(update={"status": "running", "last_heartbeat_time": clock.now()})
        assert await look(store, started) == started.model_copy(update={"status": "running", "attempt": revived})
        assert await store.dequeue_rollout() is None

    @pytest.mark.parametrize("status", ["timeout", "failed"])
    async def test_f14_a_span_revives_no_other_attempt(
        self, store: LightningStore, clock: FakeClock, status: AttemptStatus
    ) -> None:
        started = await store.start_rollout("task", config=retrying())
        ended = await report(store, started, status)
        clock.advance(5)
        span = make_span(started)
        assert await store.add_span(span) == span
        found = await look(store, started)
        assert found.status == "requeuing"
        assert found.attempt == ended.model_copy(update={"last_heartbeat_time": clock.now()})
        assert list(await store.query_spans(started.rollout_id)) == [span]
        assert await drain(store) == [started.rollout_id]

    @pytest.mark.parametrize("status", ["timeout", "failed"])
    async def test_f14_a_span_revives_no_other_attempt_of_a_failed_rollout(
        self, store: LightningStore, clock: FakeClock, status: AttemptStatus
    ) -> None:
        started = await store.start_rollout("task")
        ended = await report(store, started, status)
        failed = await look(store, started)
        clock.advance(5)
        await store.add_span(make_span(started))
        attempt = ended.model_copy(update={"last_heartbeat_time": clock.now()})
        assert await look(store, started) == failed.model_copy(update={"attempt": attempt})

    async def test_f14_a_span_after_success_is_stored(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        ended = await report(store, started, "succeeded")
        rollout = await look(store, started)
        clock.advance(5)
        await store.add_span(make_span(started))
        attempt = ended.model_copy(update={"last_heartbeat_time": clock.now()})
        assert await look(store, started) == rollout.model_copy(update={"attempt": attempt})
        assert len(await store.query_spans(started.rollout_id)) == 1

    @pytest.mark.parametrize("strict", [False, True])
    async def test_f14_a_rollout_that_failed_for_good_stays_failed(self, clock: FakeClock, strict: bool) -> None:
        async with self.opened(clock, strict=strict) as store:
            started = await store.start_rollout("task")
            await report(store, started, "unresponsive")
            failed = await look(store, started)
            clock.advance(5)
            await store.add_span(make_span(started))
            revived = started.attempt.model_copy(update={"status": "running", "last_heartbeat_time": clock.now()})
            assert await look(store, started) == failed.model_copy(update={"attempt": revived})
            assert await store.dequeue_rollout() is None

    @pytest.mark.parametrize("terminal", ["failed", "succeeded", "cancelled"])
    async def test_f14_a_terminal_rollout_stays_as_it_is(
        self, store: LightningStore, clock: FakeClock, terminal: RolloutStatus
    ) -> None:
        started = await store.start_rollout("task", config=retrying())
        await report(store, started, "unresponsive")
        ended = await store.update_rollout(started.rollout_id, status=terminal)
        clock.advance(5)
        await store.add_span(make_span(started))
        revived = started.attempt.model_copy(update={"status": "running", "last_heartbeat_time": clock.now()})
        assert await look(store, started) == with_attempt(ended, revived)

    async def test_f14_a_rollout_that_was_put_back_as_queuing_stays_queued(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await report(store, started, "unresponsive")
        await store.update_rollout(started.rollout_id, status="queuing")
        await store.add_span(make_span(started))
        assert await statuses(store, started) == ("queuing", "running")
        assert await drain(store) == [started.rollout_id]

    async def test_f14_a_rollout_that_was_set_to_preparing_follows(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await report(store, started, "unresponsive")
        await store.update_rollout(started.rollout_id, status="preparing")
        await store.add_span(make_span(started))
        assert await statuses(store, started) == ("running", "running")

    @pytest.mark.parametrize("number", [1, 2])
    async def test_f14_a_rollout_whose_retry_was_claimed_stays_as_it_is(
        self, store: LightningStore, clock: FakeClock, number: int
    ) -> None:
        first = await store.start_rollout("task", config=retrying(3))
        await report(store, first, "unresponsive")
        retries = [await claim(store)]
        if number == 2:
            await report(store, retries[0], "failed")
            retries.append(await claim(store))
        clock.advance(5)
        await store.add_span(make_span(first))
        assert await look(store, first) == retries[-1]
        revived = first.attempt.model_copy(update={"status": "running", "last_heartbeat_time": clock.now()})
        assert await look_at_attempt(store, first) == revived

    async def test_f14_an_older_attempt_does_not_take_a_retry_out_of_the_queue(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying(3))
        await report(store, first, "unresponsive")
        second = await claim(store)
        await report(store, second, "unresponsive")
        await store.add_span(make_span(first))
        assert await statuses(store, first) == ("requeuing", "unresponsive")
        assert (await look_at_attempt(store, first)).status == "running"
        assert await drain(store) == [first.rollout_id]

    async def test_f14_a_batch_of_spans_revives_each_unresponsive_attempt(self, store: LightningStore) -> None:
        waiting = await store.start_rollout("waits for its retry", config=retrying())
        failed = await store.start_rollout("failed")
        for one in (waiting, failed):
            await report(store, one, "unresponsive")
        await store.add_many_spans([make_span(waiting), make_span(failed), make_span(waiting, 2)])
        assert await statuses(store, waiting) == ("running", "running")
        assert await statuses(store, failed) == ("failed", "running")

    @pytest.mark.parametrize("status", ["timeout", "failed", "succeeded"])
    async def test_f14_a_span_on_an_older_attempt_that_ended_otherwise_leaves_it(
        self, store: LightningStore, clock: FakeClock, status: AttemptStatus
    ) -> None:
        first = await store.start_rollout("task", config=retrying())
        ended = await report(store, first, status)
        second = await store.start_attempt(first.rollout_id)
        clock.advance(5)
        await store.add_span(make_span(first))
        assert await look_at_attempt(store, first) == ended.model_copy(update={"last_heartbeat_time": clock.now()})
        assert await look(store, first) == second

    async def test_f14_a_revived_attempt_of_a_failed_rollout_stays_running_until_it_reports(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        config = RolloutConfig(unresponsive_seconds=10, timeout_seconds=100)
        started = await store.start_rollout("task", config=config)
        clock.advance(11)
        assert await statuses(store, started) == ("failed", "unresponsive")
        await store.add_span(make_span(started))
        clock.advance(1000)
        assert await statuses(store, started) == ("failed", "running")
        await report(store, started, "succeeded")
        assert await statuses(store, started) == ("succeeded", "succeeded")

    async def test_f14_a_revived_older_attempt_stays_running_until_it_reports(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        first = await store.start_rollout("task", config=retrying(unresponsive_seconds=10))
        clock.advance(11)
        second = await claim(store)
        await store.add_span(make_span(first))
        clock.advance(1000)
        assert (await look_at_attempt(store, first)).status == "running"
        assert await statuses(store, second) == ("failed", "unresponsive")
        late = await report(store, first, "succeeded")
        assert (late.status, late.end_time) == ("succeeded", clock.now())
        assert await statuses(store, second) == ("failed", "unresponsive")

    async def test_f14_a_span_on_a_cancelled_rollout_is_stored(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        ended = await store.update_rollout(started.rollout_id, status="cancelled")
        span = make_span(started)
        assert await store.add_span(span) == span
        found = await look(store, started)
        assert (found.status, found.end_time) == ("cancelled", ended.end_time)
        assert list(await store.query_spans(started.rollout_id)) == [span]

    # --- Fact 15 -----------------------------------------------------------------------------------------------------

    async def test_f15_changes_of_an_unknown_rollout(self, store: LightningStore) -> None:
        unknown = make_span(await store.start_rollout("task"), rollout_id="ro-x")
        with pytest.raises(RolloutNotFoundError, match="^Rollout ro-x not found$"):
            await store.update_rollout("ro-x", metadata={})
        with pytest.raises(RolloutNotFoundError, match="^Rollout ro-x not found$"):
            await store.start_attempt("ro-x")
        with pytest.raises(RolloutNotFoundError, match="^Rollout ro-x not found$"):
            await store.update_attempt("ro-x", "latest", status="running")
        with pytest.raises(RolloutNotFoundError, match="^Rollout ro-x not found$"):
            await store.update_attempt("ro-x", "at-x", status="running")
        with pytest.raises(RolloutNotFoundError, match="^Rollout ro-x not found$"):
            await store.add_span(unknown)
        with pytest.raises(RolloutNotFoundError, match="^Rollout ro-x not found$"):
            await store.get_next_span_sequence_id("ro-x", "at-x")

    async def test_f15_changes_without_any_attempt(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        message = f"^No attempts found for rollout {made.rollout_id}$"
        with pytest.raises(NoAttemptsError, match=message):
            await store.update_attempt(made.rollout_id, "latest", status="running")
        with pytest.raises(NoAttemptsError, match=message):
            await store.update_attempt(made.rollout_id, "at-x", status="running")

    async def test_f15_changes_of_an_unknown_attempt(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        message = f"^Attempt at-x not found for rollout {started.rollout_id}$"
        with pytest.raises(AttemptNotFoundError, match=message):
            await store.update_attempt(started.rollout_id, "at-x", status="running")
        with pytest.raises(AttemptNotFoundError, match=message):
            await store.add_span(make_span(started, attempt_id="at-x"))

    async def test_f15_an_attempt_of_another_rollout_is_unknown(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        other = await store.start_rollout("other")
        with pytest.raises(AttemptNotFoundError):
            await store.update_attempt(started.rollout_id, other.attempt.attempt_id, status="failed")
        assert await look(store, other) == other

    async def test_f15_the_errors_are_value_errors(self, store: LightningStore) -> None:
        with pytest.raises(ValueError, match="not found"):
            await store.update_rollout("ro-x")

    async def test_f15_reads_of_what_is_not_there(self, store: LightningStore) -> None:
        assert list(await store.query_attempts("ro-x")) == []
        assert list(await store.query_spans("ro-x")) == []
        assert list(await store.query_spans("ro-x", "latest")) == []
        assert await store.get_latest_attempt("ro-x") is None
        await self._getters_give_none(store)

    async def test_f15_strict_reads_of_an_unknown_rollout(self, strict_store: LightningStore) -> None:
        with pytest.raises(RolloutNotFoundError):
            await strict_store.query_attempts("ro-x")
        with pytest.raises(RolloutNotFoundError):
            await strict_store.query_spans("ro-x")
        with pytest.raises(RolloutNotFoundError):
            await strict_store.get_latest_attempt("ro-x")
        await self._getters_give_none(strict_store)

    async def _getters_give_none(self, store: LightningStore) -> None:
        assert await store.get_rollout_by_id("ro-x") is None
        assert await store.get_resources_by_id("rs-x") is None
        assert await store.get_latest_resources() is None
        assert await store.get_worker_by_id("w-x") is None

    @pytest.mark.parametrize("strict", [False, True])
    async def test_f15_reads_of_a_rollout_without_attempts(self, clock: FakeClock, strict: bool) -> None:
        async with self.opened(clock, strict=strict) as store:
            made = await store.enqueue_rollout("task")
            assert list(await store.query_attempts(made.rollout_id)) == []
            assert list(await store.query_spans(made.rollout_id, "latest")) == []
            assert list(await store.query_spans(made.rollout_id, "at-x")) == []
            assert await store.get_latest_attempt(made.rollout_id) is None

    # --- Fact 16 -----------------------------------------------------------------------------------------------------

    async def test_f16_none_is_no_status(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        with pytest.raises(ValueError, match="status"):
            await store.update_attempt(started.rollout_id, "latest", status=cast(Any, None), metadata={"changed": True})
        assert await look(store, started) == started

    async def test_f16_sets_what_is_given(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        changed = await store.update_attempt(
            started.rollout_id,
            started.attempt.attempt_id,
            status="running",
            worker_id="w",
            last_heartbeat_time=1_700_000_123.25,
            metadata={"a": [1]},
        )
        assert changed == Attempt(
            rollout_id=started.rollout_id,
            attempt_id=started.attempt.attempt_id,
            sequence_id=1,
            start_time=started.attempt.start_time,
            status="running",
            worker_id="w",
            last_heartbeat_time=1_700_000_123.25,
            metadata={"a": [1]},
        )
        assert await look_at_attempt(store, started) == changed
        assert await store.update_attempt(started.rollout_id, "latest") == changed

    async def test_f16_none_clears_the_rest(self, store: LightningStore) -> None:
        started = await store.start_rollout("task", worker_id="w")
        await store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=5.0, metadata={"a": 1})
        cleared = await store.update_attempt(
            started.rollout_id, "latest", worker_id=None, last_heartbeat_time=None, metadata=None
        )
        assert cleared == started.attempt.model_copy(update={"worker_id": None})
        assert await look_at_attempt(store, started) == cleared

    async def test_f16_metadata_is_replaced_not_merged(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.update_attempt(started.rollout_id, "latest", metadata={"a": 1, "b": 1})
        changed = await store.update_attempt(started.rollout_id, "latest", metadata={"b": 2})
        assert changed.metadata == {"b": 2}
