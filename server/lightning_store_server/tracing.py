"""OpenTelemetry spans of the server's own calls, as children of the caller's. Off unless ``OTEL_TRACES_EXPORTER`` asks
for them; all else is set by the standard variables of the SDK (``OTEL_SERVICE_NAME``, ``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_TRACES_SAMPLER`` and the rest)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Final

from lightning_store.errors import InvalidArgumentError, UnsupportedError
from lightning_store_server.observers import CallDetails, HttpDetails

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

PROGRAM: Final = "lightning-store-grpc"
EXPORTERS: Final = "opentelemetry_traces_exporter"
"""The group of entry points in which packages of OpenTelemetry name their exporters."""
PROTOCOLS: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
SERVER_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that make a server's span one of an error, by OpenTelemetry's conventions."""
CONTEXT_NAMES: Final = frozenset({"traceparent", "tracestate", "baggage"})


def tracing_of(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """The tracing that the environment asks for.

    Raises:
        InvalidArgumentError: It names an exporter or a protocol that is not known.
        UnsupportedError: The package of the exporter is not installed.
    """
    name = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if name in ("", "none") or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({} if environment.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: PROGRAM})
    exporter = _exporter(name, environment)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _exporter(name: str, environment: Mapping[str, str]) -> SpanExporter:
    if name == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    if name == "otlp":
        protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL"
        )
        known = PROTOCOLS.get(protocol or "grpc")
        if known is None:
            message = f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; give one of {', '.join(PROTOCOLS)}"
            raise InvalidArgumentError(message, field="OTEL_EXPORTER_OTLP_PROTOCOL")
        package = f"opentelemetry-exporter-{known.replace('_', '-')}"
        name = known
    else:
        package = f"opentelemetry-exporter-{name}"
    found = entry_points(group=EXPORTERS, name=name)
    if not found:
        message = f"OTEL_TRACES_EXPORTER asks for {name}, which is not installed: pip install {package}"
        raise UnsupportedError(message)
    exporter: SpanExporter = next(iter(found)).load()()
    return exporter


class Tracing:
    """Makes a span of each call that has ended.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(PROGRAM, version(PROGRAM))
        self._propagator = TraceContextTextMapPropagator()

    def observe_call(self, details: CallDetails) -> None:
        """Of a call over gRPC. Its parent is the span of the metadata ``traceparent``."""
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": details.method.removeprefix("/"),
            "rpc.response.status_code": details.code,
            "client.address": details.peer,
        }
        if details.request_id:
            attributes["lightning_store.request_id"] = details.request_id
        name = details.method.removeprefix("/")
        self._add(name, details.seconds, details.metadata, attributes, failed=details.code in SERVER_FAULTS)

    def observe_http(self, details: HttpDetails) -> None:
        """Of a request over HTTP. Its parent is that of the header ``traceparent``."""
        attributes: dict[str, str | int] = {
            "http.request.method": details.method,
            "url.path": details.path,
            "http.response.status_code": details.status,
            "client.address": details.peer,
        }
        if details.route:
            attributes["http.route"] = details.route
        name = f"{details.method} {details.route}".strip()
        self._add(name, details.seconds, details.headers, attributes, failed=details.status >= 500)

    def close(self) -> None:
        """Export what is not exported yet."""
        self._provider.shutdown()

    def _add(
        self, name: str, seconds: float, carried: object, attributes: Mapping[str, str | int], *, failed: bool
    ) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        ended = time.time_ns()
        pairs = carried if isinstance(carried, (tuple, list)) else ()
        carrier = {key: value for key, value in pairs if key in CONTEXT_NAMES and isinstance(value, str)}
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=ended - round(seconds * 1e9),
        )
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(ended)
