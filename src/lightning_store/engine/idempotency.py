"""Request ids: how a call that is sent twice happens once.

A caller that may repeat a call (a server whose client retries after a lost reply) makes it inside
``request_scope(request_id)``. The engine then records the reply in the transaction that makes the change, and answers
the same id again from the record, without doing anything. The id travels in a context variable, so that the methods of
``LightningStore`` keep their signatures; it reaches tasks and threads that are given the caller's context.

A store that does not read ``current_request`` gives at-least-once where a retry follows a lost reply; its
``replay_window_seconds`` is 0.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, NamedTuple

OWNER_END: Final = "\n"
"""What no name of an owner has."""


class Request(NamedTuple):
    """One logical call, however often it is made."""

    id: str
    fingerprint: str
    """Tells different calls apart that were given the same id by mistake; empty if nobody looks."""
    repeated: bool = False
    """Whether it is known to be made again, so that an earlier one may still be on its way."""


_request: ContextVar[Request | None] = ContextVar("lightning_store_request", default=None)


class _Scope:
    """Sets the request for as long as it is entered. (A class, since every call enters one.)"""

    __slots__ = ("_request", "_token")

    def __init__(self, request: Request | None) -> None:
        self._request = request

    def __enter__(self) -> None:
        self._token = _request.set(self._request)

    def __exit__(self, *_: object) -> None:
        _request.reset(self._token)


def request_scope(
    request_id: str, fingerprint: str = "", *, repeated: bool = False, owner: str = ""
) -> AbstractContextManager[None]:
    """The one call that is made inside carries ``request_id``; again with another ``fingerprint``, it is refused.

    A call that came to nothing (an empty claim, a refusal) is recorded only if it is ``repeated``: then the earlier
    one may arrive later, and must not act when nobody expects it any more. An id belongs to its ``owner``: that of
    another is another id, so that nobody gets the reply of a call by guessing.
    """
    return _Scope(Request(f"{owner}{OWNER_END}{request_id}" if owner else request_id, fingerprint, repeated))


def shown_id(request_id: str) -> str:
    """The id as its owner gave it."""
    return request_id.rpartition(OWNER_END)[2]


def part_scope(part: str) -> AbstractContextManager[None]:
    """For one of several calls that together answer the present request: it gets an id of its own, derived from it."""
    request = _request.get()
    return _Scope(None if request is None else request._replace(id=f"{request.id}/{part}"))


def current_request() -> Request | None:
    """The request that is being answered; None outside of a ``request_scope``."""
    return _request.get()
