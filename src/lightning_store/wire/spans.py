"""Spans to the wire and back: OTLP's own messages in an envelope, and an overlay for what OTLP does not hold exactly.

How the fields map is told in ``proto/lightning_store/v1/span.proto``. A reader makes the plain Python form of the OTLP
part, lays the overlay over it, and validates. A writer writes the OTLP part, and into the overlay exactly
what that reader would miss.

A stored span is the serialized envelope without its three ids, which are columns of their own, in two halves, of which
spans share the second: ids and halves, one after the other, are the envelope. A server passes a span from the wire to
the backend and back as bytes; it looks into the overlay alone, and only to check it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import lru_cache, partial
from itertools import repeat
from typing import Any, Final

from google.protobuf.message import DecodeError

from lightning_store.backends.records import SpanRecord
from lightning_store.lazy import lazily
from lightning_store.model import Span
from lightning_store.v1 import span_pb2
from lightning_store.wire.attributes import lay_over
from lightning_store.wire.checks import (
    invalid,
    json_object,
    not_negative,
    require,
    required_text,
    text_to_proto,
    validated,
)
from lightning_store.wire.remembering import CHARS_MAX, REMEMBERED_MAX, remembering
from lightning_store.wire.span_body import columns_of, encode_span, read_span
from lightning_store.wire.span_parts import (
    SPAN_ID_BYTES,
    SPAN_KIND,
    STATUS_CODE,
    TRACE_ID_BYTES,
    read_time,
)
from lightning_store.wire.times import TIME_MAX_NANOS
from lightning_store.wire.wire_format import delimited, end_of_delimited, tag_of, varint

ENVELOPE_IDS: Final = ("rollout_id", "attempt_id", "sequence_id")

COMMON_MAX: Final = 1_000
COMMON_BYTES_MAX: Final = 4_096
"""How many different things that follow OTLP's span are shared, and how long they are at most."""

_OtlpColumns = tuple[str, str, str | None, str, float | None, float | None]
_Columns = tuple[str, str, int | None, str, str, str | None, str, float | None, float | None]
"""Of an envelope, in which the number may be missing: what stands outside of OTLP's part, and what that has."""


class ProtoSpanCodec:
    """The :class:`~lightning_store.backends.base.SpanCodec` whose records are what the wire carries."""

    def encode(self, span: Span) -> SpanRecord:
        """NotJsonError (a TypeError) or InvalidArgumentError names what neither OTLP nor JSON can hold."""
        columns, body, common, has_overlay = encode_span(span)
        record = SpanRecord(*columns, *_halves(body, common, has_overlay=has_overlay))
        if has_overlay:  # where parts of a span that were changed by hand may be, which nobody has looked at
            _span_of_record(record)
        return record

    def decode(self, records: Sequence[SpanRecord]) -> list[Span]:
        """Spans that are decoded at the first look into them. That cannot fail: each record was made or checked
        here."""
        return lazily(repeat(Span, len(records)), _span_of_record, records)


def _span_of_record(record: SpanRecord) -> Span:
    message = span_record_to_proto(record)
    return _span_of(message, _overlay_of(message, "span"), "span")


# --- Records, messages, and their bytes ------------------------------------------------------------------------------

_ROLLOUT_ID: Final = tag_of(span_pb2.Span, "rollout_id")
_ATTEMPT_ID: Final = tag_of(span_pb2.Span, "attempt_id")
_SEQUENCE_ID: Final = tag_of(span_pb2.Span, "sequence_id")
_OTLP_SPAN: Final = tag_of(span_pb2.Span, "span")


def span_record_to_bytes(record: SpanRecord) -> bytes:
    """The serialized envelope of a record that came from a function of this module. Nothing is encoded anew."""
    return b"".join((_ids(record.rollout_id, record.attempt_id, record.sequence_id), record.body, record.common))


def span_record_to_proto(record: SpanRecord) -> span_pb2.Span:
    """The envelope of such a record."""
    return span_pb2.Span.FromString(span_record_to_bytes(record))


def _ids(rollout_id: str, attempt_id: str, sequence_id: int | None) -> bytes:
    """The first fields of an envelope."""
    if len(rollout_id) + len(attempt_id) <= CHARS_MAX:
        ids = _shared_ids(rollout_id, attempt_id)
    else:
        ids = _attempt_ids(rollout_id, attempt_id)
    return ids if sequence_id is None else ids + _SEQUENCE_ID + varint(sequence_id)


