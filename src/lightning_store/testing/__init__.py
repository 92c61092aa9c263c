"""For tests: a clock that is moved by hand, and the contract of LightningStore as a suite for any store.

Needs the extra ``testing`` (pytest, pytest-asyncio, hypothesis).
"""

from __future__ import annotations

import pytest

# Before the imports below: assertions of modules that are imported already are not rewritten.
pytest.register_assert_rewrite("lightning_store.testing.contract", "lightning_store.testing.stateful")

from lightning_store.testing.clock import SAFETY_SECONDS, FakeClock, FakeTimer  # noqa: E402
from lightning_store.testing.contract import StoreContract  # noqa: E402
from lightning_store.testing.stateful import StoreStateMachine  # noqa: E402

__all__ = ["SAFETY_SECONDS", "FakeClock", "FakeTimer", "StoreContract", "StoreStateMachine"]
