"""What is written by hand is what protobuf writes."""

from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1 import trace_pb2

from lightning_store.v1 import span_pb2
from lightning_store.wire.wire_format import delimited, delimited_parts, tag_of, varint


@given(st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 5000)))
def test_varints(number):
    assert (
        tag_of(span_pb2.Span, "sequence_id") + varint(number) == span_pb2.Span(sequence_id=number).SerializeToString()
    )


@pytest.mark.parametrize("size_bytes", [1, 127, 128, 2047, 2048, 2**14, 2**21])
def test_bytes_of_any_size(size_bytes):
    value = b"x" * size_bytes
    assert delimited(tag_of(BytesValue, "value"), value) == BytesValue(value=value).SerializeToString()


@pytest.mark.parametrize(
    ("message", "field", "value", "encoded"),
    [
        (trace_pb2.Span, "flags", 1, b"\x01\0\0\0"),
        (trace_pb2.Span, "start_time_unix_nano", 1, b"\x01\0\0\0\0\0\0\0"),
        (trace_pb2.Span, "kind", 3, b"\x03"),
        (span_pb2.Span, "has_context", True, b"\x01"),
    ],
)
def test_tags_of_every_kind(message, field, value, encoded):
    assert tag_of(message, field) + encoded == message(**{field: value}).SerializeToString()


def test_parts_of_a_message():
    parts = [tag_of(trace_pb2.Status, "code") + varint(2)]
    message = trace_pb2.Span(status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR))
    assert delimited_parts(tag_of(trace_pb2.Span, "status"), parts) == message.SerializeToString()
