"""Request ids: a call that is sent twice happens once, and is answered twice."""

from __future__ import annotations

import asyncio
import json

import pytest

from lightning_store import LLM, InMemoryLightningStore, LightningStoreThreaded
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span, retrying
from lightning_store.v1 import resources_pb2, rollout_pb2, server_pb2, span_pb2, transfer_pb2, worker_pb2
from lightning_store.wire.methods import METHODS, SESSION, Repeat
from tests.new_spans import new_span

ONCE = sorted(name for name, method in METHODS.items() if method.repeat is Repeat.ONCE)
each_once = pytest.mark.parametrize("rpc", ONCE)
LLM_JSON = json.dumps({"resource_type": "llm", "endpoint": "http://localhost", "model": "m"})


class Scene:
    """A store with something of everything, and for each ONCE method a request that is legal in it."""

    def __init__(self, serve, wrap=lambda store: store, **options):
        self.store = InMemoryLightningStore(clock=FakeClock(), **options)
        asyncio.run(self._fill())
        self.served = serve(wrap(self.store))

    async def _fill(self):
        store = self.store
        await store.update_worker("w0")
        self.old_resources = await store.add_resources({"llm": LLM(endpoint="http://localhost", model="old")})
        self.resources = await store.add_resources({"llm": LLM(endpoint="http://localhost", model="m")})
        self.running = await store.start_rollout("running", config=retrying(3), worker_id="w")
        self.failed = await store.start_rollout("failed")
        await store.update_rollout(self.failed.rollout_id, status="failed")
        self.queued = [await store.enqueue_rollout(f"task {number}") for number in range(3)]
        await store.mark_consumed("former", [self.failed.rollout_id])

    def request(self, rpc, request_id="id-1"):
        running = self.running.rollout_id
        numbered, unnumbered = (new_span(make_span(self.running, number)) for number in (5, 6))
        unnumbered.ClearField("sequence_id")
        new = rollout_pb2.NewRollout(input_json='{"a": [1, 2.5, null]}', metadata_json='{"b": 1, "c": "d"}')
        fields = {
            "StartRollout": {"rollout": new, "worker_id": "w2"},
            "EnqueueRollouts": {"rollouts": [new, new]},
            "DequeueRollouts": {"limit": 2, "worker_id": "w2"},
            "StartAttempt": {"rollout_id": self.queued[1].rollout_id, "worker_id": "w2"},
            "CancelRollouts": {"rollout_ids": [running]},
            "RequeueRollouts": {"rollout_ids": [self.failed.rollout_id]},
            "DeleteRollouts": {"rollout_id_in": {"values": [self.queued[2].rollout_id]}},
            "UpdateRollout": {
                "rollout_id": running,
                "update": {"status": rollout_pb2.ROLLOUT_STATUS_REQUEUING, "metadata_json": '{"x": 1}'},
                "update_mask": {"paths": ["status", "metadata_json"]},
            },
            "UpdateAttempt": {
                "rollout_id": running,
                "latest": True,
                "update": {"status": rollout_pb2.ATTEMPT_STATUS_FAILED},
                "update_mask": {"paths": ["status"]},
            },
            "AddSpans": {"spans": [numbered, unnumbered, numbered]},
            "AllocateSpanSequenceIds": {"keys": [{"rollout_id": running, "attempt_id": "at-1"}] * 3},
            "AddResources": {"resources_json": {"llm": LLM_JSON, "other": LLM_JSON}},
            "ImportRollouts": {
                "rollouts": [self.stored("ro-imported")],
                "workers": [{"worker_id": "w-imported", "status": worker_pb2.WORKER_STATUS_BUSY}],
                "checkpoints": [{"consumer": "trainer", "checkpoint": "step-0", "number": 2}],
                "admissions": [{"run": "run-2", "paused": True}],
            },
            "UpdateResources": {"resources_id": self.resources.resources_id, "resources_json": {"llm": LLM_JSON}},
            "DeleteWorkers": {"worker_ids": ["w0", "w-no"]},
            "DeleteResources": {"resources_ids": [self.old_resources.resources_id]},
            "SetAdmission": {"run": "run-1", "max_open_groups": 3},
            "MarkConsumed": {"consumer": "trainer", "rollout_ids": [running], "checkpoint": "step-1"},
            "RewindConsumer": {"consumer": "former"},
        }[rpc]
        message_type = next(
            getattr(module, f"{rpc}Request")
            for module in (rollout_pb2, span_pb2, resources_pb2, worker_pb2, transfer_pb2)
            if hasattr(module, f"{rpc}Request")
        )
        return message_type(request_id=request_id, **fields)

    @staticmethod
    def stored(rollout_id):
        rollout = rollout_pb2.Rollout(
            rollout_id=rollout_id,
            start_time={"seconds": 1},
            status=rollout_pb2.ROLLOUT_STATUS_REQUEUING,
            config={},
        )
        return transfer_pb2.StoredRollout(rollout=rollout)

    def state(self):
        """All that is stored, as the lists and the statistics tell it."""
        return asyncio.run(self._state())

    async def _state(self):
        rollouts = await self.store.query_rollouts()
        return (
            await self.store.statistics(),
            rollouts,
            [await self.store.query_attempts(rollout.rollout_id) for rollout in rollouts],
            [await self.store.query_spans(rollout.rollout_id) for rollout in rollouts],
            await self.store.query_resources(),
            await self.store.get_latest_resources(),
            await self.store.query_workers(),
        )


