"""What a commit stores: every kind of change, and the positions that it hands out."""

from __future__ import annotations

import pytest

from lightning_store.backends.base import Backend, Changes, ConflictError, Loaded, Needs
from lightning_store.backends.records import WorkerRecord
from lightning_store.model import RolloutConfig
from lightning_store.queries import SpanQuery
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.backend.base import (
    MANY,
    MANY_BYTES,
    NOW,
    BackendContractBase,
    attempt_record,
    begun,
    change,
    changes_of,
    complete,
    completed,
    completions_of,
    enqueue,
    known,
    last_completion,
    loading,
    look,
    queue_of,
    reply_record,
    requeue,
    resources_record,
    rollout_record,
    running,
    span_record,
    store,
    transact,
)

ODD_TEXT = '{"text":"snow ☃, emoji 😀, \\ud800 escaped, 100% _ \' \\" \\\\ "}'


class StoringContract(BackendContractBase):
    """Inserts, updates and deletions."""

    async def test_x_store_a_rollout_with_all_its_columns(self, backend: Backend) -> None:
        rollout = rollout_record(
            "ro-☃",
            "cancelled",
            input_json=ODD_TEXT,
            start_time=0.1 + 0.2,
            end_time=1e-300,
            mode="val",
            resources_id="rs-ü",
            config=RolloutConfig(
                timeout_seconds=0.1, unresponsive_seconds=9e9, max_attempts=2**31 - 1, retry_condition=["failed"]
            ),
            metadata_json=ODD_TEXT,
            latest_attempt_id="at-1",
            completion_position=1,
            completion_time=NOW + 1 / 3,
            deadline=NOW + 1 / 7,
            spans_evicted=True,
        )
        await store(backend, rollout, attempt_record("ro-☃", "at-1"))
        assert await look(backend, "ro-☃") == rollout

    async def test_x_store_columns_that_are_null(self, backend: Backend) -> None:
        await store(backend, rollout_record("ro-1", metadata_json=None, input_json="null"))
        assert await look(backend, "ro-1") == rollout_record("ro-1", metadata_json=None, input_json="null")

    async def test_x_store_changed_columns(self, backend: Backend) -> None:
        await store(backend, rollout_record("ro-1"), rollout_record("ro-2"))
        changed = rollout_record("ro-1", "running", input_json="[]", metadata_json=None, config=RolloutConfig())
        await store(backend, changed)
        assert await look(backend, "ro-1") == changed
        assert await look(backend, "ro-2") == rollout_record("ro-2")

    async def test_x_store_attempts(self, backend: Backend) -> None:
        first = attempt_record(
            "ro-1", "at-1", 2**31, end_time=NOW + 0.1, status="timeout", last_heartbeat_time=0.0, metadata_json=ODD_TEXT
        )
        await store(backend, *running("ro-1", "at-2"), first)
        changed = first._replace(status="running", end_time=None, worker_id="w", metadata_json=None)
        await store(backend, changed)
        async with loading(backend, Needs(rollouts={"ro-1"}, attempts={("ro-1", "at-1")})) as loaded:
            assert loaded.attempt("ro-1", "at-1") == changed
            assert loaded.attempt("ro-1", "at-2") == attempt_record("ro-1", "at-2", status="running")

    async def test_x_store_workers(self, backend: Backend) -> None:
        worker = WorkerRecord("w", "busy", ODD_TEXT, 1.5, 2.5, 3.5, 4.5, "ro-1", "at-1")
        await store(backend, worker, WorkerRecord("w2"))
        released = worker._replace(status="idle", current_rollout_id=None, current_attempt_id=None)
        await store(backend, released)
        async with loading(backend, Needs(workers={"w", "w2"})) as loaded:
            assert (loaded.worker("w"), loaded.worker("w2")) == (released, WorkerRecord("w2"))

    async def test_x_store_resources_and_which_are_the_latest(self, backend: Backend) -> None:
        async def latest() -> str | None:
            async with loading(backend, Needs(latest_resources=True)) as loaded:
                record = loaded.latest_resources()
                return None if record is None else record.resources_json

        await store(backend, resources_record("rs-1"), resources_record("rs-2"), latest_resources="rs-1")
        assert await latest() == "{}"
        await store(backend, resources_record("rs-1", 2, resources_json=ODD_TEXT))
        assert await latest() == ODD_TEXT
        await store(backend, resources_record("rs-2", 2, resources_json="[2]"), latest_resources="rs-2")
        assert await latest() == "[2]"

    async def test_x_store_spans(self, backend: Backend) -> None:
        spans = [
            span_record("ro-1", "at-1", 2**63 - 1, document="é\U0001f600".encode(), parent_id=""),
            span_record("ro-1", "at-1", 2, name="☃", start_time=None, end_time=None),
            span_record("ro-1", "at-1", 3, sequence_id=2, document=b"{}"),
        ]
        await store(backend, *running("ro-1", "at-1"), *spans)

        async with backend.snapshot() as snapshot:
            found = await snapshot.query_spans(SpanQuery(rollout_id="ro-1", sort_by=None))
        assert list(found.items) == spans

    async def test_x_store_span_counters(self, backend: Backend) -> None:
        await store(backend, rollout_record("ro-1"), rollout_record("ro-2"), sequences={"ro-1": 5})
        await store(backend, sequences={"ro-1": 2**63 - 1, "ro-2": 1})
        async with loading(backend, Needs(rollouts={"ro-1", "ro-2"})) as loaded:
            assert (loaded.last_sequence("ro-1"), loaded.last_sequence("ro-2")) == (2**63 - 1, 1)

    async def test_x_store_a_reply_in_the_place_of_a_former(self, backend: Backend) -> None:
        await store(backend, reply_record("id-1"), reply_record("id-2"))
        again = reply_record("id-1", recorded_at=5.0, reply=b"again")
        await store(backend, again)
        async with loading(backend, Needs(replies={"id-1", "id-2"})) as loaded:
            assert (loaded.reply("id-1"), loaded.reply("id-2")) == (again, reply_record("id-2"))

    async def test_x_store_replies_for_as_long_as_the_window(self, clock: FakeClock) -> None:
        async with self.opened(clock, replay_window_seconds=60.0) as backend:
            assert backend.replay_window_seconds == 60.0
            await store(backend, reply_record("id-1"), reply_record("id-2", recorded_at=30.0))
            await store(backend, reply_record("id-3", recorded_at=60.0))
            async with loading(backend, Needs(replies={"id-1", "id-2", "id-3"})) as loaded:
                assert loaded.reply("id-1") == reply_record("id-1")
                assert loaded.reply("id-2") == reply_record("id-2", recorded_at=30.0)
                assert loaded.reply("id-3") == reply_record("id-3", recorded_at=60.0)

    async def test_x_delete_a_rollout_with_all_that_belongs_to_it(self, backend: Backend) -> None:
        for rollout_id in ("ro-1", "ro-2"):
            await store(
                backend,
                *running(rollout_id, "at-1", "w", deadline=NOW),
                attempt_record(rollout_id, "at-0"),
                span_record(rollout_id, "at-1", 1),
                sequences={rollout_id: 9},
            )
        await store(backend, deleted=["ro-1", "no"])
        spans = {(one, "at-1", f"{1:016x}") for one in ("ro-1", "ro-2")}
        needs = Needs(rollouts={"ro-1", "ro-2"}, attempts={("ro-1", "at-0"), ("ro-2", "at-0")}, spans=spans)
        async with loading(backend, needs.plus(Needs(workers={"w"}))) as loaded:
            assert loaded.rollout("ro-1") is None
            assert loaded.attempt("ro-1", "at-0") is None
            assert sorted(key for key in spans if loaded.has_span(*key)) == [("ro-2", "at-1", f"{1:016x}")]
            assert known(loaded, "ro-2").deadline == NOW
            assert loaded.attempt("ro-2", "at-0") == attempt_record("ro-2", "at-0")
            assert loaded.last_sequence("ro-2") == 9
            assert loaded.worker("w") is not None

    async def test_x_delete_and_what_else_is_said_of_the_deleted_is_void(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1"), *running("ro-2", "at-1"))
        await store(
            backend,
            attempt_record("ro-1", "at-1", status="failed"),
            attempt_record("ro-1", "at-2", 2),
            span_record("ro-1", "at-1", 1),
            span_record("ro-2", "at-1", 1),
            sequences={"ro-1": 4, "ro-2": 4},
            deleted=["ro-1"],
        )
        async with backend.snapshot() as snapshot:
            counts = await snapshot.counts()
        assert (counts.rollouts, counts.attempts, counts.spans) == (1, 1, 1)
        assert await completions_of(backend) == []

    async def test_x_delete_what_this_transaction_made(self, backend: Backend) -> None:
        await store(backend, span_record("ro-1", "at-1", 1), attempt_record("ro-1", "at-1"), deleted=["ro-1"])
        async with loading(backend, Needs(rollouts={"ro-1"})) as loaded:
            assert loaded.rollout("ro-1") is None

    @pytest.mark.parametrize("attempt_id", [None, "at-0"])
    async def test_x_an_id_that_is_taken_is_known_or_a_conflict(self, backend: Backend, attempt_id: str | None) -> None:
        """Of something new, which was not asked for."""
        await store(backend, *running("ro-1", "at-1"), attempt_record("ro-1", "at-0"))
        needs = Needs() if attempt_id is None else Needs(rollouts={"ro-1"})
        new = rollout_record("ro-1", "queuing") if attempt_id is None else attempt_record("ro-1", attempt_id, 7)
        transaction, loaded = await begun(backend, needs)
        if not loaded.is_taken("ro-1", attempt_id):
            with pytest.raises(ConflictError):
                await transaction.commit(changes_of(new))
        await transaction.rollback()
        async with loading(backend, Needs(rollouts={"ro-1"}, attempts={("ro-1", "at-0")})) as loaded:
            assert known(loaded, "ro-1").status == "running"
            assert loaded.attempt("ro-1", "at-0") == attempt_record("ro-1", "at-0")

    async def test_x_ids_that_are_free_are_not_taken(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1"))
        async with loading(backend, Needs(rollouts={"ro-1"})) as loaded:
            assert not loaded.is_taken("ro-2")
            assert not loaded.is_taken("ro-1", "at-2")


class PositionsContract(BackendContractBase):
    """Places in the queue, and among the completions."""

    async def places(self, backend: Backend, *rollout_ids: str) -> list[int | None]:
        return [(await look(backend, one)).queue_position for one in rollout_ids]

    async def test_x_places_in_the_queue_follow_each_other(self, backend: Backend) -> None:
        await enqueue(backend, "ro-b", "ro-a")
        await enqueue(backend, "ro-c")
        first, second, third = await self.places(backend, "ro-b", "ro-a", "ro-c")
        assert 0 < (first or 0) < (second or 0) < (third or 0) < 1 << 62
        assert await queue_of(backend) == ["ro-b", "ro-a", "ro-c"]

    async def test_x_new_places_go_by_their_numbers(self, backend: Backend) -> None:
        """Whatever the order in which the changes name the rollouts."""

        def decide(loaded: Loaded) -> Changes:
            last = loaded.last_queue_position
            queued = [("ro-2", last + 2), ("ro-3", last + 3), ("ro-1", last + 1)]
            return changes_of(*(rollout_record(one, "queuing", queue_position=place) for one, place in queued))

        await transact(backend, Needs(), decide)
        assert await queue_of(backend) == ["ro-1", "ro-2", "ro-3"]

    async def test_x_a_place_in_the_queue_is_not_given_again(self, backend: Backend) -> None:
        await enqueue(backend, "ro-1", "ro-2")
        [former] = await self.places(backend, "ro-2")
        await store(backend, deleted=["ro-2"])
        await enqueue(backend, "ro-3")
        [place] = await self.places(backend, "ro-3")
        assert place is not None
        assert former is not None
        assert place > former

    async def test_x_a_place_that_was_left_is_not_given_again(self, backend: Backend) -> None:
        """A claim, then the next in the queue: it must not get the place of the former one, which may be kept."""
        await enqueue(backend, "ro-1")
        [former] = await self.places(backend, "ro-1")
        await change(backend, "ro-1", status="preparing", queue_position=None)
        await enqueue(backend, "ro-2")
        assert await self.places(backend, "ro-1") == [None]
        [place] = await self.places(backend, "ro-2")
        assert (place or 0) > (former or 0)

    async def test_x_a_rollout_that_was_put_back_keeps_its_place(self, backend: Backend) -> None:
        await enqueue(backend, "ro-1", "ro-2", "ro-3")
        await change(backend, "ro-2", status="running")
        await change(backend, "ro-1", status="preparing")
        assert await queue_of(backend) == ["ro-3"]
        await enqueue(backend, "ro-4")
        await change(backend, "ro-2", status="queuing")
        assert await queue_of(backend) == ["ro-2", "ro-3", "ro-4"]
        await change(backend, "ro-1", status="requeuing")
        assert await queue_of(backend) == ["ro-1", "ro-2", "ro-3", "ro-4"]

    async def test_x_a_place_is_kept_by_a_rollout_that_was_never_seen_in_the_queue(self, backend: Backend) -> None:
        """It was queued and set to running by hand within one transaction."""

        def decide(loaded: Loaded) -> Changes:
            return changes_of(rollout_record("ro-1", "running", queue_position=loaded.last_queue_position + 1))

        await transact(backend, Needs(), decide)
        await enqueue(backend, "ro-2", "ro-3")
        await change(backend, "ro-1", status="queuing")
        assert await queue_of(backend) == ["ro-1", "ro-2", "ro-3"]

    async def test_x_a_rollout_that_was_claimed_and_put_back_at_once_goes_to_the_tail(self, backend: Backend) -> None:
        await enqueue(backend, "ro-1", "ro-2")
        await requeue(backend, "ro-1")
        await requeue(backend, "ro-1")
        assert await queue_of(backend) == ["ro-2", "ro-1"]
        await store(backend, deleted=["ro-1"])
        assert await queue_of(backend) == ["ro-2"]

    async def test_x_completions_in_order(self, backend: Backend) -> None:
        await completed(backend, "ro-b", "ro-a", time=NOW + 1)
        await completed(backend, "ro-c", time=NOW + 2)
        async with backend.snapshot() as snapshot:
            rows = await snapshot.completions(0, MANY)
            assert [(one.row.rollout.rollout_id, one.time) for one in rows] == [
                ("ro-b", NOW + 1),
                ("ro-a", NOW + 1),
                ("ro-c", NOW + 2),
            ]
            assert all(one.position == one.row.rollout.completion_position for one in rows)
            positions = [one.position for one in rows]
            assert positions == sorted(set(positions))
            assert 0 < positions[0] < 1 << 62
            assert await snapshot.last_completion() == positions[-1]
            assert await snapshot.completions(positions[0], 1) == rows[1:2]
            assert await snapshot.completions(positions[1], MANY) == rows[2:]
            assert await snapshot.completions(positions[-1], MANY) == []

    async def test_x_a_completion_that_is_taken_back(self, backend: Backend) -> None:
        await completed(backend, "ro-1", "ro-2")
        before = await last_completion(backend)
        await requeue(backend, "ro-1")
        assert await completions_of(backend) == ["ro-2"]
        assert await last_completion(backend) == before

    async def test_x_a_rollout_that_completes_anew_moves_to_the_end(self, backend: Backend) -> None:
        await completed(backend, "ro-1", "ro-2", "ro-3")
        before = await last_completion(backend)
        await complete(backend, "ro-1", time=NOW + 1)
        assert await completions_of(backend) == ["ro-2", "ro-3", "ro-1"]
        assert await completions_of(backend, after=before) == ["ro-1"]

    async def test_x_the_place_of_a_completion_is_not_given_again(self, backend: Backend) -> None:
        """A feed that has seen the last one goes on after it."""
        assert await last_completion(backend) == 0
        await completed(backend, "ro-1", "ro-2")
        before = await last_completion(backend)
        await store(backend, deleted=["ro-2"])
        assert await last_completion(backend) == before
        await store(backend, deleted=["ro-1"])
        assert await last_completion(backend) == before
        await completed(backend, "ro-3")
        assert await completions_of(backend, after=before) == ["ro-3"]

    async def test_x_a_completion_comes_with_the_latest_attempt(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1"))
        await complete(backend, "ro-1")
        async with backend.snapshot() as snapshot:
            [one] = await snapshot.completions(0, MANY)
        assert one.row.attempt == attempt_record("ro-1", "at-1", status="running")

    async def test_x_a_place_in_the_queue_of_one_in_many(self, backend: Backend) -> None:
        ids = [f"ro-{number}" for number in range(2500)]
        await enqueue(backend, *ids)
        for one in (ids[1], ids[1300], ids[2499]):
            await change(backend, one, status="running")
        for one in (ids[1300], ids[2499], ids[1]):
            await change(backend, one, status="queuing")
        async with loading(backend, Needs(claims=len(ids), claim_bytes=MANY_BYTES)) as loaded:
            assert list(loaded.queue()) == ids
