"""Claims of very much: over many that wait for nobody any more, in which others have their turn, or of large ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from lightning_store import EnqueueRolloutRequest, InMemoryLightningStore
from lightning_store import step as steps
from lightning_store.engine.idempotency import request_scope

pytestmark = pytest.mark.asyncio

BATCH = 10


@pytest.fixture(autouse=True)
def little_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PASSED_OVER_BATCH", BATCH)


async def set_running(store: InMemoryLightningStore, rollout_ids: Sequence[str]) -> None:
    """Rollouts that keep their places in the queue and are not to be claimed."""
    for rollout_id in rollout_ids:
        await store.update_rollout(rollout_id, status="running")


async def store_with(running: int, queued: int) -> tuple[InMemoryLightningStore, list[str]]:
    """A store in whose queue are some that are running, and after them some that wait to be claimed: their ids."""
    store = InMemoryLightningStore()
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * (running + queued))
    ids = [rollout.rollout_id for rollout in made]
    await set_running(store, ids[:running])
    return store, ids[running:]


@pytest.mark.parametrize("running", [0, BATCH - 1, BATCH, BATCH + 1, 5 * BATCH])
async def test_the_first_that_waits_is_claimed(running: int) -> None:
    store, queued = await store_with(running, 2)
    for expected in [*queued, None]:
        claimed = await store.dequeue_rollout(worker_id="w")
        assert (claimed and claimed.rollout_id) == expected


@pytest.mark.parametrize("running", [BATCH, 5 * BATCH])
async def test_a_queue_without_any_that_waits_is_empty(running: int) -> None:
    store, _ = await store_with(running, 0)
    assert await store.dequeue_rollout(worker_id="w") is None
    worker = await store.get_worker_by_id("w")
    assert worker is not None
    assert (worker.status, worker.last_dequeue_time is None) == ("idle", False)


async def test_others_have_their_turn() -> None:
    store, queued = await store_with(10 * BATCH, 1)
    claim = asyncio.create_task(store.dequeue_rollout())
    turns = 0
    while not claim.done():
        await store.get_rollout_by_id(queued[0])
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10
    assert claim.result() is not None


async def test_some_are_not_held_back_for_more() -> None:
    store, first = await store_with(0, 1)
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * (BATCH + 1))
    await set_running(store, [one.rollout_id for one in made[:BATCH]])
    assert [one.rollout_id for one in await store.dequeue_many_rollouts(limit=5)] == first
    assert [one.rollout_id for one in await store.dequeue_many_rollouts(limit=5)] == [made[BATCH].rollout_id]


@pytest.mark.parametrize("queued", [0, 1])
@pytest.mark.parametrize("max_wait", [0.0, 0.001])
async def test_a_repeated_claim_gets_the_same_reply(queued: int, max_wait: float) -> None:
    store, _ = await store_with(3 * BATCH, queued)
    replies = []
    for _ in range(2):
        with request_scope("r", repeated=True):
            replies.append(await store.dequeue_rollout(max_wait=max_wait))
    assert replies[0] == replies[1]
    assert (replies[0] is not None) == bool(queued)


async def test_a_claim_is_no_larger_than_a_message_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CLAIM_BYTES", 10_000)
    store = InMemoryLightningStore()
    await store.enqueue_many_rollouts([EnqueueRolloutRequest(input="x" * 4000)] * 5)
    assert [len(await store.dequeue_many_rollouts(limit=10)) for _ in range(3)] == [3, 2, 0]
