"""The feed of completions from within: what it leaves behind, who is woken, and what waiting costs."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest

from lightning_store import (
    CallCancelledError,
    CompletedRollout,
    EnqueueRolloutRequest,
    InMemoryLightningStore,
    LightningStore,
    LightningStoreThreaded,
    UnsupportedError,
    request_scope,
)
from lightning_store.backends.base import Backend
from lightning_store.backends.memory import MemoryBackend
from lightning_store.engine import completion_feed, waiting
from lightning_store.engine.engine import DELETION_BATCH
from lightning_store.engine.waiting import Wakeup, Watchers
from lightning_store.forwarding import ForwardingStore
from lightning_store.testing import FakeClock
from lightning_store.testing.backends import SuspendingBackend, store_on
from lightning_store.testing.contract.base import until, within_safety
from lightning_store.testing.contract.feed import many_ended

pytestmark = pytest.mark.asyncio

Feed = AsyncGenerator[CompletedRollout, None]


def feed_of(store: LightningStore, rollout_ids: list[str] | None = None) -> Feed:
    return cast(Feed, store.watch_rollouts(rollout_ids))


def following(store: InMemoryLightningStore) -> int:
    """How many are registered to follow the store."""
    return len(store.engine._waiting.watchers._watching)


# --- Leaving ---------------------------------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[LightningStore], list[LightningStore]]] = {
    "in process": lambda inner: [inner],
    "on a thread": lambda inner: [LightningStoreThreaded(inner)],
    "on a thread of a thread": lambda inner: [LightningStoreThreaded(first := LightningStoreThreaded(inner)), first],
}


@pytest.fixture(params=WRAPPED)
def wrapped(request: pytest.FixtureRequest) -> Any:
    """A store, and the one in memory that is behind it."""
    inner = InMemoryLightningStore(clock=FakeClock())
    stores = WRAPPED[request.param](inner)
    yield stores[0], inner
    for store in stores:
        if isinstance(store, LightningStoreThreaded):
            store.close()


class TestLeaving:
    async def test_who_closes_the_feed_is_forgotten(self, wrapped: Any):
        store, inner = wrapped
        await many_ended(store, 3)
        feed = feed_of(store)
        await anext(feed)
        assert following(inner) == 1
        await feed.aclose()
        assert following(inner) == 0

    async def test_who_is_cancelled_while_waiting_is_forgotten(self, wrapped: Any):
        store, inner = wrapped
        for _ in range(10):
            feed = feed_of(store)
            waiting = asyncio.create_task(anext(feed))
            await until(lambda: following(inner) == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within_safety(waiting)
            await until(lambda: following(inner) == 0)

    async def test_who_breaks_out_of_the_loop_is_forgotten(self, wrapped: Any):
        store, inner = wrapped
        await many_ended(store, 3)
        async for _ in store.watch_rollouts():
            break
        gc.collect()
        await until(lambda: following(inner) == 0)

    async def test_a_feed_that_was_never_read_leaves_nothing(self, wrapped: Any):
        store, inner = wrapped
        feed = feed_of(store)
        del feed
        assert following(inner) == 0

    async def test_a_feed_that_came_to_its_end_leaves_nothing(self, wrapped: Any):
        store, inner = wrapped
        ids = await many_ended(store, 3)
        feed = feed_of(store, ids)
        assert len([completed async for completed in feed]) == 3
        assert following(inner) == 0


async def test_a_thread_that_is_stopped_ends_the_feed():
    store = LightningStoreThreaded(inner := InMemoryLightningStore())
    waiting = asyncio.create_task(anext(feed_of(store)))
    await until(lambda: following(inner) == 1)
    await asyncio.to_thread(store.close)
    with pytest.raises(CallCancelledError):
        await within_safety(waiting)
    assert following(inner) == 0


async def test_a_loop_that_is_closed_is_forgotten():
    store = InMemoryLightningStore()

    async def begin() -> Feed:
        feed = feed_of(store)
        await many_ended(store, 1)
        await anext(feed)
        return feed

    feed = await asyncio.to_thread(_left_without_a_word, begin)
    assert following(store) == 1
    [done] = await many_ended(store, 1)
    assert following(store) == 0
    assert [one.rollout.rollout_id async for one in store.watch_rollouts([done])] == [done]
    del feed


def _left_without_a_word(begin: Callable[[], Any]) -> Feed:
    loop = asyncio.new_event_loop()
    feed: Feed = loop.run_until_complete(begin())
    loop.close()  # without shutdown_asyncgens, as a program that ends its loop in haste
    return feed


async def test_a_store_that_forwards_no_streams_says_so():
    class Calls(ForwardingStore):
        capabilities = InMemoryLightningStore().capabilities

        async def _forward(self, *_: Any) -> Any:
            return None

    with pytest.raises(UnsupportedError, match="watch_rollouts"):
        await anext(Calls().watch_rollouts())
    with LightningStoreThreaded(Calls()) as store, pytest.raises(UnsupportedError, match="watch_rollouts"):
        await anext(feed_of(store))


# --- Being woken -----------------------------------------------------------------------------------------------------


async def test_a_deletion_between_two_looks_is_not_missed(monkeypatch: pytest.MonkeyPatch):
    """On another thread it may come at any moment: here as the next wake-up is made."""
    watchers = Watchers()

    def disturbed() -> Wakeup:
        made = Wakeup()
        watchers.notify([], ["ro-1"])
        return made

    with watchers.register({"ro-1"}) as watcher:
        monkeypatch.setattr(waiting, "Wakeup", disturbed)
        gone = watcher.before_look()
        monkeypatch.undo()
        assert gone == ["ro-1"] or await within_safety(watcher.wakeup.wait(FakeClock(), None))


@pytest.mark.parametrize("groups", [False, True], ids=["rollouts", "groups"])
async def test_what_is_consumed_is_not_read(groups: bool, monkeypatch: pytest.MonkeyPatch):
    """A feed passes 300 consumed rollouts in three looks of a hundred, and never sees them."""
    monkeypatch.setattr(completion_feed, "LOOK_MAX", 100)
    backend = SuspendingBackend()
    store = store_on(lambda _: backend)
    members = [EnqueueRolloutRequest(input=n, group_id=f"g-{n // 4}", group_size=4) for n in range(304)]
    made = [one.rollout_id for one in await store.enqueue_many_rollouts(members)]
    for rollout_id in made:
        await store.update_rollout(rollout_id, status="succeeded")
    await store.mark_consumed("trainer", made[:300])
    backend.awaits.clear()
    feed: Any = store.watch_groups(consumer="trainer") if groups else store.watch_rollouts(consumer="trainer")
    found = await within_safety(anext(feed))
    assert (found.rollouts[0] if groups else found.rollout).input == 300
    reads = {verb: backend.awaits[verb] for verb in ("completions", "unconsumed", "groups")}
    assert reads == {"completions": 0, "unconsumed": 4, "groups": 4 * groups}
    await feed.aclose()


async def test_a_rollout_that_is_not_followed_wakes_nobody():
    store, visits = counting_store()
    [wanted] = [one.rollout_id for one in await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)])]
    feeds = [asyncio.create_task(anext(feed_of(store, [wanted]))) for _ in range(50)]
    await until(lambda: following(store) == 50)
    await settled(visits)
    before = visits.count
    await many_ended(store, 10)
    await settled(visits)
    assert visits.count - before == 2  # the two calls that made and ended them
    await store.update_rollout(wanted, status="succeeded")
    for feed in feeds:
        assert (await within_safety(feed)).rollout.rollout_id == wanted


# --- What waiting costs ----------------------------------------------------------------------------------------------


class Visits:
    """Counts the transactions and snapshots that a backend opens."""

    def __init__(self, backend: Backend) -> None:
        self.count = 0
        backend.transaction = self._counted(backend.transaction)  # type: ignore[method-assign]
        backend.snapshot = self._counted(backend.snapshot)  # type: ignore[method-assign]

    def _counted(self, open_: Callable[[], Any]) -> Callable[[], Any]:
        def counted() -> Any:
            self.count += 1
            return open_()

        return counted


def backend_of(store: InMemoryLightningStore) -> MemoryBackend:
    backend = store.engine._executor._backend
    assert isinstance(backend, MemoryBackend)
    return backend


def counting_store() -> tuple[InMemoryLightningStore, Visits]:
    store = InMemoryLightningStore(clock=FakeClock())
    return store, Visits(backend_of(store))


async def settled(visits: Visits) -> None:
    """Let all that can run come to its rest."""
    quiet = 0
    while quiet < 10:
        before = visits.count
        await asyncio.sleep(0)
        quiet = quiet + 1 if visits.count == before else 0


async def test_a_thousand_waits_for_ten_thousand_rollouts_cost_no_thread_and_no_work():
    store, visits = counting_store()
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * 10_000)
    ids = [rollout.rollout_id for rollout in made]
    assert len(await store.dequeue_many_rollouts(limit=10_000)) == 10_000
    threads = threading.active_count()
    waits = [asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids)) for _ in range(2)]
    waits += [
        asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids[index::500], return_when="any"))
        for index in range(498)
    ]
    claims = [asyncio.create_task(store.dequeue_rollout(max_wait=1e6)) for _ in range(500)]
    feeds = [asyncio.create_task(anext(feed_of(store, ids))) for _ in range(5)]
    await settled(visits)
    begun = visits.count
    for _ in range(100):
        cast(FakeClock, store._clock).advance(1000)
        await asyncio.sleep(0)
    await settled(visits)
    assert (visits.count, threading.active_count()) == (begun, threads)
    assert not any(task.done() for task in (*waits, *claims, *feeds))
    await store.enqueue_rollout("one more")
    await settled(visits)
    assert visits.count - begun == 2  # the enqueue, and the claim of the one who came first
    assert [claim.done() for claim in claims] == [True] + [False] * 499
    await store.cancel_rollouts(ids)
    assert [len(waited) for waited in await within_safety(asyncio.gather(*waits[:2]))] == [10_000] * 2
    assert all(await within_safety(asyncio.gather(*waits[2:])))
    assert {one.rollout.rollout_id for one in await within_safety(asyncio.gather(*feeds))} == {ids[0]}
    for claim in claims:
        claim.cancel()
    await asyncio.gather(*claims, return_exceptions=True)


# --- Deletions that are asked for twice ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 3, 2 * DELETION_BATCH + 3])
@pytest.mark.parametrize("by", ["age", "id"])
async def test_a_deletion_that_is_repeated_gets_the_same_reply(count: int, by: str):
    store = InMemoryLightningStore()
    ids = await many_ended(store, count)
    selection: Any = {"older_than": 0} if by == "age" else {"rollout_ids": ids}
    with request_scope("r"):
        assert await store.delete_rollouts(**selection) == ids
    later = await many_ended(store, 2)
    for repeated in (False, True):
        with request_scope("r", repeated=repeated):
            assert await store.delete_rollouts(**selection) == ids
    assert [rollout.rollout_id for rollout in await store.query_rollouts()] == later


async def test_a_deletion_that_was_cut_short_goes_on_when_repeated():
    store = InMemoryLightningStore()
    ids = await many_ended(store, 3 * DELETION_BATCH)
    with request_scope("r"):
        first = asyncio.create_task(store.delete_rollouts(older_than=0))
    while not first.done() and len(backend_of(store)._data._rollouts) == len(ids):  # noqa: ASYNC110 - round by round
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert 0 < (await store.statistics())["total_rollouts"] < len(ids)
    with request_scope("r", repeated=True):
        assert await store.delete_rollouts(older_than=0) == ids
    assert (await store.statistics())["total_rollouts"] == 0


async def test_two_equal_deletions_at_once_get_one_reply():
    store = InMemoryLightningStore()
    ids = await many_ended(store, 3 * DELETION_BATCH)

    async def delete() -> list[str]:
        with request_scope("r", repeated=True):
            return await store.delete_rollouts(older_than=0)

    assert list(await asyncio.gather(delete(), delete(), delete())) == [ids] * 3
