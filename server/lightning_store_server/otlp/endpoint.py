"""OTLP over HTTP: ``POST /v1/traces``.

https://opentelemetry.io/docs/specs/otlp/#otlphttp says which statuses a sender may try again (429, 502, 503, 504), that
every body of an error is a google.rpc.Status, and that an answer has the encoding of its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.requests import Request
from starlette.responses import Response

from lightning_store.errors import StoreTimeoutError, StoreUnavailableError
from lightning_store.spans.otlp.requests import ReceivedSpan, received_spans, received_spans_from_json
from lightning_store.wire.methods import TRACE_EXPORT
from lightning_store_server.access import caller_now
from lightning_store_server.admission import Admission
from lightning_store_server.http.answers import JSON, PROTOBUF, HttpError, encoded, media_type
from lightning_store_server.http.bodies import BodyReader, peer_of_http
from lightning_store_server.interceptors import is_cancelled
from lightning_store_server.otlp.ingest import TraceIngest

TRACES_PATH: Final = "/v1/traces"


class TracesEndpoint:
    """Stores the spans of export requests.

    Args:
        ingest: Where they go.
        admission: Has places for calls.
        bodies: Reads the requests.
    """

    def __init__(self, ingest: TraceIngest, admission: Admission, bodies: BodyReader) -> None:
        self._ingest = ingest
        self._admission = admission
        self._bodies = bodies

    async def export(self, request: Request) -> Response:
        """Answer one request. HttpError or StoreError: no spans, or not all, were stored."""
        sent = media_type(request.headers)
        if sent not in (PROTOBUF, JSON):
            message = f"Content-Type is {sent or 'missing'}; send {PROTOBUF} or {JSON}"
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        body = await self._bodies.read(request)
        caller = caller_now()
        if caller is not None:
            caller.take(len(body))
        peer = peer_of_http(request)
        with self._admission.enter(TRACE_EXPORT, None, len(body), peer):
            async with self._admission.work(TRACE_EXPORT, len(body), lambda: peer):
                response = await self._store(body, received_spans_from_json if sent == JSON else received_spans)
        return Response(encoded(response, sent), media_type=sent)

    async def _store(self, body: bytes, read: Callable[[bytes], Iterator[ReceivedSpan]]) -> ExportTraceServiceResponse:
        bound = asyncio.timeout(TRACE_EXPORT.deadline_seconds)
        try:
            async with bound:
                return await self._ingest.export(body, read)
        except TimeoutError:
            if not bound.expired():
                raise
            raise StoreTimeoutError(f"storing the spans took longer than {TRACE_EXPORT.deadline_seconds:g} s") from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise StoreUnavailableError("the store gave this call up; try again") from None
