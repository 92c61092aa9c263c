"""The rules that change records, as plain functions of a view of the data.

A rule reads what it needs through the view and writes what it changes there; the view knows the time and the policy.
A rule that refuses raises a StoreError. The status rules are in ``lightning_store.lifecycle``, those of workers in
``lightning_store.engine.workers``; ``docs/contract.md`` tells them all as numbered facts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from lightning_store import lifecycle, reserved
from lightning_store.backends.matching import matches
from lightning_store.backends.records import (
    LOST,
    AttemptRecord,
    Claim,
    NewRollout,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.engine import admission, workers
from lightning_store.engine.idempotency_keys import fingerprint_of, keyed_ids
from lightning_store.engine.view import View
from lightning_store.errors import (
    AttemptFencedError,
    AttemptNotFoundError,
    IdempotencyKeyReusedError,
    InUseError,
    InvalidArgumentError,
    InvalidTransitionError,
    NoAttemptsError,
    ResourcesNotFoundError,
    RolloutNotFoundError,
    StoreError,
)
from lightning_store.model import AttemptStatus, RolloutConfig, RolloutStatus
from lightning_store.outcomes import SpanOutcome
from lightning_store.queries import ALL_ROLLOUTS, RolloutQuery

SEQUENCE_MAX: Final = 2**63 - 1
"""The last span number: what a signed 64-bit integer holds."""
STALE_AT_ONCE: Final = 64
"""How much of the queue to load when what was loaded is stale."""
STALE_MAX: Final = 1000
"""Stale rollouts that one claim cancels at the most; then it returns what it has."""
CLAIM_BYTES: Final = 64 * 1024 * 1024
"""A claim ends with the rollout whose payloads bring it to so many bytes: its reply has to be one message."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """Which rollouts to delete: those for which everything holds that is not None."""

    rollout_ids: Sequence[str] | None = None
    older_than_seconds: float | None = None
    """Terminal for so long, or longer."""
    status_in: Collection[str] | None = None
    where: RolloutQuery = ALL_ROLLOUTS
    """Has filters."""

    def is_old(self, completion_time: float | None, now: float) -> bool:
        if self.older_than_seconds is None:
            return True
        return completion_time is not None and now - completion_time >= self.older_than_seconds


# --- Looking up ------------------------------------------------------------------------------------------------------


def known_rollout(view: View, rollout_id: str) -> RolloutRecord:
    """The rollout. RolloutNotFoundError if there is none (fact 15)."""
    record = view.rollout(rollout_id)
    if record is None:
        raise RolloutNotFoundError.of(rollout_id)
    return record


def known_attempt(view: View, rollout_id: str, attempt_id: str) -> AttemptRecord:
    """The attempt of a rollout that exists. AttemptNotFoundError if there is none (fact 15)."""
    record = view.attempt(rollout_id, attempt_id)
    if record is None:
        raise AttemptNotFoundError.of(rollout_id, attempt_id)
    return record


# --- Deadlines (facts 28 to 30) --------------------------------------------------------------------------------------


def expire(view: View, rollout_id: str) -> None:
    """End the rollout's latest attempt if a deadline of it has passed; note the next deadline if none has. A rollout
    whose wait for its retry is over goes to the tail of the queue."""
    rollout = view.rollout(rollout_id)
    if rollout is not None and rollout.waits_to_retry:
        if rollout.deadline is not None and view.now > rollout.deadline:
            band = queue_band(rollout.priority, at_head=rollout.config.retry_position == "head")
            queue_position = view.next_queue_position()
            view.put_rollout(rollout._replace(queue_position=queue_position, queue_band=band, deadline=None))
            view.effects.queued.append(rollout_id)
        return
    attempt = None if rollout is None else view.latest_attempt(rollout)
    if rollout is None or attempt is None:
        return
    for limit in _limits(view, rollout.status, rollout.config, attempt):
        if view.now > limit.time:
            _change_attempt(view, rollout, attempt, _moved(view, attempt, limit.status), reported=True)
            return
    view.put_rollout(rollout._replace(deadline=first_deadline(view, rollout.status, rollout.config, attempt)))


def first_deadline(view: View, status: RolloutStatus, config: RolloutConfig, latest: AttemptRecord) -> float | None:
    """When to look at a rollout again that has this status: its earliest deadline, or None while none counts."""
    if status not in lifecycle.ACTIVE or latest.status not in lifecycle.ACTIVE:
        return None
    has_lease = _has_lease(view, latest)
    if not has_lease and config.timeout_seconds is None and config.unresponsive_seconds is None:
        return None  # as a rule
    times = [limit.time for limit in _limits(view, status, config, latest)]
    if has_lease:  # to see whether the worker has begun to send heartbeats
        times.append(view.now + view.policy.worker_timeout_seconds)
    return min(times, default=None)


def _has_lease(view: View, attempt: AttemptRecord) -> bool:
    return bool(view.policy.worker_timeout_seconds and attempt.worker_id)


def _limits(view: View, status: RolloutStatus, config: RolloutConfig, latest: AttemptRecord) -> list[lifecycle.Expiry]:
    lease_end = None
    if latest.worker_id and _has_lease(view, latest):
        worker = view.worker(latest.worker_id)
        if worker is not None:
            lease_end = workers.lease_end(worker, latest, view.policy.worker_timeout_seconds, view.watched_since)
    return lifecycle.limits(
        status,
        latest.status,
        latest.start_time,
        latest.last_heartbeat_time,
        config,
        lease_end,
        view.watched_since,
    )


def _put(view: View, rollout: RolloutRecord, latest: AttemptRecord | None, columns: dict[str, Any]) -> RolloutRecord:
    """Store ``columns`` of a rollout, and a deadline that is early enough: one that moves later is found out when the
    former has come. The deadline of one that waits for its retry stays as it is.

    Args:
        latest: The latest attempt, as it is from now on.
        columns: What is to change; nothing is stored if nothing changes.
    """
    status, position = columns.get("status", rollout.status), columns.get("queue_position", rollout.queue_position)
    waits = status == "requeuing" and position is None
    if latest is not None and not waits:
        config = columns.get("config", rollout.config)
        deadline, former = first_deadline(view, status, config, latest), rollout.deadline
        if deadline != former and (deadline is None or former is None or deadline < former):
            columns["deadline"] = deadline
    if columns:
        rollout = rollout._replace(**columns)
        view.put_rollout(rollout)
    return rollout


# --- Rollouts and the queue (facts 1 to 9) ---------------------------------------------------------------------------


def create(view: View, new: NewRollout, status: RolloutStatus, queue_position: int | None = None) -> RolloutRecord:
    """A new rollout, not stored yet. The resources must have been checked."""
    resources_id = new.resources_id
    if resources_id is None:
        latest = latest_of_run(view, new.run)
        resources_id = latest.resources_id if latest is not None else None
    return RolloutRecord(
        rollout_id=view.new_rollout_id(),
        input_json=new.input_json,
        start_time=view.now,
        end_time=None,
        mode=new.mode,
        resources_id=resources_id,
        status=status,
        config=new.config,
        metadata_json=new.metadata_json,
        queue_position=queue_position,
        priority=new.priority,
        queue_band=queue_band(new.priority),
        run=new.run,
        group_id=new.group_id,
        group_size=new.group_size,
    )


def queue_band(priority: int, *, at_head: bool = False) -> int:
    """The part of the queue for rollouts of this priority, those at its head apart."""
    return -2 * priority - at_head


def check_resources(view: View, resources_id: str | None) -> None:
    """Strict mode refuses an id that is not known (fact 2)."""
    if view.policy.strict and resources_id is not None and view.resources(resources_id) is None:
        raise ResourcesNotFoundError.of(resources_id)


def enqueue_once(view: View, requests: Sequence[NewRollout], key: str) -> list[RolloutRecord]:
    """The same under an idempotency key: once, for as long as any of them exists."""
    ids, fingerprint = keyed_ids(key, len(requests)), fingerprint_of(requests)
    stored = [record for record in map(view.rollout, ids) if record is not None]
    if any(record.fingerprint != fingerprint for record in stored):
        raise IdempotencyKeyReusedError.of(key)
    return stored or enqueue(view, requests, ids, fingerprint)


def enqueue_each(view: View, requests: Sequence[NewRollout]) -> list[RolloutRecord]:
    """The same where the metadata of some have a key: those that have the same are one batch."""
    batches: dict[str, list[NewRollout]] = {}
    for new in requests:
        if new.idempotency_key is not None:
            batches.setdefault(new.idempotency_key, []).append(new)
    if not batches:
        return enqueue(view, requests)
    keyed = {key: iter(enqueue_once(view, batch, key)) for key, batch in batches.items()}
    queued: list[RolloutRecord] = []
    for new in requests:
        queued += enqueue(view, [new]) if new.idempotency_key is None else islice(keyed[new.idempotency_key], 1)
    return queued


def enqueue(
    view: View, requests: Sequence[NewRollout], ids: Sequence[str] = (), fingerprint: str | None = None
) -> list[RolloutRecord]:
    """Put new rollouts at the tail of the queue, under these ids if given."""
    for new in requests:
        check_resources(view, new.resources_id)
    records = []
    for index, new in enumerate(requests):
        record = create(view, new, "queuing", view.next_queue_position())
        if record.group_id is not None and record.run is not None:
            admission.note(view, record)
            record = record._replace(held=view.admission(record.run) is not None)
        if ids:
            record = record._replace(rollout_id=ids[index], fingerprint=fingerprint)
        view.put_rollout(record)
        view.effects.queued.append(record.rollout_id)
        records.append(record)
    return records


def start_rollout(view: View, new: NewRollout, worker_id: str | None) -> Claim:
    """A new rollout that skips the queue, with its first attempt."""
    if new.idempotency_key is not None:
        message = "a rollout that skips the queue takes no lightning.idempotency_key; enqueue it"
        raise InvalidArgumentError(message, field="metadata")
    check_resources(view, new.resources_id)
    return begin_attempt(view, create(view, new, "preparing"), worker_id)


def claim(view: View, limit: int, worker_id: str | None) -> list[Claim]:
    """Up to ``limit`` rollouts, fewer if there are no more or they are large (facts 4 and 26). Those that are stale are
    cancelled."""
    claims: list[Claim] = []
    payload_bytes = cancelled = 0
    for rollout_id in view.queue(max(limit, STALE_AT_ONCE), CLAIM_BYTES):
        rollout = known_rollout(view, rollout_id)
        if rollout.config.max_staleness is not None and rollout.config.bind == "enqueue" and _is_stale(view, rollout):
            if rollout.config.on_stale == "cancel":
                latest = view.latest_attempt(rollout)
                columns = _status_columns(view, rollout, "cancelled", latest) | {"end_reason": "stale"}
                _put(view, rollout, latest, columns)
                cancelled += 1
                if cancelled == STALE_MAX:
                    break
                continue
            rollout = _with_latest(view, rollout)
        claims.append(_begin(view, rollout, worker_id))
        if len(claims) == limit:
            break
        payload_bytes += rollout.payload_bytes
        if payload_bytes >= CLAIM_BYTES:
            break
    if worker_id:
        asked = workers.asked(known_worker(view, worker_id), claims[-1].attempt if claims else None, view.now)
        view.put_worker(asked)
    return claims


def begin_attempt(view: View, rollout: RolloutRecord, worker_id: str | None) -> Claim:
    """A new attempt of a rollout, which leaves the queue if it is in it (fact 6)."""
    begun = _begin(view, rollout, worker_id)
    if worker_id:
        view.put_worker(workers.take(known_worker(view, worker_id), begun.attempt, view.now))
    return begun


def _begin(view: View, rollout: RolloutRecord, worker_id: str | None) -> Claim:
    """The same, with the worker's record left to the caller."""
    former = view.latest_attempt(rollout)
    if rollout.config.bind == "claim":
        rollout = _with_latest(view, rollout)
    resources = None if rollout.resources_id is None else view.resources(rollout.resources_id)
    policy_version = None if resources is None else resources.policy_version
    attempt = AttemptRecord(
        rollout_id=rollout.rollout_id,
        attempt_id=view.new_attempt_id(rollout.rollout_id),
        sequence_id=1 if former is None else former.sequence_id + 1,
        start_time=view.now,
        end_time=None,
        status="preparing",
        worker_id=worker_id,
        last_heartbeat_time=None,
        metadata_json=None,
        resources_id=rollout.resources_id,
        resources_version=None if resources is None else resources.version,
        policy_version=policy_version,
        policy_version_min=policy_version,
        policy_version_max=policy_version,
    )
    view.put_attempt(attempt)
    columns = _status_columns(view, rollout, "preparing", attempt)
    columns["latest_attempt_id"] = attempt.attempt_id
    if rollout.group_id is not None and rollout.first_claim_time is None:
        columns["first_claim_time"] = view.now
    return Claim(_put(view, rollout, attempt, columns), attempt)


