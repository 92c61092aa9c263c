"""OTLP over HTTP: real exporters, each status of the standard, and senders that are slow, large or no HTTP at all."""

from __future__ import annotations

import asyncio
import errno
import gzip
import http.client
import json
import pickle
import socket
import sys
import threading
import zlib
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as TraceSpan
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lightning_store import InMemoryLightningStore, InvalidArgumentError, ResourceExhaustedError, StoreUnavailableError
from lightning_store.errors import RolloutNotFoundError, StoreTimeoutError, UnsupportedError
from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import server_pb2
from lightning_store.wire.methods import TRACE_EXPORT
from lightning_store_server import LightningStoreServer, ServerConfig
from lightning_store_server.admission import Admission
from lightning_store_server.http.limits import HttpLimits
from lightning_store_server.http.side import HttpSide
from lightning_store_server.otlp.ingest import TraceIngest
from lightning_store_server.slices import HeavyThread
from tests.otlp_bytes import deep_attribute, request_of

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json; charset=utf-8"}


def begin(store):
    """A new attempt, and the labels of its spans."""
    started = asyncio.run(store.start_rollout("task"))
    return started, {ROLLOUT_ID: started.rollout_id, ATTEMPT_ID: started.attempt.attempt_id}


def stored_names(store, started):
    return [span.name for span in asyncio.run(store.query_spans(started.rollout_id))]


def a_request(labels, *numbers):
    """Spans with these numbers as their ids."""
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    for key, value in labels.items():
        of_resource.resource.attributes.add(key=key).value.string_value = value
    spans = of_resource.scope_spans.add().spans
    for number in numbers:
        spans.add(trace_id=b"\x01" * 16, span_id=number.to_bytes(8), name=f"span {number}")
    return request


@pytest.fixture
def takes_http(serve):
    """Starts a server that takes OTLP over HTTP."""

    def start(store=None, **config):
        return serve(store, http_port=0, **config)

    return start


@pytest.fixture
def served(takes_http):
    return takes_http()


