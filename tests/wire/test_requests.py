"""Requests: what a client says with its arguments is what the server hands to the store."""

from __future__ import annotations

from functools import partial
from typing import Any, cast, get_args

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from lightning_store import json_text
from lightning_store.errors import InvalidArgumentError, InvalidTypeError
from lightning_store.model import UNSET, AttemptUpdate, RolloutConfig, RolloutStatus, RolloutUpdate
from lightning_store.queries import AttemptQuery, ResourcesQuery, RolloutQuery, SpanQuery, WorkerQuery
from lightning_store.testing import strategies
from lightning_store.v1 import rollout_pb2, span_pb2, worker_pb2
from lightning_store.wire import queries, records, requests
from tests.wire.same import assert_same, through_bytes

# --- Updates ---------------------------------------------------------------------------------------------------------


@given(strategies.rollout_updates())
def test_rollout_updates_set_exactly_what_was_given(update):
    request = through_bytes(requests.update_rollout_to_proto("q", "r", update))
    columns, status = records.rollout_change_from_proto(request)
    found = {} if status is None else {"status": status}
    for name, value in columns.items():
        is_json = name.endswith("_json") and value is not None
        found[name.removesuffix("_json")] = json_text.loads(value, name) if is_json else value
    assert found.keys() == update.model_fields_set
    assert_same(RolloutUpdate(**found), update)
    assert (request.request_id, request.rollout_id) == ("q", "r")


def test_the_masks_know_every_field():
    rollout = RolloutUpdate(input=1, mode=None, resources_id=None, status="failed", config=RolloutConfig(), metadata={})
    mask = requests.update_rollout_to_proto("q", "r", rollout).update_mask
    assert set(mask.paths) == {field.name for field in rollout_pb2.RolloutUpdate.DESCRIPTOR.fields}
    attempt = AttemptUpdate(status="failed", worker_id=None, last_heartbeat_time=1.0, metadata=None, counts=False)
    mask = requests.update_attempt_to_proto("q", "r", "a", attempt).update_mask
    assert set(mask.paths) == {field.name for field in rollout_pb2.AttemptUpdate.DESCRIPTOR.fields}


def rollout_request(mask, **fields):
    return rollout_pb2.UpdateRolloutRequest(
        update=rollout_pb2.RolloutUpdate(**fields), update_mask=FieldMask(paths=mask)
    )


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (rollout_request(["status", "nonsense"]), "update_mask.paths[1]"),
        (rollout_request(["config.max_attempts"]), "update_mask.paths[0]"),
        (rollout_request(["*"]), "update_mask.paths[0]"),
        (rollout_request([], status=6), "update_mask"),
        (rollout_request(["status"]), "update.status"),
        (rollout_request(["status"], status=77), "update.status"),
        (rollout_request(["config"]), "update.config"),
        (rollout_request(["metadata_json"], metadata_json="7"), "update.metadata_json"),
        (rollout_request(["input_json"], input_json="nope"), "update.input_json"),
    ],
)
def test_bad_updates_are_refused_with_their_field(request_message, field):
    with pytest.raises(InvalidArgumentError) as caught:
        records.rollout_change_from_proto(request_message)
    assert caught.value.details["field"] == field
    assert str(caught.value).startswith(field)


def test_what_the_mask_does_not_name_is_left_alone():
    request = rollout_request(["mode"], status=6)
    columns, status = records.rollout_change_from_proto(request)
    assert (set(columns), status) == ({"mode"}, None)


def test_an_update_of_nothing_is_legal():
    assert records.rollout_change_from_proto(rollout_request([])) == ({}, None)