def in_bytes(message):
    return message.SerializeToString(deterministic=True)


@pytest.fixture
def scene(serve):
    return Scene(serve)


UNSEEN = {"AllocateSpanSequenceIds", "SetAdmission", "MarkConsumed", "RewindConsumer"}
"""What they change is in no list. Done twice, all but SetAdmission would answer otherwise the second time."""


@each_once
def test_a_repeated_call_gets_the_same_reply_and_changes_nothing(scene, rpc):
    untouched = scene.state()
    first = scene.served.call(rpc, scene.request(rpc))
    after = scene.state()
    again = scene.served.call(rpc, scene.request(rpc))
    assert in_bytes(again) == in_bytes(first)
    assert scene.state() == after
    assert rpc in UNSEEN or after != untouched


@each_once
def test_a_repeated_call_gets_the_first_reply_whatever_happened_meanwhile(scene, rpc):
    first = scene.served.call(rpc, scene.request(rpc))
    for other in ONCE:
        scene.served.call(other, scene.request(other, request_id=f"between-{other}"))
    later = scene.state()
    again = scene.served.call(rpc, scene.request(rpc))
    assert in_bytes(again) == in_bytes(first)
    assert scene.state() == later


@each_once
def test_another_id_is_another_call(scene, rpc):
    one = scene.served.call(rpc, scene.request(rpc, "id-1"))
    other = scene.served.call(rpc, scene.request(rpc, "id-2"))
    same = {"UpdateRollout", "CancelRollouts", "RequeueRollouts", "UpdateAttempt", "SetAdmission"}
    assert rpc in same or in_bytes(one) != in_bytes(other)


@each_once
def test_an_id_that_another_method_had_is_refused(scene, rpc):
    other = ONCE[ONCE.index(rpc) - 1]
    scene.served.call(rpc, scene.request(rpc))
    before = scene.state()
    failure = scene.served.failure(other, scene.request(other))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", ["request_id"])
    assert "id-1" in failure.message
    assert scene.state() == before


OTHER_REQUESTS = {
    "StartRollout": {"rollout": {"input_json": "2"}},
    "EnqueueRollouts": {"rollouts": [{"input_json": "2"}]},
    "DequeueRollouts": {"limit": 1},
    "StartAttempt": {"rollout_id": "ro-no"},
    "UpdateRollout": {"rollout_id": "ro-no"},
    "CancelRollouts": {"rollout_ids": ["ro-no"]},
    "RequeueRollouts": {"rollout_ids": ["ro-no"]},
    "DeleteRollouts": {"rollout_id_in": {"values": ["ro-no"]}},
    "UpdateAttempt": {"rollout_id": "ro-no", "latest": True},
    "AddSpans": {},
    "DeleteWorkers": {"worker_ids": ["w-no"]},
    "DeleteResources": {"resources_ids": ["rs-no"]},
    "AllocateSpanSequenceIds": {"keys": [{"rollout_id": "ro-no", "attempt_id": "a"}]},
    "ImportRollouts": {},
    "AddResources": {"resources_json": {"other": LLM_JSON}},
    "UpdateResources": {"resources_id": "rs-no", "resources_json": {"other": LLM_JSON}},
    "SetAdmission": {"run": "run-1", "paused": True},
    "MarkConsumed": {"consumer": "trainer"},
    "RewindConsumer": {"consumer": "trainer"},
}


@each_once
def test_an_id_that_another_request_had_is_refused(scene, rpc):
    request = scene.request(rpc)
    scene.served.call(rpc, request)
    before = scene.state()
    failure = scene.served.failure(rpc, type(request)(request_id="id-1", **OTHER_REQUESTS[rpc]))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", ["request_id"])
    assert scene.state() == before


