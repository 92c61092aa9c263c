"""The REST interfaces without their clients: routes, bad input, roles, repeated requests, and their description.

``tests/rest`` has Agent Lightning's own clients.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest

from lightning_store import AttemptedRollout, InMemoryLightningStore
from lightning_store.agent_lightning import LEGACY_REPORT, LEGACY_SPAN
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.wire.methods import METHODS, Role
from lightning_store_server.http.protocol import GONE
from lightning_store_server.http.rest.deliveries import KEPT_MAX, KEPT_SECONDS, Deliveries
from lightning_store_server.http.rest.openapi import description
from lightning_store_server.http.rest.tables import OPERATIONS, role_at, version_at
from lightning_store_server.tokens import Limits, add_token

SPAN = {
    "sequence_id": 1,
    "trace_id": "0" * 32,
    "span_id": "1" * 16,
    "parent_id": None,
    "name": "n",
    "status": {"status_code": "OK", "description": None},
    "attributes": {"a": 1},
    "events": [],
    "links": [],
    "start_time": 1.0,
    "end_time": None,
    "context": None,
    "parent": None,
    "resource": {"attributes": {}, "schema_url": ""},
}
LLM = {"llm": {"resource_type": "llm", "endpoint": "e", "model": "m", "api_key": "secret", "sampling_parameters": {}}}


class Rest:
    """Makes requests of a server."""

    def __init__(self, served, token=None):
        self.base = served.server.otlp_traces_endpoint().removesuffix("/v1/traces")
        self.port = int(self.base.rpartition(":")[2])
        self._token = token

    def __call__(self, method, path, body=None, *, raw=None, **headers):
        """Status and value."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Content-Type": "application/json", **given} if data is not None else given
        if self._token:
            given["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.base + path, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SAFETY_SECONDS) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def ok(self, method, path, body=None, **more):
        """The value of an answer that is none of a failure."""
        status, value = self(method, path, body, **more)
        assert status in (200, 201), (status, value)
        return value


@pytest.fixture
def rest(serve):
    return Rest(serve(http_port=0))


# --- 0.3 -------------------------------------------------------------------------------------------------------------


def test_a_rollout_by_0_3(rest):
    agl = "/v1/agl"
    assert rest("GET", f"{agl}/health") == (200, {"status": "ok"})
    assert rest("GET", f"{agl}/resources/latest") == (200, None)
    status, added = rest("POST", f"{agl}/resources", LLM)
    assert (status, added["version"], added["resources"]) == (201, 1, LLM)
    status, [queued, _] = rest(
        "POST",
        f"{agl}/queues/rollouts/enqueue",
        {"rollouts": [{"input": {"a": [1, None]}, "mode": "train", "config": {"max_attempts": 2}}, {"input": "b"}]},
    )
    id = queued["rollout_id"]
    assert (status, queued["input"], queued["status"]) == (201, {"a": [1, None]}, "queuing")
    assert queued["config"]["max_attempts"] == 2
    [claimed] = rest.ok("POST", f"{agl}/queues/rollouts/dequeue", {"limit": 1, "worker_id": "w"})
    attempt = claimed["attempt"]
    assert (claimed["rollout_id"], attempt["worker_id"], attempt["sequence_id"]) == (id, "w", 1)
    assert rest("POST", f"{agl}/queues/rollouts/dequeue", {"limit": 0}) == (200, [])
    assert rest.ok("POST", f"{agl}/spans/next", {"rollout_id": id, "attempt_id": "x"}) == {"sequence_id": 1}
    span = {**SPAN, "rollout_id": id, "attempt_id": attempt["attempt_id"], "more": {"x": [1]}, "kind": "mine"}
    assert rest("POST", f"{agl}/spans", span) == (201, span)
    assert rest("POST", f"{agl}/spans", span) == (201, None)
    page = rest.ok("GET", f"{agl}/spans?rollout_id={id}&attempt_id=latest&limit=5")
    assert page == {"items": [span], "limit": 5, "offset": 0, "total": 1}
    assert rest.ok("POST", f"{agl}/spans/search", {"rollout_id": id, "name_contains": "x"})["total"] == 0
    path = f"{agl}/rollouts/{id}/attempts"
    assert rest.ok("GET", f"{path}/latest")["status"] == "running"
    assert rest.ok("POST", f"{path}/latest", {"status": "succeeded"})["end_time"] is not None
    assert rest.ok("POST", f"{agl}/waits/rollouts", {"rollout_ids": [id, "no", id], "timeout": 0})[0]["status"] == (
        "succeeded"
    )
    assert "attempt" not in rest.ok("POST", f"{agl}/waits/rollouts", {"rollout_ids": [id]})[0]
    assert rest.ok("POST", f"{agl}/rollouts/{id}", {"metadata": {"k": 1}, "mode": None})["metadata"] == {"k": 1}
    found = rest.ok("GET", f"{agl}/rollouts/{id}")
    assert (found["mode"], found["attempt"]["status"]) == (None, "succeeded")
    assert rest("POST", path) == (201, rest.ok("GET", f"{agl}/rollouts/{id}"))
    newest = rest.ok("GET", f"{path}?sort_order=desc&limit=1")
    assert (newest["items"][0]["sequence_id"], newest["total"]) == (2, 2)
    assert rest.ok("POST", f"{path}/search", {})["total"] == 2
    assert rest.ok("POST", f"{agl}/workers/w", {"heartbeat_stats": {"cpu": 1}})["heartbeat_stats"] == {"cpu": 1}
    assert rest.ok("POST", f"{agl}/workers/v")["status"] == "unknown"
    assert [one["worker_id"] for one in rest.ok("GET", f"{agl}/workers?sort_by=worker_id")["items"]] == ["v", "w"]
    assert rest.ok("POST", f"{agl}/workers/search", {"worker_id_contains": "v"})["total"] == 1
    assert rest.ok("GET", f"{agl}/workers/w")["heartbeat_stats"] == {"cpu": 1}
    assert rest.ok("POST", f"{agl}/resources/rs", {})["version"] == 1
    assert rest.ok("GET", f"{agl}/resources/rs") == rest.ok("GET", f"{agl}/resources/latest")
    assert rest.ok("GET", f"{agl}/resources?resources_id_contains=rs&limit=1")["total"] == 2
    assert rest("POST", f"{agl}/rollouts", {"input": 1, "worker_id": "u"})[0] == 201
    by_status = rest.ok("GET", f"{agl}/rollouts?status_in=queuing&status_in=preparing&sort_by=start_time")
    assert (len(by_status["items"]), by_status["total"]) == (3, 3)
    assert rest.ok("GET", f"{agl}/statistics")["total_rollouts"] == 3
    nothing = [rest(*one) for one in [("GET", f"{agl}/rollouts/no"), ("GET", f"{agl}/workers/no")]]
    assert nothing == [(200, None)] * 2


def test_a_long_list_comes_whole(serve):
    store = InMemoryLightningStore()
    served = serve(store, http_port=0, page_rows_max=7)
    for number in range(50):
        asyncio.run(store.enqueue_rollout(number))
    page = Rest(served).ok("POST", "/v1/agl/rollouts/search", {"sort_by": "start_time", "offset": 10})
    assert [one["input"] for one in page["items"]] == list(range(10, 50))
    assert (page["total"], page["limit"], page["offset"]) == (50, -1, 10)


def test_values_that_are_no_strict_json_come_back(rest):
    [queued] = rest.ok(
        "POST", "/v1/agl/queues/rollouts/enqueue", raw=b'{"rollouts":[{"input":[NaN,-Infinity,"\\ud800"]}]}'
    )
    assert repr(queued["input"]) == repr([float("nan"), float("-inf"), "\ud800"])


# --- 0.2 and the legacy server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/agl/v1"])
def test_a_rollout_by_the_paths_of_0_2_2(rest, prefix):
    assert rest("GET", f"{prefix}/health") == (200, {"status": "ok"})
    queued = rest.ok("POST", f"{prefix}/enqueue_rollout", {"input": 1})
    claimed = rest.ok("GET", f"{prefix}/dequeue_rollout")
    id = queued["rollout_id"]
    assert claimed["rollout_id"] == id
    assert rest.ok("GET", f"{prefix}/dequeue_rollout") is None
    span = {**SPAN, "rollout_id": id, "attempt_id": claimed["attempt"]["attempt_id"]}
    assert rest.ok("POST", f"{prefix}/add_span", span) == rest.ok("POST", f"{prefix}/add_span", span) == span
    assert rest.ok("GET", f"{prefix}/query_spans/{id}?attempt_id=latest") == [span]
    assert rest.ok("GET", f"{prefix}/get_next_span_sequence_id/{id}/x") == 2
    assert rest.ok("POST", f"{prefix}/update_attempt", {"rollout_id": id, "attempt_id": "latest", "status": "failed"})
    assert "attempt" not in rest.ok("POST", f"{prefix}/query_rollouts", {"status": ["failed"]})[0]
    assert rest("POST", f"{prefix}/start_attempt", {"rollout_id": "no"}) == (
        400,
        {"detail": "Rollout no not found", "error_type": "ValueError"},
    )


def test_a_rollout_by_0_2(rest):
    agl = "/agl/v1"
    status, queued = rest("POST", f"{agl}/queues/rollouts/enqueue", {"input": 1})
    assert (status, rest.ok("POST", f"{agl}/queues/rollouts/dequeue")["rollout_id"]) == (201, queued["rollout_id"])
    assert rest.ok("POST", f"{agl}/queues/rollouts/dequeue") is None
    id = queued["rollout_id"]
    assert rest.ok("POST", f"{agl}/rollouts/{id}/attempts/latest", {"status": "succeeded"})["status"] == "succeeded"
    assert len(rest.ok("GET", f"{agl}/rollouts/{id}/attempts")) == 1
    assert rest.ok("GET", f"{agl}/rollouts?status=succeeded") == rest.ok(
        "POST", f"{agl}/rollouts/search", {"rollout_ids": [id]}
    )
    assert rest("POST", f"{agl}/rollouts/no", {"status": "failed"})[0] == 400


def test_a_task_by_the_legacy_protocol(serve):
    store = InMemoryLightningStore()
    rest = Rest(serve(store, http_port=0))
    assert rest("GET", "/task") == (200, {"is_available": False, "task": None})
    assert rest("GET", "/resources/latest") == (404, {"detail": "No resources have been set on the server."})
    assert rest("GET", "/resources/no") == (404, {"detail": "Resource ID 'no' not found."})
    rest.ok("POST", "/v1/agl/resources/rs", LLM)
    assert rest.ok("GET", "/resources/latest")["resources"] == rest.ok("GET", "/resources/rs")["resources"] == LLM
    queued = asyncio.run(store.enqueue_rollout("sample", mode="val"))
    task = rest.ok("GET", "/task")["task"]
    assert (task["rollout_id"], task["input"], task["mode"], task["num_claims"], task["resources_id"]) == (
        queued.rollout_id,
        "sample",
        "val",
        1,
        "rs",
    )
    otel = {
        "name": "llm",
        "context": {"trace_id": "0x" + "ab" * 16, "span_id": "0x" + "cd" * 8},
        "start_time": "2025-01-01T00:00:00.500000Z",
        "status": {"status_code": "ERROR"},
        "attributes": {"x": 1},
    }
    report = {"rollout_id": queued.rollout_id, "final_reward": 0.5, "trace": [otel, {"odd": True}], "logs": ["l"]}
    for _ in "ab":  # which a client may send twice
        assert rest.ok("POST", "/rollout", report)["status"] == "ok"
    found = asyncio.run(store.get_rollout_by_id(queued.rollout_id))
    assert isinstance(found, AttemptedRollout)
    assert (found.status, (found.attempt.metadata or {})[LEGACY_REPORT]["final_reward"]) == ("succeeded", 0.5)
    spans = asyncio.run(store.query_spans(queued.rollout_id))
    assert [(span.model_extra or {})[LEGACY_SPAN] for span in spans] == [otel, {"odd": True}]
    assert (spans[0].span_id, spans[0].start_time, spans[0].status.status_code) == ("cd" * 8, 1735689600.5, "ERROR")
    assert rest("POST", "/rollout", {"rollout_id": "no"})[0] == 404


# --- Bad input -------------------------------------------------------------------------------------------------------

ENQUEUE = "/v1/agl/queues/rollouts/enqueue"


BAD = [
    ("POST", ENQUEUE, b"", 422, '"type": "missing", "loc": ["body"]'),
    ("POST", ENQUEUE, b"{", 422, '"json_invalid", "loc": ["body", 1], "msg": "JSON decode error"'),
    ("POST", ENQUEUE, b"\xff", 422, "json_invalid"),
    ("POST", ENQUEUE, b"[" * 40_000, 422, "json_invalid"),
    ("POST", ENQUEUE, b'{"rollouts":[' + b"9" * 5000 + b"]}", 422, "json_invalid"),
    ("POST", ENQUEUE, b'{"rollouts":[{"input":' + b"[" * 300 + b"]" * 300 + b"}]}", 400, "nested"),
    ("POST", ENQUEUE, b"[]", 422, "model_attributes_type"),
    ("POST", ENQUEUE, b'{"rollouts":[{"mode":"x"}]}', 422, '0, "input"], "msg": "Field required"'),
    ("POST", ENQUEUE, b'{"rollouts":[{"input":1,"config":{"max_attempts":0}}]}', 422, "than or equal to 1"),
    (
        "POST",
        ENQUEUE,
        b'{"rollouts":[' + b'{"input":1},' * 20 + b'{"input":1}]}',
        400,
        "rollouts has more than 20 items",
    ),
    ("POST", "/v1/agl/resources", b'{"r":{"resource_type":"x"}}', 422, "union_tag_invalid"),
    ("POST", "/v1/agl/rollouts/no", b'{"status":null}', 400, "status is invalid; it cannot be a null value."),
    ("POST", "/v1/agl/rollouts/no", b'{"status":"failed"}', 500, '"ValueError", "message": "Rollout no'),
    ("POST", "/v1/agl/rollouts/no/attempts", b"", 500, "Internal server error"),
    ("POST", "/v1/agl/rollouts/no/attempts/latest", b'{"status":"x"}', 422, "literal_error"),
    ("POST", "/v1/agl/rollouts/" + "x" * 2000, b'{"status":"failed"}', 400, "more than"),
    *(
        ("POST", path, b'{"rollout_id":"\\ud800","attempt_id":"a","worker_id":"\\ud800","input":1}', 400, "surrogate")
        for path in ("/start_attempt", "/update_rollout", "/rollout", "/v1/agl/spans/next", "/v1/agl/rollouts")
    ),
    ("GET", "/v1/agl/rollouts?limit=0", None, 400, "Limit must be greater than 0 or -1 for no limit"),
    ("GET", "/v1/agl/rollouts?offset=-1", None, 400, "Offset must be greater than or equal to 0"),
    ("GET", "/v1/agl/rollouts?limit=x", None, 422, '"int_parsing", "loc": ["query", "limit"]'),
    ("GET", "/v1/agl/rollouts?sort_by=x", None, 400, "Invalid sort_by: x, allowed fields are: rollout_id, input"),
    ("GET", "/v1/agl/rollouts?sort_by=input", None, 500, '"error_type": "TypeError"'),
    ("GET", "/v1/agl/spans", None, 422, '"loc": ["query", "rollout_id"], "msg": "Field required"'),
    ("GET", "/v1/agl/nothing", None, 404, '{"detail": "Not Found"}'),
    ("DELETE", "/v1/agl/rollouts", None, 405, '{"detail": "Method Not Allowed"}'),
]
"""Method, path, body, and the status and a part of the answer."""


def test_bad_input_is_answered_as_theirs_does(serve):
    rest = Rest(serve(http_port=0, request_items_max=20))
    for method, path, raw, status, told in BAD:
        found, value = rest(method, path, raw=raw)
        assert (found, told in json.dumps(value)) == (status, True), (path, value)
        assert "Traceback" not in json.dumps(value)
    with pytest.raises(urllib.error.HTTPError, match="405"):  # some GETs change something
        urllib.request.urlopen(urllib.request.Request(rest.base + "/task", method="HEAD"), timeout=SAFETY_SECONDS)


def test_bodies_of_other_types_and_pages_of_other_sites(serve):
    rest = Rest(serve(http_port=0, http_cors_origins=("http://good",)))
    body = {"rollouts": [{"input": 1}]}
    assert rest("POST", ENQUEUE, body, Content_Type="text/plain")[0] == 422
    assert rest("POST", ENQUEUE, body, Sec_Fetch_Site="cross-site", Origin="http://bad")[0] == 403
    assert rest("GET", "/task", Sec_Fetch_Site="cross-site")[0] == 403
    assert rest("POST", ENQUEUE, body, Sec_Fetch_Site="cross-site", Origin="http://good")[0] == 201
    assert rest("GET", "/v1/agl/rollouts", Sec_Fetch_Site="cross-site")[1]["total"] == 1


def test_failures_of_the_server_keep_their_cause_to_themselves(serve, hooked, log):
    async def fail(*args, **kwargs):
        raise KeyError("secret")

    rest = Rest(serve(hooked(InMemoryLightningStore(), get_latest_attempt=fail), http_port=0))
    status, value = rest("GET", "/v1/agl/rollouts/x/attempts/latest")
    assert (status, value["detail"]) == (500, "Internal server error")
    assert "secret" not in json.dumps(value)
    [logged] = log.left()
    assert value["message"].rpartition(" ")[2] in logged


# --- Roles -----------------------------------------------------------------------------------------------------------


def test_each_operation_asks_for_the_role_of_its_method():
    for one in OPERATIONS:
        path = re.sub(r"\{\w+\}", "x", one.path)
        first = next(other for other in OPERATIONS if other.method == one.method and other.pattern.match(path))
        assert role_at(one.method, path) is (METHODS[first.rpc].role if first.rpc else Role.READER)
        assert version_at(path) is not None
    assert [role_at("GET", "/v1/agl/nothing"), role_at("DELETE", "/task"), version_at("/metrics")] == [None] * 3


def test_roles_masks_and_limits(serve, tmp_path):
    path, now = str(tmp_path / "tokens.json"), datetime.now(UTC)
    roles = {role: add_token(path, role.value, role, now) for role in Role if role is not Role.ADMIN}
    bound = add_token(path, "bound", Role.RUNNER, now, workers=("w-*",))
    few = add_token(path, "few", Role.READER, now, limits=Limits(calls_per_second=1))
    served = serve(http_port=0, auth_tokens=path)
    reader, runner, algorithm = (Rest(served, token) for token in roles.values())
    assert Rest(served)("GET", "/v1/agl/rollouts")[0] == Rest(served, "no")("GET", "/task")[0] == 401
    assert reader("POST", ENQUEUE, {"rollouts": []})[0] == runner("POST", ENQUEUE, {"rollouts": []})[0] == 403
    assert algorithm("POST", ENQUEUE, {"rollouts": [{"input": 1}]})[0] == 201
    assert (reader("GET", "/task")[0], reader("GET", "/v1/agl/nothing")[0]) == (403, 403)
    algorithm.ok("POST", "/v1/agl/resources", LLM)
    shown = [one.ok("GET", "/v1/agl/resources/latest")["resources"]["llm"]["api_key"] for one in (reader, runner)]
    assert shown[0] != "secret" == shown[1]
    assert Rest(served, bound)("POST", "/v1/agl/queues/rollouts/dequeue", {"worker_id": "v-1"})[0] == 403
    assert len(Rest(served, bound).ok("POST", "/v1/agl/queues/rollouts/dequeue", {"worker_id": "w-1"})) == 1
    assert reader("GET", "/openapi.json")[0] == 200
    found = [Rest(served, few)("GET", "/v1/agl/rollouts")[0] for _ in range(3)]
    assert found[0] == 200
    assert 503 in found  # which their clients try again


# --- Requests that are sent again ------------------------------------------------------------------------------------


def hung_up(port, path, body, entered):
    """Send a request, and close the connection once the store is at work on it."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), SAFETY_SECONDS) as connection:
        connection.sendall(f"{head}\r\n".encode() + data)
        assert entered.wait(SAFETY_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_request_whose_answer_did_not_arrive_happens_once_when_it_comes_again(serve, monkeypatch):
    """Their client closes the connection after 30 s, and sends the same again."""
    from lightning_store_server.servicer import StoreServicer

    entered, gone, at_work = threading.Event(), asyncio.Event(), []
    original = StoreServicer.EnqueueRollouts

    async def slow(self, request, context):
        at_work.append((asyncio.get_running_loop(), context.invocation_metadata()))
        reply = await original(self, request, context)
        if len(at_work) == 1:
            entered.set()
            await gone.wait()
        return reply

    monkeypatch.setattr(StoreServicer, "EnqueueRollouts", slow)
    store = InMemoryLightningStore()
    rest = Rest(serve(store, http_port=0))
    body = {"rollouts": [{"input": "once"}]}
    hung_up(rest.port, ENQUEUE, body, entered)
    [first] = asyncio.run(store.query_rollouts())
    try:
        for _ in range(1000):  # until the server knows that its caller is gone
            [queued] = rest.ok("POST", ENQUEUE, body)
            if queued["rollout_id"] == first.rollout_id:
                break
        else:
            raise AssertionError("the request happened again and again")
    finally:
        at_work[0][0].call_soon_threadsafe(gone.set)
    assert at_work[-1][1]  # known as a repeated call
    assert rest.ok("POST", ENQUEUE, body)[0]["rollout_id"] != first.rollout_id  # a further one, that nobody repeats


def test_an_idempotency_key_makes_a_request_happen_once(rest):
    body = {"rollouts": [{"input": 1}]}
    first, again = (rest.ok("POST", ENQUEUE, body, Idempotency_Key="k") for _ in "ab")
    assert first == again
    status, told = rest("POST", ENQUEUE, {"rollouts": [{"input": 2}]}, Idempotency_Key="k")
    assert (status, told["error_type"]) == (400, "ValueError")
    assert rest.ok("GET", "/v1/agl/rollouts")["total"] == 1


def test_calls_are_known_by_their_requests_as_long_as_their_callers_may_come_back():
    clock = FakeClock()
    known = Deliveries(clock.monotonic)
    states = [{}, {}, {}]
    (first, _), (second, end_second) = (known.begin(b"k", states[0]), known.begin(b"k", states[1]))
    assert first.id != second.id
    states[0][GONE] = True
    again, end = known.begin(b"k", states[2])
    assert (again, known.begin(b"other", {})[0].repeated) == ((first.id, True), False)
    end_second()
    states[2][GONE] = True  # also the second time
    end()
    assert known.begin(b"k", {})[0] == (first.id, True)
    lost, end = known.begin(b"k", {GONE: True})
    end()
    clock.advance(KEPT_SECONDS + 1)
    assert known.begin(b"k", {})[0].id != lost.id
    for number in range(KEPT_MAX + 10):
        known.begin(b"%d" % number, {GONE: True})[1]()
    assert known.begin(b"0", {})[0].repeated is False
    assert known.begin(b"%d" % KEPT_MAX, {})[0].repeated is True


# --- Limits and the description --------------------------------------------------------------------------------------


def test_limits_of_size_and_admission(serve):
    rest = Rest(serve(http_port=0, max_message_bytes=1000, wait_seconds_max=0.01))
    assert rest("POST", ENQUEUE, {"rollouts": [{"input": "x" * 2000}]})[0] == 413
    [queued] = rest.ok("POST", ENQUEUE, {"rollouts": [{"input": 1}]})
    assert rest.ok("POST", "/v1/agl/waits/rollouts", {"rollout_ids": [queued["rollout_id"]], "timeout": 1e9}) == []
    assert rest.ok("POST", "/v1/agl/waits/rollouts", raw=b'{"rollout_ids":[],"timeout":NaN}') == []


def test_metrics_have_the_path_of_the_operation(serve):
    rest = Rest(serve(http_port=0))
    rest.ok("GET", "/v1/agl/rollouts/ro-1")
    with urllib.request.urlopen(rest.base + "/metrics", timeout=SAFETY_SECONDS) as reply:
        text = reply.read().decode()
    assert "/v1/agl/rollouts/{rollout_id}" in text
    assert "ro-1" not in text


def test_the_description_has_all_operations(rest):
    served = rest.ok("GET", "/openapi.json")
    assert served == json.loads(json.dumps(description()))
    assert sum(len(methods) for methods in served["paths"].values()) == len(OPERATIONS) + 1
    ids = [one["operationId"] for methods in served["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))
    for reference in set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(served))):
        assert reference in served["components"]["schemas"]
