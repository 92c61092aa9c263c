"""Time the operator's page with many rollouts: ``python -m tools.page_times``. It prints the table of docs/page.md."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Final

from lightning_store import EnqueueRolloutRequest, Span
from lightning_store_client import LightningStoreClient
from tools.web_demo import serving

ROLLOUTS: Final = 100_000
BATCH: Final = 5000
CLAIMS: Final = 500
ENDED: Final = 5000
TIMES: Final = 10
SPANS: Final = 10_000


async def fill(endpoint: str) -> str:
    """Many rollouts, some thousand of which have ended, and one with many spans, whose id is returned."""
    async with LightningStoreClient(endpoint, timeout=120.0) as client:
        for start in range(0, ROLLOUTS, BATCH):
            requests = [
                EnqueueRolloutRequest(
                    input={"question": f"task {n}", "text": "x" * 300},
                    mode="train" if n % 5 else "val",
                    group_id=f"group-{n // 8}",
                    group_size=8,
                )
                for n in range(start, start + BATCH)
            ]
            await client.enqueue_many_rollouts(requests)
        for _ in range(0, ENDED, CLAIMS):
            claimed = await client.dequeue_many_rollouts(limit=CLAIMS, worker_id="worker")
            keys = [(one.rollout_id, one.attempt.attempt_id) for one in claimed]
            await client.add_many_spans([_span(*key, 1) for key in keys])
            await asyncio.gather(*(client.update_attempt(*key, status="succeeded") for key in keys))
        for worker in range(100):
            large = await client.dequeue_rollout(f"worker-{worker}")
        assert large is not None
        for start in range(1, SPANS, BATCH):
            spans = [_span(large.rollout_id, large.attempt.attempt_id, n) for n in range(start, start + BATCH)]
            await client.add_many_spans(spans)
        return large.rollout_id


def _span(rollout_id: str, attempt_id: str, number: int) -> Span:
    return Span(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        sequence_id=number,
        trace_id="1" * 32,
        span_id=f"{number:016x}",
        parent_id=None if number == 1 else f"{number // 4 or 1:016x}",
        name="answer",
        start_time=float(number),
        end_time=number + 10.0,
        attributes={"reward": (number % 7) / 7, "text": "y" * 200},
    )


def measure(url: str) -> str:
    """The median and the slowest of some requests."""
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        with urllib.request.urlopen(url) as reply:
            reply.read()
        taken.append(1000 * (time.perf_counter() - began))
    return f"{statistics.median(taken):.0f} ms, {max(taken):.0f} ms"


def main() -> None:
    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for database in ("memory:", f"sqlite:{folder}/store.db"):
            with serving(database, Path(folder) / "server.log") as server:
                large = asyncio.run(fill(server.endpoint))
                for name, path in (
                    ("overview, while it gathers", "/"),
                    ("overview, later", "/"),
                    ("rollouts, newest", "/ui/rollouts"),
                    ("rollouts, a text that none has", "/ui/rollouts?text=nowhere"),
                    ("rollouts, by reward", "/ui/rollouts?order=worst"),
                    ("a group", "/ui/groups/group-3"),
                    (f"a rollout with {SPANS:,} spans", f"/ui/rollouts/{large}"),
                    ("workers", "/ui/workers"),
                ):
                    rows.setdefault(name, []).append(measure(server.url + path))
                    if name.endswith("gathers"):
                        for _ in range(100):
                            measure(f"{server.url}/ui/live")
                            if "looked at so far" not in _read(f"{server.url}/ui/live"):
                                break
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as reply:
        text: str = reply.read().decode()
    return text


if __name__ == "__main__":
    main()
