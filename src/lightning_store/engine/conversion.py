"""Records as the objects that callers get. Each is built anew, so that changing one changes nothing in the store."""

from __future__ import annotations

from typing import Any

from lightning_store import json_text
from lightning_store.backends.records import (
    AttemptRecord,
    Claim,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.model import (
    Attempt,
    AttemptedRollout,
    ResourcesUpdate,
    Rollout,
    Span,
    Worker,
    construct,
    copy_of,
)
from lightning_store.spans.document import decode


def rollout_of(record: RolloutRecord) -> Rollout:
    return construct(Rollout, _rollout_fields(record))


def attempted_rollout_of(claim: Claim) -> AttemptedRollout:
    fields = _rollout_fields(claim.rollout)
    fields["attempt"] = attempt_of(claim.attempt)
    return construct(AttemptedRollout, fields)


def rollout_with_attempt(row: RolloutRow) -> Rollout:
    """An AttemptedRollout where there is an attempt, a Rollout where there is none."""
    return rollout_of(row.rollout) if row.attempt is None else attempted_rollout_of(Claim(row.rollout, row.attempt))


def attempt_of(record: AttemptRecord) -> Attempt:
    fields = {
        "rollout_id": record.rollout_id,
        "attempt_id": record.attempt_id,
        "sequence_id": record.sequence_id,
        "start_time": record.start_time,
        "end_time": record.end_time,
        "status": record.status,
        "worker_id": record.worker_id,
        "last_heartbeat_time": record.last_heartbeat_time,
        "metadata": _json(record.metadata_json, "metadata"),
        "counts": record.counts,
        "resources_id": record.resources_id,
        "resources_version": record.resources_version,
        "policy_version": record.policy_version,
        "policy_version_min": record.policy_version_min,
        "policy_version_max": record.policy_version_max,
    }
    return construct(Attempt, fields)


def span_of(record: SpanRecord) -> Span:
    """The span of a record whose ``sequence_id`` is set, or 0 for it."""
    return decode(record.document, record.sequence_id or 0)


def resources_of(record: ResourcesRecord) -> ResourcesUpdate:
    return ResourcesUpdate(
        resources_id=record.resources_id,
        resources=json_text.loads(record.resources_json, "resources"),
        create_time=record.create_time,
        update_time=record.update_time,
        version=record.version,
        policy_version=record.policy_version,
        run=record.run,
    )


def worker_of(record: WorkerRecord) -> Worker:
    fields = {
        "worker_id": record.worker_id,
        "status": record.status,
        "heartbeat_stats": _json(record.heartbeat_stats_json, "heartbeat_stats"),
        "last_heartbeat_time": record.last_heartbeat_time,
        "last_dequeue_time": record.last_dequeue_time,
        "last_busy_time": record.last_busy_time,
        "last_idle_time": record.last_idle_time,
        "current_rollout_id": record.current_rollout_id,
        "current_attempt_id": record.current_attempt_id,
    }
    return construct(Worker, fields)


def _rollout_fields(record: RolloutRecord) -> dict[str, Any]:
    return {
        "rollout_id": record.rollout_id,
        "input": json_text.loads(record.input_json, "input"),
        "start_time": record.start_time,
        "end_time": record.end_time,
        "mode": record.mode,
        "resources_id": record.resources_id,
        "status": record.status,
        "config": copy_of(record.config),
        "metadata": _json(record.metadata_json, "metadata"),
        "end_reason": record.end_reason,
        "priority": record.priority,
        "group_id": record.group_id,
        "group_size": record.group_size,
    }


def _json(text: str | None, path: str) -> Any:
    if text is None:
        return None
    return {} if text == "{}" else json_text.loads(text, path)
