"""What the rules see and change: the records that were loaded, under the changes of the group so far."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

from lightning_store.backends.base import Changes, Loaded, Needs, NotLoadedError, SpanKey
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    GroupRow,
    OpenGroup,
    ReplyRecord,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.engine.policy import Policy
from lightning_store.ids import new_hex, new_hex_at

K = TypeVar("K")
T = TypeVar("T")

_ABSENT: Final[Any] = object()


class Effects:
    """What a transaction did that somebody may be waiting for."""

    __slots__ = ("deleted", "dropped", "ended", "queued", "runs")

    def __init__(self) -> None:
        self.ended: list[str] = []
        """The rollouts that became terminal."""
        self.deleted: list[str] = []
        """The rollouts that were deleted."""
        self.queued: list[str] = []
        """The rollouts that were put into the queue."""
        self.runs: dict[str, None] = {}
        """Runs that may have more or less room for groups."""
        self.dropped: dict[SpanKey, None] = {}
        """The spans that were not stored for their names."""


class Mark(NamedTuple):
    """How far the changes had come at some point, to go back to."""

    journal: int
    ended: int
    deleted: int
    queued: int
    queue_position: int
    completion_position: int
    latest_resources: str | None


class View:
    """One group's data at one clock reading. Reads see the group's own changes first, then what was loaded.

    An operation that is refused, or that looked at something that was not loaded, leaves no trace: ``mark`` before it,
    ``revert`` after it.

    Args:
        loaded: What the transaction has loaded.
        now: The time of every change of this group, in seconds since the epoch.
        policy: Which of the rules hold.
        watched_since: Since when this process has had the data open and has run without a pause, in seconds since the
            epoch: nobody is judged for silence before that.
    """

    __slots__ = (
        "_completion_position",
        "_holders",
        "_journal",
        "_next",
        "_queue",
        "_queue_position",
        "_queue_rank",
        "_queued",
        "_start",
        "changes",
        "effects",
        "loaded",
        "now",
        "policy",
        "watched_since",
    )

    def __init__(self, loaded: Loaded, now: float, policy: Policy, watched_since: float = 0.0) -> None:
        self.loaded = loaded
        self.now = now
        self.policy = policy
        self.watched_since = watched_since
        self.changes = Changes()
        self.changes.time = now
        self.effects = Effects()
        self._holders: dict[str, dict[str, None]] = {}
        """The workers that held an attempt of a rollout at some time in this group."""
        self._journal: list[tuple[dict[Any, Any], Any, Any]] = []
        self._queue: Iterator[str] | None = None
        self._next: str | None = None
        """What comes next in the queue that was loaded, if a claim has seen it and not taken it."""
        self._queued: list[tuple[tuple[int, int], str]] = []
        """The rollouts that this group put into the queue, a heap by place, with some that have left it since."""
        self._queue_rank = 0
        """How many of ``effects.queued`` are in that heap."""
        self._queue_position = loaded.last_queue_position
        self._completion_position = loaded.last_completion_position
        self._start = (self._queue_position, self._completion_position)

    # --- Reading -----------------------------------------------------------------------------------------------------

    def rollout(self, rollout_id: str) -> RolloutRecord | None:
        changed: RolloutRecord | None = self.changes.rollouts.get(rollout_id, _ABSENT)
        return self.loaded.rollout(rollout_id) if changed is _ABSENT else changed

    def attempt(self, rollout_id: str, attempt_id: str) -> AttemptRecord | None:
        """Of a rollout that exists."""
        changed = self.changes.attempts.get((rollout_id, attempt_id))
        return self.loaded.attempt(rollout_id, attempt_id) if changed is None else changed

    def latest_attempt(self, rollout: RolloutRecord) -> AttemptRecord | None:
        attempt_id = rollout.latest_attempt_id
        return None if attempt_id is None else self.attempt(rollout.rollout_id, attempt_id)

    def last_sequence(self, rollout_id: str) -> int:
        changed = self.changes.sequences.get(rollout_id)
        return self.loaded.last_sequence(rollout_id) if changed is None else changed

    def has_span(self, key: SpanKey) -> bool:
        return key in self.changes.spans or self.loaded.has_span(*key)

    def worker(self, worker_id: str) -> WorkerRecord | None:
        changed: WorkerRecord | None = self.changes.workers.get(worker_id, _ABSENT)
        return self.loaded.worker(worker_id) if changed is _ABSENT else changed

    def holders(self, rollout_id: str) -> list[WorkerRecord]:
        """The workers that hold an attempt of this rollout."""
        candidates = dict.fromkeys([*self.loaded.holders(rollout_id), *self._holders.get(rollout_id, ())])
        workers = (self.worker(worker_id) for worker_id in candidates)
        return [one for one in workers if one is not None and one.current_rollout_id == rollout_id]

    def group(self, group_id: str) -> GroupRow:
        """The group with its members; it may have none."""
        ids = dict.fromkeys(self.loaded.group(group_id))
        changed = self.changes.rollouts.items()
        ids |= {rollout_id: None for rollout_id, one in changed if one is not None and one.group_id == group_id}
        members = (self.rollout(rollout_id) for rollout_id in ids)
        return GroupRow(group_id, [RolloutRow(one, self.latest_attempt(one)) for one in members if one is not None])

    def admission(self, run: str) -> AdmissionRecord | None:
        changed: AdmissionRecord | None = self.changes.admissions.get(run, _ABSENT)
        return self.loaded.admission(run) if changed is _ABSENT else changed

    def open_groups(self, run: str) -> dict[str, OpenGroup]:
        """The groups of a run that nobody has consumed, with a member that is neither failed nor cancelled."""
        found = {one.group_id: one for one in self.loaded.open_groups(run)}
        changed = (self.loaded.rollout(key) if one is None else one for key, one in self.changes.rollouts.items())
        touched = dict.fromkeys(one.group_id for one in changed if one is not None and one.run == run)
        for group in gathered(self.group, [group_id for group_id in touched if group_id is not None]):
            found.pop(group.group_id, None)
            now = group.open
            if now is not None:
                found[group.group_id] = now
        return found

    def checkpoints(self, consumer: str) -> dict[str, int]:
        """Those that a consumer has recorded, each with its number."""
        found: dict[str, int | None] = {**self.loaded.checkpoints(consumer)}
        found |= {name: number for (of, name), number in self.changes.checkpoints.items() if of == consumer}
        return {name: number for name, number in found.items() if number is not None}

    def mark_of(self, consumer: str, rollout_id: str) -> int | None:
        """How many checkpoints there were when a consumer marked this rollout, which exists; None if it has not."""
        changed: int | None = self.changes.marks.get((consumer, rollout_id), _ABSENT)
        return self.loaded.mark_of(consumer, rollout_id) if changed is _ABSENT else changed

    def marks_from(self, consumer: str, number: int) -> list[str]:
        """The rollouts that a consumer has marked when there were so many checkpoints or more."""
        found: dict[str, int | None] = dict.fromkeys(self.loaded.marks_from(consumer, number), number)
        found |= {rollout_id: mark for (of, rollout_id), mark in self.changes.marks.items() if of == consumer}
        return [rollout_id for rollout_id, mark in found.items() if mark is not None and mark >= number]

    def resources(self, resources_id: str) -> ResourcesRecord | None:
        changed: ResourcesRecord | None = self.changes.resources.get(resources_id, _ABSENT)
        return self.loaded.resources(resources_id) if changed is _ABSENT else changed

    def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        """The resources of a run that have the greatest policy version; None is those of no run."""
        changed = self.changes.resources
        loaded = self.loaded.newest_resources(run)
        found = [] if loaded is None or loaded.resources_id in changed else [loaded]
        found += [one for one in changed.values() if one is not None and one.run == run]
        return max(found, key=attrgetter("policy_version"), default=None)

    def latest_resources(self) -> ResourcesRecord | None:
        latest = self.changes.latest_resources
        return self.loaded.latest_resources() if latest is None else self.changes.resources[latest]

    def reply(self, request_id: str) -> ReplyRecord | None:
        changed = self.changes.replies.get(request_id)
        return self.loaded.reply(request_id) if changed is None else changed

    def new_rollout_id(self) -> str:
        """One that no rollout has."""
        while True:
            rollout_id = f"ro-{new_hex_at(self.now, 12)}"
            if rollout_id not in self.changes.rollouts and not self.loaded.is_taken(rollout_id):
                return rollout_id

    def new_attempt_id(self, rollout_id: str) -> str:
        """One that no attempt of this rollout has."""
        while True:
            attempt_id = f"at-{new_hex(8)}"
            key = (rollout_id, attempt_id)
            if key not in self.changes.attempts and not self.loaded.is_taken(*key):
                return attempt_id

    def new_resources_id(self) -> str:
        return f"rs-{new_hex(12)}"

    def queue(self, limit: int, limit_bytes: int) -> Iterator[str]:
        """The rollouts in the queue, from its head on, that no claim of this group has looked at.

        Args:
            limit: How many the caller takes at the most.
            limit_bytes: Payload bytes after which it takes no more.

        Raises:
            NotLoadedError: More of the queue has to be loaded to know what comes next.
        """
        while True:
            head, queued = self._head(), self._queued_here()
            if head is None and not self.loaded.queue_is_whole:
                raise NotLoadedError(Needs(claims=limit, claim_bytes=limit_bytes))
            if queued is not None and (head is None or queued[0] < self._place(head)):
                yield heapq.heappop(self._queued)[1]
            elif head is not None:
                self._next = None
                yield head
            else:
                return

    def _head(self) -> str | None:
        """The first rollout that was loaded with the queue, was not looked at, and still stands in its place."""
        if self._queue is None:
            self._queue = iter(self.loaded.queue())
        while True:
            if self._next is None:
                self._next = next(self._queue, None)
            if self._next is None or self._next not in self.changes.rollouts or self._keeps_place(self._next):
                return self._next
            self._next = None

    def _queued_here(self) -> tuple[tuple[int, int], str] | None:
        """The first of the rollouts that this group put into the queue, with its place. It may be an old one, in front
        of all others."""
        queued, rollouts = self._queued, self.changes.rollouts
        while self._queue_rank < len(self.effects.queued):
            rollout = rollouts[self.effects.queued[self._queue_rank]]
            if rollout is not None and rollout.queue_place is not None:
                heapq.heappush(queued, (rollout.queue_place, rollout.rollout_id))
            self._queue_rank += 1
        while queued:
            place, rollout_id = queued[0]
            rollout = rollouts[rollout_id]
            if rollout is not None and rollout.in_queue and rollout.queue_place == place:
                return queued[0]
            heapq.heappop(queued)
        return None

    def _place(self, rollout_id: str) -> tuple[int, int]:
        rollout = self.rollout(rollout_id)
        assert rollout is not None
        assert rollout.queue_place is not None
        return rollout.queue_place

    def _keeps_place(self, rollout_id: str) -> bool:
        """Whether a rollout that was in the queue and that this group changed still stands in the same place."""
        former, rollout = self.loaded.rollout(rollout_id), self.changes.rollouts[rollout_id]
        if former is None or rollout is None:
            return False
        return rollout.in_queue and rollout.queue_place == former.queue_place

    # --- Changing ----------------------------------------------------------------------------------------------------

    def put_rollout(self, rollout: RolloutRecord) -> None:
        """Insert it, or replace the record of that id."""
        self._set(self.changes.rollouts, rollout.rollout_id, rollout)

    def delete_rollout(self, rollout_id: str) -> None:
        """Remove it with all that belongs to it."""
        self._set(self.changes.rollouts, rollout_id, None)
        self.effects.deleted.append(rollout_id)

    def put_attempt(self, attempt: AttemptRecord) -> None:
        self._set(self.changes.attempts, (attempt.rollout_id, attempt.attempt_id), attempt)

    def put_worker(self, worker: WorkerRecord) -> None:
        self._set(self.changes.workers, worker.worker_id, worker)
        if worker.current_rollout_id is not None:
            self._holders.setdefault(worker.current_rollout_id, {})[worker.worker_id] = None

    def put_resources(self, resources: ResourcesRecord, *, latest: bool = True) -> None:
        """Insert or replace, and make it the latest if ``latest``."""
        self._set(self.changes.resources, resources.resources_id, resources)
        if latest:
            self.changes.latest_resources = resources.resources_id

    def delete_worker(self, worker_id: str) -> None:
        self._set(self.changes.workers, worker_id, None)

    def delete_resources(self, resources_id: str) -> None:
        """Remove those of this id, which are not the latest."""
        self._set(self.changes.resources, resources_id, None)

    def insert_span(self, key: SpanKey, span: SpanRecord, size_bytes: int) -> None:
        """A new one, whose ``sequence_id`` is set. Its rollout's span counter is set apart."""
        self._set(self.changes.spans, key, (span, size_bytes))

    def drop_span(self, key: SpanKey) -> None:
        """Note that a new one is not stored."""
        self._set(self.effects.dropped, key, None)

    def set_last_sequence(self, rollout_id: str, number: int) -> None:
        self._set(self.changes.sequences, rollout_id, number)

    def put_reply(self, reply: ReplyRecord) -> None:
        self._set(self.changes.replies, reply.request_id, reply)

    def put_admission(self, run: str, admission: AdmissionRecord | None) -> None:
        """None removes it."""
        self._set(self.changes.admissions, run, admission)

    def put_mark(self, consumer: str, rollout_id: str, number: int | None) -> None:
        """None takes it back."""
        self._set(self.changes.marks, (consumer, rollout_id), number)

    def put_checkpoint(self, consumer: str, checkpoint: str, number: int | None) -> None:
        """None removes it."""
        self._set(self.changes.checkpoints, (consumer, checkpoint), number)

    def next_queue_position(self) -> int:
        self._queue_position += 1
        return self._queue_position

    def next_completion_position(self) -> int:
        self._completion_position += 1
        return self._completion_position

    # --- Going back --------------------------------------------------------------------------------------------------

    def mark(self) -> Mark | None:
        """Where the changes are now; None where there are none yet."""
        if not self._journal:
            return None
        effects = self.effects
        return Mark(
            len(self._journal),
            len(effects.ended),
            len(effects.deleted),
            len(effects.queued),
            self._queue_position,
            self._completion_position,
            self.changes.latest_resources,
        )

    def revert(self, mark: Mark | None) -> None:
        """Undo everything since ``mark``."""
        mark = mark if mark is not None else Mark(0, 0, 0, 0, *self._start, None)
        while len(self._journal) > mark.journal:
            table, key, former = self._journal.pop()
            if former is _ABSENT:
                del table[key]
            else:
                table[key] = former
        del self.effects.ended[mark.ended :]
        del self.effects.deleted[mark.deleted :]
        del self.effects.queued[mark.queued :]
        self._queue_position = mark.queue_position
        self._completion_position = mark.completion_position
        self.changes.latest_resources = mark.latest_resources
        self._queue = self._next = None  # what was passed over may have to be looked at again
        self._queued = []
        self._queue_rank = 0

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        self._journal.append((table, key, table.get(key, _ABSENT)))
        table[key] = value


def gathered(look: Callable[[K], T], keys: Iterable[K]) -> list[T]:
    """What ``look`` finds for each of these.

    Raises:
        NotLoadedError: For all of those together that are not loaded.
    """
    found: list[T] = []
    missing: Needs | None = None
    for key in keys:
        try:
            found.append(look(key))
        except NotLoadedError as error:
            missing = error.needs if missing is None else missing.plus(error.needs)
    if missing is not None:
        raise NotLoadedError(missing)
    return found
