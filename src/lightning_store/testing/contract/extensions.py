"""What a LightningStore here does beyond the numbered facts: claims that wait, calls that end many rollouts, leases of
workers; and that every id is checked before anything happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

import pytest
import pytest_asyncio

from lightning_store.errors import RolloutNotFoundError, SpansRejectedError
from lightning_store.model import AttemptedRollout, EnqueueRolloutRequest, Rollout, RolloutConfig, Span
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import (
    ContractBase,
    claim,
    drain,
    look,
    look_at_attempt,
    look_at_worker,
    make_span,
    report,
    retrying,
    some_llm,
    statuses,
    totals,
    within_safety,
)

LEASE_SECONDS: Final = 120.0
ROUND_TRIPS_MAX: Final = 1000
"""Calls after which something that the store must notice by itself counts as not noticed."""


async def enqueued(store: LightningStore, count: int) -> list[str]:
    return [(await store.enqueue_rollout(number)).rollout_id for number in range(count)]


def ids_of(rollouts: Iterable[Rollout]) -> list[str]:
    return [rollout.rollout_id for rollout in rollouts]


class WaitingClaimsContract(ContractBase):
    """``max_wait`` of the two dequeue methods. Each wait has a length of its own, by which the clock tells it apart."""

    async def waiting_claim(
        self, store: LightningStore, clock: FakeClock, max_wait: float = 15, worker_id: str | None = None
    ) -> asyncio.Task[AttemptedRollout | None]:
        """A dequeue that waits for the queue."""
        task = asyncio.create_task(store.dequeue_rollout(worker_id, max_wait=max_wait))
        await clock.until_waiting(clock.now() + max_wait)
        return task

    async def line_of_claims(
        self, store: LightningStore, clock: FakeClock, count: int
    ) -> list[asyncio.Task[AttemptedRollout | None]]:
        """As many such dequeues, in the order of their arrival."""
        return [await self.waiting_claim(store, clock, 15 + number) for number in range(count)]

    async def claimed_by(self, waiter: asyncio.Task[AttemptedRollout | None]) -> str:
        claimed = await within_safety(waiter)
        assert claimed is not None
        return claimed.rollout_id

    async def test_x_a_rollout_queued_goes_to_the_one_who_waits(self, store: LightningStore, clock: FakeClock) -> None:
        waiter = await self.waiting_claim(store, clock, worker_id="w")
        assert (await look_at_worker(store, "w")).status == "idle"
        made = await store.enqueue_rollout("task")
        claimed = await within_safety(waiter)
        assert claimed is not None
        assert (claimed.rollout_id, claimed.status, claimed.attempt.worker_id) == (made.rollout_id, "preparing", "w")
        assert (await look_at_worker(store, "w")).current_attempt_id == claimed.attempt.attempt_id

    async def test_x_who_came_first_is_served_first(self, store: LightningStore, clock: FakeClock) -> None:
        waiters = await self.line_of_claims(store, clock, 3)
        for number, waiter in enumerate(waiters):
            [made] = await enqueued(store, 1)
            assert await self.claimed_by(waiter) == made
            assert [later.done() for later in waiters[number + 1 :]] == [False] * (2 - number)

    async def test_x_one_rollout_wakes_nobody_else(self, store: LightningStore, clock: FakeClock) -> None:
        first = await self.waiting_claim(store, clock, 15, "first")
        second = await self.waiting_claim(store, clock, 16, "second")
        asleep = await look_at_worker(store, "second")
        clock.advance(1)
        [made] = await enqueued(store, 1)
        assert await self.claimed_by(first) == made
        assert await look_at_worker(store, "second") == asleep
        assert not second.done()

    async def test_x_as_many_wake_as_were_queued(self, store: LightningStore, clock: FakeClock) -> None:
        waiters = await self.line_of_claims(store, clock, 4)
        made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=number) for number in range(3)])
        claimed = [await self.claimed_by(waiter) for waiter in waiters[:3]]
        assert sorted(claimed) == sorted(ids_of(made))
        assert not waiters[3].done()
        clock.advance(18)
        assert await within_safety(waiters[3]) is None

    async def test_x_one_who_asks_for_many_waits_for_the_first(self, store: LightningStore, clock: FakeClock) -> None:
        task = asyncio.create_task(store.dequeue_many_rollouts(limit=3, max_wait=15))
        await clock.until_waiting(clock.now() + 15)
        made = await enqueued(store, 1)
        assert ids_of(await within_safety(task)) == made

    @pytest.mark.parametrize("max_wait", [0, -1, 15, float("inf")])
    async def test_x_there_is_no_wait_for_what_is_there(
        self, store: LightningStore, clock: FakeClock, max_wait: float
    ) -> None:
        made = await enqueued(store, 3)
        first = await within_safety(store.dequeue_rollout(max_wait=max_wait))
        rest = await within_safety(store.dequeue_many_rollouts(limit=5, max_wait=max_wait))
        assert first is not None
        assert ids_of([first, *rest]) == made

    @pytest.mark.parametrize("max_wait", [0, 0.0, -1, float("-inf")])
    async def test_x_no_time_looks_once(self, store: LightningStore, max_wait: float) -> None:
        assert await within_safety(store.dequeue_rollout(max_wait=max_wait)) is None
        assert await within_safety(store.dequeue_many_rollouts(limit=2, max_wait=max_wait)) == []

    async def test_x_when_the_time_is_up_there_is_nothing(self, store: LightningStore, clock: FakeClock) -> None:
        one = await self.waiting_claim(store, clock, 15)
        many = asyncio.create_task(store.dequeue_many_rollouts(limit=2, max_wait=20))
        await clock.until_waiting(clock.now() + 20)
        clock.advance(15)
        assert await within_safety(one) is None
        assert not many.done()
        clock.advance(5)
        assert await within_safety(many) == []
        [made] = await enqueued(store, 1)
        assert (await claim(store)).rollout_id == made

    async def test_x_a_wait_must_be_a_number(self, store: LightningStore) -> None:
        [made] = await enqueued(store, 1)
        with pytest.raises(ValueError, match="max_wait"):
            await store.dequeue_rollout(max_wait=float("nan"))
        with pytest.raises(ValueError, match="max_wait"):
            await store.dequeue_many_rollouts(limit=1, max_wait=float("nan"))
        assert (await claim(store)).rollout_id == made

    async def test_x_an_attempt_given_up_wakes(self, store: LightningStore, clock: FakeClock) -> None:
        first = await store.start_rollout("task", config=retrying(timeout_seconds=10))
        waiter = await self.waiting_claim(store, clock)
        clock.advance(11)
        assert await self.claimed_by(waiter) == first.rollout_id
        assert (await look(store, first)).attempt.sequence_id == 2

    async def test_x_a_report_that_asks_for_a_retry_wakes(self, store: LightningStore, clock: FakeClock) -> None:
        first = await store.start_rollout("task", config=retrying())
        waiter = await self.waiting_claim(store, clock)
        await report(store, first, "failed")
        assert await self.claimed_by(waiter) == first.rollout_id

    @pytest.mark.parametrize("status", ["queuing", "requeuing"])
    async def test_x_a_rollout_put_back_by_hand_wakes(
        self, store: LightningStore, clock: FakeClock, status: Any
    ) -> None:
        first = await store.start_rollout("task")
        waiter = await self.waiting_claim(store, clock)
        await store.update_rollout(first.rollout_id, status=status)
        assert await self.claimed_by(waiter) == first.rollout_id

    async def test_x_who_stops_waiting_costs_no_claim(self, store: LightningStore, clock: FakeClock) -> None:
        leaver, stayer = await self.line_of_claims(store, clock, 2)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within_safety(leaver)
        for _ in range(ROUND_TRIPS_MAX):
            if clock.now() + 15 not in clock.pending():
                break
            await store.statistics()
        assert clock.pending() == [clock.now() + 16]
        [made] = await enqueued(store, 1)
        assert await self.claimed_by(stayer) == made
        assert len(await store.query_attempts(made)) == 1


class CancellingContract(ContractBase):
    """``cancel_rollouts``: many rollouts ended in one call."""

    async def test_x_cancelled_rollouts_come_in_the_order_asked_repeats_as_asked(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        ids = await enqueued(store, 3)
        clock.advance(1)
        asked = [ids[2], ids[0], ids[2]]
        cancelled = await store.cancel_rollouts(asked)
        assert ids_of(cancelled) == asked
        assert {(one.status, one.end_time) for one in cancelled} == {("cancelled", clock.now())}
        assert [await store.get_rollout_by_id(id_) for id_ in asked] == cancelled
        assert {type(one) for one in cancelled} == {Rollout}

    async def test_x_cancelling_nothing(self, store: LightningStore) -> None:
        assert await store.cancel_rollouts([]) == []

    async def test_x_an_unknown_id_cancels_nothing(self, store: LightningStore) -> None:
        ids = await enqueued(store, 2)
        with pytest.raises(RolloutNotFoundError, match="ro-x"):
            await store.cancel_rollouts([ids[0], "ro-x", ids[1]])
        assert {one.status for one in await store.query_rollouts()} == {"queuing"}
        assert await drain(store) == ids

    async def test_x_what_is_finished_stays_as_it_is(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await enqueued(store, 4)
        done = [
            await store.update_rollout(ids[0], status="succeeded"),
            await store.update_rollout(ids[1], status="failed"),
            await store.update_rollout(ids[2], status="cancelled"),
        ]
        clock.advance(1)
        [*same, cancelled] = await store.cancel_rollouts(ids)
        assert same == done
        assert (cancelled.status, cancelled.end_time) == ("cancelled", clock.now())

    async def test_x_what_is_cancelled_is_not_handed_out(self, store: LightningStore) -> None:
        ids = await enqueued(store, 4)
        retried = await store.start_rollout("retried", config=retrying())
        await report(store, retried, "failed")
        await store.cancel_rollouts([retried.rollout_id, ids[2], ids[0]])
        assert await drain(store) == [ids[1], ids[3]]

    async def test_x_cancelling_leaves_attempts_and_workers_alone(self, store: LightningStore) -> None:
        started = await store.start_rollout("task", worker_id="w")
        worker = await look_at_worker(store, "w")
        await store.cancel_rollouts([started.rollout_id])
        assert await statuses(store, started) == ("cancelled", "preparing")
        assert await look_at_attempt(store, started) == started.attempt
        assert await look_at_worker(store, "w") == worker

    async def test_x_what_is_cancelled_comes_with_its_latest_attempt(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        [unclaimed] = await enqueued(store, 1)
        ended = await store.start_rollout("ended")
        await report(store, ended, "succeeded")
        ids = [started.rollout_id, unclaimed, ended.rollout_id]
        cancelled = await store.cancel_rollouts(ids)
        assert [type(one) for one in cancelled] == [AttemptedRollout, Rollout, AttemptedRollout]
        assert cancelled == [await store.get_rollout_by_id(id_) for id_ in ids]

    async def test_x_cancelling_wakes_those_who_wait(self, store: LightningStore, clock: FakeClock) -> None:
        ids = await enqueued(store, 3)
        waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids, timeout=15))
        await clock.until_waiting(clock.now() + 15)
        cancelled = await store.cancel_rollouts(ids)
        assert await within_safety(waiter) == cancelled


class LeaseContract(ContractBase):
    """``worker_timeout_seconds``: attempts of workers that sent heartbeats and fell silent."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def leasing_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        async with self.opened(clock, worker_timeout_seconds=LEASE_SECONDS) as store:
            yield store

    async def claimed_with_heartbeat(
        self, store: LightningStore, config: RolloutConfig | None = None
    ) -> AttemptedRollout:
        await store.update_worker("w")
        await store.enqueue_rollout("task", config=config)
        return await claim(store, "w")

    async def test_x_the_attempt_of_a_silent_worker_is_given_up(
        self, leasing_store: LightningStore, clock: FakeClock
    ) -> None:
        claimed = await self.claimed_with_heartbeat(leasing_store)
        clock.advance(LEASE_SECONDS)
        assert await statuses(leasing_store, claimed) == ("preparing", "preparing")
        clock.advance(0.25)
        assert await statuses(leasing_store, claimed) == ("failed", "unresponsive")
        worker = await look_at_worker(leasing_store, "w")
        assert (worker.status, worker.current_rollout_id, worker.current_attempt_id) == ("unknown", None, None)

    @pytest.mark.parametrize("sign", ["heartbeat", "dequeue", "span"])
    async def test_x_each_sign_of_life_renews_the_lease(
        self, leasing_store: LightningStore, clock: FakeClock, sign: str
    ) -> None:
        claimed = await self.claimed_with_heartbeat(leasing_store)
        clock.advance(100)
        if sign == "heartbeat":
            await leasing_store.update_worker("w")
        elif sign == "dequeue":
            await leasing_store.dequeue_rollout("w")
        else:
            await leasing_store.add_span(make_span(claimed))
        clock.advance(LEASE_SECONDS)
        assert (await look_at_attempt(leasing_store, claimed)).status in ("preparing", "running")
        clock.advance(0.25)
        assert await statuses(leasing_store, claimed) == ("failed", "unresponsive")

    async def test_x_the_lease_begins_with_the_attempt(self, leasing_store: LightningStore, clock: FakeClock) -> None:
        await leasing_store.update_worker("w")
        clock.advance(10 * LEASE_SECONDS)
        started = await leasing_store.start_rollout("task", worker_id="w")
        clock.advance(LEASE_SECONDS)
        assert await statuses(leasing_store, started) == ("preparing", "preparing")
        clock.advance(0.25)
        assert await statuses(leasing_store, started) == ("failed", "unresponsive")

    async def test_x_a_worker_that_never_sent_a_heartbeat_is_not_given_up(
        self, leasing_store: LightningStore, clock: FakeClock
    ) -> None:
        await leasing_store.enqueue_rollout("task")
        claimed = await claim(leasing_store, "w")
        alone = await leasing_store.start_rollout("without a worker")
        await leasing_store.update_worker("another")
        clock.advance(1_000_000)
        assert await look(leasing_store, claimed) == claimed
        assert await look(leasing_store, alone) == alone

    @pytest.mark.parametrize("beats_before", [True, False])
    async def test_x_heartbeats_keep_all_attempts_of_the_worker_alive(
        self, leasing_store: LightningStore, clock: FakeClock, beats_before: bool
    ) -> None:
        if beats_before:
            await leasing_store.update_worker("w")
        await enqueued(leasing_store, 3)
        claimed = await leasing_store.dequeue_many_rollouts(limit=3, worker_id="w")
        for _ in range(4):
            clock.advance(LEASE_SECONDS - 20)
            await leasing_store.update_worker("w")
        clock.advance(LEASE_SECONDS)
        assert {await statuses(leasing_store, one) for one in claimed} == {("preparing", "preparing")}
        clock.advance(0.25)
        assert {await statuses(leasing_store, one) for one in claimed} == {("failed", "unresponsive")}

    async def test_x_the_retry_condition_holds(self, leasing_store: LightningStore, clock: FakeClock) -> None:
        claimed = await self.claimed_with_heartbeat(leasing_store, retrying())
        clock.advance(LEASE_SECONDS + 0.25)
        again = await claim(leasing_store, "other")
        assert (again.rollout_id, again.attempt.sequence_id) == (claimed.rollout_id, 2)
        assert (await look_at_attempt(leasing_store, claimed)).status == "unresponsive"

    async def test_x_the_end_of_a_lease_needs_no_call(self, clock: FakeClock) -> None:
        async with self.opened(clock, worker_timeout_seconds=10) as store:
            claimed = await self.claimed_with_heartbeat(store)
            waiter = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[claimed.rollout_id], timeout=15))
            await clock.until_waiting(clock.now() + 15)
            clock.advance(11)
            assert [rollout.status for rollout in await within_safety(waiter)] == ["failed"]

    async def test_x_what_is_finished_has_no_lease(self, leasing_store: LightningStore, clock: FakeClock) -> None:
        claimed = await self.claimed_with_heartbeat(leasing_store)
        await report(leasing_store, claimed, "succeeded")
        clock.advance(2 * LEASE_SECONDS)
        assert await statuses(leasing_store, claimed) == ("succeeded", "succeeded")
        assert (await look_at_worker(leasing_store, "w")).status == "idle"

    async def test_x_without_the_option_there_are_no_leases(self, clock: FakeClock) -> None:
        async with self.opened(clock, worker_timeout_seconds=0) as store:
            claimed = await self.claimed_with_heartbeat(store)
            clock.advance(1_000_000)
            assert await look(store, claimed) == claimed


