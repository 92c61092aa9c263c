"""How much is stored, and spans that are dropped when that is too much."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_store.backends.base import Backend, Changes, Loaded, Needs
from lightning_store.backends.records import WorkerRecord
from lightning_store.model import RolloutMode
from lightning_store.queries import ResourcesQuery, WorkerQuery
from lightning_store.testing.contract.backend.base import (
    NOW,
    BackendContractBase,
    attempt_record,
    changes_of,
    complete,
    enqueue,
    known,
    loading,
    look,
    requeue,
    resources_record,
    rollout_record,
    running,
    span_record,
    store,
    transact,
)


class CountsContract(BackendContractBase):
    """What is stored, in numbers."""

    async def check(self, backend: Backend, **counts: int) -> None:
        """Exactly so much is stored; bytes, if and only if anything is."""
        async with backend.snapshot() as snapshot:
            found = await snapshot.counts()
        kinds = ("rollouts", "attempts", "spans", "resources", "workers", "span_bytes")
        assert {kind: getattr(found, kind) for kind in kinds} == dict.fromkeys(kinds, 0) | counts
        assert (backend.stored_bytes, backend.span_bytes) == (found.bytes, found.span_bytes)
        assert found.bytes >= found.span_bytes
        assert bool(found.bytes) == any(counts.values())

    async def test_x_counts_of_nothing(self, backend: Backend) -> None:
        await self.check(backend)

    async def test_x_counts_follow_every_change(self, backend: Backend) -> None:
        spans = [span_record("ro-1", "at-1", number, document=b"x" * 100 * number) for number in (1, 2, 3)]
        await store(backend, *running("ro-1", "at-1"), *spans[:2])
        size = sum(one.size_bytes for one in spans[:2])
        await self.check(backend, rollouts=1, attempts=1, spans=2, span_bytes=size)
        await enqueue(backend, "ro-2", "ro-3")
        await store(backend, attempt_record("ro-1", "at-2", 2, metadata_json='"a"' * 50), spans[2])
        size += spans[2].size_bytes
        await self.check(backend, rollouts=3, attempts=2, spans=3, span_bytes=size)
        await store(backend, attempt_record("ro-1", "at-2", 2), rollout_record("ro-2", input_json='"longer by far"'))
        await complete(backend, "ro-2", "ro-1")
        await self.check(backend, rollouts=3, attempts=2, spans=3, span_bytes=size)
        await store(backend, deleted=["ro-1", "ro-3"])
        await self.check(backend, rollouts=1)
        await store(backend, deleted=["ro-2"])
        await self.check(backend)

    async def test_x_counts_of_the_queue(self, backend: Backend) -> None:
        async def look_at_queue() -> tuple[dict[str, int], float | None]:
            async with backend.snapshot() as snapshot:
                found = await snapshot.queue_counts()
            return dict(found.by_status), found.oldest_queued_time

        assert await look_at_queue() == ({}, None)
        await store(backend, *running("ro-1", "at-1"))
        assert await look_at_queue() == ({"running": 1}, None)
        await enqueue(backend, "ro-2", "ro-3")
        assert await look_at_queue() == ({"running": 1, "queuing": 2}, NOW)
        await complete(backend, "ro-2", "ro-1")
        assert await look_at_queue() == ({"queuing": 1, "succeeded": 2}, NOW)
        await store(backend, deleted=["ro-3", "ro-2"])
        assert await look_at_queue() == ({"succeeded": 1}, None)

    async def test_x_the_first_of_each_mode_in_the_queue(self, backend: Backend) -> None:
        async def look() -> dict[str | None, float]:
            async with backend.snapshot() as snapshot:
                return dict((await snapshot.queue_counts()).oldest_by_mode)

        assert await look() == {}
        modes: list[RolloutMode | None] = ["val", None, "train", "val", None]
        for number, mode in enumerate(modes):
            await enqueue(backend, f"ro-{number}", mode=mode, start_time=NOW + number)
        assert await look() == {"val": NOW, None: NOW + 1, "train": NOW + 2}
        await store(backend, deleted=["ro-0", "ro-2"])
        assert await look() == {None: NOW + 1, "val": NOW + 3}

    async def test_x_counts_by_status_and_mode(self, backend: Backend) -> None:
        async def look() -> tuple[dict[tuple[str, str | None], int], dict[str, int]]:
            async with backend.snapshot() as snapshot:
                found = await snapshot.queue_counts()
            return dict(found.rollouts), dict(found.workers)

        assert await look() == ({}, {})
        await store(backend, rollout_record("ro-1", mode="train"), rollout_record("ro-2", mode="val"))
        await store(backend, rollout_record("ro-3"), WorkerRecord("w"), WorkerRecord("v", "idle"))
        modes = {("preparing", "train"): 1, ("preparing", "val"): 1, ("preparing", None): 1}
        assert await look() == (modes, {"unknown": 1, "idle": 1})
        await store(backend, rollout_record("ro-1", "running", mode="train"), rollout_record("ro-2", mode="train"))
        await store(backend, WorkerRecord("w", "busy", heartbeat_stats_json="1"), WorkerRecord("v", "busy"))
        modes = {("running", "train"): 1, ("preparing", "train"): 1, ("preparing", None): 1}
        assert await look() == (modes, {"busy": 2})
        await store(backend, deleted=["ro-1", "ro-3"])
        assert await look() == ({("preparing", "train"): 1}, {"busy": 2})

    async def test_x_counts_of_what_stays(self, backend: Backend) -> None:
        await store(backend, WorkerRecord("w"), resources_record("rs-1"), latest_resources="rs-1")
        await self.check(backend, workers=1, resources=1)
        before = backend.stored_bytes
        longer = resources_record("rs-1", 2, resources_json='"' + "x" * 1000 + '"')
        await store(backend, WorkerRecord("w", heartbeat_stats_json='"' + "x" * 1000 + '"'), longer)
        await self.check(backend, workers=1, resources=1)
        assert backend.stored_bytes > before
        await store(backend, WorkerRecord("w"), resources_record("rs-1", 3))
        assert backend.stored_bytes == before

    async def test_x_deleted_workers_and_resources_are_gone(self, backend: Backend) -> None:
        kept = WorkerRecord("kept", heartbeat_stats_json='"kept"')
        await store(backend, kept, resources_record("rs-2"), latest_resources="rs-2")
        before = backend.stored_bytes
        gone = WorkerRecord("gone", heartbeat_stats_json='"gone"')
        await store(backend, gone, resources_record("rs-1", resources_json='"gone"'))
        changes = Changes()
        changes.workers |= {"gone": None, "unknown": None}
        changes.resources |= {"rs-1": None, "rs-no": None}
        needs = Needs(workers=set(changes.workers), resources=set(changes.resources))
        await transact(backend, needs, lambda _: changes)
        await self.check(backend, workers=1, resources=1)
        assert backend.stored_bytes == before
        async with backend.snapshot() as snapshot:
            assert await snapshot.worker("gone") is None
            assert await snapshot.worker("kept") == kept
            assert await snapshot.resources("rs-1") is None
            assert [one.worker_id for one in (await snapshot.query_workers(WorkerQuery())).items] == ["kept"]
            assert [one.resources_id for one in (await snapshot.query_resources(ResourcesQuery())).items] == ["rs-2"]

    async def test_x_counts_of_spans_that_were_evicted(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1"), *(span_record("ro-1", "at-1", number) for number in range(3)))
        await backend.evict_spans(1, unfinished=True)
        await self.check(backend, rollouts=1, attempts=1)
        await store(backend, span_record("ro-1", "at-1", 5))
        await self.check(backend, rollouts=1, attempts=1, spans=1, span_bytes=span_record("", "", 5).size_bytes)
        await store(backend, deleted=["ro-1"])
        await self.check(backend)

    async def test_x_counts_take_the_sizes_that_were_given(self, backend: Backend) -> None:
        """An estimator may have made them."""

        def decide(_: Loaded) -> Changes:
            changes = changes_of(*running("ro-1", "at-1"))
            span = span_record("ro-1", "at-1", 1)
            changes.spans["ro-1", "at-1", span.span_id] = span, 12345
            return changes

        await transact(backend, Needs(), decide)
        await self.check(backend, rollouts=1, attempts=1, spans=1, span_bytes=12345)


class EvictionContract(BackendContractBase):
    """Spans that are dropped to free memory, of whole rollouts."""

    async def with_spans(self, backend: Backend, *rollout_ids: str, spans: int = 2) -> int:
        """Rollouts with as many spans each; how many bytes these take of one rollout."""
        for rollout_id in rollout_ids:
            records = [span_record(rollout_id, "at-1", number) for number in range(spans)]
            await store(backend, *running(rollout_id, "at-1"), *records)
        return spans * span_record("", "", 0).size_bytes

    async def evicted(self, backend: Backend, rollout_ids: Iterable[str]) -> list[str]:
        return [one for one in rollout_ids if (await look(backend, one)).spans_evicted]

    async def test_x_evict_what_ended_first(self, backend: Backend) -> None:
        ids = ["ro-1", "ro-2", "ro-3", "ro-4"]
        size = await self.with_spans(backend, *ids)
        await complete(backend, "ro-2", time=NOW + 3)
        await complete(backend, "ro-4", time=NOW + 1)
        await complete(backend, "ro-3", time=NOW + 2)
        assert await backend.evict_spans(size + 1, unfinished=True) == ["ro-4", "ro-3"]
        assert await self.evicted(backend, ids) == ["ro-3", "ro-4"]
        assert backend.span_bytes == 2 * size
        assert await backend.evict_spans(1, unfinished=False) == ["ro-2"]
        assert await backend.evict_spans(1, unfinished=False) == []
        assert await self.evicted(backend, ids) == ["ro-2", "ro-3", "ro-4"]

    async def test_x_evict_unfinished_ones_last_and_oldest_first(self, backend: Backend) -> None:
        ids = ["ro-b", "ro-a", "ro-c"]
        size = await self.with_spans(backend, *ids)
        await complete(backend, "ro-c")
        assert await backend.evict_spans(3 * size, unfinished=False) == ["ro-c"]
        assert await backend.evict_spans(size, unfinished=True) == ["ro-b"]
        assert await backend.evict_spans(9 * size, unfinished=True) == ["ro-a"]
        assert backend.span_bytes == 0
        assert await backend.evict_spans(1, unfinished=True) == []

    async def test_x_evicted_spans_are_gone_and_all_else_stays(self, backend: Backend) -> None:
        await self.with_spans(backend, "ro-1", "ro-2")
        await store(backend, sequences={"ro-1": 7})
        before = await look(backend, "ro-1")
        await backend.evict_spans(1, unfinished=True)
        key = f"{0:016x}"
        needs = Needs(rollouts={"ro-1"}, spans={("ro-1", "at-1", key), ("ro-2", "at-1", key)})
        async with loading(backend, needs) as loaded:
            assert known(loaded, "ro-1") == before._replace(spans_evicted=True)
            assert loaded.attempt("ro-1", "at-1") is not None
            assert loaded.last_sequence("ro-1") == 7
            assert not loaded.has_span("ro-1", "at-1", key)
            assert loaded.has_span("ro-2", "at-1", key)

    async def test_x_evict_one_that_ended_again_at_the_same_time(self, backend: Backend) -> None:
        size = await self.with_spans(backend, "ro-2", "ro-1")
        await complete(backend, "ro-1")
        await requeue(backend, "ro-1")
        assert await backend.evict_spans(1, unfinished=False) == []
        await complete(backend, "ro-1")
        assert await backend.evict_spans(size, unfinished=True) == ["ro-1"]

    async def test_x_evict_by_the_last_end(self, backend: Backend) -> None:
        size = await self.with_spans(backend, "ro-1", "ro-2")
        await complete(backend, "ro-1", time=NOW + 1)
        await complete(backend, "ro-2", time=NOW + 2)
        await complete(backend, "ro-1", time=NOW + 3)
        assert await backend.evict_spans(size, unfinished=False) == ["ro-2"]

    async def test_x_evict_spans_that_came_after_the_end(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1"))
        await complete(backend, "ro-1")
        await store(backend, span_record("ro-1", "at-1", 1))
        assert await backend.evict_spans(1, unfinished=False) == ["ro-1"]

    async def test_x_evict_nothing_of_the_deleted(self, backend: Backend) -> None:
        size = await self.with_spans(backend, "ro-1", "ro-2")
        await complete(backend, "ro-1")
        await store(backend, deleted=["ro-1"])
        assert await backend.evict_spans(size, unfinished=False) == []
        assert await backend.evict_spans(size, unfinished=True) == ["ro-2"]
