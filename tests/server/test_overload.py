"""What happens past the limits on calls, waits, stream queries and bytes; and readers that do not read."""

from __future__ import annotations

import asyncio
import json
import math
import queue
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lightning_store import (
    InMemoryLightningStore,
    InvalidArgumentError,
    ResourceExhaustedError,
    StoreUnavailableError,
)
from lightning_store.clock import SystemClock
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import query_pb2, resources_pb2, rollout_pb2, server_pb2, service_pb2_grpc, worker_pb2
from lightning_store.wire.errors import from_rpc_error
from lightning_store.wire.methods import BY_PATH, METHODS
from lightning_store_server import ServerConfig, admission, interceptors
from lightning_store_server.admission import Admission
from lightning_store_server.config import SECONDS_MAX
from lightning_store_server.connections import cut_connection

STATISTICS = server_pb2.GetStatisticsRequest()
INFO = server_pb2.GetServerInfoRequest()
ROLLOUTS = rollout_pb2.ListRolloutsRequest()
STREAM = query_pb2.StreamQueryRequest(rollouts=ROLLOUTS)
ROWS, ROW_BYTES = 16, 700_000
"""More than gRPC and the network take on the way to a reader who does not read."""
HEARTBEAT = worker_pb2.UpdateWorkerRequest(worker_id="w")
LIMITS = ("calls_max", "waits_max", "stream_queries_max", "queued_bytes_max", "read_ahead_bytes")


class Gate:
    """A store's method that parks each call until it is opened, or raises ``error`` then."""

    def __init__(self, inner, error=None):
        self._inner = inner
        self._error = error
        self._entered: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()

    async def __call__(self, *arguments, **keywords):
        event = asyncio.Event()
        self._entered.put((asyncio.get_running_loop(), event))
        await event.wait()
        if self._error is not None:
            raise self._error
        return await self._inner(*arguments, **keywords)

    def parked(self):
        """Return when one more call is parked: what lets it go."""
        loop, event = self._entered.get(timeout=SAFETY_SECONDS)
        return lambda: loop.call_soon_threadsafe(event.set)


class Parking:
    """A server whose GetStatistics and AddResources are parked."""

    def __init__(self, serve, hooked, error=None, **config):
        self.inner = InMemoryLightningStore()
        self.gate = Gate(self.inner.statistics, error)
        self.large = Gate(self.inner.add_resources)
        self.served = serve(hooked(self.inner, statistics=self.gate, add_resources=self.large), **config)
        self.stub = self.served.stub
        self._made = []  # gRPC cancels a call that nobody holds

    def park(self, calls=1, timeout=SAFETY_SECONDS):
        """So many calls that are parked, and what lets each of them go."""
        made = [self.stub.GetStatistics.future(STATISTICS, timeout=timeout) for _ in range(calls)]
        self._made += made
        return made, [self.gate.parked() for _ in made]

    def park_large(self, size_bytes):
        made = self.stub.AddResources.future(resources_of(size_bytes), timeout=SAFETY_SECONDS)
        self._made.append(made)
        return made, self.large.parked()


@pytest.fixture
def parking(serve, hooked):
    return lambda **config: Parking(serve, hooked, **config)


def resources_of(size_bytes):
    """A request of about so many bytes."""
    llm = json.dumps({"resource_type": "llm", "endpoint": "x" * size_bytes, "model": "m"})
    return resources_pb2.AddResourcesRequest(request_id=f"id-{size_bytes}", resources_json={"llm": llm})


