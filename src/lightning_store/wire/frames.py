"""Messages put together from parts that are serialized already.

protobuf copies each part several times on the way. A serialized message is the concatenation of its fields, so it is
enough to write what stands before each part; see https://protobuf.dev/programming-guides/encoding. Tags come from the
descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import Message

_LENGTH_DELIMITED: Final = 2


def tag_of(message: type[Message], field: str) -> bytes:
    """Encode what stands before each value of a field.

    Args:
        message: The type of the message.
        field: The name of a field that has messages, text or bytes.

    Returns:
        The number of the field and its wire type.
    """
    return varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


def varint(number: int) -> bytes:
    """Encode a number.

    Args:
        number: It must not be negative.

    Returns:
        Seven bits a byte, the lowest first.
    """
    return _SMALL[number] if number < _SMALL_MAX else _varint(number)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL_MAX: Final = 2048
_SMALL: Final = [_varint(number) for number in range(_SMALL_MAX)]
"""Varints that are looked up, which is most sizes."""


def with_rows(message: Message, field: str, rows: Sequence[bytes]) -> Any:
    """Add serialized rows to a message.

    Args:
        message: All but the rows.
        field: The repeated field of the rows.
        rows: The serialized rows.

    Returns:
        An object that can be serialized, and no more. It is typed as Any, since it stands for the message.
    """
    return _WithRows(message, tag_of(type(message), field), rows)


class _WithRows:
    __slots__ = ("_message", "_rows", "_tag")

    def __init__(self, message: Message, tag: bytes, rows: Sequence[bytes]) -> None:
        self._message = message
        self._tag = tag
        self._rows = rows

    def SerializeToString(self) -> bytes:
        parts: list[bytes] = []
        for row in self._rows:
            parts += self._tag, varint(len(row)), row
        return b"".join([*parts, self._message.SerializeToString()])
