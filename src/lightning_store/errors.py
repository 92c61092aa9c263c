"""Every error that a store raises on purpose.

    StoreError
    ├── InvalidArgumentError (ValueError)         an argument is not legal
    │   ├── RolloutNotFoundError                  "Rollout X not found"
    │   ├── AttemptNotFoundError                  "Attempt Y not found for rollout X"
    │   ├── NoAttemptsError                       "No attempts found for rollout X"
    │   ├── ResourcesNotFoundError                strict mode: resources_id is not known
    │   ├── InvalidTransitionError                strict mode: out of a terminal status
    │   ├── InUseError                            what is to be deleted is in use
    │   ├── AttemptFencedError                    the attempt was cancelled or superseded, and fenced
    │   ├── CursorUnknownError                    the cursor of a feed is of another store
    │   ├── CheckpointUnknownError                a consumer has recorded no checkpoint of that name
    │   ├── SpansRejectedError                    some spans of a batch were refused, the rest are stored
    │   ├── RequestIdReusedError                  one request id, two different calls
    │   ├── IdempotencyKeyReusedError             one idempotency key, two different batches of rollouts
    │   └── MessageTooLargeError                  one item is larger than a message may be
    ├── InvalidTypeError (TypeError)              an argument has the wrong type
    │   ├── NotJsonError                          a payload holds what JSON cannot hold
    │   └── UnsortableFieldError                  sort_by names a field that has no order
    ├── SpansEvictedError (RuntimeError)          the spans were dropped to free memory
    ├── UnauthenticatedError (PermissionError)    no token, or none that counts
    ├── PermissionDeniedError (PermissionError)   the token's role does not suffice
    ├── ResourceExhaustedError (RuntimeError)     a limit is reached; try again later
    ├── StoreUnavailableError (ConnectionError)   the server cannot be reached or is shutting down
    ├── StoreTimeoutError (TimeoutError)          the deadline passed before an answer came
    ├── CallCancelledError (RuntimeError)         the server or a proxy ended the call
    ├── UnsupportedError (NotImplementedError)    the other side does not offer this
    └── InternalError (RuntimeError)              a failure of the store itself; carries an incident id

What the Python contract calls a ValueError or TypeError is one, whether the store is in this process or behind a
wire. ``reason`` is the stable name of a class on the wire; messages are for people and may change.
A value that pydantic refuses (an unknown status, ``max_attempts=0``) is ``pydantic.ValidationError``, a ValueError too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Self

from lightning_store.text import clipped

if TYPE_CHECKING:
    from lightning_store.model import Span


MESSAGE_CHARS_MAX: Final = 8192
DETAIL_CHARS_MAX: Final = 1024
"""What an error says may come from outside, and be kept: it is cut off where it is longer."""


class StoreError(Exception):
    """Base of them all."""

    reason: ClassVar[str] = "STORE_ERROR"

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(clipped(message, MESSAGE_CHARS_MAX))
        self.details = {name: clipped(value, DETAIL_CHARS_MAX) for name, value in details.items()}
        """What the message speaks of, by name, for programs (``rollout_id``, ``field``, …)."""

    @property
    def may_pass(self) -> bool:
        """Whether the same call may succeed another time."""
        return False

    def __copy__(self) -> Self:
        """The same error without its traceback, and so without all that the frames in it hold."""
        twin = type(self).__new__(type(self))
        twin.args = self.args
        twin.__dict__.update(self.__dict__)
        return twin


class InvalidArgumentError(StoreError, ValueError):
    """An argument is not legal. ``details["field"]`` names it."""

    reason = "INVALID_ARGUMENT"


class RolloutNotFoundError(InvalidArgumentError):
    reason = "ROLLOUT_NOT_FOUND"

    @classmethod
    def of(cls, rollout_id: str) -> RolloutNotFoundError:
        return cls(f"Rollout {rollout_id} not found", rollout_id=rollout_id)


class AttemptNotFoundError(InvalidArgumentError):
    reason = "ATTEMPT_NOT_FOUND"

    @classmethod
    def of(cls, rollout_id: str, attempt_id: str) -> AttemptNotFoundError:
        message = f"Attempt {attempt_id} not found for rollout {rollout_id}"
        return cls(message, rollout_id=rollout_id, attempt_id=attempt_id)


class NoAttemptsError(InvalidArgumentError):
    reason = "NO_ATTEMPTS"

    @classmethod
    def of(cls, rollout_id: str) -> NoAttemptsError:
        return cls(f"No attempts found for rollout {rollout_id}", rollout_id=rollout_id)


class ResourcesNotFoundError(InvalidArgumentError):
    reason = "RESOURCES_NOT_FOUND"

    @classmethod
    def of(cls, resources_id: str) -> ResourcesNotFoundError:
        message = f"Resources {resources_id} not found; add them with add_resources, or give None for the latest"
        return cls(message, resources_id=resources_id)


class InvalidTransitionError(InvalidArgumentError):
    reason = "INVALID_TRANSITION"


class InUseError(InvalidArgumentError):
    reason = "IN_USE"


class AttemptFencedError(InvalidArgumentError):
    reason = "ATTEMPT_FENCED"

    @classmethod
    def of(cls, rollout_id: str, attempt_id: str, why: str) -> AttemptFencedError:
        message = f"Attempt {attempt_id} of rollout {rollout_id} is fenced: {why}; stop working on it"
        return cls(message, rollout_id=rollout_id, attempt_id=attempt_id)


class CursorUnknownError(InvalidArgumentError):
    reason = "CURSOR_UNKNOWN"

    @classmethod
    def of(cls, cursor: str) -> CursorUnknownError:
        message = f"after is {cursor!r}, no cursor of this store, which may have been started anew; start without one"
        return cls(message, field="after")


class CheckpointUnknownError(InvalidArgumentError):
    reason = "CHECKPOINT_UNKNOWN"

    @classmethod
    def of(cls, consumer: str, checkpoint: str) -> CheckpointUnknownError:
        message = f"consumer {consumer!r} has recorded no checkpoint {checkpoint!r}; give None to begin anew"
        return cls(message, field="checkpoint")


@dataclass(frozen=True, slots=True)
class RejectedSpan:
    """One span that a batch could not store."""

    index: int
    """Its place in the batch, from 0."""
    span_id: str
    error: StoreError


class SpansRejectedError(InvalidArgumentError):
    """Some spans of a batch were refused. All the others are stored."""

    reason = "SPANS_REJECTED"

    rejected: Sequence[RejectedSpan] = ()
    stored: Sequence[Span] = ()

    @classmethod
    def of(cls, rejected: Sequence[RejectedSpan], stored: Sequence[Span], total: int) -> SpansRejectedError:
        listed = "; ".join(f"span {r.span_id} at index {r.index}: {r.error}" for r in rejected[:10])
        more = f"; and {len(rejected) - 10} more" if len(rejected) > 10 else ""
        error = cls(f"{len(rejected)} of {total} spans were rejected, the others are kept: {listed}{more}")
        error.rejected = tuple(rejected)
        error.stored = tuple(stored)
        return error


class RequestIdReusedError(InvalidArgumentError):
    reason = "REQUEST_ID_REUSED"


class IdempotencyKeyReusedError(InvalidArgumentError):
    reason = "IDEMPOTENCY_KEY_REUSED"

    @classmethod
    def of(cls, key: str) -> IdempotencyKeyReusedError:
        message = f"idempotency_key {key!r} was used for other rollouts, which exist; make another key for these"
        return cls(message, field="idempotency_key")


class MessageTooLargeError(InvalidArgumentError):
    reason = "MESSAGE_TOO_LARGE"


class InvalidTypeError(StoreError, TypeError):
    reason = "INVALID_TYPE"


class NotJsonError(InvalidTypeError):
    """``details["path"]`` says where inside the payload."""

    reason = "NOT_JSON"


class UnsortableFieldError(InvalidTypeError):
    reason = "UNSORTABLE_FIELD"


class SpansEvictedError(StoreError, RuntimeError):
    reason = "SPANS_EVICTED"

    @classmethod
    def of(cls, rollout_id: str) -> SpansEvictedError:
        message = (
            f"Spans of rollout {rollout_id} have been evicted to free memory; "
            "read spans sooner or raise eviction_memory_threshold"
        )
        return cls(message, rollout_id=rollout_id)


class UnauthenticatedError(StoreError, PermissionError):
    """The server asks for a token, and there is none with the call, or not one that counts."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(StoreError, PermissionError):
    """The token does not allow the call. ``details["role"]`` is the least role that does, where it is one."""

    reason = "PERMISSION_DENIED"


