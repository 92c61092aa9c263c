"""Large requests, several at once: one at a time is parsed and worked on, which takes many times its size."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID
from lightning_store.v1 import resources_pb2, rollout_pb2, span_pb2
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest
from lightning_store.wire.methods import METHODS, TRACE_EXPORT
from lightning_store_server.sessions import PATH
from tests.attacks.target import MIB, Bystander, Target, call, long_form, start_target

pytestmark = pytest.mark.slow

WORK_FACTOR = 20
"""What a request with characters beyond U+FFFF takes while it is worked on, in sizes of it."""
AT_ONCE = 8
FREED_BYTES_MAX = 3 * 32 * MIB
"""What the heaps of three threads keep."""
WIDE = "😀"
"""It makes each character of a text take four bytes."""

Make = Callable[[int, int], tuple[str, bytes]]


def enqueued(number: int, size: int) -> tuple[str, bytes]:
    new = rollout_pb2.NewRollout(input_json=json.dumps(WIDE + "x" * size, ensure_ascii=False))
    request = rollout_pb2.EnqueueRolloutsRequest(request_id=f"large-{number}", rollouts=[new])
    return METHODS["EnqueueRollouts"].path, request.SerializeToString()


def spans(number: int, size: int) -> tuple[str, bytes]:
    words = [f"{one:010}" for one in range(size // 13)]
    ids = {"rollout_id": "unknown", "attempt_id": "a", "trace_id": f"{1:032x}", "span_id": f"{1:016x}"}
    document = json.dumps({**ids, "name": "large", "attributes": {"words": words}}, separators=(",", ":"))
    request = span_pb2.AddSpansRequest(request_id=f"spans-{number}", spans=[span_pb2.NewSpan(document_json=document)])
    return METHODS["AddSpans"].path, request.SerializeToString()


def exported(number: int, size: int) -> tuple[str, bytes]:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    for key, value in ((ROLLOUT_ID, "unknown"), (ATTEMPT_ID, "a"), ("text", WIDE + "x" * size)):
        span.attributes.add(key=key).value.string_value = value
    return TRACE_EXPORT.path, request.SerializeToString()


def published(number: int, size: int) -> tuple[str, bytes]:
    prompt = {"resource_type": "prompt_template", "engine": "f-string", "template": WIDE + "x" * size}
    request = resources_pb2.AddResourcesRequest(
        request_id=f"resources-{number}", resources_json={"prompt": json.dumps(prompt, ensure_ascii=False)}
    )
    return METHODS["AddResources"].path, request.SerializeToString()


def posted(number: int, size: int) -> tuple[str, bytes]:
    body = {"rollouts": [{"input": WIDE + "x" * size}]}
    return "/v1/agl/queues/rollouts/enqueue", json.dumps(body, ensure_ascii=False).encode()


def send(target: Target, path: str, request: bytes) -> None:
    """Send it; it may be refused."""
    if path.startswith("/v1/"):
        connection = http.client.HTTPConnection("127.0.0.1", target.http_port, timeout=300)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        connection.request("POST", path, gzip.compress(request, 1), headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status in (201, 429, 503), answer.status
        return
    unbounded = ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)
    with target.raw(*unbounded) as channel:
        code = call(channel, path, request, timeout=300)[0]
        assert code in ("OK", "RESOURCE_EXHAUSTED"), code


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("large")
    return "memory:" if request.param == "memory" else f"sqlite:{folder / 'store.db'}"


@pytest.fixture(params=[7, pytest.param(57, marks=long_form)])
def size_bytes(request: pytest.FixtureRequest) -> int:
    size: int = request.param * MIB
    return size


@pytest.fixture
def sized(database: str, size_bytes: int, tmp_path: Path) -> Iterator[Target]:
    """A server that takes as many bytes as all of them have."""
    flags = "--queued-bytes-max", f"{AT_ONCE * size_bytes}B", "--max-message-bytes", f"{size_bytes + MIB}B"
    target = start_target(database, tmp_path / "log", *flags)
    try:
        yield target
        assert target.end() == 0
    finally:
        target.kill()


@pytest.mark.parametrize("make", [enqueued, spans, exported, published, posted])
def test_large_requests_at_once(sized: Target, size_bytes: int, make: Make) -> None:
    requests = [make(number, size_bytes - MIB) for number in range(AT_ONCE)]
    with Bystander(sized) as bystander:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda one: send(sized, *one), requests))
        stored = bystander.stored_bytes()
    limit = (AT_ONCE + WORK_FACTOR) * size_bytes
    print(f"{stored / MIB:.0f} MiB of it stored")
    assert bystander.grown_bytes - stored < 1.5 * limit + FREED_BYTES_MAX


def test_sessions_that_are_silent_after_a_large_message(sized: Target, size_bytes: int) -> None:
    """Nothing of it is kept once its calls are over."""
    asking = SessionCall(id=1, method="GetServerInfo", traceparent="x" * (size_bytes - MIB))
    message = SessionRequest(calls=[asking]).SerializeToString()
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        yield message
        over.wait()

    with Bystander(sized), ExitStack() as stack:
        stack.callback(over.set)
        for _ in range(4 * AT_ONCE):
            channel = stack.enter_context(sized.raw(("grpc.max_send_message_length", -1)))
            replies: Any = channel.stream_stream(PATH)(messages())
            next(replies)
            stack.callback(replies.cancel)
        kept = sized.memory("VmRSS")
    assert kept < 200 * MIB + AT_ONCE * size_bytes
