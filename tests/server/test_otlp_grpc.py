"""OTLP over gRPC: real exporters, and raw requests for what no exporter sends."""

from __future__ import annotations

import asyncio
import gzip
import threading
from importlib import metadata

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from packaging.version import Version

from lightning_store import (
    InMemoryLightningStore,
    RejectedSpan,
    ResourceExhaustedError,
    SpansRejectedError,
    StoreUnavailableError,
)
from lightning_store.model import Span
from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID, SEQUENCE_ID
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.wire.methods import TRACE_EXPORT

EXPORTER_SENDS_SCOPES_WHOLE = Version(metadata.version("opentelemetry-exporter-otlp-proto-grpc")) >= Version("1.31")
REMOTE = SpanContext(
    0x0123456789ABCDEF0123456789ABCDEF,
    0xFEDCBA,
    is_remote=True,
    trace_flags=TraceFlags(1),
    trace_state=TraceState([("v", "1")]),
)

LINKED = SpanContext(REMOTE.trace_id, REMOTE.span_id, is_remote=True, trace_flags=REMOTE.trace_flags)
"""Without trace state: this exporter does not send that of links."""


def begin(store):
    """A new attempt, and the labels of its spans."""
    started = asyncio.run(store.start_rollout("task"))
    return started, {ROLLOUT_ID: started.rollout_id, ATTEMPT_ID: started.attempt.attempt_id}


def stored(store, started):
    return list(asyncio.run(store.query_spans(started.rollout_id)))


def provider_of(labels, processor):
    resource = Resource.create({"service.name": "agent", **labels}, schema_url="https://schema/r")
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, span_limits=SpanLimits(max_events=2))
    provider.add_span_processor(processor)
    return provider


def trace_everything(provider):
    """A remote parent's child with all that a span can have, and a root without anything."""
    tracer = provider.get_tracer("library", "1.2", schema_url="https://schema/s", attributes={"build": "x"})
    parent = trace.set_span_in_context(NonRecordingSpan(REMOTE))
    links = [Link(LINKED, {"why": "because"})]
    span = tracer.start_span("step", parent, trace.SpanKind.CLIENT, links=links)
    span.set_attributes({"text": "t", "int": 7, "float": 1.5, "bool": True, "list": ["a", "b"], "raw": b"\x00"})
    for number in range(3):
        span.add_event(f"event {number}", {"k": number})
    span.set_status(trace.StatusCode.ERROR, "it broke")
    span.end()
    tracer.start_span("root").end()


def exporter_of(served, **options):
    return OTLPSpanExporter(endpoint=f"http://{served.server.endpoint}", timeout=SAFETY_SECONDS, **options)


@pytest.fixture
def export():
    """Sends a raw request."""

    def export(served, request) -> ExportTraceServiceResponse:
        return TraceServiceStub(served.channel).Export(request, timeout=SAFETY_SECONDS)

    return export


def a_request(labels, *numbers):
    """Spans with these numbers as their ids."""
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    for key, value in labels.items():
        of_resource.resource.attributes.add(key=key).value.string_value = str(value)
    spans = of_resource.scope_spans.add().spans
    for number in numbers:
        spans.add(trace_id=b"\x01" * 16, span_id=number.to_bytes(8), name=f"span {number}")
    return request


# --- Real exporters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
def test_an_exporter_is_all_it_takes(served, compression, processor):
    started, labels = begin(served.store)
    provider = provider_of(labels, processor(exporter_of(served, compression=compression)))
    with provider.get_tracer("library").start_as_current_span("parent"):
        provider.get_tracer("library").start_span("child").end()
    provider.shutdown()
    child, parent = stored(served.store, started)
    assert [(span.name, span.sequence_id) for span in (child, parent)] == [("child", 1), ("parent", 2)]
    assert child.parent_id == parent.span_id
    assert asyncio.run(served.store.get_rollout_by_id(started.rollout_id)).status == "running"


def test_a_span_is_stored_as_add_otel_span_stores_it(served):
    started, labels = begin(served.store)
    recorded = InMemorySpanExporter()
    provider = provider_of(labels, SimpleSpanProcessor(recorded))
    trace_everything(provider)
    spans = recorded.get_finished_spans()
    exporter = exporter_of(served)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    other = asyncio.run(served.store.start_rollout("task"))
    for span in spans:
        asyncio.run(served.store.add_otel_span(other.rollout_id, other.attempt.attempt_id, span))
    owner = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
    wanted = [span.model_dump() | owner for span in stored(served.store, other)]
    for span in wanted:
        span["context"].pop("trace_flags", None)  # this exporter does not send them
        if not EXPORTER_SENDS_SCOPES_WHOLE:  # but of a scope it sends no more than name and version
            span["scope"] |= {"schema_url": None, "attributes": None}
    assert [span.model_dump() for span in stored(served.store, started)] == wanted
    assert (wanted[0]["events"][-1]["name"], wanted[0]["dropped_events_count"]) == ("event 2", 1)