def _attempt_ids(rollout_id: str, attempt_id: str) -> bytes:
    """Those that all spans of an attempt have."""
    fields = ((_ROLLOUT_ID, rollout_id, "span.rollout_id"), (_ATTEMPT_ID, attempt_id, "span.attempt_id"))
    return b"".join([delimited(tag, text_to_proto(text, field).encode()) for tag, text, field in fields])


_shared_ids: Final = lru_cache(REMEMBERED_MAX)(_attempt_ids)


def span_record_from_proto(message: span_pb2.Span, field: str) -> SpanRecord:
    """The record of an envelope that came from outside; it has been checked, so that every reader can decode it.

    InvalidArgumentError names the field that is missing or malformed.
    """
    columns = _columns(message, field)
    return _record(message.SerializeToString(), message, columns)


def span_record_from_bytes(data: bytes, field: str) -> SpanRecord:
    """The same for an envelope that is serialized; its bytes are kept as they are."""
    try:
        message = span_pb2.Span.FromString(data)
    except DecodeError:
        raise invalid(field, "is malformed; it must be a serialized Span") from None
    columns = _columns(message, field)
    return _record(data, message, columns)


def _record(data: bytes, message: span_pb2.Span, columns: _Columns) -> SpanRecord:
    """Of the envelope ``message``, whose bytes are ``data``."""
    rollout_id, attempt_id, sequence_id, *_ = columns
    ids = _ids(rollout_id, attempt_id, sequence_id)
    start = len(ids)
    if not data.startswith(ids):  # as everybody writes them, though nobody has to
        rest = span_pb2.Span()
        rest.CopyFrom(message)
        for name in ENVELOPE_IDS:
            rest.ClearField(name)
        data, start = rest.SerializeToString(), 0
    middle = end_of_delimited(data, start + len(_OTLP_SPAN)) if data.startswith(_OTLP_SPAN, start) else len(data)
    return SpanRecord(*columns, *_halves(data[start:middle], data[middle:], has_overlay=bool(message.overlay_json)))


def _halves(body: bytes, common: bytes, *, has_overlay: bool) -> tuple[bytes, bytes]:
    """OTLP's span, and what comes after that: resource and scope, which very many spans of a process have in common.

    All is in the first half if the second is one span's alone, as an overlay is, or is large.
    """
    if has_overlay or len(common) > COMMON_BYTES_MAX:
        return body + common, b""
    return body, _shared_bytes(common)


@lru_cache(COMMON_MAX)
def _shared_bytes(common: bytes) -> bytes:
    """The same object for the same bytes."""
    return common


def _columns(message: span_pb2.Span, field: str) -> _Columns:
    """The columns of an envelope, which has been checked then."""
    rollout_id, attempt_id, sequence_id = message.rollout_id, message.attempt_id, message.sequence_id
    if not rollout_id or not attempt_id or sequence_id < 0:
        required_text(rollout_id, f"{field}.rollout_id")
        required_text(attempt_id, f"{field}.attempt_id")
        not_negative(sequence_id, f"{field}.sequence_id")
    given_number = sequence_id if sequence_id or message.HasField("sequence_id") else None
    columns = (
        columns_of(_decoded(message, field).__dict__)[3:] if message.overlay_json else _otlp_columns(message, field)
    )
    return _shared(rollout_id), _shared(attempt_id), given_number, *columns


_shared: Final = remembering(str)
"""The same object for the same text: many spans have it. (What ``sys.intern`` keeps, some versions of Python keep for
ever.)"""


def span_to_bytes(span: Span, *, numbered: bool = True) -> bytes:
    """The serialized envelope with its ids, unless not ``numbered`` with its sequence id; errors as of
    :meth:`ProtoSpanCodec.encode`."""
    columns, body, common, _ = encode_span(span)
    rollout_id, attempt_id, sequence_id, *_ = columns
    return b"".join((_ids(rollout_id, attempt_id, sequence_id if numbered else None), body, common))


