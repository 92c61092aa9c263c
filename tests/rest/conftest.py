"""Agent Lightning's own clients against a server of ours: ``make test-rest``, in an environment for each release."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # instead of fetching it
os.environ.setdefault("AGENTOPS_LOG_LEVEL", "ERROR")

INSTALLED = importlib.util.find_spec("agentlightning") is not None
RELEASE = importlib.metadata.version("agentlightning") if INSTALLED else ""

collect_ignore_glob = (
    ["*"] if not INSTALLED else ["test_0_2*", "test_legacy*"] if RELEASE.startswith("0.3") else ["test_0_3*"]
)

if INSTALLED:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Agent Lightning and of what it imports
        import agentlightning  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are errors, except those that come from Agent Lightning and what it uses."""
    for item in items:
        if item.path.parent.name == "rest":
            item.add_marker(pytest.mark.rest)
            for module in ("agentlightning", "agentops", "aiohttp"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{module}"))
            item.add_marker(pytest.mark.filterwarnings("ignore:AgentLightning:DeprecationWarning"))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``work``, also where an event loop runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve a store: its address for HTTP."""
    from lightning_store_server import LightningStoreServer, ServerConfig

    with ExitStack() as stack:

        def start(store: Any, **config: Any) -> str:
            settings = ServerConfig(**{"http_port": 0, "grace_seconds": 0.0, **config})
            server = LightningStoreServer(store, port=0, config=settings)
            run(server.start())
            stack.callback(lambda: run(server.stop()))
            return server.otlp_traces_endpoint().removesuffix("/v1/traces")

        yield start


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An empty store."""
    from lightning_store import InMemoryLightningStore, SqliteLightningStore

    if request.param == "memory":
        yield InMemoryLightningStore()
        return
    made = SqliteLightningStore(str(tmp_path / "store.db"))
    yield made
    made.close()


@pytest.fixture
def address(store: Any, serve: Callable[..., str]) -> str:
    """Where a server with that store is."""
    return serve(store)
