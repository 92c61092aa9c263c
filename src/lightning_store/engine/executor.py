"""Runs operations in transactions: expire what is overdue, decide, record the replies, commit, notify the waiters.

A backend that suspends gets the operations in groups: all that are ready go into one transaction, and while it commits
the next ones gather. One that never suspends runs each operation at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, Final, Generic, Protocol, TypeGuard, TypeVar, cast

from lightning_store.backends.base import (
    Backend,
    CommitUnknownError,
    ConflictError,
    Due,
    Elsewhere,
    Needs,
    NotLoadedError,
    Snapshot,
    Transaction,
)
from lightning_store.backends.records import ReplyRecord
from lightning_store.clock import Clock
from lightning_store.engine import admission, rules
from lightning_store.engine.deadlines import DeadlineTimer
from lightning_store.engine.idempotency import Request, current_request, shown_id
from lightning_store.engine.look_ups import Found, LookUps
from lightning_store.engine.observing import StoreObserver, TransactionDetails, Transitions, transitions_of
from lightning_store.engine.operations import ActOnDue, Operation
from lightning_store.engine.policy import Policy
from lightning_store.engine.replies import decode_refusal, encode_refusal
from lightning_store.engine.rules import Deletion
from lightning_store.engine.view import Effects, View
from lightning_store.errors import (
    RequestIdReusedError,
    ResourceExhaustedError,
    StoreError,
    StoreUnavailableError,
)
from lightning_store.ids import new_hex
from lightning_store.lifecycle import TERMINAL
from lightning_store.memory_limits import MemoryLimits, memory_full

logger = logging.getLogger(__name__)

R = TypeVar("R")

GROUP_ROWS_MAX: Final = 500
"""Rows that the operations of one group write; an operation that writes more is alone in its group."""
GROUP_BYTES_MAX: Final = 2 * 1024 * 1024
"""Bytes likewise."""
DUE_BATCH: Final = 500
"""Rollouts that one transaction expires, and deletes at the most: as many as hold up other calls for some milliseconds
only."""
TRIES_MAX: Final = 20
"""Transactions in a row that may end with a conflict, or without an answer. Then the operations fail as unavailable."""
COMING_BYTES_MAX: Final = 1024**3
"""What one transaction stores at the most: it is looked at only where there may not be as much room."""
LOOK_AGAIN_SECONDS: Final = 1.0
"""After the backend failed when a deadline had passed."""
CONFLICT_BACKOFF_SECONDS: Final = 0.001
CONFLICT_BACKOFF_SECONDS_MAX: Final = 0.1
"""Before a group runs again it waits up to twice the first after one conflict, and up to twice as long after each
further one, but never longer than the second."""


class Notifier(Protocol):
    """Tells waiters what a transaction did. One that knows of other servers tells these too."""

    def notify(self, effects: Effects) -> None:
        """Called after the commit, on the event loop of the executor."""
        ...


class _Call(Generic[R]):
    """One operation on its way: what is asked, then what came of it."""

    __slots__ = (
        "begun_at",
        "done",
        "dropped",
        "error",
        "final",
        "finished",
        "operation",
        "replayed",
        "reply",
        "request",
        "rows",
        "size_bytes",
    )

    def __init__(self, operation: Operation[R], request: Request | None, final: bool) -> None:
        self.operation = operation
        self.request = None if operation.codec is None else request
        self.final = final
        """Whether an empty reply is the answer, rather than a reason to wait and look again."""
        self.done: asyncio.Future[None] | None = None
        """Set when the call is over, whatever came of it. None where nobody waits for it."""
        self.dropped = False
        """Whether its caller was cancelled before it began."""
        self.finished = False
        """Whether its transaction is committed, or it has failed."""
        self.begun_at = math.inf
        """When its first transaction began; infinite before that."""
        self.rows = self.size_bytes = 0
        """What it writes, about, once it is in a group."""
        self.reply: R | None = None
        self.replayed = False
        """Whether the reply is a recorded one."""
        self.error: Exception | None = None

    def result(self) -> R:
        """The reply, or the error raised. Once: the call does not keep the error, whose traceback knows the call."""
        if self.error is None:
            return cast(R, self.reply)
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error

    def fail(self, error: Exception) -> None:
        """A refusal goes without its traceback, and so without all that the frames in it hold."""
        self.finished = True
        self.error = error.with_traceback(None) if isinstance(error, StoreError) else error

    @property
    def signature(self) -> str:
        """What a reply is recorded for, beside the request's id."""
        assert self.request is not None
        return f"{self.operation.name} {self.request.fingerprint}"


