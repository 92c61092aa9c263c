"""Fact 31: wait_for_rollouts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_store.errors import RolloutNotFoundError
from lightning_store.model import AttemptedRollout, Rollout, RolloutStatus
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, claim, report, retrying, within_safety


async def enqueued(store: LightningStore, count: int) -> list[str]:
    return [(await store.enqueue_rollout(number)).rollout_id for number in range(count)]


class WaitingContract(ContractBase):
    """wait_for_rollouts. A wait that must last parks with a timeout of its own, which the clock tells of."""

    async def parked(
        self, store: LightningStore, clock: FakeClock, rollout_ids: list[str], timeout: float = 15
    ) -> asyncio.Task[list[Rollout]]:
        """A wait that is under way."""
        task = asyncio.create_task(store.wait_for_rollouts(rollout_ids=rollout_ids, timeout=timeout))
        await clock.until_waiting(clock.now() + timeout)
        return task

    async def test_f31_finished_rollouts_come_in_the_order_asked_repeats_as_asked(self, store: LightningStore) -> None:
        ids = await enqueued(store, 3)
        done = {id_: await store.update_rollout(id_, status="succeeded") for id_ in ids}
        asked = [ids[2], ids[0], ids[2], ids[1]]
        assert await store.wait_for_rollouts(rollout_ids=asked) == [done[id_] for id_ in asked]

    async def test_f31_no_ids(self, store: LightningStore) -> None:
        assert await store.wait_for_rollouts(rollout_ids=[]) == []
        assert await store.wait_for_rollouts(rollout_ids=[], timeout=5) == []

    async def test_f31_each_comes_with_its_latest_attempt(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        latest = await store.start_attempt(started.rollout_id)
        await report(store, latest, "succeeded")
        [unclaimed] = await enqueued(store, 1)
        await store.update_rollout(unclaimed, status="cancelled")
        waited = await store.wait_for_rollouts([started.rollout_id, unclaimed])
        assert [type(one) for one in waited] == [AttemptedRollout, Rollout]
        assert waited == [await store.get_rollout_by_id(started.rollout_id), await store.get_rollout_by_id(unclaimed)]

    @pytest.mark.parametrize("timeout", [0, 0.0, -1, -100.5])
    async def test_f31_no_time_looks_once(self, store: LightningStore, timeout: float) -> None:
        ids = await enqueued(store, 2)
        assert await store.wait_for_rollouts(rollout_ids=ids, timeout=timeout) == []
        done = await store.update_rollout(ids[1], status="failed")
        assert await store.wait_for_rollouts(rollout_ids=ids, timeout=timeout) == [done]

    async def test_f31_unknown_ids_are_left_out_at_once(self, store: LightningStore) -> None:
        assert await within_safety(store.wait_for_rollouts(rollout_ids=["ro-x"])) == []
        [known] = await enqueued(store, 1)
        done = await store.update_rollout(known, status="succeeded")
        assert await within_safety(store.wait_for_rollouts(rollout_ids=["ro-x", known, "ro-y"])) == [done]

    async def test_f31_strict_refuses_unknown_ids(self, strict_store: LightningStore) -> None:
        [known] = await enqueued(strict_store, 1)
        for timeout in (None, 0, 5):
            with pytest.raises(RolloutNotFoundError, match="ro-x"):
                await within_safety(strict_store.wait_for_rollouts(rollout_ids=[known, "ro-x"], timeout=timeout))

    @pytest.mark.parametrize("status", ["failed", "succeeded", "cancelled"])
    async def test_f31_a_terminal_status_wakes(
        self, store: LightningStore, clock: FakeClock, status: RolloutStatus
    ) -> None:
        [id_] = await enqueued(store, 1)
        waiter = await self.parked(store, clock, [id_])
        done = await store.update_rollout(id_, status=status)
        assert await within_safety(waiter) == [done]

    async def test_f31_the_end_of_an_attempt_wakes(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        waiter = await self.parked(store, clock, [started.rollout_id])
        await report(store, started, "succeeded")
        [waited] = await within_safety(waiter)
        assert (waited.rollout_id, waited.status, waited.end_time) == (started.rollout_id, "succeeded", clock.now())

    async def test_f31_without_a_timeout_it_waits_for_all(self, store: LightningStore) -> None:
        ids = await enqueued(store, 3)
        waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids))
        done = [await store.update_rollout(id_, status="succeeded") for id_ in reversed(ids)]
        assert await within_safety(waiter) == done[::-1]

    async def test_f31_on_timeout_those_that_are_finished_come_back(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        ids = await enqueued(store, 3)
        waiter = await self.parked(store, clock, [ids[2], ids[0], ids[1]])
        first = await store.update_rollout(ids[0], status="succeeded")
        second = await store.update_rollout(ids[2], status="failed")
        clock.advance(15)
        assert await within_safety(waiter) == [second, first]

    async def test_f31_waiting_for_a_retry_is_not_the_end(self, store: LightningStore, clock: FakeClock) -> None:
        first = await store.start_rollout("task", config=retrying())
        waiter = await self.parked(store, clock, [first.rollout_id])
        await report(store, first, "failed")
        assert await store.wait_for_rollouts(rollout_ids=[first.rollout_id], timeout=0) == []
        second = await claim(store)
        clock.advance(1)
        await report(store, second, "succeeded")
        [waited] = await within_safety(waiter)
        assert (waited.status, waited.end_time) == ("succeeded", clock.now())

    async def test_f31_finished_put_back_and_finished_again_wakes(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        [id_] = await enqueued(store, 1)
        await store.update_rollout(id_, status="failed")
        await store.update_rollout(id_, status="queuing")
        waiter = await self.parked(store, clock, [id_])
        done = await store.update_rollout(id_, status="succeeded")
        assert await within_safety(waiter) == [done]

    async def test_f31_put_back_during_the_wait_is_waited_for_again(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        ids = await enqueued(store, 2)
        waiter = await self.parked(store, clock, ids)
        await store.update_rollout(ids[0], status="failed")
        await store.update_rollout(ids[0], status="requeuing")
        second = await store.update_rollout(ids[1], status="succeeded")
        clock.advance(1)
        first = await store.update_rollout(ids[0], status="succeeded")
        assert await within_safety(waiter) == [first, second]

    async def test_f31_a_wait_can_be_cancelled(self, store: LightningStore, clock: FakeClock) -> None:
        [id_] = await enqueued(store, 1)
        waiter = await self.parked(store, clock, [id_])
        other = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[id_]))
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within_safety(waiter)
        done = await store.update_rollout(id_, status="succeeded")
        assert await within_safety(other) == [done]

    @pytest.mark.parametrize("timeout", [1e6, 1e12, float("inf"), 10**400])
    async def test_f31_any_length_of_timeout(self, store: LightningStore, timeout: float) -> None:
        [id_] = await enqueued(store, 1)
        waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[id_], timeout=timeout))
        await store.wait_for_rollouts(rollout_ids=[id_], timeout=0)
        done = await store.update_rollout(id_, status="succeeded")
        assert await within_safety(waiter) == [done]

    @pytest.mark.parametrize("timeout", ["1", b"1", [1], float("nan")])
    async def test_f31_what_is_no_time_is_refused(self, store: LightningStore, timeout: Any) -> None:
        [id_] = await enqueued(store, 1)
        kind = ValueError if isinstance(timeout, float) else TypeError
        with pytest.raises(kind, match="timeout is .*; give seconds"):
            await store.wait_for_rollouts(rollout_ids=[id_], timeout=timeout)
        with pytest.raises(kind, match="max_wait is .*; give seconds"):
            await store.dequeue_rollout(max_wait=timeout)

    async def test_f31_any_number_of_ids_and_waiters(self, store: LightningStore) -> None:
        ids = await enqueued(store, 100)
        waiters = [asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids[start:])) for start in range(20)]
        done = await asyncio.gather(*(store.update_rollout(id_, status="succeeded") for id_ in ids))
        for start, waiter in enumerate(waiters):
            assert await within_safety(waiter) == done[start:]
