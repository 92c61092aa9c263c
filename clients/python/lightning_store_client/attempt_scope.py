"""Which attempt the running code works on, as the span processor stamps it on spans."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import NamedTuple

from lightning_store.errors import InvalidTypeError
from lightning_store.model import AttemptedRollout


class AttemptKey(NamedTuple):
    """The ids of an attempt."""

    rollout_id: str
    attempt_id: str


_current: ContextVar[AttemptKey | None] = ContextVar("lightning_store_attempt", default=None)


def current_attempt() -> AttemptKey | None:
    """The attempt of the innermost scope; None outside of all."""
    return _current.get()


class _Scope:
    def __init__(self, key: AttemptKey) -> None:
        self._key = key
        self._token: Token[AttemptKey | None] | None = None

    def __enter__(self) -> None:
        self._token = _current.set(self._key)

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            _current.reset(token)


def attempt_scope(claimed: AttemptedRollout) -> AbstractContextManager[None]:
    """``with`` it, and ``LightningStoreSpanProcessor`` stores the spans that start inside with this attempt.

    ``worker.hold`` does the same. The scope is a context variable: it holds in tasks that are created inside and in
    ``asyncio.to_thread``, and not in a ``threading.Thread``.

    Args:
        claimed: A rollout with its attempt, as ``dequeue_rollout`` or ``start_rollout`` returns it.

    Raises:
        InvalidTypeError: ``claimed`` has no attempt.
    """
    if not isinstance(claimed, AttemptedRollout):
        raise InvalidTypeError(f"claimed is {claimed!r}; give the rollout that was claimed", field="claimed")
    return _Scope(AttemptKey(claimed.rollout_id, claimed.attempt.attempt_id))
