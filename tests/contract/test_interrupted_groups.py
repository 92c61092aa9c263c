"""Calls that are cancelled, engines that are closed, backends that are unavailable, and groups that are too large."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore, RolloutConfig, StoreUnavailableError, request_scope
from lightning_store.backends.base import Changes, CommitUnknownError
from lightning_store.backends.loaded import LoadedRecords
from lightning_store.backends.memory import MemoryBackend
from lightning_store.engine.engine import Engine
from lightning_store.engine.executor import GROUP_BYTES_MAX, GROUP_ROWS_MAX, TRIES_MAX
from lightning_store.engine.operations import (
    AddSpans,
    ClaimRollouts,
    EnqueueRollouts,
    Heartbeat,
    StartRollout,
    UpdateRollout,
)
from lightning_store.engine.policy import Policy
from lightning_store.queries import RolloutQuery
from lightning_store.testing import FakeClock
from lightning_store.testing.backends import SuspendingBackend, store_on
from lightning_store.testing.contract.backend.groups import NEW, spans_of
from lightning_store.testing.contract.base import make_span, within_safety

pytestmark = pytest.mark.asyncio


class WatchedBackend(SuspendingBackend):
    """Notes what each commit writes, and fails those that it is told to."""

    def __init__(self, inner: Any = None) -> None:
        super().__init__(inner)
        self.commits: list[Changes] = []
        self.failure: Exception | None = None
        """Instead of each commit from now on."""
        self.lose_answers = 0
        """So many commits happen, and their answer is lost."""

    async def write(self, changes: Changes, loaded: LoadedRecords) -> None:
        if self.failure is not None:
            self.commits.append(changes)
            raise self.failure
        await super().write(changes, loaded)
        self.commits.append(changes)
        if self.lose_answers:
            self.lose_answers -= 1
            raise CommitUnknownError


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend() -> WatchedBackend:
    return WatchedBackend()


@pytest.fixture
def engine(backend: WatchedBackend, clock: FakeClock) -> Engine:
    return engine_on(backend, clock)


def engine_on(backend: Any, clock: FakeClock, **policy: Any) -> Engine:
    return Engine(backend, policy=Policy(**policy), clock=clock, memory=None)


async def stored(backend: WatchedBackend) -> int:
    async with backend.inner.snapshot() as snapshot:
        return (await snapshot.counts()).rollouts


# --- Cancelled, closed -----------------------------------------------------------------------------------------------


async def test_a_claim_that_is_cancelled_in_its_turn_wakes_the_next(engine: Engine, clock: FakeClock):
    for turns in range(12):
        first = asyncio.create_task(engine.claim(1, None, 1000))
        await clock.until_waiting(clock.now() + 1000)
        second = asyncio.create_task(engine.claim(1, None, 2000))
        await clock.until_waiting(clock.now() + 2000)
        await engine.execute(EnqueueRollouts([NEW]))
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        for _ in range(60):
            await asyncio.sleep(0)
        # Claimed by the second, or by the first for nobody; and never left in the queue while the second waits.
        assert (await engine.query_rollouts(RolloutQuery(status_in=["queuing"]))).total == 0
        second.cancel()
        await asyncio.wait([second])


async def test_a_claim_that_fails_in_its_turn_wakes_the_next(clock: FakeClock):
    store = InMemoryLightningStore(clock=clock)
    with request_scope("used", "something else"):
        await store.enqueue_rollout("task")
    assert await store.dequeue_rollout() is not None

    async def claims_under_a_used_id() -> Any:
        with request_scope("used", "a claim"):
            return await store.dequeue_rollout(max_wait=1000)

    with pytest.raises(ValueError, match="used for another call"):
        await claims_under_a_used_id()
    waiting = asyncio.create_task(store.dequeue_rollout(max_wait=1000))
    await clock.until_waiting(clock.now() + 1000)
    await store.enqueue_rollout("task")
    assert await within_safety(waiting) is not None


async def test_calls_of_an_engine_that_is_closed_fail_unless_they_are_committed(
    engine: Engine, backend: WatchedBackend
):
    for turns in range(12):
        before = await stored(backend)
        calls = [asyncio.ensure_future(engine.execute(EnqueueRollouts([NEW]))) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        worker = engine._executor._worker
        if worker is not None:
            worker.cancel()
        replies = await within_safety(asyncio.gather(*calls, return_exceptions=True))
        acknowledged = [reply for reply in replies if not isinstance(reply, BaseException)]
        assert all(isinstance(reply, StoreUnavailableError) for reply in replies if reply not in acknowledged)
        assert await stored(backend) - before >= len(acknowledged)


async def test_thousands_of_calls_that_are_cancelled_are_dropped(engine: Engine, backend: WatchedBackend):
    calls = [asyncio.ensure_future(engine.execute(EnqueueRollouts([NEW]))) for _ in range(5000)]
    await asyncio.sleep(0)
    for call in calls[1:]:
        call.cancel()
    await within_safety(asyncio.wait(calls))
    assert len(await engine.execute(ClaimRollouts(1000, None))) <= 1 + GROUP_ROWS_MAX


# --- Answers that are lost -------------------------------------------------------------------------------------------


async def test_a_deadline_whose_commit_lost_its_answer_is_watched(
    engine: Engine, backend: WatchedBackend, clock: FakeClock
):
    [queued] = await engine.execute(EnqueueRollouts([NEW._replace(config=RolloutConfig(timeout_seconds=10))]))
    waiting = asyncio.create_task(engine.wait({queued.rollout_id: None}, None, one_is_enough=False))
    while backend.awaits["rollouts"] == 0:  # noqa: ASYNC110
        await asyncio.sleep(0)
    backend.lose_answers = 1
    assert len(await engine.execute(ClaimRollouts(1, None))) == 1
    await clock.until_waiting(clock.now() + 10.001)
    clock.advance(11)
    assert (await within_safety(waiting))[queued.rollout_id].rollout.status == "failed"


async def test_a_lost_answer_is_found_whatever_the_replay_window(clock: FakeClock):
    backend = WatchedBackend(MemoryBackend(replay_window_seconds=0))
    engine = engine_on(backend, clock)
    backend.lose_answers = 3
    await engine.execute(EnqueueRollouts([NEW]))
    assert (await engine.counts()).rollouts == 1


async def test_an_answer_that_does_not_come_is_told_from_a_store_that_is_busy(engine: Engine, backend: WatchedBackend):
    backend.failure = CommitUnknownError()
    with pytest.raises(StoreUnavailableError, match="may have happened"):
        await engine.execute(EnqueueRollouts([NEW]))
    assert len(backend.commits) == TRIES_MAX


# --- Unavailable -----------------------------------------------------------------------------------------------------


async def test_all_calls_of_a_group_learn_at_once_that_the_backend_is_unavailable(
    engine: Engine, backend: WatchedBackend
):
    await engine.execute(EnqueueRollouts([NEW]))
    backend.commits.clear()
    backend.failure = StoreUnavailableError("the database is away")
    calls = [engine.execute(EnqueueRollouts([NEW])) for _ in range(50)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(reply) for reply in replies} == {"the database is away"}
    assert len(backend.commits) <= 2


async def test_a_store_that_suspends_belongs_to_one_event_loop():
    assert store_on(SuspendingBackend).capabilities["thread_safe"] is False
    assert InMemoryLightningStore().capabilities["thread_safe"] is True


# --- Too large -------------------------------------------------------------------------------------------------------


async def test_a_group_is_bounded_in_rows_and_bytes(engine: Engine, backend: WatchedBackend):
    queued = await engine.execute(EnqueueRollouts([NEW] * 20))
    backend.commits.clear()
    text = "x" * (GROUP_BYTES_MAX // 3)
    updates = [UpdateRollout(one.rollout_id, {"input_json": text}, None) for one in queued]
    await asyncio.gather(*map(engine.execute, updates))
    await asyncio.gather(*(engine.execute(EnqueueRollouts([NEW] * (GROUP_ROWS_MAX // 2))) for _ in range(8)))
    sizes = [sum(len(one.input_json) for one in commit.rollouts.values() if one) for commit in backend.commits]
    assert max(sizes) <= GROUP_BYTES_MAX + 100 * GROUP_ROWS_MAX
    assert max(len(commit.rollouts) for commit in backend.commits) <= GROUP_ROWS_MAX


async def test_an_operation_whose_size_cannot_be_told_fails_alone(backend: WatchedBackend, clock: FakeClock):
    engine = engine_on(backend, clock)
    claim = await engine.execute(StartRollout(NEW, None))
    span = spans_of(claim.rollout.rollout_id, claim.attempt.attempt_id, 1).spans[0][0]
    sized: Any = [(span, None)]
    other = engine.execute(EnqueueRollouts([NEW]))
    replies = await within_safety(asyncio.gather(engine.execute(AddSpans(sized)), other, return_exceptions=True))
    assert isinstance(replies[0], TypeError)
    assert len(replies[1]) == 1


async def test_a_call_that_is_repeated_on_a_full_store_drops_no_spans(clock: FakeClock):
    store = InMemoryLightningStore(clock=clock, memory_limit=60_000)
    with request_scope("first"):
        first = await store.enqueue_rollout("x" * 10_000)
    ended = await store.start_rollout("task")
    await store.add_span(make_span(ended, attributes={"text": "y" * 20_000}))
    await store.update_attempt(ended.rollout_id, ended.attempt.attempt_id, status="succeeded")
    await store.update_rollout(first.rollout_id, input="z" * 30_000)
    await store.enqueue_rollout("w" * 10_000)
    with request_scope("first", repeated=True):
        assert (await store.enqueue_rollout("x" * 10_000)).rollout_id == first.rollout_id
    assert len(await store.query_spans(ended.rollout_id)) == 1


# --- Settings that change --------------------------------------------------------------------------------------------


async def test_a_heartbeat_begins_a_lease_that_the_claim_did_not_know(clock: FakeClock):
    backend = MemoryBackend()
    before = engine_on(backend, clock)
    claim = await before.execute(StartRollout(NEW, "w"))
    after = engine_on(backend, clock, worker_timeout_seconds=5)
    await after.execute(Heartbeat("w", None))
    clock.advance(1000)
    row = await after.rollout(claim.rollout.rollout_id)
    assert row is not None
    assert row.attempt is not None
    assert row.attempt.status == "unresponsive"
