"""Tests against the real Agent Lightning, in an environment that has it: ``make test-agentlightning``."""

from __future__ import annotations

import importlib.util
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # instead of fetching it
os.environ.setdefault("AGENTOPS_LOG_LEVEL", "ERROR")

INSTALLED = importlib.util.find_spec("agentlightning") is not None

collect_ignore_glob = [] if INSTALLED else ["*"]

if INSTALLED:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Agent Lightning and of what it imports
        import agentlightning


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are errors here as everywhere, except those that come from Agent Lightning and what it uses."""
    for item in items:
        if "agentlightning" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore:::agentlightning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:::agentops"))


@pytest.fixture
def served() -> Iterator[Any]:
    """Where a server with an empty store listens, in a process of its own."""
    from tests.agentlightning.forks import serving

    with serving() as where:
        yield where


@pytest.fixture
def endpoint(served: Any) -> str:
    """The same: for our client."""
    return str(served.endpoint)


@pytest.fixture(params=["theirs", "in-process", "database", "grpc"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Makes an empty store: Agent Lightning's own, or one of ours."""
    import lightning_store_agentlightning as ours

    if request.param == "theirs":
        return lambda: agentlightning.InMemoryLightningStore(thread_safe=True, scan_debounce_seconds=0)
    if request.param == "in-process":
        return ours.InProcessLightningStore
    if request.param == "database":
        numbers = itertools.count()
        return lambda: ours.InProcessLightningStore(f"sqlite:{tmp_path}/store{next(numbers)}.db")
    where = request.getfixturevalue("endpoint")
    return lambda: ours.GrpcLightningStore(where)
