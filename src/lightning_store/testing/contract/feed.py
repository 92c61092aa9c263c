"""``watch_rollouts``: the feed of completions, and the cursors with which it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, cast

import pytest

from lightning_store.engine.completion_feed import FEED_BATCH
from lightning_store.errors import CursorUnknownError, RolloutNotFoundError
from lightning_store.model import CompletedRollout, EnqueueRolloutRequest, RolloutConfig
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, claim, look, report, retrying, within_safety
from lightning_store.testing.contract.waiting import enqueued

MANY: Final = 2 * FEED_BATCH + 10
"""More completions than a feed reads at a stretch."""


async def ended(store: LightningStore, count: int) -> list[str]:
    """So many rollouts that ended in the order of the ids."""
    ids = await enqueued(store, count)
    for id_ in ids:
        await store.update_rollout(id_, status="succeeded")
    return ids


async def many_ended(store: LightningStore, count: int) -> list[str]:
    """The same, in as few calls as it takes."""
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * count)
    return [one.rollout_id for one in await store.cancel_rollouts([one.rollout_id for one in made])]


def names(completions: Iterable[CompletedRollout]) -> list[str]:
    return [completed.rollout.rollout_id for completed in completions]


class Follower:
    """Follows a feed, and keeps what it was told."""

    def __init__(self, feed: AsyncIterator[CompletedRollout]) -> None:
        self._feed = cast("Any", feed)
        self.told: list[CompletedRollout] = []

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._feed.aclose()

    async def begun(self) -> Any:
        """Where the feed stands, once it has been read."""
        return await self._feed.begin()

    async def take(self, count: int) -> list[str]:
        """The rollouts of the next ``count`` completions."""
        taken = [await within_safety(anext(self._feed)) for _ in range(count)]
        self.told += taken
        return names(taken)

    async def rest(self) -> list[str]:
        """The rollouts of all completions up to the feed's end."""
        rest = await within_safety(collected(self._feed))
        self.told += rest
        return names(rest)


async def collected(feed: AsyncIterator[CompletedRollout]) -> list[CompletedRollout]:
    """All completions of a feed that ends."""
    return [completed async for completed in feed]


