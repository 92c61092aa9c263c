"""Spans out of what OpenTelemetry exporters send, in protobuf and in JSON, and what the sender is told."""

from __future__ import annotations

import base64
import json

import pytest
from google.protobuf import json_format
from hypothesis import assume, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from lightning_store.errors import InvalidArgumentError
from lightning_store.testing import strategies
from lightning_store.wire.otlp import ExportReport, received_spans, request_from_json
from lightning_store.wire.spans import ProtoSpanCodec, span_to_proto
from tests.wire.same import assert_same, through_bytes

CODEC = ProtoSpanCodec()
ROLLOUT = "agentlightning.rollout_id"
ATTEMPT = "agentlightning.attempt_id"
SEQUENCE = "agentlightning.span_sequence_id"
OWNERS = {ROLLOUT: "ro-1", ATTEMPT: "at-1"}


def any_value(value):
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    return AnyValue()


def attributes(values):
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def a_span(number=1, labels=None, **fields):
    values = {"trace_id": b"\x01" * 16, "span_id": number.to_bytes(8), "name": f"span {number}"}
    return Span(**{**values, "attributes": attributes(labels or {}), **fields})


def a_request(*spans, labels=None, **scope):
    resource = Resource(attributes=attributes(OWNERS if labels is None else labels))
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans, **scope)])]
    )


def received(request):
    return list(received_spans(through_bytes(request)))


def records(request):
    found = received(request)
    assert [span.complaint for span in found] == [None] * len(found)
    return [span.record for span in found]


def decoded(request):
    """The spans of a request that numbers them."""
    return CODEC.decode(records(request))


def complaint(request):
    """Why the only span of the request is not taken."""
    [span] = received(request)
    assert span.record is None
    return span.complaint


# --- Whose spans they are --------------------------------------------------------------------------------------------


def test_the_resource_tells_for_all_of_its_spans():
    found = records(a_request(a_span(1), a_span(2)))
    assert [(r.rollout_id, r.attempt_id, r.sequence_id, r.span_id) for r in found] == [
        ("ro-1", "at-1", None, "0000000000000001"),
        ("ro-1", "at-1", None, "0000000000000002"),
    ]


def test_a_span_can_tell_for_itself():
    [record] = records(a_request(a_span(labels=OWNERS), labels={}))
    assert (record.rollout_id, record.attempt_id) == ("ro-1", "at-1")


def test_what_a_span_tells_wins_label_by_label_and_for_that_span_only():
    request = a_request(a_span(1, {ATTEMPT: "at-2"}), a_span(2, {ROLLOUT: "ro-2", SEQUENCE: 9}), a_span(3))
    assert [(r.rollout_id, r.attempt_id, r.sequence_id) for r in records(request)] == [
        ("ro-1", "at-2", None),
        ("ro-2", "at-1", 9),
        ("ro-1", "at-1", None),
    ]


def test_each_resource_tells_for_its_own_spans():
    request = a_request(a_span(1))
    request.MergeFrom(a_request(a_span(2), labels={ROLLOUT: "ro-2", ATTEMPT: "at-2", SEQUENCE: 4}))
    request.MergeFrom(a_request(a_span(3)))
    assert [(r.rollout_id, r.sequence_id) for r in records(request)] == [("ro-1", None), ("ro-2", 4), ("ro-1", None)]


def test_labels_stay_where_they_were():
    own = {SEQUENCE: 3}
    [span] = decoded(a_request(a_span(labels=own)))
    assert (span.attributes, span.resource.attributes) == (own, OWNERS)


def test_an_id_may_be_a_number():
    [record] = records(a_request(a_span(), labels={ROLLOUT: 17, ATTEMPT: 4}))
    assert (record.rollout_id, record.attempt_id) == ("17", "4")


@pytest.mark.parametrize("missing", [ROLLOUT, ATTEMPT])
@pytest.mark.parametrize("labels", [{}, {ROLLOUT: "", ATTEMPT: ""}, {ROLLOUT: None, ATTEMPT: None}])
def test_a_span_of_nobody_is_refused(missing, labels):
    given = {**labels, **{name: value for name, value in OWNERS.items() if name != missing}}
    assert complaint(a_request(a_span(), labels=given)) == (
        f"{missing} is missing; set it as an attribute of the resource, or of the span"
    )


@pytest.mark.parametrize("value", [True, 1.5, ["ro-1"]])
def test_an_id_that_is_no_text_is_refused(value):
    assert complaint(a_request(a_span(labels={ROLLOUT: value}))) == f"{ROLLOUT} is {value!r}; it must be text"


# --- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0), (7, 7), ("7", 7), ("007", 7), (2**63 - 1, 2**63 - 1), (str(2**63 - 1), 2**63 - 1)]
)
def test_a_number_that_the_sender_gives_is_kept(value, number):
    [record] = records(a_request(a_span(labels={SEQUENCE: value})))
    assert record.sequence_id == number


