"""Conditions for which PostgreSQL has to look rows up in an index, whatever it believes of the tables."""

from __future__ import annotations


def looked_up(column: str, value: str) -> str:
    """The condition that a column of one table has a value of another one, or of what a statement was given.

    PostgreSQL looks it up in the index of the column, for one value after the other. A plain ``column = value`` lets it
    read all of the table and join what it finds, which is as good while the table is all but empty; the plan is still
    there when it no longer is.
    """
    return f"{column} = ANY (ARRAY[{value}])"


def row_of(table: str, name: str, **key: str) -> str:
    """Joins the row of a table that has a key of several columns.

    For the same reason as above it is a subquery, which ``OFFSET 0`` keeps one.

    Args:
        table: Where the row is.
        name: What it is called in the statement.
        key: For each column of the key a column of the tables before it, or a parameter.
    """
    condition = " AND ".join(f"{column} = {value}" for column, value in key.items())
    return f"CROSS JOIN LATERAL (SELECT * FROM {table} WHERE {condition} OFFSET 0) {name}"
