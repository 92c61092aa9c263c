"""The commands that work on the file of a store, and their exit codes."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lightning_store.errors import InternalError, ResourceExhaustedError, StoreError, StoreUnavailableError
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store_server.cli.exit_codes import exit_code_of
from tests.cli.conftest import Run


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A store with something in it."""
    path = tmp_path / "store.db"
    with SqliteLightningStore(path) as store:
        asyncio.run(store.enqueue_rollout("task"))
    return f"sqlite:{path}"


def test_backup_check_restore(run: Run, database: str, tmp_path: Path) -> None:
    copy, restored = tmp_path / "copy.db", tmp_path / "restored.db"
    result = run("backup", "--database", database, "--to", str(copy))
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.match(rf"backed up .*store.db to {copy}: [\d.]+KiB\n", result.stdout)
    assert run("check", "--database", f"sqlite:{copy}").stdout == f"{copy} is sound\n"
    assert run("restore", str(copy), env={"LIGHTNING_STORE_DATABASE": f"sqlite:{restored}"}).exit_code == 0
    result = run("restore", str(copy), "--database", f"sqlite:{restored}")
    assert result.exit_code == 73
    assert "is there already" in result.stderr
    assert run("restore", str(copy), "--database", f"sqlite:{restored}", "--overwrite").exit_code == 0


def test_check_tells_what_is_wrong(run: Run, database: str) -> None:
    with closing(sqlite3.connect(database.removeprefix("sqlite:"))) as connection, connection:
        connection.execute("DELETE FROM queue")
    result = run("check", "--database", database)
    assert result.exit_code == 1
    assert re.match(
        r"violated: a queued rollout is in the queue, in its place, or waits for its retry: ro-\w+ \(queuing\)\n$",
        result.stdout,
    )
    result = run("check", "--database", database, "--json", "--quick")
    assert result.exit_code == 1
    [violation] = json.loads(result.stdout)["violations"]
    assert violation["rule"] == "a queued rollout is in the queue, in its place, or waits for its retry"


def test_vacuum_and_migrate(run: Run, database: str) -> None:
    assert re.search(r"was [\d.]+KiB and is [\d.]+KiB\n", run("vacuum", "--database", database).stdout)
    assert run("vacuum", "--database", database, "--incremental").exit_code == 0
    assert re.search(r"has format \d+ already\n", run("migrate", "--database", database).stdout)


COMMANDS = {
    "backup": ("backup", "--to", "{folder}/copy.db"),
    "check": ("check",),
    "vacuum": ("vacuum",),
    "migrate": ("migrate",),
    "serve": ("serve", "--port", "0"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_failure_has_an_exit_code(run: Run, database: str, command: str, tmp_path: Path) -> None:
    def code_with(path: Path) -> int:
        arguments = [one.format(folder=tmp_path) for one in COMMANDS[command]]
        result = run(*arguments, "--database", f"sqlite:{path}")
        assert "Traceback" not in result.stderr
        assert str(path) in result.stderr
        return result.exit_code

    assert code_with(tmp_path / "missing" / "store.db") == 66
    damaged, newer, other = tmp_path / "damaged.db", tmp_path / "newer.db", tmp_path / "other.db"
    damaged.write_bytes(b"no database\n" * 1000)
    assert code_with(damaged) == 65
    newer.write_bytes(Path(database.removeprefix("sqlite:")).read_bytes())
    for path, statement in ((newer, "PRAGMA user_version = 99"), (other, "CREATE TABLE theirs (x)")):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)
    assert code_with(newer) == 78
    assert code_with(other) == 65
    if command in ("vacuum", "migrate", "serve"):
        path = tmp_path / "store.db"
        with SqliteLightningStore(path):
            assert code_with(path) == 69


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailableError("x", problem="read_only"), 73),
        (StoreUnavailableError("x", problem="disk"), 74),
        (ResourceExhaustedError("x", limit="disk"), 74),
        (StoreUnavailableError("x"), 69),
        (InternalError("x"), 70),
    ],
)
def test_codes_of_errors(error: StoreError, code: int) -> None:
    assert exit_code_of(error) == code


def test_a_store_in_memory_has_no_file(run: Run) -> None:
    result = run("check", "--database", "memory:")
    assert result.exit_code == 2
    assert "has no file" in result.stderr


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        (("backup", "--to", "x"), "pg_dump --schema=lightning_store_NAMESPACE"),
        (("restore", "x"), "pg_restore"),
        (("vacuum",), "autovacuum"),
    ],
)
def test_what_postgresql_has_for_it_is_named(run: Run, command: tuple[str, ...], instead: str) -> None:
    result = run(*command, "--database", "postgresql://u:secret@h/d")
    assert result.exit_code == 2
    assert instead in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize("command", [("migrate",), ("export",), ("import", "x")])
def test_a_namespace_is_of_postgresql(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command, "--database", "sqlite:x.db", "--namespace", "n")
    assert result.exit_code == 2
    assert "it is for a PostgreSQL database" in result.stderr
    result = run(*command, "--database", "memory:")
    assert result.exit_code == 2
