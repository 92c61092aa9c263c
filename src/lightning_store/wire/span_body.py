"""The span itself, in both directions: what :mod:`lightning_store.wire.span_parts` puts together.

A writer writes the OTLP part, and puts into the overlay exactly what a reader would miss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from operator import itemgetter
from types import NoneType
from typing import Any, Final, TypeVar

from opentelemetry.proto.trace.v1 import trace_pb2
from pydantic import BaseModel, TypeAdapter, ValidationError

from lightning_store import json_text
from lightning_store.errors import StoreError
from lightning_store.model import TIME_MAX_SECONDS, Counter, Span, SpanContext, Time
from lightning_store.v1 import span_pb2
from lightning_store.wire.attributes import KeyValues, Residue, read_attributes
from lightning_store.wire.checks import invalid
from lightning_store.wire.remembering import remembering
from lightning_store.wire.span_contexts import TRACE_FLAGS, context_values, told_of_own, told_of_parent
from lightning_store.wire.span_parts import (
    SPAN_ID_BYTES,
    SPAN_KIND,
    TRACE_ID_BYTES,
    extras_of,
    id_field,
    joined,
    read_counts,
    read_event,
    read_link,
    read_resource,
    read_scope,
    read_status,
    read_time,
    text_field,
    write_count,
    write_event,
    write_link,
    write_resource,
    write_scope,
    write_status,
    write_text,
    write_time,
)
from lightning_store.wire.wire_format import INT64_MAX, delimited, delimited_parts, tag_of, varint

ModelT = TypeVar("ModelT", bound=BaseModel)

# --- Columns: what a record has beside the body ----------------------------------------------------------------------

COLUMNS: Final = (
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
Columns = tuple[str, str, Counter, str, str, str | None, str, Time | None, Time | None]
columns_of: Final[Callable[[Mapping[str, Any]], Columns]] = itemgetter(*COLUMNS)
_COLUMN_TYPES: Final[TypeAdapter[Columns]] = TypeAdapter(Columns)
_USUAL_TYPES: Final = frozenset(
    product([str], [str], [int], [str], [str], [str, NoneType], [str], [float, NoneType], [float, NoneType])
)


# --- To OTLP ---------------------------------------------------------------------------------------------------------

_SPAN_ID: Final = tag_of(trace_pb2.Span, "span_id")
_TRACE_STATE: Final = tag_of(trace_pb2.Span, "trace_state")
_KIND: Final = tag_of(trace_pb2.Span, "kind")
_START_TIME: Final = tag_of(trace_pb2.Span, "start_time_unix_nano")
_END_TIME: Final = tag_of(trace_pb2.Span, "end_time_unix_nano")
_ATTRIBUTES: Final = KeyValues(trace_pb2.Span, "attributes")
_DROPPED_ATTRIBUTES: Final = tag_of(trace_pb2.Span, "dropped_attributes_count")
_EVENTS: Final = tag_of(trace_pb2.Span, "events")
_DROPPED_EVENTS: Final = tag_of(trace_pb2.Span, "dropped_events_count")
_LINKS: Final = tag_of(trace_pb2.Span, "links")
_DROPPED_LINKS: Final = tag_of(trace_pb2.Span, "dropped_links_count")
_FLAGS: Final = tag_of(trace_pb2.Span, "flags")
_SPAN: Final = tag_of(span_pb2.Span, "span")
_HAS_CONTEXT: Final = tag_of(span_pb2.Span, "has_context") + varint(True)
_HAS_PARENT: Final = tag_of(span_pb2.Span, "has_parent") + varint(True)
_OVERLAY: Final = tag_of(span_pb2.Span, "overlay_json")

_trace_id_field: Final = remembering(partial(id_field, tag_of(trace_pb2.Span, "trace_id"), TRACE_ID_BYTES))
_parent_id_field: Final = remembering(partial(id_field, tag_of(trace_pb2.Span, "parent_span_id"), SPAN_ID_BYTES))
_name_field: Final = remembering(partial(text_field, tag_of(trace_pb2.Span, "name")))

EncodedSpan = tuple[Columns, bytes, bytes, bool]
"""A span as its columns and the two halves of the envelope without its ids: OTLP's span, and what comes after it; and
whether there is an overlay."""


def encode_span(span: Span) -> EncodedSpan:
    """A span may have been changed by hand since it was made, so whatever is not in the overlay is checked here.

    NotJsonError (a TypeError) or InvalidArgumentError names what is wrong.
    """
    try:
        columns = columns_of(span.__dict__)
        _check_columns(columns)
        return _encode(span, columns)
    except StoreError:
        raise
    except ValidationError as error:
        [index, *_] = error.errors()[0]["loc"]
        raise invalid(f"span.{COLUMNS[int(index)]}", f"is not legal: {error.errors()[0]['msg']}") from None
    except KeyError as error:
        raise invalid("span", f"has no {error}; make it with all of its fields") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise invalid("span", f"{span.span_id} cannot be stored: {error}") from error


def _check_columns(columns: Columns) -> None:
    """ValidationError with the index of the column. Most spans are as their model made them, which is quickly told."""
    _, _, sequence_id, _, _, _, _, start_time, end_time = columns
    if (
        tuple(map(type, columns)) not in _USUAL_TYPES
        or not 0 <= sequence_id <= INT64_MAX
        or not 0 <= (start_time or 0) <= TIME_MAX_SECONDS
        or not 0 <= (end_time or 0) <= TIME_MAX_SECONDS
    ):
        _COLUMN_TYPES.validate_python(columns, strict=True)


def _encode(span: Span, columns: Columns) -> EncodedSpan:
    """With the fields of the envelope in the order of their numbers."""
    fields, extras = span.__dict__, extras_of(span)  # asking a model for its fields one by one would take longer
    own = fields["context"]
    otlp: list[bytes] = []
    residues: dict[str, Residue] = {}
    flags, has_parent = _write_identity(columns, own, fields["parent"], otlp, residues)
    _write_rest(fields, columns, otlp, residues, extras)
    if flags:
        otlp.append(_FLAGS + flags.to_bytes(4, "little"))
    after: list[bytes] = []
    residues["resource"] = write_resource(fields["resource"], after)
    residues["scope"] = write_scope(fields["scope"], after)
    if own is not None:
        after.append(_HAS_CONTEXT)
    if has_parent:
        after.append(_HAS_PARENT)
    overlay = joined(residues, extras)
    if overlay is not None:
        after.append(delimited(_OVERLAY, json_text.dumps(overlay, "span").encode()))
    return columns, delimited_parts(_SPAN, otlp), b"".join(after), overlay is not None


def _write_identity(
    columns: Columns,
    own: SpanContext | None,
    parent: SpanContext | None,
    into: list[bytes],
    residues: dict[str, Residue],
) -> tuple[int, bool]:
    """Write ids and trace state; return OTLP's flags and whether the envelope has a parent."""
    _, _, _, trace_id, span_id, parent_id, _, _, _ = columns
    trace_id_field, span_id_field = _trace_id_field(trace_id), id_field(_SPAN_ID, SPAN_ID_BYTES, span_id)
    parent_id_field = b"" if parent_id is None else _parent_id_field(parent_id)
    if not trace_id_field:
        residues["trace_id"], trace_id = trace_id, ""
    if not span_id_field:
        residues["span_id"], span_id = span_id, ""
    if not parent_id_field:
        residues["parent_id"], parent_id = parent_id, ""
    trace_state, flags, residues["context"] = told_of_own(own, trace_id, span_id)
    has_parent, flags, residues["parent"] = told_of_parent(parent, trace_id, parent_id or "", trace_state, flags)
    into += trace_id_field, span_id_field
    if trace_state:
        write_text(_TRACE_STATE, trace_state, into)
    into.append(parent_id_field)
    return flags, has_parent