def refusal(call):
    """The error of a call that was refused for a limit."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = from_rpc_error(caught.value)
    assert type(error) is ResourceExhaustedError
    assert error.details["limit"] in str(error)
    return error


def admission_of(served):
    return served.server._serving[0]._admission


def until(served, happened):
    """Return when ``happened`` is true of the server, whose event loop goes round meanwhile."""

    async def go_round():
        while not happened():  # noqa: ASYNC110 - there is no event for it that users could need
            await asyncio.sleep(0)

    served.server._serving[1].submit(asyncio.wait_for(go_round(), SAFETY_SECONDS)).result()


def settle(served):
    """Return when no call is under way any more; fail if something is counted that is not there."""
    admission = admission_of(served)
    lanes = (admission.calls, admission.waits, admission.stream_queries, admission.heartbeats)

    left = []

    def over():
        if any(lane.count for lane in lanes):
            return False
        left[:] = [(lane.request_bytes, lane.reply_bytes) for lane in lanes]  # now: another call may begin at any time
        return True

    until(served, over)
    assert left == [(0, 0)] * len(lanes)


@contextmanager
def other_client(served):
    """A stub on a connection of its own."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.http2.bdp_probe", 0),
    ]
    with grpc.insecure_channel(served.server.endpoint, options=options) as channel:
        yield service_pb2_grpc.LightningStoreServiceStub(channel)


# --- Calls -----------------------------------------------------------------------------------------------------------


def test_one_call_too_many_is_told_which_limit_and_when_to_come_back(parking):
    parked = parking(calls_max=2)
    calls, opens = parked.park(2)
    error = refusal(lambda: parked.served.call("GetServerInfo", INFO))
    assert error.details == {"limit": "calls_max", "maximum": "2"}
    assert error.retry_after_seconds == 1.0
    assert "try again in 1 s" in str(error)
    for open_ in opens:
        open_()
    assert all(call.result(SAFETY_SECONDS).total_rollouts == 0 for call in calls)
    settle(parked.served)
    assert parked.served.call("GetServerInfo", INFO).version


def test_a_refused_call_has_changed_nothing_and_may_be_sent_again_as_it_is(parking):
    parked = parking(calls_max=1)
    _, [open_] = parked.park()
    request = rollout_pb2.EnqueueRolloutsRequest(request_id="id", rollouts=[rollout_pb2.NewRollout(input_json="1")])
    refusal(lambda: parked.served.call("EnqueueRollouts", request))
    open_()
    settle(parked.served)
    assert len(parked.served.call("EnqueueRollouts", request).rollouts) == 1
    assert len(parked.served.call("ListRollouts", ROLLOUTS).rollouts) == 1


