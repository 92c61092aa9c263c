"""Span documents: nothing is lost, what cannot be held is refused with its place, and nothing bad gets in."""

from __future__ import annotations

import base64
import json
import math
import struct
import uuid
from collections import OrderedDict, namedtuple
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_store.errors import InvalidArgumentError, NotJsonError
from lightning_store.json_text import DIGITS_MAX
from lightning_store.model import TIME_MAX_SECONDS, Event, Span
from lightning_store.spans.document import (
    ID_FIELDS,
    attribute_filter,
    decode,
    document_schema,
    encode,
    project,
    validate,
)
from lightning_store.spans.exact import DEPTH_MAX
from lightning_store.testing import strategies
from lightning_store.text import column_text
from tests.wire.same import assert_same

SMALLEST = {"rollout_id": "ro-1", "attempt_id": "at-1", "trace_id": "ab" * 16, "span_id": "cd" * 8, "name": "step"}
HIGH, LOW = "\ud800", "\udfff"  # lone surrogates, as keys
CONTEXT = {"trace_id": "ab" * 16, "span_id": "cd" * 8, "is_remote": False, "trace_state": {}}


def a_span(**fields: Any) -> Span:
    return Span.model_validate({**SMALLEST, "sequence_id": 3, **fields})


def again(span: Span) -> Span:
    """The span that a reader gets, after a server has checked the document."""
    record = encode(span)
    document, sequence_id = record.document, record.sequence_id
    assert validate(document, sequence_id) == validate(document.decode(), sequence_id) == record
    json.loads(document, parse_constant=pytest.fail)
    assert sequence_id is not None
    return decode(document, sequence_id)


def a_document(**members: Any) -> str:
    return json.dumps({**SMALLEST, **members}, ensure_ascii=False)


def with_text(members: str) -> str:
    """A document whose last members are this text."""
    return f"{a_document()[:-1]},{members}}}"


def nested(levels: int, inmost: Any = 0) -> Any:
    return reduce(lambda inner, level: [inner] if level % 2 else {"a": inner}, range(levels), inmost)


def refused(document: str | bytes) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        validate(document, field="spans[2]")
    assert str(caught.value).startswith("spans[2]")
    return caught.value


# --- Round trips -----------------------------------------------------------------------------------------------------


@given(strategies.spans())
def test_any_span_comes_back(span: Span):
    assert_same(again(span), span)


@given(strategies.usual_spans())
def test_a_usual_span_comes_back_and_is_plain_json_but_for_bytes(span: Span):
    assert_same(again(span), span)
    [document] = [json.loads(encode(span).document)]
    assert document.keys() - {"$exact"} == Span.model_fields.keys() - {"sequence_id"}


@given(st.floats(0, TIME_MAX_SECONDS), st.floats(0, TIME_MAX_SECONDS))
def test_times_come_back_exactly(start: float, end: float):
    span = again(a_span(start_time=start, end_time=end))
    assert struct.pack("<2d", span.start_time, span.end_time) == struct.pack("<2d", start, end)


