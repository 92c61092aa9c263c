"""protobuf's wire format, written by hand: filling in messages field by field takes several times as long.

See https://protobuf.dev/programming-guides/encoding. Tags come from the descriptors, so that no number is told twice.
Reading is left to protobuf, but for finding where a field of a message that has been read ends.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INT32_MAX: Final = 2**31 - 1
UINT32_MAX: Final = 2**32 - 1
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
UINT64_MAX: Final = 2**64 - 1

_VARINT: Final = 0
_FIXED_64: Final = 1
_LENGTH_DELIMITED: Final = 2
_FIXED_32: Final = 5

_WIRE_TYPES: Final = {
    FieldDescriptor.TYPE_BOOL: _VARINT,
    FieldDescriptor.TYPE_BYTES: _LENGTH_DELIMITED,
    FieldDescriptor.TYPE_DOUBLE: _FIXED_64,
    FieldDescriptor.TYPE_ENUM: _VARINT,
    FieldDescriptor.TYPE_FIXED32: _FIXED_32,
    FieldDescriptor.TYPE_FIXED64: _FIXED_64,
    FieldDescriptor.TYPE_INT64: _VARINT,
    FieldDescriptor.TYPE_MESSAGE: _LENGTH_DELIMITED,
    FieldDescriptor.TYPE_STRING: _LENGTH_DELIMITED,
    FieldDescriptor.TYPE_UINT32: _VARINT,
}


def tag_of(message: type[Message], field: str) -> bytes:
    """What stands before each value of ``field``: its number, and how it is told where the value ends."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    return varint(descriptor.number << 3 | _WIRE_TYPES[descriptor.type])


def varint(number: int) -> bytes:
    """A number that is not negative: seven bits a byte, the lowest first."""
    return _SMALL[number] if number < _SMALL_MAX else _varint(number)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def end_of_delimited(data: bytes, start: int) -> int:
    """Where a field ends whose size stands at ``start``, in data that protobuf has read."""
    size_bytes = shift = 0
    while data[start] > 0x7F:
        size_bytes |= (data[start] & 0x7F) << shift
        shift += 7
        start += 1
    return start + 1 + (size_bytes | data[start] << shift)


_SMALL_MAX: Final = 2048
_SMALL: Final = [_varint(number) for number in range(_SMALL_MAX)]
"""Varints that are looked up, which is most sizes."""


def delimited(tag: bytes, value: bytes) -> bytes:
    """A field that is text, bytes or a message."""
    size_bytes = len(value)
    return tag + (_SMALL[size_bytes] if size_bytes < _SMALL_MAX else _varint(size_bytes)) + value


def delimited_parts(tag: bytes, parts: list[bytes]) -> bytes:
    """A field that is a message, from the fields of that."""
    return delimited(tag, b"".join(parts))
