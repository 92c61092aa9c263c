"""The operations that change a store: what each one needs, what it decides, and how its reply is recorded.

An operation is a value. The executor asks it for its needs, has it decide on a view, and hands back what that returned;
``decide`` may run more than once, on another view each time, until a transaction commits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from lightning_store.backends.base import AttemptKey, Needs
from lightning_store.backends.records import (
    RESOURCES_OVERHEAD_BYTES,
    ROLLOUT_OVERHEAD_BYTES,
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    Claim,
    GroupRow,
    NewRollout,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    SpanRecord,
    StoredRollout,
    WorkerRecord,
    text_bytes,
)
from lightning_store.engine import admission, consuming, rules, transfer
from lightning_store.engine.groups import Judged, judge
from lightning_store.engine.idempotency_keys import keyed_ids
from lightning_store.engine.replies import RecordCodec, ReplyCodec, SpanOutcomesCodec
from lightning_store.engine.rules import Deletion
from lightning_store.engine.transfer import Counted, Imported
from lightning_store.engine.view import View
from lightning_store.errors import ResourceExhaustedError
from lightning_store.model import AttemptStatus, RolloutStatus
from lightning_store.outcomes import SpanOutcome
from lightning_store.queries import ALL_ROLLOUTS, GroupQuery, RolloutQuery

R = TypeVar("R")

PAYLOADS: Final = ("input_json", "metadata_json")
NO_PAYLOAD: Final = "{}"


class Operation(ABC, Generic[R]):
    """One call that changes something."""

    __slots__ = ()

    name: ClassVar[str]
    """Part of what a recorded reply is known by: it never changes."""
    codec: ClassVar[ReplyCodec[Any] | None] = None
    """Turns the reply into bytes and back. None: the operation may as well run twice, and no reply is recorded."""
    adds: ClassVar[bool] = False
    """Whether it adds rollouts, spans or resources."""
    grows: ClassVar[bool] = False
    """Whether it may add what is small and needed to finish what is stored: an attempt, a worker, a mark."""

    @abstractmethod
    def add_needs(self, needs: Needs) -> None:
        """Add what it reads, as far as the arguments tell."""

    @abstractmethod
    def decide(self, view: View) -> R:
        """Read and change the view; the reply. A StoreError is a refusal, of which no change remains."""

    @property
    def stores(self) -> bool:
        """Whether it adds to what is stored, which is refused when the limits of memory or disk are reached."""
        return self.adds

    def when_full(self, full: ResourceExhaustedError, *, to_the_last: bool) -> Operation[R]:
        """What of it is done all the same. ``full`` raised if that is nothing.

        Args:
            full: Why nothing more can be stored.
            to_the_last: Whether not even the reserve is left that is for attempts, workers and marks.
        """
        if self.stores or (to_the_last and self.grows):
            raise full
        return self

    @property
    def rows(self) -> int:
        """About how many rows it writes."""
        return 1

    @property
    def size_bytes(self) -> int:
        """About how many bytes it writes."""
        return 0


@dataclass(frozen=True, slots=True)
class ActOnDue(Operation[None]):
    """Nothing beside what every transaction does first: it ends what is overdue, and deletes what is not retained."""

    name = "act_on_due"

    def add_needs(self, needs: Needs) -> None:
        pass

    def decide(self, view: View) -> None:
        pass


# --- Rollouts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnqueueRollouts(Operation[list[RolloutRecord]]):
    """Put new rollouts at the tail of the queue. The reply: their records, in order."""

    name = "enqueue_rollouts"
    codec = RecordCodec(list[RolloutRecord])
    adds = True

    new: Sequence[NewRollout]
    idempotency_key: str | None = None

    def add_needs(self, needs: Needs) -> None:
        for one in self.new:
            _need_resources(needs, one)
            if one.group_id is not None and one.run is not None:
                needs.admissions.add(one.run)
        keys = Counter(self.idempotency_key or one.idempotency_key for one in self.new)
        for key, count in keys.items():
            if key is not None:
                needs.rollouts.update(keyed_ids(key, count))

    def decide(self, view: View) -> list[RolloutRecord]:
        if self.idempotency_key is not None:
            return rules.enqueue_once(view, self.new, self.idempotency_key)
        return rules.enqueue_each(view, self.new)

    @property
    def size_bytes(self) -> int:
        return sum(one.payload_bytes + ROLLOUT_OVERHEAD_BYTES for one in self.new)

    @property
    def rows(self) -> int:
        return len(self.new)


@dataclass(frozen=True, slots=True)
class StartRollout(Operation[Claim]):
    """Make a rollout that skips the queue, with its first attempt."""

    name = "start_rollout"
    codec = RecordCodec(Claim)
    adds = True

    new: NewRollout
    worker_id: str | None

    def add_needs(self, needs: Needs) -> None:
        _need_resources(needs, self.new)
        _need_worker(needs, self.worker_id)

    def decide(self, view: View) -> Claim:
        return rules.start_rollout(view, self.new, self.worker_id)

    @property
    def size_bytes(self) -> int:
        return self.new.payload_bytes + ROLLOUT_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class ClaimRollouts(Operation[list[Claim]]):
    """Claim from the head of the queue, without waiting."""

    name = "dequeue_rollouts"
    grows = True
    codec = RecordCodec(list[Claim])

    limit: int
    """1 or more."""
    worker_id: str | None

    def add_needs(self, needs: Needs) -> None:
        needs.claims += self.limit
        needs.claim_bytes += rules.CLAIM_BYTES
        _need_worker(needs, self.worker_id)

    def decide(self, view: View) -> list[Claim]:
        return rules.claim(view, self.limit, self.worker_id)

    @property
    def rows(self) -> int:
        return self.limit


@dataclass(frozen=True, slots=True)
class StartAttempt(Operation[Claim]):
    """Begin a new attempt of a rollout."""

    name = "start_attempt"
    grows = True
    codec = RecordCodec(Claim)

    rollout_id: str
    worker_id: str | None

    def add_needs(self, needs: Needs) -> None:
        needs.rollouts.add(self.rollout_id)
        _need_worker(needs, self.worker_id)

    def decide(self, view: View) -> Claim:
        return rules.begin_attempt(view, rules.known_rollout(view, self.rollout_id), self.worker_id)


@dataclass(frozen=True, slots=True)
class UpdateRollout(Operation[RolloutRecord]):
    """Set columns of a rollout, and move it to another status."""

    name = "update_rollout"
    codec = RecordCodec(RolloutRecord)

    rollout_id: str
    columns: Mapping[str, Any]
    """Columns of the record to set."""
    status: RolloutStatus | None
    """None leaves it alone."""

    def add_needs(self, needs: Needs) -> None:
        needs.rollouts.add(self.rollout_id)

    def decide(self, view: View) -> RolloutRecord:
        return rules.update_rollout(view, self.rollout_id, self.columns, self.status)

    @property
    def stores(self) -> bool:
        """Reports without a payload go on."""
        return _has_payload(self.columns)

    @property
    def size_bytes(self) -> int:
        return _text_bytes(self.columns)


@dataclass(frozen=True, slots=True)
class CancelRollouts(Operation[list[RolloutRow]]):
    """End rollouts as cancelled. The reply: them with their latest attempts, in the order given."""

    name = "cancel_rollouts"
    codec = RecordCodec(list[RolloutRow])

    rollout_ids: Sequence[str]
    where: RolloutQuery = ALL_ROLLOUTS
    """Others are left out."""
    named: bool = True
    """Whether the rollouts have to be known. Otherwise those that are gone or terminal are left out."""

    def add_needs(self, needs: Needs) -> None:
        needs.rollouts.update(self.rollout_ids)

    def decide(self, view: View) -> list[RolloutRow]:
        return rules.cancel(view, self.rollout_ids, self.where, named=self.named)

    @property
    def rows(self) -> int:
        return len(self.rollout_ids)


@dataclass(frozen=True, slots=True)
class SettleGroup(Operation[Judged]):
    """Cancel what is not done of a group that is to be returned without it. It may as well run twice."""

    name = "settle_group"

    group_id: str
    terms: GroupQuery

    def add_needs(self, needs: Needs) -> None:
        needs.groups.add(self.group_id)

    def decide(self, view: View) -> Judged:
        judged = judge(view.group(self.group_id), self.terms, view.now)
        if judged.status == "open":
            return judged
        rows = rules.cancel(view, [one.rollout.rollout_id for one in judged.group.rows])
        return judged._replace(group=GroupRow(self.group_id, rows))


@dataclass(frozen=True, slots=True)
class SetAdmission(Operation[AdmissionRecord]):
    """Bound the groups of a run. The reply: what holds."""

    name = "set_admission"
    grows = True
    codec = RecordCodec(AdmissionRecord)

    record: AdmissionRecord

    def add_needs(self, needs: Needs) -> None:
        needs.open_groups.add(self.record.run)

    def decide(self, view: View) -> AdmissionRecord:
        return admission.set_admission(view, self.record)

    def when_full(self, full: ResourceExhaustedError, *, to_the_last: bool) -> SetAdmission:
        """Bounds can be lifted in any case."""
        if to_the_last and self.record.bounds:
            raise full
        return self


@dataclass(frozen=True, slots=True)
class MarkConsumed(Operation[list[str]]):
    """Mark rollouts as consumed, and record a checkpoint. The reply: those that were not marked before."""

    name = "mark_consumed"
    grows = True
    codec = RecordCodec(list[str])

    consumer: str
    rollout_ids: Sequence[str]
    checkpoint: str | None

    def add_needs(self, needs: Needs) -> None:
        needs.checkpoints.add(self.consumer)
        needs.rollouts.update(self.rollout_ids)

    def decide(self, view: View) -> list[str]:
        return consuming.mark_consumed(view, self.consumer, self.rollout_ids, self.checkpoint)

    @property
    def rows(self) -> int:
        return len(self.rollout_ids)


@dataclass(frozen=True, slots=True)
class RewindConsumer(Operation[list[str]]):
    """Take marks back. The reply: the rollouts that had them."""

    name = "rewind_consumer"
    codec = RecordCodec(list[str])

    consumer: str
    checkpoint: str | None
    """None takes all marks back."""

    def add_needs(self, needs: Needs) -> None:
        needs.checkpoints.add(self.consumer)

    def decide(self, view: View) -> list[str]:
        return consuming.rewind(view, self.consumer, self.checkpoint)


@dataclass(frozen=True, slots=True)
class RequeueRollouts(Operation[list[RolloutRow]]):
    """Put terminal rollouts back into the queue. The reply: them with their latest attempts, in the order given."""

    name = "requeue_rollouts"
    codec = RecordCodec(list[RolloutRow])

    rollout_ids: Sequence[str]

    def add_needs(self, needs: Needs) -> None:
        needs.rollouts.update(self.rollout_ids)

    def decide(self, view: View) -> list[RolloutRow]:
        return rules.requeue(view, self.rollout_ids)

    @property
    def rows(self) -> int:
        return len(self.rollout_ids)


@dataclass(frozen=True, slots=True)
class DeleteRollouts(Operation[tuple[int | None, list[str]]]):
    """One slice of a deletion. The reply is the place from which the next slice goes on, and what was deleted."""

    name = "delete_rollouts"
    codec = RecordCodec(tuple[int | None, list[str]])

    candidates: Sequence[str]
    which: Deletion
    next_place: int | None

    def add_needs(self, needs: Needs) -> None:
        needs.rollouts.update(self.candidates)
        needs.holders.update(self.candidates)

    def decide(self, view: View) -> tuple[int | None, list[str]]:
        return self.next_place, [one for one in self.candidates if rules.delete(view, one, self.which)]

    @property
    def rows(self) -> int:
        return len(self.candidates)


# --- Attempts and workers --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpdateAttempt(Operation[AttemptRecord]):
    """Set columns of an attempt, and move it to another status; the rollout follows."""

    name = "update_attempt"
    grows = True
    codec = RecordCodec(AttemptRecord)

    rollout_id: str
    attempt_id: str
    """An id, or "latest"."""
    columns: Mapping[str, Any]
    """Columns of the record to set."""
    status: AttemptStatus | None
    """None leaves it alone."""

    def add_needs(self, needs: Needs) -> None:
        needs.rollouts.add(self.rollout_id)
        if self.attempt_id != "latest":
            needs.attempts.add((self.rollout_id, self.attempt_id))
        _need_worker(needs, self.columns.get("worker_id"))

    def decide(self, view: View) -> AttemptRecord:
        return rules.update_attempt(view, self.rollout_id, self.attempt_id, self.columns, self.status)

    @property
    def stores(self) -> bool:
        """Reports without a payload go on."""
        return _has_payload(self.columns)

    def when_full(self, full: ResourceExhaustedError, *, to_the_last: bool) -> UpdateAttempt:
        """A report goes on unless it has a payload, or makes a worker known."""
        if self.stores or (to_the_last and self.columns.get("worker_id")):
            raise full
        return self

    @property
    def size_bytes(self) -> int:
        return _text_bytes(self.columns)


@dataclass(frozen=True, slots=True)
class Heartbeat(Operation[WorkerRecord]):
    """Record a worker's heartbeat. It may as well run twice."""

    name = "update_worker"
    grows = True

    worker_id: str
    stats_json: str | None
    """None keeps the former."""
    unless_new: ResourceExhaustedError | None = None
    """What is raised for a worker that is not known."""

    def add_needs(self, needs: Needs) -> None:
        needs.workers.add(self.worker_id)
        needs.held.add(self.worker_id)

    def when_full(self, full: ResourceExhaustedError, *, to_the_last: bool) -> Heartbeat:
        """A heartbeat that is refused would make a worker look dead: it goes without its payload."""
        return Heartbeat(self.worker_id, None, full if to_the_last else None)

    def decide(self, view: View) -> WorkerRecord:
        if self.unless_new is not None and view.worker(self.worker_id) is None:
            raise self.unless_new
        return rules.heartbeat(view, self.worker_id, self.stats_json)

    @property
    def size_bytes(self) -> int:
        return text_bytes(self.stats_json)


