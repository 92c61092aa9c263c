"""OpenTelemetry attributes as OTLP's AnyValue and back, with whatever OTLP cannot hold exactly left over.

The functions that write return the *residue*: what a reader must lay over the value that it reads from OTLP to get the
given one. It is None where OTLP holds the value exactly. For a list or a mapping the residue is a dict from index or
key to the residue there, so that the rest is not held twice (and bytes, which JSON has not, are never in it).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from struct import Struct
from typing import Any, Final

from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from lightning_store.errors import NotJsonError
from lightning_store.wire.checks import has_utf8, invalid
from lightning_store.wire.remembering import CHARS_MAX, REMEMBERED_MAX
from lightning_store.wire.wire_format import INT64_MAX, INT64_MIN, UINT64_MAX, delimited, tag_of, varint

Residue = Any
"""JSON value to lay over what OTLP says; None: nothing."""

NESTING_MAX: Final = 16
"""Levels of lists and mappings that go into OTLP. protobuf refuses to parse messages deeper than 100, and each level
takes three; what is deeper is residue."""

SIZES_MAX: Final = 1024
"""The beginning of a pair with more bytes of value, or with a longer key than is remembered, is made each time. Of what
is remembered for one field, all is forgotten when it is too much."""
SMALL_INTS: Final = 2048
"""Numbers below it are encoded beforehand, which most counts of tokens are."""

_KEY: Final = tag_of(KeyValue, "key")
_VALUE: Final = tag_of(KeyValue, "value")
_ITEM: Final = tag_of(ArrayValue, "values")
_STRING: Final = tag_of(AnyValue, "string_value")
_BOOL: Final = tag_of(AnyValue, "bool_value")
_INT: Final = tag_of(AnyValue, "int_value")
_DOUBLE: Final = tag_of(AnyValue, "double_value")
_ARRAY: Final = tag_of(AnyValue, "array_value")
_MAPPING: Final = tag_of(AnyValue, "kvlist_value")
_BYTES: Final = tag_of(AnyValue, "bytes_value")


# --- To OTLP: plain values -------------------------------------------------------------------------------------------

_Encode = Callable[[Any], bytes]


def _text(value: str) -> bytes:
    return delimited(_STRING, value.encode())


class _Ints(dict[int, bytes]):
    """What is small is looked up."""

    def __missing__(self, value: int) -> bytes:
        if INT64_MIN <= value <= INT64_MAX:
            return _INT + varint(value & UINT64_MAX)
        raise OverflowError


def _list(value: list[Any]) -> bytes:
    return delimited(_ARRAY, b"".join([delimited(_ITEM, _SCALARS[type(item)](item)) for item in value]))


_SCALARS: Final[Mapping[type[Any], _Encode]] = {
    str: _text,
    bool: {value: _BOOL + varint(value) for value in (False, True)}.__getitem__,
    int: _Ints({value: _INT + varint(value) for value in range(SMALL_INTS)}).__getitem__,
    float: partial(Struct(f"<{len(_DOUBLE)}sd").pack, _DOUBLE),
    bytes: partial(delimited, _BYTES),
    type(None): lambda _: b"",
}
"""How OTLP holds a value of exactly this type. One that it cannot hold is one of the errors below."""

_NOT_PLAIN: Final = (KeyError, OverflowError, UnicodeEncodeError)


# --- To OTLP ---------------------------------------------------------------------------------------------------------


class KeyValues:
    """A repeated KeyValue field.

    The loop over attributes is where most of the time goes. What stands before a value in its pair depends on the key
    and on the value's kind and size alone, so it is remembered from one span to the next.
    """

    def __init__(self, message: type[Message], field: str) -> None:
        self.tag = tag_of(message, field)
        self._texts: dict[str, _Starts] = {}
        self._others: dict[str, _Starts] = {}
        self._payloads: Mapping[type[Any], tuple[_Encode, Mapping[str, _Starts]]] = {
            **{kind: (encode, self._others) for kind, encode in _SCALARS.items()},
            list: (_list, self._others),
            str: (str.encode, self._texts),
        }
        """By type of value: how the last bytes of a pair are made, a text or an AnyValue, and what is before them."""
        self._remembered = itertools.count(1)

    def write(self, attributes: Mapping[str, Any], into: list[bytes], path: str, depth: int = 0) -> Residue:
        """Append the field with these attributes to ``into``; return the residue by key.

        NotJsonError names the place below ``path`` that neither OTLP nor JSON can hold.
        """
        residues: dict[str, Residue] = {}
        payloads = self._payloads
        for key, value in attributes.items():
            try:
                encode, starts = payloads[type(value)]
                payload = encode(value)
                into += starts[key][len(payload)], payload
            except _NOT_PLAIN:
                self._write_other(key, value, into, residues, path, depth)
        return residues or None

    def _write_other(
        self, key: str, value: Any, into: list[bytes], residues: dict[str, Residue], path: str, depth: int
    ) -> None:
        """Append a pair whose key is new, or whose value is not plain."""
        if not isinstance(key, str):
            raise NotJsonError(f"{path} has the key {key!r} of type {type(key).__name__}; keys are text", path=path)
        if not has_utf8(key):
            residues[key] = value  # also if it is None
            return
        encoded, residue = _encode(value, f"{path}.{key}", depth)
        into += self._start(str(key), len(encoded)), encoded
        if residue is not None:
            residues[key] = residue

    def _start(self, key: str, size_bytes: int) -> bytes:
        """From now on the key is known, for texts as well, unless it is long."""
        known = self._others.get(key)
        if known is not None:
            return known[size_bytes]
        others = _Starts(self, key, b"")
        if len(key) > CHARS_MAX:
            return others.start(size_bytes)
        self.make_room()
        self._texts[key], self._others[key] = _Starts(self, key, _STRING), others
        return others[size_bytes]

    def make_room(self) -> None:
        """For one more thing to remember."""
        if next(self._remembered) % REMEMBERED_MAX == 0:
            self._texts.clear()
            self._others.clear()


class _Starts(dict[int, bytes]):
    """What stands before the last bytes of a pair with a given key, by how many they are."""

    def __init__(self, field: KeyValues, key: str, value_tag: bytes) -> None:
        """``value_tag`` is that of an AnyValue whose kind the last bytes do not tell themselves."""
        super().__init__()
        self._field = field
        self._key_field = delimited(_KEY, key.encode()) if key else b""
        self._value_tag = value_tag

    def __missing__(self, size_bytes: int) -> bytes:
        start = self.start(size_bytes)
        if size_bytes <= SIZES_MAX:
            self._field.make_room()
            self[size_bytes] = start
        return start

    def start(self, size_bytes: int) -> bytes:
        value_start = self._value_tag + varint(size_bytes) if self._value_tag else b""
        pair_start = self._key_field + _VALUE + varint(len(value_start) + size_bytes) + value_start
        return self._field.tag + varint(len(pair_start) + size_bytes) + pair_start


_NESTED: Final = KeyValues(KeyValueList, "values")


def _encode(value: Any, path: str, depth: int) -> tuple[bytes, Residue]:
    """The AnyValue of any value, and the residue."""
    try:
        return _SCALARS[type(value)](value), None
    except _NOT_PLAIN:
        pass
    if isinstance(value, list | tuple | Mapping):
        return _encode_nested(value, path, depth)
    for scalar, encode in _SCALARS.items():
        if isinstance(value, scalar):
            try:
                return encode(value), None
            except _NOT_PLAIN:
                return _encode(_nearest(value), path, depth)[0], value
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise NotJsonError(f"{path} is a {kind}; a span holds text, numbers, booleans, bytes, lists, dicts", path=path)


def _encode_nested(
    value: list[Any] | tuple[Any, ...] | Mapping[str, Any], path: str, depth: int
) -> tuple[bytes, Residue]:
    if depth == NESTING_MAX:
        return _text("(nested too deeply)"), value
    fields: list[bytes] = []
    if isinstance(value, Mapping):
        residue = _NESTED.write(value, fields, path, depth + 1)
        return delimited(_MAPPING, b"".join(fields)), residue
    residues: dict[str, Residue] = {}
    for index, item in enumerate(value):
        encoded, residue = _encode(item, f"{path}[{index}]", depth + 1)
        fields.append(delimited(_ITEM, encoded))
        if residue is not None:
            residues[str(index)] = residue
    return delimited(_ARRAY, b"".join(fields)), residues or None


def _nearest(value: str | int) -> str | float:
    """What OTLP can hold in the place of a text or integer that it cannot."""
    if isinstance(value, str):
        return utf8_and_residue(value)[0]
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def utf8_and_residue(text: str) -> tuple[str, Residue]:
    """Text that protobuf can hold, question marks for unpaired surrogates, and ``text`` as residue if they differ."""
    if has_utf8(text):
        return text, None
    return text.encode("utf-8", "replace").decode(), text


# --- From OTLP -------------------------------------------------------------------------------------------------------


def read_attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    """The attributes; of a key that is there twice, the last."""
    # What a value does not hold is empty or 0, which is told sooner than what it does hold. And protobuf copies a
    # repeated field into a list sooner than it walks through it.
    return {
        pair.key: (value := pair.value).string_value or value.int_value or value.double_value or read_value(value)
        for pair in pairs[:]
    }


def read_value(value: AnyValue) -> Any:
    """What ``value`` holds; None for nothing, and for a kind that traces do not use (OTLP's string table)."""
    reader = _READERS.get(value.WhichOneof("value"))
    return None if reader is None else reader(value)


_READERS: Final[Mapping[str | None, Callable[[AnyValue], Any]]] = {
    "string_value": attrgetter("string_value"),
    "int_value": attrgetter("int_value"),
    "double_value": attrgetter("double_value"),
    "bool_value": attrgetter("bool_value"),
    "array_value": lambda value: [read_value(item) for item in value.array_value.values[:]],
    "kvlist_value": lambda value: read_attributes(value.kvlist_value.values),
    "bytes_value": attrgetter("bytes_value"),
}


def lay_over(base: Any, residue: Residue, field: str) -> Any:
    """``base`` with ``residue`` laid over it: the value that was given. ``base`` may be changed in place.

    An object over a mapping goes member by member, over a list element by element, and everything else replaces.
    InvalidArgumentError: an index that the list does not have.
    """
    if isinstance(residue, dict) and isinstance(base, dict):
        for key, value in residue.items():
            base[key] = lay_over(base[key], value, field) if key in base else value
        return base
    if isinstance(residue, dict) and isinstance(base, list):
        for key, value in residue.items():
            index = _index(key, len(base), field)
            base[index] = lay_over(base[index], value, field)
        return base
    return residue


def _index(key: str, length: int, field: str) -> int:
    if key.isascii() and key.isdecimal() and len(key) <= 9 and int(key) < length:
        return int(key)
    raise invalid(field, f"lays {key!r} over an array of {length}; give an index of it")
