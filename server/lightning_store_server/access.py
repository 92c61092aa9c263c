"""Who makes a call, and whether they may: tokens, roles, what a runner holds, and limits for each token.

A server without a file of tokens has none of this: :func:`caller_now` is None then, and everybody may do everything.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any, Final

from lightning_store.clock import Clock, SystemClock
from lightning_store.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from lightning_store.store import LightningStore
from lightning_store.watched_files import WatchedFiles
from lightning_store.wire.methods import BY_PATH, Method, Role
from lightning_store_server.tokens import NO_LIMITS, Token, digest_of, read_tokens

logger = logging.getLogger("lightning_store_server")
audit_logger: Final = logging.getLogger("lightning_store_server.audit")

AUTHORIZATION: Final = "authorization"
BEARER: Final = "bearer"
IDS_SHOWN_MAX: Final = 20
"""Ids in one line of the audit log."""


class Allowance:
    """So much a second. It gathers for one second, and one call may overdraw it: what that took has to come in first.

    Args:
        what: What is counted, for messages.
        limit: The name of the limit.
        per_second: How much of it; None for no limit.
        clock: Tells the time.
    """

    def __init__(self, what: str, limit: str, per_second: float | None, clock: Clock) -> None:
        self._what = what
        self._limit = limit
        self._per_second = per_second
        self._clock = clock
        self._left_max = max(1.0, per_second or 0.0)
        self._left = self._left_max
        self._at = clock.monotonic()

    def check(self) -> None:
        """ResourceExhaustedError, with when to come back, if all is used up."""
        if self._per_second is None:
            return
        now = self._clock.monotonic()
        self._left = min(self._left_max, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1.0:
            error = ResourceExhaustedError(
                f"this token may take {self._per_second:g} {self._what} a second, and has taken them",
                limit=self._limit,
                maximum=f"{self._per_second:g}",
            )
            error.retry_after_seconds = (1.0 - self._left) / self._per_second
            raise error

    def take(self, amount: float) -> None:
        """Count what a call takes that was let in."""
        if self._per_second is not None:
            self._left -= amount


class Caller:
    """The holder of one token."""

    def __init__(self, token: Token, clock: Clock) -> None:
        self.token = token
        limits = token.limits
        self._calls = Allowance("calls", "calls_per_second", limits.calls_per_second, clock)
        self._bytes = Allowance("bytes", "bytes_per_second", limits.bytes_per_second, clock)
        self._spans = Allowance("spans", "spans_per_second", limits.spans_per_second, clock)
        self._is_limited = limits != NO_LIMITS
        self._methods = frozenset(method.name for method in BY_PATH.values() if token.role.suffices_for(method.role))
        """Names of those that it may call."""

    @property
    def name(self) -> str:
        """The token's."""
        return self.token.name

    @property
    def sees_secrets(self) -> bool:
        """Whether resources are shown with the keys that are in them."""
        return self.token.role is not Role.READER

    def require(self, needed: Role, what: str) -> None:
        """PermissionDeniedError unless the token's role suffices for ``what``."""
        if not self.token.role.suffices_for(needed):
            message = (
                f"{what} needs the role {needed.value}; the token {self.name} has the role {self.token.role.value}"
            )
            raise PermissionDeniedError(message, role=needed.value)

    def admit(self, method: Method, request_bytes: int) -> None:
        """PermissionDeniedError or ResourceExhaustedError unless the token may make this call, now."""
        if method.name not in self._methods:
            self.require(method.role, method.name)
        if self._is_limited:
            self.take(request_bytes)

    def take(self, request_bytes: int) -> None:
        """Count a call. ResourceExhaustedError if the token has had its calls or bytes."""
        self._calls.check()
        self._bytes.check()
        self._calls.take(1)
        self._bytes.take(request_bytes)

    def check_spans(self) -> None:
        """ResourceExhaustedError if the token has had its spans."""
        self._spans.check()

    def take_spans(self, count: int) -> None:
        """Count spans."""
        self._spans.take(count)

    def require_worker(self, worker_id: str | None) -> None:
        """PermissionDeniedError unless the token's holder may be this worker."""
        if self.is_bound and not self._may_be(worker_id):
            patterns = ", ".join(self.token.workers)
            given = "worker_id is missing" if worker_id is None else f"worker_id is {worker_id!r}"
            raise PermissionDeniedError(
                f"{given}; the token {self.name} is for the workers {patterns}", field="worker_id"
            )

    async def require_held(self, store: LightningStore, attempts: Iterable[tuple[str, str]]) -> None:
        """PermissionDeniedError unless each of the attempts (rollout id, attempt id) that the store knows is held by a
        worker that the token's holder may be."""
        if not self.is_bound:
            return
        for rollout_id, attempt_id in dict.fromkeys(attempts):
            if not await self._holds(store, rollout_id, attempt_id):
                message = f"no worker of the token {self.name} holds attempt {attempt_id} of rollout {rollout_id}"
                raise PermissionDeniedError(message, rollout_id=rollout_id, attempt_id=attempt_id)

    @property
    def is_bound(self) -> bool:
        """Whether its holder may be some workers and no others."""
        return self.token.role is Role.RUNNER and bool(self.token.workers)

    def _may_be(self, worker_id: str | None) -> bool:
        return worker_id is not None and any(fnmatchcase(worker_id, pattern) for pattern in self.token.workers)

    async def _holds(self, store: LightningStore, rollout_id: str, attempt_id: str) -> bool:
        latest = await store.get_latest_attempt(rollout_id)
        if latest is None or attempt_id in (latest.attempt_id, "latest"):
            return latest is None or self._may_be(latest.worker_id)
        attempts = await store.query_attempts(rollout_id)
        return all(self._may_be(one.worker_id) for one in attempts if one.attempt_id == attempt_id)


