"""The package itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import lightning_store_agentlightning
from tests.agentlightning.forks import in_fork


def test_public_names():
    assert lightning_store_agentlightning.__all__ == [
        "AdaptedStore",
        "CalledOffError",
        "CancellableLitAgentRunner",
        "FastLlmProxyTraceToTriplet",
        "FastTracerTraceToTriplet",
        "GrpcExecutionStrategy",
        "GrpcLightningStore",
        "InProcessLightningStore",
        "LegacyServer",
    ]


def test_without_agent_lightning(monkeypatch):
    def work():
        for name in [name for name in sys.modules if name.startswith("lightning_store_agentlightning")]:
            del sys.modules[name]
        monkeypatch.setitem(sys.modules, "agentlightning", None)  # as if it were not there
        with pytest.raises(ImportError, match="pip install agentlightning"):
            import lightning_store_agentlightning  # noqa: F401

    in_fork(work)


IMPORTING = """
import os, sys

seen = []
sys.addaudithook(
    lambda event, arguments: event == "import"
    and arguments[0] == "grpc._cython.cygrpc"
    and seen.append(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
)
import lightning_store_agentlightning
print(seen[0])
"""


def test_it_prepares_grpc_for_forks():
    """Which must be when gRPC is first imported: Agent Lightning alone does not import it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    command = [sys.executable, "-c", IMPORTING]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "1"
