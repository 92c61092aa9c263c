"""Spans of the OpenTelemetry SDK as the model's spans."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, TraceState

from lightning_store.model import Span
from lightning_store.otel import span_from_opentelemetry
from lightning_store.spans.document import decode, encode

TRACE_ID = 0x0123456789ABCDEF0123456789ABCDEF
REMOTE = SpanContext(
    TRACE_ID, 0xFEDCBA, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("v", "1")])
)
START = 1_700_000_000_123_456_789


@pytest.fixture
def tracer():
    resource = Resource.create({"service.name": "agent"}, schema_url="https://schema/r")
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    return provider.get_tracer("library", "1.2", schema_url="https://schema/s", attributes={"build": "x"})


def recorded(tracer, **arguments):
    """A finished child span of a remote parent, with everything that a span can have."""
    context = trace.set_span_in_context(NonRecordingSpan(REMOTE))
    links = [Link(REMOTE, {"why": "because"}), Link(REMOTE)]
    span = tracer.start_span("step", context, trace.SpanKind.CLIENT, start_time=START, links=links, **arguments)
    span.set_attributes({"text": "t", "int": 7, "float": 1.5, "bool": True, "list": ["a", "b"], "raw": b"\x00"})
    span.add_event("happened", {"k": 1}, timestamp=START + 1)
    span.set_status(trace.StatusCode.ERROR, "it broke")
    span.end(START + 10**9)
    return span


def converted(span):
    return span_from_opentelemetry(span, "ro-1", "at-1", 4)


def test_nothing_is_left_out(tracer):
    source = recorded(tracer)
    span = converted(source)
    own = source.get_span_context()
    assert (span.rollout_id, span.attempt_id, span.sequence_id) == ("ro-1", "at-1", 4)
    assert span.trace_id == "0123456789abcdef0123456789abcdef"
    assert span.span_id == f"{own.span_id:016x}"
    assert span.parent_id == "0000000000fedcba"
    assert span.kind == "CLIENT"
    assert (span.start_time, span.end_time) == (START / 10**9, (START + 10**9) / 10**9)
    assert span.status.model_dump() == {"status_code": "ERROR", "description": "it broke"}
    raw = source.attributes["raw"]  # older SDKs make a string of it
    assert span.attributes == {"text": "t", "int": 7, "float": 1.5, "bool": True, "list": ["a", "b"], "raw": raw}
    assert span.resource.attributes["service.name"] == "agent"
    assert span.resource.schema_url == "https://schema/r"


def test_events_links_scope_and_contexts(tracer):
    span = converted(recorded(tracer))
    [event] = span.events
    assert (event.name, event.attributes, event.timestamp) == ("happened", {"k": 1}, (START + 1) / 10**9)
    assert [link.attributes for link in span.links] == [{"why": "because"}, None]
    assert span.links[0].context == span.parent
    assert span.parent is not None
    assert span.parent.model_dump() == {
        "trace_id": span.trace_id,
        "span_id": "0000000000fedcba",
        "is_remote": True,
        "trace_state": {"v": "1"},
    }
    assert span.context is not None
    assert (span.context.span_id, span.context.is_remote) == (span.span_id, False)
    assert span.scope is not None
    assert span.scope.model_dump() == {
        "name": "library",
        "version": "1.2",
        "schema_url": "https://schema/s",
        "attributes": {"build": "x"},
    }


def test_a_span_of_the_sdk_comes_back(tracer):
    root = tracer.start_span("root")
    child = tracer.start_span("child", trace.set_span_in_context(root))
    for span in map(converted, (recorded(tracer), root, child)):
        record = encode(span)
        assert decode(record.document, span.sequence_id) == span


def test_dropped_counts_and_unusual_trace_flags_are_extra_fields():
    limits = SpanLimits(max_events=1, max_span_attributes=1, max_event_attributes=1)
    tracer = TracerProvider(span_limits=limits, shutdown_on_exit=False).get_tracer("t")
    source = tracer.start_span("s", attributes={"a": 1, "b": 2, "c": 3})
    for name in ("one", "two", "three"):
        source.add_event(name, {"x": 1, "y": 2})
    span = converted(source)
    assert span.model_extra == {"dropped_attributes_count": 2, "dropped_events_count": 2}
    assert span.events[0].model_extra == {"dropped_attributes_count": 1}
    unsampled = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0))
    context = converted(ReadableSpan("s", context=unsampled)).context
    assert context is not None
    assert context.model_extra == {"trace_flags": 0}


def test_a_usual_span_has_no_extra_fields(tracer):
    span = converted(recorded(tracer))
    assert span.model_extra == {}
    assert span.context is not None
    assert span.context.model_extra == {}


def test_a_span_without_a_context():
    span = converted(ReadableSpan("bare"))
    assert (span.trace_id, span.span_id, span.parent_id, span.context) == ("0" * 32, "0" * 16, None, None)
    assert (span.start_time, span.end_time, span.scope) == (None, None, None)
    assert span.status.status_code == "UNSET"


def test_test_doubles_will_do():
    assert converted(SimpleNamespace(name="thin")).name == "thin"
    context = SimpleNamespace(trace_id=1, span_id=2, is_remote=False, trace_state=None)
    double = MagicMock(context=context, parent=None, start_time=10**18, end_time=None, attributes={"a": 1}, events=[])
    double.name = "double"
    double.get_span_context.return_value = context
    span = converted(double)
    assert (span.name, span.span_id, span.start_time, span.attributes) == ("double", "0" * 15 + "2", 1e9, {"a": 1})
    assert (span.links, span.scope, span.kind, span.model_extra) == ([], None, None, {})


def test_attributes_may_be_any_mapping():
    class Pairs(Mapping):
        def __init__(self, **pairs):
            self._pairs = pairs

        def __getitem__(self, key):
            return self._pairs[key]

        def __iter__(self):
            return iter(self._pairs)

        def __len__(self):
            return len(self._pairs)

    attributes = Pairs(a=1, b=("x", Pairs(c=(True,))), d=None)
    assert converted(SimpleNamespace(attributes=attributes)).attributes == {
        "a": 1,
        "b": ["x", {"c": [True]}],
        "d": None,
    }
    assert converted(SimpleNamespace(attributes={1: 2})).attributes == {"1": 2}
    odd = SimpleNamespace(
        kind=SimpleNamespace(name=["CLIENT"]), status=SimpleNamespace(status_code=SimpleNamespace(name={}))
    )
    assert (converted(odd).kind, converted(odd).status.status_code) == (None, "UNSET")


def test_later_changes_of_the_source_do_not_show(tracer):
    source = tracer.start_span("s", attributes={"list": [1, 2]})
    span = Span.from_opentelemetry(source, "ro-1", "at-1", 1)
    source.set_attribute("more", 1)
    assert span.attributes == {"list": [1, 2]}
