"""Everything in dictionaries of this process. Each look-up and each change is O(1) or O(log n) in what is stored, and
filtered lists are linear in the rows that their index yields."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, TypeVar, cast

from lightning_store.backends.base import (
    Backend,
    Changes,
    Due,
    Loaded,
    Needs,
    Rows,
    Snapshot,
    Transaction,
    Unconsumed,
)
from lightning_store.backends.matching import matches
from lightning_store.backends.memory.filtering import (
    FEW_ROWS,
    Candidate,
    is_plain,
    page_of_all,
    select,
    select_in_slices,
)
from lightning_store.backends.memory.indices import SLACK, Blocks, Deadlines, Shards
from lightning_store.backends.memory.replies import Replies
from lightning_store.backends.records import (
    MARK_OVERHEAD_BYTES,
    QUEUE_LOOK,
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
    id_bytes,
)
from lightning_store.errors import InvalidArgumentError
from lightning_store.ids import new_hex
from lightning_store.labels import label_of, labels_of
from lightning_store.lifecycle import TERMINAL
from lightning_store.loops import Slicer
from lightning_store.model import TIME_MAX_SECONDS
from lightning_store.queries import (
    AttemptQuery,
    Query,
    ResourcesQuery,
    RolloutQuery,
    SpanBatchQuery,
    SpanQuery,
    WorkerQuery,
)

REPLAY_WINDOW_SECONDS: Final = 600.0
"""How long a reply is kept: well beyond the time over which a client retries."""
REPLAY_ENTRIES_MAX: Final = 200_000
"""Replies kept at most; the oldest go first."""
SHARED_TEXTS_MAX: Final = 8192
"""Texts of spans that are shared, the latest ones."""
SHARED_CHARS_MAX: Final = 256
"""Longer texts are not shared: anybody may send them, and they would fill the memory."""


T = TypeVar("T")
_RECORD: Final = attrgetter("record")
_LATEST: Final = attrgetter("latest")
SizedT = TypeVar("SizedT", WorkerRecord, ResourcesRecord, AdmissionRecord)


class _Rollout:
    """All that belongs to one rollout."""

    __slots__ = (
        "attempts",
        "latest",
        "marks",
        "ordinal",
        "record",
        "sequence",
        "span_bytes",
        "spans",
        "spans_ordinal",
    )

    def __init__(self, record: RolloutRecord, ordinal: int) -> None:
        self.record = record
        self.ordinal = ordinal
        self.attempts: dict[str, AttemptRecord] = {}
        self.latest: AttemptRecord | None = None
        self.marks: dict[str, int] | None = None
        """Of the consumers that have consumed it."""
        self.sequence = 0
        self.spans: dict[str | tuple[str, str], SpanRecord] = {}
        self.span_bytes = 0
        self.spans_ordinal = 0
        """Its place among the rollouts that have spans."""

    def span_key(self, attempt_id: str, span_id: str) -> str | tuple[str, str]:
        """Its key among all spans of the rollout; a short one in the first attempt, which is the only one as a rule."""
        return span_id if attempt_id == next(iter(self.attempts), None) else (attempt_id, span_id)

    @property
    def row(self) -> RolloutRow:
        return RolloutRow(self.record, self.latest)


@lru_cache(SHARED_TEXTS_MAX)
def _shared_text(text: str) -> str:
    """The same object for equal texts. (What ``sys.intern`` keeps, some versions of Python keep for ever.)"""
    return text


def _with_shared_texts(span: SpanRecord, rollout_id: str) -> SpanRecord:
    """The record with the texts that many spans have in common, each of them once in memory."""
    return SpanRecord(
        rollout_id,
        _shared(span.attempt_id),
        _shared(span.trace_id),
        span.span_id,
        None if span.parent_id is None else _shared(span.parent_id),
        _shared(span.name),
        span.start_time,
        span.end_time,
        span.sequence_id,
        span.document,
    )


def _shared(text: str) -> str:
    return _shared_text(text) if len(text) <= SHARED_CHARS_MAX else text


def _put(table: dict[str, SizedT], key: str, record: SizedT | None) -> int:
    """Insert, replace or, for None, delete a record; how many bytes more it is than before."""
    former = table.get(key)
    if record is None:
        table.pop(key, None)
    else:
        table[key] = record
    return (0 if record is None else record.size_bytes) - (0 if former is None else former.size_bytes)


def _put_number(table: dict[str, int], name: str, number: int | None) -> int:
    """The same for a mark or a checkpoint."""
    former = table.pop(name, None)
    if number is not None:
        table[name] = number
    return ((number is not None) - (former is not None)) * _number_bytes(name)


def _number_bytes(name: str) -> int:
    return MARK_OVERHEAD_BYTES + id_bytes(name)


_INDEXED: Final = ("rollout_id", "status", "group_id")
"""Columns by whose values rollouts are found without a search, with an "in" filter."""


def _queue_place(record: RolloutRecord) -> int | None:
    """Where a rollout stands in the queue; None if it is not in it."""
    return record.queue_key if record.in_queue else None


class MemoryBackend(Backend):
    """Everything in dictionaries. No call ever suspends, so on one event loop a transaction is atomic by itself; a lock
    makes it atomic between threads.

    Args:
        replay_window_seconds: How long a recorded reply is kept.
        replay_entries_max: How many replies are kept at most.
    """

    inline = True

    def __init__(
        self,
        *,
        replay_window_seconds: float = REPLAY_WINDOW_SECONDS,
        replay_entries_max: int = REPLAY_ENTRIES_MAX,
    ) -> None:
        if not 0 <= replay_window_seconds <= TIME_MAX_SECONDS:
            message = f"replay_window_seconds is {replay_window_seconds}; give 0 to {TIME_MAX_SECONDS}"
            raise InvalidArgumentError(message, field="replay_window_seconds")
        if replay_entries_max < 1:
            message = f"replay_entries_max is {replay_entries_max}; give 1 or more"
            raise InvalidArgumentError(message, field="replay_entries_max")
        self._store_id = new_hex(12)
        self._replay_window_seconds = replay_window_seconds
        self._lock = threading.Lock()
        self._data = MemoryData(Replies(replay_window_seconds, replay_entries_max))
        self._snapshot = _Snapshot(self._data, self._lock)

    @property
    def store_id(self) -> str:
        return self._store_id

    @property
    def replay_window_seconds(self) -> float:
        return self._replay_window_seconds

    def transaction(self) -> Transaction:
        return _Transaction(self._data, self._lock)

    def snapshot(self) -> _Snapshot:
        return self._snapshot

    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        with self._lock:
            return self._data.evict_spans(excess_bytes, unfinished=unfinished)

    @property
    def stored_bytes(self) -> int:
        return self._data.span_bytes + self._data.other_bytes

    @property
    def span_bytes(self) -> int:
        return self._data.span_bytes


class _Transaction(Transaction):
    """Holds the lock from its first load on. What was "loaded" is the data itself, which nobody changes meanwhile."""

    __slots__ = ("_data", "_lock", "_open")

    def __init__(self, data: MemoryData, lock: threading.Lock) -> None:
        self._data = data
        self._lock = lock
        self._open = False

    async def load(self, needs: Needs, due: Due | None = None) -> Loaded:
        if not self._open:
            self._lock.acquire()
            self._open = True
            self._data.forget_due()
        if due is not None:
            self._data.look_at_due(due)
        return self._data

    async def commit(self, changes: Changes) -> None:
        self._data.store(changes)
        self._open = False
        self._lock.release()

    async def rollback(self) -> None:
        if self._open:
            self._open = False
            self._lock.release()


class MemoryData(Loaded):
    """The data, its indices, and what a transaction looks up and stores. Used under the backend's lock only."""

    def __init__(self, replies: Replies) -> None:
        super().__init__()
        self._rollouts: Shards[_Rollout] = Shards()
        self._in_order: Blocks[_Rollout] = Blocks()
        self._by_status: defaultdict[str, Blocks[_Rollout]] = defaultdict(Blocks)
        self._by_label: defaultdict[str, Blocks[_Rollout]] = defaultdict(Blocks)
        self._groups: Shards[dict[int, _Rollout]] = Shards()
        """The members of each group, by ordinal."""
        self._queue: Blocks[str] = Blocks()
        self._queue_position = 0
        self._queue_tail = 0
        """The last key by which a rollout was ever put at the end."""
        self._completed: Blocks[_Rollout] = Blocks()
        self._completion_position = 0
        self._deadlines = Deadlines()
        self._ordinals = itertools.count()
        self._with_spans: Blocks[_Rollout] = Blocks()
        self._ended: list[tuple[float, int, str]] = []
        """Candidates for eviction: a heap of end time, ordinal and id, with some that are out of date."""
        self._open_groups: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """The groups of each run that may be open; whoever looks at them drops those that are not."""
        self._admissions: dict[str, AdmissionRecord] = {}
        self._checkpoints: defaultdict[str, dict[str, int]] = defaultdict(dict)
        """Of each consumer."""
        self._resources: dict[str, ResourcesRecord] = {}
        self._latest_resources: str | None = None
        self._newest_resources: dict[str | None, str] = {}
        self._workers: dict[str, WorkerRecord] = {}
        self._replies = replies
        self._attempts = 0
        self._spans = 0
        self._tally: Counter[tuple[str, str | None]] = Counter()
        """Of rollouts, by status and mode."""
        self.span_bytes = 0
        self.other_bytes = 0

    # --- Looking up --------------------------------------------------------------------------------------------------

    def reply(self, request_id: str) -> ReplyRecord | None:
        return self._replies.get(request_id)

    def rollout(self, rollout_id: str) -> RolloutRecord | None:
        entry = self._rollouts.get(rollout_id)
        return None if entry is None else entry.record

    def row(self, rollout_id: str) -> RolloutRow | None:
        entry = self._rollouts.get(rollout_id)
        return None if entry is None else entry.row

    def attempt(self, rollout_id: str, attempt_id: str) -> AttemptRecord | None:
        entry = self._rollouts.get(rollout_id)
        return None if entry is None else entry.attempts.get(attempt_id)

    def last_sequence(self, rollout_id: str) -> int:
        entry = self._rollouts.get(rollout_id)
        return 0 if entry is None else entry.sequence

    def has_span(self, rollout_id: str, attempt_id: str, span_id: str) -> bool:
        entry = self._rollouts.get(rollout_id)
        return entry is not None and entry.span_key(attempt_id, span_id) in entry.spans

    def worker(self, worker_id: str) -> WorkerRecord | None:
        return self._workers.get(worker_id)

    def holders(self, rollout_id: str) -> Iterable[str]:
        entry = self._rollouts.get(rollout_id)
        return () if entry is None else {one.worker_id for one in entry.attempts.values() if one.worker_id}

    def resources(self, resources_id: str) -> ResourcesRecord | None:
        return self._resources.get(resources_id)

    def group(self, group_id: str) -> list[str]:
        return [entry.record.rollout_id for entry in self._members(group_id)]

    def _members(self, group_id: str) -> list[_Rollout]:
        return list((self._groups.get(group_id) or {}).values())

    def _rows(self, group_id: str) -> list[RolloutRow]:
        return [entry.row for entry in self._members(group_id)]

    def group_rows(self, group_ids: Sequence[str]) -> list[GroupRow]:
        groups = (GroupRow(group_id, self._rows(group_id)) for group_id in group_ids)
        return [group for group in groups if group.rows]

    def admission(self, run: str) -> AdmissionRecord | None:
        return self._admissions.get(run)

    def marks_of(self, rollout_id: str) -> Mapping[str, int]:
        entry = self._rollouts.get(rollout_id)
        return {} if entry is None else dict(entry.marks or {})

    @property
    def all_checkpoints(self) -> list[CheckpointRecord]:
        return [
            CheckpointRecord(consumer, checkpoint, number)
            for consumer, checkpoints in self._checkpoints.items()
            for checkpoint, number in checkpoints.items()
        ]

    @property
    def admissions(self) -> list[AdmissionRecord]:
        return [self._admissions[run] for run in sorted(self._admissions)]

    def open_groups(self, run: str) -> list[OpenGroup]:
        groups = {
            group_id: GroupRow(group_id, self._rows(group_id)).open for group_id in self._open_groups.get(run, ())
        }
        found = [group for group in groups.values() if group is not None]
        if found:
            self._open_groups[run] = {group.group_id: None for group in found}
        else:
            self._open_groups.pop(run, None)
        return found

    def checkpoints(self, consumer: str) -> Mapping[str, int]:
        return self._checkpoints.get(consumer, {})

    def mark_of(self, consumer: str, rollout_id: str) -> int | None:
        entry = self._rollouts.get(rollout_id)
        return None if entry is None or entry.marks is None else entry.marks.get(consumer)

    def marks_from(self, consumer: str, number: int) -> list[str]:
        marked = ((entry.record.rollout_id, entry.marks.get(consumer, -1)) for entry in self._in_order if entry.marks)
        return [rollout_id for rollout_id, mark in marked if mark >= number]

    def latest_resources(self) -> ResourcesRecord | None:
        return None if self._latest_resources is None else self._resources[self._latest_resources]

    def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        newest = self._newest_resources.get(run)
        return None if newest is None else self._resources[newest]

    def is_taken(self, rollout_id: str, attempt_id: str | None = None) -> bool:
        entry = self._rollouts.get(rollout_id)
        return entry is not None and (attempt_id is None or attempt_id in entry.attempts)

    def queue(self) -> Iterator[str]:
        return iter(self._queue)

    @property
    def queue_is_whole(self) -> bool:
        return True

    @property
    def last_queue_position(self) -> int:
        return self._queue_position

    @property
    def last_completion_position(self) -> int:
        return self._completion_position

    # --- What is due -------------------------------------------------------------------------------------------------

    def forget_due(self) -> None:
        """What another transaction asked for."""
        self.overdue = self.expendable = ()

    def look_at_due(self, due: Due) -> None:
        self.overdue = self._deadlines.passed(due.now, due.limit)
        self.expendable = self._not_retained(due)

    def has_due(self, due: Due) -> bool:
        return bool(self._deadlines.passed(due.now, 1) or self._not_retained(due))

    def next_deadline(self) -> float | None:
        return self._deadlines.earliest()

    def _not_retained(self, due: Due) -> Sequence[str]:
        if due.retain_count is None and due.retain_since is None:
            return ()
        excess = 0 if due.retain_count is None else len(self._completed) - due.retain_count
        since = due.retain_since
        found: list[str] = []
        for entry in self._completed:
            time = entry.record.completion_time
            if len(found) >= excess and (since is None or time is None or time >= since):
                break  # those that follow ended later
            if self._is_consumed(entry, due.consumers):
                found.append(entry.record.rollout_id)
            if len(found) == due.limit:
                break
        return found

    def _is_consumed(self, entry: _Rollout, consumers: Sequence[str]) -> bool:
        """Whether all of these have consumed it, before their last checkpoints if they have recorded any."""
        return all(
            consumer in (marks := entry.marks or {})
            and marks[consumer] < max(self.checkpoints(consumer).values(), default=math.inf)
            for consumer in consumers
        )

    # --- Storing -----------------------------------------------------------------------------------------------------

    def store(self, changes: Changes) -> None:
        for rollout_id, rollout in changes.rollouts.items():
            if rollout is None:
                self._delete(rollout_id)
            else:
                self._put_rollout(rollout)
        for attempt in changes.attempts.values():
            self._put_attempt(attempt)
        for span, size_bytes in changes.spans.values():
            self._insert_span(span, size_bytes)
        for rollout_id, number in changes.sequences.items():
            if (entry := self._rollouts.get(rollout_id)) is not None:
                entry.sequence = number
        for worker_id, worker in changes.workers.items():
            self._put_worker(worker_id, worker)
        for reply in changes.replies.values():
            self._replies.put(reply)
        if changes.resources:
            self._put_resources(changes)
        if changes.marks or changes.checkpoints or changes.admissions:
            self._put_marks(changes)

    def _put_worker(self, worker_id: str, worker: WorkerRecord | None) -> None:
        former = self._workers.get(worker_id)
        if former is not None and worker is not None and former.heartbeat_stats_json is worker.heartbeat_stats_json:
            self._workers[worker_id] = worker  # as a rule: it takes as much as before
        else:
            self.other_bytes += _put(self._workers, worker_id, worker)

    def _put_resources(self, changes: Changes) -> None:
        for resources_id, resources in changes.resources.items():
            self.other_bytes += _put(self._resources, resources_id, resources)
            if resources is not None:
                newest = self.newest_resources(resources.run)
                if newest is None or resources.policy_version > newest.policy_version:
                    self._newest_resources[resources.run] = resources_id
        self._latest_resources = changes.latest_resources or self._latest_resources

    def _put_marks(self, changes: Changes) -> None:
        for (consumer, rollout_id), mark in changes.marks.items():
            if (entry := self._rollouts.get(rollout_id)) is not None:
                entry.marks = entry.marks or {}
                self.other_bytes += _put_number(entry.marks, consumer, mark)
        for (consumer, checkpoint), number in changes.checkpoints.items():
            checkpoints = self._checkpoints[consumer]
            self.other_bytes += _put_number(checkpoints, checkpoint, number)
            if not checkpoints:
                del self._checkpoints[consumer]
        for run, admission in changes.admissions.items():
            self.other_bytes += _put(self._admissions, run, admission)

    def _insert(self, rollout: RolloutRecord) -> None:
        entry = self._rollouts[rollout.rollout_id] = _Rollout(rollout, next(self._ordinals))
        self._in_order[entry.ordinal] = entry
        self._by_status[rollout.status][entry.ordinal] = entry
        self.other_bytes += rollout.size_bytes
        self._tally[rollout.status, rollout.mode] += 1
        labels = labels_of(rollout.metadata_json)
        if labels:
            self._label(entry, (), labels)
        if rollout.group_id is not None:
            members = self._groups.get(rollout.group_id) or {}
            members[entry.ordinal] = entry
            self._groups[rollout.group_id] = members
            self._note_open(rollout)
        if rollout.queue_position is not None:
            self._move_in_queue(rollout, None)
        if rollout.completion_position is not None:
            self._move_completion(entry, None)
        if rollout.deadline is not None:
            self._deadlines.set(rollout.rollout_id, rollout.deadline)

    def _put_rollout(self, rollout: RolloutRecord) -> None:
        entry = self._rollouts.get(rollout.rollout_id)
        if entry is None:
            self._insert(rollout)
            return
        former, entry.record = entry.record, rollout
        if rollout.group_id is not None:
            self._note_open(rollout)
        if (
            former.input_json is not rollout.input_json
            or former.metadata_json is not rollout.metadata_json
            or former.resources_id is not rollout.resources_id
        ):
            self.other_bytes += rollout.size_bytes - former.size_bytes
            self._label(entry, labels_of(former.metadata_json), labels_of(rollout.metadata_json))
        if former.status != rollout.status or former.mode != rollout.mode:
            self._tally[former.status, former.mode] -= 1
            self._tally[rollout.status, rollout.mode] += 1
        if former.status != rollout.status:
            del self._by_status[former.status][entry.ordinal]
            self._by_status[rollout.status][entry.ordinal] = entry
        if rollout.queue_position is not None or former.queue_position is not None:
            self._move_in_queue(rollout, _queue_place(former))
        if former.completion_position != rollout.completion_position:
            self._move_completion(entry, former.completion_position)
        if former.deadline != rollout.deadline:
            self._deadlines.set(rollout.rollout_id, rollout.deadline)
        ends = rollout.end_time != former.end_time or former.status not in TERMINAL
        if ends and entry.spans and rollout.status in TERMINAL:
            self._note_end(entry)

    def _label(self, entry: _Rollout, former: Sequence[str], labels: Sequence[str]) -> None:
        """Replace the entries that a rollout has in the index of labels."""
        for label in former:
            del self._by_label[label][entry.ordinal]
            if not len(self._by_label[label]):
                del self._by_label[label]
        for label in labels:
            self._by_label[label][entry.ordinal] = entry

    def _move_in_queue(self, rollout: RolloutRecord, former: int | None) -> None:
        place = _queue_place(rollout)
        if former != place and former is not None:
            del self._queue[former]
        if former != place and place is not None:
            if place > self._queue_tail:
                self._queue[place] = rollout.rollout_id
                self._queue_tail = place
            else:
                self._queue.insert(place, rollout.rollout_id)
        if rollout.queue_position is not None and rollout.queue_position > self._queue_position:
            self._queue_position = rollout.queue_position  # also of one that is not in the queue now

    def _move_completion(self, entry: _Rollout, former: int | None) -> None:
        if former is not None:
            del self._completed[former]
        position = entry.record.completion_position
        if position is None:
            return
        if position > self._completion_position:
            self._completed[position] = entry
            self._completion_position = position
        else:  # one transaction may change rollouts in another order than it ends them in
            self._completed.insert(position, entry)

    def _delete(self, rollout_id: str) -> None:
        entry = self._rollouts.pop(rollout_id)
        if entry is None:
            return
        del self._in_order[entry.ordinal]
        del self._by_status[entry.record.status][entry.ordinal]
        self._tally[entry.record.status, entry.record.mode] -= 1
        self._label(entry, labels_of(entry.record.metadata_json), ())
        self._leave_group(entry)
        place = _queue_place(entry.record)
        if place is not None:
            del self._queue[place]
        if entry.record.completion_position is not None:
            del self._completed[entry.record.completion_position]
        self._deadlines.set(rollout_id, None)
        self._drop_spans(entry)
        self._attempts -= len(entry.attempts)
        self.other_bytes -= entry.record.size_bytes + sum(one.size_bytes for one in entry.attempts.values())
        self.other_bytes -= sum(map(_number_bytes, entry.marks or ()))

    def _note_open(self, rollout: RolloutRecord) -> None:
        if rollout.run is not None and rollout.group_id is not None:
            self._open_groups[rollout.run][rollout.group_id] = None

    def _leave_group(self, entry: _Rollout) -> None:
        group_id = entry.record.group_id
        if group_id is not None:
            members = self._groups[group_id]
            del members[entry.ordinal]
            if not members:
                self._groups.pop(group_id)
                self._open_groups.get(entry.record.run or "", {}).pop(group_id, None)

    def _put_attempt(self, attempt: AttemptRecord) -> None:
        entry = self._rollouts.get(attempt.rollout_id)
        if entry is None:
            return
        former = entry.attempts.get(attempt.attempt_id)
        entry.attempts[attempt.attempt_id] = attempt
        if attempt.attempt_id == entry.record.latest_attempt_id:
            entry.latest = attempt
        if former is None:
            self._attempts += 1
            self.other_bytes += attempt.size_bytes
        elif former.metadata_json is not attempt.metadata_json or former.worker_id is not attempt.worker_id:
            self.other_bytes += attempt.size_bytes - former.size_bytes

    def _insert_span(self, span: SpanRecord, size_bytes: int) -> None:
        entry = self._rollouts.get(span.rollout_id)
        if entry is None:
            return
        if not entry.spans:
            entry.spans_ordinal = next(self._ordinals)
            self._with_spans[entry.spans_ordinal] = entry
            if entry.record.status in TERMINAL:
                self._note_end(entry)
        entry.spans[entry.span_key(span.attempt_id, span.span_id)] = _with_shared_texts(span, entry.record.rollout_id)
        entry.span_bytes += size_bytes
        self._spans += 1
        self.span_bytes += size_bytes

    # --- Evicting ----------------------------------------------------------------------------------------------------

    def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        evicted: list[str] = []
        target_bytes = self.span_bytes - excess_bytes
        while self.span_bytes > target_bytes and (entry := self._next_to_evict(unfinished)) is not None:
            self._drop_spans(entry)
            entry.record = entry.record._replace(spans_evicted=True)
            evicted.append(entry.record.rollout_id)
        return evicted

    def _next_to_evict(self, unfinished: bool) -> _Rollout | None:
        while self._ended:
            end_time, _, rollout_id = heapq.heappop(self._ended)
            entry = self._rollouts.get(rollout_id)
            if entry is None or not entry.spans:
                continue
            if entry.record.status in TERMINAL and entry.record.end_time == end_time:
                return entry
        return next(iter(self._with_spans), None) if unfinished else None

    def _drop_spans(self, entry: _Rollout) -> None:
        if not entry.spans:
            return
        self._spans -= len(entry.spans)
        self.span_bytes -= entry.span_bytes
        entry.spans = {}
        entry.span_bytes = 0
        del self._with_spans[entry.spans_ordinal]

    def _note_end(self, entry: _Rollout) -> None:
        """Make a finished rollout that has spans a candidate for eviction. Entries out of date are skipped later."""
        end_time = entry.record.end_time
        if end_time is not None:
            heapq.heappush(self._ended, (end_time, entry.ordinal, entry.record.rollout_id))
        if len(self._ended) > 2 * len(self._with_spans) + SLACK:  # many ended again and again
            self._ended = [
                (one.record.end_time, one.ordinal, one.record.rollout_id)
                for one in self._with_spans
                if one.record.status in TERMINAL and one.record.end_time is not None
            ]
            heapq.heapify(self._ended)

    # --- Lists -------------------------------------------------------------------------------------------------------

    def all_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        """Of a query with neither filter nor order."""
        return page_of_all((entry.row for entry in self._in_order), len(self._rollouts), query)

    def candidates(self, query: RolloutQuery) -> tuple[list[RolloutRecord], list[AttemptRecord | None]]:
        """The rollouts that can match, and the latest attempt of each, as they are now. (All of it is done in C: a
        million rollouts take 0.1 s.)"""
        entries = list(self._candidates(query))
        return list(map(_RECORD, entries)), list(map(_LATEST, entries))

    def _candidates(self, query: RolloutQuery) -> Iterable[_Rollout]:
        """Rollouts that can match, in order of insertion: through an index where each row must pass a filter that has
        one."""
        if query.filter_logic == "or" and len(query.filters) > 1:
            return self._in_order
        choices = []
        for one in query.filters:
            if one.kind == "in" and one.field in _INDEXED:
                choices.append(self._with_one_of(one.field, one.value))
            elif one.kind == "members":
                labels = (label_of(key, text) for key, text in one.value)
                choices += [list(self._by_label.get(label, ())) for label in labels if label is not None]
        if not choices:
            return self._in_order
        fewest = min(choices, key=len)
        return sorted(fewest, key=attrgetter("ordinal"))

    def _with_one_of(self, field: str, values: frozenset[str]) -> list[_Rollout]:
        if field == "rollout_id":
            return [entry for rollout_id in values if (entry := self._rollouts.get(rollout_id)) is not None]
        if field == "group_id":
            return [entry for group_id in values for entry in self._members(group_id)]
        return [entry for status in values if status in self._by_status for entry in self._by_status[status]]

    def list_attempts(self, query: AttemptQuery) -> Rows[AttemptRecord]:
        entry = self._rollouts.get(query.rollout_id)
        return Rows([], 0) if entry is None else select(entry.attempts.values(), query)

    def spans_of(self, query: SpanQuery) -> Collection[SpanRecord]:
        """The spans of the rollout, and of the attempt if the query names one."""
        entry = self._rollouts.get(query.rollout_id)
        if entry is None:
            return ()
        if query.attempt_id is None:
            return entry.spans.values()
        return [span for span in entry.spans.values() if span.attempt_id == query.attempt_id]

    def spans_of_each(self, rollout_ids: Iterable[str]) -> list[list[SpanRecord]]:
        """All spans of each of these rollouts, as they are now."""
        return [list(self._rollouts[rollout_id].spans.values()) for rollout_id in rollout_ids]

    @property
    def all_resources(self) -> Collection[ResourcesRecord]:
        return self._resources.values()

    @property
    def all_workers(self) -> Collection[WorkerRecord]:
        return self._workers.values()

    def list_completions(self, after: int, limit: int) -> list[CompletionRow]:
        return list(map(_completion, itertools.islice(self._completed.since(after + 1), limit)))

    def list_unconsumed(self, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
        rows: list[CompletionRow] = []
        looked, last = 0, after
        for entry in itertools.islice(self._completed.since(after + 1), look):
            looked, last = looked + 1, entry.record.completion_position or last
            if entry.marks is None or consumer not in entry.marks:
                rows.append(_completion(entry))
                if len(rows) == limit:
                    return Unconsumed(rows, last)
        return Unconsumed(rows, last if looked == look else None)

    def list_placed(self, after: int, limit: int) -> list[PlacedRollout]:
        entries = itertools.islice(self._in_order.since(after), limit)  # a place is the ordinal and one
        return [PlacedRollout(entry.ordinal + 1, entry.record, entry.sequence) for entry in entries]

    def counts(self) -> Counts:
        return Counts(
            rollouts=len(self._rollouts),
            attempts=self._attempts,
            spans=self._spans,
            resources=len(self._resources),
            workers=len(self._workers),
            span_bytes=self.span_bytes,
            bytes=self.span_bytes + self.other_bytes,
        )

    def queue_counts(self) -> QueueCounts:
        queued = [self._rollouts[id_].record for id_ in itertools.islice(self.queue(), QUEUE_LOOK)]
        return QueueCounts(
            dict(+self._tally),
            Counter(worker.status for worker in self._workers.values()),
            queued[0].start_time if queued else None,
            {one.mode: one.start_time for one in reversed(queued)},
        )


def _completion(entry: _Rollout) -> CompletionRow:
    position, time = entry.record.completion_position, entry.record.completion_time
    assert position is not None
    assert time is not None
    return CompletionRow(position, time, entry.row)


class _Snapshot(Snapshot):
    """The data under the lock. There is one, which many enter one after another."""

    __slots__ = ("_data", "_lock")

    def __init__(self, data: MemoryData, lock: threading.Lock) -> None:
        self._data = data
        self._lock = lock

    async def __aenter__(self) -> _Snapshot:
        self._lock.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()

    async def has_due(self, due: Due) -> bool:
        return self._data.has_due(due)

    async def rollouts(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        return list(map(self._data.row, rollout_ids))

    async def groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        return self._data.group_rows(group_ids)

    async def consumed(self, consumer: str, rollout_ids: Sequence[str]) -> set[str]:
        return {one for one in rollout_ids if self._data.mark_of(consumer, one) is not None}

    async def marks(self, rollout_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        return {one: self._data.marks_of(one) for one in rollout_ids}

    async def checkpoints(self) -> list[CheckpointRecord]:
        return self._data.all_checkpoints

    async def admissions(self) -> list[AdmissionRecord]:
        return self._data.admissions

    async def open_groups(self, run: str) -> Sequence[OpenGroup]:
        return self._data.open_groups(run)

    async def resources(self, resources_id: str | None) -> ResourcesRecord | None:
        return self._data.latest_resources() if resources_id is None else self._data.resources(resources_id)

    async def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        return self._data.newest_resources(run)

    async def worker(self, worker_id: str) -> WorkerRecord | None:
        return self._data.worker(worker_id)

    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        if is_plain(query):
            return self._data.all_rollouts(query)
        found = await self._select(*self._data.candidates(query), query)
        return Rows(
            [RolloutRow(record, cast(AttemptRecord | None, latest)) for record, latest in found.items], found.total
        )

    async def _select(
        self, records: Sequence[T], attempts: Sequence[object | None] | None, query: Query[Any]
    ) -> Rows[Candidate[T]]:
        with self._unlocked():
            return await select_in_slices(records, query, attempts)

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        """For work in slices, between which others have the lock, on what was taken under it."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    async def _select_records(self, records: Collection[T], query: Query[Any]) -> Rows[T]:
        if len(records) <= FEW_ROWS:
            return select(records, query)
        found = await self._select(list(records), None, query)
        return Rows([one.record for one in found.items], found.total)

    async def query_attempts(self, query: AttemptQuery) -> Rows[AttemptRecord]:
        return self._data.list_attempts(query)

    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]:
        return await self._select_records(self._data.spans_of(query), query)

    async def query_many_spans(
        self, query: SpanBatchQuery, attempts: Sequence[tuple[str, str | None]]
    ) -> Rows[SpanRecord]:
        spans_of_each = self._data.spans_of_each(rollout_id for rollout_id, _ in attempts)
        found: list[SpanRecord] = []
        with self._unlocked():
            slicer = Slicer()
            for (_, attempt_id), spans in zip(attempts, spans_of_each, strict=True):
                await slicer.breathe()
                wanted = [one for one in spans if attempt_id in (None, one.attempt_id) and matches(one, query)]
                found += sorted(wanted, key=attrgetter("sequence_id"))
        return Rows(found, len(found))

    async def query_resources(self, query: ResourcesQuery) -> Rows[ResourcesRecord]:
        return await self._select_records(self._data.all_resources, query)

    async def query_workers(self, query: WorkerQuery) -> Rows[WorkerRecord]:
        return await self._select_records(self._data.all_workers, query)

    async def completions(self, after: int, limit: int) -> list[CompletionRow]:
        return self._data.list_completions(after, limit)

    async def unconsumed(self, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
        return self._data.list_unconsumed(consumer, after, look, limit)

    async def last_completion(self) -> int:
        return self._data.last_completion_position

    async def next_deadline(self) -> float | None:
        return self._data.next_deadline()

    async def placed_rollouts(self, after: int, limit: int) -> list[PlacedRollout]:
        return self._data.list_placed(after, limit)

    async def counts(self) -> Counts:
        return self._data.counts()

    async def queue_counts(self) -> QueueCounts:
        return self._data.queue_counts()
