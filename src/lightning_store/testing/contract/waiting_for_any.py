"""``wait_for_rollouts(return_when="any")``, and waits for rollouts that are deleted meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_store.errors import RolloutNotFoundError
from lightning_store.model import Rollout, RolloutConfig
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, claim, report, retrying, within_safety
from lightning_store.testing.contract.waiting import enqueued


class WaitingForAnyContract(ContractBase):
    """One rollout ends the wait. A wait that must last parks with a timeout of its own, which the clock tells of."""

    async def any_wait(
        self, store: LightningStore, clock: FakeClock, rollout_ids: list[str], return_when: Any = "any"
    ) -> asyncio.Task[list[Rollout]]:
        """A wait that is under way, until 15 seconds from now."""
        wait = store.wait_for_rollouts(rollout_ids=rollout_ids, timeout=15, return_when=return_when)
        task = asyncio.create_task(wait)
        await clock.until_waiting(clock.now() + 15)
        return task

    async def test_x_any_the_first_end_wakes(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await enqueued(store, 3)
        waiter = await self.any_wait(store, clock, ids)
        done = await store.update_rollout(ids[1], status="failed")
        assert await within_safety(waiter) == [done]

    async def test_x_any_all_that_are_terminal_by_then_come_as_asked(self, store: LightningStore) -> None:
        ids = await enqueued(store, 4)
        first = await store.update_rollout(ids[0], status="succeeded")
        last = await store.update_rollout(ids[3], status="cancelled")
        asked = [ids[3], ids[1], ids[0], ids[3]]
        waited = await within_safety(store.wait_for_rollouts(rollout_ids=asked, return_when="any"))
        assert waited == [last, first, last]

    async def test_x_any_unknown_ids_are_left_out(self, store: LightningStore, clock: FakeClock) -> None:
        [known] = await enqueued(store, 1)
        waiter = await self.any_wait(store, clock, ["ro-x", known, "ro-y"])
        done = await store.update_rollout(known, status="succeeded")
        assert await within_safety(waiter) == [done]
        assert await within_safety(store.wait_for_rollouts(rollout_ids=["ro-x", "ro-y"], return_when="any")) == []

    async def test_x_any_strict_refuses_unknown_ids(self, strict_store: LightningStore) -> None:
        [known] = await enqueued(strict_store, 1)
        await strict_store.update_rollout(known, status="succeeded")
        with pytest.raises(RolloutNotFoundError, match="ro-x"):
            await within_safety(strict_store.wait_for_rollouts(rollout_ids=[known, "ro-x"], return_when="any"))

    @pytest.mark.parametrize("timeout", [None, 0, 5.0])
    async def test_x_any_of_nothing_is_nothing(self, store: LightningStore, timeout: float | None) -> None:
        wait = store.wait_for_rollouts(rollout_ids=[], timeout=timeout, return_when="any")
        assert await within_safety(wait) == []

    @pytest.mark.parametrize("timeout", [0, -1.0])
    async def test_x_any_no_time_looks_once(self, store: LightningStore, timeout: float) -> None:
        ids = await enqueued(store, 2)
        assert await store.wait_for_rollouts(rollout_ids=ids, timeout=timeout, return_when="any") == []
        done = await store.update_rollout(ids[1], status="failed")
        assert await store.wait_for_rollouts(rollout_ids=ids, timeout=timeout, return_when="any") == [done]

    async def test_x_any_when_the_time_is_up_there_is_nothing(self, store: LightningStore, clock: FakeClock) -> None:
        waiter = await self.any_wait(store, clock, await enqueued(store, 2))
        clock.advance(15)
        assert await within_safety(waiter) == []

    async def test_x_any_waiting_for_a_retry_is_not_the_end(self, store: LightningStore, clock: FakeClock) -> None:
        first = await store.start_rollout("task", config=retrying())
        [other] = await enqueued(store, 1)
        await store.dequeue_rollout()
        waiter = await self.any_wait(store, clock, [first.rollout_id, other])
        await report(store, first, "failed")
        second = await claim(store)
        assert second.rollout_id == first.rollout_id
        assert not waiter.done()
        await report(store, second, "succeeded")
        assert [one.rollout_id for one in await within_safety(waiter)] == [first.rollout_id]

    async def test_x_any_a_deadline_wakes(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(timeout_seconds=3))
        waiter = await self.any_wait(store, clock, [*await enqueued(store, 1), started.rollout_id])
        clock.advance(4)
        assert [one.status for one in await within_safety(waiter)] == ["failed"]

    async def test_x_any_many_waits_for_the_same(self, store: LightningStore) -> None:
        ids = await enqueued(store, 100)
        waits = [store.wait_for_rollouts(rollout_ids=ids[start:], return_when="any") for start in range(10)]
        tasks = [asyncio.create_task(wait) for wait in waits]
        done = await store.update_rollout(ids[50], status="succeeded")
        for task in tasks:
            assert await within_safety(task) == [done]

    @pytest.mark.parametrize("value", ["some", "", None, 1, ["any"]])
    async def test_x_any_or_all_and_nothing_else(self, store: LightningStore, value: Any) -> None:
        [known] = await enqueued(store, 1)
        for rollout_ids in ([known], []):
            with pytest.raises(ValueError, match="return_when"):
                await store.wait_for_rollouts(rollout_ids=rollout_ids, timeout=0, return_when=value)

    # --- What is deleted meanwhile -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("return_when", ["all", "any"])
    async def test_x_a_wait_for_what_is_deleted_ends(
        self, store: LightningStore, clock: FakeClock, return_when: str
    ) -> None:
        ids = await enqueued(store, 2)
        waiter = await self.any_wait(store, clock, ids, return_when)
        await store.delete_rollouts([ids[0]])
        assert not waiter.done()
        await store.delete_rollouts([ids[1]])
        assert await within_safety(waiter) == []

    @pytest.mark.parametrize("return_when", ["all", "any"])
    async def test_x_a_wait_goes_on_without_what_is_deleted(
        self, store: LightningStore, clock: FakeClock, return_when: str
    ) -> None:
        ids = await enqueued(store, 3)
        waiter = await self.any_wait(store, clock, ids[:2], return_when)
        await store.delete_rollouts([ids[0], ids[2]])
        assert not waiter.done()
        done = await store.update_rollout(ids[1], status="succeeded")
        assert await within_safety(waiter) == [done]

    async def test_x_what_ended_and_is_deleted_counts_no_more(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await enqueued(store, 2)
        waiter = await self.any_wait(store, clock, ids, "all")
        await store.update_rollout(ids[0], status="succeeded")
        await store.delete_rollouts([ids[0]])
        done = await store.update_rollout(ids[1], status="succeeded")
        assert await within_safety(waiter) == [done]

    async def test_x_strict_tells_of_the_deletion(self, strict_store: LightningStore, clock: FakeClock) -> None:
        [known] = await enqueued(strict_store, 1)
        waiter = await self.any_wait(strict_store, clock, [known], "all")
        await strict_store.delete_rollouts([known])
        with pytest.raises(RolloutNotFoundError, match=known):
            await within_safety(waiter)