@dataclass(frozen=True, slots=True)
class ReleaseWorker(Operation[WorkerRecord | None]):
    """Note that a worker ends. It may as well run twice."""

    name = "release_worker"

    worker_id: str

    def add_needs(self, needs: Needs) -> None:
        needs.workers.add(self.worker_id)

    def decide(self, view: View) -> WorkerRecord | None:
        return rules.release_worker(view, self.worker_id)


@dataclass(frozen=True, slots=True)
class DeleteWorkers(Operation[list[str]]):
    """Delete workers. The reply: those that there were, in order."""

    name = "delete_workers"
    codec = RecordCodec(list[str])

    worker_ids: Sequence[str]

    def add_needs(self, needs: Needs) -> None:
        needs.workers.update(self.worker_ids)
        needs.held.update(self.worker_ids)

    def decide(self, view: View) -> list[str]:
        return rules.delete_workers(view, self.worker_ids)

    @property
    def rows(self) -> int:
        return len(self.worker_ids)


@dataclass(frozen=True, slots=True)
class TidyWorkers(Operation[None]):
    """Release and delete workers that have long been silent. It may as well run twice."""

    name = "tidy_workers"

    worker_ids: Sequence[str]

    def add_needs(self, needs: Needs) -> None:
        needs.workers.update(self.worker_ids)
        needs.held.update(self.worker_ids)

    def decide(self, view: View) -> None:
        for worker_id in self.worker_ids:
            rules.tidy_worker(view, worker_id)

    @property
    def rows(self) -> int:
        return len(self.worker_ids)


