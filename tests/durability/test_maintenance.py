"""Backups, restoring them, checks, giving space back, migrations: of the file of a store, in use or not."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lightning_store import RolloutConfig
from lightning_store.backends.sqlite import file as database_file
from lightning_store.backends.sqlite import maintenance
from lightning_store.backends.sqlite.checking import RULES, violations_of
from lightning_store.backends.sqlite.maintenance import back_up, check, migrate, restore, vacuum
from lightning_store.backends.sqlite.network import network_type
from lightning_store.errors import (
    CursorUnknownError,
    InvalidArgumentError,
    StoreError,
    StoreUnavailableError,
    UnsupportedError,
)
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store.testing.contract.base import make_span
from tests.durability import damage


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


@pytest.fixture
def copy(tmp_path: Path) -> str:
    return str(tmp_path / "copy.db")


async def fill(store: SqliteLightningStore, rollouts: int = 6) -> None:
    """Some of everything."""
    await store.add_resources({})
    for number in range(rollouts):
        await store.enqueue_rollout(
            {"task": number, "text": "☃" * number},
            config=RolloutConfig(timeout_seconds=60),
            metadata={"lightning.run": f"☃ {number}"},
        )
    for status in ("succeeded", "failed", None):
        claimed = await store.dequeue_rollout(worker_id=f"w-{status}")
        assert claimed is not None
        await store.add_many_spans([make_span(claimed, number) for number in (1, 2)])
        if status is not None:
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status=status)
    await store.update_worker("w-None", {"load": 0.5})


def made(path: str) -> str:
    with SqliteLightningStore(path) as store:
        asyncio.run(fill(store))
    return path


def inputs(path: str) -> list[Any]:
    with SqliteLightningStore(path) as store:
        return [one.input for one in asyncio.run(store.query_rollouts())]


def violated(path: str) -> list[str]:
    return [one.rule for one in check(path)]


def folder_of(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


# --- Backups ---------------------------------------------------------------------------------------------------------


def test_a_backup_of_a_store_in_use_is_a_store(path, copy):
    with SqliteLightningStore(path) as store:
        asyncio.run(fill(store))
        size_bytes = back_up(path, copy)
        asyncio.run(store.enqueue_rollout("later"))
    assert os.stat(copy).st_size == size_bytes
    assert stat.S_IMODE(os.stat(copy).st_mode) == 0o600
    assert "copy.db-wal" not in folder_of(copy)
    assert violated(copy) == []
    assert inputs(copy) == inputs(path)[:-1]


def test_a_backup_under_load_ends_and_is_of_one_moment(path, copy):
    """What is written meanwhile neither holds it up nor is half in it."""
    with SqliteLightningStore(path, durability="normal") as store:
        stop = threading.Event()

        async def write() -> None:
            while not stop.is_set():
                claimed = await store.start_rollout("x" * 10_000)
                await store.add_span(make_span(claimed, 1))
                await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")

        async def fill_up() -> None:
            await asyncio.gather(*(store.start_rollout("x" * 100_000) for _ in range(150)))

        asyncio.run(fill_up())
        writer = threading.Thread(target=lambda: asyncio.run(write()))
        writer.start()
        steps: list[tuple[int, int]] = []
        try:
            size_bytes = back_up(path, copy, progress=lambda done, total: steps.append((done, total)))
        finally:
            stop.set()
            writer.join()
    assert len(steps) > 1
    assert steps[-1] == (size_bytes, size_bytes)
    assert violated(copy) == []
    assert violated(path) == []


def test_a_cursor_is_refused_by_a_copy(path, copy, tmp_path):
    async def cursor_of(store: SqliteLightningStore, after: str | None) -> str:
        stream: Any = store.watch_rollouts(after=after)
        try:
            return str((await anext(stream)).cursor)
        finally:
            await stream.aclose()

    with SqliteLightningStore(made(path)) as store:
        cursor = asyncio.run(cursor_of(store, None))
    back_up(path, copy)
    restored = str(tmp_path / "restored.db")
    restore(copy, restored)
    for name in (copy, restored):
        with SqliteLightningStore(name) as store, pytest.raises(CursorUnknownError):
            asyncio.run(cursor_of(store, cursor))


def test_a_backup_does_not_replace_anything(path, copy):
    Path(copy).write_text("precious")
    with pytest.raises(InvalidArgumentError, match="is there already"):
        back_up(made(path), copy)
    assert Path(copy).read_text() == "precious"


def test_a_backup_that_fails_leaves_nothing_behind(path, copy, monkeypatch):
    made(path)

    def told(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(path, copy, progress=told)
    assert not [name for name in folder_of(path) if name.endswith((".partial", "copy.db"))]


@pytest.mark.parametrize(
    ("content", "expected", "problem"),
    [
        (None, StoreUnavailableError, "missing"),
        (b"", InvalidArgumentError, "damaged"),
        (b"no database at all\n" * 1000, InvalidArgumentError, "damaged"),
    ],
)
def test_what_is_no_store_is_not_copied(path, copy, content: bytes | None, expected: type[StoreError], problem: str):
    if content is not None:
        Path(path).write_bytes(content)
    for call in (back_up, restore):
        with pytest.raises(expected) as raised:
            call(path, copy)
        assert raised.value.details["problem"] == problem
    assert not os.path.exists(copy)


# --- Restoring -------------------------------------------------------------------------------------------------------


def test_a_restored_store_is_as_the_backup(path, copy):
    back_up(made(path), copy)
    with SqliteLightningStore(path) as store:
        asyncio.run(store.enqueue_rollout("later"))
    with pytest.raises(InvalidArgumentError, match="is there already"):
        restore(copy, path)
    assert inputs(path)[-1] == "later"
    restore(copy, path, overwrite=True)
    assert violated(path) == []
    assert inputs(path) == inputs(copy)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_the_log_of_a_killed_store_does_not_survive_it(path, copy):
    """What is in the log would be read into the store that was put in its place."""
    back_up(made(path), copy)
    with SqliteLightningStore(path) as store:
        asyncio.run(store.enqueue_rollout("later"))
        logs = {ending: Path(path + ending).read_bytes() for ending in ("-wal", "-shm")}
    for ending, content in logs.items():
        Path(path + ending).write_bytes(content)
    restore(copy, path, overwrite=True)
    assert "later" not in inputs(path)
    assert violated(path) == []


def test_a_store_in_use_is_not_replaced(path, copy):
    back_up(made(path), copy)
    with SqliteLightningStore(path), pytest.raises(StoreUnavailableError, match="in use"):
        restore(copy, path, overwrite=True)


def test_a_damaged_backup_is_not_restored(path, copy):
    back_up(made(path), copy)
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("DELETE FROM attempts")
    before = Path(path).read_bytes()
    with pytest.raises(InvalidArgumentError, match="nothing was restored"):
        restore(copy, path, overwrite=True)
    assert Path(path).read_bytes() == before
    with pytest.raises(InvalidArgumentError, match="no copy of it"):
        restore(path, path, overwrite=True)


# --- Checking --------------------------------------------------------------------------------------------------------


def test_a_store_in_use_is_sound(path):
    with SqliteLightningStore(path) as store:
        asyncio.run(fill(store))
        assert violated(path) == []
        assert list(check(path, quick=True)) == []


HERE = {
    "rollout_tallies are what is stored": ["UPDATE rollout_tallies SET rollouts = 7"],
    "worker_tallies are what is stored": ["DELETE FROM worker_tallies"],
    "a request has one recorded reply": [
        "INSERT INTO replies SELECT number + 1000, request_id, 0, '', 0, '' FROM replies"
    ],
}
"""The rules of this database alone, likewise."""


def test_what_does_not_agree_is_found(path):
    with SqliteLightningStore(path) as store:
        asyncio.run(damage.fill(store))
    assert violated(path) == []
    statements = {**damage.VIOLATED, **HERE}
    assert {one.text for one in RULES} == {rule for rule, found in statements.items() if found}
    by_text = {one.text: one for one in RULES}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for rule, statement in ((rule, one) for rule, found in statements.items() for one in found):
            connection.execute("BEGIN")
            connection.execute(statement.format(totals="totals"))
            assert list(violations_of(connection, by_text[rule])), statement
            connection.execute("ROLLBACK")
        connection.execute("DELETE FROM labels WHERE rollout = 1")
    found = list(check(path))
    assert {one.rule for one in found} == {"the labels of rollouts are those of their metadata"}
    assert ['missing is lightning.run="☃" of ro-' in one.found for one in found] == [False, True]


def test_a_damaged_page_is_found(path):
    """In the middle of the file: it opens all the same."""
    with SqliteLightningStore(path) as store:
        asyncio.run(fill(store, 400))
    with closing(sqlite3.connect(path)) as connection:
        [root] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rollouts_by_deadline'").fetchone()
    with open(path, "r+b") as file:
        file.seek((root - 1) * database_file.PAGE_BYTES)
        file.write(b"\xff" * database_file.PAGE_BYTES)
    assert set(violated(path)) == {"the file is sound"}


def test_many_of_one_kind_are_counted(path):
    with SqliteLightningStore(path) as store:
        asyncio.run(fill(store, 20))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM queue")
    found = list(check(path))
    assert len(found) == 11
    assert found[-1].found == "and 7 more"


# --- Space and formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("incremental", [False, True])
def test_space_that_is_free_is_given_back(path, incremental):
    async def fill_and_delete(store: SqliteLightningStore) -> None:
        large = await store.start_rollout("large")
        await store.add_many_spans([make_span(large, number, attributes={"a": "x" * 100_000}) for number in range(30)])
        await store.enqueue_rollout("kept")
        await store.delete_rollouts([large.rollout_id])

    with SqliteLightningStore(path) as store:
        asyncio.run(fill_and_delete(store))
        with pytest.raises(StoreUnavailableError, match="in use"):
            vacuum(path, incremental=incremental)
    sizes = vacuum(path, incremental=incremental)
    assert sizes.after < sizes.before / 10
    assert sizes.after == os.stat(path).st_size
    assert violated(path) == []
    assert inputs(path) == ["kept"]


@pytest.fixture
def next_format(monkeypatch: pytest.MonkeyPatch) -> int:
    """A version of the program that has one step more."""
    steps = (*database_file.migrations(), "CREATE TABLE later (x);")
    for module in (database_file, maintenance):
        monkeypatch.setattr(module, "migrations", lambda: steps)
    return len(steps)


def test_an_older_file_is_brought_up_to_date(path, request):
    made(path)
    newest = request.getfixturevalue("next_format")
    with pytest.raises(UnsupportedError, match="migrate it first"):
        violated(path)
    assert migrate(path) == (newest - 1, newest)
    assert migrate(path) == (newest, newest)
    assert violated(path) == []


def test_a_newer_file_is_refused_by_everything_and_left_alone(path, copy, monkeypatch, next_format):
    made(path)
    monkeypatch.undo()
    before = Path(path).read_bytes()
    for call in (lambda: back_up(path, copy), lambda: violated(path), lambda: vacuum(path), lambda: migrate(path)):
        with pytest.raises(UnsupportedError, match=f"has format {next_format}"):
            call()
    assert Path(path).read_bytes() == before
    assert not os.path.exists(copy)


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    made(path)
    before = database_file.migrations()
    steps = (*before, "CREATE TABLE later (x); CREATE TABLE rollouts (x);")
    monkeypatch.setattr(database_file, "migrations", lambda: steps)
    with pytest.raises(StoreUnavailableError, match="already exists"):
        migrate(path)
    monkeypatch.setattr(database_file, "migrations", lambda: before)
    assert violated(path) == []


# --- The file under an open store ------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_taken_away_stops_calls_until_it_is_back(path, copy, replaced):
    with SqliteLightningStore(path) as store:
        asyncio.run(store.enqueue_rollout("first"))
        os.rename(path, copy)
        if replaced:
            Path(path).write_bytes(b"")
        for call in (store.enqueue_rollout("lost"), store.query_rollouts()):
            with pytest.raises(StoreUnavailableError, match="removed or replaced") as raised:
                asyncio.run(call)
        assert raised.value.details["problem"] == "replaced"
        os.replace(copy, path)
        asyncio.run(store.enqueue_rollout("second"))
    assert inputs(path) == ["first", "second"]


def test_network_file_systems_are_known(tmp_path, path, monkeypatch, caplog):
    mounts = tmp_path / "mountinfo"
    lines = [
        "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw",
        "23 22 0:40 / /data rw,relatime shared:1 - nfs4 server:/export rw",
        "24 23 8:2 / /data/local rw,relatime - xfs /dev/sdb1 rw",
        "25 22 0:41 / /my\\040share rw - cifs //host/share rw",
    ]
    mounts.write_text("\n".join(lines) + "\n")
    expected = {
        "/store.db": None,
        "/data/store.db": "nfs4",
        "/database/store.db": None,
        "/data/local/store.db": None,
        "/my share/store.db": "cifs",
    }
    assert {one: network_type(one, str(mounts)) for one in expected} == expected
    assert network_type("/data/store.db", str(tmp_path / "missing")) is None
    monkeypatch.setattr("lightning_store.backends.sqlite.backend.network_type", lambda _: "nfs4")
    SqliteLightningStore(path).close()
    assert "is on a nfs4 file system" in caplog.text
