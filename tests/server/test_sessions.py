"""Calls that share one stream: each is answered as it would be by itself, and none has to do with another."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import queue
import threading
import weakref
from collections import deque
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code

from lightning_store import InMemoryLightningStore
from lightning_store.engine.idempotency import current_request
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import rollout_pb2, server_pb2
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest, SessionResponse
from lightning_store.wire.errors import error_from_proto
from lightning_store.wire.methods import METHODS, REPLIES
from lightning_store_server import sessions
from tests.server.test_overload import Gate, admission_of, other_client, settle, until

STATISTICS = server_pb2.GetStatisticsRequest()
INFO = server_pb2.GetServerInfoRequest()
WORK = rollout_pb2.DequeueRolloutsRequest(request_id="work", worker_id="w", max_wait=Duration(seconds=1000))
ERRORS = "lightning_store_server"
ACCESS = "lightning_store_server.access"
PATH = "/lightning_store.v1.LightningStoreService/Session"


def call_of(id_, method, request=b"", **fields):
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return SessionCall(id=id_, method=method, request=data, **fields)


class Stream:
    """A session as a client sees it."""

    def __init__(self, stub, metadata=()):
        self._outbox: queue.SimpleQueue[SessionRequest | None] = queue.SimpleQueue()
        self._ids = itertools.count(1)
        self._arrived = deque()
        self.rpc = stub.Session(iter(self._outbox.get, None), timeout=SAFETY_SECONDS, metadata=metadata)

    def send(self, *calls, cancel=()):
        """One message."""
        self._outbox.put(SessionRequest(calls=calls, cancelled_ids=cancel))

    def begin(self, method, request=b"", **fields):
        """A message of one call; its id."""
        id_ = next(self._ids)
        self.send(call_of(id_, method, request, **fields))
        return id_

    def say_no_more(self):
        self._outbox.put(None)

    def reply(self):
        """The next one that comes."""
        while not self._arrived:
            self._arrived.extend(next(self.rpc).replies)
        return self._arrived.popleft()

    def result(self, method, request=b"", **fields):
        """The message with which a call is answered, while no other is."""
        id_ = self.begin(method, request, **fields)
        reply = self.reply()
        assert (reply.id, reply.error) == (id_, type(reply.error)())
        return REPLIES[method].FromString(reply.response)

    def failure(self, method, request=b"", **fields):
        """The error with which a call is answered, while no other is."""
        id_ = self.begin(method, request, **fields)
        reply = self.reply()
        assert (reply.id, reply.response) == (id_, b"")
        return error_from_proto(reply.error)

    def end(self):
        """The status of the stream, and nothing came before."""
        with pytest.raises((grpc.RpcError, StopIteration)):
            self.reply()
        return self.rpc.code().name, self.rpc.details()


@pytest.fixture
def open_stream():
    """``open_stream(served)``; streams are broken off after the test."""
    opened = []

    def open_on(served):
        opened.append(Stream(served.stub))
        return opened[-1]

    yield open_on
    for stream in opened:
        stream.rpc.cancel()
        stream.say_no_more()


@pytest.fixture
def stream(served, open_stream):
    return open_stream(served)


@pytest.fixture
def gated(serve, hooked):
    """A server whose GetStatistics are parked, and the gate: ``gated(**config)``."""

    def start(error=None, **config):
        inner = InMemoryLightningStore()
        gate = Gate(inner.statistics, error)
        return serve(hooked(inner, statistics=gate), **config), gate

    return start


class Noted:
    """A store's method that tells of each call of it and how it ended."""

    def __init__(self, inner):
        self._inner = inner
        self.events: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def __call__(self, *arguments, **keywords):
        self.events.put("entered")
        try:
            return await self._inner(*arguments, **keywords)
        except asyncio.CancelledError:
            self.events.put("cancelled")
            raise

    def next(self):
        return self.events.get(timeout=SAFETY_SECONDS)


@pytest.fixture
def waiting(serve, hooked):
    """A server, what tells of its DequeueRollouts, and its store."""
    inner = InMemoryLightningStore()
    noted = Noted(inner.dequeue_many_rollouts)
    return serve(hooked(inner, dequeue_many_rollouts=noted)), noted, inner


