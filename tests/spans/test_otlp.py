"""OTLP at the edges: each span of a request has a result of its own, and what comes in goes out again."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import assume, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from lightning_store import model
from lightning_store.errors import InvalidArgumentError
from lightning_store.spans.document import decode, encode, validate
from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID, SEQUENCE_ID
from lightning_store.spans.otlp.messages import TIME_MAX_NANOS
from lightning_store.spans.otlp.requests import (
    ReceivedSpan,
    export_request,
    received_spans,
    received_spans_from_json,
    spans_of,
)
from lightning_store.spans.otlp.values import NESTING_MAX, write_value
from lightning_store.testing import strategies
from lightning_store.text import replace_surrogates
from tests.otlp_bytes import deep_attribute, field, request_of
from tests.wire.same import assert_same

OWNERS = {ROLLOUT_ID: "ro-1", ATTEMPT_ID: "at-1"}
CASES = json.loads((Path(__file__).parent.parent / "data" / "otlp_json.json").read_text())
FIRST = "resource_spans[0].scope_spans[0]"


def attributes(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=write_value(value)) for key, value in values.items()]


def a_span(number: int = 1, labels: dict[str, Any] | None = None, **fields: Any) -> Span:
    values = {"trace_id": b"\x01" * 16, "span_id": number.to_bytes(8), "name": f"span {number}"}
    return Span(**{**values, "attributes": attributes(labels or {}), **fields})


def a_request(*spans: Span, labels: dict[str, Any] | None = None, **scope: Any) -> ExportTraceServiceRequest:
    resource = Resource(attributes=attributes(OWNERS if labels is None else labels))
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans, **scope)])]
    )


def received(request: ExportTraceServiceRequest | bytes) -> list[ReceivedSpan]:
    body = request if isinstance(request, bytes) else request.SerializeToString()
    return list(received_spans(body))


def stored(request: ExportTraceServiceRequest | bytes) -> list[model.Span]:
    """The spans of a request in which all is well."""
    found = received(request)
    assert [span.complaint for span in found] == [None] * len(found)
    return [read(span) for span in found]


def read(span: ReceivedSpan) -> model.Span:
    record = span.record
    assert record is not None
    assert validate(record.document, record.sequence_id) == record
    return decode(record.document, record.sequence_id or 0)


def complaint(request: ExportTraceServiceRequest | bytes) -> str | None:
    """The reason why the only span of the request is rejected."""
    [span] = received(request)
    assert span.record is None
    return span.complaint


def names(found: list[ReceivedSpan]) -> list[str | None]:
    return [None if span.record is None else read(span).name for span in found]


# --- Neighbours ------------------------------------------------------------------------------------------------------


def case(name: str) -> bytes:
    text = json.dumps(CASES[name]).replace("ROLLOUT", "ro-1").replace("ATTEMPT", "at-1")
    return text.encode()


REJECTED = {
    "trace-id-not-hex": "traceId is 'zz'; it must be hexadecimal",
    "int-past-64-bits": "is malformed",
    "negative-time": "is malformed",
    "attributes-as-object": "is malformed",
    "fractional-kind": "kind is 2.5; it must be an integer that is not negative",
    "bytes-not-base64": "bytesValue is '***'; it must be base64",
    "snake-case-ids": "trace_id has 0 bytes; it must have 16",
}
STORED = {"lone-surrogate", "unknown-kind"}


def test_every_case_is_known():
    assert CASES.keys() == REJECTED.keys() | STORED


@pytest.mark.parametrize("name", CASES)
def test_a_span_that_is_malformed_in_json_does_not_touch_its_neighbours(name: str):
    first, second, third = received_spans_from_json(case(name))
    assert (read(first).name, read(third).name) == ("s1", "s3")
    if name in STORED:
        assert second.complaint is None
        assert read(second).name == "s2"
    else:
        assert second.record is None
        assert second.path == f"{FIRST}.spans[1]"
        assert second.complaint is not None
        assert second.complaint.startswith(REJECTED[name])


def test_what_is_kept_of_the_cases_that_are_stored():
    _, surrogate, _ = received_spans_from_json(case("lone-surrogate"))
    assert read(surrogate).attributes == {"k": "aaa\ufffd"}
    _, kind, _ = received_spans_from_json(case("unknown-kind"))
    assert read(kind).kind == 99


def deep(levels: int) -> bytes:
    return a_span(2).SerializeToString() + deep_attribute(levels)


def with_bytes(data: bytes) -> bytes:
    """A request of three spans, of which the second is this, whether it can be parsed or not."""
    resource = Resource(attributes=attributes(OWNERS)).SerializeToString()
    return request_of(resource, a_span(1).SerializeToString(), data, a_span(3).SerializeToString())


BAD_TEXT = a_span(2, {"k": "XXX"}).SerializeToString().replace(b"XXX", b"\xab\xc3\x28")
CUT_OFF = a_span(2, {"k": "value"}).SerializeToString()[:-3]


@pytest.mark.parametrize(
    "data", [BAD_TEXT, CUT_OFF, deep(60), b"\xff"], ids=["not-utf8", "cut-off", "too-deep", "junk"]
)
def test_a_span_that_is_malformed_in_protobuf_does_not_touch_its_neighbours(data: bytes):
    first, second, third = received(with_bytes(data))
    assert names([first, third]) == ["span 1", "span 3"]
    assert second.record is None
    assert second.path == f"{FIRST}.spans[1]"
    assert second.complaint is not None
    assert second.complaint.startswith("is malformed: it is cut off, nested too deeply, or has text that is not UTF-8")


@pytest.mark.parametrize("levels", range(28, 36))
def test_deep_attributes_are_stored_or_rejected_by_themselves(levels: int):
    first, second, third = received(with_bytes(deep(levels)))
    assert names([first, third]) == ["span 1", "span 3"]
    if second.record is not None:
        value = read(second).attributes["deep"]
        for _ in range(levels):
            value = value["k"]
        assert value == "bottom"
    else:
        assert levels >= 30


def test_a_resource_that_is_malformed_rejects_its_own_spans_only():
    bad = field(1, b"\xff")
    good = a_request(a_span(3)).SerializeToString()
    spans = [a_span(1, OWNERS).SerializeToString(), a_span(2, OWNERS).SerializeToString()]
    body = field(1, field(1, bad) + field(2, b"".join(field(2, span) for span in spans))) + good
    found = received(body)
    assert names(found) == [None, None, "span 3"]
    assert found[0].complaint is not None
    assert found[0].complaint.startswith("its resource is malformed")


def test_parts_in_which_no_spans_can_be_found_are_rejected_as_one():
    body = field(1, b"\xff") + field(1, field(2, b"\xff")) + a_request(a_span(3)).SerializeToString()
    found = received(body)
    assert [span.path for span in found] == [
        "resource_spans[0]",
        "resource_spans[1].scope_spans[0]",
        f"{FIRST}.spans[0]".replace("[0]", "[2]", 1),
    ]
    assert names(found) == [None, None, "span 3"]


@given(st.lists(strategies.usual_spans(), max_size=3))
def test_span_by_span_reads_the_same_as_the_whole(spans: list[model.Span]):
    assume(not any({"0" * 32, "0" * 16} & {span.trace_id, span.span_id, span.parent_id} for span in spans))
    for span in spans:
        span.resource.attributes.update({ROLLOUT_ID: "ro-1", ATTEMPT_ID: "at-1"})
    request = export_request(spans)
    whole = list(spans_of(request))
    one_by_one = received(request.SerializeToString() + field(1, b"\xff"))
    assert one_by_one[:-1] == whole
    assert one_by_one[-1].record is None


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x02\x00", a_request(a_span()).SerializeToString()[:-1]])
def test_what_is_no_request_is_refused(body: bytes):
    with pytest.raises(InvalidArgumentError, match="^the body is not an ExportTraceServiceRequest"):
        received(body)


def test_a_request_without_spans_has_none():
    assert received(b"") == list(received_spans_from_json(b"{}")) == []


# --- Owners ----------------------------------------------------------------------------------------------------------


def owners(request: ExportTraceServiceRequest) -> list[tuple[str, str, int | None]]:
    found = received(request)
    records = [span.record for span in found if span.record is not None]
    return [(record.rollout_id, record.attempt_id, record.sequence_id) for record in records]


def test_labels_of_a_resource_apply_to_all_of_its_spans():
    assert owners(a_request(a_span(1), a_span(2))) == [("ro-1", "at-1", None)] * 2


def test_a_span_may_have_the_labels_itself():
    assert owners(a_request(a_span(labels=OWNERS), labels={})) == [("ro-1", "at-1", None)]


def test_labels_of_a_span_override_those_of_its_resource_one_by_one():
    request = a_request(a_span(1, {ATTEMPT_ID: "at-2"}), a_span(2, {ROLLOUT_ID: "ro-2", SEQUENCE_ID: 9}), a_span(3))
    assert owners(request) == [("ro-1", "at-2", None), ("ro-2", "at-1", 9), ("ro-1", "at-1", None)]


def test_labels_of_a_resource_apply_to_no_other():
    request = a_request(a_span(1))
    request.MergeFrom(a_request(a_span(2), labels={ROLLOUT_ID: "ro-2", ATTEMPT_ID: "at-2", SEQUENCE_ID: 4}))
    request.MergeFrom(a_request(a_span(3)))
    assert owners(request) == [("ro-1", "at-1", None), ("ro-2", "at-2", 4), ("ro-1", "at-1", None)]


def test_labels_stay_among_the_attributes():
    [span] = stored(a_request(a_span(labels={SEQUENCE_ID: 3})))
    assert (span.attributes, span.resource.attributes, span.sequence_id) == ({SEQUENCE_ID: 3}, OWNERS, 3)


def test_an_id_may_be_a_number():
    assert owners(a_request(a_span(), labels={ROLLOUT_ID: 17, ATTEMPT_ID: 4})) == [("17", "4", None)]


@pytest.mark.parametrize("missing", [ROLLOUT_ID, ATTEMPT_ID])
@pytest.mark.parametrize("labels", [{}, {ROLLOUT_ID: "", ATTEMPT_ID: ""}, {ROLLOUT_ID: None, ATTEMPT_ID: None}])
def test_a_span_without_an_owner_is_rejected(missing: str, labels: dict[str, Any]):
    given_labels = {**labels, **{name: value for name, value in OWNERS.items() if name != missing}}
    assert complaint(a_request(a_span(), labels=given_labels)) == (
        f"{missing} is missing; set it as an attribute of the resource, or of the span"
    )


@pytest.mark.parametrize("value", [True, 1.5, ["ro-1"]])
def test_a_label_that_is_not_text_is_rejected(value: Any):
    assert complaint(a_request(a_span(labels={ROLLOUT_ID: value}))) == f"{ROLLOUT_ID} is {value!r}; it must be text"


def test_a_label_that_not_every_database_holds_is_rejected():
    found = complaint(a_request(a_span(labels={ROLLOUT_ID: "a\0"})))
    assert found == "span.rollout_id has the character U+0000, which ids must not have"


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0), (7, 7), ("7", 7), ("007", 7), (2**63 - 1, 2**63 - 1), (str(2**63 - 1), 2**63 - 1)]
)
def test_a_sequence_id_of_the_sender_is_kept(value: Any, number: int):
    assert owners(a_request(a_span(labels={SEQUENCE_ID: value}))) == [("ro-1", "at-1", number)]


def test_all_spans_of_a_resource_share_its_sequence_id():
    request = a_request(a_span(1), a_span(2), a_span(3, {SEQUENCE_ID: 8}), labels={**OWNERS, SEQUENCE_ID: "5"})
    assert [number for *_, number in owners(request)] == [5, 5, 8]


@pytest.mark.parametrize("value", [-1, "-1", "x", "", "1.0", " 7", "\u0667", 7.0, True, [7], str(2**63), "9" * 5000])
def test_a_malformed_sequence_id_is_ignored_with_a_complaint(value: Any):
    [span] = received(a_request(a_span(labels={SEQUENCE_ID: value})))
    assert span.record is not None
    assert span.record.sequence_id is None
    assert span.complaint is not None
    assert span.complaint.startswith(f"{SEQUENCE_ID} is ")
    assert span.complaint.endswith(f"not an integer from 0 to {2**63 - 1}; the store allocated one")
    assert len(span.complaint) < 200


# --- Conversion ------------------------------------------------------------------------------------------------------


@given(strategies.usual_spans())
def test_a_span_that_an_sdk_made_comes_out_as_it_went_in(span: model.Span):
    assume({"0" * 32, "0" * 16}.isdisjoint({span.trace_id, span.span_id, span.parent_id}))
    assume("\0" not in span.rollout_id + span.attempt_id)
    span.resource.attributes.update(
        {ROLLOUT_ID: span.rollout_id, ATTEMPT_ID: span.attempt_id, SEQUENCE_ID: span.sequence_id}
    )
    [found] = stored(export_request([span]))
    assert_same(found, span)
    [first] = received(export_request([span]))
    assert first.record is not None
    assert json.loads(first.record.document) == json.loads(encode(span).document)


@given(strategies.usual_spans())
def test_json_says_the_same_as_protobuf(span: model.Span):
    span.resource.attributes.update(OWNERS)
    request = export_request([span])
    assert list(received_spans_from_json(json.dumps(as_json(request)).encode())) == received(request)


def as_json(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """The request as an exporter writes it: protobuf's JSON with integers for enums, and ids in hexadecimal."""
    tree: dict[str, Any] = json_format.MessageToDict(request, use_integers_for_enums=True)
    for resource_spans in tree.get("resourceSpans", []):
        for scope_spans in resource_spans.get("scopeSpans", []):
            for span in scope_spans.get("spans", []):
                for holder in (span, *span.get("links", [])):
                    for name in {"traceId", "spanId", "parentSpanId"} & holder.keys():
                        holder[name] = base64.b64decode(holder[name]).hex()
    return tree


