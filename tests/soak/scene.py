"""The whole of a soak: a server process, a proxy that breaks the wire, runners, trainers, and the weather."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from lightning_store.testing.faults import Fault, FaultProxy, FaultSchedule
from lightning_store_client import LightningStoreClient
from tests.processes.programs import Program
from tests.soak.algorithm import RESUMED_FEED, STEADY_FEED, Trainer, follow, follow_again_and_again
from tests.soak.gauges import Gauges
from tests.soak.ledger import TERMINAL, Ledger
from tests.soak.measured import MeasuredStore
from tests.soak.runners import Runner

RUNNERS: Final = 200
CLIENTS: Final = 8
TRAINERS: Final = 25
END_SECONDS_MAX: Final = 150.0
"""For what is under way when the time is up."""

RETAIN_SECONDS: Final = 45.0
SERVER: Final[dict[str, object]] = {
    "--replay-window": 35,  # a little longer than a call may take, all its attempts together
    "--worker-timeout": 5,
    "--retain-finished": f"{RETAIN_SECONDS:g}s",
    "--memory-limit": "1GiB",
    # Not much more than is needed: places that were not given back would soon be missed.
    "--calls-max": 100,
    "--waits-max": 500,
}
CLIENT: Final[dict[str, Any]] = {"retry_delays": (0.05, 0.1, 0.2) + (0.5,) * 200}
"""A long poll loses its connection again and again in a storm; else as clients are by default."""

WEATHER: Final = (0.0, 0.002, 0.005, 0.03)
"""Shares of calls that meet a fault, each for some seconds."""
FAULTS: Final = {
    Fault.CUT_REPLY: 0.35,
    Fault.CUT_REQUEST: 0.2,
    Fault.RESET: 0.1,
    Fault.LATE_REQUEST: 0.15,
    Fault.DELAY: 0.15,
    Fault.THROTTLE: 0.03,
    Fault.BLACK_HOLE: 0.02,
}
"""Of these, so many are of each kind."""


class Served:
    """A server process."""

    def __init__(self, directory: Path, seconds: float, flags: dict[str, object], *, strict: bool) -> None:
        """It is killed after ``seconds``. ``flags`` are beside those that every soak has, or instead."""
        self.log, self.tasks = directory / "server.log", directory / "server.tasks"
        given = [str(part) for flag in (SERVER | flags).items() for part in flag]
        command = [sys.executable, "-m", "tests.soak.served", str(self.tasks), "serve", *given]
        command += ["--port", "0", "--log-format", "json", *(["--strict"] if strict else [])]
        self.program = Program(command, os.environ, self.log, seconds)
        self.endpoint = self.program.line().removeprefix("lightning-store-grpc serving on ").partition(" ")[0]

    def problems(self) -> list[str]:
        """Stop it: how it ended, if not well, and what it logged that must not be."""
        self.program.signal(signal.SIGTERM)
        ended = self.program.end()
        lines = [line for line in ended.errors.splitlines() if not _is_harmless(line)]
        return lines if ended.code == 0 else [f"the server ended with {ended.code}", *lines]


def _is_harmless(line: str) -> bool:
    return line.startswith("{") and json.loads(line)["level"] in ("INFO", "WARNING")


class Soak:
    """Runs once."""

    def __init__(self, served: Served, seconds: float, seed: int, *, strict: bool) -> None:
        self.ledger = Ledger(seed, (STEADY_FEED, RESUMED_FEED), strict=strict)
        self.proxy = FaultProxy(served.endpoint)
        server = psutil.Process(served.program.pid)
        self.gauges = Gauges(server, served.tasks, lambda: self.proxy.connections_open)
        self.seconds = seconds
        """How long it runs; then how long it ran, without its end."""
        self._rng = random.Random(f"{seed}/soak")

    def connect(self) -> LightningStoreClient:
        return LightningStoreClient(self.proxy.endpoint, **CLIENT)

    async def run(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._note_loop_error)
        async with self.proxy, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(self.connect()) for _ in range(CLIENTS)]
            store = MeasuredStore(clients[0], self.ledger.latencies)
            async with running(follow(store, self.ledger), follow_again_and_again(store, self.ledger)):
                runners = [
                    Runner(number, clients[number % CLIENTS], self.connect, self.ledger) for number in range(RUNNERS)
                ]
                async with running(self._weather(), self._deliver_late_requests(), *(one.run() for one in runners)):
                    await self._train([clients[number % CLIENTS] for number in range(TRAINERS)])
                if not self.ledger.broken.is_set():
                    await self._check_end(store)

    async def _train(self, clients: list[LightningStoreClient]) -> None:
        """Until the time is up, or too much has gone wrong; then until all batches are done."""
        stopping = asyncio.Event()
        trainers = [
            Trainer(number, MeasuredStore(client, self.ledger.latencies), self.ledger, RETAIN_SECONDS)
            for number, client in enumerate(clients)
        ]
        broken: asyncio.Future[Any] = asyncio.ensure_future(self.ledger.broken.wait())
        training: asyncio.Future[Any] = asyncio.gather(*(trainer.run(stopping) for trainer in trainers))
        begun = self.ledger.clock.monotonic()
        async with running(self.gauges.sample()):
            await asyncio.wait([broken, training], timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
        self.seconds = self.ledger.clock.monotonic() - begun
        stopping.set()
        await asyncio.wait([broken, training], timeout=END_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        if not training.done() and not broken.done():
            self.ledger.violate("trainers did not come to an end")
        for one in (broken, training):
            one.cancel()
        await asyncio.gather(broken, training, return_exceptions=True)

    async def _weather(self) -> None:
        for change in range(sys.maxsize):
            share = self._rng.choice(WEATHER)
            self.proxy.schedule = FaultSchedule.random(
                f"{self.ledger.seed}/{change}", {fault: share * part for fault, part in FAULTS.items()}
            )
            await asyncio.sleep(self._rng.uniform(1, 5))
            if self._rng.random() < 0.2:
                await self.proxy.cut_connections()

    async def _deliver_late_requests(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0.2, 2))
            await self.proxy.deliver_late_requests()

    async def _check_end(self, store: MeasuredStore) -> None:
        """All is calm; what is left in the store is what was left to the retention."""
        self.proxy.schedule = FaultSchedule.none()
        self.ledger.check_versions()
        self.ledger.check_claims()
        with self.ledger.no_errors("the last look"):
            if left := await store.query_rollouts(status_in=["queuing", "requeuing", "preparing", "running"]):
                self.ledger.violate("rollouts are left unfinished", left=list(left)[:3], count=len(left))
            for rollout in await store.query_rollouts(status_in=TERMINAL):
                assert rollout.end_time is not None
                if self.ledger.clock.now() - rollout.end_time > RETAIN_SECONDS + 5:
                    self.ledger.violate("a rollout outlived its retention", rollout=rollout)

    def _note_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.ledger.violate("an error reached nobody", context=context)

    # --- The report --------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """One line."""
        done, latencies, faults = self.ledger.done, self.ledger.latencies, self.proxy.statistics
        kinds = ", ".join(f"{fault.value} {faults.struck[fault]}" for fault in Fault)
        rollouts = done["deleted"] + done["left to retention"]
        return (
            f"soak: {rollouts} rollouts in {self.seconds:.0f} s ({rollouts / self.seconds:.1f}/s),"
            f" {done['retries']} retries, {latencies.count} calls,"
            f" p50 {latencies.percentile(0.5) * 1000:.0f} ms, p99 {latencies.percentile(0.99) * 1000:.0f} ms;"
            f" faults: {kinds}; {faults.cut_along} calls cut along, {faults.connections} connections;"
            f" server RSS {max(self.gauges.samples['server RSS MiB']):.0f} MiB at most;"
            f" seed {self.ledger.seed}{', strict' if self.ledger.strict else ''}"
        )

    def report(self) -> str:
        """What may help to find what went wrong."""
        done = "\n".join(f"  {count:8} {what}" for what, count in sorted(self.ledger.done.items()))
        return f"{self.summary()}\nin each third of the time, at most:\n{self.gauges.table()}\ndone:\n{done}"


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """In tasks, which are cancelled at the end. They must not end before."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()
    assert not ended, ended
