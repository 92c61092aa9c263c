"""What a load gives: each thing that was asked for, present or absent, with what comes along; and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from lightning_store.backends.base import Backend, Due, Loaded, Needs, NotLoadedError
from lightning_store.backends.records import WorkerRecord
from lightning_store.testing.contract.backend.base import (
    MANY_BYTES,
    NOW,
    BackendContractBase,
    attempt_record,
    begun,
    complete,
    completed,
    enqueue,
    known,
    loading,
    look,
    reply_record,
    resources_record,
    rollout_record,
    running,
    skip_inline,
    span_record,
    store,
)

LOOKS: Final[dict[str, Callable[[Loaded], object]]] = {
    "reply": lambda loaded: loaded.reply("id-1"),
    "rollout": lambda loaded: loaded.rollout("ro-1"),
    "attempt": lambda loaded: (loaded.rollout("ro-1"), loaded.attempt("ro-1", "at-1")),
    "last_sequence": lambda loaded: loaded.last_sequence("ro-1"),
    "has_span": lambda loaded: loaded.has_span("ro-1", "at-1", "s"),
    "worker": lambda loaded: loaded.worker("w"),
    "holders": lambda loaded: loaded.holders("ro-1"),
    "resources": lambda loaded: loaded.resources("rs-1"),
    "latest_resources": lambda loaded: loaded.latest_resources(),
}
"""A look-up of each kind of thing."""
PAYLOAD: Final = f'"{"x" * 98}"'
"""Of 100 bytes."""


class LoadingContract(BackendContractBase):
    """Look-ups of what was asked for by its key."""

    async def test_x_load_what_is_not_there(self, backend: Backend) -> None:
        needs = Needs(
            replies={"id-1"},
            rollouts={"ro-1"},
            attempts={("ro-1", "at-1")},
            spans={("ro-1", "at-1", "s")},
            workers={"w"},
            held={"w"},
            holders={"ro-1"},
            resources={"rs-1"},
            latest_resources=True,
            claims=1,
            claim_bytes=1,
        )
        async with loading(backend, needs, Due(NOW, 10, NOW, 0)) as loaded:
            assert loaded.reply("id-1") is None
            assert loaded.rollout("ro-1") is None
            assert loaded.attempt("ro-1", "at-1") is None
            assert not loaded.has_span("ro-1", "at-1", "s")
            assert loaded.worker("w") is None
            assert list(loaded.holders("ro-1")) == []
            assert loaded.resources("rs-1") is None
            assert loaded.latest_resources() is None
            assert list(loaded.queue()) == []
            assert loaded.queue_is_whole
            assert list(loaded.overdue) == []
            assert list(loaded.expendable) == []

    async def test_x_load_a_rollout_with_what_comes_along(self, backend: Backend) -> None:
        rollout, attempt, worker = records = running("ro-1", "at-2", "w")
        former = attempt_record("ro-1", "at-1", worker_id="w-former")
        await store(backend, *records, former, sequences={"ro-1": 7})
        async with loading(backend, Needs(rollouts={"ro-1"})) as loaded:
            assert loaded.rollout("ro-1") == rollout
            assert loaded.attempt("ro-1", "at-2") == attempt
            assert loaded.worker("w") == worker
            assert loaded.last_sequence("ro-1") == 7

    async def test_x_load_a_rollout_without_attempts(self, backend: Backend) -> None:
        await store(backend, rollout_record("ro-1"))
        async with loading(backend, Needs(rollouts={"ro-1"})) as loaded:
            assert loaded.rollout("ro-1") == rollout_record("ro-1")
            assert loaded.last_sequence("ro-1") == 0

    async def test_x_load_an_attempt_whose_worker_is_unknown(self, backend: Backend) -> None:
        rollout, attempt, _ = running("ro-1", "at-1", "w")
        await store(backend, rollout, attempt)
        async with loading(backend, Needs(rollouts={"ro-1"})) as loaded:
            assert loaded.attempt("ro-1", "at-1") == attempt
            assert loaded.worker("w") is None

    async def test_x_load_attempts_with_their_workers(self, backend: Backend) -> None:
        former = attempt_record("ro-1", "at-1", worker_id="w-former", metadata_json='{"a":1}')
        idle = WorkerRecord("w-former", "idle", last_idle_time=NOW)
        await store(backend, *running("ro-1", "at-2", "w"), former, idle)
        async with loading(backend, Needs(rollouts={"ro-1"}, attempts={("ro-1", "at-1"), ("ro-1", "no")})) as loaded:
            assert loaded.attempt("ro-1", "at-1") == former
            assert loaded.attempt("ro-1", "no") is None
            assert loaded.worker("w-former") == idle

    async def test_x_load_attempts_of_a_rollout_that_is_not_there(self, backend: Backend) -> None:
        async with loading(backend, Needs(rollouts={"no"}, attempts={("no", "at-1")})) as loaded:
            assert loaded.attempt("no", "at-1") is None
            assert loaded.attempt("no", "at-2") is None

    async def test_x_load_which_spans_are_stored(self, backend: Backend) -> None:
        spans = [span_record("ro-1", "at-1", number) for number in (1, 2)]
        other = span_record("ro-1", "at-2", 1)
        await store(backend, *running("ro-1", "at-1"), attempt_record("ro-1", "at-2", 2), *spans, other)
        keys = [(a, f"{number:016x}") for a in ("at-1", "at-2") for number in (1, 2, 3)]
        needs = Needs(rollouts={"ro-1"}, spans={("ro-1", *key) for key in keys} | {("no", "at-1", spans[0].span_id)})
        async with loading(backend, needs) as loaded:
            assert [loaded.has_span("ro-1", *key) for key in keys] == [True, True, False, True, False, False]
            assert not loaded.has_span("no", "at-1", spans[0].span_id)

    async def test_x_load_what_a_worker_holds(self, backend: Backend) -> None:
        _, attempt, worker = records = running("ro-1", "at-1", "w")
        newer = attempt_record("ro-1", "at-2", 2)
        await store(backend, *records, newer)
        await store(backend, rollout_record("ro-1", "running", latest_attempt_id="at-2"))
        async with loading(backend, Needs(workers={"w", "no"}, held={"w", "no"})) as loaded:
            assert loaded.worker("w") == worker
            assert known(loaded, "ro-1").latest_attempt_id == "at-2"
            assert loaded.attempt("ro-1", "at-1") == attempt
            assert loaded.attempt("ro-1", "at-2") == newer
            assert loaded.last_sequence("ro-1") == 0

    async def test_x_load_what_a_worker_holds_no_more(self, backend: Backend) -> None:
        holding = WorkerRecord("w", "busy", current_rollout_id="gone", current_attempt_id="at-1")
        await store(backend, holding, WorkerRecord("w-idle", "idle"))
        async with loading(backend, Needs(workers={"w", "w-idle"}, held={"w", "w-idle"})) as loaded:
            assert loaded.worker("w") == holding
            assert loaded.rollout("gone") is None
            assert loaded.worker("w-idle") == WorkerRecord("w-idle", "idle")

    async def test_x_load_who_holds_attempts_of_a_rollout(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1", "w1"))
        await store(
            backend,
            rollout_record("ro-1", "running", latest_attempt_id="at-2"),
            attempt_record("ro-1", "at-2", 2, worker_id="w2"),
            WorkerRecord("w2", "busy", current_rollout_id="ro-1", current_attempt_id="at-2"),
            *running("ro-2", "at-1", "w3"),
        )
        async with loading(backend, Needs(rollouts={"ro-1"}, holders={"ro-1"})) as loaded:
            assert sorted(loaded.holders("ro-1")) == ["w1", "w2"]
            workers = [loaded.worker(one) for one in ("w1", "w2")]
            assert [one.current_attempt_id for one in workers if one is not None] == ["at-1", "at-2"]

    async def test_x_load_resources(self, backend: Backend) -> None:
        one, other = resources_record("rs-1", resources_json='{"a":1}'), resources_record("rs-2", 3)
        await store(backend, one, latest_resources="rs-1")
        await store(backend, other, latest_resources="rs-2")
        async with loading(backend, Needs(resources={"rs-1", "rs-2"}, latest_resources=True)) as loaded:
            assert (loaded.resources("rs-1"), loaded.resources("rs-2")) == (one, other)
            assert loaded.latest_resources() == other

    async def test_x_load_replies(self, backend: Backend) -> None:
        reply = reply_record("id-1", recorded_at=12.5, signature="call {}", refused=True, reply=b"\x00\xff")
        await store(backend, reply)
        async with loading(backend, Needs(replies={"id-1", "id-2"})) as loaded:
            assert (loaded.reply("id-1"), loaded.reply("id-2")) == (reply, None)

    async def test_x_load_very_much_at_once(self, backend: Backend) -> None:
        """More keys than a statement of SQL has parameters."""
        ids = [f"ro-{number}" for number in range(1100)]
        await store(
            backend,
            *(rollout_record(rollout_id, latest_attempt_id="at-1") for rollout_id in ids),
            *(attempt_record(rollout_id, "at-1") for rollout_id in ids),
            *(span_record(rollout_id, "at-1", 1) for rollout_id in ids),
        )
        keys = {(rollout_id, "at-1", f"{number:016x}") for rollout_id in ids for number in range(1, 31)}
        async with loading(backend, Needs(rollouts=set(ids), spans=keys)) as loaded:
            assert sum(loaded.has_span(*key) for key in keys) == len(ids)
            assert all(loaded.attempt(rollout_id, "at-1") is not None for rollout_id in ids)


class NotLoadedContract(BackendContractBase):
    """What was not asked for, and asking again."""

    @pytest.mark.parametrize("look", LOOKS)
    async def test_x_load_nothing_that_was_not_asked_for(self, backend: Backend, look: str) -> None:
        skip_inline(backend)
        await store(backend, *running("ro-1", "at-1", "w"), resources_record("rs-1"), latest_resources="rs-1")
        async with loading(backend) as loaded:
            with pytest.raises(NotLoadedError):
                LOOKS[look](loaded)

    @pytest.mark.parametrize("look", LOOKS)
    async def test_x_load_what_the_error_names(self, backend: Backend, look: str) -> None:
        skip_inline(backend)
        rollout, attempt, worker = running("ro-1", "at-1", "w")
        await store(backend, rollout, attempt, worker, resources_record("rs-1"), latest_resources="rs-1")
        transaction, loaded = await begun(backend)
        for _ in range(2):
            try:
                LOOKS[look](loaded)
            except NotLoadedError as error:
                loaded = await transaction.load(error.needs)
        LOOKS[look](loaded)
        await transaction.rollback()

    async def test_x_load_again_adds_to_what_was_loaded(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1"), *running("ro-2", "at-2", "w"), resources_record("rs-1"))
        transaction, _ = await begun(backend, Needs(rollouts={"ro-1"}))
        loaded = await transaction.load(Needs(rollouts={"ro-2"}, resources={"rs-1"}))
        assert (known(loaded, "ro-1").status, known(loaded, "ro-2").status) == ("running", "running")
        assert loaded.resources("rs-1") == resources_record("rs-1")
        assert loaded.worker("w") is not None
        await transaction.rollback()

    async def test_x_load_adds_to_the_object_that_was_handed_out(self, backend: Backend) -> None:
        """A view keeps what the first load returned."""
        await store(backend, *running("ro-1", "at-1"))
        transaction, loaded = await begun(backend)
        assert await transaction.load(Needs(rollouts={"ro-1"})) is loaded
        assert known(loaded, "ro-1").status == "running"
        await transaction.rollback()


class ClaimingContract(BackendContractBase):
    """The head of the queue."""

    async def test_x_load_the_queue_in_order(self, backend: Backend) -> None:
        await enqueue(backend, "ro-b", "ro-a")
        await enqueue(backend, "ro-c")
        await store(backend, rollout_record("ro-d"))
        async with loading(backend, Needs(claims=9, claim_bytes=MANY_BYTES)) as loaded:
            assert list(loaded.queue()) == ["ro-b", "ro-a", "ro-c"]
            assert loaded.queue_is_whole

    async def test_x_load_a_claim_with_what_comes_along(self, backend: Backend) -> None:
        attempt, worker = attempt_record("ro-1", "at-1", status="failed", worker_id="w"), WorkerRecord("w", "idle")
        await enqueue(backend, "ro-1", latest_attempt_id="at-1")
        await store(backend, await look(backend, "ro-1"), attempt, worker, sequences={"ro-1": 3})
        async with loading(backend, Needs(claims=1, claim_bytes=MANY_BYTES)) as loaded:
            assert known(loaded, "ro-1").latest_attempt_id == "at-1"
            assert loaded.attempt("ro-1", "at-1") == attempt
            assert loaded.worker("w") == worker
            assert loaded.last_sequence("ro-1") == 3

    @pytest.mark.parametrize("claims", [1, 3, 4, 5])
    async def test_x_load_no_more_claims_than_asked(self, backend: Backend, claims: int) -> None:
        skip_inline(backend)
        ids = [f"ro-{number}" for number in range(4)]
        await enqueue(backend, *ids)
        async with loading(backend, Needs(claims=claims, claim_bytes=MANY_BYTES)) as loaded:
            assert list(loaded.queue()) == ids[:claims]
            assert claims == 4 or loaded.queue_is_whole == (claims > 4)

    async def test_x_load_no_more_bytes_of_claims_than_asked(self, backend: Backend) -> None:
        skip_inline(backend)
        ids = [f"ro-{number}" for number in range(6)]
        await enqueue(backend, *ids, input_json=PAYLOAD, metadata_json=None)
        async with loading(backend, Needs(claims=6, claim_bytes=250)) as loaded:
            assert list(loaded.queue()) == ids[:3]
            assert not loaded.queue_is_whole

    async def test_x_load_one_claim_however_large(self, backend: Backend) -> None:
        skip_inline(backend)
        await enqueue(backend, "ro-1", "ro-2", input_json=PAYLOAD)
        async with loading(backend, Needs(claims=2, claim_bytes=10)) as loaded:
            assert list(loaded.queue()) == ["ro-1"]

    async def test_x_load_more_claims(self, backend: Backend) -> None:
        skip_inline(backend)
        ids = [f"ro-{number}" for number in range(5)]
        await enqueue(backend, *ids, input_json=PAYLOAD)
        transaction, loaded = await begun(backend, Needs(claims=2, claim_bytes=MANY_BYTES))
        loaded = await transaction.load(Needs(claims=1))
        assert (list(loaded.queue()), loaded.queue_is_whole) == (ids[:3], False)
        loaded = await transaction.load(Needs(claims=9, claim_bytes=MANY_BYTES))
        assert list(loaded.queue()) == ids
        assert loaded.queue_is_whole
        assert known(loaded, ids[4]).status == "queuing"
        await transaction.rollback()


class DueContract(BackendContractBase):
    """What the store has to do by itself."""

    async def overdue(self, backend: Backend, now: float, limit: int = 10) -> list[str]:
        async with loading(backend, due=Due(now, limit)) as loaded:
            return list(loaded.overdue)

    async def expendable(
        self, backend: Backend, since: float | None = None, count: int | None = None, limit: int = 10
    ) -> list[str]:
        async with loading(backend, due=Due(NOW, limit, since, count)) as loaded:
            return list(loaded.expendable)

    async def test_x_due_the_earliest_deadline_first(self, backend: Backend) -> None:
        deadlines = {"ro-1": NOW + 3, "ro-2": NOW + 1, "ro-3": NOW + 2, "ro-4": None}
        await store(backend, *(rollout_record(one, deadline=time) for one, time in deadlines.items()))
        assert await self.overdue(backend, NOW) == []
        assert await self.overdue(backend, NOW + 1) == []
        assert await self.overdue(backend, NOW + 2.5) == ["ro-2", "ro-3"]
        assert await self.overdue(backend, NOW + 9) == ["ro-2", "ro-3", "ro-1"]
        assert await self.overdue(backend, NOW + 9, limit=2) == ["ro-2", "ro-3"]

    async def test_x_due_comes_with_attempt_and_worker(self, backend: Backend) -> None:
        _, attempt, worker = records = running("ro-1", "at-1", "w", deadline=NOW)
        await store(backend, *records, sequences={"ro-1": 3})
        async with loading(backend, due=Due(NOW + 1, 10)) as loaded:
            assert list(loaded.overdue) == ["ro-1"]
            assert known(loaded, "ro-1").deadline == NOW
            assert loaded.attempt("ro-1", "at-1") == attempt
            assert loaded.worker("w") == worker

    async def test_x_due_follows_the_deadline(self, backend: Backend) -> None:
        await store(backend, *(rollout_record(f"ro-{number}", deadline=NOW) for number in range(4)))
        await store(
            backend,
            rollout_record("ro-0", deadline=NOW + 10),
            rollout_record("ro-1", deadline=None),
            rollout_record("ro-2", deadline=NOW - 1),
            deleted=["ro-3"],
        )
        assert await self.overdue(backend, NOW + 5) == ["ro-2"]
        assert await self.overdue(backend, NOW + 11) == ["ro-2", "ro-0"]

    async def test_x_due_is_only_what_this_transaction_asks_for(self, backend: Backend) -> None:
        await store(backend, rollout_record("ro-1", deadline=NOW))
        assert await self.overdue(backend, NOW + 1) == ["ro-1"]
        async with loading(backend) as loaded:
            assert list(loaded.overdue) == []

    async def test_x_expendable_by_age(self, backend: Backend) -> None:
        for number in range(3):
            await completed(backend, f"ro-{number}", time=NOW + number)
        await store(backend, rollout_record("ro-active"))
        assert await self.expendable(backend) == []
        assert await self.expendable(backend, since=NOW) == []
        assert await self.expendable(backend, since=NOW + 1.5) == ["ro-0", "ro-1"]
        assert await self.expendable(backend, since=NOW + 9, limit=2) == ["ro-0", "ro-1"]

    async def test_x_expendable_by_number(self, backend: Backend) -> None:
        await completed(backend, "ro-2", "ro-0", "ro-1")
        await store(backend, rollout_record("ro-active"))
        assert await self.expendable(backend, count=3) == []
        assert await self.expendable(backend, count=1) == ["ro-2", "ro-0"]
        assert await self.expendable(backend, count=1, limit=1) == ["ro-2"]

    async def test_x_expendable_by_either(self, backend: Backend) -> None:
        for number in range(3):
            await completed(backend, f"ro-{number}", time=NOW + number)
        assert await self.expendable(backend, since=NOW + 0.5, count=1) == ["ro-0", "ro-1"]
        assert await self.expendable(backend, since=NOW + 1.5, count=3) == ["ro-0", "ro-1"]

    async def test_x_expendable_comes_with_its_holders(self, backend: Backend) -> None:
        _, attempt, worker = records = running("ro-1", "at-1", "w")
        await store(backend, *records)
        await complete(backend, "ro-1")
        async with loading(backend, due=Due(NOW + 1, 10, NOW + 1)) as loaded:
            assert list(loaded.expendable) == ["ro-1"]
            assert list(loaded.holders("ro-1")) == ["w"]
            assert loaded.attempt("ro-1", "at-1") == attempt
            assert loaded.worker("w") == worker

    async def test_x_due_is_found_by_a_look(self, backend: Backend) -> None:
        async def has_due(now: float, since: float | None = None, count: int | None = None) -> bool:
            async with backend.snapshot() as snapshot:
                return await snapshot.has_due(Due(now, 10, since, count))

        assert not await has_due(NOW + 9, NOW + 9, 1)
        await store(backend, rollout_record("ro-1", deadline=NOW))
        assert not await has_due(NOW)
        assert await has_due(NOW + 1)
        await store(backend, rollout_record("ro-1", deadline=NOW + 2))
        assert not await has_due(NOW + 1)
        await complete(backend, "ro-1", time=NOW)
        assert not await has_due(NOW + 9)
        assert not await has_due(NOW, NOW, 1)
        assert await has_due(NOW, NOW + 1)
        await completed(backend, "ro-2", time=NOW)
        assert await has_due(NOW, count=1)

    async def test_x_the_next_deadline_is_never_late(self, backend: Backend) -> None:
        async def next_deadline() -> float | None:
            async with backend.snapshot() as snapshot:
                return await snapshot.next_deadline()

        assert await next_deadline() is None
        await store(backend, rollout_record("ro-1", deadline=NOW + 5), rollout_record("ro-2"))
        assert await next_deadline() == NOW + 5
        await store(backend, rollout_record("ro-2", deadline=NOW + 3))
        assert await next_deadline() == NOW + 3
        await store(backend, rollout_record("ro-2", deadline=NOW + 9))
        found = await next_deadline()
        assert found is not None
        assert found <= NOW + 5
