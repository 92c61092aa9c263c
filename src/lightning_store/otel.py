"""Spans that an OpenTelemetry SDK recorded, as the model's spans. Times come in nanoseconds and become seconds.

Whatever implements enough of ``ReadableSpan`` will do, test doubles included: what is missing, or of another type
than OpenTelemetry's own, reads as the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from lightning_store.errors import InvalidArgumentError, InvalidTypeError
from lightning_store.model import Attributes, Span, SpanKind, SpanStatusCode

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

ValueT = TypeVar("ValueT")

SAMPLED: Final = 1
"""Trace flags of a span that is recorded and exported, which is every span that gets here as a rule."""
_NO_CONTEXT: Final[Mapping[str, Any]] = {
    "trace_id": "0" * 32,
    "span_id": "0" * 16,
    "is_remote": False,
    "trace_state": {},
}
_KINDS: Final = frozenset(get_args(SpanKind))
_STATUS_CODES: Final = frozenset(get_args(SpanStatusCode))
_DROPPED_ATTRIBUTES: Final = {"dropped_attributes": "dropped_attributes_count"}
_DROPPED_OF_SPAN: Final = {
    **_DROPPED_ATTRIBUTES,
    "dropped_events": "dropped_events_count",
    "dropped_links": "dropped_links_count",
}
_SCALARS: Final = frozenset({str, int, float, bool, bytes, NoneType})


def check_finished(readable_span: ReadableSpan) -> None:
    """Refuse what is no finished span: it would be stored without its end, or under ids of zeros.

    Raises:
        InvalidArgumentError: The span has not ended, or it records nothing.
        InvalidTypeError: It is no span.
    """
    context = _own_context(readable_span)
    if context is None:
        kind = type(readable_span).__name__
        message = f"readable_span is a {kind} without a context; give a finished span of an OpenTelemetry SDK"
        raise InvalidTypeError(message, field="readable_span")
    has_ids = context["trace_id"] != _NO_CONTEXT["trace_id"] and context["span_id"] != _NO_CONTEXT["span_id"]
    if not has_ids or not hasattr(readable_span, "end_time"):
        message = (
            f"readable_span is a {type(readable_span).__name__}, which records nothing; take the tracer from a "
            "TracerProvider of opentelemetry.sdk (trace.set_tracer_provider makes it the global one) that samples it"
        )
        raise InvalidArgumentError(message, field="readable_span")
    if _typed(readable_span, "end_time", int) is None:
        name = str(_read(readable_span, "name") or "")
        message = f"readable_span {name!r} has not ended; call its end(), or leave its `with` block, before it is added"
        raise InvalidArgumentError(message, field="readable_span")


def span_from_opentelemetry(readable_span: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int) -> Span:
    """The span with nothing left out.

    Ids become lower-case hex; a span without a context has ids of zeros. What OpenTelemetry dropped becomes the extra
    fields ``dropped_attributes_count``, ``dropped_events_count`` and ``dropped_links_count`` where it is not 0; trace
    flags other than "sampled" become the extra field ``trace_flags`` of the context.
    """
    context = _own_context(readable_span)
    parent = _context(_read(readable_span, "parent"))
    ids = context or _NO_CONTEXT
    values = {
        "rollout_id": rollout_id,
        "attempt_id": attempt_id,
        "sequence_id": sequence_id,
        "trace_id": ids["trace_id"],
        "span_id": ids["span_id"],
        "parent_id": None if parent is None else parent["span_id"],
        "name": str(_read(readable_span, "name") or ""),
        "kind": _kind(_read(readable_span, "kind")),
        "status": _status(_read(readable_span, "status")),
        "attributes": _attributes(_read(readable_span, "attributes")),
        "events": [_event(event) for event in _items(_read(readable_span, "events"))],
        "links": [_link(link) for link in _items(_read(readable_span, "links"))],
        "start_time": _seconds(_read(readable_span, "start_time")),
        "end_time": _seconds(_read(readable_span, "end_time")),
        "context": context,
        "parent": parent,
        "resource": _resource(_read(readable_span, "resource")),
        "scope": _scope(_read(readable_span, "instrumentation_scope")),
        **_dropped(readable_span, _DROPPED_OF_SPAN),
    }
    return Span.model_validate(values)


# Each of these returns the plain form of a model; pydantic makes them all at once.


def _own_context(readable_span: ReadableSpan) -> dict[str, Any] | None:
    get = _read(readable_span, "get_span_context")
    return _context(get() if callable(get) else _read(readable_span, "context"))


def _context(source: Any) -> dict[str, Any] | None:
    trace_id, span_id = _typed(source, "trace_id", int), _typed(source, "span_id", int)
    if trace_id is None or span_id is None:
        return None
    state = _read(source, "trace_state")
    values: dict[str, Any] = {
        "trace_id": f"{trace_id:032x}",
        "span_id": f"{span_id:016x}",
        "is_remote": _typed(source, "is_remote", bool) or False,
        "trace_state": dict(state) if state and isinstance(state, Mapping) else {},
    }
    trace_flags = _typed(source, "trace_flags", int)
    if trace_flags is not None and trace_flags != SAMPLED:
        values["trace_flags"] = int(trace_flags)
    return values


def _kind(kind: Any) -> str | None:
    name = _read(kind, "name")
    return name if isinstance(name, str) and name in _KINDS else None


def _status(source: Any) -> dict[str, Any]:
    name = _read(_read(source, "status_code"), "name")
    code = name if isinstance(name, str) and name in _STATUS_CODES else "UNSET"
    return {"status_code": code, "description": _typed(source, "description", str)}


def _event(source: Any) -> dict[str, Any]:
    return {
        "name": str(_read(source, "name") or ""),
        "attributes": _attributes(_read(source, "attributes")),
        "timestamp": _seconds(_read(source, "timestamp")),
        **_dropped(source, _DROPPED_ATTRIBUTES),
    }


def _link(source: Any) -> dict[str, Any]:
    return {
        "context": _context(_read(source, "context")) or _NO_CONTEXT,
        "attributes": _attributes(_read(source, "attributes")) or None,
        **_dropped(source, _DROPPED_ATTRIBUTES),
    }


def _resource(source: Any) -> dict[str, Any]:
    return {
        "attributes": _attributes(_read(source, "attributes")),
        "schema_url": _typed(source, "schema_url", str) or "",
    }


def _scope(source: Any) -> dict[str, Any] | None:
    name = _typed(source, "name", str)
    if name is None:
        return None
    return {
        "name": name,
        "version": _typed(source, "version", str) or None,
        "schema_url": _typed(source, "schema_url", str) or None,
        "attributes": _attributes(_read(source, "attributes")) or None,
    }


def _dropped(source: Any, counts: Mapping[str, str]) -> dict[str, int]:
    """The counts of dropped things that are not 0, under the names that OTLP gives them."""
    return {field: count for name, field in counts.items() if (count := _typed(source, name, int))}


def _attributes(source: Any) -> Attributes:
    """A copy that is plain JSON, less the bytes that OpenTelemetry allows besides."""
    if not isinstance(source, Mapping):
        return {}
    # The SDK's own mapping copies itself much faster than anybody walks through it.
    copy: Callable[[], Mapping[Any, Any]] = getattr(source, "copy", lambda: source)
    return {
        key if type(key) is str else str(key): value if type(value) in _SCALARS else _plain(value)
        for key, value in copy().items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _attributes(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _items(source: Any) -> Sequence[Any]:
    return source if isinstance(source, Sequence) else ()


def _seconds(nanos: Any) -> float | None:
    return nanos / 10**9 if isinstance(nanos, int) else None


def _read(source: Any, name: str) -> Any:
    return getattr(source, name, None)


def _typed(source: Any, name: str, wanted: type[ValueT]) -> ValueT | None:
    value = getattr(source, name, None)
    return value if isinstance(value, wanted) else None
