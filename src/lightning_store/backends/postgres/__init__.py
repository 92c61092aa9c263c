"""Everything in a PostgreSQL database, which several servers share."""

from __future__ import annotations

from lightning_store.backends.postgres.backend import REPLAY_ENTRIES_MAX, REPLAY_WINDOW_SECONDS, PostgresBackend

__all__ = ["REPLAY_ENTRIES_MAX", "REPLAY_WINDOW_SECONDS", "PostgresBackend"]
