"""Workers that end or are long gone, and the deletion of workers and resources."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import pytest

from lightning_store.errors import InUseError
from lightning_store.model import AttemptedRollout
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, claim, look_at_worker, report, some_llm, totals

TIMEOUT_SECONDS: Final = 100.0
RETENTION_SECONDS: Final = 10_000.0


async def working(store: LightningStore, worker_id: str = "w") -> AttemptedRollout:
    """A rollout that this worker has claimed."""
    await store.enqueue_rollout("task")
    return await claim(store, worker_id)


async def worker_ids(store: LightningStore) -> list[str]:
    return [worker.worker_id for worker in await store.query_workers()]


async def cancel(store: LightningStore, claimed: AttemptedRollout) -> None:
    await store.cancel_rollouts([claimed.rollout_id])


async def delete(store: LightningStore, claimed: AttemptedRollout) -> None:
    await store.delete_rollouts([claimed.rollout_id])


async def fail_by_hand(store: LightningStore, claimed: AttemptedRollout) -> None:
    await store.update_rollout(claimed.rollout_id, status="failed")


async def succeed(store: LightningStore, claimed: AttemptedRollout) -> None:
    await report(store, claimed, "succeeded")


End = Callable[[LightningStore, AttemptedRollout], Awaitable[None]]
each_end = pytest.mark.parametrize("end", [cancel, delete, fail_by_hand, succeed])


class WorkersEndContract(ContractBase):
    """``release_worker``, ``delete_workers`` and ``worker_retention_seconds``."""

    async def test_x_a_released_worker_holds_nothing(self, store: LightningStore) -> None:
        claimed = await working(store)
        released = await store.release_worker("w")
        assert released is not None
        assert (released.status, released.current_rollout_id, released.current_attempt_id) == ("unknown", None, None)
        assert await look_at_worker(store, "w") == released
        assert await store.get_rollout_by_id(claimed.rollout_id) == claimed

    async def test_x_a_released_worker_that_asks_for_work_is_back(self, store: LightningStore) -> None:
        await store.update_worker("w")
        await store.release_worker("w")
        await store.dequeue_rollout("w")
        assert (await look_at_worker(store, "w")).status == "idle"

    async def test_x_a_worker_that_nobody_mentioned_is_not_released(self, store: LightningStore) -> None:
        assert await store.release_worker("w") is None
        assert await worker_ids(store) == []

    async def test_x_deleted_workers_are_gone(self, store: LightningStore) -> None:
        empty = await totals(store)
        for worker_id in ("w1", "w2", "w3"):
            await store.update_worker(worker_id, {"load": 0.5})
        assert await store.delete_workers(["w3", "w-no", "w1", "w3"]) == ["w3", "w1"]
        assert await worker_ids(store) == ["w2"]
        assert await store.get_worker_by_id("w1") is None
        assert (await store.statistics())["total_workers"] == 1
        assert await store.delete_workers(["w2"]) == ["w2"]
        assert await totals(store) == empty

    async def test_x_a_deleted_worker_that_is_mentioned_again_is_new(self, store: LightningStore) -> None:
        await store.update_worker("w", {"load": 0.5})
        await store.delete_workers(["w"])
        worker = await store.update_worker("w")
        assert worker.heartbeat_stats is None
        assert await worker_ids(store) == ["w"]

    async def test_x_a_worker_at_work_is_not_deleted_and_no_other(self, store: LightningStore) -> None:
        await store.update_worker("idle")
        claimed = await working(store)
        with pytest.raises(InUseError, match=f"Worker w holds attempt {claimed.attempt.attempt_id}"):
            await store.delete_workers(["idle", "w"])
        assert sorted(await worker_ids(store)) == ["idle", "w"]

    @each_end
    async def test_x_a_worker_whose_work_is_over_may_be_deleted(self, store: LightningStore, end: End) -> None:
        await end(store, await working(store))
        assert await store.delete_workers(["w"]) == ["w"]

    @pytest.mark.parametrize("bad", ["w", None, [""], [5]])
    async def test_x_what_names_no_workers_is_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="worker_ids"):
            await store.delete_workers(cast(Any, bad))

    @each_end
    async def test_x_a_worker_whose_work_is_over_does_not_stay_busy(self, clock: FakeClock, end: End) -> None:
        async with self.opened(clock, worker_timeout_seconds=TIMEOUT_SECONDS) as store:
            await end(store, await working(store))
            clock.advance(TIMEOUT_SECONDS + 1)
            worker = await look_at_worker(store, "w")
            assert (worker.status == "busy", worker.current_rollout_id) == (False, None)

    async def test_x_a_worker_that_hears_of_the_end_is_not_released_meanwhile(self, clock: FakeClock) -> None:
        async with self.opened(clock, worker_timeout_seconds=TIMEOUT_SECONDS) as store:
            claimed = await working(store)
            await cancel(store, claimed)
            for _ in range(3):
                clock.advance(TIMEOUT_SECONDS - 1)
                await store.update_worker("w")
            assert (await look_at_worker(store, "w")).current_rollout_id == claimed.rollout_id

    async def test_x_workers_that_are_long_gone_are_deleted(self, clock: FakeClock) -> None:
        async with self.opened(clock, worker_retention_seconds=RETENTION_SECONDS) as store:
            await store.update_worker("gone")
            clock.advance(RETENTION_SECONDS)
            await store.update_worker("here")
            assert await worker_ids(store) == ["gone", "here"]
            clock.advance(61)
            assert (await store.statistics())["total_workers"] == 1
            assert await worker_ids(store) == ["here"]

    async def test_x_a_claim_is_enough_to_delete_them(self, clock: FakeClock) -> None:
        async with self.opened(clock, worker_retention_seconds=RETENTION_SECONDS) as store:
            for number in range(300):
                await store.update_worker(f"gone-{number}")
            clock.advance(RETENTION_SECONDS + 1)
            await store.enqueue_rollout("task")
            await store.dequeue_rollout("w")
            assert (await store.statistics())["total_workers"] == 1

    async def test_x_a_worker_at_work_is_kept_however_silent(self, clock: FakeClock) -> None:
        async with self.opened(clock, worker_retention_seconds=RETENTION_SECONDS) as store:
            claimed = await working(store)
            clock.advance(2 * RETENTION_SECONDS)
            assert await worker_ids(store) == ["w"]
            await cancel(store, claimed)
            clock.advance(61)
            assert await worker_ids(store) == []

    async def test_x_without_the_option_workers_are_kept(self, clock: FakeClock) -> None:
        async with self.opened(clock) as store:
            await store.update_worker("w")
            clock.advance(1_000_000)
            assert await worker_ids(store) == ["w"]


class ResourcesDeletionContract(ContractBase):
    """``delete_resources``."""

    async def test_x_deleted_resources_are_gone(self, store: LightningStore) -> None:
        first, second, latest = [(await store.add_resources(some_llm(name))).resources_id for name in "abc"]
        assert await store.delete_resources([second, "rs-no", first, second]) == [second, first]
        assert [one.resources_id for one in await store.query_resources()] == [latest]
        assert await store.get_resources_by_id(first) is None
        assert (await store.statistics())["total_resources"] == 1

    async def test_x_nothing_of_them_counts(self, store: LightningStore) -> None:
        gone = await store.add_resources(some_llm("gone"))
        await store.add_resources(some_llm())
        await store.delete_resources([gone.resources_id])
        before = await totals(store)
        gone = await store.update_resources("rs-x", some_llm("gone"))
        kept = await store.get_resources_by_id("rs-x")
        await store.add_resources(some_llm())
        assert kept == gone
        ids = [one.resources_id for one in await store.query_resources()]
        assert await store.delete_resources(ids[:-1]) == ids[:-1]
        assert await totals(store) == before

    async def test_x_the_latest_resources_are_not_deleted_and_no_others(self, store: LightningStore) -> None:
        first = await store.add_resources(some_llm())
        latest = await store.add_resources(some_llm())
        with pytest.raises(InUseError, match=f"Resources {latest.resources_id} are the latest"):
            await store.delete_resources([first.resources_id, latest.resources_id])
        assert len(await store.query_resources()) == 2
        assert await store.get_latest_resources() == latest

    async def test_x_deleted_resources_may_be_published_again(self, store: LightningStore) -> None:
        await store.update_resources("rs-x", some_llm("first"))
        await store.add_resources(some_llm())
        await store.delete_resources(["rs-x"])
        again = await store.update_resources("rs-x", some_llm("second"))
        assert again.version == 1
        assert await store.get_latest_resources() == again

    async def test_x_a_rollout_keeps_the_id_of_deleted_resources(self, store: LightningStore) -> None:
        gone = await store.add_resources(some_llm())
        rollout = await store.enqueue_rollout("task")
        await store.add_resources(some_llm())
        await store.delete_resources([gone.resources_id])
        assert await store.get_rollout_by_id(rollout.rollout_id) == rollout
        assert (await claim(store)).resources_id == gone.resources_id

    @pytest.mark.parametrize("bad", ["rs-x", None, [""], [5]])
    async def test_x_what_names_no_resources_is_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="resources_ids"):
            await store.delete_resources(cast(Any, bad))
