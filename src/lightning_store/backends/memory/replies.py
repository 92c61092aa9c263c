"""Recorded replies in memory, bounded by age, number and bytes."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from lightning_store.backends.records import AttemptRecord, ReplyRecord, ResourcesRecord, RolloutRecord, text_bytes
from lightning_store.errors import StoreError

REPLY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes of recorded replies at most; the oldest go first, but the last one stays, however large it is."""
REPLY_OVERHEAD_BYTES: Final = 300
"""Memory of a reply beside what it says."""
RECORD_BYTES: Final = 200
"""Of a record in a reply, beside its payloads."""
NUMBER_BYTES: Final = 8
PAYLOAD_RECORDS: Final = (RolloutRecord, AttemptRecord, ResourcesRecord)
OTHER_BYTES: Final = 100
"""Of anything else in a reply, and of a text beside its characters."""


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


def _size_bytes(record: ReplyRecord) -> int:
    return REPLY_OVERHEAD_BYTES + _kept_bytes(record.reply)


def _kept_bytes(reply: Any) -> int:
    """About what a reply keeps in memory: the payloads of its records, and a little for each object."""
    if reply is None or isinstance(reply, int):
        return NUMBER_BYTES
    if isinstance(reply, PAYLOAD_RECORDS):
        return RECORD_BYTES + reply.payload_bytes
    if isinstance(reply, list | tuple):
        return sum(map(_kept_bytes, reply))
    if isinstance(reply, bytes):
        return len(reply)
    if isinstance(reply, str):
        return OTHER_BYTES + text_bytes(reply)
    if isinstance(reply, StoreError):
        return OTHER_BYTES + text_bytes(str(reply)) + sum(map(text_bytes, reply.details.values()))
    return OTHER_BYTES
