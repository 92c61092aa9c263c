"""The feed of completions over connections that break, servers that go and come back, and readers that are slow."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from contextlib import AsyncExitStack
from typing import Any

import pytest

from lightning_store import (
    CursorUnknownError,
    EnqueueRolloutRequest,
    InMemoryLightningStore,
    LightningStoreThreaded,
    ResourceExhaustedError,
    StoreUnavailableError,
    UnsupportedError,
)
from lightning_store.forwarding import ForwardingStore
from lightning_store.testing import Fault, FaultProxy, FaultSchedule
from lightning_store.testing.contract.base import until, within_safety
from lightning_store.testing.contract.feed import Follower, ended, many_ended
from lightning_store.testing.contract.groups import make_group
from lightning_store.wire.methods import METHODS
from lightning_store_client import LightningStoreClient, calls, channel
from lightning_store_server import LightningStoreServer, ServerConfig

pytestmark = pytest.mark.asyncio

IMPATIENT: dict[str, Any] = {"retry_delays": (0.0,) * 2000, "health_retry_delays": (0.01,) * 20}
"""Settings of a client that takes little time between attempts."""


class Line:
    """A store, its server, a proxy that can cut, and a client behind it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.store = InMemoryLightningStore()

    async def open(self, store: Any = None, schedule: FaultSchedule | None = None, **config: Any) -> Line:
        self.store = self.store if store is None else store
        settings = ServerConfig(**{"grace_seconds": 0.0, **config})
        self.server = await self._stack.enter_async_context(LightningStoreServer(self.store, port=0, config=settings))
        self.proxy = await self._stack.enter_async_context(FaultProxy(self.server.endpoint, schedule))
        self.client = await self.connect()
        return self

    async def connect(self, **settings: Any) -> LightningStoreClient:
        client = LightningStoreClient(self.proxy.endpoint, **IMPATIENT | settings)
        return await self._stack.enter_async_context(client)

    def follow(self, rollout_ids: Any = None, after: str | None = None) -> Follower:
        return Follower(self.client.watch_rollouts(rollout_ids, after=after))

    async def restart(self, store: Any = None) -> None:
        """The server goes, and another one comes in its place."""
        port = self.server.bound_port
        await self.server.stop()
        self.store = self.store if store is None else store
        self.server = LightningStoreServer(self.store, port=port, config=ServerConfig(grace_seconds=0.0))
        await self._stack.enter_async_context(self.server)


@pytest.fixture
def stack() -> AsyncExitStack:
    """Each test enters it, so that everything is closed on the test's own event loop."""
    return AsyncExitStack()


# --- Connections that break ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_a_feed_that_is_cut_at_any_place_misses_nothing_and_tells_nothing_twice(stack: AsyncExitStack, seed: int):
    chance = random.Random(seed)
    async with stack:
        line = await Line(stack).open(page_rows_max=3)
        ids = await many_ended(line.store, 20)
        async with line.follow() as follower:
            while len(follower.told) < len(ids):
                await follower.take(chance.randint(0, min(5, len(ids) - len(follower.told))))
                if chance.random() < 0.5:
                    await line.proxy.cut_connections()
                if len(ids) < 60 and chance.random() < 0.7:
                    ids += await many_ended(line.store, chance.randint(1, 10))
            assert [one.rollout.rollout_id for one in follower.told] == ids
            assert len({one.cursor for one in follower.told}) == len(ids)
        # How many depends on how far ahead of its reader a feed is.
        assert line.proxy.statistics.connections > 1


@pytest.mark.parametrize("items_max", [100, 5], ids=["request-holds-all-told", "request-holds-few"])
async def test_a_feed_of_groups_that_is_cut_tells_each_once(
    stack: AsyncExitStack, items_max: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_store_client.client.TOLD_MAX", items_max)
    chance = random.Random(1)
    async with stack:
        line = await Line(stack).open(page_rows_max=3, request_items_max=items_max)
        feed: Any = line.client.watch_groups(run="r")
        made: list[str] = []
        told: list[str] = []
        while len(told) < 40:
            name = f"g{len(made)}"
            await make_group(line.store, name, "succeeded", run="r")
            made.append(name)
            if chance.random() < 0.4:
                await line.proxy.cut_connections()
            if chance.random() < 0.7:
                told += [(await within_safety(anext(feed))).group_id for _ in range(len(made) - len(told))]
        await feed.aclose()
        assert told == made[: len(told)]
        assert line.proxy.statistics.connections > 1


@pytest.mark.parametrize("fault", [Fault.CUT_REPLY, Fault.CUT_REQUEST, Fault.RESET])
@pytest.mark.parametrize("nth", [2, 3])
async def test_a_feed_of_some_over_a_flaky_wire(stack: AsyncExitStack, fault: Fault, nth: int):
    async with stack:
        line = await Line(stack).open(schedule=FaultSchedule.every(nth, fault), page_rows_max=2)
        line.client = await line.connect(health_retry_delays=())  # probes would count among the calls
        made = await line.store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * 30)
        ids = [one.rollout_id for one in made]
        async with line.follow(ids) as follower:
            rest = asyncio.create_task(follower.rest())
            for start in range(0, 30, 5):
                await line.store.cancel_rollouts(ids[start : start + 5])
                await line.proxy.cut_connections()
            assert await within_safety(rest) == ids