# --- Calls -----------------------------------------------------------------------------------------------------------


def test_calls_are_answered_under_their_ids(stream):
    new = rollout_pb2.EnqueueRolloutsRequest(request_id="id", rollouts=[rollout_pb2.NewRollout(input_json="1")])
    [made] = stream.result("EnqueueRollouts", new).rollouts
    found = stream.result("GetRollout", rollout_pb2.GetRolloutRequest(rollout_id=made.rollout_id))
    assert found.rollout == made
    assert stream.result("GetStatistics").total_rollouts == 1


def test_all_calls_of_a_message_are_answered(stream):
    stream.send(*(call_of(number, "GetStatistics") for number in range(500)))
    assert sorted(stream.reply().id for _ in range(500)) == list(range(500))


def test_calls_are_begun_in_the_order_in_which_they_come(stream):
    new = rollout_pb2.NewRollout(input_json="1")
    requests = [rollout_pb2.EnqueueRolloutsRequest(request_id=f"id-{n}", rollouts=[new] * n) for n in range(1, 6)]
    stream.send(*(call_of(n, "EnqueueRollouts", request) for n, request in enumerate(requests)))
    for _ in requests:
        stream.reply()
    rollouts = stream.result("ListRollouts", rollout_pb2.ListRolloutsRequest()).rollouts
    assert len(rollouts) == 15
    assert [rollout.start_time.ToNanoseconds() for rollout in rollouts] == sorted(
        rollout.start_time.ToNanoseconds() for rollout in rollouts
    )


def test_a_call_that_takes_long_holds_up_no_other(gated, open_stream):
    served, gate = gated()
    stream = open_stream(served)
    slow = stream.begin("GetStatistics")
    open_ = gate.parked()
    for _ in range(3):
        assert stream.result("GetServerInfo").version
    open_()
    assert stream.reply().id == slow


def test_replies_that_are_too_many_for_one_message_come_in_several(serve, open_stream):
    store = InMemoryLightningStore()
    made = asyncio.run(store.enqueue_rollout("x" * 3_000_000))
    stream = open_stream(serve(store))
    get = rollout_pb2.GetRolloutRequest(rollout_id=made.rollout_id)
    stream.send(*(call_of(number, "GetRollout", get) for number in range(10)))
    sizes: list[int] = []
    while sum(sizes) < 10:
        sizes.append(len(next(stream.rpc).replies))
    assert (sum(sizes), len(sizes) >= 4, max(sizes) <= 3) == (10, True, True)


def test_the_stream_ends_when_the_caller_has_said_all_and_has_its_answers(gated, open_stream):
    served, gate = gated()
    stream = open_stream(served)
    stream.begin("GetStatistics")
    open_ = gate.parked()
    stream.say_no_more()
    open_()
    assert stream.reply().id == 1
    assert stream.end() == ("OK", "")


def test_a_call_tells_whether_it_was_sent_before(serve, hooked, open_stream):
    inner = InMemoryLightningStore()
    seen = []

    async def enqueue_many_rollouts(rollouts):
        seen.append(current_request().repeated)
        return await inner.enqueue_many_rollouts(rollouts)

    stream = open_stream(serve(hooked(inner, enqueue_many_rollouts=enqueue_many_rollouts)))
    for number, repeated in enumerate([False, True]):
        stream.result("EnqueueRollouts", rollout_pb2.EnqueueRolloutsRequest(request_id=f"{number}"), repeated=repeated)
    assert seen == [False, True]


# --- What is wrong with one call, or with the stream -----------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["NoSuchMethod", "", "Session", "Check", *(m.name for m in METHODS.values() if m.streams)]
)
def test_a_method_that_is_unknown_or_streams_is_refused_and_no_other_call(stream, method):
    stream.send(call_of(1, method), call_of(2, "GetStatistics"))
    refused, answered = sorted((stream.reply() for _ in range(2)), key=lambda reply: reply.id)
    assert refused.error.code == Code.UNIMPLEMENTED
    error = error_from_proto(refused.error)
    assert error.details["field"] == "method"
    assert f"method is {method!r}; a session of this server takes GetServerInfo, GetStatistics, " in str(error)
    assert answered.response


