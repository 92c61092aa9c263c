"""When the client sends a call again, after how long, and that the call happens once all the same."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys

import grpc
import pytest

from lightning_store import (
    LLM,
    EnqueueRolloutRequest,
    InMemoryLightningStore,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    RolloutNotFoundError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnsupportedError,
)
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.testing.contract.base import make_span
from lightning_store.testing.contract.feed import collected
from lightning_store.v1.worker_pb2 import WORKER_STATUS_IDLE, Worker
from lightning_store.wire.errors import to_status
from lightning_store.wire.methods import METHODS, Repeat
from lightning_store_client import LightningStoreClient
from lightning_store_client.retry import RetryPolicy, jittered
from lightning_store_client.session import CALL_BYTES_MAX
from lightning_store_server import LightningStoreServer

pytestmark = pytest.mark.usefixtures("exact_delays")

PROBE = "Check"
WORKER = Worker(worker_id="imported", status=WORKER_STATUS_IDLE)
RESOURCES = {"llm": LLM(endpoint="http://localhost", model="m")}

CALLS = {
    "StartRollout": lambda store, rollout: store.start_rollout("task", worker_id="w"),
    "EnqueueRollouts": lambda store, rollout: store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * 2),
    "DequeueRollouts": lambda store, rollout: store.dequeue_rollout(worker_id="w"),
    "StartAttempt": lambda store, rollout: store.start_attempt(rollout.rollout_id),
    "UpdateRollout": lambda store, rollout: store.update_rollout(rollout.rollout_id, metadata={"a": 1}),
    "RequeueRollouts": lambda store, rollout: store.requeue_rollouts([rollout.rollout_id]),
    "CancelRollouts": lambda store, rollout: store.cancel_rollouts([rollout.rollout_id]),
    "DeleteRollouts": lambda store, rollout: store.delete_rollouts([rollout.rollout_id]),
    "UpdateAttempt": lambda store, rollout: store.update_attempt(rollout.rollout_id, "latest", metadata={"a": 1}),
    "AddSpans": lambda store, rollout: store.add_span(make_span(rollout)),
    "AllocateSpanSequenceIds": lambda store, rollout: store.get_next_span_sequence_id(rollout.rollout_id, "at"),
    "AddResources": lambda store, rollout: store.add_resources(RESOURCES),
    "UpdateResources": lambda store, rollout: store.update_resources("rs-1", RESOURCES),
    "DeleteWorkers": lambda store, rollout: store.delete_workers(["w"]),
    "DeleteResources": lambda store, rollout: store.delete_resources(["rs-1"]),
    "ReleaseWorker": lambda store, rollout: store.release_worker("w"),
    "ImportRollouts": lambda store, rollout: store.import_stored(workers=[WORKER]),
    "ExportRollouts": lambda store, rollout: collected(store.export_pages()),
    "UpdateWorker": lambda store, rollout: store.update_worker("w"),
    "GetStatistics": lambda store, rollout: store.statistics(),
    "GetServerInfo": lambda store, rollout: store.server_info(),
    "GetRollout": lambda store, rollout: store.get_rollout_by_id(rollout.rollout_id),
    "GetLatestAttempt": lambda store, rollout: store.get_latest_attempt(rollout.rollout_id),
    "GetResources": lambda store, rollout: store.get_resources_by_id("rs-1"),
    "GetLatestResources": lambda store, rollout: store.get_latest_resources(),
    "GetWorker": lambda store, rollout: store.get_worker_by_id("w"),
    "GetAdmission": lambda store, rollout: store.get_admission("run"),
    "ListAdmissions": lambda store, rollout: store.query_admissions(),
    "ListRollouts": lambda store, rollout: store.query_rollouts(),
    "ListAttempts": lambda store, rollout: store.query_attempts(rollout.rollout_id),
    "ListSpans": lambda store, rollout: store.query_spans(rollout.rollout_id),
    "ListResources": lambda store, rollout: store.query_resources(),
    "ListWorkers": lambda store, rollout: store.query_workers(),
    "WaitForRollouts": lambda store, rollout: store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0),
    "StreamQuery": lambda store, rollout: store.query_rollouts(),
    "WatchRollouts": lambda store, rollout: collected(store.watch_rollouts(["ro-x"])),
    "WatchGroups": lambda store, rollout: collected(store.watch_groups(["g"])),
    "SetAdmission": lambda store, rollout: store.set_admission("run", max_open_groups=1),
    "MarkConsumed": lambda store, rollout: store.mark_consumed("trainer", [rollout.rollout_id]),
    "RewindConsumer": lambda store, rollout: store.rewind_consumer("trainer"),
}
"""A call of the client for each RPC, given a rollout that has an attempt."""
ONCE = sorted(name for name, method in METHODS.items() if method.repeat is Repeat.ONCE)
READ = sorted(name for name, method in METHODS.items() if method.repeat is Repeat.READ)


def test_every_method_has_its_call_here():
    assert CALLS.keys() == METHODS.keys()


def rollout_in(rig):
    async def make():
        await rig.store.enqueue_rollout("queued")
        await rig.store.enqueue_rollout("queued too")
        return await rig.store.start_rollout("running")

    return asyncio.run(make())


def run_call(rig, rpc, rollout, **settings):
    """Make the call that sends ``rpc``."""

    async def call():
        client = rig.client(**settings)
        try:
            return await CALLS[rpc](client, rollout)
        finally:
            await client.close()

    return asyncio.run(asyncio.wait_for(call(), SAFETY_SECONDS))


# --- What is sent again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rpc", ONCE)
def test_a_lost_reply_is_asked_for_again_under_the_same_id_and_the_call_happens_once(rig, broken, rpc):
    rollout = rollout_in(rig)
    rig.proxy.breaks(rpc, broken(lose_reply=True), broken(), broken(lose_reply=True))
    result = run_call(rig, rpc, rollout)
    sent = rig.proxy.calls(rpc)
    assert len(sent) == 4
    assert len({one.body for one in sent}) == 1
    assert sent[0].message.request_id
    assert rig.clock.slept == [1.0, 2.0, 5.0]
    statistics = asyncio.run(rig.store.statistics())
    grown = {"StartRollout": (4, 2), "EnqueueRollouts": (5, 1), "DequeueRollouts": (3, 2), "StartAttempt": (3, 2)}
    grown["DeleteRollouts"] = (2, 0)
    expected = grown.get(rpc, (3, 1))
    assert (statistics["total_rollouts"], statistics["total_attempts"]) == expected
    assert statistics["total_resources"] == (rpc in {"AddResources", "UpdateResources"})
    assert statistics["total_spans"] == (rpc == "AddSpans")
    if rpc == "AllocateSpanSequenceIds":
        assert (result, asyncio.run(rig.store.get_next_span_sequence_id(rollout.rollout_id, "at"))) == (1, 2)
    if rpc == "UpdateResources":
        assert result.version == 1


@pytest.mark.parametrize("rpc", ONCE)
def test_a_refusal_after_a_lost_reply_does_not_say_that_nothing_happened(rig, broken, rpc):
    """The server has no room to look: what it did for the attempt before is not known."""
    rollout = rollout_in(rig)
    busy = broken(code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    rig.proxy.breaks(rpc, broken(lose_reply=True), busy)
    with pytest.raises(StoreUnavailableError):
        run_call(rig, rpc, rollout, retry_delays=(1.0,))
    rig.proxy.breaks(rpc, busy, busy)
    with pytest.raises(ResourceExhaustedError):
        run_call(rig, rpc, rollout, retry_delays=(1.0,))


@pytest.mark.parametrize("rpc", ONCE)
def test_each_call_has_an_id_of_its_own(rig, rpc):
    rollout = rollout_in(rig)
    run_call(rig, rpc, rollout)
    run_call(rig, rpc, rollout)
    assert len({sent.message.request_id for sent in rig.proxy.calls(rpc)}) == 2


@pytest.mark.parametrize("rpc", [rpc for rpc in READ if rpc != "StreamQuery"])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
)
def test_reads_are_sent_again(rig, broken, rpc, code):
    rollout = rollout_in(rig)
    expected = run_call(rig, rpc, rollout)
    rig.proxy.breaks(rpc, broken(code), broken(code, lose_reply=True))
    result = run_call(rig, rpc, rollout)
    if rpc == "GetStatistics":
        expected["uptime"] = result["uptime"]
    assert result == expected
    assert len({one.body for one in rig.proxy.calls(rpc)}) == 1
    assert rig.clock.slept == [1.0, 2.0]


def test_a_stream_that_breaks_off_starts_again(make_rig, broken):
    rig = make_rig(page_rows_max=1)
    rollout = rollout_in(rig)
    rig.proxy.breaks("StreamQuery", broken(after_messages=2), broken(after_messages=1))
    result = run_call(rig, "StreamQuery", rollout)
    assert result == asyncio.run(rig.store.query_rollouts())
    assert len(result) == 3
    assert len(rig.proxy.calls("StreamQuery")) == 3


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_the_last_write_that_wins_is_never_sent_again(rig, broken, code):
    rig.proxy.breaks("UpdateWorker", broken(code))
    with pytest.raises(StoreError):
        run_call(rig, "UpdateWorker", None)
    assert rig.proxy.order() == ["UpdateWorker"]
    assert rig.clock.slept == []


@pytest.mark.parametrize("rpc", ["GetRollout", "EnqueueRollouts"])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.NOT_FOUND, InvalidArgumentError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgumentError),
        (grpc.StatusCode.FAILED_PRECONDITION, InvalidArgumentError),
        (grpc.StatusCode.ALREADY_EXISTS, InvalidArgumentError),
        (grpc.StatusCode.OUT_OF_RANGE, InvalidArgumentError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.DATA_LOSS, InternalError),
        (grpc.StatusCode.UNIMPLEMENTED, UnsupportedError),
        (grpc.StatusCode.ABORTED, StoreError),
        (grpc.StatusCode.PERMISSION_DENIED, StoreError),
        (grpc.StatusCode.UNAUTHENTICATED, StoreError),
    ],
)
def test_other_failures_are_not_sent_again(rig, broken, rpc, code, error):
    rollout = rollout_in(rig)
    rig.proxy.breaks(rpc, broken(code))
    with pytest.raises(error, match="broken by the proxy|cancelled"):
        run_call(rig, rpc, rollout)
    assert rig.proxy.order() == [rpc]


def test_a_call_that_the_server_cancelled_is_one_that_it_was_not_there_for(rig, broken):
    rig.proxy.breaks("EnqueueRollouts", broken(grpc.StatusCode.CANCELLED))
    with pytest.raises(StoreUnavailableError, match="gave the call up"):
        run_call(rig, "EnqueueRollouts", None, retry_delays=())


def test_an_unknown_id_is_not_asked_for_again(rig):
    async def scenario():
        with pytest.raises(RolloutNotFoundError, match="Rollout ro-no not found"):
            await rig.client().update_rollout("ro-no", metadata={})

    asyncio.run(scenario())
    assert rig.proxy.order() == ["UpdateRollout"]


# --- After how long --------------------------------------------------------------------------------------------------


def test_no_delays_no_retries(rig, broken):
    rig.proxy.breaks("GetStatistics", broken())
    with pytest.raises(StoreUnavailableError):
        run_call(rig, "GetStatistics", None, retry_delays=())
    assert rig.proxy.order() == ["GetStatistics"]


@pytest.mark.parametrize("delays", [(0.5,), (0.0, 0.0), (3.0, 2.0, 1.0, 0.5)])
def test_as_many_attempts_as_delays_and_the_last_error_counts(rig, broken, delays):
    for number in range(len(delays) + 1):
        rig.proxy.breaks("GetStatistics", broken(message=f"failure {number}"))
    with pytest.raises(StoreUnavailableError, match=f"failure {len(delays)}"):
        run_call(rig, "GetStatistics", None, retry_delays=delays)
    assert len(rig.proxy.calls("GetStatistics")) == len(delays) + 1
    assert rig.clock.slept == list(delays)


def test_health_is_looked_at_before_each_further_attempt(rig, broken):
    rig.proxy.breaks("GetStatistics", broken(), broken())
    run_call(rig, "GetStatistics", None)
    assert rig.proxy.order() == ["GetStatistics", PROBE, "GetStatistics", PROBE, "GetStatistics"]


def test_while_the_server_is_not_well_its_health_is_asked_for_again(rig, broken):
    rig.proxy.breaks("GetStatistics", broken(), broken())
    rig.proxy.breaks(PROBE, *[broken()] * 5)
    run_call(rig, "GetStatistics", None)
    probes = [PROBE] * 3
    assert rig.proxy.order() == ["GetStatistics", *probes, "GetStatistics", *probes, "GetStatistics"]
    assert rig.clock.slept == [1.0, 0.1, 0.2, 0.5, 2.0, 0.1, 0.2]


def test_health_probes_can_be_switched_off(rig, broken):
    rig.proxy.breaks("GetStatistics", broken())
    run_call(rig, "GetStatistics", None, health_retry_delays=())
    assert rig.proxy.order() == ["GetStatistics"] * 2


def test_a_server_without_a_health_service_counts_as_well(rig, broken):
    rig.proxy.breaks("GetStatistics", broken())
    rig.proxy.breaks(PROBE, broken(grpc.StatusCode.UNIMPLEMENTED))
    run_call(rig, "GetStatistics", None)
    assert rig.proxy.order() == ["GetStatistics", PROBE, "GetStatistics"]
    assert rig.clock.slept == [1.0]


@pytest.mark.parametrize("is_store", [True, False])
def test_who_has_no_health_service_is_healthy_if_it_is_a_store(rig, broken, is_store):
    rig.proxy.breaks(PROBE, broken(grpc.StatusCode.UNIMPLEMENTED))
    rig.proxy.breaks("GetServerInfo", None if is_store else broken(grpc.StatusCode.UNIMPLEMENTED))
    assert asyncio.run(rig.client().healthy()) is is_store
    assert rig.proxy.order() == [PROBE, "GetServerInfo"]


@pytest.mark.parametrize(("settings", "seconds"), [({}, 2.0), ({"timeout": 30.0}, 30.0), ({"timeout": 0.5}, 0.5)])
def test_a_probe_takes_as_long_as_it_may(rig, broken, settings, seconds):
    rig.proxy.breaks(PROBE, broken(grpc.StatusCode.UNIMPLEMENTED))
    assert asyncio.run(rig.client().healthy(**settings))
    assert [sent.seconds_left for sent in rig.proxy.sent] == pytest.approx([seconds] * 2, abs=0.3)


def test_a_server_that_says_when_is_asked_then(rig, broken):
    busy = ResourceExhaustedError("busy")
    busy.retry_after_seconds = 7.5
    status = to_status(busy)
    rig.proxy.breaks("GetStatistics", *[broken(status.code, status.message, metadata=status.trailing_metadata)] * 2)
    run_call(rig, "GetStatistics", None, retry_delays=(1.0, 10.0))
    assert rig.clock.slept == [7.5, 10.0]
    assert len(rig.proxy.calls("GetStatistics")) == 3


def test_delays_vary_by_a_fifth_at_most():
    random.seed(1)
    delays = [jittered(10.0) for _ in range(1000)]
    assert min(delays) >= 8.0
    assert max(delays) <= 12.0
    assert max(delays) - min(delays) > 3.0
    assert jittered(0.0) == 0.0


# --- The deadline ----------------------------------------------------------------------------------------------------


def test_all_attempts_share_one_deadline(rig, broken):
    rig.proxy.breaks("GetStatistics", *[broken()] * 3)
    run_call(rig, "GetStatistics", None, timeout=30.0)
    assert [sent.seconds_left for sent in rig.proxy.calls("GetStatistics")] == pytest.approx(
        [15.0, 14.5, 13.5, 22.0], abs=0.5
    )


def test_a_short_deadline_is_not_cut_into_pieces(rig, broken):
    rig.proxy.breaks("GetStatistics", broken())
    run_call(rig, "GetStatistics", None, timeout=4.0)
    assert [sent.seconds_left for sent in rig.proxy.calls("GetStatistics")] == pytest.approx([4.0, 3.0], abs=0.5)


def test_no_attempt_is_begun_after_the_deadline(rig, broken):
    rig.proxy.breaks("GetStatistics", *[broken()] * 10)
    with pytest.raises(StoreUnavailableError):
        run_call(rig, "GetStatistics", None, timeout=2.0)
    assert sum(rig.clock.slept) <= 2.0
    assert [round(sent.seconds_left) for sent in rig.proxy.calls("GetStatistics")] == [2, 1]


def test_no_server_is_a_connection_error_also_when_the_deadline_comes_before_the_last_attempt(
    dead_endpoint, leaping_clock
):
    async def scenario():
        async with LightningStoreClient(dead_endpoint, timeout=2.0, clock=leaping_clock) as client:
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                await client.statistics()

    asyncio.run(scenario())


def test_probes_keep_the_deadline_too(rig, broken):
    rig.proxy.breaks("GetStatistics", *[broken()] * 2)
    run_call(rig, "GetStatistics", None, timeout=1.6, retry_delays=(0.5, 0.5))
    for sent in rig.proxy.calls(PROBE):
        assert sent.seconds_left <= 1.2


def test_a_heartbeat_has_a_short_deadline(rig):
    run_call(rig, "UpdateWorker", None, timeout=30.0)
    run_call(rig, "UpdateWorker", None, timeout=3.0)
    assert [sent.seconds_left for sent in rig.proxy.calls("UpdateWorker")] == pytest.approx([10.0, 3.0], abs=0.5)


def name_of(number):
    return f"1e{math.log10(number):.0f}"


@pytest.mark.parametrize("timeout", [1e10, 1e12, 1e19, 1e300, sys.float_info.max, 10**400, math.inf], ids=name_of)
def test_any_number_is_a_deadline(make_rig, timeout):
    """gRPC ends a call at once whose deadline is beyond the times that it has."""
    rig = make_rig(page_rows_max=1)

    async def scenario():
        client = rig.client(timeout=timeout, retry_delays=())
        for number in range(2):
            await client.enqueue_rollout(number)
        await client.enqueue_rollout("x" * 2 * CALL_BYTES_MAX)  # by itself
        assert len(await client.query_rollouts()) == 3  # as a stream
        await client.update_worker("w")
        assert await client.dequeue_rollout(max_wait=timeout) is not None

    asyncio.run(scenario())
    assert all(sent.seconds_left > 1.0 for sent in rig.proxy.sent)
    [alone] = [sent for sent in rig.proxy.calls("EnqueueRollouts") if not sent.in_session]
    assert 1e6 < alone.seconds_left < 1e8  # so that the server does not give it its own default


@pytest.mark.parametrize("delay", [1e300, 10**400, math.inf], ids=name_of)
def test_any_number_is_a_delay(delay):
    policy = RetryPolicy.of(30.0, (delay,), (delay,))
    assert min(*policy.delays, *policy.health_delays) > 1e9
    assert jittered(policy.delays[0]) > 1e9


def test_a_server_that_never_answers_is_a_timeout(make_rig, hooked):
    async def hang():
        await asyncio.Event().wait()

    rig = make_rig(hooked(InMemoryLightningStore(), statistics=hang))
    with pytest.raises(StoreTimeoutError) as caught:
        run_call(rig, "GetStatistics", None, timeout=0.2, retry_delays=())
    assert isinstance(caught.value, TimeoutError)


# --- Nobody there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rpc", CALLS)
def test_no_server_is_a_connection_error_and_never_an_empty_result(dead_endpoint, leaping_clock, rpc):
    rollout = asyncio.run(InMemoryLightningStore().start_rollout("task"))

    async def scenario():
        async with LightningStoreClient(dead_endpoint, clock=leaping_clock) as client:
            with pytest.raises(StoreUnavailableError, match="cannot be reached") as caught:
                await asyncio.wait_for(CALLS[rpc](client, rollout), SAFETY_SECONDS)
            assert isinstance(caught.value, ConnectionError)
            assert not await client.healthy()

    asyncio.run(scenario())


def test_a_server_that_comes_back_is_found_again():
    async def scenario():
        server = LightningStoreServer(InMemoryLightningStore(), port=0)
        await server.start()
        port = server.bound_port
        async with LightningStoreClient(server.endpoint, retry_delays=[0.05] * 100) as client:
            await client.enqueue_rollout("one")
            await server.stop()
            call = asyncio.create_task(client.enqueue_rollout("two"))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call), 0.1)
            assert not call.done()
            server = LightningStoreServer(server._store, port=port)  # the same data
            await server.start()
            await asyncio.wait_for(call, SAFETY_SECONDS)
            assert [rollout.input for rollout in await client.query_rollouts()] == ["one", "two"]
            await server.stop()

    asyncio.run(scenario())
