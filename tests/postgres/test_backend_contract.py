"""The contract of backends, on PostgreSQL: on one server's connections, and on those of three that share the data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from lightning_store.backends.base import Backend
from lightning_store.backends.postgres import PostgresBackend
from lightning_store.testing import BackendContract, FakeClock
from tests.postgres.server import PostgresServer


class OnPostgres:
    @pytest.fixture(autouse=True)
    def _database(self, postgres: PostgresServer, namespace: str) -> None:
        self.dsn = postgres.dsn()
        self.namespaces = (f"{namespace}_{number}" for number in count())


class TestPostgres(OnPostgres, BackendContract):
    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        backend = await PostgresBackend.open(self.dsn, namespace=next(self.namespaces), **options)
        try:
            yield backend
        finally:
            await backend.aclose()
