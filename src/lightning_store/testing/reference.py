"""The contract's rules in their plainest form: what a store should hold after a sequence of calls.

Lists and loops only, to be compared with. It decides by the facts of the contract, not by how a store is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_store.model import AttemptStatus, RolloutConfig, RolloutStatus

TERMINAL = ("failed", "succeeded", "cancelled")
QUEUED = ("queuing", "requeuing")
UNDER_WAY = ("preparing", "running")


@dataclass
class ReferenceAttempt:
    """One attempt, as it should be."""

    rollout_id: str
    attempt_id: str
    sequence_id: int
    start_time: float
    worker_id: str | None
    status: AttemptStatus = "preparing"
    heartbeat_time: float | None = None

    @property
    def under_way(self) -> bool:
        return self.status in UNDER_WAY


@dataclass
class ReferenceRollout:
    """One rollout, as it should be."""

    rollout_id: str
    config: RolloutConfig
    status: RolloutStatus
    has_ended: bool = False
    """It was in a terminal status at least once."""
    was_put_back: bool = False
    """It has left its last terminal status."""
    attempts: list[ReferenceAttempt] = field(default_factory=list)
    span_keys: list[tuple[str, str]] = field(default_factory=list)
    last_span_number: int = 0

    def limits(self) -> list[tuple[float, AttemptStatus]]:
        """The times after which the latest attempt is given up, and as what; the one that wins first."""
        if self.status not in UNDER_WAY or not self.attempts or not self.attempts[-1].under_way:
            return []
        latest = self.attempts[-1]
        found: list[tuple[float, AttemptStatus]] = []
        if self.config.timeout_seconds is not None:
            found.append((latest.start_time + self.config.timeout_seconds, "timeout"))
        if self.config.unresponsive_seconds is not None:
            last_sign = latest.start_time if latest.heartbeat_time is None else latest.heartbeat_time
            found.append((last_sign + self.config.unresponsive_seconds, "unresponsive"))
        return found


class ReferenceStore:
    """All rollouts, the queue and who holds what. Each method is one call of a store that has been made already."""

    def __init__(self) -> None:
        self.rollouts: dict[str, ReferenceRollout] = {}
        self.queue: list[str] = []
        self.held: dict[str, ReferenceAttempt | None] = {}
        """For each worker that was mentioned, the attempt that it holds."""

    def attempts(self) -> list[ReferenceAttempt]:
        """All attempts of all rollouts."""
        return [attempt for rollout in self.rollouts.values() for attempt in rollout.attempts]

    def expire(self, now: float) -> None:
        """Give up what is overdue, the earliest deadline first."""
        overdue = [
            (min(time for time, _ in limits), rollout)
            for rollout in self.rollouts.values()
            if (limits := [limit for limit in rollout.limits() if now > limit[0]])
        ]
        for _, rollout in sorted(overdue, key=lambda item: item[0]):
            self.report(rollout.attempts[-1], next(status for time, status in rollout.limits() if now > time))

    def add(self, rollout_id: str, config: RolloutConfig, status: RolloutStatus) -> ReferenceRollout:
        """A new rollout; a queued one is at the tail."""
        rollout = self.rollouts[rollout_id] = ReferenceRollout(rollout_id, config, status)
        if status in QUEUED:
            self.queue.append(rollout_id)
        return rollout

    def next_in_queue(self) -> ReferenceRollout | None:
        """Take what the next claim must get. What was set to preparing or running by hand keeps its place."""
        for rollout_id in self.queue:
            if self.rollouts[rollout_id].status in QUEUED:
                self.queue.remove(rollout_id)
                return self.rollouts[rollout_id]
        return None

    def begin(self, rollout: ReferenceRollout, attempt_id: str, worker_id: str | None, now: float) -> None:
        """A new attempt."""
        attempt = ReferenceAttempt(rollout.rollout_id, attempt_id, len(rollout.attempts) + 1, now, worker_id)
        rollout.attempts.append(attempt)
        self._move(rollout, "preparing")
        if worker_id is not None:
            self.held[worker_id] = attempt

    def set_by_hand(self, rollout: ReferenceRollout, status: RolloutStatus) -> None:
        """update_rollout: a terminal status leaves the queue; preparing and running keep the place in it."""
        self._move(rollout, status, leave_queue=status in TERMINAL)

    def report(self, attempt: ReferenceAttempt, status: AttemptStatus) -> None:
        """update_attempt, or a deadline."""
        attempt.status = status
        rollout = self.rollouts[attempt.rollout_id]
        if attempt is rollout.attempts[-1]:
            self._move(rollout, self._derived(rollout, attempt))
        self._follow_worker(attempt)

    def add_span(self, attempt: ReferenceAttempt, span_id: str, now: float) -> bool:
        """Whether the span is stored; False for a duplicate."""
        rollout = self.rollouts[attempt.rollout_id]
        key = (attempt.attempt_id, span_id)
        if key in rollout.span_keys:
            return False
        rollout.span_keys.append(key)
        attempt.heartbeat_time = now
        latest = attempt is rollout.attempts[-1]
        if attempt.status in ("preparing", "unresponsive"):
            attempt.status = "running"
            if latest and rollout.status in ("preparing", "requeuing"):
                self._move(rollout, "running")
            self._follow_worker(attempt)
        return True

    def delete(self, rollout: ReferenceRollout) -> None:
        """delete_rollouts: who holds one of its attempts has empty hands."""
        del self.rollouts[rollout.rollout_id]
        if rollout.rollout_id in self.queue:
            self.queue.remove(rollout.rollout_id)
        self.held = {worker_id: None if held in rollout.attempts else held for worker_id, held in self.held.items()}

    def beat(self, worker_id: str, now: float) -> None:
        """update_worker."""
        held = self.held.setdefault(worker_id, None)
        if held is not None and held.under_way:
            held.heartbeat_time = now

    def _derived(self, rollout: ReferenceRollout, attempt: ReferenceAttempt) -> RolloutStatus:
        status = attempt.status
        if status == "preparing" or status == "running" or status == "succeeded":
            return status
        retried = status in rollout.config.retry_condition and attempt.sequence_id < rollout.config.max_attempts
        return "requeuing" if retried else "failed"

    def _move(self, rollout: ReferenceRollout, status: RolloutStatus, leave_queue: bool = True) -> None:
        if status in TERMINAL:
            rollout.has_ended, rollout.was_put_back = True, False
        elif rollout.status in TERMINAL:
            rollout.was_put_back = True
        rollout.status = status
        if status in QUEUED:
            if rollout.rollout_id not in self.queue:
                self.queue.append(rollout.rollout_id)
        elif leave_queue and rollout.rollout_id in self.queue:
            self.queue.remove(rollout.rollout_id)

    def _follow_worker(self, attempt: ReferenceAttempt) -> None:
        """A worker lets go of an attempt that ended; one with empty hands takes up its attempt that goes on."""
        worker_id = attempt.worker_id
        if worker_id is None:
            return
        if attempt.under_way:
            self.held[worker_id] = self.held[worker_id] or attempt
        elif self.held[worker_id] is attempt:
            self.held[worker_id] = None
