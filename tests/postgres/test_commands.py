"""The commands that work on a PostgreSQL database itself: export, import, check, migrate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lightning_store.backends.postgres.checking import RULES, violations_of
from lightning_store.backends.postgres.migrating import migrations
from lightning_store.postgres_store import PostgresEngineStore, check_namespace
from lightning_store_server.cli.root import root
from tests.cli.conftest import cli_runner
from tests.durability import damage
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


HERE = {
    "rollout_tallies are what is stored": ["UPDATE log SET tallies = '[[], []]'"],
    "worker_tallies are what is stored": ["UPDATE log SET tallies = '[[], []]'"],
    **{
        f"{table}_number_seq.last_value is not below a number that is in use": [
            f"UPDATE {table} SET number = number + 1000"
        ]
        for table in ("resources", "workers")
    },
    "totals.queue_from is a lower bound": ["UPDATE queue SET position = position - 1000"],
    "totals.due_from is a lower bound": ["UPDATE rollouts SET deadline = 0 WHERE deadline IS NOT NULL"],
    "a worker has one row, and the next one comes after it": [
        "INSERT INTO workers (worker_id, version, status) SELECT worker_id, version - 1, status FROM workers",
        "UPDATE workers SET version = version + 1000",
    ],
    "rollouts.payload_bytes is what is stored": ["UPDATE payloads SET input_json = input_json || ' '"],
    "attempts.size_bytes is what is stored": ["UPDATE attempts SET size_bytes = size_bytes + 1"],
}
"""The rules of this database alone, each with a statement after which it is violated."""


@pytest.mark.asyncio
async def test_what_does_not_agree_is_found(postgres: PostgresServer, namespace: str) -> None:
    store = await PostgresEngineStore.open(postgres.dsn(), namespace=namespace)
    try:
        await damage.fill(store)
        schema = store.schema
    finally:
        await store.aclose()
    statements = {**damage.VIOLATED, **HERE}
    assert {one.text for one in RULES} == {rule for rule, found in statements.items() if found}
    connection = await asyncpg.connect(postgres.dsn())
    try:
        await connection.execute(f"SET search_path = {schema}")
        async with connection.transaction(readonly=True):
            assert [found for one in RULES for found in await violations_of(connection, one)] == []
        by_text = {one.text: one for one in RULES}
        for rule, statement in ((rule, one) for rule, found in statements.items() for one in found):
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(statement.format(totals="log"))
            assert await violations_of(connection, by_text[rule]), statement
            await transaction.rollback()
        await connection.execute(f"DELETE FROM labels WHERE rollout = {damage.FIRST}")
    finally:
        await connection.close()
    found = await check_namespace(postgres.dsn(), namespace)
    assert {one.rule for one in found} == {"the labels of rollouts are those of their metadata"}
    assert ['missing is lightning.run="☃" of ro-' in one.found for one in found] == [False, True]


def test_check(postgres: PostgresServer, namespace: str) -> None:
    named = ("check", "--database", postgres.dsn(), "--namespace", namespace)
    code, said = run(*named)
    assert (code, f"no namespace {namespace}" in said) == (66, True)
    assert run(*named, "--quick")[0] == 2
    run("import", str(EXPORTS[0]), *named[1:])
    code, said = beside_a_server(postgres, namespace, *named)
    assert (code, said) == (0, f"namespace {namespace} is sound\n")
    schema = f"lightning_store_{namespace}"
    executed(postgres, f"DELETE FROM {schema}.queue")
    code, said = run(*named)
    assert code == 1
    assert said.count("violated: a queued rollout is in the queue, in its place, or waits for its retry: ro-") == 5
    executed(postgres, f"INSERT INTO {schema}.format VALUES (999)")
    assert run(*named)[0] == 78


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    for command in (("export",), ("migrate",)):
        code, said = run(*command, "--database", f"postgresql://u:secret@/d?host={tmp_path}")
        assert code == 69
        assert "cannot be reached" in said
        assert "secret" not in said
