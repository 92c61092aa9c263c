"""Deletions and feeds: what a client says with its arguments is what the server hands to the store."""

from __future__ import annotations

from typing import get_args

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from lightning_store.errors import InvalidArgumentError, InvalidTypeError
from lightning_store.model import TIME_MAX_SECONDS, CompletedRollout, ReturnWhen, RolloutStatus
from lightning_store.queries import RolloutQuery
from lightning_store.testing import strategies
from lightning_store.v1 import rollout_pb2, transfer_pb2
from lightning_store.wire import enums, requests, selections
from tests.wire.same import assert_same, through_bytes

IDS = st.lists(strategies.ids(), max_size=4)
STATUSES = st.lists(st.sampled_from(get_args(RolloutStatus)), max_size=3)


@given(
    st.none() | IDS,
    st.none() | st.integers(0, 10**6) | st.sampled_from([0.0, 0.5, 3600.25, float(TIME_MAX_SECONDS)]),
    st.none() | STATUSES,
)
def test_deletions(rollout_ids, older_than, status_in):
    deletion = selections.Deletion(rollout_ids=rollout_ids, older_than=older_than, status_in=status_in)
    request = through_bytes(selections.deletion_to_proto("q", deletion))
    assert request.request_id == "q"
    assert selections.deletion_from_proto(request) == deletion


def test_exports():
    which = RolloutQuery(status_in=["failed"], mode_in=["train", None], group_id_in=["g"], start_time_max=2.5)
    request = through_bytes(selections.exported_to_proto(which, "next"))
    assert request.page_token == "next"
    assert selections.exported_from_proto(request) == which
    former = transfer_pb2.ExportRolloutsRequest(mode_in=[0, 1], start_time_min={"seconds": 1})
    assert selections.exported_from_proto(former) == RolloutQuery(mode_in=[None, "train"], start_time_min=1.0)


@pytest.mark.parametrize("older_than", [1e12, 1e300, float("inf")])
def test_what_is_older_than_all_time_can_be_sent(older_than):
    deletion = selections.Deletion(rollout_ids=None, older_than=older_than, status_in=None)
    request = selections.deletion_to_proto("q", deletion)
    assert selections.deletion_from_proto(request)["older_than"] == TIME_MAX_SECONDS


@pytest.mark.parametrize(
    ("deletion", "field"),
    [
        ({"rollout_ids": ["\ud800"]}, "rollout_ids"),
        ({"rollout_ids": [5]}, "rollout_ids"),
        ({"rollout_ids": "ro-1"}, "rollout_ids"),
        ({"status_in": ["done"]}, "status_in"),
        ({"status_in": "failed"}, "status_in"),
    ],
)
def test_a_deletion_that_cannot_be_sent_names_its_argument(deletion, field):
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match=field):
        selections.deletion_to_proto("q", {"rollout_ids": None, "older_than": None, "status_in": None} | deletion)


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (rollout_pb2.DeleteRolloutsRequest(rollout_id_in={"values": ["a", ""]}), "rollout_id_in.values[1]"),
        (rollout_pb2.DeleteRolloutsRequest(older_than=Duration(seconds=-1)), "older_than"),
        (rollout_pb2.DeleteRolloutsRequest(status_in={"values": [0]}), "status_in.values[0]"),
        (rollout_pb2.DeleteRolloutsRequest(status_in={"values": [1, 99]}), "status_in.values[1]"),
    ],
)
def test_bad_deletions_are_refused_with_their_field(request_message, field):
    with pytest.raises(InvalidArgumentError) as caught:
        selections.deletion_from_proto(request_message)
    assert caught.value.details["field"] == field


def test_no_selection_is_not_an_empty_one():
    empty = selections.deletion_from_proto(rollout_pb2.DeleteRolloutsRequest(rollout_id_in={}, status_in={}))
    assert empty == {"rollout_ids": [], "older_than": None, "status_in": []}
    assert selections.watched_from_proto(rollout_pb2.WatchRolloutsRequest(rollout_id_in={})) == ([], {})
    assert selections.watched_from_proto(rollout_pb2.WatchRolloutsRequest()) == (None, {})


@given(st.none() | IDS, strategies.texts())
def test_watches(rollout_ids, after):
    request = through_bytes(selections.watch_to_proto(rollout_ids, after))
    assert (selections.watched_from_proto(request), request.after) == ((rollout_ids, {}), after)


def test_ids_to_watch_may_be_any_collection():
    request = selections.watch_to_proto({"ro-1": None, "ro-2": None}, "")
    assert selections.watched_from_proto(request) == (["ro-1", "ro-2"], {})


@pytest.mark.parametrize(("rollout_ids", "after"), [(["\ud800"], ""), ([5], ""), (None, 5), (None, "\ud800")])
def test_a_watch_that_cannot_be_sent_names_its_argument(rollout_ids, after):
    with pytest.raises(
        (InvalidArgumentError, InvalidTypeError), match="after" if rollout_ids is None else "rollout_id"
    ):
        selections.watch_to_proto(rollout_ids, after)


@given(strategies.rollouts(), strategies.ids())
def test_completions(rollout, cursor):
    message = through_bytes(selections.completed_to_proto(CompletedRollout(rollout, cursor)))
    found = selections.completed_from_proto(message, "completions[0]")
    assert_same(found.rollout, rollout)
    assert found.cursor == cursor


def test_a_completion_without_its_parts_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"completions\[3\].rollout is missing"):
        selections.completed_from_proto(rollout_pb2.CompletedRollout(cursor="c"), "completions[3]")


@pytest.mark.parametrize("return_when", get_args(ReturnWhen))
def test_return_when(return_when):
    request = through_bytes(requests.wait_to_proto(["r"], None, return_when, omit_unless_complete=True))
    assert enums.return_when_from_proto(request.return_when, "return_when") == return_when
    assert request.omit_unless_complete


def test_return_when_is_all_if_nothing_is_said():
    assert enums.return_when_from_proto(rollout_pb2.WaitForRolloutsRequest().return_when, "return_when") == "all"
    with pytest.raises(InvalidArgumentError, match="return_when has the unknown enum number 9"):
        enums.return_when_from_proto(9, "return_when")