# --- Which resources -------------------------------------------------------------------------------------------------


def latest_of_run(view: View, run: str | None) -> ResourcesRecord | None:
    """The latest resources for a rollout of this run: those of the run, else those of no run. Without a run they are
    the latest of all."""
    if run is None:
        return view.latest_resources()
    return view.newest_resources(run) or view.newest_resources(None)


def _with_latest(view: View, rollout: RolloutRecord) -> RolloutRecord:
    latest = latest_of_run(view, rollout.run)
    return rollout if latest is None else rollout._replace(resources_id=latest.resources_id)


def _is_stale(view: View, rollout: RolloutRecord, attempt: AttemptRecord | None = None) -> bool:
    """Whether the resources of a rollout, or the least policy version that an attempt of it has used, are further
    behind the latest of their run than the rollout may be."""
    resources_id = rollout.resources_id if attempt is None else attempt.resources_id
    resources = None if resources_id is None else view.resources(resources_id)
    if resources is None or rollout.config.max_staleness is None:
        return False
    version = resources.policy_version if attempt is None else attempt.policy_version_min
    newest = view.newest_resources(resources.run)
    if version is None or newest is None:
        return False
    return newest.policy_version - version > rollout.config.max_staleness


# --- Changing rollouts -----------------------------------------------------------------------------------------------


