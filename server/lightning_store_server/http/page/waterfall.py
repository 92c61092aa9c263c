"""The spans of an attempt under each other, each as a bar in time. Of ten thousand, a page shows some hundred: what it
takes grows with them only by what the store's records tell, and no document is read that is not shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lightning_store.backends.records import SpanRecord
from lightning_store_server.rewards import nested

SPANS_MAX: Final = 10_000
"""Spans that are looked at, the first ones."""
ROWS: Final = 200
"""Spans of one page."""
BAR_WIDTH: Final = 1000.0
BAR_MIN: Final = 2.0
DEPTH_SHOWN_MAX: Final = 12
_ERROR: Final = b'"ERROR"'


@dataclass(frozen=True, slots=True)
class Row:
    """One span, drawn."""

    record: SpanRecord
    depth: int
    x: float
    width: float
    seconds: float | None
    is_error: bool
    on_path: bool
    """Whether it is on the slowest path."""


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Some rows of all."""

    rows: Sequence[Row]
    first: int
    """How many come before them."""
    matching: int
    total: int
    errors: int
    seconds: float
    """From the first start to the last end."""

    @property
    def next(self) -> int | None:
        reached = self.first + len(self.rows)
        return reached if reached < self.matching else None

    @property
    def previous(self) -> int | None:
        return max(0, self.first - ROWS) if self.first else None


def waterfall(
    spans: Sequence[SpanRecord], total: int, *, first: int = 0, name: str = "", errors_only: bool = False
) -> Waterfall:
    """Draw the spans of an attempt.

    Args:
        spans: All of them, or the first ones.
        total: How many there are.
        first: How many rows to skip.
        name: Only spans whose name has this in it.
        errors_only: Only spans that ended with an error.
    """
    starts = [one.start_time for one in spans if one.start_time is not None]
    ends = [one.end_time for one in spans if one.end_time is not None]
    begin = min(starts, default=0.0)
    seconds = max(0.0, max(ends, default=begin) - begin)
    path = slowest_path(spans)
    rows = []
    errors = 0
    wanted = name.lower()
    in_order = sorted(spans, key=lambda one: (one.start_time or 0.0, one.sequence_id or 0))
    for depth, record in nested(in_order, lambda one: (one.span_id, one.parent_id)):
        is_error = _ERROR in record.document
        errors += is_error
        if (errors_only and not is_error) or wanted not in record.name.lower():
            continue
        rows.append((record, depth, is_error))
    shown = [
        _row(record, depth, begin, seconds, is_error, record.span_id in path)
        for record, depth, is_error in rows[first : first + ROWS]
    ]
    return Waterfall(shown, min(first, len(rows)), len(rows), total, errors, seconds)


def slowest_path(spans: Sequence[SpanRecord]) -> frozenset[str]:
    """From the longest root down, each time the child that ends last: what the whole waited for."""
    known = {one.span_id for one in spans}
    children: defaultdict[str | None, list[SpanRecord]] = defaultdict(list)
    for one in spans:
        children[one.parent_id if one.parent_id in known else None].append(one)
    path: set[str] = set()
    present = max(children[None], key=lambda one: _length(one) or 0.0, default=None)
    while present is not None and present.span_id not in path:
        path.add(present.span_id)
        present = max(children[present.span_id], key=lambda one: one.end_time or 0.0, default=None)
    return frozenset(path)


def _row(record: SpanRecord, depth: int, begin: float, seconds: float, is_error: bool, on_path: bool) -> Row:
    length = _length(record)
    scale = BAR_WIDTH / seconds if seconds else 0.0
    x = ((record.start_time or begin) - begin) * scale
    width = max(BAR_MIN, (length or 0.0) * scale)
    x = min(x, BAR_WIDTH - BAR_MIN)
    return Row(
        record,
        min(depth, DEPTH_SHOWN_MAX),
        round(x, 1),
        round(min(width, BAR_WIDTH - x), 1),
        length,
        is_error,
        on_path,
    )


def _length(record: SpanRecord) -> float | None:
    if record.start_time is None or record.end_time is None:
        return None
    return max(0.0, record.end_time - record.start_time)
