"""What a plain install must do, seen from fresh interpreters: no source tree, no fixtures, no extras."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

EXTRAS = ("click", "grpc_reflection", "jinja2", "matplotlib", "numpy", "pytest", "hypothesis", "rich")
WITHOUT_EXTRAS = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
"""Makes the import of every optional package fail, as where it is not installed."""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """``code`` in an interpreter of its own that sees installed packages only and treats warnings as errors."""
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("package", ["lightning_store", "lightning_store_client", "lightning_store_server"])
def test_package_is_typed(package: str) -> None:
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


def test_extras_are_declared() -> None:
    declared = importlib.metadata.metadata("lightning-store-grpc").get_all("Provides-Extra")
    assert declared is not None
    assert {"server", "templates", "testing", "demo", "dev"} <= set(declared)


def test_store_and_client_import_without_extras() -> None:
    result = run_python(
        WITHOUT_EXTRAS + "import lightning_store, lightning_store_client\n"
        "print(lightning_store.InMemoryLightningStore.__name__, lightning_store_client.LightningStoreClient.__name__)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["InMemoryLightningStore", "LightningStoreClient"]


def test_store_works_in_process_without_extras() -> None:
    result = run_python(
        WITHOUT_EXTRAS
        + """
import asyncio, json
from lightning_store import InMemoryLightningStore

async def main():
    store = InMemoryLightningStore()
    await store.enqueue_rollout({"question": "6 * 7"})
    claimed = await store.dequeue_rollout(worker_id="w")
    await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    [done] = await store.wait_for_rollouts(rollout_ids=[claimed.rollout_id], timeout=10)
    print(json.dumps([done.status, done.input]))

asyncio.run(main())
"""
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["succeeded", {"question": "6 * 7"}]


def test_command_line_without_its_extra_says_what_to_install() -> None:
    result = run_python(
        WITHOUT_EXTRAS + "sys.argv = ['lightning-store-grpc', '--help']\n"
        "from lightning_store_server.cli import main\n"
        "sys.exit(main())"
    )
    assert result.returncode != 0
    assert "pip install click rich" in result.stderr
    assert "Traceback" not in result.stderr