def update_rollout(
    view: View, rollout_id: str, columns: Mapping[str, Any], status: RolloutStatus | None
) -> RolloutRecord:
    """Set ``columns`` of a rollout, then move it to ``status`` if one was given (fact 7)."""
    rollout = known_rollout(view, rollout_id)
    if status is not None and view.policy.outcomes_are_final and not lifecycle.may_leave(rollout.status, status):
        message = f"Rollout {rollout_id} is {rollout.status}; it can only be put back to queuing or requeuing"
        raise InvalidTransitionError(message, rollout_id=rollout_id, field="status")
    changes, latest = dict(columns), view.latest_attempt(rollout)
    if status is not None:
        changes |= _status_columns(view, rollout, status, latest, keeps_place=True)
    return _put(view, rollout, latest, changes)


def cancel(
    view: View, rollout_ids: Sequence[str], where: RolloutQuery = ALL_ROLLOUTS, *, named: bool = True
) -> list[RolloutRow]:
    """End rollouts as cancelled; those that are terminal already stay as they are.

    Args:
        view: The data.
        rollout_ids: The rollouts.
        where: Has filters; others are left out.
        named: Whether the rollouts have to be known. Otherwise those that are gone or terminal are left out.
    """
    records = {}
    for rollout_id in dict.fromkeys(rollout_ids):
        found = known_rollout(view, rollout_id) if named else view.rollout(rollout_id)
        if found is None or not (named or found.status not in lifecycle.TERMINAL):
            continue
        if matches(found, where, view.latest_attempt(found)):
            records[rollout_id] = found
    for rollout_id, record in records.items():
        if record.status not in lifecycle.TERMINAL:
            records[rollout_id] = update_rollout(view, rollout_id, {}, "cancelled")
    rows = {rollout_id: RolloutRow(record, view.latest_attempt(record)) for rollout_id, record in records.items()}
    return [rows[rollout_id] for rollout_id in rollout_ids if rollout_id in rows]


