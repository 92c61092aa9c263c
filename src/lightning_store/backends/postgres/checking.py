"""What has to be true of the data of a namespace, whatever its servers have done."""

from __future__ import annotations

from typing import Final

from asyncpg import Connection

from lightning_store.backends import checking
from lightning_store.backends.base import Violation
from lightning_store.backends.checking import Rule, last, told
from lightning_store.backends.postgres.connections import PLANNED_FREELY, Settings, close
from lightning_store.backends.postgres.errors import store_errors
from lightning_store.backends.postgres.migrating import migrations
from lightning_store.backends.postgres.text import plain
from lightning_store.backends.records import ID_INCLUDED_BYTES, WIDEST_CHAR_BYTES
from lightning_store.errors import UnsupportedError

ROWS_AT_ONCE: Final = 1000
"""That are asked for at a time."""


def _text_bytes(text: str) -> str:
    widest = f"CASE WHEN octet_length({text}) = char_length({text}) THEN 1 ELSE {WIDEST_CHAR_BYTES} END"
    return f"coalesce(char_length({text}) * {widest}, 0)"


def _id_bytes(column: str) -> str:
    """Of an id that is stored with escapes, each for one character of ASCII: one without a UTF-8 form is refused."""
    text = rf"regexp_replace({column}, '\u0001[\u0001\u0002]', '.', 'g')"
    return f"greatest(0, {_text_bytes(text)} - {ID_INCLUDED_BYTES})"


def _number(table: str) -> Rule:
    """Inserted rows get numbers that no row has."""
    return last("last_value", f"SELECT max(number) FROM {table}", f"{table}_number_seq")


def _first(column: str, places: str) -> Rule:
    """Nothing comes before the place where one begins to look."""
    return Rule(
        f"totals.{column} is a lower bound",
        f"SELECT 'it is ' || {column} || ', the first is ' || ({places}) FROM totals WHERE {column} > ({places})",
    )


def _size(column: str, sized: str) -> Rule:
    """A size that is stored is that of what it is the size of: of the columns id, told and size that are selected."""
    query = f"SELECT id || ': it is ' || told || ', stored is ' || size FROM ({sized}) x WHERE told <> size"
    return Rule(f"{column} is what is stored", query)


PRELUDE: Final = """
    WITH totals AS (SELECT * FROM log ORDER BY id DESC LIMIT 1),
    rollout_tallies AS (
        SELECT one->>0 AS status, coalesce(one->>1, '') AS mode, (one->>2)::bigint AS rollouts
        FROM totals, json_array_elements(tallies::json->0) one
    ),
    worker_tallies AS (
        SELECT one->>0 AS status, (one->>1)::bigint AS workers
        FROM totals, json_array_elements(tallies::json->1) one
    )
"""
"""What the rules take for tables."""

RULES: Final = (
    *checking.RULES,
    checking.other_bytes(_text_bytes, _id_bytes),
    checking.labels("array_agg({})".format, lambda stored: map(plain, stored)),
    *map(_number, ("resources", "workers")),
    _first("queue_from", "SELECT min(position) FROM queue"),
    _first("due_from", "SELECT min(deadline) FROM rollouts"),
    Rule(
        "a worker has one row, and the next one comes after it",
        """
        SELECT worker_id FROM workers CROSS JOIN totals
        GROUP BY worker_id HAVING count(*) > 1 OR max(version) > max(totals.id)
        """,
    ),
    _size(
        "rollouts.payload_bytes",
        f"""
        SELECT rollout_id AS id, payload_bytes AS told, {checking.payload_bytes(_text_bytes)} AS size
        FROM rollouts r JOIN payloads p ON p.rollout = r.number
        """,
    ),
    _size(
        "attempts.size_bytes",
        f"""
        SELECT attempt_id AS id, size_bytes AS told, {checking.attempt_bytes(_text_bytes, _id_bytes)} AS size
        FROM attempts
        """,
    ),
)


async def violations(settings: Settings) -> list[Violation]:
    """What is wrong, in one state of the data, which servers may be changing.

    Args:
        settings: How to reach the database, and how long one rule may take.

    Raises:
        InvalidArgumentError: There is no such namespace.
        UnsupportedError: Another version of the program has written the tables.
        StoreUnavailableError: The database cannot be reached.
    """
    connection = await settings.connect()
    try:
        with store_errors():
            if not await connection.fetchval("SELECT to_regclass($1)::oid", f"{settings.schema}.format"):
                raise settings.missing()
            await connection.execute(f"{settings.begin_snapshot}; {PLANNED_FREELY}")
            present, known = await connection.fetchval("SELECT max(version) FROM format"), max(migrations())
            if present != known:
                message = f"the format of {settings.schema} is {present}, and this program checks {known}"
                raise UnsupportedError(f"{message}; `migrate` brings an older one up to date")
            return [found for rule in RULES for found in await violations_of(connection, rule)]
    finally:
        await close(connection)


async def violations_of(connection: Connection, rule: Rule) -> list[Violation]:
    """Of one rule.

    Args:
        connection: One that reads a namespace.
        rule: What to look for.
    """
    rows = connection.cursor(PRELUDE + rule.query, prefetch=ROWS_AT_ONCE)
    return list(told(rule, [found async for row in rows for found in rule.find(*row)]))
