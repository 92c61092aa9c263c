"""Operations on a backend, many at a time: on one that suspends, what is called at once is one group, of which each
operation sees what those before it did."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import pytest

from lightning_store.backends.base import Backend
from lightning_store.backends.records import Claim, NewRollout, RolloutRecord
from lightning_store.engine.executor import Executor
from lightning_store.engine.idempotency import request_scope
from lightning_store.engine.operations import (
    AddSpans,
    AllocateSequenceIds,
    CancelRollouts,
    ClaimRollouts,
    DeleteRollouts,
    EnqueueRollouts,
    Heartbeat,
    Operation,
    PublishResources,
    StartAttempt,
    StartRollout,
    UpdateAttempt,
    UpdateRollout,
)
from lightning_store.engine.policy import Policy
from lightning_store.engine.rules import Deletion
from lightning_store.engine.view import Effects
from lightning_store.errors import (
    AttemptNotFoundError,
    NoAttemptsError,
    RequestIdReusedError,
    ResourcesNotFoundError,
    RolloutNotFoundError,
)
from lightning_store.model import RolloutConfig, RolloutStatus
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.backend.base import (
    BackendContractBase,
    completions_of,
    last_completion,
    queue_of,
    span_record,
)

R = TypeVar("R")

NEW: Final = NewRollout('"task"', None, None, RolloutConfig(), "{}")


class Told:
    """A notifier that remembers what it was told."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.deleted: list[str] = []
        self.queued: list[str] = []

    def notify(self, effects: Effects) -> None:
        self.ended += effects.ended
        self.deleted += effects.deleted
        self.queued += effects.queued


class Group:
    """An executor on a backend, for calls that are made at once.

    Args:
        backend: Where the data is.
        clock: The time.
        policy: Which of the rules hold.
    """

    def __init__(self, backend: Backend, clock: FakeClock, policy: Policy | None = None) -> None:
        self.told = Told()
        self.executor = Executor(backend, policy or Policy(), clock, None, self.told)

    async def run(self, *operations: Operation[Any]) -> list[Any]:
        """The reply or the error of each."""
        return await asyncio.gather(*map(self.executor.execute, operations), return_exceptions=True)

    async def one(self, operation: Operation[R]) -> R:
        return await self.executor.execute(operation)

    async def enqueue(self, count: int, new: NewRollout = NEW) -> list[str]:
        """So many rollouts, in the order of the queue."""
        return [one.rollout_id for one in await self.one(EnqueueRollouts([new] * count))]

    async def start(self, worker_id: str | None = None, new: NewRollout = NEW) -> tuple[str, str]:
        """A new rollout with an attempt."""
        claim = await self.one(StartRollout(new, worker_id))
        return claim.rollout.rollout_id, claim.attempt.attempt_id


def moved(rollout_id: str, status: RolloutStatus) -> UpdateRollout:
    """Set the status of a rollout."""
    return UpdateRollout(rollout_id, {}, status)


def deletion(*rollout_ids: str) -> DeleteRollouts:
    return DeleteRollouts(rollout_ids, Deletion(rollout_ids), None)


def spans_of(rollout_id: str, attempt_id: str, *numbers: int, numbered: bool = True) -> AddSpans:
    spans = [span_record(rollout_id, attempt_id, number) for number in numbers]
    return AddSpans([(one if numbered else one._replace(sequence_id=None), one.size_bytes) for one in spans])


def ids_of(claims: Sequence[Claim]) -> list[str]:
    return [claim.rollout.rollout_id for claim in claims]


