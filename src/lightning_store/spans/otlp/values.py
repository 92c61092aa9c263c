"""OpenTelemetry attributes: OTLP's ``AnyValue`` and the values of the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from lightning_store.text import replace_surrogates

NESTING_MAX: Final = 16
"""Levels of lists and mappings that are written as such. Receivers refuse messages of more than 100 levels, and each
level here takes three."""

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

# --- From OTLP -------------------------------------------------------------------------------------------------------


def read_attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    """Convert attributes.

    Args:
        pairs: The attributes of a message.

    Returns:
        The values by key; of equal keys the last one counts.
    """
    # A field that is not set is empty or 0, and reading it takes less time than asking which one is set. A slice of a
    # repeated field is a list, which is faster to iterate over.
    return {
        pair.key: (value := pair.value).string_value or value.int_value or value.double_value or read_value(value)
        for pair in pairs[:]
    }


def read_value(value: AnyValue) -> Any:
    """Convert one value.

    Args:
        value: The message.

    Returns:
        The value; None if it is not set, or of a kind that is not used in traces.
    """
    reader = _READERS.get(value.WhichOneof("value"))
    return None if reader is None else reader(value)


_READERS: Final[Mapping[str | None, Callable[[AnyValue], Any]]] = {
    "string_value": attrgetter("string_value"),
    "int_value": attrgetter("int_value"),
    "double_value": attrgetter("double_value"),
    "bool_value": attrgetter("bool_value"),
    "bytes_value": attrgetter("bytes_value"),
    "array_value": lambda value: [
        item.int_value or item.double_value or item.string_value or read_value(item)
        for item in value.array_value.values[:]
    ],
    "kvlist_value": lambda value: read_attributes(value.kvlist_value.values),
}


# --- To OTLP ---------------------------------------------------------------------------------------------------------


def write_attributes(attributes: Mapping[str, Any], depth: int = 0) -> list[KeyValue]:
    """Convert attributes.

    Args:
        attributes: The values by key.
        depth: Levels of lists and mappings around them.

    Returns:
        The messages. What OTLP cannot hold is changed: lone surrogates become U+FFFD, integers beyond 64 bits their
        digits, and what is below :data:`NESTING_MAX` levels its JSON text.
    """
    return [KeyValue(key=replace_surrogates(key), value=write_value(value, depth)) for key, value in attributes.items()]


def write_value(value: Any, depth: int = 0) -> AnyValue:
    """Convert one value; see :func:`write_attributes`."""
    made = AnyValue()
    if isinstance(value, bool):
        made.bool_value = value
    elif isinstance(value, str):
        made.string_value = replace_surrogates(value)
    elif isinstance(value, int):
        if INT64_MIN <= value <= INT64_MAX:
            made.int_value = value
        else:
            made.string_value = str(value)
    elif isinstance(value, float):
        made.double_value = value
    elif isinstance(value, bytes):
        made.bytes_value = value
    elif isinstance(value, list | tuple | dict):
        _write_nested(value, depth, made)
    return made


def _write_nested(value: list[Any] | tuple[Any, ...] | dict[str, Any], depth: int, into: AnyValue) -> None:
    if depth >= NESTING_MAX:
        text = json.dumps(value, default=bytes.hex, ensure_ascii=False, separators=(",", ":"))
        into.string_value = replace_surrogates(text)
    elif isinstance(value, dict):
        into.kvlist_value.SetInParent()
        into.kvlist_value.values.extend(write_attributes(value, depth + 1))
    else:
        into.array_value.SetInParent()
        into.array_value.values.extend(write_value(item, depth + 1) for item in value)