@pytest.mark.parametrize("method", ["GetRollout", "AddSpans", "DequeueRollouts", "UpdateWorker"])
def test_bytes_that_are_no_request_fail_one_call_and_no_other(served, stream, method):
    stream.send(call_of(1, "GetServerInfo"), call_of(2, method, b"\xff\xff"), call_of(3, "GetServerInfo"))
    replies = {reply.id: reply for reply in (stream.reply() for _ in range(3))}
    assert replies[2].error.code == Code.INVALID_ARGUMENT
    assert "no message of this method's type" in replies[2].error.message
    assert replies[1].response == replies[3].response != b""
    settle(served)


def test_an_error_of_the_store_is_that_of_the_call(stream):
    error = stream.failure("StartAttempt", rollout_pb2.StartAttemptRequest(request_id="id", rollout_id="ro-no"))
    assert (type(error).__name__, error.details) == ("RolloutNotFoundError", {"rollout_id": "ro-no"})


def test_a_failure_of_the_store_is_an_incident(gated, open_stream, log):
    served, gate = gated(error=RuntimeError("secret"))
    stream = open_stream(served)
    id_ = stream.begin("GetStatistics")
    gate.parked()()
    reply = stream.reply()
    assert (reply.id, reply.error.code) == (id_, Code.INTERNAL)
    error = error_from_proto(reply.error)
    assert "secret" not in str(reply)
    record = log.next(ERRORS)
    assert record.getMessage() == f"{METHODS['GetStatistics'].path} failed, incident {error.details['incident_id']}"
    assert str(record.exc_info[1]) == "secret"
    assert stream.result("GetServerInfo").version
    settle(served)


def test_a_store_that_cancels_its_own_call_is_unavailable(serve, hooked, open_stream):
    async def statistics():
        raise asyncio.CancelledError

    stream = open_stream(serve(hooked(InMemoryLightningStore(), statistics=statistics)))
    assert type(stream.failure("GetStatistics")).__name__ == "StoreUnavailableError"
    assert stream.result("GetServerInfo").version


def test_an_id_that_is_in_use_ends_the_stream_at_once(waiting, open_stream):
    served, noted, _ = waiting
    stream = open_stream(served)
    stream.send(call_of(7, "DequeueRollouts", WORK))
    assert noted.next() == "entered"
    stream.send(call_of(7, "GetStatistics"))
    code, details = stream.end()
    assert (code, details) == ("INVALID_ARGUMENT", "the id 7 belongs to a call that is under way")
    assert noted.next() == "cancelled"
    settle(served)


def test_what_is_no_message_of_a_session_ends_the_stream_at_once(waiting):
    served, noted, _ = waiting
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    raw = served.channel.stream_stream(PATH, response_deserializer=SessionResponse.FromString)
    rpc = raw(iter(outbox.get, None), timeout=SAFETY_SECONDS)
    outbox.put(SessionRequest(calls=[call_of(1, "DequeueRollouts", WORK)]).SerializeToString())
    assert noted.next() == "entered"
    outbox.put(b"\xff\xff")
    with pytest.raises(grpc.RpcError) as caught:
        next(rpc)
    outbox.put(None)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "what came is no SessionRequest" in str(caught.value.details())
    assert noted.next() == "cancelled"
    settle(served)


def test_an_id_may_be_used_again_when_its_call_has_ended(stream):
    for _ in range(3):
        stream.send(call_of(7, "GetStatistics"))
        assert stream.reply().id == 7


def test_an_id_may_be_used_again_when_its_call_was_called_off(waiting, open_stream):
    served, noted, inner = waiting
    stream = open_stream(served)
    stream.send(call_of(7, "DequeueRollouts", WORK))
    assert noted.next() == "entered"
    stream.send(cancel=[7])
    stream.send(call_of(7, "DequeueRollouts", WORK))
    assert noted.next() == "cancelled"
    assert noted.next() == "entered"
    asyncio.run(inner.enqueue_rollout("task"))
    assert len(rollout_pb2.DequeueRolloutsResponse.FromString(stream.reply().response).rollouts) == 1
    settle(served)


# --- Calling off -----------------------------------------------------------------------------------------------------