class Reply:
    """What the server said, and whether it can be asked again on the same connection."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()
        self.stays = not response.will_close

    @property
    def message(self) -> str:
        """Of the google.rpc.Status of an error."""
        return str(Status.FromString(self.body).message)

    @property
    def partial(self) -> tuple[int, str]:
        told = ExportTraceServiceResponse.FromString(self.body).partial_success
        return told.rejected_spans, told.error_message


@contextmanager
def connected(served):
    host, port = served.server.otlp_traces_endpoint().removeprefix("http://").removesuffix("/v1/traces").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=SAFETY_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection, method="POST", path="/v1/traces", body=b"", headers=None):
    connection.request(method, path, body, {**PROTOBUF, **(headers or {})})
    return Reply(connection.getresponse())


def post(served, body=b"", headers=None, **request):
    with connected(served) as connection:
        return ask(connection, body=body, headers=headers, **request)


# --- Real exporters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
def test_an_exporter_is_all_it_takes(served, compression, processor):
    started, labels = begin(served.store)
    provider = TracerProvider(resource=Resource.create(labels), shutdown_on_exit=False)
    endpoint = served.server.otlp_traces_endpoint()
    provider.add_span_processor(processor(OTLPSpanExporter(endpoint, compression=compression)))
    with provider.get_tracer("library").start_as_current_span("parent"):
        provider.get_tracer("library").start_span("child").end()
    provider.shutdown()
    child, parent = asyncio.run(served.store.query_spans(started.rollout_id))
    assert [(span.name, span.sequence_id) for span in (child, parent)] == [("child", 1), ("parent", 2)]
    assert child.parent_id == parent.span_id
    assert parent.resource.attributes[ROLLOUT_ID] == started.rollout_id


def test_an_exporter_comes_again_when_it_is_told_to(takes_http, hooked):
    """A server that was busy, then again, and then stored the spans."""
    inner = InMemoryLightningStore()
    busy = [ResourceExhaustedError("busy"), StoreUnavailableError("away")]

    async def add_many_spans(spans):
        if busy:
            raise busy.pop()
        return await inner.add_many_spans(spans)

    served = takes_http(hooked(inner, add_many_spans=add_many_spans))
    started, labels = begin(inner)
    recorded = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create(labels), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(recorded))
    provider.get_tracer("library").start_span("step").end()
    statuses = []
    with connected(served) as connection:
        body = a_request(labels, 1).SerializeToString()
        while (reply := ask(connection, body=body)).status != HTTPStatus.OK:
            statuses.append((reply.status, reply.headers["Retry-After"]))
    assert statuses == [(503, "1"), (429, "1")]
    exporter = OTLPSpanExporter(served.server.otlp_traces_endpoint())
    assert exporter.export(recorded.get_finished_spans()) is SpanExportResult.SUCCESS
    assert stored_names(inner, started) == ["span 1", "step"]


# --- What is offered -------------------------------------------------------------------------------------------------


def test_a_server_tells_where_it_takes_spans(served):
    assert served.server.capabilities["otlp_traces"] is True
    assert served.server.otlp_traces_endpoint().startswith("http://127.0.0.1:")


def test_a_copy_in_another_process_tells_the_same(served):
    copy = pickle.loads(pickle.dumps(served.server))
    assert copy.otlp_traces_endpoint() == served.server.otlp_traces_endpoint()
    assert copy.capabilities["otlp_traces"] is True


def test_without_the_port_nothing_is_offered(serve):
    served = serve()
    assert served.server.capabilities["otlp_traces"] is False
    with pytest.raises(NotImplementedError):
        served.server.otlp_traces_endpoint()


def test_a_server_that_has_no_port_yet_cannot_tell_it():
    def server(port):
        return LightningStoreServer(InMemoryLightningStore(), config=ServerConfig(http_port=port))

    with pytest.raises(RuntimeError, match="start it first"):
        server(0).otlp_traces_endpoint()
    assert server(4318).otlp_traces_endpoint() == "http://127.0.0.1:4318/v1/traces"


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(InvalidArgumentError, match=f"http_port is {port}; give 0"):
        ServerConfig(http_port=port)


def test_one_port_cannot_be_for_both():
    with pytest.raises(InvalidArgumentError, match="port and http_port are both 4747"):
        ServerConfig(http_port=4747)
    ServerConfig(port=0, http_port=0)


@pytest.fixture
def without_starlette(monkeypatch):
    for name in [one for one in sys.modules if one.startswith(("starlette", "lightning_store_server.http"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)


def test_without_starlette_the_rest_is_served(without_starlette, serve):
    assert serve().health() == "SERVING"


def test_without_starlette_the_port_is_refused_with_what_to_install(without_starlette, takes_http):
    message = "HTTP needs the package starlette: pip install starlette"
    with pytest.raises(ImportError, match=message):
        takes_http()


# --- Answers ---------------------------------------------------------------------------------------------------------


def test_spans_are_stored_and_the_answer_is_empty(served):
    started, labels = begin(served.store)
    reply = post(served, a_request(labels, 1, 2).SerializeToString())
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Type"] == "application/x-protobuf"
    assert "Date" in reply.headers
    assert stored_names(served.store, started) == ["span 1", "span 2"]


def test_what_was_rejected_is_told_logged_and_counted(served, log):
    reply = post(served, a_request({}, 1, 2).SerializeToString())
    assert reply.status == 200
    assert reply.partial[0] == 2
    assert "agentlightning.rollout_id is missing" in reply.partial[1]
    places = [f"(resource_spans[0].scope_spans[0].spans[{index}])" for index in range(2)]
    for message, place in zip(log.rejections(), places, strict=True):
        assert "agentlightning.rollout_id is missing" in message
        assert message.endswith(place)
    assert served.call("GetStatistics", server_pb2.GetStatisticsRequest()).rejected_spans == 2
    _, labels = begin(served.store)
    assert post(served, a_request(labels, 1).SerializeToString()).status == 200
    assert served.call("GetStatistics", server_pb2.GetStatisticsRequest()).rejected_spans == 2


CASES = json.loads((Path(__file__).parent.parent / "data" / "otlp_json.json").read_text())
KEPT = {"lone-surrogate": ("attributes", {"k": "aaa\ufffd"}), "unknown-kind": ("kind", 99)}
"""Cases whose second span is stored, each with a field of it."""


@pytest.mark.parametrize("name", CASES)
def test_a_span_that_is_malformed_in_json_does_not_touch_its_neighbours(served, log, name):
    started, _ = begin(served.store)
    text = json.dumps(CASES[name]).replace("ROLLOUT", started.rollout_id)
    reply = post(served, text.replace("ATTEMPT", started.attempt.attempt_id).encode(), JSON)
    assert reply.status == 200
    if name in KEPT:
        _, span, _ = asyncio.run(served.store.query_spans(started.rollout_id))
        field, value = KEPT[name]
        assert (reply.body, getattr(span, field)) == (b"{}", value)
    else:
        assert json.loads(reply.body)["partialSuccess"]["rejectedSpans"] == "1"
        assert stored_names(served.store, started) == ["s1", "s3"]
        assert len(log.rejections()) == 1


NOT_UTF8 = TraceSpan(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, name="XXX").SerializeToString()


@pytest.mark.parametrize("bad", [NOT_UTF8.replace(b"XXX", b"\xab\xc3\x28"), NOT_UTF8 + deep_attribute(33)])
def test_a_span_that_is_malformed_in_protobuf_does_not_touch_its_neighbours(served, log, bad):
    started, labels = begin(served.store)
    request = a_request(labels, 1, 3)
    [group] = request.resource_spans
    first, third = (span.SerializeToString() for span in group.scope_spans[0].spans)
    body = request_of(group.resource.SerializeToString(), first, bad, third)
    reply = post(served, body)
    assert (reply.status, reply.partial[0]) == (200, 1)
    reply_of_grpc = served.channel.unary_unary(TRACE_EXPORT.path)(body, timeout=SAFETY_SECONDS)
    assert reply_of_grpc == reply.body
    assert stored_names(served.store, started) == ["span 1", "span 3"]
    assert len(log.rejections()) == 2


def test_no_spans_at_all_are_fine(served):
    assert post(served, b"").status == 200


def as_json(labels):
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in labels.items()]
    span = {"traceId": "01" * 16, "spanId": "02" * 8, "name": "step"}
    return json.dumps({"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [{"spans": [span]}]}]})


def test_json_is_answered_in_json(served, log):
    started, labels = begin(served.store)
    reply = post(served, as_json(labels).encode(), JSON)
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (200, b"{}", "application/json")
    [span] = asyncio.run(served.store.query_spans(started.rollout_id))
    assert (span.span_id, span.name) == ("02" * 8, "step")
    rejected = json.loads(post(served, as_json({}).encode(), JSON).body)["partialSuccess"]
    assert rejected["rejectedSpans"] == "1"
    assert len(log.rejections()) == 1
    refused = post(served, b"{", JSON)
    assert (refused.status, refused.headers["Content-Type"]) == (400, "application/json")
    status = json_format.Parse(refused.body, Status())
    assert "not valid JSON" in status.message


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"path": "/v1"}, 404, "there is no /v1; spans are taken by POST at /v1/traces"),
        ({"path": "/v1/traces/"}, 404, "there is no /v1/traces/"),
        ({"path": "/v1/metrics"}, 404, "there is no /v1/metrics"),
        ({"method": "GET"}, 405, "/v1/traces takes POST, not GET"),
        ({"method": "DELETE"}, 405, "/v1/traces takes POST, not DELETE"),
        (
            {"headers": {"Content-Type": "text/plain"}},
            415,
            "Content-Type is text/plain; send application/x-protobuf or",
        ),
        ({"headers": {"Content-Type": ""}}, 415, "Content-Type is missing"),
        ({"headers": {"Content-Encoding": "br"}}, 415, "Content-Encoding is br; send gzip, deflate or none"),
        ({"body": b"\xff\xff"}, 400, "the body is not an ExportTraceServiceRequest"),
        ({"body": b"x", "headers": {"Content-Encoding": "gzip"}}, 400, "the body is not valid gzip"),
        ({"body": b"", "headers": {"Content-Encoding": "gzip"}}, 400, "the body is not valid gzip: it ends too soon"),
        ({"body": b"xy", "headers": {"Content-Encoding": "deflate"}}, 400, "the body is not valid deflate"),
    ],
)
def test_a_refusal_has_a_status_and_says_why(served, request_, status, message):
    with connected(served) as connection:
        reply = ask(connection, **request_)
        assert reply.status == status
        assert reply.message.startswith(message)
        assert reply.stays
        assert ask(connection).status == 200


def test_a_query_in_the_path_is_passed_over(served):
    assert post(served, path="/v1/traces?api-key=x").status == 200


def test_a_refusal_says_what_there_is_instead(served):
    assert post(served, method="PUT").headers["Allow"] == "POST"
    assert post(served, headers={"Content-Encoding": "br"}).headers["Accept-Encoding"] == "gzip, deflate"


def test_a_head_request_gets_a_head(served):
    reply = post(served, method="HEAD")
    assert (reply.status, reply.body) == (405, b"")


def test_a_body_without_a_length_is_refused(served):
    with connected(served) as connection:
        connection.putrequest("POST", "/v1/traces")
        connection.putheader("Content-Type", "application/x-protobuf")
        connection.endheaders()
        reply = Reply(connection.getresponse())
    assert reply.status == 411
    assert "Content-Length" in reply.message


def test_a_body_may_come_in_chunks(served):
    started, labels = begin(served.store)
    body = a_request(labels, 1).SerializeToString()
    with connected(served) as connection:
        connection.request("POST", "/v1/traces", iter([body[:7], body[7:]]), PROTOBUF, encode_chunked=True)
        assert connection.getresponse().status == 200
    assert stored_names(served.store, started) == ["span 1"]


def test_gzip_may_have_several_members(served):
    started, labels = begin(served.store)
    body = a_request(labels, 1).SerializeToString()
    packed = gzip.compress(body[:9]) + gzip.compress(b"") + gzip.compress(body[9:])
    assert post(served, packed, {"Content-Encoding": "gzip"}).status == 200
    assert stored_names(served.store, started) == ["span 1"]


@pytest.mark.parametrize("encoding", ["x-gzip", "X-GZIP", " gzip "])
def test_gzip_has_an_older_name(served, encoding):
    started, labels = begin(served.store)
    packed = gzip.compress(a_request(labels, 1).SerializeToString())
    assert post(served, packed, {"Content-Encoding": encoding}).status == 200
    assert stored_names(served.store, started) == ["span 1"]


def test_an_empty_content_encoding_is_none(served):
    started, labels = begin(served.store)
    assert post(served, a_request(labels, 1).SerializeToString(), {"Content-Encoding": ""}).status == 200
    assert stored_names(served.store, started) == ["span 1"]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_gzip_that_is_cut_off_stores_nothing(served, cut):
    started, labels = begin(served.store)
    packed = gzip.compress(a_request(labels, 1).SerializeToString())
    assert post(served, packed[:-cut], {"Content-Encoding": "GZIP"}).status == 400
    assert stored_names(served.store, started) == []


# --- Limits ----------------------------------------------------------------------------------------------------------

LIMIT = 100_000


@pytest.fixture
def limited(takes_http):
    return takes_http(max_message_bytes=LIMIT)


def large(labels, size_bytes):
    """A request of exactly so many bytes."""
    request = a_request(labels, 1)
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.status.message = "x" * size_bytes
    span.status.message = "x" * (size_bytes - (request.ByteSize() - size_bytes))
    assert request.ByteSize() == size_bytes
    return request.SerializeToString()


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
def test_a_body_of_the_limit_is_taken_and_a_larger_one_refused(limited, encoding):
    _, labels = begin(limited.store)
    encoders: dict[str, Callable[[bytes], bytes]] = {
        "identity": bytes,
        "gzip": gzip.compress,
        "deflate": zlib.compress,
    }
    encode = encoders[encoding]
    headers = {"Content-Encoding": encoding}
    assert post(limited, encode(large(labels, LIMIT)), headers).status == 200
    reply = post(limited, encode(large(labels, LIMIT + 1)), headers)
    assert reply.status == 413
    assert reply.message.startswith(f"the body has more than {LIMIT} bytes")
    assert "--max-message-bytes" in reply.message


def test_a_bomb_is_refused_and_what_follows_it_is_served(limited):
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < LIMIT
    assert post(limited, bomb, {"Content-Encoding": "gzip"}).status == 413
    assert post(limited, b"").status == 200


def test_a_body_that_would_never_end_is_refused(limited):
    with connected(limited) as connection:
        chunks = (b"x" * 10_000 for _ in range(11))
        connection.request("POST", "/v1/traces", chunks, PROTOBUF, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_a_large_body_is_refused_before_it_is_sent(limited):
    with connected(limited) as connection:
        connection.putrequest("POST", "/v1/traces")
        connection.putheader("Content-Type", "application/x-protobuf")
        connection.putheader("Content-Length", str(LIMIT + 1))
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        reply = Reply(connection.getresponse())
    assert (reply.status, reply.stays) == (413, False)


def test_who_waits_for_a_word_to_go_on_gets_it(served):
    with connected(served) as connection:
        connection.putrequest("POST", "/v1/traces")
        connection.putheader("Content-Type", "application/x-protobuf")
        connection.putheader("Content-Length", "0")
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        assert connection.getresponse().status == 200


def test_calls_over_http_count_among_the_others(takes_http, hooked):
    entered, opened = threading.Event(), threading.Event()
    inner = InMemoryLightningStore()

    async def add_many_spans(spans):
        entered.set()
        await asyncio.to_thread(opened.wait, SAFETY_SECONDS)
        return await inner.add_many_spans(spans)

    served = takes_http(hooked(inner, add_many_spans=add_many_spans), calls_max=1)
    _, labels = begin(inner)
    with connected(served) as first, connected(served) as second:
        first.request("POST", "/v1/traces", a_request(labels, 1).SerializeToString(), PROTOBUF)
        assert entered.wait(SAFETY_SECONDS)
        refused = ask(second)
        opened.set()
        assert first.getresponse().status == 200
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert "calls_max" in refused.message
        assert ask(second).status == 200


# --- Failures --------------------------------------------------------------------------------------------------------


def exhausted(seconds):
    error = ResourceExhaustedError("the store is full")
    error.retry_after_seconds = seconds
    return error


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (exhausted(2.2), 429, "3"),
        (exhausted(0.0), 429, "1"),
        (StoreUnavailableError("away"), 503, "1"),
        (StoreTimeoutError("slow"), 504, None),
        (UnsupportedError("no spans here"), 501, None),
        (InvalidArgumentError("no"), 400, None),
        (RolloutNotFoundError.of("ro-1"), 400, None),
        (asyncio.CancelledError(), 503, "1"),
    ],
)
def test_an_error_of_the_store_has_its_status(takes_http, hooked, error, status, retry_after):
    async def add_many_spans(spans):
        raise error

    served = takes_http(hooked(InMemoryLightningStore(), add_many_spans=add_many_spans))
    _, labels = begin(served.store.inner)
    reply = post(served, a_request(labels, 1).SerializeToString())
    assert (reply.status, reply.headers["Retry-After"]) == (status, retry_after)
    assert reply.stays
    assert reply.message


def test_the_cause_of_a_failure_stays_in_the_log(takes_http, hooked, log):
    async def add_many_spans(spans):
        raise RuntimeError("secret")

    served = takes_http(hooked(InMemoryLightningStore(), add_many_spans=add_many_spans))
    _, labels = begin(served.store.inner)
    reply = post(served, a_request(labels, 1).SerializeToString())
    assert reply.status == 500
    assert "secret" not in str(reply.body)
    record = log.next("lightning_store_server")
    incident_id = record.getMessage().partition("incident ")[2]
    assert len(incident_id) == 12
    assert reply.message.endswith(incident_id)
    assert "secret" in str(record.exc_info)


def test_calls_are_in_the_access_log(takes_http, log):
    served = takes_http(access_log=True)
    assert post(served).status == 200
    assert post(served, method="GET").status == 405
    first, second = (log.next("lightning_store_server.access").call for _ in range(2))
    assert (first["method"], first["code"]) == ("POST /v1/traces", "200")
    assert (second["method"], second["code"]) == ("GET /v1/traces", "405")
    assert first["peer"].startswith("ipv4:127.0.0.1:")


# --- Connections -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(**limits):
    """A listener with limits of its own, and its port."""
    config = ServerConfig(max_message_bytes=LIMIT)
    side = HttpSide(
        config, TraceIngest(InMemoryLightningStore(), HeavyThread()), Admission(config), limits=HttpLimits(**limits)
    )
    port = side.bind([(socket.AF_INET, "127.0.0.1")], 0)
    await side.start()
    side.note_started()
    try:
        yield side, port
    finally:
        assert await side.stop(SAFETY_SECONDS)


async def say(port, *parts):
    """Send all that, and return what comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
        return await asyncio.wait_for(reader.read(), SAFETY_SECONDS)
    finally:
        writer.close()


