"""The contract, and random sequences of calls, on the store in a SQLite database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings

from lightning_store import LightningStore
from lightning_store.backends.sqlite.maintenance import check
from lightning_store.memory_limits import MemoryLimits
from lightning_store.sqlite_store import SqliteEngineStore, SqliteLightningStore
from lightning_store.testing import FakeClock, StoreContract, StoreStateMachine
from lightning_store.testing.contract.feed import FeedContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.contract.request_ids import RequestIdsContract
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer

LIMITS = (
    "eviction_memory_threshold",
    "safe_memory_threshold",
    "span_size_estimator",
    "memory_capacity_bytes",
    "memory_limit",
)


class InFolder:
    """Each store in a file of its own, which is sound when the test is over."""

    @pytest.fixture(autouse=True)
    def _folder(self, database_folder: Path) -> Iterator[None]:
        self.folder = database_folder
        self.opened_files = 0
        yield
        for file in database_folder.glob("*.db"):
            assert list(check(str(file))) == []

    def new_path(self) -> Path:
        self.opened_files += 1
        return self.folder / f"store{self.opened_files}.db"


class TestSqlite(InFolder, StoreContract):
    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        given = {name: options.pop(name) for name in LIMITS if name in options}
        limits = MemoryLimits.of(**given) if given else None
        with SqliteLightningStore(self.new_path(), clock=clock, limits=limits, **options) as store:
            yield store


class TestSqliteOnOneLoop(InFolder, RequestIdsContract):
    """Without a thread between the caller and the store, a call is cancelled at each of its awaits."""

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        store = SqliteEngineStore(self.new_path(), clock=clock, **options)
        yield store
        store.close()


class TestSqliteServed(InFolder, FeedContract, QueueContract):
    """Over the wire, to a server that hosts it on its own event loop."""

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        store = SqliteEngineStore(self.new_path(), clock=clock, **options)
        server = LightningStoreServer(store, port=0)
        await server.start()
        client = LightningStoreClient(server.endpoint, clock=clock)
        try:
            yield client
        finally:
            await client.close()
            await server.stop()
            store.close()


class OnSqlite(StoreStateMachine):
    async def open_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        with (
            TemporaryDirectory() as folder,
            SqliteLightningStore(Path(folder) / "store.db", clock=clock, durability="normal") as store,
        ):
            yield store
            assert list(check(store.path)) == []


TestOnSqlite = OnSqlite.TestCase
TestOnSqlite.settings = settings(max_examples=settings.default.max_examples // 3, stateful_step_count=50)