@given(st.integers(1, TIME_MAX_NANOS), st.integers(0, TIME_MAX_NANOS))
def test_times_come_back_within_120_ns(start: int, end: int):
    span = a_span(start_time_unix_nano=start, end_time_unix_nano=end)
    [found] = export_request(stored(a_request(span))).resource_spans[0].scope_spans[0].spans
    # A double has 53 bits: its neighbours are 238 ns apart now, and 477 ns from 2038 on.
    limit = 120 if max(start, end) < 2**31 * 10**9 else 960
    assert abs(found.start_time_unix_nano - start) <= limit
    assert abs(found.end_time_unix_nano - end) <= limit


@pytest.mark.parametrize("number", [6, 99, 2**31 - 1])
def test_numbers_of_a_newer_otlp_are_kept(number: int):
    request = a_request(a_span(kind=number, status={"code": number}))
    [span] = stored(request)
    assert (span.kind, span.status.status_code) == (number, number)
    [found] = export_request([span]).resource_spans[0].scope_spans[0].spans
    assert (found.kind, found.status.code) == (number, number)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, b"\x00\xff", [math.nan, b""], {"a": {"b": b"x"}}])
def test_values_that_json_has_not_are_kept(value: Any):
    [span] = stored(a_request(a_span(labels={"x": value})))
    assert_same(span.attributes, {"x": value})


