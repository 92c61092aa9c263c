"""The tables of a namespace, and their format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from lightning_store.backends.postgres.connections import Settings, close
from lightning_store.backends.postgres.errors import store_errors
from lightning_store.backends.postgres.membership import GONE_SECONDS, alive
from lightning_store.errors import StoreUnavailableError, UnsupportedError

VERSION_MIN: Final = 14
"""Of PostgreSQL."""
FORMAT_OF_MEMBERS: Final = 2
"""The first that tells which servers are alive."""
STEP_SECONDS: Final = 86400.0
"""A step may have to write a table anew, and to wait for somebody who reads it."""
_MIGRATION: Final = re.compile(r"(\d{3})\.sql")


async def migrate(settings: Settings, *, create: bool = True) -> tuple[int, int]:
    """Bring the namespace's tables to the format of this program. Several servers may do so at once.

    Args:
        settings: How to reach the database.
        create: Whether to make the tables where there are none.

    Returns:
        The version of the format before and after; 0 where there were no tables.

    Raises:
        InvalidArgumentError: There are no tables, and none are to be made.
        UnsupportedError: A newer version of the program has written the tables, or the database is too old.
        StoreUnavailableError: The database cannot be reached, or servers that are alive know an older format only.
    """
    connection = await settings.connect()
    try:
        with store_errors():
            if connection.get_server_version().major < VERSION_MIN:
                raise UnsupportedError(f"this is PostgreSQL {connection.get_server_version().major}; it takes 14")
            async with connection.transaction(isolation="read_committed"):  # reads what the holder of the lock did
                await connection.execute(settings.lock)
                if not create and not await connection.fetchval("SELECT to_regnamespace($1)::oid", settings.schema):
                    raise settings.missing()
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {settings.schema}")
                await connection.execute(f"SET LOCAL search_path = {settings.schema}")
                await connection.execute("CREATE TABLE IF NOT EXISTS format (version integer PRIMARY KEY)")
                present: Any = await connection.fetchval("SELECT coalesce(max(version), 0) FROM format")
                steps = migrations()
                if present > max(steps):
                    message = f"the format of {settings.schema} is {present}, and this program knows {max(steps)}"
                    raise UnsupportedError(f"{message}; use the version of the program that wrote it, or a newer one")
                if FORMAT_OF_MEMBERS <= present < max(steps):
                    _refuse_if_served(settings, await alive(connection), present)
                for version in sorted(one for one in steps if one > present):
                    await connection.execute(steps[version], timeout=STEP_SECONDS)
                    await connection.execute("INSERT INTO format VALUES ($1)", version)
                return int(present), max(steps)
    finally:
        await close(connection)


def migrations() -> dict[int, str]:
    """The steps to the present format, by number."""
    folder = files("lightning_store.backends.postgres").joinpath("migrations")
    found = ((_MIGRATION.fullmatch(one.name), one) for one in folder.iterdir())
    return {int(match[1]): one.read_text(encoding="utf-8") for match, one in found if match is not None}


def _refuse_if_served(settings: Settings, names: Sequence[str], present: int) -> None:
    """Their next transaction would meet tables that they do not know."""
    if names:
        raise StoreUnavailableError(
            f"the namespace {settings.namespace} has format {present}, and is served by {', '.join(names)}, which knows"
            " no newer one: stop all its servers first, then start this version. One that was killed counts as gone"
            f" after {GONE_SECONDS:g} s",
            problem="in_use",
            server=names[0],
        )
