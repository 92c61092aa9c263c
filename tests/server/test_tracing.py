"""Spans of the server's own calls: off by default, named and parented by OpenTelemetry's conventions."""

from __future__ import annotations

import asyncio
import urllib.request

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from lightning_store import InvalidArgumentError
from lightning_store.errors import UnsupportedError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import rollout_pb2, server_pb2
from lightning_store_client import LightningStoreClient
from lightning_store_server import app
from lightning_store_server.tracing import Tracing, tracing_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch):
    """What the servers that start from now on export."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(app, "tracing_of", lambda: Tracing(provider))
    return exporter.get_finished_spans


def test_it_is_off_unless_it_is_asked_for():
    assert tracing_of({}) is None
    assert tracing_of({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) is None
    assert tracing_of({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
def test_exporters_are_those_of_opentelemetry(environment):
    tracing = tracing_of(environment)
    assert tracing is not None
    tracing.close()


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, UnsupportedError, "pip install opentelemetry-exporter-zipkin"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"},
            InvalidArgumentError,
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'smoke'; give one of grpc, http/protobuf",
        ),
    ],
)
def test_what_is_not_known_is_refused(environment, error, message):
    with pytest.raises(error, match=message):
        tracing_of(environment)


def test_a_call_is_a_child_of_its_caller_s_span(serve, spans):
    served = serve()
    served.stub.GetStatistics(
        server_pb2.GetStatisticsRequest(), timeout=SAFETY_SECONDS, metadata=(("traceparent", PARENT),)
    )
    served.failure("StartAttempt", rollout_pb2.StartAttemptRequest(request_id="a", rollout_id="ro-no"))
    served.stop()
    first, second = spans()
    assert first.name == "lightning_store.v1.LightningStoreService/GetStatistics"
    assert first.kind is SpanKind.SERVER
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, "b7ad6b7169203331")
    assert first.attributes["rpc.response.status_code"] == "OK"
    assert first.end_time >= first.start_time
    assert second.parent is None
    assert second.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert second.attributes["lightning_store.request_id"] == "a"
    assert second.status.status_code is StatusCode.UNSET  # the caller's fault


@pytest.mark.parametrize("sessions", [True, False])
def test_calls_of_the_client_are_children_of_the_span_that_makes_them(serve, spans, sessions):
    served = serve()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("caller")
    made = []

    async def ask(client):
        with tracer.start_as_current_span("ask") as span:
            made.append(span.get_span_context())
            await client.statistics()

    async def scenario():
        async with LightningStoreClient(served.server.endpoint) as client:
            await client.statistics()
            client._connector.get().has_sessions = sessions
            await asyncio.gather(ask(client), ask(client))

    asyncio.run(scenario())
    served.stop()
    first, *others = [one.parent for one in spans() if one.name.endswith("/GetStatistics")]
    assert first is None
    assert {(one.trace_id, one.span_id) for one in others} == {(one.trace_id, one.span_id) for one in made}


@pytest.mark.parametrize("given", ["", "garbage", "00-0-0-0", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_context_that_is_malformed_is_none(serve, spans, given):
    served = serve()
    served.stub.GetStatistics(
        server_pb2.GetStatisticsRequest(), timeout=SAFETY_SECONDS, metadata=(("traceparent", given),)
    )
    served.stop()
    [span] = spans()
    assert span.parent is None


def test_a_request_over_http_has_one_too(serve, spans):
    served = serve(http_port=0)
    url = served.server.otlp_traces_endpoint().replace("/v1/traces", "/healthz")
    request = urllib.request.Request(url, headers={"traceparent": PARENT})
    with urllib.request.urlopen(request, timeout=SAFETY_SECONDS):
        pass
    served.stop()
    [span] = spans()
    assert (span.name, span.attributes["http.response.status_code"]) == ("GET /healthz", 200)
    assert f"{span.context.trace_id:032x}" == TRACE
