"""The backend that holds everything in this process's memory. Every verb is O(1) or O(log n) in what is stored, but
for the lists, which are linear in the rows that their index yields."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from lightning_store.backends.base import (
    AttemptRecord,
    Backend,
    Completion,
    Counts,
    Query,
    ResourcesRecord,
    RolloutRecord,
    Rows,
    SpanRecord,
    Transaction,
    WorkerRecord,
)
from lightning_store.backends.indices import SLACK, Blocks, CompletionLog, Deadlines, Fifo, Shards
from lightning_store.backends.query import is_plain, page_of_all, select
from lightning_store.errors import InvalidArgumentError
from lightning_store.ids import new_hex
from lightning_store.lifecycle import TERMINAL
from lightning_store.model import TIME_MAX_SECONDS

REPLAY_WINDOW_SECONDS: Final = 600.0
"""How long a reply is remembered: well beyond the time over which a client retries."""
REPLAY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes of remembered replies at most; the oldest go first, but the last one stays, however large it is."""
REPLAY_ENTRIES_MAX: Final = 200_000
"""Replies remembered at most; the oldest go first."""

RECORD_REPLY_BYTES: Final = 200
"""Memory of a record that is remembered, beside its payloads."""
OTHER_REPLY_BYTES: Final = 100
"""Of anything else in a reply: an id, as a rule."""


class _Rollout:
    """All that belongs to one rollout."""

    __slots__ = ("attempts", "evicted", "latest", "ordinal", "record", "sequence", "span_bytes", "spans")

    def __init__(self, record: RolloutRecord, ordinal: int) -> None:
        self.record = record
        self.ordinal = ordinal
        self.attempts: dict[str, AttemptRecord] = {}
        self.latest: str | None = None
        self.sequence = 0
        self.spans: dict[str | tuple[str, str], SpanRecord] = {}
        self.span_bytes = 0
        self.evicted = False

    def span_key(self, attempt_id: str, span_id: str) -> str | tuple[str, str]:
        """Its key among all spans of the rollout; a short one in the first attempt, which is the only one as a rule."""
        return span_id if attempt_id == next(iter(self.attempts), None) else (attempt_id, span_id)


def _latest_of(entry: _Rollout | None) -> AttemptRecord | None:
    return None if entry is None or entry.latest is None else entry.attempts[entry.latest]


class _Reply(NamedTuple):
    """What was answered to a request."""

    request_id: str
    at: float
    operation: str
    reply: Any
    size_bytes: int


def _size_bytes(reply: Any) -> int:
    """About what a reply keeps in memory: the payloads of its records, and a little for each object."""
    if isinstance(reply, RolloutRecord | AttemptRecord | ResourcesRecord):
        return RECORD_REPLY_BYTES + reply.payload_bytes
    if isinstance(reply, list | tuple):
        return sum(map(_size_bytes, reply))
    return 8 if reply is None or isinstance(reply, int) else OTHER_REPLY_BYTES


class MemoryBackend(Backend):
    """Everything in dictionaries.

    A lock makes a transaction atomic between threads; between the tasks of one event loop it is atomic because no verb
    ever suspends.
    """

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
        self._transaction = MemoryTransaction(replay_window_seconds, replay_entries_max)

    @property
    def store_id(self) -> str:
        return self._store_id

    @property
    def replay_window_seconds(self) -> float:
        return self._replay_window_seconds

    def transaction(self) -> MemoryTransaction:
        return self._transaction


