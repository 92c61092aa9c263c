"""One PostgreSQL server for each test process, and a database of its own for each store."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
import pytest_asyncio

from tools.postgres_server import PostgresServer

_numbers = itertools.count()

CONNECT_SECONDS = 600
"""A busy machine may take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/postgres/" in item.nodeid:
            item.add_marker("postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest_asyncio.fixture(loop_scope="function")
async def namespace(postgres: PostgresServer) -> AsyncIterator[str]:
    """That of no other test."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    yield name
    connection = await asyncpg.connect(postgres.dsn(), timeout=CONNECT_SECONDS)
    try:
        schemas = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, $1)", f"lightning_store_{name}"
        )
        for (schema,) in schemas:
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
    finally:
        await connection.close()
