"""What happens around every call: deadlines, errors as statuses, the access log."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
from dataclasses import replace

import grpc
import pytest

from lightning_store import (
    InMemoryLightningStore,
    ResourceExhaustedError,
    RolloutNotFoundError,
    StoreError,
    StoreUnavailableError,
)
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import query_pb2, rollout_pb2, server_pb2, service_pb2_grpc
from lightning_store.wire.methods import BY_PATH, METHODS
from lightning_store_server import interceptors

STATISTICS = server_pb2.GetStatisticsRequest()
STREAM = query_pb2.StreamQueryRequest(rollouts=rollout_pb2.ListRolloutsRequest())
ERRORS = "lightning_store_server"
ACCESS = "lightning_store_server.access"


def raising(error):
    async def hook(*_, **__):
        raise error

    return hook


@pytest.fixture
def bound(monkeypatch):
    """Set the default deadline of one RPC, in seconds."""

    def set_deadline(rpc, seconds):
        method = METHODS[rpc]
        changed = {**BY_PATH, method.path: replace(method, deadline_seconds=seconds)}
        monkeypatch.setattr(interceptors, "BY_PATH", changed)

    return set_deadline


class Hang:
    """A store's method that never returns."""

    def __init__(self):
        self.entered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def __call__(self, *_, **__):
        self.entered.put(None)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.put("ended")


@pytest.fixture
def hang():
    return Hang()


# --- Deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rpc", "request_", "method"),
    [("GetStatistics", STATISTICS, "statistics"), ("StreamQuery", STREAM, "query_rollouts")],
)
def test_a_caller_without_a_deadline_gets_the_default_of_the_method(
    serve, hooked, failure_of, bound, hang, rpc, request_, method
):
    bound(rpc, 0.05)
    served = serve(hooked(InMemoryLightningStore(), **{method: hang}))
    failure = failure_of(lambda: list_of(getattr(served.stub, rpc)(request_)))
    assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert "0.05 s" in failure.message
    assert hang.ended.get(timeout=SAFETY_SECONDS)
    assert served.health() == "SERVING"


def list_of(reply):
    return list(reply) if hasattr(reply, "__next__") else reply


def test_the_deadline_of_the_caller_counts_where_there_is_one(serve, hooked, bound):
    bound("GetStatistics", 0.05)
    inner = InMemoryLightningStore()
    entered: queue.SimpleQueue[asyncio.Event] = queue.SimpleQueue()

    async def statistics():
        event = asyncio.Event()
        entered.put(event)
        await event.wait()
        return await inner.statistics()

    served = serve(hooked(inner, statistics=statistics))
    patient = served.stub.GetStatistics.future(STATISTICS, timeout=SAFETY_SECONDS)
    release = entered.get(timeout=SAFETY_SECONDS)
    impatient = served.stub.GetStatistics.future(STATISTICS)
    assert impatient.exception(SAFETY_SECONDS).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not patient.done()
    served.server._serving[1]._loop.call_soon_threadsafe(release.set)
    assert patient.result(SAFETY_SECONDS).total_rollouts == 0


def test_the_store_is_cancelled_when_the_deadline_of_the_caller_passes(serve, hooked, hang):
    served = serve(hooked(InMemoryLightningStore(), statistics=hang))
    call = served.stub.GetStatistics.future(STATISTICS, timeout=0.1)
    assert call.exception(SAFETY_SECONDS).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert hang.ended.get(timeout=SAFETY_SECONDS)
    assert served.health() == "SERVING"


def test_the_store_is_cancelled_when_the_caller_goes_away(serve, hooked, hang):
    served = serve(hooked(InMemoryLightningStore(), statistics=hang))
    call = served.stub.GetStatistics.future(STATISTICS)
    hang.entered.get(timeout=SAFETY_SECONDS)
    call.cancel()
    assert hang.ended.get(timeout=SAFETY_SECONDS)
    assert served.health() == "SERVING"


