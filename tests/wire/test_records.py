"""Records to the wire: the same messages as those of the objects; what comes in is stored as the text that it is."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_store import json_text
from lightning_store.backends.records import AttemptRecord, RolloutRecord, RolloutRow
from lightning_store.errors import InvalidArgumentError
from lightning_store.model import Attempt, AttemptedRollout, Rollout, RolloutConfig
from lightning_store.testing import strategies
from lightning_store.v1 import rollout_pb2
from lightning_store.wire import codec, records, requests
from tests.wire.same import assert_same, through_bytes


def text_of(value: object) -> str | None:
    return None if value is None else json_text.dumps(value, "value")


def record_of(rollout: Rollout) -> RolloutRecord:
    fields = {name: getattr(rollout, name) for name in RolloutRecord._fields if hasattr(rollout, name)}
    return RolloutRecord(
        **fields, input_json=json_text.dumps(rollout.input, "input"), metadata_json=text_of(rollout.metadata)
    )


def attempt_record_of(attempt: Attempt) -> AttemptRecord:
    fields = {name: getattr(attempt, name) for name in AttemptRecord._fields if not name.endswith("_json")}
    return AttemptRecord(**fields, metadata_json=text_of(attempt.metadata))


def row_of(rollout: Rollout) -> RolloutRow:
    attempt = attempt_record_of(rollout.attempt) if isinstance(rollout, AttemptedRollout) else None
    return RolloutRow(record_of(rollout), attempt)


def some_rollout(rollout_id: str, input: str) -> Rollout:
    return Rollout(rollout_id=rollout_id, input=input, start_time=0.0, config=RolloutConfig())


@given(st.one_of(strategies.rollouts(), strategies.attempted_rollouts()))
def test_a_row_reads_as_the_object_that_it_stands_for(rollout):
    message = through_bytes(records.rollout_row_to_proto(row_of(rollout)))
    assert_same(codec.rollout_from_proto(message, "rollout"), rollout)


@given(strategies.attempts())
def test_an_attempt_reads_as_the_object_that_it_stands_for(attempt):
    message = through_bytes(records.attempt_record_to_proto(attempt_record_of(attempt)))
    assert_same(codec.attempt_from_proto(message, "attempt"), attempt)


@given(strategies.enqueue_requests())
def test_a_new_rollout_has_what_was_asked_for(request):
    new = records.new_rollout_from_proto(through_bytes(codec.new_rollout_to_proto(request)), "rollouts[0]")
    assert_same(json_text.loads(new.input_json, "input"), request.input)
    assert_same(json_text.loads(new.metadata_json, "metadata"), request.metadata or {})
    assert (new.mode, new.resources_id) == (request.mode, request.resources_id)
    assert_same(new.config, request.config or RolloutConfig())


def test_a_payload_is_stored_as_the_text_that_came():
    message = rollout_pb2.NewRollout(input_json=' {"a" : 1e0}', metadata_json='{ "b":2 }')
    new = records.new_rollout_from_proto(message, "rollout")
    assert (new.input_json, new.metadata_json) == (' {"a" : 1e0}', '{ "b":2 }')


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"input_json": "{"}, "rollouts[1].input_json"),
        ({"metadata_json": "[]"}, "rollouts[1].metadata_json"),
        ({"metadata_json": ""}, "rollouts[1].metadata_json"),
        ({"mode": 99}, "rollouts[1].mode"),
        ({"config": rollout_pb2.RolloutConfig(max_attempts=0)}, "rollouts[1].config.max_attempts"),
    ],
)
def test_what_is_not_legal_is_refused_with_its_path(fields, path):
    with pytest.raises(InvalidArgumentError) as caught:
        records.new_rollout_from_proto(rollout_pb2.NewRollout(**fields), "rollouts[1]")
    assert caught.value.details["field"] == path


@given(strategies.attempt_updates(), strategies.ids())
def test_a_change_of_an_attempt_sets_exactly_what_was_given(update, attempt_id):
    request = through_bytes(requests.update_attempt_to_proto("q", "r", attempt_id, update))
    columns, status = records.attempt_change_from_proto(request)
    given_fields = update.model_dump(exclude_unset=True)
    assert status == given_fields.pop("status", None)
    if "metadata" in given_fields:
        metadata_json = columns.pop("metadata_json")
        metadata = None if metadata_json is None else json_text.loads(metadata_json, "metadata")
        assert_same(metadata, given_fields.pop("metadata"))
    assert columns == given_fields
    assert requests.attempt_from_request(request) == attempt_id


@pytest.mark.parametrize("text", ["a" * 10_000, "é" * 10_000, "中" * 10_000, "a" * 9_999 + "\N{SLIGHTLY SMILING FACE}"])
def test_a_record_takes_no_more_memory_than_it_counts_whoever_reads_it(text):
    message = rollout_pb2.NewRollout(input_json=f'"{text}"', metadata_json=f'{{"text": "{text}"}}')
    new = records.new_rollout_from_proto(through_bytes(message), "rollout")
    rollout = record_of(some_rollout("ro", ""))._replace(input_json=new.input_json, metadata_json=new.metadata_json)
    attempt = AttemptRecord("ro", "at", 1, 0.0, None, "running", None, None, new.metadata_json)
    counted_bytes = rollout.payload_bytes
    row = records.rollout_row_to_proto(RolloutRow(rollout, attempt))
    assert (row.input_json, row.latest_attempt.metadata_json) == (new.input_json, new.metadata_json)
    assert json_text.loads(new.input_json, "input") == text
    memory_bytes = sys.getsizeof(new.input_json) + sys.getsizeof(new.metadata_json)
    assert memory_bytes <= counted_bytes + 200 <= 4 * memory_bytes
    assert rollout.payload_bytes == counted_bytes


class TestRowsEncoder:
    @given(st.lists(strategies.attempted_rollouts(), min_size=1, max_size=2))
    def test_the_bytes_are_those_of_the_row(self, rollouts):
        rows = [row_of(rollout) for rollout in rollouts]
        encoder = records.RowsEncoder(kept_bytes_max=2 * rows[0].rollout.size_bytes)
        for row in [*rows, *rows]:
            assert encoder.encode(row) == records.rollout_row_to_proto(row).SerializeToString()

    @given(strategies.attempted_rollouts())
    def test_a_row_that_changed_is_made_anew(self, rollout):
        encoder = records.RowsEncoder()
        row = row_of(rollout)
        first = encoder.encode(row)
        assert encoder.encode(row) is first
        assert row.attempt is not None
        changed = row._replace(attempt=row.attempt._replace(sequence_id=row.attempt.sequence_id // 2 + 1))
        assert encoder.encode(changed) == records.rollout_row_to_proto(changed).SerializeToString()
        other = row._replace(rollout=row.rollout._replace(status="cancelled"))
        assert encoder.encode(other) == records.rollout_row_to_proto(other).SerializeToString()

    def test_what_is_kept_is_bounded_by_its_size(self):
        encoder = records.RowsEncoder(kept_bytes_max=100_000)
        for number, length in enumerate([100, 5000, 20, 20_000] * 20):
            attempt = AttemptRecord(f"ro-{number}", "at", 1, 0.0, None, "running", None, None, "x" * length)
            row = row_of(some_rollout(f"ro-{number}", "x"))._replace(attempt=attempt)
            assert encoder.encode(row) is encoder.encode(row)
            kept = [
                one.row.rollout.size_bytes + one.row.attempt.size_bytes + len(one.data)
                for one in encoder._kept.values()
            ]
            assert encoder._kept_bytes == sum(kept) <= 100_000
        assert len(kept) >= 4

    def test_a_large_row_is_not_kept(self):
        encoder = records.RowsEncoder()
        small, large = (row_of(some_rollout("ro", "x" * length)) for length in (1, records.KEPT_ROW_BYTES_MAX))
        for row in (large, small, large):
            assert encoder.encode(row) == records.rollout_row_to_proto(row).SerializeToString()
        assert (len(encoder._kept), encoder._kept_bytes) == (0, 0)