IdCall = Callable[[LightningStore, AttemptedRollout, Any], Awaitable[Any]]

ID_CALLS: Final[dict[str, IdCall]] = {
    "start_attempt": lambda store, one, id_: store.start_attempt(id_),
    "get_next_span_sequence_id": lambda store, one, id_: store.get_next_span_sequence_id(id_, "at-1"),
    "get_next_span_sequence_id-attempt": lambda store, one, id_: store.get_next_span_sequence_id(one.rollout_id, id_),
    "get_many_span_sequence_ids": lambda store, one, id_: store.get_many_span_sequence_ids(
        [(one.rollout_id, "at-1"), (id_, "at-1")]
    ),
    "query_attempts": lambda store, one, id_: store.query_attempts(id_),
    "query_spans": lambda store, one, id_: store.query_spans(id_),
    "get_rollout_by_id": lambda store, one, id_: store.get_rollout_by_id(id_),
    "get_latest_attempt": lambda store, one, id_: store.get_latest_attempt(id_),
    "get_resources_by_id": lambda store, one, id_: store.get_resources_by_id(id_),
    "get_worker_by_id": lambda store, one, id_: store.get_worker_by_id(id_),
    "update_resources": lambda store, one, id_: store.update_resources(id_, some_llm("other")),
    "update_rollout": lambda store, one, id_: store.update_rollout(id_, status="failed"),
    "update_attempt": lambda store, one, id_: store.update_attempt(id_, "latest", status="failed"),
    "update_attempt-attempt": lambda store, one, id_: store.update_attempt(one.rollout_id, id_, status="failed"),
    "update_worker": lambda store, one, id_: store.update_worker(id_),
    "cancel_rollouts": lambda store, one, id_: store.cancel_rollouts([one.rollout_id, id_]),
    "requeue_rollouts": lambda store, one, id_: store.requeue_rollouts([one.rollout_id, id_]),
    "delete_rollouts": lambda store, one, id_: store.delete_rollouts([one.rollout_id, id_]),
    "delete_workers": lambda store, one, id_: store.delete_workers(["w-no", id_]),
    "delete_resources": lambda store, one, id_: store.delete_resources(["rs-no", id_]),
    "release_worker": lambda store, one, id_: store.release_worker(id_),
    "wait_for_rollouts": lambda store, one, id_: store.wait_for_rollouts(rollout_ids=[id_], timeout=0),
}
"""Each method that takes an id, called with it."""

