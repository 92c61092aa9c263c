"""Span contexts in OTLP: ids, W3C trace state, and flags that say how a trace is sampled and what is remote.

The functions that read return the plain Python form of a :class:`~lightning_store.model.SpanContext`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.proto.trace.v1 import trace_pb2

from lightning_store.model import SpanContext
from lightning_store.wire.attributes import Residue
from lightning_store.wire.checks import has_utf8

HAS_IS_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
IS_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
TRACE_FLAGS: Final = trace_pb2.SPAN_FLAGS_TRACE_FLAGS_MASK
SAMPLED: Final = 1


def difference(base: Mapping[str, Any], context: SpanContext) -> Residue:
    """What of ``context`` is missing or different in ``base``."""
    return {name: value for name, value in context if name not in base or base[name] != value} or None


def says_too_much(base: Mapping[str, Any], context: SpanContext) -> bool:
    """Whether ``base`` has trace state or flags that ``context`` has not: what is laid over cannot take them away."""
    if base["trace_state"] and base["trace_state"] != context.trace_state:
        return True
    return "trace_flags" in base and "trace_flags" not in (context.model_extra or {})


def read_own_context(otlp: trace_pb2.Span) -> dict[str, Any]:
    """The context of the span itself."""
    return _context(otlp.trace_id, otlp.span_id, otlp.trace_state, otlp.flags & TRACE_FLAGS)


def read_parent_context(otlp: trace_pb2.Span) -> dict[str, Any]:
    """The context of its parent, whose trace state and flags a span takes over as a rule."""
    return _context(otlp.trace_id, otlp.parent_span_id, otlp.trace_state, otlp.flags)


def read_link_context(link: trace_pb2.Span.Link) -> dict[str, Any]:
    """The context that a link points to."""
    return _context(link.trace_id, link.span_id, link.trace_state, link.flags)


def _context(trace_id: bytes, span_id: bytes, trace_state: str, flags: int) -> dict[str, Any]:
    """The context; its trace flags only where they say more than "sampled", since many writers leave them at 0."""
    values: dict[str, Any] = {
        "trace_id": trace_id.hex(),
        "span_id": span_id.hex(),
        "is_remote": bool(flags & IS_REMOTE),
        "trace_state": _parse_trace_state(trace_state),
    }
    if flags & TRACE_FLAGS > SAMPLED:
        values["trace_flags"] = flags & TRACE_FLAGS
    return values


def trace_flags(context: SpanContext) -> int:
    """Bits 0 to 7 of OTLP's flags."""
    value = (context.model_extra or {}).get("trace_flags")
    return value if type(value) is int and 0 <= value <= TRACE_FLAGS else SAMPLED


def remote_flags(context: SpanContext) -> int:
    """Bits 8 and 9 of OTLP's flags."""
    return HAS_IS_REMOTE | IS_REMOTE if context.is_remote else HAS_IS_REMOTE


def format_trace_state(state: Mapping[str, str]) -> str:
    """W3C text of the state; empty if it would not read back the same."""
    text = ",".join(f"{key}={value}" for key, value in state.items())
    return text if has_utf8(text) and _parse_trace_state(text) == state else ""


def _parse_trace_state(text: str) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in text.split(","))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}
