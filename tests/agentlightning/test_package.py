"""The package itself."""

from __future__ import annotations

import os
import sys

import pytest

import lightning_store_agentlightning
from tests.agentlightning.forks import in_fork


def test_public_names():
    assert lightning_store_agentlightning.__all__ == [
        "AdaptedStore",
        "GrpcExecutionStrategy",
        "GrpcLightningStore",
        "InProcessLightningStore",
    ]


def test_without_agent_lightning(monkeypatch):
    def work():
        for name in [name for name in sys.modules if name.startswith("lightning_store_agentlightning")]:
            del sys.modules[name]
        monkeypatch.setitem(sys.modules, "agentlightning", None)  # as if it were not there
        with pytest.raises(ImportError, match=r"pip install 'lightning-store-grpc\[agentlightning\]'"):
            import lightning_store_agentlightning  # noqa: F401

    in_fork(work)


def test_it_prepares_grpc_for_forks():
    """Which must be before gRPC is first imported: Agent Lightning alone does not import it."""
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "1"