def test_a_wait_for_work_that_is_called_off_costs_no_claim_and_has_no_reply(waiting, open_stream):
    served, noted, inner = waiting
    stream = open_stream(served)
    id_ = stream.begin("DequeueRollouts", WORK)
    assert noted.next() == "entered"
    stream.send(cancel=[id_])
    assert noted.next() == "cancelled"
    settle(served)
    made = asyncio.run(inner.enqueue_rollout("task"))
    other = rollout_pb2.DequeueRolloutsRequest(request_id="other", worker_id="other")
    [claimed] = stream.result("DequeueRollouts", other).rollouts
    assert claimed.rollout_id == made.rollout_id
    assert claimed.latest_attempt.sequence_id == 1


def test_a_call_that_is_called_off_with_its_own_message_does_nothing(stream):
    new = rollout_pb2.EnqueueRolloutsRequest(request_id="id", rollouts=[rollout_pb2.NewRollout(input_json="1")])
    stream.send(call_of(100, "EnqueueRollouts", new), call_of(101, "GetStatistics"), cancel=[100])
    reply = stream.reply()
    assert reply.id == 101
    assert server_pb2.GetStatisticsResponse.FromString(reply.response).total_rollouts == 0
    assert stream.result("GetStatistics").total_rollouts == 0


def test_calling_off_what_is_unknown_or_over_is_harmless(stream):
    stream.send(cancel=[1, 2, 2**64 - 1])
    assert stream.result("GetStatistics").total_rollouts == 0
    stream.send(cancel=[1])
    assert stream.result("GetStatistics").total_rollouts == 0


def test_a_store_that_answers_though_it_was_called_off_is_not_listened_to(serve, hooked, open_stream):
    inner = InMemoryLightningStore()
    entered: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def statistics():
        entered.put(None)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await inner.statistics()

    served = serve(hooked(inner, statistics=statistics))
    stream = open_stream(served)
    id_ = stream.begin("GetStatistics")
    entered.get(timeout=SAFETY_SECONDS)
    stream.send(cancel=[id_])
    settle(served)
    assert stream.result("GetServerInfo").version


# --- Time ------------------------------------------------------------------------------------------------------------


def test_a_wait_is_answered_before_its_caller_gives_up(stream):
    for timeout_ms in (1, 200):
        assert not stream.result("DequeueRollouts", WORK, timeout_ms=timeout_ms).rollouts


def test_a_wait_without_a_time_limit_is_as_long_as_the_server_lets_it(serve, open_stream):
    stream = open_stream(serve(wait_seconds_max=0.05))
    assert not stream.result("DequeueRollouts", WORK).rollouts


# --- Limits ----------------------------------------------------------------------------------------------------------


def test_one_call_too_many_is_refused_by_itself_and_told_when_to_come_back(gated, open_stream):
    served, gate = gated(calls_max=2)
    stream = open_stream(served)
    parked = {stream.begin("GetStatistics") for _ in range(2)}
    opens = [gate.parked() for _ in parked]
    error = stream.failure("GetServerInfo")
    assert error.details == {"limit": "calls_max", "maximum": "2"}
    assert error.retry_after_seconds == 1.0
    for open_ in opens:
        open_()
    assert {stream.reply().id for _ in parked} == parked
    assert stream.result("GetServerInfo").version
    settle(served)


def test_waits_have_places_of_their_own(waiting, serve, hooked, open_stream):
    inner = InMemoryLightningStore()
    noted = Noted(inner.dequeue_many_rollouts)
    served = serve(hooked(inner, dequeue_many_rollouts=noted), waits_max=1, calls_max=1)
    stream = open_stream(served)
    stream.begin("DequeueRollouts", WORK)
    assert noted.next() == "entered"
    error = stream.failure("DequeueRollouts", WORK)
    assert (error.details["limit"], error.retry_after_seconds) == ("waits_max", 5.0)
    assert stream.result("GetStatistics").total_rollouts == 0


def test_the_bytes_of_a_request_count(gated, open_stream):
    served, gate = gated(queued_bytes_max=1000)
    stream = open_stream(served)
    id_ = stream.begin("GetStatistics", b"\x7a\xe8\x07" + b"x" * 1000)  # in a field that is not known
    open_ = gate.parked()
    assert stream.failure("GetServerInfo").details["limit"] == "queued_bytes_max"
    open_()
    assert stream.reply().id == id_
    settle(served)


