"""Spans to the wire and back: OTLP's own messages in an envelope, and an overlay for what OTLP does not hold exactly.

How the fields map is told in ``proto/lightning_store/v1/span.proto``. A reader makes the plain Python form of the OTLP
part (``_read``), lays the overlay over it, and validates. A writer sets the OTLP part and puts into the overlay exactly
what that reader would miss.

A stored span's body is the serialized envelope without its three ids, which are columns of their own. A server passes
a span from the wire to the backend and back as bytes; it looks into the overlay alone, and only to check it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import Message
from opentelemetry.proto.trace.v1 import trace_pb2
from pydantic import BaseModel, TypeAdapter, ValidationError

from lightning_store import json_text
from lightning_store.backends.base import SpanRecord
from lightning_store.errors import StoreError
from lightning_store.model import (
    Counter,
    Event,
    InstrumentationScope,
    Link,
    OtelResource,
    Span,
    SpanContext,
    Time,
    TraceStatus,
)
from lightning_store.v1 import span_pb2
from lightning_store.wire.attributes import (
    KeyValues,
    Residue,
    lay_over,
    read_attributes,
    utf8_and_residue,
    write_attributes,
)
from lightning_store.wire.checks import (
    invalid,
    json_object,
    not_negative,
    require,
    required_text,
    text_to_proto,
    validated,
)
from lightning_store.wire.enums import EnumTable
from lightning_store.wire.span_contexts import (
    difference,
    format_trace_state,
    read_link_context,
    read_own_context,
    read_parent_context,
    remote_flags,
    says_too_much,
    trace_flags,
)
from lightning_store.wire.times import TIME_MAX_NANOS, from_nanos, to_nanos

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8

ENVELOPE_IDS: Final = ("rollout_id", "attempt_id", "sequence_id")
SPAN_COUNTS: Final = ("dropped_attributes_count", "dropped_events_count", "dropped_links_count")
DROPPED_ATTRIBUTES: Final = ("dropped_attributes_count",)
"""Extra fields of the model that OTLP has fields for."""
UINT32_MAX: Final = 2**32 - 1

_KIND: Final = EnumTable(
    {
        "INTERNAL": trace_pb2.Span.SPAN_KIND_INTERNAL,
        "SERVER": trace_pb2.Span.SPAN_KIND_SERVER,
        "CLIENT": trace_pb2.Span.SPAN_KIND_CLIENT,
        "PRODUCER": trace_pb2.Span.SPAN_KIND_PRODUCER,
        "CONSUMER": trace_pb2.Span.SPAN_KIND_CONSUMER,
    }
)
_STATUS_CODE: Final = EnumTable(
    {
        "UNSET": trace_pb2.Status.STATUS_CODE_UNSET,
        "OK": trace_pb2.Status.STATUS_CODE_OK,
        "ERROR": trace_pb2.Status.STATUS_CODE_ERROR,
    }
)


_COLUMNS: Final = (
    "rollout_id",
    "attempt_id",
    "sequence_id",
    "trace_id",
    "span_id",
    "parent_id",
    "name",
    "start_time",
    "end_time",
)
_COLUMN_TYPES: Final = TypeAdapter(tuple[str, str, Counter, str, str, str | None, str, Time | None, Time | None])


class ProtoSpanCodec:
    """The :class:`~lightning_store.backends.base.SpanCodec` whose records are what the wire carries."""

    def encode(self, span: Span) -> SpanRecord:
        """NotJsonError (a TypeError) or InvalidArgumentError names what neither OTLP nor JSON can hold."""
        message = span_pb2.Span()
        _write_checked(span, message)
        return SpanRecord(
            rollout_id=span.rollout_id,
            attempt_id=span.attempt_id,
            sequence_id=span.sequence_id,
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_id=span.parent_id,
            name=span.name,
            start_time=span.start_time,
            end_time=span.end_time,
            body=message.SerializeToString(),
        )

    def decode(self, record: SpanRecord) -> Span:
        return span_from_proto(span_record_to_proto(record), "span")


# --- Records and messages --------------------------------------------------------------------------------------------


def span_record_to_proto(record: SpanRecord) -> span_pb2.Span:
    """The envelope of a record that :class:`ProtoSpanCodec` or :func:`span_record_from_proto` made."""
    message = span_pb2.Span.FromString(record.body)
    message.rollout_id = record.rollout_id
    message.attempt_id = record.attempt_id
    if record.sequence_id is not None:
        message.sequence_id = record.sequence_id
    return message


def span_record_from_proto(message: span_pb2.Span, field: str) -> SpanRecord:
    """The record of an envelope that came from outside; it has been checked, so that every reader can decode it.

    ``message`` is used as scratch space; afterwards it is as it was.
    """
    rollout_id = required_text(message.rollout_id, f"{field}.rollout_id")
    attempt_id = required_text(message.attempt_id, f"{field}.attempt_id")
    sequence_id = not_negative(message.sequence_id, f"{field}.sequence_id") if message.HasField("sequence_id") else None
    columns = _columns(message, field)
    for name in ENVELOPE_IDS:
        message.ClearField(name)
    body = message.SerializeToString()
    message.rollout_id, message.attempt_id = rollout_id, attempt_id
    if sequence_id is not None:
        message.sequence_id = sequence_id
    return SpanRecord(rollout_id, attempt_id, sequence_id, *columns, body)


def _columns(message: span_pb2.Span, field: str) -> tuple[str, str, str | None, str, float | None, float | None]:
    """trace_id, span_id, parent_id, name, start_time and end_time of a checked envelope."""
    require(message, "span", f"{field}.span")
    if message.overlay_json:
        span = span_from_proto(message, field)
        return span.trace_id, span.span_id, span.parent_id, span.name, span.start_time, span.end_time
    _check(message, field)
    otlp = message.span
    return (
        otlp.trace_id.hex(),
        otlp.span_id.hex(),
        otlp.parent_span_id.hex() or None,
        otlp.name,
        _read_time(otlp.start_time_unix_nano),
        _read_time(otlp.end_time_unix_nano),
    )


def span_to_proto(span: Span) -> span_pb2.Span:
    """The envelope with its ids."""
    message = span_pb2.Span(
        rollout_id=text_to_proto(span.rollout_id, "span.rollout_id"),
        attempt_id=text_to_proto(span.attempt_id, "span.attempt_id"),
    )
    _write_checked(span, message)
    message.sequence_id = span.sequence_id
    return message


def _write_checked(span: Span, message: span_pb2.Span) -> None:
    """Write what a reader will take: a span may have been changed by hand since it was made."""
    try:
        _COLUMN_TYPES.validate_python(tuple(getattr(span, name) for name in _COLUMNS), strict=True)
        if not isinstance(span.attributes, Mapping):
            raise invalid("span.attributes", f"is {span.attributes!r}; it must be a mapping")
        _write(span, message)
    except StoreError:
        raise
    except ValidationError as error:
        [index, *_] = error.errors()[0]["loc"]
        raise invalid(f"span.{_COLUMNS[int(index)]}", f"is not legal: {error.errors()[0]['msg']}") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise invalid("span", f"{span.span_id} cannot be stored: {error}") from error


def span_from_proto(message: span_pb2.Span, field: str) -> Span:
    """The span of an envelope; InvalidArgumentError names the field that is missing or malformed."""
    require(message, "span", f"{field}.span")
    overlay = _overlay_of(message, field)
    _check(message, field, overlay)
    values = lay_over(_read(message), overlay, f"{field}.overlay_json")
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


def _check(message: span_pb2.Span, field: str, overlaid: Container[str] = ()) -> None:
    """Whether the OTLP part can be read. An id may be missing only where the overlay has it."""
    otlp = message.span
    _check_id(otlp.trace_id, TRACE_ID_BYTES, f"{field}.span.trace_id", required="trace_id" not in overlaid)
    _check_id(otlp.span_id, SPAN_ID_BYTES, f"{field}.span.span_id", required="span_id" not in overlaid)
    _check_id(otlp.parent_span_id, SPAN_ID_BYTES, f"{field}.span.parent_span_id", required=False)
    _check_time(otlp.start_time_unix_nano, f"{field}.span.start_time_unix_nano")
    _check_time(otlp.end_time_unix_nano, f"{field}.span.end_time_unix_nano")
    _STATUS_CODE.from_proto(otlp.status.code, f"{field}.span.status.code")
    if otlp.kind:
        _KIND.from_proto(otlp.kind, f"{field}.span.kind")
    for index, event in enumerate(otlp.events):
        _check_time(event.time_unix_nano, f"{field}.span.events[{index}].time_unix_nano")
    for index, link in enumerate(otlp.links):
        _check_id(link.trace_id, TRACE_ID_BYTES, f"{field}.span.links[{index}].trace_id", required=False)
        _check_id(link.span_id, SPAN_ID_BYTES, f"{field}.span.links[{index}].span_id", required=False)


def _check_id(value: bytes, size_bytes: int, field: str, *, required: bool) -> None:
    if len(value) != size_bytes and (value or required):
        raise invalid(field, f"has {len(value)} bytes; it must have {size_bytes}")


def _check_time(nanos: int, field: str) -> None:
    if nanos > TIME_MAX_NANOS:
        raise invalid(field, f"is {nanos}; it must be at most {TIME_MAX_NANOS}, which is in 2262")


# --- The span itself: to OTLP ----------------------------------------------------------------------------------------


def _write(span: Span, message: span_pb2.Span) -> None:
    """Set everything but the envelope's ids."""
    otlp = message.span
    if span.kind is not None:
        otlp.kind = _KIND.to_proto(span.kind, "span.kind")
    residues = {
        "trace_id": _set_id(otlp, "trace_id", span.trace_id, TRACE_ID_BYTES),
        "span_id": _set_id(otlp, "span_id", span.span_id, SPAN_ID_BYTES),
        "parent_id": _set_id(otlp, "parent_span_id", span.parent_id, SPAN_ID_BYTES),
        "name": _set_text(otlp, "name", span.name),
        "status": _write_status(span.status, otlp.status),
        "attributes": write_attributes(span.attributes, otlp.attributes, "span.attributes"),
        "events": _residues_of(
            _write_event(event, otlp.events.add(), f"span.events[{index}]") for index, event in enumerate(span.events)
        ),
        "links": _residues_of(
            _write_link(link, otlp.links.add(), f"span.links[{index}]") for index, link in enumerate(span.links)
        ),
        "start_time": _set_time(otlp, "start_time_unix_nano", span.start_time),
        "end_time": _set_time(otlp, "end_time_unix_nano", span.end_time),
        "context": _write_context(span.context, message),
        "resource": _write_resource(span.resource, message),
        "scope": _write_scope(span.scope, message),
    }
    residues["parent"] = _write_parent(span.parent, message)  # compares with the ids and the context written above
    overlay = _joined(residues, _write_extras(span, otlp, SPAN_COUNTS))
    if overlay is not None:
        message.overlay_json = json_text.dumps(overlay, "span")


