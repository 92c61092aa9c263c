"""Fact 34: one clock reading a call, and calls that are atomic from any task, event loop and thread."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from lightning_store.model import AttemptStatus, RolloutConfig
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, claim, look, make_span, report, within_safety

T = TypeVar("T")
THREADS = 4


async def in_threads(store: LightningStore, work: Callable[[int], Coroutine[Any, Any, T]]) -> list[T]:
    """``work(number)`` on ``THREADS`` threads at once, each with an event loop of its own."""
    if not store.capabilities["thread_safe"]:
        pytest.skip("capabilities: not thread_safe")
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as threads:
        running = [loop.run_in_executor(threads, asyncio.run, work(number)) for number in range(THREADS)]
        return list(await asyncio.gather(*running))


class AtomicityContract(ContractBase):
    """Calls in parallel on one event loop."""

    @pytest.mark.parametrize("status", ["succeeded", "failed", "timeout", "unresponsive"])
    async def test_f34_one_clock_reading_a_call(self, store: LightningStore, status: AttemptStatus) -> None:
        started = await store.start_rollout("task", worker_id="w")
        await report(store, started, status)
        found = await look(store, started)
        assert found.end_time is not None
        assert found.end_time == found.attempt.end_time

    async def test_f34_a_deadline_ends_attempt_and_rollout_at_once(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task", config=RolloutConfig(timeout_seconds=10))
        clock.advance(11)
        found = await look(store, started)
        assert found.end_time is not None
        assert found.end_time == found.attempt.end_time

    async def test_f34_times_keep_full_double_precision(self) -> None:
        clock = FakeClock(start=1_700_000_000.123_456_7)
        async with self.opened(clock) as store:
            made = await store.enqueue_rollout("task", config=RolloutConfig(timeout_seconds=0.3))
            assert (made.start_time, made.config.timeout_seconds) == (1_700_000_000.123_456_7, 0.3)
            claimed = await claim(store)
            for time in (1_699_999_999.999_999_8, math.nextafter(2e9, 0), math.nextafter(4e9, math.inf), 0.0):
                await store.update_attempt(claimed.rollout_id, "latest", last_heartbeat_time=time)
                assert (await look(store, claimed)).attempt.last_heartbeat_time == time

    async def test_f34_parallel_dequeues_never_claim_twice(self, store: LightningStore) -> None:
        ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(30)]
        claims = await asyncio.gather(*(store.dequeue_rollout(worker_id=f"w{number}") for number in range(40)))
        claimed = [claim.rollout_id for claim in claims if claim is not None]
        assert sorted(claimed) == sorted(ids)
        assert {row.attempt_id for id_ in ids for row in await store.query_attempts(id_)} == {
            claim.attempt.attempt_id for claim in claims if claim is not None
        }

    async def test_f34_parallel_claims_of_many_never_claim_twice(self, store: LightningStore) -> None:
        ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(30)]
        batches = await asyncio.gather(*(store.dequeue_many_rollouts(limit=7) for _ in range(6)))
        assert sorted(claim.rollout_id for batch in batches for claim in batch) == sorted(ids)

    async def test_f34_enqueue_and_dequeue_in_parallel_lose_nothing(self, store: LightningStore) -> None:
        async def enqueue(number: int) -> str:
            return (await store.enqueue_rollout(number)).rollout_id

        ids, early = await asyncio.gather(
            asyncio.gather(*(enqueue(number) for number in range(20))), store.dequeue_many_rollouts(limit=9)
        )
        late = await store.dequeue_many_rollouts(limit=100)
        assert sorted(claim.rollout_id for claim in (*early, *late)) == sorted(ids)

    async def test_f34_parallel_changes_of_one_attempt_lose_nothing(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        attempt_id = started.attempt.attempt_id
        spans = [make_span(started, number) for number in range(1, 31)]
        await asyncio.gather(
            *(store.add_span(span) for span in spans),
            store.update_attempt(started.rollout_id, attempt_id, metadata={"a": 1}),
            store.update_attempt(started.rollout_id, attempt_id, worker_id="w"),
            store.update_rollout(started.rollout_id, metadata={"b": 2}),
        )
        assert list(await store.query_spans(started.rollout_id)) == spans
        found = await look(store, started)
        assert (found.status, found.metadata) == ("running", {"b": 2})
        assert (found.attempt.status, found.attempt.metadata, found.attempt.worker_id) == ("running", {"a": 1}, "w")

    async def test_f34_parallel_numbers_are_dense(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        pair = (started.rollout_id, started.attempt.attempt_id)
        single = [store.get_next_span_sequence_id(*pair) for _ in range(20)]
        many = [store.get_many_span_sequence_ids([pair] * 3) for _ in range(5)]
        allocated = [*await asyncio.gather(*single), *(n for batch in await asyncio.gather(*many) for n in batch)]
        assert sorted(allocated) == list(range(1, 36))

    async def test_f34_parallel_attempts_are_numbered_densely(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        started = await asyncio.gather(*(store.start_attempt(made.rollout_id) for _ in range(20)))
        assert sorted(rollout.attempt.sequence_id for rollout in started) == list(range(1, 21))
        assert len({rollout.attempt.attempt_id for rollout in started}) == 20

    async def test_f34_capabilities_say_what_holds(self, store: LightningStore) -> None:
        capabilities = store.capabilities
        assert sorted(capabilities) == ["async_safe", "otlp_traces", "thread_safe", "zero_copy"]
        assert {type(value) for value in capabilities.values()} == {bool}
        if capabilities["otlp_traces"]:
            assert store.otlp_traces_endpoint().startswith("http")
        else:
            with pytest.raises(NotImplementedError):
                store.otlp_traces_endpoint()


class ThreadsContract(ContractBase):
    """Calls from several threads, each with an event loop of its own."""

    async def test_f34_threads_never_claim_twice(self, store: LightningStore) -> None:
        ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(40)]

        async def claim_all(number: int) -> list[str]:
            claimed: list[str] = []
            while (claim := await store.dequeue_rollout(worker_id=f"w{number}")) is not None:
                claimed.append(claim.rollout_id)
            return claimed

        claimed = await in_threads(store, claim_all)
        assert sorted(id_ for batch in claimed for id_ in batch) == sorted(ids)

    async def test_f34_threads_get_dense_numbers(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")

        async def allocate(_: int) -> list[int]:
            pair = (started.rollout_id, started.attempt.attempt_id)
            return [await store.get_next_span_sequence_id(*pair) for _ in range(10)]

        allocated = await in_threads(store, allocate)
        assert sorted(number for batch in allocated for number in batch) == list(range(1, THREADS * 10 + 1))
        assert all(batch == sorted(batch) for batch in allocated)

    async def test_f34_threads_lose_no_spans(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")

        async def add(number: int) -> None:
            for index in range(10):
                await store.add_span(make_span(started, number * 10 + index))

        await in_threads(store, add)
        rows = await store.query_spans(started.rollout_id)
        assert [span.sequence_id for span in rows] == list(range(THREADS * 10))

    async def test_f34_a_change_in_one_thread_wakes_waiters_in_the_others(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        made = await store.enqueue_rollout("task")
        waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[made.rollout_id], timeout=15))
        await clock.until_waiting(clock.now() + 15)

        async def wait_or_finish(number: int) -> str:
            if number == THREADS - 1:
                return (await store.update_rollout(made.rollout_id, status="succeeded")).status
            return (await store.wait_for_rollouts(rollout_ids=[made.rollout_id]))[0].status

        assert await within_safety(in_threads(store, wait_or_finish)) == ["succeeded"] * THREADS
        assert [rollout.status for rollout in await within_safety(waiter)] == ["succeeded"]

    async def test_f34_a_deadline_outlives_the_event_loop_that_began_the_attempt(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        async def start(number: int) -> str:
            return (await store.start_rollout(number, config=RolloutConfig(timeout_seconds=10))).rollout_id

        ids = await in_threads(store, start)
        waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids, timeout=15))
        await clock.until_waiting(clock.now() + 15)
        clock.advance(11)
        assert [rollout.status for rollout in await within_safety(waiter)] == ["failed"] * THREADS