def test_a_long_poll_has_its_wait_beside_the_default(serve, hooked, bound, hang):
    """A wait longer than the default deadline of the method is no reason to end the call."""
    bound("WaitForRollouts", 0.05)
    inner = InMemoryLightningStore()
    rollout = asyncio.run(inner.enqueue_rollout("task"))
    served = serve(hooked(inner, statistics=hang), wait_seconds_max=SAFETY_SECONDS)
    wait = served.stub.WaitForRollouts.future(rollout_pb2.WaitForRolloutsRequest(rollout_ids=[rollout.rollout_id]))
    other = served.stub.GetStatistics.future(STATISTICS, timeout=0.3)  # so that time passes
    other.exception(SAFETY_SECONDS)
    asyncio.run(inner.update_rollout(rollout.rollout_id, status="cancelled"))
    assert wait.result(SAFETY_SECONDS).complete


def test_a_timeout_of_the_store_itself_is_not_the_deadline(serve, hooked, log):
    served = serve(hooked(InMemoryLightningStore(), statistics=raising(TimeoutError("the database is slow"))))
    failure = served.failure("GetStatistics", STATISTICS)
    assert failure.code == "INTERNAL"
    assert "database" not in failure.message
    assert log.next(ERRORS).levelno == logging.ERROR


# --- Failures of the store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret text"),
        KeyError("secret text"),
        AttributeError("secret text"),
        AssertionError("secret text"),
        OSError(5, "secret text"),
        StopAsyncIteration("secret text"),
        ExceptionGroup("secret text", [ValueError("secret text")]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    ("rpc", "request_", "method"),
    [("GetStatistics", STATISTICS, "statistics"), ("StreamQuery", STREAM, "query_rollouts")],
)
def test_a_failure_inside_is_an_incident_and_its_cause_stays_inside(serve, hooked, log, error, rpc, request_, method):
    served = serve(hooked(InMemoryLightningStore(), **{method: raising(error)}))
    failure = served.failure(rpc, request_)
    assert (failure.code, failure.reason) == ("INTERNAL", "INTERNAL")
    incident_id = failure.details["incident_id"]
    assert incident_id in failure.message
    shown = failure.message + failure.metadata + str(failure.details)
    for inside in ("secret", "Traceback", type(error).__name__, ".py"):
        assert inside not in shown
    record = log.next(ERRORS)
    assert record.levelno == logging.ERROR
    assert incident_id in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error or record.exc_info[1].__cause__ is error
    assert served.health() == "SERVING"


def test_a_result_that_is_none_of_the_model_is_an_incident(serve, hooked, log):
    async def statistics():
        return None

    served = serve(hooked(InMemoryLightningStore(), statistics=statistics))
    assert served.failure("GetStatistics", STATISTICS).code == "INTERNAL"
    assert log.next(ERRORS).exc_info is not None


def test_each_incident_has_an_id_of_its_own(serve, hooked, log):
    served = serve(hooked(InMemoryLightningStore(), statistics=raising(RuntimeError())))
    incidents = {served.failure("GetStatistics", STATISTICS).details["incident_id"] for _ in range(3)}
    assert len(incidents) == 3
    assert [log.next(ERRORS).levelno for _ in incidents] == [logging.ERROR] * 3


def test_a_store_that_cancels_its_own_call_does_not_hang_the_caller(serve, hooked, failure_of):
    served = serve(hooked(InMemoryLightningStore(), statistics=raising(asyncio.CancelledError())))
    failure = failure_of(lambda: served.stub.GetStatistics(STATISTICS, timeout=1))
    assert failure.code in {"CANCELLED", "UNAVAILABLE"}
    assert served.health() == "SERVING"


