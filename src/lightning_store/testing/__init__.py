"""For tests: the contract of LightningStore as a suite for any store, a clock that is moved by hand, a proxy that
breaks connections, and a checker that tells whether what concurrent callers saw can be right.

Needs the extra ``testing`` (pytest, pytest-asyncio, hypothesis).
"""

from __future__ import annotations

import pytest

# Before the imports below: assertions of modules that are imported already are not rewritten.
pytest.register_assert_rewrite("lightning_store.testing.contract", "lightning_store.testing.stateful")

from lightning_store.testing.clock import SAFETY_SECONDS, FakeClock, FakeTimer  # noqa: E402
from lightning_store.testing.contract import StoreContract  # noqa: E402
from lightning_store.testing.contract.backend import BackendContract  # noqa: E402
from lightning_store.testing.faults import Fault, FaultProxy, FaultSchedule, FaultStatistics  # noqa: E402
from lightning_store.testing.linearizability import History, RecordedStore, StoreModel, check_history  # noqa: E402
from lightning_store.testing.stateful import StoreStateMachine  # noqa: E402

__all__ = [
    "SAFETY_SECONDS",
    "BackendContract",
    "FakeClock",
    "FakeTimer",
    "Fault",
    "FaultProxy",
    "FaultSchedule",
    "FaultStatistics",
    "History",
    "RecordedStore",
    "StoreContract",
    "StoreModel",
    "StoreStateMachine",
    "check_history",
]
