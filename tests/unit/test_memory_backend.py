"""What the memory backend keeps beside the data itself stays small, however often the data changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lightning_store import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    InMemoryLightningStore,
    InvalidArgumentError,
    PromptTemplate,
    RolloutConfig,
    RolloutNotFoundError,
    loops,
)
from lightning_store.backends.base import Changes, Needs
from lightning_store.backends.memory import MemoryBackend, backend, filtering, indices, replies
from lightning_store.backends.memory.backend import MemoryData
from lightning_store.backends.records import RolloutRecord, WorkerRecord
from lightning_store.engine.idempotency import request_scope
from lightning_store.engine.replies import decode_refusal
from lightning_store.model import RolloutStatus
from lightning_store.queries import WorkerQuery
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span

pytestmark = pytest.mark.asyncio

SLACK = 10
CHANGES = 1000
PAYLOAD = {"text": "x" * 10_000}
CHANGES_WITH_PAYLOADS: dict[str, Callable[[InMemoryLightningStore, AttemptedRollout], Awaitable[object]]] = {
    "input": lambda store, _: store.enqueue_rollout(PAYLOAD),
    "metadata": lambda store, _: store.enqueue_rollout("", metadata=PAYLOAD),
    "many": lambda store, _: store.enqueue_many_rollouts([EnqueueRolloutRequest(input=PAYLOAD)]),
    "claim": lambda store, _: store.start_rollout(PAYLOAD),
    "rollout": lambda store, one: store.update_rollout(one.rollout_id, metadata=PAYLOAD),
    "attempt": lambda store, one: store.update_attempt(one.rollout_id, "latest", metadata=PAYLOAD),
    "resources": lambda store, _: store.add_resources(
        {"prompt": PromptTemplate(template=PAYLOAD["text"], engine="f-string")}
    ),
}


@pytest.fixture(autouse=True)
def little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "SLACK", SLACK)
    monkeypatch.setattr(indices, "SLACK", SLACK)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def data_of(store: InMemoryLightningStore) -> MemoryData:
    backend = store.engine._executor._backend
    assert isinstance(backend, MemoryBackend)
    return backend._data


def kept_replies(store: InMemoryLightningStore) -> list[str]:
    """The request ids whose replies are kept."""
    return list(data_of(store)._replies._by_id)


async def started(store: InMemoryLightningStore, count: int) -> list[AttemptedRollout]:
    """Rollouts whose attempts time out far in the future."""
    config = RolloutConfig(timeout_seconds=1e6)
    return [await store.start_rollout(number, config=config) for number in range(count)]


class TestHeaps:
    @pytest.mark.parametrize("direction", [-1, 1])
    async def test_deadlines_that_move_leave_little_behind(self, clock: FakeClock, direction: int):
        store = InMemoryLightningStore(clock=clock)
        rollouts = await started(store, 5)
        for number in range(CHANGES):
            rollout = rollouts[number % len(rollouts)]
            config = RolloutConfig(timeout_seconds=1e6 + direction * number)
            await store.update_rollout(rollout.rollout_id, config=config)
            assert len(data_of(store)._deadlines._heap) <= 2 * len(rollouts) + SLACK + 1

    async def test_what_is_dropped_from_the_heap_is_not_forgotten(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock)
        rollouts = await started(store, 5)
        for number in range(CHANGES):
            config = RolloutConfig(timeout_seconds=1e6 - number)
            await store.update_rollout(rollouts[number % 5].rollout_id, config=config)
        clock.advance(1e6 - CHANGES + 3.5)  # past the last three, which are the earliest
        found = [await store.get_rollout_by_id(rollout.rollout_id) for rollout in rollouts]
        assert [one.status for one in found if one is not None] == ["preparing"] * 2 + ["failed"] * 3

    async def test_heartbeats_leave_nothing_behind(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock)
        rollout = await store.start_rollout("task", config=RolloutConfig(unresponsive_seconds=60))
        for _ in range(CHANGES):
            clock.advance(1)
            await store.update_attempt(rollout.rollout_id, "latest", last_heartbeat_time=clock.now())
        assert len(data_of(store)._deadlines._heap) <= 2  # one that has come up, and the next

    async def test_rollouts_that_end_again_and_again_leave_little_behind(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, memory_capacity_bytes=10**9)
        rollouts = await started(store, 5)
        for rollout in rollouts:
            await store.add_span(make_span(rollout))
        for number in range(CHANGES):
            clock.advance(1)
            await store.update_rollout(rollouts[number % 5].rollout_id, status="succeeded")
            assert len(data_of(store)._ended) <= 2 * len(rollouts) + SLACK + 1

    async def test_eviction_still_begins_with_the_one_that_ended_first(self, clock: FakeClock):
        store = InMemoryLightningStore(
            clock=clock,
            eviction_memory_threshold=2500,
            safe_memory_threshold=2400,
            span_size_estimator=lambda _: 1000,
        )
        rollouts = await started(store, 2)
        for rollout in rollouts:
            await store.add_span(make_span(rollout))
        for number in range(CHANGES + 1):  # the last one to end again is the first of the two
            clock.advance(1)
            await store.update_rollout(rollouts[number % 2].rollout_id, status="succeeded")
        await store.add_span(make_span((await started(store, 1))[0]))
        assert len(await store.query_spans(rollouts[0].rollout_id)) == 1
        with pytest.raises(RuntimeError, match="evicted"):
            await store.query_spans(rollouts[1].rollout_id)


class TestOrder:
    """One transaction may change a rollout several times: only the last record of it is stored."""

    def record(self, rollout_id: str, status: RolloutStatus, **columns: Any) -> RolloutRecord:
        return RolloutRecord(rollout_id, "null", 0.0, None, None, None, status, RolloutConfig(), None, **columns)

    async def store(self, backend: MemoryBackend, *records: RolloutRecord) -> None:
        transaction, changes = backend.transaction(), Changes()
        await transaction.load(Needs())
        changes.rollouts.update({record.rollout_id: record for record in records})
        await transaction.commit(changes)

    async def test_what_ends_later_than_it_was_changed_completes_later(self):
        backend = MemoryBackend()
        first = self.record("first", "succeeded", completion_position=1, completion_time=1.0)
        second = self.record("second", "succeeded", completion_position=2, completion_time=1.0)
        await self.store(backend, second, first)
        async with backend.snapshot() as snapshot:
            read = [
                [row.row.rollout.rollout_id for row in await snapshot.completions(after, 10)] for after in (0, 1, 2)
            ]
        assert read == [["first", "second"], ["second"], []]

    async def test_what_is_claimed_and_put_back_at_once_is_at_the_tail(self):
        backend = MemoryBackend()
        first, second = (self.record(f"ro-{place}", "queuing", queue_position=place) for place in (1, 2))
        await self.store(backend, first, second)
        await self.store(backend, first._replace(queue_position=3))
        assert list(backend._data.queue()) == ["ro-2", "ro-1"]
        await self.store(backend, first._replace(status="preparing", queue_position=None))
        assert list(backend._data.queue()) == ["ro-2"]


class TestReplies:
    async def enqueue(self, store: InMemoryLightningStore, request_id: str, size: int = 100) -> str:
        with request_scope(request_id):
            return (await store.enqueue_rollout("x" * size)).rollout_id

    async def test_they_are_bounded_in_bytes(self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch):
        one = InMemoryLightningStore(clock=clock)
        await self.enqueue(one, "one")
        reply_bytes = data_of(one)._replies._bytes
        bytes_max = 5 * (reply_bytes + len(str(CHANGES)))  # a place in the queue that is longer to write
        monkeypatch.setattr(replies, "REPLY_BYTES_MAX", bytes_max)
        store = InMemoryLightningStore(clock=clock)
        first = [await self.enqueue(store, str(number)) for number in range(CHANGES)]
        assert 5 * reply_bytes <= data_of(store)._replies._bytes <= bytes_max
        assert kept_replies(store) == [str(number) for number in range(CHANGES - 5, CHANGES)]
        assert await self.enqueue(store, str(CHANGES - 5)) == first[CHANGES - 5]
        assert await self.enqueue(store, "0") not in first

    @pytest.mark.parametrize("change", CHANGES_WITH_PAYLOADS.values(), ids=CHANGES_WITH_PAYLOADS)
    async def test_every_payload_counts(
        self, change: Callable[[InMemoryLightningStore, AttemptedRollout], Awaitable[object]]
    ):
        store = InMemoryLightningStore()
        started = await store.start_rollout("")
        with request_scope("r"):
            await change(store, started)
        assert 10_000 < data_of(store)._replies._bytes < 11_000

    async def test_a_large_one_takes_the_place_of_many(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(replies, "REPLY_BYTES_MAX", 10_000)
        store = InMemoryLightningStore()
        for number in range(10):
            await self.enqueue(store, str(number))
        await self.enqueue(store, "large", 9_500)
        assert kept_replies(store) == ["large"]
        made = await self.enqueue(store, "larger than all", 20_000)
        assert kept_replies(store) == ["larger than all"]
        assert await self.enqueue(store, "larger than all", 20_000) == made
        await self.enqueue(store, "next")
        assert kept_replies(store) == ["next"]

    async def test_a_refusal_is_remembered_without_what_was_going_on(self):
        store = InMemoryLightningStore()
        raised = []
        for _ in range(2):
            with request_scope("r", repeated=True), pytest.raises(RolloutNotFoundError) as caught:
                await store.update_rollout("ro-no", metadata={})
            raised.append(caught.value)
        recorded = data_of(store).reply("r")
        assert recorded is not None
        assert [str(error) for error in raised] == [str(recorded.reply), str(decode_refusal(recorded.body))]
        assert raised[0] is not raised[1]

    async def test_they_are_bounded_in_number(self):
        store = InMemoryLightningStore(replay_entries_max=3)
        for number in range(CHANGES):
            await self.enqueue(store, str(number))
        assert kept_replies(store) == [str(number) for number in range(CHANGES - 3, CHANGES)]

    async def test_they_are_bounded_in_time(self, clock: FakeClock):
        store = InMemoryLightningStore(clock=clock, replay_window_seconds=60)
        old = await self.enqueue(store, "old")
        clock.advance(60)
        assert await self.enqueue(store, "old") == old
        clock.advance(1)
        await self.enqueue(store, "new")
        assert kept_replies(store) == ["new"]
        assert await self.enqueue(store, "old") != old

    async def test_the_time_of_day_may_jump(self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch):
        store = InMemoryLightningStore(clock=clock, replay_window_seconds=60)
        made = await self.enqueue(store, "r")
        for day in (-86400.0, 86400.0):
            monkeypatch.setattr(clock, "now", lambda day=day: clock._now + day)
            assert await self.enqueue(store, "r") == made
        monkeypatch.setattr(clock, "now", lambda: clock._start)
        clock.advance(61)
        assert await self.enqueue(store, "r") != made

    async def test_a_request_repeated_at_once_happens_once(self):
        store = InMemoryLightningStore()
        made = await asyncio.gather(*(self.enqueue(store, "r") for _ in range(10)))
        assert len(set(made)) == 1
        assert (await store.statistics())["total_rollouts"] == 1

    @pytest.mark.parametrize(
        ("setting", "value"),
        [("replay_window_seconds", value) for value in (-1, float("inf"), float("nan"), 1e11)]
        + [("replay_entries_max", 0)],
    )
    async def test_what_bounds_nothing_is_refused(self, setting: str, value: Any):
        with pytest.raises(InvalidArgumentError, match="; give") as caught:
            InMemoryLightningStore(**{setting: value})
        assert caught.value.details["field"] == setting


class TestManyRows:
    """Long lists are filtered and sorted in slices, with other calls in between."""

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize(("offset", "limit"), [(0, -1), (0, 7), (23, 40), (95, 10), (0, 0)])
    async def test_slices_select_what_one_piece_would(
        self, monkeypatch: pytest.MonkeyPatch, descending: bool, offset: int, limit: int
    ):
        monkeypatch.setattr(filtering, "SLICE_ROWS", 3)
        monkeypatch.setattr(filtering, "SORTED_ROWS", 4)
        monkeypatch.setattr(loops, "SLICE_SECONDS", -1.0)
        records = [WorkerRecord(f"w{number}", last_busy_time=number % 5 or None) for number in range(100)]
        for fields in ({"worker_id_contains": "1"}, {}):
            order = "desc" if descending else "asc"
            query = WorkerQuery(**fields, limit=limit, offset=offset, sort_by="last_busy_time", sort_order=order)
            expected = filtering.select(records, query)
            found = await filtering.select_in_slices(records, query)
            assert ([one.record for one in found.items], found.total) == (list(expected.items), expected.total)

    async def test_others_have_their_turn_and_the_result_is_of_one_moment(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(loops, "SLICE_SECONDS", -1.0)
        monkeypatch.setattr(filtering, "SLICE_ROWS", 10)
        store = InMemoryLightningStore()
        made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=number) for number in range(100)])
        query = asyncio.create_task(store.query_rollouts(rollout_id_contains="ro-"))
        await asyncio.sleep(0)
        assert await store.delete_rollouts([one.rollout_id for one in made[50:]])
        await store.cancel_rollouts([one.rollout_id for one in made[:50]])
        assert not query.done()
        found = await query
        assert [one.status for one in found] == ["queuing"] * 100

    async def test_a_batch_of_spans_leaves_others_their_turn(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(loops, "SLICE_SECONDS", -1.0)
        store = InMemoryLightningStore()
        started = [await store.start_rollout(number) for number in range(20)]
        await store.add_many_spans([make_span(one) for one in started])
        ids = [one.rollout_id for one in started]
        reading = asyncio.create_task(store.query_many_spans(ids))
        await asyncio.sleep(0)
        await store.cancel_rollouts(ids)
        assert await store.delete_rollouts(ids[10:]) == ids[10:]
        assert not reading.done()
        assert [len(spans) for spans in (await reading).values()] == [1] * 20
