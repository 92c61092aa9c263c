"""``delete_rollouts``: which rollouts go, and that nothing of them is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from lightning_store.engine.engine import DELETION_BATCH
from lightning_store.errors import RolloutNotFoundError
from lightning_store.model import AttemptedRollout, EnqueueRolloutRequest, RolloutConfig
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import (
    ContractBase,
    claim,
    drain,
    look,
    look_at_worker,
    make_span,
    report,
    retrying,
    some_llm,
    within_safety,
)
from lightning_store.testing.contract.feed import many_ended
from lightning_store.testing.contract.waiting import enqueued

MANY: Final = 2 * DELETION_BATCH + 10
"""More rollouts than are deleted at a stretch."""

LateCall = Callable[[LightningStore, AttemptedRollout], Awaitable[Any]]

LATE_CALLS: Final[dict[str, LateCall]] = {
    "update_attempt": lambda store, gone: report(store, gone, "succeeded"),
    "update_attempt-latest": lambda store, gone: store.update_attempt(gone.rollout_id, "latest", status="failed"),
    "add_span": lambda store, gone: store.add_span(make_span(gone)),
    "add_many_spans": lambda store, gone: store.add_many_spans([make_span(gone, 7)]),
    "get_next_span_sequence_id": lambda store, gone: store.get_next_span_sequence_id(
        gone.rollout_id, gone.attempt.attempt_id
    ),
    "update_rollout": lambda store, gone: store.update_rollout(gone.rollout_id, status="queuing"),
    "start_attempt": lambda store, gone: store.start_attempt(gone.rollout_id),
    "cancel_rollouts": lambda store, gone: store.cancel_rollouts([gone.rollout_id]),
}
"""What a runner or an algorithm may still do that has not heard of the deletion."""

STORED: Final = ("total_rollouts", "total_attempts", "total_spans", "total_span_bytes")
"""Statistics of what a deletion frees."""


async def remaining(store: LightningStore) -> list[str]:
    return [one.rollout_id for one in await store.query_rollouts()]


class DeletionContract(ContractBase):
    """Which rollouts are deleted."""

    async def ended_one_by_one(self, store: LightningStore, clock: FakeClock) -> list[str]:
        """Five rollouts: the first three ended 30, 20 and 10 seconds ago, as succeeded, failed and cancelled."""
        ids = await enqueued(store, 5)
        await store.update_rollout(ids[0], status="succeeded")
        clock.advance(10)
        await store.update_rollout(ids[1], status="failed")
        clock.advance(10)
        await store.update_rollout(ids[2], status="cancelled")
        clock.advance(10)
        return ids

    async def test_x_delete_by_id_in_the_order_asked(self, store: LightningStore) -> None:
        ids = await enqueued(store, 4)
        await store.update_rollout(ids[3], status="succeeded")
        assert await store.delete_rollouts([ids[3], "ro-x", ids[0], ids[3]]) == [ids[3], ids[0]]
        assert await remaining(store) == ids[1:3]
        assert await store.delete_rollouts([ids[3], ids[0]]) == []

    async def test_x_delete_no_ids(self, store: LightningStore) -> None:
        ids = await enqueued(store, 1)
        assert await store.delete_rollouts([]) == []
        assert await store.delete_rollouts(["ro-x"]) == []
        assert await remaining(store) == ids

    async def test_x_delete_unknown_ids_is_no_error_when_strict(self, strict_store: LightningStore) -> None:
        [known] = await enqueued(strict_store, 1)
        assert await strict_store.delete_rollouts(["ro-x", known]) == [known]

    async def test_x_delete_by_age_in_the_order_of_their_end(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await self.ended_one_by_one(store, clock)
        assert await store.delete_rollouts(older_than=31) == []
        assert await store.delete_rollouts(older_than=20.5) == [ids[0]]
        assert await store.delete_rollouts(older_than=5) == ids[1:3]
        assert await remaining(store) == ids[3:]

    async def test_x_delete_whatever_has_ended(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await self.ended_one_by_one(store, clock)
        await store.update_rollout(ids[3], status="succeeded")
        assert await store.delete_rollouts(older_than=0) == ids[:4]
        assert await remaining(store) == ids[4:]

    @pytest.mark.parametrize("older_than", [1e6, 1e12, float("inf"), 10**400])
    async def test_x_delete_nothing_that_is_younger(
        self, store: LightningStore, clock: FakeClock, older_than: float
    ) -> None:
        ids = await self.ended_one_by_one(store, clock)
        assert await store.delete_rollouts(older_than=older_than) == []
        assert await remaining(store) == ids

    async def test_x_delete_age_counts_from_the_last_end(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await self.ended_one_by_one(store, clock)
        await store.update_rollout(ids[0], status="queuing")
        await store.update_rollout(ids[0], status="succeeded")
        await store.update_rollout(ids[1], status="requeuing")
        clock.advance(10)
        assert await store.delete_rollouts(older_than=15) == [ids[2]]
        clock.advance(10)
        assert await store.delete_rollouts(older_than=15) == [ids[0]]

    async def test_x_delete_by_status(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await self.ended_one_by_one(store, clock)
        assert await store.delete_rollouts(older_than=5, status_in=["failed", "queuing"]) == [ids[1]]
        assert await store.delete_rollouts(ids, status_in=["succeeded", "queuing"]) == [ids[0], *ids[3:]]
        assert await store.delete_rollouts(ids, status_in=[]) == []
        assert await store.delete_rollouts(older_than=0, status_in=[]) == []
        assert await remaining(store) == [ids[2]]

    async def test_x_delete_what_everything_holds_for(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await self.ended_one_by_one(store, clock)
        assert await store.delete_rollouts(ids[1:], older_than=15) == [ids[1]]
        assert await store.delete_rollouts([ids[2], ids[0]], older_than=5, status_in=["succeeded"]) == [ids[0]]
        assert await store.delete_rollouts(ids[3:], older_than=0) == []
        assert await remaining(store) == ids[2:]

    @pytest.mark.parametrize(
        ("selection", "named"),
        [
            ({}, "rollout_ids nor older_than"),
            ({"status_in": ["failed"]}, "rollout_ids nor older_than"),
            ({"older_than": -1}, "older_than"),
            ({"older_than": float("nan")}, "older_than"),
            ({"rollout_ids": [""]}, "rollout_ids"),
            ({"rollout_ids": ["\ud800"]}, "rollout_ids"),
            ({"older_than": 0, "status_in": ["done"]}, "status_in"),
            ({"older_than": 0, "status_in": [None]}, "status_in"),
            ({"older_than": 0, "status_in": [["failed"]]}, "status_in"),
        ],
    )
    async def test_x_delete_refuses_what_is_not_legal(
        self, store: LightningStore, selection: dict[str, Any], named: str
    ) -> None:
        [one] = await many_ended(store, 1)
        with pytest.raises(ValueError, match=named):
            await store.delete_rollouts(**selection)
        assert await remaining(store) == [one]

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("rollout_ids", "ro-x"),
            ("rollout_ids", 5),
            ("rollout_ids", [5]),
            ("older_than", "1h"),
            ("older_than", [1]),
            ("status_in", 5),
            ("status_in", "failed"),
        ],
    )
    async def test_x_delete_refuses_another_type(self, store: LightningStore, argument: str, value: Any) -> None:
        [one] = await many_ended(store, 1)
        with pytest.raises(TypeError, match=argument):
            arguments: dict[str, Any] = {"older_than": 0, argument: value}
            await store.delete_rollouts(**arguments)
        assert await remaining(store) == [one]

    async def test_x_delete_any_number_by_id(self, store: LightningStore) -> None:
        made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * MANY)
        ids = [one.rollout_id for one in made]
        assert await store.delete_rollouts(ids[::-1]) == ids[::-1]
        assert (await store.statistics())["total_rollouts"] == 0

    @pytest.mark.parametrize("count", [DELETION_BATCH - 1, DELETION_BATCH, MANY])
    async def test_x_delete_any_number_by_age(self, store: LightningStore, count: int) -> None:
        ids = await many_ended(store, count)
        kept = await enqueued(store, 1)
        assert await store.delete_rollouts(older_than=0) == ids
        assert await remaining(store) == kept

    async def test_x_delete_a_few_among_many(self, store: LightningStore) -> None:
        ids = await many_ended(store, MANY)
        for index in (0, DELETION_BATCH, MANY - 1):
            await store.update_rollout(ids[index], status="failed")
        deleted = await store.delete_rollouts(older_than=0, status_in=["failed"])
        assert deleted == [ids[0], ids[DELETION_BATCH], ids[-1]]
        assert (await store.statistics())["total_rollouts"] == MANY - 3

    async def test_x_delete_by_many_at_once_deletes_each_once(self, store: LightningStore) -> None:
        ids = await many_ended(store, MANY)
        calls = [*(store.delete_rollouts(older_than=0) for _ in range(3)), store.delete_rollouts(ids)]
        deleted = await asyncio.gather(*calls)
        assert sorted(id_ for some in deleted for id_ in some) == sorted(ids)
        assert (await store.statistics())["total_rollouts"] == 0


class DeletedContract(ContractBase):
    """What is left of a rollout that was deleted: nothing."""

    async def running(self, store: LightningStore, worker_id: str | None = "w") -> AttemptedRollout:
        """A rollout under way with a span."""
        started = await store.start_rollout("task", worker_id=worker_id, config=RolloutConfig(timeout_seconds=60))
        await store.add_span(make_span(started))
        return await look(store, started)

    async def test_x_deleted_it_is_unknown(self, store: LightningStore) -> None:
        gone = await self.running(store)
        await store.delete_rollouts([gone.rollout_id])
        assert await store.get_rollout_by_id(gone.rollout_id) is None
        assert await store.get_latest_attempt(gone.rollout_id) is None
        assert list(await store.query_attempts(gone.rollout_id)) == []
        assert list(await store.query_spans(gone.rollout_id)) == []
        assert list(await store.query_spans(gone.rollout_id, "latest")) == []
        assert list(await store.query_rollouts(status_in=["running"])) == []
        assert list(await store.query_rollouts(rollout_id_in=[gone.rollout_id])) == []

    @pytest.mark.parametrize("name", LATE_CALLS)
    async def test_x_deleted_late_reports_are_refused(self, store: LightningStore, name: str) -> None:
        gone = await self.running(store)
        await store.delete_rollouts([gone.rollout_id])
        with pytest.raises(ValueError, match=f"Rollout {gone.rollout_id} not found") as caught:
            await LATE_CALLS[name](store, gone)
        assert isinstance(caught.value, RolloutNotFoundError) or name == "add_many_spans"
        assert await remaining(store) == []
        assert await store.dequeue_rollout() is None

    async def test_x_deleted_its_spans_do_not_keep_others_out(self, store: LightningStore) -> None:
        gone, kept = await self.running(store), await self.running(store, "w2")
        await store.delete_rollouts([gone.rollout_id])
        with pytest.raises(ValueError, match=gone.rollout_id):
            await store.add_many_spans([make_span(gone, 2), make_span(kept, 2)])
        assert [span.sequence_id for span in await store.query_spans(kept.rollout_id)] == [1, 2]

    async def test_x_deleted_its_worker_is_idle(self, store: LightningStore, clock: FakeClock) -> None:
        gone = await self.running(store)
        clock.advance(1)
        await store.delete_rollouts([gone.rollout_id])
        worker = await look_at_worker(store, "w")
        assert (worker.status, worker.current_rollout_id, worker.current_attempt_id) == ("idle", None, None)
        assert worker.last_idle_time == clock.now()
        assert (await store.update_worker("w")).status == "idle"

    async def test_x_deleted_its_worker_keeps_what_else_it_holds(self, store: LightningStore) -> None:
        gone = await self.running(store)
        held = await self.running(store)
        await store.delete_rollouts([gone.rollout_id])
        worker = await look_at_worker(store, "w")
        assert (worker.status, worker.current_rollout_id) == ("busy", held.rollout_id)

    async def test_x_deleted_the_workers_of_all_its_attempts_are_free(self, store: LightningStore) -> None:
        first = await self.running(store, "w1")
        await store.start_attempt(first.rollout_id, "w2")
        await store.delete_rollouts([first.rollout_id])
        assert {worker.worker_id: worker.status for worker in await store.query_workers()} == {
            "w1": "idle",
            "w2": "idle",
        }

    async def test_x_deleted_the_queue_forgets_it(self, store: LightningStore) -> None:
        ids = await enqueued(store, 4)
        retried = await store.start_rollout("retried", config=retrying())
        await report(store, retried, "failed")
        await store.delete_rollouts([ids[0], ids[2], retried.rollout_id])
        assert await drain(store) == [ids[1], ids[3]]

    async def test_x_deleted_a_claim_waits_on_for_the_next(self, store: LightningStore, clock: FakeClock) -> None:
        waiting = asyncio.create_task(store.dequeue_rollout(max_wait=15))
        await clock.until_waiting(clock.now() + 15)
        gone = await store.start_rollout("task", config=retrying(timeout_seconds=10))
        await store.delete_rollouts([gone.rollout_id])
        clock.advance(11)
        [made] = await enqueued(store, 1)
        claimed = await within_safety(waiting)
        assert claimed is not None
        assert claimed.rollout_id == made

    async def test_x_deleted_its_deadline_does_not_come(self, store: LightningStore, clock: FakeClock) -> None:
        gone = await self.running(store)
        await store.delete_rollouts([gone.rollout_id])
        clock.advance(61)
        assert (await look_at_worker(store, "w")).status == "idle"
        assert await remaining(store) == []

    async def test_x_deleted_nothing_of_it_counts(self, store: LightningStore) -> None:
        empty = await store.statistics()
        rollouts = [await self.running(store, worker_id=None) for _ in range(3)]
        await report(store, rollouts[0], "succeeded")
        await store.start_attempt(rollouts[1].rollout_id)
        await store.update_attempt(rollouts[2].rollout_id, "latest", metadata={"a": "b" * 100})
        await store.update_rollout(rollouts[2].rollout_id, input="x" * 100, metadata={"c": "d" * 100})
        await store.cancel_rollouts(await enqueued(store, 2))
        await store.delete_rollouts(await remaining(store))
        statistics = await store.statistics()
        counted = [name for name in (*STORED, "total_bytes") if name in statistics]
        assert {name: statistics[name] for name in counted} == {name: empty[name] for name in counted}

    async def test_x_deleted_resources_stay(self, store: LightningStore) -> None:
        resources = await store.add_resources(some_llm())
        gone = await self.running(store)
        assert gone.resources_id == resources.resources_id
        await store.delete_rollouts([gone.rollout_id])
        assert await store.get_latest_resources() == resources

    async def test_x_deleted_the_others_are_as_before(self, store: LightningStore) -> None:
        gone, kept = await self.running(store, "w1"), await self.running(store, "w2")
        before = await look(store, kept)
        await store.delete_rollouts([gone.rollout_id])
        assert await look(store, kept) == before
        assert len(await store.query_spans(kept.rollout_id)) == 1
        assert (await look_at_worker(store, "w2")).status == "busy"
        [made] = await enqueued(store, 1)
        assert (await claim(store, "w1")).rollout_id == made