@given(st.lists(st.floats(allow_nan=False), max_size=5))
def test_floats_come_back_exactly(numbers: list[float]):
    found = again(a_span(attributes={"x": numbers})).attributes["x"]
    assert struct.pack(f"<{len(numbers)}d", *found) == struct.pack(f"<{len(numbers)}d", *numbers)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x00\xff",
        math.nan,
        math.inf,
        -math.inf,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        1.0,
        1e22,
        10**40,
        -(2**63) - 1,
        10**DIGITS_MAX - 1,
        1 - 10 ** (DIGITS_MAX - 1),
        "",
        "\0",
        "\ud800",
        "a\udfffb",
        "\U0001f600",
        "\u2028",
        '"$exact"',
        "NaN",
        "-Infinity",
        "7" * 9000,
        "[" * 300,
        "\\" * 7,
        True,
        None,
        [],
        {},
        [[]],
        [1, True, 1.0, "1", None, b"1"],
        [True, False],
        [1, 2.5],
        [1.5, math.nan, -math.inf, b"x", "\ud800"],
        [b"", [b"\xff", {"a": b"\x01"}]],
        {"$exact": 1, "sequence_id": 2, "/": math.nan, "~": b"x", "~1/~0": "\ud800", "": b"", "0": math.inf},
        {"\ud800": 1},
        {HIGH: b"x", "\ufffd": 2, "\ufffd\ufffd": 3, LOW: {HIGH: math.nan, LOW: "\ud803"}},
    ],
)
def test_odd_values_come_back_wherever_they_are(value: Any):
    odd = {"x": value, "list": [0, value], "dict": {"y": value}}
    span = a_span(
        attributes=odd,
        events=[{"name": "e", "attributes": odd, "x": value}],
        links=[{"context": {**CONTEXT, "x": value}, "attributes": odd, "x": value}],
        resource={"attributes": odd, "x": value},
        scope={"attributes": odd, "x": value},
        status={"status_code": "OK", "x": value},
        context={**CONTEXT, "x": value},
        parent={**CONTEXT, "x": value},
        x_extra=value,
        _private=value,
    )
    assert_same(again(span), span)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\0"])
def test_odd_text_comes_back_in_every_field_but_the_ids(text: str):
    context = {"trace_id": text, "span_id": text, "is_remote": True, "trace_state": {text: text, "a": text}}
    span = a_span(
        name=text,
        status={"status_code": "ERROR", "description": text},
        events=[{"name": text}],
        links=[{"context": context}],
        context=context,
        resource={"schema_url": text},
        scope={"name": text, "version": text, "schema_url": text},
    )
    assert_same(again(span), span)
    assert encode(span).name == column_text(text)


@pytest.mark.parametrize(
    ("name", "column"), [("é", "é"), ("\ud800x", "\ufffdx"), ("a\0é", "a\ufffdé"), ("\0", "\ufffd")]
)
def test_the_column_of_a_name_is_text_for_every_database(name: str, column: str):
    record = encode(a_span(name=name))
    assert record.name == column_text(name) == validate(record.document).name == column


def test_numbers_that_a_newer_otlp_has_for_kinds_and_status_codes_are_kept():
    span = a_span(kind=99, status={"status_code": 7})
    assert_same(again(span), span)


@pytest.mark.parametrize("odd", ["AB" * 16, "zz", "", "データ", '"', "\u2028"])
def test_ids_need_not_be_hexadecimal(odd: str):
    span = a_span(trace_id=odd, span_id=odd, parent_id=odd, rollout_id=f"r{odd}", attempt_id=f"a{odd}")
    assert_same(again(span), span)


class Text(str):
    __slots__ = ()


class Real(float):
    __slots__ = ()


class Number(IntEnum):
    SMALL = 7
    LARGE = 2**70


class Colour(str, Enum):  # noqa: UP042 - the older way to write it, which users have
    RED = "red"


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize("more", [{}, {"odd": b"x"}])
def test_values_of_derived_types_are_written_as_what_they_are_derived_from(more: dict[str, Any]):
    derived = {
        Text("key"): Text("value"),
        "real": Real(0.5),
        "numpy": np.float64(0.1),
        "small": Number.SMALL,
        "large": Number.LARGE,
        "colour": Colour.RED,
        Colour.RED: 1,
        "tuple": (Text("a"), Number.SMALL, (1.5,)),
        "pair": Pair(1, "x"),
        "mapping": MappingProxyType({"b": Text("c")}),
        "ordered": OrderedDict(z=1, a=2),
    }
    plain = {
        "key": "value",
        "real": 0.5,
        "numpy": 0.1,
        "small": 7,
        "large": 2**70,
        "colour": "red",
        "red": 1,
        "tuple": ["a", 7, [1.5]],
        "pair": [1, "x"],
        "mapping": {"b": "c"},
        "ordered": {"z": 1, "a": 2},
    }
    assert_same(again(a_span(attributes={**derived, **more})).attributes, {**plain, **more})


