"""Export requests that protobuf does not write: of spans that are malformed, or nested too deeply."""

from __future__ import annotations

from opentelemetry.proto.common.v1.common_pb2 import AnyValue


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    length, head = len(data), bytes([number << 3 | 2])
    while length > 127:
        head += bytes([length & 127 | 128])
        length >>= 7
    return head + bytes([length]) + data


def request_of(resource: bytes, *spans: bytes) -> bytes:
    """A request of one scope, made of a serialized resource and spans."""
    return field(1, field(1, resource) + field(2, b"".join(field(2, span) for span in spans)))


def deep_attribute(levels: int) -> bytes:
    """The attribute ``deep`` of a span: so many mappings with the key ``k``, the inmost with the text "bottom"."""
    value = AnyValue(string_value="bottom").SerializeToString()
    for _ in range(levels):
        value = field(6, field(1, field(1, b"k") + field(2, value)))
    return field(9, field(1, b"deep") + field(2, value))
