"""Records: what a backend stores, and what the engine decides on.

Records are immutable: a change is a new record. User payloads and spans are JSON text, so neither the engine nor a
backend looks inside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from lightning_store.lifecycle import QUEUED, TERMINAL
from lightning_store.model import AttemptStatus, EndReason, RolloutConfig, RolloutMode, RolloutStatus, WorkerStatus

SPAN_OVERHEAD_BYTES: Final = 520
"""Memory of a span record beside its document: the record, its columns, and its place in the indices."""
ROLLOUT_OVERHEAD_BYTES: Final = 1500
"""Memory of a rollout beside its payloads: the record, its ids, its config, its place in the indices."""
ATTEMPT_OVERHEAD_BYTES: Final = 800
RESOURCES_OVERHEAD_BYTES: Final = 500
WORKER_OVERHEAD_BYTES: Final = 500
MARK_OVERHEAD_BYTES: Final = 300
"""Memory of a mark, a checkpoint or an admission beside the name that it is kept under."""
WIDEST_CHAR_BYTES: Final = 4
ID_INCLUDED_BYTES: Final = 100
"""Of an id that a caller gives, which the overheads above include."""
QUEUE_LOOK: Final = 1000
"""How far into the queue one looks for the first rollout of each mode."""
POSITIONS_PER_BAND: Final = 1 << 48
"""More rollouts than these are never queued."""
NO_PLACE: Final = (1 << 62, 0)
"""Comes after all places in the queue."""
LOST: Final = TERMINAL - {"succeeded"}
"""Statuses of rollouts that nobody waits for any more."""


def text_bytes(text: str | None) -> int:
    """Memory of a text, at the most: one emoji makes all its characters as wide as itself."""
    if text is None:
        return 0
    return len(text) if text.isascii() else WIDEST_CHAR_BYTES * len(text)


def id_bytes(text: str | None) -> int:
    """Memory of an id beyond what the overheads include."""
    if text is None or len(text) * WIDEST_CHAR_BYTES <= ID_INCLUDED_BYTES:  # as a rule
        return 0
    return max(0, text_bytes(text) - ID_INCLUDED_BYTES)


class RolloutRecord(NamedTuple):
    """A stored rollout: the columns that callers see, then those that the engine schedules by.

    ``config`` is never changed in place.
    """

    rollout_id: str
    input_json: str
    start_time: float
    end_time: float | None
    mode: RolloutMode | None
    resources_id: str | None
    status: RolloutStatus
    config: RolloutConfig
    metadata_json: str | None
    latest_attempt_id: str | None = None
    queue_position: int | None = None
    """Its place in the queue, from the time it is queued until it is claimed, finished or deleted. It is in the queue
    while its status says so; set to running by hand and back, it has the same place again."""
    completion_position: int | None = None
    """Its place among all completions of the store; None while it is not terminal."""
    completion_time: float | None = None
    """When it became terminal. ``end_time`` moves with later reports of the same outcome, this does not."""
    deadline: float | None = None
    """No deadline of its latest attempt passes before this time. A heartbeat moves the deadline and not this; the
    engine looks again when this time has come. None: no deadline counts."""
    spans_evicted: bool = False
    """Whether spans of it were dropped to free memory."""
    fingerprint: str | None = None
    """Of a rollout that was queued under an idempotency key: tells its batch from any other."""
    end_reason: EndReason | None = None
    priority: int = 0
    queue_band: int = 0
    """Comes before its position in the queue: lower ones are claimed first. It follows from the priority, and from
    whether the rollout stands at the head for a retry."""
    uncounted_attempts: int = 0
    """How many of its attempts do not count."""
    run: str | None = None
    """As its metadata had it when it was made."""
    group_id: str | None = None
    group_size: int | None = None
    first_claim_time: float | None = None
    """Of a member of a group: when its first attempt began."""
    held: bool = False
    """Whether it is kept out of the queue, with its place in it, until its run has room for its group."""
    consumers: int = 0
    """How many consumers have consumed it."""

    @property
    def queue_place(self) -> tuple[int, int] | None:
        """Orders the queue, in a transaction too, in which positions may be provisional."""
        return None if self.queue_position is None else (self.queue_band, self.queue_position)

    @property
    def queue_key(self) -> int | None:
        """Orders the queue, as one number, once the position is a real one."""
        return None if self.queue_position is None else self.queue_band * POSITIONS_PER_BAND + self.queue_position

    @property
    def in_queue(self) -> bool:
        return self.queue_position is not None and self.status in QUEUED and not self.held

    @property
    def waits_to_retry(self) -> bool:
        """Whether it is back in the queue when its ``deadline`` has passed."""
        return self.queue_position is None and self.status == "requeuing"

    @property
    def payload_bytes(self) -> int:
        """Of its JSON texts, in memory."""
        return text_bytes(self.input_json) + text_bytes(self.metadata_json)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return ROLLOUT_OVERHEAD_BYTES + self.payload_bytes + id_bytes(self.resources_id)


class NewRollout(NamedTuple):
    """What a rollout is made of, checked."""

    input_json: str
    mode: RolloutMode | None
    resources_id: str | None
    """None takes the latest resources at the time of the call."""
    config: RolloutConfig
    metadata_json: str
    priority: int = 0
    idempotency_key: str | None = None
    """As its metadata have it."""
    run: str | None = None
    """As its metadata have it."""
    group_id: str | None = None
    group_size: int | None = None

    @property
    def payload_bytes(self) -> int:
        """Of its JSON texts, in memory."""
        return text_bytes(self.input_json) + text_bytes(self.metadata_json)


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
    counts: bool = True
    """Whether it is one of the ``max_attempts``."""
    resources_id: str | None = None
    resources_version: int | None = None
    policy_version: int | None = None
    policy_version_min: int | None = None
    policy_version_max: int | None = None

    @property
    def payload_bytes(self) -> int:
        """Of its JSON text, in memory."""
        return text_bytes(self.metadata_json)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return ATTEMPT_OVERHEAD_BYTES + self.payload_bytes + id_bytes(self.worker_id)


class SpanRecord(NamedTuple):
    """A span: the columns by which spans are looked up, derived from its document, and the document."""

    rollout_id: str
    attempt_id: str
    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    """With U+FFFD for each lone surrogate and each U+0000; see :func:`lightning_store.text.column_text`."""
    start_time: float | None
    end_time: float | None
    sequence_id: int | None
    """None until the engine has allocated one."""
    document: bytes
    """JSON; see :mod:`lightning_store.spans.document`."""
    policy_versions: tuple[int, int] | None = None
    """Of a span that comes in: the least and the greatest policy version that it names. It is not stored."""

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return len(self.document) + SPAN_OVERHEAD_BYTES


class ResourcesRecord(NamedTuple):
    """The present version of stored resources."""

    resources_id: str
    resources_json: str
    create_time: float
    update_time: float
    version: int
    policy_version: int = 0
    run: str | None = None

    @property
    def payload_bytes(self) -> int:
        """Of its JSON text, in memory."""
        return text_bytes(self.resources_json)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return RESOURCES_OVERHEAD_BYTES + self.payload_bytes + id_bytes(self.resources_id)


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
        return WORKER_OVERHEAD_BYTES + id_bytes(self.worker_id) + text_bytes(self.heartbeat_stats_json)


class RolloutRow(NamedTuple):
    """A rollout with its latest attempt, None where there is none."""

    rollout: RolloutRecord
    attempt: AttemptRecord | None


class GroupRow(NamedTuple):
    """A group, as its members are."""

    group_id: str
    rows: Sequence[RolloutRow]
    """Its members in the order in which they were made; one at least."""

    @property
    def size(self) -> int:
        """How many members it has once all are made."""
        return max(len(self.rows), *(one.rollout.group_size or 0 for one in self.rows))

    @property
    def open(self) -> OpenGroup | None:
        """What admission has to know of it; None if it is consumed, or has no member that may succeed."""
        records = [one.rollout for one in self.rows]
        live = [one for one in records if one.consumers == 0 and one.status not in LOST]
        if not live:
            return None
        places = (one.queue_place for one in live)
        return OpenGroup(
            self.group_id,
            begun=self.first_claim_time is not None,
            any_held=any(one.held for one in live),
            all_held=all(one.held for one in live),
            place=min((place for place in places if place is not None), default=NO_PLACE),
        )

    @property
    def first_claim_time(self) -> float | None:
        """When the first attempt of any member began; None before that."""
        times = (one.rollout.first_claim_time for one in self.rows)
        return min((time for time in times if time is not None), default=None)


class OpenGroup(NamedTuple):
    """What admission has to know of a group that nobody has consumed, by its members that are neither failed nor
    cancelled, of which there is one at least."""

    group_id: str
    begun: bool
    """Whether any member has been claimed, be it failed since."""
    any_held: bool
    all_held: bool
    place: tuple[int, int]
    """Of its member that comes first in the queue; the greatest of all if none is in it."""


class AdmissionRecord(NamedTuple):
    """How far runners may go ahead with the groups of a run."""

    run: str
    max_open_groups: int | None
    paused: bool

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return MARK_OVERHEAD_BYTES + id_bytes(self.run)

    @property
    def bounds(self) -> bool:
        """Whether it keeps any group from beginning."""
        return self.paused or self.max_open_groups is not None


class CheckpointRecord(NamedTuple):
    """What a consumer has recorded: all that it had marked until then."""

    consumer: str
    checkpoint: str
    number: int
    """1 for the first of the consumer."""


class Claim(NamedTuple):
    """A rollout with the attempt that was begun of it just now."""

    rollout: RolloutRecord
    attempt: AttemptRecord


class PlacedRollout(NamedTuple):
    """A rollout in its place among all that are stored, in the order in which they were made."""

    place: int
    """1 or more. Never used twice."""
    rollout: RolloutRecord
    last_sequence: int
    """Where its span counter stands."""


class StoredRollout(NamedTuple):
    """A rollout with all that belongs to it, or a part of that: all of its attempts, and some of its spans."""

    rollout: RolloutRecord
    attempts: Sequence[AttemptRecord]
    """By sequence id."""
    spans: Sequence[SpanRecord]
    """By sequence id."""
    last_sequence: int
    spans_before: int = 0
    """Spans that other parts have, which come before this one."""
    consumed: Mapping[str, int] = MappingProxyType({})
    """The consumers that have consumed it, each with the number of its checkpoints then."""

    @property
    def payload_bytes(self) -> int:
        """Of all its texts."""
        attempts = sum(one.payload_bytes for one in self.attempts)
        return self.rollout.payload_bytes + attempts + sum(len(one.document) for one in self.spans)


class CompletionRow(NamedTuple):
    """That a rollout became terminal, with the rollout as it is now."""

    position: int
    time: float
    row: RolloutRow


class ReplyRecord(NamedTuple):
    """The reply to a call that carried a request id, kept so that a repeated call is answered and not made again."""

    request_id: str
    recorded_at: float
    """In seconds since the epoch."""
    signature: str
    """Tells apart different calls that were given one request id."""
    refused: bool
    """Whether the reply is an error rather than a result."""
    reply: Any
    """Bytes, as a backend has stored them; before that, the reply itself."""
    encode: Callable[[Any], bytes] | None = None
    """Makes bytes of the reply: the operation's codec. None: it is bytes."""

    @property
    def body(self) -> bytes:
        """What a backend stores that outlives the process. One in memory may keep the reply as it is."""
        body: bytes = self.reply if self.encode is None else self.encode(self.reply)
        return body

    def encoded(self) -> ReplyRecord:
        """As it comes back from a backend that stores bytes."""
        return self._replace(reply=self.body, encode=None)


class Counts(NamedTuple):
    """How much is stored."""

    rollouts: int
    attempts: int
    spans: int
    resources: int
    workers: int
    span_bytes: int
    bytes: int
    """What everything takes, about, the spans included."""


class QueueCounts(NamedTuple):
    """Where the rollouts and the workers stand."""

    rollouts: Mapping[tuple[str, str | None], int]
    """How many rollouts have each status and mode; none for which there are none."""
    workers: Mapping[str, int]
    """How many workers have each status, likewise."""
    oldest_queued_time: float | None
    """When the rollout at the head of the queue was made; None while the queue is empty."""
    oldest_by_mode: Mapping[str | None, float]
    """When the first one of each mode was made, among the first QUEUE_LOOK of the queue."""

    @property
    def by_status(self) -> dict[str, int]:
        """How many rollouts have each status."""
        found: Counter[str] = Counter()
        for (status, _), count in self.rollouts.items():
            found[status] += count
        return dict(found)