def test_a_subclass_of_span_keeps_its_fields_as_extra_fields():
    class Wider(Span):
        colour: str

    span = again(Wider.model_validate({**SMALLEST, "sequence_id": 1, "colour": "red", "other": [1]}))
    assert type(span) is Span
    assert span.model_extra == {"colour": "red", "other": [1]}


def test_the_span_is_not_changed():
    span = a_span(attributes={"raw": b"x", "\ud800": (1, math.nan)}, events=[{"name": "\ud800"}])
    before = span.model_copy(deep=True)
    encode(span)
    assert_same(span, before)


# --- What cannot be written ------------------------------------------------------------------------------------------


class Plain(Enum):
    ONE = 1


class HasFloat:
    def __float__(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        frozenset(),
        bytearray(b"x"),
        memoryview(b"x"),
        datetime.now(UTC),
        Decimal(1),
        Fraction(1, 2),
        HasFloat(),
        1j,
        uuid.UUID(int=1),
        Plain.ONE,
        np.float32(1),
        np.int64(1),
        np.array([1]),
        a_span(),
        iter([1]),
        range(3),
        {1: 2},
        {None: 1},
        {b"x": 1},
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("beside", [{}, {"odd": b"x"}], ids=["alone", "beside-bytes"])
def test_what_json_would_change_is_a_type_error_with_its_place(value: Any, beside: dict[str, Any]):
    places = {
        "span.attributes.a": a_span(attributes={**beside, "a": value}),
        "span.attributes.a[1]": a_span(attributes={**beside, "a": [1.5, value]}),
        "span.attributes.a.b[0]": a_span(attributes={**beside, "a": {"b": (value,)}}),
        "span.events[0].attributes.x": a_span(events=[{"name": "e", "attributes": {**beside, "x": value}}]),
        "span.extra": a_span(extra=value, **beside),
        "span.resource.extra": a_span(resource={"extra": value, **beside}),
    }
    for place, span in places.items():
        with pytest.raises(TypeError) as caught:
            encode(span)
        assert isinstance(caught.value, NotJsonError)
        assert caught.value.details == {"path": place}


@pytest.mark.parametrize("number", [10**DIGITS_MAX, -(10 ** (DIGITS_MAX - 1))], ids=["positive", "negative"])
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [1, n], lambda n: {"a": (n, b"x")}, lambda n: [n, "\ud800"]])
def test_integers_that_no_reader_takes_are_a_type_error(number: int, wrap: Any):
    with pytest.raises(NotJsonError, match=f"has an integer of more than {DIGITS_MAX} digits; give it as text"):
        encode(a_span(attributes={"n": wrap(number)}))


@pytest.mark.parametrize("inmost", [0, b"x", "\ud800"])
def test_a_span_has_so_many_levels_at_most(inmost: Any):
    deepest = a_span(attributes={"a": nested(DEPTH_MAX - 2, inmost), "wide": [[]] * 300})
    assert_same(again(deepest), deepest)
    for levels in (DEPTH_MAX - 1, 190, 300, 2000):
        with pytest.raises(NotJsonError, match=rf"^span\.attributes\.a.* at most {DEPTH_MAX} levels; make it flatter"):
            encode(a_span(attributes={"a": nested(levels, inmost), "wide": [[]] * 300}))


def test_a_value_that_contains_itself_is_too_deep():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotJsonError, match="nested too deeply"):
        encode(a_span(attributes={"loop": loop}))


@pytest.mark.parametrize("name", ID_FIELDS)
@pytest.mark.parametrize(("text", "problem"), [("a\ud800", "a lone surrogate"), ("a\0", "the character U\\+0000")])
def test_ids_that_a_database_cannot_hold_are_refused(name: str, text: str, problem: str):
    with pytest.raises(InvalidArgumentError, match=rf"^span\.{name} has {problem}, which ids must not have") as caught:
        encode(a_span(**{name: text}))
    assert caught.value.details == {"field": f"span.{name}"}