def test_schema_urls_and_dropped_counts_survive():
    scope = InstrumentationScope(
        name="library", version="1", attributes=attributes({"a": 1}), dropped_attributes_count=4
    )
    request = a_request(a_span(dropped_events_count=3), scope=scope, schema_url="https://schema/s")
    request.resource_spans[0].schema_url = "https://schema/r"
    request.resource_spans[0].resource.dropped_attributes_count = 2
    [span] = stored(request)
    assert span.resource.schema_url == "https://schema/r"
    assert span.resource.model_extra == {"dropped_attributes_count": 2}
    assert span.scope is not None
    assert span.scope.model_dump() == {
        "name": "library",
        "version": "1",
        "schema_url": "https://schema/s",
        "attributes": {"a": 1},
        "dropped_attributes_count": 4,
    }
    assert span.model_extra == {"dropped_events_count": 3}
    assert stored(export_request([span])) == [span]


@pytest.mark.parametrize("scope", [{}, {"scope": InstrumentationScope()}])
def test_an_empty_scope_is_none(scope: dict[str, Any]):
    [span] = stored(a_request(a_span(), **scope))
    assert span.scope is None


def test_a_span_has_its_context_and_its_parents():
    [span] = stored(a_request(a_span(parent_span_id=b"\x02" * 8, trace_state="v=1", flags=0x301)))
    assert span.parent_id == "02" * 8
    assert span.context is not None
    assert span.parent is not None
    assert span.context.model_dump() == {
        "trace_id": "01" * 16,
        "span_id": "0000000000000001",
        "is_remote": False,
        "trace_state": {"v": "1"},
    }
    assert span.parent.model_dump() == {**span.context.model_dump(), "span_id": "02" * 8, "is_remote": True}