class GroupContract(BackendContractBase):
    """Each operation sees the others' effects."""

    @pytest.fixture
    def group(self, backend: Backend, clock: FakeClock) -> Group:
        return Group(backend, clock)

    async def test_x_group_enqueue_and_claim(self, group: Group, backend: Backend) -> None:
        [one], [two], claimed, again = await group.run(
            EnqueueRollouts([NEW]), EnqueueRollouts([NEW]), ClaimRollouts(1, "w"), ClaimRollouts(9, None)
        )
        assert (ids_of(claimed), ids_of(again)) == ([one.rollout_id], [two.rollout_id])
        assert await queue_of(backend) == []

    async def test_x_group_claims_share_the_queue(self, group: Group, backend: Backend) -> None:
        ids = await group.enqueue(6)
        replies = await group.run(*(ClaimRollouts(limit, None) for limit in (1, 2, 1, 1)))
        assert [ids_of(one) for one in replies] == [ids[:1], ids[1:3], ids[3:4], ids[4:5]]
        assert await queue_of(backend) == ids[5:]

    async def test_x_group_claims_pass_over_what_was_cancelled(self, group: Group, backend: Backend) -> None:
        ids = await group.enqueue(6)
        replies = await group.run(
            CancelRollouts(ids[:2]), ClaimRollouts(1, None), StartAttempt(ids[3], None), ClaimRollouts(2, None)
        )
        assert (ids_of(replies[1]), ids_of(replies[3])) == (ids[2:3], ids[4:])
        assert await queue_of(backend) == []

    @pytest.mark.parametrize("status", ["preparing", "running"])
    async def test_x_group_put_back_in_its_place_before_a_claim(
        self, group: Group, backend: Backend, status: RolloutStatus
    ) -> None:
        first, second, third = await group.enqueue(3)
        await group.one(moved(first, status))
        _, claimed = await group.run(moved(first, "queuing"), ClaimRollouts(1, None))
        assert ids_of(claimed) == [first]
        assert await queue_of(backend) == [second, third]

    async def test_x_group_passed_by_a_claim_and_put_back_in_its_place(self, group: Group, backend: Backend) -> None:
        first, second, third = await group.enqueue(3)
        replies = await group.run(
            moved(first, "running"), ClaimRollouts(1, None), moved(first, "queuing"), ClaimRollouts(1, None)
        )
        assert (ids_of(replies[1]), ids_of(replies[3])) == ([second], [first])
        assert await queue_of(backend) == [third]

    async def test_x_group_claimed_and_put_back_goes_to_the_tail(self, group: Group, backend: Backend) -> None:
        first, second = await group.enqueue(2)
        _, _, [third], claimed = await group.run(
            ClaimRollouts(1, None), moved(first, "queuing"), EnqueueRollouts([NEW]), ClaimRollouts(1, None)
        )
        assert ids_of(claimed) == [second]
        assert await queue_of(backend) == [first, third.rollout_id]
        assert await group.one(deletion(first)) == (None, [first])
        assert await queue_of(backend) == [third.rollout_id]

    async def test_x_group_put_back_twice_has_its_last_place(self, group: Group, backend: Backend) -> None:
        first, _ = await group.start()
        _, [second], _, _ = await group.run(
            moved(first, "queuing"), EnqueueRollouts([NEW]), StartAttempt(first, None), moved(first, "requeuing")
        )
        assert await queue_of(backend) == [second.rollout_id, first]
        assert ids_of((await group.run(ClaimRollouts(1, None)))[0]) == [second.rollout_id]

    async def test_x_group_queued_and_set_to_running_keeps_a_place_of_its_own(
        self, group: Group, backend: Backend
    ) -> None:
        first, _ = await group.start()
        await group.run(moved(first, "queuing"), moved(first, "running"))
        others = await group.enqueue(2)
        await group.one(moved(first, "queuing"))
        assert await queue_of(backend) == [first, *others]

    async def test_x_group_end_requeue_end_is_one_completion(self, group: Group, backend: Backend) -> None:
        (one, at), (other, _) = await group.start(), await group.start()
        replies = await group.run(
            UpdateAttempt(one, at, {}, "succeeded"),
            moved(other, "failed"),
            moved(one, "requeuing"),
            UpdateAttempt(one, "latest", {}, "failed"),
        )
        assert [reply.status for reply in replies] == ["succeeded", "failed", "requeuing", "failed"]
        assert await completions_of(backend) == [other, one]
        assert {one, other} <= set(group.told.ended)
        assert await queue_of(backend) == []

    async def test_x_group_end_and_requeue_is_no_completion(self, group: Group, backend: Backend) -> None:
        (one, at), before = await group.start(), await last_completion(backend)
        await group.run(UpdateAttempt(one, at, {}, "succeeded"), moved(one, "requeuing"))
        assert await completions_of(backend) == []
        assert await last_completion(backend) >= before
        assert await queue_of(backend) == [one]

    async def test_x_group_refusals_leave_nothing(self, backend: Backend, clock: FakeClock) -> None:
        group = Group(backend, clock, Policy(strict=True))
        [queued] = await group.enqueue(1)
        unknown = NEW._replace(resources_id="rs-no")
        replies = await group.run(
            EnqueueRollouts([NEW]),
            EnqueueRollouts([NEW, unknown]),
            UpdateAttempt(queued, "latest", {}, "failed"),
            StartRollout(unknown, "w"),
            UpdateAttempt("no", "latest", {"worker_id": "w"}, None),
            CancelRollouts([queued, "no"]),
            AllocateSequenceIds([(queued, "a"), ("no", "a")]),
            AllocateSequenceIds([(queued, "a")]),
            EnqueueRollouts([NEW]),
        )
        refused = [type(one) for one in replies[1:7]]
        assert refused == [
            ResourcesNotFoundError,
            NoAttemptsError,
            ResourcesNotFoundError,
            RolloutNotFoundError,
            RolloutNotFoundError,
            RolloutNotFoundError,
        ]
        assert replies[7] == [1]
        assert await queue_of(backend) == [queued, replies[0][0].rollout_id, replies[8][0].rollout_id]
        async with backend.snapshot() as snapshot:
            counts = await snapshot.counts()
        assert (counts.rollouts, counts.attempts, counts.workers) == (3, 0, 0)

    async def test_x_group_delete_and_late_reports(self, group: Group, backend: Backend) -> None:
        one, at = await group.start("w")
        deleted, report, attempt, outcomes, number, beat = await group.run(
            deletion(one),
            UpdateAttempt(one, at, {}, "succeeded"),
            StartAttempt(one, "w"),
            spans_of(one, at, 1),
            AllocateSequenceIds([(one, at)]),
            Heartbeat("w", None),
        )
        assert deleted == (None, [one])
        assert {type(late) for late in (report, attempt, outcomes[0], number)} == {RolloutNotFoundError}
        assert (beat.status, beat.current_rollout_id) == ("idle", None)
        assert (group.told.deleted, group.told.ended) == ([one], [])
        async with backend.snapshot() as snapshot:
            counts = await snapshot.counts()
        assert (counts.rollouts, counts.attempts, counts.spans) == (0, 0, 0)

    async def test_x_group_delete_twice(self, group: Group) -> None:
        one, _ = await group.start("w")
        assert await group.run(deletion(one), deletion(one)) == [(None, [one]), (None, [])]

    async def test_x_group_reports_before_a_deletion_are_void(self, group: Group, backend: Backend) -> None:
        one, at = await group.start("w")
        replies = await group.run(
            spans_of(one, at, 1), UpdateAttempt(one, at, {}, "succeeded"), StartAttempt(one, "w2"), deletion(one)
        )
        assert replies[3] == (None, [one])
        assert await completions_of(backend) == []
        async with backend.snapshot() as snapshot:
            counts = await snapshot.counts()
            workers = [await snapshot.worker(worker_id) for worker_id in ("w", "w2")]
        assert (counts.rollouts, counts.attempts, counts.spans) == (0, 0, 0)
        assert [worker.status for worker in workers if worker is not None] == ["idle", "idle"]

    async def test_x_group_spans_are_stored_once(self, group: Group, backend: Backend) -> None:
        one, at = await group.start()
        replies = await group.run(
            spans_of(one, at, 1, 2),
            spans_of(one, at, 2, 3, 3),
            spans_of(one, at, 4, 5, numbered=False),
            AllocateSequenceIds([(one, at)] * 2),
            spans_of(one, "no", 6),
        )
        assert replies[:4] == [[1, 2], [None, 3, None], [4, 5], [6, 7]]
        assert isinstance(replies[4][0], AttemptNotFoundError)
        async with backend.snapshot() as snapshot:
            assert (await snapshot.counts()).spans == 5

    async def test_x_group_spans_of_an_id_that_has_no_utf8_form(self, group: Group) -> None:
        replies = await group.run(spans_of("\ud800", "at-1", 1), AllocateSequenceIds([("\ud800", "at-1")]))
        assert [type(one) for one in (replies[0][0], replies[1])] == [RolloutNotFoundError] * 2

    async def test_x_group_attempts_follow_each_other(self, group: Group, backend: Backend) -> None:
        [one] = await group.enqueue(1)
        replies = await group.run(*(StartAttempt(one, f"w{number}") for number in range(3)))
        assert [claim.attempt.sequence_id for claim in replies] == [1, 2, 3]
        late, latest = await group.run(
            UpdateAttempt(one, replies[0].attempt.attempt_id, {}, "failed"), UpdateAttempt(one, "latest", {}, "running")
        )
        assert (late.sequence_id, latest.sequence_id) == (1, 3)
        async with backend.snapshot() as snapshot:
            [row] = await snapshot.rollouts([one])
        assert row is not None
        assert (row.rollout.status, row.attempt) == ("running", latest)

    async def test_x_group_resources_are_seen_at_once(self, group: Group) -> None:
        published, [new], again, claim = await group.run(
            PublishResources(None, "{}"),
            EnqueueRollouts([NEW]),
            PublishResources("rs-1", "[1]"),
            StartRollout(NEW, None),
        )
        assert (new.resources_id, claim.rollout.resources_id) == (published.resources_id, "rs-1")
        assert (published.version, again.version) == (1, 1)
        replies = await group.run(*[PublishResources("rs-1", "[2]")] * 3)
        assert [one.version for one in replies] == [2, 3, 4]

    async def test_x_group_a_worker_does_one_thing_after_another(self, group: Group) -> None:
        first, second = await group.enqueue(2)
        [one], beat, [two], again = await group.run(
            ClaimRollouts(1, "w"), Heartbeat("w", "{}"), ClaimRollouts(1, "w"), Heartbeat("w", None)
        )
        assert (one.rollout.rollout_id, two.rollout.rollout_id) == (first, second)
        assert (beat.current_rollout_id, again.current_rollout_id) == (first, second)
        assert again.heartbeat_stats_json == "{}"

    async def test_x_group_deadlines_pass_before_it(self, group: Group, clock: FakeClock, backend: Backend) -> None:
        limited = NEW._replace(config=RolloutConfig(timeout_seconds=10))
        one, at = await group.start("w", limited)
        clock.advance(11)
        beat, spans = await group.run(Heartbeat("w", None), spans_of(one, at, 1))
        assert (beat.status, beat.current_attempt_id, spans) == ("unknown", None, [1])
        assert group.told.ended == [one]
        assert await completions_of(backend) == [one]


