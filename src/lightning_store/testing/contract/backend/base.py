"""What the parts of the backend suite share: a fixture that opens a backend, records, and transactions as the executor
makes them, with conflicts retried and lost answers resolved."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias

import pytest
import pytest_asyncio

from lightning_store.backends.base import (
    Backend,
    Changes,
    CommitUnknownError,
    ConflictError,
    Due,
    Loaded,
    Needs,
    Transaction,
)
from lightning_store.backends.records import (
    AttemptRecord,
    ReplyRecord,
    ResourcesRecord,
    RolloutRecord,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.lifecycle import QUEUED
from lightning_store.model import RolloutConfig, RolloutStatus
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import SuiteBase

Record: TypeAlias = RolloutRecord | AttemptRecord | SpanRecord | WorkerRecord | ResourcesRecord | ReplyRecord

NOW: Final = 1_700_000_000.0
MANY: Final = 1000
"""Rollouts of a claim that is to have all of the queue."""
MANY_BYTES: Final = 1 << 30
TRIES_MAX: Final = 100
"""Transactions in a row that may meet a conflict or lose their answer."""

_reply_ids = itertools.count()


class BackendContractBase(SuiteBase):
    """Opens the backend under test. :class:`lightning_store.testing.BackendContract` says how it is used."""

    def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        """Yield a new, empty backend; after the ``yield``, close it.

        An async generator. ``options`` may have ``replay_window_seconds``. A backend has no use for the clock unless it
        reads the time by itself.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open_backend")

    def opened(self, clock: FakeClock, **options: Any) -> AbstractAsyncContextManager[Backend]:
        """``open_backend`` as a context manager."""
        return asynccontextmanager(self.open_backend)(clock, **options)

    @pytest_asyncio.fixture(loop_scope="function")
    async def backend(self, clock: FakeClock) -> AsyncIterator[Backend]:
        async with self.opened(clock) as backend:
            yield backend


def skip_inline(backend: Backend, why: str = "reads on demand, and is asked for nothing in advance") -> None:
    """Skip the test for a backend that never suspends."""
    if backend.inline:
        pytest.skip(f"inline: this backend {why}")


# --- Making records --------------------------------------------------------------------------------------------------


def rollout_record(rollout_id: str, status: RolloutStatus = "preparing", **fields: Any) -> RolloutRecord:
    given: dict[str, Any] = {
        "input_json": '"task"',
        "start_time": NOW,
        "end_time": None,
        "mode": None,
        "resources_id": None,
        "config": RolloutConfig(),
        "metadata_json": "{}",
    }
    return RolloutRecord(rollout_id=rollout_id, status=status, **(given | fields))


def attempt_record(rollout_id: str, attempt_id: str, sequence_id: int = 1, **fields: Any) -> AttemptRecord:
    given: dict[str, Any] = {
        "start_time": NOW,
        "end_time": None,
        "status": "preparing",
        "worker_id": None,
        "last_heartbeat_time": None,
        "metadata_json": None,
    }
    return AttemptRecord(rollout_id=rollout_id, attempt_id=attempt_id, sequence_id=sequence_id, **(given | fields))


def span_record(rollout_id: str, attempt_id: str, number: int, **fields: Any) -> SpanRecord:
    """A span with ``number`` as its sequence number and in its span id."""
    given: dict[str, Any] = {
        "sequence_id": number,
        "trace_id": f"{1:032x}",
        "span_id": f"{number:016x}",
        "parent_id": None,
        "name": "step",
        "start_time": NOW,
        "end_time": NOW + 1,
        "document": b'{"name":"step"}',
    }
    return SpanRecord(rollout_id=rollout_id, attempt_id=attempt_id, **(given | fields))


def resources_record(resources_id: str, version: int = 1, **fields: Any) -> ResourcesRecord:
    given: dict[str, Any] = {"resources_json": "{}", "create_time": NOW, "update_time": NOW}
    return ResourcesRecord(resources_id=resources_id, version=version, **(given | fields))


def reply_record(request_id: str, **fields: Any) -> ReplyRecord:
    given: dict[str, Any] = {"recorded_at": 0.0, "signature": "call", "refused": False, "reply": b'{"a":1}'}
    return ReplyRecord(request_id=request_id, **(given | fields))


def running(rollout_id: str, attempt_id: str, worker_id: str | None = None, **fields: Any) -> list[Record]:
    """A running rollout with its first attempt and the worker that holds this."""
    records: list[Record] = [
        rollout_record(rollout_id, "running", latest_attempt_id=attempt_id, **fields),
        attempt_record(rollout_id, attempt_id, status="running", worker_id=worker_id),
    ]
    if worker_id is not None:
        records.append(WorkerRecord(worker_id, "busy", current_rollout_id=rollout_id, current_attempt_id=attempt_id))
    return records


# --- Transactions ----------------------------------------------------------------------------------------------------


def changes_of(
    *records: Record,
    deleted: Iterable[str] = (),
    sequences: Mapping[str, int] | None = None,
    latest_resources: str | None = None,
) -> Changes:
    """The changes that store these."""
    changes = Changes()
    for record in records:
        match record:
            case RolloutRecord():
                changes.rollouts[record.rollout_id] = record
            case AttemptRecord():
                changes.attempts[record.rollout_id, record.attempt_id] = record
            case SpanRecord():
                changes.spans[record.rollout_id, record.attempt_id, record.span_id] = record, record.size_bytes
            case WorkerRecord():
                changes.workers[record.worker_id] = record
            case ResourcesRecord():
                changes.resources[record.resources_id] = record
            case ReplyRecord():
                changes.replies[record.request_id] = record
    changes.rollouts.update(dict.fromkeys(deleted))
    changes.sequences.update(sequences or {})
    changes.latest_resources = latest_resources
    return changes


