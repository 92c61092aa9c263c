"""What is measured by a fresh process each time: how long it takes until something can be done (a server, an import, a
first call), and what a message costs that is nothing but gRPC."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from functools import partial
from typing import Final

from benchmarks.bench import ROUNDS_ENOUGH, Bench, Opened, in_turn
from benchmarks.processes import CellError, environment
from benchmarks.records import Spread
from benchmarks.sides import OURS, Side
from benchmarks.stores import Family

SERVE_CELL: Final = "serve_ready"
CLIENT_CELL: Final = "import_client"
STORE_CELL: Final = "import_store"
FIRST_CALL_CELL: Final = "first_call"
BARE_CELL: Final = "bare_stream"
CELLS: Final = (SERVE_CELL, CLIENT_CELL, STORE_CELL, FIRST_CALL_CELL, BARE_CELL)

PROGRAM_SECONDS_MAX: Final = 60.0

_IMPORT: Final = """
import time
began = time.perf_counter()
import {module}
print(time.perf_counter() - began)
"""
_FIRST_CALL: Final = """
import time
began = time.perf_counter()
import asyncio
from benchmarks.stores import close_store, open_store

async def main():
    store = open_store({family!r}, {endpoint!r})
    await store.statistics()
    seconds = time.perf_counter() - began
    await close_store(store)
    return seconds

print(asyncio.run(main()))
"""
_BARE: Final = "from benchmarks.bare import main; main()"
_MODULES: Final[dict[tuple[str, Family], str]] = {
    (CLIENT_CELL, "lightning_store"): "lightning_store_client",
    (CLIENT_CELL, "agentlightning"): "agentlightning.store.client_server",
    (STORE_CELL, "lightning_store"): "lightning_store",
    (STORE_CELL, "agentlightning"): "agentlightning.store.memory",
}


async def run(bench: Bench, cell: str) -> None:
    """Measure one of them. The first process of each side is not counted: it may have to compile what it imports."""
    if cell == FIRST_CALL_CELL:
        async with bench.opened("wire", bench.options.sides) as opened:
            await _measure(bench, cell, opened)
    elif cell == BARE_CELL:
        await _measure(bench, cell, [Opened(side) for side in bench.options.sides if side.name == OURS])
    else:
        await _measure(bench, cell, [Opened(side) for side in bench.options.sides])


async def _measure(bench: Bench, cell: str, opened: list[Opened]) -> None:
    outcomes = await in_turn(opened, min(bench.options.rounds, ROUNDS_ENOUGH) + 1, partial(_seconds, bench, cell))
    for one in opened:
        outcome = outcomes[one.side.name]
        unit = "p50_ms" if cell == BARE_CELL else "seconds"
        metrics = {unit: Spread.of(outcome.results[1:])} if outcome.failure is None else {}
        bench.add(cell, "wire", one.side, metrics=metrics, failure=outcome.failure)


async def _seconds(bench: Bench, cell: str, one: Opened) -> float:
    if cell == SERVE_CELL:
        server = await bench.server(one.side)
        await server.stop()
        return server.ready_seconds
    if cell == FIRST_CALL_CELL:
        assert one.server is not None
        return await _printed(one.side, _FIRST_CALL.format(family=one.side.family, endpoint=one.server.endpoint))
    if cell == BARE_CELL:
        return await _printed(one.side, _BARE)
    return await _printed(one.side, _IMPORT.format(module=_MODULES[cell, one.side.family]))


async def _printed(side: Side, program: str) -> float:
    """The number that a Python program prints last."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment(side), stdout=PIPE, stderr=PIPE
    )
    try:
        printed, complaints = await asyncio.wait_for(process.communicate(), PROGRAM_SECONDS_MAX)
    except TimeoutError:
        process.kill()
        raise CellError(f"no end after {PROGRAM_SECONDS_MAX:g} s") from None
    if process.returncode != 0:
        raise CellError(" | ".join(complaints.decode(errors="replace").splitlines()[-3:]))
    return float(printed.split()[-1])
