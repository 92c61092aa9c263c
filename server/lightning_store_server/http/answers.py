"""Answers to requests that failed: a google.rpc.Status, as protobuf or as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from starlette.datastructures import Headers
from starlette.responses import Response

from lightning_store.errors import ResourceExhaustedError
from lightning_store.text import clipped, printable
from lightning_store.wire.errors import error_to_proto
from lightning_store_server.interceptors import shown_error

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

RETRY_AFTER_SECONDS: Final = 1
"""Until a sender that is told to try again, and not when, should."""
PATH_CHARS_MAX: Final = 200
"""Characters of a path that are repeated in answers and logs."""

HTTP_STATUSES: Final[Mapping[int, HTTPStatus]] = {
    code_pb2.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    code_pb2.NOT_FOUND: HTTPStatus.BAD_REQUEST,
    code_pb2.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    code_pb2.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    code_pb2.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    code_pb2.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    code_pb2.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    code_pb2.CANCELLED: HTTPStatus.SERVICE_UNAVAILABLE,
    code_pb2.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    code_pb2.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
}
"""Of OTLP, which leaves 404 to paths. Any other code is an INTERNAL_SERVER_ERROR."""


class HttpError(Exception):
    """The request is refused for what it is as HTTP. ``headers`` go out with the answer."""

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def busy(why: str) -> HttpError:
    """Too much is under way; the sender should try again."""
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{why}; try again later", Retry_After=str(RETRY_AFTER_SECONDS))


def media_type(headers: Headers) -> str:
    """Of the body, without its parameters, in lower case; empty if there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def error_encoding(headers: Headers, default: str) -> str:
    """The media type for an error: what the request accepts, or else what its body has, or else ``default``."""
    for asked in (headers.get("accept", "").lower(), media_type(headers)):
        found = [one for one in (JSON, PROTOBUF) if one in asked]
        if found:
            return min(found, key=asked.index)
    return default


def encoded(message: Message, encoding: str) -> bytes:
    """Serialize a message in one of the two media types."""
    if encoding == JSON:
        return json_format.MessageToJson(message, indent=None).encode()
    return message.SerializeToString()


def failure(error: Exception, method: str, path: str, encoding: str) -> Response:
    """The answer to a request that failed.

    The cause of a failure of the server goes to the log, and only its incident id out.

    Args:
        error: Why it failed.
        method: The request's method.
        path: The request's path.
        encoding: The media type of the answer.
    """
    if isinstance(error, HttpError):
        status, told, headers = error.status, Status(message=str(error)), error.headers
    else:
        told = error_to_proto(shown_error(f"{method} {shown_path(path)}", error))
        status = HTTP_STATUSES.get(told.code, HTTPStatus.INTERNAL_SERVER_ERROR)
        headers = retry_after(status, error)
        if status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
    return Response(encoded(told, encoding), status, headers, media_type=encoding)


def shown_path(path: str) -> str:
    """A path as it may be repeated in an answer or a log."""
    return printable(clipped(path, PATH_CHARS_MAX))


def retry_after(status: HTTPStatus, error: Exception) -> dict[str, str]:
    """The header that says when to try again, if that makes sense."""
    if status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return {}
    seconds = error.retry_after_seconds if isinstance(error, ResourceExhaustedError) else None
    return {"Retry-After": str(RETRY_AFTER_SECONDS if seconds is None else max(1, math.ceil(seconds)))}
