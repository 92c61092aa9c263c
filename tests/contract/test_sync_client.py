"""Parts of the contract, on the blocking client: its methods hand on arguments, results and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStoreCapabilities
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.deletion import DeletionContract
from lightning_store.testing.contract.queries import SpanQueriesContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.contract.resources import ResourcesContract
from lightning_store.testing.contract.spans import AddingSpansContract, OtelSpansContract
from lightning_store_client import SyncLightningStoreClient
from lightning_store_server import LightningStoreServer


class BlockingCalls(ForwardingStore):
    """Makes each call with a blocking client, in a thread."""

    def __init__(self, client: SyncLightningStoreClient) -> None:
        self._client = client

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self._client.capabilities

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await asyncio.to_thread(getattr(self._client, method), *args, **kwargs)


class TestSyncWire(
    QueueContract, AddingSpansContract, OtelSpansContract, SpanQueriesContract, ResourcesContract, DeletionContract
):
    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        server = LightningStoreServer(InMemoryLightningStore(clock=clock, **options), port=0)
        await server.start()
        client = SyncLightningStoreClient(server.endpoint, clock=clock)
        try:
            yield BlockingCalls(client)
        finally:
            await asyncio.to_thread(client.close)
            await server.stop()
