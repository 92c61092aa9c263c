"""What the client does when the server has no room for a call: it comes back when it was told to."""

from __future__ import annotations

import asyncio
import queue

import grpc
import pytest

from lightning_store import InMemoryLightningStore, ResourceExhaustedError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import query_pb2, service_pb2_grpc, worker_pb2
from lightning_store_client import LightningStoreClient

pytestmark = pytest.mark.usefixtures("exact_delays")


class Busy:
    """A server on which ``method`` of the store is parked when it is called first, until ``free``."""

    def __init__(self, make_rig, hooked, method, **config):
        self.store = InMemoryLightningStore()
        self._method = getattr(self.store, method)
        self._parked: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()
        self._first = True
        self.rig = make_rig(hooked(self.store, **{method: self._park}), **config)

    async def _park(self, *arguments, **keywords):
        first, self._first = self._first, False
        if first:
            free = asyncio.Event()
            self._parked.put((asyncio.get_running_loop(), free))
            await free.wait()
        return await self._method(*arguments, **keywords)

    async def take(self, call):
        """Let ``call(client)`` be the one that is parked."""
        self._holder = asyncio.create_task(call(self.rig.client()))
        loop, free = await asyncio.to_thread(self._parked.get, timeout=SAFETY_SECONDS)
        self._free = lambda: loop.call_soon_threadsafe(free.set)

    async def free(self):
        """The place is free when this returns."""
        self._free()
        await self._holder

    def free_while_the_client_sleeps(self, nth=1):
        """At the client's ``nth`` pause."""
        sleep = self.rig.clock.sleep

        async def freeing_sleep(seconds):
            await sleep(seconds)
            if len(self.rig.clock.slept) == nth:
                await self.free()

        self.rig.clock.sleep = freeing_sleep


@pytest.fixture
def busy(make_rig, hooked):
    return lambda method, **config: Busy(make_rig, hooked, method, **config)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, SAFETY_SECONDS))


async def all_of(replies):
    return [reply async for reply in replies]


def statistics(client):
    return client.statistics()


def test_a_refused_call_succeeds_when_it_is_made_again(busy):
    full = busy("statistics", calls_max=1)

    async def scenario():
        await full.take(statistics)
        full.free_while_the_client_sleeps(nth=2)
        rollout = await full.rig.client(retry_delays=(0.25, 3.0)).enqueue_rollout("task")
        assert full.rig.clock.slept == [1.0, 3.0]  # the server's 1 s, and then the client's own
        assert [one.rollout_id for one in await full.store.query_rollouts()] == [rollout.rollout_id]

    run(scenario())


def test_a_refused_wait_comes_back_after_five_seconds(busy):
    full = busy("wait_for_rollouts", waits_max=1)

    async def scenario():
        rollout_id = (await full.store.start_rollout("task")).rollout_id
        await full.take(lambda client: client.wait_for_rollouts(rollout_ids=[rollout_id], timeout=25))
        await full.store.update_attempt(rollout_id, "latest", status="succeeded")
        full.free_while_the_client_sleeps()
        [ended] = await full.rig.client().wait_for_rollouts(rollout_ids=[rollout_id], timeout=25)
        assert ended.status == "succeeded"
        assert full.rig.clock.slept == [5.0]

    run(scenario())


def test_a_refused_stream_query_is_made_again(busy):
    full = busy("query_workers", page_rows_max=1, stream_queries_max=1)
    endpoint = full.rig.server.endpoint
    request = query_pb2.StreamQueryRequest(workers=worker_pb2.ListWorkersRequest())

    async def scenario():
        for number in range(3):
            await full.store.update_worker(f"w-{number}")
        async with (
            grpc.aio.insecure_channel(endpoint) as channel,
            LightningStoreClient(endpoint, clock=full.rig.clock) as client,
        ):
            stub = service_pb2_grpc.LightningStoreServiceStub(channel)
            await full.take(lambda _: all_of(stub.StreamQuery(request)))
            full.free_while_the_client_sleeps()
            assert len(await client.query_workers()) == 3
        assert full.rig.clock.slept == [5.0]

    run(scenario())


def test_a_call_that_finds_no_room_fails_in_the_end_and_says_why(busy):
    full = busy("statistics", calls_max=1)

    async def scenario():
        await full.take(statistics)
        with pytest.raises(ResourceExhaustedError, match="calls_max") as caught:
            await full.rig.client(retry_delays=(1.0, 2.0)).enqueue_rollout("task")
        assert caught.value.retry_after_seconds == 1.0
        assert caught.value.details == {"limit": "calls_max", "maximum": "1"}
        assert full.rig.clock.slept == [1.0, 2.0]
        await full.free()
        assert not await full.store.query_rollouts()

    run(scenario())


def test_a_busy_server_is_not_taken_for_a_dead_one(busy):
    full = busy("statistics", calls_max=1)

    async def scenario():
        await full.take(statistics)
        client = full.rig.client(retry_delays=(1.0,), health_retry_delays=(0.1,))
        with pytest.raises(ResourceExhaustedError):
            await client.server_info()
        assert full.rig.clock.slept == [1.0]  # one probe was enough
        assert await client.healthy()
        await full.free()

    run(scenario())


def test_a_worker_stays_alive_on_a_busy_server(busy):
    full = busy("statistics", calls_max=1)

    async def scenario():
        await full.take(statistics)
        assert (await full.rig.client().update_worker("w")).worker_id == "w"
        await full.free()

    run(scenario())
