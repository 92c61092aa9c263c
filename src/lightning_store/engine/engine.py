"""The engine on records: operations, reads, waits. What a server speaks to, and ``EngineStore`` in process.

Its arguments have been checked, and its results are records. The rules are in ``lightning_store.engine.rules``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Collection, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from lightning_store.backends.base import Backend, DiskUse, Elsewhere, Rows, Snapshot
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    Claim,
    CompletionRow,
    Counts,
    QueueCounts,
    ResourcesRecord,
    RolloutRow,
    SpanRecord,
    StoredRollout,
    WorkerRecord,
)
from lightning_store.clock import Clock, SteadyClock
from lightning_store.engine.admission import admission_state
from lightning_store.engine.completion_feed import CompletionFeed, cursor_of, position_of
from lightning_store.engine.conversion import span_of
from lightning_store.engine.deadlines import SLACK_SECONDS
from lightning_store.engine.executor import Executor
from lightning_store.engine.groups import GroupFeed, Judged
from lightning_store.engine.idempotency import current_request, part_scope
from lightning_store.engine.look_ups import Found
from lightning_store.engine.observing import StoreObserver
from lightning_store.engine.operations import (
    AddSpans,
    CancelRollouts,
    ClaimRollouts,
    DeleteRollouts,
    ImportRollouts,
    Operation,
    SettleGroup,
    TidyWorkers,
)
from lightning_store.engine.policy import Policy
from lightning_store.engine.rules import Deletion
from lightning_store.engine.transfer import Imported, Page, Place, page_of
from lightning_store.engine.waiting import Waiting
from lightning_store.engine.workers import last_seen
from lightning_store.errors import RolloutNotFoundError, SpansEvictedError
from lightning_store.lifecycle import TERMINAL
from lightning_store.loops import Slicer
from lightning_store.memory_limits import MemoryLimits
from lightning_store.model import AdmissionState, LazyRows
from lightning_store.outcomes import SpanOutcome
from lightning_store.queries import (
    AttemptQuery,
    GroupQuery,
    ResourcesQuery,
    RolloutQuery,
    SpanBatchQuery,
    SpanQuery,
    WorkerQuery,
)
from lightning_store.spans.document import attribute_filter, project

logger = logging.getLogger(__name__)

R = TypeVar("R")

CLOCK_BEHIND_SECONDS: Final = 1.0
"""A machine's clock that was set back by less is nothing to speak of."""
TIDY_SECONDS: Final = 60.0
"""How long nobody looks again for workers that have long been silent."""
TIDY_BATCH: Final = 200
"""Such workers that one transaction changes."""
RECENT_SECONDS: Final = 60.0
"""How far back the completions are counted that statistics have."""
DELETION_BATCH: Final = 500
"""Rollouts that one transaction deletes: as many as hold up other calls for some milliseconds only."""


class Totals(NamedTuple):
    """How much is stored, and how the work goes on."""

    counts: Counts
    queue: QueueCounts
    completed_recently: int
    """Rollouts that became terminal in the last :data:`RECENT_SECONDS`."""


class Gauges(NamedTuple):
    """The same at one moment, without what would have to be searched for."""

    counts: Counts
    queue: QueueCounts
    time: float
    """The store's time, in seconds since the epoch."""


