"""What the disk and SQLite take by themselves, without a store: the floor of a durable one in the same run."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.bench import Bench
from benchmarks.records import Spread, percentile
from benchmarks.reference import SPAN_DOCUMENT_BYTES
from benchmarks.sides import SQLITE
from benchmarks.workloads import SPANS_A_BATCH

CELL: Final = "disk_floor"

PAGE_BYTES: Final = 4096
SPANS_A_COMMIT: Final = 500
"""As many rows as the store commits at a time."""

_SCHEMA: Final = """
pragma page_size = 8192;
pragma journal_mode = wal;
pragma synchronous = full;
create table span (number integer primary key, attempt integer, span_id text, document text, unique (attempt, span_id));
"""


async def run(bench: Bench) -> None:
    """Measure, where the servers of this run have their databases."""
    for side in bench.options.sides:
        if side.name != SQLITE:
            continue
        rounds: dict[str, list[float]] = {}
        for _ in range(bench.options.rounds):
            for name, measure in _MEASURES.items():
                value = await asyncio.to_thread(measure, bench.scratch / "floor", bench.options.seconds)
                rounds.setdefault(name, []).append(value)
        bench.add(CELL, "wire", side, metrics={name: Spread.of(values) for name, values in rounds.items()})


def _fdatasync_ms(file: Path, seconds: float) -> float:
    """The median of appending a page and waiting for the disk."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    with file.open("wb", buffering=0) as log:
        while (start := time.perf_counter()) < until:
            log.write(bytes(PAGE_BYTES))
            os.fdatasync(log.fileno())
            taken.append((time.perf_counter() - start) * 1e3)
    file.unlink()
    return percentile(sorted(taken), 0.5)


def _batches_per_second(file: Path, seconds: float) -> float:
    """Batches of reference spans that one connection inserts and commits, and nothing else."""
    document = "x" * SPAN_DOCUMENT_BYTES
    spans = 0
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.executescript(_SCHEMA)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            connection.execute("begin immediate")
            rows = ((number % 256, f"{number:016x}", document) for number in range(spans, spans + SPANS_A_COMMIT))
            connection.executemany("insert into span (attempt, span_id, document) values (?, ?, ?)", rows)
            connection.execute("commit")
            spans += SPANS_A_COMMIT
        elapsed = time.perf_counter() - start
    for left in file.parent.glob(f"{file.name}*"):
        left.unlink()
    return spans / SPANS_A_BATCH / elapsed


_MEASURES: Final[dict[str, Callable[[Path, float], float]]] = {
    "fdatasync_p50_ms": _fdatasync_ms,
    "batches_per_second": _batches_per_second,
}
