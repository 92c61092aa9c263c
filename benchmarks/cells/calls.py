"""Throughput, latency and CPU cost of single calls and of a rollout's life, for so many callers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from benchmarks.bench import CALLERS, Bench, Opened, Outcome, in_turn
from benchmarks.processes import CellError
from benchmarks.records import Transport
from benchmarks.rounds import Round, errors_of, metrics_of, run_round
from benchmarks.session import Session
from benchmarks.sides import PEER, Side
from benchmarks.workloads import WORKLOADS

CELLS: Final = tuple(WORKLOADS)
OTLP_CELL: Final = "add_many_spans_otlp"
"""The one cell whose sides make different calls: ours as ever, Agent Lightning's over its OTLP path."""

WARM_SECONDS: Final = 0.25
PATIENCE: Final = 4
"""Rounds may take so many times what they should, where single calls take long, before there are fewer of them."""
SURPLUS: Final = 1.3
"""Items at hand, as a multiple of what the last round needed."""
ROUND_SECONDS_MAX: Final = 120.0
"""What making the items and the calls that are under way when a round is over may take beyond it."""


# --- The client process ----------------------------------------------------------------------------------------------


async def warm(session: Session, *, workload: str, callers: int) -> None:
    """Make calls for a moment: connections, imports and caches are there, and the rate is known, when it counts."""
    one = session.workload(workload)
    count = callers
    while True:
        items = await one.items(count)
        measured = await run_round(one.call, items, callers=callers, seconds=WARM_SECONDS)
        if measured.calls == 0:
            raise CellError(f"no call succeeded: {measured.errors}")
        session.calls_per_second[workload, callers] = measured.calls_per_second
        if measured.seconds >= WARM_SECONDS or count >= one.items_max:
            return
        count = min(one.items_max, count * 10)


async def round_of(
    session: Session, *, workload: str, callers: int, seconds: float, calls_max: int | None = None
) -> dict[str, Any]:
    """One round, as the fields of a ``Round``."""
    one = session.workload(workload)
    count = callers + round(session.calls_per_second[workload, callers] * seconds * SURPLUS)
    items = itertools.islice(await one.items(calls_max or count), calls_max)
    measured = await run_round(one.call, items, callers=callers, seconds=seconds, server=session.server)
    if measured.calls == 0:
        raise CellError(f"no call succeeded: {measured.errors}")
    session.calls_per_second[workload, callers] = measured.calls_per_second
    return measured.model_dump()


# --- The cells -------------------------------------------------------------------------------------------------------


async def run(bench: Bench, cell: str, transport: Transport) -> None:
    """Measure one kind of call, for each number of callers, on a new store."""
    if cell == OTLP_CELL and (transport != "wire" or not any(side.name == PEER for side in bench.options.sides)):
        return
    async with bench.opened(transport, bench.options.sides) as opened:
        for callers in bench.options.callers or (CALLERS if transport == "wire" else CALLERS[:1]):
            callers_max = WORKLOADS[cell].callers_max or callers
            if (cell, callers) in bench.options.left_out or callers > callers_max:
                continue
            outcomes = await measure(opened, cell, callers, bench.options.rounds, bench.options.seconds)
            for one in opened:
                report(bench, cell, transport, one.side, outcomes[one.side.name], callers=callers)


async def measure(
    opened: Sequence[Opened],
    cell: str,
    callers: int,
    rounds: int,
    seconds: float,
    calls_max: int | None = None,
    seconds_enough: float | None = None,
) -> dict[str, Outcome[Round]]:
    """Warm all sides up, then rounds in turn, until ``seconds_enough`` have passed."""
    for name, warmed in (await in_turn(opened, 1, partial(ask_warm, cell=cell, callers=callers))).items():
        next(one for one in opened if one.side.name == name).failure = warmed.failure

    async def one_round(one: Opened) -> Round:
        return await ask_round(one, cell, callers, seconds, calls_max)

    if seconds_enough is None:
        seconds_enough = rounds * seconds * len(opened) * PATIENCE
    return await in_turn(opened, rounds, one_round, seconds_enough=seconds_enough)


async def ask_round(one: Opened, cell: str, callers: int, seconds: float, calls_max: int | None = None) -> Round:
    """One round of one side."""
    fields = await one.ask(
        "round",
        workload=workload_of(cell, one.side),
        callers=callers,
        seconds=seconds,
        calls_max=calls_max,
        seconds_max=seconds + ROUND_SECONDS_MAX,
    )
    return Round.model_validate(fields)


async def ask_warm(one: Opened, *, cell: str, callers: int) -> None:
    """Warm one side up."""
    await one.ask("warm", workload=workload_of(cell, one.side), callers=callers, seconds_max=ROUND_SECONDS_MAX)


def workload_of(cell: str, side: Side) -> str:
    """The workload that a side runs in a cell."""
    return "add_many_spans" if cell == OTLP_CELL and side.name != PEER else cell


def report(
    bench: Bench,
    cell: str,
    transport: Transport,
    side: Side,
    outcome: Outcome[Round],
    *,
    callers: int,
    size: int | None = None,
) -> None:
    """Keep the rounds of one side as a record."""
    bench.add(
        cell,
        transport,
        side,
        callers=callers,
        size=size,
        metrics=metrics_of(outcome.results) if outcome.failure is None else {},
        errors=errors_of(outcome.results),
        failure=outcome.failure,
    )
