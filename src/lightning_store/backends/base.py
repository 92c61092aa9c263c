"""The Backend interface: what the engine needs of a place that holds data.

A backend holds records and gives the engine atomic steps; it knows no rule. The rules are in ``lightning_store.step``.

Records are immutable: a change is a new record. User payloads are JSON text, a span's body is encoded bytes, so a
backend never looks inside either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from lightning_store.model import (
    AttemptStatus,
    FilterLogic,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    Span,
    WorkerStatus,
)

T = TypeVar("T")

SPAN_OVERHEAD_BYTES: Final = 600
"""Memory of a span record beside its body: the record, its ids and names, and its place in the indices."""
ROLLOUT_OVERHEAD_BYTES: Final = 1500
"""Memory of a rollout beside its payloads: the record, its ids, its config, its place in the indices."""
ATTEMPT_OVERHEAD_BYTES: Final = 800
RESOURCES_OVERHEAD_BYTES: Final = 500
WORKER_OVERHEAD_BYTES: Final = 500
WIDEST_CHAR_BYTES: Final = 4


def text_bytes(text: str | None) -> int:
    """Memory of a text, at the most: one emoji makes all its characters as wide as itself."""
    if text is None:
        return 0
    return len(text) if text.isascii() else WIDEST_CHAR_BYTES * len(text)


class RolloutRecord(NamedTuple):
    """A stored rollout. ``config`` is never changed in place."""

    rollout_id: str
    input_json: str
    start_time: float
    end_time: float | None
    mode: RolloutMode | None
    resources_id: str | None
    status: RolloutStatus
    config: RolloutConfig
    metadata_json: str | None

    @property
    def payload_bytes(self) -> int:
        """Of its JSON texts, in memory."""
        return text_bytes(self.input_json) + text_bytes(self.metadata_json)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return ROLLOUT_OVERHEAD_BYTES + self.payload_bytes


class NewRollout(NamedTuple):
    """What a rollout is made of, checked."""

    input_json: str
    mode: RolloutMode | None
    resources_id: str | None
    """None takes the latest resources at the time of the call."""
    config: RolloutConfig
    metadata_json: str


class AttemptRecord(NamedTuple):
    """A stored attempt."""

    rollout_id: str
    attempt_id: str
    sequence_id: int
    start_time: float
    end_time: float | None
    status: AttemptStatus
    worker_id: str | None
    last_heartbeat_time: float | None
    metadata_json: str | None

    @property
    def payload_bytes(self) -> int:
        """Of its JSON text, in memory."""
        return text_bytes(self.metadata_json)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return ATTEMPT_OVERHEAD_BYTES + self.payload_bytes


class SpanRecord(NamedTuple):
    """A stored span: the fields that are looked up, and all the rest encoded by a :class:`SpanCodec`."""

    rollout_id: str
    attempt_id: str
    sequence_id: int | None
    """None until the engine has allocated one."""
    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start_time: float | None
    end_time: float | None
    body: bytes
    common: bytes = b""
    """What follows the body, if it may be what other spans have too, such as the resource of their process: those that
    are in memory at the same time share it."""

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory, at the most."""
        return len(self.body) + len(self.common) + SPAN_OVERHEAD_BYTES


class ResourcesRecord(NamedTuple):
    """The present version of stored resources."""

    resources_id: str
    resources_json: str
    create_time: float
    update_time: float
    version: int

    @property
    def payload_bytes(self) -> int:
        """Of its JSON text, in memory."""
        return text_bytes(self.resources_json)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return RESOURCES_OVERHEAD_BYTES + self.payload_bytes


class WorkerRecord(NamedTuple):
    """A stored worker."""

    worker_id: str
    status: WorkerStatus = "unknown"
    heartbeat_stats_json: str | None = None
    last_heartbeat_time: float | None = None
    last_dequeue_time: float | None = None
    last_busy_time: float | None = None
    last_idle_time: float | None = None
    current_rollout_id: str | None = None
    current_attempt_id: str | None = None

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return WORKER_OVERHEAD_BYTES + text_bytes(self.heartbeat_stats_json)


