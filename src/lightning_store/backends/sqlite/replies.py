"""The request ids of the recorded replies, which are in memory, each with the row where the reply is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from sqlite3 import Connection
from typing import Final, NamedTuple

REPLY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes of recorded replies at most; the oldest go first."""
EXPIRED_AT_ONCE: Final = 500
"""Replies that one transaction deletes beside as many as it adds: after a pause very many expire."""


class Entry(NamedTuple):
    """A reply that is stored."""

    number: int
    request_id: str
    recorded_at: float
    size_bytes: int


class ReplyIndex:
    """Which replies are stored. It changes when a transaction has been committed.

    Args:
        window_seconds: How long a reply is kept.
        entries_max: How many are kept.
    """

    def __init__(self, window_seconds: float, entries_max: int) -> None:
        self._window_seconds = window_seconds
        self._entries_max = entries_max
        self._by_id: dict[str, Entry] = {}
        self._in_order: deque[Entry] = deque()
        """The oldest first, with some that were replaced."""
        self._bytes = 0

    def read(self, connection: Connection) -> None:
        """Look at what is stored."""
        self._by_id.clear()
        self._in_order.clear()
        self._bytes = 0
        rows = connection.execute("SELECT number, request_id, recorded_at, length(body) FROM replies ORDER BY number")
        self.add(map(Entry._make, rows))

    def number(self, request_id: str) -> int | None:
        """The row of a reply."""
        entry = self._by_id.get(request_id)
        return None if entry is None else entry.number

    def expired(self, added: list[Entry]) -> int:
        """The row up to which all replies are to be deleted when these are added; 0 for none."""
        last, count, size = 0, len(self._by_id) + len(added), self._bytes + sum(one.size_bytes for one in added)
        now = max(one.recorded_at for one in added)
        for entry in self._oldest(EXPIRED_AT_ONCE + len(added)):
            old = now - entry.recorded_at > self._window_seconds
            if not old and count <= self._entries_max and size <= REPLY_BYTES_MAX:
                break
            last = entry.number
            if self._by_id.get(entry.request_id) is entry:
                count -= 1
                size -= entry.size_bytes
        return last

    def _oldest(self, limit: int) -> Iterator[Entry]:
        for _, entry in zip(range(limit), self._in_order, strict=False):
            yield entry

    def add(self, added: Iterable[Entry]) -> None:
        """These are stored, each in the place of a former one of its id."""
        for entry in added:
            former = self._by_id.pop(entry.request_id, None)
            self._bytes += entry.size_bytes - (0 if former is None else former.size_bytes)
            self._by_id[entry.request_id] = entry
            self._in_order.append(entry)

    def delete(self, last: int) -> None:
        """The replies up to row ``last`` are deleted."""
        while self._in_order and self._in_order[0].number <= last:
            entry = self._in_order.popleft()
            if self._by_id.get(entry.request_id) is entry:
                del self._by_id[entry.request_id]
                self._bytes -= entry.size_bytes
