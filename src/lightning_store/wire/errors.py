"""Errors as gRPC statuses and back: one table for both ends.

A status carries ``google.rpc.ErrorInfo`` with the reason of the error's class and the error's details, so that a client
raises the class that the store raised. It also carries ``BadRequest`` where ``details["field"]`` names a field, and
``RetryInfo`` where the store says when to try again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc.aio import AioRpcError
from grpc_status import rpc_status
from pydantic import ValidationError

from lightning_store.errors import (
    CLASSES_BY_REASON,
    AttemptFencedError,
    AttemptNotFoundError,
    CallCancelledError,
    CheckpointUnknownError,
    CursorUnknownError,
    IdempotencyKeyReusedError,
    InternalError,
    InUseError,
    InvalidArgumentError,
    InvalidTransitionError,
    InvalidTypeError,
    MessageTooLargeError,
    NoAttemptsError,
    NotJsonError,
    PermissionDeniedError,
    RequestIdReusedError,
    ResourceExhaustedError,
    ResourcesNotFoundError,
    RolloutNotFoundError,
    SpansEvictedError,
    SpansRejectedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnauthenticatedError,
    UnsortableFieldError,
    UnsupportedError,
)
from lightning_store.ids import new_hex
from lightning_store.v1 import span_pb2
from lightning_store.wire.checks import invalid, of_validation_error
from lightning_store.wire.times import duration_from_proto, duration_to_proto

DOMAIN: Final = "lightning-store"

STATUS_CODES: Final[Mapping[type[StoreError], grpc.StatusCode]] = {
    StoreError: grpc.StatusCode.UNKNOWN,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    RolloutNotFoundError: grpc.StatusCode.NOT_FOUND,
    AttemptNotFoundError: grpc.StatusCode.NOT_FOUND,
    NoAttemptsError: grpc.StatusCode.NOT_FOUND,
    ResourcesNotFoundError: grpc.StatusCode.NOT_FOUND,
    InvalidTransitionError: grpc.StatusCode.FAILED_PRECONDITION,
    InUseError: grpc.StatusCode.FAILED_PRECONDITION,
    AttemptFencedError: grpc.StatusCode.FAILED_PRECONDITION,
    CursorUnknownError: grpc.StatusCode.INVALID_ARGUMENT,
    CheckpointUnknownError: grpc.StatusCode.INVALID_ARGUMENT,
    SpansRejectedError: grpc.StatusCode.INVALID_ARGUMENT,
    RequestIdReusedError: grpc.StatusCode.INVALID_ARGUMENT,
    IdempotencyKeyReusedError: grpc.StatusCode.INVALID_ARGUMENT,
    MessageTooLargeError: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidTypeError: grpc.StatusCode.INVALID_ARGUMENT,
    NotJsonError: grpc.StatusCode.INVALID_ARGUMENT,
    UnsortableFieldError: grpc.StatusCode.INVALID_ARGUMENT,
    SpansEvictedError: grpc.StatusCode.DATA_LOSS,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
    StoreTimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CallCancelledError: grpc.StatusCode.CANCELLED,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    InternalError: grpc.StatusCode.INTERNAL,
}
"""Every class of the tree. One that is derived from these elsewhere goes by its nearest base."""

_CLASSES_BY_CODE: Final[Mapping[grpc.StatusCode, type[StoreError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: InvalidArgumentError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.ALREADY_EXISTS: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: StoreUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: StoreTimeoutError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}
"""For a status that says no reason, or one that is not known here: it comes from gRPC, a proxy or a newer server."""

MESSAGE_BYTES_MAX: Final = 1000
DETAILS_BYTES_MAX: Final = 1000
"""A status travels in HTTP/2 headers, of which peers take 8 KiB in all. It has the message twice, once percent-encoded
and once in base64."""

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_TOO_LARGE: Final = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")
"""What gRPC says of a message over ``grpc.max_send_message_length`` or ``grpc.max_receive_message_length``."""


class ErrorStatus(NamedTuple):
    """How a call ends; the first three are the arguments of ``context.abort``."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]
    incident_id: str | None
    """Set for a failure of the server: to be logged, together with the error, by whoever asked for this status."""


# --- Errors to statuses ----------------------------------------------------------------------------------------------


def to_status(error: Exception) -> ErrorStatus:
    """The status for an error that a store or the server raised.

    Whatever is neither a StoreError nor a TypeError or ValueError becomes INTERNAL and keeps what it says to itself.
    """
    shown = as_store_error(error)
    status = error_to_proto(shown)
    metadata = rpc_status.to_status(status).trailing_metadata
    return ErrorStatus(_code_of(shown), status.message, tuple(metadata or ()), shown.details.get("incident_id"))


def error_to_proto(shown: StoreError) -> Any:
    """The google.rpc.Status for an error that a caller may see: see :func:`as_store_error`."""
    status = Status(code=_code_of(shown).value[0], message=_message_of(shown))
    info = ErrorInfo(reason=shown.reason, domain=DOMAIN, metadata=_details_of(shown))
    status.details.add().Pack(info)
    if "field" in info.metadata:
        violation = BadRequest.FieldViolation(field=info.metadata["field"])
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if isinstance(shown, ResourceExhaustedError) and shown.retry_after_seconds is not None:
        status.details.add().Pack(RetryInfo(retry_delay=duration_to_proto(shown.retry_after_seconds)))
    return status


