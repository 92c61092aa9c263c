"""A run in which servers are killed at random moments and 64 callers go on.

``CRASH_KILLS`` and ``CRASH_SEED`` of the environment decide how long it is and when. The seed decides what each caller
does, too; the order in which calls come is the machine's, so no two runs are quite the same.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest

from lightning_store.model import CompletedRollout
from lightning_store.store import LightningStore
from lightning_store_client import LightningStoreClient
from tests.durability.crash_callers import Caller
from tests.durability.crash_ledger import Ledger
from tests.processes.programs import ServingProgram

KILLS: Final = int(os.environ.get("CRASH_KILLS") or 5)
SEED: Final = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(10_000))
CALLERS: Final = 64
CLIENTS: Final = 8
KILLS_PER_RUN: Final = 25
"""Then another begins with nothing stored: all that is stored is looked at after each kill."""
UP_SECONDS_MAX: Final = 0.8
"""Servers run up to so long before one is killed."""
END_SECONDS_MAX: Final = 120.0

CLIENT: Final[dict[str, Any]] = {
    "timeout": 120.0,
    "retry_delays": (0.05, 0.1, 0.2) + (0.3,) * 400,
    "health_retry_delays": (0.05,) * 3,
}

MARKS: Final = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(150 + 20 * KILLS_PER_RUN)]
"""Of a module with such runs."""
each_run: Final = pytest.mark.parametrize("run_number", range(math.ceil(KILLS / KILLS_PER_RUN)))
"""Has a test make as many runs as it takes."""


class CrashRun(ABC):
    """Servers, what becomes of them, what callers did, and what a feed told."""

    programs: list[ServingProgram]
    """The servers that run."""

    def __init__(self, run_number: int) -> None:
        """``run_number`` counts the runs of a test from 0: each has its own seed, and its share of the kills."""
        self.ledger = Ledger()
        self.told: list[CompletedRollout] = []
        self._seed = SEED + run_number
        self._kills = min(KILLS - run_number * KILLS_PER_RUN, KILLS_PER_RUN)
        self.rng = random.Random(self._seed)

    @property
    @abstractmethod
    def addresses(self) -> str:
        """Of all servers, for a client."""

    @abstractmethod
    async def crash(self) -> None:
        """Kill something and start it again. Called at random moments."""

    @abstractmethod
    async def check_end(self) -> None:
        """Hold the ledger against the store, which no server has open any more."""

    async def run_and_check(self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        """Run, stop the servers as a supervisor does, look at what they leave, and tell how much that was."""
        caplog.set_level("ERROR", "lightning_store_client")  # calls that are made again are the rule here
        try:
            await self.run()
            for program in self.programs:
                program.signal(signal.SIGTERM)
                ended = await asyncio.to_thread(program.end)
                assert ended.code == 0, ended.errors
            await self.check_end()
        finally:
            self.discard()
        calls = self.ledger.calls
        assert not self.ledger.violations, self.ledger.violations
        assert all(calls.values())
        with capsys.disabled():
            done = f"{calls.total()} calls of {len(calls)} kinds, each done once"
            print(f"\nseed {self._seed}, {self._kills} crashes, {done}")

    def discard(self) -> None:
        for program in self.programs:
            program.discard()

    async def run(self) -> None:
        """Crash again and again, then let the callers finish what they have begun."""
        async with self._connected() as clients, asyncio.TaskGroup() as group:
            following = group.create_task(self._follow(clients[0]))
            callers = [
                Caller(f"w-{number}", clients[number % CLIENTS], self.ledger, f"{self._seed}/{number}")
                for number in range(CALLERS)
            ]
            calling = [group.create_task(caller.run()) for caller in callers]
            for _ in range(self._kills):
                await asyncio.sleep(self.rng.random() * UP_SECONDS_MAX)  # real time: they are processes
                await self.crash()
                assert not self.ledger.violations
            for caller in callers:
                caller.stopping = True
            async with asyncio.timeout(END_SECONDS_MAX):
                await asyncio.gather(*calling)
                kept = {one.rollout_id for one in self.ledger.accounts.values() if not one.deleted}
                while not kept <= {one.rollout.rollout_id for one in self.told}:  # noqa: ASYNC110 - nobody says so
                    await asyncio.sleep(0.05)
            following.cancel()

    async def _follow(self, store: LightningStore) -> None:
        """Every completion, over all restarts, at whatever server."""
        async for completed in store.watch_rollouts():
            self.told.append(completed)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[list[LightningStoreClient]]:
        async with AsyncExitStack() as stack:
            clients = [LightningStoreClient(self.addresses, **CLIENT) for _ in range(CLIENTS)]
            yield [await stack.enter_async_context(client) for client in clients]
