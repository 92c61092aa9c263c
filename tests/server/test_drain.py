"""What a server that is told to stop does with the calls that are under way."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2

from lightning_store import InMemoryLightningStore, StoreUnavailableError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import rollout_pb2, server_pb2
from lightning_store.wire.methods import SERVICE
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer

STATISTICS = server_pb2.GetStatisticsRequest()


class Gate:
    """Holds calls of a store until it is opened, whatever thread opens it."""

    def __init__(self):
        self.entered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._open = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Event | None = None

    async def hold(self):
        self._loop, self._opened = asyncio.get_running_loop(), asyncio.Event()
        self.entered.put(None)
        try:
            await self._opened.wait()
        except asyncio.CancelledError:
            self.ended.put("cancelled")
            raise
        self.ended.put("finished")

    def open(self):
        self._loop.call_soon_threadsafe(self._opened.set)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def slow_store(hooked, gate):
    """A store whose ``statistics`` take until the gate opens."""
    inner = InMemoryLightningStore()

    async def statistics():
        await gate.hold()
        return await inner.statistics()

    return hooked(inner, statistics=statistics)


@contextmanager
def stopping(served):
    """Stop the server meanwhile; on leaving, it must have stopped."""
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(served.stop)
        yield stopped
        stopped.result(SAFETY_SECONDS)


def watch(served, service):
    """The states that the server's health goes through."""
    call = served.health_stub.Watch(health_pb2.HealthCheckRequest(service=service))
    names = health_pb2.HealthCheckResponse.ServingStatus
    return call, (names.Name(reply.status) for reply in call)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_turns_not_serving_and_then_calls_finish_within_the_grace(serve, slow_store, gate, service):
    served = serve(slow_store, grace_seconds=SAFETY_SECONDS)
    watcher, states = watch(served, service)
    assert next(states) == "SERVING"
    call = served.stub.GetStatistics.future(STATISTICS, timeout=SAFETY_SECONDS)
    gate.entered.get(timeout=SAFETY_SECONDS)
    with stopping(served):
        assert next(states) == "NOT_SERVING"
        assert not call.done()
        gate.open()
        assert call.result(SAFETY_SECONDS).total_rollouts == 0
        assert gate.ended.get() == "finished"
        watcher.cancel()


def test_a_health_watcher_does_not_hold_the_server_up(serve):
    served = serve(grace_seconds=SAFETY_SECONDS)
    watcher, states = watch(served, "")
    assert next(states) == "SERVING"
    with stopping(served) as stopped:
        assert next(states) == "NOT_SERVING"
        try:
            stopped.result(1.0)
        finally:
            watcher.cancel()


def test_a_call_past_the_grace_is_cut(serve, slow_store, gate):
    served = serve(slow_store, grace_seconds=0.05)
    call = served.stub.GetStatistics.future(STATISTICS, timeout=SAFETY_SECONDS)
    gate.entered.get(timeout=SAFETY_SECONDS)
    with stopping(served), pytest.raises(grpc.RpcError) as caught:
        call.result(SAFETY_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert gate.ended.get(timeout=SAFETY_SECONDS) == "cancelled"


@pytest.mark.parametrize("thread_safe", [True, False])
def test_a_waiter_is_told_at_once_that_the_server_goes(serve, hooked, thread_safe):
    inner = InMemoryLightningStore()
    rollout = asyncio.run(inner.enqueue_rollout("never done"))
    waiting: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def wait_for_rollouts(**arguments):
        waiting.put(None)
        return await inner.wait_for_rollouts(**arguments)

    served = serve(hooked(inner, thread_safe=thread_safe, wait_for_rollouts=wait_for_rollouts), grace_seconds=1000.0)
    request = rollout_pb2.WaitForRolloutsRequest(rollout_ids=[rollout.rollout_id])
    waits = [served.stub.WaitForRollouts.future(request, timeout=1000) for _ in range(3)]
    for _ in waits:
        waiting.get(timeout=SAFETY_SECONDS)
    with stopping(served):
        for wait in waits:
            with pytest.raises(grpc.RpcError) as caught:
                wait.result(SAFETY_SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "the server is shutting down" in str(caught.value.details())


def test_a_worker_that_waits_for_work_is_told_too(serve, hooked):
    inner = InMemoryLightningStore()
    waiting: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def dequeue_many_rollouts(**arguments):
        waiting.put(None)
        return await inner.dequeue_many_rollouts(**arguments)

    served = serve(hooked(inner, dequeue_many_rollouts=dequeue_many_rollouts), grace_seconds=1000.0)
    request = rollout_pb2.DequeueRolloutsRequest(request_id="id-1", worker_id="w", max_wait=Duration(seconds=1000))
    wait = served.stub.DequeueRollouts.future(request, timeout=1000)
    waiting.get(timeout=SAFETY_SECONDS)
    with stopping(served), pytest.raises(grpc.RpcError) as caught:
        wait.result(SAFETY_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    rollout = asyncio.run(inner.enqueue_rollout("task"))
    assert asyncio.run(inner.get_rollout_by_id(rollout.rollout_id)) == rollout


def test_a_client_that_waits_gets_a_connection_error():
    async def scenario():
        async with LightningStoreServer(InMemoryLightningStore(), port=0) as server:
            rollout = await server.enqueue_rollout("never done")
            async with LightningStoreClient(server.endpoint, retry_delays=()) as client:
                wait = asyncio.create_task(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
                await asyncio.sleep(0)  # the request goes out before the next one, and is taken before its answer
                await client.statistics()
                await server.stop()
                with pytest.raises(StoreUnavailableError):
                    await asyncio.wait_for(wait, SAFETY_SECONDS)

    asyncio.run(scenario())


def test_nothing_is_left_running_after_a_stop(serve, slow_store, gate):
    before = threading.active_count()
    served = serve(slow_store)
    call = served.stub.GetStatistics.future(STATISTICS, timeout=SAFETY_SECONDS)
    gate.entered.get(timeout=SAFETY_SECONDS)
    served.stop()
    assert call.exception(SAFETY_SECONDS) is not None
    assert gate.ended.get(timeout=SAFETY_SECONDS) == "cancelled"
    served.channel.close()
    assert threading.active_count() <= before + 1  # the channel's own thread may still be on its way out