def test_a_busy_server_is_healthy_and_can_be_explored(parking):
    parked = parking(calls_max=1, waits_max=1, stream_queries_max=1)
    parked.park()
    assert parked.served.health() == "SERVING"
    watch = parked.served.health_stub.Watch(health_pb2.HealthCheckRequest(), timeout=SAFETY_SECONDS)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    reflection = reflection_pb2_grpc.ServerReflectionStub(parked.served.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [reply] = reflection.ServerReflectionInfo(iter([request]), timeout=SAFETY_SECONDS)
    assert reply.list_services_response.service


def test_heartbeats_are_let_in_when_calls_are_not(parking):
    parked = parking(calls_max=1, queued_bytes_max=1)
    parked.park()
    refusal(lambda: parked.served.call("GetServerInfo", INFO))
    assert parked.served.call("UpdateWorker", HEARTBEAT).worker.worker_id == "w"


def test_heartbeats_have_a_limit_too(serve, hooked):
    inner = InMemoryLightningStore()
    gate = Gate(inner.update_worker)
    served = serve(hooked(inner, update_worker=gate), calls_max=1)
    call = served.stub.UpdateWorker.future(HEARTBEAT, timeout=SAFETY_SECONDS)
    open_ = gate.parked()
    assert refusal(lambda: served.call("UpdateWorker", HEARTBEAT)).details["limit"] == "calls_max"
    open_()
    assert call.result(SAFETY_SECONDS).worker.worker_id == "w"


def test_a_call_that_fails_leaves_its_place(parking):
    parked = parking(calls_max=1, error=ValueError("no"))
    [call], [open_] = parked.park()
    open_()
    assert call.exception(SAFETY_SECONDS).code() is grpc.StatusCode.INVALID_ARGUMENT
    settle(parked.served)


def test_a_failure_of_the_store_leaves_its_place(parking, log):
    parked = parking(calls_max=1, error=RuntimeError("no"))
    [call], [open_] = parked.park()
    open_()
    assert call.exception(SAFETY_SECONDS).code() is grpc.StatusCode.INTERNAL
    settle(parked.served)
    assert log.next("lightning_store_server").exc_info is not None


def test_a_call_that_is_cancelled_leaves_its_place(parking):
    parked = parking(calls_max=1)
    [call], _ = parked.park()
    call.cancel()
    settle(parked.served)


def test_a_call_whose_deadline_passes_leaves_its_place(parking):
    parked = parking(calls_max=1)
    [call], _ = parked.park(timeout=0.1)
    assert call.exception(SAFETY_SECONDS).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    settle(parked.served)


def test_calls_of_a_client_that_vanishes_leave_their_places(parking):
    parked = parking(calls_max=2)
    with other_client(parked.served) as stub:
        calls = [stub.GetStatistics.future(STATISTICS) for _ in range(2)]
        for _ in calls:
            parked.gate.parked()
        refusal(lambda: parked.served.call("GetServerInfo", INFO))
    settle(parked.served)
    assert parked.served.call("GetServerInfo", INFO).version


def test_bytes_that_are_no_message_leave_no_place_behind(served):
    for rpc in ("GetStatistics", "WaitForRollouts", "StreamQuery"):
        path = f"/lightning_store.v1.LightningStoreService/{rpc}"
        kind = served.channel.unary_stream if rpc == "StreamQuery" else served.channel.unary_unary
        with pytest.raises(grpc.RpcError) as caught:
            list(kind(path)(b"\xff\xff", timeout=SAFETY_SECONDS))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    settle(served)


def test_a_refused_call_is_in_the_access_log(parking, log):
    parked = parking(calls_max=1, access_log=True)
    parked.park()
    refusal(lambda: parked.served.call("GetServerInfo", INFO))
    line = log.next("lightning_store_server.access")
    assert (line.call["method"].rpartition("/")[2], line.call["code"]) == ("GetServerInfo", "RESOURCE_EXHAUSTED")


def test_calls_that_come_all_at_once_are_all_answered(serve, hooked):
    """More of them than gRPC keeps, if left alone, while the server is busy with another."""
    inner = InMemoryLightningStore()
    busy, go_on = threading.Event(), threading.Event()

    async def block_the_loop():
        busy.set()
        assert go_on.wait(SAFETY_SECONDS)
        return await inner.statistics()

    served = serve(hooked(inner, statistics=block_the_loop))
    calls = [served.stub.GetStatistics.future(STATISTICS)]
    assert busy.wait(SAFETY_SECONDS)
    calls += [served.stub.GetServerInfo.future(INFO) for _ in range(1200)]
    go_on.set()
    assert {call.exception(SAFETY_SECONDS) for call in calls} == {None}


# --- Waits -----------------------------------------------------------------------------------------------------------


class Waiting:
    """A server on which as many calls wait as may."""

    def __init__(self, serve, hooked, waits_max):
        self.inner = InMemoryLightningStore()
        self.entered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.rollout = asyncio.run(self.inner.start_rollout("task"))
        hook = self.noted(self.inner.wait_for_rollouts)
        self.served = serve(hooked(self.inner, wait_for_rollouts=hook), waits_max=waits_max)
        self.request = rollout_pb2.WaitForRolloutsRequest(rollout_ids=[self.rollout.rollout_id])
        self.waits = [self.wait() for _ in range(waits_max)]

    def noted(self, method):
        async def call(*arguments, **keywords):
            self.entered.put(None)
            return await method(*arguments, **keywords)

        return call

    def wait(self):
        call = self.served.stub.WaitForRollouts.future(self.request, timeout=SAFETY_SECONDS)
        self.entered.get(timeout=SAFETY_SECONDS)
        return call

    def end(self):
        """What they wait for happens."""
        asyncio.run(self.inner.update_attempt(self.rollout.rollout_id, "latest", status="succeeded"))
        assert all(wait.result(SAFETY_SECONDS).complete for wait in self.waits)
        settle(self.served)


@pytest.fixture
def waiting(serve, hooked):
    return lambda waits_max: Waiting(serve, hooked, waits_max)


def test_one_wait_too_many_is_refused(waiting):
    full = waiting(2)
    dequeue = rollout_pb2.DequeueRolloutsRequest(request_id="id", max_wait=Duration(seconds=10))
    watch = rollout_pb2.WatchRolloutsRequest()
    for rpc, request in (("WaitForRollouts", full.request), ("DequeueRollouts", dequeue), ("WatchRollouts", watch)):
        error = refusal(lambda rpc=rpc, request=request: full.served.call(rpc, request))
        assert error.details == {"limit": "waits_max", "maximum": "2"}
        assert error.retry_after_seconds == 5.0
    full.end()
    assert full.served.call("WaitForRollouts", full.request).complete


def test_waits_do_not_count_as_calls_nor_calls_as_waits(parking):
    parked = parking(calls_max=1, waits_max=1)
    rollout = asyncio.run(parked.inner.enqueue_rollout("task"))
    _, [open_] = parked.park()
    wait = parked.stub.WaitForRollouts.future(rollout_pb2.WaitForRolloutsRequest(rollout_ids=[rollout.rollout_id]))
    dequeue = rollout_pb2.DequeueRolloutsRequest(request_id="id", max_wait=Duration(seconds=10))
    refusal(lambda: parked.served.call("GetServerInfo", INFO))
    open_()
    asyncio.run(parked.inner.update_rollout(rollout.rollout_id, status="cancelled"))
    assert wait.result(SAFETY_SECONDS).complete
    settle(parked.served)
    asyncio.run(parked.inner.enqueue_rollout("task"))
    assert len(parked.served.call("DequeueRollouts", dequeue).rollouts) == 1


def test_a_call_that_could_wait_and_does_not_is_a_call(waiting):
    full = waiting(1)
    look = rollout_pb2.WaitForRolloutsRequest(rollout_ids=[full.rollout.rollout_id], wait=Duration())
    assert not full.served.call("WaitForRollouts", look).complete
    for max_wait in (None, Duration(), Duration(seconds=-1)):
        request = rollout_pb2.DequeueRolloutsRequest(request_id="id", max_wait=max_wait)
        assert not full.served.call("DequeueRollouts", request).rollouts


def test_a_wait_that_is_cancelled_leaves_its_place(waiting):
    full = waiting(1)
    full.waits.pop().cancel()
    settle(full.served)
    full.waits.append(full.wait())
    full.end()


# --- Bytes -----------------------------------------------------------------------------------------------------------


def test_past_the_bytes_further_calls_are_refused(parking):
    parked = parking(queued_bytes_max=1000)
    call, open_ = parked.park_large(1000)
    error = refusal(lambda: parked.served.call("GetServerInfo", INFO))
    assert error.details == {"limit": "queued_bytes_max", "maximum": "1000"}
    assert error.retry_after_seconds == 1.0
    open_()
    assert call.result(SAFETY_SECONDS).resources.resources_id
    settle(parked.served)
    assert parked.served.call("GetServerInfo", INFO).version


def test_a_request_that_is_larger_than_all_the_bytes_is_taken_when_there_is_room(parking):
    parked = parking(queued_bytes_max=10, max_message_bytes=100_000)
    call, open_ = parked.park_large(90_000)
    open_()
    assert call.result(SAFETY_SECONDS).resources.resources_id


def test_waits_are_let_in_when_calls_have_all_their_bytes(parking):
    parked = parking(queued_bytes_max=1000)
    parked.park_large(1000)
    rollout = asyncio.run(parked.inner.enqueue_rollout("task"))
    asyncio.run(parked.inner.update_rollout(rollout.rollout_id, status="cancelled"))
    request = rollout_pb2.WaitForRolloutsRequest(rollout_ids=[rollout.rollout_id])
    assert parked.served.call("WaitForRollouts", request).complete


def test_replies_count_until_they_are_sent():
    lane = Admission(ServerConfig(queued_bytes_max=100)).calls
    slow = lane.enter(1)
    slow.reply(150, may_refuse=True)
    with pytest.raises(ResourceExhaustedError, match="queued_bytes_max"):
        lane.enter(1)
    slow.leave()
    slow.leave()
    lane.enter(1).leave()
    assert (lane.count, lane.request_bytes, lane.reply_bytes) == (0, 0, 0)


def test_a_reply_that_can_be_had_again_is_not_kept_when_too_many_wait_to_be_read():
    """Calls that came together are all let in, before any of them has its reply."""
    lane = Admission(ServerConfig(queued_bytes_max=100)).calls
    slots = [lane.enter(1) for _ in range(3)]
    slots[0].reply(100, may_refuse=True)
    with pytest.raises(ResourceExhaustedError, match="100 bytes of replies") as caught:
        slots[1].reply(100, may_refuse=True)
    assert caught.value.retry_after_seconds == 1.0
    slots[2].reply(100)  # the outcome of a change must reach its caller
    assert lane.reply_bytes == 200
    slots[0].sent(100)
    with slots[1], slots[2]:
        pass
    assert (lane.count, lane.reply_bytes) == (1, 0)


# --- Shares of connections -------------------------------------------------------------------------------------------


def test_a_connection_may_have_no_more_than_it_leaves_to_others():
    lane = Admission(ServerConfig(calls_max=9, queued_bytes_max=100)).calls
    slots = [lane.enter(1, "greedy") for _ in range(5)]
    with pytest.raises(ResourceExhaustedError, match="this connection has 5 of the 5 calls") as caught:
        lane.enter(1, "greedy")
    assert caught.value.details == {"limit": "calls_max", "maximum": "9"}
    slots += [lane.enter(1, peer) for peer in ("second", "second", "third")]
    slots.pop().leave()
    lane.enter(1, "third")


def test_a_connection_may_hold_no_more_bytes_than_it_leaves_to_others():
    lane = Admission(ServerConfig(queued_bytes_max=100)).calls
    first, second, third = (lane.enter(1, "greedy") for _ in range(3))
    first.reply(40, may_refuse=True)
    with pytest.raises(ResourceExhaustedError, match="40 bytes of replies wait to be read on this connection"):
        second.reply(40, may_refuse=True)
    with pytest.raises(StoreUnavailableError, match="the call may have happened, so send it again"):
        third.reply(40)
    lane.enter(1, "another").reply(40, may_refuse=True)
    first.sent(40)
    third.reply(10)
    for slot in (first, second, third):
        slot.leave()
    assert lane.reply_bytes == 40


def test_a_connection_that_reads_nothing_is_cut_when_others_need_the_bytes(monkeypatch):
    times = iter(range(100))
    monkeypatch.setattr(SystemClock, "monotonic", lambda _: 100.0 * next(times))
    monkeypatch.setattr(admission, "STALLED_BYTES", 10)
    cut: list[str] = []
    lane = Admission(ServerConfig(queued_bytes_max=100), cut.append).calls
    lane.enter(1, "unread").reply(95)
    lane.enter(1, "small").reply(5)
    with pytest.raises(ResourceExhaustedError):
        lane.enter(1, "another")
    assert cut == ["unread"]


def test_the_connection_is_closed_and_no_other():
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        ends = []
        for _ in range(2):
            ours = stack.enter_context(socket.create_connection(listening.getsockname()))
            ends.append((ours, stack.enter_context(listening.accept()[0])))
        (cut, _), (left, other_end) = ends
        assert cut_connection("ipv4:{}:{}".format(*cut.getsockname()))
        assert cut.recv(1) == b""
        other_end.send(b"x")
        assert left.recv(1) == b"x"
        assert not cut_connection(f"ipv6:[::1]:{left.getsockname()[1]}")


# --- Slow readers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(serve):
    """Start a server with so many rollouts that the stream of them does not get through to a reader who is slow."""

    def start(**config):
        store = InMemoryLightningStore()
        asyncio.run(fill(store))
        return serve(store, page_rows_max=1, **config)

    return start


async def fill(store):
    for _ in range(ROWS):
        await store.enqueue_rollout("x" * ROW_BYTES)


def unread(served, **options):
    """A stream of which only the first message is read."""
    call = served.stub.StreamQuery(STREAM, **options)
    next(call)
    return call


def test_a_slow_reader_holds_up_nobody_else(filled):
    served = filled()
    slow = [unread(served, timeout=SAFETY_SECONDS) for _ in range(3)]
    with other_client(served) as stub:
        for other in (stub, served.stub):
            assert other.GetStatistics(STATISTICS, timeout=SAFETY_SECONDS).total_rollouts == ROWS
            assert len(list(other.StreamQuery(STREAM, timeout=SAFETY_SECONDS))) == ROWS
    queries = admission_of(served).stream_queries
    until(served, lambda: queries.count == 3)
    assert queries.reply_bytes < 3 * (ROW_BYTES + 1000)  # one message each
    assert [len(list(call)) for call in slow] == [ROWS - 1] * 3
    settle(served)


def test_one_stream_query_too_many_is_refused(filled):
    served = filled(stream_queries_max=1)
    slow = unread(served, timeout=SAFETY_SECONDS)
    error = refusal(lambda: served.call("StreamQuery", STREAM))
    assert error.details == {"limit": "stream_queries_max", "maximum": "1"}
    assert error.retry_after_seconds == 5.0
    assert len(served.call("ListRollouts", ROLLOUTS).rollouts) == 1
    slow.cancel()
    settle(served)
    assert len(served.call("StreamQuery", STREAM)) == ROWS


def test_stream_queries_are_refused_past_their_bytes_and_other_calls_are_not(filled):
    served = filled(queued_bytes_max=ROW_BYTES)
    slow = unread(served, timeout=SAFETY_SECONDS)
    until_held(served, ROW_BYTES)
    assert refusal(lambda: served.call("StreamQuery", STREAM)).details["limit"] == "queued_bytes_max"
    assert len(served.call("ListRollouts", ROLLOUTS).rollouts) == 1
    slow.cancel()
    settle(served)


def until_held(served, size_bytes):
    """Return when a message of at least so many bytes waits for its reader."""
    lane = admission_of(served).stream_queries
    until(served, lambda: lane.reply_bytes >= size_bytes)


def test_a_reader_that_is_stuck_past_its_deadline_loses_its_place(filled):
    served = filled()
    slow = unread(served, timeout=1.0)
    settle(served)
    with pytest.raises(grpc.RpcError) as caught:
        list(slow)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_stuck_reader_that_set_no_deadline_is_told_of_the_default_one_when_it_reads_on(filled, monkeypatch):
    method = METHODS["StreamQuery"]
    monkeypatch.setattr(interceptors, "BY_PATH", {**BY_PATH, method.path: replace(method, deadline_seconds=0.5)})
    served = filled()
    slow = unread(served)
    until_held(served, ROW_BYTES)
    [pending] = asyncio.run(served.store.query_rollouts(limit=1))
    wait = rollout_pb2.WaitForRolloutsRequest(rollout_ids=[pending.rollout_id], wait=Duration(nanos=700_000_000))
    served.call("WaitForRollouts", wait)  # so that time passes
    assert admission_of(served).stream_queries.count == 1  # gRPC keeps the message for as long as the connection lives
    with pytest.raises(grpc.RpcError) as caught:
        list(slow)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    settle(served)


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_nothing_is_refused(name):
    with pytest.raises(InvalidArgumentError, match=f"{name} is 0; give more than 0") as caught:
        ServerConfig(**{name: 0})
    assert caught.value.details["field"] == name


@pytest.mark.parametrize("name", ["wait_seconds_max", "keepalive_seconds", "keepalive_timeout_seconds"])
@pytest.mark.parametrize("seconds", [math.inf, 1e300, 2**31 / 1000])
def test_a_time_that_grpc_cannot_count_is_refused(name, seconds):
    with pytest.raises(InvalidArgumentError, match=f"give {SECONDS_MAX} s or less") as caught:
        ServerConfig(**{name: seconds})
    assert caught.value.details["field"] == name
    ServerConfig(**{name: SECONDS_MAX})
