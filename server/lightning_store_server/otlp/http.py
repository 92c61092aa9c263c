"""OTLP/HTTP as questions and answers: what a request must be, and what it is told. Bytes and time are the listener's.

https://opentelemetry.io/docs/specs/otlp/#otlphttp says which statuses a sender may try again (429, 502, 503, 504), that
every body of an error is a google.rpc.Status, and that an answer has the encoding of its request.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from lightning_store.errors import ResourceExhaustedError, StoreTimeoutError, StoreUnavailableError
from lightning_store.spans.otlp.requests import ReceivedSpan, received_spans, received_spans_from_json
from lightning_store.wire.errors import error_to_proto
from lightning_store.wire.methods import TRACE_EXPORT
from lightning_store_server.admission import Admission
from lightning_store_server.interceptors import is_cancelled, shown_error
from lightning_store_server.otlp.ingest import TraceIngest

TRACES_PATH: Final = "/v1/traces"
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

RETRY_AFTER_SECONDS: Final = 1
"""Until a sender that is told to try again, and not when, should."""
PIECE_BYTES: Final = 1024 * 1024
"""Bytes that are decompressed at a stretch."""

HTTP_STATUSES: Final[Mapping[int, HTTPStatus]] = {
    code_pb2.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    code_pb2.NOT_FOUND: HTTPStatus.BAD_REQUEST,
    code_pb2.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    code_pb2.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    code_pb2.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    code_pb2.CANCELLED: HTTPStatus.SERVICE_UNAVAILABLE,
    code_pb2.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    code_pb2.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
}
"""Any other one is an INTERNAL_SERVER_ERROR."""


class HttpError(Exception):
    """The request is refused for what it is as HTTP. ``headers`` go out with the answer."""

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


# --- Bodies ----------------------------------------------------------------------------------------------------------


class Decoder(Protocol):
    """Undoes a content encoding, piece by piece."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What ``data``, which goes on where the last one ended, contains."""
        ...

    def finish(self) -> None:
        """The body has ended."""
        ...


class Identity:
    """A body that is sent as it is."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class Inflate:
    """gzip, of one member or several, or deflate. HttpError if the body is not what it says."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._window = zlib.MAX_WBITS + 16 if encoding == "gzip" else zlib.MAX_WBITS
        self._stream = zlib.decompressobj(self._window)
        self._ended = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._ended:
                self._stream, self._ended = zlib.decompressobj(self._window), False
            try:
                yield self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not valid {self._encoding}: {error}") from None
            self._ended = self._stream.eof
            data = self._stream.unused_data if self._ended else self._stream.unconsumed_tail

    def finish(self) -> None:
        if not self._ended:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not valid {self._encoding}: it ends too soon")


# --- The endpoint ----------------------------------------------------------------------------------------------------


class TracesEndpoint:
    """The one resource there is: ``POST /v1/traces``."""

    def __init__(self, ingest: TraceIngest, admission: Admission, body_bytes_max: int) -> None:
        self._ingest = ingest
        self._admission = admission
        self.body_bytes_max = body_bytes_max
        """Of a body, compressed and not."""

    def check(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        """HttpError if the request is to be refused before its body is read. Names of headers are in lower case."""
        path = target.partition("?")[0]
        if path != TRACES_PATH:
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is no {path}; spans are taken by POST at {TRACES_PATH}")
        if method != "POST":
            message = f"{TRACES_PATH} takes POST, not {method}"
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, message, Allow="POST")
        sent = _media_type(headers)
        if sent not in (PROTOBUF, JSON):
            message = f"Content-Type is {sent or 'missing'}; send {PROTOBUF} or {JSON}"
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        length = headers.get("content-length")
        if length is None and "transfer-encoding" not in headers:
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length, or the body in chunks")
        if length is not None and int(length) > self.body_bytes_max:
            raise self.too_large()

    def too_large(self) -> HttpError:
        message = f"the body has more than {self.body_bytes_max} bytes; send less at once, or raise --max-message-bytes"
        return HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)

    async def export(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Store the spans of a body that is there and decoded. HttpError or StoreError: none, or not all, were."""
        sent = _media_type(headers)
        with self._admission.lane(TRACE_EXPORT, None).enter(len(body)):
            spans = received_spans_from_json(body) if sent == JSON else received_spans(body)
            response = await self._store(spans)
        return Answer(HTTPStatus.OK, sent, _encoded(response, sent))

    async def _store(self, spans: Iterable[ReceivedSpan]) -> ExportTraceServiceResponse:
        bound = asyncio.timeout(TRACE_EXPORT.deadline_seconds)
        try:
            async with bound:
                return await self._ingest.export(spans)
        except TimeoutError:
            if not bound.expired():
                raise
            raise StoreTimeoutError(f"storing the spans took longer than {TRACE_EXPORT.deadline_seconds:g} s") from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise StoreUnavailableError("the store gave this call up; try again") from None


def decoder_of(headers: Mapping[str, str]) -> Decoder:
    """For the body's content encoding. HttpError: it is one that is not known here."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return Identity()
    if encoding in ("gzip", "x-gzip", "deflate"):
        return Inflate(encoding.removeprefix("x-"))  # RFC 9110, section 8.4.1.3
    message = f"Content-Encoding is {encoding}; send gzip, deflate or none"
    raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, Accept_Encoding="gzip, deflate")


def failure(error: Exception, headers: Mapping[str, str]) -> Answer:
    """The answer to a request that failed. A failure of the server goes to the log, and only its incident id out."""
    encoding = JSON if _media_type(headers) == JSON else PROTOBUF
    if isinstance(error, HttpError):
        return Answer(error.status, encoding, _encoded(Status(message=str(error)), encoding), error.headers)
    told = error_to_proto(shown_error(f"POST {TRACES_PATH}", error))
    status = HTTP_STATUSES.get(told.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return Answer(status, encoding, _encoded(told, encoding), _retry_after(status, error))


def _retry_after(status: HTTPStatus, error: Exception) -> dict[str, str]:
    if status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return {}
    seconds = error.retry_after_seconds if isinstance(error, ResourceExhaustedError) else None
    return {"Retry-After": str(RETRY_AFTER_SECONDS if seconds is None else max(1, math.ceil(seconds)))}


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _encoded(message: Message, encoding: str) -> bytes:
    if encoding == JSON:
        return json_format.MessageToJson(message, indent=None).encode()
    return message.SerializeToString()
