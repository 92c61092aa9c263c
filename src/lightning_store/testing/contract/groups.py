"""Groups of rollouts: ``watch_groups``, ``wait_for_groups``, ``cancel_group``. ``docs/training.md`` describes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Unpack, cast

import pytest

from lightning_store.model import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    Group,
    GroupTerms,
    Rollout,
    RolloutConfig,
    RolloutStatus,
)
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, report, within_safety

Outcome = Literal["succeeded", "failed", "cancelled", "running", "queuing"]


async def enqueue_group(
    store: LightningStore, group_id: str, count: int, size: int | None = None, *, run: str | None = None, **fields: Any
) -> list[str]:
    """The ids of so many members of a group."""
    metadata = None if run is None else {"lightning.run": run}
    members = [
        EnqueueRolloutRequest(input=[group_id, n], group_id=group_id, group_size=size, metadata=metadata, **fields)
        for n in range(count)
    ]
    return [one.rollout_id for one in await store.enqueue_many_rollouts(members)]


async def make_group(store: LightningStore, group_id: str, *outcomes: Outcome, **fields: Any) -> list[str]:
    """The ids of members that have come so far. They are claimed in their order, but for those that are queuing."""
    ids = await enqueue_group(store, group_id, len(outcomes), **fields)
    for rollout_id, outcome in zip(ids, outcomes, strict=True):
        if outcome == "queuing":
            continue
        claimed = await store.start_attempt(rollout_id)
        if outcome == "cancelled":
            await store.cancel_rollouts([rollout_id])
        else:
            await report(store, claimed, outcome)
    return ids


def summary(group: Group) -> tuple[str, str, int]:
    return group.group_id, group.status, len(group.succeeded)


@asynccontextmanager
async def following(
    store: LightningStore, group_ids: Sequence[str] | None = None, **terms: Unpack[GroupTerms]
) -> AsyncIterator[Any]:
    """A feed that is closed afterwards."""
    feed = cast("Any", store.watch_groups(group_ids, **terms))
    try:
        yield feed
    finally:
        await feed.aclose()


async def nothing_comes(feed: Any) -> bool:
    """Whether the feed has nothing to return now. It goes on."""
    waiting = asyncio.ensure_future(anext(feed))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    waiting.cancel()
    await asyncio.wait([waiting])
    return not done


async def statuses(store: LightningStore, ids: Sequence[str]) -> list[RolloutStatus]:
    return [cast(Rollout, await store.get_rollout_by_id(one)).status for one in ids]


class GroupsContract(ContractBase):
    """Groups."""

    async def test_x_group_members_know_their_group(self, store: LightningStore) -> None:
        [first, second] = await enqueue_group(store, "g", 2, 3)
        metadata = {"lightning.group_id": "g", "lightning.group_size": 3}
        third = await store.enqueue_rollout("by metadata", metadata=metadata)
        other = await store.enqueue_rollout("other", group_id="h")
        assert (third.group_id, third.group_size, other.group_id, other.group_size) == ("g", 3, "h", None)
        members = await store.query_rollouts(group_id_in=["g"])
        assert [one.rollout_id for one in members] == [first, second, third.rollout_id]
        assert {one.group_size for one in members} == {3}
        assert [one.rollout_id for one in await store.cancel_group("g")] == [first, second, third.rollout_id]
        assert await statuses(store, [other.rollout_id]) == ["queuing"]
        await store.delete_rollouts([first])
        assert len(await store.query_rollouts(group_id_in=["g", "none"])) == 2

    @pytest.mark.parametrize(
        ("outcomes", "size", "min_done", "found"),
        [
            (["succeeded", "succeeded"], None, None, "whole"),
            (["succeeded", "succeeded"], 3, None, None),
            (["succeeded", "succeeded"], 3, 2, None),
            (["succeeded", "running"], None, 1, None),
            (["succeeded", "failed"], None, None, "failed"),
            (["failed", "running"], None, None, "failed"),
            (["failed", "running", "queuing"], None, 2, None),
            (["succeeded", "cancelled", "succeeded"], None, 2, "partial"),
            (["succeeded", "cancelled", "failed"], 4, 3, "failed"),
            (["succeeded"], None, 5, "whole"),
        ],
    )
    async def test_x_group_is_returned_when_it_is_decided(
        self,
        store: LightningStore,
        outcomes: list[Outcome],
        size: int | None,
        min_done: int | None,
        found: str | None,
    ) -> None:
        ids = await make_group(store, "g", *outcomes, size=size)
        groups = await store.wait_for_groups(["g", "unknown"], timeout=0, min_done=min_done)
        assert [one.status for one in groups] == ([] if found is None else [found])
        for group in groups:
            assert (group.group_id, group.size, group.rollout_ids) == ("g", size or len(outcomes), ids)
            assert [one.status for one in group.rollouts] == outcomes
            assert all(isinstance(one, AttemptedRollout) for one in group.rollouts if one.status != "queuing")

    async def test_x_group_feed_returns_each_once_as_they_come(self, store: LightningStore) -> None:
        await make_group(store, "a", "succeeded", run="r")
        await make_group(store, "other run", "succeeded", run="s")
        await make_group(store, "b", "succeeded", "running", run="r")
        await store.enqueue_rollout("of no group", metadata={"lightning.run": "r"})
        async with following(store, run="r") as feed:
            assert summary(await within_safety(anext(feed))) == ("a", "whole", 1)
            assert await nothing_comes(feed)  # a wait that was cancelled loses nothing
            waiting = asyncio.ensure_future(anext(feed))
            await asyncio.sleep(0)
            [_, running] = await store.query_rollouts(group_id_in=["b"])
            assert isinstance(running, AttemptedRollout)
            await report(store, running, "succeeded")
            assert summary(await within_safety(waiting)) == ("b", "whole", 2)
            await report(store, running, "succeeded")
            await make_group(store, "c", "failed", run="r")
            assert summary(await within_safety(anext(feed))) == ("c", "failed", 0)
        async with following(store) as feed:
            found = [summary(await within_safety(anext(feed)))[0] for _ in range(4)]
            assert sorted(found) == ["a", "b", "c", "other run"]

    async def test_x_group_feed_of_some_ends_with_them(self, store: LightningStore) -> None:
        await make_group(store, "a", "succeeded")
        [gone] = await make_group(store, "gone", "running")
        async with following(store, ["a", "unknown", "gone"]) as feed:
            assert (await within_safety(anext(feed))).group_id == "a"
            waiting = asyncio.ensure_future(anext(feed, None))
            await asyncio.sleep(0.01)
            await store.delete_rollouts([gone])
            assert await within_safety(waiting) is None

    @pytest.mark.parametrize("on_partial", ["keep", "cancel"])
    async def test_x_group_is_partial_at_its_deadline(
        self, store: LightningStore, clock: FakeClock, on_partial: Literal["keep", "cancel"]
    ) -> None:
        ids = await enqueue_group(store, "g", 3)
        clock.advance(100)  # the deadline is counted from the first claim
        first = await store.start_attempt(ids[0])
        clock.advance(5)
        await store.start_attempt(ids[1])
        await report(store, first, "succeeded")
        async with following(store, min_done=1, deadline=10, on_partial=on_partial) as feed:
            assert await nothing_comes(feed)
            waiting = asyncio.ensure_future(anext(feed))
            clock.advance(6)
            while not waiting.done():  # a timer that was being set when the time leapt counts from after the leap
                await asyncio.sleep(0.001)
                clock.advance(0.002)
            group = await within_safety(waiting)
        assert summary(group) == ("g", "partial", 1)
        rest = ["preparing", "queuing"] if on_partial == "keep" else ["cancelled", "cancelled"]
        assert [one.status for one in group.rollouts] == ["succeeded", *rest]
        assert await statuses(store, ids) == ["succeeded", *rest]

    async def test_x_group_past_its_deadline_comes_with_its_last_success(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        ids = await enqueue_group(store, "g", 3)
        claimed = [await store.start_attempt(one) for one in ids]
        await report(store, claimed[0], "succeeded")
        clock.advance(60)
        async with following(store, min_done=2, deadline=10, on_partial="cancel") as feed:
            assert await nothing_comes(feed)
            await report(store, claimed[1], "succeeded")
            assert summary(await within_safety(anext(feed))) == ("g", "partial", 2)
        assert await statuses(store, ids) == ["succeeded", "succeeded", "cancelled"]

    async def test_x_group_that_fails_has_its_rest_cancelled(self, store: LightningStore) -> None:
        ids = await make_group(store, "g", "failed", "running", "queuing", config=RolloutConfig(max_attempts=1))
        async with following(store, on_partial="cancel") as feed:
            assert summary(await within_safety(anext(feed))) == ("g", "failed", 0)
        assert await statuses(store, ids) == ["failed", "cancelled", "cancelled"]

    async def test_x_group_waits_for_retries(self, store: LightningStore) -> None:
        config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
        [rollout_id] = await make_group(store, "g", "failed", config=config)
        assert await store.wait_for_groups(["g"], timeout=0) == []
        await report(store, await store.start_attempt(rollout_id), "succeeded")
        [group] = await store.wait_for_groups(["g"])
        assert summary(group) == ("g", "whole", 1)

    async def test_x_group_wait_ends_after_its_timeout(self, store: LightningStore, clock: FakeClock) -> None:
        await make_group(store, "done", "succeeded")
        await make_group(store, "open", "running")
        waiting = asyncio.ensure_future(store.wait_for_groups(["open", "done"], timeout=10))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        while not waiting.done():  # wherever its timer is set by now
            clock.advance(11)
            await asyncio.sleep(0.01)
        assert [summary(group) for group in await waiting] == [("done", "whole", 1)]

    @pytest.mark.parametrize(
        "bad",
        [{"min_done": 0}, {"min_done": "1"}, {"deadline": "soon"}, {"on_partial": "drop"}, {"run": 5}],
        ids=str,
    )
    async def test_x_group_terms_that_are_not_legal_are_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
            await anext(store.watch_groups(**bad))

    @pytest.mark.parametrize(
        "bad",
        [
            *({"group_id": ""}, {"group_id": 5}, {"group_id": "g", "group_size": 0}, {"group_size": 2}),
            *({"metadata": {"lightning.group_id": one}} for one in ("", 5, "g" * 10_000)),
        ],
        ids=lambda bad: str(bad)[:40],
    )
    async def test_x_group_that_is_not_legal_is_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="group_"):
            await store.enqueue_rollout("task", **bad)
