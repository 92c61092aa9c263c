"""A server that is killed at random moments, 64 callers that go on, and copies of its file that are held against what
they were told.

``make test-crash CRASH_KILLS=200 CRASH_SEED=7``; a short form is part of ``make test``. The seed decides when the
server is killed and what each caller does; the order in which calls come is the machine's, so no two runs are quite the
same.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from lightning_store.model import CompletedRollout
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store.store import LightningStore
from lightning_store_client import LightningStoreClient
from tests.durability.crash_callers import Caller
from tests.durability.crash_ledger import Ledger
from tests.processes.programs import ServingProgram, free_port

KILLS: Final = int(os.environ.get("CRASH_KILLS") or 5)
SEED: Final = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(10_000))
CALLERS: Final = 64
CLIENTS: Final = 8
UP_SECONDS_MAX: Final = 0.8
"""The server runs up to so long before it is killed, or stopped for a copy."""
STOPPED_SHARE: Final = 0.3
"""Of the moments, at which it is stopped and not killed."""
QUIET_SECONDS: Final = 0.1
"""After so long everything that a killed or stopped server had sent is noted."""
END_SECONDS_MAX: Final = 120.0

CLIENT: Final[dict[str, Any]] = {
    "timeout": 120.0,
    "retry_delays": (0.05, 0.1, 0.2) + (0.3,) * 400,
    "health_retry_delays": (0.05,) * 3,
}

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(150 + 8 * KILLS)]


class Crashing:
    """A server on one file, and what becomes of it."""

    def __init__(self, folder: Path, copied: Sequence[str] = ("", "-wal")) -> None:
        """``copied`` are the ends of the names of the files that a copy has."""
        self.ledger = Ledger()
        self.told: list[CompletedRollout] = []
        self.port = free_port()
        self._copied = copied
        self._folder = folder
        self._path = folder / "store.db"
        self._rng = random.Random(SEED)
        self._served = 0
        self.program = self._serve()

    def _serve(self) -> ServingProgram:
        self._served += 1
        arguments = ["--database", f"sqlite:{self._path}", "--port", str(self.port), "--worker-timeout", "3600"]
        return ServingProgram(arguments, self._folder / f"server-{self._served % 2}.log")

    async def crash(self) -> None:
        """At a random moment, kill the server and start it again, or stop it for a while; look at a copy of it."""
        await asyncio.sleep(self._rng.random() * UP_SECONDS_MAX)  # real time: the server is a process
        stopped = self._rng.random() < STOPPED_SHARE
        if stopped:
            self.program.signal(signal.SIGSTOP)
        else:
            await asyncio.to_thread(self.program.die)
        await asyncio.sleep(QUIET_SECONDS)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            copy = Path(folder) / "copy.db"
            for suffix in self._copied:
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(shutil.copyfile, f"{self._path}{suffix}", f"{copy}{suffix}")
            acknowledged = self.ledger.acknowledgements()
            if stopped:
                self.program.signal(signal.SIGCONT)
            else:
                self.program = await asyncio.to_thread(self._serve)
            with SqliteLightningStore(copy, durability="normal") as store:
                await acknowledged.check(store)
            await asyncio.to_thread(self._check_file, copy)

    def _check_file(self, path: Path) -> None:
        """Its own integrity, and that what is counted is there."""
        connection = sqlite3.connect(path)
        try:
            [[said]] = connection.execute("PRAGMA integrity_check(1)")
            if said != "ok":
                self.ledger.violate("the file is damaged", said=said)
            counted = [f"(SELECT count(*) FROM {one}) = {one}" for one in ("rollouts", "attempts", "spans", "workers")]
            [[right]] = connection.execute(f"SELECT {' AND '.join(counted)} FROM totals")
            if not right:
                self.ledger.violate("the totals are wrong")
        finally:
            connection.close()

    async def end(self) -> None:
        """Stop the server as a supervisor does, and look at its file as a whole."""
        self.program.signal(signal.SIGTERM)
        ended = await asyncio.to_thread(self.program.end)
        assert ended.code == 0, ended.errors
        with SqliteLightningStore(self._path) as store:
            await self.ledger.check_end(store, self.told)

    async def follow(self, store: LightningStore) -> None:
        """Every completion, over all restarts."""
        async for completed in store.watch_rollouts():
            self.told.append(completed)


@asynccontextmanager
async def connected(endpoint: str) -> AsyncIterator[list[LightningStoreClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(LightningStoreClient(endpoint, **CLIENT)) for _ in range(CLIENTS)]


async def run(crashing: Crashing) -> None:
    async with connected(f"127.0.0.1:{crashing.port}") as clients, asyncio.TaskGroup() as group:
        following = group.create_task(crashing.follow(clients[0]))
        callers = [
            Caller(f"w-{number}", clients[number % CLIENTS], crashing.ledger, f"{SEED}/{number}")
            for number in range(CALLERS)
        ]
        calling = [group.create_task(caller.run()) for caller in callers]
        for _ in range(KILLS):
            await crashing.crash()
            assert not crashing.ledger.violations
        for caller in callers:
            caller.stopping = True
        async with asyncio.timeout(END_SECONDS_MAX):
            await asyncio.gather(*calling)
            kept = {one.rollout_id for one in crashing.ledger.accounts.values() if not one.deleted}
            while not kept <= {one.rollout.rollout_id for one in crashing.told}:  # noqa: ASYNC110 - nobody says so
                await asyncio.sleep(0.05)
        following.cancel()


async def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", "lightning_store_client")  # calls that are made again are the rule here
    crashing = Crashing(tmp_path)
    try:
        await run(crashing)
        await crashing.end()
    finally:
        crashing.program.discard()
    calls = crashing.ledger.calls
    assert not crashing.ledger.violations, crashing.ledger.violations
    assert all(calls.values())
    with capsys.disabled():
        print(f"\ncrash: seed {SEED}, {KILLS} crashes, {calls.total()} calls of {len(calls)} kinds, each done once")


@pytest.mark.chaos
async def test_a_file_without_its_log_is_caught(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was acknowledged last is in the log alone: the looks at the copies can fail."""
    caplog.set_level("ERROR", "lightning_store_client")
    crashing = Crashing(tmp_path, copied=("",))
    try:
        with pytest.raises(BaseExceptionGroup):
            await run(crashing)
    finally:
        crashing.program.discard()
    assert any("was lost" in one or "were lost" in one for one in crashing.ledger.violations)
