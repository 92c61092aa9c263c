"""The W3C Trace Context of the caller's OpenTelemetry span, which goes with each call."""

from __future__ import annotations

import sys
from typing import Final, TypedDict


class TraceContext(TypedDict, total=False):
    """Metadata of a call, and fields of a SessionCall."""

    traceparent: str
    tracestate: str


NONE: Final = TraceContext()


def current_trace_context() -> TraceContext:
    """That of the current span; empty if there is none.

    A program that has no span has not imported OpenTelemetry, and need not for this.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return NONE
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return TraceContext(traceparent=carrier.get("traceparent", ""), tracestate=carrier.get("tracestate", ""))
