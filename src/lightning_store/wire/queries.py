"""Queries as List requests and back, and pages of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from lightning_store.errors import InvalidTypeError
from lightning_store.model import EndReason, RolloutFilters, RolloutMode, RolloutStatus, WorkerStatus
from lightning_store.queries import (
    AttemptQuery,
    Query,
    ResourcesQuery,
    RolloutQuery,
    SpanBatchQuery,
    SpanQuery,
    WorkerQuery,
)
from lightning_store.text import column_text
from lightning_store.v1 import common_pb2, resources_pb2, rollout_pb2, span_pb2, transfer_pb2, worker_pb2
from lightning_store.wire import enums
from lightning_store.wire.checks import (
    INT64_MAX,
    invalid,
    json_object,
    not_negative,
    optional_json_to_proto,
    optional_text_to_proto,
    required_text,
    text_to_proto,
)
from lightning_store.wire.requests import select_attempt, selected_attempt
from lightning_store.wire.times import optional_timestamp_to_proto, timestamp_from_proto

ItemT = TypeVar("ItemT")

ALL_ROWS: Final = -1
"""The ``limit`` of the Python API that means: all rows."""

ListRequest = (
    rollout_pb2.ListRolloutsRequest
    | rollout_pb2.ListAttemptsRequest
    | span_pb2.ListSpansRequest
    | resources_pb2.ListResourcesRequest
    | worker_pb2.ListWorkersRequest
)

_SPAN_FILTERS: Final = (
    "trace_id",
    "trace_id_contains",
    "span_id",
    "span_id_contains",
    "parent_id",
    "parent_id_contains",
    "name",
    "name_contains",
)
_NAME_FILTERS: Final = ("name", "name_contains")
"""They match a column that has no lone surrogates, which the wire has not either."""


def list_rollouts_to_proto(query: RolloutQuery) -> rollout_pb2.ListRolloutsRequest:
    status_in, rollout_id_in = query.status_in, query.rollout_id_in
    request = rollout_pb2.ListRolloutsRequest(
        status_in=None if status_in is None else rollout_statuses_to_proto(status_in),
        rollout_id_in=None if rollout_id_in is None else texts_to_proto(rollout_id_in, "rollout_id_in"),
        rollout_id_contains=optional_text_to_proto(query.rollout_id_contains, "rollout_id_contains"),
        filter_logic=enums.filter_logic_to_proto(query.filter_logic),
        filters=filters_to_proto(query),
    )
    _write_ordering(request, query)
    return request


def list_rollouts_from_proto(request: rollout_pb2.ListRolloutsRequest) -> RolloutQuery:
    has = request.HasField
    return RolloutQuery(
        status_in=rollout_statuses_from_proto(request.status_in) if has("status_in") else None,
        rollout_id_in=list(request.rollout_id_in.values) if has("rollout_id_in") else None,
        rollout_id_contains=request.rollout_id_contains if has("rollout_id_contains") else None,
        filter_logic=enums.filter_logic_from_proto(request.filter_logic, "filter_logic"),
        **filters_from_proto(request),
        **_ordering(request),
    )


def list_attempts_to_proto(query: AttemptQuery) -> rollout_pb2.ListAttemptsRequest:
    request = rollout_pb2.ListAttemptsRequest(rollout_id=text_to_proto(query.rollout_id, "rollout_id"))
    _write_ordering(request, query)
    return request


def list_attempts_from_proto(request: rollout_pb2.ListAttemptsRequest) -> AttemptQuery:
    return AttemptQuery(rollout_id=required_text(request.rollout_id, "rollout_id"), **_ordering(request))


def list_spans_to_proto(query: SpanQuery) -> span_pb2.ListSpansRequest:
    request = span_pb2.ListSpansRequest(
        rollout_id=text_to_proto(query.rollout_id, "rollout_id"),
        filter_logic=enums.filter_logic_to_proto(query.filter_logic),
    )
    if query.attempt_id is not None:
        select_attempt(request, query.attempt_id)
    for name in _SPAN_FILTERS:
        text = getattr(query, name)
        if text is not None:
            setattr(request, name, text_to_proto(column_text(text) if name in _NAME_FILTERS else text, name))
    _write_ordering(request, query)
    return request


def list_spans_from_proto(request: span_pb2.ListSpansRequest) -> SpanQuery:
    filters = {name: getattr(request, name) for name in _SPAN_FILTERS if request.HasField(name)}
    return SpanQuery(
        rollout_id=required_text(request.rollout_id, "rollout_id"),
        attempt_id=selected_attempt(request),
        filter_logic=enums.filter_logic_from_proto(request.filter_logic, "filter_logic"),
        **filters,
        **_ordering(request),
    )


def span_batch_to_proto(query: SpanBatchQuery) -> span_pb2.SpanBatchRequest:
    names = None if query.name_in is None else list(map(column_text, query.name_in))
    return span_pb2.SpanBatchRequest(
        rollout_ids=[text_to_proto(rollout_id, "rollout_ids") for rollout_id in query.rollout_ids],
        all_attempts=query.attempt is None,
        name_in=None if names is None else texts_to_proto(names, "name_in"),
        attributes=None if query.attributes is None else texts_to_proto(query.attributes, "attributes"),
    )


def span_batch_from_proto(request: span_pb2.SpanBatchRequest) -> SpanBatchQuery:
    has = request.HasField
    return SpanBatchQuery(
        rollout_ids=[required_text(one, f"rollout_ids[{index}]") for index, one in enumerate(request.rollout_ids)],
        attempt=None if request.all_attempts else "latest",
        name_in=list(request.name_in.values) if has("name_in") else None,
        attributes=list(request.attributes.values) if has("attributes") else None,
    )


def list_resources_to_proto(query: ResourcesQuery) -> resources_pb2.ListResourcesRequest:
    request = resources_pb2.ListResourcesRequest(
        resources_id=optional_text_to_proto(query.resources_id, "resources_id"),
        resources_id_contains=optional_text_to_proto(query.resources_id_contains, "resources_id_contains"),
        filter_logic=enums.filter_logic_to_proto(query.filter_logic),
    )
    _write_ordering(request, query)
    return request


def list_resources_from_proto(request: resources_pb2.ListResourcesRequest) -> ResourcesQuery:
    has = request.HasField
    return ResourcesQuery(
        resources_id=request.resources_id if has("resources_id") else None,
        resources_id_contains=request.resources_id_contains if has("resources_id_contains") else None,
        filter_logic=enums.filter_logic_from_proto(request.filter_logic, "filter_logic"),
        **_ordering(request),
    )


def list_workers_to_proto(query: WorkerQuery) -> worker_pb2.ListWorkersRequest:
    request = worker_pb2.ListWorkersRequest(
        status_in=None if query.status_in is None else _worker_statuses_to_proto(query.status_in),
        worker_id_contains=optional_text_to_proto(query.worker_id_contains, "worker_id_contains"),
        filter_logic=enums.filter_logic_to_proto(query.filter_logic),
    )
    _write_ordering(request, query)
    return request


def list_workers_from_proto(request: worker_pb2.ListWorkersRequest) -> WorkerQuery:
    has = request.HasField
    return WorkerQuery(
        status_in=_worker_statuses_from_proto(request.status_in) if has("status_in") else None,
        worker_id_contains=request.worker_id_contains if has("worker_id_contains") else None,
        filter_logic=enums.filter_logic_from_proto(request.filter_logic, "filter_logic"),
        **_ordering(request),
    )


# --- Filters that several requests have ------------------------------------------------------------------------------

FilteredRequest = (
    rollout_pb2.ListRolloutsRequest
    | rollout_pb2.CancelRolloutsRequest
    | rollout_pb2.DeleteRolloutsRequest
    | rollout_pb2.WatchRolloutsRequest
    | transfer_pb2.ExportRolloutsRequest
)


def filters_to_proto(query: RolloutQuery) -> rollout_pb2.RolloutFilters | None:
    """The filters of a query that RolloutFilters has; None where there are none."""
    modes, resources_ids, worker_ids = query.mode_in, query.resources_id_in, query.worker_id_in
    reasons, groups = query.end_reason_in, query.group_id_in
    message = rollout_pb2.RolloutFilters(
        mode_in=None if modes is None else rollout_modes_to_proto(modes),
        resources_id_in=None if resources_ids is None else texts_to_proto(resources_ids, "resources_id_in"),
        worker_id_in=None if worker_ids is None else texts_to_proto(worker_ids, "worker_id_in"),
        metadata_equals_json=optional_json_to_proto(query.metadata_equals, "metadata_equals"),
        start_time_min=optional_timestamp_to_proto(query.start_time_min),
        start_time_max=optional_timestamp_to_proto(query.start_time_max),
        end_reason_in=None if reasons is None else texts_to_proto(reasons, "end_reason_in"),
        policy_version_min=query.policy_version_min,
        policy_version_max=query.policy_version_max,
        group_id_in=None if groups is None else texts_to_proto(groups, "group_id_in"),
    )
    return message if message.ListFields() else None


def filters_from_proto(request: FilteredRequest) -> RolloutFilters:
    """Those that are there."""
    message, found = request.filters, RolloutFilters()
    has = message.HasField
    if has("mode_in"):
        values = enumerate(message.mode_in.values)
        found["mode_in"] = [enums.mode_from_proto(one, f"filters.mode_in.values[{index}]") for index, one in values]
    if has("resources_id_in"):
        found["resources_id_in"] = list(message.resources_id_in.values)
    if has("worker_id_in"):
        found["worker_id_in"] = list(message.worker_id_in.values)
    if has("metadata_equals_json"):
        found["metadata_equals"] = json_object(message.metadata_equals_json, "filters.metadata_equals_json")
    if has("start_time_min"):
        found["start_time_min"] = timestamp_from_proto(message.start_time_min, "filters.start_time_min")
    if has("start_time_max"):
        found["start_time_max"] = timestamp_from_proto(message.start_time_max, "filters.start_time_max")
    if has("policy_version_min"):
        found["policy_version_min"] = message.policy_version_min
    if has("policy_version_max"):
        found["policy_version_max"] = message.policy_version_max
    if has("end_reason_in"):
        found["end_reason_in"] = cast(list[EndReason], list(message.end_reason_in.values))  # which the query checks
    if has("group_id_in"):
        found["group_id_in"] = list(message.group_id_in.values)
    return found


def rollout_modes_to_proto(modes: Sequence[RolloutMode | None]) -> rollout_pb2.RolloutModeSet:
    return rollout_pb2.RolloutModeSet(values=[enums.mode_to_proto(mode, "mode_in") for mode in modes])


# --- What the requests have in common --------------------------------------------------------------------------------


def rollout_statuses_to_proto(statuses: Sequence[RolloutStatus]) -> rollout_pb2.RolloutStatusSet:
    values = [enums.ROLLOUT_STATUS.to_proto(status, "status_in") for status in _listed(statuses, "status_in")]
    return rollout_pb2.RolloutStatusSet(values=values)


def rollout_statuses_from_proto(message: rollout_pb2.RolloutStatusSet) -> list[RolloutStatus]:
    return [
        enums.ROLLOUT_STATUS.from_proto(number, f"status_in.values[{index}]")
        for index, number in enumerate(message.values)
    ]


def _worker_statuses_to_proto(statuses: Sequence[WorkerStatus]) -> worker_pb2.WorkerStatusSet:
    values = [enums.WORKER_STATUS.to_proto(status, "status_in") for status in _listed(statuses, "status_in")]
    return worker_pb2.WorkerStatusSet(values=values)


def _worker_statuses_from_proto(message: worker_pb2.WorkerStatusSet) -> list[WorkerStatus]:
    return [
        enums.WORKER_STATUS.from_proto(number, f"status_in.values[{index}]")
        for index, number in enumerate(message.values)
    ]


def texts_to_proto(texts: Sequence[str], field: str) -> common_pb2.StringSet:
    return common_pb2.StringSet(values=[text_to_proto(text, field) for text in _listed(texts, field)])


def _listed(values: Sequence[ItemT], field: str) -> Sequence[ItemT]:
    """The values; a single text is a sequence too, and never what was meant."""
    if isinstance(values, str):
        raise InvalidTypeError(f"{field} is the text {values!r}; give a list", field=field)
    return values


def _write_ordering(request: ListRequest, query: Query[Any]) -> None:
    request.sort_by = text_to_proto(query.sort_by or "", "sort_by")  # empty: the order of insertion
    request.sort_order = enums.sort_order_to_proto(query.sort_order)
    if query.limit != ALL_ROWS:
        request.limit = min(query.limit, INT64_MAX)
    request.offset = min(query.offset, INT64_MAX)


def _ordering(request: ListRequest) -> dict[str, Any]:
    """The order and the part of the rows; without ``sort_by`` that of the method."""
    ordering: dict[str, Any] = {
        "sort_order": enums.sort_order_from_proto(request.sort_order, "sort_order"),
        "limit": not_negative(request.limit, "limit") if request.HasField("limit") else ALL_ROWS,
        "offset": not_negative(request.offset, "offset"),
    }
    if request.HasField("sort_by"):
        ordering["sort_by"] = request.sort_by or None
    return ordering


# --- Pages -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageWindow:
    """The rows that one page may hold."""

    page_rows: int
    """Rows in any page at most."""
    offset: int
    """Where the page begins among all rows that match."""
    limit: int
    """Rows in the page at most."""
    end: int
    """Where the last page ends at the latest."""
    start: int
    """Where the first page began."""

    def next_page_token(self, rows_sent: int, total: int) -> str:
        """The token after a page of ``rows_sent`` rows, where ``total`` rows match; empty after the last page."""
        reached = self.offset + rows_sent
        return str(reached - self.start) if rows_sent and reached < min(self.end, total) else ""


def page_window(request: ListRequest, page_rows_max: int) -> PageWindow:
    """The window of the page that ``request`` asks for; no page has more than ``page_rows_max`` rows."""
    start = not_negative(request.offset, "offset")
    rows = not_negative(request.limit, "limit") if request.HasField("limit") else INT64_MAX
    end = min(start + rows, INT64_MAX)
    page_rows = min(not_negative(request.page_size, "page_size") or page_rows_max, page_rows_max)
    offset = min(start + _rows_before(request.page_token), end)
    limit = min(page_rows, end - offset)
    return PageWindow(page_rows=page_rows, offset=offset, limit=limit, end=end, start=start)


def _rows_before(token: str) -> int:
    """A token is the number of rows in the pages before."""
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) <= 18):
        raise invalid("page_token", "is not one that this server gave; start again with an empty one")
    return int(token)
