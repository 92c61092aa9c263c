"""The limit on all that is stored: what is dropped for it, what is refused at it, what goes on, and how bytes count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_store import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    InMemoryLightningStore,
    InvalidArgumentError,
    ResourceExhaustedError,
    SpansEvictedError,
    request_scope,
)
from lightning_store.backends.memory import MemoryBackend
from lightning_store.backends.memory.backend import MemoryData
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span, report, retrying, some_llm

LIMIT: Final = 100_000
SPAN: Final = 10_000

Call = Callable[[InMemoryLightningStore, AttemptedRollout], Awaitable[Any]]

WRITES: Final[dict[str, Call]] = {
    "enqueue_rollout": lambda store, one: store.enqueue_rollout("task"),
    "enqueue_many_rollouts": lambda store, one: store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)]),
    "start_rollout": lambda store, one: store.start_rollout("task", worker_id="other"),
    "add_span": lambda store, one: store.add_span(make_span(one, 99)),
    "add_many_spans": lambda store, one: store.add_many_spans([make_span(one, 99)]),
    "add_resources": lambda store, one: store.add_resources(some_llm()),
    "update_resources": lambda store, one: store.update_resources("rs-1", some_llm()),
    "update_rollout": lambda store, one: store.update_rollout(one.rollout_id, metadata={"a": 1}),
    "update_attempt": lambda store, one: store.update_attempt(one.rollout_id, "latest", metadata={"a": 1}),
}
OTHERS: Final[dict[str, Call]] = {
    "dequeue_rollout": lambda store, one: store.dequeue_rollout("w"),
    "start_attempt": lambda store, one: store.start_attempt(one.rollout_id),
    "update_attempt": lambda store, one: report(store, one, "succeeded"),
    "update_rollout": lambda store, one: store.update_rollout(one.rollout_id, status="running"),
    "cancel_rollouts": lambda store, one: store.cancel_rollouts([one.rollout_id]),
    "update_worker": lambda store, one: store.update_worker("w", {"cpu": 1}),
    "query_rollouts": lambda store, one: store.query_rollouts(),
    "query_spans": lambda store, one: store.query_spans(one.rollout_id),
    "get_latest_resources": lambda store, one: store.get_latest_resources(),
    "get_next_span_sequence_id": lambda store, one: store.get_next_span_sequence_id(one.rollout_id, "at"),
    "wait_for_rollouts": lambda store, one: store.wait_for_rollouts(rollout_ids=[one.rollout_id], timeout=0),
    "statistics": lambda store, one: store.statistics(),
    "delete_rollouts": lambda store, one: store.delete_rollouts(older_than=0),
}


def limited(**options: Any) -> InMemoryLightningStore:
    """A store for ten spans, each of which counts as 10,000 bytes."""
    settings: dict[str, Any] = {"memory_limit": LIMIT, "memory_capacity_bytes": 10**9, "clock": FakeClock()}
    return InMemoryLightningStore(**settings | {"span_size_estimator": lambda _: SPAN} | options)


async def filled(store: InMemoryLightningStore, spans: int = 10) -> AttemptedRollout:
    """A rollout under way, whose spans take all there is, and one that waits for a runner."""
    await store.enqueue_rollout("queued", config=retrying())
    started = await store.start_rollout("task", worker_id="w")
    await store.add_many_spans([make_span(started, number) for number in range(1, spans + 1)])
    return started


async def stored_bytes(store: InMemoryLightningStore) -> int:
    return (await store.statistics())["total_bytes"]


class TestRefusals:
    pytestmark = pytest.mark.asyncio

    @pytest.mark.parametrize("name", WRITES)
    async def test_what_would_store_more_is_refused_and_changes_nothing(self, name: str):
        store = limited()
        started = await filled(store)
        before = [await store.statistics(), *await store.query_rollouts(), *await store.query_workers()]
        with pytest.raises(ResourceExhaustedError, match="memory_limit") as caught:
            await WRITES[name](store, started)
        assert caught.value.retry_after_seconds is not None
        assert caught.value.retry_after_seconds > 0
        assert caught.value.details["limit"] == "memory_limit"
        assert [await store.statistics(), *await store.query_rollouts(), *await store.query_workers()] == before

    @pytest.mark.parametrize("name", OTHERS)
    async def test_everything_else_goes_on(self, name: str):
        store = limited()
        started = await filled(store)
        await OTHERS[name](store, started)
        assert len(await store.query_spans(started.rollout_id)) == 10

    @pytest.mark.parametrize("name", WRITES)
    async def test_after_a_deletion_there_is_room(self, name: str):
        store = limited()
        full, other = await filled(store), await store.dequeue_rollout()
        assert other is not None
        await store.delete_rollouts([full.rollout_id])
        await WRITES[name](store, other)

    async def test_a_call_whose_recorded_reply_is_too_old_to_count_is_refused_as_any_other(self):
        clock = FakeClock()
        store = limited(clock=clock)
        with request_scope("r"):
            await store.enqueue_rollout("first")
        await filled(store)
        clock.advance(store.replay_window_seconds + 1)
        before = await stored_bytes(store)
        with request_scope("r"), pytest.raises(ResourceExhaustedError):
            await store.enqueue_rollout("first")
        assert await stored_bytes(store) == before

    async def test_a_runner_can_finish_so_that_somebody_can_delete(self):
        store = limited()
        started = await filled(store)
        await report(store, started, "succeeded")
        assert len(await store.query_spans(started.rollout_id)) == 10
        assert await store.delete_rollouts(older_than=0) == [started.rollout_id]
        await store.enqueue_rollout("next")

    async def test_retention_makes_room_too(self):
        clock = FakeClock()
        store = limited(clock=clock, retain_finished_seconds=60)
        large = await store.enqueue_rollout("x" * LIMIT)
        await store.cancel_rollouts([large.rollout_id])
        with pytest.raises(ResourceExhaustedError):
            await store.enqueue_rollout("next")
        clock.advance(61)
        await store.enqueue_rollout("next")

    async def test_not_only_spans_count(self):
        store = limited()
        while await stored_bytes(store) <= LIMIT:
            await store.enqueue_rollout("x" * 1000)
        with pytest.raises(ResourceExhaustedError):
            await store.enqueue_rollout("x" * 1000)
        assert LIMIT < await stored_bytes(store) < LIMIT + 5000

    async def test_what_comes_may_not_be_much_more_than_there_is_room_for(self):
        store = limited()
        with pytest.raises(ResourceExhaustedError, match="has no room for 1[0-9]{5}") as caught:
            await store.enqueue_rollout("x" * (LIMIT * 9 // 8))
        assert caught.value.details["limit"] == "memory_limit"
        await store.enqueue_rollout("x" * LIMIT)
        assert await stored_bytes(store) > LIMIT

    async def test_attempts_and_new_workers_have_a_reserve_that_ends(self):
        store = limited()
        started = await filled(store)
        while await stored_bytes(store) <= LIMIT * 9 // 8:
            await store.start_attempt(started.rollout_id)
        with pytest.raises(ResourceExhaustedError):
            await store.start_attempt(started.rollout_id)
        assert LIMIT * 9 // 8 - 2000 < await stored_bytes(store) < LIMIT * 9 // 8 + 2000
        with pytest.raises(ResourceExhaustedError):
            await store.dequeue_rollout("another")
        with pytest.raises(ResourceExhaustedError):
            await store.update_worker("another")
        assert (await store.update_worker("w", {"cpu": 1})).heartbeat_stats is None  # alive, without its payload
        await store.update_attempt(started.rollout_id, "latest", status="succeeded")
        assert await store.delete_rollouts(older_than=0) == [started.rollout_id]
        assert (await store.update_worker("another", {"cpu": 1})).heartbeat_stats == {"cpu": 1}

    async def test_a_refusal_is_not_for_ever(self):
        """A caller that asks again with the same request id gets through as soon as there is room."""
        store = limited()
        started = await filled(store)
        for repeated in (False, True, True):
            with request_scope("r", repeated=repeated), pytest.raises(ResourceExhaustedError):
                await store.enqueue_rollout("task")
        await store.delete_rollouts([started.rollout_id])
        made = []
        for _ in range(2):
            with request_scope("r", repeated=True):
                made.append(await store.enqueue_rollout("task"))
        assert made[0] == made[1]


class TestWhatIsDropped:
    pytestmark = pytest.mark.asyncio

    async def test_spans_of_what_ended_first_go_first(self):
        store = limited()
        rollouts = [await store.start_rollout(number) for number in range(3)]
        for rollout in rollouts:
            await store.add_many_spans([make_span(rollout, number) for number in (1, 2, 3)])
        for rollout in (rollouts[1], rollouts[0]):
            store._clock.advance(1)  # type: ignore[attr-defined]
            await report(store, rollout, "succeeded")
        await store.add_span(make_span(rollouts[2], 4))
        assert await stored_bytes(store) > LIMIT
        await store.enqueue_rollout("next")
        with pytest.raises(SpansEvictedError):
            await store.query_spans(rollouts[1].rollout_id)
        assert [len(await store.query_spans(one.rollout_id)) for one in (rollouts[0], rollouts[2])] == [3, 4]

    async def test_no_more_goes_than_needed(self):
        store = limited()
        rollouts = [await store.start_rollout(number) for number in range(5)]
        for rollout in rollouts:
            await store.add_many_spans([make_span(rollout, number) for number in (1, 2)])
            await report(store, rollout, "succeeded")
        await store.enqueue_rollout("next")
        assert (await store.statistics())["total_spans"] == 8

    async def test_spans_of_what_is_under_way_stay(self):
        store = limited()
        started = await filled(store, 10)
        with pytest.raises(ResourceExhaustedError):
            await store.add_span(make_span(started, 11))
        assert len(await store.query_spans(started.rollout_id)) == 10

    async def test_nothing_goes_for_a_call_that_stores_nothing(self):
        store = limited()
        started = await filled(store)
        await report(store, started, "succeeded")
        await store.update_worker("w", {"cpu": 1})
        assert await store.dequeue_rollout("w") is not None
        assert len(await store.query_spans(started.rollout_id)) == 10

    async def test_rollouts_stay_whatever_is_dropped(self):
        store = limited()
        started = await filled(store)
        await report(store, started, "succeeded")
        await store.enqueue_rollout("next")
        found = await store.get_rollout_by_id(started.rollout_id)
        assert found is not None
        assert found.status == "succeeded"


@pytest.mark.asyncio
async def test_statistics_tell_how_close_the_limit_is():
    store = limited()
    await filled(store)
    statistics = await store.statistics()
    assert statistics["memory_limit_bytes"] == LIMIT
    assert statistics["total_span_bytes"] == 10 * SPAN
    assert LIMIT < statistics["total_bytes"] < LIMIT + 10_000


@pytest.mark.parametrize(("limit", "expected"), [(None, 900), (0.5, 500), (1.0, 1000), (7, 7), (0, 0)])
def test_the_limit_is_a_share_of_memory_or_bytes(limit: Any, expected: int):
    store = InMemoryLightningStore(memory_limit=limit, memory_capacity_bytes=1000)
    assert asyncio.run(store.statistics())["memory_limit_bytes"] == expected


@pytest.mark.parametrize("limit", [-1, -0.5, 1.5, float("nan")])
def test_what_is_no_limit_is_refused(limit: Any):
    with pytest.raises(InvalidArgumentError, match="memory_limit"):
        InMemoryLightningStore(memory_limit=limit)


# --- How bytes count -------------------------------------------------------------------------------------------------

TEXTS = st.integers(0, 300).map(lambda size: "x" * size)
ACTIONS = st.sampled_from(
    ["enqueue", "start", "claim", "retry", "span", "report", "update", "beat", "publish", "requeue", "delete", "evict"]
)


def counted(data: MemoryData) -> int:
    """All that is stored, added up."""
    entries = list(data._in_order)
    records: list[Any] = [
        *(entry.record for entry in entries),
        *(attempt for entry in entries for attempt in entry.attempts.values()),
        *(span for entry in entries for span in entry.spans.values()),
        *data._resources.values(),
        *data._workers.values(),
    ]
    return sum(record.size_bytes for record in records)


class Actor:
    """Does one thing or another to a store."""

    def __init__(self) -> None:
        self.store = InMemoryLightningStore(clock=FakeClock(), memory_capacity_bytes=10**9)
        self.number = 0

    @property
    def backend(self) -> MemoryBackend:
        backend = self.store.engine._executor._backend
        assert isinstance(backend, MemoryBackend)
        return backend

    @property
    def data(self) -> MemoryData:
        return self.backend._data

    async def act(self, action: str, choice: int, text: str) -> None:
        self.number += 1
        rollouts = await self.store.query_rollouts()
        chosen = rollouts[choice % len(rollouts)] if rollouts else None
        match action:
            case "enqueue":
                await self.store.enqueue_rollout(text, metadata={"m": text})
            case "start":
                await self.store.start_rollout(text, worker_id=f"w{choice % 3}", config=retrying(3))
            case "claim":
                await self.store.dequeue_rollout(f"w{choice % 3}")
            case "beat":
                await self.store.update_worker(f"w{choice % 3}", {"s": text})
            case "publish":
                await self.store.update_resources(f"rs-{choice % 2}", some_llm(text or "m"))
            case "evict":
                await self.backend.evict_spans(choice, unfinished=choice % 2 == 0)
            case _ if chosen is not None:
                await self.act_on(chosen, action, choice, text)

    async def act_on(self, chosen: Any, action: str, choice: int, text: str) -> None:
        if action == "delete":
            await self.store.delete_rollouts([chosen.rollout_id])
        elif action == "retry":
            await self.store.start_attempt(chosen.rollout_id)
        elif action == "requeue":
            await self.store.update_rollout(chosen.rollout_id, status="queuing")
        elif action == "update":
            await self.store.update_rollout(chosen.rollout_id, input=text, metadata={"u": text} if choice % 2 else None)
        elif isinstance(chosen, AttemptedRollout) and action == "span":
            await self.store.add_span(make_span(chosen, self.number, attributes={"a": text}))
        elif isinstance(chosen, AttemptedRollout):
            status = ("running", "failed", "succeeded")[choice % 3]
            await self.store.update_attempt(chosen.rollout_id, "latest", status=status, metadata={"r": text})


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 1000), TEXTS), max_size=40))
def test_bytes_are_those_of_what_is_stored(actions: list[tuple[str, int, str]]):
    async def scenario() -> None:
        actor = Actor()
        for action in actions:
            await actor.act(*action)
            counts = actor.data.counts()
            assert counts.bytes == counted(actor.data)
        ids = [rollout.rollout_id for rollout in await actor.store.query_rollouts()]
        assert await actor.store.delete_rollouts(ids) == ids
        counts = actor.data.counts()
        assert (counts.rollouts, counts.attempts, counts.spans, counts.span_bytes) == (0, 0, 0, 0)
        left: list[Any] = [*actor.data._resources.values(), *actor.data._workers.values()]
        assert counts.bytes == sum(record.size_bytes for record in left)

    asyncio.run(scenario())


# --- What consumers and runs keep ------------------------------------------------------------------------------------

KEPT: Final[dict[str, tuple[Any, Any]]] = {
    "admissions": (
        lambda store, _, number: store.set_admission(f"run-{number}", paused=True),
        lambda store, number: store.set_admission(f"run-{number}"),
    ),
    "marks": (
        lambda store, rollout_id, number: store.mark_consumed(f"consumer-{number}", [rollout_id]),
        lambda store, number: store.rewind_consumer(f"consumer-{number}"),
    ),
    "checkpoints": (
        lambda store, _, number: store.mark_consumed("consumer", [], checkpoint=f"step-{number}"),
        lambda store, number: store.rewind_consumer("consumer"),
    ),
}
"""What keeps one, and what forgets it."""


async def keep_until_refused(store: InMemoryLightningStore, keep: Any, rollout_id: str) -> int:
    for number in range(1_000):
        try:
            await keep(store, rollout_id, number)
        except ResourceExhaustedError:
            return number
    return -1


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.asyncio
async def test_what_is_kept_for_consumers_and_runs_counts(kind: str):
    keep, forget = KEPT[kind]
    store = limited(memory_limit=20_000)
    rollout = await store.enqueue_rollout("task")
    before = await stored_bytes(store)
    kept = await keep_until_refused(store, keep, rollout.rollout_id)
    assert kept > 10
    for number in range(kept):
        await forget(store, number)
    assert await stored_bytes(store) == before


@pytest.mark.asyncio
async def test_marks_go_with_their_rollout():
    store = limited()
    before = await stored_bytes(store)
    rollout = await store.enqueue_rollout("task")
    await store.mark_consumed("consumer", [rollout.rollout_id])
    await store.cancel_rollouts([rollout.rollout_id])
    await store.delete_rollouts([rollout.rollout_id])
    assert await stored_bytes(store) == before
