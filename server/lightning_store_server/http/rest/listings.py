"""Lists of rows: their queries, checked as Agent Lightning checks them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Literal

from lightning_store.queries import AttemptQuery, ResourcesQuery, RolloutQuery, SpanQuery, WorkerQuery
from lightning_store.wire import queries
from lightning_store_server.http.rest import shapes, values
from lightning_store_server.http.rest.calls import Call
from lightning_store_server.http.rest.errors import RestError
from lightning_store_server.http.rest.operations import Rows

Kind = Literal["rollouts", "attempts", "spans", "resources", "workers"]

_LISTS: Final[dict[str, tuple[Any, Any, Any, type[Any]]]] = {
    "rollouts": (RolloutQuery, queries.list_rollouts_to_proto, values.row_value, shapes.Rollout),
    "attempts": (AttemptQuery, queries.list_attempts_to_proto, values.attempt_value, shapes.Attempt),
    "spans": (SpanQuery, queries.list_spans_to_proto, values.span_value, shapes.Span),
    "resources": (ResourcesQuery, queries.list_resources_to_proto, values.resources_value, shapes.Resources),
    "workers": (WorkerQuery, queries.list_workers_to_proto, values.worker_value, shapes.Worker),
}
"""Of each kind: the query, its request, what turns a row into its value, and the row's shape."""


def rows(call: Call, kind: Kind, **arguments: Any) -> Rows:
    """All rows of a query as a plain list. StoreError: an argument is not legal."""
    query, to_proto, convert, _ = _LISTS[kind]
    return Rows(call, call.query(**{kind: to_proto(query(**arguments))}), kind, convert)


def page(call: Call, kind: Kind, asked: shapes.Paging, **more: Any) -> Rows:
    """The rows that were asked for, with how many there are."""
    query, to_proto, convert, shape = _LISTS[kind]
    _check(asked, shape)
    request = to_proto(query(**asked.model_dump(), **more))
    return Rows(call, call.query(**{kind: request}), kind, convert, {"limit": asked.limit, "offset": asked.offset})


def _check(asked: shapes.Paging, shape: type[Any]) -> None:
    fields = ", ".join(shape.model_fields)
    if asked.sort_by is not None and asked.sort_by not in shape.model_fields:
        detail = f"Invalid sort_by: {asked.sort_by}, allowed fields are: {fields}"
        raise RestError(HTTPStatus.BAD_REQUEST, detail)
    if asked.limit == 0 or asked.limit < -1:
        raise RestError(HTTPStatus.BAD_REQUEST, "Limit must be greater than 0 or -1 for no limit")
    if asked.offset < 0:
        raise RestError(HTTPStatus.BAD_REQUEST, "Offset must be greater than or equal to 0")
