"""The file of a store in a SQLite database: who may open it, and what it holds when things go wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from lightning_store import Rollout
from lightning_store.engine.idempotency import request_scope
from lightning_store.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    StoreUnavailableError,
    UnsupportedError,
)
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span
from tests.durability.programs import CALLERS

TOTALS = "SELECT rollouts, attempts, completed, span_bytes FROM totals"
COUNTED = """
    SELECT (SELECT count(*) FROM rollouts), (SELECT count(*) FROM attempts), (SELECT count(*) FROM completions),
        (SELECT sum(span_bytes) FROM rollouts)
"""
FAILING_SYNC = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <stdlib.h>
    #include <unistd.h>

    int fdatasync(int file) {
        static int (*real)(int);
        const char *every = getenv("SYNC_FAILS_EVERY"), *fault = getenv("SYNC_FAULT");
        if (!real) real = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
        if ((every && rand() % atoi(every) == 0) || (fault && unlink(fault) == 0)) {
            errno = EIO;
            return -1;
        }
        return real(file);
    }
"""
"""Fails once when there is a file by the name of SYNC_FAULT, and one time in SYNC_FAILS_EVERY. (Each so many-th would
do harm of its own: opening a database again takes about as many syncs, and may then meet the failing one each time.)"""
PROGRAMS = Path(__file__).with_name("programs.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def command(program: str, path: Path) -> list[str]:
    return [sys.executable, str(PROGRAMS), program, str(path)]


def output_of(program: str, path: Path) -> str:
    return subprocess.run(command(program, path), check=True, capture_output=True, text=True, timeout=60).stdout.strip()


# --- Who may open it -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_process_is_refused_at_once(path):
    with SqliteLightningStore(path):
        said = output_of("open_only", path)
        assert said.startswith("StoreUnavailableError")
        assert f"in use by another process (pid {os.getpid()})" in said
    assert output_of("open_only", path) == "opened"


def test_a_second_store_in_this_process_is_refused(path, tmp_path):
    link = tmp_path / "link.db"
    with SqliteLightningStore(path):
        link.symlink_to(path)
        for name in (path, link):
            with pytest.raises(StoreUnavailableError, match="in use by this process"):
                SqliteLightningStore(name)
    SqliteLightningStore(path).close()


@pytest.mark.slow
def test_a_forked_child_is_refused_and_the_parent_goes_on(path):
    assert output_of("fork_and_call", path).splitlines() == ["True", "parent's, parent's again"]


def test_nobody_else_may_read_the_files(path):
    with SqliteLightningStore(path) as store:
        asyncio.run(store.enqueue_rollout("secret"))
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_newer_format_is_refused_and_left_alone(path):
    SqliteLightningStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(UnsupportedError, match="format 99"):
        SqliteLightningStore(path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match="another program"):
        SqliteLightningStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database at all\n" * 1000, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_damaged_file_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match="damaged"):
        SqliteLightningStore(path)
    assert path.read_bytes() == content
    path.unlink()
    SqliteLightningStore(path).close()


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with SqliteLightningStore(path) as store:
        asyncio.run(store.enqueue_rollout("t"))


@pytest.mark.parametrize("name", ["missing/store.db", "."])
def test_a_path_that_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(StoreUnavailableError):
        SqliteLightningStore(tmp_path / name)


@pytest.mark.slow
def test_a_file_that_can_only_be_read_is_refused():
    with TemporaryDirectory() as folder:  # that anybody may look into
        path = Path(folder) / "store.db"
        path.parent.chmod(0o777)
        SqliteLightningStore(path).close()
        path.chmod(0o444)
        path.with_name("store.db.lock").chmod(0o666)
        said = output_of("open_as_nobody", path)
    assert "StoreUnavailableError" in said
    assert "cannot be written" in said


@pytest.mark.parametrize(
    "options",
    [
        {"durability": "none"},
        {"size_bytes_max": 0},
        {"free_bytes_min": -1},
        {"replay_entries_max": 0},
        {"replay_window_seconds": -1},
    ],
)
def test_options_are_checked_and_nothing_is_made(path, options: dict[str, Any]):
    [name] = options
    with pytest.raises(InvalidArgumentError) as raised:
        SqliteLightningStore(path, **options)
    assert raised.value.details["field"] == name
    assert not path.exists()


# --- What it holds when things go wrong ------------------------------------------------------------------------------


async def fill(store: SqliteLightningStore, text: str) -> list[Rollout]:
    """Store as many as there is room for."""
    made: list[Rollout] = []
    while True:
        try:
            made += [await store.enqueue_rollout(text)]
        except ResourceExhaustedError:
            return made


@pytest.mark.asyncio
async def test_a_full_file_refuses_the_operation_that_needs_room_and_no_other(path):
    """All three are one group, and the full file ends its transaction."""
    text = "x" * 100_000
    with SqliteLightningStore(path, clock=FakeClock(), size_bytes_max=1_000_000) as store:
        made = [await store.enqueue_rollout("first")]
        before = await store.statistics()
        small, large, also_small = await asyncio.gather(
            store.get_next_span_sequence_id(made[0].rollout_id, "at-1"),
            store.enqueue_rollout(text * 12),
            store.get_next_span_sequence_id(made[0].rollout_id, "at-1"),
            return_exceptions=True,
        )
        assert {small, also_small} == {1, 2}
        assert isinstance(large, ResourceExhaustedError)
        assert "no room left" in str(large)
        assert (await store.statistics())["total_bytes"] == before["total_bytes"]
    with SqliteLightningStore(path) as store:
        assert [one.input for one in await store.query_rollouts()] == ["first"]
        assert (await store.statistics())["total_rollouts"] == 1


@pytest.mark.asyncio
async def test_past_its_limit_a_file_takes_reports_and_deletions_and_nothing_new(path):
    text = "x" * 20_000
    with SqliteLightningStore(path, clock=FakeClock(), size_bytes_max=1_000_000) as store:
        running = await store.start_rollout("running")
        made = await fill(store, text)
        full = await store.statistics()
        assert full["disk_used_bytes"] > full["disk_limit_bytes"] == 1_000_000
        assert full["disk_file_bytes"] >= full["disk_used_bytes"]
        assert full["disk_free_bytes"] > 0
        with pytest.raises(ResourceExhaustedError, match="delete finished rollouts, or raise the limit") as raised:
            await store.add_span(make_span(running))
        assert raised.value.details["limit"] == "disk_limit"
        assert raised.value.retry_after_seconds
        claimed = await store.dequeue_rollout(worker_id="w")
        assert claimed is not None
        for one in (running, claimed):
            await store.update_attempt(one.rollout_id, one.attempt.attempt_id, status="succeeded")
        await store.update_worker("w")
        assert len(await store.query_rollouts()) == len(made) + 1
        await store.delete_rollouts(rollout_ids=[one.rollout_id for one in made[:6]])
        await store.enqueue_rollout(text)


@pytest.mark.asyncio
async def test_past_its_limit_a_file_gives_up_what_is_not_retained_before_anything_is_refused(path):
    clock, text = FakeClock(), "x" * 20_000
    with SqliteLightningStore(path, clock=clock, size_bytes_max=1_000_000, retain_finished_seconds=60) as store:
        for _ in range(5):
            finished = await store.start_rollout(text)
            await store.update_attempt(finished.rollout_id, finished.attempt.attempt_id, status="succeeded")
        await fill(store, text)
        clock.advance(61)
        await store.enqueue_rollout(text)


@pytest.mark.asyncio
async def test_below_the_reserve_of_its_disk_nothing_new_is_taken(path):
    with SqliteLightningStore(path) as store:
        running = await store.start_rollout("running")
    with SqliteLightningStore(path, free_bytes_min=1 << 60) as store:
        with pytest.raises(ResourceExhaustedError, match="make room on the disk") as raised:
            await store.enqueue_rollout("more")
        assert raised.value.details["limit"] == "disk"
        await store.update_attempt(running.rollout_id, running.attempt.attempt_id, status="succeeded")
        assert await store.delete_rollouts(rollout_ids=[running.rollout_id]) == [running.rollout_id]


@pytest.mark.slow
def test_a_disk_that_fails_for_a_moment_loses_nothing_and_does_nothing_twice(path):
    assert output_of("lose_the_disk", path).splitlines() == ["StoreUnavailableError", "first second"]
    assert output_of("open_only", path) == "opened"


@pytest.mark.slow
def test_a_disk_that_is_full_refuses_what_needs_room_and_the_store_goes_on(tmp_path):
    """A real one, of forty megabytes."""
    mount = 'mount -t tmpfs -o size=40m tmpfs "$1" && shift && exec "$@"'
    spaces = [
        "unshare",
        "--mount",
        *(["--map-root-user"] if os.geteuid() else []),
        "sh",
        "-c",
        mount,
        "sh",
        str(tmp_path),
    ]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*spaces, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("no file system can be mounted here")
    filled = subprocess.run(
        [*spaces, *command("fill_the_disk", tmp_path / "store.db")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert filled.returncode == 0, filled.stderr
    assert int(filled.stdout) == CALLERS


@pytest.fixture(scope="session")
def failing_sync(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose fdatasync fails when it is told to."""
    folder = tmp_path_factory.mktemp("sync")
    library, compiler = folder / "sync.so", shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C compiler and LD_PRELOAD are needed")
    source = folder / "sync.c"
    source.write_text(FAILING_SYNC)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "SYNC_FAULT": str(folder / "fault")}


@pytest.mark.slow
def test_a_sync_that_fails_once_loses_nothing_and_does_nothing_twice(path, failing_sync):
    ended = subprocess.run(
        command("lose_a_sync", path), env=failing_sync, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left, rollout_id = ended.stdout.split()
    assert left == "False", "no sync has failed"
    assert "A COMMIT to" in ended.stderr
    with SqliteLightningStore(path) as store:
        with request_scope("id-2", repeated=True):
            assert asyncio.run(store.enqueue_rollout("second")).rollout_id == rollout_id
        assert [one.input for one in asyncio.run(store.query_rollouts())] == ["first", "second"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_syncs_that_fail_all_the_time_lose_nothing_either(path, failing_sync):
    await check_after_kill(path, 300, failing_sync)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 50, 500, 1500])
@pytest.mark.asyncio
async def test_what_was_acknowledged_survives_a_kill(path, lines):
    """Everything once, and what was not acknowledged wholly or not at all."""
    await check_after_kill(path, lines, None)


async def check_after_kill(path: Path, lines: int, environment: dict[str, str] | None) -> None:
    """Kill a process that has acknowledged so many calls, and look for all of them."""
    process = await asyncio.create_subprocess_exec(
        *command("work_until_killed", path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout is not None
    said = [(await process.stdout.readline()).decode().split() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    said += [line.split() for line in (await process.stdout.read()).decode().splitlines(keepends=True) if "\n" in line]
    await process.wait()
    steps: defaultdict[str, list[str]] = defaultdict(list)
    for step, name, what in said:
        steps[name].append(step)
        steps[name].append(what)
    with SqliteLightningStore(path) as store:
        stored = {one.input: one for one in await store.query_rollouts()}
        assert len(stored) == (await store.statistics())["total_rollouts"]
        for name, done in steps.items():
            rollout: Any = stored[name]
            if "claimed" in done:
                assert rollout.attempt.attempt_id == done[done.index("claimed") + 1]
            if "succeeded" in done:
                assert rollout.status == "succeeded"
            with request_scope(f"enqueue-{name}", repeated=True):
                assert (await store.enqueue_rollout(name)).rollout_id == rollout.rollout_id
        queued = [one.input for one in stored.values() if one.status == "queuing"]
        assert [one.input for one in await store.dequeue_many_rollouts(limit=100)] == queued
        assert len(stored) == (await store.statistics())["total_rollouts"]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute(COUNTED).fetchone() == connection.execute(TOTALS).fetchone()
    connection.close()
