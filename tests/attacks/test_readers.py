"""Peers that ask for much and read nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from lightning_store import LLM, Span
from lightning_store.v1 import resources_pb2, span_pb2
from lightning_store.v1.query_pb2 import StreamQueryRequest
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest
from lightning_store.wire.methods import METHODS
from lightning_store_client import SyncLightningStoreClient
from lightning_store_server.sessions import PATH
from tests.attacks.target import MIB, Bystander, Target, start_target

pytestmark = pytest.mark.slow

REPLY_BYTES = MIB
CALLS = 60
QUEUED_BYTES_MAX = 32 * MIB


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One that holds few bytes for calls."""
    folder = tmp_path_factory.mktemp("readers")
    database = "memory:" if request.param == "memory" else f"sqlite:{folder / 'store.db'}"
    started = start_target(database, folder / "log", "--queued-bytes-max", f"{QUEUED_BYTES_MAX}B")
    try:
        yield started
        assert started.end() == 0
    finally:
        started.kill()


@pytest.fixture(scope="module")
def resources_id(target: Target) -> str:
    """Large resources."""
    with SyncLightningStoreClient(target.endpoint) as client:
        large = LLM(endpoint="http://here", model="x" * REPLY_BYTES)
        return client.add_resources({"llm": large}).resources_id


@contextmanager
def unread_session(target: Target, *requests: bytes) -> Iterator[Any]:
    """A session on a connection of its own, whose replies nobody reads."""
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        yield from requests
        over.wait()

    with target.raw() as channel:
        stream = channel.stream_stream(PATH)(messages())
        try:
            yield stream
        finally:
            over.set()
            stream.cancel()


def reading(resources_id: str, count: int) -> bytes:
    request = resources_pb2.GetResourcesRequest(resources_id=resources_id).SerializeToString()
    calls = [SessionCall(id=one + 1, method="GetResources", request=request) for one in range(count)]
    return SessionRequest(calls=calls).SerializeToString()


def test_a_session_that_never_reads(target: Target, resources_id: str) -> None:
    request = reading(resources_id, CALLS)
    with Bystander(target) as bystander, unread_session(target, request):
        with SyncLightningStoreClient(target.endpoint) as client:
            for _ in range(5):
                assert client.get_resources_by_id(resources_id) is not None
        bystander.wait_for_rounds(20)
    assert bystander.grown_bytes < 2 * QUEUED_BYTES_MAX


def test_sessions_that_never_read(target: Target, resources_id: str) -> None:
    request = reading(resources_id, CALLS)
    with Bystander(target) as bystander, ExitStack() as sessions:
        for _ in range(3):
            sessions.enter_context(unread_session(target, request))
        client = sessions.enter_context(SyncLightningStoreClient(target.endpoint))
        for _ in range(3):
            assert client.get_resources_by_id(resources_id) is not None
        bystander.wait_for_rounds(20)
    assert bystander.grown_bytes < 2 * QUEUED_BYTES_MAX


def test_a_session_that_reads_no_refusals(target: Target) -> None:
    refused = SessionRequest(calls=[SessionCall(id=one) for one in range(10_000)]).SerializeToString()
    with Bystander(target) as bystander, unread_session(target, *[refused] * 20):
        bystander.wait_for_rounds(20)
    assert bystander.grown_bytes < 50 * MIB


def test_queries_of_large_spans_that_nobody_reads(target: Target) -> None:
    """A result is not in memory as a whole unless the store is."""
    with SyncLightningStoreClient(target.endpoint) as client, Bystander(target) as bystander, ExitStack() as stack:
        mine = client.start_rollout("a task")
        for number in range(16):
            ids = {"rollout_id": mine.rollout_id, "attempt_id": mine.attempt.attempt_id, "trace_id": f"{1:032}"}
            text = {"text": chr(ord("a") + number) * 6 * MIB}
            client.add_span(Span(**ids, span_id=f"{number:016}", sequence_id=number + 1, name="large", attributes=text))
        query = StreamQueryRequest(spans=span_pb2.ListSpansRequest(rollout_id=mine.rollout_id)).SerializeToString()
        for _ in range(4):
            channel = stack.enter_context(target.raw(("grpc.max_receive_message_length", -1)))
            replies: Any = channel.unary_stream(METHODS["StreamQuery"].path)(query)
            assert len(next(replies)) > 6 * MIB
            stack.callback(replies.cancel)
        stored = bystander.stored_bytes()
    assert bystander.grown_bytes - stored < 450 * MIB  # 805 MiB with all of each result
