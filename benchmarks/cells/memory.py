"""Memory that a stored span takes: what the server process grows by, for each span."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import psutil

from benchmarks.bench import Bench, Opened, in_turn
from benchmarks.processes import CellError
from benchmarks.records import Spread
from benchmarks.reference import SPAN_DOCUMENT_BYTES
from benchmarks.rounds import WrongAnswerError
from benchmarks.session import Session
from benchmarks.sides import PEER, Side
from benchmarks.workloads import SPANS_A_BATCH

CELL: Final = "span_memory"

ADDING_AT_ONCE: Final = 16
PEER_SPANS_MAX: Final = 20_000
"""Agent Lightning's client takes minutes for more, and what a span takes does not depend on their number."""
SETTLE_SECONDS: Final = 1.0
LOAD_SECONDS_MAX: Final = 900.0

if TYPE_CHECKING:
    from lightning_store import AttemptedRollout


# --- The client process ----------------------------------------------------------------------------------------------


async def make_attempts(session: Session, *, count: int) -> None:
    """Claim so many rollouts for spans to come, so that their own memory is not taken for that of spans."""
    session.attempts.extend(await session.subject.claim(count))


async def add_spans(session: Session) -> int:
    """Give each of these attempts 100 reference spans; how many spans that were."""
    attempts = iter(session.attempts)

    async def add(attempts: Iterator[AttemptedRollout]) -> int:
        added = 0
        for attempt in attempts:
            spans = [session.subject.new_span(attempt) for _ in range(SPANS_A_BATCH)]
            added += len(await session.subject.store.add_many_spans(spans))
        return added

    added = sum(await asyncio.gather(*(add(attempts) for _ in range(ADDING_AT_ONCE))))
    if added != len(session.attempts) * SPANS_A_BATCH:
        raise WrongAnswerError(f"add_many_spans: {added} of {len(session.attempts) * SPANS_A_BATCH} spans")
    session.attempts.clear()
    return added


# --- The cell --------------------------------------------------------------------------------------------------------


async def run(bench: Bench) -> None:
    """Measure one span's memory on new servers, by what they grow by over many."""
    sides = [Opened(side) for side in bench.options.sides]

    async def ask(one: Opened) -> dict[str, float]:
        return await _measure(bench, one.side)

    outcomes = await in_turn(sides, bench.options.rounds, ask)
    for one in sides:
        outcome = outcomes[one.side.name]
        names = outcome.results[0] if outcome.failure is None else []
        metrics = {name: Spread.of(result[name] for result in outcome.results) for name in names}
        bench.add(CELL, "wire", one.side, metrics=metrics, failure=outcome.failure)


async def _measure(bench: Bench, side: Side) -> dict[str, float]:
    spans = min(bench.options.spans, PEER_SPANS_MAX) if side.name == PEER else bench.options.spans
    async with bench.opened("wire", [side]) as [one]:
        if one.server is None:
            raise CellError(one.failure or "no server")
        await one.ask("make_attempts", count=1)
        await one.ask("add_spans")
        await one.ask("make_attempts", count=max(1, spans // SPANS_A_BATCH), seconds_max=LOAD_SECONDS_MAX)
        before = await _memory(one.server.pid)
        added: Any = await one.ask("add_spans", seconds_max=LOAD_SECONDS_MAX)
        after = await _memory(one.server.pid)
    resident, private = ((end - start) / added for start, end in zip(before, after, strict=True))
    return {
        "bytes_per_span": resident,
        "private_bytes_per_span": private,
        "times_serialized": resident / SPAN_DOCUMENT_BYTES,
        "spans": added,
    }


async def _memory(pid: int) -> tuple[int, int]:
    """Resident and private bytes of a process, once it has had a moment to itself."""
    await asyncio.sleep(SETTLE_SECONDS)
    memory = psutil.Process(pid).memory_full_info()
    return memory.rss, memory.uss