def _joined(residues: Mapping[str, Residue], extras: dict[str, Any]) -> Residue:
    """The residue of an object, from those of its fields and the fields that OTLP has not."""
    left = {name: residue for name, residue in residues.items() if residue is not None}
    return left | extras or None


def _residues_of(items: Iterable[Residue]) -> Residue:
    """The residue of a list, from those of its items."""
    return {str(index): residue for index, residue in enumerate(items) if residue is not None} or None


def _write_extras(model: BaseModel, into: Message, counts: tuple[str, ...]) -> dict[str, Any]:
    """The model's extra fields, less the counts that OTLP has fields for, which are set there."""
    extras = dict(model.model_extra or {})
    for name in counts:
        value = extras.get(name)
        if type(value) is int and 0 < value <= UINT32_MAX:
            setattr(into, name, value)
            del extras[name]
    return extras


def _set_id(into: Message, name: str, value: str | None, size_bytes: int) -> Residue:
    if value is None:
        return None
    if len(value) == 2 * size_bytes:
        try:
            raw = bytes.fromhex(value)
        except ValueError:
            return value
        if raw.hex() == value:
            setattr(into, name, raw)
            return None
    return value


def _set_text(into: Message, name: str, value: str) -> Residue:
    text, residue = utf8_and_residue(value)
    setattr(into, name, text)
    return residue


