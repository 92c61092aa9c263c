"""Messages put together from serialized parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_store.v1.query_pb2 import StreamQueryResponse
from lightning_store.v1.session_pb2 import SessionCall
from lightning_store.v1.span_pb2 import ListSpansResponse, Span
from lightning_store.wire.frames import tag_of, varint, with_rows

SPANS = [Span(rollout_id="ro-1", attempt_id=f"at-{number}", document_json="{}" * 100**number) for number in range(3)]
ROWS = [span.SerializeToString() for span in SPANS]


@pytest.mark.parametrize(
    ("message", "fields"),
    [(ListSpansResponse, {"total": 7, "next_page_token": "more"}), (StreamQueryResponse, {"total": 2**63 - 1})],
)
def test_a_message_with_serialized_rows_is_the_message_of_them(message, fields):
    sent = with_rows(message(**fields), "spans", ROWS).SerializeToString()
    assert message.FromString(sent) == message(spans=SPANS, **fields)


@given(st.integers(0, 2**63 - 1))
def test_numbers_are_written_as_protobuf_writes_them(number):
    descriptor = StreamQueryResponse.DESCRIPTOR.fields_by_name["total"]
    assert StreamQueryResponse(total=number).SerializeToString() == (
        varint(descriptor.number << 3) + varint(number) if number else b""
    )


@pytest.mark.parametrize("size", [1, 127, 128, 2047, 2048, 100_000])
def test_parts_of_any_size_can_be_written(size):
    sent = tag_of(SessionCall, "request") + varint(size) + b"x" * size
    assert SessionCall.FromString(sent) == SessionCall(request=b"x" * size)
