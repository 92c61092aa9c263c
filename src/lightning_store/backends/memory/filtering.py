"""Filter, sort and page records that are held in memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from lightning_store.backends.base import Rows
from lightning_store.backends.matching import matches
from lightning_store.loops import Slicer
from lightning_store.queries import Query

T = TypeVar("T")

FEW_ROWS: Final = 2000
"""So many are looked through at a stretch: some milliseconds."""
SLICE_ROWS: Final = 250
"""Of more, so many before others may have their turn."""
SORTED_ROWS: Final = 5000
"""Rows that are sorted at a stretch; sorted ones are merged."""


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


class Candidate(NamedTuple, Generic[T]):
    """A record that a query selects."""

    record: T
    attempt: object | None
    """The latest attempt, if the record is a rollout that has one."""


async def select_in_slices(
    records: Sequence[T], query: Query[Any], attempts: Sequence[object | None] | None = None
) -> Rows[Candidate[T]]:
    """As ``select``, with other calls in between. The lists are of one moment, and do not change.

    Args:
        records: What to select from.
        query: What to select.
        attempts: The latest attempt of each, if the records are rollouts.
    """
    slicer = Slicer()
    rows: list[Candidate[T]] = []
    for start in range(0, len(records), SLICE_ROWS):
        await slicer.breathe()
        some = slice(start, start + SLICE_ROWS)
        pairs = zip(records[some], repeat(None) if attempts is None else attempts[some], strict=False)
        rows += (Candidate(record, attempt) for record, attempt in pairs if matches(record, query, attempt))
    total = len(rows)
    end = total if query.limit < 0 else min(query.offset + query.limit, total)
    if query.sort_by is not None:
        rows = await _sorted_in_slices(rows, query, query.sort_by, end, slicer)
    elif query.descending:
        rows.reverse()
    return Rows(rows[query.offset : end], total)


async def _sorted_in_slices(
    rows: list[Candidate[T]], query: Query[Any], field: str, end: int, slicer: Slicer
) -> list[Candidate[T]]:
    """The first rows in the order of the query, up to ``end``."""
    key = _sort_key(rows, f"record.{field}", query.none_first)
    runs = []
    for start in range(0, len(rows), SORTED_ROWS):
        await slicer.breathe()
        run = rows[start : start + SORTED_ROWS]
        run.sort(key=key, reverse=query.descending)
        runs.append(run)
    if len(runs) == 1:
        return runs[0]
    found: list[Candidate[T]] = []
    for one in heapq.merge(*runs, key=key, reverse=query.descending):
        if len(found) == end:
            break
        if len(found) % SLICE_ROWS == 0 and slicer.is_over():
            await slicer.next_turn()
        found.append(one)
    return found


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