def requeue(view: View, rollout_ids: Sequence[str]) -> list[RolloutRow]:
    """Put terminal rollouts back to the tail of the queue; the others stay as they are."""
    rows = {}
    for rollout_id in dict.fromkeys(rollout_ids):
        record = known_rollout(view, rollout_id)
        if record.status in lifecycle.TERMINAL:
            record = update_rollout(view, rollout_id, {}, "requeuing")
        rows[rollout_id] = RolloutRow(record, view.latest_attempt(record))
    return [rows[rollout_id] for rollout_id in rollout_ids]


def _status_columns(
    view: View,
    rollout: RolloutRecord,
    status: RolloutStatus,
    latest: AttemptRecord | None,
    *,
    keeps_place: bool = False,
    retry_time: float | None = None,
    at_head: bool = False,
) -> dict[str, Any]:
    """The columns of a rollout that moves to ``status``, its place in the queue and among the completions among them
    (fact 5).

    Args:
        latest: Its latest attempt, as it is from now on.
        keeps_place: Whether a rollout that goes on without being claimed has its place again when it is put back.
        retry_time: When a rollout that is put back is in the queue again; None for at once.
        at_head: Whether it stands before all others of its priority.
    """
    columns: dict[str, Any] = {"status": status}
    if rollout.held or status in LOST or rollout.completion_position is not None:
        admission.note(view, rollout)
    if rollout.held and status not in lifecycle.QUEUED:
        columns["held"] = False
    if status in lifecycle.TERMINAL:
        columns["end_time"] = view.now
        columns["end_reason"] = lifecycle.end_reason(status, None if latest is None else latest.status)
        columns["queue_position"] = None
        view.effects.ended.append(rollout.rollout_id)
        if status != rollout.status:
            columns["completion_position"] = view.next_completion_position()
            columns["completion_time"] = view.now
        return columns
    if rollout.completion_position is not None:
        columns["completion_position"] = columns["completion_time"] = columns["end_reason"] = None
    if status in lifecycle.QUEUED and retry_time is not None:
        columns["queue_position"] = None
        columns["deadline"] = retry_time
    elif status in lifecycle.QUEUED:
        if rollout.queue_position is None:
            columns["queue_position"] = view.next_queue_position()
            columns["queue_band"] = queue_band(rollout.priority, at_head=at_head)
        view.effects.queued.append(rollout.rollout_id)
    elif not keeps_place and rollout.queue_position is not None:
        columns["queue_position"] = None
    return columns


