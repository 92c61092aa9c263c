"""Times on the wire: exact where a float says no less than a nanosecond, and to the nanosecond before that."""

from __future__ import annotations

import math

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_store.errors import InvalidArgumentError
from lightning_store.model import TIME_MAX_SECONDS
from lightning_store.wire import times
from lightning_store.wire.times import EXACT_FROM_SECONDS, NANOS_PER_SECOND


@given(st.floats(EXACT_FROM_SECONDS, TIME_MAX_SECONDS))
@example(float(EXACT_FROM_SECONDS))
@example(1.7e9 + 0.1)
@example(math.nextafter(1e9, 0))
@example(float(TIME_MAX_SECONDS))
def test_every_time_from_april_1970_on_is_exact(seconds):
    assert times.timestamp_from_proto(times.timestamp_to_proto(seconds), "t") == seconds
    assert times.duration_from_proto(times.duration_to_proto(seconds), "d") == seconds
    assert times.from_nanos(times.to_nanos(seconds)) == seconds


@given(st.floats(0, EXACT_FROM_SECONDS))
@example(0.999999999999)
def test_earlier_times_are_right_to_the_nanosecond(seconds):
    assert abs(times.timestamp_from_proto(times.timestamp_to_proto(seconds), "t") - seconds) <= 1e-9


@given(st.integers(0, times.TIME_MAX_NANOS))
def test_every_message_is_legal_protobuf(nanos):
    message = times.timestamp_to_proto(times.from_nanos(nanos))
    assert 0 <= message.nanos < 10**9
    assert message.ToJsonString()


@given(st.integers(0, EXACT_FROM_SECONDS * NANOS_PER_SECOND))
def test_whole_nanoseconds_come_back_whole(nanos):
    assert times.to_nanos(times.from_nanos(nanos)) == nanos


@pytest.mark.parametrize(("seconds", "nanos"), [(-1, 0), (0, -1), (0, 10**9), (TIME_MAX_SECONDS, 1), (2**62, 0)])
def test_times_out_of_range_are_refused(seconds, nanos):
    for read in (
        lambda: times.timestamp_from_proto(Timestamp(seconds=seconds, nanos=nanos), "some.field"),
        lambda: times.duration_from_proto(Duration(seconds=seconds, nanos=nanos), "some.field"),
    ):
        with pytest.raises(InvalidArgumentError, match=r"^some\.field is out of range") as caught:
            read()
        assert caught.value.details["field"] == "some.field"
