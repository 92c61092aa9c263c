"""The rules for worker records, as pure functions. A worker holds at most one attempt: the last one that it got."""

from __future__ import annotations

from lightning_store.backends.records import AttemptRecord, WorkerRecord
from lightning_store.lifecycle import ACTIVE, REPORTED


def holds(worker: WorkerRecord, attempt: AttemptRecord) -> bool:
    """Whether ``attempt`` is the one that the worker is busy with."""
    return worker.current_rollout_id == attempt.rollout_id and worker.current_attempt_id == attempt.attempt_id


def take(worker: WorkerRecord, attempt: AttemptRecord, now: float) -> WorkerRecord:
    """Busy with ``attempt``, whatever it held before."""
    return worker._replace(
        status="busy",
        last_busy_time=now,
        current_rollout_id=attempt.rollout_id,
        current_attempt_id=attempt.attempt_id,
    )


def release(worker: WorkerRecord, now: float) -> WorkerRecord:
    """Idle, with nothing in its hands."""
    return worker._replace(status="idle", last_idle_time=now, current_rollout_id=None, current_attempt_id=None)


def lose_sight(worker: WorkerRecord) -> WorkerRecord:
    """Its attempt was given up: what it does now is unknown."""
    return worker._replace(status="unknown", current_rollout_id=None, current_attempt_id=None)


def last_seen(worker: WorkerRecord) -> float:
    """When it was last heard of, in seconds since the epoch."""
    times = (worker.last_heartbeat_time, worker.last_dequeue_time, worker.last_busy_time, worker.last_idle_time)
    return max(time or 0.0 for time in times)


def asked(worker: WorkerRecord, attempt: AttemptRecord | None, now: float) -> WorkerRecord:
    """It asked for work, and got ``attempt``; None if there was none. A busy worker keeps what it holds then."""
    if attempt is None:
        worker = worker._replace(last_dequeue_time=now)
        return worker if worker.status in ("busy", "idle") else release(worker, now)
    return worker._replace(
        status="busy",
        last_dequeue_time=now,
        last_busy_time=now,
        current_rollout_id=attempt.rollout_id,
        current_attempt_id=attempt.attempt_id,
    )


def lease_end(
    worker: WorkerRecord, attempt: AttemptRecord, timeout_seconds: float, watched_since: float
) -> float | None:
    """When the worker of ``attempt`` counts as dead: this long after its last sign of life, whatever that was, or after
    ``watched_since``, before which nobody could hear one.

    None for a worker that has never sent a heartbeat: it does not promise to.
    """
    if worker.last_heartbeat_time is None:
        return None
    signs = (
        worker.last_heartbeat_time,
        worker.last_dequeue_time or 0.0,
        attempt.last_heartbeat_time or 0.0,
        attempt.start_time,
        watched_since,
    )
    return max(signs) + timeout_seconds


def follow(worker: WorkerRecord, attempt: AttemptRecord, assigned: bool, now: float) -> WorkerRecord:
    """The worker after ``attempt``, which names it, was changed; ``assigned`` if the change gave it to this worker.

    Only the attempt that it holds changes its status. One that it is given takes the place of that, unless it is over.
    """
    holding, empty_handed = holds(worker, attempt), worker.current_attempt_id is None
    if attempt.status in ACTIVE:
        return take(worker, attempt, now) if holding or assigned or empty_handed else worker
    if not holding and not (assigned and empty_handed):
        return worker
    return release(worker, now) if attempt.status in REPORTED else lose_sight(worker)
