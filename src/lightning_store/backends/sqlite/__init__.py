"""The backend that holds everything in one SQLite database."""

from __future__ import annotations

from lightning_store.backends.sqlite.backend import REPLAY_ENTRIES_MAX, REPLAY_WINDOW_SECONDS, SqliteBackend
from lightning_store.backends.sqlite.file import Durability
from lightning_store.backends.sqlite.room import FREE_BYTES_MIN

__all__ = ["FREE_BYTES_MIN", "REPLAY_ENTRIES_MAX", "REPLAY_WINDOW_SECONDS", "Durability", "SqliteBackend"]
