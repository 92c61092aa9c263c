"""Spans on the wire: records to messages and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lightning_store.model import Span
from lightning_store.spans.document import encode
from lightning_store.testing import strategies
from lightning_store.v1 import span_pb2
from lightning_store.wire.spans import (
    add_spans_to_proto,
    span_from_proto,
    span_record_from_proto,
    span_record_to_proto,
)
from lightning_store.wire.times import timestamp_to_proto
from tests.wire.same import assert_same


@given(st.lists(st.one_of(strategies.spans(), strategies.usual_spans()), max_size=3))
def test_any_span_is_stored_as_it_is_encoded(spans: list[Span]):
    records = [encode(span) for span in spans]
    sent = add_spans_to_proto("id", records).SerializeToString()
    received = span_pb2.AddSpansRequest.FromString(sent)
    assert received.request_id == "id"
    assert [span_record_from_proto(message, "spans[0]") for message in received.spans] == records


@given(st.one_of(strategies.spans(), strategies.usual_spans()))
def test_any_span_is_read_as_it_was_written(span: Span):
    sent = span_record_to_proto(encode(span)).SerializeToString()
    assert_same(span_from_proto(span_pb2.Span.FromString(sent), "spans"), span)


@given(st.one_of(strategies.spans(), strategies.usual_spans()))
def test_whoever_does_not_read_the_document_has_its_columns(span: Span):
    record = encode(span)
    message = span_record_to_proto(record)
    assert message.HasField("parent_id") == (span.parent_id is not None)
    for name in ("start_time", "end_time"):
        seconds = getattr(span, name)
        assert message.HasField(name) == (seconds is not None)
        if seconds is not None:
            assert getattr(message, name) == timestamp_to_proto(seconds)
    columns = ("rollout_id", "attempt_id", "trace_id", "span_id", "name", "sequence_id")
    assert {name: getattr(message, name) for name in columns} == {name: getattr(record, name) for name in columns}


def test_a_span_without_a_sequence_id_has_none_on_the_wire():
    record = encode(Span(rollout_id="ro", attempt_id="at", sequence_id=3, trace_id="t", span_id="s", name="n"))
    [message] = add_spans_to_proto("id", [record._replace(sequence_id=None)]).spans
    assert not message.HasField("sequence_id")
    assert span_record_from_proto(message, "spans[0]").sequence_id is None