@pytest.mark.parametrize("name", ["rollout_id", "attempt_id"])
def test_a_span_without_an_owner_is_refused(name: str):
    with pytest.raises(InvalidArgumentError, match=rf"^span\.{name} is missing") as caught:
        encode(a_span(**{name: ""}))
    assert caught.value.details == {"field": f"span.{name}"}


@pytest.mark.parametrize("value", [1, None, b"x"])
def test_the_reserved_name_is_refused(value: Any):
    with pytest.raises(InvalidArgumentError, match=r"^span\.\$exact is a reserved name"):
        encode(a_span(**{"$exact": value}))


def test_a_document_that_is_too_large_is_refused():
    size = len(encode(a_span()).document)
    assert encode(a_span(), bytes_max=size)
    with pytest.raises(
        InvalidArgumentError, match=f"^span has {size} bytes as a document; at most {size - 1} are taken"
    ):
        encode(a_span(), bytes_max=size - 1)


def changed(**fields: Any) -> Span:
    """A span with fields that nobody has validated."""
    span = a_span(context=CONTEXT, events=[{"name": "e"}], links=[{"context": CONTEXT}])
    for name, value in fields.items():
        *path, last = name.split("__")
        target: Any = span
        for step in path:
            target = target[int(step)] if step.isdecimal() else getattr(target, step)
        setattr(target, last, value)
    return span


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5),
        ("name", None),
        ("sequence_id", True),
        ("sequence_id", -1),
        ("sequence_id", 2**63),
        ("sequence_id", 1.0),
        ("sequence_id", None),
        ("start_time", -1.0),
        ("start_time", "5"),
        ("start_time", True),
        ("end_time", math.nan),
        ("end_time", TIME_MAX_SECONDS * 2.0),
        ("trace_id", None),
        ("span_id", b"x"),
        ("parent_id", 7),
        ("attributes", None),
        ("attributes", []),
        ("events", None),
        ("events", [None]),
        ("links", 7),
        ("kind", "ODD"),
        ("kind", 3),
        ("kind", True),
        ("status", None),
        ("status__status_code", "ODD"),
        ("status__status_code", ["OK"]),
        ("status__status_code", None),
        ("status__description", 5),
        ("context__trace_state", None),
        ("context__trace_state", {"a": 1}),
        ("context__is_remote", "perhaps"),
        ("context__is_remote", 1),
        ("parent", {"trace_id": "ab" * 16}),
        ("parent", Event(name="e")),
        ("resource", None),
        ("resource__attributes", None),
        ("resource__schema_url", None),
        ("events__0__timestamp", -1.0),
        ("events__0__timestamp", 1e10),
        ("events__0__timestamp", math.inf),
        ("events__0__name", None),
        ("links__0__context", None),
        ("links__0__attributes", []),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"attributes": {"odd": b"x"}}], ids=["alone", "beside-bytes"])
def test_a_span_that_was_made_illegal_is_refused(field: str, value: Any, beside: dict[str, Any]):
    span = changed(**{**beside, field: value})
    with pytest.raises(InvalidArgumentError, match=r"^span\.") as caught:
        encode(span)
    path = caught.value.details["field"].replace("[", "__").replace("]", "").replace(".", "__")
    assert path.startswith(f"span__{field}")


def test_a_span_without_its_fields_is_refused():
    with pytest.raises(InvalidArgumentError) as caught:
        encode(Span.model_construct(rollout_id="ro-1", attempt_id="at-1", sequence_id=1, span_id="cd" * 8))
    assert str(caught.value) == "span.trace_id: Field required; span.name: Field required"


# --- What a server takes ---------------------------------------------------------------------------------------------


def test_absent_means_default():
    document = a_document()
    assert validate(document) == (
        *("ro-1", "at-1", "ab" * 16, "cd" * 8, None, "step", None, None),
        *(None, document.encode(), None),
    )
    assert_same(decode(a_document(), 7), a_span(sequence_id=7))


