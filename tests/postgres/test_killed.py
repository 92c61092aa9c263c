"""Two servers on one database, of which one or the database itself is killed at random moments; 64 callers go on.

``make test-postgres CRASH_KILLS=200 CRASH_SEED=7``; without these it is short.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_store.model import CompletedRollout
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store.store import LightningStore
from tests.durability.crash_callers import Caller
from tests.durability.crash_ledger import Ledger
from tests.durability.test_crash import CALLERS, CLIENTS, END_SECONDS_MAX, KILLS, SEED, UP_SECONDS_MAX, connected
from tests.processes.programs import ServingProgram, free_port
from tools.postgres_server import PostgresServer

SERVERS = 2
DATABASE_SHARE = 0.2
"""Of the moments, at which the database is killed."""

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(150 + 8 * KILLS)]


class Killing:
    """Servers on one database, and what becomes of them."""

    def __init__(self, database: PostgresServer, folder: Path) -> None:
        self.ledger = Ledger()
        self.told: list[CompletedRollout] = []
        self._database = database
        self._folder = folder
        self._rng = random.Random(SEED)
        self._ports = [free_port() for _ in range(SERVERS)]
        self._programs: list[ServingProgram] = []
        for number in range(SERVERS):
            self._programs.append(self._serve(number))

    @property
    def addresses(self) -> str:
        """Of all servers, for a client."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    def _serve(self, number: int) -> ServingProgram:
        settings = ["--database", self._database.dsn(), "--port", str(self._ports[number]), "--worker-timeout", "3600"]
        return ServingProgram(settings, self._folder / f"server-{number}.log")

    async def kill(self) -> None:
        """At a random moment, kill a server or the database, and start it again."""
        await asyncio.sleep(self._rng.random() * UP_SECONDS_MAX)  # real time: they are processes
        if self._rng.random() < DATABASE_SHARE:
            await asyncio.to_thread(self._database.stop, "immediate")
            await asyncio.to_thread(self._database.start)
        else:
            number = self._rng.randrange(SERVERS)
            await asyncio.to_thread(self._programs[number].die)
            self._programs[number] = await asyncio.to_thread(self._serve, number)

    async def end(self) -> None:
        """Stop the servers as a supervisor does, and look at what they leave."""
        for program in self._programs:
            program.signal(signal.SIGTERM)
            ended = await asyncio.to_thread(program.end)
            assert ended.code == 0, ended.errors
        store = await PostgresEngineStore.open(self._database.dsn())
        try:
            await self.ledger.check_end(store, self.told)
        finally:
            await store.aclose()

    async def follow(self, store: LightningStore) -> None:
        """Every completion, at whatever server."""
        async for completed in store.watch_rollouts():
            self.told.append(completed)

    def discard(self) -> None:
        for program in self._programs:
            program.discard()


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """One that is killed, and keeps what it has acknowledged."""
    server = PostgresServer(durable=True)
    try:
        server.start()
        yield server
    finally:
        server.close()


async def _run(killing: Killing) -> None:
    async with connected(killing.addresses) as clients, asyncio.TaskGroup() as group:
        following = group.create_task(killing.follow(clients[0]))
        callers = [
            Caller(f"w-{number}", clients[number % CLIENTS], killing.ledger, f"{SEED}/{number}")
            for number in range(CALLERS)
        ]
        calling = [group.create_task(caller.run()) for caller in callers]
        for _ in range(KILLS):
            await killing.kill()
        for caller in callers:
            caller.stopping = True
        async with asyncio.timeout(END_SECONDS_MAX):
            await asyncio.gather(*calling)
            kept = {one.rollout_id for one in killing.ledger.accounts.values() if not one.deleted}
            while not kept <= {one.rollout.rollout_id for one in killing.told}:  # noqa: ASYNC110 - nobody says so
                await asyncio.sleep(0.05)
        following.cancel()


async def test_servers_and_a_database_that_are_killed_lose_and_double_nothing(
    database: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", "lightning_store_client")  # calls that are made again are the rule here
    killing = Killing(database, tmp_path)
    try:
        await _run(killing)
        await killing.end()
    finally:
        killing.discard()
    calls = killing.ledger.calls
    assert not killing.ledger.violations, killing.ledger.violations
    assert all(calls.values())
    with capsys.disabled():
        print(f"\nkilled: seed {SEED}, {KILLS} kills, {calls.total()} calls of {len(calls)} kinds, each done once")
