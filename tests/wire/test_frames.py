"""Frames: the same messages on the wire, with their rows as bytes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from lightning_store.v1.query_pb2 import StreamQueryResponse
from lightning_store.v1.span_pb2 import AddSpansRequest, ListSpansResponse, Span
from lightning_store.wire.frames import frame_of, with_rows

SPANS = [Span(rollout_id="ro-1", attempt_id=f"at-{number}", has_parent=True) for number in range(3)]
ROWS = [span.SerializeToString() for span in SPANS]


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (AddSpansRequest, {"request_id": "id"}),
        (ListSpansResponse, {"total": 7, "next_page_token": "more"}),
        (StreamQueryResponse, {"total": 2**63 - 1}),
    ],
)
def test_a_frame_of_rows_is_the_message_of_them(message, fields):
    whole = message(spans=SPANS, **fields)
    sent = with_rows(message(**fields), "spans", ROWS).SerializeToString()
    assert message.FromString(sent) == whole
    taken_apart = frame_of(message).FromString(whole.SerializeToString())
    assert list(taken_apart.spans) == ROWS
    assert all(getattr(taken_apart, name) == value for name, value in fields.items())


def test_rows_are_not_looked_into():
    sent = with_rows(AddSpansRequest(), "spans", [b"\xff"]).SerializeToString()
    assert list(frame_of(AddSpansRequest).FromString(sent).spans) == [b"\xff"]
    with pytest.raises(DecodeError):
        AddSpansRequest.FromString(sent)


def test_there_is_one_frame_class_for_a_message_class():
    assert frame_of(AddSpansRequest) is frame_of(AddSpansRequest)
