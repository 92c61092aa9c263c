"""The contract, on backends that behave as databases do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from lightning_store import LightningStore, LightningStoreThreaded
from lightning_store.testing import FakeClock, StoreContract
from lightning_store.testing.backends import BACKENDS, store_on


class OnBackend(StoreContract):
    __test__ = False
    backend: ClassVar[str]

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        with LightningStoreThreaded(store_on(BACKENDS[self.backend], clock=clock, **options)) as store:
            yield store


class TestSuspending(OnBackend):
    __test__ = True
    backend = "suspending"


class TestRollingBack(OnBackend):
    __test__ = True
    backend = "rolling-back"


class TestConflicting(OnBackend):
    __test__ = True
    backend = "conflicting"


class TestForgetful(OnBackend):
    __test__ = True
    backend = "forgetful"
