"""Query arguments, checked once and turned into a :class:`~lightning_store.backends.base.Query`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel

from lightning_store.backends.base import Filter, Query
from lightning_store.errors import InvalidArgumentError, InvalidTypeError, UnsortableFieldError
from lightning_store.model import (
    Attempt,
    FilterLogic,
    ResourcesUpdate,
    Rollout,
    RolloutStatus,
    SortOrder,
    Span,
    Worker,
    WorkerStatus,
)


@dataclass(frozen=True, slots=True)
class Sortable:
    """Which fields of a model rows can be sorted by: those that a backend keeps as a column with an order."""

    model: type[BaseModel]
    columns: frozenset[str]

    def check(self, field: str) -> None:
        if field in self.columns:
            return
        legal = ", ".join(sorted(self.columns))
        name = self.model.__name__
        if field in self.model.model_fields:
            message = f"sort_by: {field!r} of a {name} has no order; sort by one of {legal}"
            raise UnsortableFieldError(message, field="sort_by")
        raise InvalidArgumentError(f"sort_by: a {name} has no field {field!r}; sort by one of {legal}", field="sort_by")


def _all_but(model: type[BaseModel], *unordered: str) -> Sortable:
    return Sortable(model, frozenset(model.model_fields).difference(unordered))


ROLLOUTS: Final = _all_but(Rollout, "input", "config", "metadata")
ATTEMPTS: Final = _all_but(Attempt, "metadata")
RESOURCES: Final = _all_but(ResourcesUpdate, "resources")
WORKERS: Final = _all_but(Worker, "heartbeat_stats")
SPANS: Final = Sortable(
    Span,
    frozenset(
        "rollout_id attempt_id sequence_id trace_id span_id parent_id name start_time end_time".split()  # noqa: SIM905
    ),
)

ROLLOUT_STATUSES: Final = frozenset(get_args(RolloutStatus))
WORKER_STATUSES: Final = frozenset(get_args(WorkerStatus))


def build_query(
    rows: Sortable,
    *,
    filters: Sequence[Filter | None] = (),
    filter_logic: FilterLogic = "and",
    sort_by: str | None,
    sort_order: SortOrder,
    limit: int,
    offset: int,
) -> Query:
    """The query of these arguments; InvalidArgumentError or UnsortableFieldError says which one is not legal."""
    if filter_logic not in get_args(FilterLogic):
        raise InvalidArgumentError(f"filter_logic is {filter_logic!r}; give 'and' or 'or'", field="filter_logic")
    if sort_order not in get_args(SortOrder):
        raise InvalidArgumentError(f"sort_order is {sort_order!r}; give 'asc' or 'desc'", field="sort_order")
    if limit < -1:
        raise InvalidArgumentError(f"limit is {limit}; give -1 for all rows, or 0 and up", field="limit")
    if offset < 0:
        raise InvalidArgumentError(f"offset is {offset}; give 0 and up", field="offset")
    if sort_by is not None:
        rows.check(sort_by)
    return Query(
        filters=tuple(f for f in filters if f is not None),
        logic=filter_logic,
        sort_by=sort_by,
        none_first=sort_by is not None and not sort_by.endswith("_time"),
        descending=sort_order == "desc",
        limit=limit,
        offset=offset,
    )


def one_of(
    field: str, argument: str, values: Sequence[str] | None, legal: frozenset[Any] | None = None
) -> Filter | None:
    """The filter "``field`` is one of ``values``"; None where the caller gave none."""
    if values is None:
        return None
    if isinstance(values, str):
        raise InvalidTypeError(f"{argument} is the text {values!r}; give a list", field=argument)
    wanted = frozenset(_text(argument, value) for value in values)
    if legal is not None and not wanted <= legal:
        unknown, known = (", ".join(sorted(map(repr, names))) for names in (wanted - legal, legal))
        raise InvalidArgumentError(f"{argument} has {unknown}; give some of {known}", field=argument)
    return Filter(field, "in", wanted)


def equals(field: str, value: str | None) -> Filter | None:
    """The filter "``field`` is ``value``"; None where the caller gave none."""
    return None if value is None else Filter(field, "equals", _text(field, value))


def contains(field: str, value: str | None) -> Filter | None:
    """The filter "``field`` has ``value`` in it"; None where the caller gave none."""
    return None if value is None else Filter(field, "contains", _text(f"{field}_contains", value))


def text_filter(argument: str, value: str | None) -> Filter | None:
    """The filter that the argument's name tells: ``name`` is equality, ``name_contains`` a substring."""
    field = argument.removesuffix("_contains")
    return equals(field, value) if field == argument else contains(field, value)


def _text(argument: str, value: str) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{argument} is {value!r}; give text", field=argument)
    return value
