"""What JSON text takes, and that nothing is stored which could not be read again."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store.errors import InvalidArgumentError, NotJsonError
from lightning_store.json_text import (
    COMMAS_MAX,
    DEPTH_MAX,
    DIGITS_MAX,
    LISTS_MAX,
    MEMBERS_MAX,
    check_values,
    dumps,
    loads,
)

LONGEST = 10 ** (DIGITS_MAX - 1)
TOO_LONG = 10**DIGITS_MAX
TOO_MANY_DIGITS = f"payload has an integer of more than {DIGITS_MAX} digits; give it as text"
TOO_DEEP = f"payload is nested more than {DEPTH_MAX} levels deep; make it flatter"


class Colour(str, enum.Enum):  # noqa: UP042 - the older way to write it, which users have
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def again(value: Any) -> Any:
    return loads(dumps(value, "payload"), "payload")


def nested(wrap: Callable[[Any], Any], levels: int, inmost: Any = 0) -> Any:
    for _ in range(levels):
        inmost = wrap(inmost)
    return inmost


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"a": inner},
    "list-of-dicts": lambda inner: [0, inner] if isinstance(inner, dict) else {"a": inner},
    "not-in-utf8": lambda inner: [inner, "\ud800"],
}


class TestIntegers:
    @pytest.mark.parametrize("number", [LONGEST, -LONGEST, TOO_LONG - 1, 2**64, -(2**63) - 1], ids=int.bit_length)
    def test_as_long_as_python_writes_them(self, number: int):
        assert again([number, {"n": number}, "\ud800"]) == [number, {"n": number}, "\ud800"]

    @pytest.mark.parametrize("number", [TOO_LONG, -TOO_LONG], ids=["positive", "negative"])
    @pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [1, {"a": n}], lambda n: (n,), lambda n: ["\ud800", n]])
    def test_longer_ones_are_refused(self, number: int, wrap: Callable[[int], Any]):
        with pytest.raises(NotJsonError) as caught:
            dumps(wrap(number), "payload")
        assert (str(caught.value), caught.value.details) == (TOO_MANY_DIGITS, {"path": "payload"})

    @pytest.mark.parametrize("text", [f"{LONGEST}0", f'{{"a":[-{LONGEST}0]}}'], ids=["alone", "inside"])
    def test_longer_ones_are_not_read(self, text: str):
        with pytest.raises(InvalidArgumentError) as caught:
            loads(text, "payload")
        assert (str(caught.value), caught.value.details) == (TOO_MANY_DIGITS, {"field": "payload"})

    def test_digits_in_text_are_no_number(self):
        value = {"7" * 5000: ["8" * 5000, 9]}
        assert again(value) == value

    @pytest.mark.asyncio
    async def test_they_are_refused_before_anything_is_stored(self):
        store = InMemoryLightningStore()
        started = await store.start_rollout("task", worker_id="w")
        worker = await store.get_worker_by_id("w")
        for payload in ({"n": TOO_LONG}, {"n": [1, [TOO_LONG]]}):
            for refused in (
                store.enqueue_rollout(payload),
                store.start_rollout("task", metadata=payload),
                store.update_rollout(started.rollout_id, input=payload, status="failed"),
                store.update_rollout(started.rollout_id, metadata=payload),
                store.update_attempt(started.rollout_id, "latest", status="failed", metadata=payload),
                store.update_worker("w", heartbeat_stats=payload),
                store.update_worker("new", heartbeat_stats=payload),
            ):
                with pytest.raises(NotJsonError, match="more than 4300 digits"):
                    await refused
        assert list(await store.query_rollouts()) == [started]
        assert list(await store.query_workers()) == [worker]


class TestDepth:
    @pytest.mark.parametrize("kind", WRAPS)
    def test_as_deep_as_the_parser_goes(self, kind: str):
        value = nested(WRAPS[kind], DEPTH_MAX)
        expected = nested(WRAPS["list"], DEPTH_MAX) if kind == "tuple" else value
        assert again(value) == expected

    @pytest.mark.parametrize("levels", [DEPTH_MAX + 1, DEPTH_MAX + 60, 10_000])
    @pytest.mark.parametrize("kind", WRAPS)
    def test_deeper_is_refused(self, kind: str, levels: int):
        with pytest.raises(NotJsonError, match="payload.* is nested more than 200 levels deep; make it flatter"):
            dumps(nested(WRAPS[kind], levels), "payload")

    @pytest.mark.parametrize("levels", [DEPTH_MAX + 1, DEPTH_MAX + 60, 10_000])
    @pytest.mark.parametrize("ends", [("[", "]"), ('{"a":', "}"), ('["b",', "]")])
    def test_deeper_is_not_read(self, ends: tuple[str, str], levels: int):
        with pytest.raises(InvalidArgumentError) as caught:
            loads(ends[0] * levels + "0" + ends[1] * levels, "payload")
        assert str(caught.value) == TOO_DEEP

    def test_both_say_the_same(self):
        with pytest.raises(NotJsonError) as caught:
            dumps(nested(WRAPS["dict"], DEPTH_MAX + 1), "payload")
        assert str(caught.value) == TOO_DEEP

    def test_wide_is_not_deep(self):
        value = [{"a": [number]} for number in range(10 * DEPTH_MAX)]
        assert again(value) == value

    def test_what_holds_itself_is_too_deep(self):
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(NotJsonError, match="levels deep"):
            dumps(endless, "payload")

    def test_text_without_utf8_before_it_makes_no_difference(self):
        with pytest.raises(NotJsonError, match="levels deep"):
            dumps(["\ud800", nested(WRAPS["list"], DEPTH_MAX)], "payload")


class TestValues:
    @pytest.mark.parametrize(
        "value",
        [None, True, False, 0, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, "", "\x00", "ü😀", "\ud800"],
        ids=ascii,
    )
    def test_they_come_back(self, value: Any):
        for wrapped in (value, [value], {"a": {"b": [value, value]}}):
            assert repr(again(wrapped)) == repr(wrapped)

    def test_nan_comes_back(self):
        [nan, text] = again([math.nan, {"\udfff": math.nan}])
        assert math.isnan(nan)
        assert math.isnan(text["\udfff"])

    def test_enums_are_their_values(self):
        found = again({"colour": Colour.RED, "level": (Level.HIGH,), Colour.RED: 1})
        assert found == {"colour": "red", "level": [3], "red": 1}
        assert [type(found["colour"]), type(found["level"][0])] == [str, int]

    def test_numpy_scalars_that_are_python_numbers_too(self):
        numpy = pytest.importorskip("numpy")
        assert again([numpy.float64(1.5), numpy.str_("a")]) == [1.5, "a"]

    @pytest.mark.parametrize("kind", ["int64", "float32", "bool"])
    def test_other_numpy_scalars_are_refused_by_name(self, kind: str):
        numpy = pytest.importorskip("numpy")
        with pytest.raises(
            NotJsonError, match=rf"payload\.a\[1\] holds a value of type numpy\.{kind}.* \.item\(\) .* \.tolist\(\)"
        ):
            dumps({"a": [0, getattr(numpy, kind)(1)]}, "payload")

    @pytest.mark.parametrize(
        ("value", "path", "complaint"),
        [
            ({b"k": 1}, "payload", "the key b'k' of type bytes"),
            ({"a": [0, {b"k": 1}]}, "payload.a[1]", "the key b'k' of type bytes"),
            ({1: 1}, "payload", "the key 1 of type int"),
            ({"a": {None: 1}}, "payload.a", "the key None of type NoneType"),
            (b"text", "payload", "a value of type bytes"),
            ([0, ({1},)], "payload[1][0]", "a value of type set"),
            ({"a": {"b": [1, Ellipsis]}}, "payload.a.b[1]", "a value of type ellipsis"),
            ({"a": 1j}, "payload.a", "a value of type complex"),
        ],
        ids=str,
    )
    def test_what_json_cannot_hold_is_refused_with_its_place(self, value: Any, path: str, complaint: str):
        with pytest.raises(NotJsonError, match=complaint) as caught:
            dumps(value, "payload")
        assert caught.value.details == {"path": path}
        assert str(caught.value).startswith(f"{path} h")

    @pytest.mark.parametrize("text", ["", "{", "[1,]", "nan", "'a'", '"\\x"', "1 2", "[" * 100])
    def test_malformed_text_is_not_read(self, text: str):
        with pytest.raises(InvalidArgumentError, match="^payload is not valid JSON: ") as caught:
            loads(text, "payload")
        assert caught.value.details == {"field": "payload"}


@pytest.mark.parametrize("before", [0, 1, DIGITS_MAX - 1, DIGITS_MAX, 10_000])
@pytest.mark.parametrize(("digits", "refused"), [(DIGITS_MAX, False), (DIGITS_MAX + 1, True)])
def test_a_number_that_is_too_long_is_found_wherever_it_stands(before: int, digits: int, refused: bool):
    value = ["x" * before, 10 ** (digits - 1)]
    if refused:
        with pytest.raises(NotJsonError):
            dumps(value, "input")
    else:
        assert loads(dumps(value, "input"), "input") == value


def test_values_are_counted_where_they_are_none_of_a_text():
    quoted = "\\\\" + "[{:," + '\\"'  # an even number of backslashes before what would count outside
    for odd in range(len(quoted)):  # so that slices end within each escape
        check_values('"' + " " * odd + quoted * (LISTS_MAX // 20) + '"', "input", ratio=40)
    for text in ("[]," * (LISTS_MAX // 40), '"":1,' * (MEMBERS_MAX // 40), "1," * (COMMAS_MAX // 40)):
        for shaped in (f"{text}{text[:-1]}", f"{text}{text[:-1]}".encode()):
            with pytest.raises(InvalidArgumentError, match="input has more than"):
                check_values(shaped, "input", ratio=40)
        check_values(text, "input", ratio=40)
