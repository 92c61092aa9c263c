"""The contract, on the store in this process with all its calls in a thread of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from lightning_store import InMemoryLightningStore, LightningStore, LightningStoreThreaded
from lightning_store.testing import FakeClock, StoreContract


class TestThreaded(StoreContract):
    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        with LightningStoreThreaded(InMemoryLightningStore(clock=clock, **options)) as store:
            yield store