def delete(view: View, rollout_id: str, which: Deletion) -> bool:
    """Delete a rollout if it is there and all that was asked for holds for it. Its workers are released."""
    record = view.rollout(rollout_id)
    if record is None or (which.status_in is not None and record.status not in which.status_in):
        return False
    if not which.is_old(record.completion_time, view.now):
        return False
    if which.where.filters and not matches(record, which.where, view.latest_attempt(record)):
        return False
    for worker in view.holders(rollout_id):
        view.put_worker(workers.release(worker, view.now))
    if not record.consumers:
        admission.note(view, record)
    view.delete_rollout(rollout_id)
    return True


# --- Attempts (facts 10 to 16) ---------------------------------------------------------------------------------------


def update_attempt(
    view: View, rollout_id: str, attempt_id: str, columns: Mapping[str, Any], status: AttemptStatus | None
) -> AttemptRecord:
    """Set ``columns`` of an attempt (or the "latest"), then move it to ``status`` if given; the rollout follows."""
    rollout = known_rollout(view, rollout_id)
    latest = view.latest_attempt(rollout)
    if latest is None:
        raise NoAttemptsError.of(rollout_id)
    is_latest = attempt_id in ("latest", latest.attempt_id)
    former = latest if is_latest else known_attempt(view, rollout_id, attempt_id)
    if columns.get("metadata_json") is not None:
        counts = reserved.counts_of(columns["metadata_json"])
        columns = columns if counts is None else {"counts": counts, **columns}
    updated = former._replace(**columns) if columns else former
    if status is not None:
        updated = _moved(view, updated, status)
    if updated.counts != former.counts:
        uncounted = rollout.uncounted_attempts + former.counts - updated.counts
        rollout = rollout._replace(uncounted_attempts=uncounted)
        view.put_rollout(rollout)
    _change_attempt(view, rollout, former, updated, reported=status is not None)
    return updated


def _moved(view: View, attempt: AttemptRecord, status: AttemptStatus) -> AttemptRecord:
    return attempt._replace(status=status, end_time=None if status in lifecycle.ACTIVE else view.now)


def _change_attempt(
    view: View, rollout: RolloutRecord, former: AttemptRecord, attempt: AttemptRecord, *, reported: bool
) -> None:
    """Replace ``former`` by ``attempt``; ``reported`` if its status was set, be it to the same as before."""
    view.put_attempt(attempt)
    if attempt.attempt_id == rollout.latest_attempt_id:
        _put(view, rollout, attempt, _following_columns(view, rollout, attempt, reported))
    _follow_workers(view, former, attempt)