def test_the_attempt_must_be_told():
    for request, field in (
        (rollout_pb2.UpdateAttemptRequest(), "attempt"),
        (rollout_pb2.UpdateAttemptRequest(attempt_id=""), "attempt_id"),
        (rollout_pb2.UpdateAttemptRequest(latest=False), "latest"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            requests.attempt_from_request(request)
        assert caught.value.details["field"] == field
    assert requests.attempt_from_request(rollout_pb2.UpdateAttemptRequest(latest=True)) == "latest"


# --- Heartbeats, claims, waiting -------------------------------------------------------------------------------------


@given(st.one_of(st.just(UNSET), strategies.json_objects()))
def test_heartbeats(stats):
    request = through_bytes(requests.update_worker_to_proto("w", stats))
    assert_same(requests.heartbeat_from_proto(request), None if stats is UNSET else stats)


def test_bad_heartbeats():
    with pytest.raises(InvalidArgumentError, match="heartbeat_stats_json must be the text of a JSON object"):
        requests.heartbeat_from_proto(worker_pb2.UpdateWorkerRequest(heartbeat_stats_json="null"))


def test_dequeue_limits():
    for asked, wanted in ((1, 1), (5, 5), (0, 0), (-3, 0), (2**40, 2**31 - 1)):
        assert requests.dequeue_limit_from_proto(requests.dequeue_to_proto("q", asked, None, 0.0)) == wanted
    assert requests.dequeue_limit_from_proto(rollout_pb2.DequeueRolloutsRequest()) == 1
    with pytest.raises(InvalidArgumentError, match="limit is -1; it must not be negative"):
        requests.dequeue_limit_from_proto(rollout_pb2.DequeueRolloutsRequest(limit=-1))


def test_waits():
    for asked, wanted in ((None, 20.0), (0, 0.0), (-5, 0.0), (1.5, 1.5), (1e300, 20.0), (float("inf"), 20.0)):
        assert requests.wait_seconds_from_proto(requests.wait_to_proto(["r"], asked), 20.0) == wanted
    negative = rollout_pb2.WaitForRolloutsRequest(wait=Duration(seconds=-1))
    assert requests.wait_seconds_from_proto(negative, 20.0) == 0.0


@pytest.mark.parametrize("bad", ["\ud800", 5, None])
def test_text_that_is_none_is_refused_with_its_name(bad):
    for call in (
        lambda: requests.wait_to_proto(["ok", bad], None),
        lambda: requests.update_worker_to_proto(bad, UNSET),
        lambda: queries.list_attempts_to_proto(AttemptQuery(rollout_id=bad)),
        lambda: queries.list_rollouts_to_proto(RolloutQuery(rollout_id_in=[bad])),
    ):
        with pytest.raises((InvalidArgumentError, InvalidTypeError), match="id"):
            call()


# --- Queries ---------------------------------------------------------------------------------------------------------

_ORDERING = {
    "sort_order": st.sampled_from(["asc", "desc"]),
    "limit": st.integers(-1, 2**63 - 1),
    "offset": st.integers(0, 2**63 - 1),
}
_LOGIC = {"filter_logic": st.sampled_from(["and", "or"])}
_TEXT = st.one_of(st.none(), strategies.texts())
_ROWS = st.lists(st.sampled_from(get_args(RolloutStatus)), max_size=3)
_WORKERS = st.lists(st.sampled_from(["idle", "busy", "unknown"]), max_size=3)
_SPAN_TEXTS = ["trace_id", "span_id", "parent_id", "name"]
_SPAN_FILTERS = {name: _TEXT for text in _SPAN_TEXTS for name in (text, f"{text}_contains")}


def queries_of(query, *sortable, **more):
    """Queries with any of their arguments left out; sorted by nothing, or one of ``sortable``."""
    sort_by = st.one_of(st.none(), st.sampled_from(sortable))
    optional = st.fixed_dictionaries({}, optional={"sort_by": sort_by, **_ORDERING, **more})
    return optional.map(lambda arguments: query(**arguments))


@given(
    queries_of(
        RolloutQuery,
        "start_time",
        "status",
        status_in=_ROWS,
        rollout_id_in=st.lists(strategies.texts()),
        rollout_id_contains=_TEXT,
        **_LOGIC,
    )
)
def test_rollout_queries(query):
    message = through_bytes(queries.list_rollouts_to_proto(query))
    assert queries.list_rollouts_from_proto(message) == query


@given(queries_of(partial(AttemptQuery, rollout_id="r"), "start_time", "sequence_id"))
def test_attempt_queries(query):
    message = through_bytes(queries.list_attempts_to_proto(query))
    assert queries.list_attempts_from_proto(message) == query
    assert message.rollout_id == "r"


_ATTEMPTS = st.sampled_from([None, "latest", "at-1"])


_SPANS_OF = partial(SpanQuery, rollout_id="r")


@given(queries_of(_SPANS_OF, "start_time", "name", attempt_id=_ATTEMPTS, **_SPAN_FILTERS, **_LOGIC))
def test_span_queries(query):
    message = through_bytes(queries.list_spans_to_proto(query))
    assert queries.list_spans_from_proto(message) == query


@given(queries_of(ResourcesQuery, "create_time", "version", resources_id=_TEXT, resources_id_contains=_TEXT, **_LOGIC))
def test_resources_queries(query):
    message = through_bytes(queries.list_resources_to_proto(query))
    assert queries.list_resources_from_proto(message) == query


@given(queries_of(WorkerQuery, "last_busy_time", "worker_id", status_in=_WORKERS, worker_id_contains=_TEXT, **_LOGIC))
def test_worker_queries(query):
    message = through_bytes(queries.list_workers_to_proto(query))
    assert queries.list_workers_from_proto(message) == query


def list_request(**fields):
    return rollout_pb2.ListRolloutsRequest(**fields)


def test_bad_queries():
    for request, field in (
        (rollout_pb2.ListRolloutsRequest(limit=-1), "limit"),
        (rollout_pb2.ListRolloutsRequest(offset=-1), "offset"),
        (list_request(sort_order=9), "sort_order"),
        (list_request(filter_logic=9), "filter_logic"),
        (list_request(status_in={"values": [1, 0]}), "status_in.values[1]"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            queries.list_rollouts_from_proto(request)
        assert caught.value.details["field"] == field
    with pytest.raises(InvalidArgumentError, match="latest is false"):
        queries.list_spans_from_proto(span_pb2.ListSpansRequest(rollout_id="r", latest=False))
    with pytest.raises(InvalidArgumentError, match="status_in has 'nonsense'; give some of"):
        RolloutQuery(status_in=cast(Any, ["nonsense"]))
    with pytest.raises(InvalidTypeError, match="give a list"):
        RolloutQuery(rollout_id_in="ro-1")
    with pytest.raises(InvalidArgumentError, match="sort_order is 'up'; give 'asc' or 'desc'"):
        RolloutQuery(sort_order=cast(Any, "up"))
    with pytest.raises(InvalidArgumentError, match="filter_logic is 'xor'; give 'and' or 'or'"):
        RolloutQuery(filter_logic=cast(Any, "xor"))


def test_a_negative_limit_is_refused_on_both_sides_of_the_wire():
    for refused in (
        lambda: RolloutQuery(limit=-5),
        lambda: queries.list_rollouts_from_proto(rollout_pb2.ListRolloutsRequest(limit=-5)),
    ):
        with pytest.raises(InvalidArgumentError, match="limit is -5") as caught:
            refused()
        assert caught.value.details["field"] == "limit"


# --- Pages -----------------------------------------------------------------------------------------------------------


@given(
    rows=st.integers(0, 30),
    offset=st.integers(0, 40),
    limit=st.one_of(st.none(), st.integers(0, 40)),
    page_size=st.integers(0, 10),
    page_rows_max=st.integers(1, 7),
    shortfall=st.integers(0, 3),
)
def test_pages_are_the_whole_result_once(rows, offset, limit, page_size, page_rows_max, shortfall):
    everything = list(range(rows))
    request = rollout_pb2.ListRolloutsRequest(offset=offset, limit=limit, page_size=page_size)
    found = []
    for _ in range(rows + 2):
        window = queries.page_window(request, page_rows_max)
        page = everything[window.offset : window.offset + window.limit]
        assert len(page) <= page_rows_max
        page = page[: max(1, len(page) - shortfall)]  # the server sends fewer where bytes are short
        found += page
        request.page_token = window.next_page_token(len(page), rows)
        if not request.page_token:
            break
    assert found == everything[offset:] if limit is None else found == everything[offset : offset + limit]
    assert not request.page_token


@pytest.mark.parametrize("token", ["x", "-1", "1.0", "٣", "9" * 40])
def test_a_token_that_is_not_the_servers_is_refused(token):
    with pytest.raises(InvalidArgumentError, match="page_token is not one that this server gave"):
        queries.page_window(rollout_pb2.ListRolloutsRequest(page_token=token), 10)


def test_a_negative_page_size_is_refused():
    with pytest.raises(InvalidArgumentError, match="page_size is -1"):
        queries.page_window(rollout_pb2.ListRolloutsRequest(page_size=-1), 10)
