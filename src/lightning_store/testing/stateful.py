"""A stateful property test: any sequence of calls leaves a store as the plain reference says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightning_store.model import AttemptedRollout, AttemptStatus, RolloutConfig, RolloutStatus, Span
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.reference import TERMINAL, ReferenceAttempt, ReferenceRollout, ReferenceStore

T = TypeVar("T")

TICK_SECONDS = 1 / 64
"""Between two calls, so that no two attempts begin at the same time and no two deadlines coincide."""
TIMEOUT_SECONDS = 10.0
UNRESPONSIVE_SECONDS = 4.01

configs = st.builds(
    RolloutConfig,
    timeout_seconds=st.sampled_from([None, TIMEOUT_SECONDS]),
    unresponsive_seconds=st.sampled_from([None, UNRESPONSIVE_SECONDS]),
    max_attempts=st.integers(1, 3),
    retry_condition=st.lists(st.sampled_from(["failed", "timeout", "unresponsive"]), unique=True),
)
workers = st.sampled_from([None, "w1", "w2", "w3"])
span_ids = st.integers(1, 6).map(lambda number: f"{number:016x}")

some_rollout = precondition(lambda machine: bool(machine.reference.rollouts))
some_attempt = precondition(lambda machine: bool(machine.reference.attempts()))


class StoreStateMachine(RuleBasedStateMachine):
    """Derive from it, define ``open_store`` as for ``StoreContract``, and let pytest collect ``YourMachine.TestCase``.

    What holds after every step: the queue hands out exactly what is queuing or requeuing, first in first out, and
    nothing twice; span numbers and attempt numbers are dense; a rollout is terminal exactly when it has an end_time and
    was not put back since; the statistics are what is stored.
    """

    def open_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        """Yield a new, empty store that reads the time from ``clock``; after the ``yield``, close it."""
        raise NotImplementedError(f"{type(self).__name__} must define open_store")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.reference = ReferenceStore()
        self._runner = asyncio.Runner()
        self._opened = asynccontextmanager(self.open_store)(self.clock)
        self.store = self._run(self._opened.__aenter__())

    def teardown(self) -> None:
        try:
            self._run(self._opened.__aexit__(None, None, None))
        finally:
            self._runner.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of one call. What is overdue by now comes about first."""
        self.reference.expire(self.clock.now())
        return self._runner.run(call)

    def _tick(self, seconds: float = TICK_SECONDS) -> None:
        self.clock.advance(seconds)
        self.reference.expire(self.clock.now())

    # --- Rules -------------------------------------------------------------------------------------------------------

    @rule(config=configs)
    def enqueue(self, config: RolloutConfig) -> None:
        self._tick()
        made = self._run(self.store.enqueue_rollout("task", config=config))
        self.reference.add(made.rollout_id, config, "queuing")

    @rule(config=configs, worker_id=workers)
    def start_rollout(self, config: RolloutConfig, worker_id: str | None) -> None:
        self._tick()
        started = self._run(self.store.start_rollout("task", config=config, worker_id=worker_id))
        self._begun(self.reference.add(started.rollout_id, config, "preparing"), started, worker_id)

    @rule(worker_id=workers)
    def claim(self, worker_id: str | None) -> None:
        self._tick()
        if worker_id is not None:
            self.reference.held.setdefault(worker_id, None)
        self._claimed(self.reference.next_in_queue(), self._run(self.store.dequeue_rollout(worker_id)), worker_id)

    @rule()
    def claim_all(self) -> None:
        self._tick()
        for claimed in self._run(self.store.dequeue_many_rollouts(limit=1000)):
            self._claimed(self.reference.next_in_queue(), claimed, None)
        assert self.reference.next_in_queue() is None

    @some_rollout
    @rule(data=st.data(), worker_id=workers)
    def start_attempt(self, data: st.DataObject, worker_id: str | None) -> None:
        self._tick()
        rollout = self._draw_rollout(data)
        self._begun(rollout, self._run(self.store.start_attempt(rollout.rollout_id, worker_id)), worker_id)

    @some_attempt
    @rule(data=st.data(), span_id=span_ids)
    def span(self, data: st.DataObject, span_id: str) -> None:
        self._tick()
        attempt = self._draw_attempt(data)
        rollout = self.reference.rollouts[attempt.rollout_id]
        ids = (attempt.rollout_id, attempt.attempt_id)
        number = self._run(self.store.get_next_span_sequence_id(*ids))
        rollout.last_span_number += 1
        assert number == rollout.last_span_number
        span = Span(
            rollout_id=ids[0], attempt_id=ids[1], sequence_id=number, trace_id="1" * 32, span_id=span_id, name="step"
        )
        stored = self._run(self.store.add_span(span))
        expected = self.reference.add_span(attempt, span_id, self.clock.now())
        assert stored == (span if expected else None)

    @some_attempt
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        self._report(data, "running")

    @some_attempt
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self._report(data, "succeeded")

    @some_attempt
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self._report(data, "failed")

    @some_attempt
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self._report(data, "unresponsive")

    @some_rollout
    @rule(data=st.data(), status=st.sampled_from(["cancelled", "failed", "succeeded"]))
    def end(self, data: st.DataObject, status: RolloutStatus) -> None:
        self._set_by_hand(data, status)

    @some_rollout
    @rule(data=st.data(), status=st.sampled_from(["queuing", "requeuing"]))
    def requeue(self, data: st.DataObject, status: RolloutStatus) -> None:
        self._set_by_hand(data, status)

    @some_rollout
    @rule(data=st.data(), status=st.sampled_from(["preparing", "running"]))
    def take_up(self, data: st.DataObject, status: RolloutStatus) -> None:
        self._set_by_hand(data, status)

    @some_rollout
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self._tick()
        rollout = self._draw_rollout(data)
        assert self._run(self.store.delete_rollouts([rollout.rollout_id])) == [rollout.rollout_id]
        self.reference.delete(rollout)

    @rule(worker_id=st.sampled_from(["w1", "w2", "w3"]))
    def heartbeat(self, worker_id: str) -> None:
        self._tick()
        self._run(self.store.update_worker(worker_id))
        self.reference.beat(worker_id, self.clock.now())

    @rule(seconds=st.integers(1, 12))
    def advance_clock(self, seconds: int) -> None:
        self._tick(seconds)

    @some_rollout
    @rule(data=st.data())
    def read_attempts_and_spans(self, data: st.DataObject) -> None:
        rollout = self._draw_rollout(data)
        attempts = self._run(self.store.query_attempts(rollout.rollout_id))
        assert [(a.attempt_id, a.sequence_id, a.status, a.end_time is None) for a in attempts] == [
            (a.attempt_id, a.sequence_id, a.status, a.under_way) for a in rollout.attempts
        ]
        assert [a.last_heartbeat_time for a in attempts] == [a.heartbeat_time for a in rollout.attempts]
        spans = self._run(self.store.query_spans(rollout.rollout_id))
        assert [(span.attempt_id, span.span_id) for span in spans] == rollout.span_keys

    # --- What always holds -------------------------------------------------------------------------------------------

    @invariant()
    def rollouts_are_as_they_should_be(self) -> None:
        rows = list(self._run(self.store.query_rollouts()))
        expected = list(self.reference.rollouts.values())
        assert [(row.rollout_id, row.status) for row in rows] == [(r.rollout_id, r.status) for r in expected]
        for row, rollout in zip(rows, expected, strict=True):
            assert (row.end_time is not None) == rollout.has_ended
            assert (row.status in TERMINAL) == (row.end_time is not None and not rollout.was_put_back)
            latest = (row.attempt.attempt_id, row.attempt.status) if isinstance(row, AttemptedRollout) else None
            newest = rollout.attempts[-1] if rollout.attempts else None
            assert latest == (newest and (newest.attempt_id, newest.status))

    @invariant()
    def workers_hold_what_they_should(self) -> None:
        rows = self._run(self.store.query_workers())
        assert {row.worker_id: row.current_attempt_id for row in rows} == {
            worker_id: held and held.attempt_id for worker_id, held in self.reference.held.items()
        }

    @invariant()
    def statistics_are_what_is_stored(self) -> None:
        statistics = self._run(self.store.statistics())
        assert (
            statistics["total_rollouts"],
            statistics["total_attempts"],
            statistics["total_spans"],
            statistics["total_workers"],
        ) == (
            len(self.reference.rollouts),
            len(self.reference.attempts()),
            sum(len(rollout.span_keys) for rollout in self.reference.rollouts.values()),
            len(self.reference.held),
        )

    # --- Parts of rules ----------------------------------------------------------------------------------------------

    def _draw_rollout(self, data: st.DataObject) -> ReferenceRollout:
        index = data.draw(st.integers(0, len(self.reference.rollouts) - 1), label="rollout")
        return list(self.reference.rollouts.values())[index]

    def _draw_attempt(self, data: st.DataObject) -> ReferenceAttempt:
        attempts = self.reference.attempts()
        return attempts[data.draw(st.integers(0, len(attempts) - 1), label="attempt")]

    def _set_by_hand(self, data: st.DataObject, status: RolloutStatus) -> None:
        self._tick()
        rollout = self._draw_rollout(data)
        self._run(self.store.update_rollout(rollout.rollout_id, status=status))
        self.reference.set_by_hand(rollout, status)

    def _report(self, data: st.DataObject, status: AttemptStatus) -> None:
        self._tick()
        attempt = self._draw_attempt(data)
        self._run(self.store.update_attempt(attempt.rollout_id, attempt.attempt_id, status=status))
        self.reference.report(attempt, status)

    def _claimed(
        self, expected: ReferenceRollout | None, claimed: AttemptedRollout | None, worker_id: str | None
    ) -> None:
        assert (claimed and claimed.rollout_id) == (expected and expected.rollout_id)
        if expected is not None and claimed is not None:
            self._begun(expected, claimed, worker_id)

    def _begun(self, rollout: ReferenceRollout, started: AttemptedRollout, worker_id: str | None) -> None:
        assert started.attempt.attempt_id not in {attempt.attempt_id for attempt in self.reference.attempts()}
        self.reference.begin(rollout, started.attempt.attempt_id, worker_id, self.clock.now())
        assert started.attempt.sequence_id == rollout.attempts[-1].sequence_id