class RequestIdsOfGroupsContract(BackendContractBase):
    """Recorded replies, in a group and from one to the next."""

    @pytest.fixture
    def group(self, backend: Backend, clock: FakeClock) -> Group:
        return Group(backend, clock)

    async def requested(
        self, group: Group, operation: Operation[R], request_id: str = "id-1", fingerprint: str = "", **more: Any
    ) -> R:
        with request_scope(request_id, fingerprint, **more):
            return await group.one(operation)

    async def rollouts(self, backend: Backend) -> int:
        async with backend.snapshot() as snapshot:
            return (await snapshot.counts()).rollouts

    async def test_x_group_twins_run_once(self, group: Group, backend: Backend) -> None:
        enqueue = EnqueueRollouts([NEW])
        one, other = await asyncio.gather(*(self.requested(group, enqueue) for _ in range(2)))
        assert [record.rollout_id for record in one] == [record.rollout_id for record in other]
        assert await self.rollouts(backend) == 1
        again = await self.requested(group, enqueue)
        assert [record.rollout_id for record in again] == [record.rollout_id for record in one]
        assert await self.rollouts(backend) == 1

    async def test_x_group_an_id_is_for_one_call(self, group: Group, backend: Backend) -> None:
        calls = [
            self.requested(group, EnqueueRollouts([NEW]), "id-1", "a"),
            self.requested(group, EnqueueRollouts([NEW, NEW]), "id-1", "b"),
            self.requested(group, ClaimRollouts(1, None), "id-1", "a"),
        ]
        one, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(one, list)
        assert [type(other) for other in others] == [RequestIdReusedError, RequestIdReusedError]
        assert await self.rollouts(backend) == 1
        with pytest.raises(RequestIdReusedError):
            await self.requested(group, EnqueueRollouts([NEW]), "id-1", "c")

    async def test_x_group_a_refusal_is_kept_if_the_call_is_repeated(self, group: Group) -> None:
        one = (await group.enqueue(1))[0]
        report = UpdateAttempt(one, "latest", {}, "running")
        for request_id, repeated in (("id-1", True), ("id-2", False)):
            with pytest.raises(NoAttemptsError):
                await self.requested(group, report, request_id, repeated=repeated)
        await group.one(StartAttempt(one, None))
        with pytest.raises(NoAttemptsError):
            await self.requested(group, report, "id-1", repeated=True)
        assert (await self.requested(group, report, "id-2")).status == "running"

    async def test_x_group_a_refusal_in_a_group_that_fails_is_kept(self, group: Group) -> None:
        one = (await group.enqueue(1))[0]
        report = UpdateAttempt(one, "latest", {}, "running")
        other = asyncio.create_task(group.one(EnqueueRollouts([NEW])))
        with pytest.raises(NoAttemptsError):
            await self.requested(group, report, repeated=True)
        assert len(await other) == 1
        await group.one(StartAttempt(one, None))
        with pytest.raises(NoAttemptsError):
            await self.requested(group, report, repeated=True)

    async def test_x_group_a_reply_is_forgotten_after_the_window(self, clock: FakeClock) -> None:
        async with self.opened(clock, replay_window_seconds=60.0) as backend:
            group = Group(backend, clock)
            one = await self.requested(group, EnqueueRollouts([NEW]))
            clock.advance(60)
            again = await self.requested(group, EnqueueRollouts([NEW]))
            assert [record.rollout_id for record in again] == [record.rollout_id for record in one]
            clock.advance(0.5)
            new = await self.requested(group, EnqueueRollouts([NEW]))
            assert [record.rollout_id for record in new] != [record.rollout_id for record in one]
            assert await self.rollouts(backend) == 2

    async def test_x_group_many_calls_each_happen_once(self, group: Group, backend: Backend) -> None:
        """Also where commits fail, or their answers are lost."""
        made: list[RolloutRecord] = []

        async def work(caller: int) -> None:
            for number in range(4):
                [one] = await group.one(EnqueueRollouts([NEW]))
                made.append(one)
                if number % 2:
                    await group.one(ClaimRollouts(1, f"w{caller}"))

        await asyncio.gather(*(work(caller) for caller in range(8)))
        ids = [record.rollout_id for record in made]
        assert await self.rollouts(backend) == len(set(ids)) == 32
        assert len(await queue_of(backend)) == 16
        async with backend.snapshot() as snapshot:
            assert (await snapshot.counts()).attempts == 16