class RolloutRow(NamedTuple):
    """A rollout with its latest attempt, None where there is none."""

    rollout: RolloutRecord
    attempt: AttemptRecord | None


class Claim(NamedTuple):
    """A rollout with the attempt that was begun of it just now."""

    rollout: RolloutRecord
    attempt: AttemptRecord


class SpanCodec(Protocol):
    """Turns spans into records and back. ``decode([encode(span)]) == [span]`` for every span."""

    def encode(self, span: Span) -> SpanRecord:
        """TypeError or ValueError, naming the field, for a span that cannot be stored."""
        ...

    def decode(self, records: Sequence[SpanRecord]) -> list[Span]:
        """A new Span of each record; the records' ``sequence_id`` is set."""
        ...


@dataclass(frozen=True, slots=True)
class Filter:
    """One optional filter on one column of a record."""

    field: str
    kind: Literal["in", "equals", "contains"]
    value: Any
    """A frozenset for "in", text for the others."""


@dataclass(frozen=True, slots=True)
class Query:
    """What rows, in what order, which part. Validated: see ``lightning_store.queries``."""

    filters: tuple[Filter, ...] = ()
    logic: FilterLogic = "and"
    sort_by: str | None = None
    """A column of the record; None is the order of insertion."""
    none_first: bool = False
    """Where null sorts when ascending."""
    descending: bool = False
    limit: int = -1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """One page of records, and how many match in all."""

    items: Sequence[T]
    total: int


