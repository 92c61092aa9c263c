"""What an observer of a store is told of each transaction. Instrumentation is a hook: no rule and no transaction knows
what is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from lightning_store.backends.base import NotLoadedError
from lightning_store.backends.records import AttemptRecord, RolloutRecord
from lightning_store.engine.view import View
from lightning_store.lifecycle import ACTIVE


@dataclass(frozen=True, slots=True)
class AttemptBegun:
    """An attempt that a transaction began."""

    mode: str | None
    sequence_id: int
    """1 of the first attempt of its rollout."""
    age_seconds: float
    """Since its rollout was made."""


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt that was reported to have ended, or was given up."""

    status: str


@dataclass(frozen=True, slots=True)
class RolloutEnded:
    """A rollout that became terminal."""

    mode: str | None
    status: str
    age_seconds: float
    """Since it was made."""
    attempt_status: str | None
    """That of its latest attempt, which is why the rollout was given up if it failed."""


class TransactionDetails(NamedTuple):
    """One transaction that was committed."""

    operations: int
    """How many ran in it."""
    commit_seconds: float
    replies_recorded: int
    replies_replayed: int
    """Operations that were answered from a recorded reply."""
    rollouts_queued: int
    spans: int
    span_bytes: int
    spans_dropped: int
    """Spans that were not stored for their names."""
    begun: Sequence[AttemptBegun]
    ended_attempts: Sequence[AttemptEnded]
    ended_rollouts: Sequence[RolloutEnded]


class StoreObserver(Protocol):
    """Is told on the thread on which the store works, and must not raise nor take long."""

    def transaction(self, details: TransactionDetails) -> None:
        """Called after each commit."""
        ...

    def spans_evicted(self, rollouts: int) -> None:
        """Called when the spans of so many rollouts were dropped for want of room."""
        ...


class Transitions(NamedTuple):
    """What becomes of rollouts and attempts in a transaction."""

    begun: Sequence[AttemptBegun]
    ended_attempts: Sequence[AttemptEnded]
    ended_rollouts: Sequence[RolloutEnded]


_NOTHING: Final = Transitions((), (), ())


def transitions_of(view: View) -> Transitions:
    """Compare what a transaction will write with what it loaded. To be called before the commit."""
    if not view.changes.attempts and not view.effects.ended:
        return _NOTHING
    begun: list[AttemptBegun] = []
    ended: list[AttemptEnded] = []
    for attempt in view.changes.attempts.values():
        if attempt.start_time == view.now and _former_attempt(view, attempt) is None:  # else it was imported
            rollout = view.rollout(attempt.rollout_id)
            if rollout is not None:
                begun.append(AttemptBegun(rollout.mode, attempt.sequence_id, max(0.0, view.now - rollout.start_time)))
        if attempt.status not in ACTIVE and attempt.end_time == view.now:
            former = _former_attempt(view, attempt)
            if former is None or former.status in ACTIVE:
                ended.append(AttemptEnded(attempt.status))
    return Transitions(begun, ended, [_ended(view, one) for one in _completed(view)])


def _completed(view: View) -> Iterator[RolloutRecord]:
    """The rollouts with a new completion; a report that repeats an outcome makes none."""
    for rollout_id in dict.fromkeys(view.effects.ended):
        rollout, former = view.changes.rollouts.get(rollout_id), view.loaded.rollout(rollout_id)
        former_position = None if former is None else former.completion_position
        if rollout is not None and rollout.completion_position != former_position:
            yield rollout


def _ended(view: View, rollout: RolloutRecord) -> RolloutEnded:
    try:
        latest = view.latest_attempt(rollout)
    except NotLoadedError:  # it was ended without a look at its attempt
        latest = None
    age_seconds = max(0.0, view.now - rollout.start_time)
    return RolloutEnded(rollout.mode, rollout.status, age_seconds, None if latest is None else latest.status)


def _former_attempt(view: View, attempt: AttemptRecord) -> AttemptRecord | None:
    """The attempt before the transaction; None for a new one."""
    try:
        return view.loaded.attempt(attempt.rollout_id, attempt.attempt_id)
    except NotLoadedError:  # new, or it would have been looked at
        return None