def test_a_tracer_of_many_rollouts_labels_each_span(served):
    first, first_labels = begin(served.store)
    second, second_labels = begin(served.store)
    provider = provider_of({}, SimpleSpanProcessor(exporter_of(served)))
    tracer = provider.get_tracer("library")
    tracer.start_span("one", attributes=first_labels).end()
    tracer.start_span("two", attributes={**second_labels, SEQUENCE_ID: 41}).end()
    provider.shutdown()
    assert [span.name for span in stored(served.store, first)] == ["one"]
    assert [(span.name, span.sequence_id) for span in stored(served.store, second)] == [("two", 41)]


def test_an_exporter_takes_a_partial_success_for_an_end(served, log):
    exporter = exporter_of(served)
    recorded = InMemorySpanExporter()
    trace_everything(provider_of({}, SimpleSpanProcessor(recorded)))
    assert exporter.export(recorded.get_finished_spans()) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert len(log.rejections()) == 2


# --- What is stored, and what is told --------------------------------------------------------------------------------


def test_the_store_numbers_spans_in_the_order_of_the_request(served, export):
    started, labels = begin(served.store)
    numbers = [*range(600, 0, -1)]
    assert not export(served, a_request(labels, *numbers)).HasField("partial_success")
    assert [span.name for span in stored(served.store, started)] == [f"span {number}" for number in numbers]
    assert [span.sequence_id for span in stored(served.store, started)] == [*range(1, 601)]


def test_one_number_holds_for_all_spans_of_a_resource(served, export):
    started, labels = begin(served.store)
    export(served, a_request({**labels, SEQUENCE_ID: "7"}, 1, 2))
    export(served, a_request(labels, 3))
    assert [(span.name, span.sequence_id) for span in stored(served.store, started)] == [
        ("span 1", 7),
        ("span 2", 7),
        ("span 3", 8),
    ]


def test_a_request_that_is_sent_again_stores_nothing_and_is_accepted(served, export):
    started, labels = begin(served.store)
    for _ in range(2):
        assert not export(served, a_request(labels, 1, 2, 1)).HasField("partial_success")
    export(served, a_request(labels, 2, 3))
    assert [(span.name, span.sequence_id) for span in stored(served.store, started)] == [
        ("span 1", 1),
        ("span 2", 2),
        ("span 3", 3),
    ]


def test_an_empty_request_is_fine(served, export):
    assert export(served, ExportTraceServiceRequest()) == ExportTraceServiceResponse()


def test_what_cannot_be_stored_is_counted_and_the_rest_is_stored(served, export, log):
    started, labels = begin(served.store)
    request = a_request(labels, 1, 0, 2)
    request.MergeFrom(a_request({**labels, ROLLOUT_ID: "ro-none"}, 3, 4))
    request.MergeFrom(a_request({}, 5))
    told = export(served, request).partial_success
    assert told.rejected_spans == 4
    assert told.error_message == (
        "4 spans rejected: span_id is all zeros, which stands for no id (resource_spans[0].scope_spans[0].spans[1]); "
        "Rollout ro-none not found (2 spans, the first is resource_spans[1].scope_spans[0].spans[0]); "
        "agentlightning.rollout_id is missing; set it as an attribute of the resource, or of the span "
        "(resource_spans[2].scope_spans[0].spans[0])"
    )
    assert [span.name for span in stored(served.store, started)] == ["span 1", "span 2"]
    assert len(log.rejections()) == 4


def test_if_nothing_can_be_stored_the_call_still_ends_well(served, export, log):
    assert export(served, a_request({}, 1, 2)).partial_success.rejected_spans == 2
    assert len(log.rejections()) == 2


def test_a_bad_number_is_told_and_the_span_stored(served, export):
    started, labels = begin(served.store)
    told = export(served, a_request({**labels, SEQUENCE_ID: "x"}, 1)).partial_success
    assert told.rejected_spans == 0
    assert "agentlightning.span_sequence_id is 'x'" in told.error_message
    assert [span.sequence_id for span in stored(served.store, started)] == [1]


def test_a_store_of_somebody_elses_is_served_too(serve, hooked, export, log):
    inner = InMemoryLightningStore()
    served = serve(hooked(inner, thread_safe=False))
    started, labels = begin(inner)
    request = a_request(labels, 1, 1)
    request.MergeFrom(a_request({**labels, ATTEMPT_ID: "at-none"}, 2))
    told = export(served, request).partial_success
    assert told.rejected_spans == 1
    assert "Attempt at-none not found" in told.error_message
    assert len(log.rejections()) == 1
    assert [span.name for span in stored(inner, started)] == ["span 1"]


# --- Failures --------------------------------------------------------------------------------------------------------