def span_to_proto(span: Span) -> span_pb2.Span:
    """The envelope with its ids; errors as of :meth:`ProtoSpanCodec.encode`."""
    return span_pb2.Span.FromString(span_to_bytes(span))


def spans_at_first_look(messages: Sequence[span_pb2.Span], field: str) -> list[Span]:
    """The spans of envelopes, each made when somebody looks into it.

    What is wrong with an envelope is told then: an InvalidArgumentError names the field that is missing or malformed.
    """
    return lazily(repeat(Span, len(messages)), partial(_decoded, field=field), messages)


def _decoded(message: span_pb2.Span, field: str) -> Span:
    not_negative(message.sequence_id, f"{field}.sequence_id")
    overlay = _overlay_of(message, field)
    _otlp_columns(message, field, overlay)
    return _span_of(message, overlay, field)


def _span_of(message: span_pb2.Span, overlay: dict[str, Any], field: str) -> Span:
    """The span of an envelope whose OTLP part has been checked."""
    values = read_span(message)
    if overlay:
        values = lay_over(values, overlay, f"{field}.overlay_json")
    values["rollout_id"] = message.rollout_id
    values["attempt_id"] = message.attempt_id
    values["sequence_id"] = message.sequence_id
    return validated(Span, values, field)


def _overlay_of(message: span_pb2.Span, field: str) -> dict[str, Any]:
    if not message.overlay_json:
        return {}
    overlay = json_object(message.overlay_json, f"{field}.overlay_json")
    for name in ENVELOPE_IDS:
        if name in overlay:
            raise invalid(f"{field}.overlay_json", f"must not have {name!r}; set {field}.{name}")
    return overlay


def _otlp_columns(message: span_pb2.Span, field: str, overlaid: Container[str] = ()) -> _OtlpColumns:
    """The columns of the OTLP part, if there is one that can be read. An id may be missing only where the overlay has
    it."""
    require(message, "span", f"{field}.span")
    otlp = message.span
    trace_id, span_id, parent_id = otlp.trace_id, otlp.span_id, otlp.parent_span_id
    start_nanos, end_nanos = otlp.start_time_unix_nano, otlp.end_time_unix_nano
    code, kind = otlp.status.code, otlp.kind
    if len(trace_id) != TRACE_ID_BYTES or len(span_id) != SPAN_ID_BYTES or len(parent_id) not in (0, SPAN_ID_BYTES):
        _check_id(trace_id, TRACE_ID_BYTES, field, "trace_id", required="trace_id" not in overlaid)
        _check_id(span_id, SPAN_ID_BYTES, field, "span_id", required="span_id" not in overlaid)
        _check_id(parent_id, SPAN_ID_BYTES, field, "parent_span_id")
    if start_nanos > TIME_MAX_NANOS or end_nanos > TIME_MAX_NANOS:
        _check_time(start_nanos, field, "start_time_unix_nano")
        _check_time(end_nanos, field, "end_time_unix_nano")
    if code not in STATUS_CODE:
        STATUS_CODE.from_proto(code, f"{field}.span.status.code")
    if kind:
        SPAN_KIND.from_proto(kind, f"{field}.span.kind")
    for index, event in enumerate(otlp.events[:]):
        _check_time(event.time_unix_nano, field, f"events[{index}].time_unix_nano")
    for index, link in enumerate(otlp.links[:]):
        _check_id(link.trace_id, TRACE_ID_BYTES, field, f"links[{index}].trace_id")
        _check_id(link.span_id, SPAN_ID_BYTES, field, f"links[{index}].span_id")
    return (
        _shared(trace_id.hex()),
        span_id.hex(),
        _shared(parent_id.hex()) or None,
        _shared(otlp.name),
        read_time(start_nanos),
        read_time(end_nanos),
    )


def _check_id(value: bytes, size_bytes: int, field: str, name: str, *, required: bool = False) -> None:
    if len(value) != size_bytes and (value or required):
        raise invalid(f"{field}.span.{name}", f"has {len(value)} bytes; it must have {size_bytes}")


def _check_time(nanos: int, field: str, name: str) -> None:
    if nanos > TIME_MAX_NANOS:
        raise invalid(f"{field}.span.{name}", f"is {nanos}; it must be at most {TIME_MAX_NANOS}, which is in 2262")