# --- Spans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddSpans(Operation[list[SpanOutcome]]):
    """Store spans. The reply: what became of each, in order."""

    name = "add_spans"
    codec = SpanOutcomesCodec()
    adds = True

    spans: Sequence[tuple[SpanRecord, int]]
    """Each with the bytes that count for it."""

    def add_needs(self, needs: Needs) -> None:
        for span, _ in self.spans:
            needs.rollouts.add(span.rollout_id)
            needs.attempts.add((span.rollout_id, span.attempt_id))
            needs.spans.add((span.rollout_id, span.attempt_id, span.span_id))

    def decide(self, view: View) -> list[SpanOutcome]:
        return rules.add_spans(view, self.spans)

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.spans)

    @property
    def rows(self) -> int:
        return len(self.spans)


@dataclass(frozen=True, slots=True)
class AllocateSequenceIds(Operation[list[int]]):
    """Allocate a span number for each of these attempts. The reply: the numbers, in order."""

    name = "get_many_span_sequence_ids"
    codec = RecordCodec(list[int])

    attempts: Sequence[AttemptKey]
    """They need not exist."""

    def add_needs(self, needs: Needs) -> None:
        needs.rollouts.update(rollout_id for rollout_id, _ in self.attempts)

    def decide(self, view: View) -> list[int]:
        return rules.allocate(view, self.attempts)

    @property
    def rows(self) -> int:
        return len(self.attempts)