def _write_rest(
    fields: Mapping[str, Any],
    columns: Columns,
    into: list[bytes],
    residues: dict[str, Residue],
    extras: dict[str, Any],
) -> None:
    """Write what OTLP's span has between trace state and flags; counts are taken out of ``extras``."""
    _, _, _, _, _, _, name, start_time, end_time = columns
    name_field, residues["name"] = _name_field(name)
    into.append(name_field)
    if fields["kind"] is not None:
        into.append(_KIND + varint(SPAN_KIND.to_proto(fields["kind"], "span.kind")))
    residues["start_time"] = write_time(_START_TIME, start_time, into)
    residues["end_time"] = write_time(_END_TIME, end_time, into)
    residues["attributes"] = _ATTRIBUTES.write(_mapping(fields["attributes"]), into, "span.attributes")
    if extras:
        write_count(_DROPPED_ATTRIBUTES, "dropped_attributes_count", extras, into)
    if fields["events"] != []:
        residues["events"] = _write_each(write_event, _EVENTS, fields["events"], into, "span.events")
    if extras:
        write_count(_DROPPED_EVENTS, "dropped_events_count", extras, into)
    if fields["links"] != []:
        residues["links"] = _write_each(write_link, _LINKS, fields["links"], into, "span.links")
    if extras:
        write_count(_DROPPED_LINKS, "dropped_links_count", extras, into)
    residues["status"] = write_status(fields["status"], into)


def _mapping(attributes: Any) -> Mapping[str, Any]:
    if type(attributes) is not dict and not isinstance(attributes, Mapping):  # the second takes much longer
        raise invalid("span.attributes", f"is {attributes!r}; it must be a mapping")
    return attributes


def _write_each(
    write: Callable[[bytes, ModelT, list[bytes], str], Residue],
    tag: bytes,
    models: Sequence[ModelT],
    into: list[bytes],
    path: str,
) -> Residue:
    """Write a repeated field; return the residue by index."""
    residues = {str(index): write(tag, model, into, f"{path}[{index}]") for index, model in enumerate(models)}
    return joined(residues, {})


# --- From OTLP -------------------------------------------------------------------------------------------------------


def read_span(message: span_pb2.Span) -> dict[str, Any]:
    """Values of the model from an OTLP part that has been checked."""
    otlp = message.span
    trace_id, span_id, parent_id = otlp.trace_id.hex(), otlp.span_id.hex(), otlp.parent_span_id.hex()
    trace_state, flags = otlp.trace_state, otlp.flags
    return {
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_id": parent_id or None,
        "name": otlp.name,
        "kind": SPAN_KIND.from_proto(otlp.kind, "kind") if otlp.kind else None,
        "status": read_status(otlp.status),
        "attributes": read_attributes(otlp.attributes),
        "events": [read_event(event) for event in otlp.events[:]],
        "links": [read_link(link) for link in otlp.links[:]],
        "start_time": read_time(otlp.start_time_unix_nano),
        "end_time": read_time(otlp.end_time_unix_nano),
        "context": context_values(trace_id, span_id, trace_state, flags & TRACE_FLAGS) if message.has_context else None,
        "parent": context_values(trace_id, parent_id, trace_state, flags) if message.has_parent else None,
        "resource": read_resource(message),
        "scope": read_scope(message),
        **read_counts(otlp, "dropped_attributes_count", "dropped_events_count", "dropped_links_count"),
    }
