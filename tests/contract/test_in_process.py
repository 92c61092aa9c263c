"""The contract, on the store in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.testing import FakeClock, StoreContract


class TestInProcess(StoreContract):
    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        yield InMemoryLightningStore(clock=clock, **options)
