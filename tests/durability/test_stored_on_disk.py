"""What is stored is on the disk and not in memory: the resident memory of a server with gigabytes in its database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest

from lightning_store import EnqueueRolloutRequest, LightningStore
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store.testing.contract.base import make_span
from lightning_store_client import LightningStoreClient
from tests.processes.programs import ServingProgram

STORED_BYTES: Final = int(float(os.environ.get("STORED_GB") or 1) * 1e9)
ROLLOUTS: Final = 100_000
RSS_BYTES_MAX: Final = 400 * 1024 * 1024
SPANS: Final = 100
"""Of a rollout."""
SPAN_BYTES: Final = 20_000
CALLERS: Final = 64
LIVES: Final = 20
"""Rollouts that each caller brings through the store."""

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio, pytest.mark.timeout(1800)]


async def fill(store: LightningStore) -> list[str]:
    """Finished rollouts without spans, then some with many; the ids of those."""

    async def finish_many() -> None:
        made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input="x" * 100) for _ in range(500)])
        await store.cancel_rollouts([one.rollout_id for one in made])

    async def trace_one() -> str:
        started = await store.start_rollout("traced")
        text = {"text": "x" * SPAN_BYTES}
        await store.add_many_spans([make_span(started, number + 1, attributes=text) for number in range(SPANS)])
        await store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
        return started.rollout_id

    for _ in range(ROLLOUTS // 2000):
        await asyncio.gather(*(finish_many() for _ in range(4)))
    traced: list[str] = []
    for _ in range(STORED_BYTES // (SPANS * SPAN_BYTES * 10)):
        traced += await asyncio.gather(*(trace_one() for _ in range(10)))
    return traced


@contextmanager
def memory_watched(pid: int) -> Iterator[list[int]]:
    """The resident memory of a process, looked at all the time."""
    seen: list[int] = []

    async def watch() -> None:
        process = psutil.Process(pid)
        while True:
            seen.append(process.memory_info().rss)
            await asyncio.sleep(0.02)  # real time: it is another process's memory

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()


async def test_gigabytes_are_served_in_bounded_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store.db"
    with SqliteLightningStore(path, durability="normal") as store:
        traced = await fill(store)
        stored_bytes = (await store.statistics())["total_bytes"]
    server = ServingProgram(["--database", f"sqlite:{path}", "--port", "0"], tmp_path / "server.log")
    try:
        async with LightningStoreClient(server.endpoint, timeout=300) as client:
            with memory_watched(server.pid) as seen:

                async def live() -> None:
                    for _ in range(LIVES):
                        started = await client.start_rollout("live")
                        await client.add_span(make_span(started, attributes={"text": "x" * SPAN_BYTES}))
                        await client.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")

                async def read(number: int) -> None:
                    found = await client.query_spans(traced[number % len(traced)])
                    assert len(found) == SPANS

                lives = [live() for _ in range(CALLERS)]
                reads = [read(number) for number in range(2 * CALLERS)]
                await asyncio.gather(*lives, *reads)
                assert len(await client.query_rollouts(status_in=["cancelled"])) == ROLLOUTS
    finally:
        server.discard()
    with capsys.disabled():
        print(f"\n{stored_bytes / 1e9:.1f} GB stored, {max(seen) >> 20} MiB of memory at most")
    assert max(seen) < RSS_BYTES_MAX