@pytest.mark.parametrize("space", ["", " ", "\n\t "])
def test_space_around_a_document_is_fine(space: str):
    document = f"{space}{json.dumps({**SMALLEST, 'attributes': {'raw': 'AA=='}}, indent=2)}{space}"
    validate(document)
    assert decode(document, 3) == a_span(attributes={"raw": "AA=="})


@pytest.mark.parametrize("first", ['"first"', "5", "null", '{"a":[]}'])
@pytest.mark.parametrize("more", [0, 30])
def test_of_equal_keys_the_last_counts(first: str, more: int):
    extra = "".join(f'"x{number}":1,' for number in range(more))
    document = (
        f'{{"name":{first},{extra}"attributes":{{"a":1,"a":2}},"trace_id":"old",{a_document()[1:-1]},"name":"last"}}'
    )
    columns = validate(document)
    span = decode(document, 1)
    assert (columns.name, span.name, columns.trace_id, span.trace_id) == ("last", "last", "ab" * 16, "ab" * 16)
    assert span.attributes == {"a": 2}


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        ("", "spans[2]", "is missing; it must be the JSON document of a span"),
        ("{", "spans[2]", "is not JSON"),
        ("{}", "spans[2].rollout_id", "Field required"),
        ("[]", "spans[2]", "should be an object"),
        ("null", "spans[2]", "should be an object"),
        ("7", "spans[2]", "should be an object"),
        (f"{a_document()} x", "spans[2]", "is not JSON: trailing characters"),
        (f"\ufeff{a_document()}", "spans[2]", "is not JSON"),
        (b'{"name":"\xff"}', "spans[2]", "is not JSON"),
        (a_document(rollout_id=""), "spans[2].rollout_id", "is missing"),
        (a_document(attempt_id=""), "spans[2].attempt_id", "is missing"),
        (a_document(span_id="a\0"), "spans[2].span_id", "U+0000"),
        (a_document(parent_id="\0"), "spans[2].parent_id", "U+0000"),
        (with_text('"span_id":"\\ud800"'), "spans[2]", "is not JSON"),
        (a_document(sequence_id=1), "spans[2].sequence_id", "Set it beside the document"),
        (a_document(sequence_id=None), "spans[2].sequence_id", "Set it beside the document"),
        (a_document(name=None), "spans[2].name", "valid string"),
        (a_document(name=5), "spans[2].name", "valid string"),
        (a_document(start_time="5"), "spans[2].start_time", "valid number"),
        (a_document(start_time=-1), "spans[2].start_time", "greater than or equal to 0"),
        (a_document(start_time=1e10), "spans[2].start_time", "less than or equal to"),
        (with_text('"start_time":1e999'), "spans[2].start_time", "finite"),
        (a_document(status=None), "spans[2].status", "object"),
        (a_document(status={"status_code": "ODD"}), "spans[2].status.status_code", "'OK'"),
        (a_document(kind="ODD"), "spans[2].kind", "'SERVER'"),
        (a_document(kind=2), "spans[2].kind", "or an integer from 6"),
        (a_document(kind=2.5), "spans[2].kind", "or an integer from 6"),
        (a_document(attributes=[]), "spans[2].attributes", "object"),
        (a_document(attributes=None), "spans[2].attributes", "object"),
        (a_document(events=None), "spans[2].events", "array"),
        (a_document(events=[{}]), "spans[2].events[0].name", "Field required"),
        (a_document(events=[{"name": "e", "attributes": 7}]), "spans[2].events[0].attributes", "object"),
        (
            a_document(links=[{"context": {**CONTEXT, "is_remote": 1}}]),
            "spans[2].links[0].context.is_remote",
            "boolean",
        ),
        (a_document(context={**CONTEXT, "trace_state": {"a": 1}}), "spans[2].context.trace_state.a", "valid string"),
        (a_document(resource={"attributes": "x"}), "spans[2].resource.attributes", "object"),
        (a_document(scope={"name": None}), "spans[2].scope.name", "valid string"),
    ],
)
def test_a_bad_document_is_refused_with_its_field(document: str | bytes, field: str, message: str):
    error = refused(document)
    assert error.details == {"field": field}
    assert message in str(error)


