"""Servers on the event loop of their stores."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from lightning_store import LightningStore, Span
from lightning_store.backends.base import Violation
from lightning_store.backends.postgres.checking import violations
from lightning_store.backends.postgres.connections import Settings
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store.testing.faults import Fault, FaultProxy, FaultSchedule
from lightning_store.testing.linearizability import History
from lightning_store_client import LightningStoreClient
from lightning_store_server.app import GrpcServer
from lightning_store_server.config import ServerConfig
from tests.chaos.flaky import PATIENCE
from tests.chaos.histories import CLIENTS, OPERATIONS, Session

LIMIT_SECONDS = 60.0
PATIENT: Final[Mapping[str, float]] = {"statement_timeout": 600.0, "lock_timeout": 600.0}
"""For stores of tests that are not about slow databases: on a busy machine a statement or a new connection may take
longer than a server would wait for it, and a server that had no answer for so long judges nobody for silence."""


def a_span(rollout_id: str, attempt_id: str) -> Span:
    return Span(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        sequence_id=1,
        trace_id="1" * 32,
        span_id="2" * 16,
        parent_id=None,
        name="step",
        start_time=1.0,
        end_time=2.0,
    )


async def violations_in(dsn: str, namespace: str) -> list[Violation]:
    """What ``check_namespace`` finds, ``PATIENT``."""
    return await violations(Settings(dsn, namespace, statement_cache_size=0, **PATIENT))


@asynccontextmanager
async def servers(dsn: str, namespace: str, count: int, **options: Any) -> AsyncIterator[list[PostgresEngineStore]]:
    """Stores as so many servers have them, patient ones; opened at once, so that all of them migrate."""
    stores = await asyncio.gather(
        *(PostgresEngineStore.open(dsn, namespace=namespace, **{**PATIENT, **options}) for _ in range(count))
    )
    try:
        yield stores
    finally:
        for store in stores:
            await store.aclose()


@asynccontextmanager
async def serving(store: LightningStore) -> AsyncIterator[str]:
    """The endpoint of a server that hosts the store."""
    async with running(store, ServerConfig(port=0)) as server:
        yield f"localhost:{server.bound_port}"


@asynccontextmanager
async def running(store: LightningStore, config: ServerConfig) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(store, config)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@asynccontextmanager
async def calls_over_a_flaky_wire(
    stores: Sequence[LightningStore], seed: int, shares: Mapping[Fault, float]
) -> AsyncIterator[History]:
    """What clients see who call servers of these stores at once, each with its own."""
    history = History()
    async with AsyncExitStack() as stack:
        sessions = []
        for number in range(max(CLIENTS, len(stores))):
            endpoint = await stack.enter_async_context(serving(stores[number % len(stores)]))
            schedule = FaultSchedule.random(seed * 10 + number, dict(shares))
            proxy = await stack.enter_async_context(FaultProxy(endpoint, schedule))
            client = await stack.enter_async_context(LightningStoreClient(proxy.endpoint, **PATIENCE))
            session = Session("abc"[number], history, client, random.Random(f"{seed}/{number}"))
            sessions.append(session.run(OPERATIONS, proxy.deliver_late_requests))
        await asyncio.gather(*sessions)
    assert len(history.operations) == len(sessions) * OPERATIONS
    assert all(operation.returned is not None for operation in history.operations), "a call failed"
    yield history


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
