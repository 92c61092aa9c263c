"""One atomic step of the engine: the rules that change records, in one transaction, at one clock reading."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from lightning_store import lifecycle, workers
from lightning_store.backends.base import (
    AttemptRecord,
    Claim,
    Completion,
    NewRollout,
    Query,
    ResourcesRecord,
    RolloutRecord,
    SpanRecord,
    Transaction,
    WorkerRecord,
)
from lightning_store.errors import (
    AttemptNotFoundError,
    InvalidArgumentError,
    InvalidTransitionError,
    NoAttemptsError,
    ResourcesNotFoundError,
    RolloutNotFoundError,
    StoreError,
)
from lightning_store.ids import new_hex
from lightning_store.model import AttemptStatus, RolloutStatus
from lightning_store.outcomes import SpanOutcome

SEQUENCE_MAX = 2**63 - 1
"""The last span number: what a signed 64-bit integer holds."""
EXPIRY_BATCH = 500
"""Overdue attempts that one step gives up: as many as hold up other calls for some milliseconds only."""
DELETION_BATCH = 500
"""Rollouts that one step deletes, for the same reason."""
PASSED_OVER_BATCH = 2000
"""Rollouts that one step takes out of the queue since they wait for nobody any more, for the same reason."""
CLAIM_BYTES = 64 * 1024 * 1024
"""A claim ends with the rollout whose payloads bring it to so many bytes: its reply has to be one message."""


class Unfinished(Enum):
    """What a step returns that had more to do than one step should: it goes on in another, after others."""

    GO_ON = auto()


@dataclass(frozen=True, slots=True)
class Deletion:
    """Which rollouts to delete: those for which everything holds that is not None."""

    rollout_ids: Sequence[str] | None = None
    older_than_seconds: float | None = None
    """Terminal for so long, or longer."""
    status_in: Collection[str] | None = None

    def is_old(self, completion: Completion | None, now: float) -> bool:
        if self.older_than_seconds is None:
            return True
        return completion is not None and now - completion.time >= self.older_than_seconds


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of the rules hold."""

    strict: bool = False
    worker_timeout_seconds: float = 0.0
    """An attempt whose worker has sent heartbeats and is silent for longer ends as unresponsive. 0: it does not."""
    retain_finished_seconds: float | None = None
    """A rollout is deleted when it has been terminal for longer. None: it is not."""
    retain_finished_count: int | None = None
    """So many terminal rollouts are kept, those that ended last. None: all of them."""

    def __post_init__(self) -> None:
        if not self.worker_timeout_seconds >= 0:
            message = f"worker_timeout_seconds is {self.worker_timeout_seconds}; give 0 or more"
            raise InvalidArgumentError(message, field="worker_timeout_seconds")
        for name in ("retain_finished_seconds", "retain_finished_count"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgumentError(f"{name} is {value}; give more than 0, or None to keep all", field=name)


@dataclass(slots=True)
class Effects:
    """What a step did that somebody may be waiting for."""

    ended: list[str] = field(default_factory=list)
    """The rollouts that became terminal."""
    deleted: list[str] = field(default_factory=list)
    """The rollouts that are gone."""
    queued: int = 0
    """How many rollouts were put into the queue."""


def new_id(prefix: str, digits: int) -> str:
    return f"{prefix}-{new_hex(digits)}"


class Step:
    """The rules, bound to a transaction ``tx`` and a time ``now``. What waiters have to hear goes into ``effects``."""

    def __init__(self, tx: Transaction, now: float, effects: Effects, policy: Policy) -> None:
        self.tx = tx
        self.now = now
        self.effects = effects
        self.policy = policy
        self.strict = policy.strict
        self.worker_timeout_seconds = policy.worker_timeout_seconds

    # --- Looking up --------------------------------------------------------------------------------------------------

    async def rollout(self, rollout_id: str) -> RolloutRecord:
        record = await self.tx.get_rollout(rollout_id)
        if record is None:
            raise RolloutNotFoundError.of(rollout_id)
        return record

    async def attempt(self, rollout_id: str, attempt_id: str) -> AttemptRecord:
        record = await self.tx.get_attempt(rollout_id, attempt_id)
        if record is None:
            raise AttemptNotFoundError.of(rollout_id, attempt_id)
        return record

    async def latest_attempt(self, rollout_id: str) -> AttemptRecord:
        record = await self.tx.latest_attempt(rollout_id)
        if record is None:
            raise NoAttemptsError.of(rollout_id)
        return record

    async def known_if_strict(self, rollout_id: str) -> None:
        """Strict mode refuses to read what does not exist."""
        if self.strict:
            await self.rollout(rollout_id)

    # --- Deadlines ---------------------------------------------------------------------------------------------------

    async def give_up_overdue(self) -> bool:
        """End the attempts whose deadline has passed. False if there may be more of them than one step should take.

        Each is complete in itself, whatever the step does after it.
        """
        due = await self.tx.take_due(self.now, EXPIRY_BATCH)
        for rollout_id in due:
            await self._give_up_if_overdue(rollout_id)
        return len(due) < EXPIRY_BATCH

    async def _give_up_if_overdue(self, rollout_id: str) -> None:
        rollout = await self.tx.get_rollout(rollout_id)
        attempt = await self.tx.latest_attempt(rollout_id)
        if rollout is None or attempt is None:
            return None
        for limit in await self._limits(rollout, attempt):
            if self.now > limit.time:
                ended = self._with_status(attempt, limit.status)
                return await self._change_attempt(rollout, attempt, ended, latest=True, reported=True)
        return await self._set_deadline(rollout, attempt)

    async def _set_deadline(self, rollout: RolloutRecord, latest: AttemptRecord) -> None:
        times = [limit.time for limit in await self._limits(rollout, latest)]
        if self._has_lease(latest) and rollout.status in lifecycle.ACTIVE and latest.status in lifecycle.ACTIVE:
            # To see whether the worker has begun to send heartbeats.
            times.append(self.now + self.worker_timeout_seconds)
        await self.tx.set_deadline(rollout.rollout_id, min(times, default=None))

    def _has_lease(self, attempt: AttemptRecord) -> bool:
        return bool(self.worker_timeout_seconds and attempt.worker_id)

    async def _limits(self, rollout: RolloutRecord, latest: AttemptRecord) -> list[lifecycle.Expiry]:
        lease_end = None
        if latest.worker_id and self._has_lease(latest):
            worker = await self.tx.get_worker(latest.worker_id)
            lease_end = None if worker is None else workers.lease_end(worker, latest, self.worker_timeout_seconds)
        return lifecycle.limits(
            rollout.status, latest.status, latest.start_time, latest.last_heartbeat_time, rollout.config, lease_end
        )

    # --- Rollouts ----------------------------------------------------------------------------------------------------

    async def create(self, new: NewRollout, status: RolloutStatus) -> RolloutRecord:
        """Store a new rollout. It is not queued yet. The resources must have been checked."""
        resources_id = new.resources_id
        if resources_id is None:
            latest = await self.tx.latest_resources()
            resources_id = latest.resources_id if latest is not None else None
        record = RolloutRecord(
            rollout_id=new_id("ro", 12),
            input_json=new.input_json,
            start_time=self.now,
            end_time=None,
            mode=new.mode,
            resources_id=resources_id,
            status=status,
            config=new.config,
            metadata_json=new.metadata_json,
        )
        await self.tx.put_rollout(record)
        return record

    async def check_resources(self, resources_id: str | None) -> None:
        """Strict mode refuses an id that is not known."""
        if self.strict and resources_id is not None and await self.tx.get_resources(resources_id) is None:
            raise ResourcesNotFoundError.of(resources_id)

    async def enqueue(self, requests: Sequence[NewRollout]) -> list[RolloutRecord]:
        for new in requests:
            await self.check_resources(new.resources_id)
        records = [await self.create(new, "queuing") for new in requests]
        for record in records:
            await self._queue(record.rollout_id)
        return records

    async def _queue(self, rollout_id: str) -> None:
        await self.tx.push_queue(rollout_id)
        self.effects.queued += 1

    async def claim(self, limit: int, worker_id: str | None) -> list[Claim] | Unfinished:
        """Up to ``limit`` rollouts, fewer if there are no more, they are large, or there are many to pass over."""
        claims: list[Claim] = []
        passed_over = payload_bytes = 0
        while (
            len(claims) < limit
            and payload_bytes < CLAIM_BYTES
            and (rollout_id := await self.tx.pop_queue()) is not None
        ):
            rollout = await self.rollout(rollout_id)
            if rollout.status in lifecycle.QUEUED:
                claims.append(await self.begin_attempt(rollout, worker_id))
                payload_bytes += rollout.payload_bytes
            elif (passed_over := passed_over + 1) == PASSED_OVER_BATCH:
                if claims:
                    break
                return Unfinished.GO_ON
        if worker_id:
            worker = await self.worker(worker_id)
            asked = worker._replace(last_dequeue_time=self.now) if claims else workers.asked_in_vain(worker, self.now)
            await self.tx.put_worker(asked)
        return claims

    async def begin_attempt(self, rollout: RolloutRecord, worker_id: str | None) -> Claim:
        """A new attempt of a rollout that is stored, and not in the queue from now on."""
        former = await self.tx.latest_attempt(rollout.rollout_id)
        attempt = AttemptRecord(
            rollout_id=rollout.rollout_id,
            attempt_id=new_id("at", 8),
            sequence_id=1 if former is None else former.sequence_id + 1,
            start_time=self.now,
            end_time=None,
            status="preparing",
            worker_id=worker_id,
            last_heartbeat_time=None,
            metadata_json=None,
        )
        await self.tx.put_attempt(attempt)
        rollout = await self._set_status(rollout, "preparing")
        await self._set_deadline(rollout, attempt)
        if worker_id:
            await self.tx.put_worker(workers.take(await self.worker(worker_id), attempt, self.now))
        return Claim(rollout, attempt)

    async def update_rollout(
        self, rollout_id: str, columns: Mapping[str, Any], status: RolloutStatus | None
    ) -> RolloutRecord:
        """Set ``columns`` of a rollout, then move it to ``status`` if one was given."""
        rollout = await self.rollout(rollout_id)
        if status is not None and self.strict and not lifecycle.may_leave(rollout.status, status):
            message = f"Rollout {rollout_id} is {rollout.status}; it can only be put back to queuing or requeuing"
            raise InvalidTransitionError(message, rollout_id=rollout_id, field="status")
        updated = rollout._replace(**columns)
        if status is None:
            await self.tx.put_rollout(updated)
        else:
            # Preparing and running, set by hand, keep the place in the queue until a claim passes it.
            updated = await self._set_status(updated, status, leave_queue=status in lifecycle.TERMINAL)
        latest = await self.tx.latest_attempt(rollout_id)
        if latest is not None:
            await self._set_deadline(updated, latest)
        return updated

    async def cancel(self, rollout_ids: Sequence[str]) -> list[RolloutRecord]:
        """End rollouts as cancelled; those that are terminal already stay as they are."""
        records = {rollout_id: await self.rollout(rollout_id) for rollout_id in rollout_ids}
        for rollout_id, record in records.items():
            if record.status not in lifecycle.TERMINAL:
                records[rollout_id] = await self.update_rollout(rollout_id, {}, "cancelled")
        return [records[rollout_id] for rollout_id in rollout_ids]

    async def _set_status(
        self, rollout: RolloutRecord, status: RolloutStatus, *, leave_queue: bool = True
    ) -> RolloutRecord:
        terminal = status in lifecycle.TERMINAL
        changes = status != rollout.status
        rollout = rollout._replace(status=status, end_time=self.now if terminal else rollout.end_time)
        await self.tx.put_rollout(rollout)
        if changes and terminal:
            await self.tx.note_completion(rollout.rollout_id, self.now)
        elif changes:
            await self.tx.forget_completion(rollout.rollout_id)
        if status in lifecycle.QUEUED:
            await self._queue(rollout.rollout_id)
        elif leave_queue:
            await self.tx.leave_queue(rollout.rollout_id)
        if terminal:
            self.effects.ended.append(rollout.rollout_id)
        return rollout

    # --- Deleting ----------------------------------------------------------------------------------------------------

    async def delete_some(self, which: Deletion, after: int) -> tuple[int | None, list[str]]:
        """Begin, or go on ``after`` a place, to delete: the place to go on from, None at the end, and the ids."""
        if which.rollout_ids is not None:
            end = after + DELETION_BATCH
            candidates = which.rollout_ids[after:end]
            next_place = end if end < len(which.rollout_ids) else None
        else:
            oldest = await self.tx.list_completions(after, DELETION_BATCH)
            candidates = [completion.rollout_id for completion in oldest]
            young = not oldest or not which.is_old(oldest[-1], self.now)
            next_place = None if young or len(oldest) < DELETION_BATCH else oldest[-1].position
        return next_place, [rollout_id for rollout_id in candidates if await self._delete(rollout_id, which)]

    async def _delete(self, rollout_id: str, which: Deletion) -> bool:
        """Delete a rollout if it is there and all that was asked for holds for it."""
        record = await self.tx.get_rollout(rollout_id)
        if record is None or (which.status_in is not None and record.status not in which.status_in):
            return False
        if not which.is_old(await self.tx.get_completion(rollout_id), self.now):
            return False
        for attempt in (await self.tx.list_attempts(rollout_id, Query())).items:
            await self._release_worker(attempt)
        await self.tx.delete_rollout(rollout_id)
        self.effects.deleted.append(rollout_id)
        return True

    async def drop_expendable(self) -> bool:
        """Delete what retention does not keep. False if there may be more of it than one step should take."""
        if self.policy.retain_finished_count is None and self.policy.retain_finished_seconds is None:
            return True
        due = await self._expendable()
        for completion in due:
            await self._delete(completion.rollout_id, Deletion())
        return len(due) < DELETION_BATCH

    async def _expendable(self) -> list[Completion]:
        """What is too old or too much, of those that ended first."""
        count, seconds = self.policy.retain_finished_count, self.policy.retain_finished_seconds
        excess = 0 if count is None else await self.tx.count_completions() - count
        time_kept = -math.inf if seconds is None else self.now - seconds

        async def oldest(limit: int) -> list[Completion]:
            found = await self.tx.list_completions(0, limit)
            return [one for place, one in enumerate(found) if place < excess or one.time < time_kept]

        return await oldest(DELETION_BATCH) if await oldest(1) else []

    async def next_deadline(self) -> float | None:
        """A time before which nothing is due by itself."""
        deadline = await self.tx.next_deadline()
        seconds = self.policy.retain_finished_seconds
        if seconds is not None and (oldest := await self.tx.list_completions(0, 1)):
            deadline = min(oldest[0].time + seconds, deadline if deadline is not None else math.inf)
        return deadline

    # --- Attempts ----------------------------------------------------------------------------------------------------

    async def update_attempt(
        self, rollout_id: str, attempt_id: str, columns: Mapping[str, Any], status: AttemptStatus | None
    ) -> AttemptRecord:
        """Set ``columns`` of an attempt (or the "latest"), then move it to ``status`` if given; the rollout follows."""
        rollout = await self.rollout(rollout_id)
        latest = await self.latest_attempt(rollout_id)
        former = latest if attempt_id == "latest" else await self.attempt(rollout_id, attempt_id)
        updated = former._replace(**columns)
        if status is not None:
            updated = self._with_status(updated, status)
        is_latest = latest.attempt_id == former.attempt_id
        await self._change_attempt(rollout, former, updated, latest=is_latest, reported=status is not None)
        return updated

    def _with_status(self, attempt: AttemptRecord, status: AttemptStatus) -> AttemptRecord:
        return attempt._replace(status=status, end_time=None if status in lifecycle.ACTIVE else self.now)

    async def _change_attempt(
        self, rollout: RolloutRecord, former: AttemptRecord, attempt: AttemptRecord, *, latest: bool, reported: bool
    ) -> None:
        """Replace ``former`` by ``attempt``; ``reported`` if its status was set, be it to the same as before."""
        await self.tx.put_attempt(attempt)
        if latest:
            rollout = await self._follow_attempt(rollout, attempt, reported)
            await self._set_deadline(rollout, attempt)
        await self._follow_workers(former, attempt)

    async def _follow_attempt(self, rollout: RolloutRecord, latest: AttemptRecord, reported: bool) -> RolloutRecord:
        if self.strict and rollout.status in lifecycle.TERMINAL:
            return rollout
        status = lifecycle.rollout_status_after(latest.status, latest.sequence_id, rollout.config)
        if status == rollout.status and not (reported and status in lifecycle.TERMINAL):
            return rollout
        return await self._set_status(rollout, status)

    # --- Workers -----------------------------------------------------------------------------------------------------

    async def worker(self, worker_id: str) -> WorkerRecord:
        """The worker's record; a new one at its first mention."""
        return await self.tx.get_worker(worker_id) or WorkerRecord(worker_id)

    async def _follow_workers(self, former: AttemptRecord, attempt: AttemptRecord) -> None:
        assigned = attempt.worker_id != former.worker_id
        if assigned:
            await self._release_worker(former)
        if attempt.worker_id:
            worker = await self.worker(attempt.worker_id)
            await self.tx.put_worker(workers.follow(worker, attempt, assigned, self.now))

    async def _release_worker(self, attempt: AttemptRecord) -> None:
        """Of the worker that holds this attempt."""
        worker = await self.tx.get_worker(attempt.worker_id) if attempt.worker_id else None
        if worker is not None and workers.holds(worker, attempt):
            await self.tx.put_worker(workers.release(worker, self.now))

    async def heartbeat(self, worker_id: str, stats_json: str | None) -> WorkerRecord:
        """Note that the worker is alive, and so the attempt that it holds. ``stats_json=None`` keeps the former."""
        worker = await self.worker(worker_id)
        worker = worker._replace(
            last_heartbeat_time=self.now,
            heartbeat_stats_json=worker.heartbeat_stats_json if stats_json is None else stats_json,
        )
        await self.tx.put_worker(worker)
        if worker.current_rollout_id and worker.current_attempt_id:
            attempt = await self.tx.get_attempt(worker.current_rollout_id, worker.current_attempt_id)
            if attempt is not None and attempt.status in lifecycle.ACTIVE:
                await self._sign_of_life(attempt, moves=False)
        return worker

    # --- Spans -------------------------------------------------------------------------------------------------------

    async def allocate(self, rollout_ids: Sequence[str]) -> list[int]:
        """The next span number of each of these rollouts, in order: all, or on any error none."""
        for rollout_id, count in Counter(rollout_ids).items():
            await self.rollout(rollout_id)
            last = await self.tx.last_sequence(rollout_id)
            if last + count > SEQUENCE_MAX:
                message = f"Rollout {rollout_id} has no span sequence numbers left: its last one is {last}"
                raise InvalidArgumentError(message, rollout_id=rollout_id)
        return [await self.tx.next_sequence(rollout_id) for rollout_id in rollout_ids]

    async def add_spans(self, spans: Sequence[tuple[SpanRecord, int]]) -> list[SpanOutcome]:
        """Store spans, each with its size in bytes; one outcome each, in order."""
        outcomes: list[SpanOutcome] = []
        refusals: dict[tuple[str, str], StoreError | None] = {}
        touched: dict[tuple[str, str], None] = {}
        for span, size_bytes in spans:
            key = (span.rollout_id, span.attempt_id)
            if key not in refusals:
                refusals[key] = await self._refusal(*key)
            outcome = refusals[key] or await self._add_span(span, size_bytes)
            outcomes.append(outcome)
            if isinstance(outcome, int):
                touched[key] = None
        for rollout_id, attempt_id in touched:
            await self._sign_of_life(await self.attempt(rollout_id, attempt_id), moves=True)
        return outcomes

    async def _add_span(self, span: SpanRecord, size_bytes: int) -> SpanOutcome:
        if span.sequence_id is None:
            if await self.tx.has_span(span.rollout_id, span.attempt_id, span.span_id):
                return None
            try:
                [number] = await self.allocate([span.rollout_id])
            except StoreError as error:
                return copy(error)
            span = span._replace(sequence_id=number)
        return span.sequence_id if await self.tx.insert_span(span, size_bytes) else None

    async def _refusal(self, rollout_id: str, attempt_id: str) -> StoreError | None:
        """Why spans of this attempt cannot be stored; None if they can."""
        try:
            await self.rollout(rollout_id)
            await self.attempt(rollout_id, attempt_id)
        except StoreError as error:
            return copy(error)
        return None

    async def _sign_of_life(self, attempt: AttemptRecord, *, moves: bool) -> None:
        """Refresh the heartbeat of an attempt. A span (``moves``) also begins or revives it."""
        rollout = await self.rollout(attempt.rollout_id)
        latest = await self.latest_attempt(attempt.rollout_id)
        is_latest = latest.attempt_id == attempt.attempt_id
        alive = attempt._replace(last_heartbeat_time=max(attempt.last_heartbeat_time or 0.0, self.now))
        if moves and attempt.status in ("preparing", "unresponsive"):
            alive = self._with_status(alive, "running")
        await self.tx.put_attempt(alive)
        if is_latest:
            if alive.status != attempt.status and rollout.status in ("preparing", "requeuing"):
                rollout = await self._set_status(rollout, "running")
            await self._set_deadline(rollout, alive)
        if alive.status != attempt.status:
            await self._follow_workers(attempt, alive)

    # --- Resources ---------------------------------------------------------------------------------------------------

    async def publish(self, resources_id: str | None, resources_json: str) -> ResourcesRecord:
        """The next version of ``resources_id``, version 1 if it is new; a new id for None. It becomes the latest."""
        former = None if resources_id is None else await self.tx.get_resources(resources_id)
        if resources_id is not None and former is None and self.strict:
            raise ResourcesNotFoundError.of(resources_id)
        record = ResourcesRecord(
            resources_id=resources_id if resources_id is not None else new_id("rs", 12),
            resources_json=resources_json,
            create_time=self.now if former is None else former.create_time,
            update_time=self.now,
            version=1 if former is None else former.version + 1,
        )
        await self.tx.put_resources(record)
        return record