def test_all_spans_of_a_resource_share_its_number():
    found = records(a_request(a_span(1), a_span(2), a_span(3, {SEQUENCE: 8}), labels={**OWNERS, SEQUENCE: "5"}))
    assert [record.sequence_id for record in found] == [5, 5, 8]


@pytest.mark.parametrize("value", [-1, "-1", "x", "", "1.0", " 7", "\u0667", 7.0, True, [7], str(2**63), "9" * 5000])
def test_a_span_with_a_bad_number_is_kept_and_the_store_numbers_it(value):
    [span] = received(a_request(a_span(labels={SEQUENCE: value})))
    assert span.record is not None
    assert span.record.sequence_id is None
    assert span.complaint.startswith(f"{SEQUENCE} is ")
    assert span.complaint.endswith(f"no whole number from 0 to {2**63 - 1}; the store chose one")
    assert len(span.complaint) < 200


# --- What a span says ------------------------------------------------------------------------------------------------


@given(strategies.usual_spans())
def test_a_span_that_an_sdk_made_comes_out_as_it_went_in(span):
    assume({"0" * 32, "0" * 16}.isdisjoint({span.trace_id, span.span_id, span.parent_id}))
    span.resource.attributes.update({ROLLOUT: span.rollout_id, ATTEMPT: span.attempt_id, SEQUENCE: span.sequence_id})
    message = span_to_proto(span)
    scope_spans = ScopeSpans(scope=message.scope, schema_url=message.scope_schema_url, spans=[message.span])
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=message.resource, scope_spans=[scope_spans])]
    )
    [found] = decoded(request)
    assert_same(found, span)
    [record] = records(request)
    assert record == CODEC.encode(span)


def numbered(**fields):
    return a_span(labels={SEQUENCE: 1}, **fields)


def test_schema_urls_and_dropped_counts_survive():
    scope = InstrumentationScope(
        name="library", version="1", attributes=attributes({"a": 1}), dropped_attributes_count=4
    )
    request = a_request(numbered(dropped_events_count=3), scope=scope, schema_url="https://schema/s")
    request.resource_spans[0].schema_url = "https://schema/r"
    request.resource_spans[0].resource.dropped_attributes_count = 2
    [span] = decoded(request)
    assert span.resource.schema_url == "https://schema/r"
    assert span.resource.model_extra == {"dropped_attributes_count": 2}
    assert span.scope.model_dump() == {
        "name": "library",
        "version": "1",
        "schema_url": "https://schema/s",
        "attributes": {"a": 1},
        "dropped_attributes_count": 4,
    }
    assert span.model_extra == {"dropped_events_count": 3}


@pytest.mark.parametrize("scope", [{}, {"scope": InstrumentationScope()}])
def test_a_scope_that_says_nothing_is_none(scope):
    [span] = decoded(a_request(numbered(), **scope))
    assert span.scope is None


def test_the_schema_of_a_scope_without_a_name_survives():
    [span] = decoded(a_request(numbered(), schema_url="https://schema/s"))
    assert (span.scope.name, span.scope.schema_url) == ("", "https://schema/s")


def test_a_span_has_its_context_and_its_parents():
    [span] = decoded(a_request(numbered(parent_span_id=b"\x02" * 8, trace_state="v=1", flags=0x301)))
    assert span.parent_id == "02" * 8
    assert span.context.model_dump() == {
        "trace_id": "01" * 16,
        "span_id": "0000000000000001",
        "is_remote": False,
        "trace_state": {"v": "1"},
    }
    assert span.parent.model_dump() == {**span.context.model_dump(), "span_id": "02" * 8, "is_remote": True}


@pytest.mark.parametrize("parent_span_id", [b"", bytes(8)])
def test_a_root_has_no_parent(parent_span_id):
    [span] = decoded(a_request(numbered(parent_span_id=parent_span_id)))
    assert (span.parent_id, span.parent) == (None, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trace_id": b""}, "trace_id has 0 bytes; it must have 16"),
        ({"span_id": b"\x01" * 7}, "span_id has 7 bytes; it must have 8"),
        ({"trace_id": bytes(16)}, "trace_id is all zeros, which stands for no id"),
        ({"span_id": bytes(8)}, "span_id is all zeros, which stands for no id"),
        ({"parent_span_id": b"\x01"}, "parent_span_id has 1 bytes; it must have 8"),
        ({"end_time_unix_nano": 2**64 - 1}, "end_time_unix_nano is 18446744073709551615; it must be at most"),
    ],
)
def test_a_malformed_span_is_refused_and_its_neighbours_are_not(fields, message):
    first, second, third = received(a_request(a_span(1), a_span(2, **fields), a_span(3)))
    assert second.record is None
    assert second.complaint.startswith(message)
    assert second.path == "resource_spans[0].scope_spans[0].spans[1]"
    assert [span.record.name for span in (first, third)] == ["span 1", "span 3"]


