"""Waiting for rollouts: how soon a wait ends after what ends it, and what it costs while nothing happens."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from benchmarks.bench import Bench, Opened, in_turn
from benchmarks.records import Spread, percentile
from benchmarks.rounds import CpuMeter, WrongAnswerError
from benchmarks.session import Session
from benchmarks.stores import close_store, open_store

WAKE_CELL: Final = "wait_wake"
IDLE_CELL: Final = "wait_idle"
CELLS: Final = (WAKE_CELL, IDLE_CELL)

TRIALS: Final = 50
"""Waits of one round."""
REGISTER_SECONDS: Final = 0.02
"""What a wait gets to arrive at the server before it is ended."""
PENDING_IDS: Final = 10_000
SETTLE_SECONDS: Final = 2.0
"""What the server gets to take note of so many ids."""
IDLE_SECONDS: Final = 25.0
"""Longer than a client waits at a time, so that asking again is part of it."""


# --- The client process ----------------------------------------------------------------------------------------------


async def wake(session: Session, *, trials: int) -> dict[str, float]:
    """Milliseconds from the return of the call that ends an attempt to the return of the wait: the median and p99.

    The waiter is a client of its own. A wait can return before that call does, and then the time is negative.
    """
    waiter = open_store(session.family, session.subject.endpoint)
    delays: list[float] = []

    async def returned_at(rollout_id: str) -> float:
        rollouts = await waiter.wait_for_rollouts(rollout_ids=[rollout_id])
        at = time.perf_counter()
        if len(rollouts) != 1 or rollouts[0].status != "succeeded":
            raise WrongAnswerError(f"wait_for_rollouts: {rollouts}")
        return at

    try:
        for claimed in await session.subject.claim(trials):
            waiting = asyncio.create_task(returned_at(claimed.rollout_id))
            await asyncio.sleep(REGISTER_SECONDS)
            await session.subject.store.update_attempt(
                claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded"
            )
            finished_at = time.perf_counter()
            delays.append((await waiting - finished_at) * 1e3)
    finally:
        await close_store(waiter)
    delays.sort()
    return {"p50_ms": percentile(delays, 0.5), "p99_ms": percentile(delays, 0.99)}


async def idle(session: Session, *, seconds: float) -> dict[str, float]:
    """Percent of a core that each process takes while one wait for many rollouts is pending and nothing happens."""
    rollouts = await session.subject.enqueue(PENDING_IDS)
    ids = [rollout.rollout_id for rollout in rollouts]
    waiting = asyncio.ensure_future(session.subject.store.wait_for_rollouts(rollout_ids=ids))
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        meter = CpuMeter(session.server)
        start = time.perf_counter()
        await asyncio.wait([waiting], timeout=seconds)
        percent = 100 / (time.perf_counter() - start)
        if waiting.done():
            raise WrongAnswerError(f"wait_for_rollouts returned early: {waiting.exception() or len(waiting.result())}")
        cpu = {"client_cpu_percent": meter.client_seconds * percent}
        return cpu if meter.server_seconds is None else {**cpu, "server_cpu_percent": meter.server_seconds * percent}
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


# --- The cells -------------------------------------------------------------------------------------------------------


async def run(bench: Bench, cell: str) -> None:
    """Measure one of the two, over the wire."""
    options = bench.options

    async def ask(one: Opened) -> dict[str, Any]:
        if cell == WAKE_CELL:
            result: dict[str, Any] = await one.ask("wake", trials=TRIALS)
        else:
            seconds = IDLE_SECONDS if options.seconds >= 1 else IDLE_SECONDS / 5
            result = await one.ask("idle", seconds=seconds, seconds_max=seconds + 120)
        return result

    rounds = options.rounds if cell == WAKE_CELL else 1
    async with bench.opened("wire", options.sides) as opened:
        outcomes = await in_turn(opened, rounds, ask)
        for one in opened:
            outcome = outcomes[one.side.name]
            names = outcome.results[0] if outcome.results and outcome.failure is None else []
            metrics = {name: Spread.of(result[name] for result in outcome.results) for name in names}
            bench.add(cell, "wire", one.side, metrics=metrics, failure=outcome.failure)
