"""Many runners at work on one server: rollouts a second, how long each takes, what goes wrong, what it costs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from benchmarks.bench import Bench, Opened, in_turn, together
from benchmarks.processes import CellError
from benchmarks.records import Spread, percentile
from benchmarks.rounds import CpuMeter, describe, quiet_collector
from benchmarks.session import Session
from benchmarks.workloads import SPANS_A_LIFECYCLE, Subject

if TYPE_CHECKING:
    from lightning_store import AttemptedRollout

T = TypeVar("T")

CELL: Final = "runners"

QUEUED_FOR_EACH: Final = 2
"""Rollouts in the queue for each runner, kept so by enqueuing as many as were claimed."""
FEED_SECONDS: Final = 0.02
POLL_SECONDS: Final = 0.05
"""How long a runner that got nothing waits before it asks again."""
END_SECONDS_MAX: Final = 180.0


# --- The client process ----------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What the runners of one process saw."""

    rollout_ms: list[float] = field(default_factory=list)
    call_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    claims: int = 0
    empty: int = 0

    async def timed(self, call: Awaitable[T]) -> T:
        """Make a call and note how long it took."""
        began = time.perf_counter()
        result = await call
        self.call_ms.append((time.perf_counter() - began) * 1e3)
        return result


async def ready(session: Session, *, runners: int) -> None:
    """Connect, and queue what these runners begin with."""
    await session.subject.enqueue(runners * QUEUED_FOR_EACH)


async def run(session: Session, *, first: int, runners: int, seconds: float) -> dict[str, Any]:
    """Let these runners work for so long, and tell what they saw."""
    tally = Tally()
    with quiet_collector():
        meter = CpuMeter(session.server)
        start = time.perf_counter()
        feeder = asyncio.create_task(_feed(session.subject, tally))
        try:
            numbers = range(first, first + runners)
            await asyncio.gather(*(_runner(session.subject, tally, number, start + seconds) for number in numbers))
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
        elapsed = time.perf_counter() - start
    return {
        "seconds": elapsed,
        "client_seconds": meter.client_seconds,
        "server_seconds": meter.server_seconds,
        "rollout_ms": tally.rollout_ms,
        "call_ms": [round(one, 3) for one in tally.call_ms],
        "empty": tally.empty,
        "errors": dict(tally.errors),
    }


async def _runner(subject: Subject, tally: Tally, number: int, until: float) -> None:
    worker_id = f"runner-{number}"
    while time.perf_counter() < until:
        began = time.perf_counter()
        try:
            claimed = await tally.timed(subject.store.dequeue_rollout(worker_id=worker_id))
            if claimed is None:
                tally.empty += 1
                await asyncio.sleep(POLL_SECONDS)
                continue
            tally.claims += 1
            await _work(subject, tally, claimed, worker_id)
        except Exception as error:
            tally.errors[describe(error)] += 1
        else:
            tally.rollout_ms.append((time.perf_counter() - began) * 1e3)


async def _work(subject: Subject, tally: Tally, claimed: AttemptedRollout, worker_id: str) -> None:
    """What a runner does with a rollout, as far as the store sees it."""
    for _ in range(SPANS_A_LIFECYCLE):
        await tally.timed(subject.store.add_span(subject.new_span(claimed)))
    await tally.timed(subject.store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded"))
    await tally.timed(subject.store.update_worker(worker_id, {"cpu_percent": 12.5}))


async def _feed(subject: Subject, tally: Tally) -> None:
    """Enqueue as many rollouts as these runners claim."""
    fed = 0
    while True:
        await asyncio.sleep(FEED_SECONDS)
        missing = tally.claims - fed
        fed += missing
        try:
            await subject.enqueue(missing)
        except Exception as error:
            tally.errors[describe(error)] += 1


# --- The cell --------------------------------------------------------------------------------------------------------


async def run_cell(bench: Bench) -> None:
    """Runners in a few processes on one server, in rounds."""
    async with bench.opened("wire", bench.options.sides) as opened:
        outcomes = await in_turn(opened, bench.options.rounds, partial(_round, bench))
        for one in opened:
            outcome = outcomes[one.side.name]
            names = outcome.results[0][0] if outcome.results and outcome.failure is None else []
            metrics = {name: Spread.of(values[name] for values, _ in outcome.results) for name in names}
            errors: Counter[str] = Counter()
            for _, seen in outcome.results:
                errors.update(seen)
            bench.add(
                CELL,
                "wire",
                one.side,
                callers=bench.options.runners,
                metrics=metrics,
                errors=dict(errors),
                failure=outcome.failure,
            )


async def _round(bench: Bench, one: Opened) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics and errors of one round of all processes."""
    if one.server is None:
        raise CellError(one.failure or "no server")
    workers = [await bench.worker(one.side, f"runners-{number}") for number in range(bench.options.processes)]
    shares = shares_of(bench.options.runners, bench.options.processes)
    for worker, share in zip(workers, shares, strict=True):
        await worker.ask("open", endpoint=one.server.endpoint, server_pid=one.server.pid)
        await worker.ask("ready", runners=share)
    seconds = bench.options.seconds
    seen = await together(
        *(
            worker.ask(
                "run_runners",
                first=sum(shares[:number]),
                runners=share,
                seconds=seconds,
                seconds_max=seconds + END_SECONDS_MAX,
            )
            for number, (worker, share) in enumerate(zip(workers, shares, strict=True))
        )
    )
    for worker in workers:
        await worker.ask("close")
    return _combined(seen)


def shares_of(runners: int, processes: int) -> list[int]:
    """How many runners each process has: as even as can be."""
    return [runners // processes + (number < runners % processes) for number in range(processes)]


def _combined(seen: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, int]]:
    rollout_ms = sorted(one for each in seen for one in each["rollout_ms"])
    call_ms = sorted(one for each in seen for one in each["call_ms"])
    errors: Counter[str] = Counter()
    for each in seen:
        errors.update(each["errors"])
    if not rollout_ms:
        raise CellError(f"no rollout was finished: {dict(errors)}")
    seconds = max(each["seconds"] for each in seen)
    return {
        "rollouts_per_second": len(rollout_ms) / seconds,
        "rollout_p50_ms": percentile(rollout_ms, 0.5),
        "rollout_p99_ms": percentile(rollout_ms, 0.99),
        "call_p50_ms": percentile(call_ms, 0.5),
        "call_p99_ms": percentile(call_ms, 0.99),
        "client_cpu_us": sum(each["client_seconds"] for each in seen) / len(rollout_ms) * 1e6,
        "server_cpu_us": max(each["server_seconds"] for each in seen) / len(rollout_ms) * 1e6,
        "found_queue_empty": sum(each["empty"] for each in seen),
    }, dict(errors)
