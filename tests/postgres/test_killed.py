"""Two servers on one database, of which one or the database itself is killed at random moments; 64 callers go on.

``make test-postgres CRASH_KILLS=200 CRASH_SEED=7``; without these it is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_store.postgres_store import PostgresEngineStore, check_namespace
from tests.durability.crash_runs import MARKS, CrashRun, each_run
from tests.processes.programs import ServingProgram, free_port
from tools.postgres_server import PostgresServer

SERVERS = 2
DATABASE_SHARE = 0.2
"""Of the moments, at which the database is killed."""

pytestmark = MARKS


class Killing(CrashRun):
    """Servers on one database."""

    def __init__(self, database: PostgresServer, folder: Path, run_number: int) -> None:
        super().__init__(run_number)
        self._database = database
        self._folder = folder
        self._ports = [free_port() for _ in range(SERVERS)]
        self.programs = [self._serve(number) for number in range(SERVERS)]

    @property
    def addresses(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    def _serve(self, number: int) -> ServingProgram:
        settings = ["--database", self._database.dsn(), "--port", str(self._ports[number]), "--worker-timeout", "3600"]
        return ServingProgram(settings, self._folder / f"server-{number}.log")

    async def crash(self) -> None:
        """Kill a server or the database, and start it again."""
        if self.rng.random() < DATABASE_SHARE:
            await asyncio.to_thread(self._database.stop, "immediate")
            await asyncio.to_thread(self._database.start)
        else:
            number = self.rng.randrange(SERVERS)
            await asyncio.to_thread(self.programs[number].die)
            self.programs[number] = await asyncio.to_thread(self._serve, number)

    async def check_end(self) -> None:
        store = await PostgresEngineStore.open(self._database.dsn(), adopt_rules=True)
        try:
            await self.ledger.check_end(store, self.told)
        finally:
            await store.aclose()
        assert await check_namespace(self._database.dsn(), "default") == []


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """One that is killed, and keeps what it has acknowledged."""
    server = PostgresServer(durable=True)
    try:
        server.start()
        yield server
    finally:
        server.close()


@each_run
async def test_servers_and_a_database_that_are_killed_lose_and_double_nothing(
    database: PostgresServer,
    tmp_path: Path,
    run_number: int,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await Killing(database, tmp_path, run_number).run_and_check(capsys, caplog)