_caller: Final[ContextVar[Caller | None]] = ContextVar("_caller", default=None)

caller_now: Final = _caller.get
"""Whose call is being worked on; None where the server has no tokens."""
note_caller: Final = _caller.set
"""Say whose call the present task, and those that it begins, works on from now on."""


class Access:
    """The tokens of one server, read again when their file changes.

    Args:
        path: The file of tokens.
        clock: Tells when tokens expire, and when to look at the file again.

    Raises:
        InvalidArgumentError: The file cannot be read.
    """

    def __init__(self, path: str, clock: Clock | None = None) -> None:
        self._path = path
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._file = WatchedFiles([path], self._clock)
        self._callers = self._read({})

    def caller(self, digest: str) -> Caller:
        """The holder of the token with this hash, as the file has it now.

        Raises:
            UnauthenticatedError: There is none, or it was revoked or has expired.
        """
        if self._file.changed():
            self._reload()
        caller = self._callers.get(digest)
        # Found by its hash, whose bytes nobody can choose: how long the look takes tells nothing about any token.
        if caller is None or not hmac.compare_digest(caller.token.sha256, digest):
            raise UnauthenticatedError("the token is not known here")
        if not caller.token.counts_at(self._clock.now()):
            why = "has expired" if caller.token.revoked is None else "was revoked"
            raise UnauthenticatedError(f"the token {caller.name} {why}")
        return caller

    def tokens(self) -> list[Token]:
        """Those of the file, without the tokens, as it was read last."""
        return [caller.token for caller in self._callers.values()]

    def _read(self, present: Mapping[str, Caller]) -> dict[str, Caller]:
        callers = {}
        for token in read_tokens(self._path).tokens:
            caller = present.get(token.sha256)
            # One that is as it was has not its limits anew.
            callers[token.sha256] = (
                caller if caller is not None and caller.token == token else Caller(token, self._clock)
            )
        return callers

    def _reload(self) -> None:
        try:
            self._callers = self._read(self._callers)
        except InvalidArgumentError as error:
            logger.error("the tokens stay as they were: %s", error)
        else:
            logger.info("%s was read again: %d tokens", self._path, len(self._callers))


def bearer_digest(metadata: Iterable[tuple[str, Any]]) -> str:
    """The hash of the token that comes with a call.

    Args:
        metadata: Of the call, or the headers of a request.

    Raises:
        UnauthenticatedError: There is none, or more than one.
    """
    found = [value for key, value in metadata if key == AUTHORIZATION]
    if len(found) != 1:
        problem = "there is more than one" if found else "there is none"
        raise UnauthenticatedError(f"this server takes calls with a token only, and {problem}; {_HOW}")
    scheme, _, token = str(found[0]).partition(" ")
    if scheme.lower() != BEARER or not token.strip():
        raise UnauthenticatedError(f"authorization is not of the form Bearer TOKEN; {_HOW}")
    return digest_of(token.strip())


_HOW: Final = "send `authorization: Bearer TOKEN` (the client's token=, or LIGHTNING_STORE_TOKEN)"


def audit(what: str, ids: Iterable[str] = (), **details: object) -> None:
    """Log what an admin did, with who it was. Nothing where the server has no tokens."""
    caller = caller_now()
    if caller is None:
        return
    known = list(ids)
    shown = ", ".join(known[:IDS_SHOWN_MAX]) + (
        f" and {len(known) - IDS_SHOWN_MAX} more" if len(known) > IDS_SHOWN_MAX else ""
    )
    more = ", ".join(f"{name}: {value}" for name, value in details.items())
    told = "; ".join(part for part in (shown, more) if part) or "nothing"
    audit_logger.info(
        "%s %s: %s", caller.name, what, told, extra={"audit": {"caller": caller.name, "what": what, "told": told}}
    )
