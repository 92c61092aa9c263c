"""Who shares a PostgreSQL database: somebody who holds a transaction open beside claims, and a second server."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.bench import CALLERS, Bench, Opened, Outcome, in_turn, together
from benchmarks.cells import calls
from benchmarks.processes import CellError
from benchmarks.records import Spread
from benchmarks.rounds import Round, errors_of, metrics_of
from benchmarks.sides import HELD, PAIR, POSTGRES, Side

HELD_CELL: Final = "dequeue_held"
PAIR_CELL: Final = "two_servers"
CELLS: Final = (HELD_CELL, PAIR_CELL)

LATE: Final = 3
"""One of so many rounds, the last ones, are those in which what was held has come to bear."""


async def run(bench: Bench, cell: str) -> None:
    """Measure a cell, on the side in a PostgreSQL database."""
    for side in bench.options.sides:
        if side.name == POSTGRES:
            await (_dequeue_held if cell == HELD_CELL else _two_servers)(bench, side)


def _callers(bench: Bench) -> int:
    return (bench.options.callers or CALLERS)[-1]


# --- Beside a transaction --------------------------------------------------------------------------------------------


async def _dequeue_held(bench: Bench, free: Side) -> None:
    """Claims in two databases of one PostgreSQL server in turn, in one of which a transaction is open all the while:
    what it keeps from being cleaned up is of its own database alone."""
    callers, seconds = _callers(bench), bench.options.hold_seconds
    outcomes: dict[str, Outcome[Round]] = {}
    sides = [free, replace(free, name=HELD, title=f"{free.title}, beside a transaction")]
    try:
        async with _database_beside(free) as dsn:
            sides[1] = replace(sides[1], dsn=dsn)
            async with bench.opened("wire", sides) as opened, _open_transaction(dsn):
                bench.say(f"  {HELD_CELL}: a transaction is held for {seconds:g} s")
                rounds = max(1, math.ceil(seconds / bench.options.seconds))
                outcomes = await calls.measure(
                    opened, "dequeue", callers, rounds, bench.options.seconds, seconds_enough=seconds
                )
    except CellError as error:
        outcomes = {side.name: Outcome(failure=str(error)) for side in sides}
    for side in sides:
        _report(bench, HELD_CELL, side, outcomes[side.name], callers, late=True)


@asynccontextmanager
async def _database_beside(side: Side) -> AsyncIterator[str]:
    """The address of another database on the same server, which goes at the end."""
    assert side.dsn is not None
    name = "lightning_store_held"
    for statement in (f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}"):
        await _execute(side.dsn, statement)
    try:
        yield urlsplit(side.dsn)._replace(path=f"/{name}").geturl()
    finally:
        await _execute(side.dsn, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def _open_transaction(dsn: str) -> AsyncIterator[None]:
    """One with an id of its own, from whose moment on nothing that others delete can be cleaned up."""
    async with _connected(dsn) as connection, connection.transaction(isolation="repeatable_read"):
        await connection.execute("SELECT pg_current_xact_id()")
        yield


async def _execute(dsn: str, statement: str) -> None:
    async with _connected(dsn) as connection:
        await connection.execute(statement)


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Any]:
    try:
        import asyncpg
    except ImportError as error:
        raise CellError(f"the package is missing that speaks to PostgreSQL: {error}") from error
    connection: Any = None
    try:
        connection = await asyncpg.connect(dsn)
        yield connection
    except (OSError, asyncpg.PostgresError) as error:
        raise CellError(f"the database fails: {error}") from error
    finally:
        if connection is not None:
            await connection.close()


# --- Beside another server -------------------------------------------------------------------------------------------


async def _two_servers(bench: Bench, alone: Side) -> None:
    """One server with its clients, and in turn two on one namespace, each with as many clients of its own."""
    callers, seconds = _callers(bench), bench.options.seconds
    pair = replace(alone, name=PAIR, title=f"{alone.title}, each of two servers")
    async with bench.opened("wire", [alone, pair]) as opened:
        second = await _second(bench, opened[1])
        try:
            served = {alone.name: opened[:1], pair.name: [opened[1], second]}
            for one in (*opened, second):
                if one.failure is None:
                    await calls.ask_warm(one, cell="lifecycle", callers=callers)

            async def one_round(one: Opened) -> Round:
                asked = (calls.ask_round(each, "lifecycle", callers, seconds) for each in served[one.side.name])
                return _of_all(await together(*asked))

            outcomes = await in_turn(opened, bench.options.rounds, one_round)
        except CellError as error:
            outcomes = {side.name: Outcome(failure=str(error)) for side in (alone, pair)}
        finally:
            if second.server is not None:
                await second.server.stop()
    for side in (alone, pair):
        _report(bench, PAIR_CELL, side, outcomes[side.name], callers)


async def _second(bench: Bench, first: Opened) -> Opened:
    """Another server on the data of this one, with a client process of its own."""
    second = Opened(first.side, failure=first.failure)
    if first.server is not None:
        try:
            second.server = await bench.server(first.side, beside=first.server)
            second.worker = await bench.worker(first.side, "second")
            await second.ask("open", endpoint=second.server.endpoint, server_pid=second.server.pid)
        except CellError as error:
            first.failure = second.failure = str(error)
    return second


def _of_all(rounds: Sequence[Round]) -> Round:
    """Rounds at one time on several servers: all calls, and the latencies and costs of whichever has the greater."""
    errors: Counter[str] = Counter()
    for one in rounds:
        errors.update(one.errors)
    costs = [one.server_cpu_us for one in rounds if one.server_cpu_us is not None]
    return Round(
        calls=sum(one.calls for one in rounds),
        seconds=max(one.seconds for one in rounds),
        p50_ms=max(one.p50_ms for one in rounds),
        p99_ms=max(one.p99_ms for one in rounds),
        client_cpu_us=max(one.client_cpu_us for one in rounds),
        server_cpu_us=max(costs, default=None),
        errors=dict(errors),
    )


def _report(bench: Bench, cell: str, side: Side, outcome: Outcome[Round], callers: int, *, late: bool = False) -> None:
    metrics = metrics_of(outcome.results) if outcome.failure is None else {}
    if metrics and late:
        rates = metrics["calls_per_second"].rounds
        metrics["late_calls_per_second"] = Spread.of(rates[-math.ceil(len(rates) / LATE) :])
    bench.add(
        cell,
        "wire",
        side,
        callers=callers,
        metrics=metrics,
        errors=errors_of(outcome.results),
        failure=outcome.failure,
    )
