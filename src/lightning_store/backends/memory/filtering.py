"""Filter, sort and page records that are held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

from lightning_store.backends.base import Rows
from lightning_store.backends.matching import matches
from lightning_store.queries import Query

T = TypeVar("T")


def select(
    records: Iterable[T], query: Query[Any], attempt_of: Callable[[T], object | None] = lambda _: None
) -> Rows[T]:
    """The page of ``records``, given in order of insertion, that ``query`` asks for.

    Args:
        records: What to select from.
        query: What to select.
        attempt_of: The latest attempt, if the records are rollouts.
    """
    rows = (
        [record for record in records if matches(record, query, attempt_of(record))] if query.filters else list(records)
    )
    if query.sort_by is not None:
        rows.sort(key=_sort_key(rows, query.sort_by, query.none_first), reverse=query.descending)
    elif query.descending:
        rows.reverse()
    end = None if query.limit < 0 else query.offset + query.limit
    return Rows(rows[query.offset : end], len(rows))


def page_of_all(records: Iterable[T], total: int, query: Query[Any]) -> Rows[T]:
    """As ``select`` for a query with neither filter nor order, without touching the rows past the page."""
    end = total if query.limit < 0 else min(query.offset + query.limit, total)
    return Rows(list(islice(records, min(query.offset, end), end)), total)


def is_plain(query: Query[Any]) -> bool:
    """Whether the query takes rows as they were inserted."""
    return not query.filters and query.sort_by is None and not query.descending


def _sort_key(records: Iterable[object], field: str, none_first: bool) -> Callable[[Any], Any]:
    value_of = attrgetter(field)
    if None not in map(value_of, records):
        return value_of  # as a rule, and then all of it is done in C

    def key(record: object) -> tuple[bool, Any]:
        value = value_of(record)
        return ((value is None) != none_first, 0 if value is None else value)

    return key
