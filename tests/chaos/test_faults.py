"""The fault proxy: each fault does what its name says, where and when the schedule says so."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_store import InMemoryLightningStore, LightningStore, StoreTimeoutError, StoreUnavailableError
from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStoreCapabilities
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.testing.contract.base import until, within_safety
from lightning_store.testing.faults import (
    CUTS,
    DATA,
    END_STREAM,
    Fault,
    FaultProxy,
    FaultSchedule,
    FaultStatistics,
    _Frame,
    _Messages,
)
from lightning_store.v1.query_pb2 import StreamQueryRequest
from lightning_store.v1.rollout_pb2 import EnqueueRolloutsRequest, ListRolloutsRequest, NewRollout
from lightning_store.v1.service_pb2_grpc import LightningStoreServiceStub
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer
from tests.chaos.flaky import PATIENCE


class CountingStore(ForwardingStore):
    """Notes the calls that reach the store."""

    def __init__(self, inner: LightningStore) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self.inner.capabilities

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.calls[method] += 1
        return await getattr(self.inner, method)(*args, **kwargs)


@asynccontextmanager
async def wire(
    *faults: Fault | None, clock: FakeClock | None = None, **settings: Any
) -> AsyncIterator[tuple[CountingStore, FaultProxy, LightningStoreClient]]:
    """A store, a proxy whose first calls meet ``faults``, and a client without retries."""
    store = CountingStore(InMemoryLightningStore(clock=clock))
    async with (
        LightningStoreServer(store, port=0) as server,
        FaultProxy(server.endpoint, FaultSchedule.first(*faults), clock=clock, **settings) as proxy,
        LightningStoreClient(proxy.endpoint, retry_delays=(), clock=clock) as client,
    ):
        yield store, proxy, client


@asynccontextmanager
async def patient(proxy: FaultProxy) -> AsyncIterator[LightningStoreClient]:
    """A client that tries again until it gets through."""
    async with LightningStoreClient(proxy.endpoint, **PATIENCE) as client:
        yield client


# --- Schedules -------------------------------------------------------------------------------------------------------


def faults_of(schedule: FaultSchedule, count: int) -> list[Fault | None]:
    return [schedule.fault_of(number) for number in range(1, count + 1)]


def test_every_nth_call_is_hit_by_each_fault_in_turn():
    cut, reset = Fault.CUT_REPLY, Fault.RESET
    assert faults_of(FaultSchedule.every(2, cut), 5) == [None, cut, None, cut, None]
    assert faults_of(FaultSchedule.every(1, cut), 2) == [cut, cut]
    assert faults_of(FaultSchedule.every(2, cut, offset=1), 4) == [cut, None, cut, None]
    hit = [fault for fault in faults_of(FaultSchedule.every(3, cut, reset), 12) if fault]
    assert hit == [reset, cut, reset, cut]


def test_the_first_calls_are_hit_one_by_one():
    assert faults_of(FaultSchedule.first(None, Fault.DELAY), 4) == [None, Fault.DELAY, None, None]
    assert faults_of(FaultSchedule.none(), 2) == [None, None]


def test_chance_can_be_repeated_and_keeps_its_shares():
    shares = {Fault.CUT_REPLY: 0.2, Fault.DELAY: 0.1}
    first = faults_of(FaultSchedule.random(7, shares), 5000)
    assert first == faults_of(FaultSchedule.random(7, shares), 5000)
    assert first != faults_of(FaultSchedule.random(8, shares), 5000)
    assert Counter(first)[Fault.CUT_REPLY] == pytest.approx(1000, abs=100)
    assert Counter(first)[Fault.DELAY] == pytest.approx(500, abs=100)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FaultSchedule.every(0, Fault.DELAY),
        lambda: FaultSchedule.every(2),
        lambda: FaultSchedule.random(1, {Fault.DELAY: 0.6, Fault.RESET: 0.5}),
        lambda: FaultSchedule.random(1, {Fault.DELAY: -0.1}),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match="give"):
        make()


# --- Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_without_faults_everything_passes():
    async with wire() as (_, proxy, client):
        made = await client.enqueue_many_rollouts([{"input": "x" * 100_000}] * 20)
        assert list(await client.query_rollouts()) == made
        assert proxy.statistics == FaultStatistics(connections=1, calls=2, answered=2)


@pytest.mark.parametrize(("fault", "acted"), [(Fault.CUT_REQUEST, 0), (Fault.CUT_REPLY, 1), (Fault.RESET, 1)])
@pytest.mark.asyncio
async def test_a_cut_call_fails_and_the_server_has_or_has_not_acted(fault: Fault, acted: int):
    async with wire(fault) as (store, proxy, client):
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await client.enqueue_rollout("task")
        assert proxy.statistics == FaultStatistics(connections=1, calls=1, struck=Counter({fault: 1}))
        assert store.calls["enqueue_many_rollouts"] == acted
        assert len(await store.query_rollouts()) == acted


@pytest.mark.parametrize(("fault", "told"), [(Fault.RESET, "reset by peer"), (Fault.CUT_REPLY, "Socket closed")])
@pytest.mark.asyncio
async def test_a_reset_is_told_as_one_and_another_end_is_not(fault: Fault, told: str):
    messages = []
    async with wire(*[fault] * 10) as (_, _, client):
        for _ in range(10):
            with pytest.raises(StoreUnavailableError) as caught:
                await client.statistics()
            messages.append(str(caught.value))
    # Now and then the client finds out by writing instead, and then says "Broken pipe".
    assert any(told in message for message in messages), messages


@pytest.mark.asyncio
async def test_a_late_request_arrives_when_it_is_delivered():
    async with wire(Fault.LATE_REQUEST) as (store, proxy, client):
        with pytest.raises(StoreUnavailableError):
            await client.enqueue_rollout("x" * 50_000)
        assert store.calls["enqueue_many_rollouts"] == 0
        assert await within_safety(proxy.deliver_late_requests()) == 1
        assert store.calls["enqueue_many_rollouts"] == 1
        assert await proxy.deliver_late_requests() == 0


@pytest.mark.asyncio
async def test_a_delayed_call_takes_its_time():
    clock = FakeClock()
    async with wire(Fault.DELAY, delay_seconds=3.0, clock=clock) as (store, proxy, client):
        call = asyncio.create_task(client.enqueue_rollout("task"))
        await clock.until_waiting(clock.now() + 3.0)
        assert not call.done()
        assert store.calls.total() == 0
        clock.advance(3.0)
        assert (await within_safety(call)).input == "task"
        assert proxy.statistics.struck == {Fault.DELAY: 1}


@pytest.mark.asyncio
async def test_what_falls_into_a_black_hole_is_a_timeout():
    async with wire(Fault.BLACK_HOLE) as (store, proxy, _):
        async with LightningStoreClient(proxy.endpoint, timeout=0.2, retry_delays=()) as client:
            for _ in range(2):  # the second call is on the same connection
                with pytest.raises(StoreTimeoutError, match="deadline"):
                    await client.enqueue_rollout("task")
        assert store.calls.total() == 0
        assert (proxy.statistics.answered, proxy.statistics.struck) == (0, {Fault.BLACK_HOLE: 1})


@pytest.mark.asyncio
async def test_a_throttled_connection_carries_so_many_bytes_a_second():
    clock = FakeClock()
    async with wire(Fault.THROTTLE, bytes_per_second=1000, clock=clock) as (_, proxy, client):
        started = clock.now()
        call = asyncio.create_task(client.enqueue_rollout("x" * 2000))
        while not call.done():
            if due := clock.pending():
                clock.advance(due[0] - clock.now())
            await asyncio.sleep(0)
        await call
        # There and back, with some hundred bytes of headers.
        assert 2.0 < clock.now() - started < 6.0
        assert proxy.statistics.struck == {Fault.THROTTLE: 1}


@pytest.mark.asyncio
async def test_calls_on_the_same_connection_go_down_with_it():
    clock = FakeClock()
    async with wire(clock=clock) as (_, proxy, client):
        waits = await parked(client, clock, 3)
        proxy.schedule = FaultSchedule.every(1, Fault.CUT_REPLY)
        with pytest.raises(StoreUnavailableError):
            await client.statistics()
        outcomes = await within_safety(asyncio.gather(*waits, return_exceptions=True))
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 3
        assert (proxy.statistics.cut, proxy.statistics.cut_along) == (1, 3)


@pytest.mark.asyncio
async def test_all_connections_can_be_cut_by_hand():
    clock = FakeClock()
    async with wire(clock=clock) as (_, proxy, client), patient(proxy) as other:
        assert await proxy.cut_connections() == 0
        waits = await parked(client, clock, 3)
        assert await proxy.cut_connections() == 3
        outcomes = await within_safety(asyncio.gather(*waits, return_exceptions=True))
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 3
        assert (await other.statistics())["total_rollouts"] == 1


async def parked(client: LightningStore, clock: FakeClock, count: int) -> list[asyncio.Task[Any]]:
    """Calls that are under way and have reached the store: waits of 15 seconds and more."""
    rollout = await client.enqueue_rollout("task")
    waits = []
    for number in range(count):
        wait = client.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=15 + number)
        waits.append(asyncio.create_task(wait))
        await clock.until_waiting(clock.now() + 15 + number)
    return waits


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.asyncio
async def test_a_client_that_tries_again_gets_through_and_its_calls_happen_once(fault: Fault):
    async with wire() as (store, proxy, _), patient(proxy) as client:
        proxy.schedule = FaultSchedule.every(2, fault)
        for number in range(10):
            await client.enqueue_rollout(number)
        assert [rollout.input for rollout in await store.query_rollouts()] == list(range(10))
        assert proxy.statistics.struck[fault] >= 9


# --- Calls that share a stream, and calls that do not ----------------------------------------------------------------


@pytest.mark.asyncio
async def test_calls_that_are_made_at_once_are_one_call_of_the_proxy():
    async with wire() as (store, proxy, client):
        await asyncio.gather(*(client.start_rollout(number) for number in range(100)))
        assert store.calls["start_rollout"] == 100
        assert 1 <= proxy.statistics.calls < 50
        assert proxy.statistics.connections == 1


@pytest.mark.asyncio
async def test_callers_that_take_turns_are_counted_and_hit_one_by_one():
    # With retries: the call after the one that is cut may still run into the end of the connection.
    async with wire(None, None, Fault.CUT_REPLY) as (store, proxy, _), patient(proxy) as client:
        for number in range(6):
            await client.enqueue_rollout(number)
        assert store.calls["enqueue_many_rollouts"] == 7
        struck = Counter({Fault.CUT_REPLY: 1})
        assert proxy.statistics == FaultStatistics(connections=2, calls=7, answered=6, struck=struck)


@asynccontextmanager
async def raw_stub(proxy: FaultProxy) -> AsyncIterator[Any]:
    """Calls through it are streams of their own."""
    # gRPC 1.71 may miss a reset that comes right behind data, until it next writes.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.keepalive_time_ms", 1000)]
    async with grpc.aio.insecure_channel(proxy.endpoint, options=options) as channel:
        yield LightningStoreServiceStub(channel)


def enqueueing() -> EnqueueRolloutsRequest:
    """A request of one rollout, which takes several frames."""
    rollout = NewRollout(input_json='"' + "x" * 50_000 + '"')
    return EnqueueRolloutsRequest(request_id=uuid.uuid4().hex, rollouts=[rollout])


@pytest.mark.parametrize(
    ("fault", "acted"), [(Fault.CUT_REQUEST, 0), (Fault.CUT_REPLY, 1), (Fault.RESET, 1), (Fault.LATE_REQUEST, 0)]
)
@pytest.mark.asyncio
async def test_a_call_by_itself_is_hit_as_one_of_a_session_is(fault: Fault, acted: int):
    async with wire(None, fault) as (store, proxy, _), raw_stub(proxy) as stub:
        assert len((await stub.EnqueueRollouts(enqueueing())).rollouts) == 1
        with pytest.raises(grpc.RpcError) as caught:
            await stub.EnqueueRollouts(enqueueing(), timeout=SAFETY_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert store.calls["enqueue_many_rollouts"] == 1 + acted
        struck = Counter({fault: 1})
        assert proxy.statistics == FaultStatistics(connections=1, calls=2, answered=1, struck=struck)
        assert await within_safety(proxy.deliver_late_requests()) == (fault is Fault.LATE_REQUEST)
        assert store.calls["enqueue_many_rollouts"] == 2 - (fault is Fault.CUT_REQUEST)


@pytest.mark.asyncio
async def test_a_streamed_reply_is_one_reply():
    query = StreamQueryRequest(rollouts=ListRolloutsRequest())
    async with wire(None, None, Fault.CUT_REPLY) as (_, proxy, _), raw_stub(proxy) as stub:
        await stub.EnqueueRollouts(enqueueing())
        assert len([reply async for reply in stub.StreamQuery(query)]) >= 1
        assert (proxy.statistics.calls, proxy.statistics.answered) == (2, 2)
        with pytest.raises(grpc.RpcError):
            _ = [reply async for reply in stub.StreamQuery(query, timeout=SAFETY_SECONDS)]
        assert (proxy.statistics.calls, proxy.statistics.answered) == (3, 2)


@pytest.mark.asyncio
async def test_a_late_message_that_only_calls_others_off_is_delivered_too():
    clock = FakeClock()
    async with wire(None, None, Fault.LATE_REQUEST, clock=clock) as (store, proxy, client):
        [wait] = await parked(client, clock, 1)
        wait.cancel()
        await until(lambda: bool(proxy.statistics.struck))
        assert clock.pending()
        assert await within_safety(proxy.deliver_late_requests()) == 1
        assert not clock.pending()
        assert store.calls["wait_for_rollouts"] == 1


@given(st.data(), st.lists(st.binary(max_size=20), max_size=8))
def test_messages_are_told_apart_however_they_are_framed(data: st.DataObject, bodies: list[bytes]):
    sent = b"".join(b"\0" + len(body).to_bytes(4) + body for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=10)))
    messages = _Messages()
    received: list[bytes] = []
    for start, end in itertools.pairwise([0, *cuts, len(sent)]):
        frame = _Frame(DATA, END_STREAM, 1, sent[start:end])
        parts = list(frame.cut(messages))
        assert b"".join(part.payload for part in parts) == frame.payload
        assert [part.ends_stream for part in parts] == [False] * (len(parts) - 1) + [True]
        for part in parts:
            received += [b""] * part.begins_message
            if part.payload:
                received[-1] += part.payload
            if part.ends_message:
                assert received[-1][5:] == bodies[len(received) - 1]
    assert b"".join(received) == sent
    assert len(received) == len(bodies)


# --- The proxy itself ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_nobody_behind_the_proxy_is_an_unavailable_server():
    async with LightningStoreServer(InMemoryLightningStore(), port=0) as server:
        gone = server.endpoint
    async with FaultProxy(gone) as proxy, LightningStoreClient(proxy.endpoint, retry_delays=()) as client:
        with pytest.raises(StoreUnavailableError):
            await client.statistics()


@pytest.mark.asyncio
async def test_it_has_an_endpoint_once_it_runs_and_stops_more_than_once():
    proxy = FaultProxy("[::1]:4747")
    assert proxy.target == ("::1", 4747)
    with pytest.raises(RuntimeError, match="start it first"):
        _ = proxy.endpoint
    with pytest.raises(RuntimeError, match="not running"):
        await proxy.cut_connections()
    await proxy.start()
    assert proxy.endpoint.startswith("127.0.0.1:")
    await proxy.stop()
    await proxy.stop()