def _following_columns(view: View, rollout: RolloutRecord, latest: AttemptRecord, reported: bool) -> dict[str, Any]:
    """What changes of a rollout when its latest attempt has changed (facts 10 and 12)."""
    if rollout.status in lifecycle.TERMINAL and view.policy.outcomes_are_final:
        return {}
    counted = latest.sequence_id - rollout.uncounted_attempts
    status = lifecycle.rollout_status_after(latest.status, counted, rollout.config, counts=latest.counts)
    if status == rollout.status and not (reported and status in lifecycle.TERMINAL):
        return {}
    retry_time = lifecycle.retry_time(rollout.config, latest.sequence_id, view.now) if status == "requeuing" else None
    at_head = status == "requeuing" and rollout.config.retry_position == "head"
    columns = _status_columns(view, rollout, status, latest, retry_time=retry_time, at_head=at_head)
    if status == "succeeded" and rollout.config.max_staleness is not None:
        is_stale = rollout.end_reason == "stale" if rollout.status == status else _is_stale(view, rollout, latest)
        columns["end_reason"] = "stale" if is_stale else None
    return columns


# --- Workers (facts 25 to 27) ----------------------------------------------------------------------------------------


def known_worker(view: View, worker_id: str) -> WorkerRecord:
    """The worker's record; a new one at its first mention."""
    return view.worker(worker_id) or WorkerRecord(worker_id)


def _follow_workers(view: View, former: AttemptRecord, attempt: AttemptRecord) -> None:
    assigned = attempt.worker_id != former.worker_id
    if assigned and former.worker_id:
        holder = view.worker(former.worker_id)
        if holder is not None and workers.holds(holder, former):
            view.put_worker(workers.release(holder, view.now))
    if attempt.worker_id:
        worker = known_worker(view, attempt.worker_id)
        view.put_worker(workers.follow(worker, attempt, assigned, view.now))


def heartbeat(view: View, worker_id: str, stats_json: str | None) -> WorkerRecord:
    """Note that the worker is alive, and so the attempt that it holds. ``stats_json=None`` keeps the former."""
    worker = known_worker(view, worker_id)
    worker = worker._replace(
        last_heartbeat_time=view.now,
        heartbeat_stats_json=worker.heartbeat_stats_json if stats_json is None else stats_json,
    )
    view.put_worker(worker)
    if worker.current_rollout_id and worker.current_attempt_id:
        rollout = view.rollout(worker.current_rollout_id)
        attempt = None if rollout is None else view.attempt(rollout.rollout_id, worker.current_attempt_id)
        if rollout is not None and attempt is not None and attempt.status in lifecycle.ACTIVE:
            _sign_of_life(view, rollout, attempt, moves=False)
    return worker


def is_at_work(view: View, worker: WorkerRecord) -> bool:
    """Whether the worker holds an attempt that is not over, of a rollout that waits for it."""
    if worker.current_rollout_id is None or worker.current_attempt_id is None:
        return False
    rollout = view.rollout(worker.current_rollout_id)
    if rollout is None or rollout.status in lifecycle.TERMINAL:
        return False
    attempt = view.attempt(rollout.rollout_id, worker.current_attempt_id)
    return attempt is not None and attempt.status in lifecycle.ACTIVE


def release_worker(view: View, worker_id: str) -> WorkerRecord | None:
    """Note that the worker ends."""
    worker = view.worker(worker_id)
    if worker is None:
        return None
    worker = workers.lose_sight(worker)
    view.put_worker(worker)
    return worker


def delete_workers(view: View, worker_ids: Sequence[str]) -> list[str]:
    """Delete those workers that there are: all, or on any error none."""
    deleted = []
    for worker_id in worker_ids:
        worker = view.worker(worker_id)
        if worker is None:
            continue
        if is_at_work(view, worker):
            message = (
                f"Worker {worker_id} holds attempt {worker.current_attempt_id} of rollout {worker.current_rollout_id}"
            )
            raise InUseError(f"{message}; end or cancel that first", worker_id=worker_id, field="worker_ids")
        view.delete_worker(worker_id)
        deleted.append(worker_id)
    return deleted