def _set_optional_text(into: Message, name: str, value: str | None) -> Residue:
    """Set a text of which empty means None."""
    if value is None:
        return None
    return _set_text(into, name, value) if value else ""


def _set_time(into: Message, name: str, seconds: float | None) -> Residue:
    """Set nanoseconds of which 0 means None."""
    if seconds is None:
        return None
    nanos = to_nanos(seconds)
    setattr(into, name, nanos)
    return None if nanos and from_nanos(nanos) == seconds else seconds


def _write_status(status: TraceStatus, into: trace_pb2.Status) -> Residue:
    into.code = _STATUS_CODE.to_proto(status.status_code, "span.status.status_code")
    residues = {"description": _set_optional_text(into, "message", status.description)}
    return _joined(residues, _write_extras(status, into, ()))


def _write_event(event: Event, into: trace_pb2.Span.Event, path: str) -> Residue:
    residues = {
        "name": _set_text(into, "name", event.name),
        "timestamp": _set_time(into, "time_unix_nano", event.timestamp),
        "attributes": write_attributes(event.attributes, into.attributes, f"{path}.attributes"),
    }
    return _joined(residues, _write_extras(event, into, DROPPED_ATTRIBUTES))


def _write_link(link: Link, into: trace_pb2.Span.Link, path: str) -> Residue:
    context = link.context
    _set_id(into, "trace_id", context.trace_id, TRACE_ID_BYTES)
    _set_id(into, "span_id", context.span_id, SPAN_ID_BYTES)
    into.trace_state = format_trace_state(context.trace_state)
    into.flags = trace_flags(context) | remote_flags(context)
    residues = {
        "context": difference(read_link_context(into), context),
        "attributes": _write_optional_attributes(link.attributes, into.attributes, f"{path}.attributes"),
    }
    return _joined(residues, _write_extras(link, into, DROPPED_ATTRIBUTES))


