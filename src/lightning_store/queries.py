"""Queries as objects: made once from the arguments of a ``query_…`` method, checked then, and handed down as they are
to the wire or to a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar, cast, get_args

from pydantic import BaseModel

from lightning_store import json_text
from lightning_store.arguments import check_id, check_optional_id, distinct_ids, wait_seconds
from lightning_store.errors import InvalidArgumentError, InvalidTypeError, UnsortableFieldError
from lightning_store.labels import member_text
from lightning_store.model import (
    GROUP_SIZE_MAX,
    POLICY_VERSIONS,
    TIME_MAX_SECONDS,
    Attempt,
    EndReason,
    FilterLogic,
    OnPartial,
    ResourcesUpdate,
    Rollout,
    RolloutFilters,
    RolloutMode,
    RolloutStatus,
    SortOrder,
    Span,
    WatchFilters,
    Worker,
    WorkerStatus,
)
from lightning_store.text import column_text

RowT = TypeVar("RowT")

ROLLOUT_STATUSES: Final = frozenset(get_args(RolloutStatus))
END_REASONS: Final = frozenset(get_args(EndReason))
MODES: Final = frozenset({*get_args(RolloutMode), None})
WORKER_STATUSES: Final = frozenset(get_args(WorkerStatus))


@dataclass(frozen=True, slots=True)
class Filter:
    """One optional filter on one column of a record."""

    field: str
    kind: Literal["in", "equals", "contains", "from", "before", "members"]
    value: Any
    """A frozenset for "in", seconds for "from" and "before", text for "equals" and "contains"; for "members" pairs of a
    key and a JSON text."""
    of_attempt: bool = False
    """Whether the column is one of a rollout's latest attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Generic[RowT]):
    """Which rows, in which order, and which part of them. ``lightning_store.store`` says what each argument means.

    Raises:
        InvalidArgumentError: An argument is not legal.
        InvalidTypeError: An argument has the wrong type.
        UnsortableFieldError: ``sort_by`` names a field that has no order.
    """

    model: ClassVar[type[BaseModel]]
    unordered: ClassVar[frozenset[str]]
    """The fields of the model by which rows cannot be sorted."""
    lists: ClassVar[Sequence[str]] = ()
    """The arguments that take several values."""

    filter_logic: FilterLogic = "and"
    sort_by: str | None = None
    sort_order: SortOrder = "asc"
    limit: int = -1
    offset: int = 0
    filters: tuple[Filter, ...] = field(init=False, repr=False, compare=False)
    """Of the arguments that were given."""

    def __post_init__(self) -> None:
        if self.filter_logic not in get_args(FilterLogic):
            message = f"filter_logic is {self.filter_logic!r}; give 'and' or 'or'"
            raise InvalidArgumentError(message, field="filter_logic")
        if self.sort_order not in get_args(SortOrder):
            raise InvalidArgumentError(f"sort_order is {self.sort_order!r}; give 'asc' or 'desc'", field="sort_order")
        if self.limit < -1:
            raise InvalidArgumentError(f"limit is {self.limit}; give -1 for all rows, or 0 and up", field="limit")
        if self.offset < 0:
            raise InvalidArgumentError(f"offset is {self.offset}; give 0 and up", field="offset")
        if self.sort_by is not None:
            self._check_sortable(self.sort_by)
        for name in self.lists:  # which may be iterators, or change later
            values = getattr(self, name)
            if values is not None and not isinstance(values, str):
                object.__setattr__(self, name, tuple(values))
        object.__setattr__(self, "filters", tuple(one for one in self._given_filters() if one is not None))

    def _given_filters(self) -> Sequence[Filter | None]:
        return ()

    def _check_sortable(self, name: str) -> None:
        columns = [column for column in self.model.model_fields if column not in self.unordered]
        if name in columns:
            return
        legal, model = ", ".join(sorted(columns)), self.model.__name__
        if name in self.model.model_fields:
            message = f"sort_by: {name!r} of a {model} has no order; sort by one of {legal}"
            raise UnsortableFieldError(message, field="sort_by")
        raise InvalidArgumentError(f"sort_by: a {model} has no field {name!r}; sort by one of {legal}", field="sort_by")

    @property
    def descending(self) -> bool:
        return self.sort_order == "desc"

    @property
    def none_first(self) -> bool:
        """Where null sorts when ascending: texts first, times last."""
        return self.sort_by is not None and not self.sort_by.endswith("_time")

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the ``query_…`` method for which this stands, but for those at their defaults."""
        given = ((one, getattr(self, one.name)) for one in fields(self) if one.init)
        return {one.name: value for one, value in given if value != one.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutQuery(Query[Rollout]):
    """Arguments of ``query_rollouts``."""

    model = Rollout
    unordered = frozenset({"input", "config", "metadata"})
    lists = ("status_in", "rollout_id_in", "mode_in", "resources_id_in", "worker_id_in", "end_reason_in", "group_id_in")

    status_in: Sequence[RolloutStatus] | None = None
    rollout_id_in: Sequence[str] | None = None
    rollout_id_contains: str | None = None
    mode_in: Sequence[RolloutMode | None] | None = None
    resources_id_in: Sequence[str] | None = None
    worker_id_in: Sequence[str] | None = None
    metadata_equals: Mapping[str, Any] | None = None
    start_time_min: float | None = None
    start_time_max: float | None = None
    end_reason_in: Sequence[EndReason] | None = None
    policy_version_min: int | None = None
    policy_version_max: int | None = None
    group_id_in: Sequence[str] | None = None

    def _given_filters(self) -> Sequence[Filter | None]:
        workers = _one_of("worker_id", "worker_id_in", self.worker_id_in)
        return (
            _one_of("status", "status_in", self.status_in, ROLLOUT_STATUSES),
            _one_of("rollout_id", "rollout_id_in", self.rollout_id_in),
            _contains("rollout_id", self.rollout_id_contains),
            _one_of("mode", "mode_in", self.mode_in, MODES),
            _one_of("resources_id", "resources_id_in", self.resources_id_in),
            None if workers is None else replace(workers, of_attempt=True),
            _members("metadata_equals", self.metadata_equals),
            _time("start_time", "start_time_min", self.start_time_min, "from"),
            _time("start_time", "start_time_max", self.start_time_max, "before"),
            _one_of("end_reason", "end_reason_in", self.end_reason_in, END_REASONS),
            _policy_version("policy_version_min", self.policy_version_min, "from"),
            _policy_version("policy_version_max", self.policy_version_max, "before", 1),
            _one_of("group_id", "group_id_in", self.group_id_in),
        )


def _policy_version(argument: str, value: int | None, kind: Literal["from", "before"], more: int = 0) -> Filter | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < POLICY_VERSIONS:
        raise InvalidArgumentError(f"{argument} is {value!r}; give a whole number, 0 or more", field=argument)
    return Filter("policy_version", kind, value + more, of_attempt=True)


def rollout_filters(filters: WatchFilters) -> RolloutFilters:
    """Those of the filters that a query has."""
    return cast(RolloutFilters, {name: value for name, value in filters.items() if name != "consumer"})


def cancelled_where(
    rollout_ids: Sequence[str] | None, status_in: Sequence[RolloutStatus] | None, filters: RolloutFilters
) -> RolloutQuery:
    """What the arguments of ``cancel_rollouts`` choose beside the ids.

    Raises:
        InvalidArgumentError: They choose nothing.
    """
    where = RolloutQuery(status_in=status_in, **filters)
    if rollout_ids is not None:
        distinct_ids(rollout_ids)
    elif not where.filters:
        message = "neither rollout_ids nor a filter is given; give one (start_time_min=0 is every rollout)"
        raise InvalidArgumentError(message, field="rollout_ids")
    return where


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupQuery:
    """The keyword arguments of ``watch_groups``.

    Raises:
        InvalidArgumentError: An argument is not legal.
        InvalidTypeError: An argument has the wrong type.
    """

    run: str | None = None
    consumer: str | None = None
    min_done: int | None = None
    deadline: float | None = None
    timeout: float | None = None
    on_partial: OnPartial = "keep"

    def __post_init__(self) -> None:
        if self.run is not None:
            _text("run", self.run)
        check_optional_id("consumer", self.consumer)
        least: object = self.min_done
        if least is not None and (not isinstance(least, int) or isinstance(least, bool)):
            raise InvalidTypeError(f"min_done is {least!r}; give a number of rollouts", field="min_done")
        if isinstance(least, int) and not 1 <= least <= GROUP_SIZE_MAX:
            raise InvalidArgumentError(f"min_done is {least}; give 1 to {GROUP_SIZE_MAX}", field="min_done")
        if self.deadline is not None:
            wait_seconds("deadline", self.deadline)
        if self.timeout is not None:
            wait_seconds("timeout", self.timeout)
        if self.on_partial not in get_args(OnPartial):
            message = f"on_partial is {self.on_partial!r}; give 'keep' or 'cancel'"
            raise InvalidArgumentError(message, field="on_partial")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptQuery(Query[Attempt]):
    """Arguments of ``query_attempts``."""

    model = Attempt
    unordered = frozenset({"metadata"})

    rollout_id: str
    sort_by: str | None = "sequence_id"

    def _given_filters(self) -> Sequence[Filter | None]:
        check_id("rollout_id", self.rollout_id)
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanQuery(Query[Span]):
    """Arguments of ``query_spans``."""

    model = Span
    unordered = frozenset(Span.model_fields).difference(
        (
            "rollout_id",
            "attempt_id",
            "sequence_id",
            "trace_id",
            "span_id",
            "parent_id",
            "name",
            "start_time",
            "end_time",
        )
    )

    rollout_id: str
    attempt_id: str | None = None
    """An id, "latest", or None for all attempts."""
    trace_id: str | None = None
    trace_id_contains: str | None = None
    span_id: str | None = None
    span_id_contains: str | None = None
    parent_id: str | None = None
    parent_id_contains: str | None = None
    name: str | None = None
    name_contains: str | None = None
    sort_by: str | None = "sequence_id"

    def _given_filters(self) -> Sequence[Filter | None]:
        check_id("rollout_id", self.rollout_id)
        if self.attempt_id is not None:
            check_id("attempt_id", self.attempt_id)
        return (
            _equals("trace_id", self.trace_id),
            _contains("trace_id", self.trace_id_contains),
            _equals("span_id", self.span_id),
            _contains("span_id", self.span_id_contains),
            _equals("parent_id", self.parent_id),
            _contains("parent_id", self.parent_id_contains),
            _equals("name", _name(self.name)),
            _contains("name", _name(self.name_contains)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatchQuery(Query[Span]):
    """Arguments of ``query_many_spans``. The order is given: by rollout as they are named, then by sequence id."""

    model = Span
    unordered = frozenset(Span.model_fields)
    lists = ("rollout_ids", "name_in", "attributes")

    rollout_ids: Sequence[str]
    """Each counts once."""
    attempt: Literal["latest"] | None = "latest"
    name_in: Sequence[str] | None = None
    attributes: Sequence[str] | None = None

    def _given_filters(self) -> Sequence[Filter | None]:
        object.__setattr__(self, "rollout_ids", tuple(distinct_ids(self.rollout_ids)))
        if self.attempt not in ("latest", None):
            message = f"attempt is {self.attempt!r}; give 'latest', or None for all attempts"
            raise InvalidArgumentError(message, field="attempt")
        _texts("attributes", self.attributes)
        names = _texts("name_in", self.name_in)
        return (None if names is None else Filter("name", "in", frozenset(map(column_text, names))),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesQuery(Query[ResourcesUpdate]):
    """Arguments of ``query_resources``."""

    model = ResourcesUpdate
    unordered = frozenset({"resources"})

    resources_id: str | None = None
    resources_id_contains: str | None = None

    def _given_filters(self) -> Sequence[Filter | None]:
        return (
            _equals("resources_id", self.resources_id),
            _contains("resources_id", self.resources_id_contains),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerQuery(Query[Worker]):
    """Arguments of ``query_workers``."""

    model = Worker
    unordered = frozenset({"heartbeat_stats"})
    lists = ("status_in",)

    status_in: Sequence[WorkerStatus] | None = None
    worker_id_contains: str | None = None

    def _given_filters(self) -> Sequence[Filter | None]:
        return (
            _one_of("status", "status_in", self.status_in, WORKER_STATUSES),
            _contains("worker_id", self.worker_id_contains),
        )


def _one_of(
    column: str, argument: str, values: Sequence[str | None] | None, legal: frozenset[Any] | None = None
) -> Filter | None:
    """The filter "``column`` is one of ``values``"; None where the caller gave none."""
    wanted = _texts(argument, values, nullable=legal is not None and None in legal)
    if wanted is None:
        return None
    if legal is not None and not wanted <= legal:
        unknown, known = (", ".join(sorted(map(repr, names))) for names in (wanted - legal, legal))
        raise InvalidArgumentError(f"{argument} has {unknown}; give some of {known}", field=argument)
    return Filter(column, "in", wanted)


def _texts(argument: str, values: Sequence[str | None] | None, *, nullable: bool = False) -> frozenset[Any] | None:
    if values is None:
        return None
    if isinstance(values, str):
        raise InvalidTypeError(f"{argument} is the text {values!r}; give a list", field=argument)
    return frozenset(value if value is None and nullable else _text(argument, value) for value in values)


def _members(argument: str, members: Mapping[str, Any] | None) -> Filter | None:
    """The filter "the metadata has all of ``members``"."""
    if members is None:
        return None
    if not isinstance(members, Mapping):
        raise InvalidTypeError(f"{argument} is {members!r}; give a mapping from keys to values", field=argument)
    values = json_text.loads(json_text.dumps(dict(members), argument), argument)
    return Filter("metadata_json", "members", tuple((key, member_text(value)) for key, value in values.items()))


def _time(column: str, argument: str, time: object, kind: Literal["from", "before"]) -> Filter | None:
    if time is None:
        return None
    if not isinstance(time, int | float) or isinstance(time, bool):
        raise InvalidTypeError(f"{argument} is {time!r}; give seconds since the epoch", field=argument)
    if not 0 <= time <= TIME_MAX_SECONDS:
        message = f"{argument} is {time}; give seconds since the epoch, 0 to {TIME_MAX_SECONDS}"
        raise InvalidArgumentError(message, field=argument)
    return Filter(column, kind, float(time))


def _equals(column: str, value: str | None) -> Filter | None:
    return None if value is None else Filter(column, "equals", _text(column, value))


def _contains(column: str, value: str | None) -> Filter | None:
    return None if value is None else Filter(column, "contains", _text(f"{column}_contains", value))


def _name(value: str | None) -> str | None:
    """As names of spans are in their columns."""
    return column_text(value) if isinstance(value, str) else value


def _text(argument: str, value: str | None) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{argument} is {value!r}; give text", field=argument)
    return value


ALL_ROLLOUTS: Final = RolloutQuery()
"""Without a filter."""
