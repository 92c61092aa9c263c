"""OTLP's Export: what it does, and its gRPC service. The HTTP listener calls the same ingest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import grpc
import grpc.aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from lightning_store.backends.records import SpanRecord
from lightning_store.errors import StoreError
from lightning_store.spans.otlp.requests import ReceivedSpan, received_spans
from lightning_store.store import LightningStore
from lightning_store.wire.methods import TRACE_EXPORT
from lightning_store_server.access import caller_now
from lightning_store_server.interceptors import Context, shown_error
from lightning_store_server.otlp.rejections import Rejections
from lightning_store_server.otlp.report import ExportReport
from lightning_store_server.record_store import records_of
from lightning_store_server.slices import HEAVY_BYTES, HeavyThread

SLICE_SPANS: Final = 256
"""Spans that are converted and stored at a stretch; other calls get their turn in between."""


class TraceIngest:
    """Stores the spans of export requests.

    A request may be sent again: the store knows a span by its rollout, attempt and span id, and one that is stored
    already counts as accepted.

    Args:
        store: Where the spans go.
        heavy: Parses large requests.
    """

    def __init__(self, store: LightningStore, heavy: HeavyThread) -> None:
        self._store_of_spans = store
        self._spans = records_of(store)
        self._heavy = heavy
        self.rejections = Rejections()

    async def export(
        self, body: bytes, read: Callable[[bytes], Iterator[ReceivedSpan]] = received_spans
    ) -> ExportTraceServiceResponse:
        """Store the spans that can be stored, in the order of the request. The rejected ones are counted and logged.

        Args:
            body: One request.
            read: Reads the spans in it.

        Returns:
            The response, with the number of rejected spans and the first causes.

        Raises:
            InvalidArgumentError: The request is malformed as a whole, or has too many spans.
            StoreError: Another attempt may succeed, be it for one span only. It is raised since exporters do not
                repeat a request that is a partial success.
            PermissionDeniedError: The caller may not report on an attempt of the request.
        """
        report = ExportReport()
        caller = caller_now()
        if caller is not None:
            caller.check_spans()
        if len(body) <= HEAVY_BYTES:
            spans = read(body)
            while some := _some(spans):
                await self._store(some, report)
                await asyncio.sleep(0)
        else:
            spans = await self._heavy.run(read, body)
            while some := await self._heavy.run(_some, spans):
                await self._store(some, report)
        return report.response()

    async def _store(self, spans: list[ReceivedSpan], report: ExportReport) -> None:
        records: dict[str, SpanRecord] = {span.path: span.record for span in spans if span.record is not None}
        caller = caller_now()
        if caller is not None:
            caller.take_spans(len(spans))
            await caller.require_held(
                self._store_of_spans, ((one.rollout_id, one.attempt_id) for one in records.values())
            )
        outcomes = await self._spans.add_spans(list(records.values())) if records else ()
        errors = {path: one for path, one in zip(records, outcomes, strict=True) if isinstance(one, StoreError)}
        for error in errors.values():
            if error.may_pass:
                raise error
        for span in spans:
            if span.record is None:
                self._reject(report, span.path, span.complaint or "")
            elif span.path in errors:
                self._reject(report, span.path, str(shown_error(TRACE_EXPORT.path, errors[span.path])))
            elif span.complaint is not None:
                report.add_warning(span.path, span.complaint)

    def _reject(self, report: ExportReport, path: str, cause: str) -> None:
        self.rejections.add(path, cause)
        report.add_rejected(path, cause)


def _some(spans: Iterator[ReceivedSpan]) -> list[ReceivedSpan]:
    """The spans that come next; none when there are no more."""
    return list(islice(spans, SLICE_SPANS))


def add_trace_service(server: grpc.aio.Server, ingest: TraceIngest) -> None:
    """Let a server take spans as OTLP over gRPC.

    Requests are taken as bytes, so that one malformed span does not affect the others.

    Args:
        server: The server, which has not been started.
        ingest: Stores the spans.
    """

    async def export(request: bytes, context: Context) -> ExportTraceServiceResponse:
        return await ingest.export(request)

    handler = grpc.unary_unary_rpc_method_handler(
        export, response_serializer=ExportTraceServiceResponse.SerializeToString
    )
    service = grpc.method_handlers_generic_handler(TRACE_EXPORT.service, {TRACE_EXPORT.name: handler})
    server.add_generic_rpc_handlers((service,))
