"""The contract, from the client over a loopback port to the server and the store behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.testing import FakeClock, StoreContract
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer


class TestWire(StoreContract):
    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        server = LightningStoreServer(InMemoryLightningStore(clock=clock, **options), port=0)
        await server.start()
        client = LightningStoreClient(server.endpoint, clock=clock)
        try:
            yield client
        finally:
            await client.close()
            await server.stop()