def head(*lines):
    return "\r\n".join(["POST /v1/traces HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


EMPTY = head("Content-Type: application/x-protobuf", "Content-Length: 0")
LAST = head("Content-Type: application/x-protobuf", "Content-Length: 0", "Connection: close")


def statuses(answers):
    return [line.split()[1].decode() for line in answers.splitlines() if line.startswith(b"HTTP/1.1 ")]


@pytest.mark.asyncio
async def test_requests_may_come_before_they_are_answered():
    async with listening() as (_, port):
        assert statuses(await say(port, EMPTY + EMPTY + LAST)) == ["200", "200", "200"]


@pytest.mark.asyncio
async def test_who_is_silent_is_let_go():
    async with listening(idle_seconds=0.01) as (_, port):
        assert await say(port) == b""
        assert statuses(await say(port, EMPTY)) == ["200"]


@pytest.mark.asyncio
async def test_a_head_that_does_not_end_is_given_up():
    async with listening(head_seconds=0.01, linger_seconds=0.01) as (_, port):
        assert statuses(await say(port, EMPTY[:-2])) == ["408"]


@pytest.mark.asyncio
async def test_a_body_that_does_not_end_is_given_up():
    async with listening(body_seconds=0.01, linger_seconds=0.01) as (side, port):
        answers = await say(port, head("Content-Type: application/x-protobuf", "Content-Length: 9"), b"x")
        assert statuses(answers) == ["408"]
        assert side.bodies.held_bytes == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 that is TLS", "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
        (head("Content-Length: x"), "400"),
        (head("Content-Length: 1", "Content-Length: 2"), "400"),
        (head("X: " + "x" * 100_000), "431"),
        (head("Content-Type: application/x-protobuf", "Transfer-Encoding: chunked") + b"zz\r\n", "400"),
    ],
)
async def test_what_is_no_http_is_refused(sent, status):
    async with listening(linger_seconds=0.01) as (_, port):
        assert statuses(await say(port, sent)) == [status]


