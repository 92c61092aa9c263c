"""What a caller can get wrong, each with its status, its reason, and the field that the message names.

The fixture ``serve`` sees to it that none of this leaves a warning or an error in the server's log.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lightning_store import InMemoryLightningStore
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.testing.contract.base import make_span
from lightning_store.v1 import resources_pb2, rollout_pb2, span_pb2, worker_pb2
from lightning_store.v1.query_pb2 import StreamQueryRequest
from lightning_store.wire.methods import METHODS, SERVICE
from tests.new_spans import new_span

ID = {"request_id": "id-1"}
QUEUING = rollout_pb2.ROLLOUT_STATUS_QUEUING


class Scene:
    """A server, a rollout with an attempt, and one without."""

    def __init__(self, serve, **options):
        store = InMemoryLightningStore(clock=FakeClock(), **options)
        self.attempted = asyncio.run(store.start_rollout("with an attempt"))
        self.queued = asyncio.run(store.enqueue_rollout("without"))
        self.served = serve(store)


@pytest.fixture
def scene(serve):
    return Scene(serve)


@dataclass(frozen=True)
class Mistake:
    """A call, and what its caller is told."""

    rpc: str
    request: Any
    field: str
    says: str = ""
    """Part of the message, beside the field."""
    code: str = "INVALID_ARGUMENT"
    reason: str = "INVALID_ARGUMENT"

    @property
    def name(self) -> str:
        return f"{self.rpc}-{self.field}-{self.says}".replace(" ", "_")


def each(*mistakes):
    return pytest.mark.parametrize("mistake", [pytest.param(mistake, id=mistake.name) for mistake in mistakes])


def check(served, mistake):
    failure = served.failure(mistake.rpc, mistake.request)
    assert (failure.code, failure.reason) == (mistake.code, mistake.reason)
    assert mistake.field in failure.message
    assert mistake.says in failure.message
    if mistake.reason == "INVALID_ARGUMENT":
        assert failure.fields == [mistake.field]
        assert failure.details["field"] == mistake.field
        assert failure.message.startswith(mistake.field)


# --- Payloads and fields of new rollouts -----------------------------------------------------------------------------


def enqueue(**fields):
    """The second of two rollouts is the wrong one."""
    return rollout_pb2.EnqueueRolloutsRequest(**ID, rollouts=[{}, fields])


def new(field, says="", **fields):
    return Mistake("EnqueueRollouts", enqueue(**fields), f"rollouts[1].{field}", says)


@each(
    new("input_json", "not valid JSON", input_json="{"),
    new("input_json", "not valid JSON", input_json=""),
    new("input_json", "not valid JSON", input_json="'single'"),
    new("input_json", "nested more than 200 levels deep", input_json="[" * 100_000),
    new("input_json", "not valid JSON", input_json="\x00"),
    new("metadata_json", "not valid JSON", metadata_json="nope"),
    new("metadata_json", "of an array", metadata_json="[]"),
    new("metadata_json", "of null", metadata_json="null"),
    new("metadata_json", "of a number", metadata_json="1.5"),
    new("metadata_json", "of a string", metadata_json='"text"'),
    new("metadata_json", "of a boolean", metadata_json="true"),
    new("mode", "unknown enum number 99", mode=99),
    new("mode", "unknown enum number -1", mode=-1),
    new("config.max_attempts", "greater than or equal to 1", config={"max_attempts": 0}),
    new("config.max_attempts", "", config={"max_attempts": -(2**31)}),
    new("config.retry_condition[1]", "unspecified", config={"retry_condition": [3, 0]}),
    new("config.retry_condition[0]", "unknown enum number 7", config={"retry_condition": [7]}),
    new("config.timeout", "must be from 0", config={"timeout": Duration(seconds=-1)}),
    new("config.timeout", "nanos", config={"timeout": Duration(nanos=10**9)}),
    new("config.timeout", "nanos", config={"timeout": Duration(seconds=5, nanos=-5)}),
    new("config.unresponsive", "must be from 0", config={"unresponsive": Duration(seconds=2**63 - 1)}),
)
def test_new_rollouts(scene, mistake):
    check(scene.served, mistake)
    assert asyncio.run(scene.served.store.statistics())["total_rollouts"] == 2


def test_a_rollout_to_start_is_required(scene):
    check(scene.served, Mistake("StartRollout", rollout_pb2.StartRolloutRequest(**ID), "rollout", "missing"))


def test_the_fields_of_a_rollout_to_start_are_checked(scene):
    request = rollout_pb2.StartRolloutRequest(**ID, rollout={"input_json": "{"})
    check(scene.served, Mistake("StartRollout", request, "rollout.input_json"))


def test_an_empty_batch_is_no_mistake(scene):
    assert len(scene.served.call("EnqueueRollouts", rollout_pb2.EnqueueRolloutsRequest(**ID)).rollouts) == 0


# --- Which rollouts to delete, to watch and to wait for --------------------------------------------------------------


def delete(field, says, **fields):
    return Mistake("DeleteRollouts", rollout_pb2.DeleteRolloutsRequest(**ID, **fields), field, says)


def watch(field, says, **fields):
    return Mistake("WatchRollouts", rollout_pb2.WatchRolloutsRequest(**fields), field, says)


@each(
    delete("rollout_id_in.values[1]", "missing", rollout_id_in={"values": ["ro", ""]}),
    delete("older_than", "must be from 0", older_than=Duration(seconds=-1)),
    delete("older_than", "nanos", older_than=Duration(nanos=-1)),
    delete("older_than", "out of range", older_than=Duration(seconds=2**63 - 1)),
    delete("status_in.values[1]", "unspecified", older_than={}, status_in={"values": [QUEUING, 0]}),
    delete("status_in.values[0]", "unknown enum number 99", older_than={}, status_in={"values": [99]}),
    watch("rollout_id_in.values[0]", "missing", rollout_id_in={"values": [""]}),
    Mistake("WaitForRollouts", rollout_pb2.WaitForRolloutsRequest(return_when=7), "return_when", "enum number 7"),
)
def test_selections(scene, mistake):
    check(scene.served, mistake)
    assert asyncio.run(scene.served.store.statistics())["total_rollouts"] == 2


@pytest.mark.parametrize("fields", [{}, {"status_in": {"values": [QUEUING]}}])
def test_a_deletion_of_everything_must_be_meant(scene, fields):
    failure = scene.served.failure("DeleteRollouts", rollout_pb2.DeleteRolloutsRequest(**ID, **fields))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT", ["older_than"])
    assert "neither rollout_ids nor older_than is given" in failure.message
    assert asyncio.run(scene.served.store.statistics())["total_rollouts"] == 2


@pytest.mark.parametrize("after", ["x", "-1", "0123456789ab-1", "1" * 5000])
def test_a_cursor_that_is_not_the_servers(scene, after):
    failure = scene.served.failure("WatchRollouts", rollout_pb2.WatchRolloutsRequest(after=after))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "CURSOR_UNKNOWN", ["after"])


# --- Ids that are missing or not known -------------------------------------------------------------------------------


@each(
    Mistake("StartAttempt", rollout_pb2.StartAttemptRequest(**ID), "rollout_id", "missing"),
    Mistake("GetRollout", rollout_pb2.GetRolloutRequest(), "rollout_id", "missing"),
    Mistake("GetLatestAttempt", rollout_pb2.GetLatestAttemptRequest(), "rollout_id", "missing"),
    Mistake("GetResources", resources_pb2.GetResourcesRequest(), "resources_id", "missing"),
    Mistake("GetWorker", worker_pb2.GetWorkerRequest(), "worker_id", "missing"),
    Mistake("UpdateWorker", worker_pb2.UpdateWorkerRequest(), "worker_id", "missing"),
    Mistake("ListAttempts", rollout_pb2.ListAttemptsRequest(), "rollout_id", "missing"),
    Mistake("ListSpans", span_pb2.ListSpansRequest(), "rollout_id", "missing"),
    Mistake("UpdateRollout", rollout_pb2.UpdateRolloutRequest(**ID), "rollout_id", "missing"),
    Mistake("UpdateAttempt", rollout_pb2.UpdateAttemptRequest(**ID, latest=True), "rollout_id", "missing"),
    Mistake("CancelRollouts", rollout_pb2.CancelRolloutsRequest(**ID, rollout_ids=[""]), "rollout_ids[0]", "missing"),
    Mistake("UpdateResources", resources_pb2.UpdateResourcesRequest(**ID), "resources_id", "missing"),
    Mistake(
        "AllocateSpanSequenceIds",
        span_pb2.AllocateSpanSequenceIdsRequest(**ID, keys=[{"attempt_id": "at"}]),
        "keys[0].rollout_id",
        "missing",
    ),
    Mistake("UpdateAttempt", rollout_pb2.UpdateAttemptRequest(**ID, rollout_id="ro"), "attempt", "missing"),
    Mistake(
        "UpdateAttempt", rollout_pb2.UpdateAttemptRequest(**ID, rollout_id="ro", attempt_id=""), "attempt_id", "missing"
    ),
    Mistake("UpdateAttempt", rollout_pb2.UpdateAttemptRequest(**ID, rollout_id="ro", latest=False), "latest", "false"),
    Mistake("ListSpans", span_pb2.ListSpansRequest(rollout_id="ro", latest=False), "latest", "false"),
    Mistake("ListSpans", span_pb2.ListSpansRequest(rollout_id="ro", attempt_id=""), "attempt_id", "missing"),
    Mistake("StreamQuery", StreamQueryRequest(), "query", "missing"),
    Mistake("StreamQuery", StreamQueryRequest(spans={}), "rollout_id", "missing"),
    Mistake("StreamQuery", StreamQueryRequest(attempts={}), "rollout_id", "missing"),
)
def test_ids_that_are_missing(scene, mistake):
    check(scene.served, mistake)


def test_the_attempt_of_a_span_number_is_required(scene):
    key = {"rollout_id": scene.attempted.rollout_id}
    request = span_pb2.AllocateSpanSequenceIdsRequest(**ID, keys=[key])
    check(scene.served, Mistake("AllocateSpanSequenceIds", request, "keys[0].attempt_id", "missing"))


def test_ids_that_are_not_known(scene):
    known, queued = scene.attempted.rollout_id, scene.queued.rollout_id
    no_attempt = rollout_pb2.UpdateAttemptRequest(request_id="a", rollout_id=known, attempt_id="at-no")
    no_attempts = rollout_pb2.UpdateAttemptRequest(request_id="b", rollout_id=queued, latest=True)
    no_rollout = [
        ("StartAttempt", rollout_pb2.StartAttemptRequest(**ID, rollout_id="ro-no")),
        ("UpdateRollout", rollout_pb2.UpdateRolloutRequest(**ID, rollout_id="ro-no")),
        ("CancelRollouts", rollout_pb2.CancelRolloutsRequest(**ID, rollout_ids=[known, "ro-no"])),
        ("UpdateAttempt", rollout_pb2.UpdateAttemptRequest(**ID, rollout_id="ro-no", latest=True)),
        (
            "AllocateSpanSequenceIds",
            span_pb2.AllocateSpanSequenceIdsRequest(**ID, keys=[{"rollout_id": "ro-no", "attempt_id": "at-no"}]),
        ),
    ]
    for rpc, request in no_rollout:
        failure = scene.served.failure(rpc, request)
        assert (failure.code, failure.reason) == ("NOT_FOUND", "ROLLOUT_NOT_FOUND")
        assert failure.message == "Rollout ro-no not found"
        assert failure.details == {"rollout_id": "ro-no"}
    failure = scene.served.failure("UpdateAttempt", no_attempt)
    assert (failure.code, failure.reason) == ("NOT_FOUND", "ATTEMPT_NOT_FOUND")
    assert failure.details == {"rollout_id": known, "attempt_id": "at-no"}
    failure = scene.served.failure("UpdateAttempt", no_attempts)
    assert (failure.code, failure.reason) == ("NOT_FOUND", "NO_ATTEMPTS")


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("GetRollout", rollout_pb2.GetRolloutRequest(rollout_id="no")),
        ("GetLatestAttempt", rollout_pb2.GetLatestAttemptRequest(rollout_id="no")),
        ("GetResources", resources_pb2.GetResourcesRequest(resources_id="no")),
        ("GetLatestResources", resources_pb2.GetLatestResourcesRequest()),
        ("GetWorker", worker_pb2.GetWorkerRequest(worker_id="no")),
        ("ListAttempts", rollout_pb2.ListAttemptsRequest(rollout_id="no")),
        ("ListSpans", span_pb2.ListSpansRequest(rollout_id="no", attempt_id="no")),
        ("ListSpans", span_pb2.ListSpansRequest(rollout_id="no", latest=True)),
    ],
)
def test_to_read_what_is_not_there_is_no_mistake(served, rpc, request_):
    reply = served.call(rpc, request_)
    assert not reply.ListFields()


def test_strict_servers_refuse_more(serve):
    scene = Scene(serve, strict=True)
    terminal = {"status": rollout_pb2.ROLLOUT_STATUS_CANCELLED}
    mask = {"paths": ["status"]}
    rollout_id = scene.queued.rollout_id
    cancel = rollout_pb2.UpdateRolloutRequest(request_id="a", rollout_id=rollout_id, update=terminal, update_mask=mask)
    scene.served.call("UpdateRollout", cancel)
    again = {"status": rollout_pb2.ROLLOUT_STATUS_RUNNING}
    for rpc, request, code, reason in [
        ("GetLatestAttempt", rollout_pb2.GetLatestAttemptRequest(rollout_id="no"), "NOT_FOUND", "ROLLOUT_NOT_FOUND"),
        ("ListSpans", span_pb2.ListSpansRequest(rollout_id="no"), "NOT_FOUND", "ROLLOUT_NOT_FOUND"),
        ("WaitForRollouts", rollout_pb2.WaitForRolloutsRequest(rollout_ids=["no"]), "NOT_FOUND", "ROLLOUT_NOT_FOUND"),
        (
            "WatchRollouts",
            rollout_pb2.WatchRolloutsRequest(rollout_id_in={"values": ["no"]}),
            "NOT_FOUND",
            "ROLLOUT_NOT_FOUND",
        ),
        ("EnqueueRollouts", enqueue(resources_id="no"), "NOT_FOUND", "RESOURCES_NOT_FOUND"),
        (
            "UpdateResources",
            resources_pb2.UpdateResourcesRequest(**ID, resources_id="no"),
            "NOT_FOUND",
            "RESOURCES_NOT_FOUND",
        ),
        (
            "UpdateRollout",
            rollout_pb2.UpdateRolloutRequest(**ID, rollout_id=rollout_id, update=again, update_mask=mask),
            "FAILED_PRECONDITION",
            "INVALID_TRANSITION",
        ),
    ]:
        failure = scene.served.failure(rpc, request)
        assert (failure.code, failure.reason) == (code, reason)


# --- Updates ---------------------------------------------------------------------------------------------------------


def rollout_update(field, says="", paths=(), **update):
    request = rollout_pb2.UpdateRolloutRequest(**ID, rollout_id="ro", update=update, update_mask={"paths": paths})
    return Mistake("UpdateRollout", request, field, says)


def attempt_update(field, says="", paths=(), **update):
    request = rollout_pb2.UpdateAttemptRequest(
        **ID, rollout_id="ro", latest=True, update=update, update_mask={"paths": paths}
    )
    return Mistake("UpdateAttempt", request, field, says)


@each(
    rollout_update("update_mask.paths[0]", "'input'", ["input"]),
    rollout_update("update_mask.paths[1]", "'config.timeout'", ["mode", "config.timeout"]),
    rollout_update("update_mask.paths[0]", "'*'", ["*"]),
    rollout_update("update_mask.paths[0]", "''", [""]),
    rollout_update("update_mask.paths[0]", "must be one of input_json, mode", ["rollout_id"]),
    rollout_update("update_mask", "is empty", status=QUEUING),
    rollout_update("update.status", "unspecified", ["status"]),
    rollout_update("update.status", "unknown enum number 8", ["status"], status=8),
    rollout_update("update.mode", "unknown enum number 4", ["mode"], mode=4),
    rollout_update("update.config", "missing", ["config"]),
    rollout_update("update.config.max_attempts", "", ["config"], config={"max_attempts": -1}),
    rollout_update("update.input_json", "not valid JSON", ["input_json"], input_json="{"),
    rollout_update("update.metadata_json", "of an array", ["metadata_json"], metadata_json="[1]"),
    attempt_update("update_mask.paths[0]", "'metadata'", ["metadata"]),
    attempt_update("update_mask", "is empty", status=1),
    attempt_update("update.status", "unspecified", ["status"]),
    attempt_update("update.status", "unknown enum number -7", ["status"], status=-7),
    attempt_update("update.metadata_json", "not valid JSON", ["metadata_json"], metadata_json="x"),
    attempt_update(
        "update.last_heartbeat_time",
        "out of range",
        ["last_heartbeat_time"],
        last_heartbeat_time=Timestamp(seconds=-(2**63)),
    ),
    attempt_update(
        "update.last_heartbeat_time", "nanos", ["last_heartbeat_time"], last_heartbeat_time=Timestamp(nanos=-1)
    ),
)
def test_updates(scene, mistake):
    check(scene.served, mistake)


@each(
    Mistake(
        "UpdateWorker",
        worker_pb2.UpdateWorkerRequest(worker_id="w", heartbeat_stats_json="null"),
        "heartbeat_stats_json",
        "of null",
    ),
    Mistake(
        "UpdateWorker",
        worker_pb2.UpdateWorkerRequest(worker_id="w", heartbeat_stats_json="{,}"),
        "heartbeat_stats_json",
        "not valid JSON",
    ),
    Mistake("DequeueRollouts", rollout_pb2.DequeueRolloutsRequest(**ID, limit=-1), "limit", "must not be negative"),
    Mistake("DequeueRollouts", rollout_pb2.DequeueRolloutsRequest(**ID, limit=-(2**31)), "limit", "negative"),
)
def test_workers_and_claims(scene, mistake):
    check(scene.served, mistake)
    assert asyncio.run(scene.served.store.statistics())["total_workers"] == 0


# --- Resources -------------------------------------------------------------------------------------------------------


def resources(field, says, text):
    request = resources_pb2.AddResourcesRequest(**ID, resources_json={"main": text})
    return Mistake("AddResources", request, f"resources_json['main']{field}", says)


@each(
    resources("", "not valid JSON", "{"),
    resources("", "of an array", "[]"),
    resources(".resource_type", "must be text", "{}"),
    resources(".resource_type", "must be text", '{"resource_type": 5}'),
    resources(".resource_type", "", '{"resource_type": ""}'),
    resources(".endpoint", "required", json.dumps({"resource_type": "llm", "model": "m"})),
    resources(".model", "string", json.dumps({"resource_type": "llm", "endpoint": "e", "model": 1})),
    resources(".engine", "", json.dumps({"resource_type": "prompt_template", "template": "t", "engine": "x"})),
)
def test_resources(scene, mistake):
    check(scene.served, mistake)
    update = resources_pb2.UpdateResourcesRequest(
        **ID, resources_id="rs", resources_json=mistake.request.resources_json
    )
    check(scene.served, Mistake("UpdateResources", update, mistake.field, mistake.says))
    assert asyncio.run(scene.served.store.statistics())["total_resources"] == 0


# --- Queries ---------------------------------------------------------------------------------------------------------

LISTS = {
    "rollouts": ("ListRollouts", rollout_pb2.ListRolloutsRequest, {}, "input"),
    "attempts": ("ListAttempts", rollout_pb2.ListAttemptsRequest, {"rollout_id": "ro"}, "metadata"),
    "spans": ("ListSpans", span_pb2.ListSpansRequest, {"rollout_id": "ro"}, "attributes"),
    "resources": ("ListResources", resources_pb2.ListResourcesRequest, {}, "resources"),
    "workers": ("ListWorkers", worker_pb2.ListWorkersRequest, {}, "heartbeat_stats"),
}
each_list = pytest.mark.parametrize("kind", LISTS)


@each_list
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("limit", -1, "must not be negative"),
        ("limit", -(2**63), "must not be negative"),
        ("offset", -1, "must not be negative"),
        ("page_size", -1, "must not be negative"),
        ("page_token", "x", "start again with an empty one"),
        ("page_token", "-1", "start again"),
        ("page_token", "1.5", "start again"),
        ("page_token", "\u0661", "start again"),
        ("page_token", "9" * 19, "start again"),
        ("sort_order", 3, "unknown enum number 3"),
        ("sort_by", "no_such_field", "sort by one of"),
        ("sort_by", "__class__", "sort by one of"),
    ],
)
def test_queries(scene, kind, field, value, says):
    rpc, request_type, ids, _ = LISTS[kind]
    request = request_type(**ids, **{field: value})
    check(scene.served, Mistake(rpc, request, field, says))


@each_list
@pytest.mark.parametrize(
    ("field", "value"), [("limit", -1), ("offset", -1), ("page_size", -1), ("page_token", "3"), ("sort_order", 3)]
)
def test_streamed_queries(scene, kind, field, value):
    _, request_type, ids, _ = LISTS[kind]
    request = StreamQueryRequest(**{kind: request_type(**ids, **{field: value})})
    failure = scene.served.failure("StreamQuery", request)
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert field in failure.message
    assert [path.rpartition(".")[2] for path in failure.fields] == [field]


@each_list
def test_fields_without_an_order(scene, kind):
    rpc, request_type, ids, unordered = LISTS[kind]
    failure = scene.served.failure(rpc, request_type(**ids, sort_by=unordered))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "UNSORTABLE_FIELD", ["sort_by"])
    assert "sort_by" in failure.message


@each(
    Mistake(
        "ListRollouts",
        rollout_pb2.ListRolloutsRequest(status_in={"values": [1, 0]}),
        "status_in.values[1]",
        "unspecified",
    ),
    Mistake(
        "ListRollouts", rollout_pb2.ListRolloutsRequest(status_in={"values": [8]}), "status_in.values[0]", "number 8"
    ),
    Mistake("ListWorkers", worker_pb2.ListWorkersRequest(status_in={"values": [4]}), "status_in.values[0]", "number 4"),
    Mistake("ListRollouts", rollout_pb2.ListRolloutsRequest(filter_logic=3), "filter_logic", "number 3"),
    Mistake("ListSpans", span_pb2.ListSpansRequest(rollout_id="ro", filter_logic=-1), "filter_logic", "number -1"),
    Mistake("ListResources", resources_pb2.ListResourcesRequest(filter_logic=9), "filter_logic", "number 9"),
    Mistake("ListWorkers", worker_pb2.ListWorkersRequest(filter_logic=9), "filter_logic", "number 9"),
)
def test_filters(scene, mistake):
    check(scene.served, mistake)


# --- Spans -----------------------------------------------------------------------------------------------------------


def nested(levels):
    value = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


OLD_SPAN = b"\x0a\x04ro-1\x12\x04at-1\x18\x01\x22\x02\x2a\x00"
"""A span in the fields of an earlier wire: ids, a number, and a message of OTLP."""


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"sequence_id": -1}, "sequence_id", "must not be negative"),
        ({"document_json": ""}, "document_json", "is missing"),
        ({"document_json": "{"}, "document_json", "is not JSON"),
        ({"document_json": "x"}, "document_json", "is not JSON"),
        ({"document_json": "[]"}, "document_json", "should be an object"),
        ({"document_json": "{}"}, "document_json.rollout_id", "required"),
        ({"rollout_id": ""}, "document_json.rollout_id", "is missing"),
        ({"attempt_id": None}, "document_json.attempt_id", "string"),
        ({"span_id": "\0"}, "document_json.span_id", "U+0000"),
        ({"sequence_id_member": 1}, "document_json.sequence_id", "beside the document"),
        ({"name": 5}, "document_json.name", "string"),
        ({"start_time": -1}, "document_json.start_time", "greater than or equal to 0"),
        ({"start_time": "now"}, "document_json.start_time", "number"),
        ({"kind": 5}, "document_json.kind", "an integer from 6"),
        ({"status": {"status_code": "BAD"}}, "document_json.status.status_code", "an integer from 3"),
        ({"events": [{}]}, "document_json.events[0].name", "required"),
        ({"attributes": nested(128)}, "document_json", "128 levels"),
        ({"$exact": {"/name": {"float": "NaN"}}}, "document_json.name", "string"),
    ],
)
def test_spans(scene, change, field, says):
    good, bad = (new_span(make_span(scene.attempted, number)) for number in (1, 2))
    members = json.loads(bad.document_json)
    for name, value in change.items():
        if name in ("sequence_id", "document_json"):
            setattr(bad, name, value)
        else:
            members[name.removesuffix("_member")] = value
            bad.document_json = json.dumps(members)
    rejected, stored = scene.served.call("AddSpans", span_pb2.AddSpansRequest(**ID, spans=[bad, good])).outcomes
    assert rejected.rejected.reason == "INVALID_ARGUMENT"
    assert rejected.rejected.details["field"] == f"spans[0].{field}"
    assert rejected.rejected.message.startswith(f"spans[0].{field}")
    assert says in rejected.rejected.message
    assert stored.stored.sequence_id == 1
    listed = scene.served.call("ListSpans", span_pb2.ListSpansRequest(rollout_id=scene.attempted.rollout_id))
    assert [span.document_json for span in listed.spans] == [good.document_json]


def test_a_client_of_an_earlier_wire_is_told_what_is_missing(scene):
    request = span_pb2.AddSpansRequest(**ID, spans=[span_pb2.NewSpan.FromString(OLD_SPAN)])
    [outcome] = scene.served.call("AddSpans", request).outcomes
    assert outcome.rejected.reason == "INVALID_ARGUMENT"
    assert outcome.rejected.message.startswith("spans[0].document_json is missing")


def test_spans_of_nothing_known(scene):
    no_rollout = new_span(make_span(scene.attempted, 1, rollout_id="ro-no"))
    no_attempt = new_span(make_span(scene.attempted, 2, attempt_id="at-no"))
    reply = scene.served.call("AddSpans", span_pb2.AddSpansRequest(**ID, spans=[no_rollout, no_attempt]))
    assert [outcome.rejected.reason for outcome in reply.outcomes] == ["ROLLOUT_NOT_FOUND", "ATTEMPT_NOT_FOUND"]


@pytest.mark.parametrize("rpc", ["AllocateSpanSequenceIds", "AddSpans"])
def test_the_last_of_all_numbers_leaves_the_rollout_usable(scene, rpc):
    """Whoever asks for a number beyond it is refused; nobody else is."""
    rollout_id = scene.attempted.rollout_id
    last, next_one, other = (new_span(make_span(scene.attempted, number)) for number in (1, 2, 3))
    last.sequence_id = 2**63 - 1
    next_one.ClearField("sequence_id")
    scene.served.call("AddSpans", span_pb2.AddSpansRequest(**ID, spans=[last]))
    if rpc == "AddSpans":
        scene.served.call("AddSpans", span_pb2.AddSpansRequest(request_id="id-2", spans=[next_one, other]))
    else:
        keys = [{"rollout_id": rollout_id, "attempt_id": "at"}]
        request = span_pb2.AllocateSpanSequenceIdsRequest(request_id="id-2", keys=keys)
        assert "sequence" in scene.served.failure("AllocateSpanSequenceIds", request).message
    listed = scene.served.call("ListSpans", span_pb2.ListSpansRequest(rollout_id=rollout_id)).spans
    assert last.document_json in [span.document_json for span in listed]


# --- Bytes that are no message ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"], ids=["tag", "length", "text"])
def test_bytes_that_are_no_message(served, body, failure_of):
    for rpc, method in METHODS.items():
        without_text = {"GetServerInfo", "GetStatistics", "GetLatestResources", "ListAdmissions"}
        if body == b"\x0a\x02\xff\xfe" and rpc in without_text:
            continue  # a message without fields takes any field as one that is not known
        make = served.channel.unary_stream if method.streams else served.channel.unary_unary
        failure = failure_of(lambda: list_of(make(f"/{SERVICE}/{rpc}")(body, timeout=SAFETY_SECONDS)))  # noqa: B023
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT"), rpc
        assert "Traceback" not in failure.message
    assert served.health() == "SERVING"


def list_of(reply):
    return list(reply) if hasattr(reply, "__next__") else reply


def test_fields_that_are_not_known_are_passed_over(served):
    reply = served.channel.unary_unary(f"/{SERVICE}/GetStatistics")(b"\xa8\x7d\x01", timeout=SAFETY_SECONDS)
    assert isinstance(reply, bytes)
