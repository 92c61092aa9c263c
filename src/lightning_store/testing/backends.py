"""Backends that behave as databases do: they suspend at each await, load only what was asked for, roll back, report
conflicts, and lose the answer to a commit. Each is a memory backend inside."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

from lightning_store.backends.base import (
    Backend,
    Changes,
    CommitUnknownError,
    ConflictError,
    Due,
    Loaded,
    Needs,
    Rows,
    Snapshot,
    Transaction,
    Unconsumed,
)
from lightning_store.backends.loaded import LoadedRecords, with_positions
from lightning_store.backends.memory import REPLAY_ENTRIES_MAX, REPLAY_WINDOW_SECONDS, MemoryBackend
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
    ResourcesRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.clock import Clock
from lightning_store.engine.policy import Fence, Policy
from lightning_store.engine.store import EngineStore
from lightning_store.memory_limits import MemoryLimits
from lightning_store.queries import AttemptQuery, ResourcesQuery, RolloutQuery, SpanBatchQuery, SpanQuery, WorkerQuery

T = TypeVar("T")


class SuspendingBackend(Backend):
    """Suspends at each await, and loads what was asked for and nothing else.

    One transaction or snapshot at a time is open; the others wait for it.

    Args:
        inner: Where the data is.
    """

    is_remote = True

    def __init__(self, inner: Backend | None = None) -> None:
        self.inner = MemoryBackend() if inner is None else inner
        self.awaits: Counter[str] = Counter()
        """How often each verb was awaited."""
        self._turn = asyncio.Lock()

    @property
    def store_id(self) -> str:
        return self.inner.store_id

    @property
    def replay_window_seconds(self) -> float:
        return self.inner.replay_window_seconds

    @property
    def newest_time(self) -> float:
        return self.inner.newest_time

    def transaction(self) -> Transaction:
        return _SuspendingTransaction(self)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        async with self._turn:
            yield _SuspendingSnapshot(self)

    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        async with self._turn:
            return await self.suspended(
                "evict_spans", lambda: self.inner.evict_spans(excess_bytes, unfinished=unfinished)
            )

    @property
    def stored_bytes(self) -> int:
        return self.inner.stored_bytes

    @property
    def span_bytes(self) -> int:
        return self.inner.span_bytes

    # --- What the transactions and snapshots of this backend and of its subclasses do --------------------------------

    async def begin(self) -> None:
        await self._turn.acquire()

    def end(self) -> None:
        self._turn.release()

    async def suspended(self, verb: str, make: Callable[[], Awaitable[T]]) -> T:
        """The result of what ``make`` gives, with others let in before it and after it."""
        self.awaits[verb] += 1
        await asyncio.sleep(0)
        result = await make()
        await asyncio.sleep(0)
        return result

    async def read(self, needs: Needs, due: Due | None, into: LoadedRecords) -> None:
        """Load ``needs``, and what is due, from the data."""
        transaction = self.inner.transaction()
        data = await transaction.load(needs, due)
        try:
            _copy(needs, data, into)
            if due is not None:
                _copy_due(data, into)
        finally:
            await transaction.rollback()

    async def write(self, changes: Changes, loaded: LoadedRecords) -> None:
        """Store ``changes``, with real positions for provisional ones. ConflictError if a new id is taken."""
        transaction = self.inner.transaction()
        data = await transaction.load(Needs())
        if _is_taken(changes, loaded, data):
            await transaction.rollback()
            raise ConflictError("an id is taken")
        positions = data.last_queue_position, data.last_completion_position
        stored = with_positions(changes, *positions)
        stored.replies = {reply.request_id: reply.encoded() for reply in changes.replies.values()}
        await transaction.commit(stored)


class RollingBackBackend(SuspendingBackend):
    """Rolls back the first commit of each recorded reply and fails, as a database that lost its disk for a moment.

    Args:
        inner: Where the data is.
    """

    def __init__(self, inner: Backend | None = None) -> None:
        super().__init__(inner)
        self._tried: set[str] = set()

    async def write(self, changes: Changes, loaded: LoadedRecords) -> None:
        if not self._tried.issuperset(changes.replies):
            self._tried.update(changes.replies)
            raise OSError("the disk is gone for a moment")
        await super().write(changes, loaded)


class ConflictingBackend(SuspendingBackend):
    """Reports a conflict at random, when it loads or when it commits.

    Args:
        inner: Where the data is.
        seed: Of the random numbers.
        rate: Which part of the commits is refused.
    """

    def __init__(self, inner: Backend | None = None, *, seed: int = 0, rate: float = 0.25) -> None:
        super().__init__(inner)
        self._random = random.Random(seed)
        self._rate = rate

    async def read(self, needs: Needs, due: Due | None, into: LoadedRecords) -> None:
        self._perhaps_conflict()
        await super().read(needs, due, into)

    async def write(self, changes: Changes, loaded: LoadedRecords) -> None:
        self._perhaps_conflict()
        await super().write(changes, loaded)

    def _perhaps_conflict(self) -> None:
        if self._random.random() < self._rate:
            raise ConflictError("another transaction is in the way")


class ForgetfulBackend(SuspendingBackend):
    """Loses the answer to every other commit; half of these happened, and half did not.

    Args:
        inner: Where the data is.
    """

    def __init__(self, inner: Backend | None = None) -> None:
        super().__init__(inner)
        self._commits = 0

    async def write(self, changes: Changes, loaded: LoadedRecords) -> None:
        self._commits += 1
        if self._commits % 4 != 1:
            await super().write(changes, loaded)
        if self._commits % 2:
            raise CommitUnknownError("the connection broke before the answer came")


class _SuspendingTransaction(Transaction):
    def __init__(self, backend: SuspendingBackend) -> None:
        self._backend = backend
        self._loaded = LoadedRecords()
        self._open = False

    async def load(self, needs: Needs, due: Due | None = None) -> Loaded:
        if not self._open:
            await self._backend.begin()
            self._open = True
        await self._backend.suspended("load", lambda: self._backend.read(needs, due, self._loaded))
        return self._loaded

    async def commit(self, changes: Changes) -> None:
        try:
            await self._backend.suspended("commit", lambda: self._backend.write(changes, self._loaded))
        finally:
            self._close()

    async def rollback(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._backend.end()


class _SuspendingSnapshot(Snapshot):
    """Each read is made on a snapshot of the data inside, which nobody changes meanwhile."""

    def __init__(self, backend: SuspendingBackend) -> None:
        self._backend = backend

    async def _read(self, verb: str, read: Callable[[Snapshot], Awaitable[T]]) -> T:
        return await self._backend.suspended(verb, lambda: _on(self._backend.inner.snapshot(), read))

    async def has_due(self, due: Due) -> bool:
        return await self._read("has_due", lambda inner: inner.has_due(due))

    async def rollouts(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        return await self._read("rollouts", lambda inner: inner.rollouts(rollout_ids))

    async def groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        return await self._read("groups", lambda inner: inner.groups(group_ids))

    async def consumed(self, consumer: str, rollout_ids: Sequence[str]) -> set[str]:
        return await self._read("consumed", lambda inner: inner.consumed(consumer, rollout_ids))

    async def marks(self, rollout_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        return await self._read("marks", lambda inner: inner.marks(rollout_ids))

    async def checkpoints(self) -> list[CheckpointRecord]:
        return await self._read("checkpoints", lambda inner: inner.checkpoints())

    async def admissions(self) -> list[AdmissionRecord]:
        return await self._read("admissions", lambda inner: inner.admissions())

    async def open_groups(self, run: str) -> Sequence[OpenGroup]:
        return await self._read("open_groups", lambda inner: inner.open_groups(run))

    async def resources(self, resources_id: str | None) -> ResourcesRecord | None:
        return await self._read("resources", lambda inner: inner.resources(resources_id))

    async def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        return await self._read("newest_resources", lambda inner: inner.newest_resources(run))

    async def worker(self, worker_id: str) -> WorkerRecord | None:
        return await self._read("worker", lambda inner: inner.worker(worker_id))

    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        return await self._read("query_rollouts", lambda inner: inner.query_rollouts(query))

    async def query_attempts(self, query: AttemptQuery) -> Rows[AttemptRecord]:
        return await self._read("query_attempts", lambda inner: inner.query_attempts(query))

    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]:
        return await self._read("query_spans", lambda inner: inner.query_spans(query))

    async def query_many_spans(
        self, query: SpanBatchQuery, attempts: Sequence[tuple[str, str | None]]
    ) -> Rows[SpanRecord]:
        return await self._read("query_many_spans", lambda inner: inner.query_many_spans(query, attempts))

    async def query_resources(self, query: ResourcesQuery) -> Rows[ResourcesRecord]:
        return await self._read("query_resources", lambda inner: inner.query_resources(query))

    async def query_workers(self, query: WorkerQuery) -> Rows[WorkerRecord]:
        return await self._read("query_workers", lambda inner: inner.query_workers(query))

    async def completions(self, after: int, limit: int) -> list[CompletionRow]:
        return await self._read("completions", lambda inner: inner.completions(after, limit))

    async def unconsumed(self, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
        return await self._read("unconsumed", lambda inner: inner.unconsumed(consumer, after, look, limit))

    async def last_completion(self) -> int:
        return await self._read("last_completion", lambda inner: inner.last_completion())

    async def next_deadline(self) -> float | None:
        return await self._read("next_deadline", lambda inner: inner.next_deadline())

    async def placed_rollouts(self, after: int, limit: int) -> list[PlacedRollout]:
        return await self._read("placed_rollouts", lambda inner: inner.placed_rollouts(after, limit))

    async def counts(self) -> Counts:
        return await self._read("counts", lambda inner: inner.counts())

    async def queue_counts(self) -> QueueCounts:
        return await self._read("queue_counts", lambda inner: inner.queue_counts())


async def _on(snapshot: AbstractAsyncContextManager[Snapshot], read: Callable[[Snapshot], Awaitable[T]]) -> T:
    async with snapshot as opened:
        return await read(opened)


def _is_taken(changes: Changes, loaded: LoadedRecords, data: Loaded) -> bool:
    """Whether something has the id of something that this transaction made: of what it has not loaded."""
    new = [one for one in changes.rollouts if loaded.rollouts.get(one) is None]
    new_attempts = [key for key in changes.attempts if loaded.attempts.get(key) is None]
    return any(data.is_taken(one) for one in new) or any(data.is_taken(*key) for key in new_attempts)


def _copy(needs: Needs, data: Loaded, into: LoadedRecords) -> None:
    """What was asked for and was not loaded before, from ``data`` into ``into``."""
    for request_id in needs.replies:
        into.replies[request_id] = data.reply(request_id)
    for worker_id in needs.workers:
        _copy_worker(worker_id, data, into)
    for worker_id in needs.held:
        _copy_held(worker_id, data, into)
    for rollout_id in needs.holders:
        _copy_holders(rollout_id, data, into)
    for group_id in needs.groups:
        _copy_group(group_id, data, into)
    _copy_marks(needs, data, into)
    for rollout_id in needs.rollouts:
        _copy_rollout(rollout_id, data, into)
    for key in needs.attempts:
        _copy_attempt(*key, data, into)
    for span_key in needs.spans:
        into.spans[span_key] = data.has_span(*span_key)
    _copy_resources(needs, data, into)
    if needs.claims:
        _copy_queue(needs, data, into)


def _copy_resources(needs: Needs, data: Loaded, into: LoadedRecords) -> None:
    for resources_id in needs.resources:
        into.resources_by_id[resources_id] = data.resources(resources_id)
    if needs.latest_resources:
        into.latest[None] = data.latest_resources()
    for run in needs.newest_resources:
        into.newest[run] = data.newest_resources(run)


def _copy_held(worker_id: str, data: Loaded, into: LoadedRecords) -> None:
    worker = data.worker(worker_id)
    if worker is not None and worker.current_rollout_id and worker.current_attempt_id:
        _copy_rollout(worker.current_rollout_id, data, into)
        _copy_attempt(worker.current_rollout_id, worker.current_attempt_id, data, into)


def _copy_group(group_id: str, data: Loaded, into: LoadedRecords) -> None:
    into.group_members[group_id] = list(data.group(group_id))
    for rollout_id in into.group_members[group_id]:
        _copy_rollout(rollout_id, data, into)


def _copy_marks(needs: Needs, data: Loaded, into: LoadedRecords) -> None:
    for consumer in needs.checkpoints:
        into.checkpoints_of[consumer] = dict(data.checkpoints(consumer))
    for key in needs.marks:
        into.marks[key] = data.mark_of(*key)
    for since in needs.marks_from:
        into.marks_since[since] = list(data.marks_from(*since))
    for run in needs.admissions:
        into.admissions[run] = data.admission(run)
    for run in needs.open_groups:
        into.open_groups_of[run] = list(data.open_groups(run))


def _copy_due(data: Loaded, into: LoadedRecords) -> None:
    into.overdue = list(data.overdue)
    into.expendable = list(data.expendable)
    for rollout_id in (*into.overdue, *into.expendable):
        _copy_rollout(rollout_id, data, into)
    for rollout_id in into.expendable:
        _copy_holders(rollout_id, data, into)


def _copy_holders(rollout_id: str, data: Loaded, into: LoadedRecords) -> None:
    into.holder_ids[rollout_id] = list(data.holders(rollout_id))
    for worker_id in into.holder_ids[rollout_id]:
        _copy_worker(worker_id, data, into)


def _copy_queue(needs: Needs, data: Loaded, into: LoadedRecords) -> None:
    """As many more of the queue as are needed, and one if there is any."""
    queue = iter(data.queue())
    for _ in into.queued:
        next(queue)
    payload_bytes = 0
    for _ in range(needs.claims):
        rollout_id = next(queue, None)
        if rollout_id is None:
            into.queue_end = True
            break
        into.queued.append(rollout_id)
        _copy_rollout(rollout_id, data, into)
        rollout = into.rollouts[rollout_id]
        if rollout is not None and rollout.resources_id is not None:
            into.resources_by_id[rollout.resources_id] = data.resources(rollout.resources_id)
        payload_bytes += 0 if rollout is None else rollout.payload_bytes
        if payload_bytes > needs.claim_bytes:
            break


def _copy_rollout(rollout_id: str, data: Loaded, into: LoadedRecords) -> None:
    rollout = into.rollouts[rollout_id] = data.rollout(rollout_id)
    if rollout is None:
        return
    into.sequences[rollout_id] = data.last_sequence(rollout_id)
    if rollout.latest_attempt_id is not None:
        _copy_attempt(rollout_id, rollout.latest_attempt_id, data, into)


def _copy_attempt(rollout_id: str, attempt_id: str, data: Loaded, into: LoadedRecords) -> None:
    attempt = into.attempts[rollout_id, attempt_id] = data.attempt(rollout_id, attempt_id)
    if attempt is not None and attempt.worker_id:
        _copy_worker(attempt.worker_id, data, into)


def _copy_worker(worker_id: str, data: Loaded, into: LoadedRecords) -> None:
    into.workers[worker_id] = data.worker(worker_id)


def store_on(
    backend: Callable[[Backend], Backend],
    *,
    clock: Clock | None = None,
    strict: bool = False,
    final_outcomes: bool = False,
    fence_attempts: Fence = "off",
    worker_timeout_seconds: float = 0.0,
    worker_retention_seconds: float | None = None,
    retain_finished_seconds: float | None = None,
    retain_finished_count: int | None = None,
    retain_for: Sequence[str] = (),
    replay_window_seconds: float = REPLAY_WINDOW_SECONDS,
    replay_entries_max: int = REPLAY_ENTRIES_MAX,
    **limits: Any,
) -> EngineStore:
    """A store on a backend of this module, with the arguments of ``InMemoryLightningStore``.

    Args:
        backend: Makes the backend, given the memory backend that is inside: one of the classes of this module, say.

    Returns:
        A store for one event loop. Put it into a ``LightningStoreThreaded`` for callers on several.
    """
    policy = Policy(
        strict=strict,
        final_outcomes=final_outcomes,
        fence_attempts=fence_attempts,
        worker_timeout_seconds=worker_timeout_seconds,
        worker_retention_seconds=worker_retention_seconds,
        retain_finished_seconds=retain_finished_seconds,
        retain_finished_count=retain_finished_count,
        retain_for=tuple(retain_for),
    )
    inner = MemoryBackend(replay_window_seconds=replay_window_seconds, replay_entries_max=replay_entries_max)
    return EngineStore(backend(inner), policy=policy, clock=clock, memory=MemoryLimits.of(**limits))


BACKENDS: Final[Mapping[str, Callable[[Backend], Backend]]] = {
    "suspending": SuspendingBackend,
    "rolling-back": RollingBackBackend,
    "conflicting": ConflictingBackend,
    "forgetful": ForgetfulBackend,
}
"""By name, each with its defaults."""