@pytest.mark.asyncio
async def test_a_peer_that_goes_leaves_nothing():
    async with listening() as (side, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("Content-Type: application/x-protobuf", "Content-Length: 9", "Expect: 100-continue"))
        assert statuses(await reader.readuntil(b"\r\n\r\n")) == ["100"]
        writer.write(b"x")
        writer.transport.abort()
        assert statuses(await say(port, LAST)) == ["200"]
    assert side.bodies.held_bytes == 0


@pytest.mark.asyncio
async def test_one_connection_too_many_is_told_so():
    async with listening(connections=1) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(EMPTY)
        await reader.readuntil(b"\r\n\r\n")
        answers = await say(port)
        assert statuses(answers) == ["503"]
        assert b"retry-after: 1" in answers.lower()
        writer.close()


@pytest.mark.asyncio
async def test_too_many_bytes_in_all_are_told_to_come_back():
    body = large({}, 2000)
    request = head("Content-Type: application/x-protobuf", f"Content-Length: {len(body)}", "Connection: close")
    async with listening(held_bytes=1000) as (side, port):
        assert statuses(await say(port, request, body)) == ["200"]
        side.bodies.held_bytes += 1000  # of somebody else's body
        answers = await say(port, request, body)
        assert statuses(answers) == ["503"]
        assert b"retry-after: 1" in answers.lower()
        side.bodies.held_bytes -= 1000
        assert statuses(await say(port, request, body)) == ["200"]