def tidy_worker(view: View, worker_id: str) -> None:
    """What becomes of a worker that is silent and at work on nothing: after its timeout it holds nothing any more, and
    after the retention of workers it is deleted."""
    worker = view.worker(worker_id)
    if worker is None or is_at_work(view, worker):
        return
    silent_seconds = view.now - workers.last_seen(worker)
    retention, timeout = view.policy.worker_retention_seconds, view.policy.worker_timeout_seconds
    if retention is not None and silent_seconds > retention:
        view.delete_worker(worker_id)
    elif timeout and silent_seconds > timeout and worker.current_attempt_id is not None:
        view.put_worker(workers.lose_sight(worker))


# --- Spans (facts 14 and 17 to 20) -----------------------------------------------------------------------------------


def fence(view: View, rollout: RolloutRecord, attempt_id: str) -> AttemptFencedError | None:
    """Why this attempt of a rollout is fenced; None if it is not."""
    if view.policy.fence_attempts == "off":
        return None
    latest = rollout.latest_attempt_id
    if rollout.status == "cancelled":
        why = "the rollout was cancelled"
    elif latest is not None and latest != attempt_id:
        why = f"attempt {latest} has taken its place"
    elif latest is not None and rollout.status == "queuing":
        why = "the rollout was put back into the queue"
    else:
        return None
    return AttemptFencedError.of(rollout.rollout_id, attempt_id, why)


def allocate(view: View, attempts: Sequence[tuple[str, str]]) -> list[int]:
    """The next span number for each of these attempts, in order: all, or on any error none."""
    last: dict[str, int] = {}
    numbers = []
    for rollout_id, attempt_id in attempts:
        fenced = fence(view, known_rollout(view, rollout_id), attempt_id)
        if fenced is not None:
            raise fenced
        numbers.append(_next_sequence(view, last, rollout_id))
    for rollout_id, number in last.items():
        view.set_last_sequence(rollout_id, number)
    return numbers


def _next_sequence(view: View, last: dict[str, int], rollout_id: str) -> int:
    """The span number that follows. ``last`` has the counters that have moved, and are set in the view in the end."""
    former = last.get(rollout_id)
    if former is None:
        former = view.last_sequence(rollout_id)
    if former == SEQUENCE_MAX:
        message = f"Rollout {rollout_id} has no span sequence numbers left for this call"
        raise InvalidArgumentError(message, rollout_id=rollout_id)
    last[rollout_id] = former + 1
    return former + 1


def add_spans(view: View, spans: Sequence[tuple[SpanRecord, int]]) -> list[SpanOutcome]:
    """Store spans, each with its size in bytes; one outcome each, in order. A refused span refuses no other."""
    outcomes: list[SpanOutcome] = []
    refusals: dict[tuple[str, str], StoreError | None] = {}
    fenced: set[tuple[str, str]] = set()
    """Those whose spans are kept without any effect."""
    touched: dict[tuple[str, str], tuple[int, int] | None] = {}
    """Attempts with the least and the greatest policy version that the spans of each name."""
    last: dict[str, int] = {}
    for span, size_bytes in spans:
        key = (span.rollout_id, span.attempt_id)
        if key not in refusals:
            refusals[key] = _refusal(view, *key)
            if isinstance(refusals[key], AttemptFencedError) and view.policy.fence_attempts == "keep":
                fenced.add(key)
                refusals[key] = None
        outcome = refusals[key] or _add_span(view, span, size_bytes, last)
        outcomes.append(outcome)
        if isinstance(outcome, int) and key not in fenced:
            touched[key] = _spread(touched.get(key), span.policy_versions)
    for rollout_id, number in last.items():
        view.set_last_sequence(rollout_id, number)
    for (rollout_id, attempt_id), versions in touched.items():
        rollout, attempt = known_rollout(view, rollout_id), known_attempt(view, rollout_id, attempt_id)
        if versions is not None:
            attempt = _having_used(attempt, versions)
        _sign_of_life(view, rollout, attempt, moves=True)
    return outcomes