def test_an_error_names_the_first_problems_only():
    state = {"x" * 10_000: 5}
    error = refused(a_document(events=[{}] * 1000, context={**CONTEXT, "trace_state": state}))
    assert error.details["field"] == "spans[2].events[0].name"
    assert str(error).endswith("spans[2].events[4].name: Field required; and 996 more")
    assert len(str(refused(a_document(context={**CONTEXT, "trace_state": state})))) < 200


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    "place", ['"a":%s', '"attributes":{"a":%s}', '"attributes":{"NaN":[1, %s ]}', '"x":{"\\"":%s}']
)
def test_tokens_that_json_does_not_have_are_refused(token: str, place: str):
    assert "is not JSON: NaN and Infinity" in str(refused(with_text(place % token)))
    validate(with_text(place % f'"{token}\\\\"'))


@pytest.mark.parametrize(
    "token", ["01", "+1", ".5", "1.", "1,", "'x'", "undefined", "True", '"\x01"', "/*x*/1", "1" * 4301]
)
def test_what_only_looks_like_json_is_refused(token: str):
    assert "is not JSON" in str(refused(with_text(f'"a":[{token}]')))


@pytest.mark.parametrize("token", ["1" * 4300, "-" + "1" * 4299, "0." + "1" * 4300, '"' + "1" * 9000 + '"'])
def test_numbers_have_so_many_digits_at_most(token: str):
    validate(with_text(f'"a":{token}'))
    if '"' not in token:
        assert "digits" in str(refused(with_text(f'"a":{token}1'))) or "out of range" in str(
            refused(with_text(f'"a":{token}1'))
        )


def test_a_number_beyond_floats_reads_as_infinity():
    document = with_text('"attributes":{"a":1e999,"b":-1e999}')
    validate(document)
    span = decode(document, 3)
    assert span.attributes == {"a": math.inf, "b": -math.inf}
    assert_same(again(span), span)


@pytest.mark.parametrize("levels", [DEPTH_MAX - 2, DEPTH_MAX - 1, 197, 198, 250, 100_000])
@pytest.mark.parametrize("wrap", ["[", '{"a":'])
@pytest.mark.parametrize("beside", ["", '"s":"]]]]\\"}}",' + ",".join(f'"w{n}":[]' for n in range(300)) + ","])
def test_documents_have_so_many_levels_at_most(levels: int, wrap: str, beside: str):
    close = "]" if wrap == "[" else "}"
    document = with_text(f'"attributes":{{{beside}"a":{wrap * levels}0{close * levels}}}')
    if levels > DEPTH_MAX - 2:
        assert "nested too deeply" in str(refused(document)) or "recursion limit" in str(refused(document))
    else:
        validate(document)
        decode(document, 1)


def test_documents_are_so_large_at_most():
    document = a_document(name="é")
    size = len(document.encode())
    validate(document, bytes_max=size)
    with pytest.raises(InvalidArgumentError, match=f"has {size} bytes as a document; at most {size - 1} are taken"):
        validate(document, bytes_max=size - 1)


@pytest.mark.parametrize("document", ["", "{", "[]", "null", "{}", '{"name":5}', b"\xff", with_text('"$exact":1')])
def test_reading_what_was_never_checked_is_an_error_too(document: str | bytes):
    with pytest.raises(InvalidArgumentError):
        decode(document, 1)


# --- Exact values ----------------------------------------------------------------------------------------------------


