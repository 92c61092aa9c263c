"""The commands that work on a PostgreSQL database itself: export, import, migrate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg

from lightning_store.backends.postgres.connections import migrations
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store_server.cli.root import root
from tests.cli.conftest import cli_runner
from tests.durability.test_compatibility import EXPORTS
from tools.postgres_server import PostgresServer


def run(*arguments: str) -> tuple[int, str]:
    result = cli_runner().invoke(root, arguments, catch_exceptions=False)
    return result.exit_code, result.stdout + result.stderr


def beside_a_server(postgres: PostgresServer, name: str, *arguments: str) -> tuple[int, str]:
    """The outcome of a command while a server has rules of its own, which must hold for the command too."""

    async def serving() -> tuple[int, str]:
        store = await PostgresEngineStore.open(postgres.dsn(), namespace=name, strict=True, replay_window_seconds=7.0)
        try:
            return await asyncio.to_thread(run, *arguments)
        finally:
            await store.aclose()

    return asyncio.run(serving())


def executed(postgres: PostgresServer, statement: str) -> Any:
    async def execute() -> Any:
        connection = await asyncpg.connect(postgres.dsn())
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    return asyncio.run(execute())


def test_export_and_import(postgres: PostgresServer, namespace: str, tmp_path: Path) -> None:
    one, other = ("--database", postgres.dsn(), "--namespace"), f"{namespace}_other"
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    missing, said = run("export", *one, namespace, "--output", str(first))
    assert (missing, f"no namespace {namespace}" in said) == (66, True)
    assert executed(postgres, f"SELECT FROM pg_namespace WHERE nspname = 'lightning_store_{namespace}'") == []

    counts = "8 rollouts, 6 spans, 2 resources, 3 workers"
    assert run("import", str(EXPORTS[0]), *one, namespace) == (0, f"imported {counts}\n")
    code, said = beside_a_server(postgres, namespace, "export", *one, namespace, "--output", str(first))
    assert (code, said) == (0, f"exported {counts}\n")
    code, said = beside_a_server(postgres, other, "import", str(first), *one, other)
    assert (code, said) == (0, f"imported {counts}\n")
    assert run("export", *one, other, "--output", str(second))[0] == 0
    one_export, other_export = (sorted(path.read_text().splitlines()[1:]) for path in (first, second))
    assert one_export == other_export


def test_migrate(postgres: PostgresServer, namespace: str) -> None:
    named = ("migrate", "--database", postgres.dsn(), "--namespace", namespace)
    code, said = run(*named)
    assert (code, f"no namespace {namespace}" in said) == (66, True)
    executed(postgres, f"CREATE SCHEMA lightning_store_{namespace}")
    newest = max(migrations())
    assert run(*named) == (0, f"namespace {namespace} had format 0 and has format {newest}\n")
    assert run(*named) == (0, f"namespace {namespace} has format {newest} already\n")


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    for command in (("export",), ("migrate",)):
        code, said = run(*command, "--database", f"postgresql://u:secret@/d?host={tmp_path}")
        assert code == 69
        assert "cannot be reached" in said
        assert "secret" not in said