@pytest.mark.parametrize("flags", [3, 0xFF])
def test_trace_flags_are_an_extra_field_of_the_context(flags: int):
    [span] = stored(a_request(a_span(flags=flags)))
    assert span.context is not None
    assert span.context.model_extra == {"trace_flags": flags}
    [found] = export_request([span]).resource_spans[0].scope_spans[0].spans
    assert found.flags == flags


@pytest.mark.parametrize("parent_span_id", [b"", bytes(8)])
def test_a_root_has_no_parent(parent_span_id: bytes):
    [span] = stored(a_request(a_span(parent_span_id=parent_span_id)))
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
        ({"events": [Span.Event(time_unix_nano=2**64 - 1)]}, "events[0].time_unix_nano is 18446744073709551615"),
        ({"links": [Span.Link(trace_id=b"x")]}, "links[0].trace_id has 1 bytes; it must have 16"),
        ({"kind": -1}, "kind is -1; it must not be negative"),
        ({"status": {"code": -7}}, "status.code is -7; it must not be negative"),
    ],
)
def test_a_malformed_span_is_rejected_and_its_neighbours_are_not(fields: dict[str, Any], message: str):
    first, second, third = received(a_request(a_span(1), a_span(2, **fields), a_span(3)))
    assert names([first, third]) == ["span 1", "span 3"]
    assert second.complaint is not None
    assert second.complaint.startswith(message)
    assert second.path == f"{FIRST}.spans[1]"


