"""What trainers need beyond the facts; ``docs/training.md`` describes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, cast

import pytest
import pytest_asyncio

from lightning_store.errors import (
    AttemptFencedError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    InvalidTransitionError,
    SpansRejectedError,
)
from lightning_store.model import AttemptedRollout, AttemptStatus, EnqueueRolloutRequest, RolloutConfig, RolloutStatus
from lightning_store.store import LightningStore
from lightning_store.testing.clock import SAFETY_SECONDS, FakeClock
from lightning_store.testing.contract.base import (
    ContractBase,
    claim,
    drain,
    look_at_worker,
    make_span,
    report,
    retrying,
)


async def status_of(store: LightningStore, rollout: AttemptedRollout) -> RolloutStatus:
    found = await store.get_rollout_by_id(rollout.rollout_id)
    assert found is not None
    return found.status


class FinalOutcomesContract(ContractBase):
    """``final_outcomes``."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def final_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        async with self.opened(clock, final_outcomes=True) as store:
            yield store

    @pytest.mark.parametrize("late", ["succeeded", "failed", "running"])
    @pytest.mark.parametrize("outcome", ["cancelled", "failed", "succeeded"])
    async def test_x_final_a_late_report_is_recorded_on_its_attempt_only(
        self, final_store: LightningStore, clock: FakeClock, outcome: RolloutStatus, late: AttemptStatus
    ) -> None:
        await final_store.enqueue_rollout("task", config=retrying())
        claimed = await claim(final_store, "w")
        ended = await final_store.update_rollout(claimed.rollout_id, status=outcome)
        clock.advance(5)
        attempt = await report(final_store, claimed, late)
        assert attempt.status == late
        found = await final_store.get_rollout_by_id(claimed.rollout_id)
        assert found is not None
        assert (found.status, found.end_time) == (outcome, ended.end_time)
        assert (await look_at_worker(final_store, "w")).status == ("busy" if late == "running" else "idle")
        assert await final_store.dequeue_rollout() is None

    async def test_x_final_a_terminal_rollout_only_goes_back_into_the_queue(self, final_store: LightningStore) -> None:
        rollout = await final_store.enqueue_rollout("task")
        await final_store.cancel_rollouts([rollout.rollout_id])
        with pytest.raises(InvalidTransitionError, match="is cancelled"):
            await final_store.update_rollout(rollout.rollout_id, status="succeeded")
        await final_store.update_rollout(rollout.rollout_id, status="queuing", metadata={"again": True})
        assert (await claim(final_store)).rollout_id == rollout.rollout_id

    async def test_x_final_is_not_strict(self, final_store: LightningStore) -> None:
        assert not final_store.strict
        made = await final_store.enqueue_rollout("task", resources_id="rs-unknown")
        assert made.resources_id == "rs-unknown"
        assert await final_store.get_latest_attempt("ro-unknown") is None

    async def test_x_final_an_attempt_that_is_going_on_counts(self, final_store: LightningStore) -> None:
        await final_store.enqueue_rollout("task", config=retrying())
        await report(final_store, await claim(final_store), "failed")
        second = await claim(final_store)
        await report(final_store, second, "succeeded")
        assert await status_of(final_store, second) == "succeeded"


End = Callable[[LightningStore, AttemptedRollout], Awaitable[Any]]


async def cancel(store: LightningStore, claimed: AttemptedRollout) -> None:
    await store.cancel_rollouts([claimed.rollout_id])


async def supersede(store: LightningStore, claimed: AttemptedRollout) -> None:
    await store.start_attempt(claimed.rollout_id)


async def put_back(store: LightningStore, claimed: AttemptedRollout) -> None:
    await store.update_rollout(claimed.rollout_id, status="queuing")


each_end = pytest.mark.parametrize("end", [cancel, supersede, put_back])
each_fence = pytest.mark.parametrize("fence", ["refuse", "keep"])


