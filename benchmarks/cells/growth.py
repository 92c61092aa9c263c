"""What becomes of a store's speed as rollouts pile up: the latency of calls, and the longest pause."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from benchmarks.bench import Bench, Opened, together
from benchmarks.cells import calls
from benchmarks.processes import CellError, Worker
from benchmarks.records import Spread, percentile, ratio
from benchmarks.rounds import metrics_of
from benchmarks.session import Session
from benchmarks.sides import Side

if TYPE_CHECKING:
    from lightning_store import LightningStore

CALL_CELLS: Final = ("get_rollout_by_id", "enqueue", "dequeue", "update_attempt")
PAUSE_CELL: Final = "growth_pause"
CELLS: Final = (*(f"growth_{cell}" for cell in CALL_CELLS), PAUSE_CELL)

BATCH: Final = 100
"""Rollouts that are enqueued at once: few enough that the call itself is no pause."""
CANCELLED_OF_BATCH: Final = 80
CLAIMED_OF_BATCH: Final = 10
"""The rest stays in the queue."""
CANCELLING_AT_ONCE: Final = 20
FILL_SECONDS: Final = 5.0
WORK_PERIOD_SECONDS: Final = 0.01
PROBE_PERIOD_SECONDS: Final = 0.001
PAUSE_MS: Final = 50.0
"""A call that takes longer is counted as held up."""
CALLS_A_ROUND: Final = 200


# --- The client process ----------------------------------------------------------------------------------------------


async def fill(session: Session, *, size: int, seconds: float) -> int:
    """Store rollouts until there are ``size`` of them or the time is up; how many there are.

    Of ten rollouts one stays queued, one is being worked on, and eight are finished (cancelled).
    """
    store = session.subject.store
    stored = int((await store.statistics())["total_rollouts"])
    until = time.perf_counter() + seconds
    while stored < size and time.perf_counter() < until:
        batch = await session.subject.enqueue(min(BATCH, size - stored))
        await _cancel(store, [rollout.rollout_id for rollout in batch[:CANCELLED_OF_BATCH]])
        await store.dequeue_many_rollouts(limit=CLAIMED_OF_BATCH)
        stored += len(batch)
    return stored


async def _cancel(store: LightningStore, rollout_ids: Sequence[str]) -> None:
    """End rollouts as cancelled; one by one where the store has no call for several."""
    if hasattr(store, "cancel_rollouts"):
        await store.cancel_rollouts(rollout_ids)
        return
    for start in range(0, len(rollout_ids), CANCELLING_AT_ONCE):
        some = rollout_ids[start : start + CANCELLING_AT_ONCE]
        await asyncio.gather(*(store.update_rollout(rollout_id, status="cancelled") for rollout_id in some))


async def work(session: Session, *, seconds: float) -> int:
    """A steady load far below what the store can take: every 10 ms a rollout is enqueued, claimed, ended, looked at."""
    store = session.subject.store
    start = time.perf_counter()
    done = 0
    while time.perf_counter() - start < seconds:
        await store.enqueue_rollout(input=session.subject.new_input())
        claimed = await store.dequeue_rollout(worker_id="runner-0")
        if claimed is not None:
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
            await store.get_rollout_by_id(claimed.rollout_id)
        done += 1
        await asyncio.sleep(max(0.0, start + done * WORK_PERIOD_SECONDS - time.perf_counter()))
    return done


async def probe(session: Session, *, seconds: float) -> dict[str, float]:
    """Look at one rollout again and again, a millisecond apart; the longest that it took is the longest pause.

    ``timer_late_ms`` is the most by which this process itself was woken too late: pauses no longer than that may be
    the machine's, not the store's.
    """
    [watched] = await session.subject.enqueue(1)
    took: list[float] = []
    late = [0.0]
    gc.collect()
    gc.disable()
    until = time.perf_counter() + seconds
    try:
        while (start := time.perf_counter()) < until:
            await session.subject.store.get_rollout_by_id(watched.rollout_id)
            end = time.perf_counter()
            took.append((end - start) * 1e3)
            await asyncio.sleep(PROBE_PERIOD_SECONDS)
            late.append((time.perf_counter() - end - PROBE_PERIOD_SECONDS) * 1e3)
    finally:
        gc.enable()
    return {
        "pause_ms": max(took),
        "probe_p50_ms": percentile(sorted(took), 0.5),
        "held_up": sum(one > PAUSE_MS for one in took),
        "timer_late_ms": max(late),
    }


# --- The cells -------------------------------------------------------------------------------------------------------


async def run(bench: Bench) -> None:
    """Fill a server up to each size in turn; at each, look for pauses and compare calls with a server that has few."""
    for side in bench.options.sides:
        async with bench.opened("wire", [side]) as [grown]:
            try:
                await _grow(bench, grown)
            except CellError as error:
                bench.add(PAUSE_CELL, "wire", side, failure=str(error))


async def _grow(bench: Bench, grown: Opened) -> None:
    if grown.server is None:
        raise CellError(grown.failure or "no server")
    prober = await bench.worker(grown.side, "probe")
    await prober.ask("open", endpoint=grown.server.endpoint, server_pid=grown.server.pid)
    for size in bench.options.sizes:
        filling = await _fill(grown, prober, size)
        if PAUSE_CELL in bench.options.cells:
            await _report_pauses(bench, grown, prober, size, filling)
        wanted = [cell for cell in CALL_CELLS if f"growth_{cell}" in bench.options.cells]
        if wanted:
            await _compare(bench, grown, size, wanted)
    await prober.ask("close")


async def _fill(grown: Opened, prober: Worker, size: int) -> list[dict[str, float]]:
    """What the probe saw while the server was being filled."""
    seen: list[dict[str, float]] = []
    stored = 0
    while stored < size:
        stored, probed = await together(
            grown.ask("fill", size=size, seconds=FILL_SECONDS), prober.ask("probe", seconds=FILL_SECONDS)
        )
        seen.append(probed)
    return seen


async def _report_pauses(
    bench: Bench, grown: Opened, prober: Worker, size: int, filling: list[dict[str, float]]
) -> None:
    """Pauses while the server was filled up to ``size``, and then under a steady load."""
    working: list[dict[str, float]] = []
    for _ in range(bench.options.rounds):
        seconds = bench.options.seconds
        working.append((await together(grown.ask("work", seconds=seconds), prober.ask("probe", seconds=seconds)))[1])
    metrics = {
        f"{when}_{name}": Spread.of(one[name] for one in seen)
        for when, seen in (("filling", filling), ("working", working))
        for name in seen[0]
    }
    longest = max(one["pause_ms"] for one in [*filling, *working])
    metrics["longest_pause_ms"] = Spread.of([longest])
    bench.add(PAUSE_CELL, "wire", grown.side, size=size, metrics=metrics)


async def _compare(bench: Bench, grown: Opened, size: int, cells: Sequence[str]) -> None:
    """Calls of one caller, in turn with a new server that holds the least of the sizes."""
    few: Side = replace(grown.side, name=f"{grown.side.name}-few")
    async with bench.opened("wire", [few]) as [small]:
        await small.ask("fill", size=bench.options.sizes[0], seconds=FILL_SECONDS)
        for cell in cells:
            outcomes = await calls.measure(
                [small, grown], cell, 1, bench.options.rounds, bench.options.seconds, CALLS_A_ROUND
            )
            here, there = outcomes[grown.side.name], outcomes[few.name]
            failure = here.failure or there.failure
            metrics: dict[str, Any] = {}
            if failure is None:
                metrics = metrics_of(here.results)
                growth = ratio(metrics["p50_ms"], metrics_of(there.results)["p50_ms"])
                metrics |= {} if growth is None else {"p50_growth": growth}
            bench.add(f"growth_{cell}", "wire", grown.side, callers=1, size=size, metrics=metrics, failure=failure)
