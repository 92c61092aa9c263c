"""Fact 23: filters, sorting and paging of every query."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import pytest_asyncio

from lightning_store.model import AttemptedRollout, Rollout, Span, Worker
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, drain, make_span, some_llm


def ids(rows: Iterable[Rollout]) -> list[str]:
    return [row.rollout_id for row in rows]


def names(rows: Iterable[Span]) -> list[str]:
    return [row.name for row in rows]


class RolloutQueriesContract(ContractBase):
    """query_rollouts and query_attempts."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def four(self, store: LightningStore, clock: FakeClock) -> list[str]:
        """The ids of four rollouts, a second apart: queuing, running, succeeded, failed."""
        made = []
        for mode in ("val", None, "train", None):
            made.append((await store.enqueue_rollout("task", mode=mode)).rollout_id)
            clock.advance(1)
        await store.update_rollout(made[1], status="running")
        await store.update_rollout(made[3], status="failed")
        clock.advance(1)
        await store.update_rollout(made[2], status="succeeded")
        return made

    async def test_f23_no_filter_matches_everything(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts()) == four
        assert ids(await store.query_rollouts(filter_logic="or")) == four

    async def test_f23_status_in(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(status_in=["failed", "queuing"])) == [four[0], four[3]]

    async def test_f23_rollout_id_in(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(rollout_id_in=[four[2], "ro-x", four[1], four[2]])) == [four[1], four[2]]

    async def test_f23_rollout_id_contains(self, store: LightningStore, four: list[str]) -> None:
        part = four[2][5:]
        assert ids(await store.query_rollouts(rollout_id_contains=part)) == [four[2]]
        assert ids(await store.query_rollouts(rollout_id_contains="ro-")) == four
        assert ids(await store.query_rollouts(rollout_id_contains="")) == four
        assert ids(await store.query_rollouts(rollout_id_contains="RO-")) == []

    async def test_f23_and_narrows(self, store: LightningStore, four: list[str]) -> None:
        rows = await store.query_rollouts(status_in=["failed", "queuing"], rollout_id_in=four[1:])
        assert ids(rows) == [four[3]]

    async def test_f23_or_widens(self, store: LightningStore, four: list[str]) -> None:
        rows = await store.query_rollouts(
            status_in=["failed"], rollout_id_in=[four[1]], rollout_id_contains=four[0], filter_logic="or"
        )
        assert ids(rows) == [four[0], four[1], four[3]]

    async def test_f23_an_empty_list_matches_nothing(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(status_in=[])) == []
        assert ids(await store.query_rollouts(rollout_id_in=[], status_in=["failed"])) == []
        assert ids(await store.query_rollouts(status_in=[], filter_logic="or")) == []
        assert ids(await store.query_rollouts(rollout_id_in=[], status_in=["failed"], filter_logic="or")) == [four[3]]

    async def test_f23_the_older_names_work(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(status=["failed"])) == [four[3]]
        assert ids(await store.query_rollouts(rollout_ids=four[:2])) == four[:2]

    async def test_f23_the_newer_names_win(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(status=["failed"], status_in=["queuing"])) == [four[0]]
        assert ids(await store.query_rollouts(rollout_ids=four[:2], rollout_id_in=four[2:])) == four[2:]
        assert ids(await store.query_rollouts(status=["failed"], status_in=[])) == []

    async def test_f23_an_unknown_status_is_refused(self, store: LightningStore) -> None:
        status: Any = "done"
        with pytest.raises(ValueError, match="done"):
            await store.query_rollouts(status_in=[status])

    async def test_f23_sorting(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(sort_by="start_time", sort_order="desc")) == four[::-1]
        assert ids(await store.query_rollouts(sort_by="rollout_id")) == sorted(four)
        by_status = await store.query_rollouts(sort_by="status")
        assert [row.status for row in by_status] == ["failed", "queuing", "running", "succeeded"]

    async def test_f23_without_sort_by_rows_stand_in_the_order_of_insertion(
        self, store: LightningStore, four: list[str]
    ) -> None:
        assert ids(await store.query_rollouts(sort_by=None, sort_order="asc")) == four

    async def test_f23_a_missing_time_sorts_last_ascending(self, store: LightningStore, four: list[str]) -> None:
        ascending = await store.query_rollouts(sort_by="end_time")
        assert ids(ascending) == [four[3], four[2], four[0], four[1]]
        descending = await store.query_rollouts(sort_by="end_time", sort_order="desc")
        assert {*ids(descending)[:2]} == {four[0], four[1]}
        assert ids(descending)[2:] == [four[2], four[3]]

    async def test_f23_a_missing_text_sorts_first_ascending(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(sort_by="mode")) == [four[1], four[3], four[2], four[0]]
        descending = await store.query_rollouts(sort_by="mode", sort_order="desc")
        assert ids(descending)[:2] == [four[0], four[2]]

    async def test_f23_ties_stand_in_the_order_of_insertion(self, store: LightningStore) -> None:
        made = [(await store.enqueue_rollout(number)).rollout_id for number in range(5)]
        assert ids(await store.query_rollouts(sort_by="start_time")) == made

    async def test_f23_paging(self, store: LightningStore, four: list[str]) -> None:
        page = await store.query_rollouts(limit=2, offset=1)
        assert (ids(page), page.limit, page.offset, page.total, len(page)) == (four[1:3], 2, 1, 4, 2)
        assert ids(page.items) == four[1:3]
        assert page[0].rollout_id == four[1]

    async def test_f23_the_whole_result(self, store: LightningStore, four: list[str]) -> None:
        page = await store.query_rollouts()
        assert (len(page), page.limit, page.offset, page.total) == (4, -1, 0, 4)

    async def test_f23_filter_then_sort_then_page(self, store: LightningStore, four: list[str]) -> None:
        page = await store.query_rollouts(
            status_in=["queuing", "running", "failed"], sort_by="start_time", sort_order="desc", limit=1, offset=1
        )
        assert (ids(page), page.total) == ([four[1]], 3)

    async def test_f23_the_ends_of_paging(self, store: LightningStore, four: list[str]) -> None:
        assert ids(await store.query_rollouts(limit=-1, offset=3)) == four[3:]
        nothing = await store.query_rollouts(limit=0)
        assert (ids(nothing), nothing.total) == ([], 4)
        past = await store.query_rollouts(offset=100)
        assert (ids(past), past.total) == ([], 4)

    @pytest.mark.parametrize("paging", [{"limit": -2}, {"offset": -1}, {"limit": -100, "offset": 1}])
    async def test_f23_negative_paging_is_refused(self, store: LightningStore, paging: dict[str, Any]) -> None:
        started = await store.start_rollout("task")
        with pytest.raises(ValueError, match=next(iter(paging))):
            await store.query_rollouts(**paging)
        with pytest.raises(ValueError, match=next(iter(paging))):
            await store.query_attempts(started.rollout_id, **paging)
        with pytest.raises(ValueError, match=next(iter(paging))):
            await store.query_spans(started.rollout_id, **paging)
        with pytest.raises(ValueError, match=next(iter(paging))):
            await store.query_resources(**paging)
        with pytest.raises(ValueError, match=next(iter(paging))):
            await store.query_workers(**paging)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"sort_by": "colour"},
            {"sort_by": ""},
            {"sort_by": "start_time", "sort_order": "up"},
            {"sort_order": "ASC"},
            {"filter_logic": "xor"},
        ],
        ids=str,
    )
    async def test_f23_unknown_sorting_and_logic_are_refused(
        self, store: LightningStore, wrong: dict[str, Any]
    ) -> None:
        started = await store.start_rollout("task")
        with pytest.raises(ValueError, match="sort|filter"):
            await store.query_rollouts(**wrong)
        with pytest.raises(ValueError, match="sort|filter"):
            await store.query_spans(started.rollout_id, **wrong)
        with pytest.raises(ValueError, match="sort|filter"):
            await store.query_resources(**wrong)
        with pytest.raises(ValueError, match="sort|filter"):
            await store.query_workers(**wrong)
        if "filter_logic" not in wrong:
            with pytest.raises(ValueError, match="sort"):
                await store.query_attempts(started.rollout_id, **wrong)

    async def test_f23_a_field_without_an_order_is_a_type_error(self, store: LightningStore) -> None:
        for field in ("input", "config"):
            with pytest.raises(TypeError, match=field):
                await store.query_rollouts(sort_by=field)
        with pytest.raises(TypeError, match="resources"):
            await store.query_resources(sort_by="resources")
        with pytest.raises(TypeError, match="heartbeat_stats"):
            await store.query_workers(sort_by="heartbeat_stats")

    async def test_f23_attempts_are_sorted_and_paged(self, store: LightningStore, clock: FakeClock) -> None:
        first = await store.start_rollout("task")
        for _ in range(3):
            clock.advance(1)
            await store.start_attempt(first.rollout_id)
        ascending = await store.query_attempts(first.rollout_id)
        assert [attempt.sequence_id for attempt in ascending] == [1, 2, 3, 4]
        page = await store.query_attempts(first.rollout_id, sort_by="start_time", sort_order="desc", limit=2, offset=1)
        assert ([attempt.sequence_id for attempt in page], page.limit, page.offset, page.total) == ([3, 2], 2, 1, 4)