class MemoryTransaction(Transaction):
    """The data and the verbs. There is one; entering it takes the lock."""

    def __init__(self, replay_window_seconds: float, replay_entries_max: int) -> None:
        self._lock = threading.Lock()
        self._rollouts: Shards[_Rollout] = Shards()
        self._in_order: Blocks[_Rollout] = Blocks()
        self._by_status: defaultdict[str, Blocks[_Rollout]] = defaultdict(Blocks)
        self._queue = Fifo()
        self._attempts = 0
        self._ordinals = itertools.count()
        self._completions = CompletionLog()
        self._deadlines = Deadlines()
        self._spans = 0
        self._span_bytes = 0
        self._other_bytes = 0
        self._with_spans = Fifo()
        self._ended: list[tuple[float, int, str]] = []
        self._resources: dict[str, ResourcesRecord] = {}
        self._latest_resources: str | None = None
        self._workers: dict[str, WorkerRecord] = {}
        self._replies: dict[str, _Reply] = {}
        self._replies_in_order: deque[_Reply] = deque()
        """The oldest first, with some that are out of date. (An OrderedDict stops for long when it grows.)"""
        self._reply_bytes = 0
        self._replay_window_seconds = replay_window_seconds
        self._replay_entries_max = replay_entries_max

    async def __aenter__(self) -> MemoryTransaction:
        self._lock.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()

    # Rollouts

    async def get_rollout(self, rollout_id: str) -> RolloutRecord | None:
        entry = self._rollouts.get(rollout_id)
        return None if entry is None else entry.record

    async def put_rollout(self, rollout: RolloutRecord) -> None:
        entry = self._rollouts.get(rollout.rollout_id)
        if entry is None:
            entry = self._rollouts[rollout.rollout_id] = _Rollout(rollout, next(self._ordinals))
            self._in_order[entry.ordinal] = entry
            self._by_status[rollout.status][entry.ordinal] = entry
            self._other_bytes += rollout.size_bytes
            return
        former, entry.record = entry.record, rollout
        self._other_bytes += rollout.size_bytes - former.size_bytes
        if former.status != rollout.status:
            del self._by_status[former.status][entry.ordinal]
            self._by_status[rollout.status][entry.ordinal] = entry
        if entry.spans and rollout.status in TERMINAL and rollout.end_time != former.end_time:
            self._note_end(entry)

    async def list_rollouts(self, query: Query) -> Rows[RolloutRecord]:
        if is_plain(query):
            return page_of_all((entry.record for entry in self._in_order), len(self._rollouts), query)
        return select((entry.record for entry in self._candidates(query)), query)

    def _candidates(self, query: Query) -> Iterable[_Rollout]:
        """Rollouts that can match, in order of insertion: through an index where each row must pass an "in" filter."""
        choices = [self._with_one_of(one.field, one.value) for one in query.filters if one.kind == "in"]
        if (query.logic == "or" and len(query.filters) > 1) or not choices:
            return self._in_order
        fewest = min(choices, key=len)
        return sorted(fewest, key=attrgetter("ordinal"))

    def _with_one_of(self, field: str, values: frozenset[str]) -> list[_Rollout]:
        if field == "rollout_id":
            return [entry for rollout_id in values if (entry := self._rollouts.get(rollout_id)) is not None]
        return [entry for status in values if status in self._by_status for entry in self._by_status[status]]

    async def delete_rollout(self, rollout_id: str) -> None:
        entry = self._rollouts[rollout_id]
        self._rollouts.pop(rollout_id)
        del self._in_order[entry.ordinal]
        del self._by_status[entry.record.status][entry.ordinal]
        self._queue.discard(rollout_id)
        self._deadlines.set(rollout_id, None)
        self._completions.forget(rollout_id)
        self._drop_spans(entry)
        self._attempts -= len(entry.attempts)
        self._other_bytes -= entry.record.size_bytes + sum(one.size_bytes for one in entry.attempts.values())

    # Completions

    async def note_completion(self, rollout_id: str, time: float) -> None:
        self._completions.note(rollout_id, time)

    async def forget_completion(self, rollout_id: str) -> None:
        self._completions.forget(rollout_id)

    async def get_completion(self, rollout_id: str) -> Completion | None:
        return self._completions.get(rollout_id)

    async def list_completions(self, after: int, limit: int) -> list[Completion]:
        return list(itertools.islice(self._completions.after(after), limit))

    async def count_completions(self) -> int:
        return len(self._completions)

    async def last_completion(self) -> int:
        return self._completions.position

    # The queue

    async def push_queue(self, rollout_id: str) -> None:
        self._queue.push(rollout_id)

    async def pop_queue(self) -> str | None:
        return self._queue.pop()

    async def leave_queue(self, rollout_id: str) -> None:
        self._queue.discard(rollout_id)

    # Attempts

    async def get_attempt(self, rollout_id: str, attempt_id: str) -> AttemptRecord | None:
        entry = self._rollouts.get(rollout_id)
        return None if entry is None else entry.attempts.get(attempt_id)

    async def latest_attempt(self, rollout_id: str) -> AttemptRecord | None:
        return _latest_of(self._rollouts.get(rollout_id))

    async def latest_attempts(self, rollout_ids: Sequence[str]) -> Sequence[AttemptRecord | None]:
        return [_latest_of(self._rollouts.get(rollout_id)) for rollout_id in rollout_ids]

    async def put_attempt(self, attempt: AttemptRecord) -> None:
        entry = self._rollouts[attempt.rollout_id]
        former = entry.attempts.get(attempt.attempt_id)
        if former is None:
            entry.latest = attempt.attempt_id
            self._attempts += 1
        entry.attempts[attempt.attempt_id] = attempt
        self._other_bytes += attempt.size_bytes - (0 if former is None else former.size_bytes)

    async def list_attempts(self, rollout_id: str, query: Query) -> Rows[AttemptRecord]:
        entry = self._rollouts.get(rollout_id)
        return Rows([], 0) if entry is None else select(entry.attempts.values(), query)

    # Deadlines

    async def set_deadline(self, rollout_id: str, time: float | None) -> None:
        self._deadlines.set(rollout_id, time)

    async def next_deadline(self) -> float | None:
        return self._deadlines.earliest()

    async def take_due(self, now: float, limit: int) -> list[str]:
        return self._deadlines.take(now, limit)

    # Spans

    async def has_span(self, rollout_id: str, attempt_id: str, span_id: str) -> bool:
        entry = self._rollouts.get(rollout_id)
        return entry is not None and entry.span_key(attempt_id, span_id) in entry.spans

    async def insert_span(self, span: SpanRecord, size_bytes: int) -> bool:
        entry = self._rollouts[span.rollout_id]
        key = entry.span_key(span.attempt_id, span.span_id)
        if key in entry.spans:
            return False
        if not entry.spans:
            self._with_spans.push(span.rollout_id)
            if entry.record.status in TERMINAL:
                self._note_end(entry)
        entry.spans[key] = span
        assert span.sequence_id is not None
        entry.sequence = max(entry.sequence, span.sequence_id)
        entry.span_bytes += size_bytes
        self._spans += 1
        self._span_bytes += size_bytes
        return True

    async def list_spans(self, rollout_id: str, attempt_id: str | None, query: Query) -> Rows[SpanRecord]:
        entry = self._rollouts.get(rollout_id)
        if entry is None:
            return Rows([], 0)
        spans = entry.spans.values()
        return select(spans if attempt_id is None else [s for s in spans if s.attempt_id == attempt_id], query)

    async def last_sequence(self, rollout_id: str) -> int:
        return self._rollouts[rollout_id].sequence

    async def next_sequence(self, rollout_id: str) -> int:
        entry = self._rollouts[rollout_id]
        entry.sequence += 1
        return entry.sequence

    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        evicted: list[str] = []
        target_bytes = self._span_bytes - excess_bytes
        while self._span_bytes > target_bytes and (entry := self._next_to_evict(unfinished)) is not None:
            self._drop_spans(entry)
            entry.evicted = True
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
        oldest = self._with_spans.head() if unfinished else None
        return None if oldest is None else self._rollouts[oldest]

    def _drop_spans(self, entry: _Rollout) -> None:
        self._spans -= len(entry.spans)
        self._span_bytes -= entry.span_bytes
        entry.spans = {}
        entry.span_bytes = 0
        self._with_spans.discard(entry.record.rollout_id)

    def _note_end(self, entry: _Rollout) -> None:
        """Make a finished rollout that has spans a candidate for eviction. Entries out of date are skipped later."""
        end_time = entry.record.end_time
        if end_time is not None:
            heapq.heappush(self._ended, (end_time, entry.ordinal, entry.record.rollout_id))
        if len(self._ended) > 2 * len(self._with_spans) + SLACK:  # many ended again and again
            ended = (self._rollouts[rollout_id] for rollout_id in self._with_spans)
            self._ended = [
                (one.record.end_time, one.ordinal, one.record.rollout_id)
                for one in ended
                if one.record.status in TERMINAL and one.record.end_time is not None
            ]
            heapq.heapify(self._ended)

    async def spans_evicted(self, rollout_id: str) -> bool:
        entry = self._rollouts.get(rollout_id)
        return entry is not None and entry.evicted

    # Resources

    async def get_resources(self, resources_id: str) -> ResourcesRecord | None:
        return self._resources.get(resources_id)

    async def latest_resources(self) -> ResourcesRecord | None:
        return None if self._latest_resources is None else self._resources[self._latest_resources]

    async def put_resources(self, resources: ResourcesRecord) -> None:
        former = self._resources.get(resources.resources_id)
        self._resources[resources.resources_id] = resources
        self._other_bytes += resources.size_bytes - (0 if former is None else former.size_bytes)
        self._latest_resources = resources.resources_id

    async def list_resources(self, query: Query) -> Rows[ResourcesRecord]:
        return select(self._resources.values(), query)

    # Workers

    async def get_worker(self, worker_id: str) -> WorkerRecord | None:
        return self._workers.get(worker_id)

    async def put_worker(self, worker: WorkerRecord) -> None:
        former = self._workers.get(worker.worker_id)
        self._workers[worker.worker_id] = worker
        self._other_bytes += worker.size_bytes - (0 if former is None else former.size_bytes)

    async def list_workers(self, query: Query) -> Rows[WorkerRecord]:
        return select(self._workers.values(), query)

    # Replies and sizes

    async def recall_reply(self, request_id: str, at: float) -> tuple[str, Any] | None:
        found = self._replies.get(request_id)
        if found is None or at - found.at > self._replay_window_seconds:
            return None
        return found.operation, found.reply

    async def remember_reply(self, request_id: str, operation: str, reply: Any, at: float) -> None:
        former = self._replies.pop(request_id, None)
        self._reply_bytes -= 0 if former is None else former.size_bytes
        remembered = _Reply(request_id, at, operation, reply, _size_bytes(reply))
        self._replies[request_id] = remembered
        self._replies_in_order.append(remembered)
        self._reply_bytes += remembered.size_bytes
        while self._replies_in_order[0] is not remembered:
            oldest = self._replies_in_order[0]
            expired = at - oldest.at > self._replay_window_seconds
            too_many = len(self._replies) > self._replay_entries_max or self._reply_bytes > REPLAY_BYTES_MAX
            if not expired and not too_many:
                return
            self._replies_in_order.popleft()
            if self._replies.get(oldest.request_id) is oldest:
                del self._replies[oldest.request_id]
                self._reply_bytes -= oldest.size_bytes

    async def counts(self) -> Counts:
        return Counts(
            rollouts=len(self._rollouts),
            attempts=self._attempts,
            spans=self._spans,
            resources=len(self._resources),
            workers=len(self._workers),
            span_bytes=self._span_bytes,
            bytes=self._span_bytes + self._other_bytes,
        )

    async def span_bytes(self) -> int:
        return self._span_bytes

    async def stored_bytes(self) -> int:
        return self._span_bytes + self._other_bytes
