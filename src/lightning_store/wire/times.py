"""Seconds as float, and what the wire has for them: nanoseconds as integers, Timestamp and Duration.

A float on the way to nanoseconds and back is exactly the same from ``EXACT_FROM_SECONDS`` on (April 1970), since there
the next float is more than a nanosecond away. Smaller ones come back to the nearest nanosecond.
"""

from __future__ import annotations

import math
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lightning_store.model import TIME_MAX_SECONDS
from lightning_store.wire.checks import invalid

NANOS_PER_SECOND: Final = 10**9
EXACT_FROM_SECONDS: Final = 2**23
TIME_MAX_NANOS: Final = TIME_MAX_SECONDS * NANOS_PER_SECOND


def to_nanos(seconds: float) -> int:
    """Seconds as whole nanoseconds. The whole seconds are split off first: their product would lose the low digits."""
    whole = math.floor(seconds)
    return whole * NANOS_PER_SECOND + round((seconds - whole) * NANOS_PER_SECOND)


def from_nanos(nanos: int) -> float:
    """Nanoseconds as seconds. Python divides two integers with one correct rounding, however large they are."""
    return nanos / NANOS_PER_SECOND


def timestamp_to_proto(seconds: float) -> Timestamp:
    whole, nanos = divmod(to_nanos(seconds), NANOS_PER_SECOND)
    return Timestamp(seconds=whole, nanos=nanos)


def write_timestamp(message: Timestamp, seconds: float | None) -> None:
    """Set a field of a message in place, which takes half of the time of making a message and copying it. None leaves
    the field unset."""
    if seconds is not None:
        message.seconds, message.nanos = divmod(to_nanos(seconds), NANOS_PER_SECOND)


def timestamp_from_proto(message: Timestamp, field: str) -> float:
    """A time from 1970 to 2262; anything else is an InvalidArgumentError."""
    return _checked_seconds(message, field, "must be from 1970-01-01 to 2262-04-11")


def optional_timestamp_to_proto(seconds: float | None) -> Timestamp | None:
    return None if seconds is None else timestamp_to_proto(seconds)


def duration_to_proto(seconds: float) -> Duration:
    whole, nanos = divmod(to_nanos(seconds), NANOS_PER_SECOND)
    return Duration(seconds=whole, nanos=nanos)


def duration_from_proto(message: Duration, field: str) -> float:
    """A length of time that is not negative and below 292 years; anything else is an InvalidArgumentError."""
    return _checked_seconds(message, field, _DURATION_RULE)


def optional_duration_to_proto(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration_to_proto(seconds)


_DURATION_RULE: Final = f"must be from 0 to {TIME_MAX_SECONDS} seconds"


def _checked_seconds(message: Timestamp | Duration, field: str, rule: str) -> float:
    seconds, nanos = message.seconds, message.nanos
    total = seconds * NANOS_PER_SECOND + nanos
    if 0 <= nanos < NANOS_PER_SECOND and 0 <= total <= TIME_MAX_NANOS:
        return total / NANOS_PER_SECOND  # as from_nanos
    given = f"seconds={seconds}, nanos={nanos}"
    raise invalid(field, f"is out of range ({given}); it {rule}, its nanos from 0 to 999999999")
