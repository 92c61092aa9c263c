"""Spans through OTLP and its overlay: nothing is lost, the usual span needs no overlay, and nothing bad gets in."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from functools import reduce
from types import MappingProxyType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue, KeyValueList

from lightning_store.backends.records import SpanRecord
from lightning_store.errors import InvalidArgumentError, NotJsonError
from lightning_store.model import Span
from lightning_store.testing import strategies
from lightning_store.v1 import span_pb2
from lightning_store.wire import attributes
from lightning_store.wire.attributes import SIZES_MAX, KeyValues, read_attributes
from lightning_store.wire.remembering import CHARS_MAX, REMEMBERED_MAX, remembering
from lightning_store.wire.spans import (
    COMMON_BYTES_MAX,
    ProtoSpanCodec,
    span_record_from_bytes,
    span_record_from_proto,
    span_record_to_bytes,
    span_record_to_proto,
    span_to_bytes,
    span_to_proto,
    spans_at_first_look,
)
from lightning_store.wire.times import EXACT_FROM_SECONDS
from tests.wire.same import assert_same, through_bytes

CODEC = ProtoSpanCodec()


def decoded(record: SpanRecord) -> Span:
    [span] = CODEC.decode([record])
    return span


def at_first_look(message: span_pb2.Span, field: str) -> Span:
    """The span as a client has it."""
    [span] = spans_at_first_look([message], field)
    return span


SERVICE = {"attributes": {"service.name": "agent", "host.name": "runner-0"}, "schema_url": ""}


def a_span(**fields):
    values = {"rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 3, "trace_id": "ab" * 16, "span_id": "cd" * 8}
    return Span(**{**values, "name": "step", **fields})


def an_envelope(**fields):
    message = span_to_proto(a_span())
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def with_otlp(**fields):
    message = span_to_proto(a_span())
    for name, value in fields.items():
        setattr(message.span, name, value)
    return message


@given(strategies.spans())
def test_any_span_comes_back_from_a_record(span):
    assert_same(decoded(CODEC.encode(span)), span)


@given(strategies.spans())
def test_any_span_comes_back_from_a_message(span):
    assert_same(at_first_look(through_bytes(span_to_proto(span)), "span"), span)


@given(strategies.spans())
def test_a_record_made_on_the_server_is_the_one_the_codec_makes(span):
    message = through_bytes(span_to_proto(span))
    record = span_record_from_proto(message, "spans[0]")
    assert_same(decoded(record), span)
    assert CODEC.encode(span) == record
    assert message == span_to_proto(span)
    assert span_record_to_proto(record) == message
    data = span_to_bytes(span)
    assert data == message.SerializeToString() == span_record_to_bytes(record)
    assert span_record_from_bytes(data, "spans[0]") == record


@given(strategies.usual_spans())
def test_a_usual_span_needs_no_overlay(span):
    message = span_to_proto(span)
    assert not message.overlay_json
    assert_same(at_first_look(through_bytes(message), "span"), span)


def test_the_body_holds_none_of_the_envelope_ids():
    record = CODEC.encode(a_span(resource=SERVICE))
    body = span_pb2.Span.FromString(record.body + record.common)
    assert not body.rollout_id
    assert not body.attempt_id
    assert not body.HasField("sequence_id")


def test_spans_of_a_process_share_their_resource():
    first = CODEC.encode(a_span(resource=SERVICE))
    second = span_record_from_bytes(span_to_bytes(a_span(span_id="ef" * 8, resource=SERVICE)), "span")
    third = span_record_from_proto(span_to_proto(a_span(span_id="12" * 8, resource=SERVICE)), "span")
    assert b"runner-0" in first.common
    assert b"runner-0" not in first.body
    assert first.common is second.common is third.common


def test_what_is_one_spans_alone_is_not_kept_among_what_spans_share():
    span = a_span(resource=SERVICE, note="an extra field")
    for record in (CODEC.encode(span), span_record_from_bytes(span_to_bytes(span), "span")):
        assert record.common == b""
        assert_same(decoded(record), span)


@pytest.mark.parametrize("size", [100, 127, 128, 16_383, 16_384, 300_000])
@pytest.mark.parametrize("resource_size", [1, COMMON_BYTES_MAX, 10 * COMMON_BYTES_MAX])
def test_spans_of_any_size_come_apart_and_together(size, resource_size):
    span = a_span(attributes={"text": "x" * size}, resource={"attributes": {"text": "y" * resource_size}})
    record = span_record_from_bytes(span_to_bytes(span), "span")
    assert span_record_to_bytes(record) == span_to_bytes(span)
    assert len(record.common) <= COMMON_BYTES_MAX
    assert_same(decoded(record), span)


def test_a_record_is_numbered_without_encoding_it_anew():
    message = span_to_proto(a_span())
    message.ClearField("sequence_id")
    record = span_record_from_bytes(message.SerializeToString(), "span")
    assert record.sequence_id is None
    numbered = span_pb2.Span.FromString(span_record_to_bytes(record._replace(sequence_id=2**62)))
    message.sequence_id = 2**62
    assert numbered == message


@pytest.mark.parametrize("order", ["ids last", "a field twice", "a field that is not known"])
def test_bytes_that_protobuf_would_write_otherwise_are_kept_too(order):
    span = a_span()
    ids = span_pb2.Span(rollout_id="ro-1", attempt_id="at-1", sequence_id=3).SerializeToString()
    *_, body, common = CODEC.encode(span)
    body += common
    data = {
        "ids last": body + ids,
        "a field twice": ids + span_pb2.Span(span={"name": "first"}).SerializeToString() + body + ids,
        "a field that is not known": ids + body + b"\xfa\x7f\x03new",
    }[order]
    record = span_record_from_bytes(data, "span")
    assert_same(decoded(record), span)
    assert (record.rollout_id, record.attempt_id, record.sequence_id) == ("ro-1", "at-1", 3)
    assert span_record_to_proto(record) == span_pb2.Span.FromString(data)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x02\xff\xfe", span_to_bytes(a_span())[:-1]])
def test_bytes_that_are_no_span_are_refused(data):
    with pytest.raises(InvalidArgumentError, match=r"spans\[2\] is malformed") as caught:
        span_record_from_bytes(data, "spans[2]")
    assert caught.value.details["field"] == "spans[2]"


# --- When a span is decoded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["message", "record"])
def test_a_span_is_decoded_when_it_is_looked_into(source):
    given_span = a_span(attributes={"a": 1})
    message = span_to_proto(given_span)
    span = at_first_look(message, "span") if source == "message" else decoded(CODEC.encode(given_span))
    assert type(span) is not Span
    assert_same(span, given_span)
    assert type(span) is Span


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (span_pb2.Span(), "spans[2].span"),
        (an_envelope(sequence_id=-1), "spans[2].sequence_id"),
        (with_otlp(span_id=b"123"), "spans[2].span.span_id"),
        (an_envelope(overlay_json='{"name": 5}'), "spans[2].name"),
    ],
)
def test_what_is_wrong_with_a_span_is_told_whenever_somebody_looks_into_it(message, field):
    span = at_first_look(message, "spans[2]")
    for name in ("name", "name", "model_dump"):
        with pytest.raises(InvalidArgumentError) as caught:
            getattr(span, name)
        assert caught.value.details["field"] == field


# --- What is written -------------------------------------------------------------------------------------------------


def test_otlp_tools_see_the_span_also_where_there_is_an_overlay():
    span = a_span(attributes={"big": 2**70, "bad": "\ud800x", "fine": 7}, note="extra", start_time=1.7e9)
    message = span_to_proto(span)
    values = {pair.key: pair.value for pair in message.span.attributes}
    assert values["big"].double_value == 2.0**70
    assert values["bad"].string_value == "?x"
    assert values["fine"].int_value == 7
    assert message.span.start_time_unix_nano == 17 * 10**17
    assert message.overlay_json == '{"attributes":{"big":1180591620717411303424,"bad":"\\ud800x"},"note":"extra"}'


def test_bytes_survive_beside_values_that_otlp_cannot_hold():
    span = a_span(attributes={"mixed": [b"\x00\xff", {"big": 2**64, "raw": b"\x01"}]})
    assert decoded(CODEC.encode(span)).attributes == span.attributes


def test_values_of_derived_types_are_written_as_what_they_are_derived_from():
    class Text(str):
        __slots__ = ()

    class Real(float):
        __slots__ = ()

    class Number(IntEnum):
        SMALL = 7
        LARGE = 2**70

    derived = {Text("key"): Text("value"), "real": Real(0.5), "small": Number.SMALL, "large": Number.LARGE}
    span = a_span(attributes={**derived, "list": (Text("a"), Number.SMALL, MappingProxyType({"b": Text("\ud800")}))})
    found = decoded(CODEC.encode(span)).attributes
    plain = {"key": "value", "real": 0.5, "small": 7, "large": 2**70}
    assert_same(found, {**plain, "list": ["a", 7, {"b": "\ud800"}]})


def test_what_is_remembered_of_attributes_does_not_mix_them_up():
    values = [
        True,
        1,
        1.0,
        "1",
        "",
        "\x01",
        b"1",
        b"",
        None,
        [],
        [1],
        ["1"],
        [True],
        [[]],
        {},
        -1,
        127,
        128,
        2**62,
        0.0,
    ]
    for _ in range(3):
        for value in values:
            for key in ("", "key", "k" * 200):
                assert_same(decoded(CODEC.encode(a_span(attributes={key: value}))).attributes, {key: value})


def test_any_number_of_keys_and_sizes_can_be_written():
    for start in range(0, REMEMBERED_MAX + 200, 100):
        given_values = {f"key-{start + number}": "x" * number for number in range(100)}
        assert decoded(CODEC.encode(a_span(attributes=given_values))).attributes == given_values


def test_what_is_remembered_of_keys_and_sizes_is_bounded():
    field = KeyValues(KeyValueList, "values")
    for number in range(2 * REMEMBERED_MAX):
        field.write({f"key-{number}": "x", "key": "x" * (number % SIZES_MAX), "k" * (CHARS_MAX + 1): number}, [], "")
        assert len(field._texts) + sum(map(len, field._texts.values())) <= REMEMBERED_MAX + 1
    known = set(field._texts)
    assert "key" in known
    for number in range(REMEMBERED_MAX):
        field.write({"k" * (CHARS_MAX + 1): "x" * (number % SIZES_MAX)}, [], "")
    assert set(field._texts) == known


@pytest.mark.parametrize("code", ["FINE", ["OK"], None])
def test_a_status_code_that_is_none_is_named(code):
    span = a_span()
    span.status.status_code = code
    with pytest.raises(InvalidArgumentError, match=r"span\.status\.status_code must be one of UNSET, OK, ERROR"):
        span_to_bytes(span)


def test_long_texts_are_not_remembered():
    made: list[str] = []

    def make(text: str) -> str:
        made.append(text)
        return text

    made_of = remembering(make)
    for text in ("x" * CHARS_MAX, "y" * (CHARS_MAX + 1)):
        assert [made_of(text), made_of(text)] == [text, text]
    assert [len(text) for text in made] == [CHARS_MAX, CHARS_MAX + 1, CHARS_MAX + 1]


def test_threads_write_the_same_attributes_at_the_same_time():
    field = KeyValues(KeyValueList, "values")

    def write(seed: int) -> list[dict[str, Any]]:
        wrong = []
        for number in range(2000):
            given_values = {f"key-{(seed + number) * step % 700}": "x" * (number % 97) for step in (1, 3, 7)}
            into: list[bytes] = []
            field.write(given_values, into, "")
            if read_attributes(KeyValueList.FromString(b"".join(into)).values) != given_values:
                wrong.append(given_values)
        return wrong

    with mock.patch.object(attributes, "REMEMBERED_MAX", 50), ThreadPoolExecutor(4) as threads:
        assert list(threads.map(write, range(4))) == [[]] * 4


@pytest.mark.parametrize("value", [None, 1, "text", {}, {"\ud801": None}, [None]])
def test_keys_that_utf8_has_not_keep_their_values(value):
    given_values = {"\ud800": value, "plain": {"\udfff": value, "x": 1}, "list": [{"\ud800": value}]}
    assert_same(decoded(CODEC.encode(a_span(attributes=given_values))).attributes, given_values)


@pytest.mark.parametrize("seconds", [math.nextafter(EXACT_FROM_SECONDS, 0), float(EXACT_FROM_SECONDS), 0.1, 0.0, 1e-9])
def test_times_are_exact_on_both_sides_of_where_nanoseconds_tell_them(seconds):
    span = a_span(start_time=seconds, end_time=math.nextafter(seconds, math.inf))
    assert_same(decoded(CODEC.encode(span)), span)


@pytest.mark.parametrize("size", [0, 1, SIZES_MAX, SIZES_MAX + 1, 2047, 2048, 2**14])
def test_values_of_any_size_can_be_written(size):
    for value in ("x" * size, "é" * size, b"x" * size, [True] * size, ["é"] * size):
        assert_same(decoded(CODEC.encode(a_span(attributes={"key": value}))).attributes, {"key": value})


@pytest.mark.parametrize("deep", [20, 90])
def test_deep_attributes_survive_although_protobuf_would_refuse_to_parse_them(deep):
    value: Any = "bottom"
    for _ in range(deep):
        value = {"k": value}
    span = a_span(attributes={"deep": value})
    request = span_pb2.AddSpansRequest(spans=[span_to_proto(span)])
    [parsed] = through_bytes(request).spans
    assert at_first_look(parsed, "span") == span


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"attributes": {"a": {"b": [object()]}}}, "span.attributes.a.b[0]"),
        ({"attributes": {"a": {1: 2}}}, "span.attributes.a"),
        ({"events": [{"name": "e", "attributes": {"x": {1, 2}}}]}, "span.events[0].attributes.x"),
        ({"extra": b"bytes"}, "span.extra"),
    ],
)
def test_what_cannot_be_held_is_refused_with_its_place(fields, place):
    with pytest.raises(NotJsonError) as caught:
        CODEC.encode(a_span(**fields))
    assert caught.value.details["path"] == place


def changed(**fields):
    """A span with fields that nobody has validated."""
    span = a_span(
        context={"trace_id": "ab" * 16, "span_id": "cd" * 8, "is_remote": False, "trace_state": {}},
        events=[{"name": "e"}],
        links=[{"context": {"trace_id": "ab" * 16, "span_id": "cd" * 8, "is_remote": False, "trace_state": {}}}],
    )
    for name, value in fields.items():
        *path, last = name.split("__")
        target = reduce(lambda at, step: at[int(step)] if step.isdecimal() else getattr(at, step), path, span)
        setattr(target, last, value)
    return span


@pytest.mark.parametrize(
    "span",
    [
        changed(name=5),
        changed(sequence_id=True),
        changed(sequence_id=-1),
        changed(start_time=-1.0),
        changed(end_time=float("nan")),
        changed(trace_id=None),
        changed(attributes=None),
        changed(events=None),
        changed(links=7),
        changed(kind="ODD"),
        changed(status=None),
        changed(status__status_code="ODD"),
        changed(status__description=5),
        changed(context__trace_state=None),
        changed(context__trace_state={"a": 1}),
        changed(context__is_remote="perhaps"),
        changed(parent={"trace_id": "ab" * 16}),
        changed(resource=None),
        changed(resource__attributes=None),
        changed(resource__schema_url=None),
        changed(events__0__timestamp=-1.0),
        changed(events__0__timestamp=1e10),
        changed(events__0__timestamp=float("inf")),
        changed(events__0__name=None),
        changed(links__0__context=None),
        changed(links__0__attributes=[]),
        Span.model_construct(rollout_id="ro-1", attempt_id="at-1", sequence_id=1, span_id="cd" * 8),
    ],
)
def test_a_span_that_was_made_illegal_is_refused_before_it_is_stored(span):
    with pytest.raises(InvalidArgumentError, match=r"^span"):
        CODEC.encode(span)


def test_times_that_are_not_whole_nanoseconds_come_back_exactly():
    for seconds in (0.0, 5e-324, 1e-10, 0.1, 123.456789012345, 1.7e9 + 0.1):
        assert decoded(CODEC.encode(a_span(start_time=seconds))).start_time == seconds


@pytest.mark.parametrize("odd", ["AB" * 16, "ab cd" * 6 + "ab", "zz" * 16, "", "ab", "\ud800"])
def test_ids_that_are_not_lower_case_hex_of_the_right_length_come_back_exactly(odd):
    context = {"trace_id": odd, "span_id": odd, "is_remote": False, "trace_state": {}}
    span = a_span(trace_id=odd, span_id=odd[:16], parent_id=odd[:16], context=context, links=[{"context": context}])
    assert_same(decoded(CODEC.encode(span)), span)


@pytest.mark.parametrize(
    "state", [{"a": "1", "b": "2"}, {"a,b": "1"}, {"a": " 1"}, {"a": "x=y"}, {"": ""}, {"ü": "\udfff"}]
)
def test_trace_state_comes_back_exactly(state):
    own = {"trace_id": "ab" * 16, "span_id": "cd" * 8, "is_remote": True, "trace_state": state}
    for parent in (None, own, {**own, "trace_state": {}}, {**own, "trace_state": {"other": "1"}, "trace_flags": 3}):
        for context in (None, own, {**own, "trace_flags": 9}):
            span = a_span(context=context, parent=parent)
            assert_same(decoded(CODEC.encode(span)), span)


def test_trace_flags_are_in_otlp():
    context = {"trace_id": "ab" * 16, "span_id": "cd" * 8, "is_remote": False, "trace_state": {}}
    for given_flags, otlp_flags, overlaid in ((None, 1, False), (3, 3, False), (0, 0, True)):
        extra = {} if given_flags is None else {"trace_flags": given_flags}
        message = span_to_proto(a_span(context={**context, **extra}))
        assert message.span.flags & 0xFF == otlp_flags
        assert bool(message.overlay_json) is overlaid


# --- From outside ----------------------------------------------------------------------------------------------------


def test_a_plain_otlp_span_is_taken():
    message = span_pb2.Span(rollout_id="ro-1", attempt_id="at-1")
    message.span.trace_id, message.span.span_id, message.span.name = b"t" * 16, b"s" * 8, "plain"
    record = span_record_from_proto(message, "spans[0]")
    assert record.sequence_id is None
    assert record.parent_id is None
    assert record.trace_id == "74" * 16
    assert at_first_look(message, "span").name == "plain"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (span_pb2.Span(), "spans[2].rollout_id"),
        (span_pb2.Span(rollout_id="r"), "spans[2].attempt_id"),
        (span_pb2.Span(rollout_id="r", attempt_id="a"), "spans[2].span"),
        (an_envelope(sequence_id=-1), "spans[2].sequence_id"),
        (with_otlp(trace_id=b""), "spans[2].span.trace_id"),
        (with_otlp(span_id=b"123"), "spans[2].span.span_id"),
        (with_otlp(parent_span_id=b"123"), "spans[2].span.parent_span_id"),
        (with_otlp(kind=17), "spans[2].span.kind"),
        (with_otlp(end_time_unix_nano=2**64 - 1), "spans[2].span.end_time_unix_nano"),
        (an_envelope(overlay_json="{"), "spans[2].overlay_json"),
        (an_envelope(overlay_json="[]"), "spans[2].overlay_json"),
        (an_envelope(overlay_json='{"rollout_id": "other"}'), "spans[2].overlay_json"),
        (an_envelope(overlay_json='{"events": {"0": {}}}'), "spans[2].overlay_json"),
        (an_envelope(overlay_json='{"name": 5}'), "spans[2].name"),
        (an_envelope(overlay_json='{"start_time": -1}'), "spans[2].start_time"),
        (an_envelope(overlay_json='{"status": null}'), "spans[2].status"),
    ],
)
def test_a_bad_span_is_refused_with_its_field(message, field):
    with pytest.raises(InvalidArgumentError) as caught:
        span_record_from_proto(message, "spans[2]")
    assert caught.value.details["field"] == field
    assert str(caught.value).startswith(field)


def any_values():
    leaves = st.one_of(
        st.builds(AnyValue),
        st.builds(AnyValue, string_value_strindex=st.integers(0, 5)),
        st.builds(AnyValue, bytes_value=st.binary(max_size=3)),
        st.builds(AnyValue, double_value=st.floats()),
        st.builds(AnyValue, int_value=st.integers(-5, 5)),
    )
    return st.lists(st.builds(KeyValue, key=st.text(max_size=1), value=leaves), max_size=3)


@st.composite
def wild_envelopes(draw):
    """Envelopes with fields that may each be legal or not."""
    message = span_pb2.Span(rollout_id=draw(st.sampled_from(["r", ""])), attempt_id="a")
    otlp = message.span
    otlp.trace_id = draw(st.sampled_from([b"t" * 16, b"t" * 16, b"", b"x"]))
    otlp.span_id = draw(st.sampled_from([b"s" * 8, b"s" * 8, b"", b"x"]))
    otlp.kind = draw(st.sampled_from([0, 1, 5, 6, -1]))
    otlp.status.code = draw(st.sampled_from([0, 1, 2, 3]))
    otlp.flags = draw(st.integers(0, 2**32 - 1))
    otlp.trace_state = draw(st.sampled_from(["", "a=b,c=d", "=,=,", "x"]))
    otlp.start_time_unix_nano = draw(st.sampled_from([0, 1, 17 * 10**17, 2**64 - 1]))
    otlp.attributes.extend(draw(any_values()))
    event = otlp.events.add(time_unix_nano=draw(st.sampled_from([0, 2**64 - 1])))
    event.attributes.extend(draw(any_values()))
    otlp.links.add(trace_id=draw(st.sampled_from([b"", b"x", b"t" * 16])))
    message.has_context, message.has_parent = draw(st.booleans()), draw(st.booleans())
    overlay = st.sampled_from(["", "", "{}", "null", '{"kind":"ODD"}', '{"links":{"0":{"context":null}}}', '{"a":1}'])
    message.overlay_json = draw(overlay)
    return message


@given(wild_envelopes())
def test_what_the_server_takes_every_reader_can_decode(message):
    try:
        record = span_record_from_proto(message, "span")
    except InvalidArgumentError:
        return
    span = decoded(record._replace(sequence_id=1))
    assert (span.trace_id, span.span_id, span.parent_id) == (record.trace_id, record.span_id, record.parent_id)
    assert (span.name, span.start_time, span.end_time) == (record.name, record.start_time, record.end_time)