class Executor:
    """The transactions of one store.

    Args:
        backend: Where the data is.
        policy: Which of the rules hold.
        clock: The time, which never goes back.
        memory: Limits of what is stored; None where there are none.
        notifier: Told what each transaction did.
    """

    def __init__(
        self, backend: Backend, policy: Policy, clock: Clock, memory: MemoryLimits | None, notifier: Notifier
    ) -> None:
        self._backend = backend
        self._policy = policy
        self._clock = clock
        self._memory = memory
        self._notifier = notifier
        self.observer: StoreObserver | None = None
        """Told of each transaction."""
        self._watched_since = clock.now()
        """Since when the data has been within reach of everybody."""
        self.timer = DeadlineTimer(clock, self._look_at_deadlines)
        self._ready: deque[_Call[Any]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._look_ups = LookUps(self.read)
        self._unanswered: list[Effects] = []
        """What the commits did, if they happened, whose answers were lost."""

    async def execute(self, operation: Operation[R], *, final: bool = True) -> R:
        """Run an operation, or find out what it came to when the present request was made before.

        Args:
            operation: What to do.
            final: Whether an empty reply is the answer; otherwise the caller looks again, and none is recorded.

        Raises:
            StoreError: The operation was refused. Nothing changed.
        """
        call = _Call(operation, current_request(), final)
        if self._backend.inline:
            while not await self._transact([call]):  # noqa: ASYNC110
                await asyncio.sleep(0)  # there was a great deal that was due: let others in between
        else:
            await self._gather(call)
        return call.result()

    async def read(self, select: Callable[[Snapshot], Awaitable[R]]) -> R:
        """Read from one state of the data, in which nothing is overdue.

        Where the data cannot be changed now, what is stored is read as it is.
        """
        async with self._backend.snapshot() as snapshot:
            if not await snapshot.has_due(self._due(self._clock.now())):
                return await select(snapshot)
        try:
            await self.execute(ActOnDue())
        except Exception as error:
            logger.warning("What is due was not done before a read: %r", error)
        async with self._backend.snapshot() as snapshot:
            return await select(snapshot)

    async def look_up(self, rollout_ids: Sequence[str], select: Callable[[Snapshot, Found], Awaitable[R]]) -> R:
        """Read these rollouts, and what ``select`` wants of the same state."""
        if self._backend.is_remote:
            return await self._look_ups.rollouts(rollout_ids, select)

        async def look(snapshot: Snapshot) -> R:
            return await select(snapshot, await snapshot.rollouts(rollout_ids))

        return await self.read(look)

    # --- Groups ------------------------------------------------------------------------------------------------------

    async def _gather(self, call: _Call[Any]) -> None:
        """Have the call run with all others that are ready. Cancelled before it begins, it is dropped."""
        call.rows, call.size_bytes = call.operation.rows, call.operation.size_bytes
        call.done = asyncio.get_running_loop().create_future()
        self._ready.append(call)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
            self._worker.add_done_callback(self._note_end)
        try:
            await call.done
        except asyncio.CancelledError:
            call.dropped = True
            raise

    async def _work(self) -> None:
        """Run groups until nothing is ready. Where that ends before, no call is left waiting."""
        group: list[_Call[Any]] = []
        try:
            while group := self._next_group():
                await self._run(group)
                _end(group)
        finally:
            self._end_all(group)

    def _note_end(self, worker: asyncio.Task[None]) -> None:
        """Of a worker that was cancelled before its first turn, if it has not ended by itself."""
        if self._worker is worker:
            self._end_all([])

    def _end_all(self, group: Sequence[_Call[Any]]) -> None:
        self._worker = None
        _end([*group, *self._ready])
        self._ready.clear()

    def _next_group(self) -> list[_Call[Any]]:
        """The calls that come next, as many as a transaction takes; a larger one is alone."""
        group: list[_Call[Any]] = []
        rows = size_bytes = 0
        while self._ready:
            call = self._ready[0]
            rows += call.rows
            size_bytes += call.size_bytes
            if group and (rows > GROUP_ROWS_MAX or size_bytes > GROUP_BYTES_MAX):
                break
            self._ready.popleft()
            if not call.dropped:
                group.append(call)
        return group

    async def _run(self, calls: Sequence[_Call[Any]], *, alone: bool = False) -> None:
        """Run these in one transaction, or in several where that cannot be: each has its reply or its error then.

        Args:
            calls: The operations.
            alone: Whether the transaction that they were in has failed, and each runs by itself now.
        """
        if not self._backend.inline:
            self._give_request_ids(calls)
        try:
            await self._transact_until_done(calls, alone)
        finally:
            if self._unanswered:
                await self._notify_of_unanswered()

    async def _transact_until_done(self, calls: Sequence[_Call[Any]], alone: bool) -> None:
        tries = 0
        unknown = False
        while True:
            try:
                if await self._transact(calls):
                    return None
                await asyncio.sleep(0)  # there was a great deal that was due: let others in between
            except (ConflictError, CommitUnknownError) as error:
                tries += 1
                unknown = unknown or isinstance(error, CommitUnknownError)
                if tries == TRIES_MAX:
                    logger.warning("A transaction failed %d times in a row, the last time with %r", tries, error)
                    happened = (
                        "the store does not answer; the call may have happened"
                        if unknown
                        else f"others are in the way, {tries} times in a row; try again: {error}"
                    )
                    return _fail_all(calls, StoreUnavailableError(happened))
                await _back_off(tries)
            except StoreUnavailableError as error:  # the data cannot be reached, by none of them
                return _fail_all(calls, error)
            except Exception as error:
                if alone:
                    return _fail_all(calls, error)
                for call in calls:  # only the culprit fails
                    await self._run([call], alone=True)
                return None

    async def _notify_of_unanswered(self) -> None:
        """Notify of what commits did whose answer was lost, as far as it is found to have happened."""
        unanswered, self._unanswered = self._unanswered, []
        try:
            for effects in unanswered:
                async with self._backend.snapshot() as snapshot:
                    happened = await _happened(effects, snapshot)
                self._notifier.notify(happened)
        except Exception as error:
            logger.warning("What came of a commit is still unknown: %r", error)
            self._unanswered += unanswered
            self.timer.watch(self._clock.now() + LOOK_AGAIN_SECONDS)

    def _give_request_ids(self, calls: Sequence[_Call[Any]]) -> None:
        """A commit whose answer is lost is resolved by the recorded replies, so each call has a request id."""
        for call in calls:
            if call.request is None and call.operation.codec is not None:
                call.request = Request(f"own-{new_hex(32)}", "")

    async def _transact(self, calls: Sequence[_Call[Any]]) -> bool:
        """One transaction. False if there was so much that was due that no call has run yet."""
        limits = self._memory
        full, to_the_last = await self._refusal(calls)
        # A pause is noticed before the time is read: whatever is judged at that time is judged with it in mind.
        watched_since = max(self._watched_since, self._clock.awake_since())
        now = self._clock.now()
        transaction = self._backend.transaction()
        try:
            loaded = await transaction.load(self._needs_of(calls), self._due(now))
            view = View(loaded, now, self._policy, watched_since)
            ready = await self._expire(transaction, view) if loaded.overdue or loaded.expendable else True
            if ready:
                left, missing = self._decide_each(view, calls, full, to_the_last)
                while left:
                    await transaction.load(missing)
                    left, missing = self._decide_each(view, left, full, to_the_last)
            if view.effects.runs:
                await self._readmit(transaction, view)
        except BaseException:
            await transaction.rollback()
            raise
        transitions = None if self.observer is None else transitions_of(view)
        commit_seconds = await self._commit(transaction, view)
        self._finish(calls if ready else (), view, transitions, commit_seconds)
        try:
            self._watch(view)
            self._notifier.notify(view.effects)
        except Exception:  # what is committed is committed
            logger.exception("Waiters were not notified")
        if limits is not None and self._backend.span_bytes > limits.eviction_bytes:
            await self._drop_excess(limits)
        return ready

    async def _commit(self, transaction: Transaction, view: View) -> float:
        """Commit, and tell how long it took, in seconds."""
        begun_at = time.perf_counter()
        try:
            await transaction.commit(view.changes)
        except CommitUnknownError:
            self._watch(view)
            self._unanswered.append(view.effects)
            raise
        except BaseException:
            await transaction.rollback()
            raise
        return time.perf_counter() - begun_at

    def _finish(
        self, calls: Sequence[_Call[Any]], view: View, transitions: Transitions | None, commit_seconds: float
    ) -> None:
        """These are committed."""
        for call in calls:
            call.finished = True
        if self.observer is None or transitions is None:
            return
        try:
            self.observer.transaction(_details(view, calls, transitions, commit_seconds))
        except Exception:  # what is committed is committed
            logger.exception("An observer of the store failed")

    async def _refusal(self, calls: Sequence[_Call[Any]]) -> tuple[ResourceExhaustedError | None, bool]:
        """Why nothing more can be stored, if any of the calls would; what is due to be deleted goes before that. And
        whether the reserve for attempts and workers is used up, too."""
        limits, backend = self._memory, self._backend
        full, to_the_last = None, False
        if limits is not None and backend.stored_bytes + COMING_BYTES_MAX > limits.limit_bytes:
            coming = sum(call.operation.size_bytes for call in calls)
            to_the_last = limits.is_past_reserve(backend.stored_bytes + coming)
            if (to_the_last or backend.stored_bytes > limits.limit_bytes) and await self._any_stores(
                calls, to_the_last
            ):
                full = await self._make_room(limits, coming)
                to_the_last = limits.is_past_reserve(backend.stored_bytes + coming)
        if full is None and backend.refusal() is not None and await self._any_stores(calls, False):
            await self._act_on_due("new data was refused")
            full = backend.refusal()
        return full, to_the_last

    async def _any_stores(self, calls: Sequence[_Call[Any]], to_the_last: bool) -> bool:
        """Whether any of these adds to what is stored, rather than having done so before."""
        storing = [call for call in calls if call.operation.stores or (to_the_last and call.operation.grows)]
        ids = {call.request.id for call in storing if call.request is not None}
        if not ids:
            return bool(storing)
        now = self._clock.now()
        transaction = self._backend.transaction()
        try:
            loaded = await transaction.load(Needs(replies=ids))
            return any(
                call.request is None or not self._counts(loaded.reply(call.request.id), call, now) for call in storing
            )
        finally:
            await transaction.rollback()

    def _needs_of(self, calls: Sequence[_Call[Any]]) -> Needs:
        if self._backend.inline:
            return _ON_DEMAND
        needs = Needs()
        for call in calls:
            call.operation.add_needs(needs)
            if call.request is not None:
                needs.replies.add(call.request.id)
        return needs

    def _decide_each(
        self, view: View, calls: Sequence[_Call[Any]], full: ResourceExhaustedError | None, to_the_last: bool
    ) -> tuple[list[_Call[Any]], Needs]:
        """Have each call decide.

        Returns:
            The calls that looked at something that is not loaded, and what that is.
        """
        left: list[_Call[Any]] = []
        missing = _ON_DEMAND
        for call in calls:
            try:
                self._decide(view, call, full, to_the_last)
            except NotLoadedError as error:
                missing = missing.plus(error.needs)
                left.append(call)
        return left, missing

    def _decide(self, view: View, call: _Call[Any], full: ResourceExhaustedError | None, to_the_last: bool) -> None:
        """Have a call decide on the view, and record its reply. A call that fails leaves nothing in the view.

        Raises:
            NotLoadedError: Something has to be loaded first.
        """
        call.error, call.finished, call.replayed = None, False, False  # of a transaction that met a conflict
        call.begun_at = min(call.begun_at, view.now)
        if call.request is not None:
            recorded = view.reply(call.request.id)
            if self._counts(recorded, call, view.now):
                return _replay(call, recorded)
        mark = view.mark()
        try:
            operation = call.operation
            if full is not None:
                operation = operation.when_full(full, to_the_last=to_the_last)
            call.reply = operation.decide(view)
            self._record(view, call)
        except NotLoadedError:
            view.revert(mark)
            raise
        except Exception as error:
            view.revert(mark)
            call.fail(error)
            self._record_refusal(view, call, error)

    def _counts(self, recorded: ReplyRecord | None, call: _Call[Any], now: float) -> TypeGuard[ReplyRecord]:
        """Whether a recorded reply answers the call: it is within the window, or of an earlier try of this call."""
        if recorded is None:
            return False
        age_seconds = now - recorded.recorded_at
        return age_seconds <= self._backend.replay_window_seconds or recorded.recorded_at >= call.begun_at

    def _record(self, view: View, call: _Call[Any]) -> None:
        request, codec = call.request, call.operation.codec
        if request is None or codec is None or not (call.reply or (request.repeated and call.final)):
            return  # what came to nothing may run again, unless an earlier call of the same id may still be on its way
        view.put_reply(ReplyRecord(request.id, view.now, call.signature, False, call.reply, codec.encode))

    def _record_refusal(self, view: View, call: _Call[Any], error: Exception) -> None:
        """What is refused for want of room may be granted when it is asked for again: that is no answer to keep."""
        request = call.request
        for_good = isinstance(error, StoreError) and not isinstance(error, ResourceExhaustedError)
        if request is not None and request.repeated and for_good:
            refusal = copy(cast(StoreError, error))
            view.put_reply(ReplyRecord(request.id, view.now, call.signature, True, refusal, encode_refusal))

    # --- What is due -------------------------------------------------------------------------------------------------

    def _due(self, now: float) -> Due:
        seconds = self._policy.retain_finished_seconds
        since = None if seconds is None else now - seconds
        return Due(now, DUE_BATCH, since, self._policy.retain_finished_count, self._policy.retain_for)

    async def _expire(self, transaction: Transaction, view: View) -> bool:
        """End the attempts whose deadline has passed, and delete some of what is not retained: nobody waits for all of
        it. False if there may be more attempts than one transaction should take."""
        overdue, expendable = view.loaded.overdue, view.loaded.expendable
        left: list[tuple[Callable[[View, str], object], str]] = [
            *((rules.expire, rollout_id) for rollout_id in overdue),
            *((_delete, rollout_id) for rollout_id in expendable),
        ]
        while left:
            due, left, missing = left, [], _ON_DEMAND
            for rule, rollout_id in due:
                mark = view.mark()
                try:
                    rule(view, rollout_id)
                except NotLoadedError as error:
                    view.revert(mark)
                    missing = missing.plus(error.needs)
                    left.append((rule, rollout_id))
            if left:
                await transaction.load(missing)
        return len(overdue) < DUE_BATCH

    async def _readmit(self, transaction: Transaction, view: View) -> None:
        """Let in what there is room for now, and hold what there is no room for."""
        for run in view.effects.runs:
            while True:
                mark = view.mark()
                try:
                    admission.readmit(view, run)
                    break
                except NotLoadedError as error:
                    view.revert(mark)
                    missing = error.needs
                await transaction.load(missing)

    def _watch(self, view: View) -> None:
        """See to it that somebody looks when what was changed is due."""
        earliest: float | None = None
        for rollout in view.changes.rollouts.values():
            if (
                rollout is not None
                and rollout.deadline is not None
                and (earliest is None or rollout.deadline < earliest)
            ):
                earliest = rollout.deadline
        seconds = self._policy.retain_finished_seconds
        if seconds is not None and view.effects.ended:
            earliest = view.now + seconds if earliest is None else min(earliest, view.now + seconds)
        if view.loaded.expendable:  # there may be more of it
            earliest = view.now
        if earliest is not None:
            self.timer.watch(earliest)

    def heed_others(self, done: Elsewhere) -> None:
        """What other servers did on the same data: look when it is due, should they be gone by then. What could not be
        reported while the data was out of reach is not held against anybody."""
        if done.missed:
            self._watched_since = self._clock.now()
        if done.deadline is not None:
            self.timer.watch(done.deadline)
        seconds = self._policy.retain_finished_seconds
        if seconds is not None and done.ended:
            self.timer.watch(self._clock.now() + seconds)

    async def arm_timer(self) -> None:
        """Have the running event loop look when the next rollout is due. For a task that waits: the loop on which the
        deadline was set may be gone."""
        async with self._backend.snapshot() as snapshot:
            self.timer.watch(await snapshot.next_deadline())
            seconds = self._policy.retain_finished_seconds
            if seconds is not None:
                for oldest in await snapshot.completions(0, 1):
                    self.timer.watch(oldest.time + seconds)

    async def _look_at_deadlines(self) -> None:
        try:
            await self.execute(ActOnDue())
            await self.arm_timer()
        except Exception as error:
            logger.warning("What is due was not done: %r", error)
            self.timer.watch(self._clock.now() + LOOK_AGAIN_SECONDS)

    # --- Limits of memory --------------------------------------------------------------------------------------------

    async def _make_room(self, limits: MemoryLimits, coming_bytes: int) -> ResourceExhaustedError | None:
        """Delete what is not retained, then drop spans of finished rollouts. Why nothing more can be stored, if that is
        not enough."""
        await self._act_on_due("spans were dropped")
        excess = limits.excess(self._backend.stored_bytes, coming_bytes)
        if excess > 0:
            self._note_evicted(await self._backend.evict_spans(excess, unfinished=False))
        stored = self._backend.stored_bytes
        full = limits.excess(stored, coming_bytes) > 0
        return memory_full(stored, coming_bytes, limits.limit_bytes) if full else None

    async def _act_on_due(self, before: str) -> None:
        """Delete all that is not retained, among other things. Not in a group: this may be called for one."""
        due: _Call[Any] | None = None
        while due is None or (due.error is None and await self._has_due()):
            due = _Call(ActOnDue(), None, True)
            await self._run([due], alone=True)
        if due.error is not None:
            logger.warning("What is due was not done before %s: %r", before, due.error)

    async def _has_due(self) -> bool:
        async with self._backend.snapshot() as snapshot:
            return await snapshot.has_due(self._due(self._clock.now()))

    async def _drop_excess(self, limits: MemoryLimits) -> None:
        """Of spans, which have a limit of their own: those of the rollouts that ended first go."""
        try:
            excess = self._backend.span_bytes - limits.safe_bytes
            self._note_evicted(await self._backend.evict_spans(excess, unfinished=True))
        except Exception as error:  # the calls are done; the next one tries again
            logger.warning("No spans were evicted: %r", error)

    def _note_evicted(self, rollout_ids: Sequence[str]) -> None:
        if self.observer is not None and rollout_ids:
            self.observer.spans_evicted(len(rollout_ids))


_ON_DEMAND: Final = Needs()
"""Nothing in advance."""


async def _happened(effects: Effects, snapshot: Snapshot) -> Effects:
    """Those of the effects that are found in the data."""
    ids = list(dict.fromkeys([*effects.ended, *effects.queued, *effects.deleted]))
    rows = dict(zip(ids, await snapshot.rollouts(ids), strict=True))
    stored = {one: row.rollout for one, row in rows.items() if row is not None}
    happened = Effects()
    happened.ended += (one for one in effects.ended if one in stored and stored[one].status in TERMINAL)
    happened.queued += (one for one in effects.queued if one in stored and stored[one].in_queue)
    happened.deleted += (one for one in effects.deleted if one not in stored)
    return happened


async def _back_off(conflicts: int) -> None:
    """Real time, whatever the store's clock says: the other transaction takes real time too."""
    ceiling = min(CONFLICT_BACKOFF_SECONDS * 2**conflicts, CONFLICT_BACKOFF_SECONDS_MAX)
    await asyncio.sleep(random.random() * ceiling)


def _delete(view: View, rollout_id: str) -> None:
    rules.delete(view, rollout_id, Deletion())


def _details(
    view: View, calls: Sequence[_Call[Any]], transitions: Transitions, commit_seconds: float
) -> TransactionDetails:
    changes = view.changes
    return TransactionDetails(
        operations=len(calls),
        commit_seconds=commit_seconds,
        replies_recorded=len(changes.replies),
        replies_replayed=sum(call.replayed for call in calls),
        rollouts_queued=len(view.effects.queued),
        spans=len(changes.spans),
        span_bytes=sum(size_bytes for _, size_bytes in changes.spans.values()) if changes.spans else 0,
        spans_dropped=len(view.effects.dropped),
        begun=transitions.begun,
        ended_attempts=transitions.ended_attempts,
        ended_rollouts=transitions.ended_rollouts,
    )


def _replay(call: _Call[Any], recorded: ReplyRecord) -> None:
    """Answer from the record. RequestIdReusedError if it is of another call."""
    call.replayed = True
    assert call.operation.codec is not None
    if recorded.signature != call.signature:
        used = shown_id(recorded.request_id)
        message = f"request_id {used} was used for another call already; make a new one for each call"
        call.fail(RequestIdReusedError(message, field="request_id"))
    elif recorded.refused:
        call.fail(decode_refusal(recorded.reply) if recorded.encode is None else copy(recorded.reply))
    else:
        is_bytes = recorded.encode is None
        call.reply = call.operation.codec.decode(recorded.reply) if is_bytes else recorded.reply


def _end(calls: Sequence[_Call[Any]]) -> None:
    """Let the callers go on, each with its reply or its error."""
    for call in calls:
        if not call.finished:
            call.fail(StoreUnavailableError("the store was closed before the call was done"))
        if call.done is not None and not call.done.done():
            call.done.set_result(None)


def _fail_all(calls: Sequence[_Call[Any]], error: Exception) -> None:
    for call in calls:
        call.fail(copy(error) if isinstance(error, StoreError) else error)
