"""Facts 32 and 33: eviction of spans, and statistics. A store that does not evict spans deviates from fact 32."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from lightning_store.errors import SpansEvictedError
from lightning_store.model import AttemptedRollout, Span
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, make_span, report, some_llm


async def evicted(store: LightningStore, rollouts: list[AttemptedRollout]) -> list[bool]:
    """Of which of the rollouts the spans were dropped."""
    found: list[bool] = []
    for rollout in rollouts:
        try:
            found.append(len(await store.query_spans(rollout.rollout_id)) == 0)
        except SpansEvictedError:
            found.append(True)
    return found


class MemoryContract(ContractBase):
    """Spans that count 100 bytes each, dropped past 350 bytes until 200 are left."""

    LIMITS: ClassVar[dict[str, Any]] = {
        "eviction_memory_threshold": 350,
        "safe_memory_threshold": 200,
        "span_size_estimator": lambda span: 100,
    }

    async def _with_spans(self, store: LightningStore, clock: FakeClock, count: int) -> list[AttemptedRollout]:
        """Rollouts started a second apart, with one span each."""
        rollouts: list[AttemptedRollout] = []
        for number in range(count):
            rollouts.append(await store.start_rollout(number))
            clock.advance(1)
        for rollout in rollouts:
            await store.add_span(make_span(rollout))
        return rollouts

    async def _finish(self, store: LightningStore, clock: FakeClock, *rollouts: AttemptedRollout) -> None:
        for rollout in rollouts:
            await report(store, rollout, "succeeded")
            clock.advance(1)

    async def test_f32_the_oldest_finished_rollouts_go_first(self, clock: FakeClock) -> None:
        async with self.opened(clock, **self.LIMITS) as store:
            running, first, second = await self._with_spans(store, clock, 3)
            await self._finish(store, clock, first, second)
            [newest] = await self._with_spans(store, clock, 1)
            assert await evicted(store, [running, first, second, newest]) == [False, True, True, False]
            statistics = await store.statistics()
            assert (statistics["total_span_bytes"], statistics["total_spans"]) == (200, 2)

    async def test_f32_eviction_stops_at_the_safe_threshold(self, clock: FakeClock) -> None:
        async with self.opened(clock, **(self.LIMITS | {"safe_memory_threshold": 300})) as store:
            first, second, third = await self._with_spans(store, clock, 3)
            await self._finish(store, clock, first, second, third)
            [newest] = await self._with_spans(store, clock, 1)
            assert await evicted(store, [first, second, third, newest]) == [True, False, False, False]

    async def test_f32_at_the_threshold_nothing_goes(self, clock: FakeClock) -> None:
        async with self.opened(clock, **(self.LIMITS | {"eviction_memory_threshold": 300})) as store:
            rollouts = await self._with_spans(store, clock, 3)
            assert await evicted(store, rollouts) == [False, False, False]
            assert (await store.statistics())["total_span_bytes"] == 300

    async def test_f32_unfinished_rollouts_go_when_nothing_else_is_left(self, clock: FakeClock) -> None:
        async with self.opened(clock, **self.LIMITS) as store:
            rollouts = await self._with_spans(store, clock, 3)
            await self._finish(store, clock, rollouts[2])
            rollouts += await self._with_spans(store, clock, 1)
            assert await evicted(store, rollouts) == [True, False, True, False]

    async def test_f32_evicted_spans_are_a_runtime_error(self, clock: FakeClock) -> None:
        async with self.opened(clock, **self.LIMITS) as store:
            first = (await self._with_spans(store, clock, 4))[0]
            with pytest.raises(RuntimeError, match=first.rollout_id):
                await store.query_spans(first.rollout_id)
            with pytest.raises(SpansEvictedError):
                await store.query_spans(first.rollout_id, "latest", name="step")
            with pytest.raises(SpansEvictedError):
                await store.query_many_spans([first.rollout_id])

    async def test_f32_an_evicted_rollout_goes_on(self, clock: FakeClock) -> None:
        async with self.opened(clock, **self.LIMITS) as store:
            first = (await self._with_spans(store, clock, 4))[0]
            await report(store, first, "succeeded")
            found = await store.get_rollout_by_id(first.rollout_id)
            assert found is not None
            assert found.status == "succeeded"
            assert await store.get_next_span_sequence_id(first.rollout_id, first.attempt.attempt_id) == 2

    async def test_f32_a_duplicate_counts_no_bytes(self, clock: FakeClock) -> None:
        async with self.opened(clock, **self.LIMITS) as store:
            [rollout] = await self._with_spans(store, clock, 1)
            await store.add_span(make_span(rollout))
            assert (await store.statistics())["total_span_bytes"] == 100

    async def test_f32_the_estimator_sees_the_span(self, clock: FakeClock) -> None:
        seen: list[Span] = []

        def estimate(span: Span) -> int:
            seen.append(span)
            return len(span.name)

        async with self.opened(clock, **(self.LIMITS | {"span_size_estimator": estimate})) as store:
            started = await store.start_rollout("task")
            spans = [make_span(started, 1, name="four"), make_span(started, 2, name="fifteen letters")]
            await store.add_many_spans(spans)
            assert seen == spans
            assert (await store.statistics())["total_span_bytes"] == 19

    async def test_f32_without_an_estimator_larger_spans_count_more(self, clock: FakeClock) -> None:
        async with self.opened(clock) as store:
            started = await store.start_rollout("task")
            await store.add_span(make_span(started, 1))
            small = (await store.statistics())["total_span_bytes"]
            await store.add_span(make_span(started, 2, attributes={"text": "x" * 10_000}))
            assert 0 < small < 10_000 < (await store.statistics())["total_span_bytes"] - small < 20_000

    @pytest.mark.parametrize(
        ("thresholds", "eviction_bytes", "safe_bytes"),
        [
            ({}, 7000, 5600),
            ({"eviction_memory_threshold": 0.5}, 5000, 4000),
            ({"eviction_memory_threshold": 1.0}, 10_000, 8000),
            ({"eviction_memory_threshold": 1000}, 1000, 800),
            ({"eviction_memory_threshold": 0.5, "safe_memory_threshold": 0.25}, 5000, 2500),
            ({"eviction_memory_threshold": 0.5, "safe_memory_threshold": 10}, 5000, 10),
        ],
        ids=str,
    )
    async def test_f32_thresholds_are_ratios_or_bytes(
        self, clock: FakeClock, thresholds: dict[str, Any], eviction_bytes: int, safe_bytes: int
    ) -> None:
        async with self.opened(clock, memory_capacity_bytes=10_000, **thresholds) as store:
            statistics = await store.statistics()
            assert statistics["memory_capacity_bytes"] == 10_000
            assert statistics["eviction_threshold_bytes"] == eviction_bytes
            assert statistics["safe_threshold_bytes"] == safe_bytes

    @pytest.mark.parametrize(
        "thresholds",
        [
            {"eviction_memory_threshold": 100, "safe_memory_threshold": 100},
            {"eviction_memory_threshold": 100, "safe_memory_threshold": 200},
            {"eviction_memory_threshold": 0.5, "safe_memory_threshold": 0.5},
            {"eviction_memory_threshold": 1.5},
            {"eviction_memory_threshold": -0.1},
            {"eviction_memory_threshold": -1},
        ],
        ids=str,
    )
    async def test_f32_thresholds_that_make_no_sense_are_refused(
        self, clock: FakeClock, thresholds: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match="memory_threshold"):
            async with self.opened(clock, memory_capacity_bytes=10_000, **thresholds):
                pass


class StatisticsContract(ContractBase):
    """Fact 33: statistics. Sizes in bytes are checked with fact 32."""

    async def test_f33_an_empty_store(self, store: LightningStore) -> None:
        statistics = await store.statistics()
        assert statistics["name"]
        assert _totals(statistics) == (0, 0, 0, 0, 0)

    async def test_f33_everything_is_counted(self, store: LightningStore) -> None:
        started = await store.start_rollout("task", worker_id="w1")
        await store.start_attempt(started.rollout_id, worker_id="w2")
        await store.enqueue_rollout("task")
        await store.add_many_spans([make_span(started, number) for number in (1, 2, 3, 3)])
        resources = await store.add_resources(some_llm())
        await store.update_resources(resources.resources_id, some_llm())
        assert _totals(await store.statistics()) == (2, 2, 3, 1, 2)

    async def test_f33_uptime_is_in_seconds(self, store: LightningStore, clock: FakeClock) -> None:
        before = (await store.statistics())["uptime"]
        clock.advance(12.5)
        assert (await store.statistics())["uptime"] - before == 12.5

    async def test_x_where_the_rollouts_stand(self, store: LightningStore, clock: FakeClock) -> None:
        statistics = await store.statistics()
        if "completed_last_minute" not in statistics:
            pytest.skip("this store does not count completions")
        assert statistics["rollouts_by_status"] == {}
        assert "oldest_queued_time" not in statistics
        oldest, *_ = [await store.enqueue_rollout("task") for _ in range(3)]
        clock.advance(10.0)
        await store.start_rollout("task")
        statistics = await store.statistics()
        assert statistics["rollouts_by_status"] == {"queuing": 3, "preparing": 1}
        assert statistics["oldest_queued_time"] == oldest.start_time
        assert statistics["completed_last_minute"] == 0

    async def test_x_completions_of_the_last_minute(self, store: LightningStore, clock: FakeClock) -> None:
        if "completed_last_minute" not in await store.statistics():
            pytest.skip("this store does not count completions")
        rollout_ids = []
        for _ in range(10):
            started = await store.start_rollout("task")
            await store.update_attempt(started.rollout_id, "latest", status="succeeded")
            await store.update_attempt(started.rollout_id, "latest", status="succeeded")  # the same outcome again
            rollout_ids.append(started.rollout_id)
            clock.advance(10.0)
        assert (await store.statistics())["completed_last_minute"] == 6
        await store.delete_rollouts(rollout_ids[-1:])
        assert (await store.statistics())["completed_last_minute"] == 6
        clock.advance(60.0)
        assert (await store.statistics())["completed_last_minute"] == 0

    async def test_f33_sizes_in_bytes(self, store: LightningStore) -> None:
        if "total_span_bytes" not in (statistics := await store.statistics()):
            pytest.skip("this store does not count bytes")
        assert statistics["total_span_bytes"] == 0
        if "eviction_threshold_bytes" not in statistics:
            pytest.skip("this store has no limits of memory")
        assert 0 < statistics["safe_threshold_bytes"] < statistics["eviction_threshold_bytes"]
        assert statistics["eviction_threshold_bytes"] < statistics["memory_capacity_bytes"]


def _totals(statistics: Any) -> tuple[int, ...]:
    return tuple(statistics[f"total_{what}"] for what in ("rollouts", "attempts", "spans", "resources", "workers"))
