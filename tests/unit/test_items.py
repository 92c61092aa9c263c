"""How many items a request has, before it is parsed."""

from __future__ import annotations

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from lightning_store.errors import InvalidArgumentError
from lightning_store.items import check_items, parts
from lightning_store.v1 import common_pb2, rollout_pb2, transfer_pb2
from lightning_store.wire.methods import REQUESTS
from tests.attacks.target import piece

ATTEMPTS = transfer_pb2.StoredRollout(attempts=[rollout_pb2.Attempt(attempt_id="a")] * 4)
IDS = common_pb2.StringSet(values=["a"] * 2)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (rollout_pb2.EnqueueRolloutsRequest(rollouts=[rollout_pb2.NewRollout()] * 4), "rollouts"),
        (rollout_pb2.CancelRolloutsRequest(rollout_ids=["a"] * 4), "rollout_ids"),
        (transfer_pb2.ExportRolloutsRequest(mode_in=[1, 1, 1, 1]), "mode_in"),
        (transfer_pb2.ImportRolloutsRequest(rollouts=[ATTEMPTS]), "rollouts[0].attempts"),
    ],
)
def test_a_field_of_too_many_items_is_refused_and_named(request_, field):
    data = request_.SerializeToString()
    check_items(data, type(request_), 4)
    with pytest.raises(InvalidArgumentError, match="has more than 3 items") as caught:
        check_items(data, type(request_), 3)
    assert caught.value.details["field"] == field


def test_the_parts_of_a_message_that_protobuf_merges_count_together():
    data = piece(2, IDS.SerializeToString()) * 2
    assert len(rollout_pb2.ListRolloutsRequest.FromString(data).rollout_id_in.values) == 4
    with pytest.raises(InvalidArgumentError, match="rollout_id_in.values has more than 3"):
        check_items(data, rollout_pb2.ListRolloutsRequest, 3)


def test_items_that_are_not_packed_count_too():
    data = b"\x10\x01" * 4
    assert len(transfer_pb2.ExportRolloutsRequest.FromString(data).mode_in) == 4
    with pytest.raises(InvalidArgumentError, match="mode_in has more than 3"):
        check_items(data, transfer_pb2.ExportRolloutsRequest, 3)


def test_fields_that_nobody_knows_count_among_all():
    with pytest.raises(InvalidArgumentError, match="more than 30 fields"):
        check_items(b"\xf8\x07\x01" * 31, rollout_pb2.GetRolloutRequest, 3)


def test_nesting_is_followed_as_far_as_protobuf_goes():
    deep = b""
    for _ in range(5000):
        deep = piece(5, piece(1, deep))
    check_items(piece(9, piece(2, deep)), OtlpSpan, 1000)


@pytest.mark.parametrize("name", sorted(REQUESTS))
@pytest.mark.parametrize(
    "data", [b"\x80" * 50, b"\x12\xff\xff\xff\xff\x0f", b"\x12", b"\xff" * 20 + b"\x01", b"\x0b\x0c"]
)
def test_what_is_malformed_is_left_to_the_parser(name, data):
    check_items(data, REQUESTS[name], 1, fields_max=100)


def test_parts():
    assert parts([]) == [[]]
    assert parts([1, 2]) == [[1, 2]]
    assert parts([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
