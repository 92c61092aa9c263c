"""A server on the event loop of its store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from lightning_store import LightningStore
from lightning_store.testing.faults import Fault, FaultProxy, FaultSchedule
from lightning_store.testing.linearizability import History
from lightning_store_client import LightningStoreClient
from lightning_store_server.app import GrpcServer
from lightning_store_server.config import ServerConfig
from tests.chaos.flaky import PATIENCE
from tests.chaos.histories import CLIENTS, OPERATIONS, Session


@asynccontextmanager
async def serving(store: LightningStore) -> AsyncIterator[str]:
    """The endpoint of a server that hosts the store."""
    server = GrpcServer(store, ServerConfig(port=0))
    await server.start()
    try:
        yield f"localhost:{server.bound_port}"
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
