"""Spans that an OpenTelemetry SDK recorded, as the model's spans. Times come in nanoseconds and become seconds.

Whatever implements enough of ``ReadableSpan`` will do, test doubles included: what is missing, or of another type
than OpenTelemetry's own, reads as the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from lightning_store.model import (
    Attributes,
    Event,
    InstrumentationScope,
    Link,
    OtelResource,
    Span,
    SpanContext,
    SpanKind,
    SpanStatusCode,
    TraceStatus,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

ValueT = TypeVar("ValueT")

SAMPLED = 1
"""Trace flags of a span that is recorded and exported, which is every span that gets here as a rule."""


def span_from_opentelemetry(readable_span: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int) -> Span:
    """The span with nothing left out.

    Ids become lower-case hex; a span without a context has ids of zeros. What OpenTelemetry dropped becomes the extra
    fields ``dropped_attributes_count``, ``dropped_events_count`` and ``dropped_links_count`` where it is not 0; trace
    flags other than "sampled" become the extra field ``trace_flags`` of the context.
    """
    context = _own_context(readable_span)
    parent = _context(_read(readable_span, "parent"))
    return Span(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        sequence_id=sequence_id,
        trace_id=_hex(0, 32) if context is None else context.trace_id,
        span_id=_hex(0, 16) if context is None else context.span_id,
        parent_id=None if parent is None else parent.span_id,
        name=str(_read(readable_span, "name") or ""),
        kind=_kind(_read(readable_span, "kind")),
        status=_status(_read(readable_span, "status")),
        attributes=_attributes(_read(readable_span, "attributes")),
        events=[_event(event) for event in _items(_read(readable_span, "events"))],
        links=[_link(link) for link in _items(_read(readable_span, "links"))],
        start_time=_seconds(_read(readable_span, "start_time")),
        end_time=_seconds(_read(readable_span, "end_time")),
        context=context,
        parent=parent,
        resource=_resource(_read(readable_span, "resource")),
        scope=_scope(_read(readable_span, "instrumentation_scope")),
        **_dropped(readable_span, "attributes", "events", "links"),
    )


def _own_context(readable_span: ReadableSpan) -> SpanContext | None:
    get = _read(readable_span, "get_span_context")
    return _context(get() if callable(get) else _read(readable_span, "context"))


def _context(source: Any) -> SpanContext | None:
    trace_id, span_id = _typed(source, "trace_id", int), _typed(source, "span_id", int)
    if trace_id is None or span_id is None:
        return None
    trace_flags = _typed(source, "trace_flags", int)
    extra = {} if trace_flags is None or trace_flags == SAMPLED else {"trace_flags": int(trace_flags)}
    state = _read(source, "trace_state")
    return SpanContext(
        trace_id=_hex(trace_id, 32),
        span_id=_hex(span_id, 16),
        is_remote=_typed(source, "is_remote", bool) or False,
        trace_state=dict(state) if isinstance(state, Mapping) else {},
        **extra,
    )


def _hex(number: int, digits: int) -> str:
    return f"{number:0{digits}x}"


def _kind(kind: Any) -> SpanKind | None:
    return next((known for known in get_args(SpanKind) if known == _read(kind, "name")), None)


def _status(source: Any) -> TraceStatus:
    name = _read(_read(source, "status_code"), "name")
    code: SpanStatusCode = next((known for known in get_args(SpanStatusCode) if known == name), "UNSET")
    return TraceStatus(status_code=code, description=_typed(source, "description", str))


def _event(source: Any) -> Event:
    return Event(
        name=str(_read(source, "name") or ""),
        attributes=_attributes(_read(source, "attributes")),
        timestamp=_seconds(_read(source, "timestamp")),
        **_dropped(source, "attributes"),
    )


def _link(source: Any) -> Link:
    context = _context(_read(source, "context"))
    if context is None:
        context = SpanContext(trace_id=_hex(0, 32), span_id=_hex(0, 16), is_remote=False, trace_state={})
    attributes = _attributes(_read(source, "attributes"))
    return Link(context=context, attributes=attributes or None, **_dropped(source, "attributes"))


def _resource(source: Any) -> OtelResource:
    return OtelResource(
        attributes=_attributes(_read(source, "attributes")), schema_url=_typed(source, "schema_url", str) or ""
    )


def _scope(source: Any) -> InstrumentationScope | None:
    name = _typed(source, "name", str)
    if name is None:
        return None
    return InstrumentationScope(
        name=name,
        version=_typed(source, "version", str) or None,
        schema_url=_typed(source, "schema_url", str) or None,
        attributes=_attributes(_read(source, "attributes")) or None,
    )


def _dropped(source: Any, *kinds: str) -> dict[str, int]:
    """The counts of dropped things that are not 0, under the names that OTLP gives them."""
    counts = {kind: _typed(source, f"dropped_{kind}", int) for kind in kinds}
    return {f"dropped_{kind}_count": count for kind, count in counts.items() if count}


def _attributes(source: Any) -> Attributes:
    """A copy that is plain JSON, less the bytes that OpenTelemetry allows besides."""
    return {str(key): _plain(value) for key, value in source.items()} if isinstance(source, Mapping) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _attributes(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _items(source: Any) -> Iterable[Any]:
    return source if isinstance(source, Sequence) else ()


def _seconds(nanos: Any) -> float | None:
    return nanos / 10**9 if isinstance(nanos, int) else None


def _read(source: Any, name: str) -> Any:
    return getattr(source, name, None)


def _typed(source: Any, name: str, wanted: type[ValueT]) -> ValueT | None:
    value = getattr(source, name, None)
    return value if isinstance(value, wanted) else None
