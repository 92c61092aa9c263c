"""Calls that share one stream: who shares it, what ends it, and what is made otherwise."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.message import DecodeError

from lightning_store import (
    InMemoryLightningStore,
    InternalError,
    MessageTooLargeError,
    RolloutNotFoundError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.testing.contract.base import until
from lightning_store.v1 import rollout_pb2
from lightning_store.wire.methods import SESSION
from lightning_store_client import LightningStoreClient, calls, channel, grpc_internals
from lightning_store_client.session import CALL_BYTES_MAX, MESSAGE_BYTES_MAX, Session
from lightning_store_server import LightningStoreServer
from tests import logged

pytestmark = pytest.mark.usefixtures("exact_delays")


def session_of(client):
    """The one that takes its calls."""
    return client._calls._connector.get().session()


def over(session):
    """Whether nothing of it is left."""
    return not session._thread.is_alive()


class Held:
    """A store whose ``statistics`` are held until they are let go, and that tells what becomes of them."""

    def __init__(self, make_rig, hooked, **config):
        self.store = InMemoryLightningStore()
        self.events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.may_go = threading.Event()
        self.rig = make_rig(hooked(self.store, statistics=self._statistics), **config)

    async def _statistics(self):
        self.events.put("asked")
        try:
            while not self.may_go.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.events.put("cancelled")
            raise
        return await self.store.statistics()

    async def next_event(self):
        return await asyncio.to_thread(self.events.get, timeout=SAFETY_SECONDS)


@pytest.fixture
def held(make_rig, hooked):
    held = Held(make_rig, hooked)
    yield held
    held.may_go.set()


# --- Sharing ---------------------------------------------------------------------------------------------------------


def test_threads_with_loops_of_their_own_share_one_session(rig):
    client = rig.client()
    threads, calls = 6, 20
    barrier = threading.Barrier(threads)

    async def work(number):
        barrier.wait(SAFETY_SECONDS)
        await asyncio.gather(*(client.start_rollout([number, n]) for n in range(calls)))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda number: asyncio.run(work(number)), range(threads)))
    asyncio.run(client.statistics())
    [session] = rig.proxy.sessions
    ids = [call.id for message in session.messages for call in message.calls]
    assert len(set(ids)) == len(ids) == threads * calls + 1
    assert not session_of(client)._waiting


def test_calls_that_are_made_at_once_share_messages(rig):
    async def scenario():
        client = rig.client()
        await asyncio.gather(*(client.start_rollout(number) for number in range(200)))

    asyncio.run(scenario())
    [session] = rig.proxy.sessions
    assert sum(len(message.calls) for message in session.messages) == 200
    assert len(session.messages) < 100


def test_a_call_that_is_made_alone_goes_alone(rig):
    async def scenario():
        client = rig.client()
        for _ in range(5):
            await client.statistics()

    asyncio.run(scenario())
    [session] = rig.proxy.sessions
    assert [len(message.calls) for message in session.messages] == [1] * 5


def test_items_go_together_unless_there_is_nothing_else_to_do(held):
    async def scenario():
        client = held.rig.client()
        slow = asyncio.create_task(client.statistics())
        await held.next_event()
        assert not session_of(client).is_idle
        await asyncio.gather(*map(client.enqueue_rollout, range(5)))
        held.may_go.set()
        await slow
        assert session_of(client).is_idle
        await asyncio.gather(*map(client.enqueue_rollout, range(5)))

    asyncio.run(scenario())
    [session] = held.rig.proxy.sessions
    requests = [call.request for message in session.messages for call in message.calls]
    _, *enqueued = map(rollout_pb2.EnqueueRolloutsRequest.FromString, requests)
    sizes = [len(request.rollouts) for request in enqueued]
    assert (sizes[:2], sum(sizes)) == ([5, 1], 10)


def test_a_call_that_takes_long_holds_up_no_other(held):
    async def scenario():
        client = held.rig.client()
        slow = asyncio.create_task(client.statistics())
        await held.next_event()
        for number in range(3):
            await client.enqueue_rollout(number)
        assert not slow.done()
        held.may_go.set()
        assert (await slow)["total_rollouts"] == 3

    asyncio.run(scenario())


def test_there_is_no_thread_for_each_call(held):
    async def scenario():
        async with LightningStoreClient(held.rig.server.endpoint, timeout=1000.0) as client:
            await client.enqueue_rollout("task")
            before = threading.active_count()
            calls = [asyncio.create_task(client.statistics()) for _ in range(50)]
            await until(lambda: held.events.qsize() == 50)
            assert threading.active_count() <= before
            held.may_go.set()
            await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_an_error_is_that_of_its_call_alone(rig):
    async def scenario():
        client = rig.client()
        outcomes = await asyncio.gather(
            client.statistics(),
            client.update_rollout("ro-no", metadata={}),
            client.server_info(),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes][1] is RolloutNotFoundError
        assert not any(isinstance(outcome, Exception) for outcome in outcomes[::2])

    asyncio.run(scenario())


class NoMessage:
    """The type of a reply that is never one."""

    @staticmethod
    def FromString(data):
        raise DecodeError("wire type 7")


def test_a_reply_that_is_no_message_is_a_failure_of_the_server(rig, monkeypatch):
    monkeypatch.setattr(calls, "REPLIES", {"GetStatistics": NoMessage})
    with pytest.raises(
        InternalError, match="GetStatistics: the reply is no message of this method's type: wire type 7"
    ):
        asyncio.run(rig.client().statistics())


# --- Large requests --------------------------------------------------------------------------------------------------


def test_a_large_request_goes_by_itself(rig):
    async def scenario():
        client = rig.client()
        small, large = await asyncio.gather(
            client.enqueue_rollout("small"), client.enqueue_rollout("x" * CALL_BYTES_MAX)
        )
        assert await client.get_rollout_by_id(large.rollout_id) == large
        assert small.input == "small"

    asyncio.run(scenario())
    by_size = {len(sent.body) > CALL_BYTES_MAX: sent.in_session for sent in rig.proxy.calls("EnqueueRollouts")}
    assert by_size == {True: False, False: True}


def test_a_message_is_never_much_larger_than_a_large_call(rig):
    async def scenario():
        client = rig.client()
        size = CALL_BYTES_MAX - 1000
        await asyncio.gather(*(client.enqueue_rollout("x" * (size if number % 2 else 10)) for number in range(30)))

    asyncio.run(scenario())
    [session] = rig.proxy.sessions
    assert max(message.ByteSize() for message in session.messages) <= MESSAGE_BYTES_MAX + CALL_BYTES_MAX


def test_calls_that_only_together_are_too_large_for_the_server_are_made(make_rig):
    rig = make_rig(max_message_bytes=2000)

    async def scenario():
        async with LightningStoreClient(rig.server.endpoint, retry_delays=()) as client:
            made = await asyncio.gather(*(client.enqueue_rollout("x" * 1500) for _ in range(10)))
            assert (await client.statistics())["total_rollouts"] == len(made) == 10

    asyncio.run(scenario())


def test_a_call_that_is_too_large_for_the_server_takes_no_other_down(make_rig):
    rig = make_rig(max_message_bytes=2000)

    async def scenario():
        async with LightningStoreClient(rig.server.endpoint, retry_delays=()) as client:
            outcomes = await asyncio.gather(
                *(client.enqueue_rollout("x" * size) for size in (100, 3000, 100, 3000)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes][1::2] == [MessageTooLargeError] * 2
            assert [outcome.input for outcome in outcomes[::2]] == ["x" * 100] * 2
            assert (await client.statistics())["total_rollouts"] == 2

    asyncio.run(scenario())


# --- A server without sessions ---------------------------------------------------------------------------------------


def test_without_sessions_calls_are_made_by_themselves(rig, broken):
    rig.proxy.breaks(SESSION, *[broken(grpc.StatusCode.UNIMPLEMENTED)] * 10)

    async def scenario():
        client = rig.client()
        await asyncio.gather(*(client.enqueue_rollout(number) for number in range(20)))
        assert (await client.statistics())["total_rollouts"] == 20

    asyncio.run(scenario())
    assert rig.proxy.sessions == []
    assert not any(sent.in_session or sent.repeated for sent in rig.proxy.sent)
    assert rig.clock.slept == []
    assert len(rig.proxy.plan[SESSION]) > 5  # it is asked once, or again by calls that come before the answer


def test_without_sessions_errors_are_told_and_calls_repeated_as_with_them(rig, broken):
    rig.proxy.breaks(SESSION, broken(grpc.StatusCode.UNIMPLEMENTED))
    rig.proxy.breaks("EnqueueRollouts", broken(lose_reply=True))

    async def scenario():
        client = rig.client()
        await client.enqueue_rollout("once")
        with pytest.raises(RolloutNotFoundError):
            await client.update_rollout("ro-no", metadata={})
        assert (await client.statistics())["total_rollouts"] == 1

    asyncio.run(scenario())
    assert [sent.repeated for sent in rig.proxy.calls("EnqueueRollouts")] == [False, True]


def test_with_a_grpc_that_lets_no_thread_of_ours_read_calls_are_made_by_themselves(rig, monkeypatch, caplog):
    def begin(*_):
        raise AttributeError("no segregated_call")

    monkeypatch.setattr(channel, "MessageStream", begin)

    async def scenario():
        client = rig.client()
        await client.enqueue_rollout("task")
        assert (await client.statistics())["total_rollouts"] == 1

    asyncio.run(scenario())
    assert not any(sent.in_session or sent.repeated for sent in rig.proxy.sent)
    [warning] = logged.warnings(caplog)
    assert warning.endswith("does not let calls share a stream (no segregated_call); they are slower")


def test_calls_whose_replies_cannot_be_read_are_made_by_themselves(rig, monkeypatch, caplog):
    """With a gRPC that is not as we know it."""
    core = grpc_internals._cygrpc
    known = {name: getattr(core, name) for name in dir(core) if name != "OperationType"}
    monkeypatch.setattr(grpc_internals, "_cygrpc", types.SimpleNamespace(**known))

    async def scenario():
        client = rig.client(retry_delays=())
        await asyncio.gather(*(client.enqueue_rollout(number) for number in range(3)))
        assert (await client.statistics())["total_rollouts"] == 3

    asyncio.run(scenario())
    assert not any(sent.in_session for sent in rig.proxy.calls("GetStatistics"))
    [warning] = logged.warnings(caplog)
    assert "does not let calls share a stream" in warning


def sessions_at(server):
    return server._serving[0]._servicer._sessions


def test_a_session_for_which_there_is_no_thread_is_ended(monkeypatch):
    start = threading.Thread.start

    def start_others(thread):
        if thread.name == "lightning-store-session":
            raise RuntimeError("can't start new thread")
        start(thread)

    async def scenario():
        async with (
            LightningStoreServer(InMemoryLightningStore(), port=0) as server,
            LightningStoreClient(server.endpoint, retry_delays=()) as client,
        ):
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start_others)
                with pytest.raises(StoreUnavailableError, match="no thread to be had for the connection: can't start"):
                    await client.statistics()
            await client.statistics()
            await until(lambda: len(sessions_at(server)) == 1)

    asyncio.run(scenario())


def test_a_session_whose_sender_is_interrupted_is_replaced(rig, monkeypatch):
    """Ctrl-C, say, on a loop that goes on."""
    next_message = Session._next_message

    def interrupted(session):
        next_message(session)
        raise KeyboardInterrupt

    client = rig.client(retry_delays=())
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(client.statistics())
        first = session_of(client)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_next_message", interrupted)
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(client.statistics())
        loop.run_until_complete(until(lambda: first.ended))
        assert loop.run_until_complete(client.statistics())["total_rollouts"] == 0
    finally:
        loop.close()


# --- The end of a stream ---------------------------------------------------------------------------------------------


def test_a_stream_that_breaks_with_calls_under_way_is_an_unavailable_server(held, broken):
    async def scenario():
        client = held.rig.client(retry_delays=())
        calls = [asyncio.create_task(client.statistics()) for _ in range(3)]
        for _ in calls:
            assert await held.next_event() == "asked"
        [session] = held.rig.proxy.sessions
        session.end(broken())
        for call in calls:
            with pytest.raises(StoreUnavailableError, match="broken by the proxy"):
                await asyncio.wait_for(call, SAFETY_SECONDS)
        held.may_go.set()
        assert await client.statistics()

    asyncio.run(scenario())
    assert len(held.rig.proxy.sessions) == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, None])
def test_calls_whose_stream_breaks_are_repeated_on_another(held, broken, code):
    """Whatever ended it, and be it a server that drains."""

    async def scenario():
        client = held.rig.client()
        calls = [asyncio.create_task(client.statistics()) for _ in range(3)]
        for _ in calls:
            assert await held.next_event() == "asked"
        [session] = held.rig.proxy.sessions
        held.may_go.set()
        session.end(None if code is None else broken(code))
        await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SAFETY_SECONDS)
        assert not session_of(client)._waiting
        return [call.exception() for call in calls]

    assert asyncio.run(scenario()) == [None] * 3
    repeated = [sent.repeated for sent in held.rig.proxy.calls("GetStatistics")]
    assert repeated.count(False) == 3
    assert all(sent.in_session for sent in held.rig.proxy.calls("GetStatistics"))


def test_a_server_that_comes_back_gets_a_session_again():
    async def scenario():
        store = InMemoryLightningStore()
        server = LightningStoreServer(store, port=0)
        await server.start()
        port = server.bound_port
        async with LightningStoreClient(server.endpoint, retry_delays=[0.05] * 100) as client:
            for number in range(3):
                await client.enqueue_rollout(number)
                first = session_of(client)
                await server.stop()
                server = LightningStoreServer(store, port=port)
                await server.start()
                assert (await client.statistics())["total_rollouts"] == number + 1
                assert session_of(client) is not first
                assert first.ended
        await server.stop()

    asyncio.run(scenario())


def test_sessions_that_ended_are_forgotten(rig, broken):
    async def scenario():
        client = rig.client(retry_delays=[0.0] * 10)
        ended = []
        for _ in range(5):
            await client.statistics()
            session = session_of(client)
            rig.proxy.sessions[-1].end(broken())
            await until(lambda session=session: over(session))
            ended.append(weakref.ref(session))
            del session
        await client.statistics()
        await until(lambda: gc.collect() >= 0 and not any(session() for session in ended))

    asyncio.run(scenario())


# --- Giving up -------------------------------------------------------------------------------------------------------


def test_a_caller_that_is_cancelled_calls_its_call_off(held):
    async def scenario():
        client = held.rig.client()
        call = asyncio.create_task(client.statistics())
        assert await held.next_event() == "asked"
        assert len(session_of(client)._waiting) == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not session_of(client)._waiting
        assert await held.next_event() == "cancelled"
        await client.server_info()

    asyncio.run(scenario())
    [session] = held.rig.proxy.sessions
    [id_] = [call.id for message in session.messages for call in message.calls if call.method == "GetStatistics"]
    assert [list(message.cancelled_ids) for message in session.messages if message.cancelled_ids] == [[id_]]


def test_a_call_that_takes_too_long_is_called_off(held):
    async def scenario():
        client = held.rig.client(timeout=0.2, retry_delays=())
        with pytest.raises(StoreTimeoutError, match=r"deadline of 0\.2 s passed"):
            await client.statistics()
        assert [await held.next_event() for _ in range(2)] == ["asked", "cancelled"]
        assert not session_of(client)._waiting

    asyncio.run(scenario())
    [sent] = held.rig.proxy.calls("GetStatistics")
    assert 0.1 < sent.seconds_left <= 0.2


def test_a_call_that_is_answered_is_not_called_off(rig):
    async def scenario():
        client = rig.client()
        await asyncio.gather(*(client.statistics() for _ in range(20)))

    asyncio.run(scenario())
    [session] = rig.proxy.sessions
    assert not any(message.cancelled_ids for message in session.messages)


def test_a_loop_that_ends_with_calls_under_way_calls_them_off(held, caplog):
    client = held.rig.client()

    async def scenario():
        calls = [asyncio.create_task(client.statistics()) for _ in range(3)]
        for _ in calls:
            assert await held.next_event() == "asked"

    asyncio.run(scenario())
    session = session_of(client)
    assert [held.events.get(timeout=SAFETY_SECONDS) for _ in range(3)] == ["cancelled"] * 3
    assert not session._waiting
    assert asyncio.run(client.enqueue_rollout("still works")).input == "still works"
    assert logged.warnings(caplog) == []


def test_a_loop_that_is_closed_with_a_call_under_way_hurts_no_other(held):
    client = held.rig.client()
    loop = asyncio.new_event_loop()
    call = loop.create_task(client.statistics())
    loop.run_until_complete(held.next_event())
    call._log_destroy_pending = False  # type: ignore[attr-defined]  # it is dropped on purpose
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    held.may_go.set()
    asyncio.run(until(lambda: not session_of(client)._waiting))
    assert asyncio.run(client.enqueue_rollout("still works")).input == "still works"
    assert len(held.rig.proxy.sessions) == 1
    with pytest.raises(RuntimeError):
        call.get_coro().throw(RuntimeError("the loop is gone"))


# --- Close -----------------------------------------------------------------------------------------------------------


def session_threads():
    return [thread for thread in threading.enumerate() if thread.name == "lightning-store-session"]


def test_close_ends_calls_and_threads(held):
    async def scenario():
        client = held.rig.client()
        calls = [asyncio.create_task(client.statistics()) for _ in range(3)]
        for _ in calls:
            assert await held.next_event() == "asked"
        session = session_of(client)
        await client.close()
        for call in calls:
            with pytest.raises((StoreError, RuntimeError)):
                await asyncio.wait_for(call, SAFETY_SECONDS)
        assert [await held.next_event() for _ in calls] == ["cancelled"] * 3
        await until(lambda: over(session))
        assert not session._waiting

    asyncio.run(scenario())


def test_a_client_that_is_forgotten_leaves_no_thread(rig):
    async def use():
        await LightningStoreClient(rig.proxy.endpoint).statistics()

    before = threading.active_count()
    for _ in range(10):
        asyncio.run(use())
    gc.collect()
    asyncio.run(until(lambda: not session_threads()))
    asyncio.run(until(lambda: gc.collect() >= 0 and threading.active_count() <= before + 1))


# --- While the process forks -----------------------------------------------------------------------------------------


@pytest.fixture
def forking():
    """``forking(work)``: do it where a process would be forked."""

    def fork(work):
        channel._gate._before()
        try:
            return work()
        finally:
            channel._gate._in_parent()

    return fork


def test_nothing_of_a_session_is_left_during_a_fork(rig, forking):
    client = rig.client()
    asyncio.run(client.statistics())
    first = session_of(client)
    assert forking(lambda: (first.ended, over(first))) == (True, True)
    asyncio.run(client.statistics())
    assert len(rig.proxy.sessions) == 2


def test_calls_under_way_are_made_again_after_a_fork(held, forking):
    async def scenario():
        client = held.rig.client(retry_delays=())
        call = asyncio.create_task(client.statistics())
        assert await held.next_event() == "asked"
        first = session_of(client)
        assert forking(lambda: over(first))
        await client.enqueue_rollout("on another")
        assert not call.done()
        held.may_go.set()
        assert (await call)["total_rollouts"] == 1

    asyncio.run(scenario())
    assert len(held.rig.proxy.sessions) == 2
    assert [sent.repeated for sent in held.rig.proxy.calls("GetStatistics")] == [False, True]


def test_what_happened_before_a_fork_happens_once(rig, forking):
    async def scenario():
        client = rig.client(retry_delays=())
        await client.enqueue_rollout("task")
        [session] = rig.proxy.sessions
        sent, session.replies = session.replies, queue.SimpleQueue()  # that nobody sends
        claim = asyncio.create_task(client.dequeue_rollout(worker_id="w"))
        assert await asyncio.to_thread(session.replies.get, timeout=SAFETY_SECONDS)
        forking(lambda: None)
        sent.put(None)
        claimed = await claim
        assert [attempt.sequence_id for attempt in await client.query_attempts(claimed.rollout_id)] == [1]

    asyncio.run(scenario())
    assert [sent.repeated for sent in rig.proxy.calls("DequeueRollouts")] == [False, True]


def test_what_was_done_before_a_fork_is_not_told_as_refused_after_it(rig, forking, broken):
    async def scenario():
        client = rig.client(retry_delays=())
        await client.statistics()
        [session] = rig.proxy.sessions
        sent, session.replies = session.replies, queue.SimpleQueue()  # that nobody sends
        rig.proxy.breaks("EnqueueRollouts", None, broken(grpc.StatusCode.RESOURCE_EXHAUSTED))
        call = asyncio.create_task(client.enqueue_rollout("task"))
        assert await asyncio.to_thread(session.replies.get, timeout=SAFETY_SECONDS)
        forking(lambda: None)
        sent.put(None)
        with pytest.raises(StoreUnavailableError, match="the process forked before the server answered"):
            await call
        assert (await client.statistics())["total_rollouts"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("large", [False, True])
def test_threads_of_grpc_that_wait_are_woken_for_a_fork(held, forking, large):
    """They look only once a second otherwise whether they are to make way."""

    async def scenario():
        client = held.rig.client()
        if large:
            client._calls._connector.get().has_sessions = False
        call = asyncio.create_task(client.statistics())
        assert await held.next_event() == "asked"
        assert forking(lambda: channel._gate._nudging is not None) == large
        held.may_go.set()
        await call

    asyncio.run(scenario())


def test_a_call_that_comes_during_a_fork_is_made_after_it(held, forking):
    client = held.rig.client()

    def during():
        made = pool.submit(asyncio.run, client.enqueue_rollout("task"))
        with pytest.raises(TimeoutError):
            made.result(0.05)
        return made

    async def scenario():
        slow = asyncio.create_task(client.statistics())
        assert await held.next_event() == "asked"
        made = forking(during)
        assert (await asyncio.wrap_future(made)).input == "task"
        held.may_go.set()
        await slow

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(scenario())


def test_a_caller_that_gives_up_during_a_fork_makes_no_call_after_it(held, forking):
    client = held.rig.client()
    begun, left = threading.Event(), threading.Event()

    async def give_up():
        call = asyncio.create_task(client.statistics())
        assert await held.next_event() == "asked"
        begun.set()
        left.wait(SAFETY_SECONDS)
        call.cancel()

    def during():
        left.set()
        giving_up.result(SAFETY_SECONDS)

    with ThreadPoolExecutor(1) as pool:
        giving_up = pool.submit(asyncio.run, give_up())
        assert begun.wait(SAFETY_SECONDS)
        forking(during)
    asyncio.run(client.enqueue_rollout("after it"))
    assert held.events.get(timeout=SAFETY_SECONDS) == "cancelled"
    assert len(held.rig.proxy.calls("GetStatistics")) == 1


# --- What no server should send --------------------------------------------------------------------------------------


def test_what_is_no_message_of_a_session_ends_it_and_its_calls(held):
    async def scenario():
        client = held.rig.client()
        call = asyncio.create_task(client.statistics())
        assert await held.next_event() == "asked"
        held.rig.proxy.sessions[0].replies.put(b"\xff\xff")
        with pytest.raises(InternalError, match="what is no message of a session"):
            await call
        assert await held.next_event() == "cancelled"
        await client.enqueue_rollout("on another")

    asyncio.run(scenario())
    assert len(held.rig.proxy.sessions) == 2