WORKER_CALLS: Final[dict[str, IdCall]] = {
    "start_rollout": lambda store, one, id_: store.start_rollout("task", worker_id=id_),
    "start_attempt": lambda store, one, id_: store.start_attempt(one.rollout_id, id_),
    "dequeue_rollout": lambda store, one, id_: store.dequeue_rollout(id_),
    "dequeue_many_rollouts": lambda store, one, id_: store.dequeue_many_rollouts(worker_id=id_),
}
"""Each method that takes the id of a worker, or none."""

TEXT_CALLS: Final[dict[str, Callable[[LightningStore, AttemptedRollout, str], Awaitable[object]]]] = {
    "start_rollout": lambda store, one, text: store.start_rollout("task", resources_id=text),
    "enqueue_rollout": lambda store, one, text: store.enqueue_rollout("task", resources_id=text),
    "enqueue_many_rollouts": lambda store, one, text: store.enqueue_many_rollouts(
        [EnqueueRolloutRequest(input="task"), EnqueueRolloutRequest(input="task", resources_id=text)]
    ),
    "update_rollout": lambda store, one, text: store.update_rollout(one.rollout_id, resources_id=text),
    "update_attempt": lambda store, one, text: store.update_attempt(one.rollout_id, "latest", worker_id=text),
    "add_resources": lambda store, one, text: store.add_resources({text: some_llm()["llm"]}),
    "update_resources": lambda store, one, text: store.update_resources("rs", {text: some_llm()["llm"]}),
}
"""Each method that takes text which may be any, or the name of something."""

