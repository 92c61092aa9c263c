"""WatchRollouts and DeleteRollouts as they are on the wire."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from lightning_store import EnqueueRolloutRequest, InMemoryLightningStore, UnsupportedError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.testing.contract.base import make_span
from lightning_store.testing.contract.feed import many_ended
from lightning_store.v1 import rollout_pb2, span_pb2
from tests.new_spans import new_span

SERVER_LOG = "lightning_store_server"


def ended(served, count):
    return asyncio.run(many_ended(served.store, count))


def watch(served, timeout=SAFETY_SECONDS, **fields):
    """The stream of the call."""
    return served.stub.WatchRollouts(rollout_pb2.WatchRolloutsRequest(**fields), timeout=timeout)


def names(replies):
    return [one.rollout.rollout_id for reply in replies for one in reply.completions]


def until_followed(store, count):
    """Return when so many calls follow the store."""
    changed = threading.Event()
    for _ in range(int(SAFETY_SECONDS * 1000)):
        if len(store.engine._waiting.watchers._watching) == count:
            return
        changed.wait(0.001)
    raise AssertionError(f"{len(store.engine._waiting.watchers._watching)} calls follow the store, not {count}")


def test_the_last_message_of_a_feed_of_some_says_that_it_is_complete(serve):
    served = serve()
    ids = ended(served, 3)
    replies = list(watch(served, rollout_id_in={"values": ids[::-1]}))
    assert names(replies) == ids
    assert [reply.complete for reply in replies] == [False] * (len(replies) - 1) + [True]
    assert len(replies[-1].completions) == 0


@pytest.mark.parametrize("values", [[], ["ro-x"]])
def test_a_feed_of_nothing_is_complete_at_once(serve, values):
    [reply] = watch(serve(), rollout_id_in={"values": values})
    assert reply == rollout_pb2.WatchRolloutsResponse(complete=True)


def test_what_is_there_comes_in_few_messages_within_the_limits(serve):
    served = serve(page_rows_max=50)
    ids = ended(served, 1000)
    replies = list(watch(served, rollout_id_in={"values": ids}))
    assert names(replies) == ids
    assert max(len(reply.completions) for reply in replies) == 50
    assert len(replies) < 50


def test_messages_stay_below_the_limit_of_bytes(serve):
    served = serve(page_bytes_max=10_000)
    store = served.store

    async def make():
        large = [EnqueueRolloutRequest(input="x" * size) for size in [1000] * 30 + [50_000] + [1000] * 5]
        made = await store.enqueue_many_rollouts(large)
        return [one.rollout_id for one in await store.cancel_rollouts([one.rollout_id for one in made])]

    ids = asyncio.run(make())
    replies = list(watch(served, rollout_id_in={"values": ids}))
    assert names(replies) == ids
    sizes = [(reply.ByteSize(), len(reply.completions)) for reply in replies]
    assert [count for size, count in sizes if size > 10_500] == [1]


def test_a_call_that_has_grown_old_ends_well_and_is_not_complete(serve):
    served = serve()
    [one] = ended(served, 1)
    replies = list(watch(served, timeout=0.3))
    assert names(replies) == [one]
    assert not any(reply.complete for reply in replies)
    until_followed(served.store, 0)


def test_a_caller_that_leaves_is_forgotten(serve):
    served = serve()
    calls = [watch(served) for _ in range(3)]
    until_followed(served.store, 3)
    for call in calls:
        call.cancel()
    until_followed(served.store, 0)


def test_a_caller_that_stops_reading_and_leaves_is_forgotten(serve):
    served = serve(page_rows_max=1)
    ended(served, 2000)
    call = watch(served)
    next(call)
    until_followed(served.store, 1)
    call.cancel()
    until_followed(served.store, 0)


@pytest.mark.parametrize("thread_safe", [True, False])
def test_a_follower_is_told_at_once_that_the_server_goes(serve, hooked, thread_safe):
    inner = InMemoryLightningStore()
    served = serve(hooked(inner, thread_safe=thread_safe), grace_seconds=1000.0)
    calls = [watch(served, timeout=1000) for _ in range(3)]
    until_followed(inner, 3)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(served.stop)
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "the server is shutting down" in str(caught.value.details())
        stopped.result(SAFETY_SECONDS)
    until_followed(inner, 0)


def test_an_error_in_the_middle_comes_after_what_was_told(serve, log):
    class Failing(InMemoryLightningStore):
        async def watch_rollouts(self, rollout_ids=None, *, after=None, **filters):
            number = 0
            async for completed in super().watch_rollouts(rollout_ids, after=after):
                number += 1
                if number == 3:
                    raise ZeroDivisionError("by nothing")
                yield completed

    served = serve(Failing())
    ids = ended(served, 5)
    told = []
    with pytest.raises(grpc.RpcError) as caught:
        told.extend(name for reply in watch(served) for name in names([reply]))
    assert told == ids[:2]
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "nothing" not in str(caught.value.details())
    record = log.next(SERVER_LOG)
    assert (record.levelname, record.exc_info[0]) == ("ERROR", ZeroDivisionError)
    until_followed(served.store, 0)


def test_a_store_without_them_is_no_failure_of_the_server(serve, hooked):
    """The log, which the fixture looks at, has neither warnings nor errors."""

    async def refuse(*_, **__):
        raise UnsupportedError("no deletions here")

    def refuse_stream(*_):
        raise UnsupportedError("no feeds here")

    store = hooked(InMemoryLightningStore(), delete_rollouts=refuse)
    store._forward_stream = refuse_stream
    served = serve(store)
    for rpc, request in (
        ("WatchRollouts", rollout_pb2.WatchRolloutsRequest()),
        ("DeleteRollouts", rollout_pb2.DeleteRolloutsRequest(request_id="r", older_than=Duration())),
    ):
        failure = served.failure(rpc, request)
        assert (failure.code, failure.reason) == ("UNIMPLEMENTED", "UNSUPPORTED")


def test_another_servers_cursor_is_refused(serve):
    first, second = serve(), serve()
    ended(first, 1)
    [completed] = next(watch(first)).completions
    failure = second.failure("WatchRollouts", rollout_pb2.WatchRolloutsRequest(after=completed.cursor))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "CURSOR_UNKNOWN", ["after"])


def test_a_full_store_says_when_to_come_back_for_each_kind_of_write(serve):
    store = InMemoryLightningStore(memory_limit=2400)
    started = asyncio.run(store.start_rollout("x" * 1000))
    served = serve(store)
    span = new_span(make_span(started))
    for rpc, fields in (
        ("StartRollout", {"rollout": {"input_json": "1"}}),
        ("EnqueueRollouts", {"rollouts": [{"input_json": "1"}]}),
    ):
        request = getattr(rollout_pb2, f"{rpc}Request")(request_id=rpc, **fields)
        failure = served.failure(rpc, request)
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED")
        assert failure.details["limit"] == "memory_limit"
        assert "RetryInfo" in failure.metadata
    failure = served.failure("AddSpans", span_pb2.AddSpansRequest(request_id="s", spans=[span]))
    assert (failure.code, "RetryInfo" in failure.metadata) == ("RESOURCE_EXHAUSTED", True)
    assert asyncio.run(store.statistics())["total_spans"] == 0


def test_a_wait_for_one_of_several_on_the_wire(serve):
    served = serve()
    [done] = ended(served, 1)
    pending = asyncio.run(served.store.enqueue_rollout("task")).rollout_id
    any_ = rollout_pb2.RETURN_WHEN_ANY

    def wait(ids, **fields):
        request = rollout_pb2.WaitForRolloutsRequest(rollout_ids=ids, wait=Duration(), **fields)
        reply = served.call("WaitForRollouts", request)
        return [one.rollout_id for one in reply.rollouts], reply.complete

    assert wait([pending, done], return_when=any_) == ([done], True)
    assert wait([pending], return_when=any_) == ([], False)
    assert wait(["ro-x"], return_when=any_) == ([], True)
    assert wait([pending, done]) == ([done], False)
    assert wait([pending, done], omit_unless_complete=True) == ([], False)
    assert wait([done, "ro-x"], omit_unless_complete=True) == ([done], True)
    assert wait([pending, done], return_when=any_, omit_unless_complete=True) == ([done], True)
    failure = served.failure("WaitForRollouts", rollout_pb2.WaitForRolloutsRequest(return_when=9))
    assert failure.fields == ["return_when"]


def test_a_store_that_knows_only_all_is_not_asked_for_any_other(serve, hooked):
    """A store from before ``return_when`` still serves the waits that it knows."""
    inner = InMemoryLightningStore()
    asked: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()

    async def wait_for_rollouts(**arguments):
        asked.put(arguments)
        return []

    served = serve(hooked(inner, wait_for_rollouts=wait_for_rollouts))
    served.call("WaitForRollouts", rollout_pb2.WaitForRolloutsRequest(rollout_ids=["ro-x"], wait=Duration()))
    assert set(asked.get()) == {"rollout_ids", "timeout"}
