"""Whether a record passes the filters of a query."""

from __future__ import annotations

from typing import Any

from lightning_store.labels import has_members
from lightning_store.queries import Filter, Query


def matches(record: object, query: Query[Any], attempt: object | None = None) -> bool:
    """Whether the filters hold for a record.

    Args:
        record: Of the kind that the query is about.
        query: Has the filters.
        attempt: The latest attempt, if the record is a rollout that has one.
    """
    if not query.filters:
        return True
    combine = all if query.filter_logic == "and" else any
    return combine(_passes(attempt if one.of_attempt else record, one) for one in query.filters)


def _passes(record: object | None, wanted: Filter) -> bool:
    value = None if record is None else getattr(record, wanted.field)
    match wanted.kind:
        case "in":
            return value in wanted.value
        case "equals":
            return bool(value == wanted.value)
        case "contains":
            return value is not None and wanted.value in value
        case "from":
            return value is not None and value >= wanted.value
        case "before":
            return value is not None and value < wanted.value
        case "members":
            return has_members(value, wanted.value)