class FeedContract(ContractBase):
    """The feed. That something is not told shows by what is told next."""

    def follow(self, store: LightningStore, rollout_ids: Any = None, after: Any = None) -> Follower:
        return Follower(store.watch_rollouts(rollout_ids, after=after))

    # --- All rollouts ------------------------------------------------------------------------------------------------

    async def test_x_feed_what_has_ended_comes_before_what_ends(self, store: LightningStore) -> None:
        ids = await enqueued(store, 5)
        for index in (3, 0, 4):
            await store.update_rollout(ids[index], status="succeeded")
        async with self.follow(store) as follower:
            assert await follower.take(3) == [ids[3], ids[0], ids[4]]
            waiting = asyncio.create_task(follower.take(2))
            await store.update_rollout(ids[2], status="failed")
            await store.update_rollout(ids[1], status="cancelled")
            assert await within_safety(waiting) == [ids[2], ids[1]]

    async def test_x_feed_a_rollout_comes_as_it_is(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await report(store, started, "succeeded")
        [queued] = await ended(store, 1)
        async with self.follow(store) as follower:
            await follower.take(2)
            assert follower.told[0].rollout == await look(store, started)
            assert follower.told[1].rollout == await store.get_rollout_by_id(queued)
            assert [type(one.cursor) for one in follower.told] == [str, str]

    @pytest.mark.parametrize("count", [FEED_BATCH - 1, FEED_BATCH, MANY])
    async def test_x_feed_any_number_may_have_ended_before(self, store: LightningStore, count: int) -> None:
        ids = await many_ended(store, count)
        async with self.follow(store) as follower:
            assert await follower.take(count) == ids
            waiting = asyncio.create_task(follower.take(1))
            last = await many_ended(store, 1)
            assert await within_safety(waiting) == last

    async def test_x_feed_many_that_end_at_once(self, store: LightningStore) -> None:
        async with self.follow(store) as follower:
            waiting = asyncio.create_task(follower.take(1 + MANY))
            ids = await ended(store, 1) + await many_ended(store, MANY)
            assert await within_safety(waiting) == ids

    async def test_x_feed_what_is_put_back_and_ends_again_is_told_again(self, store: LightningStore) -> None:
        [one] = await ended(store, 1)
        async with self.follow(store) as follower:
            assert await follower.take(1) == [one]
            await store.update_rollout(one, status="queuing")
            [other] = await ended(store, 1)
            await store.update_rollout(one, status="succeeded")
            assert await follower.take(2) == [other, one]

    async def test_x_feed_what_is_put_back_is_not_told_before_it_ends_again(self, store: LightningStore) -> None:
        [one, other] = await ended(store, 2)
        await store.update_rollout(one, status="requeuing")
        async with self.follow(store) as follower:
            assert await follower.take(1) == [other]
            waiting = asyncio.create_task(follower.take(1))
            await store.update_rollout(one, status="failed")
            assert await within_safety(waiting) == [one]

    async def test_x_feed_another_outcome_is_told_again(self, store: LightningStore) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(timeout_seconds=10))
        await report(store, started, "failed")
        async with self.follow(store) as follower:
            await follower.take(1)
            await report(store, started, "succeeded")
            await follower.take(1)
            assert [one.rollout.status for one in follower.told] == ["failed", "succeeded"]

    async def test_x_feed_the_same_report_again_is_not_told(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await report(store, started, "succeeded")
        async with self.follow(store) as follower:
            assert await follower.take(1) == [started.rollout_id]
            waiting = asyncio.create_task(follower.take(1))
            await report(store, started, "succeeded")
            await store.update_rollout(started.rollout_id, status="succeeded")
            await store.update_rollout(started.rollout_id, metadata={"seen": True})
            other = await ended(store, 1)
            assert await within_safety(waiting) == other

    async def test_x_feed_a_retry_is_not_the_end(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying())
        async with self.follow(store) as follower:
            waiting = asyncio.create_task(follower.take(2))
            await report(store, first, "failed")
            [other] = await ended(store, 1)
            await report(store, await claim(store), "succeeded")
            assert await within_safety(waiting) == [other, first.rollout_id]

    async def test_x_feed_a_deadline_is_told_without_any_call(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(timeout_seconds=10))
        before = await ended(store, 1)
        async with self.follow(store) as follower:
            assert await follower.take(1) == before
            waiting = asyncio.create_task(follower.take(1))
            clock.advance(11)
            assert await within_safety(waiting) == [started.rollout_id]

    async def test_x_feed_what_is_deleted_before_it_could_be_told_is_not(self, store: LightningStore) -> None:
        ids = await ended(store, 3)
        await store.delete_rollouts([ids[1]])
        async with self.follow(store) as follower:
            assert await follower.take(2) == [ids[0], ids[2]]
            waiting = asyncio.create_task(follower.take(1))
            await store.delete_rollouts(ids)
            other = await ended(store, 1)
            assert await within_safety(waiting) == other

    # --- Some rollouts -----------------------------------------------------------------------------------------------

    async def test_x_feed_of_some_ends_when_each_was_told(self, store: LightningStore) -> None:
        ids = await enqueued(store, 5)
        await store.update_rollout(ids[2], status="succeeded")
        await store.update_rollout(ids[4], status="succeeded")
        async with self.follow(store, [ids[0], ids[2], ids[1], ids[2]]) as follower:
            assert await follower.take(1) == [ids[2]]
            rest = asyncio.create_task(follower.rest())
            for index in (1, 3, 0):
                await store.update_rollout(ids[index], status="failed")
            assert await within_safety(rest) == [ids[1], ids[0]]

    async def test_x_feed_of_some_comes_in_the_order_of_their_end(self, store: LightningStore) -> None:
        ids = await ended(store, 4)
        async with self.follow(store, [ids[2], ids[0], ids[3]]) as follower:
            assert await follower.rest() == [ids[0], ids[2], ids[3]]

    @pytest.mark.parametrize("rollout_ids", [[], ["ro-x"], ("ro-x", "ro-y", "ro-x")])
    async def test_x_feed_of_none_that_is_known_ends_at_once(self, store: LightningStore, rollout_ids: Any) -> None:
        await ended(store, 1)
        async with self.follow(store, rollout_ids) as follower:
            assert await follower.rest() == []

    async def test_x_feed_of_some_passes_over_the_unknown(self, store: LightningStore) -> None:
        [known] = await ended(store, 1)
        async with self.follow(store, ["ro-x", known, "ro-y"]) as follower:
            assert await follower.rest() == [known]

    async def test_x_feed_strict_refuses_unknown_ids(self, strict_store: LightningStore) -> None:
        [known] = await ended(strict_store, 1)
        async with self.follow(strict_store, [known, "ro-x"]) as follower:
            with pytest.raises(RolloutNotFoundError, match="ro-x"):
                await follower.rest()

    @pytest.mark.parametrize("strict", [False, True])
    async def test_x_feed_of_some_goes_on_without_what_is_deleted(self, clock: FakeClock, strict: bool) -> None:
        async with self.opened(clock, strict=strict) as store:
            ids = await enqueued(store, 4)
            await store.update_rollout(ids[0], status="succeeded")
            async with self.follow(store, ids) as follower:
                assert await follower.take(1) == [ids[0]]
                rest = asyncio.create_task(follower.rest())
                assert await store.delete_rollouts([ids[0], ids[1]]) == ids[:2]
                await store.update_rollout(ids[2], status="succeeded")
                await store.delete_rollouts([ids[3]])
                assert await within_safety(rest) == [ids[2]]

    async def test_x_feed_of_some_tells_each_once(self, store: LightningStore) -> None:
        ids = await enqueued(store, 2)
        await store.update_rollout(ids[0], status="failed")
        async with self.follow(store, ids) as follower:
            assert await follower.take(1) == [ids[0]]
            await store.update_rollout(ids[0], status="queuing")
            await store.update_rollout(ids[0], status="succeeded")
            await store.update_rollout(ids[1], status="succeeded")
            assert await follower.rest() == [ids[1]]

    async def test_x_feed_of_very_many(self, store: LightningStore) -> None:
        others = await many_ended(store, MANY)
        made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * MANY)
        wanted = [one.rollout_id for one in made]
        async with self.follow(store, [*wanted, *others[::2]]) as follower:
            assert await follower.take(len(others[::2])) == others[::2]
            rest = asyncio.create_task(follower.rest())
            await store.cancel_rollouts(wanted)
            assert await within_safety(rest) == wanted

    # --- Cursors -----------------------------------------------------------------------------------------------------

    async def test_x_feed_goes_on_after_each_cursor(self, store: LightningStore) -> None:
        ids = await ended(store, 6)
        await store.update_rollout(ids[2], status="failed")
        order = [ids[0], ids[1], *ids[3:], ids[2]]
        async with self.follow(store) as follower:
            assert await follower.take(6) == order
        order += await ended(store, 1)
        for told, completed in enumerate(follower.told, start=1):
            async with self.follow(store, after=completed.cursor) as resumed:
                assert await resumed.take(7 - told) == order[told:]

    async def test_x_feed_of_some_goes_on_after_each_cursor(self, store: LightningStore) -> None:
        ids = await enqueued(store, 7)
        wanted = [ids[5], ids[1], ids[3], ids[0], ids[4]]
        for index in (3, 2, 0, 5):
            await store.update_rollout(ids[index], status="succeeded")
        async with self.follow(store, wanted) as follower:
            assert await follower.take(3) == [ids[3], ids[0], ids[5]]
        for index in (6, 1, 4):
            await store.update_rollout(ids[index], status="succeeded")
        order = [ids[3], ids[0], ids[5], ids[1], ids[4]]
        for told, completed in enumerate(follower.told, start=1):
            async with self.follow(store, wanted, after=completed.cursor) as resumed:
                assert await resumed.rest() == order[told:]

    async def test_x_feed_a_cursor_outlives_its_rollout(self, store: LightningStore) -> None:
        ids = await ended(store, 3)
        async with self.follow(store) as follower:
            await follower.take(2)
        await store.delete_rollouts(ids[:2])
        async with self.follow(store, after=follower.told[1].cursor) as resumed:
            assert await resumed.take(1) == [ids[2]]

    async def test_x_feed_an_empty_cursor_is_none(self, store: LightningStore) -> None:
        ids = await ended(store, 2)
        async with self.follow(store, after="") as follower:
            assert await follower.take(2) == ids

    async def test_x_feed_strict_goes_on_after_a_deletion(self, strict_store: LightningStore) -> None:
        ids = await ended(strict_store, 3)
        async with self.follow(strict_store, ids) as follower:
            assert await follower.take(1) == [ids[0]]
        await strict_store.delete_rollouts(ids[:2])
        async with self.follow(strict_store, ids, after=follower.told[0].cursor) as resumed:
            assert await resumed.rest() == [ids[2]]

    async def test_x_feed_another_stores_cursor_is_refused(self, store: LightningStore, clock: FakeClock) -> None:
        await ended(store, 1)
        async with self.opened(clock) as other:
            await ended(other, 1)
            async with self.follow(other) as follower:
                await follower.take(1)
        for rollout_ids in (None, [], ["ro-x"]):
            async with self.follow(store, rollout_ids, after=follower.told[0].cursor) as resumed:
                with pytest.raises(CursorUnknownError, match="after"):
                    await resumed.take(1)

    async def test_x_feed_what_is_no_cursor_is_refused(self, store: LightningStore) -> None:
        await ended(store, 1)
        async with self.follow(store) as follower:
            await follower.take(1)
        cursor = follower.told[0].cursor
        for wrong in ("x", "-", "0", "1", f"{cursor}x", f"x{cursor}", f"{cursor}-", f"{cursor} ", cursor + "9" * 5000):
            async with self.follow(store, after=wrong) as resumed:
                with pytest.raises(CursorUnknownError, match="after"):
                    await resumed.take(1)

    # --- Waits that are given up, and the present moment -------------------------------------------------------------

    async def test_x_feed_goes_on_after_a_wait_that_was_given_up(self, store: LightningStore) -> None:
        feed = store.watch_rollouts()
        try:
            told = await ended(store, 2)
            assert [(await within_safety(anext(feed))).rollout.rollout_id for _ in told] == told
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await anext(feed)
                [missed] = await ended(store, 1)
                assert (await within_safety(anext(feed))).rollout.rollout_id == missed
        finally:
            await cast("Any", feed).aclose()

    async def test_x_feed_of_some_goes_on_after_a_wait_that_was_given_up(self, store: LightningStore) -> None:
        ids = await enqueued(store, 3)
        async with self.follow(store, ids) as follower:
            await store.update_rollout(ids[1], status="failed")
            assert await follower.take(1) == [ids[1]]
            waiting = asyncio.create_task(follower.rest())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await store.update_rollout(ids[2], status="failed")
            await store.update_rollout(ids[0], status="failed")
            assert await follower.rest() == [ids[2], ids[0]]

    async def test_x_feed_two_waits_for_one_feed_are_refused(self, store: LightningStore) -> None:
        async with self.follow(store) as follower:
            waiting = asyncio.create_task(follower.take(1))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="give each task a feed of its own"):
                await follower.take(1)
            ids = await ended(store, 1)
            assert await within_safety(waiting) == ids

    async def test_x_feed_from_now_on(self, store: LightningStore) -> None:
        for _ in range(2):
            await ended(store, 3)
            async with self.follow(store, after="now") as follower:
                await self.read(follower)
                ids = await ended(store, 2)
                assert await follower.take(2) == ids

    async def test_x_feed_from_now_on_goes_on_from_then(self, store: LightningStore) -> None:
        """What ends between two waits of which the first was given up comes all the same."""
        await ended(store, 1)
        async with self.follow(store, after="now") as follower:
            await self.read(follower)
            ids = await ended(store, 2)
            assert await follower.take(1) == ids[:1]
            async with self.follow(store, after=follower.told[0].cursor) as resumed:
                assert await resumed.take(1) == ids[1:]

    async def test_x_feed_of_some_from_now_on(self, store: LightningStore) -> None:
        [before] = await ended(store, 1)
        ids = await enqueued(store, 2)
        async with self.follow(store, [*ids, before], after="now") as follower:
            await self.read(follower)
            for id_ in ids:
                await store.update_rollout(id_, status="succeeded")
            assert await follower.rest() == ids

    async def read(self, follower: Follower) -> None:
        """Let a feed that begins now be read, and give the wait up."""
        waiting = asyncio.create_task(follower.begun())
        assert await within_safety(waiting) != "now"

    # --- Who follows -------------------------------------------------------------------------------------------------

    async def test_x_feed_every_follower_is_told_everything(self, store: LightningStore) -> None:
        ids = await ended(store, 2)
        followers = [self.follow(store) for _ in range(5)]
        tasks = [asyncio.create_task(follower.take(4)) for follower in followers]
        ids += await ended(store, 2)
        for task in tasks:
            assert await within_safety(task) == ids
        for follower in followers:
            await follower.__aexit__()

    async def test_x_feed_may_be_followed_on_another_event_loop(self, store: LightningStore) -> None:
        ids = await enqueued(store, 3)
        thread = asyncio.create_task(asyncio.to_thread(asyncio.run, collected(store.watch_rollouts(ids))))
        for id_ in ids:
            await store.update_rollout(id_, status="succeeded")
        assert names(await within_safety(thread)) == ids

    async def test_x_feed_may_be_left_at_any_time(self, store: LightningStore) -> None:
        ids = await ended(store, 3)
        async with self.follow(store) as never_read:
            pass
        async with self.follow(store) as left:
            assert await left.take(1) == [ids[0]]
        async with self.follow(store) as cancelled:
            await cancelled.take(3)
            waiting = asyncio.create_task(cancelled.take(1))
            await store.statistics()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within_safety(waiting)
        assert await never_read.rest() == []
        async with self.follow(store, after=left.told[0].cursor) as resumed:
            assert await resumed.take(2) == ids[1:]

    @pytest.mark.parametrize("value", [5, None, "", "\ud800"])
    async def test_x_feed_what_is_no_id_is_refused(self, store: LightningStore, value: Any) -> None:
        [known] = await ended(store, 1)
        async with self.follow(store, [known, value]) as follower:
            with pytest.raises(ValueError if isinstance(value, str) else TypeError, match="rollout_ids"):
                await follower.rest()

    @pytest.mark.parametrize(
        ("rollout_ids", "after"), [("ro-x", None), (5, None), (None, 5), (None, ["x"]), (None, b"x"), (None, 0)]
    )
    async def test_x_feed_arguments_of_another_type_are_refused(
        self, store: LightningStore, rollout_ids: Any, after: Any
    ) -> None:
        async with self.follow(store, rollout_ids, after) as follower:
            with pytest.raises(TypeError, match="rollout_ids" if after is None else "after"):
                await follower.rest()