class SpanQueriesContract(ContractBase):
    """query_spans."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def traced(self, store: LightningStore) -> AttemptedRollout:
        """A rollout with the spans root, call, Call and tail; another rollout has a span "root" too."""
        traced = await store.start_rollout("task")
        other = await store.start_rollout("other")
        root, child = f"{1:016x}", f"{2:016x}"
        await store.add_many_spans(
            [
                make_span(traced, 1, name="root", trace_id="a" * 32, span_id=root, start_time=3.0),
                make_span(other, 1, name="root", trace_id="a" * 32, span_id=root, start_time=3.0),
                make_span(traced, 2, name="call", trace_id="a" * 32, span_id=child, parent_id=root, start_time=2.0),
                make_span(traced, 3, name="Call", trace_id="b" * 32, parent_id=child),
                make_span(traced, 4, name="tail", trace_id="b" * 31 + "a", start_time=1.0),
            ]
        )
        return traced

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ({"trace_id": "a" * 32}, ["root", "call"]),
            ({"trace_id": "a"}, []),
            ({"trace_id_contains": "b"}, ["Call", "tail"]),
            ({"trace_id_contains": ""}, ["root", "call", "Call", "tail"]),
            ({"span_id": f"{2:016x}"}, ["call"]),
            ({"span_id_contains": "04"}, ["tail"]),
            ({"parent_id": f"{2:016x}"}, ["Call"]),
            ({"parent_id_contains": "01"}, ["call"]),
            ({"parent_id_contains": ""}, ["call", "Call"]),
            ({"name": "call"}, ["call"]),
            ({"name": ""}, []),
            ({"name_contains": "al"}, ["call", "Call"]),
            ({"name_contains": "cal"}, ["call"]),
        ],
        ids=str,
    )
    async def test_f23_one_filter(
        self, store: LightningStore, traced: AttemptedRollout, filters: dict[str, Any], expected: list[str]
    ) -> None:
        assert names(await store.query_spans(traced.rollout_id, **filters)) == expected
        assert names(await store.query_spans(traced.rollout_id, **filters, filter_logic="or")) == expected

    @pytest.mark.parametrize("name", ["a\ud800b", "a\0b"])
    async def test_f23_names_are_searched_in_a_form_that_every_database_holds(
        self, store: LightningStore, traced: AttemptedRollout, name: str
    ) -> None:
        odd = make_span(traced, 9, name=name)
        await store.add_span(odd)
        for searched in ("a\ud800b", "a\0b", "a\ufffdb"):
            assert list(await store.query_spans(traced.rollout_id, name=searched)) == [odd]
            assert list(await store.query_spans(traced.rollout_id, name_contains=searched[:2])) == [odd]

    async def test_f23_span_filters_join_by_and(self, store: LightningStore, traced: AttemptedRollout) -> None:
        rows = await store.query_spans(traced.rollout_id, name_contains="a", trace_id="a" * 32)
        assert names(rows) == ["call"]

    async def test_f23_span_filters_join_by_or(self, store: LightningStore, traced: AttemptedRollout) -> None:
        rows = await store.query_spans(traced.rollout_id, name="root", parent_id_contains="2", filter_logic="or")
        assert names(rows) == ["root", "Call"]

    async def test_f23_no_span_filter_with_or_matches_everything(
        self, store: LightningStore, traced: AttemptedRollout
    ) -> None:
        rows = await store.query_spans(traced.rollout_id, filter_logic="or")
        assert names(rows) == ["root", "call", "Call", "tail"]

    async def test_f23_the_attempt_holds_with_or_too(self, store: LightningStore, traced: AttemptedRollout) -> None:
        second = await store.start_attempt(traced.rollout_id)
        await store.add_span(make_span(second, 9, name="root"))
        rows = await store.query_spans(
            traced.rollout_id, "latest", name="root", parent_id_contains="", filter_logic="or"
        )
        assert [(row.name, row.attempt_id) for row in rows] == [("root", second.attempt.attempt_id)]

    async def test_f23_spans_sorted(self, store: LightningStore, traced: AttemptedRollout) -> None:
        by_time = await store.query_spans(traced.rollout_id, sort_by="start_time")
        assert names(by_time) == ["tail", "call", "root", "Call"]
        by_name = await store.query_spans(traced.rollout_id, sort_by="name", sort_order="desc")
        assert names(by_name) == ["tail", "root", "call", "Call"]
        by_parent = await store.query_spans(traced.rollout_id, sort_by="parent_id")
        assert names(by_parent) == ["root", "tail", "call", "Call"]
        by_number = await store.query_spans(traced.rollout_id, sort_order="desc")
        assert names(by_number) == ["tail", "Call", "call", "root"]

    async def test_f23_spans_paged(self, store: LightningStore, traced: AttemptedRollout) -> None:
        page = await store.query_spans(traced.rollout_id, name_contains="l", limit=1, offset=1)
        assert (names(page), page.limit, page.offset, page.total) == (["Call"], 1, 1, 3)

    async def test_x_spans_of_a_batch(self, store: LightningStore, clock: FakeClock) -> None:
        one, other, untraced = [await store.start_rollout(name) for name in ("one", "other", "untraced")]
        former = make_span(one, 1)
        await store.add_span(former)
        retry = await store.start_attempt(one.rollout_id)
        late, odd, act = make_span(retry, 9), make_span(retry, 5, name="a\ud800"), make_span(other, 1, name="act")
        await store.add_many_spans([late, odd, act])
        ids = [other.rollout_id, untraced.rollout_id, "ro-x", one.rollout_id, other.rollout_id]
        other_id, untraced_id, _, one_id, _ = ids

        assert list((await store.query_many_spans(ids)).items()) == [
            (other_id, [act]),
            (untraced_id, []),
            ("ro-x", []),
            (one_id, [odd, late]),
        ]
        assert (await store.query_many_spans(ids, None))[one_id] == [former, odd, late]
        named = await store.query_many_spans(ids[:4], name_in=["act", "a\ud800", "no"])
        assert named == {other_id: [act], untraced_id: [], "ro-x": [], one_id: [odd]}
        assert await store.query_many_spans([one_id], name_in=[]) == {one_id: []}
        assert await store.query_many_spans([]) == {}

    async def test_x_spans_of_a_batch_with_some_of_their_attributes(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        ids = [1, 2, 3]
        whole = make_span(
            started,
            1,
            parent_id=f"{9:016x}",
            start_time=1.0,
            end_time=2.5,
            status={"status_code": "ERROR", "description": "late"},
            attributes={"tokens": ids, "prompt": "x" * 100, "big": 10**400, "reward": {"value": 0.5}},
            events=[{"name": "event"}],
            resource={"attributes": {"host": "h"}},
            kind="CLIENT",
            more=True,
        )
        exact = make_span(started, 2, name="\ud800", attributes={"tokens": [math.nan, b"x"], "inf": math.inf})
        await store.add_many_spans([whole, exact])
        kept = {"parent_id", "start_time", "end_time", "status"}
        read = await store.query_many_spans([started.rollout_id], attributes=["tokens", "reward", "inf", "no"])
        first, second = read[started.rollout_id]
        assert first == make_span(
            started, 1, **whole.model_dump(include=kept), attributes={"tokens": ids, "reward": {"value": 0.5}}
        )
        assert second.name == "\ud800"
        assert math.isnan(second.attributes["tokens"][0])
        assert (second.attributes["tokens"][1], second.attributes["inf"]) == (b"x", math.inf)
        [[bare, _]] = (await store.query_many_spans([started.rollout_id], attributes=[])).values()
        assert bare == make_span(started, 1, **whole.model_dump(include=kept))

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            ({"rollout_ids": "ro-1"}, TypeError),
            ({"rollout_ids": [""]}, ValueError),
            ({"attempt": "at-1"}, ValueError),
            ({"name_in": "step"}, TypeError),
            ({"attributes": "reward"}, TypeError),
            ({"attributes": [1]}, TypeError),
        ],
        ids=str,
    )
    async def test_x_no_batch_of_spans(
        self, store: LightningStore, wrong: dict[str, Any], error: type[Exception]
    ) -> None:
        arguments: dict[str, Any] = {"rollout_ids": ["ro-1"]} | wrong
        with pytest.raises(error):
            await store.query_many_spans(**arguments)

    async def test_x_a_batch_of_an_unknown_rollout_is_refused_when_strict(self, strict_store: LightningStore) -> None:
        with pytest.raises(ValueError, match="ro-x"):
            await strict_store.query_many_spans(["ro-x"])


class OtherQueriesContract(ContractBase):
    """query_resources and query_workers."""

    async def test_f23_resources(self, store: LightningStore, clock: FakeClock) -> None:
        added = []
        for model in ("a", "b", "c"):
            added.append((await store.add_resources(some_llm(model))).resources_id)
            clock.advance(1)
        await store.update_resources(added[0], some_llm("d"))

        async def found(**arguments: Any) -> list[str]:
            return [row.resources_id for row in await store.query_resources(**arguments)]

        assert await found() == added
        assert await found(resources_id=added[1]) == [added[1]]
        assert await found(resources_id_contains=added[2][4:]) == [added[2]]
        assert await found(resources_id="rs-x") == []
        assert await found(resources_id="rs-x", resources_id_contains=added[2], filter_logic="or") == [added[2]]
        assert await found(sort_by="update_time") == [added[1], added[2], added[0]]
        assert await found(sort_by="version", sort_order="desc") == [added[0], added[1], added[2]]
        page = await store.query_resources(limit=1, offset=1)
        assert ([row.resources_id for row in page], page.total) == (added[1:2], 3)

    async def test_f23_workers(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task")
        await store.dequeue_rollout(worker_id="w-busy")
        clock.advance(1)
        await store.dequeue_rollout(worker_id="w-idle")
        clock.advance(1)
        await store.update_worker("other")

        async def found(**arguments: Any) -> list[str]:
            return [row.worker_id for row in await store.query_workers(**arguments)]

        assert await found() == ["w-busy", "w-idle", "other"]
        assert await found(status_in=["busy", "idle"]) == ["w-busy", "w-idle"]
        assert await found(status_in=[]) == []
        assert await found(worker_id_contains="w-") == ["w-busy", "w-idle"]
        assert await found(worker_id_contains="w-", status_in=["idle"]) == ["w-idle"]
        assert await found(worker_id_contains="other", status_in=["idle"], filter_logic="or") == ["w-idle", "other"]
        assert await found(sort_by="worker_id") == ["other", "w-busy", "w-idle"]
        assert await found(sort_by="last_dequeue_time", sort_order="asc") == ["w-busy", "w-idle", "other"]
        assert (await found(sort_by="current_rollout_id"))[-1] == "w-busy"
        page = await store.query_workers(limit=1, offset=2)
        assert ([row.worker_id for row in page], page.total) == (["other"], 3)
        assert type(page[0]) is Worker

    async def test_f23_an_unknown_worker_status_is_refused(self, store: LightningStore) -> None:
        status: Any = "asleep"
        with pytest.raises(ValueError, match="asleep"):
            await store.query_workers(status_in=[status])

    async def test_f23_a_query_is_no_claim(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        await store.query_rollouts(status_in=["queuing"])
        assert await drain(store) == [made.rollout_id]
