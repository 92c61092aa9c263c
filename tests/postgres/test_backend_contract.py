"""The contract of backends, on PostgreSQL: on one server's connections, and on those of three that share the data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from itertools import count, cycle
from typing import Any

import pytest

from lightning_store.backends.base import Backend, Snapshot, Transaction
from lightning_store.backends.postgres import PostgresBackend
from lightning_store.testing import BackendContract, FakeClock
from lightning_store.testing.contract.backend.groups import GroupContract, RequestIdsOfGroupsContract
from lightning_store.testing.contract.backend.isolation import IsolationContract
from tests.postgres.serving import PATIENT
from tools.postgres_server import PostgresServer


class OnPostgres:
    @pytest.fixture(autouse=True)
    def _database(self, postgres: PostgresServer, namespace: str) -> None:
        self.dsn = postgres.dsn()
        self.namespaces = (f"{namespace}_{number}" for number in count())


class TestPostgres(OnPostgres, BackendContract):
    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        backend = await PostgresBackend.open(self.dsn, namespace=next(self.namespaces), **PATIENT, **options)
        try:
            yield backend
        finally:
            await backend.aclose()


class OfThreeServers(Backend):
    """Each transaction and each snapshot is that of the next server."""

    def __init__(self, backends: Sequence[PostgresBackend]) -> None:
        self._backends = backends
        self._turns = cycle(backends)

    @property
    def _newest(self) -> PostgresBackend:
        return max(self._backends, key=lambda one: one.totals.id)

    @property
    def store_id(self) -> str:
        return self._newest.store_id

    @property
    def replay_window_seconds(self) -> float:
        return self._newest.replay_window_seconds

    @property
    def stored_bytes(self) -> int:
        return self._newest.stored_bytes

    @property
    def span_bytes(self) -> int:
        return self._newest.span_bytes

    def transaction(self) -> Transaction:
        return next(self._turns).transaction()

    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        return next(self._turns).snapshot()

    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        return await next(self._turns).evict_spans(excess_bytes, unfinished=unfinished)


class TestThreeServers(OnPostgres, IsolationContract, GroupContract, RequestIdsOfGroupsContract):
    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        async with AsyncExitStack() as stack:
            namespace = next(self.namespaces)
            backends = []
            for _ in range(3):
                backends.append(await PostgresBackend.open(self.dsn, namespace=namespace, **PATIENT, **options))
                stack.push_async_callback(backends[-1].aclose)
            yield OfThreeServers(backends)