# --- Mistakes of callers, and errors of other stores -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (RolloutNotFoundError.of("ro-1"), "NOT_FOUND", "ROLLOUT_NOT_FOUND"),
        (ValueError("not like this"), "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        (TypeError("not of this kind"), "INVALID_ARGUMENT", "INVALID_TYPE"),
        (type("QuotaError", (StoreError,), {})("quota"), "UNKNOWN", "STORE_ERROR"),
        (type("GoneError", (RolloutNotFoundError,), {"reason": "GONE"})("gone"), "NOT_FOUND", "GONE"),
    ],
    ids=["not-found", "value", "type", "foreign", "derived"],
)
@pytest.mark.parametrize(
    ("rpc", "request_", "method"),
    [("GetStatistics", STATISTICS, "statistics"), ("StreamQuery", STREAM, "query_rollouts")],
)
def test_what_the_caller_is_told_of_is_not_logged(serve, hooked, error, code, reason, rpc, request_, method):
    served = serve(hooked(InMemoryLightningStore(), **{method: raising(error)}))
    failure = served.failure(rpc, request_)
    assert (failure.code, failure.reason, failure.message) == (code, reason, str(error))
    # the fixture `log` sees to it that nothing was logged


# --- Access log ------------------------------------------------------------------------------------------------------


def test_callers_with_the_retries_of_grpc_itself_have_what_was_refused_made_again(serve, hooked):
    """It takes a call that was answered with a status alone for one that was not made."""
    inner = InMemoryLightningStore()
    refusals = [StoreUnavailableError("starting"), ResourceExhaustedError("busy")]

    async def statistics():
        if refusals:
            raise refusals.pop()
        return await inner.statistics()

    served = serve(hooked(inner, statistics=statistics))
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    with grpc.insecure_channel(served.server.endpoint, options=[("grpc.service_config", config)]) as channel:
        stub = service_pb2_grpc.LightningStoreServiceStub(channel)
        assert stub.GetStatistics(STATISTICS, timeout=SAFETY_SECONDS).total_rollouts == 0
    assert refusals == []


def test_no_access_log_unless_asked_for(serve, log):
    served = serve()
    served.call("GetStatistics", STATISTICS)
    served.stop()
    assert log.left(logging.DEBUG) == []


def test_access_log_has_one_line_for_a_call(serve, log):
    served = serve(access_log=True)
    served.call("GetStatistics", STATISTICS)
    served.call("StreamQuery", STREAM)
    served.failure("StartAttempt", rollout_pb2.StartAttemptRequest(request_id="a", rollout_id="ro-no"))
    served.failure("StreamQuery", query_pb2.StreamQueryRequest())
    records = [log.next(ACCESS) for _ in range(4)]
    served.stop()
    assert log.left(logging.DEBUG) == []
    assert {record.levelno for record in records} == {logging.INFO}
    assert [(record.call["method"], record.call["code"]) for record in records] == [
        (METHODS["GetStatistics"].path, "OK"),
        (METHODS["StreamQuery"].path, "OK"),
        (METHODS["StartAttempt"].path, "NOT_FOUND"),
        (METHODS["StreamQuery"].path, "INVALID_ARGUMENT"),
    ]
    assert [record.call["request_id"] for record in records] == ["", "", "a", ""]
    for record in records:
        assert record.call.keys() == {"method", "code", "duration_ms", "peer", "request_id"}
        assert 0 <= record.call["duration_ms"] < SAFETY_SECONDS * 1000
        assert record.call["peer"].startswith("ipv4:127.0.0.1:")
        assert record.getMessage().startswith(f"{record.call['method']} {record.call['code']} ")


def test_access_log_tells_incidents_by_their_status(serve, hooked, log):
    served = serve(hooked(InMemoryLightningStore(), statistics=raising(RuntimeError())), access_log=True)
    served.failure("GetStatistics", STATISTICS)
    assert log.next(ERRORS).levelno == logging.ERROR
    assert log.next(ACCESS).call["code"] == "INTERNAL"


def test_access_log_tells_calls_that_were_given_up(serve, hooked, log, hang):
    served = serve(hooked(InMemoryLightningStore(), statistics=hang), access_log=True)
    call = served.stub.GetStatistics.future(STATISTICS)
    hang.entered.get(timeout=SAFETY_SECONDS)
    call.cancel()
    assert log.next(ACCESS).call["code"] == "CANCELLED"
    assert served.stub.GetStatistics.future(STATISTICS, timeout=0.05).exception(SAFETY_SECONDS) is not None
    assert log.next(ACCESS).call["code"] in {"DEADLINE_EXCEEDED", "CANCELLED"}