def test_what_stands_where():
    span = a_span(
        name="a\ud800",
        attributes={"raw": b"\x00\xff", "list": [1.5, math.nan], "/~": -math.inf, HIGH: 1, "\ufffd": 2, LOW: b""},
    )
    document = json.loads(encode(span).document)
    assert document["name"] == "a\ufffd"
    assert document["attributes"] == {
        "raw": "AP8=",
        "list": [1.5, None],
        "/~": None,
        "\ufffd\ufffd": 1,
        "\ufffd": 2,
        "\ufffd\ufffd\ufffd": "",
    }
    assert document["$exact"] == {
        "/name": {"utf16": base64.b64encode(b"\x00a\xd8\x00").decode()},
        "/attributes/raw": {"bytes": "AP8="},
        "/attributes/list/1": {"float": "NaN"},
        "/attributes/~1~0": {"float": "-Infinity"},
        "/attributes/\ufffd\ufffd": {"key": base64.b64encode(b"\xd8\x00").decode()},
        "/attributes/\ufffd\ufffd\ufffd": {"key": base64.b64encode(b"\xdf\xff").decode(), "bytes": ""},
    }


def test_the_member_is_found_however_its_name_is_written():
    document = with_text('"attributes":{"a":"AA=="},"\\u0024exact":{"/attributes/a":{"bytes":"AA=="}}')
    validate(document)
    assert decode(document, 3).attributes == {"a": b"\x00"}


@pytest.mark.parametrize(
    "exact",
    [
        1,
        None,
        [],
        {"/attributes/a": 1},
        {"/attributes/a": {}},
        {"/attributes/a": {"bytes": "*"}},
        {"/attributes/a": {"bytes": "AP8"}},
        {"/attributes/a": {"bytes": None}},
        {"/attributes/a": {"bytes": "AA==", "float": "NaN"}},
        {"/attributes/a": {"float": "nan"}},
        {"/attributes/a": {"float": 1}},
        {"/attributes/a": {"utf16": "AA=="}},
        {"/attributes/a": {"utf16": "x"}},
        {"/attributes/a": {"int": "7"}},
        {"/attributes/b": {"float": "NaN"}},
        {"/attributes/list/2": {"float": "NaN"}},
        {"/attributes/list/01": {"float": "NaN"}},
        {"/attributes/list/-": {"float": "NaN"}},
        {"/attributes/list/\u0661": {"float": "NaN"}},
        {"/attributes/list/" + "9" * 5000: {"float": "NaN"}},
        {"/attributes/a/b": {"float": "NaN"}},
        {"attributes/a": {"float": "NaN"}},
        {"": {"float": "NaN"}},
        {"/": {"float": "NaN"}},
        {"/$exact": {"float": "NaN"}},
        {"/sequence_id": {"float": "NaN"}},
        {"/span_id": {"utf16": "2AA="}},
        {"/start_time": {"float": "NaN"}},
        {"/attributes": {"bytes": "AA=="}},
        {"/name": {"bytes": "AA=="}},
        {"/name": {"key": "AGE="}},
        {"/attributes/list/0": {"key": "AGE="}},
        {"/attributes/a": {"key": base64.b64encode("list".encode("utf-16-be")).decode()}},
        {"/span_id": {"key": "AGE="}},
    ],
)
def test_a_bad_member_is_refused(exact: Any):
    error = refused(a_document(attributes={"a": None, "list": [None, 1]}, start_time=1, **{"$exact": exact}))
    assert error.details["field"].startswith("spans[2]")


def test_keys_cannot_bring_in_a_sequence_id_or_take_away_a_field():
    for key in ("sequence_id", "$exact", "trace_id"):
        entry = {"key": base64.b64encode(key.encode("utf-16-be")).decode()}
        refused(a_document(extra=1, **{"$exact": {"/extra": entry}}))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
MEMBERS = [*Span.model_fields, "status_code", "a", "$exact"]
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=20,
)
POINTERS = st.sampled_from(["/attributes/a", "/name", "/attributes", "/x", "/events/0", "/attributes/a/0", "/kind"])
ENTRIES = st.sampled_from([{"bytes": "AA=="}, {"float": "NaN"}, {"utf16": "2AA="}, {"key": "2AA="}, {"key": "AGE="}])