# --- JSON ------------------------------------------------------------------------------------------------------------


def as_text(*spans: Any, **of_resource: Any) -> bytes:
    resource = {"attributes": [{"key": key, "value": {"stringValue": value}} for key, value in OWNERS.items()]}
    return json.dumps(
        {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}], **of_resource}]}
    ).encode()


def json_span(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"traceId": "01" * 16, "spanId": f"{number:016x}", "name": f"span {number}", **fields}


def json_value(**value: Any) -> dict[str, Any]:
    return json_span(2, attributes=[{"key": "k", "value": value}])


def nested_json(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"intValue": "1"}
    for _ in range(levels):
        value = {"arrayValue": {"values": [value]}}
    return json_value(**value)


def test_ids_are_hexadecimal_in_any_case_and_bytes_are_not():
    span = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "eee19b7ec3c1b174",
        "parentSpanId": "",
        "startTimeUnixNano": "1544712660000000000",
        "kind": 2,
        "attributes": [{"key": "raw", "value": {"bytesValue": "AP8="}}],
        "links": [{"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}],
        "fromTheFuture": {"x": [1], "y_z": 2},
    }
    [found] = map(read, received_spans_from_json(as_text(span)))
    assert found.trace_id == found.links[0].context.trace_id == "5b8efff798038103d269b633813fc60c"
    assert (found.span_id, found.parent_id) == ("eee19b7ec3c1b174", None)
    assert (found.kind, found.start_time, found.attributes) == ("SERVER", 1544712660.0, {"raw": b"\x00\xff"})


@pytest.mark.parametrize("kind", [2, 2.0, "SPAN_KIND_SERVER"])
def test_kinds_are_integers_or_names(kind: Any):
    found = list(received_spans_from_json(as_text(json_span(kind=kind))))
    assert names(found) == ([None] if isinstance(kind, float) else ["span 1"])


@pytest.mark.parametrize(
    "value", [{"doubleValue": "NaN"}, {"bytesValue": "_-8"}, {"bytesValue": ""}, {"boolValue": False}, {}]
)
def test_legal_values_are_taken(value: dict[str, Any]):
    assert names(list(received_spans_from_json(as_text(json_value(**value))))) == ["span 2"]


@pytest.mark.parametrize(
    "span",
    [
        7,
        None,
        [],
        "x",
        json_span(2, traceId=5),
        json_span(2, spanId="12 34"),
        json_span(2, spanId="123"),
        json_span(2, name=7),
        json_span(2, kind=True),
        json_span(2, kind="NEW_KIND"),
        json_span(2, kind=2**40),
        json_span(2, kind=-1),
        json_span(2, kind="7"),
        json_span(2, status={"code": []}),
        json_span(2, status={"code": 1.5}),
        json_span(2, startTimeUnixNano=2**64),
        json_span(2, startTimeUnixNano="soon"),
        json_span(2, startTimeUnixNano=int("9" * 4000)),
        json_span(2, events=[7]),
        json_span(2, links={"traceId": "zz"}),
        json_span(2, attributes=[{"key": "k", "value": 7}]),
        json_value(intValue=1.5),
        json_value(doubleValue="much"),
        json_value(bytesValue="AA=A"),
        json_value(bytesValue="A"),
        json_value(bytesValue=7),
        json_value(stringValue=7),
        json_value(stringValue="a", intValue="1"),
        nested_json(70),
    ],
)
def test_any_malformed_span_in_json_is_rejected_by_itself(span: Any):
    found = list(received_spans_from_json(as_text(json_span(1), span, json_span(3))))
    assert names(found) == ["span 1", None, "span 3"]
    assert found[1].complaint


def test_numbers_that_python_does_not_read_reject_their_span_only():
    body = as_text(json_span(1), json_span(2, startTimeUnixNano=12345), json_span(3)).replace(b"12345", b"1" * 5000)
    assert names(list(received_spans_from_json(body))) == ["span 1", None, "span 3"]


def test_bytes_that_are_not_utf8_are_replaced():
    body = as_text(json_span(1), json_value(stringValue="XXX"), json_span(3)).replace(b"XXX", b"\xab\xc3\x28")
    found = list(received_spans_from_json(body))
    assert names(found) == ["span 1", "span 2", "span 3"]
    assert read(found[1]).attributes == {"k": "\ufffd\ufffd("}


def test_parts_that_are_malformed_in_json_are_rejected_as_one():
    good = json.loads(as_text(json_span(4)))["resourceSpans"]
    bad_resource = json.loads(as_text(json_span(1), json_span(2), resource={"attributes": 7}))["resourceSpans"]
    parts = [7, {"scopeSpans": 7}, {"scopeSpans": [7, {"spans": 7}]}, {}, *bad_resource, *good]
    found = list(received_spans_from_json(json.dumps({"resourceSpans": parts, "more": 1}).encode()))
    assert names(found) == [None] * 6 + ["span 4"]
    assert [span.path for span in found[:4]] == [
        "resource_spans[0]",
        "resource_spans[1]",
        "resource_spans[2].scope_spans[0]",
        "resource_spans[2].scope_spans[1]",
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"\xff{}", "the body is not valid JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"[" * 100_000, "the body is nested too deeply"),
        (b'{"resourceSpans": 7}', "the body is not an ExportTraceServiceRequest: resourceSpans must be an array"),
    ],
)
def test_bad_json_is_refused_with_what_is_wrong(body: bytes, message: str):
    with pytest.raises(InvalidArgumentError) as caught:
        received_spans_from_json(body)
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
def test_any_json_is_read_or_refused(tree: dict[str, Any]):
    try:
        found = list(received_spans_from_json(json.dumps(tree).encode()))
    except InvalidArgumentError:
        return
    assert all(span.record is not None or span.complaint for span in found)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes):
    try:
        found = received(body)
    except InvalidArgumentError:
        return
    assert all(span.record is not None or span.complaint for span in found)


