"""How much room a database has: on its disk, and below its own limit."""

from __future__ import annotations

import os
from sqlite3 import Connection
from typing import Final

from lightning_store.backends.base import DiskUse
from lightning_store.backends.sqlite.errors import RETRY_AFTER_SECONDS
from lightning_store.backends.sqlite.file import PAGE_BYTES, wal_bytes
from lightning_store.errors import ResourceExhaustedError

FREE_BYTES_MIN: Final = 128 * 1024 * 1024
"""Twice what the write-ahead log takes: reports and deletions go on when new data is refused."""
LOG_SHARE: Final = 4
"""One part in so many of it has to be free on the disk, however much is free within the file, for the log."""


class Room:
    """What is known of it. New data is refused while there is some left, so that deletions have what they need.

    Args:
        path: The database's file.
        size_bytes_max: How many bytes of pages may be in use; None as many as the disk has.
        free_bytes_min: How many bytes of the disk stay free.
    """

    def __init__(self, path: str, size_bytes_max: int | None, free_bytes_min: int) -> None:
        self._path = path
        self._folder = os.path.dirname(path) or "."  # the file itself may be taken away
        self._size_bytes_max = size_bytes_max
        self._free_bytes_min = free_bytes_min
        self._file_bytes = 0
        self._reusable_bytes = 0

    def measure(self, connection: Connection) -> None:
        """Look how large the file is, and how much of it is free to be used again. Outside of transactions."""
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        [free_pages] = connection.execute("PRAGMA freelist_count").fetchone()
        self._file_bytes, self._reusable_bytes = pages * PAGE_BYTES, free_pages * PAGE_BYTES

    @property
    def use(self) -> DiskUse:
        return DiskUse(
            used_bytes=self._file_bytes - self._reusable_bytes,
            file_bytes=self._file_bytes + wal_bytes(self._path),
            free_bytes=self._free_bytes(),
            limit_bytes=self._size_bytes_max,
        )

    def refusal(self) -> ResourceExhaustedError | None:
        """Why nothing more can be stored; None while there is room."""
        used_bytes = self._file_bytes - self._reusable_bytes
        if self._size_bytes_max is not None and used_bytes > self._size_bytes_max:
            message = f"the database {self._path} has {used_bytes} bytes in use, more than its limit of "
            return _refusal(
                f"{message}{self._size_bytes_max}; delete finished rollouts, or raise the limit", "disk_limit"
            )
        free_bytes = self._free_bytes()
        left_bytes = min(free_bytes + self._reusable_bytes, free_bytes * LOG_SHARE)
        if left_bytes < self._free_bytes_min:
            message = f"the disk of {self._path} has {free_bytes} bytes left, which deletions may need"
            return _refusal(f"{message}; delete finished rollouts, or make room on the disk", "disk")
        return None

    def _free_bytes(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize


def _refusal(message: str, limit: str) -> ResourceExhaustedError:
    error = ResourceExhaustedError(f"{message}; nothing was stored", limit=limit)
    error.retry_after_seconds = RETRY_AFTER_SECONDS
    return error