def needs_of(changes: Changes) -> Needs:
    """What has to be looked at before these changes can be decided on."""
    return Needs(
        replies=set(changes.replies),
        rollouts={*changes.rollouts, *changes.sequences},
        attempts=set(changes.attempts),
        spans=set(changes.spans),
        workers=set(changes.workers),
        holders={rollout_id for rollout_id, rollout in changes.rollouts.items() if rollout is None},
        resources=set(changes.resources),
    )


async def store(backend: Backend, *records: Record, **more: Any) -> None:
    """Store these in one transaction; the other arguments are those of ``changes_of``."""
    changes = changes_of(*records, **more)
    await transact(backend, needs_of(changes), lambda _: changes)


async def transact(backend: Backend, needs: Needs, decide: Callable[[Loaded], Changes]) -> None:
    """Load, decide and commit: again after a failure, unless the recorded reply says that it happened."""
    reply = reply_record(f"transact-{next(_reply_ids)}")
    for _ in range(TRIES_MAX):
        transaction = backend.transaction()
        try:
            loaded = await transaction.load(needs.plus(Needs(replies={reply.request_id})))
            if loaded.reply(reply.request_id) is not None:
                return
            changes = decide(loaded)
            changes.replies[reply.request_id] = reply
            await transaction.commit(changes)
            return
        except (ConflictError, CommitUnknownError, OSError):
            continue
        finally:
            await transaction.rollback()
    raise AssertionError(f"{TRIES_MAX} transactions in a row failed")


@asynccontextmanager
async def loading(backend: Backend, needs: Needs | None = None, due: Due | None = None) -> AsyncIterator[Loaded]:
    """What a transaction loads, which is then rolled back."""
    transaction, loaded = await begun(backend, needs, due)
    try:
        yield loaded
    finally:
        await transaction.rollback()


async def begun(backend: Backend, needs: Needs | None = None, due: Due | None = None) -> tuple[Transaction, Loaded]:
    """A transaction with what it has loaded."""
    for _ in range(TRIES_MAX):
        transaction = backend.transaction()
        try:
            return transaction, await transaction.load(Needs() if needs is None else needs, due)
        except ConflictError:
            await transaction.rollback()
    raise AssertionError(f"{TRIES_MAX} loads in a row met a conflict")


# --- Bringing a backend into a state, and looking at it --------------------------------------------------------------


async def enqueue(backend: Backend, *rollout_ids: str, **fields: Any) -> None:
    """Put new rollouts at the tail of the queue, in one transaction."""

    def decide(loaded: Loaded) -> Changes:
        last = loaded.last_queue_position
        places = itertools.count(last + 1)
        return changes_of(
            *(rollout_record(one, "queuing", queue_position=next(places), **fields) for one in rollout_ids)
        )

    await transact(backend, Needs(rollouts=set(rollout_ids)), decide)


async def complete(backend: Backend, *rollout_ids: str, time: float = NOW) -> None:
    """End rollouts that are stored, in this order, in one transaction."""

    def decide(loaded: Loaded) -> Changes:
        places = itertools.count(loaded.last_completion_position + 1)
        return changes_of(
            *(
                known(loaded, one)._replace(
                    status="succeeded",
                    end_time=time,
                    completion_time=time,
                    completion_position=next(places),
                    queue_position=None,
                    deadline=None,
                )
                for one in rollout_ids
            )
        )

    await transact(backend, Needs(rollouts=set(rollout_ids)), decide)


async def completed(backend: Backend, *rollout_ids: str, time: float = NOW) -> None:
    """New rollouts that end in this order."""
    await store(backend, *(rollout_record(one) for one in rollout_ids))
    await complete(backend, *rollout_ids, time=time)


async def change(backend: Backend, rollout_id: str, **columns: Any) -> None:
    """Set columns of a rollout that is stored."""
    await transact(
        backend,
        Needs(rollouts={rollout_id}),
        lambda loaded: changes_of(known(loaded, rollout_id)._replace(**columns)),
    )


async def requeue(backend: Backend, rollout_id: str) -> None:
    """Put a rollout that is stored at the tail of the queue."""
    await transact(
        backend,
        Needs(rollouts={rollout_id}),
        lambda loaded: changes_of(
            known(loaded, rollout_id)._replace(
                status="requeuing",
                queue_position=loaded.last_queue_position + 1,
                completion_position=None,
                completion_time=None,
            )
        ),
    )


def known(loaded: Loaded, rollout_id: str) -> RolloutRecord:
    record = loaded.rollout(rollout_id)
    assert record is not None, f"there is no rollout {rollout_id}"
    return record


async def look(backend: Backend, rollout_id: str) -> RolloutRecord:
    """The rollout as it is stored now."""
    async with loading(backend, Needs(rollouts={rollout_id})) as loaded:
        return known(loaded, rollout_id)


async def queue_of(backend: Backend) -> list[str]:
    """All of the queue, in order."""
    async with loading(backend, Needs(claims=MANY, claim_bytes=MANY_BYTES)) as loaded:
        queue = list(loaded.queue())
        assert loaded.queue_is_whole
        for rollout_id in queue:
            assert known(loaded, rollout_id).status in QUEUED
        return queue


async def completions_of(backend: Backend, after: int = 0, limit: int = MANY) -> list[str]:
    """The rollouts that are complete, in order."""
    async with backend.snapshot() as snapshot:
        return [one.row.rollout.rollout_id for one in await snapshot.completions(after, limit)]


async def last_completion(backend: Backend) -> int:
    async with backend.snapshot() as snapshot:
        return await snapshot.last_completion()
