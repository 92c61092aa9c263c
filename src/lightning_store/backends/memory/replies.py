"""Recorded replies in memory, bounded by age, number and bytes."""

from __future__ import annotations

from collections import deque
from typing import Final

from lightning_store.backends.records import ReplyRecord

REPLY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes of recorded replies at most; the oldest go first, but the last one stays, however large it is."""
REPLY_OVERHEAD_BYTES: Final = 300
"""Memory of a reply beside its body."""


class Replies:
    """Replies by request id, the oldest first to go.

    Args:
        window_seconds: How long one is kept.
        entries_max: How many are kept.
    """

    def __init__(self, window_seconds: float, entries_max: int) -> None:
        self._window_seconds = window_seconds
        self._entries_max = entries_max
        self._by_id: dict[str, ReplyRecord] = {}
        self._in_order: deque[ReplyRecord] = deque()
        """The oldest first, with some that were replaced. (An OrderedDict stops for long when it grows.)"""
        self._bytes = 0

    def get(self, request_id: str) -> ReplyRecord | None:
        return self._by_id.get(request_id)

    def put(self, reply: ReplyRecord) -> None:
        self._forget(reply.request_id)
        self._by_id[reply.request_id] = reply
        self._in_order.append(reply)
        self._bytes += _size_bytes(reply)
        while (oldest := self._in_order[0]) is not reply:
            expired = reply.recorded_at - oldest.recorded_at > self._window_seconds
            too_many = len(self._by_id) > self._entries_max or self._bytes > REPLY_BYTES_MAX
            if not expired and not too_many:
                return
            self._in_order.popleft()
            if self._by_id.get(oldest.request_id) is oldest:
                self._forget(oldest.request_id)

    def _forget(self, request_id: str) -> None:
        former = self._by_id.pop(request_id, None)
        if former is not None:
            self._bytes -= _size_bytes(former)


def _size_bytes(reply: ReplyRecord) -> int:
    return len(reply.body) + REPLY_OVERHEAD_BYTES
