"""What consumers have consumed: ``mark_consumed``, ``rewind_consumer``, and feeds for a consumer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_store.errors import CheckpointUnknownError
from lightning_store.model import EnqueueRolloutRequest
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, within_safety
from lightning_store.testing.contract.groups import following, make_group


async def make_ended(store: LightningStore, *inputs: Any) -> list[str]:
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=one) for one in inputs])
    return [(await store.update_rollout(one.rollout_id, status="succeeded")).rollout_id for one in made]


async def left_for(store: LightningStore, consumer: str, rollout_ids: list[str]) -> list[str]:
    """Those of these rollouts that a feed returns to a consumer."""
    return [one.rollout.rollout_id async for one in store.watch_rollouts(rollout_ids, consumer=consumer)]


async def left_groups_for(store: LightningStore, consumer: str, *group_ids: str) -> list[str]:
    async with following(store, list(group_ids), consumer=consumer) as feed:
        return [group.group_id async for group in feed]


class ConsumingContract(ContractBase):
    """Consumed marks."""

    async def test_x_consumed_is_left_out_of_feeds_of_that_consumer(self, store: LightningStore) -> None:
        ids = await make_ended(store, *range(4))
        assert await store.mark_consumed("a", [ids[1], ids[0], "ro-unknown", ids[1]]) == [ids[1], ids[0]]
        assert await store.mark_consumed("a", ids[:3]) == [ids[2]]
        assert await left_for(store, "a", ids) == ids[3:]
        assert await left_for(store, "b", ids) == ids
        feed: Any = store.watch_rollouts(consumer="a")
        assert (await within_safety(anext(feed))).rollout.rollout_id == ids[3]
        await feed.aclose()
        deleted = await store.delete_rollouts(ids[:1])
        assert await store.mark_consumed("a", [*deleted, ids[3]]) == ids[3:]

    async def test_x_consumed_goes_back_with_the_checkpoint(self, store: LightningStore) -> None:
        ids = await make_ended(store, *range(5))
        await store.mark_consumed("a", ids[:1])
        await store.mark_consumed("a", ids[1:2], checkpoint="one")
        await store.mark_consumed("b", ids)
        await store.mark_consumed("a", ids[2:3])
        assert await store.mark_consumed("a", [], checkpoint="two") == []
        await store.mark_consumed("a", ids[4:2:-1])
        assert await store.rewind_consumer("a", checkpoint="two") == ids[3:]
        assert await store.rewind_consumer("a", checkpoint="two") == []
        assert await left_for(store, "a", ids) == ids[3:]
        assert await store.rewind_consumer("a", checkpoint="one") == ids[2:3]
        with pytest.raises(CheckpointUnknownError, match="two"):
            await store.rewind_consumer("a", checkpoint="two")
        await store.mark_consumed("a", ids[2:3], checkpoint="two")
        await store.mark_consumed("a", ids[3:4])
        assert await store.rewind_consumer("a", checkpoint="two") == ids[3:4]
        assert await store.rewind_consumer("a") == ids[:3]
        assert await left_for(store, "a", ids) == ids
        assert await left_for(store, "b", ids) == []
        with pytest.raises(CheckpointUnknownError):
            await store.rewind_consumer("a", checkpoint="one")

    async def test_x_consumed_name_of_a_checkpoint_may_be_used_again(self, store: LightningStore) -> None:
        ids = await make_ended(store, *range(3))
        for one in ids:
            await store.mark_consumed("a", [one], checkpoint="latest")
        assert await store.rewind_consumer("a", checkpoint="latest") == []
        assert await left_for(store, "a", ids) == []

    async def test_x_consumed_member_stands_for_its_group(self, store: LightningStore) -> None:
        first = await make_group(store, "a", "succeeded", "failed", "running")
        second = await make_group(store, "b", "succeeded")
        assert await left_groups_for(store, "c", "a", "b") == ["a", "b"]
        assert await store.mark_consumed("c", [first[0], *second]) == [first[0], *second, *first[1:]]
        assert await left_groups_for(store, "c", "a", "b") == []
        assert await left_groups_for(store, "d", "a", "b") == ["a", "b"]
        await store.rewind_consumer("c")
        assert await left_groups_for(store, "c", "a", "b") == ["a", "b"]

    async def test_x_consumed_marks_of_concurrent_calls_are_each_made_once(self, store: LightningStore) -> None:
        ids = await make_ended(store, *range(10))
        marked = await asyncio.gather(*(store.mark_consumed("a", ids) for _ in range(5)))
        assert sorted(one for some in marked for one in some) == sorted(ids)

    @pytest.mark.parametrize("checkpoint", [None, "c"])
    async def test_x_consumed_rollouts_are_not_retained(self, clock: FakeClock, checkpoint: str | None) -> None:
        async with self.opened(clock, retain_finished_seconds=60.0, retain_for=["a", "b"]) as store:
            ids = await make_ended(store, *range(4))
            clock.advance(100)
            assert len(await store.query_rollouts()) == 4
            await store.mark_consumed("a", ids[:3], checkpoint=checkpoint)
            await store.mark_consumed("b", [ids[1], ids[3]])
            await store.mark_consumed("b", [ids[2]])
            left = [one.rollout_id for one in await store.query_rollouts()]
            assert left == [ids[0], ids[3]]
            await store.mark_consumed("a", [ids[3]])
            left = [one.rollout_id for one in await store.query_rollouts()]
            assert left == ([ids[0]] if checkpoint is None else [ids[0], ids[3]])  # it may be rewound to

    async def test_x_consumed_rollouts_are_deleted_beyond_a_number(self, clock: FakeClock) -> None:
        async with self.opened(clock, retain_finished_count=2, retain_for=["a"]) as store:
            ids = await make_ended(store, *range(5))
            await store.mark_consumed("a", ids[2:])
            assert [one.rollout_id for one in await store.query_rollouts()] == ids[:2]

    @pytest.mark.parametrize("bad", ["", 5, None])
    async def test_x_consumed_names_that_are_not_legal_are_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="consumer"):
            await store.mark_consumed(bad, [])
        with pytest.raises((ValueError, TypeError), match="consumer"):
            await store.rewind_consumer(bad)
        if bad is not None:
            with pytest.raises((ValueError, TypeError), match="checkpoint"):
                await store.mark_consumed("a", [], checkpoint=bad)
