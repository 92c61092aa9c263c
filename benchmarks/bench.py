"""One run of the harness: its options, its processes, and where its results go."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from benchmarks import records
from benchmarks.processes import CellError, Server, Worker, start_server, start_worker
from benchmarks.records import Environment, Record, Transport
from benchmarks.sides import Side

T = TypeVar("T")

CALLERS: Final = (1, 64)
ROUNDS_ENOUGH: Final = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked to do."""

    cells: tuple[str, ...]
    sides: tuple[Side, ...]
    transports: tuple[Transport, ...]
    seconds: float
    """Length of one round, where a cell has a length."""
    rounds: int
    callers: tuple[int, ...] | None = None
    """None: each cell's own."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Cells that are not measured with so many callers."""
    sizes: tuple[int, ...] = ()
    """Numbers of rollouts for the cells that store more and more."""
    spans: int = 0
    """Spans to store for the cell of memory."""
    runners: int = 0
    processes: int = 0
    """Client processes that the runners share."""
    hold_seconds: float = 0.0
    """How long a transaction is held open beside claims."""
    profile: bool = False
    """Run every server and client under cProfile. Such a run's figures are for finding hot places, not for telling."""


@dataclass
class Opened:
    """A side that is ready to be measured, or why it is not."""

    side: Side
    worker: Worker | None = None
    server: Server | None = None
    failure: str | None = None

    async def ask(self, task: str, **arguments: Any) -> Any:
        """Ask the client process. CellError, which also tells if the server is to blame."""
        if self.worker is None:
            raise CellError(self.failure or "not open")
        try:
            return await self.worker.ask(task, **arguments)
        except CellError as error:
            server_words = self.server.last_words if self.server is not None else None
            raise CellError(f"{error}; {server_words}" if server_words else str(error)) from error


@dataclass
class Outcome(Generic[T]):
    """What a side's rounds returned, up to the one that failed, if one did."""

    results: list[T] = field(default_factory=list)
    failure: str | None = None


async def in_turn(
    opened: Sequence[Opened],
    rounds: int,
    ask: Callable[[Opened], Awaitable[T]],
    *,
    seconds_enough: float = math.inf,
) -> dict[str, Outcome[T]]:
    """``ask`` every side, ``rounds`` times, by the side's name.

    The sides take turns within each round, and who goes first alternates: noise that lasts, and drift, meet all alike.
    A side that fails is left out from then on. After so many seconds :data:`ROUNDS_ENOUGH` rounds will do.
    """
    outcomes = {one.side.name: Outcome[T](failure=one.failure) for one in opened}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= ROUNDS_ENOUGH and time.perf_counter() - began > seconds_enough:
            break
        for one in opened if number % 2 == 0 else reversed(opened):
            outcome = outcomes[one.side.name]
            if outcome.failure is None:
                try:
                    outcome.results.append(await ask(one))
                except CellError as error:
                    outcome.failure = str(error)
    return outcomes


async def together(*asked: Awaitable[T]) -> list[T]:
    """What several processes that are asked at once reply. They all finish, and then the first failure is raised."""
    replies = await asyncio.gather(*asked, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return [reply for reply in replies if not isinstance(reply, BaseException)]


class Bench:
    """Starts what the cells need, keeps what they find, and tells it."""

    def __init__(self, options: Options, results: Path) -> None:
        results.parent.mkdir(parents=True, exist_ok=True)
        self.options = options
        self.results = results
        self.environment = Environment.here()
        self.records: list[Record] = []
        self.scratch = results.with_suffix("")
        """Where processes leave their logs, and for as long as they run their data."""
        self.scratch.mkdir(exist_ok=True)
        self._workers: dict[tuple[str, str], Worker] = {}
        self._servers_started = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, options: Options, results: Path) -> AsyncIterator[Bench]:
        """A run whose records go to ``results``; leaving it ends its processes."""
        bench = cls(options, results)
        try:
            yield bench
        finally:
            await asyncio.gather(*(worker.stop() for worker in bench._workers.values()), return_exceptions=True)

    def add(self, cell: str, transport: Transport, side: Side, **fields: Any) -> None:
        """Keep a result, on disk at once, and tell it."""
        record = Record(cell=cell, transport=transport, side=side.name, environment=self.environment, **fields)
        self.records.append(record)
        records.append(self.results, record)
        self.say(_told(record))

    def say(self, text: str) -> None:
        """Tell the person who watches."""
        print(text, file=sys.stderr, flush=True)

    async def worker(self, side: Side, role: str) -> Worker:
        """The client process of this side in this role; the same one until it ends."""
        worker = self._workers.get((side.name, role))
        if worker is None or not worker.alive:
            name = f"client-{side.name}-{role}"
            worker = await start_worker(side, self.scratch / f"{name}.log", self._profile(name))
            self._workers[side.name, role] = worker
        return worker

    async def server(self, side: Side, *, beside: Server | None = None) -> Server:
        """A new server of this side, on data of its own or on those of another one; who asks for it stops it."""
        self._servers_started += 1
        name = f"server-{side.name}-{self._servers_started}"
        database = self.scratch / f"{name}.db" if beside is None else beside.database
        return await start_server(side, self.scratch / f"{name}.log", database, self._profile(name))

    def _profile(self, name: str) -> Path | None:
        return self.scratch / f"{name}.prof" if self.options.profile else None

    @asynccontextmanager
    async def opened(self, transport: Transport, sides: Sequence[Side]) -> AsyncIterator[list[Opened]]:
        """A new store of each side, and a client process for it. One that cannot be opened says why."""
        opened = [Opened(side) for side in sides]
        try:
            await asyncio.gather(*(self._open(one, transport) for one in opened))
            yield opened
        finally:
            await asyncio.gather(*(_close(one) for one in opened))

    async def _open(self, one: Opened, transport: Transport) -> None:
        try:
            one.worker = await self.worker(one.side, transport)
            if transport == "wire":
                one.server = await self.server(one.side)
                await one.ask("open", endpoint=one.server.endpoint, server_pid=one.server.pid)
            else:
                await one.ask("open")
        except CellError as error:
            one.failure = str(error)


async def _close(one: Opened) -> None:
    try:
        if one.worker is not None and one.worker.alive:
            await one.worker.ask("close")
    except CellError as error:
        print(f"  closing the client of {one.side.title}: {error}", file=sys.stderr, flush=True)
    finally:
        if one.server is not None:
            await one.server.stop()


def _told(record: Record) -> str:
    """A record in one line."""
    callers = "" if record.callers is None else f" x{record.callers}"
    size = "" if record.size is None else f", {record.size:,} stored"
    what = f"{record.cell}{callers}{size} ({record.transport}, {record.side})"
    if record.failure is not None:
        return f"  {what}: FAILED, {record.failure}"
    values = ", ".join(f"{name} {value.median:,.4g}" for name, value in record.metrics.items())
    errors = f"; ERRORS {record.errors}" if record.errors else ""
    return f"  {what}: {values}{errors}"
