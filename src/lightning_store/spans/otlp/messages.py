"""OTLP's messages and the fields of :class:`~lightning_store.model.Span`, in both directions.

========================================  ==========================================================================
OTLP                                      Span
========================================  ==========================================================================
ids: bytes; all zeros or absent: none     lower-case hexadecimal digits
times: nanoseconds; 0: none               seconds; they come back within 120 ns, the distance of two floats
empty text of status, scope, schema       None, but for names and the schema URL of a resource
no attributes of a link or scope          None
``kind`` 0, ``status.code`` 0             None, ``"UNSET"``; numbers without a name stay numbers
``trace_state``: W3C text                 ``context.trace_state``, and ``parent.trace_state``
``flags``, bits 0 to 7                    ``trace_flags`` of the contexts, an extra field, unless 0 or 1 (sampled)
``flags``, bits 8 and 9                   ``is_remote`` of the parent, or of a link's context
``dropped_…_count`` other than 0          an extra field of that name
an empty scope without a schema           ``scope`` is None
========================================  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from pydantic import BaseModel

from lightning_store.errors import InvalidArgumentError
from lightning_store.model import TIME_MAX_SECONDS, Event, InstrumentationScope, Link, OtelResource, Span, SpanContext
from lightning_store.spans.otlp.values import read_attributes, write_attributes
from lightning_store.text import replace_surrogates

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
NANOS_PER_SECOND: Final = 10**9
TIME_MAX_NANOS: Final = TIME_MAX_SECONDS * NANOS_PER_SECOND
UINT32_MAX: Final = 2**32 - 1

HAS_IS_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
IS_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
TRACE_FLAGS: Final = trace_pb2.SPAN_FLAGS_TRACE_FLAGS_MASK
SAMPLED: Final = 1

_KINDS: Final = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
_KIND_NUMBERS: Final = {name: number for number, name in _KINDS.items()}
_STATUS_CODES: Final = {0: "UNSET", 1: "OK", 2: "ERROR"}
_STATUS_NUMBERS: Final = {name: number for number, name in _STATUS_CODES.items()}

_DROPPED_ATTRIBUTES: Final = ("dropped_attributes_count",)
_DROPPED: Final = (*_DROPPED_ATTRIBUTES, "dropped_events_count", "dropped_links_count")


def _invalid(field: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {problem}", field=field)


# --- From OTLP -------------------------------------------------------------------------------------------------------


def read_span(span: trace_pb2.Span) -> dict[str, Any]:
    """Convert a span.

    Args:
        span: The message.

    Returns:
        All fields but the ids of rollout and attempt, the sequence id, the resource and the scope.

    Raises:
        InvalidArgumentError: An id, a time or the number of an enum is not legal.
    """
    trace_id = _read_id(span.trace_id, TRACE_ID_BYTES, "trace_id")
    span_id = _read_id(span.span_id, SPAN_ID_BYTES, "span_id")
    parent_id = _read_parent_id(span.parent_span_id)
    state = _read_trace_state(span.trace_state)
    return {
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_id": parent_id,
        "name": span.name,
        "kind": _read_enum(span.kind, _KINDS, "kind") if span.kind else None,
        "status": {
            "status_code": _read_enum(span.status.code, _STATUS_CODES, "status.code"),
            "description": span.status.message or None,
        },
        "attributes": read_attributes(span.attributes),
        "events": [_read_event(event, f"events[{index}]") for index, event in enumerate(span.events)],
        "links": [_read_link(link, f"links[{index}]") for index, link in enumerate(span.links)],
        "start_time": _read_time(span.start_time_unix_nano, "start_time_unix_nano"),
        "end_time": _read_time(span.end_time_unix_nano, "end_time_unix_nano"),
        "context": _context(trace_id, span_id, state, span.flags & TRACE_FLAGS),
        "parent": None if parent_id is None else _context(trace_id, parent_id, state, span.flags),
        **_counts(span, _DROPPED),
    }


def read_resource(resource: resource_pb2.Resource, schema_url: str) -> dict[str, Any]:
    """Convert a resource.

    Args:
        resource: The message.
        schema_url: The schema URL beside it.

    Returns:
        The fields of :class:`~lightning_store.model.OtelResource`.
    """
    return {
        "attributes": read_attributes(resource.attributes),
        "schema_url": schema_url,
        **_counts(resource, _DROPPED_ATTRIBUTES),
    }


def read_scope(scope: common_pb2.InstrumentationScope, schema_url: str) -> dict[str, Any] | None:
    """Convert a scope.

    Args:
        scope: The message.
        schema_url: The schema URL beside it.

    Returns:
        The fields of :class:`~lightning_store.model.InstrumentationScope`; None if all are empty.
    """
    if not scope.ByteSize() and not schema_url:
        return None
    return {
        "name": scope.name,
        "version": scope.version or None,
        "schema_url": schema_url or None,
        "attributes": read_attributes(scope.attributes) or None,
        **_counts(scope, _DROPPED_ATTRIBUTES),
    }


def _read_event(event: trace_pb2.Span.Event, path: str) -> dict[str, Any]:
    return {
        "name": event.name,
        "attributes": read_attributes(event.attributes),
        "timestamp": _read_time(event.time_unix_nano, f"{path}.time_unix_nano"),
        **_counts(event, _DROPPED_ATTRIBUTES),
    }


def _read_link(link: trace_pb2.Span.Link, path: str) -> dict[str, Any]:
    for value, size_bytes, name in (
        (link.trace_id, TRACE_ID_BYTES, "trace_id"),
        (link.span_id, SPAN_ID_BYTES, "span_id"),
    ):
        if len(value) not in (0, size_bytes):
            raise _invalid(f"{path}.{name}", f"has {len(value)} bytes; it must have {size_bytes}")
    state = _read_trace_state(link.trace_state)
    return {
        "context": _context(link.trace_id.hex(), link.span_id.hex(), state, link.flags),
        "attributes": read_attributes(link.attributes) or None,
        **_counts(link, _DROPPED_ATTRIBUTES),
    }


def _context(trace_id: str, span_id: str, state: dict[str, str], flags: int) -> dict[str, Any]:
    fields = {"trace_id": trace_id, "span_id": span_id, "is_remote": flags & IS_REMOTE != 0, "trace_state": state}
    return fields if flags & TRACE_FLAGS <= SAMPLED else {**fields, "trace_flags": flags & TRACE_FLAGS}


def _read_id(value: bytes, size_bytes: int, field: str) -> str:
    if len(value) != size_bytes:
        raise _invalid(field, f"has {len(value)} bytes; it must have {size_bytes}")
    if not any(value):
        raise _invalid(field, "is all zeros, which stands for no id")
    return value.hex()


def _read_parent_id(value: bytes) -> str | None:
    """Some exporters write zeros for a root."""
    return _read_id(value, SPAN_ID_BYTES, "parent_span_id") if any(value) else None


def _read_time(nanos: int, field: str) -> float | None:
    if nanos > TIME_MAX_NANOS:
        raise _invalid(field, f"is {nanos}; it must be at most {TIME_MAX_NANOS}, which is in 2262")
    return nanos / NANOS_PER_SECOND if nanos else None


def _read_enum(number: int, names: Mapping[int, str], field: str) -> str | int:
    if number < 0:
        raise _invalid(field, f"is {number}; it must not be negative")
    return names.get(number, number)


def _read_trace_state(text: str) -> dict[str, str]:
    if not text:
        return {}
    pairs = (entry.partition("=") for entry in text.split(","))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _counts(message: Message, names: tuple[str, ...]) -> dict[str, int]:
    return {name: count for name in names if (count := getattr(message, name))}


# --- To OTLP ---------------------------------------------------------------------------------------------------------


def write_span(span: Span) -> trace_pb2.Span:
    """Convert a span.

    Args:
        span: The span.

    Returns:
        The message. It holds neither the ids of rollout and attempt, nor the sequence id, nor extra fields that OTLP
        does not know.

    Raises:
        InvalidArgumentError: An id has not the form of OpenTelemetry.
    """
    context, parent = span.context, span.parent
    return trace_pb2.Span(
        trace_id=_write_id(span.trace_id, TRACE_ID_BYTES, "trace_id"),
        span_id=_write_id(span.span_id, SPAN_ID_BYTES, "span_id"),
        parent_span_id=b"" if span.parent_id is None else _write_id(span.parent_id, SPAN_ID_BYTES, "parent_id"),
        trace_state=_write_trace_state(context or parent),
        flags=_trace_flags(context or parent) | (0 if parent is None else _remote_flags(parent)),
        name=replace_surrogates(span.name),
        kind=_write_enum(span.kind, _KIND_NUMBERS),
        status=trace_pb2.Status(
            code=_write_enum(span.status.status_code, _STATUS_NUMBERS),
            message=replace_surrogates(span.status.description or ""),
        ),
        attributes=write_attributes(span.attributes),
        events=[_write_event(event) for event in span.events],
        links=[_write_link(link, f"links[{index}]") for index, link in enumerate(span.links)],
        start_time_unix_nano=_write_time(span.start_time),
        end_time_unix_nano=_write_time(span.end_time),
        **_written_counts(span, _DROPPED),
    )


def write_resource(resource: OtelResource) -> resource_pb2.Resource:
    """Convert a resource. Its schema URL stands beside it in OTLP.

    Args:
        resource: The resource.

    Returns:
        The message.
    """
    return resource_pb2.Resource(
        attributes=write_attributes(resource.attributes), **_written_counts(resource, _DROPPED_ATTRIBUTES)
    )


def write_scope(scope: InstrumentationScope) -> common_pb2.InstrumentationScope:
    """Convert a scope. Its schema URL stands beside it in OTLP.

    Args:
        scope: The scope.

    Returns:
        The message.
    """
    return common_pb2.InstrumentationScope(
        name=replace_surrogates(scope.name),
        version=replace_surrogates(scope.version or ""),
        attributes=write_attributes(scope.attributes or {}),
        **_written_counts(scope, _DROPPED_ATTRIBUTES),
    )


def _write_event(event: Event) -> trace_pb2.Span.Event:
    return trace_pb2.Span.Event(
        name=replace_surrogates(event.name),
        attributes=write_attributes(event.attributes),
        time_unix_nano=_write_time(event.timestamp),
        **_written_counts(event, _DROPPED_ATTRIBUTES),
    )


def _write_link(link: Link, path: str) -> trace_pb2.Span.Link:
    context = link.context
    return trace_pb2.Span.Link(
        trace_id=_write_id(context.trace_id, TRACE_ID_BYTES, f"{path}.context.trace_id", empty=True),
        span_id=_write_id(context.span_id, SPAN_ID_BYTES, f"{path}.context.span_id", empty=True),
        trace_state=_write_trace_state(context),
        flags=_trace_flags(context) | _remote_flags(context),
        attributes=write_attributes(link.attributes or {}),
        **_written_counts(link, _DROPPED_ATTRIBUTES),
    )


def _write_id(text: str, size_bytes: int, field: str, *, empty: bool = False) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) == size_bytes or (empty and not text):
        return value
    raise _invalid(field, f"is {text!r}; OTLP has ids of {2 * size_bytes} hexadecimal digits")


def _write_time(seconds: float | None) -> int:
    """The whole seconds are split off first: a product with all of them would lose the low digits."""
    if seconds is None:
        return 0
    whole = math.floor(seconds)
    return whole * NANOS_PER_SECOND + round((seconds - whole) * NANOS_PER_SECOND)


def _write_enum(value: str | int | None, numbers: Mapping[str, int]) -> Any:
    return value if isinstance(value, int) else numbers.get(value or "", 0)


def _write_trace_state(context: SpanContext | None) -> str:
    state = {} if context is None else context.trace_state
    return replace_surrogates(",".join(f"{key}={value}" for key, value in state.items()))


def _trace_flags(context: SpanContext | None) -> int:
    value = None if context is None else (context.model_extra or {}).get("trace_flags", SAMPLED)
    return value if type(value) is int and 0 <= value <= TRACE_FLAGS else 0


def _remote_flags(context: SpanContext) -> int:
    return HAS_IS_REMOTE | IS_REMOTE if context.is_remote else HAS_IS_REMOTE


def _written_counts(model: BaseModel, names: tuple[str, ...]) -> dict[str, Any]:
    extra = model.model_extra or {}
    return {name: extra[name] for name in names if type(extra.get(name)) is int and 0 <= extra[name] <= UINT32_MAX}
