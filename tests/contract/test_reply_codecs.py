"""Recorded replies: what is kept as bytes comes back as it was, whatever the operation."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_store import RolloutConfig, StoreError
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    Claim,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
)
from lightning_store.engine import operations
from lightning_store.engine.operations import Operation
from lightning_store.engine.replies import decode_refusal, encode_refusal
from lightning_store.engine.transfer import Counted, Imported
from lightning_store.errors import CLASSES_BY_REASON, ErrorRecord, ResourceExhaustedError
from lightning_store.model import TIME_MAX_SECONDS, AttemptStatus, RolloutMode, RolloutStatus
from lightning_store.testing import strategies

EXTREMES = [0.0, 5e-324, 0.1 + 0.2, 1_700_000_000.123_456_7, math.nextafter(4e9, math.inf), float(TIME_MAX_SECONDS)]


def times() -> st.SearchStrategy[float]:
    return st.one_of(st.sampled_from(EXTREMES), st.floats(0, TIME_MAX_SECONDS))


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


def texts() -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(["", "null", '"\\ud800"', "☃", "\x00", "\u2028", "😀"]), strategies.texts())


def configs() -> st.SearchStrategy[RolloutConfig]:
    return st.builds(
        RolloutConfig,
        timeout_seconds=optional(times()),
        unresponsive_seconds=optional(times()),
        max_attempts=st.integers(1, 2**31 - 1),
        retry_condition=st.lists(st.sampled_from(get_args(AttemptStatus)), max_size=4),
    )


def positions() -> st.SearchStrategy[int]:
    return st.integers(0, 2**63 - 1)


rollouts = st.builds(
    RolloutRecord,
    rollout_id=strategies.ids(),
    input_json=texts(),
    start_time=times(),
    end_time=optional(times()),
    mode=optional(st.sampled_from(get_args(RolloutMode))),
    resources_id=optional(texts()),
    status=st.sampled_from(get_args(RolloutStatus)),
    config=configs(),
    metadata_json=optional(texts()),
    latest_attempt_id=optional(strategies.ids()),
    queue_position=optional(positions()),
    completion_position=optional(positions()),
    completion_time=optional(times()),
    deadline=optional(st.one_of(times(), st.just(2.0 * TIME_MAX_SECONDS))),
    spans_evicted=st.booleans(),
)
attempts = st.builds(
    AttemptRecord,
    rollout_id=strategies.ids(),
    attempt_id=strategies.ids(),
    sequence_id=positions(),
    start_time=times(),
    end_time=optional(times()),
    status=st.sampled_from(get_args(AttemptStatus)),
    worker_id=optional(texts()),
    last_heartbeat_time=optional(times()),
    metadata_json=optional(texts()),
)
claims = st.builds(Claim, rollouts, attempts)
rows = st.builds(RolloutRow, rollouts, st.none() | attempts)
resources = st.builds(
    ResourcesRecord,
    resources_id=strategies.ids(),
    resources_json=texts(),
    create_time=times(),
    update_time=times(),
    version=positions(),
)
errors = st.builds(
    ErrorRecord,
    reason=st.sampled_from(sorted(CLASSES_BY_REASON)),
    message=st.one_of(st.just("Rollout \ud800 not found"), strategies.odd_texts()),
    details=st.dictionaries(strategies.texts(), strategies.odd_texts(), max_size=2),
).map(ErrorRecord.error)
"""They may name an id that has no UTF-8 form, which is why it was refused."""
outcomes = st.one_of(st.none(), positions(), errors)


counted = st.builds(Counted, *[positions()] * len(Counted._fields))


def some(records: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(records, max_size=3)


REPLIES: dict[str, st.SearchStrategy[Any]] = {
    "EnqueueRollouts": some(rollouts),
    "StartRollout": claims,
    "ClaimRollouts": some(claims),
    "StartAttempt": claims,
    "UpdateRollout": rollouts,
    "CancelRollouts": some(rows),
    "RequeueRollouts": some(rows),
    "MarkConsumed": some(strategies.ids()),
    "RewindConsumer": some(strategies.ids()),
    "SetAdmission": st.builds(AdmissionRecord, strategies.ids(), optional(positions()), st.booleans()),
    "DeleteRollouts": st.tuples(optional(positions()), some(strategies.ids())),
    "UpdateAttempt": attempts,
    "AddSpans": some(outcomes),
    "DeleteWorkers": some(strategies.ids()),
    "DeleteResources": some(strategies.ids()),
    "AllocateSequenceIds": some(positions()),
    "PublishResources": resources,
    "ImportRollouts": st.builds(Imported, counted, counted),
}
"""What each operation may reply."""


def told(reply: Any) -> Any:
    """The same with what errors say in the place of errors, which equal nothing but themselves."""
    if isinstance(reply, StoreError):
        return type(reply), ErrorRecord.of(reply)
    return [told(one) for one in reply] if isinstance(reply, list) else reply


def test_every_operation_that_records_its_reply_is_here():
    found = [one for one in vars(operations).values() if isinstance(one, type) and issubclass(one, Operation)]
    assert {one.__name__ for one in found if one.codec is not None} == set(REPLIES)


def test_operations_are_told_apart_by_their_names():
    names = [getattr(operations, name).name for name in REPLIES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", REPLIES)
@given(data=st.data())
def test_a_reply_comes_back_as_it_was(name: str, data: st.DataObject):
    codec = getattr(operations, name).codec
    reply = data.draw(REPLIES[name])
    body = codec.encode(reply)
    assert isinstance(body, bytes)
    decoded = codec.decode(body)
    assert told(decoded) == told(reply)
    assert type(decoded) is type(reply)


@given(errors)
def test_a_refusal_comes_back_as_it_was(error: StoreError):
    assert told(decode_refusal(encode_refusal(error))) == told(error)


def test_a_refusal_says_when_to_try_again():
    error = ResourceExhaustedError("full", limit="memory")
    error.retry_after_seconds = 0.1 + 0.2
    decoded = decode_refusal(encode_refusal(error))
    assert isinstance(decoded, ResourceExhaustedError)
    assert (decoded.retry_after_seconds, decoded.details) == (0.1 + 0.2, {"limit": "memory"})


def test_a_config_that_was_set_by_hand_comes_back_too():
    """Objects may be changed after they were checked."""
    config = RolloutConfig(max_attempts=2)
    config.timeout_seconds = 5
    record = RolloutRecord("ro-1", "1", 5, None, None, None, "queuing", config, None)
    [decoded] = operations.EnqueueRollouts.codec.decode(operations.EnqueueRollouts.codec.encode([record]))
    assert decoded == record