def test_calls_of_a_client_that_vanishes_leave_their_places(waiting, open_stream):
    served, noted, inner = waiting
    stream = open_stream(served)
    stream.send(*(call_of(number, "DequeueRollouts", WORK) for number in range(3)))
    assert [noted.next() for _ in range(3)] == ["entered"] * 3
    stream.rpc.cancel()
    assert [noted.next() for _ in range(3)] == ["cancelled"] * 3
    settle(served)
    made = asyncio.run(inner.enqueue_rollout("task"))
    assert asyncio.run(inner.get_rollout_by_id(made.rollout_id)).status == "queuing"


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05])
def test_waits_of_a_client_that_vanishes_claim_nothing_later(served, open_stream, seconds):
    """Of the store in memory, whose calls are begun without a task of their own; more of them than at one stretch."""
    stream = open_stream(served)
    wait = Duration(seconds=20)
    claims = (rollout_pb2.DequeueRolloutsRequest(request_id=f"{n}", limit=1, max_wait=wait) for n in range(100))
    stream.send(*(call_of(number, "DequeueRollouts", claim) for number, claim in enumerate(claims)))
    threading.Event().wait(seconds)
    stream.rpc.cancel()
    settle(served)
    until(served, lambda: not served.store.engine._waiting.claimants._waiting)
    made = asyncio.run(served.store.enqueue_rollout("task"))
    assert asyncio.run(served.store.get_rollout_by_id(made.rollout_id)).status == "queuing"


SIZE_BYTES = 700_000
"""Some of them are more than gRPC and the network take on the way to a reader who does not read."""
UNREAD = 64


@pytest.fixture
def unread(serve):
    """A server, and a client that has asked for much and reads nothing."""
    store = InMemoryLightningStore()
    made = asyncio.run(store.enqueue_rollout("x" * SIZE_BYTES))
    served = serve(store)
    get = rollout_pb2.GetRolloutRequest(rollout_id=made.rollout_id)
    with other_client(served) as stub:
        stream = Stream(stub)
        for number in range(UNREAD):
            stream.send(call_of(number, "GetRollout", get))
        lane = admission_of(served).calls
        until(served, lambda: lane.reply_bytes > SIZE_BYTES)
        yield served, stream
        stream.rpc.cancel()
        stream.say_no_more()


def test_a_client_that_does_not_read_its_replies_holds_up_nobody_else(unread, open_stream):
    served, stream = unread
    other = open_stream(served)
    for _ in range(3):
        assert other.result("GetStatistics").total_rollouts == 1
    assert served.call("GetStatistics", STATISTICS).total_rollouts == 1
    assert {stream.reply().id for _ in range(UNREAD)} == set(range(UNREAD))
    settle(served)


def test_replies_that_nobody_will_read_are_not_kept(unread):
    served, stream = unread
    stream.rpc.cancel()
    settle(served)


def test_replies_that_wait_to_be_read_count(serve, open_stream):
    store = InMemoryLightningStore()
    made = asyncio.run(store.enqueue_rollout("x" * SIZE_BYTES))
    served = serve(store, queued_bytes_max=SIZE_BYTES)
    get = rollout_pb2.GetRolloutRequest(rollout_id=made.rollout_id)
    stream = open_stream(served)
    stream.send(*(call_of(number, "GetRollout", get) for number in range(20)))
    outcomes = [stream.reply() for _ in range(20)]
    refused = [error_from_proto(reply.error) for reply in outcomes if not reply.response]
    assert refused
    assert {error.details["limit"] for error in refused} == {"queued_bytes_max"}
    settle(served)


# --- The end of the server -------------------------------------------------------------------------------------------


@contextmanager
def stopping(served):
    """Stop the server meanwhile; on leaving, it must have stopped."""
    thread = threading.Thread(target=served.stop)
    thread.start()
    yield
    thread.join(SAFETY_SECONDS)
    assert not thread.is_alive()