# --- To OTLP ---------------------------------------------------------------------------------------------------------


def model_span(**fields: Any) -> model.Span:
    ids = {"rollout_id": "ro-1", "attempt_id": "at-1", "trace_id": "ab" * 16, "span_id": "cd" * 8, "name": "step"}
    return model.Span.model_validate({**ids, "sequence_id": 1, **fields})


def test_spans_share_their_resource_and_scope():
    resource = {"attributes": {"service.name": "agent"}}
    other = {"attributes": {"service.name": "other"}}
    spans = [
        model_span(name="1", resource=resource, scope={"name": "a"}),
        model_span(name="2", resource=other),
        model_span(name="3", resource=resource, scope={"name": "b"}),
        model_span(name="4", resource=resource, scope={"name": "a"}),
    ]
    request = export_request(spans)
    found = [[[span.name for span in s.spans] for s in r.scope_spans] for r in request.resource_spans]
    assert found == [[["1", "4"], ["3"]], [["2"]]]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (2**63, str(2**63)),
        (-(2**63), -(2**63)),
        ("a\ud800", "a\ufffd"),
        ({"\ud800": 1}, {"\ufffd": 1}),
        (None, None),
        ([], []),
        ({}, {}),
        ([None, [1], {"a": b"x"}], [None, [1], {"a": b"x"}]),
    ],
)
def test_what_otlp_cannot_hold_is_changed_as_documented(value: Any, found: Any):
    [span] = stored(export_request([model_span(attributes={"x": value}, resource={"attributes": OWNERS})]))
    assert_same(span.attributes, {"x": found})


