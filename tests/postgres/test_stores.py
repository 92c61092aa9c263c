"""The contract of stores, random sequences of calls and concurrent ones, on PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from hypothesis import settings

from lightning_store import LightningStore
from lightning_store.memory_limits import MemoryLimits
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store.testing import FakeClock, StoreContract, StoreStateMachine
from lightning_store.testing.contract.feed import FeedContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.linearizability import StoreModel, check_history
from lightning_store_client import LightningStoreClient
from tests.chaos.test_linearizability import CUT
from tests.postgres.serving import PATIENT, calls_over_a_flaky_wire, serving, violations_in
from tools.postgres_server import PostgresServer

LIMITS = (
    "eviction_memory_threshold",
    "safe_memory_threshold",
    "span_size_estimator",
    "memory_capacity_bytes",
    "memory_limit",
)


class InDatabase:
    """Each store in a namespace of its own."""

    @pytest.fixture(autouse=True)
    def _database(self, postgres: PostgresServer, namespace: str) -> None:
        self.dsn = postgres.dsn()
        self.namespaces = (f"{namespace}_{number}" for number in itertools.count())

    async def opened_store(self, clock: FakeClock, **options: Any) -> PostgresEngineStore:
        given = {name: options.pop(name) for name in LIMITS if name in options}
        limits = MemoryLimits.of(**given) if given else None
        return await PostgresEngineStore.open(
            self.dsn, namespace=next(self.namespaces), clock=clock, limits=limits, **PATIENT, **options
        )


class TestPostgres(InDatabase, StoreContract):
    deviations: ClassVar = {
        "test_x_feed_may_be_followed_on_another_event_loop": "the store is for the event loop on which it was opened",
    }

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        store = await self.opened_store(clock, **options)
        try:
            yield store
        finally:
            await store.aclose()
        assert await violations_in(self.dsn, store.schema.removeprefix("lightning_store_")) == []


class TestServed(InDatabase, FeedContract, QueueContract):
    """Over the wire, to a server that hosts it."""

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        store = await self.opened_store(clock, **options)
        try:
            async with serving(store) as endpoint, LightningStoreClient(endpoint, clock=clock) as client:
                yield client
        finally:
            await store.aclose()


@pytest.fixture(scope="module", autouse=True)
def _on_postgres(postgres: PostgresServer) -> None:
    OnPostgres.dsn = postgres.dsn()


class OnPostgres(StoreStateMachine):
    dsn = ""
    numbers = itertools.count()

    async def open_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        namespace = f"state_{next(self.numbers)}"
        store = await PostgresEngineStore.open(self.dsn, namespace=namespace, clock=clock, **PATIENT)
        try:
            yield store
        finally:
            await store.aclose()
        assert await violations_in(self.dsn, namespace) == []


TestOnPostgres = OnPostgres.TestCase
TestOnPostgres.settings = settings(max_examples=settings.default.max_examples // 3, stateful_step_count=40)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.asyncio
async def test_concurrent_calls_over_a_wire_that_breaks(postgres: PostgresServer, namespace: str, seed: int) -> None:
    store = await PostgresEngineStore.open(postgres.dsn(), namespace=namespace, **PATIENT)
    try:
        async with calls_over_a_flaky_wire([store], seed, CUT) as history:
            verdict = check_history(history.operations, StoreModel())
    finally:
        await store.aclose()
    assert verdict, verdict.explanation