def test_a_server_that_drains_ends_waits_finishes_calls_and_then_the_stream(gated, open_stream):
    served, gate = gated(grace_seconds=SAFETY_SECONDS)
    stream = open_stream(served)
    call = stream.begin("GetStatistics")
    open_ = gate.parked()
    wait = stream.begin("DequeueRollouts", WORK)
    until(served, lambda: admission_of(served).waits.count == 1)
    with stopping(served):
        told = stream.reply()
        assert (told.id, told.error.code) == (wait, Code.UNAVAILABLE)
        assert "the server is shutting down" in told.error.message
        late = stream.failure("GetServerInfo")
        assert "the server is shutting down" in str(late)
        open_()
        assert stream.reply().id == call
        assert stream.end() == ("OK", "")


def test_an_idle_session_does_not_hold_the_server_up(serve, open_stream):
    served = serve(grace_seconds=1000.0)
    stream = open_stream(served)
    stream.result("GetStatistics")
    with stopping(served):
        assert stream.end() == ("OK", "")


def test_calls_past_the_grace_are_cut(gated, open_stream):
    served, gate = gated(grace_seconds=0.05)
    stream = open_stream(served)
    stream.begin("GetStatistics")
    gate.parked()
    with stopping(served):
        code, _ = stream.end()
        assert code in {"UNAVAILABLE", "CANCELLED"}


# --- The log ---------------------------------------------------------------------------------------------------------


def test_access_log_has_one_line_for_each_call(serve, log, open_stream):
    served = serve(access_log=True)
    stream = open_stream(served)
    stream.result("GetServerInfo")
    stream.failure("StartAttempt", rollout_pb2.StartAttemptRequest(request_id="a", rollout_id="ro-no"))
    stream.failure("NoSuchMethod")
    stream.failure("GetRollout", b"\xff")
    stream.failure("NoSuchMethod\n2026-01-01 INFO forged" + "x" * 100_000)
    records = [log.next(ACCESS) for _ in range(5)]
    assert [(record.call["method"], record.call["code"]) for record in records] == [
        (METHODS["GetServerInfo"].path, "OK"),
        (METHODS["StartAttempt"].path, "NOT_FOUND"),
        ("NoSuchMethod", "UNIMPLEMENTED"),
        (METHODS["GetRollout"].path, "INVALID_ARGUMENT"),
        (r"NoSuchMethod\n2026-01-01 INFO forged" + "x" * 64 + "…", "UNIMPLEMENTED"),
    ]
    for record in records:
        assert record.call["peer"].startswith("ipv4:127.0.0.1:")
        assert 0 <= record.call["duration_ms"] < SAFETY_SECONDS * 1000
    served.stop()
    assert log.left(logging.DEBUG) == []


def test_access_log_tells_of_calls_that_were_called_off(serve, hooked, log, open_stream):
    inner = InMemoryLightningStore()
    noted = Noted(inner.dequeue_many_rollouts)
    served = serve(hooked(inner, dequeue_many_rollouts=noted), access_log=True)
    stream = open_stream(served)
    id_ = stream.begin("DequeueRollouts", WORK)
    assert noted.next() == "entered"
    stream.send(cancel=[id_])
    assert log.next(ACCESS).call["code"] == "CANCELLED"


def test_sessions_that_come_and_go_leave_nothing_in_the_log(served, log, open_stream):
    for number in range(20):
        stream = open_stream(served)
        stream.result("GetStatistics")
        if number % 2:
            stream.begin("DequeueRollouts", WORK)
        stream.rpc.cancel()
    settle(served)
    served.stop()
    assert log.left(logging.DEBUG) == []


def test_a_session_that_is_cut_leaves_nothing_to_the_garbage_collector(serve, open_stream, monkeypatch):
    """Which may have been told to leave alone what was there while it waited."""
    opened = []

    class Noted(sessions._Session):
        def __init__(self, *given):
            super().__init__(*given)
            opened.append(weakref.ref(self))

    monkeypatch.setattr(sessions, "_Session", Noted)
    served = serve()
    gc.disable()
    try:
        stream = open_stream(served)
        stream.send(call_of(1, "DequeueRollouts", WORK))
        until(served, lambda: admission_of(served).waits.count == 1)
        stream.rpc.cancel()
        settle(served)
        until(served, lambda: [session() for session in opened] == [None])
    finally:
        gc.enable()
