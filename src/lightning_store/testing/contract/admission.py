"""``set_admission``: how far runners may go ahead."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_store.model import Admission, AdmissionState, AttemptedRollout, RolloutConfig
from lightning_store.store import LightningStore
from lightning_store.testing.contract.base import ContractBase, claim, report, within_safety
from lightning_store.testing.contract.groups import enqueue_group

RUN = "r"


async def queue_groups(store: LightningStore, *group_ids: str, count: int = 2, **fields: Any) -> dict[str, list[str]]:
    return {one: await enqueue_group(store, one, count, run=RUN, **fields) for one in group_ids}


async def claim_all(store: LightningStore) -> list[str]:
    """The groups of what there is to claim now."""
    claimed = await store.dequeue_many_rollouts(limit=100)
    return [one.group_id or "" for one in claimed]


class AdmissionContract(ContractBase):
    """Admission."""

    async def test_x_admission_bounds_groups_that_are_begun_and_not_consumed(self, store: LightningStore) -> None:
        assert await store.set_admission(RUN, max_open_groups=2) == Admission(RUN, 2, False)
        groups = await queue_groups(store, "a", "b", "c", "d")
        await store.enqueue_rollout("of no group", metadata={"lightning.run": RUN})
        await enqueue_group(store, "other run", 1, run="s")
        assert sorted(await claim_all(store)) == ["", "a", "a", "b", "b", "other run"]
        for rollout_id in groups["a"]:
            await store.update_attempt(rollout_id, "latest", status="succeeded")
        assert await claim_all(store) == []  # done and not consumed
        await store.mark_consumed("trainer", groups["a"][:1])
        assert await claim_all(store) == ["c", "c"]
        assert await claim_all(store) == []
        await store.mark_consumed("trainer", groups["b"])
        assert await claim_all(store) == ["d", "d"]

    async def test_x_admission_lets_groups_go_on_that_have_begun(self, store: LightningStore) -> None:
        await store.set_admission(RUN, max_open_groups=1)
        config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
        await queue_groups(store, "a", "b", config=config)
        first = await claim(store)
        await report(store, first, "failed")
        await store.set_admission(RUN, paused=True)
        assert (await claim(store)).group_id == "a"
        [late] = await enqueue_group(store, "a", 1, run=RUN)
        assert (await claim(store)).rollout_id == first.rollout_id
        assert (await claim(store)).rollout_id == late
        assert await claim_all(store) == []

    async def test_x_admission_can_be_paused_and_lifted(self, store: LightningStore) -> None:
        await queue_groups(store, "a", "b", "c")
        await claim(store)
        assert await store.set_admission(RUN, paused=True) == Admission(RUN, None, True)
        assert await claim_all(store) == ["a"]
        await store.set_admission(RUN, max_open_groups=2)
        assert await claim_all(store) == ["b", "b"]
        assert await store.set_admission(RUN) == Admission(RUN, None, False)
        assert await claim_all(store) == ["c", "c"]
        await queue_groups(store, "d")
        assert await claim_all(store) == ["d", "d"]

    async def test_x_admission_is_read_back(self, store: LightningStore) -> None:
        unknown = AdmissionState(Admission(RUN), 0, 0, [])
        assert await store.get_admission(RUN) == unknown
        assert await store.query_admissions() == []
        await store.set_admission(RUN, max_open_groups=2)
        await store.set_admission("a run", paused=True)
        groups = await queue_groups(store, "b", "a", "c", "d")
        await enqueue_group(store, "other run", 1, run="s")
        await claim_all(store)
        bounds = Admission(RUN, 2)
        assert await store.get_admission(RUN) == AdmissionState(bounds, 2, 2, ["a", "b"])
        await store.mark_consumed("trainer", groups["a"][:1])
        assert await store.get_admission(RUN) == AdmissionState(bounds, 1, 2, ["b"])
        await store.cancel_group("d")
        assert await store.get_admission(RUN) == AdmissionState(bounds, 1, 1, ["b"])
        assert await store.query_admissions() == [Admission("a run", None, True), bounds]
        await store.set_admission("a run")
        assert await store.query_admissions() == [bounds]
        with pytest.raises(ValueError, match="run"):
            await store.get_admission("")

    async def test_x_admission_wakes_a_claim_that_waits(self, store: LightningStore) -> None:
        await store.set_admission(RUN, max_open_groups=1)
        groups = await queue_groups(store, "a", "b", count=1)
        await claim(store)
        waiting = asyncio.ensure_future(store.dequeue_rollout(max_wait=1000))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await store.mark_consumed("trainer", groups["a"])
        claimed = await within_safety(waiting)
        assert claimed is not None
        assert claimed.group_id == "b"

    async def test_x_admission_closes_again_when_marks_are_taken_back(self, store: LightningStore) -> None:
        await store.set_admission(RUN, max_open_groups=1)
        groups = await queue_groups(store, "a", "b", "c", count=1)
        await claim(store)
        await store.mark_consumed("trainer", groups["a"])
        await store.rewind_consumer("trainer")
        assert await claim_all(store) == []
        await store.mark_consumed("trainer", groups["a"])
        assert await claim_all(store) == ["b"]

    @pytest.mark.parametrize("how", ["cancel", "delete", "fail"])
    async def test_x_admission_has_room_for_what_cannot_succeed(self, store: LightningStore, how: str) -> None:
        await store.set_admission(RUN, max_open_groups=1)
        groups = await queue_groups(store, "a", "b")
        assert await claim_all(store) == ["a", "a"]
        for rollout_id in groups["a"]:
            assert await claim_all(store) == []
            if how == "cancel":
                await store.cancel_rollouts([rollout_id])
            elif how == "delete":
                await store.delete_rollouts([rollout_id])
            else:
                await store.update_attempt(rollout_id, "latest", status="failed")
        assert await claim_all(store) == ["b", "b"]

    async def test_x_admission_goes_by_priority(self, store: LightningStore) -> None:
        await store.set_admission(RUN, max_open_groups=1)
        await queue_groups(store, "a")
        await queue_groups(store, "urgent", priority=1)
        assert await claim_all(store) == ["urgent", "urgent"]

    async def test_x_admission_counts_what_is_started_by_hand(self, store: LightningStore) -> None:
        await store.set_admission(RUN, max_open_groups=1)
        groups = await queue_groups(store, "a", "b")
        started = await store.start_attempt(groups["b"][0])
        assert isinstance(started, AttemptedRollout)
        assert await claim_all(store) == ["b"]
        requeued = await store.update_rollout(groups["b"][0], status="cancelled")
        assert requeued.status == "cancelled"
        await store.cancel_group("b")
        assert await claim_all(store) == ["a", "a"]
        await store.requeue_rollouts(groups["b"])
        assert sorted(await claim_all(store)) == ["b", "b"]

    @pytest.mark.parametrize(
        "bad", [{"max_open_groups": 0}, {"max_open_groups": "2"}, {"paused": 1}, {"run": ""}], ids=str
    )
    async def test_x_admission_that_is_not_legal_is_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
            await store.set_admission(**{"run": RUN, **bad})
