"""One client, many threads and loops; closing it, copying it to elsewhere, and what its settings may be."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import queue
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_store import (
    InMemoryLightningStore,
    LightningStore,
    MessageTooLargeError,
    StoreError,
    StoreUnavailableError,
)
from lightning_store.testing import SAFETY_SECONDS, FaultProxy
from lightning_store.testing.contract.base import until
from lightning_store.v1 import server_pb2
from lightning_store_client import LightningStoreClient, grpc_internals


def test_it_is_a_store_with_the_signatures_of_any_other():
    for name, method in inspect.getmembers(LightningStore, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(LightningStoreClient, name)) == inspect.signature(method), name


def test_capabilities_and_repr(rig):
    client = rig.client()
    assert client.capabilities == {"thread_safe": True, "async_safe": True, "zero_copy": True, "otlp_traces": False}
    assert repr(client) == f"LightningStoreClient('{rig.proxy.endpoint}')"
    with pytest.raises(NotImplementedError):
        client.otlp_traces_endpoint()


def test_server_info_and_the_raw_stub(rig):
    client = rig.client()
    info = asyncio.run(client.server_info())
    assert (info.strict, info.wait_seconds_max, info.message_bytes_max) == (False, 20.0, 64 * 1024 * 1024)
    assert client.stub.GetStatistics(server_pb2.GetStatisticsRequest()).total_rollouts == 0


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        *("localhost", "localhost:", "localhost:http", "", ":", ":4747", "4747", "localhost:-1", "localhost:70000"),
        *("localhost:0", "http://localhost:4747", "localhost:4747/", "local host:4747", "::1:4747", "localhost:\u0664"),
        None,
        4747,
    ],
)
def test_a_bad_endpoint_is_refused_with_an_example(endpoint):
    with pytest.raises((ValueError, TypeError), match="localhost:4747"):
        LightningStoreClient(endpoint)


@pytest.mark.parametrize("endpoint", ["localhost:4747", "127.0.0.1:1", "store.example.org:65535", "[::1]:4747"])
def test_a_good_endpoint_is_taken_and_nothing_is_connected_yet(endpoint):
    assert LightningStoreClient(endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("timeout", value) for value in (0, -1.0, float("nan"))],
        *[
            (name, value)
            for name in ("retry_delays", "health_retry_delays")
            for value in ((-1.0,), (1.0, float("nan")))
        ],
        *[("max_message_bytes", value) for value in (0, -1)],
    ],
)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=name):
        LightningStoreClient("localhost:4747", **{name: value})


def test_no_time_limit_at_all_is_possible(rig):
    assert asyncio.run(rig.client(timeout=float("inf")).statistics())["total_rollouts"] == 0


# --- Close -----------------------------------------------------------------------------------------------------------


def test_after_close_every_call_says_so(rig):
    async def scenario():
        client = rig.client()
        await client.statistics()
        await client.close()
        await client.close()
        for call in (client.statistics, client.query_rollouts, client.dequeue_rollout, client.healthy):
            with pytest.raises(RuntimeError, match=f"{client.endpoint} is closed"):
                await call()
        with pytest.raises(RuntimeError, match="closed"):
            _ = client.stub

    asyncio.run(scenario())


def test_a_client_that_was_never_used_can_be_closed():
    async def scenario():
        async with LightningStoreClient("localhost:4747") as client:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            await client.statistics()

    asyncio.run(scenario())


def test_close_ends_the_calls_that_are_under_way(make_rig, hooked):
    entered: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def hang():
        entered.put(None)
        await asyncio.Event().wait()

    rig = make_rig(hooked(InMemoryLightningStore(), statistics=hang))

    async def scenario():
        client = rig.client()
        calls = [asyncio.create_task(client.statistics()) for _ in range(3)]
        for _ in calls:
            await asyncio.to_thread(entered.get, timeout=SAFETY_SECONDS)
        await client.close()
        for call in calls:
            with pytest.raises((StoreError, RuntimeError)):
                await asyncio.wait_for(call, SAFETY_SECONDS)

    asyncio.run(scenario())


def test_close_ends_a_call_that_waits_for_its_retry(rig, broken):
    rig.proxy.breaks("GetStatistics", *[broken()] * 10)

    async def scenario():
        client = rig.client(clock=None, retry_delays=[0.01] * 1000)
        call = asyncio.create_task(client.statistics())
        await rig.proxy.until_sent("GetStatistics")
        await client.close()
        with pytest.raises((StoreError, RuntimeError)):
            await asyncio.wait_for(call, SAFETY_SECONDS)

    asyncio.run(scenario())


def test_a_client_that_is_forgotten_leaves_no_thread(rig):
    async def use():
        client = LightningStoreClient(rig.server.endpoint)
        await client.statistics()

    def ours():
        gc.collect()
        return {thread for thread in threading.enumerate() if thread.name.startswith("lightning-store")}

    before = ours()
    for _ in range(10):
        asyncio.run(use())
    asyncio.run(until(lambda: len(ours() - before) <= 1))


# --- Threads and loops -----------------------------------------------------------------------------------------------


def test_many_threads_each_with_a_loop_of_its_own(rig):
    client = rig.client()
    threads, calls = 6, 25
    barrier = threading.Barrier(threads)

    async def work(number):
        barrier.wait(SAFETY_SECONDS)
        made = [await client.enqueue_rollout((number, n)) for n in range(calls // 2)]
        made += await asyncio.gather(*(client.enqueue_rollout((number, n)) for n in range(calls // 2, calls)))
        return [rollout.rollout_id for rollout in made]

    with ThreadPoolExecutor(threads) as pool:
        made = [id_ for ids in pool.map(lambda number: asyncio.run(work(number)), range(threads)) for id_ in ids]
    assert len(set(made)) == threads * calls
    claims = asyncio.run(client.dequeue_many_rollouts(limit=1000))
    assert {claim.rollout_id for claim in claims} == set(made)


def test_a_wait_on_one_loop_is_ended_from_another(rig):
    client = rig.client()
    rollout = asyncio.run(client.enqueue_rollout("task"))
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(lambda: asyncio.run(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id])))
        asyncio.run(rig.proxy.until_sent("WaitForRollouts"))
        ended = asyncio.run(client.update_rollout(rollout.rollout_id, status="succeeded"))
        assert wait.result(SAFETY_SECONDS) == [ended]


def test_one_loop_after_another(rig):
    client = rig.client()
    for number in range(1, 6):
        asyncio.run(client.enqueue_rollout(number))
        assert asyncio.run(client.statistics())["total_rollouts"] == number


def test_a_loop_that_is_closed_while_a_call_is_under_way(make_rig, hooked):
    entered: queue.SimpleQueue[None] = queue.SimpleQueue()
    release = threading.Event()
    inner = InMemoryLightningStore()

    async def statistics():
        entered.put(None)
        await asyncio.to_thread(release.wait, SAFETY_SECONDS)
        return await inner.statistics()

    client = make_rig(hooked(inner, statistics=statistics)).client()
    loop = asyncio.new_event_loop()
    call = loop.create_task(client.statistics())
    loop.run_until_complete(asyncio.to_thread(entered.get, timeout=SAFETY_SECONDS))
    call._log_destroy_pending = False  # type: ignore[attr-defined]  # it is dropped on purpose
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    release.set()
    assert asyncio.run(client.enqueue_rollout("still works")).input == "still works"
    with pytest.raises(RuntimeError):
        call.get_coro().throw(RuntimeError("the loop is gone"))


def test_many_calls_at_once_on_one_loop(rig):
    async def scenario():
        client = rig.client(timeout=60.0)
        await asyncio.gather(*(client.enqueue_rollout(number) for number in range(300)))
        assert (await client.query_rollouts()).total == 300

    asyncio.run(scenario())


# --- Pickle ----------------------------------------------------------------------------------------------------------


def test_a_pickled_client_works_and_is_a_client_of_its_own(rig):
    async def scenario():
        client = rig.client(clock=None)
        await client.enqueue_rollout("before")
        copy = pickle.loads(pickle.dumps(client))
        assert copy.endpoint == client.endpoint
        assert repr(copy) == repr(client)
        await client.close()
        async with copy:
            assert (await copy.statistics())["total_rollouts"] == 1

    asyncio.run(scenario())


def test_a_pickled_client_keeps_its_settings(rig, broken, exact_delays):
    async def scenario():
        client = rig.client(
            timeout=7.0, retry_delays=(0.01, 0.02), health_retry_delays=(0.03,), max_message_bytes=500, clock=None
        )
        copy = pickle.loads(pickle.dumps(client))
        with pytest.raises(MessageTooLargeError, match="500"):
            await copy.enqueue_rollout("x" * 1000)
        rig.proxy.breaks("GetStatistics", *[broken()] * 5)
        with pytest.raises(StoreUnavailableError):
            await copy.statistics()
        assert rig.proxy.order() == ["GetStatistics", "Check", "GetStatistics", "Check", "GetStatistics"]
        assert rig.proxy.sent[-1].seconds_left == pytest.approx(7.0, abs=0.5)
        await copy.close()

    asyncio.run(scenario())


def test_a_closed_client_can_be_pickled(rig):
    async def scenario():
        client = rig.client(clock=None)
        await client.close()
        async with pickle.loads(pickle.dumps(client)) as copy:
            assert await copy.healthy()

    asyncio.run(scenario())


class SlowToAccept(FaultProxy):
    """Takes up a connection a while after it was made, as a busy server does, or one on another continent."""

    async def _accept(self, reader, writer):
        await asyncio.sleep(0.3)
        await super()._accept(reader, writer)


def test_a_connection_may_take_its_time_to_begin(rig):
    async def scenario():
        async with (
            SlowToAccept(rig.server.endpoint) as proxy,
            LightningStoreClient(proxy.endpoint, retry_delays=()) as client,
        ):
            assert (await client.statistics())["total_rollouts"] == 0

    asyncio.run(scenario())


def test_a_grpc_without_any_of_its_private_names(rig, monkeypatch):
    """Calls go by themselves, and nothing else changes."""
    monkeypatch.setattr(grpc_internals, "_cygrpc", types.ModuleType("cygrpc"))

    async def scenario():
        client = rig.client()
        queued = await client.enqueue_rollout("task")
        feed = client.watch_rollouts()
        await client.cancel_rollouts([queued.rollout_id])
        assert (await anext(feed)).rollout.rollout_id == queued.rollout_id
        await client.close()

    asyncio.run(scenario())
    assert not any(sent.in_session for sent in rig.proxy.sent)
    assert grpc_internals.awaits_reply(object())
