"""Request ids: how a call that is sent twice happens once.

A caller that may repeat a call (a server whose client retries after a lost reply) runs it inside
``request_scope(request_id)``. The engine then keeps the reply together with the change, in one transaction, and answers
the same id again from memory without doing anything. The id travels in a context variable, so that the methods of
``LightningStore`` keep their signatures; it reaches tasks and threads that are given the caller's context.

A store that does not read ``current_request_id`` gives at-least-once where a retry follows a lost reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_request_id: ContextVar[str | None] = ContextVar("lightning_store_request_id", default=None)


@contextmanager
def request_scope(request_id: str | None) -> Iterator[None]:
    """Calls inside carry ``request_id``; one id stands for one logical call."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def current_request_id() -> str | None:
    """The id of the call that is being made; None outside of a ``request_scope``."""
    return _request_id.get()