# --- Resources -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishResources(Operation[ResourcesRecord]):
    """Publish resources, as the next version of an id or under a new one."""

    name = "publish_resources"
    codec = RecordCodec(ResourcesRecord)
    adds = True

    resources_id: str | None
    """None makes a new id."""
    resources_json: str
    policy_version: int | None = None
    """None is the next one of the run."""
    run: str | None = None

    def add_needs(self, needs: Needs) -> None:
        if self.resources_id is not None:
            needs.resources.add(self.resources_id)
        needs.newest_resources.add(self.run)

    def decide(self, view: View) -> ResourcesRecord:
        return rules.publish(view, self.resources_id, self.resources_json, self.policy_version, self.run)

    @property
    def size_bytes(self) -> int:
        return text_bytes(self.resources_json) + RESOURCES_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class DeleteResources(Operation[list[str]]):
    """Delete resources. The reply: those that there were, in order."""

    name = "delete_resources"
    codec = RecordCodec(list[str])

    resources_ids: Sequence[str]

    def add_needs(self, needs: Needs) -> None:
        needs.resources.update(self.resources_ids)
        needs.latest_resources = True

    def decide(self, view: View) -> list[str]:
        return rules.delete_resources(view, self.resources_ids)

    @property
    def rows(self) -> int:
        return len(self.resources_ids)


