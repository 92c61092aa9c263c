"""The Backend interface: what the engine needs of a place that holds data.

The engine works in groups of operations, and each group is one transaction with the same few steps, however many
operations are in it:

1. ``load`` reads everything that the operations need (:class:`Needs`), set-wise. It begins the transaction. A second,
   smaller load follows where the first shows that more is needed.
2. The engine decides, on what was loaded. The backend knows no rule.
3. ``commit`` writes everything that changed (:class:`Changes`), set-wise, and ends the transaction.

What a backend has to keep, and ``lightning_store.testing.BackendContract`` checks:

* A transaction sees one state of the data, and nobody else changes what it loaded before it ends. A backend that cannot
  guarantee it by locks raises :class:`ConflictError`; the engine runs the operations again.
* When ``commit`` returns, all of the changes are stored, for good as far as the backend promises durability. When it
  raises, none of them are, except with :class:`CommitUnknownError`.
* After ``rollback`` nothing of the transaction has happened.
* A snapshot sees one state of the data and writes nothing.
* A backend may suspend at each await, unless it says that it is ``inline``.

Reading beyond these: ``evict_spans`` and the reads of a :class:`Snapshot` (filtered lists, completions, counts) are
verbs of their own, since they answer one caller and are not part of a group.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    CompletionRow,
    Counts,
    GroupRow,
    OpenGroup,
    PlacedRollout,
    QueueCounts,
    ReplyRecord,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.errors import ResourceExhaustedError, StoreUnavailableError
from lightning_store.queries import AttemptQuery, ResourcesQuery, RolloutQuery, SpanBatchQuery, SpanQuery, WorkerQuery

T = TypeVar("T")

MarkKey: TypeAlias = tuple[str, str]
"""Consumer, rollout id."""
AttemptKey: TypeAlias = tuple[str, str]
"""Rollout id, attempt id."""
SpanKey: TypeAlias = tuple[str, str, str]
"""Rollout id, attempt id, span id."""

PROVISIONAL: Final = 1 << 62
"""The first of the positions that stand for "after all that are stored": a backend that hands out positions when it
commits replaces them then by its own next ones, in their order."""


class ConflictError(Exception):
    """Another transaction changed what this one had loaded. Nothing was written; the same operations may run again."""


class SnapshotEndedError(StoreUnavailableError):
    """Another task's read of the same snapshot has failed, and nothing more can be read from it. A new one may do."""


class CommitUnknownError(Exception):
    """The commit was sent and no answer came: it may have happened. The recorded replies tell."""


# --- What is read ----------------------------------------------------------------------------------------------------


class Due(NamedTuple):
    """What the store has to do by itself by now, and how much of it at a time."""

    now: float
    """Deadlines before this time have passed, in seconds since the epoch."""
    limit: int
    retain_since: float | None = None
    """Rollouts that became terminal before this time are to be deleted; None: none for their age."""
    retain_count: int | None = None
    """Terminal rollouts beyond so many are to be deleted, those that ended first; None: none for their number."""
    consumers: Sequence[str] = ()
    """What one of these has not consumed is not to be deleted; nor what it has marked after its last checkpoint, if it
    has recorded any."""


class DiskUse(NamedTuple):
    """What a backend takes of a disk."""

    used_bytes: int
    """Of the data."""
    file_bytes: int
    """Of the files, with what is free within them."""
    free_bytes: int
    """Left on the disk."""
    limit_bytes: int | None
    """Of ``used_bytes``, past which nothing more is stored; None for none."""


