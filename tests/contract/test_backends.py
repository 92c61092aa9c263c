"""The contract, on backends that behave as databases do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from lightning_store import LightningStore, LightningStoreThreaded
from lightning_store.testing import FakeClock, StoreContract
from lightning_store.testing.backends import BACKENDS, SuspendingBackend, store_on
from lightning_store.testing.contract.request_ids import RequestIdsContract


class OnBackend(StoreContract):
    __test__ = False
    backend: ClassVar[str]

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        with LightningStoreThreaded(store_on(BACKENDS[self.backend], clock=clock, **options)) as store:
            yield store


class TestSuspending(OnBackend):
    __test__ = True
    backend = "suspending"


@pytest.mark.chaos  # groups that fail are in test_groups.py, and raw transactions in test_backend_contract.py
class TestRollingBack(OnBackend):
    __test__ = True
    backend = "rolling-back"


@pytest.mark.chaos
class TestConflicting(OnBackend):
    __test__ = True
    backend = "conflicting"


@pytest.mark.chaos
class TestForgetful(OnBackend):
    __test__ = True
    backend = "forgetful"


class TestSuspendingOnOneLoop(RequestIdsContract):
    """Without a thread between the caller and the store, a call is cancelled at each of its awaits."""

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        yield store_on(SuspendingBackend, clock=clock, **options)