# --- Ports and drain -------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_refused_and_leaves_none_taken(served):
    port = int(served.server.otlp_traces_endpoint().removesuffix("/v1/traces").rpartition(":")[2])
    late = LightningStoreServer(InMemoryLightningStore(), port=0, config=ServerConfig(http_port=port))
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} for HTTP") as caught:
        asyncio.run(late.start())
    assert caught.value.errno == errno.EADDRINUSE


def test_if_the_port_of_grpc_is_taken_that_of_http_stays_free(served):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServerConfig(http_port=port)
    late = LightningStoreServer(InMemoryLightningStore(), port=served.server.bound_port, config=config)
    with pytest.raises(OSError, match="cannot listen on"):
        asyncio.run(late.start())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_every_address_of_the_host_is_listened_on():
    async def scenario():
        config = ServerConfig(http_port=0)
        async with LightningStoreServer(InMemoryLightningStore(), "localhost", 0, config=config) as server:
            port = int(server.otlp_traces_endpoint().removesuffix("/v1/traces").rpartition(":")[2])
            assert server.otlp_traces_endpoint() == f"http://localhost:{port}/v1/traces"
            assert statuses(await say(port, LAST)) == ["200"]

    asyncio.run(scenario())


@pytest.mark.parametrize("finishes", [True, False])
def test_a_request_under_way_has_the_grace_to_finish(takes_http, hooked, finishes):
    inner = InMemoryLightningStore()
    entered, opened = threading.Event(), asyncio.Event()
    loops = []

    async def add_many_spans(spans):
        loops.append(asyncio.get_running_loop())
        entered.set()
        await opened.wait()
        return await inner.add_many_spans(spans)

    store = hooked(inner, add_many_spans=add_many_spans)
    served = takes_http(store, grace_seconds=SAFETY_SECONDS if finishes else 0.01)
    started, labels = begin(inner)
    with connected(served) as idle, connected(served) as busy:
        assert ask(idle).status == 200
        busy.request("POST", "/v1/traces", a_request(labels, 1).SerializeToString(), PROTOBUF)
        assert entered.wait(SAFETY_SECONDS)
        stopping = threading.Thread(target=served.stop)
        stopping.start()
        assert idle.sock.recv(1) == b""  # at once, and not only when the grace is over
        if finishes:
            loops[0].call_soon_threadsafe(opened.set)
            reply = Reply(busy.getresponse())
            assert (reply.status, reply.stays) == (200, False)
        else:
            with pytest.raises(OSError, match="reset|closed"):
                busy.getresponse()
        stopping.join(SAFETY_SECONDS)
    assert stored_names(inner, started) == (["span 1"] if finishes else [])
    with pytest.raises(ConnectionRefusedError), connected(served) as late:
        ask(late)