class Engine:
    """Every rule of the contract, on one backend.

    Args:
        backend: Where the data is.
        policy: Which of the rules hold.
        clock: The time. The store follows its ``monotonic`` from the time that ``now`` gives at the start, or from the
            newest time that is stored, if that is later.
        memory: Limits of what is stored; None where there are none.
    """

    def __init__(self, backend: Backend, *, policy: Policy, clock: Clock, memory: MemoryLimits | None) -> None:
        self._backend = backend
        self.policy = policy
        self.memory = memory
        self.store_id = backend.store_id
        self.replay_window_seconds = backend.replay_window_seconds
        self.inline = backend.inline
        behind_seconds = backend.newest_time - clock.now()
        if behind_seconds > CLOCK_BEHIND_SECONDS:
            message = "The machine's clock is %.0f s behind the newest time stored; the store goes on from that time"
            logger.warning(message, behind_seconds)
        self._clock = SteadyClock(clock, not_before=backend.newest_time)
        self._waiting = Waiting()
        self._executor = Executor(backend, policy, self._clock, memory, self._waiting)
        silences = [policy.worker_timeout_seconds or math.inf, policy.worker_retention_seconds or math.inf]
        self._silence_seconds = min(silences)
        """After how much silence of a worker there is something to do."""
        self._tidied_at = -math.inf
        backend.follow(self._heed_others)

    @property
    def available(self) -> bool:
        """Whether the data can be reached, as far as is known."""
        return self._backend.available

    async def wait_for_availability(self, available: bool) -> None:
        """Return when ``available`` is this."""
        await self._backend.wait_for_availability(available)

    def _heed_others(self, done: Elsewhere) -> None:
        self._executor.heed_others(done)
        self._waiting.notify_of_others(done)

    @property
    def observer(self) -> StoreObserver | None:
        """Told of each transaction. A store has one at the most."""
        return self._executor.observer

    @observer.setter
    def observer(self, observer: StoreObserver | None) -> None:
        self._executor.observer = observer

    def execute(self, operation: Operation[R]) -> Coroutine[Any, Any, R]:
        """Run an operation.

        Raises:
            StoreError: It was refused, and nothing changed.
        """
        return self._executor.execute(operation)

    async def add_spans(self, records: Sequence[SpanRecord]) -> list[SpanOutcome]:
        """Store spans.

        Returns:
            What became of each, in order. Refusals are not raised.
        """
        return await self.execute(AddSpans([(record, self._size_bytes(record)) for record in records]))

    def _size_bytes(self, record: SpanRecord) -> int:
        if self.memory is None or self.memory.span_size_estimator is None:
            return record.size_bytes
        return self.memory.span_size_estimator(span_of(record))

    # --- Between stores ----------------------------------------------------------------------------------------------

    async def export_page(self, which: RolloutQuery, begin: Place) -> Page:
        """Rollouts with all that belongs to them, from ``begin`` on, as many as a page takes. Each page is of one
        moment."""
        return await self._executor.read(lambda snapshot: page_of(snapshot, which, begin))

    async def import_rollouts(
        self,
        rollouts: Sequence[StoredRollout],
        resources: Sequence[ResourcesRecord] = (),
        workers: Sequence[WorkerRecord] = (),
        checkpoints: Sequence[CheckpointRecord] = (),
        admissions: Sequence[AdmissionRecord] = (),
    ) -> Imported:
        """Store what another store holds as it is; what is stored stays as it is."""
        sizes = [[self._size_bytes(span) for span in part.spans] for part in rollouts]
        return await self.execute(ImportRollouts(rollouts, sizes, resources, workers, checkpoints, admissions))

    # --- Reading -----------------------------------------------------------------------------------------------------

    async def counts(self) -> Counts:
        return await self._executor.read(lambda snapshot: snapshot.counts())

    @property
    def disk_use(self) -> DiskUse | None:
        return self._backend.disk_use

    async def gauges(self) -> Gauges:
        """What is stored at this moment, as it stands: nothing is expired first, so that looking waits for no writer.
        What it takes does not depend on how much is stored."""
        async with self._backend.snapshot() as snapshot:
            return Gauges(await snapshot.counts(), await snapshot.queue_counts(), self._clock.now())

    async def last_completions(self, after: int, limit: int) -> tuple[list[CompletionRow], int]:
        """The first ``limit`` completions past position ``after``, as they stand, and the last position of all."""
        async with self._backend.snapshot() as snapshot:
            return await snapshot.completions(after, limit), await snapshot.last_completion()

    async def rollouts_as_stored(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        """Each of these rollouts, as it stands; None where there is no such rollout."""
        async with self._backend.snapshot() as snapshot:
            return await snapshot.rollouts(rollout_ids)

    async def has_placed(self, after: int) -> bool:
        """Whether there is a rollout past place ``after``."""
        async with self._backend.snapshot() as snapshot:
            return bool(await snapshot.placed_rollouts(after, 1))

    async def placed(self, after: int, limit: int) -> list[tuple[int, RolloutRow]]:
        """The first ``limit`` rollouts past place ``after``, as they stand, each with its place.

        Places count the rollouts in the order in which they were made; those of deleted ones are not used again.
        """
        async with self._backend.snapshot() as snapshot:
            found = await snapshot.placed_rollouts(after, limit)
            rows = await snapshot.rollouts([one.rollout.rollout_id for one in found])
            return [(one.place, row) for one, row in zip(found, rows, strict=True) if row is not None]

    async def totals(self) -> Totals:
        await self._tidy_workers()

        async def select(snapshot: Snapshot) -> Totals:
            recently = await _completed_since(snapshot, self._clock.now() - RECENT_SECONDS)
            return Totals(await snapshot.counts(), await snapshot.queue_counts(), recently)

        return await self._executor.read(select)

    async def rollout(self, rollout_id: str) -> RolloutRow | None:
        return (await self._rollouts([rollout_id]))[0]

    async def latest_attempt(self, rollout_id: str) -> AttemptRecord | None:
        """None where there is none. RolloutNotFoundError for an unknown rollout in strict mode."""
        row = await self.rollout(rollout_id)
        if row is None:
            self._refuse_if_strict(rollout_id)
        return None if row is None else row.attempt

    async def resources(self, resources_id: str) -> ResourcesRecord | None:
        return await self._executor.read(lambda snapshot: snapshot.resources(resources_id))

    async def latest_resources(self, run: str | None) -> ResourcesRecord | None:
        """Those of a run; the latest of all for None."""
        if run is None:
            return await self._executor.read(lambda snapshot: snapshot.resources(None))
        return await self._executor.read(lambda snapshot: snapshot.newest_resources(run))

    async def admission(self, run: str) -> AdmissionState:
        return await self._executor.read(lambda snapshot: admission_state(snapshot, run))

    async def admissions(self) -> list[AdmissionRecord]:
        return await self._executor.read(lambda snapshot: snapshot.admissions())

    async def worker(self, worker_id: str) -> WorkerRecord | None:
        await self._tidy_workers()
        return await self._executor.read(lambda snapshot: snapshot.worker(worker_id))

    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        return await self._executor.read(lambda snapshot: snapshot.query_rollouts(query))

    async def query_attempts(self, query: AttemptQuery) -> Rows[AttemptRecord]:
        async def select(snapshot: Snapshot, found: Found) -> Rows[AttemptRecord]:
            if found == [None]:
                self._refuse_if_strict(query.rollout_id)
                return Rows([], 0)
            return await snapshot.query_attempts(query)

        return await self._executor.look_up([query.rollout_id], select)

    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]:
        """Spans, still encoded. SpansEvictedError if they were dropped."""

        async def select(snapshot: Snapshot, found: Found) -> Rows[SpanRecord]:
            [row] = found
            if row is None:
                self._refuse_if_strict(query.rollout_id)
                return Rows([], 0)
            if row.rollout.spans_evicted:
                raise SpansEvictedError.of(query.rollout_id)
            if query.attempt_id != "latest":
                return await snapshot.query_spans(query)
            if row.attempt is None:
                return Rows([], 0)
            return await snapshot.query_spans(replace(query, attempt_id=row.attempt.attempt_id))

        return await self._executor.look_up([query.rollout_id], select)

    async def query_many_spans(self, query: SpanBatchQuery) -> Rows[SpanRecord]:
        """Spans of many rollouts, still encoded. SpansEvictedError if those of one were dropped."""

        async def select(snapshot: Snapshot, rows: Found) -> Rows[SpanRecord]:
            attempts: list[tuple[str, str | None]] = []
            for rollout_id, row in zip(query.rollout_ids, rows, strict=True):
                if row is None:
                    self._refuse_if_strict(rollout_id)
                elif row.rollout.spans_evicted:
                    raise SpansEvictedError.of(rollout_id)
                elif query.attempt is None:
                    attempts.append((rollout_id, None))
                elif row.attempt is not None:
                    attempts.append((rollout_id, row.attempt.attempt_id))
            return await snapshot.query_many_spans(query, attempts)

        found = await self._executor.look_up(query.rollout_ids, select)
        if query.attributes is None:
            return found
        chosen = attribute_filter(query.attributes)
        return Rows(LazyRows(found.items, lambda record: project(record, chosen)), found.total)

    async def query_resources(self, query: ResourcesQuery) -> Rows[ResourcesRecord]:
        return await self._executor.read(lambda snapshot: snapshot.query_resources(query))

    async def query_workers(self, query: WorkerQuery) -> Rows[WorkerRecord]:
        await self._tidy_workers()
        return await self._executor.read(lambda snapshot: snapshot.query_workers(query))

    async def _rollouts(self, rollout_ids: Sequence[str]) -> Found:
        async def select(_: Snapshot, found: Found) -> Found:
            return found

        return await self._executor.look_up(rollout_ids, select)

    def _refuse_if_strict(self, unknown: str) -> None:
        """Strict mode refuses to read what does not exist (fact 15)."""
        if self.policy.strict:
            raise RolloutNotFoundError.of(unknown)

    # --- Workers -----------------------------------------------------------------------------------------------------

    async def _tidy_workers(self) -> None:
        """Release and delete workers that have long been silent, unless somebody looked for them a moment ago."""
        if self._silence_seconds == math.inf or self._clock.monotonic() - self._tidied_at < TIDY_SECONDS:
            return
        self._tidied_at = self._clock.monotonic()
        before = self._clock.now() - self._silence_seconds
        try:
            everybody = await self._executor.read(lambda snapshot: snapshot.query_workers(WorkerQuery()))
            silent: list[str] = []
            slicer = Slicer()
            for one in everybody.items:
                if slicer.is_over():
                    await slicer.next_turn()
                if last_seen(one) < before:
                    silent.append(one.worker_id)
            for start in range(0, len(silent), TIDY_BATCH):
                await self.execute(TidyWorkers(silent[start : start + TIDY_BATCH]))
        except Exception as error:
            logger.warning("Workers that have long been silent were not looked at: %r", error)

    # --- Waiting -----------------------------------------------------------------------------------------------------

    async def claim(self, limit: int, worker_id: str | None, max_wait: float) -> list[Claim]:
        """Claim from the head of the queue; on an empty queue, wait for the next rollout that is queued.

        Args:
            limit: How many rollouts at most; 1 or more.
            worker_id: Who asks; None for nobody.
            max_wait: How long to wait, in seconds.
        """
        operation = ClaimRollouts(limit, worker_id)
        if worker_id is not None and self._silence_seconds < math.inf:
            await self._tidy_workers()
        if max_wait <= 0:
            return await self.execute(operation)
        request = current_request()
        until = self._clock.monotonic() + max_wait
        claimants = self._waiting.claimants
        with (
            claimants.register(None if request is None else request.id) as claimant,
            self._executor.timer.waiting(),
        ):
            await self._executor.arm_timer()
            woken = True
            while True:
                claimants.follow_call(claimant)
                left = until - self._clock.monotonic()
                last_look = left <= 0 or not woken
                claims = await self._executor.execute(operation, final=last_look)
                claimants.followed(claimant)
                if claims:
                    claimants.answered(claimant)
                if claims or last_look:
                    return claims
                woken = await claimant.wakeup.wait(self._clock, left)

    async def wait(
        self, rollout_ids: Mapping[str, None], timeout: float | None, *, one_is_enough: bool
    ) -> dict[str, RolloutRow]:
        """Wait until all of these rollouts are terminal, or one of them; those that are gone are not waited for.

        Args:
            rollout_ids: Without repeats.
            timeout: How long to wait, in seconds; None waits for ever.
            one_is_enough: Whether to return as soon as one of them is terminal.

        Returns:
            Those that are terminal by then, with their latest attempts.
        """
        until = None if timeout is None else self._clock.monotonic() + timeout
        woken = True
        while True:
            with (
                self._waiting.rollouts.register(rollout_ids, one_is_enough=one_is_enough) as waiter,
                self._executor.timer.waiting(),
            ):
                await self._executor.arm_timer()
                ended, unknown = await self._ended(list(rollout_ids))
                left = None if until is None else until - self._clock.monotonic()
                done = len(ended) + len(unknown) == len(rollout_ids) or (one_is_enough and ended)
                if done or not woken or (left is not None and left <= 0):
                    return ended
                for rollout_id in ended:
                    waiter.note_end(rollout_id)
                for rollout_id in unknown:
                    waiter.pass_over(rollout_id)
                woken = await waiter.wait(self._clock, left)

    async def _ended(self, rollout_ids: Sequence[str]) -> tuple[dict[str, RolloutRow], list[str]]:
        """Those that are terminal, and the ids of those that do not exist."""
        ended: dict[str, RolloutRow] = {}
        unknown: list[str] = []
        for rollout_id, row in zip(rollout_ids, await self._rollouts(rollout_ids), strict=True):
            if row is None:
                self._refuse_if_strict(rollout_id)
                unknown.append(rollout_id)
            elif row.rollout.status in TERMINAL:
                ended[rollout_id] = row
        return ended, unknown

    async def watch(
        self, wanted: Collection[str] | None, after: str | None, where: RolloutQuery, consumer: str | None
    ) -> AsyncGenerator[CompletionRow, None]:
        """The rollouts that became terminal, in order, and those to come.

        Args:
            wanted: Only these, each once; None is all, for ever.
            after: The cursor to go on after; None begins at the beginning.
            where: Has filters; others are passed over.
            consumer: What it has consumed is passed over; None: nothing.
        """
        pending, position = None if wanted is None else set(wanted), position_of(self.store_id, after)
        feed = CompletionFeed(pending, position, where, consumer, strict=self.policy.strict)
        with self._waiting.watchers.register(wanted) as watcher, self._executor.timer.waiting():
            await self._executor.arm_timer()
            while not feed.done:
                feed.drop(watcher.before_look())
                for row in await self._executor.read(feed.look):
                    yield row
                if feed.caught_up and not feed.done:
                    await watcher.wakeup.wait(self._clock, None)

    async def watch_groups(self, group_ids: Collection[str] | None, terms: GroupQuery) -> AsyncGenerator[Judged, None]:
        """The groups that are not open any more, and those to come, each once.

        Args:
            group_ids: Only these; those that have no members are passed over. None is all, for ever.
            terms: Which groups, and what it takes for one to be returned.
        """
        feed = GroupFeed(group_ids, terms)
        until = None if terms.timeout is None else self._clock.monotonic() + terms.timeout
        heeds_deletions = group_ids is not None
        with (
            self._waiting.watchers.register(None, heeds_deletions=heeds_deletions) as watcher,
            self._executor.timer.waiting(),
        ):
            await self._executor.arm_timer()
            while not feed.done:
                look = partial(feed.look, now=self._clock.now(), deleted=bool(watcher.before_look()))
                for found in await self._executor.read(look):
                    judged = found
                    if terms.on_partial == "cancel" and found.status != "whole":
                        judged = await self.execute(SettleGroup(found.group.group_id, terms))
                    if judged.status != "open":
                        feed.note_returned(judged.group.group_id)
                        yield judged
                if feed.caught_up and not feed.done:
                    left = None if until is None else until - self._clock.monotonic()
                    if left is not None and left <= 0:
                        return
                    deadline = feed.next_deadline
                    seconds = None if deadline is None else max(0.0, deadline - self._clock.now()) + SLACK_SECONDS
                    await watcher.wakeup.wait(self._clock, min(filter(None, (left, seconds)), default=None))

    async def present_cursor(self) -> str:
        """The cursor of the last completion that is stored."""
        return cursor_of(self.store_id, await self._executor.read(lambda snapshot: snapshot.last_completion()))

    # --- Cancelling --------------------------------------------------------------------------------------------------

    async def cancel(self, rollout_ids: Sequence[str] | None, where: RolloutQuery) -> list[RolloutRow]:
        """End rollouts as cancelled.

        Args:
            rollout_ids: Only these, which have to be known; None is all that are not terminal.
            where: Has filters; others stay as they are, and are left out of what is returned.
        """
        if rollout_ids is not None:
            return await self.execute(CancelRollouts(list(rollout_ids), where))
        found = await self.query_rollouts(where)
        going_on = [row.rollout.rollout_id for row in found.items if row.rollout.status not in TERMINAL]
        return await self.execute(CancelRollouts(going_on, where, named=False))

    # --- Deleting ----------------------------------------------------------------------------------------------------

    async def delete(self, which: Deletion) -> list[str]:
        """Delete rollouts, a slice at a time, and return their ids."""
        deleted: list[str] = []
        place: int | None = 0
        while place is not None:
            # The first slice has the id of the call itself, which nothing else may have then.
            with part_scope(f"{place}") if place else nullcontext():
                candidates, next_place = await self._candidates(which, place)
                place, some = await self.execute(DeleteRollouts(candidates, which, next_place))
            deleted += some
            await asyncio.sleep(0)  # let others in between
        return deleted

    async def _candidates(self, which: Deletion, place: int) -> tuple[list[str], int | None]:
        """The rollouts of the slice that begins at ``place``, and where the next one does; None if there is none."""
        if which.rollout_ids is not None:
            end = place + DELETION_BATCH
            return list(which.rollout_ids[place:end]), end if end < len(which.rollout_ids) else None
        oldest = await self._executor.read(lambda snapshot: snapshot.completions(place, DELETION_BATCH))
        young = not oldest or not which.is_old(oldest[-1].time, self._clock.now())
        next_place = None if young or len(oldest) < DELETION_BATCH else oldest[-1].position
        return [one.row.rollout.rollout_id for one in oldest], next_place


async def _completed_since(snapshot: Snapshot, time: float) -> int:
    """How many rollouts have become terminal since then, by their positions: a binary search for the first, so that few
    are read. Those before it that were deleted since do not count."""
    last = await snapshot.last_completion()
    before, until = 0, last  # completions up to ``before`` are older, those past ``until`` are not
    while before < until:
        middle = (before + until) // 2
        following = await snapshot.completions(middle, 1)
        if following and following[0].time < time:
            before = following[0].position
        else:
            until = middle
    first = await snapshot.completions(before, 1)
    return last - first[0].position + 1 if first else 0
