"""Random sequences of calls, compared with the reference: in process, on a backend that suspends, and over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.testing import FakeClock, StoreStateMachine
from lightning_store.testing.backends import SuspendingBackend, store_on
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer


class InProcess(StoreStateMachine):
    async def open_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        yield InMemoryLightningStore(clock=clock)


class OnSuspendingBackend(StoreStateMachine):
    async def open_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        yield store_on(SuspendingBackend, clock=clock)


class OverTheWire(StoreStateMachine):
    async def open_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        server = LightningStoreServer(InMemoryLightningStore(clock=clock), port=0)
        await server.start()
        client = LightningStoreClient(server.endpoint, clock=clock)
        try:
            yield client
        finally:
            await client.close()
            await server.stop()


TestInProcess = InProcess.TestCase
TestInProcess.settings = settings(stateful_step_count=50)
TestOnSuspendingBackend = OnSuspendingBackend.TestCase
TestOnSuspendingBackend.settings = settings(max_examples=settings.default.max_examples // 3, stateful_step_count=50)
TestOverTheWire = pytest.mark.slow(OverTheWire.TestCase)
TestOverTheWire.settings = settings(max_examples=settings.default.max_examples // 3, stateful_step_count=30)
