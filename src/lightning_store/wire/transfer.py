"""Stored rollouts with all that belongs to them, to the wire and back: payloads go through as the text they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lightning_store import json_text
from lightning_store.arguments import check_admission
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    ResourcesRecord,
    RolloutRecord,
    SpanRecord,
    StoredRollout,
    WorkerRecord,
)
from lightning_store.errors import StoreError
from lightning_store.reserved import run_of
from lightning_store.v1 import resources_pb2, rollout_pb2, span_pb2, transfer_pb2, worker_pb2
from lightning_store.wire.checks import INT64_MAX, checked_json_object, invalid, not_negative, require, required_text
from lightning_store.wire.codec import (
    attempt_from_proto,
    resources_from_proto,
    rollout_from_proto,
    worker_from_proto,
)
from lightning_store.wire.records import NULL, attempt_record_to_proto, rollout_record_to_proto
from lightning_store.wire.spans import span_record_from_proto

PLACE: Final = "."
"""Between the two numbers of a page token."""


def stored_rollout_to_proto(part: StoredRollout) -> transfer_pb2.StoredRollout:
    message = transfer_pb2.StoredRollout(
        rollout=rollout_record_to_proto(part.rollout),
        attempts=map(attempt_record_to_proto, part.attempts),
        spans_before=part.spans_before,
        last_sequence_id=part.last_sequence,
        queue_position=part.rollout.queue_key if part.rollout.in_queue else None,
        spans_evicted=part.rollout.spans_evicted,
        fingerprint=part.rollout.fingerprint,
    )
    for consumer, number in part.consumed.items():
        message.consumed.add(consumer=consumer, number=number)
    for span in part.spans:
        message.spans.add(sequence_id=span.sequence_id, document_json=span.document.decode())
    return message


def stored_rollout_from_proto(message: transfer_pb2.StoredRollout, field: str) -> StoredRollout:
    """InvalidArgumentError names what is missing, malformed, or does not belong together."""
    require(message, "rollout", f"{field}.rollout")
    rollout = _rollout_record(message.rollout, f"{field}.rollout")
    attempts = [_attempt_record(one, f"{field}.attempts[{i}]") for i, one in enumerate(message.attempts)]
    for number, attempt in enumerate(attempts, start=1):
        if attempt.rollout_id != rollout.rollout_id or attempt.sequence_id != number:
            problem = f"is not attempt {number} of {rollout.rollout_id}; give all of them, by sequence_id"
            raise invalid(f"{field}.attempts[{number - 1}]", problem)
    if len({one.attempt_id for one in attempts}) < len(attempts):
        raise invalid(f"{field}.attempts", "has an attempt_id twice")
    spans = [_span_record(one, f"{field}.spans[{i}]", rollout) for i, one in enumerate(message.spans)]
    last_sequence = not_negative(message.last_sequence_id, f"{field}.last_sequence_id")
    before = not_negative(message.spans_before, f"{field}.spans_before")
    rollout = rollout._replace(
        spans_evicted=message.spans_evicted,
        fingerprint=message.fingerprint if message.HasField("fingerprint") else None,
    )
    consumed = {
        required_text(one.consumer, f"{field}.consumed[{i}].consumer"): not_negative(
            one.number, f"{field}.consumed[{i}].number"
        )
        for i, one in enumerate(message.consumed)
    }
    return StoredRollout(rollout, attempts, spans, last_sequence, before, consumed)


def _rollout_record(message: rollout_pb2.Rollout, field: str) -> RolloutRecord:
    json_text.check_values(message.input_json, f"{field}.input_json")
    json_text.check_values(message.metadata_json, f"{field}.metadata_json")
    rollout = rollout_from_proto(message, field)
    return RolloutRecord(
        rollout_id=rollout.rollout_id,
        input_json=message.input_json if message.HasField("input_json") else NULL,
        start_time=rollout.start_time,
        end_time=rollout.end_time,
        mode=rollout.mode,
        resources_id=rollout.resources_id,
        status=rollout.status,
        config=rollout.config,
        metadata_json=message.metadata_json if message.HasField("metadata_json") else None,
        priority=rollout.priority,
        end_reason=rollout.end_reason,
        run=run_of(message.metadata_json),
        group_id=rollout.group_id,
        group_size=rollout.group_size,
    )


def _attempt_record(message: rollout_pb2.Attempt, field: str) -> AttemptRecord:
    json_text.check_values(message.metadata_json, f"{field}.metadata_json")
    attempt = attempt_from_proto(message, field)
    return AttemptRecord(
        rollout_id=attempt.rollout_id,
        attempt_id=attempt.attempt_id,
        sequence_id=attempt.sequence_id,
        start_time=attempt.start_time,
        end_time=attempt.end_time,
        status=attempt.status,
        worker_id=attempt.worker_id,
        last_heartbeat_time=attempt.last_heartbeat_time,
        metadata_json=message.metadata_json if message.HasField("metadata_json") else None,
        counts=attempt.counts,
        resources_id=attempt.resources_id,
        resources_version=attempt.resources_version,
        policy_version=attempt.policy_version,
        policy_version_min=attempt.policy_version_min,
        policy_version_max=attempt.policy_version_max,
    )


def _span_record(message: span_pb2.NewSpan, field: str, rollout: RolloutRecord) -> SpanRecord:
    record = span_record_from_proto(message, field)
    if record.rollout_id != rollout.rollout_id:
        raise invalid(f"{field}.document_json.rollout_id", f"is {record.rollout_id!r}, not {rollout.rollout_id!r}")
    if record.sequence_id is None:
        raise invalid(f"{field}.sequence_id", "is missing; it must be set")
    return record


def resources_record_from_proto(message: resources_pb2.Resources, field: str) -> ResourcesRecord:
    resources = resources_from_proto(message, field)
    if not 1 <= resources.version <= INT64_MAX:
        raise invalid(f"{field}.version", f"is {resources.version}; it must be 1 or more")
    fields = {name: resource.model_dump() for name, resource in resources.resources.items()}
    return ResourcesRecord(
        resources_id=resources.resources_id,
        resources_json=json_text.dumps(fields, f"{field}.resources_json"),
        create_time=resources.create_time,
        update_time=resources.update_time,
        version=resources.version,
        policy_version=resources.policy_version,
        run=resources.run,
    )


def worker_record_from_proto(message: worker_pb2.Worker, field: str) -> WorkerRecord:
    worker = worker_from_proto(message, field)
    stats = None
    if message.HasField("heartbeat_stats_json"):
        stats = checked_json_object(message.heartbeat_stats_json, f"{field}.heartbeat_stats_json")
    return WorkerRecord(
        worker_id=required_text(worker.worker_id, f"{field}.worker_id"),
        status=worker.status,
        heartbeat_stats_json=stats,
        last_heartbeat_time=worker.last_heartbeat_time,
        last_dequeue_time=worker.last_dequeue_time,
        last_busy_time=worker.last_busy_time,
        last_idle_time=worker.last_idle_time,
        current_rollout_id=worker.current_rollout_id,
        current_attempt_id=worker.current_attempt_id,
    )


def checkpoint_to_proto(record: CheckpointRecord) -> transfer_pb2.Checkpoint:
    return transfer_pb2.Checkpoint(consumer=record.consumer, checkpoint=record.checkpoint, number=record.number)


def checkpoint_from_proto(message: transfer_pb2.Checkpoint, field: str) -> CheckpointRecord:
    if message.number < 1:
        raise invalid(f"{field}.number", f"is {message.number}; it must be 1 or more")
    consumer = required_text(message.consumer, f"{field}.consumer")
    return CheckpointRecord(consumer, required_text(message.checkpoint, f"{field}.checkpoint"), message.number)


def admission_record_to_proto(record: AdmissionRecord) -> rollout_pb2.Admission:
    return rollout_pb2.Admission(**record._asdict())


def admission_record_from_proto(message: rollout_pb2.Admission, field: str) -> AdmissionRecord:
    bound = message.max_open_groups if message.HasField("max_open_groups") else None
    try:
        check_admission(message.run, bound, message.paused)
    except StoreError as error:
        raise invalid(field, str(error)) from None
    return AdmissionRecord(message.run, bound, message.paused)


def place_to_proto(place: tuple[int, int] | None) -> str:
    """A page token; empty for None."""
    return "" if place is None else PLACE.join(map(str, place))


def place_from_proto(token: str, field: str) -> tuple[int, int]:
    """Where a page begins: at the beginning for an empty token."""
    numbers: Sequence[str] = token.split(PLACE) if token else ("0", "0")
    if len(numbers) != 2 or not all(one.isascii() and one.isdigit() and int(one) <= INT64_MAX for one in numbers):
        raise invalid(field, f"is {token!r}, which no reply had as its next_page_token")
    place, spans = map(int, numbers)
    return place, spans