@dataclass(slots=True)
class Needs:
    """What a group of operations reads: the union of what each of them asks for."""

    replies: set[str] = field(default_factory=set)
    """Request ids."""
    rollouts: set[str] = field(default_factory=set)
    """Rollout ids. Each rollout comes with its span counter, its latest attempt, and the worker that this names. So do
    the rollouts at the head of the queue and those that are due."""
    attempts: set[AttemptKey] = field(default_factory=set)
    """Attempts beside the latest ones. Each comes with the worker that it names."""
    spans: set[SpanKey] = field(default_factory=set)
    """Keys of spans, to learn which of them are stored."""
    workers: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    """Worker ids, for the rollout and the attempt that each of them holds."""
    holders: set[str] = field(default_factory=set)
    """Rollout ids, for the workers that hold an attempt of them, each of which comes too. The rollouts that are
    expendable come with theirs."""
    resources: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    """Ids of groups, whose members come as ``rollouts`` do."""
    checkpoints: set[str] = field(default_factory=set)
    """Consumers, for their checkpoints."""
    marks: set[MarkKey] = field(default_factory=set)
    """Of rollouts that are loaded."""
    marks_from: set[tuple[str, int]] = field(default_factory=set)
    """Consumers, each with a number, for what they have marked under this number or a later one."""
    admissions: set[str] = field(default_factory=set)
    """Runs."""
    open_groups: set[str] = field(default_factory=set)
    """Runs."""
    latest_resources: bool = False
    newest_resources: set[str | None] = field(default_factory=set)
    """Runs, for the resources of each that have the greatest policy version; None for those of no run."""
    claims: int = 0
    """How many rollouts from the head of the queue; in a further load, how many more. Their resources may come too."""
    claim_bytes: int = 0
    """Payload bytes after which so many are enough; the rollout that exceeds them is the last. One comes anyway."""

    def plus(self, other: Needs) -> Needs:
        """Everything that the two ask for."""
        return Needs(
            self.replies | other.replies,
            self.rollouts | other.rollouts,
            self.attempts | other.attempts,
            self.spans | other.spans,
            self.workers | other.workers,
            self.held | other.held,
            self.holders | other.holders,
            self.resources | other.resources,
            self.groups | other.groups,
            self.checkpoints | other.checkpoints,
            self.marks | other.marks,
            self.marks_from | other.marks_from,
            self.admissions | other.admissions,
            self.open_groups | other.open_groups,
            self.latest_resources or other.latest_resources,
            self.newest_resources | other.newest_resources,
            self.claims + other.claims,
            self.claim_bytes + other.claim_bytes,
        )


class Loaded(ABC):
    """What a load has read. A look-up of something that was not among the needs raises :class:`NotLoadedError`."""

    __slots__ = ("expendable", "overdue")

    def __init__(self) -> None:
        self.overdue: Sequence[str] = ()
        """Up to ``due.limit`` rollouts whose deadline has passed, the earliest first."""
        self.expendable: Sequence[str] = ()
        """Up to ``due.limit`` rollouts that are not to be retained, those that ended first: fewer where a
        transaction should not delete as many. None only if there is none."""

    @abstractmethod
    def reply(self, request_id: str) -> ReplyRecord | None:
        """The recorded reply, however old it is; None if there is none."""

    @abstractmethod
    def rollout(self, rollout_id: str) -> RolloutRecord | None:
        """The rollout; None if there is none."""

    @abstractmethod
    def attempt(self, rollout_id: str, attempt_id: str) -> AttemptRecord | None:
        """The attempt; None if there is none, or no such rollout."""

    @abstractmethod
    def last_sequence(self, rollout_id: str) -> int:
        """Where the rollout's span counter stands: 0 before the first number. The rollout exists."""

    @abstractmethod
    def has_span(self, rollout_id: str, attempt_id: str, span_id: str) -> bool:
        """Whether a span with this key is stored."""

    @abstractmethod
    def worker(self, worker_id: str) -> WorkerRecord | None:
        """The worker; None if it was never mentioned."""

    @abstractmethod
    def holders(self, rollout_id: str) -> Iterable[str]:
        """The ids of the workers that hold an attempt of this rollout; some that do not any more may be among them."""

    @abstractmethod
    def resources(self, resources_id: str) -> ResourcesRecord | None:
        """The present version of these resources; None if there are none."""

    @abstractmethod
    def group(self, group_id: str) -> Iterable[str]:
        """The ids of the rollouts in this group, in the order in which they were made."""

    @abstractmethod
    def checkpoints(self, consumer: str) -> Mapping[str, int]:
        """What a consumer has recorded, each with its number: 1 for the first."""

    @abstractmethod
    def mark_of(self, consumer: str, rollout_id: str) -> int | None:
        """How many checkpoints there were when a consumer marked this rollout; None if it has not, or there is no such
        rollout."""

    @abstractmethod
    def marks_from(self, consumer: str, number: int) -> Iterable[str]:
        """The rollouts that a consumer has marked when there were so many checkpoints or more, in the order in which
        they were made."""

    @abstractmethod
    def admission(self, run: str) -> AdmissionRecord | None:
        """That of a run; None if it has none."""

    @abstractmethod
    def open_groups(self, run: str) -> Iterable[OpenGroup]:
        """The groups of a run that nobody has consumed, with a member that is neither failed nor cancelled."""

    @abstractmethod
    def latest_resources(self) -> ResourcesRecord | None:
        """The resources that were published last; None if there are none."""

    @abstractmethod
    def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        """The resources of a run that have the greatest policy version, the first of several; None is those of no run.
        None if there are none."""

    @abstractmethod
    def queue(self) -> Iterable[str]:
        """The rollouts at the head of the queue, in order."""

    @property
    @abstractmethod
    def queue_is_whole(self) -> bool:
        """Whether ``queue()`` goes to the tail of the queue."""

    def is_taken(self, rollout_id: str, attempt_id: str | None = None) -> bool:
        """Whether a rollout, or an attempt of it, with this new id is known to exist. A backend that learns that only
        when it inserts raises ConflictError then."""
        return False

    @property
    def last_queue_position(self) -> int:
        """The position after which those of newly queued rollouts follow."""
        return PROVISIONAL

    @property
    def last_completion_position(self) -> int:
        """The position after which those of new completions follow."""
        return PROVISIONAL