class ResourceExhaustedError(StoreError, RuntimeError):
    """A limit of the store is reached. ``retry_after_seconds`` says when trying again makes sense, if known."""

    reason = "RESOURCE_EXHAUSTED"
    retry_after_seconds: float | None = None

    @property
    def may_pass(self) -> bool:
        return self.retry_after_seconds is not None


class StoreUnavailableError(StoreError, ConnectionError):
    reason = "UNAVAILABLE"

    @property
    def may_pass(self) -> bool:
        return True


class StoreTimeoutError(StoreError, TimeoutError):
    reason = "DEADLINE_EXCEEDED"

    @property
    def may_pass(self) -> bool:
        return True


class CallCancelledError(StoreError, RuntimeError):
    reason = "CANCELLED"


class UnsupportedError(StoreError, NotImplementedError):
    reason = "UNSUPPORTED"


class InternalError(StoreError, RuntimeError):
    """``details["incident_id"]`` is in the server's log beside the cause."""

    reason = "INTERNAL"


# --- Errors as data --------------------------------------------------------------------------------------------------


class ErrorRecord(NamedTuple):
    """What an error says, to be kept and raised again."""

    reason: str
    message: str
    details: dict[str, str]
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, error: StoreError) -> ErrorRecord:
        retry_after = error.retry_after_seconds if isinstance(error, ResourceExhaustedError) else None
        details = {name: str(value) for name, value in error.details.items()}
        return cls(error.reason, str(error), details, retry_after)

    def error(self) -> StoreError:
        """A new error of the class that has this reason, StoreError if none has."""
        error = CLASSES_BY_REASON.get(self.reason, StoreError)(self.message)
        error.details = dict(self.details)
        if isinstance(error, ResourceExhaustedError):
            error.retry_after_seconds = self.retry_after_seconds
        return error


def _tree(base: type[StoreError]) -> Iterator[type[StoreError]]:
    yield base
    for derived in base.__subclasses__():
        yield from _tree(derived)


CLASSES_BY_REASON: Mapping[str, type[StoreError]] = {cls.reason: cls for cls in _tree(StoreError)}
"""Every class of the tree above."""