@pytest.mark.parametrize("levels", [NESTING_MAX, NESTING_MAX + 1, 100])
def test_values_that_are_too_deep_are_written_as_json(levels: int):
    value: Any = b"\xab"
    for _ in range(levels):
        value = {"k": value}
    [span] = stored(export_request([model_span(attributes={"deep": value}, resource={"attributes": OWNERS})]))
    found = span.attributes["deep"]
    for _ in range(NESTING_MAX):
        found = found["k"]
    if levels > NESTING_MAX:
        assert isinstance(found, str)
        found = json.loads(found)
        for _ in range(levels - NESTING_MAX):
            found = found["k"]
    assert found == (b"\xab" if levels == NESTING_MAX else "ab")


@pytest.mark.parametrize("field_name", ["trace_id", "span_id", "parent_id"])
@pytest.mark.parametrize("value", ["", "zz", "ab", "データ", "AB" * 20])
def test_ids_that_are_not_otlps_cannot_be_exported(field_name: str, value: str):
    with pytest.raises(InvalidArgumentError, match=f"^{field_name} is .*; OTLP has ids of"):
        export_request([model_span(**{field_name: value})])


@given(strategies.spans())
def test_any_span_with_legal_ids_can_be_exported(span: model.Span):
    span = span.model_copy(update={"trace_id": "ab" * 16, "span_id": "cd" * 8, "parent_id": None, "links": []})
    span.resource.attributes.update(OWNERS)
    [found] = stored(export_request([span]))
    wanted = (replace_surrogates(span.name), span.kind, span.status.status_code)
    assert (found.name, found.kind, found.status.status_code) == wanted
