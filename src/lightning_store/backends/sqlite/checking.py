"""What has to be true of the data in a database: SQLite's own checks of the file, and what the store relies on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from sqlite3 import Connection, DatabaseError
from typing import Final

from lightning_store.backends import checking
from lightning_store.backends.base import Violation
from lightning_store.backends.checking import Rule, told
from lightning_store.backends.records import id_bytes, text_bytes
from lightning_store.backends.sqlite.errors import is_damage

RULES: Final = (
    *checking.RULES,
    checking.other_bytes("text_bytes({})".format, "id_bytes({})".format),
    checking.labels("json_group_array({})".format, json.loads),
    Rule(
        "a request has one recorded reply",
        "SELECT request_id FROM replies GROUP BY request_id HAVING count(*) > 1",
    ),
)


def violations(connection: Connection, *, quick: bool = False) -> Iterator[Violation]:
    """What is wrong, as it is found. First the file, then what the store relies on, in one state of the data.

    Args:
        connection: One that reads a database of the present format.
        quick: Whether to leave out what takes long: whether indexes agree with their tables.
    """
    connection.execute("BEGIN")
    try:
        damage = _damage(connection, quick)
        for found in damage:
            yield Violation("the file is sound", found)
        if not damage:  # else the rules would tell of it in other words
            for rule in RULES:
                yield from violations_of(connection, rule)
    finally:
        connection.execute("ROLLBACK")


def violations_of(connection: Connection, rule: Rule) -> Iterator[Violation]:
    """Of one rule.

    Args:
        connection: One that reads a database.
        rule: What to look for.
    """
    connection.create_function("text_bytes", 1, text_bytes, deterministic=True)
    connection.create_function("id_bytes", 1, id_bytes, deterministic=True)
    rows = connection.execute(rule.query.replace("IS DISTINCT FROM", "IS NOT"))  # SQLite before 3.39 knows the latter
    yield from told(rule, (found for row in rows for found in rule.find(*row)))


def _damage(connection: Connection, quick: bool) -> list[str]:
    """What SQLite finds, up to a hundred lines."""
    try:
        rows = connection.execute("PRAGMA quick_check" if quick else "PRAGMA integrity_check").fetchall()
    except DatabaseError as error:
        if is_damage(error):
            return [str(error)]
        raise
    return [found for (found,) in rows if found != "ok"]
