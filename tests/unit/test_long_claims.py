"""Claims of very much: from a queue that many rollouts have left without being claimed, or of large ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from lightning_store import EnqueueRolloutRequest, InMemoryLightningStore, request_scope
from lightning_store.backends.records import RolloutRecord
from lightning_store.engine import rules
from lightning_store.engine.rules import known_rollout
from lightning_store.engine.view import View

pytestmark = pytest.mark.asyncio

MANY = 50


async def set_running(store: InMemoryLightningStore, rollout_ids: Sequence[str]) -> None:
    """Rollouts that keep their places in the queue and are not to be claimed."""
    for rollout_id in rollout_ids:
        await store.update_rollout(rollout_id, status="running")


async def cancel(store: InMemoryLightningStore, rollout_ids: Sequence[str]) -> None:
    await store.cancel_rollouts(rollout_ids)


Leave = Callable[[InMemoryLightningStore, Sequence[str]], Awaitable[None]]
LEAVES: dict[str, Leave] = {"set running": set_running, "cancelled": cancel}


@pytest.fixture(params=LEAVES)
def leave(request: pytest.FixtureRequest) -> Leave:
    """Has rollouts leave the queue."""
    return LEAVES[request.param]


async def store_with(leave: Leave, left: int, queued: int) -> tuple[InMemoryLightningStore, list[str]]:
    """A store whose queue some have left, before some that wait to be claimed: the ids of these."""
    store = InMemoryLightningStore()
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * (left + queued))
    ids = [rollout.rollout_id for rollout in made]
    await leave(store, ids[:left])
    return store, ids[left:]


@pytest.mark.parametrize("left", [0, 1, MANY])
async def test_the_first_that_waits_is_claimed(leave: Leave, left: int) -> None:
    store, queued = await store_with(leave, left, 2)
    for expected in [*queued, None]:
        claimed = await store.dequeue_rollout(worker_id="w")
        assert (claimed and claimed.rollout_id) == expected


@pytest.mark.parametrize("left", [1, MANY])
async def test_a_queue_without_any_that_waits_is_empty(leave: Leave, left: int) -> None:
    store, _ = await store_with(leave, left, 0)
    assert await store.dequeue_rollout(worker_id="w") is None
    worker = await store.get_worker_by_id("w")
    assert worker is not None
    assert (worker.status, worker.last_dequeue_time is None) == ("idle", False)


async def test_those_that_have_left_are_not_looked_at(leave: Leave, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def noted(view: View, rollout_id: str) -> RolloutRecord:
        looked_at.append(rollout_id)
        return known_rollout(view, rollout_id)

    store, queued = await store_with(leave, MANY, 2)
    monkeypatch.setattr(rules, "known_rollout", noted)
    assert len(await store.dequeue_many_rollouts(limit=5)) == 2
    assert looked_at == queued


async def test_one_claim_takes_from_both_sides_of_those_that_have_left(leave: Leave) -> None:
    store, first = await store_with(leave, 0, 1)
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * (MANY + 1))
    await leave(store, [one.rollout_id for one in made[:MANY]])
    claimed = await store.dequeue_many_rollouts(limit=5)
    assert [one.rollout_id for one in claimed] == [*first, made[MANY].rollout_id]
    assert await store.dequeue_many_rollouts(limit=5) == []


async def test_many_that_are_put_back_are_claimed_in_their_old_order() -> None:
    store, queued = await store_with(set_running, MANY, 2)
    running = [one.rollout_id for one in await store.query_rollouts(status_in=["running"])]
    for rollout_id in reversed(running):
        await store.update_rollout(rollout_id, status="queuing")
    claimed = await store.dequeue_many_rollouts(limit=MANY + 5)
    assert [one.rollout_id for one in claimed] == [*running, *queued]


@pytest.mark.parametrize("queued", [0, 1])
@pytest.mark.parametrize("max_wait", [0.0, 0.001])
async def test_a_repeated_claim_gets_the_same_reply(queued: int, max_wait: float) -> None:
    store, _ = await store_with(set_running, MANY, queued)
    replies = []
    for _ in range(2):
        with request_scope("r", repeated=True):
            replies.append(await store.dequeue_rollout(max_wait=max_wait))
    assert replies[0] == replies[1]
    assert (replies[0] is not None) == bool(queued)


async def test_a_claim_is_no_larger_than_a_message_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CLAIM_BYTES", 10_000)
    store = InMemoryLightningStore()
    await store.enqueue_many_rollouts([EnqueueRolloutRequest(input="x" * 4000)] * 5)
    assert [len(await store.dequeue_many_rollouts(limit=10)) for _ in range(3)] == [3, 2, 0]