class Completion(NamedTuple):
    """That a rollout became terminal."""

    rollout_id: str
    position: int
    """Among all completions of the store: 1, 2, 3, … in the order in which they happened."""
    time: float


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is stored."""

    rollouts: int
    attempts: int
    spans: int
    resources: int
    workers: int
    span_bytes: int
    bytes: int
    """What everything takes, about, the spans included."""


class Transaction(ABC):
    """One atomic step. Its verbs are called only inside ``async with backend.transaction()``."""

    __slots__ = ()

    # Rollouts

    @abstractmethod
    async def get_rollout(self, rollout_id: str) -> RolloutRecord | None: ...

    @abstractmethod
    async def put_rollout(self, rollout: RolloutRecord) -> None:
        """Insert it, or replace the record of that id."""

    @abstractmethod
    async def list_rollouts(self, query: Query) -> Rows[RolloutRecord]: ...

    @abstractmethod
    async def delete_rollout(self, rollout_id: str) -> None:
        """Remove it with all that belongs to it: attempts, spans, deadline, completion, its place in the queue."""

    # Completions, one a rollout at most. A rollout that ends anew has its completion then, and not the former one.

    @abstractmethod
    async def note_completion(self, rollout_id: str, time: float) -> None: ...

    @abstractmethod
    async def forget_completion(self, rollout_id: str) -> None: ...

    @abstractmethod
    async def get_completion(self, rollout_id: str) -> Completion | None: ...

    @abstractmethod
    async def list_completions(self, after: int, limit: int) -> list[Completion]:
        """The first ``limit`` of those past position ``after``, in order."""

    @abstractmethod
    async def count_completions(self) -> int:
        """How many rollouts have one."""

    @abstractmethod
    async def last_completion(self) -> int:
        """The last position that was given out; 0 before the first."""

    # The queue. A rollout stands in it at most once.

    @abstractmethod
    async def push_queue(self, rollout_id: str) -> None:
        """Put it at the tail. One that is in the queue already keeps its place."""

    @abstractmethod
    async def pop_queue(self) -> str | None:
        """Take the head, whatever that rollout's status is now."""

    @abstractmethod
    async def leave_queue(self, rollout_id: str) -> None:
        """Take it out, if it is in."""

    # Attempts

    @abstractmethod
    async def get_attempt(self, rollout_id: str, attempt_id: str) -> AttemptRecord | None: ...

    @abstractmethod
    async def latest_attempt(self, rollout_id: str) -> AttemptRecord | None: ...

    @abstractmethod
    async def latest_attempts(self, rollout_ids: Sequence[str]) -> Sequence[AttemptRecord | None]:
        """That of each rollout, in their order."""

    @abstractmethod
    async def put_attempt(self, attempt: AttemptRecord) -> None:
        """Insert it as the latest of its rollout, or replace the record of that id."""

    @abstractmethod
    async def list_attempts(self, rollout_id: str, query: Query) -> Rows[AttemptRecord]: ...

    # Deadlines, one a rollout at most

    @abstractmethod
    async def set_deadline(self, rollout_id: str, time: float | None) -> None:
        """Replace the rollout's deadline; None removes it."""

    @abstractmethod
    async def next_deadline(self) -> float | None:
        """A time before which nothing is due: the earliest deadline, or somewhat earlier."""

    @abstractmethod
    async def take_due(self, now: float, limit: int) -> list[str]:
        """Remove up to ``limit`` deadlines that are before ``now``, earliest first; return their rollouts."""

    # Spans

    @abstractmethod
    async def has_span(self, rollout_id: str, attempt_id: str, span_id: str) -> bool: ...

    @abstractmethod
    async def insert_span(self, span: SpanRecord, size_bytes: int) -> bool:
        """Store it. False if its key is stored already, and nothing changed.

        Its ``sequence_id`` is set; the rollout's span counter moves up to that if it is below.
        """

    @abstractmethod
    async def list_spans(self, rollout_id: str, attempt_id: str | None, query: Query) -> Rows[SpanRecord]: ...

    @abstractmethod
    async def last_sequence(self, rollout_id: str) -> int:
        """Where the rollout's span counter stands: 0 before the first number."""

    @abstractmethod
    async def next_sequence(self, rollout_id: str) -> int:
        """Move the rollout's span counter on by one and return the new number."""

    @abstractmethod
    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        """Drop whole rollouts' spans until ``excess_bytes`` or more are free, and return the rollouts.

        Finished ones go first, the one that ended earliest first of all; then, if ``unfinished`` allows it, the others,
        oldest first.
        """

    @abstractmethod
    async def spans_evicted(self, rollout_id: str) -> bool:
        """Whether spans of this rollout were dropped."""

    # Resources

    @abstractmethod
    async def get_resources(self, resources_id: str) -> ResourcesRecord | None: ...

    @abstractmethod
    async def latest_resources(self) -> ResourcesRecord | None: ...

    @abstractmethod
    async def put_resources(self, resources: ResourcesRecord) -> None:
        """Insert or replace, and make it the latest."""

    @abstractmethod
    async def list_resources(self, query: Query) -> Rows[ResourcesRecord]: ...

    # Workers

    @abstractmethod
    async def get_worker(self, worker_id: str) -> WorkerRecord | None: ...

    @abstractmethod
    async def put_worker(self, worker: WorkerRecord) -> None: ...

    @abstractmethod
    async def list_workers(self, query: Query) -> Rows[WorkerRecord]: ...

    # Replies of calls that must not happen twice, and sizes

    @abstractmethod
    async def recall_reply(self, request_id: str, at: float) -> tuple[str, Any] | None:
        """The operation and reply remembered for this id, unless they left the replay window.

        ``at`` is the time now, on a clock that never jumps.
        """

    @abstractmethod
    async def remember_reply(self, request_id: str, operation: str, reply: Any, at: float) -> None:
        """Keep a reply; it becomes visible with the change that it answers, or not at all."""

    @abstractmethod
    async def counts(self) -> Counts: ...

    @abstractmethod
    async def span_bytes(self) -> int:
        """``counts().span_bytes``, at once."""

    @abstractmethod
    async def stored_bytes(self) -> int:
        """``counts().bytes``, at once."""


class Backend(ABC):
    """A place that holds data."""

    @property
    @abstractmethod
    def store_id(self) -> str:
        """Tells this data from that of any other store, also of one that was in its place before."""

    @property
    @abstractmethod
    def replay_window_seconds(self) -> float:
        """How long a remembered reply is kept."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """One atomic step: others see all of it or nothing.

        A backend need not be able to undo: the engine checks before it writes, so a body that raises has written
        nothing but what stands by itself (attempts given up at their deadline).
        """
