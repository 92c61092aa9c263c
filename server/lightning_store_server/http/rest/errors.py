"""Answers to requests that failed, as Agent Lightning's servers give them: JSON with a ``detail``, and no traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_jsonable_python
from starlette.responses import Response

from lightning_store import json_text
from lightning_store.errors import (
    AttemptNotFoundError,
    CallCancelledError,
    InternalError,
    InvalidArgumentError,
    InvalidTypeError,
    NoAttemptsError,
    PermissionDeniedError,
    ResourceExhaustedError,
    RolloutNotFoundError,
    SpansEvictedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnauthenticatedError,
    UnsortableFieldError,
    UnsupportedError,
)
from lightning_store_server.http.answers import JSON, HttpError, retry_after, shown_path
from lightning_store_server.interceptors import shown_error

FOUND_MAX: Final = 20
"""Complaints about one request that are told."""
INPUT_BYTES_MAX: Final = 1000
"""Of what was sent, in a complaint about it: the sender knows it."""

STATUSES: Final[Mapping[type[StoreError], HTTPStatus]] = {
    UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    PermissionDeniedError: HTTPStatus.FORBIDDEN,
    # Their clients give up on 4xx, 429 included, and try again on 5xx.
    ResourceExhaustedError: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    CallCancelledError: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreTimeoutError: HTTPStatus.GATEWAY_TIMEOUT,
    UnsupportedError: HTTPStatus.NOT_IMPLEMENTED,
    InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
    InvalidArgumentError: HTTPStatus.BAD_REQUEST,
    InvalidTypeError: HTTPStatus.BAD_REQUEST,
}
"""Any other is an INTERNAL_SERVER_ERROR."""
OF_THEIR_STORE: Final = (
    RolloutNotFoundError,
    AttemptNotFoundError,
    NoAttemptsError,
    UnsortableFieldError,
    SpansEvictedError,
)
"""What their store raises too, for which their server of 0.3 answers 500, and that of 0.2 answers 400."""
PHRASES: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
"""Of which the detail is no more than the phrase."""


class UnprocessableError(Exception):
    """The request is JSON, perhaps, but not what it should be. ``found`` is a list as pydantic makes them."""

    def __init__(self, found: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("the request is not what it should be")
        self.found = found

    @classmethod
    def of(cls, error: ValidationError, where: str) -> UnprocessableError:
        """What is wrong with the body or the query."""
        found = error.errors(include_url=False, include_context=True)[:FOUND_MAX]
        nothing = {"input": None} if where == "query" else {}  # of a parameter that is missing
        return cls(
            [{**one, "loc": [where, *one["loc"]], **(nothing if one["type"] == "missing" else {})} for one in found]
        )

    @classmethod
    def missing(cls, where: str) -> UnprocessableError:
        return cls([{"type": "missing", "loc": [where], "msg": "Field required", "input": None}])


class RestError(Exception):
    """The request is refused with this status and detail."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def failed(error: Exception, method: str, path: str, *, of_0_3: bool) -> Response:
    """The answer to a request that failed.

    The cause of a failure of the server goes to the log, and only its incident id out.

    Args:
        error: Why it failed.
        method: The request's method.
        path: The request's path.
        of_0_3: Whether to answer as 0.3 does, where it differs from 0.2.
    """
    if isinstance(error, UnprocessableError):
        return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": [_shown(one) for one in error.found]})
    if isinstance(error, RestError):
        return _answer(error.status, {"detail": str(error)})
    if isinstance(error, HttpError):
        detail = error.status.phrase if error.status in PHRASES else str(error)
        return _answer(error.status, {"detail": detail}, error.headers)
    shown = shown_error(f"{method} {shown_path(path)}", error)
    status = _status(shown, of_0_3=of_0_3)
    headers = retry_after(status, shown)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"detail": str(shown), "error_type": _type_name(shown)}
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        content = {**content, "detail": "Internal server error", "message": str(shown)}
    return _answer(status, content, headers)


def to_json(value: Any) -> bytes:
    """JSON, with NaN and the infinities as Python writes them where there are any: no other form keeps them."""
    return json_text.to_text(value).encode()


def _answer(status: HTTPStatus, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, media_type=JSON)


def _status(shown: StoreError, *, of_0_3: bool) -> HTTPStatus:
    if isinstance(shown, OF_THEIR_STORE):
        return HTTPStatus.INTERNAL_SERVER_ERROR if of_0_3 else HTTPStatus.BAD_REQUEST
    found = (STATUSES[cls] for cls in type(shown).__mro__ if cls in STATUSES)
    return next(found, HTTPStatus.INTERNAL_SERVER_ERROR)


def _type_name(shown: StoreError) -> str:
    """Python's own class of it, which is what theirs raise."""
    return next(cls.__name__ for cls in type(shown).__mro__ if cls.__module__ == "builtins")


def _shown(found: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: to_jsonable_python(value, fallback=str) for name, value in found.items() if name != "input"}
    given = to_jsonable_python(found.get("input"), fallback=str)
    return {**told, "input": given if len(to_json(given)) <= INPUT_BYTES_MAX else None}