def _write_optional_attributes(attributes: Mapping[str, Any] | None, into: KeyValues, path: str) -> Residue:
    """Write attributes of which none at all means None."""
    return write_attributes(attributes, into, path) if attributes else attributes


def _write_context(context: SpanContext | None, message: span_pb2.Span) -> Residue:
    if context is None:
        return None
    message.has_context = True
    message.span.trace_state = format_trace_state(context.trace_state)
    message.span.flags |= trace_flags(context)
    return difference(read_own_context(message.span), context)


def _write_parent(parent: SpanContext | None, message: span_pb2.Span) -> Residue:
    if parent is None:
        return None
    message.span.flags |= remote_flags(parent)
    base = read_parent_context(message.span)
    if says_too_much(base, parent):
        return dict(parent)
    message.has_parent = True
    return difference(base, parent)


def _write_resource(resource: OtelResource, message: span_pb2.Span) -> Residue:
    residues = {
        "attributes": write_attributes(resource.attributes, message.resource.attributes, "span.resource.attributes"),
        "schema_url": _set_text(message, "resource_schema_url", resource.schema_url),
    }
    return _joined(residues, _write_extras(resource, message.resource, DROPPED_ATTRIBUTES))


def _write_scope(scope: InstrumentationScope | None, message: span_pb2.Span) -> Residue:
    if scope is None:
        return None
    into = message.scope
    into.SetInParent()
    residues = {
        "name": _set_text(into, "name", scope.name),
        "version": _set_optional_text(into, "version", scope.version),
        "schema_url": _set_optional_text(message, "scope_schema_url", scope.schema_url),
        "attributes": _write_optional_attributes(scope.attributes, into.attributes, "span.scope.attributes"),
    }
    return _joined(residues, _write_extras(scope, into, DROPPED_ATTRIBUTES))


# --- The span itself: from OTLP --------------------------------------------------------------------------------------


def _read(message: span_pb2.Span) -> dict[str, Any]:
    """Values of the model from an OTLP part that has been checked."""
    otlp = message.span
    return {
        "trace_id": otlp.trace_id.hex(),
        "span_id": otlp.span_id.hex(),
        "parent_id": otlp.parent_span_id.hex() or None,
        "name": otlp.name,
        "kind": _KIND.from_proto(otlp.kind, "kind") if otlp.kind else None,
        "status": {
            "status_code": _STATUS_CODE.from_proto(otlp.status.code, "status.code"),
            "description": otlp.status.message or None,
        },
        "attributes": read_attributes(otlp.attributes),
        "events": [_read_event(event) for event in otlp.events],
        "links": [_read_link(link) for link in otlp.links],
        "start_time": _read_time(otlp.start_time_unix_nano),
        "end_time": _read_time(otlp.end_time_unix_nano),
        "context": read_own_context(otlp) if message.has_context else None,
        "parent": read_parent_context(otlp) if message.has_parent else None,
        "resource": _read_resource(message),
        "scope": _read_scope(message) if message.HasField("scope") else None,
        **_read_counts(otlp, SPAN_COUNTS),
    }


def _read_counts(message: Message, counts: tuple[str, ...]) -> dict[str, int]:
    return {name: count for name in counts if (count := getattr(message, name))}


def _read_time(nanos: int) -> float | None:
    return from_nanos(nanos) if nanos else None


def _read_event(event: trace_pb2.Span.Event) -> dict[str, Any]:
    return {
        "name": event.name,
        "attributes": read_attributes(event.attributes),
        "timestamp": _read_time(event.time_unix_nano),
        **_read_counts(event, DROPPED_ATTRIBUTES),
    }


def _read_link(link: trace_pb2.Span.Link) -> dict[str, Any]:
    return {
        "context": read_link_context(link),
        "attributes": read_attributes(link.attributes) or None,
        **_read_counts(link, DROPPED_ATTRIBUTES),
    }


def _read_resource(message: span_pb2.Span) -> dict[str, Any]:
    return {
        "attributes": read_attributes(message.resource.attributes),
        "schema_url": message.resource_schema_url,
        **_read_counts(message.resource, DROPPED_ATTRIBUTES),
    }


def _read_scope(message: span_pb2.Span) -> dict[str, Any]:
    scope = message.scope
    return {
        "name": scope.name,
        "version": scope.version or None,
        "schema_url": message.scope_schema_url or None,
        "attributes": read_attributes(scope.attributes) or None,
        **_read_counts(scope, DROPPED_ATTRIBUTES),
    }
