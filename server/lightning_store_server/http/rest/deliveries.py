"""Request ids of calls that change something, for callers that have none.

Agent Lightning's clients send a request again when its answer does not come, and nothing in it says so. What tells is
the connection: a caller that has closed it before the answer was sent has not got the answer, and when the same request
comes again, it gets the id of the first one, so that the store answers it from the record. Of an answer that was sent
nobody knows whether it arrived.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from lightning_store_server.http.protocol import GONE
from lightning_store_server.http.rest.values import new_request_id

KEPT_SECONDS: Final = 120.0
"""How long a request is known whose answer was not delivered: longer than their clients try."""
KEPT_MAX: Final = 10_000
"""How many of them."""


class CallId(NamedTuple):
    """The id of a call."""

    id: str
    repeated: bool
    """Whether it was made before."""


@dataclass(slots=True, eq=False)
class _Pending:
    id: str
    key: bytes
    state: MutableMapping[str, Any]
    until: float | None = None
    """When a call that is over is forgotten."""

    @property
    def is_lost(self) -> bool:
        """Whether its caller does not get the answer."""
        return bool(self.state.get(GONE))


class Deliveries:
    """The calls of one server that are under way, and those whose answers were not delivered.

    Args:
        now: Tells the time.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._by_key: dict[bytes, list[_Pending]] = {}
        self._lost: OrderedDict[_Pending, None] = OrderedDict()
        """Those that are over, the oldest first."""

    def begin(self, key: bytes, state: MutableMapping[str, Any]) -> tuple[CallId, Callable[[], None]]:
        """The id of a call, and what to call when its answer was sent, or was not.

        Args:
            key: Equal for equal requests of one caller.
            state: That of the request's connection: see :data:`GONE`.
        """
        self._forget()
        before = next((one for one in self._by_key.get(key, ()) if one.is_lost), None)
        if before is not None:
            self._drop(before)
        pending = _Pending(new_request_id() if before is None else before.id, key, state)
        self._by_key.setdefault(key, []).append(pending)
        return CallId(pending.id, before is not None), lambda: self._end(pending)

    def _end(self, pending: _Pending) -> None:
        if pending not in self._by_key.get(pending.key, ()):
            return  # another call goes by its id
        if not pending.is_lost:
            self._drop(pending)
            return
        pending.until = self._now() + KEPT_SECONDS
        self._lost[pending] = None

    def _drop(self, pending: _Pending) -> None:
        same = self._by_key[pending.key]
        same.remove(pending)
        if not same:
            del self._by_key[pending.key]
        self._lost.pop(pending, None)

    def _forget(self) -> None:
        now = self._now()
        while self._lost:
            oldest = next(iter(self._lost))
            if len(self._lost) <= KEPT_MAX and (oldest.until or 0.0) > now:
                return
            self._drop(oldest)


def key_of(*parts: str | bytes) -> bytes:
    """Equal for equal parts."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "big"))
        made.update(data)
    return made.digest()