@given(st.dictionaries(st.sampled_from(MEMBERS), TREES, max_size=4), st.dictionaries(POINTERS, ENTRIES, max_size=2))
def test_what_the_server_takes_every_reader_can_decode(members: dict[str, Any], exact: dict[str, Any]):
    document = a_document(**{**members, **({"$exact": exact} if exact else {})})
    try:
        record = validate(document, 1)
    except InvalidArgumentError:
        return
    span = decode(document, 1)
    assert encode(span)._replace(document=record.document) == record
    assert_same(again(span), span)


# --- Some of the attributes ------------------------------------------------------------------------------------------


TRICKY = st.text(st.sampled_from('[]01,."\\\\u05bé '), max_size=12)
ARRAYS = st.lists(
    st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TRICKY
    | st.lists(st.integers(), max_size=3)
)


@given(st.dictionaries(TRICKY, ARRAYS | TRICKY, max_size=5), st.sets(TRICKY, max_size=3), TRICKY, st.booleans())
def test_a_span_is_reduced_to_some_of_its_attributes(
    attributes: dict[str, Any], wanted: set[str], name: str, escape: bool
):
    fields = {**SMALLEST, "name": name, "attributes": attributes}
    text = json.dumps({**fields, "kind": "CLIENT", "events": [{"name": "event"}]}, ensure_ascii=escape)
    for one in (encode(Span.model_validate({**fields, "sequence_id": 3})), validate(text, 3)):
        wanted |= set(list(attributes)[:2])
        reduced = project(one, attribute_filter(wanted))
        assert validate(reduced.document, 3) == reduced
        kept = {key: value for key, value in attributes.items() if key in wanted}
        assert_same(decode(reduced.document, 3), a_span(name=name, attributes=kept))


def test_attributes_are_chosen_by_name_and_by_what_they_are_below():
    chosen = attribute_filter(["a", "b.*", "*", "c*"])
    named = ["a", "a.b", "b", "b.", "b.c.d", "bc", "*", "c*", "cd", ""]
    assert [name for name in named if chosen(name)] == ["a", "b.", "b.c.d", "*", "c*"]


@pytest.mark.parametrize(
    "members",
    [
        r'"attributes": {"a": "\u005b0]", "b": [7]}',
        r'"attributes": {"a": "[\u0030]", "b": [7]}',
        r'"attributes": {"a": 1, "\u0061": "[ 0 ]", "b": [[1, 2 ], [ ]]}',
        r'"attributes": {"a": 1e999, "b": [-1e999]}',
        r'"attributes": {"a": "x", "b": "y"}, "$exact": {"/attributes/a": {"utf16": "2AA="}}, "kind": null',
        r'"status": {"status_code": "OK", "more": [1]}, "start_time": 1, "attributes": {"c": 1}',
        r'"attributes": {"c": 1}, "attributes": {"a": [1.50, 1E2], "c": 2}',
    ],
)
def test_a_reduced_span_has_what_a_reader_finds_in_the_whole(members: str):
    record = validate(with_text(members), 3)
    whole, reduced = decode(record.document, 3), decode(project(record, attribute_filter(["a", "b"])).document, 3)
    assert reduced.attributes == {key: value for key, value in whole.attributes.items() if key != "c"}
    assert (reduced.status, reduced.start_time, reduced.name) == (whole.status, whole.start_time, whole.name)
    assert reduced.model_extra == {}


# --- The schema ------------------------------------------------------------------------------------------------------


def test_the_schema_has_every_field_and_the_member():
    schema = document_schema()
    assert schema["properties"].keys() == Span.model_fields.keys() | {"$exact"}
    assert schema["properties"]["sequence_id"] is False
    assert sorted(schema["required"]) == sorted(SMALLEST)
    assert schema["additionalProperties"] is True
    assert schema["$defs"]["ExactValue"]["properties"].keys() == {"bytes", "float", "utf16", "key"}
    assert not any("default" in value for value in schema["$defs"]["ExactValue"]["properties"].values())
