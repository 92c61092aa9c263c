"""Tokens: who may call what, over every door of the server, and how much."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from lightning_store import LLM, InMemoryLightningStore, PermissionDeniedError, UnauthenticatedError, watched_files
from lightning_store.errors import InvalidArgumentError, ResourceExhaustedError
from lightning_store.model import AttemptedRollout
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.v1 import resources_pb2, rollout_pb2, server_pb2, span_pb2, worker_pb2
from lightning_store.v1.query_pb2 import StreamQueryRequest
from lightning_store.wire.errors import error_from_proto, from_rpc_error
from lightning_store.wire.methods import METHODS, REQUESTS, TRACE_EXPORT, Role
from lightning_store_client import SyncLightningStoreClient
from lightning_store_server.access import Access
from lightning_store_server.tokens import Limits, add_token, digest_of, read_tokens, revoke_token
from tests.server.test_http_side import base_of, fetch
from tests.server.test_sessions import Stream

NOW = datetime.fromtimestamp(1_700_000_000, UTC)
ROLES = list(Role)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "tokens.json")


def with_token(token):
    return (("authorization", f"Bearer {token}"),)


def outcome(call):
    """The StoreError that a call ends with, None if it ends well."""
    try:
        call()
    except grpc.RpcError as error:
        return from_rpc_error(error)
    return None


class Doors:
    """A server with a token of each role, and calls to it with any of them."""

    def __init__(self, serve, path, **config):
        self.tokens = {role: add_token(path, role.value, role, NOW) for role in ROLES}
        self.store = InMemoryLightningStore()
        self.served = serve(self.store, auth_tokens=path, **config)

    def call(self, rpc, request, token):
        """An answer, or the first message of a stream."""
        metadata = () if token is None else with_token(token)
        made = getattr(self.served.stub, rpc)(request, timeout=SAFETY_SECONDS, metadata=metadata)
        if rpc in ("WatchRollouts", "WatchGroups"):
            list(made.initial_metadata())
            if made.is_active():
                return made.cancel()
        return next(made) if METHODS[rpc].streams else made


@pytest.mark.parametrize("role", [None, *ROLES], ids=lambda role: "nobody" if role is None else role.value)
def test_each_method_is_for_its_role_and_those_above(serve, path, role):
    doors = Doors(serve, path)
    token = None if role is None else doors.tokens[role]
    stream = None
    if token is not None:
        stream = Stream(doors.served.stub, metadata=with_token(token))
    for name, method in METHODS.items():
        ended = [outcome(lambda name=name: doors.call(name, REQUESTS[name](), token))]
        if stream is not None and not method.streams:
            id_ = stream.begin(name)
            reply = stream.reply()
            assert reply.id == id_
            ended.append(error_from_proto(reply.error) if reply.HasField("error") else None)
        for error in ended:
            if role is None:
                assert type(error) is UnauthenticatedError, name
                assert "with a token only, and there is none; send `authorization: Bearer TOKEN`" in str(error)
            elif role.suffices_for(method.role):
                assert not isinstance(error, PermissionError), name
            else:
                assert type(error) is PermissionDeniedError, name
                assert error.details["role"] == method.role.value
                needed = f"{name} needs the role {method.role.value}; the token {role.value} has the role {role.value}"
                assert str(error) == needed
    if stream is not None:
        stream.rpc.cancel()
        stream.say_no_more()


def test_otlp_and_http_ask_for_tokens_and_probes_do_not(serve, path):
    doors = Doors(serve, path, http_port=0)
    base = base_of(doors.served)
    export = TraceServiceStub(doors.served.channel).Export
    for role in (None, *ROLES):
        header = {} if role is None else {"Authorization": f"Bearer {doors.tokens[role]}"}
        metadata = () if role is None else with_token(doors.tokens[role])
        sent = outcome(lambda m=metadata: export(ExportTraceServiceRequest(), metadata=m, timeout=SAFETY_SECONDS))
        json_headers = {"Content-Type": "application/json", "Content-Length": "0"}
        over_http = fetch(f"{base}/v1/traces", "POST", **json_headers, **header)
        if role is None:
            assert type(sent) is UnauthenticatedError
            assert over_http[0] == 401
            assert over_http[1]["WWW-Authenticate"] == "Bearer"
            assert fetch(f"{base}/metrics")[0] == 401
            assert fetch(f"{base}/nothing")[0] == 401
        else:
            assert fetch(f"{base}/metrics", **header)[0] == 200
            assert fetch(f"{base}/nothing", **header)[0] == (404 if role is Role.ADMIN else 403)
            enough = role.suffices_for(TRACE_EXPORT.role)
            assert (sent is None) is enough
            assert over_http[0] == (400 if enough else 403)  # no JSON
            if not enough:
                assert json.loads(over_http[2])["details"][0]["metadata"]["role"] == "runner"
    for probe in ("healthz", "readyz", "startupz"):
        assert fetch(f"{base}/{probe}")[0] == 200
    assert doors.served.health() == "SERVING"
    assert fetch(f"{base}/metrics?token={doors.tokens[Role.ADMIN]}")[0] == 400
    refused = fetch(f"{base}/healthz?Access_Token=lst_x")
    assert (refused[0], b"not taken from a URL" in refused[2], b"lst_x" in refused[2]) == (400, True, False)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ((("authorization", "Bearer lst_wrong"),), "the token is not known here"),
        ((("authorization", "Bearer"),), "not of the form Bearer TOKEN"),
        ((("authorization", "Basic dTpw"),), "not of the form Bearer TOKEN"),
        ((("authorization", "Bearer a"), ("authorization", "Bearer b")), "there is more than one"),
        ((("x-token", "Bearer a"),), "there is none"),
    ],
)
def test_what_is_no_token_is_refused(serve, path, metadata, said):
    doors = Doors(serve, path)
    request = server_pb2.GetServerInfoRequest()
    error = outcome(lambda: doors.served.stub.GetServerInfo(request, metadata=metadata, timeout=SAFETY_SECONDS))
    assert type(error) is UnauthenticatedError
    assert said in str(error)
    session = doors.served.stub.Session(iter(()), metadata=metadata, timeout=SAFETY_SECONDS)
    assert type(outcome(lambda: list(session))) is UnauthenticatedError


def test_a_flood_of_metadata_ends_its_own_call(serve, path):
    doors = Doors(serve, path)
    flood = tuple((f"x-{number}", "y" * 1000) for number in range(100))
    request = server_pb2.GetServerInfoRequest()

    def call(metadata):
        return outcome(lambda: doors.served.stub.GetServerInfo(request, metadata=metadata, timeout=SAFETY_SECONDS))

    own = with_token(doors.tokens[Role.READER])
    assert isinstance(call(own + flood), ResourceExhaustedError)
    assert isinstance(call(with_token("x" * 100_000)), ResourceExhaustedError)
    assert call(own) is None


def test_reflection_is_for_those_with_a_token(serve, path):
    doors = Doors(serve, path)
    ask = doors.served.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    list_services = b"\x3a\x00"
    assert type(outcome(lambda: list(ask(iter([list_services]))))) is UnauthenticatedError
    [answer] = ask(iter([list_services]), metadata=with_token(doors.tokens[Role.READER]))
    assert b"LightningStoreService" in answer


def test_each_call_of_a_session_is_judged_by_what_its_token_may_now(path, serve, monkeypatch):
    monkeypatch.setattr(watched_files, "LOOK_SECONDS", 0.0)
    doors = Doors(serve, path)
    with SyncLightningStoreClient(doors.served.server.endpoint, token=doors.tokens[Role.ALGORITHM]) as client:
        client.enqueue_rollout("a task")
        with pytest.raises(PermissionDeniedError, match="DeleteRollouts needs the role admin"):
            client.delete_rollouts(older_than=0)
        revoke_token(path, "algorithm", NOW)
        with pytest.raises(UnauthenticatedError, match="the token algorithm was revoked"):
            client.enqueue_rollout("another")


def test_tokens_are_read_again_expire_and_outlast_a_bad_file(path, caplog):
    clock = FakeClock()
    soon = add_token(path, "soon", Role.READER, NOW, expires=NOW + timedelta(hours=1))
    access = Access(path, clock)
    assert access.caller(digest_of(soon)).name == "soon"
    later = add_token(path, "later", Role.ADMIN, NOW)
    with pytest.raises(UnauthenticatedError):
        access.caller(digest_of(later))
    clock.advance(1)
    kept = access.caller(digest_of(later))
    with open(path, "w") as file:
        file.write('{"version": 1, "tokens": [{"name": "lst_secret"}]}')
    clock.advance(1)
    assert access.caller(digest_of(later)) is kept
    assert "the tokens stay as they were" in caplog.text
    assert "lst_secret" not in caplog.text
    os.unlink(path)
    clock.advance(3597)
    assert access.caller(digest_of(soon)).name == "soon"
    clock.advance(1)
    with pytest.raises(UnauthenticatedError, match="the token soon has expired"):
        access.caller(digest_of(soon))
    with pytest.raises(InvalidArgumentError, match="make one with `lightning-store-grpc token create`"):
        Access(path, clock)


def test_the_file_of_tokens_has_none_and_is_for_its_owner(path):
    token = add_token(path, "one", Role.RUNNER, NOW, workers=("gpu-*",), limits=Limits(calls_per_second=5))
    text = Path(path).read_text()
    assert token not in text
    assert digest_of(token) in text
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.chmod(path, 0o640)
    with pytest.raises(InvalidArgumentError, match="has a token called one"):
        add_token(path, "one", Role.ADMIN, NOW)
    assert revoke_token(path, "one", NOW).revoked == NOW
    assert add_token(path, "one", Role.ADMIN, NOW) != token
    assert [(one.name, one.role) for one in read_tokens(path).tokens] == [("one", Role.ADMIN)]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    with pytest.raises(InvalidArgumentError, match="no token called two; it has one"):
        revoke_token(path, "two", NOW)
    with pytest.raises(InvalidArgumentError, match="name"):
        add_token(path, "a b", Role.ADMIN, NOW)


def test_a_file_of_tokens_keeps_who_may_read_it(path, monkeypatch):
    """Root changes it, and the server that reads it is somebody else."""
    chown, owners = os.chown, []

    def noting(file, user, group):
        owners.append((user, group))
        chown(file, user, group)

    def refusing(*_):
        raise PermissionError

    add_token(path, "one", Role.ADMIN, NOW)
    if os.geteuid() == 0:
        os.chown(path, 10001, 10002)
    before = os.stat(path)
    monkeypatch.setattr(os, "chown", noting)
    add_token(path, "two", Role.ADMIN, NOW)
    after = os.stat(path)
    assert owners == [(after.st_uid, after.st_gid)] == [(before.st_uid, before.st_gid)]
    monkeypatch.setattr(os, "chown", refusing)
    with pytest.raises(InvalidArgumentError, match="belongs to the user .* nothing was changed"):
        revoke_token(path, "one", NOW)
    assert [one.revoked for one in read_tokens(path).tokens] == [None, None]
    assert os.listdir(os.path.dirname(path)) == ["tokens.json"]


def test_a_file_that_may_be_read_again_has_changed(path):
    add_token(path, "one", Role.ADMIN, NOW)
    watched = watched_files.WatchedFiles([path])
    os.chmod(path, 0o640)
    assert [watched.changed(at_once=True) for _ in range(2)] == [True, False]


# --- What a runner holds ---------------------------------------------------------------------------------------------


def test_a_runner_reports_only_on_what_its_workers_hold(path, serve):
    add_token(path, "all", Role.ADMIN, NOW)
    mine = add_token(path, "mine", Role.RUNNER, NOW, workers=("gpu-1-*", "cpu"))
    store = InMemoryLightningStore()
    served = serve(store, auth_tokens=path)
    for task in range(2):
        asyncio.run(store.enqueue_rollout(task))
    foreign = asyncio.run(store.dequeue_rollout(worker_id="gpu-2-0"))
    assert isinstance(foreign, AttemptedRollout)
    key = {"rollout_id": foreign.rollout_id, "attempt_id": foreign.attempt.attempt_id}
    new = span_pb2.NewSpan(document_json=json.dumps({**key, "trace_id": "t", "span_id": "s", "name": "n"}))
    with SyncLightningStoreClient(served.server.endpoint, token=mine) as runner:
        for refused in (
            lambda: runner.dequeue_rollout(worker_id="gpu-2-0"),
            runner.dequeue_rollout,
            lambda: runner.update_worker("gpu-10-1"),
            lambda: runner.release_worker("gpu-2-0"),
            lambda: runner.update_attempt(foreign.rollout_id, foreign.attempt.attempt_id, status="failed"),
            lambda: runner.update_attempt(foreign.rollout_id, "latest", status="failed"),
            lambda: runner.get_next_span_sequence_id(foreign.rollout_id, foreign.attempt.attempt_id),
        ):
            with pytest.raises(PermissionDeniedError, match="the token mine"):
                refused()
        own = runner.dequeue_rollout(worker_id="gpu-1-7")
        assert own is not None
        assert runner.get_next_span_sequence_id(own.rollout_id, own.attempt.attempt_id) == 1
        with pytest.raises(PermissionDeniedError, match="for the workers gpu-1-"):
            runner.update_attempt(own.rollout_id, own.attempt.attempt_id, worker_id="gpu-2-0")
        asyncio.run(store.update_attempt(own.rollout_id, own.attempt.attempt_id, status="failed"))
        asyncio.run(store.start_attempt(own.rollout_id, worker_id="gpu-2-0"))
        # A late report on an attempt of its own is the store's to judge.
        runner.update_attempt(own.rollout_id, own.attempt.attempt_id, metadata={"late": True})
    request = span_pb2.AddSpansRequest(request_id="r", spans=[new])
    error = outcome(lambda: served.stub.AddSpans(request, metadata=with_token(mine), timeout=SAFETY_SECONDS))
    assert type(error) is PermissionDeniedError
    assert error.details == key
    assert asyncio.run(store.get_latest_attempt(foreign.rollout_id)).status == "preparing"


# --- Limits ----------------------------------------------------------------------------------------------------------


def test_a_token_has_so_many_calls_bytes_and_spans_a_second(path):
    clock = FakeClock()
    limits = Limits(calls_per_second=2, bytes_per_second=1000, spans_per_second=10)
    digest = digest_of(add_token(path, "limited", Role.RUNNER, NOW, limits=limits))
    caller = Access(path, clock).caller(digest)
    method = METHODS["AddSpans"]
    caller.admit(method, 10)
    caller.admit(method, 10)
    with pytest.raises(ResourceExhaustedError, match="may take 2 calls a second") as refused:
        caller.admit(method, 10)
    assert (refused.value.retry_after_seconds, refused.value.details) == (
        0.5,
        {"limit": "calls_per_second", "maximum": "2"},
    )
    clock.advance(0.5)
    caller.admit(method, 3000)  # one call may be as large as it likes, …
    clock.advance(1)
    with pytest.raises(ResourceExhaustedError, match="1000 bytes") as refused:
        caller.admit(method, 0)  # … and is made up for
    assert refused.value.retry_after_seconds == pytest.approx(1.0, abs=0.1)
    caller.check_spans()
    caller.take_spans(25)
    clock.advance(1)
    with pytest.raises(ResourceExhaustedError, match="10 spans"):
        caller.check_spans()
    clock.advance(1)
    caller.check_spans()


def test_a_limit_of_a_token_comes_with_when_to_come_back(path, serve):
    token = add_token(path, "slow", Role.RUNNER, NOW, limits=Limits(calls_per_second=0.5))
    other = add_token(path, "other", Role.RUNNER, NOW)
    served = serve(auth_tokens=path)

    def call(with_this):
        metadata = with_token(with_this)
        return outcome(lambda: served.stub.UpdateWorker(request, metadata=metadata, timeout=SAFETY_SECONDS))

    request = worker_pb2.UpdateWorkerRequest(worker_id="w")
    assert call(token) is None
    error = call(token)
    assert type(error) is ResourceExhaustedError
    assert error.retry_after_seconds is not None
    assert 0 < error.retry_after_seconds <= 2
    assert call(other) is None


# --- Secrets ---------------------------------------------------------------------------------------------------------


def test_readers_get_resources_without_the_keys_in_them(path, serve):
    doors = Doors(serve, path)
    llm = LLM(
        endpoint="https://user:hidden@llm:8000/v1",
        model="m",
        api_key="hidden",
        sampling_parameters={"max_tokens": 5, "headers": [{"X-Api-Key": "hidden"}]},
    )
    id_ = asyncio.run(doors.store.add_resources({"llm": llm})).resources_id
    requests = {
        "GetResources": resources_pb2.GetResourcesRequest(resources_id=id_),
        "GetLatestResources": resources_pb2.GetLatestResourcesRequest(),
        "ListResources": resources_pb2.ListResourcesRequest(),
        "StreamQuery": StreamQueryRequest(resources=resources_pb2.ListResourcesRequest()),
    }
    for role in (Role.READER, Role.RUNNER):
        for rpc, request in requests.items():
            text = str(doors.call(rpc, request, doors.tokens[role]))
            assert ("hidden" in text) is (role is Role.RUNNER), (role, rpc)
            assert "max_tokens" in text
    with SyncLightningStoreClient(doors.served.server.endpoint, token=doors.tokens[Role.READER]) as reader:
        shown = reader.get_latest_resources().resources["llm"]
    assert (shown.api_key, shown.endpoint) == ("********", "https://********@llm:8000/v1")


def test_what_admins_do_is_in_the_log_with_who_it_was(path, serve, log):
    doors = Doors(serve, path, access_log=True)
    gone = asyncio.run(doors.store.start_rollout("x"))
    asyncio.run(doors.store.update_attempt(gone.rollout_id, "latest", status="failed"))
    with SyncLightningStoreClient(doors.served.server.endpoint, token=doors.tokens[Role.ADMIN]) as admin:
        admin.delete_rollouts([gone.rollout_id])
    record = log.next("lightning_store_server.audit")
    assert record.getMessage() == f"admin deleted rollouts: {gone.rollout_id}"
    call = log.next("lightning_store_server.access").call
    assert (call["caller"], call["method"].rpartition("/")[2]) == ("admin", "DeleteRollouts")
    for token, code, caller in (
        (doors.tokens[Role.READER], "PERMISSION_DENIED", "reader"),
        (None, "UNAUTHENTICATED", None),
    ):
        assert outcome(lambda t=token: doors.call("DeleteRollouts", rollout_pb2.DeleteRolloutsRequest(), t))
        call = log.next("lightning_store_server.access").call
        assert (call["code"], call.get("caller")) == (code, caller)
    request = rollout_pb2.DequeueRolloutsRequest(request_id="q", max_wait=Duration())
    doors.call("DequeueRollouts", request, doors.tokens[Role.RUNNER])
    assert log.next("lightning_store_server.access").call["caller"] == "runner"


def test_a_request_id_belongs_to_the_caller_that_made_it(serve, path):
    other = add_token(path, "another", Role.ADMIN, NOW)
    doors = Doors(serve, path)
    request = rollout_pb2.EnqueueRolloutsRequest(request_id="r", rollouts=[rollout_pb2.NewRollout(input_json="1")])
    mine = doors.call("EnqueueRollouts", request, doors.tokens[Role.ADMIN])
    assert doors.call("EnqueueRollouts", request, doors.tokens[Role.ADMIN]) == mine
    theirs = doors.call("EnqueueRollouts", request, other)
    assert theirs.rollouts[0].rollout_id != mine.rollouts[0].rollout_id
