"""What OTLP's Export does, and its gRPC service. The HTTP listener calls the same ingest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from lightning_store.backends.records import SpanRecord
from lightning_store.errors import StoreError
from lightning_store.store import LightningStore
from lightning_store.wire.methods import TRACE_EXPORT
from lightning_store.wire.otlp import ExportReport, ReceivedSpan, received_spans
from lightning_store_server.interceptors import Context, shown_error
from lightning_store_server.record_store import records_of

T = TypeVar("T")

SLICE_SPANS: Final = 256
"""Spans that are converted and stored at a stretch; other calls get their turn in between."""


class TraceIngest:
    """Stores the spans of a request.

    Nothing happens twice to a span that is sent again: the store knows it by its rollout, attempt and span id. So a
    request that failed half way is simply sent again, and a span that is stored already counts as accepted.
    """

    def __init__(self, store: LightningStore) -> None:
        self._spans = records_of(store)

    async def export(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        """Store what can be stored, in the order of the request, and tell of the rest.

        A StoreError that another attempt may get past, be it for one span only, is raised: a partial success means to
        its receiver that there is nothing to send again.
        """
        report = ExportReport()
        for some in _slices(received_spans(request), SLICE_SPANS):
            await self._store(some, report)
            await asyncio.sleep(0)
        return report.response()

    async def _store(self, spans: list[ReceivedSpan], report: ExportReport) -> None:
        records: dict[str, SpanRecord] = {}
        for span in spans:
            if span.record is None:
                report.rejected(span.path, span.complaint or "")
            else:
                records[span.path] = span.record
        outcomes = await self._spans.add_spans(list(records.values())) if records else ()
        errors = {path: one for path, one in zip(records, outcomes, strict=True) if isinstance(one, StoreError)}
        for error in errors.values():
            if error.may_pass:
                raise error
        for span in spans:
            if span.path in errors:
                report.rejected(span.path, str(shown_error(TRACE_EXPORT.path, errors[span.path])))
            elif span.record is not None and span.complaint is not None:
                report.passed_over(span.path, span.complaint)


def _slices(items: Iterable[T], length: int) -> Iterator[list[T]]:
    """The items in lists of ``length``, the last of them shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, length)):
        yield some


class _TraceServicer(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP over gRPC."""

    def __init__(self, ingest: TraceIngest) -> None:
        self._ingest = ingest

    async def Export(self, request: ExportTraceServiceRequest, context: Context) -> ExportTraceServiceResponse:
        return await self._ingest.export(request)


def add_trace_service(server: grpc.aio.Server, ingest: TraceIngest) -> None:
    """Let ``server`` take spans as OTLP over gRPC."""
    servicer = _TraceServicer(ingest)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