def failing(hooked, error):
    """A store that cannot add spans now."""

    async def add_many_spans(spans):
        raise error

    return hooked(InMemoryLightningStore(), add_many_spans=add_many_spans)


def exhausted(seconds):
    error = ResourceExhaustedError("the store is full")
    error.retry_after_seconds = seconds
    return error


def test_a_sender_is_told_when_to_come_back(serve, hooked, export):
    served = serve(failing(hooked, exhausted(2.5)))
    _, labels = begin(served.store.inner)
    with pytest.raises(grpc.RpcError) as caught:
        export(served, a_request(labels, 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    [retry] = [d for d in rpc_status.from_call(caught.value).details if d.Is(RetryInfo.DESCRIPTOR)]
    info = RetryInfo()
    retry.Unpack(info)
    assert info.retry_delay.ToTimedelta().total_seconds() == 2.5


class Refusing(InMemoryLightningStore):
    """Refuses spans one by one, from the second one of its life on, for as long as there are errors."""

    def __init__(self, *errors):
        super().__init__()
        self.errors = list(errors)

    async def add_many_spans(self, spans):
        stored = await super().add_many_spans(spans[:1])
        refused = [RejectedSpan(index, span.span_id, self.errors.pop(0)) for index, span in enumerate(spans) if index]
        if refused:
            raise SpansRejectedError.of(refused, stored, len(spans))
        return stored


@pytest.mark.parametrize("error", [exhausted(1.0), StoreUnavailableError("away")])
def test_one_span_that_may_be_stored_later_makes_the_call_fail_and_another_one_completes_it(serve, export, error):
    store = Refusing(error)
    served = serve(store)
    started, labels = begin(store)
    with pytest.raises(grpc.RpcError):
        export(served, a_request(labels, 1, 2))
    assert not export(served, a_request(labels, 1)).HasField("partial_success")
    assert not export(served, a_request(labels, 2)).HasField("partial_success")
    assert [span.name for span in stored(store, started)] == ["span 1", "span 2"]


def test_a_span_that_is_refused_for_good_is_rejected(serve, export, log):
    store = Refusing(exhausted(None))
    served = serve(store)
    _, labels = begin(store)
    told = export(served, a_request(labels, 1, 2)).partial_success
    assert told.rejected_spans == 1
    assert "the store is full" in told.error_message
    assert len(log.rejections()) == 1


def test_the_cause_of_a_failure_stays_in_the_log(serve, hooked, export, failure_of, log):
    served = serve(failing(hooked, RuntimeError("secret")))
    _, labels = begin(served.store.inner)
    failure = failure_of(lambda: export(served, a_request(labels, 1)))
    assert (failure.code, failure.reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in failure.message + failure.metadata
    record = log.next("lightning_store_server")
    assert failure.details["incident_id"] in record.getMessage()
    assert "secret" in str(record.exc_info)


def test_bytes_that_are_no_request_are_an_argument_error(served, failure_of):
    call = served.channel.unary_unary(TRACE_EXPORT.path)
    failure = failure_of(lambda: call(b"\xff\xff", timeout=SAFETY_SECONDS))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


def test_a_request_that_is_large_only_when_unpacked_is_refused(serve, export):
    served = serve(max_message_bytes=100_000)
    started, labels = begin(served.store)
    request = a_request(labels, 1)
    request.resource_spans[0].scope_spans[0].spans[0].name = "x" * 1_000_000
    assert len(gzip.compress(request.SerializeToString())) < 10_000
    stub = TraceServiceStub(served.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Export(request, timeout=SAFETY_SECONDS, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stored(served.store, started) == []


def test_a_call_is_in_the_access_log(serve, export, log):
    served = serve(access_log=True)
    export(served, ExportTraceServiceRequest())
    assert log.next("lightning_store_server.access").call["method"] == TRACE_EXPORT.path


def test_an_export_under_way_finishes_while_the_server_drains(serve, hooked, export):
    inner = InMemoryLightningStore()
    entered, opened = threading.Event(), threading.Event()

    async def add_many_spans(spans):
        entered.set()
        await asyncio.to_thread(opened.wait, SAFETY_SECONDS)
        return await inner.add_many_spans(spans)

    served = serve(hooked(inner, add_many_spans=add_many_spans), grace_seconds=SAFETY_SECONDS)
    started, labels = begin(inner)
    call = TraceServiceStub(served.channel).Export.future(a_request(labels, 1), timeout=SAFETY_SECONDS)
    assert entered.wait(SAFETY_SECONDS)
    stopping = threading.Thread(target=served.stop)
    stopping.start()
    opened.set()
    assert not call.result(SAFETY_SECONDS).HasField("partial_success")
    stopping.join(SAFETY_SECONDS)
    [span] = stored(inner, started)
    assert isinstance(span, Span)
    with pytest.raises(grpc.RpcError) as caught:
        export(served, a_request(labels, 2))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
