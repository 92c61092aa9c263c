"""What a span consists of, in both directions: ids, texts, times, status, events, links, resource, scope.

Functions that write append fields to a list of bytes, in the order of their numbers as protobuf does, and return the
residue (see :mod:`lightning_store.wire.attributes`). Functions that read return the plain Python form of the model,
from a message that has been checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from pydantic import BaseModel

from lightning_store.model import TIME_MAX_SECONDS, Event, InstrumentationScope, Link, OtelResource, TraceStatus
from lightning_store.v1 import span_pb2
from lightning_store.wire.attributes import KeyValues, Residue, read_attributes, utf8_and_residue
from lightning_store.wire.enums import EnumTable
from lightning_store.wire.span_contexts import (
    context_values,
    difference,
    format_trace_state,
    plain_context,
    remote_flags,
    trace_flags,
)
from lightning_store.wire.times import EXACT_FROM_SECONDS, TIME_MAX_NANOS, from_nanos, to_nanos
from lightning_store.wire.wire_format import UINT32_MAX, delimited, delimited_parts, tag_of, varint

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8

SPAN_KIND: Final = EnumTable(
    {
        "INTERNAL": trace_pb2.Span.SPAN_KIND_INTERNAL,
        "SERVER": trace_pb2.Span.SPAN_KIND_SERVER,
        "CLIENT": trace_pb2.Span.SPAN_KIND_CLIENT,
        "PRODUCER": trace_pb2.Span.SPAN_KIND_PRODUCER,
        "CONSUMER": trace_pb2.Span.SPAN_KIND_CONSUMER,
    }
)
STATUS_CODE: Final = EnumTable(
    {
        "UNSET": trace_pb2.Status.STATUS_CODE_UNSET,
        "OK": trace_pb2.Status.STATUS_CODE_OK,
        "ERROR": trace_pb2.Status.STATUS_CODE_ERROR,
    }
)

# --- Ids, texts, times -----------------------------------------------------------------------------------------------


def id_field(tag: bytes, size_bytes: int, value: str) -> bytes:
    """The field of an id that is lower-case hex of the right length; empty for any other."""
    if len(value) != 2 * size_bytes:
        return b""
    try:
        raw = bytes.fromhex(value)
    except ValueError:
        return b""
    return delimited(tag, raw) if raw.hex() == value else b""


def text_field(tag: bytes, text: str) -> tuple[bytes, Residue]:
    """The field of a text that is "" where it is absent, and the residue."""
    if text == "":
        return b"", None
    text, residue = utf8_and_residue(text)
    return delimited(tag, text.encode()), residue


def write_text(tag: bytes, text: str, into: list[bytes]) -> Residue:
    """Write a text that is "" where it is absent."""
    field, residue = text_field(tag, text)
    into.append(field)
    return residue


def write_optional_text(tag: bytes, text: str | None, into: list[bytes]) -> Residue:
    """Write a text that is None where it is absent."""
    if text is None:
        return None
    return write_text(tag, text, into) if text else ""


def write_time(tag: bytes, seconds: float | None, into: list[bytes]) -> Residue:
    """Write nanoseconds, which are None where they are absent."""
    if seconds is None:
        return None
    nanos = to_nanos(seconds)
    if nanos > TIME_MAX_NANOS:
        raise ValueError(f"{seconds} is past the last time, {TIME_MAX_SECONDS} seconds")
    if nanos:
        into.append(tag + nanos.to_bytes(8, "little"))
    return None if nanos and (seconds >= EXACT_FROM_SECONDS or from_nanos(nanos) == seconds) else seconds


def read_time(nanos: int) -> float | None:
    return from_nanos(nanos) if nanos else None


# --- Residues, extra fields, counts of what was dropped --------------------------------------------------------------


def joined(residues: Mapping[str, Residue], extras: dict[str, Any]) -> Residue:
    """The residue of an object, from those of its fields and the extra fields that OTLP has not."""
    if not extras and list(residues.values()).count(None) == len(residues):  # as a rule, and quickly told
        return None
    left = {name: residue for name, residue in residues.items() if residue is not None}
    return left | extras or None


def extras_of(model: BaseModel) -> dict[str, Any]:
    """The extra fields of a model, for :func:`write_count` to take from."""
    extras = model.__pydantic_extra__
    return dict(extras) if extras else {}


def write_count(tag: bytes, name: str, extras: dict[str, Any], into: list[bytes]) -> None:
    """Write a count of what was dropped, and take it out of ``extras``, if it is there and OTLP can hold it."""
    value = extras.get(name)
    if type(value) is int and 0 < value <= UINT32_MAX:
        into.append(tag + varint(value))
        del extras[name]


def read_counts(message: Message, *names: str) -> dict[str, int]:
    """The counts that are not 0."""
    return {name: count for name in names if (count := getattr(message, name))}


def _write_optional(field: KeyValues, attributes: Mapping[str, Any] | None, into: list[bytes], path: str) -> Residue:
    """Write attributes of which none at all means None."""
    return field.write(attributes, into, path) if attributes else attributes


# --- Status ----------------------------------------------------------------------------------------------------------

_MESSAGE: Final = tag_of(trace_pb2.Status, "message")
_CODE: Final = tag_of(trace_pb2.Status, "code")
_STATUS: Final = tag_of(trace_pb2.Span, "status")


def _code_field(code: int) -> bytes:
    return _CODE + varint(code) if code else b""


_BARE_STATUS: Final = {code: delimited(_STATUS, _code_field(code)) for code in trace_pb2.Status.StatusCode.values()}
"""The field of a status without a description, by its code."""


def write_status(status: TraceStatus, into: list[bytes]) -> Residue:
    values = status.__dict__
    code, description = STATUS_CODE.to_proto(values["status_code"], "span.status.status_code"), values["description"]
    if description is None:
        into.append(_BARE_STATUS[code])
        return extras_of(status) or None
    fields: list[bytes] = []
    residues = {"description": write_optional_text(_MESSAGE, description, fields)}
    fields.append(_code_field(code))
    into.append(delimited_parts(_STATUS, fields))
    return joined(residues, extras_of(status))


def read_status(status: trace_pb2.Status) -> dict[str, Any]:
    return {
        "status_code": STATUS_CODE.from_proto(status.code, "status.code"),
        "description": status.message or None,
    }


# --- Events ----------------------------------------------------------------------------------------------------------

_EVENT_TIME: Final = tag_of(trace_pb2.Span.Event, "time_unix_nano")
_EVENT_NAME: Final = tag_of(trace_pb2.Span.Event, "name")
_EVENT_ATTRIBUTES: Final = KeyValues(trace_pb2.Span.Event, "attributes")
_EVENT_DROPPED: Final = tag_of(trace_pb2.Span.Event, "dropped_attributes_count")


def write_event(tag: bytes, event: Event, into: list[bytes], path: str) -> Residue:
    fields: list[bytes] = []
    extras = extras_of(event)
    residues = {
        "timestamp": write_time(_EVENT_TIME, event.timestamp, fields),
        "name": write_text(_EVENT_NAME, event.name, fields),
        "attributes": _EVENT_ATTRIBUTES.write(event.attributes, fields, f"{path}.attributes"),
    }
    write_count(_EVENT_DROPPED, "dropped_attributes_count", extras, fields)
    into.append(delimited_parts(tag, fields))
    return joined(residues, extras)


def read_event(event: trace_pb2.Span.Event) -> dict[str, Any]:
    return {
        "name": event.name,
        "attributes": read_attributes(event.attributes),
        "timestamp": read_time(event.time_unix_nano),
        **read_counts(event, "dropped_attributes_count"),
    }


# --- Links -----------------------------------------------------------------------------------------------------------

_LINK_TRACE_ID: Final = tag_of(trace_pb2.Span.Link, "trace_id")
_LINK_SPAN_ID: Final = tag_of(trace_pb2.Span.Link, "span_id")
_LINK_TRACE_STATE: Final = tag_of(trace_pb2.Span.Link, "trace_state")
_LINK_ATTRIBUTES: Final = KeyValues(trace_pb2.Span.Link, "attributes")
_LINK_DROPPED: Final = tag_of(trace_pb2.Span.Link, "dropped_attributes_count")
_LINK_FLAGS: Final = tag_of(trace_pb2.Span.Link, "flags")


def write_link(tag: bytes, link: Link, into: list[bytes], path: str) -> Residue:
    context = plain_context(link.context)
    trace_id, span_id = context["trace_id"], context["span_id"]
    trace_id_field = id_field(_LINK_TRACE_ID, TRACE_ID_BYTES, trace_id)
    span_id_field = id_field(_LINK_SPAN_ID, SPAN_ID_BYTES, span_id)
    trace_state, flags = format_trace_state(context["trace_state"]), trace_flags(context) | remote_flags(context)
    extras = extras_of(link)
    fields = [trace_id_field, span_id_field]
    write_text(_LINK_TRACE_STATE, trace_state, fields)
    told = context_values(trace_id if trace_id_field else "", span_id if span_id_field else "", trace_state, flags)
    residues = {
        "context": difference(told, context),
        "attributes": _write_optional(_LINK_ATTRIBUTES, link.attributes, fields, f"{path}.attributes"),
    }
    write_count(_LINK_DROPPED, "dropped_attributes_count", extras, fields)
    fields.append(_LINK_FLAGS + flags.to_bytes(4, "little"))
    into.append(delimited_parts(tag, fields))
    return joined(residues, extras)


def read_link(link: trace_pb2.Span.Link) -> dict[str, Any]:
    return {
        "context": context_values(link.trace_id.hex(), link.span_id.hex(), link.trace_state, link.flags),
        "attributes": read_attributes(link.attributes) or None,
        **read_counts(link, "dropped_attributes_count"),
    }


# --- Resource --------------------------------------------------------------------------------------------------------

_RESOURCE_ATTRIBUTES: Final = KeyValues(resource_pb2.Resource, "attributes")
_RESOURCE_DROPPED: Final = tag_of(resource_pb2.Resource, "dropped_attributes_count")
_RESOURCE: Final = tag_of(span_pb2.Span, "resource")
_RESOURCE_SCHEMA_URL: Final = tag_of(span_pb2.Span, "resource_schema_url")


def write_resource(resource: OtelResource, into: list[bytes]) -> Residue:
    """Write the fields of the envelope that tell the resource.

    A process has one resource, for very many spans: the last one, if it was texts alone, is not encoded again.
    """
    global _last_resource  # noqa: PLW0603  # one object, so that threads see both halves of it or neither
    values = resource.__dict__
    if resource.__pydantic_extra__ or values["schema_url"] != "":
        return _write_resource(resource, into)
    attributes = values["attributes"]
    known, encoded = _last_resource
    if attributes == known:  # and so of texts: nothing else is equal to a text
        into.append(encoded)
        return None
    parts: list[bytes] = []
    residue = _write_resource(resource, parts)
    if residue is None and all(type(value) is str for value in attributes.values()):
        _last_resource = (dict(attributes), b"".join(parts))
    into += parts
    return residue


_last_resource: tuple[dict[str, str], bytes] = ({}, b"")


def _write_resource(resource: OtelResource, into: list[bytes]) -> Residue:
    fields: list[bytes] = []
    values, extras = resource.__dict__, extras_of(resource)
    attributes = _RESOURCE_ATTRIBUTES.write(values["attributes"], fields, "span.resource.attributes")
    write_count(_RESOURCE_DROPPED, "dropped_attributes_count", extras, fields)
    if fields:
        into.append(delimited_parts(_RESOURCE, fields))
    schema_url = write_text(_RESOURCE_SCHEMA_URL, values["schema_url"], into)
    return joined({"attributes": attributes, "schema_url": schema_url}, extras)


def read_resource(message: span_pb2.Span) -> dict[str, Any]:
    resource = message.resource
    return {
        "attributes": read_attributes(resource.attributes),
        "schema_url": message.resource_schema_url,
        **read_counts(resource, "dropped_attributes_count"),
    }


# --- Scope -----------------------------------------------------------------------------------------------------------

_SCOPE_NAME: Final = tag_of(common_pb2.InstrumentationScope, "name")
_SCOPE_VERSION: Final = tag_of(common_pb2.InstrumentationScope, "version")
_SCOPE_ATTRIBUTES: Final = KeyValues(common_pb2.InstrumentationScope, "attributes")
_SCOPE_DROPPED: Final = tag_of(common_pb2.InstrumentationScope, "dropped_attributes_count")
_SCOPE: Final = tag_of(span_pb2.Span, "scope")
_SCOPE_SCHEMA_URL: Final = tag_of(span_pb2.Span, "scope_schema_url")


def write_scope(scope: InstrumentationScope | None, into: list[bytes]) -> Residue:
    """Write the fields of the envelope that tell the scope."""
    if scope is None:
        return None
    fields: list[bytes] = []
    extras = extras_of(scope)
    residues = {
        "name": write_text(_SCOPE_NAME, scope.name, fields),
        "version": write_optional_text(_SCOPE_VERSION, scope.version, fields),
        "attributes": _write_optional(_SCOPE_ATTRIBUTES, scope.attributes, fields, "span.scope.attributes"),
    }
    write_count(_SCOPE_DROPPED, "dropped_attributes_count", extras, fields)
    into.append(delimited_parts(_SCOPE, fields))
    residues["schema_url"] = write_optional_text(_SCOPE_SCHEMA_URL, scope.schema_url, into)
    return joined(residues, extras)


def read_scope(message: span_pb2.Span) -> dict[str, Any] | None:
    if not message.HasField("scope"):
        return None
    scope = message.scope
    return {
        "name": scope.name,
        "version": scope.version or None,
        "schema_url": message.scope_schema_url or None,
        "attributes": read_attributes(scope.attributes) or None,
        **read_counts(scope, "dropped_attributes_count"),
    }
