"""OTLP's Export: what it does, and its gRPC service. The HTTP listener calls the same ingest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

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

T = TypeVar("T")

SLICE_SPANS: Final = 256
"""Spans that are converted and stored at a stretch; other calls get their turn in between."""


class TraceIngest:
    """Stores the spans of export requests.

    A request may be sent again: the store knows a span by its rollout, attempt and span id, and one that is stored
    already counts as accepted.

    Args:
        store: Where the spans go.
    """

    def __init__(self, store: LightningStore) -> None:
        self._store_of_spans = store
        self._spans = records_of(store)
        self.rejections = Rejections()

    async def export(self, spans: Iterable[ReceivedSpan]) -> ExportTraceServiceResponse:
        """Store the spans that can be stored, in the order of the request. The rejected ones are counted and logged.

        Args:
            spans: The spans of one request.

        Returns:
            The response, with the number of rejected spans and the first causes.

        Raises:
            StoreError: Another attempt may succeed, be it for one span only. It is raised since exporters do not
                repeat a request that is a partial success.
            PermissionDeniedError: The caller may not report on an attempt of the request.
        """
        report = ExportReport()
        caller = caller_now()
        if caller is not None:
            caller.check_spans()
        for some in _slices(spans, SLICE_SPANS):
            await self._store(some, report)
            await asyncio.sleep(0)
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


def _slices(items: Iterable[T], length: int) -> Iterator[list[T]]:
    """The items in lists of ``length``, the last of them shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, length)):
        yield some


def add_trace_service(server: grpc.aio.Server, ingest: TraceIngest) -> None:
    """Let a server take spans as OTLP over gRPC.

    Requests are taken as bytes, so that one malformed span does not affect the others.

    Args:
        server: The server, which has not been started.
        ingest: Stores the spans.
    """

    async def export(request: bytes, context: Context) -> ExportTraceServiceResponse:
        return await ingest.export(received_spans(request))

    handler = grpc.unary_unary_rpc_method_handler(
        export, response_serializer=ExportTraceServiceResponse.SerializeToString
    )
    service = grpc.method_handlers_generic_handler(TRACE_EXPORT.service, {TRACE_EXPORT.name: handler})
    server.add_generic_rpc_handlers((service,))