class FencedAttemptsContract(ContractBase):
    """``fence_attempts``."""

    @each_end
    @each_fence
    async def test_x_fenced_attempts_get_no_span_numbers(
        self, clock: FakeClock, fence: Literal["refuse", "keep"], end: End
    ) -> None:
        async with self.opened(clock, fence_attempts=fence) as store:
            await store.enqueue_rollout("task")
            claimed = await claim(store)
            key = (claimed.rollout_id, claimed.attempt.attempt_id)
            other = await store.start_rollout("other")
            other_key = (other.rollout_id, other.attempt.attempt_id)
            assert await store.get_next_span_sequence_id(*key) == 1
            await end(store, claimed)
            with pytest.raises(AttemptFencedError, match=f"{key[1]} of rollout {key[0]} is fenced"):
                await store.get_next_span_sequence_id(*key)
            with pytest.raises(AttemptFencedError):
                await store.get_many_span_sequence_ids([other_key, key])
            assert list(await store.get_many_span_sequence_ids([other_key])) == [1]

    @each_end
    async def test_x_spans_of_fenced_attempts_are_refused(self, clock: FakeClock, end: End) -> None:
        async with self.opened(clock, fence_attempts="refuse") as store:
            await store.enqueue_rollout("task")
            claimed = await claim(store)
            await store.add_span(make_span(claimed, 1))
            await end(store, claimed)
            before = await store.get_rollout_by_id(claimed.rollout_id)
            with pytest.raises(AttemptFencedError):
                await store.add_span(make_span(claimed, 2))
            other = await store.start_rollout("other")
            with pytest.raises(SpansRejectedError) as refused:
                await store.add_many_spans([make_span(other, 1), make_span(claimed, 3)])
            assert [type(one.error) for one in refused.value.rejected] == [AttemptFencedError]
            assert [one.rollout_id for one in refused.value.stored] == [other.rollout_id]
            assert [span.sequence_id for span in await store.query_spans(claimed.rollout_id)] == [1]
            assert await store.get_rollout_by_id(claimed.rollout_id) == before

    @each_end
    async def test_x_spans_of_fenced_attempts_are_kept_without_effect(self, clock: FakeClock, end: End) -> None:
        async with self.opened(clock, fence_attempts="keep") as store:
            await store.enqueue_rollout("task")
            claimed = await claim(store)
            await end(store, claimed)
            before = await store.query_attempts(claimed.rollout_id)
            clock.advance(5)
            late = make_span(claimed, 2)
            assert await store.add_span(late) == late
            assert list(await store.query_spans(claimed.rollout_id, claimed.attempt.attempt_id)) == [late]
            assert list(await store.query_attempts(claimed.rollout_id)) == list(before)

    @each_fence
    async def test_x_attempts_that_go_on_are_not_fenced(
        self, clock: FakeClock, fence: Literal["refuse", "keep"]
    ) -> None:
        async with self.opened(clock, fence_attempts=fence) as store:
            rollout = await store.enqueue_rollout("task", config=retrying())
            assert await store.get_next_span_sequence_id(rollout.rollout_id, "at-soon") == 1
            first = await claim(store)
            await report(store, first, "failed")
            await store.add_span(make_span(first, 2))
            second = await claim(store)
            await store.add_span(make_span(second, 3))
            assert await status_of(store, second) == "running"
            await report(store, second, "succeeded")
            assert await store.get_next_span_sequence_id(second.rollout_id, second.attempt.attempt_id) == 4

    async def test_x_an_unknown_way_to_fence_is_refused(self, clock: FakeClock) -> None:
        with pytest.raises(InvalidArgumentError, match="fence_attempts is 'no'; give one of off, refuse, keep"):
            async with self.opened(clock, fence_attempts=cast(Any, "no")):
                pass


def tasks(*inputs: Any, **fields: Any) -> list[EnqueueRolloutRequest]:
    return [EnqueueRolloutRequest(input=one, **fields) for one in inputs]


class IdempotencyKeysContract(ContractBase):
    """``enqueue_many_rollouts(…, idempotency_key=)``."""

    async def test_x_key_the_same_rollouts_are_queued_once(self, store: LightningStore, clock: FakeClock) -> None:
        first = await store.enqueue_many_rollouts(tasks("a", "b"), idempotency_key="step-1")
        clock.advance(100_000)  # longer than any reply is kept
        assert list(await store.enqueue_many_rollouts(tasks("a", "b"), idempotency_key="step-1")) == list(first)
        assert await drain(store) == [one.rollout_id for one in first]
        assert [one.input for one in first] == ["a", "b"]

    async def test_x_key_rollouts_come_as_they_are_by_then(self, store: LightningStore) -> None:
        [queued] = await store.enqueue_many_rollouts(tasks("a"), idempotency_key="k")
        await report(store, await claim(store), "succeeded")
        await store.update_rollout(queued.rollout_id, input="other", metadata={"other": 1})
        [again] = await store.enqueue_many_rollouts(tasks("a"), idempotency_key="k")
        assert (again.rollout_id, again.status, again.input) == (queued.rollout_id, "succeeded", "other")
        assert await store.dequeue_rollout() is None

    @pytest.mark.parametrize(
        "other",
        [
            tasks("a"),
            tasks("b", "a"),
            tasks("a", "b", "c"),
            tasks("a", "b", mode="val"),
            tasks("a", "b", metadata={"x": 1}),
            tasks("a", "b", resources_id="rs-1"),
            tasks("a", "b", config=RolloutConfig(max_attempts=2)),
        ],
    )
    async def test_x_key_with_other_rollouts_is_refused(
        self, store: LightningStore, other: list[EnqueueRolloutRequest]
    ) -> None:
        first = await store.enqueue_many_rollouts(tasks("a", "b"), idempotency_key="k")
        with pytest.raises(IdempotencyKeyReusedError, match="'k' was used for other rollouts"):
            await store.enqueue_many_rollouts(other, idempotency_key="k")
        assert await drain(store) == [one.rollout_id for one in first]

    async def test_x_key_holds_while_one_of_the_rollouts_exists(self, store: LightningStore) -> None:
        first, second = await store.enqueue_many_rollouts(tasks("a", "b"), idempotency_key="k")
        await store.delete_rollouts([first.rollout_id])
        assert list(await store.enqueue_many_rollouts(tasks("a", "b"), idempotency_key="k")) == [second]
        await store.delete_rollouts([second.rollout_id])
        anew = await store.enqueue_many_rollouts(tasks("c", "d"), idempotency_key="k")
        assert [one.input for one in anew] == ["c", "d"]

    async def test_x_keys_differ_and_none_is_no_key(self, store: LightningStore) -> None:
        batches = [await store.enqueue_many_rollouts(tasks("a"), idempotency_key=key) for key in ("k", "K", None, None)]
        assert len({batch[0].rollout_id for batch in batches}) == 4
        assert list(await store.enqueue_many_rollouts([], idempotency_key="empty")) == []

    async def test_x_key_members_of_an_object_have_no_order(self, store: LightningStore) -> None:
        first = await store.enqueue_many_rollouts(tasks({"a": 1, "b": 2}), idempotency_key="k")
        assert list(await store.enqueue_many_rollouts(tasks({"b": 2, "a": 1}), idempotency_key="k")) == list(first)

    @pytest.mark.parametrize("bad", ["", 5, "\ud800"])
    async def test_x_key_that_is_no_text_is_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="idempotency_key"):
            await store.enqueue_many_rollouts(tasks("a"), idempotency_key=cast(Any, bad))