async def test_what_was_told_is_not_waited_for_again_after_a_cut(stack: AsyncExitStack):
    """A rollout of the feed that was told, and then put back, does not keep the feed from its end."""
    async with stack:
        line = await Line(stack).open()
        ids = await ended(line.store, 1) + [(await line.store.enqueue_rollout("later")).rollout_id]
        async with line.follow(ids) as follower:
            assert await follower.take(1) == ids[:1]
            await line.store.update_rollout(ids[0], status="queuing")
            rest = asyncio.create_task(follower.rest())
            await line.proxy.cut_connections()
            await line.store.update_rollout(ids[1], status="succeeded")
            assert await within_safety(rest) == ids[1:]


async def test_what_was_told_may_be_deleted_before_a_cut(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open(InMemoryLightningStore(strict=True))
        ids = await ended(line.store, 2) + [(await line.store.enqueue_rollout("later")).rollout_id]
        async with line.follow(ids) as follower:
            assert await follower.take(2) == ids[:2]
            await line.store.delete_rollouts(ids[:2])
            rest = asyncio.create_task(follower.rest())
            await line.proxy.cut_connections()
            await line.store.update_rollout(ids[2], status="succeeded")
            assert await within_safety(rest) == ids[2:]


async def test_each_follower_comes_back_by_itself(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        ids = await many_ended(line.store, 10)
        followers = [await stack.enter_async_context(line.follow()) for _ in range(5)]
        for number, follower in enumerate(followers):
            assert await follower.take(number) == ids[:number]
        await line.proxy.cut_connections()
        ids += await many_ended(line.store, 10)
        for number, follower in enumerate(followers):
            assert await follower.take(20 - number) == ids[number:]


async def test_a_feed_may_be_cut_as_often_as_it_likes_if_it_lived_in_between(stack: AsyncExitStack, leaping_clock: Any):
    """Who has followed for days without a word must not be given up for the cuts of those days together."""
    async with stack:
        line = await Line(stack).open()
        # More than one, since the first may still run into the end of the connection that was cut.
        line.client = await line.connect(retry_delays=(0.0,) * 3, health_retry_delays=(), clock=leaping_clock)
        before = await ended(line.store, 1)
        async with line.follow() as follower:
            assert await follower.take(1) == before
            waiting = asyncio.create_task(follower.take(1))
            for day in range(15):
                await until(lambda day=day: line.proxy.statistics.calls > day)
                leaping_clock.time += 86_400
                await line.proxy.cut_connections()
            last = await ended(line.store, 1)
            assert await within_safety(waiting) == last


async def test_a_feed_that_cannot_be_had_says_so(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        line.client = await line.connect(retry_delays=(0.0, 0.0), health_retry_delays=())
        ids = await ended(line.store, 2)
        async with line.follow() as follower:
            assert await follower.take(2) == ids
            await line.server.stop()
            with pytest.raises(StoreUnavailableError):
                await follower.take(1)
        await line.restart()
        ids += await ended(line.store, 1)
        line.client = await line.connect()
        async with line.follow(after=follower.told[0].cursor) as resumed:
            assert await resumed.take(2) == ids[1:]


# --- Servers that go and come back -----------------------------------------------------------------------------------


async def test_a_server_that_comes_back_with_its_data_goes_on(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        ids = await ended(line.store, 3)
        async with line.follow() as follower:
            assert await follower.take(3) == ids
            waiting = asyncio.create_task(follower.take(2))
            await line.restart()
            ids += await ended(line.store, 2)
            assert await within_safety(waiting) == ids[3:]


async def test_a_server_that_comes_back_empty_is_another_store(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        await ended(line.store, 1)
        async with line.follow() as follower:
            await follower.take(1)
            waiting = asyncio.create_task(follower.take(1))
            await line.restart(InMemoryLightningStore())
            with pytest.raises(CursorUnknownError, match="started anew"):
                await within_safety(waiting)


async def test_a_feed_of_some_ends_if_the_server_comes_back_without_them(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        queued = await line.store.enqueue_rollout("never told")
        async with line.follow([queued.rollout_id]) as follower:
            rest = asyncio.create_task(follower.rest())
            await until(lambda: following(line.store) == 1)
            await line.restart(InMemoryLightningStore())
            assert await within_safety(rest) == []


async def test_a_stream_that_has_grown_old_is_replaced_by_another(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
):
    brief = dataclasses.replace(METHODS["WatchRollouts"], deadline_seconds=1.0)
    monkeypatch.setattr(calls, "METHODS", {**METHODS, "WatchRollouts": brief})
    async with stack:
        line = await Line(stack).open()
        line.client = await line.connect(retry_delays=(), health_retry_delays=())
        ids = await ended(line.store, 2)
        async with line.follow() as follower:
            waiting = asyncio.create_task(follower.take(5))
            for streams in (2, 3, 4):
                await until(lambda streams=streams: line.proxy.statistics.calls >= streams)
                ids += await ended(line.store, 1)
            assert await within_safety(waiting) == ids


# --- Readers that are slow -------------------------------------------------------------------------------------------


class CountingStore(ForwardingStore):
    """Counts what is taken from its feeds."""

    def __init__(self, inner: InMemoryLightningStore) -> None:
        self.inner = inner
        self.taken = 0

    @property
    def capabilities(self) -> Any:
        return self.inner.capabilities

    async def _forward(self, method: str, args: Any, kwargs: Any) -> Any:
        return await getattr(self.inner, method)(*args, **kwargs)

    async def _forward_stream(self, method: str, args: Any, kwargs: Any) -> Any:
        async for item in getattr(self.inner, method)(*args, **kwargs):
            self.taken += 1
            yield item


async def test_a_slow_reader_holds_back_its_own_feed_and_nothing_else(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
):
    # What gRPC takes ahead of its reader grows with the speed of the line otherwise, to tens of megabytes on this one.
    monkeypatch.setattr(channel, "OPTIONS", [*channel.OPTIONS, ("grpc.http2.bdp_probe", 0)])
    inner = InMemoryLightningStore()
    made = await inner.enqueue_many_rollouts([EnqueueRolloutRequest(input="x" * 60_000)] * 600)
    ids = [one.rollout_id for one in await inner.cancel_rollouts([one.rollout_id for one in made])]
    async with stack:
        store = CountingStore(inner)
        line = await Line(stack).open(store, page_rows_max=10)
        async with line.follow() as slow:
            assert await slow.take(1) == ids[:1]
            before = -1
            while before != store.taken:
                before = store.taken
                for _ in range(20):
                    await line.client.get_rollout_by_id(ids[0])
            assert store.taken < len(ids) / 2
            async with line.follow() as quick:
                assert await quick.take(len(ids)) == ids
            assert await slow.take(len(ids) - 1) == ids[1:]


async def test_large_rollouts_come_one_by_one(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open(page_bytes_max=100_000)
        made = await line.store.enqueue_many_rollouts([EnqueueRolloutRequest(input="x" * 1_000_000)] * 8)
        ids = [one.rollout_id for one in await line.store.cancel_rollouts([one.rollout_id for one in made])]
        async with line.follow(ids) as follower:
            assert await follower.rest() == ids
        assert {len(one.rollout.input) for one in follower.told} == {1_000_000}


# --- What the other side cannot do -----------------------------------------------------------------------------------


class WithoutFeed(ForwardingStore):
    """Somebody else's store, from before there were feeds and deletions."""

    def __init__(self, inner: InMemoryLightningStore) -> None:
        self.inner = inner

    @property
    def capabilities(self) -> Any:
        return self.inner.capabilities

    async def _forward(self, method: str, args: Any, kwargs: Any) -> Any:
        if method == "delete_rollouts":
            raise UnsupportedError("no deletions here")
        return await getattr(self.inner, method)(*args, **kwargs)


@pytest.mark.parametrize("wrap", [WithoutFeed, lambda inner: LightningStoreThreaded(WithoutFeed(inner))])
async def test_a_store_that_cannot_says_so(stack: AsyncExitStack, wrap: Any):
    async with stack:
        line = await Line(stack).open(wrap(InMemoryLightningStore()))
        async with line.follow() as follower:
            with pytest.raises(UnsupportedError, match="watch_rollouts"):
                await follower.take(1)
        with pytest.raises(UnsupportedError, match="no deletions here"):
            await line.client.delete_rollouts(older_than=0)


async def test_the_handle_of_a_server_has_the_feed_of_its_store(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        ids = await ended(line.store, 2)
        async with Follower(line.server.watch_rollouts(ids)) as follower:
            assert await follower.rest() == ids


# --- Leaving ---------------------------------------------------------------------------------------------------------


async def test_who_leaves_is_forgotten_by_the_server(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        for leave in ("close", "cancel"):
            follower = line.follow()
            waiting = asyncio.create_task(follower.take(1))
            await until(lambda: following(line.store) == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within_safety(waiting)
            if leave == "close":
                await follower.__aexit__()
            await until(lambda: following(line.store) == 0)


async def test_a_reader_that_stops_in_the_middle_is_forgotten_too(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open(page_rows_max=1)
        await many_ended(line.store, 1000)
        async with line.follow() as follower:
            await follower.take(1)
            await until(lambda: following(line.store) == 1)
        await until(lambda: following(line.store) == 0)


# --- Limits that the client hears of ---------------------------------------------------------------------------------


async def test_a_full_store_is_an_error_that_says_when_to_come_back(
    stack: AsyncExitStack, leaping_clock: Any, exact_delays: None
):
    async with stack:
        line = await Line(stack).open(InMemoryLightningStore(memory_limit=2400))
        client = await line.connect(retry_delays=(1.0, 2.0, 7.0), health_retry_delays=(), clock=leaping_clock)
        large = await client.enqueue_rollout("x" * 1000)
        with pytest.raises(ResourceExhaustedError, match="memory_limit") as caught:
            await client.enqueue_rollout("more")
        assert caught.value.retry_after_seconds == 5.0
        assert caught.value.details["limit"] == "memory_limit"
        assert leaping_clock.slept == [5.0, 5.0, 7.0]
        assert (await client.query_rollouts()).total == 1
        assert await client.delete_rollouts([large.rollout_id]) == [large.rollout_id]
        assert (await client.enqueue_rollout("more")).status == "queuing"


async def test_who_is_told_to_come_back_gets_through_as_soon_as_there_is_room(
    stack: AsyncExitStack, leaping_clock: Any
):
    async with stack:
        line = await Line(stack).open(InMemoryLightningStore(memory_limit=2400))
        client = await line.connect(retry_delays=(1.0,) * 5, health_retry_delays=(), clock=leaping_clock)
        large = await client.enqueue_rollout("x" * 1000)
        sleep = leaping_clock.sleep

        async def sleep_and_tidy_up(seconds: float) -> None:
            await sleep(seconds)
            if len(leaping_clock.slept) == 3:
                await line.store.delete_rollouts([large.rollout_id])

        leaping_clock.sleep = sleep_and_tidy_up
        await client.enqueue_rollout("more")
        assert len(leaping_clock.slept) == 3
        assert [one.input for one in await client.query_rollouts()] == ["more"]


# --- What waiting costs ----------------------------------------------------------------------------------------------


async def test_a_thousand_waits_cost_no_thread(stack: AsyncExitStack):
    async with stack:
        line = await Line(stack).open()
        made = await line.store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * 5000)
        ids = [one.rollout_id for one in made]
        await line.store.dequeue_many_rollouts(limit=5000)
        await line.client.statistics()
        threads = threading.active_count()
        waits = [asyncio.create_task(line.client.wait_for_rollouts(rollout_ids=ids[n::500])) for n in range(500)]
        claims = [asyncio.create_task(line.client.dequeue_rollout(max_wait=1000)) for _ in range(500)]
        await until(lambda: waiting_at(line.store) == 1000)
        assert threading.active_count() == threads
        await line.store.cancel_rollouts(ids)
        assert [len(waited) for waited in await within_safety(asyncio.gather(*waits))] == [10] * 500
        await line.store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * 500)
        claimed = await within_safety(asyncio.gather(*claims))
        assert len({one.rollout_id for one in claimed if one is not None}) == 500


def waiting_at(store: InMemoryLightningStore) -> int:
    """How many calls the store holds."""
    waiting = store.engine._waiting
    waits = {waiter for some in list(waiting.rollouts._by_rollout.values()) for waiter in tuple(some)}
    return len(waits) + len(waiting.claimants._waiting)


def following(store: InMemoryLightningStore) -> int:
    """How many are registered to follow the store."""
    return len(store.engine._waiting.watchers._watching)