# --- Between stores --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImportRollouts(Operation[Imported]):
    """Store what another store holds as it is."""

    name = "import_rollouts"
    codec = RecordCodec(Imported)
    adds = True

    rollouts: Sequence[StoredRollout]
    span_bytes: Sequence[Sequence[int]]
    """Of each rollout's spans, the bytes that count for each."""
    resources: Sequence[ResourcesRecord] = ()
    workers: Sequence[WorkerRecord] = ()
    checkpoints: Sequence[CheckpointRecord] = ()
    admissions: Sequence[AdmissionRecord] = ()

    def add_needs(self, needs: Needs) -> None:
        needs.checkpoints.update(one.consumer for one in self.checkpoints)
        for one in self.admissions:
            needs.admissions.add(one.run)
            needs.open_groups.add(one.run)
        for part in self.rollouts:
            needs.checkpoints.update(part.consumed)
            needs.rollouts.add(part.rollout.rollout_id)
            needs.workers.update(one.worker_id for one in part.attempts if one.worker_id)
            for span in part.spans:
                needs.attempts.add((span.rollout_id, span.attempt_id))
                needs.spans.add((span.rollout_id, span.attempt_id, span.span_id))
        needs.resources.update(one.resources_id for one in self.resources)
        needs.latest_resources = needs.latest_resources or bool(self.resources)
        for worker in self.workers:
            needs.workers.add(worker.worker_id)
            if worker.current_rollout_id and worker.current_attempt_id:
                needs.rollouts.add(worker.current_rollout_id)
                needs.attempts.add((worker.current_rollout_id, worker.current_attempt_id))

    def decide(self, view: View) -> Imported:
        checkpoints = [transfer.adopt_checkpoint(view, one) for one in self.checkpoints]
        admissions = [transfer.adopt_admission(view, one) for one in self.admissions]
        resources = [transfer.adopt_resources(view, one) for one in self.resources]
        adopted = [transfer.adopt_rollout(view, part) for part in self.rollouts]
        rollouts = [new for part, new in zip(self.rollouts, adopted, strict=True) if not part.spans_before]
        spans = [
            transfer.adopt_span(view, span, size_bytes)
            for part, sizes in zip(self.rollouts, self.span_bytes, strict=True)
            for span, size_bytes in zip(part.spans, sizes, strict=True)
        ]
        workers = [transfer.adopt_worker(view, one) for one in self.workers]
        kinds = (rollouts, spans, resources, workers, checkpoints, admissions)
        return Imported(Counted(*map(sum, kinds)), Counted(*(len(one) - sum(one) for one in kinds)))

    @property
    def rows(self) -> int:
        parts = sum(1 + len(part.attempts) + len(part.spans) + len(part.consumed) for part in self.rollouts)
        return parts + sum(map(len, (self.resources, self.workers, self.checkpoints, self.admissions)))

    @property
    def size_bytes(self) -> int:
        return sum(part.payload_bytes for part in self.rollouts) + sum(one.payload_bytes for one in self.resources)


def _need_resources(needs: Needs, new: NewRollout) -> None:
    if new.resources_id is None:
        needs.latest_resources = True
        run = new.run
        if run is not None:
            needs.newest_resources.update((run, None))
    else:
        needs.resources.add(new.resources_id)


def _need_worker(needs: Needs, worker_id: str | None) -> None:
    if worker_id:
        needs.workers.add(worker_id)


def _has_payload(columns: Mapping[str, Any]) -> bool:
    return any(len(columns.get(name) or "") > len(NO_PAYLOAD) for name in PAYLOADS)


def _text_bytes(columns: Mapping[str, Any]) -> int:
    return sum(text_bytes(value) for value in columns.values() if isinstance(value, str))