# --- What the sender is told -----------------------------------------------------------------------------------------


def test_if_all_is_well_the_answer_is_empty():
    assert not ExportReport().response().HasField("partial_success")


def test_the_same_cause_is_told_once():
    report = ExportReport()
    report.rejected("spans[0]", "it is bad")
    report.rejected("spans[1]", "it is bad")
    report.rejected("spans[2]", "it is worse")
    told = report.response().partial_success
    assert told.rejected_spans == 3
    assert told.error_message == (
        "3 spans rejected: it is bad (2 spans, the first is spans[0]); it is worse (spans[2])"
    )


def test_only_the_first_causes_are_told_and_at_no_great_length():
    report = ExportReport()
    for number in range(50):
        report.rejected(f"spans[{number}]", f"cause {number} " + "x" * 10_000)
    report.rejected("spans[50]", "cause 0 " + "x" * 10_000)
    told = report.response().partial_success
    assert told.rejected_spans == 51
    assert told.error_message.startswith("51 spans rejected: cause 0 xxx")
    assert "… (2 spans, the first is spans[0]); cause 1 xxx" in told.error_message
    assert told.error_message.endswith("…  (spans[2]); and 47 spans for other causes".replace("  ", " "))
    assert len(told.error_message) < 1200


def test_what_was_passed_over_is_told_without_a_rejection():
    report = ExportReport()
    report.passed_over("spans[4]", "its number is odd")
    told = report.response().partial_success
    assert (told.rejected_spans, told.error_message) == (0, "1 span stored all the same: its number is odd (spans[4])")


# --- JSON ------------------------------------------------------------------------------------------------------------


def as_json(request):
    """The request as an exporter writes it: protobuf's JSON with integers for enums, and ids in hexadecimal."""
    tree = json_format.MessageToDict(request, use_integers_for_enums=True)
    for resource_spans in tree.get("resourceSpans", []):
        for scope_spans in resource_spans.get("scopeSpans", []):
            for span in scope_spans.get("spans", []):
                for holder in (span, *span.get("links", [])):
                    for name in {"traceId", "spanId", "parentSpanId"} & holder.keys():
                        holder[name] = base64.b64decode(holder[name]).hex()
    return tree


@given(strategies.usual_spans())
def test_json_says_the_same_as_protobuf(span):
    message = span_to_proto(span)
    request = a_request(message.span, scope=message.scope)
    assert request_from_json(json.dumps(as_json(request)).encode()) == request


def test_ids_are_hexadecimal_in_any_case_and_bytes_are_not():
    span = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "eee19b7ec3c1b174",
        "parentSpanId": "",
        "startTimeUnixNano": "1544712660000000000",
        "kind": 2,
        "attributes": [{"key": "raw", "value": {"bytesValue": "AP8="}}],
        "links": [{"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}],
        "fromTheFuture": {"x": [1]},
    }
    body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": None, "spans": [span]}]}], "unknown": 1}
    request = request_from_json(json.dumps(body).encode())
    [found] = request.resource_spans[0].scope_spans[0].spans
    assert found.trace_id.hex() == found.links[0].trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert (found.span_id.hex(), found.parent_span_id) == ("eee19b7ec3c1b174", b"")
    assert (found.kind, found.start_time_unix_nano) == (Span.SPAN_KIND_SERVER, 1544712660000000000)
    assert found.attributes[0].value.bytes_value == b"\x00\xff"


def spans_json(**span):
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"\xff{}", "the body is not UTF-8"),
        (b"[]", "the body must be a JSON object"),
        (b"[" * 100_000, "the body"),
        (b'{"resourceSpans": 7}', "the body is no ExportTraceServiceRequest"),
        (b'{"resourceSpans": [7]}', "the body is no ExportTraceServiceRequest"),
        (spans_json(traceId="xyz"), "traceId is 'xyz'; it must be hexadecimal"),
        (spans_json(spanId="12 34"), "spanId is '12 34'; it must be hexadecimal"),
        (spans_json(name=7), "the body is no ExportTraceServiceRequest"),
        (spans_json(name="\ud800"), "the body is no ExportTraceServiceRequest"),
        (spans_json(startTimeUnixNano=2**64), "the body is no ExportTraceServiceRequest"),
    ],
)
def test_bad_json_is_refused_with_what_is_wrong(body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        request_from_json(body)
    assert str(caught.value).startswith(message)


KEYS = [
    "resourceSpans",
    "scopeSpans",
    "spans",
    "links",
    "traceId",
    "spanId",
    "attributes",
    "value",
    "arrayValue",
    "scope",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("0f" * 8)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=3))
def test_any_json_is_read_or_refused(tree):
    try:
        request = request_from_json(json.dumps(tree).encode())
    except InvalidArgumentError:
        return
    received(request)
