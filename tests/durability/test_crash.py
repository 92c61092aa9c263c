"""A server that is killed at random moments, 64 callers that go on, and copies of its file that are held against what
they were told.

``make test-crash CRASH_KILLS=200 CRASH_SEED=7``; a short form is part of ``make test``.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from lightning_store.sqlite_store import SqliteLightningStore
from tests.durability.crash_runs import MARKS, CrashRun, each_run
from tests.processes.programs import ServingProgram, free_port

STOPPED_SHARE: Final = 0.3
"""Of the moments, at which the server is stopped and not killed."""
QUIET_SECONDS: Final = 0.1
"""After so long everything that a killed or stopped server had sent is noted."""

pytestmark = MARKS


class Crashing(CrashRun):
    """A server on one file, and what becomes of it."""

    def __init__(self, folder: Path, run_number: int, copied: Sequence[str] = ("", "-wal")) -> None:
        """``copied`` are the ends of the names of the files that a copy has."""
        super().__init__(run_number)
        self._port = free_port()
        self._copied = copied
        self._folder = folder
        self._path = folder / "store.db"
        self._served = 0
        self.programs = [self._serve()]

    @property
    def addresses(self) -> str:
        return f"127.0.0.1:{self._port}"

    def _serve(self) -> ServingProgram:
        self._served += 1
        arguments = ["--database", f"sqlite:{self._path}", "--port", str(self._port), "--worker-timeout", "3600"]
        return ServingProgram(arguments, self._folder / f"server-{self._served % 2}.log")

    async def crash(self) -> None:
        """Kill the server and start it again, or stop it for a while; look at a copy of its file."""
        stopped = self.rng.random() < STOPPED_SHARE
        [program] = self.programs
        if stopped:
            program.signal(signal.SIGSTOP)
        else:
            await asyncio.to_thread(program.die)
        await asyncio.sleep(QUIET_SECONDS)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            copy = Path(folder) / "copy.db"
            for suffix in self._copied:
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(shutil.copyfile, f"{self._path}{suffix}", f"{copy}{suffix}")
            acknowledged = self.ledger.acknowledgements()
            if stopped:
                program.signal(signal.SIGCONT)
            else:
                self.programs = [await asyncio.to_thread(self._serve)]
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

    async def check_end(self) -> None:
        with SqliteLightningStore(self._path) as store:
            await self.ledger.check_end(store, self.told)


@each_run
async def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(
    tmp_path: Path, run_number: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    await Crashing(tmp_path, run_number).run_and_check(capsys, caplog)


@pytest.mark.chaos
async def test_a_file_without_its_log_is_caught(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was acknowledged last is in the log alone: the looks at the copies can fail."""
    caplog.set_level("ERROR", "lightning_store_client")
    crashing = Crashing(tmp_path, 0, copied=("",))
    try:
        with pytest.raises(BaseExceptionGroup):
            await crashing.run()
    finally:
        crashing.discard()
    assert any("was lost" in one or "were lost" in one for one in crashing.ledger.violations)
