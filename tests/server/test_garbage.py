"""What a long full collection leaves is set aside, and what a short one leaves is not. And calls leave no garbage."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from lightning_store import InMemoryLightningStore, StoreUnavailableError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import rollout_pb2, server_pb2
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest
from lightning_store.wire.methods import METHODS
from lightning_store_server.feeds import FeedRuns
from lightning_store_server.garbage import PAUSE_SECONDS_MAX, YOUNGER_COLLECTIONS, GarbageWatch
from tests.server.test_overload import admission_of, settle, until


@pytest.fixture(autouse=True)
def freeze() -> None:
    """What other tests have made: it would be gone through by each collection here."""
    gc.freeze()


@pytest.fixture
def seconds() -> list[float]:
    """The readings of the clock to come."""
    return []


@pytest.fixture
def watch(seconds: list[float]) -> Iterator[GarbageWatch]:
    with GarbageWatch(lambda: seconds.pop(0) if seconds else 0.0) as watch:
        yield watch


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize(("took", "set_aside"), [(PAUSE_SECONDS_MAX / 2, False), (PAUSE_SECONDS_MAX * 2, True)])
def test_a_long_full_collection_is_the_last_to_see_what_is_there(seconds: list[float], took: float, set_aside: bool):
    kept = [[number] for number in range(1000)]
    before = gc.get_freeze_count()
    seconds.extend([0.0, took])
    gc.collect()
    assert (gc.get_freeze_count() >= before + len(kept)) == set_aside


@pytest.mark.usefixtures("watch")
def test_short_collections_are_left_alone(seconds: list[float]):
    seconds.extend([0.0, 1.0])
    before = gc.get_freeze_count()
    gc.collect(1)
    assert gc.get_freeze_count() == before
    assert seconds == [0.0, 1.0]


def test_afterwards_all_is_as_before():
    callbacks, thresholds = list(gc.callbacks), gc.get_threshold()
    with GarbageWatch():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[1:] == YOUNGER_COLLECTIONS or sys.version_info >= (3, 14)  # which has no third
    assert (gc.callbacks, gc.get_threshold()) == (callbacks, thresholds)
    assert gc.get_freeze_count() == 0


# --- What a call leaves ----------------------------------------------------------------------------------------------

WAIT = Duration(seconds=int(SAFETY_SECONDS))
LARGE_BYTES = 4 * 1024 * 1024
OF_CALLS = {"RPCState", "_ServicerContext", "_CallContext", "_Session", "Slot", "Step", "FeedRuns", "Watcher"}
"""Types of what a server holds for a call, its frames aside."""


def answered(served):
    served.call("GetStatistics", server_pb2.GetStatisticsRequest())


def refused(served):
    served.failure("UpdateRollout", rollout_pb2.UpdateRolloutRequest(request_id="refused", rollout_id="ro-no"))


def unreadable(served):
    with pytest.raises(grpc.RpcError):
        served.channel.unary_unary(METHODS["GetRollout"].path)(b"\xff\xff")


def cut_while_it_waits(served):
    call = served.stub.DequeueRollouts.future(
        rollout_pb2.DequeueRolloutsRequest(request_id="wait", limit=1, max_wait=WAIT)
    )
    until(served, lambda: admission_of(served).waits.count)
    call.cancel()


def cut_while_it_follows(served):
    call = served.stub.WatchRollouts(rollout_pb2.WatchRolloutsRequest())
    until(served, lambda: admission_of(served).waits.count)
    call.cancel()


def refused_while_it_may_wait(served):
    served.failure("WaitForRollouts", rollout_pb2.WaitForRolloutsRequest(rollout_ids=["ro-no"], wait=Duration()))


def followed_in_vain(served):
    """The feed of another store."""
    served.failure("WatchRollouts", rollout_pb2.WatchRolloutsRequest(after="st-no-1"))


@contextmanager
def session(served, *calls):
    """The stream of one on which these calls were made at once."""
    end = threading.Event()

    def messages():
        yield SessionRequest(calls=calls)
        end.wait(SAFETY_SECONDS)

    stream = served.stub.Session(messages())
    try:
        yield stream
    finally:
        stream.cancel()
        end.set()


def refused_in_a_session(served):
    request = rollout_pb2.UpdateRolloutRequest(request_id="refused", rollout_id="ro-no").SerializeToString()
    with session(served, SessionCall(id=1, method="UpdateRollout", request=request)) as stream:
        assert next(stream).replies[0].HasField("error")


def refused_while_it_may_wait_in_a_session(served):
    request = rollout_pb2.WaitForRolloutsRequest(rollout_ids=["ro-no"], wait=Duration()).SerializeToString()
    with session(served, SessionCall(id=1, method="WaitForRollouts", request=request)) as stream:
        assert next(stream).replies[0].HasField("error")


def a_session_that_breaks_the_rules(served):
    twice = [SessionCall(id=1, method="WaitForRollouts")] * 2
    with session(served, *twice) as stream, pytest.raises(grpc.RpcError):
        list(stream)


CALLS = [
    answered,
    refused,
    unreadable,
    cut_while_it_waits,
    cut_while_it_follows,
    refused_while_it_may_wait,
    followed_in_vain,
    refused_in_a_session,
    refused_while_it_may_wait_in_a_session,
    a_session_that_breaks_the_rules,
]


@pytest.mark.parametrize("access_log", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_is_over_leaves_nothing_to_the_garbage_collector(serve, call, access_log):
    """Which may have been told to leave alone what was there while it was under way."""
    served = serve(InMemoryLightningStore(strict=True), access_log=access_log)
    call(served)
    settle(served)
    gc.collect()
    gc.disable()
    try:
        call(served)
        settle(served)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = Counter(type(kept).__name__ for kept in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert {name: count for name, count in left.items() if name in OF_CALLS} == {}


def test_large_requests_that_are_refused_leave_no_bytes(serve):
    """Neither do they wait for the garbage collector, which comes the more rarely the fewer and larger objects are."""
    served = serve(InMemoryLightningStore(strict=True))
    update = rollout_pb2.RolloutUpdate(metadata_json=f'{{"large": "{"x" * LARGE_BYTES}"}}')
    mask = FieldMask(paths=["metadata_json"])
    large = rollout_pb2.UpdateRolloutRequest(request_id="large", rollout_id="ro-no", update=update, update_mask=mask)

    def refuse() -> None:
        served.failure("UpdateRollout", large)
        settle(served)

    refuse()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            refuse()
        until(served, lambda: tracemalloc.get_traced_memory()[0] < LARGE_BYTES)  # the thread lets go of what it read
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peak > LARGE_BYTES > left


@pytest.mark.asyncio
async def test_a_feed_that_failed_before_anybody_looked_is_forgotten_with_its_reader():
    """The error knows what read the feed."""

    async def fails() -> AsyncIterator[int]:
        yield 1
        raise StoreUnavailableError("down")

    gc.disable()
    try:
        runs = FeedRuns(fails())
        there = weakref.ref(runs)
        while runs._reading is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        del runs
        assert there() is None
    finally:
        gc.enable()


@pytest.mark.asyncio
async def test_a_feed_that_fails_fails_its_reader_after_what_was_read():
    async def fails() -> AsyncIterator[int]:
        yield 1
        raise StoreUnavailableError("down")

    got = []

    async def read() -> None:
        async for run in FeedRuns(fails()):
            got.extend(run)

    with pytest.raises(StoreUnavailableError, match="down"):
        await read()
    assert got == [1]