ITERABLES: Final[dict[str, Callable[[LightningStore, AttemptedRollout], Awaitable[object]]]] = {
    "enqueue_many_rollouts": lambda store, one: store.enqueue_many_rollouts(
        EnqueueRolloutRequest(input=number)  # type: ignore[arg-type]
        for number in range(3)
    ),
    "add_many_spans": lambda store, one: store.add_many_spans(
        make_span(one, number)  # type: ignore[arg-type]
        for number in (1, 2, 3)
    ),
    "get_many_span_sequence_ids": lambda store, one: store.get_many_span_sequence_ids(
        (one.rollout_id, one.attempt.attempt_id)  # type: ignore[arg-type]
        for _ in range(3)
    ),
    "query_rollouts": lambda store, one: store.query_rollouts(status_in=(status for status in ("preparing",))),  # type: ignore[arg-type]
    "query_workers": lambda store, one: store.query_workers(status_in=(status for status in ("busy",))),  # type: ignore[arg-type]
}
"""Each method that needs its list once only, and how many it then gives: three, or the one that there is."""

NOT_TEXT: Final = (5, None, ["x"])
NO_IDS: Final = ("", "\ud800")


async def contents(store: LightningStore) -> list[Any]:
    """All that the store holds."""
    rollouts = await store.query_rollouts()
    attempts = [list(await store.query_attempts(one.rollout_id)) for one in rollouts]
    statistics = await totals(store)
    return [
        list(rollouts),
        attempts,
        list(await store.query_workers()),
        list(await store.query_resources()),
        statistics,
    ]