async def ids_of(store: LightningStore, **filters: Any) -> list[Any]:
    """The inputs of the rollouts that match, in order of insertion."""
    return [one.input for one in await store.query_rollouts(**filters)]


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"mode_in": ["train"]}, ["a", "b"]),
    ({"mode_in": ["val", None]}, ["c", "d"]),
    ({"mode_in": []}, []),
    ({"resources_id_in": ["rs-1", "rs-2"]}, ["a", "c"]),
    ({"resources_id_in": []}, []),
    ({"worker_id_in": ["w-1", "w-9"]}, ["a"]),
    ({"metadata_equals": {"lightning.run": "r1"}}, ["a", "b"]),
    ({"metadata_equals": {"lightning.run": "r1", "step": 2}}, ["b"]),
    ({"metadata_equals": {"step": 1}}, ["a"]),
    ({"metadata_equals": {"step": True}}, ["c"]),
    ({"metadata_equals": {"step": 1.5}}, []),
    ({"metadata_equals": {"tags": {"y": [1], "x": None}}}, ["b"]),
    ({"metadata_equals": {"lightning.note": "☃ \ud800"}}, ["c"]),
    ({"metadata_equals": {"lightning.tags": ["r1"]}}, ["d"]),
    ({"metadata_equals": {"lightning.run": None}}, []),
    ({"metadata_equals": {}}, ["a", "b", "c", "d"]),
    ({"start_time_min": 1_001.0, "start_time_max": 1_003.0}, ["b", "c"]),
    ({"start_time_min": 9e9}, []),
    ({"mode_in": ["train"], "resources_id_in": ["rs-1"]}, ["a"]),
    ({"end_reason_in": ["cancelled", "error"]}, []),
    ({"mode_in": ["val"], "metadata_equals": {"step": 2}, "filter_logic": "or"}, ["b", "c"]),
    ({"mode_in": ["train"], "sort_by": "start_time", "sort_order": "desc", "limit": 1}, ["b"]),
]