def as_store_error(error: Exception) -> StoreError:
    """The error as a caller may see it: of the tree, and without the inner life of the server."""
    if isinstance(error, InternalError) and "incident_id" not in error.details:
        return _incident()
    if isinstance(error, StoreError):
        return error
    if isinstance(error, ValidationError):
        return of_validation_error(error)
    if isinstance(error, TypeError):
        return InvalidTypeError(str(error))
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):  # which nobody raises on purpose
        return InvalidArgumentError(str(error))
    return _incident()


def _incident() -> InternalError:
    incident_id = new_hex(12)
    message = f"The server failed on this call; its log has the cause under incident {incident_id}"
    return InternalError(message, incident_id=incident_id)


def _code_of(error: StoreError) -> grpc.StatusCode:
    return next(STATUS_CODES[cls] for cls in type(error).__mro__ if cls in STATUS_CODES)


def _message_of(error: StoreError) -> str:
    """What the error says. It is never empty, and has no space at its ends, which header values lose."""
    return _cut(str(error), MESSAGE_BYTES_MAX).strip() or error.reason


def _details_of(error: StoreError) -> dict[str, str]:
    """The error's details, as many of them as fit."""
    details: dict[str, str] = {}
    left = DETAILS_BYTES_MAX
    for name, value in error.details.items():
        details[name] = _cut(str(value), left)
        left -= len(name) + len(details[name].encode())
        if left <= 0:
            break
    return details


def _cut(text: str, bytes_max: int) -> str:
    """``text`` with question marks for what UTF-8 cannot hold, and cut off where it is longer than ``bytes_max``."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return encoded.decode()
    return encoded[: max(bytes_max - 3, 0)].decode("utf-8", "ignore") + "…"


# --- Statuses to errors ----------------------------------------------------------------------------------------------


def from_rpc_error(error: grpc.RpcError) -> StoreError:
    """The error of a call that failed, of the class that the store raised where the status tells it."""
    if not isinstance(error, grpc.Call | AioRpcError):
        return InternalError(f"gRPC failed without a status: {error!r}")
    try:
        status = rpc_status.from_call(cast(grpc.Call, error)) or Status()
    except (ValueError, DecodeError):  # malformed, or it contradicts the call
        status = Status()
    return _from_status(error.code(), error.details() or "", status)


def error_from_proto(status: Any) -> StoreError:
    """The error that a google.rpc.Status tells of."""
    return _from_status(status_code(status.code), status.message, status)


def status_code(number: int) -> grpc.StatusCode:
    """That gRPC has the number for; UNKNOWN if it has none."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def _from_status(code: grpc.StatusCode, details: str, status: Any) -> StoreError:
    message, info, retry_after_seconds = _rich_status(status)
    cls = CLASSES_BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if cls is None and (sizes := _TOO_LARGE.search(details)):
        return _too_large(int(sizes[1]), int(sizes[2]))
    found = (cls or _CLASSES_BY_CODE.get(code, StoreError))(message or _plain_message(code, details))
    found.details = dict(info.metadata)
    if isinstance(found, ResourceExhaustedError):
        found.retry_after_seconds = retry_after_seconds
    return found


def _rich_status(status: Any) -> tuple[str, ErrorInfo, float | None]:
    """Message, ErrorInfo and RetryInfo's seconds of a ``google.rpc.Status``; empty ones if it is malformed."""
    info, retry, retry_after_seconds = ErrorInfo(), RetryInfo(), None
    try:
        for detail in status.details:
            if not detail.Unpack(info) and detail.Unpack(retry):
                retry_after_seconds = duration_from_proto(retry.retry_delay, "retry_delay")
    except (ValueError, DecodeError):
        return "", ErrorInfo(), None
    return status.message, info, retry_after_seconds


def _plain_message(code: grpc.StatusCode, details: str) -> str:
    """For a status that is not the server's own."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return f"The server cannot be reached: {details}"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return "The deadline passed before the server answered"
        case grpc.StatusCode.CANCELLED:
            return "The call was cancelled before the server answered"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"The server does not offer this method: {details}"
    return f"{code.name}: {details}"


def _too_large(size_bytes: int, limit_bytes: int) -> MessageTooLargeError:
    return MessageTooLargeError(
        f"A message of {size_bytes} bytes is larger than the limit of {limit_bytes} bytes; send less at once, or raise "
        "the limit at both ends: --max-message-bytes of the server and max_message_bytes of the client",
        size_bytes=str(size_bytes),
        limit_bytes=str(limit_bytes),
    )


# --- Outcomes of single spans ----------------------------------------------------------------------------------------


def write_span_outcome(message: span_pb2.SpanOutcome, outcome: int | Exception | None) -> None:
    """Set an empty message in place: stored under a sequence id, refused for a reason, or None for a duplicate."""
    if isinstance(outcome, int):
        message.stored.sequence_id = outcome
    elif outcome is None:
        message.duplicate.SetInParent()
    else:
        shown = as_store_error(outcome)
        message.rejected.reason = shown.reason
        message.rejected.message = _message_of(shown)
        message.rejected.details.update(_details_of(shown))


def span_outcome_from_proto(message: span_pb2.SpanOutcome, field: str) -> int | StoreError | None:
    """The sequence id of a span that is stored, the error of one that was refused, None for a duplicate."""
    if message.HasField("stored"):  # nearly all are
        return message.stored.sequence_id
    match message.WhichOneof("outcome"):
        case "duplicate":
            return None
        case "rejected":
            rejected = message.rejected
            error = CLASSES_BY_REASON.get(rejected.reason, InvalidArgumentError)(rejected.message)
            error.details = dict(rejected.details)
            return error
    raise invalid(f"{field}.outcome", "is missing; the server must say what became of the span")
