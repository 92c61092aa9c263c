"""Span contexts in OTLP: ids, W3C trace state, and flags that say how a trace is sampled and what is remote."""

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


def context_values(trace_id: str, span_id: str, trace_state: str, flags: int) -> dict[str, Any]:
    """The plain Python form of the :class:`~lightning_store.model.SpanContext` that OTLP tells with these; ids in hex.

    Bits 8 and 9 of a span's flags are about its parent, so its own context has ``flags & TRACE_FLAGS``. Trace flags are
    there only where they say more than "sampled", since many writers leave them at 0.
    """
    values: dict[str, Any] = {
        "trace_id": trace_id,
        "span_id": span_id,
        "is_remote": flags & IS_REMOTE != 0,
        "trace_state": _parse_trace_state(trace_state),
    }
    if flags & TRACE_FLAGS > SAMPLED:
        values["trace_flags"] = flags & TRACE_FLAGS
    return values


def told_of_own(context: SpanContext | None, trace_id: str, span_id: str) -> tuple[str, int, Residue]:
    """The trace state and flags that tell of the context of a span itself, and the residue.

    The ids are those that OTLP holds of the span; empty where it does not.
    """
    if context is None:
        return "", 0, None
    if _is_usual(context, trace_id, span_id):
        return "", SAMPLED, None
    plain = plain_context(context)
    trace_state, flags = format_trace_state(plain["trace_state"]), trace_flags(plain)
    return trace_state, flags, difference(context_values(trace_id, span_id, trace_state, flags), plain)


def told_of_parent(
    context: SpanContext | None, trace_id: str, parent_id: str, trace_state: str, flags: int
) -> tuple[bool, int, Residue]:
    """Whether OTLP tells of the context of a span's parent, the flags with what they tell of it, and the residue.

    As a rule a span takes over the trace state and trace flags of its parent.
    """
    if context is None:
        return False, flags, None
    if not trace_state and flags == SAMPLED and _is_usual(context, trace_id, parent_id):
        return True, flags | HAS_IS_REMOTE, None
    plain = plain_context(context)
    flags |= remote_flags(plain)
    base = context_values(trace_id, parent_id, trace_state, flags)
    if _says_too_much(base, plain):
        return False, flags, dict(plain)
    return True, flags, difference(base, plain)


def _is_usual(context: SpanContext, trace_id: str, span_id: str) -> bool:
    """Whether it says nothing beyond the ids, which need not be worked out."""
    usual = {"trace_id": trace_id, "span_id": span_id, "is_remote": False, "trace_state": {}}
    return plain_context(context) == usual


def plain_context(context: SpanContext) -> Mapping[str, Any]:
    """The same form of a context, to be read only."""
    extra = context.__pydantic_extra__
    return {**context.__dict__, **extra} if extra else context.__dict__


def difference(base: Mapping[str, Any], context: Mapping[str, Any]) -> Residue:
    """What of ``context`` is missing or different in ``base``."""
    if context == base:
        return None
    return {name: value for name, value in context.items() if name not in base or base[name] != value} or None


def _says_too_much(base: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    """Whether ``base`` has trace state or flags that ``context`` has not: what is laid over cannot take them away."""
    if base["trace_state"] and base["trace_state"] != context["trace_state"]:
        return True
    return "trace_flags" in base and "trace_flags" not in context


def trace_flags(context: Mapping[str, Any]) -> int:
    """Bits 0 to 7 of OTLP's flags."""
    value = context.get("trace_flags")
    return value if type(value) is int and 0 <= value <= TRACE_FLAGS else SAMPLED


def remote_flags(context: Mapping[str, Any]) -> int:
    """Bits 8 and 9 of OTLP's flags."""
    return HAS_IS_REMOTE | IS_REMOTE if context["is_remote"] else HAS_IS_REMOTE


def format_trace_state(state: Mapping[str, str]) -> str:
    """W3C text of the state; empty if it would not read back the same."""
    if state == {}:
        return ""
    text = ",".join(f"{key}={value}" for key, value in state.items())
    return text if has_utf8(text) and _parse_trace_state(text) == state else ""


def _parse_trace_state(text: str) -> dict[str, str]:
    if not text:
        return {}
    pairs = (entry.partition("=") for entry in text.split(","))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}
