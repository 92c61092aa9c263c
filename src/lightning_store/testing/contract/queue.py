"""Facts 4-6: the queue, claiming from it, and attempts that are started past it."""

from __future__ import annotations

import pytest

from lightning_store.model import Attempt, RolloutStatus
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, claim, drain, look, report, retrying, with_attempt

TERMINAL: tuple[RolloutStatus, ...] = ("failed", "succeeded", "cancelled")


async def enqueue(store: LightningStore, count: int) -> list[str]:
    """The ids of ``count`` new rollouts, in the order of the queue."""
    return [(await store.enqueue_rollout(number)).rollout_id for number in range(count)]


class QueueContract(ContractBase):
    """dequeue_rollout, dequeue_many_rollouts, start_attempt."""

    async def test_f04_an_empty_queue_gives_none(self, store: LightningStore) -> None:
        assert await store.dequeue_rollout() is None
        assert await store.dequeue_rollout(worker_id="w") is None

    async def test_f04_a_claim_has_a_new_attempt(self, store: LightningStore, clock: FakeClock) -> None:
        made = await store.enqueue_rollout("task", mode="train", config=retrying(), metadata={"a": 1})
        clock.advance(5)
        claimed = await claim(store, "w")
        attempt = Attempt(
            rollout_id=made.rollout_id,
            attempt_id=claimed.attempt.attempt_id,
            sequence_id=1,
            start_time=clock.now(),
            status="preparing",
            worker_id="w",
        )
        assert claimed == with_attempt(made, attempt, status="preparing")
        assert await look(store, made) == claimed

    async def test_f04_first_in_first_out(self, store: LightningStore) -> None:
        ids = await enqueue(store, 3)
        assert [(await claim(store)).rollout_id for _ in ids] == ids
        assert await store.dequeue_rollout() is None

    async def test_f04_requeuing_rollouts_stand_in_the_same_queue(self, store: LightningStore) -> None:
        first = await store.start_rollout("first", config=retrying())
        fresh = await store.enqueue_rollout("second")
        await report(store, first, "failed")
        last = await store.enqueue_rollout("third")
        assert await drain(store) == [fresh.rollout_id, first.rollout_id, last.rollout_id]

    async def test_f04_attempts_are_numbered(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        await store.start_attempt(first.rollout_id)
        await store.update_rollout(first.rollout_id, status="queuing")
        third = await claim(store)
        assert third.attempt.sequence_id == 3
        assert [attempt.sequence_id for attempt in await store.query_attempts(first.rollout_id)] == [1, 2, 3]

    async def test_f04_dequeue_many_claims_up_to_the_limit(self, store: LightningStore) -> None:
        ids = await enqueue(store, 3)
        claimed = await store.dequeue_many_rollouts(limit=2, worker_id="w")
        assert [rollout.rollout_id for rollout in claimed] == ids[:2]
        assert [rollout.status for rollout in claimed] == ["preparing", "preparing"]
        assert [rollout.attempt.worker_id for rollout in claimed] == ["w", "w"]
        assert [rollout.rollout_id for rollout in await store.dequeue_many_rollouts(limit=2)] == ids[2:]

    async def test_f04_dequeue_many_claims_one_by_default(self, store: LightningStore) -> None:
        ids = await enqueue(store, 2)
        assert [rollout.rollout_id for rollout in await store.dequeue_many_rollouts()] == ids[:1]

    @pytest.mark.parametrize("limit", [0, -1, -100])
    async def test_f04_dequeue_many_without_a_limit_above_zero(self, store: LightningStore, limit: int) -> None:
        await enqueue(store, 1)
        assert await store.dequeue_many_rollouts(limit=limit) == []
        assert len(await drain(store)) == 1

    async def test_f04_dequeue_many_on_an_empty_queue(self, store: LightningStore) -> None:
        assert await store.dequeue_many_rollouts(limit=5) == []

    # --- Fact 5 ------------------------------------------------------------------------------------------------------

    async def test_f05_a_rollout_stands_in_the_queue_once(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        await store.update_rollout(made.rollout_id, status="requeuing")
        await store.update_rollout(made.rollout_id, status="queuing")
        assert await drain(store) == [made.rollout_id]

    async def test_f05_dequeued_and_put_back_goes_to_the_tail(self, store: LightningStore) -> None:
        first, second = await enqueue(store, 2)
        await claim(store)
        await store.update_rollout(first, status="requeuing")
        assert await drain(store) == [second, first]

    @pytest.mark.parametrize("status", ["preparing", "running"])
    async def test_f05_never_dequeued_keeps_its_place(self, store: LightningStore, status: RolloutStatus) -> None:
        first, second = await enqueue(store, 2)
        await store.update_rollout(first, status=status)
        await store.update_rollout(first, status="queuing")
        assert await drain(store) == [first, second]

    @pytest.mark.parametrize("status", ["preparing", "running", *TERMINAL])
    async def test_f05_what_is_not_queued_is_skipped(self, store: LightningStore, status: RolloutStatus) -> None:
        first, second = await enqueue(store, 2)
        await store.update_rollout(first, status=status)
        assert await drain(store) == [second]

    @pytest.mark.parametrize("status", ["preparing", "running"])
    async def test_f05_skipped_and_put_back_has_its_place_again(
        self, store: LightningStore, status: RolloutStatus
    ) -> None:
        first, second, third = await enqueue(store, 3)
        await store.update_rollout(first, status=status)
        assert (await claim(store)).rollout_id == second
        await store.update_rollout(first, status="queuing")
        assert await drain(store) == [first, third]

    @pytest.mark.parametrize("queued", ["queuing", "requeuing"])
    @pytest.mark.parametrize("terminal", TERMINAL)
    async def test_f05_a_terminal_status_leaves_the_queue_at_once(
        self, store: LightningStore, terminal: RolloutStatus, queued: RolloutStatus
    ) -> None:
        first, second = await enqueue(store, 2)
        await store.update_rollout(first, status=terminal)
        await store.update_rollout(first, status=queued)
        assert await drain(store) == [second, first]

    async def test_f05_a_terminal_status_takes_away_a_place_that_was_kept(self, store: LightningStore) -> None:
        first, second = await enqueue(store, 2)
        await store.update_rollout(first, status="running")
        await store.update_rollout(first, status="failed")
        await store.update_rollout(first, status="queuing")
        assert await drain(store) == [second, first]

    async def test_f05_cancelled_and_queued_again_goes_to_the_tail(self, store: LightningStore) -> None:
        first, second = await enqueue(store, 2)
        await store.cancel_rollouts([first])
        await store.update_rollout(first, status="queuing")
        assert await drain(store) == [second, first]

    async def test_f05_an_end_by_report_takes_away_a_place_that_was_kept(self, store: LightningStore) -> None:
        first = await store.start_rollout("first")
        await store.update_rollout(first.rollout_id, status="queuing")
        second = await store.enqueue_rollout("second")
        await store.update_rollout(first.rollout_id, status="running")
        await report(store, first, "failed")
        await store.update_rollout(first.rollout_id, status="queuing")
        assert await drain(store) == [second.rollout_id, first.rollout_id]

    async def test_f05_a_finished_rollout_can_be_put_back(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await report(store, started, "succeeded")
        await store.update_rollout(started.rollout_id, status="queuing")
        again = await claim(store)
        assert (again.rollout_id, again.status, again.attempt.sequence_id) == (started.rollout_id, "preparing", 2)

    # --- Fact 6 ------------------------------------------------------------------------------------------------------

    async def test_f06_start_attempt_takes_a_rollout_out_of_the_queue(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        made = await store.enqueue_rollout("task")
        clock.advance(5)
        started = await store.start_attempt(made.rollout_id, worker_id="w")
        attempt = Attempt(
            rollout_id=made.rollout_id,
            attempt_id=started.attempt.attempt_id,
            sequence_id=1,
            start_time=clock.now(),
            worker_id="w",
        )
        assert started == with_attempt(made, attempt, status="preparing")
        assert await look(store, made) == started
        assert await store.dequeue_rollout() is None

    async def test_f06_put_back_after_start_attempt_goes_to_the_tail(self, store: LightningStore) -> None:
        first, second = await enqueue(store, 2)
        await store.start_attempt(first)
        await store.update_rollout(first, status="queuing")
        assert await drain(store) == [second, first]

    @pytest.mark.parametrize("strict", [False, True])
    async def test_f06_start_attempt_on_a_finished_rollout(self, clock: FakeClock, strict: bool) -> None:
        async with self.opened(clock, strict=strict) as store:
            first = await store.start_rollout("task")
            await report(store, first, "succeeded")
            ended = await look(store, first)
            clock.advance(5)
            second = await store.start_attempt(first.rollout_id)
            assert (second.status, second.end_time) == ("preparing", ended.end_time)
            assert (second.attempt.status, second.attempt.sequence_id) == ("preparing", 2)
            assert await look(store, first) == second

    async def test_f06_start_attempt_ignores_max_attempts(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying(1))
        numbers = [(await store.start_attempt(first.rollout_id)).attempt.sequence_id for _ in range(3)]
        assert numbers == [2, 3, 4]

    async def test_f06_start_attempt_leaves_the_former_attempt_as_it_is(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        assert list(await store.query_attempts(first.rollout_id)) == [first.attempt, second.attempt]
