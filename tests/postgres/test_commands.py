"""The commands that work on a PostgreSQL database itself: export, import, migrate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg

from lightning_store.backends.postgres.checking import RULES, violations_of
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


DAMAGE = {
    "UPDATE meta SET value = ''": "the store has an id",
    "UPDATE log SET spans = 7": "log.spans is what is stored",
    "UPDATE log SET tallies = '[[], []]'": "log.tallies are what is stored",
    "UPDATE log SET last_attempt = 0": "log.last_attempt is not below a number that is in use",
    "DELETE FROM payloads": "each rollout has its payloads",
    "UPDATE payloads SET rollout = rollout + 100": "spans and marks have their rollout",
    "UPDATE rollouts SET end_reason = NULL": "why a rollout did not succeed",
    "DELETE FROM queue": "a queued rollout is in the queue, in its place, or waits for its retry",
    "UPDATE queue SET position = position + 100": "what is in the queue is a queued rollout",
    "DELETE FROM completions": "a rollout is terminal if and only if",
    "UPDATE completions SET position = position + 100": "what is among the completions",
    "UPDATE attempts SET sequence_id = 2": "the attempts of a rollout are numbered 1, 2, 3, …",
    "UPDATE rollouts SET held = true": "what is held is queued, in a group of a run that has bounds",
    "UPDATE rollouts SET consumers = 1": "a rollout knows how many consumers have consumed it",
    "UPDATE rollouts SET uncounted_attempts = 1": "a rollout knows how many of its attempts do not count",
    "UPDATE rollouts SET latest_attempt_id = 'x'": "a rollout names its latest attempt, if it has any",
    "UPDATE spans SET attempt = attempt + 100": "a span is of an attempt of its rollout",
    "UPDATE rollouts SET last_sequence = 0": "a rollout's span counter is not below the number of a span",
    "DELETE FROM spans": "a rollout without spans counts no bytes of them",
    "UPDATE log SET latest_resources = 'x'": "the latest resources exist",
    "DELETE FROM attempts": "a worker holds an attempt that exists, or none",
}
"""What is done to the data, and part of the rule that it violates."""


def test_check(postgres: PostgresServer, namespace: str) -> None:
    named = ("check", "--database", postgres.dsn(), "--namespace", namespace)
    code, said = run(*named)
    assert (code, f"no namespace {namespace}" in said) == (66, True)
    assert run(*named, "--quick")[0] == 2
    run("import", str(EXPORTS[0]), *named[1:])
    code, said = beside_a_server(postgres, namespace, *named)
    assert (code, said) == (0, f"namespace {namespace} is sound\n")
    schema = f"lightning_store_{namespace}"

    async def damaged() -> dict[str, set[str]]:
        """The rules that each statement violates, of which none is committed."""
        connection = await asyncpg.connect(postgres.dsn())
        try:
            await connection.execute(f"SET search_path = {schema}")
            found = {}
            for statement in DAMAGE:
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute(statement)
                found[statement] = {one.rule for rule in RULES for one in await violations_of(connection, rule)}
                await transaction.rollback()
            return found
        finally:
            await connection.close()

    for statement, violated in asyncio.run(damaged()).items():
        assert any(DAMAGE[statement] in rule for rule in violated), statement
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
