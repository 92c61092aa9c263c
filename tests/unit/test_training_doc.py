"""The examples of docs/training.md run as they stand, on each kind of store."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore, SqliteLightningStore
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer

DOC = Path(__file__).parents[2] / "docs" / "training.md"
OPTIONS: dict[str, Any] = {"final_outcomes": True, "fence_attempts": "refuse"}


def examples() -> list[tuple[int, str]]:
    """Each block of Python with the line on which it begins."""
    text = DOC.read_text("utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: one.start(1)].count("\n"), one[1]) for one in found]


async def run_examples(store: Any) -> None:
    names: dict[str, Any] = {"store": store}
    for line, source in examples():
        tree = ast.increment_lineno(ast.parse(source), line)
        code = compile(tree, str(DOC), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result


def test_there_are_examples() -> None:
    assert examples()


@pytest.mark.asyncio
async def test_in_memory() -> None:
    await run_examples(InMemoryLightningStore(**OPTIONS))


@pytest.mark.asyncio
async def test_in_a_database(tmp_path: Path) -> None:
    with SqliteLightningStore(tmp_path / "runs.db", **OPTIONS) as store:
        await run_examples(store)


@pytest.mark.asyncio
async def test_over_the_wire() -> None:
    server = LightningStoreServer(InMemoryLightningStore(**OPTIONS), port=0)
    async with server, LightningStoreClient(server.endpoint) as client:
        await run_examples(client)