def leaves(message, path=()):
    """The places of all single values in a message: the steps to each of them."""
    for field, value in message.ListFields():
        here = (*path, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from ((*here, key) for key in value)
        elif hasattr(value, "append"):
            for index, one in enumerate(value):
                yield from leaves(one, (*here, index)) if field.message_type is not None else [(*here, index)]
        elif field.message_type is not None:
            yield from leaves(value, here)
        else:
            yield here


def changed_at(message, path):
    """A copy with another value there: a number that is one more, or a text that has a space behind it."""
    copy = type(message)()
    copy.CopyFrom(message)
    holder = copy
    *steps, last = path
    for step in steps:
        holder = getattr(holder, step) if isinstance(step, str) and hasattr(holder, step) else holder[step]
    if hasattr(holder, "DESCRIPTOR"):
        former = getattr(holder, last)
        setattr(holder, last, f"{former} " if isinstance(former, str) else former - 1)
    else:
        former = holder[last]
        holder[last] = f"{former} " if isinstance(former, str) else former - 1
    assert copy != message
    return copy


@each_once
def test_an_id_is_refused_wherever_the_other_request_differs(scene, rpc):
    request = scene.request(rpc)
    scene.served.call(rpc, request)
    before = scene.state()
    for path in leaves(request):
        if path in (("request_id",), ("latest",)) or path[0] == "update_mask":
            continue  # no such request is legal
        failure = scene.served.failure(rpc, changed_at(request, path))
        assert failure.reason == "REQUEST_ID_REUSED", path
    assert scene.state() == before


def test_other_spans_between_the_first_and_the_last_are_not_taken_for_stored(scene):
    request = scene.request("AddSpans")
    scene.served.call("AddSpans", request)
    request.spans[1].document_json = request.spans[1].document_json.replace('"name":"', '"name":"another ')
    failure = scene.served.failure("AddSpans", request)
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


def test_more_spans_under_an_old_id_are_no_incident(scene):
    request = scene.request("AddSpans")
    scene.served.call("AddSpans", request)
    request.spans.append(request.spans[0])
    failure = scene.served.failure("AddSpans", request)
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


def test_an_empty_claim_is_not_remembered(serve, hooked):
    served = serve()
    request = rollout_pb2.DequeueRolloutsRequest(request_id="id-1")
    assert len(served.call("DequeueRollouts", request).rollouts) == 0
    asyncio.run(served.store.enqueue_rollout("task"))
    [claimed] = served.call("DequeueRollouts", request).rollouts
    assert served.call("DequeueRollouts", request).rollouts == [claimed]


def test_a_call_that_failed_is_not_remembered(served):
    rollout = asyncio.run(served.store.enqueue_rollout("task"))
    request = rollout_pb2.UpdateAttemptRequest(request_id="id-1", rollout_id=rollout.rollout_id, latest=True)
    assert served.failure("UpdateAttempt", request).reason == "NO_ATTEMPTS"
    asyncio.run(served.store.start_attempt(rollout.rollout_id))
    assert served.call("UpdateAttempt", request).attempt.sequence_id == 1


def test_an_id_is_forgotten_after_the_window(serve):
    clock = FakeClock()
    served = serve(InMemoryLightningStore(clock=clock, replay_window_seconds=60.0))
    request = rollout_pb2.EnqueueRolloutsRequest(request_id="id-1", rollouts=[rollout_pb2.NewRollout()])
    first = served.call("EnqueueRollouts", request)
    clock.advance(60.0)
    assert served.call("EnqueueRollouts", request) == first
    clock.advance(0.5)
    assert served.call("EnqueueRollouts", request) != first
    info = served.call("GetServerInfo", server_pb2.GetServerInfoRequest())
    assert info.replay_window.ToTimedelta().total_seconds() == 60.0


@each_once
def test_a_store_on_a_thread_of_its_own_replays_too(serve, rpc):
    """The request id goes with the call from thread to thread."""
    scene = Scene(serve, LightningStoreThreaded)
    first = scene.served.call(rpc, scene.request(rpc))
    after = scene.state()
    again = scene.served.call(rpc, scene.request(rpc))
    assert in_bytes(again) == in_bytes(first)
    assert scene.state() == after


# --- The id itself ---------------------------------------------------------------------------------------------------


@each_once
@pytest.mark.parametrize(("request_id", "problem"), [("", "missing"), ("x" * 129, "at most 128")])
def test_a_request_id_is_needed(scene, rpc, request_id, problem):
    before = scene.state()
    failure = scene.served.failure(rpc, scene.request(rpc, request_id))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT", ["request_id"])
    assert failure.message.startswith("request_id")
    assert problem in failure.message
    assert scene.state() == before


@each_once
def test_a_request_id_of_any_128_characters_will_do(scene, rpc):
    scene.served.call(rpc, scene.request(rpc, "\u2603 \n" * 32))


def test_only_methods_of_this_class_have_request_ids():
    service = rollout_pb2.DESCRIPTOR.pool.FindServiceByName("lightning_store.v1.LightningStoreService")
    with_id = {method.name for method in service.methods if "request_id" in method.input_type.fields_by_name}
    assert with_id == set(ONCE)
    assert {method.name for method in service.methods} == {*METHODS, SESSION} | {SESSION}
