"""``serve --database sqlite:PATH``: a server that is killed and comes back with everything, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_store_client import LightningStoreClient
from tests.processes.programs import ServingProgram, free_port

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]

CALLERS = 8
ROLLOUTS = 12
"""Of each caller."""
KILLS = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@contextlib.contextmanager
def serving(path: Path, port: int, number: int) -> Iterator[ServingProgram]:
    arguments = ["--database", f"sqlite:{path}", "--port", str(port), "--grace", "1"]
    program = ServingProgram(arguments, path.with_name(f"errors-{number}"))
    try:
        yield program
    finally:
        program.discard()


async def test_callers_go_on_through_kills_and_nothing_is_lost_or_done_twice(path):
    port = free_port()
    finished: list[str] = []
    progress = asyncio.Event()

    async def caller(client: LightningStoreClient, name: int) -> None:
        for number in range(ROLLOUTS):
            await client.enqueue_rollout(f"{name}-{number}")
            claimed = await client.dequeue_rollout(worker_id=f"w-{name}", max_wait=30)
            assert claimed is not None
            await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
            finished.append(claimed.input)
            progress.set()

    async def kill_after_some_progress(program: ServingProgram, wanted: int) -> None:
        while len(finished) < wanted:
            progress.clear()
            await progress.wait()
        await asyncio.to_thread(program.die)

    total = CALLERS * ROLLOUTS
    async with LightningStoreClient(f"127.0.0.1:{port}", timeout=120) as client:
        with contextlib.ExitStack() as programs:
            program = programs.enter_context(serving(path, port, 0))
            callers = asyncio.gather(*(caller(client, name) for name in range(CALLERS)))
            for kill in range(1, KILLS + 1):
                await kill_after_some_progress(program, kill * total // (KILLS + 2))
                program = programs.enter_context(serving(path, port, kill))
            await callers
            names = sorted(f"{name}-{number}" for name in range(CALLERS) for number in range(ROLLOUTS))
            assert sorted(finished) == names
            stored: list[Any] = list(await client.query_rollouts())
            assert sorted(one.input for one in stored) == names
            assert {(one.status, one.attempt.sequence_id) for one in stored} == {("succeeded", 1)}
            program.signal(signal.SIGTERM)
            assert program.end().code == 0


def served(*arguments: str) -> tuple[int, str]:
    """The exit code and the errors of a server that does not come up."""
    command = [sys.executable, "-m", "lightning_store_server", "serve", "--port", "0", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr


async def test_a_database_that_cannot_be_served(path, tmp_path):
    with serving(path, free_port(), 0):
        code, said = served("--database", f"sqlite:{path}")
        assert code == 69
        assert "in use by another process" in said
    assert served("--database", f"sqlite:{tmp_path}/missing/store.db")[0] == 66
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database\n" * 1000)
    assert served("--database", f"sqlite:{damaged}")[0] == 65
    newer = tmp_path / "newer.db"
    with serving(newer, free_port(), 1):
        pass
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert served("--database", f"sqlite:{newer}")[0] == 78
    assert served("--database", "postgres:x")[0] == 2
    code, said = served("--database", f"sqlite:{path}", "--memory-limit", "0.5")
    assert code == 78
    assert "--memory-limit is for a store in memory" in said
    code, said = served("--disk-limit", "1GiB")
    assert code == 78
    assert "--disk-limit is for a SQLite database" in said
