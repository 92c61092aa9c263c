"""What transactions see of each other, and what is left of one that did not come to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lightning_store.backends.base import Backend, Changes, CommitUnknownError, ConflictError, Loaded, Needs
from lightning_store.testing.contract.backend.base import (
    MANY,
    MANY_BYTES,
    NOW,
    BackendContractBase,
    attempt_record,
    begun,
    changes_of,
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
    transact,
)

CALLERS = 8
ROUNDS = 5
TURNS_MAX = 1_000_000
"""Turns of the event loop that a call of a backend may take, which are many while it waits for a database."""


async def others_first(backend: Backend) -> None:
    """Let other tasks go on. An inline backend holds its lock, and nobody else may come in between."""
    if not backend.inline:
        await asyncio.sleep(0)


class RollbackContract(BackendContractBase):
    """What did not happen."""

    async def test_x_a_rollback_leaves_no_trace(self, backend: Backend) -> None:
        await store(backend, *running("ro-1", "at-1", "w"))
        await enqueue(backend, "ro-2")
        async with backend.snapshot() as snapshot:
            before = await snapshot.counts()
        transaction, _ = await begun(backend, Needs(rollouts={"ro-1", "ro-2"}, claims=1, claim_bytes=MANY_BYTES))
        await transaction.rollback()
        await transaction.rollback()
        async with backend.snapshot() as snapshot:
            assert await snapshot.counts() == before
        await store(backend, rollout_record("ro-3"))
        assert (await look(backend, "ro-1")).status == "running"

    async def test_x_a_rollback_before_the_first_load(self, backend: Backend) -> None:
        transaction = backend.transaction()
        await transaction.rollback()
        await store(backend, rollout_record("ro-1"))

    async def test_x_a_rollback_after_the_commit_does_nothing(self, backend: Backend) -> None:
        transaction, _ = await begun(backend, Needs(rollouts={"ro-1"}))
        await transaction.commit(changes_of(rollout_record("ro-1")))
        await transaction.rollback()
        assert await look(backend, "ro-1") == rollout_record("ro-1")

    async def test_x_a_commit_of_nothing(self, backend: Backend) -> None:
        await store(backend, rollout_record("ro-1"))
        transaction, _ = await begun(backend, Needs(rollouts={"ro-1"}))
        await transaction.commit(changes_of())
        assert await look(backend, "ro-1") == rollout_record("ro-1")

    async def test_x_a_failed_commit_is_told_by_its_reply(self, backend: Backend) -> None:
        """Whatever a commit raises, either all of it is stored with the reply, or nothing and no reply."""
        for number in range(12):
            rollout_id, request_id = f"ro-{number}", f"id-{number}"
            needs = Needs(rollouts={rollout_id}, replies={request_id}, attempts={(rollout_id, "at-1")})
            transaction, _ = await begun(backend, needs)
            unknown = raised = False
            try:
                await transaction.commit(changes_of(*running(rollout_id, "at-1"), reply_record(request_id)))
            except CommitUnknownError:
                unknown = True
            except (ConflictError, OSError):
                raised = True
            await transaction.rollback()
            async with loading(backend, needs) as loaded:
                happened = loaded.reply(request_id) is not None
                assert (loaded.rollout(rollout_id) is not None) == happened
                assert (loaded.attempt(rollout_id, "at-1") is not None) == happened
            assert unknown or happened is not raised


class IsolationContract(BackendContractBase):
    """Concurrent transactions, on one event loop."""

    async def test_x_no_change_is_lost(self, backend: Backend) -> None:
        """Counters that all count up: who has loaded them sees to it that nobody else changes them."""
        await store(backend, rollout_record("ro-1"), rollout_record("ro-2"))

        async def count_up() -> None:
            for _ in range(ROUNDS):
                await _counted_up(backend, "ro-1", "ro-2")

        await asyncio.gather(*(count_up() for _ in range(CALLERS)))
        async with loading(backend, Needs(rollouts={"ro-1", "ro-2"})) as loaded:
            assert [loaded.last_sequence(one) for one in ("ro-1", "ro-2")] == [CALLERS * ROUNDS] * 2

    async def test_x_nothing_is_claimed_twice(self, backend: Backend) -> None:
        ids = [f"ro-{number}" for number in range(CALLERS * ROUNDS)]
        await enqueue(backend, *ids)
        claimed: list[str] = []

        async def claim() -> None:
            claimed.extend([await _claimed(backend) for _ in range(ROUNDS)])

        await asyncio.gather(*(claim() for _ in range(CALLERS)))
        assert sorted(claimed) == sorted(ids)

    async def test_x_places_are_given_once(self, backend: Backend) -> None:
        async def work(caller: int) -> None:
            for number in range(ROUNDS):
                rollout_id = f"ro-{caller}-{number}"
                await enqueue(backend, rollout_id)
                await complete(backend, rollout_id)

        await asyncio.gather(*(work(caller) for caller in range(CALLERS)))
        async with backend.snapshot() as snapshot:
            rows = await snapshot.completions(0, MANY)
            assert len({one.position for one in rows}) == CALLERS * ROUNDS
            assert await snapshot.last_completion() == rows[-1].position

    async def test_x_one_request_id_is_recorded_by_one(self, backend: Backend) -> None:
        """The others wait and see the reply, or meet a conflict."""
        made: list[int] = []

        async def make(caller: int) -> None:
            while True:
                transaction, loaded = await begun(backend, Needs(replies={"id-1"}))
                recorded = loaded.reply("id-1")
                try:
                    await others_first(backend)
                    if recorded is not None:
                        return
                    await transaction.commit(changes_of(reply_record("id-1", signature=str(caller))))
                    made.append(caller)
                    return
                except (ConflictError, CommitUnknownError, OSError):
                    continue
                finally:
                    await transaction.rollback()

        await asyncio.gather(*(make(caller) for caller in range(CALLERS)))
        async with loading(backend, Needs(replies={"id-1"})) as loaded:
            reply = loaded.reply("id-1")
        assert reply is not None
        assert [str(caller) for caller in made] in ([reply.signature], [])

    async def test_x_a_transaction_sees_one_state(self, backend: Backend) -> None:
        """Of two counters that go up together, loaded one after the other, it sees the same number or meets a
        conflict."""
        await store(backend, rollout_record("ro-1"), rollout_record("ro-2"))

        async def watch() -> None:
            for _ in range(ROUNDS):
                transaction, loaded = await begun(backend, Needs(rollouts={"ro-1"}))
                first = loaded.last_sequence("ro-1")
                try:
                    await others_first(backend)
                    loaded = await transaction.load(Needs(rollouts={"ro-2"}))
                    second = loaded.last_sequence("ro-2")
                    await transaction.commit(changes_of(sequences={"ro-1": first, "ro-2": second}))
                    assert first == second
                except (ConflictError, CommitUnknownError):
                    pass
                finally:
                    await transaction.rollback()

        async def count_up() -> None:
            for _ in range(ROUNDS):
                await _counted_up(backend, "ro-1", "ro-2")

        await asyncio.gather(watch(), count_up(), watch(), count_up())

    async def test_x_a_snapshot_sees_one_state(self, backend: Backend) -> None:
        skip_inline(backend, "holds its lock while a snapshot is open")
        await store(backend, *running("ro-1", "at-1"))
        await completed(backend, "ro-2")
        async with backend.snapshot() as snapshot:
            before = [await read() for read in (snapshot.counts, snapshot.last_completion, snapshot.next_deadline)]
            changing = asyncio.create_task(
                store(
                    backend,
                    rollout_record("ro-3", deadline=NOW),
                    span_record("ro-1", "at-1", 1),
                    deleted=["ro-2"],
                )
            )
            for _ in range(20):
                await asyncio.sleep(0)
            after = [await read() for read in (snapshot.counts, snapshot.last_completion, snapshot.next_deadline)]
            assert after == before
            assert await snapshot.rollouts(["ro-3"]) == [None]
        await changing
        async with backend.snapshot() as snapshot:
            assert (await snapshot.counts()).rollouts == 2

    async def test_x_latest_resources_are_seen_by_the_next(self, backend: Backend) -> None:
        async def publish() -> None:
            for _ in range(ROUNDS):
                await transact(backend, Needs(resources={"rs-1"}, latest_resources=True), _next_version)

        await asyncio.gather(*(publish() for _ in range(CALLERS)))
        async with loading(backend, Needs(latest_resources=True)) as loaded:
            latest = loaded.latest_resources()
        assert latest is not None
        assert latest.version == CALLERS * ROUNDS


def _next_version(loaded: Loaded) -> Changes:
    latest = loaded.latest_resources()
    assert loaded.resources("rs-1") == latest
    version = 1 if latest is None else latest.version + 1
    return changes_of(resources_record("rs-1", version), latest_resources="rs-1")


async def _counted_up(backend: Backend, *rollout_ids: str) -> None:
    """Add one to the span counters of these."""
    await transact(
        backend,
        Needs(rollouts=set(rollout_ids)),
        lambda loaded: changes_of(sequences={one: loaded.last_sequence(one) + 1 for one in rollout_ids}),
    )


async def _claimed(backend: Backend) -> str:
    """Take the first rollout out of the queue."""
    claimed: list[str] = []

    def decide(loaded: Loaded) -> Changes:
        first = next(iter(loaded.queue()))
        claimed.append(first)
        return changes_of(known(loaded, first)._replace(status="preparing", queue_position=None))

    await transact(backend, Needs(claims=1, claim_bytes=MANY_BYTES), decide)
    return claimed[-1]


class CancellationContract(BackendContractBase):
    """A caller that is cancelled, at each await."""

    async def cancel_everywhere(self, make: Callable[[int], Awaitable[object]]) -> list[int]:
        """Cancel ``make(turns)`` after so many turns of the event loop, and again after more, until it is done by
        then; the numbers of turns."""
        tried = [0]
        while (turns := tried[-1]) < TURNS_MAX:
            task = asyncio.ensure_future(make(turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            done = task.done()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), ConflictError | CommitUnknownError | OSError)
            if done:
                return tried
            tried.append(turns + 1 + turns // 50)
        raise AssertionError(f"it takes more than {TURNS_MAX} turns")

    async def test_x_cancel_a_transaction_at_each_await(self, backend: Backend) -> None:
        skip_inline(backend, "never suspends")

        async def work(turns: int) -> None:
            rollout_id = f"ro-{turns}"
            transaction = backend.transaction()
            try:
                await transaction.load(Needs(rollouts={rollout_id}))
                await transaction.load(Needs(spans={(rollout_id, "at-1", f"{1:016x}")}))
                await transaction.commit(
                    changes_of(
                        rollout_record(rollout_id, latest_attempt_id="at-1"),
                        attempt_record(rollout_id, "at-1"),
                        span_record(rollout_id, "at-1", 1),
                        sequences={rollout_id: 1},
                    )
                )
            finally:
                await transaction.rollback()

        tried = await self.cancel_everywhere(work)
        for turns in tried:
            key = (f"ro-{turns}", "at-1", f"{1:016x}")
            async with loading(backend, Needs(rollouts={key[0]}, spans={key})) as loaded:
                found = loaded.rollout(key[0]) is not None
                assert (loaded.attempt(*key[:2]) is not None) == found
                assert loaded.has_span(*key) == found
                assert not found or loaded.last_sequence(key[0]) == 1
        assert (await look(backend, f"ro-{tried[-1]}")).rollout_id == f"ro-{tried[-1]}"

    async def test_x_cancel_who_waits_for_another_transaction(self, backend: Backend) -> None:
        skip_inline(backend, "never suspends")
        await store(backend, rollout_record("ro-1"))
        transaction, loaded = await begun(backend, Needs(rollouts={"ro-1"}))

        async def also(_: int) -> None:
            async with loading(backend, Needs(rollouts={"ro-1"})):
                pass

        tasks = [asyncio.create_task(also(number)) for number in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert known(loaded, "ro-1").status == "preparing"
        await transaction.rollback()
        await store(backend, rollout_record("ro-1", "running"))
        assert (await look(backend, "ro-1")).status == "running"

    @pytest.mark.parametrize("verb", ["snapshot", "evict_spans"])
    async def test_x_cancel_other_verbs_at_each_await(self, backend: Backend, verb: str) -> None:
        skip_inline(backend, "never suspends")
        spans = [span_record("ro-1", "at-1", number) for number in range(3)]
        await store(backend, *running("ro-1", "at-1"), *spans)

        async def call(_: int) -> None:
            if verb == "snapshot":
                async with backend.snapshot() as snapshot:
                    await snapshot.counts()
            else:
                await backend.evict_spans(1, unfinished=True)

        await self.cancel_everywhere(call)
        async with backend.snapshot() as snapshot:
            counts = await snapshot.counts()
            [row] = await snapshot.rollouts(["ro-1"])
        assert row is not None
        assert (counts.spans, row.rollout.spans_evicted) == ((0, True) if verb == "evict_spans" else (3, False))
        assert backend.span_bytes == counts.span_bytes
        await store(backend, deleted=["ro-1"])