class FiltersContract(ContractBase):
    """``mode_in``, ``metadata_equals`` and the other filters that several methods take."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def labelled(self) -> AsyncIterator[LightningStore]:
        """Rollouts a, b, c and d, made at 1000, 1001, 1002 and 1003; w-1 has claimed a, and w-2 b."""
        clock = FakeClock(1_000.0)
        async with self.opened(clock) as store:
            for name, fields in (
                ("a", {"mode": "train", "resources_id": "rs-1", "metadata": {"lightning.run": "r1", "step": 1}}),
                ("b", {"mode": "train", "metadata": {"step": 2, "lightning.run": "r1", "tags": {"x": None, "y": [1]}}}),
                (
                    "c",
                    {
                        "mode": "val",
                        "resources_id": "rs-2",
                        "metadata": {"lightning.note": "☃ \ud800", "step": True},
                    },
                ),
                ("d", {"metadata": {"lightning.tags": ["r1"], "n": "r1"}}),
            ):
                await store.enqueue_rollout(name, **cast(Any, fields))
                clock.advance(1)
            await claim(store, "w-1")
            await claim(store, "w-2")
            yield store

    @pytest.mark.parametrize(("filters", "found"), FILTERS, ids=[str(number) for number in range(len(FILTERS))])
    async def test_x_filter_rollouts(self, labelled: LightningStore, filters: dict[str, Any], found: list[str]) -> None:
        assert await ids_of(labelled, **filters) == found

    async def test_x_filter_follows_updates_and_deletions(self, labelled: LightningStore) -> None:
        a, b, *_ = await labelled.query_rollouts()
        await labelled.update_rollout(a.rollout_id, metadata={"lightning.run": "r2"})
        await labelled.update_rollout(b.rollout_id, metadata=None)
        assert await ids_of(labelled, metadata_equals={"lightning.run": "r1"}) == []
        assert await ids_of(labelled, metadata_equals={"lightning.run": "r2"}) == ["a"]
        await labelled.delete_rollouts([a.rollout_id])
        assert await ids_of(labelled, metadata_equals={"lightning.run": "r2"}) == []

    async def test_x_filter_long_values_are_found(self, labelled: LightningStore) -> None:
        long = "x" * 5_000
        await labelled.enqueue_rollout("long", metadata={"lightning.note": long})
        assert await ids_of(labelled, metadata_equals={"lightning.note": long}) == ["long"]
        assert await ids_of(labelled, metadata_equals={"lightning.note": long + "x"}) == []

    @pytest.mark.parametrize(
        "bad",
        [
            {"mode_in": "train"},
            {"mode_in": ["other"]},
            {"worker_id_in": "w"},
            {"resources_id_in": [None]},
            {"metadata_equals": "x"},
            {"metadata_equals": {"x": object()}},
            {"start_time_min": "now"},
            {"end_reason_in": ["no reason"]},
            {"start_time_max": float("nan")},
            {"start_time_min": float("inf")},
            {"start_time_min": -1},
        ],
    )
    async def test_x_filter_that_is_not_legal_is_refused(self, labelled: LightningStore, bad: dict[str, Any]) -> None:
        [name] = bad
        with pytest.raises((ValueError, TypeError), match=name):
            await labelled.query_rollouts(**bad)
        with pytest.raises((ValueError, TypeError), match=name):
            await labelled.cancel_rollouts(**bad)
        with pytest.raises((ValueError, TypeError), match=name):
            await labelled.delete_rollouts(older_than=0, **bad)
        with pytest.raises((ValueError, TypeError), match=name):
            await anext(aiter(labelled.watch_rollouts(**bad)))
        assert len(await labelled.query_rollouts()) == 4

    async def test_x_filter_cancels(self, labelled: LightningStore) -> None:
        cancelled = await labelled.cancel_rollouts(metadata_equals={"lightning.run": "r1"})
        assert [(one.input, one.status) for one in cancelled] == [("a", "cancelled"), ("b", "cancelled")]
        assert [one.status for one in await labelled.query_rollouts()] == [
            "cancelled",
            "cancelled",
            "queuing",
            "queuing",
        ]
        assert await labelled.cancel_rollouts(metadata_equals={"lightning.run": "r1"}) == []
        again = await labelled.cancel_rollouts(status_in=["queuing"], mode_in=["val"])
        assert [one.input for one in again] == ["c"]

    async def test_x_filter_cancels_of_those_named(self, labelled: LightningStore) -> None:
        a, _, c, _ = [one.rollout_id for one in await labelled.query_rollouts()]
        assert [one.input for one in await labelled.cancel_rollouts([c, a], mode_in=["val"])] == ["c"]
        assert await labelled.cancel_rollouts([], mode_in=["train"]) == []
        with pytest.raises(ValueError, match="not found"):
            await labelled.cancel_rollouts(["ro-no"], mode_in=["train"])

    async def test_x_filter_or_ids_have_to_be_given_to_cancel(self, labelled: LightningStore) -> None:
        with pytest.raises(InvalidArgumentError, match="neither rollout_ids nor a filter is given"):
            await labelled.cancel_rollouts()
        assert await ids_of(labelled, status_in=["cancelled"]) == []

    async def test_x_filter_deletes(self, labelled: LightningStore) -> None:
        await labelled.cancel_rollouts(start_time_min=0)
        a, _, c, _ = [one.rollout_id for one in await labelled.query_rollouts()]
        assert await labelled.delete_rollouts(older_than=0, worker_id_in=["w-1"]) == [a]
        assert await labelled.delete_rollouts([c], mode_in=["train"]) == []
        assert await ids_of(labelled) == ["b", "c", "d"]

    async def test_x_filter_watches(self, labelled: LightningStore) -> None:
        everything = [one.rollout_id for one in await labelled.query_rollouts()]
        feed = labelled.watch_rollouts(metadata_equals={"lightning.run": "r1"})
        train = labelled.watch_rollouts(everything, mode_in=["train"])
        await labelled.cancel_rollouts(everything[::-1])
        assert [(await anext(feed)).rollout.input for _ in range(2)] == ["b", "a"]
        assert [one.rollout.input async for one in train] == ["b", "a"]


async def fail(store: LightningStore, clock: FakeClock, claimed: AttemptedRollout) -> None:
    await report(store, claimed, "failed")


async def take_too_long(store: LightningStore, clock: FakeClock, claimed: AttemptedRollout) -> None:
    clock.advance(101)


async def fall_silent(store: LightningStore, clock: FakeClock, claimed: AttemptedRollout) -> None:
    clock.advance(51)


async def fail_by_hand(store: LightningStore, clock: FakeClock, claimed: AttemptedRollout) -> None:
    await store.update_rollout(claimed.rollout_id, status="failed")


async def call_off(store: LightningStore, clock: FakeClock, claimed: AttemptedRollout) -> None:
    await store.cancel_rollouts([claimed.rollout_id])


async def succeed(store: LightningStore, clock: FakeClock, claimed: AttemptedRollout) -> None:
    await report(store, claimed, "succeeded")


Ending = Callable[[LightningStore, FakeClock, AttemptedRollout], Awaitable[None]]
ENDINGS: list[tuple[Ending, RolloutConfig, str | None]] = [
    (fail, RolloutConfig(), "error"),
    (take_too_long, RolloutConfig(timeout_seconds=100), "timeout"),
    (fall_silent, RolloutConfig(unresponsive_seconds=50), "worker_lost"),
    (fail_by_hand, RolloutConfig(), "error"),
    (call_off, RolloutConfig(), "cancelled"),
    (succeed, RolloutConfig(), None),
]


class EndReasonsContract(ContractBase):
    """``end_reason`` and ``requeue_rollouts``."""

    @pytest.mark.parametrize(("end", "config", "reason"), ENDINGS, ids=[end.__name__ for end, _, _ in ENDINGS])
    async def test_x_end_reason_tells_why_it_did_not_succeed(
        self, store: LightningStore, clock: FakeClock, end: Ending, config: RolloutConfig, reason: str | None
    ) -> None:
        queued = await store.enqueue_rollout("task", config=config)
        assert queued.end_reason is None
        claimed = await claim(store)
        assert claimed.end_reason is None
        await end(store, clock, claimed)
        [found] = await store.query_rollouts()
        assert found.end_reason == reason
        [waited] = await store.wait_for_rollouts([claimed.rollout_id], timeout=0)
        assert waited.end_reason == reason
        if reason is not None:
            assert await ids_of(store, end_reason_in=[reason]) == ["task"]

    async def test_x_end_reason_comes_with_the_last_retry_only(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task", config=retrying(2, timeout_seconds=100.0))
        await report(store, await claim(store), "failed")
        [waiting] = await store.query_rollouts()
        assert (waiting.status, waiting.end_reason) == ("requeuing", None)
        await claim(store)
        clock.advance(101)
        [ended] = await store.query_rollouts()
        assert (ended.status, ended.end_reason) == ("failed", "timeout")

    async def test_x_end_reason_goes_with_the_outcome(self, store: LightningStore) -> None:
        await store.enqueue_rollout("task")
        claimed = await claim(store)
        await report(store, claimed, "failed")
        await report(store, claimed, "succeeded")
        [late] = await store.query_rollouts()
        assert (late.status, late.end_reason) == ("succeeded", None)

    async def test_x_requeued_rollouts_go_to_the_tail_with_one_attempt_more(self, store: LightningStore) -> None:
        for name in ("a", "b", "c"):
            await store.enqueue_rollout(name)
        first, second = await claim(store), await claim(store)
        await report(store, first, "failed")
        await store.cancel_rollouts([second.rollout_id])
        b, a = await store.requeue_rollouts([second.rollout_id, first.rollout_id])
        assert [(one.input, one.status, one.end_reason) for one in (b, a)] == [
            ("b", "requeuing", None),
            ("a", "requeuing", None),
        ]
        assert isinstance(a, AttemptedRollout)
        again = await store.dequeue_many_rollouts(limit=5)
        assert [(one.input, one.attempt.sequence_id) for one in again] == [("c", 1), ("b", 2), ("a", 2)]
        await report(store, again[2], "failed")
        assert await ids_of(store, status_in=["failed"]) == ["a"]

    async def test_x_requeue_leaves_others_alone(self, store: LightningStore) -> None:
        queued = await store.enqueue_rollout("queued")
        running = await store.start_rollout("running")
        before = list(await store.query_rollouts())
        assert await store.requeue_rollouts([running.rollout_id, queued.rollout_id, running.rollout_id]) == [
            *before[::-1],
            before[1],
        ]
        assert list(await store.query_rollouts()) == before
        assert await store.requeue_rollouts([]) == []

    async def test_x_an_unknown_id_requeues_nothing(self, store: LightningStore) -> None:
        rollout = await store.enqueue_rollout("task")
        await store.cancel_rollouts([rollout.rollout_id])
        with pytest.raises(ValueError, match="ro-no not found"):
            await store.requeue_rollouts([rollout.rollout_id, "ro-no"])
        with pytest.raises((ValueError, TypeError), match="rollout_ids"):
            await store.requeue_rollouts(rollout.rollout_id)
        assert await store.dequeue_rollout() is None

    @pytest.mark.parametrize("options", [{"strict": True}, {"final_outcomes": True}])
    async def test_x_final_outcomes_may_be_requeued(self, clock: FakeClock, options: dict[str, Any]) -> None:
        async with self.opened(clock, **options) as store:
            rollout = await store.enqueue_rollout("task")
            await store.cancel_rollouts([rollout.rollout_id])
            await store.requeue_rollouts([rollout.rollout_id])
            assert (await claim(store)).rollout_id == rollout.rollout_id


def patient(max_attempts: int = 4, **fields: Any) -> RolloutConfig:
    """A config whose retries come after 10 seconds, then 20, then 40."""
    return retrying(max_attempts, retry_delay_seconds=10.0, retry_backoff=2.0, **fields)


class RetryDelaysContract(ContractBase):
    """``retry_delay_seconds`` and ``retry_backoff``."""

    async def test_x_delay_each_retry_waits_longer(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task", config=patient())
        for seconds in (10, 20, 40):
            await report(store, await claim(store), "failed")
            clock.advance(seconds)
            [waiting] = await store.query_rollouts()
            assert (waiting.status, waiting.end_reason) == ("requeuing", None)
            assert await store.dequeue_rollout() is None
            clock.advance(1)
        last = await claim(store)
        assert last.attempt.sequence_id == 4
        assert (last.config.retry_delay_seconds, last.config.retry_backoff) == (10, 2)
        await report(store, last, "failed")
        assert await status_of(store, last) == "failed"

    async def test_x_delay_it_goes_to_the_tail_when_it_is_over(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("a", config=patient())
        await report(store, await claim(store), "failed")
        await store.enqueue_rollout("b")
        clock.advance(11)
        await store.query_rollouts()
        await store.enqueue_rollout("c")
        assert [one.input for one in await store.dequeue_many_rollouts(limit=5)] == ["b", "a", "c"]

    async def test_x_delay_a_claim_that_waits_gets_it(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task", config=patient())
        await report(store, await claim(store), "failed")
        waiting = asyncio.create_task(store.dequeue_rollout(max_wait=15))
        await clock.until_waiting(clock.now() + 15)
        clock.advance(10.5)
        claimed = await asyncio.wait_for(waiting, SAFETY_SECONDS)
        assert claimed is not None
        assert claimed.attempt.sequence_id == 2

    async def test_x_delay_follows_a_deadline_too(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task", config=patient(timeout_seconds=100.0))
        await claim(store)
        clock.advance(101)
        assert await store.dequeue_rollout() is None
        clock.advance(10.5)
        assert (await claim(store)).attempt.sequence_id == 2

    async def test_x_delay_outlasts_other_changes(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task", config=patient())
        claimed = await claim(store, "w")
        await report(store, claimed, "failed")
        await store.update_rollout(claimed.rollout_id, metadata={"x": 1})
        await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, metadata={"x": 1})
        await report(store, claimed, "failed")
        await store.update_worker("w")
        assert await store.dequeue_rollout() is None
        clock.advance(10.5)
        assert (await claim(store)).metadata == {"x": 1}
        assert await store.dequeue_rollout() is None

    @pytest.mark.parametrize("status", ["queuing", "requeuing"])
    async def test_x_delay_ends_by_hand(self, store: LightningStore, clock: FakeClock, status: RolloutStatus) -> None:
        await store.enqueue_rollout("task", config=patient())
        claimed = await claim(store)
        await report(store, claimed, "failed")
        await store.update_rollout(claimed.rollout_id, status=status)
        assert (await claim(store)).attempt.sequence_id == 2
        clock.advance(60)
        assert await store.dequeue_rollout() is None

    async def test_x_delay_ends_with_the_rollout(self, store: LightningStore, clock: FakeClock) -> None:
        for name in ("cancelled", "succeeded", "deleted", "started"):
            await store.enqueue_rollout(name, config=patient())
        one, two, three, four = await store.dequeue_many_rollouts(limit=4)
        for claimed in (one, two, three, four):
            await report(store, claimed, "failed")
        await store.cancel_rollouts([one.rollout_id])
        await report(store, two, "succeeded")
        await store.delete_rollouts([three.rollout_id])
        started = await store.start_attempt(four.rollout_id)
        clock.advance(60)
        assert await store.dequeue_rollout() is None
        assert [one.status for one in await store.query_rollouts()] == ["cancelled", "succeeded", "preparing"]
        await report(store, started, "succeeded")
        assert await status_of(store, started) == "succeeded"

    async def test_x_delay_a_span_revives_a_rollout_that_waits(self, store: LightningStore, clock: FakeClock) -> None:
        await store.enqueue_rollout("task", config=patient(unresponsive_seconds=50.0))
        claimed = await claim(store)
        clock.advance(51)
        assert await status_of(store, claimed) == "requeuing"
        await store.add_span(make_span(claimed))
        assert await status_of(store, claimed) == "running"
        clock.advance(40)
        assert await status_of(store, claimed) == "running"
        assert await store.dequeue_rollout() is None
        clock.advance(11)
        assert await status_of(store, claimed) == "requeuing"

    @pytest.mark.parametrize(
        "bad", [{"retry_delay_seconds": -1}, {"retry_backoff": 0.5}, {"retry_backoff": 101}, {"retry_backoff": "x"}]
    )
    async def test_x_delay_that_is_not_legal_is_refused(self, store: LightningStore, bad: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(bad))):
            await store.enqueue_rollout("task", config=cast(Any, bad))


async def inputs_in_queue(store: LightningStore) -> list[Any]:
    """The inputs of what one claim gets, in the order of the queue."""
    return [one.input for one in await store.dequeue_many_rollouts(limit=100)]


class PrioritiesContract(ContractBase):
    """``priority`` and ``retry_position``."""

    async def test_x_priority_comes_before_order(self, store: LightningStore) -> None:
        for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 10_000), ("f", -10_000), ("g", 0)):
            queued = await store.enqueue_rollout(name, priority=priority)
            assert queued.priority == priority
        assert (await claim(store)).input == "e"
        await store.enqueue_rollout("h", priority=6)
        assert await inputs_in_queue(store) == ["h", "b", "d", "a", "g", "c", "f"]
        assert [one.priority for one in await store.query_rollouts(sort_by="priority", limit=2)] == [-10_000, -1]

    async def test_x_priority_within_a_batch(self, store: LightningStore) -> None:
        many = [EnqueueRolloutRequest(input=number, priority=number % 3) for number in range(9)]
        queued = await store.enqueue_many_rollouts(many)
        assert [one.input for one in queued] == list(range(9))
        assert await inputs_in_queue(store) == [2, 5, 8, 1, 4, 7, 0, 3, 6]

    async def test_x_priority_of_many_is_kept_by_single_claims(self, store: LightningStore) -> None:
        order = sorted(range(40), key=lambda number: (-(number * 7 % 5), number))
        for number in range(40):
            await store.enqueue_rollout(number, priority=number * 7 % 5)
        assert [(await claim(store)).input for _ in range(40)] == order
        assert await store.dequeue_rollout() is None

    async def test_x_priority_stays_with_a_retry(self, store: LightningStore) -> None:
        await store.enqueue_rollout("urgent", priority=1, config=retrying())
        claimed = await claim(store)
        for name, priority in (("a", 0), ("b", 1)):
            await store.enqueue_rollout(name, priority=priority)
        await report(store, claimed, "failed")
        assert await inputs_in_queue(store) == ["b", "urgent", "a"]

    @pytest.mark.parametrize("delay", [0, 10])
    async def test_x_a_retry_may_stand_at_the_head(self, store: LightningStore, clock: FakeClock, delay: int) -> None:
        config = retrying(3, retry_position="head", retry_delay_seconds=delay)
        for name in ("a", "b"):
            await store.enqueue_rollout(name, config=config)
        first, second = await store.dequeue_many_rollouts(limit=2)
        await store.enqueue_rollout("c")
        await store.enqueue_rollout("urgent", priority=1)
        for claimed in (second, first):
            await report(store, claimed, "failed")
            clock.advance(1)
        clock.advance(delay)
        assert await inputs_in_queue(store) == ["urgent", "b", "a", "c"]

    async def test_x_a_rollout_put_back_by_hand_goes_to_the_tail_of_its_priority(self, store: LightningStore) -> None:
        config = retrying(3, retry_position="head")
        await store.enqueue_rollout("a", priority=1, config=config)
        claimed = await claim(store)
        for name, priority in (("b", 1), ("c", 0)):
            await store.enqueue_rollout(name, priority=priority)
        await store.cancel_rollouts([claimed.rollout_id])
        await store.requeue_rollouts([claimed.rollout_id])
        assert await inputs_in_queue(store) == ["b", "a", "c"]

    async def test_x_priority_a_place_is_given_up_when_the_rollout_ends(self, store: LightningStore) -> None:
        first, second, _ = [await store.enqueue_rollout(name, priority=2) for name in ("a", "b", "c")]
        await store.cancel_rollouts([first.rollout_id])
        await store.delete_rollouts([second.rollout_id])
        assert await inputs_in_queue(store) == ["c"]

    @pytest.mark.parametrize("bad", [10_001, -10_001, 1.5, "high", True, None])
    async def test_x_priority_that_is_not_legal_is_refused(self, store: LightningStore, bad: Any) -> None:
        with pytest.raises(ValueError, match="priority"):
            await store.enqueue_rollout("task", priority=cast(Any, bad))
        with pytest.raises(ValueError, match="retry_position"):
            await store.enqueue_rollout("task", config=cast(Any, {"retry_position": bad}))
        assert len(await store.query_rollouts()) == 0


class UncountedAttemptsContract(ContractBase):
    """``counts=False``, and the reserved member of metadata that stands for it."""

    @pytest.mark.parametrize("how", [{"counts": False}, {"metadata": {"lightning.counts": False}}])
    async def test_x_counts_a_failure_that_does_not_is_tried_again(
        self, store: LightningStore, how: dict[str, Any]
    ) -> None:
        await store.enqueue_rollout("task", config=RolloutConfig(max_attempts=2, retry_condition=["failed"]))
        for _ in range(2):
            lost = await claim(store)
            for _ in range(2):  # said twice, it counts once
                attempt = await store.update_attempt(lost.rollout_id, lost.attempt.attempt_id, status="failed", **how)
                assert (attempt.status, attempt.counts) == ("failed", False)
                assert await status_of(store, lost) == "requeuing"
        await report(store, await claim(store), "failed")
        last = await claim(store)
        assert (last.attempt.sequence_id, last.attempt.counts) == (4, True)
        await report(store, last, "failed")
        assert await status_of(store, last) == "failed"
        attempts = await store.query_attempts(last.rollout_id)
        assert [one.counts for one in attempts] == [False, False, True, True]

    async def test_x_counts_needs_no_retry_condition_and_is_taken_back(self, store: LightningStore) -> None:
        await store.enqueue_rollout("task")
        claimed = await claim(store)
        ids = (claimed.rollout_id, claimed.attempt.attempt_id)
        await store.update_attempt(*ids, status="failed", counts=False)
        assert await status_of(store, claimed) == "requeuing"
        assert (await store.update_attempt(*ids, status="failed", counts=True)).counts
        assert await status_of(store, claimed) == "failed"
        assert (await store.update_attempt(*ids, status="succeeded", counts=False)).counts is False
        assert await status_of(store, claimed) == "succeeded"

    @pytest.mark.parametrize("bad", [{"counts": None}, {"counts": "no"}, {"metadata": {"lightning.counts": 0}}])
    async def test_x_counts_that_is_no_boolean_is_refused(self, store: LightningStore, bad: dict[str, Any]) -> None:
        claimed = await store.start_rollout("task")
        with pytest.raises(ValueError, match="counts"):
            await store.update_attempt(claimed.rollout_id, "latest", status="failed", **bad)
        assert await status_of(store, claimed) == "preparing"


class ReservedMetadataContract(ContractBase):
    """Members of metadata that stand for arguments."""

    async def test_x_reserved_keys_queue_each_batch_once(self, store: LightningStore) -> None:
        def keyed(*keys: str | None) -> list[EnqueueRolloutRequest]:
            return [
                EnqueueRolloutRequest(input=n, metadata=None if key is None else {"lightning.idempotency_key": key})
                for n, key in enumerate(keys)
            ]

        batch = keyed("a", None, "b", "a")
        first = [one.rollout_id for one in await store.enqueue_many_rollouts(batch)]
        again = [one.rollout_id for one in await store.enqueue_many_rollouts(batch)]
        assert [one for one in first if one in again] == [first[0], *first[2:]]
        assert again[1] not in first
        single = await store.enqueue_rollout("c", metadata={"lightning.idempotency_key": "c"})
        assert await store.enqueue_rollout("c", metadata={"lightning.idempotency_key": "c"}) == single
        with pytest.raises(IdempotencyKeyReusedError):
            await store.enqueue_many_rollouts(keyed("new", "c"))
        assert (await store.statistics())["total_rollouts"] == 6
        argument = await store.enqueue_many_rollouts(keyed("a"), idempotency_key="the argument counts")
        assert argument[0].rollout_id not in first

    async def test_x_reserved_members_stand_for_arguments_that_are_not_given(self, store: LightningStore) -> None:
        metadata = {
            "lightning.priority": 3,
            "lightning.retry_position": "head",
            "lightning.retry_delay_seconds": 5,
            "lightning.retry_backoff": 2,
        }
        config = RolloutConfig(max_attempts=2, retry_backoff=3)
        for made in (
            await store.enqueue_rollout("task", config=config, metadata=metadata),
            await store.start_rollout("task", config=config, metadata=metadata),
        ):
            assert (made.priority, made.config.max_attempts, made.metadata) == (3, 2, metadata)
            assert (made.config.retry_position, made.config.retry_delay_seconds) == ("head", 5)
            assert made.config.retry_backoff == 3
        assert (await store.enqueue_rollout("task", metadata=metadata, priority=-1)).priority == -1
        assert config == RolloutConfig(max_attempts=2, retry_backoff=3)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("priority", 10_001), ("priority", "high"), ("retry_position", "front"), ("idempotency_key", "")],
    )
    async def test_x_reserved_members_that_are_not_legal_are_refused(
        self, store: LightningStore, key: str, value: Any
    ) -> None:
        with pytest.raises(ValueError, match=f"lightning.{key}"):
            await store.enqueue_rollout("task", metadata={f"lightning.{key}": value})
        with pytest.raises(ValueError, match="lightning.idempotency_key"):
            await store.start_rollout("task", metadata={"lightning.idempotency_key": "key"})
        assert (await store.statistics())["total_rollouts"] == 0
