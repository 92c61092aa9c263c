"""OpenTelemetry attributes as OTLP's AnyValue and back, with whatever OTLP cannot hold exactly left over.

The functions that write return the *residue*: what a reader must lay over the value that it reads from OTLP to get the
given one. It is None where OTLP holds the value exactly. For a list or a mapping the residue is a dict from index or
key to the residue there, so that the rest is not held twice (and bytes, which JSON has not, are never in it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from lightning_store.errors import NotJsonError
from lightning_store.wire.checks import has_utf8, invalid

Residue = Any
"""JSON value to lay over what OTLP says; None: nothing."""

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
NESTING_MAX: Final = 16
"""Levels of lists and mappings that go into OTLP. protobuf refuses to parse messages deeper than 100, and each level
takes three; what is deeper is residue."""


class KeyValues(Protocol):
    """A repeated KeyValue field."""

    def add(self) -> KeyValue: ...


# --- To OTLP ---------------------------------------------------------------------------------------------------------


def write_attributes(attributes: Mapping[str, Any], into: KeyValues, path: str, depth: int = 0) -> Residue:
    """Add the attributes to ``into``; return the residue by key.

    NotJsonError names the place below ``path`` that neither OTLP nor JSON can hold.
    """
    residues: dict[str, Residue] = {}
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise NotJsonError(f"{path} has the key {key!r} of type {type(key).__name__}; keys are text", path=path)
        if not has_utf8(key):
            residues[key] = value
            continue
        pair = into.add()
        pair.key = key
        residue = write_value(value, pair.value, f"{path}.{key}", depth)
        if residue is not None:
            residues[key] = residue
    return residues or None


def write_value(value: Any, into: AnyValue, path: str, depth: int = 0) -> Residue:
    """Set ``into``; return the residue."""
    if value is None:
        into.SetInParent()
    elif isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, str):
        into.string_value, residue = utf8_and_residue(value)
        return residue
    elif isinstance(value, int):
        return _write_int(value, into)
    elif isinstance(value, float):
        into.double_value = value
    elif isinstance(value, bytes):
        into.bytes_value = value
    elif isinstance(value, list | tuple | Mapping):
        return _write_nested(value, into, path, depth)
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise NotJsonError(f"{path} is a {kind}; a span holds text, numbers, booleans, bytes, lists, dicts", path=path)
    return None


def utf8_and_residue(text: str) -> tuple[str, Residue]:
    """Text that protobuf can hold, question marks for unpaired surrogates, and ``text`` as residue if they differ."""
    if has_utf8(text):
        return text, None
    return text.encode("utf-8", "replace").decode(), text


def _write_int(value: int, into: AnyValue) -> Residue:
    if INT64_MIN <= value <= INT64_MAX:
        into.int_value = value
        return None
    try:
        into.double_value = float(value)
    except OverflowError:
        into.double_value = math.inf if value > 0 else -math.inf
    return value


def _write_nested(
    value: list[Any] | tuple[Any, ...] | Mapping[str, Any], into: AnyValue, path: str, depth: int
) -> Residue:
    if depth == NESTING_MAX:
        into.string_value = "(nested too deeply)"
        return value
    if isinstance(value, Mapping):
        into.kvlist_value.SetInParent()
        return write_attributes(value, into.kvlist_value.values, path, depth + 1)
    into.array_value.SetInParent()
    residues: dict[str, Residue] = {}
    for index, item in enumerate(value):
        residue = write_value(item, into.array_value.values.add(), f"{path}[{index}]", depth + 1)
        if residue is not None:
            residues[str(index)] = residue
    return residues or None


# --- From OTLP -------------------------------------------------------------------------------------------------------


def read_attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """The attributes; of a key that is there twice, the last."""
    return {pair.key: read_value(pair.value) for pair in pairs}


def read_value(value: AnyValue) -> Any:
    """The Python value. A kind that is not known here (OTLP's string table, which traces do not use) reads as None."""
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bool_value":
            return value.bool_value
        case "array_value":
            return [read_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return read_attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value
    return None


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
