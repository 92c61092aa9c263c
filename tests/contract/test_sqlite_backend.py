"""The contract of backends, on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lightning_store.backends.base import Backend
from lightning_store.backends.sqlite import SqliteBackend
from lightning_store.testing import BackendContract, FakeClock


def check_nothing_is_left_open(path: Path) -> None:
    """No statement and no read transaction keeps the log from being emptied."""
    connection = sqlite3.connect(path)
    try:
        [busy, _, _] = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    finally:
        connection.close()
    assert not busy


class TestSqlite(BackendContract):
    @pytest.fixture(autouse=True)
    def _folder(self, database_folder: Path) -> None:
        self.path = database_folder / "store.db"

    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        path = self.path.with_name(f"store{len(list(self.path.parent.iterdir()))}.db")
        backend = SqliteBackend(path, **options)
        try:
            yield backend
            await asyncio.sleep(0)  # read transactions end with the turn of the event loop
            check_nothing_is_left_open(path)
        finally:
            backend.close()