class IdsContract(ContractBase):
    """What is no id is refused, and nothing changes."""

    async def filled(self, store: LightningStore) -> AttemptedRollout:
        """One rollout under way in a store, and one that is queued."""
        await store.add_resources(some_llm())
        started = await store.start_rollout("task", worker_id="w")
        await store.enqueue_rollout("task")
        return started

    @pytest.mark.parametrize("name", ID_CALLS)
    async def test_x_what_is_no_id_is_refused(self, store: LightningStore, name: str) -> None:
        one = await self.filled(store)
        before = await contents(store)
        for value in NOT_TEXT:
            with pytest.raises(TypeError):
                await ID_CALLS[name](store, one, value)
        for text in NO_IDS:
            with pytest.raises(ValueError):
                await ID_CALLS[name](store, one, text)
        assert await contents(store) == before

    @pytest.mark.parametrize("value", [5, ["x"], "", "\ud800"])
    async def test_x_the_attempt_of_a_query_is_checked_too(self, store: LightningStore, value: Any) -> None:
        one = await self.filled(store)
        with pytest.raises(ValueError if isinstance(value, str) else TypeError):
            await store.query_spans(one.rollout_id, value)

    @pytest.mark.parametrize("name", WORKER_CALLS)
    async def test_x_what_is_no_worker_is_refused(self, store: LightningStore, name: str) -> None:
        one = await self.filled(store)
        before = await contents(store)
        for value in (5, ["x"]):
            with pytest.raises(TypeError):
                await WORKER_CALLS[name](store, one, value)
        with pytest.raises(ValueError):
            await WORKER_CALLS[name](store, one, "\ud800")
        assert await contents(store) == before

    @pytest.mark.parametrize("name", TEXT_CALLS)
    async def test_x_text_that_cannot_be_sent_is_refused(self, store: LightningStore, name: str) -> None:
        one = await self.filled(store)
        before = await contents(store)
        with pytest.raises(ValueError):
            await TEXT_CALLS[name](store, one, "\ud800")
        assert await contents(store) == before

    @pytest.mark.parametrize("name", ITERABLES)
    async def test_x_what_can_be_read_once_is_read_once(self, store: LightningStore, name: str) -> None:
        one = await self.filled(store)
        assert len(await ITERABLES[name](store, one)) == (1 if name.startswith("query") else 3)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", WORKER_CALLS)
    async def test_x_no_worker_is_no_record(self, store: LightningStore, name: str) -> None:
        one = await self.filled(store)
        for value in ("", None):
            await WORKER_CALLS[name](store, one, value)
        assert [worker.worker_id for worker in await store.query_workers()] == ["w"]
        attempts = [await store.get_latest_attempt(rollout.rollout_id) for rollout in await store.query_rollouts()]
        assert {attempt.worker_id for attempt in attempts if attempt is not None} <= {None, "w"}

    async def test_x_text_is_no_list_of_ids(self, store: LightningStore) -> None:
        one = await self.filled(store)
        with pytest.raises(TypeError, match="give a list"):
            await store.cancel_rollouts(one.rollout_id)
        with pytest.raises(TypeError, match="give a list"):
            await store.wait_for_rollouts(rollout_ids=one.rollout_id, timeout=0)
        assert await look(store, one) == one

    @pytest.mark.parametrize("value", [None, 5, "span", {"name": "step"}])
    async def test_x_what_is_no_span_is_refused(self, store: LightningStore, value: Any) -> None:
        one = await self.filled(store)
        with pytest.raises(TypeError, match="Span"):
            await store.add_span(value)
        with pytest.raises(TypeError, match=r"spans\[1\]"):
            await store.add_many_spans([make_span(one), value])
        assert list(await store.query_spans(one.rollout_id)) == []


