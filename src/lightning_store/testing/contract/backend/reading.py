"""What a snapshot reads: look-ups, filtered lists, and pages of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lightning_store.backends.base import Backend
from lightning_store.backends.records import RolloutRow, WorkerRecord
from lightning_store.queries import AttemptQuery, ResourcesQuery, RolloutQuery, SpanBatchQuery, SpanQuery, WorkerQuery
from lightning_store.testing.contract.backend.base import (
    NOW,
    BackendContractBase,
    attempt_record,
    resources_record,
    rollout_record,
    running,
    span_record,
    store,
)


class SnapshotContract(BackendContractBase):
    """Look-ups by key."""

    async def test_x_read_rollouts_in_the_order_asked(self, backend: Backend) -> None:
        rollout, attempt = running("ro-1", "at-2")
        await store(backend, rollout_record("ro-2"), rollout, attempt, attempt_record("ro-1", "at-1"))
        async with backend.snapshot() as snapshot:
            assert await snapshot.rollouts(["ro-1", "no", "ro-2", "ro-1"]) == [
                (rollout, attempt),
                None,
                RolloutRow(rollout_record("ro-2"), None),
                (rollout, attempt),
            ]
            assert await snapshot.rollouts([]) == []

    async def test_x_read_resources(self, backend: Backend) -> None:
        async with backend.snapshot() as snapshot:
            assert await snapshot.resources(None) is None
        one, other = resources_record("rs-1"), resources_record("rs-2", 5)
        await store(backend, one, other, latest_resources="rs-1")
        async with backend.snapshot() as snapshot:
            assert await snapshot.resources(None) == one
            assert await snapshot.resources("rs-2") == other
            assert await snapshot.resources("no") is None

    async def test_x_read_a_worker(self, backend: Backend) -> None:
        await store(backend, WorkerRecord("w", "idle"))
        async with backend.snapshot() as snapshot:
            assert await snapshot.worker("w") == WorkerRecord("w", "idle")
            assert await snapshot.worker("no") is None

    async def test_x_read_rollouts_in_their_places(self, backend: Backend) -> None:
        records = [rollout_record(f"ro-{number}") for number in range(5)]
        await store(backend, *records[:4], sequences={"ro-1": 7})
        async with backend.snapshot() as snapshot:
            placed = await snapshot.placed_rollouts(0, 10)
        assert [(one.rollout, one.last_sequence) for one in placed] == [
            (record, 7 if record.rollout_id == "ro-1" else 0) for record in records[:4]
        ]
        places = [one.place for one in placed]
        assert places == sorted(set(places))
        assert places[0] > 0
        await store(backend, deleted=["ro-1", "ro-3"])
        await store(backend, records[4])
        async with backend.snapshot() as snapshot:
            after = await snapshot.placed_rollouts(places[0], 10)
            assert [one.rollout.rollout_id for one in after] == ["ro-2", "ro-4"]
            assert after[0].place == places[2]
            assert after[1].place > places[3]
            assert await snapshot.placed_rollouts(places[0], 1) == after[:1]
            assert await snapshot.placed_rollouts(after[1].place, 10) == []

    async def test_x_one_snapshot_after_another(self, backend: Backend) -> None:
        for number in range(3):
            async with backend.snapshot() as snapshot:
                assert (await snapshot.counts()).rollouts == number
            await store(backend, rollout_record(f"ro-{number}"))

    async def test_x_a_snapshot_ends_with_an_error_too(self, backend: Backend) -> None:
        with pytest.raises(KeyError):
            async with backend.snapshot():
                raise KeyError
        await store(backend, rollout_record("ro-1"))
        async with backend.snapshot() as snapshot:
            assert (await snapshot.counts()).rollouts == 1


class ListsContract(BackendContractBase):
    """Filters, order and pages. The same for every kind of record; tried on rollouts above all."""

    async def fill(self, backend: Backend) -> None:
        """Rollouts a to e, stored in the order of their ids backwards but for b and c, which are last."""
        await store(backend, *running("ro-e", "at-1", start_time=NOW + 4), rollout_record("RO-D", start_time=NOW + 3))
        await store(backend, rollout_record("ro_a", "queuing", start_time=NOW, mode="val"))
        await store(backend, rollout_record("ro%b", "failed", start_time=NOW, end_time=NOW + 2))
        await store(backend, rollout_record("ro-c", "failed", start_time=NOW, end_time=NOW + 1, mode="train"))

    async def found(self, backend: Backend, **arguments: Any) -> Sequence[str]:
        """The last letters of the rollouts that a query gives."""
        async with backend.snapshot() as snapshot:
            page = await snapshot.query_rollouts(RolloutQuery(**arguments))
        return "".join(row.rollout.rollout_id[-1].lower() for row in page.items)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, "edabc"),
            ({"status_in": ["failed"]}, "bc"),
            ({"status_in": ["failed", "running"]}, "ebc"),
            ({"status_in": []}, ""),
            ({"rollout_id_in": ["ro-c", "no", "ro-e"]}, "ec"),
            ({"rollout_id_in": []}, ""),
            ({"rollout_id_contains": "ro"}, "eabc"),
            ({"rollout_id_contains": "-"}, "edc"),
            ({"rollout_id_contains": "_"}, "a"),
            ({"rollout_id_contains": "%"}, "b"),
            ({"rollout_id_contains": "RO"}, "d"),
            ({"rollout_id_contains": ""}, "edabc"),
            ({"status_in": ["failed"], "rollout_id_contains": "-"}, "c"),
            ({"status_in": ["failed"], "rollout_id_contains": "-", "filter_logic": "or"}, "edbc"),
            ({"status_in": ["failed"], "rollout_id_in": ["ro_a"], "filter_logic": "or"}, "abc"),
            ({"filter_logic": "or"}, "edabc"),
        ],
    )
    async def test_x_read_rollouts_by_filters(self, backend: Backend, arguments: dict[str, Any], expected: str) -> None:
        await self.fill(backend)
        assert await self.found(backend, **arguments) == expected

    @pytest.mark.parametrize(
        ("sort_by", "ascending", "descending"),
        [
            (None, "edabc", "cbade"),
            ("start_time", "abcde", "edabc"),
            ("end_time", "cbeda", "edabc"),
            ("rollout_id", "dbcea", "aecbd"),
            ("mode", "edbca", "acedb"),
            ("status", "bcdae", "eadbc"),
        ],
    )
    async def test_x_read_rollouts_in_order(
        self, backend: Backend, sort_by: str | None, ascending: str, descending: str
    ) -> None:
        """Equal ones as they were inserted, in either direction. Times that are null are late, texts early. Texts in
        the order of their code points."""
        await self.fill(backend)
        assert await self.found(backend, sort_by=sort_by) == ascending
        assert await self.found(backend, sort_by=sort_by, sort_order="desc") == descending

    @pytest.mark.parametrize("arguments", [{}, {"sort_by": "start_time"}, {"rollout_id_contains": ""}])
    @pytest.mark.parametrize(
        ("limit", "offset"), [(-1, 0), (2, 0), (2, 2), (2, 4), (2, 5), (9, 9), (-1, 3), (0, 0), (0, 2)]
    )
    async def test_x_read_pages(self, backend: Backend, arguments: dict[str, Any], limit: int, offset: int) -> None:
        await self.fill(backend)
        everything = await self.found(backend, **arguments)
        end = None if limit < 0 else offset + limit
        assert await self.found(backend, limit=limit, offset=offset, **arguments) == everything[offset:end]
        async with backend.snapshot() as snapshot:
            page = await snapshot.query_rollouts(RolloutQuery(limit=limit, offset=offset, **arguments))
        assert page.total == 5

    async def test_x_a_page_counts_what_matches(self, backend: Backend) -> None:
        await self.fill(backend)
        async with backend.snapshot() as snapshot:
            page = await snapshot.query_rollouts(RolloutQuery(status_in=["failed"], limit=1, sort_by="rollout_id"))
        assert ([row.rollout.rollout_id for row in page.items], page.total) == (["ro%b"], 2)

    async def test_x_read_rollouts_with_their_latest_attempts(self, backend: Backend) -> None:
        rollout, attempt = running("ro-1", "at-2")
        await store(backend, rollout, attempt, attempt_record("ro-1", "at-1"), rollout_record("ro-2"))
        async with backend.snapshot() as snapshot:
            page = await snapshot.query_rollouts(RolloutQuery(sort_by="rollout_id"))
        assert list(page.items) == [(rollout, attempt), (rollout_record("ro-2"), None)]

    async def test_x_read_attempts(self, backend: Backend) -> None:
        ids = ["at-b", "at-c", "at-a"]
        attempts = [attempt_record("ro-1", one, number) for number, one in enumerate(ids)]
        await store(backend, *attempts[::-1], rollout_record("ro-1"), *running("ro-2", "at-1"))
        async with backend.snapshot() as snapshot:
            page = await snapshot.query_attempts(AttemptQuery(rollout_id="ro-1"))
            assert (list(page.items), page.total) == (attempts, 3)
            page = await snapshot.query_attempts(AttemptQuery(rollout_id="ro-1", sort_order="desc", limit=2))
            assert (list(page.items), page.total) == (attempts[:0:-1], 3)
            page = await snapshot.query_attempts(AttemptQuery(rollout_id="ro-1", sort_by="attempt_id", offset=1))
            assert list(page.items) == attempts[:2]
            page = await snapshot.query_attempts(AttemptQuery(rollout_id="no"))
            assert (list(page.items), page.total) == ([], 0)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, "1234"),
            ({"attempt_id": "at-1"}, "12"),
            ({"attempt_id": "at-2", "sort_order": "desc"}, "43"),
            ({"attempt_id": "no"}, ""),
            ({"trace_id": f"{7:032x}"}, "3"),
            ({"trace_id_contains": "07"}, "3"),
            ({"span_id": f"{2:016x}"}, "2"),
            ({"span_id_contains": "00"}, "1234"),
            ({"parent_id": f"{1:016x}"}, "2"),
            ({"parent_id_contains": "1"}, "2"),
            ({"name": "Step"}, "4"),
            ({"name_contains": "%"}, "3"),
            ({"name": "step", "parent_id_contains": "1"}, "2"),
            ({"name": "Step", "parent_id_contains": "1", "filter_logic": "or"}, "24"),
            ({"name": "Step", "attempt_id": "at-1", "filter_logic": "or"}, ""),
            ({"sort_by": None}, "2143"),
            ({"sort_by": "end_time"}, "4213"),
            ({"sort_by": "parent_id"}, "1432"),
            ({"limit": 2, "offset": 1}, "23"),
        ],
    )
    async def test_x_read_spans(self, backend: Backend, arguments: dict[str, Any], expected: str) -> None:
        first = f"{1:016x}"
        await store(
            backend,
            *running("ro-1", "at-1"),
            attempt_record("ro-1", "at-2", 2),
            span_record("ro-1", "at-1", 2, parent_id=first, end_time=NOW + 1),
            span_record("ro-1", "at-1", 1, end_time=None),
            span_record("ro-1", "at-2", 4, name="Step", end_time=NOW),
            span_record("ro-1", "at-2", 3, name="100%", trace_id=f"{7:032x}", end_time=None),
            *running("ro-2", "at-1"),
            span_record("ro-2", "at-1", 1),
        )
        async with backend.snapshot() as snapshot:
            page = await snapshot.query_spans(SpanQuery(rollout_id="ro-1", **arguments))
            assert "".join(str(one.sequence_id) for one in page.items) == expected
            nothing = await snapshot.query_spans(SpanQuery(rollout_id="no", **arguments))
            assert (list(nothing.items), nothing.total) == ([], 0)

    async def test_x_read_spans_of_a_batch(self, backend: Backend) -> None:
        await store(
            backend,
            *running("ro-1", "at-1"),
            attempt_record("ro-1", "at-2", 2),
            span_record("ro-1", "at-2", 4, name="Step"),
            span_record("ro-1", "at-1", 3),
            *(span_record("ro-1", "at-1", number) for number in (2, 1)),
            *running("ro-2", "at-1"),
            *(span_record("ro-2", "at-1", number) for number in range(10, 310)),
        )
        async with backend.snapshot() as snapshot:

            async def numbers(*attempts: tuple[str, str | None], **arguments: Any) -> list[int | None]:
                query = SpanBatchQuery(rollout_ids=[rollout_id for rollout_id, _ in attempts], **arguments)
                rows = await snapshot.query_many_spans(query, attempts)
                assert rows.total == len(rows.items)
                return [one.sequence_id for one in rows.items]

            assert await numbers(("ro-2", "at-1"), ("ro-1", "at-1")) == [*range(10, 310), 1, 2, 3]
            assert await numbers(("ro-1", None)) == [1, 2, 3, 4]
            assert await numbers(("ro-1", None), ("ro-2", None), name_in=["Step", "no"]) == [4]
            assert await numbers() == []

    async def test_x_read_lists_of_resources(self, backend: Backend) -> None:
        records = [resources_record(f"rs-{name}", version) for name, version in (("b", 3), ("a", 2), ("c", 1))]
        for record in records:
            await store(backend, record)
        async with backend.snapshot() as snapshot:
            assert list((await snapshot.query_resources(ResourcesQuery())).items) == records
            page = await snapshot.query_resources(ResourcesQuery(sort_by="version", limit=2))
            assert (list(page.items), page.total) == (records[:0:-1], 3)
            assert list((await snapshot.query_resources(ResourcesQuery(resources_id="rs-a"))).items) == [records[1]]
            page = await snapshot.query_resources(ResourcesQuery(resources_id_contains="-c"))
            assert list(page.items) == [records[2]]

    async def test_x_read_lists_of_workers(self, backend: Backend) -> None:
        records = [WorkerRecord("w-b", "idle"), WorkerRecord("w-a", "busy"), WorkerRecord("w-c")]
        for record in records:
            await store(backend, record)
        async with backend.snapshot() as snapshot:
            assert list((await snapshot.query_workers(WorkerQuery())).items) == records
            page = await snapshot.query_workers(WorkerQuery(status_in=["busy", "unknown"], sort_by="worker_id"))
            assert (list(page.items), page.total) == (records[1:], 2)
            assert list((await snapshot.query_workers(WorkerQuery(worker_id_contains="b"))).items) == records[:1]