class NotLoadedError(Exception):
    """A rule looked at something that was not loaded; ``needs`` names it."""

    def __init__(self, needs: Needs) -> None:
        super().__init__("not loaded")
        self.needs = needs


# --- What is written -------------------------------------------------------------------------------------------------


class Changes:
    """What a group of operations writes: for each key, its state when all of them are done.

    A rollout or an attempt that the transaction has not loaded, or has found absent, is new: if its id is taken, the
    commit meets a conflict.
    """

    __slots__ = (
        "admissions",
        "attempts",
        "checkpoints",
        "latest_resources",
        "marks",
        "replies",
        "resources",
        "rollouts",
        "sequences",
        "spans",
        "time",
        "workers",
    )

    def __init__(self) -> None:
        self.time = 0.0
        """The present, in seconds since the epoch. No time that the engine sets is later."""
        self.rollouts: dict[str, RolloutRecord | None] = {}
        """None deletes a rollout with all that belongs to it; what is said of it elsewhere in the changes is void. From
        its columns follow its place in the queue, among the completions, and when it is due."""
        self.attempts: dict[AttemptKey, AttemptRecord] = {}
        self.spans: dict[SpanKey, tuple[SpanRecord, int]] = {}
        """New spans, in order, each with its size in bytes."""
        self.sequences: dict[str, int] = {}
        """Where the span counters of these rollouts stand."""
        self.workers: dict[str, WorkerRecord | None] = {}
        """None deletes a worker."""
        self.resources: dict[str, ResourcesRecord | None] = {}
        """None deletes resources, which are not the latest."""
        self.latest_resources: str | None = None
        """Which of ``resources`` are the latest from now on; None: those that were."""
        self.replies: dict[str, ReplyRecord] = {}
        self.marks: dict[MarkKey, int | None] = {}
        """What consumers have consumed; None takes a mark back."""
        self.checkpoints: dict[tuple[str, str], int | None] = {}
        """Of a consumer and a name; None removes one."""
        self.admissions: dict[str, AdmissionRecord | None] = {}
        """By run; None removes one."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return self.latest_resources is None and not any(
            (
                self.rollouts,
                self.attempts,
                self.spans,
                self.sequences,
                self.workers,
                self.resources,
                self.replies,
                self.marks,
                self.checkpoints,
                self.admissions,
            )
        )


class Transaction(ABC):
    """One group of operations: ``load``, perhaps again, then ``commit`` or ``rollback``."""

    __slots__ = ()

    @abstractmethod
    async def load(self, needs: Needs, due: Due | None = None) -> Loaded:
        """Read ``needs``. The first load begins the transaction.

        Args:
            needs: What to read. An inline backend reads on demand, and is asked for nothing in advance.
            due: What the store has to do by itself; for ``overdue`` and ``expendable`` of what is returned.

        Returns:
            Everything that this transaction has loaded so far: the same object each time.

        Raises:
            ConflictError: Another transaction is in the way.
            StoreUnavailableError: The data cannot be reached now.
        """

    @abstractmethod
    async def commit(self, changes: Changes) -> None:
        """Write ``changes`` and end the transaction.

        Raises:
            ConflictError: Another transaction is in the way; nothing was written.
            CommitUnknownError: It may have happened or not.
            StoreUnavailableError: The data cannot be reached now; nothing was written.
        """

    @abstractmethod
    async def rollback(self) -> None:
        """End the transaction without a trace; nothing happens if it has ended already."""


# --- Reading alone ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """One page of records, and how many match in all."""

    items: Sequence[T]
    total: int


class Unconsumed(NamedTuple):
    """Some completions that a consumer has not marked."""

    rows: Sequence[CompletionRow]
    """In order."""
    reached: int | None
    """The position up to which there are no others; None: there are no others at all."""


class Snapshot(ABC):
    """One state of the data, to read from."""

    __slots__ = ()

    @abstractmethod
    async def has_due(self, due: Due) -> bool:
        """Whether a transaction that needs ``due`` would find something overdue or expendable. An indexed look."""

    @abstractmethod
    async def rollouts(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        """Each of these rollouts with its latest attempt, in their order; None where there is no such rollout."""

    @abstractmethod
    async def groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        """Those of these groups that have members, in their order."""

    @abstractmethod
    async def consumed(self, consumer: str, rollout_ids: Sequence[str]) -> set[str]:
        """Those of these rollouts that a consumer has marked."""

    @abstractmethod
    async def marks(self, rollout_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """The consumers that have marked each of these rollouts, with how many checkpoints each had then. Rollouts that
        nobody has marked may be missing."""

    @abstractmethod
    async def checkpoints(self) -> list[CheckpointRecord]:
        """Those of all consumers."""

    @abstractmethod
    async def admissions(self) -> list[AdmissionRecord]:
        """Those of all runs that have one, by run."""

    @abstractmethod
    async def open_groups(self, run: str) -> Sequence[OpenGroup]:
        """As ``Loaded.open_groups``."""

    @abstractmethod
    async def resources(self, resources_id: str | None) -> ResourcesRecord | None:
        """Those of this id, or the latest ones for None."""

    @abstractmethod
    async def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        """As ``Loaded.newest_resources``."""

    @abstractmethod
    async def worker(self, worker_id: str) -> WorkerRecord | None:
        """The worker; None if it was never mentioned."""

    @abstractmethod
    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        """Rollouts that match, each with its latest attempt. Order and ties as ``lightning_store.store`` says."""

    @abstractmethod
    async def query_attempts(self, query: AttemptQuery) -> Rows[AttemptRecord]:
        """Attempts of a rollout; none for one that does not exist."""

    @abstractmethod
    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]:
        """Spans of the attempt ``query.attempt_id``; of all attempts if that is None."""

    @abstractmethod
    async def query_many_spans(
        self, query: SpanBatchQuery, attempts: Sequence[tuple[str, str | None]]
    ) -> Rows[SpanRecord]:
        """Whole spans of these attempts that pass the filters of ``query``, in this order and by sequence id. Each is
        the id of a rollout that exists, and that of an attempt or None for all of its attempts."""

    @abstractmethod
    async def query_resources(self, query: ResourcesQuery) -> Rows[ResourcesRecord]:
        """Resources that match, each in its present version."""

    @abstractmethod
    async def query_workers(self, query: WorkerQuery) -> Rows[WorkerRecord]:
        """Workers that match."""

    @abstractmethod
    async def completions(self, after: int, limit: int) -> list[CompletionRow]:
        """The first ``limit`` of those past position ``after``, in order."""

    @abstractmethod
    async def unconsumed(self, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
        """Of the first ``look`` completions past position ``after``, the first ``limit`` that a consumer has not
        marked. The others are not read."""

    @abstractmethod
    async def last_completion(self) -> int:
        """The position past which all completions to come will be; 0 before the first."""

    @abstractmethod
    async def next_deadline(self) -> float | None:
        """The earliest deadline of all rollouts, or an earlier time; None if there is none."""

    @abstractmethod
    async def placed_rollouts(self, after: int, limit: int) -> list[PlacedRollout]:
        """The first ``limit`` rollouts past place ``after``, in the order in which they were made; 0 begins with the
        first."""

    @abstractmethod
    async def counts(self) -> Counts:
        """How much is stored."""

    @abstractmethod
    async def queue_counts(self) -> QueueCounts:
        """Where the rollouts and the workers stand: numbers that are kept, for which no rollout is looked at."""


class Elsewhere(NamedTuple):
    """What other servers did on the same data that somebody here may be waiting for."""

    ended: Sequence[str]
    """The rollouts that became terminal."""
    deleted: Sequence[str]
    """The rollouts that were deleted."""
    queued: int
    """How many rollouts were put into the queue."""
    deadline: float | None
    """The earliest deadline that was set; None if none was."""
    missed: bool = False
    """Whether there is more than this tells: the data was out of reach for a while."""


class Violation(NamedTuple):
    """Something that is not as it has to be in data at rest."""

    rule: str
    """What has to be true."""
    found: str
    """Where it is not."""


class Backend(ABC):
    """A place that holds data."""

    inline: bool = False
    """Whether no call of it ever suspends, so that an operation runs at once and reads what it needs on demand."""
    is_remote: bool = False
    """Whether each read of a snapshot is a round trip, so that look-ups that are ready together share them. Several
    tasks may read from one snapshot then; their reads take turns."""

    @property
    @abstractmethod
    def store_id(self) -> str:
        """Tells this data from that of any other store, also of one that was in its place before."""

    @property
    @abstractmethod
    def replay_window_seconds(self) -> float:
        """How long a recorded reply is kept."""

    @property
    def newest_time(self) -> float:
        """The latest ``Changes.time`` that is stored when the backend is opened; 0 if nothing is. The time of the store
        goes on from there at the earliest, whatever the machine's clock says."""
        return 0.0

    @property
    def available(self) -> bool:
        """Whether the data can be reached, as far as is known."""
        return True

    async def wait_for_availability(self, available: bool) -> None:
        """Return when ``available`` is this: never, with a backend that is always within reach, for False."""
        if self.available is not available:
            await asyncio.get_running_loop().create_future()

    def follow(self, tell: Callable[[Elsewhere], None]) -> None:  # noqa: B027
        """Have ``tell`` called with what other servers do on the same data, on the event loop of the backend. A backend
        that nobody shares has nothing to tell."""

    @abstractmethod
    def transaction(self) -> Transaction:
        """A new one. It begins with its first load."""

    @abstractmethod
    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """The state of the data, for as long as this is entered."""

    @abstractmethod
    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        """Drop whole rollouts' spans until ``excess_bytes`` or more are free.

        Args:
            excess_bytes: How many bytes of spans to free at the least.
            unfinished: Whether rollouts that are not terminal may lose theirs, oldest first, when nothing else is left.
                Terminal ones go first, the one that ended earliest first of all.

        Returns:
            The rollouts whose spans were dropped.
        """

    def refusal(self) -> ResourceExhaustedError | None:
        """Why nothing more can be stored now, though it can be deleted; None while there is room. Asked before each
        transaction."""
        return None

    @property
    def disk_use(self) -> DiskUse | None:
        """What it takes of a disk; None of a backend that has none of its own. Numbers that are at hand."""
        return None

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """About how many bytes are stored, the spans included. A number that is at hand."""

    @property
    @abstractmethod
    def span_bytes(self) -> int:
        """About how many bytes of spans are stored. A number that is at hand."""