class HandMadeSpansContract(ContractBase):
    """Spans that were changed after they had been made, past every check of theirs."""

    WRONG: Final = (
        ("sequence_id", 2**70),
        ("sequence_id", -5),
        ("sequence_id", 1.5),
        ("sequence_id", "x"),
        ("start_time", 1e10),
        ("start_time", float("inf")),
        ("start_time", -1.0),
        ("name", None),
        ("trace_id", 5),
        ("attributes", None),
    )

    def spoiled(self, span: Span, field: str, value: Any) -> Span:
        setattr(span, field, value)
        return span

    @pytest.mark.parametrize(("field", "value"), WRONG)
    async def test_x_a_span_changed_by_hand_is_refused(self, store: LightningStore, field: str, value: Any) -> None:
        started = await store.start_rollout("task")
        with pytest.raises((ValueError, TypeError), match=field):
            await store.add_span(self.spoiled(make_span(started), field, value))
        assert list(await store.query_spans(started.rollout_id)) == []
        assert await look(store, started) == started
        pair = (started.rollout_id, started.attempt.attempt_id)
        assert await store.get_next_span_sequence_id(*pair) == 1

    @pytest.mark.parametrize(("field", "value"), WRONG)
    async def test_x_the_other_spans_of_its_batch_are_kept(self, store: LightningStore, field: str, value: Any) -> None:
        started = await store.start_rollout("task")
        good = [make_span(started, 1), make_span(started, 3)]
        bad = self.spoiled(make_span(started, 2), field, value)
        with pytest.raises(SpansRejectedError, match=field) as caught:
            await store.add_many_spans([good[0], bad, good[1]])
        assert [one.index for one in caught.value.rejected] == [1]
        assert list(await store.query_spans(started.rollout_id)) == good