def _spread(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    """The least and the greatest of both."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])


def _having_used(attempt: AttemptRecord, versions: tuple[int, int]) -> AttemptRecord:
    """The attempt after these policy versions."""
    least, greatest = attempt.policy_version_min, attempt.policy_version_max
    return attempt._replace(
        policy_version_min=versions[0] if least is None else min(least, versions[0]),
        policy_version_max=versions[1] if greatest is None else max(greatest, versions[1]),
    )


def _add_span(view: View, span: SpanRecord, size_bytes: int, last: dict[str, int]) -> SpanOutcome:
    key = (span.rollout_id, span.attempt_id, span.span_id)
    if view.has_span(key):
        return None
    number = span.sequence_id
    if number is None:
        try:
            number = _next_sequence(view, last, span.rollout_id)
        except StoreError as error:
            return copy(error)
        span = span._replace(sequence_id=number)
    elif number > (last.get(span.rollout_id) or view.last_sequence(span.rollout_id)):
        last[span.rollout_id] = number
    if span.name in view.policy.drop_spans:
        view.drop_span(key)
    else:
        view.insert_span(key, span, size_bytes)
    return number


def _refusal(view: View, rollout_id: str, attempt_id: str) -> StoreError | None:
    """Why spans of this attempt cannot be stored; None if they can."""
    try:
        rollout = known_rollout(view, rollout_id)
        known_attempt(view, rollout_id, attempt_id)
    except StoreError as error:
        return copy(error)
    return fence(view, rollout, attempt_id)


def _sign_of_life(view: View, rollout: RolloutRecord, attempt: AttemptRecord, *, moves: bool) -> None:
    """Refresh the heartbeat of an attempt. A span (``moves``) also begins or revives it (facts 14 and 17)."""
    is_latest = attempt.attempt_id == rollout.latest_attempt_id
    alive = attempt._replace(last_heartbeat_time=max(attempt.last_heartbeat_time or 0.0, view.now))
    if moves and attempt.status in ("preparing", "unresponsive"):
        alive = _moved(view, alive, "running")
    view.put_attempt(alive)
    if alive.status == attempt.status and rollout.deadline is not None:
        return  # deadlines have moved later at the most, and the one that is noted is early enough
    if is_latest:
        follows = alive.status != attempt.status and rollout.status in ("preparing", "requeuing")
        _put(view, rollout, alive, _status_columns(view, rollout, "running", alive) if follows else {})
    if alive.status != attempt.status:
        _follow_workers(view, attempt, alive)


# --- Resources (fact 24) ---------------------------------------------------------------------------------------------


def publish(
    view: View, resources_id: str | None, resources_json: str, policy_version: int | None = None, run: str | None = None
) -> ResourcesRecord:
    """The next version of ``resources_id``, version 1 if it is new; a new id for None. It becomes the latest. Without a
    policy version it gets the next of its run."""
    former = None if resources_id is None else view.resources(resources_id)
    if resources_id is not None and former is None and view.policy.strict:
        raise ResourcesNotFoundError.of(resources_id)
    if former is not None:
        if run not in (None, former.run):
            message = f"Resources {resources_id} are of run {former.run!r}, not {run!r}"
            raise InvalidArgumentError(message, resources_id=former.resources_id, field="run")
        run = former.run
    newest = view.newest_resources(run)
    least = 0 if newest is None else newest.policy_version + 1
    if policy_version is not None and policy_version < least:
        message = f"policy_version is {policy_version}, and {least - 1} is published already; give {least} or more"
        raise InvalidArgumentError(message, field="policy_version")
    record = ResourcesRecord(
        resources_id=resources_id if resources_id is not None else view.new_resources_id(),
        resources_json=resources_json,
        create_time=view.now if former is None else former.create_time,
        update_time=view.now,
        version=1 if former is None else former.version + 1,
        policy_version=max(least, 1) if policy_version is None else policy_version,
        run=run,
    )
    view.put_resources(record)
    return record


def delete_resources(view: View, resources_ids: Sequence[str]) -> list[str]:
    """Delete those resources that there are: all, or on any error none."""
    latest = view.latest_resources()
    deleted = []
    for resources_id in resources_ids:
        record = view.resources(resources_id)
        if record is None:
            continue
        if resources_id in [one.resources_id for one in (latest, view.newest_resources(record.run)) if one is not None]:
            message = f"Resources {resources_id} are the latest, which new rollouts get; add others first"
            raise InUseError(message, resources_id=resources_id, field="resources_ids")
        view.delete_resources(resources_id)
        deleted.append(resources_id)
    return deleted
