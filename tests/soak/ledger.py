"""What all callers of a soak were told, held against each other while it runs.

An account is opened at the first word of a rollout and closed when the algorithm has deleted it, so that the length of
the run costs a few bytes a rollout and no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from lightning_store.clock import Clock, SystemClock
from lightning_store.errors import RolloutNotFoundError, SpansRejectedError
from lightning_store.model import Attempt, AttemptedRollout, AttemptStatus, CompletedRollout, Rollout, Span
from tests.soak.measured import Latencies

TERMINAL: Final = ("succeeded", "failed", "cancelled")
VIOLATIONS_MAX: Final = 20
"""After so many the soak ends at once."""

logger = logging.getLogger("soak")


@dataclass
class Account:
    """One rollout, as callers were told of it."""

    rollout_id: str
    doomed: bool
    """No runner will ever report a success."""
    attempts: dict[str, int] = field(default_factory=dict)
    """Numbers of the attempts that somebody was handed, by id."""
    reports: dict[str, AttemptStatus] = field(default_factory=dict)
    """The outcomes that were reported, by attempt, acknowledged or not."""
    numbers: set[int] = field(default_factory=set)
    """Span numbers that were handed out, or that stored spans came with."""
    numbers_under_way: int = 0
    """At most so many more were taken by calls that have no answer yet, or that were given up."""
    sent: set[str] = field(default_factory=set)
    """Ids of all spans that were sent."""
    stored: dict[str, int] = field(default_factory=dict)
    """Numbers of the spans that are acknowledged, by id."""
    told: dict[str, list[str]] = field(default_factory=dict)
    """The statuses that each feed has told."""
    ended_at: float | None = None
    """When it ended, as told first."""
    told_by_all: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    """Somebody has asked to cancel it."""
    gone: bool = False
    """Somebody has asked to delete it, or left it to the retention."""


class Ledger:
    """The accounts, what was done in all, and what went wrong."""

    def __init__(self, seed: int, feeds: Sequence[str], *, strict: bool) -> None:
        """``feeds`` are the names of those that tell every completion."""
        self.seed = seed
        self.strict = strict
        self.latencies = Latencies()
        self.clock: Clock = SystemClock()
        self.accounts: dict[str, Account] = {}
        self.done: Counter[str] = Counter()
        """How often what happened, for the summary."""
        self.violations: list[str] = []
        self.broken = asyncio.Event()
        """Set with the first violation too many."""
        self._feeds = tuple(feeds)
        self._ids: dict[str, str] = {}
        """Rollout ids by task, of the whole run: a rollout that was made twice would have two."""
        self._closed: set[str] = set()
        self._cursors: dict[str, set[str]] = {name: set() for name in feeds}
        self._last_end: dict[str, float] = dict.fromkeys(feeds, 0.0)
        self._versions: dict[str, set[int]] = {}
        self._claims_given_up: set[str] = set()
        """Workers that gave up a claim which may have succeeded."""
        self._unclaimed: dict[str, Attempt] = {}
        """Attempts that nobody was handed when they were read, by id."""

    def violate(self, what: str, **facts: object) -> None:
        """Something that must not be."""
        text = f"{what}: " + ", ".join(f"{name}={value!r}" for name, value in facts.items())
        self.violations.append(text)
        if len(self.violations) >= VIOLATIONS_MAX:
            self.broken.set()

    @contextmanager
    def no_errors(self, who: str) -> Iterator[None]:
        """Whatever is raised inside is an error that a caller must not see."""
        try:
            yield
        except Exception as error:
            logger.exception("%s", who)
            self.violate("an error reached a caller", who=who, error=error)

    # --- Rollouts and claims -----------------------------------------------------------------------------------------

    def account(self, rollout: Rollout) -> Account:
        """The rollout's account. Its input names the task, which must have this rollout and no other."""
        task = rollout.input["task"]
        known = self._ids.setdefault(task, rollout.rollout_id)
        if known != rollout.rollout_id:
            self.violate("a task has two rollouts", task=task, rollout_ids=(known, rollout.rollout_id))
        account = self.accounts.get(rollout.rollout_id)
        if account is None:
            account = Account(rollout.rollout_id, rollout.input["doomed"])
            if rollout.rollout_id in self._closed:  # late word of a rollout that is deleted by now
                account.gone = True
            else:
                self.accounts[rollout.rollout_id] = account
        return account

    def claimed(self, rollout: AttemptedRollout, worker_id: str | None) -> Account:
        """A runner was handed an attempt."""
        account = self.account(rollout)
        attempt = rollout.attempt
        facts = {"rollout_id": rollout.rollout_id, "attempt_id": attempt.attempt_id, "worker_id": worker_id}
        if attempt.attempt_id in account.attempts:
            self.violate("an attempt was handed out twice", **facts)
        if attempt.sequence_id in account.attempts.values():
            self.violate("two attempts have one number", number=attempt.sequence_id, **facts)
        if attempt.worker_id != worker_id:
            self.violate("an attempt is of another worker", holder=attempt.worker_id, **facts)
        account.attempts[attempt.attempt_id] = attempt.sequence_id
        self._unclaimed.pop(attempt.attempt_id, None)
        self.done["claims"] += 1
        self.done["retries"] += attempt.sequence_id > 1
        return account

    def claim_given_up(self, worker_id: str) -> None:
        """A runner cancelled its claim and does not know whether it was handed anything."""
        self._claims_given_up.add(worker_id)
        self.done["claims given up"] += 1

    @contextmanager
    def unless_gone(self, account: Account) -> Iterator[None]:
        """Ends quietly where the rollout is unknown, if it may be."""
        try:
            yield
        except (RolloutNotFoundError, SpansRejectedError) as error:
            causes = [one.error for one in error.rejected] if isinstance(error, SpansRejectedError) else [error]
            if not account.gone or not all(isinstance(cause, RolloutNotFoundError) for cause in causes):
                self.violate("a rollout was lost", rollout_id=account.rollout_id, error=error)
            self.done["late reports refused"] += 1

    # --- Spans -------------------------------------------------------------------------------------------------------

    @contextmanager
    def taking_numbers(self, account: Account, count: int) -> Iterator[None]:
        """Inside, the store may give out so many numbers. If it fails, nobody knows whether it did."""
        account.numbers_under_way += count
        try:
            yield
        except RolloutNotFoundError:
            account.numbers_under_way -= count
            raise
        account.numbers_under_way -= count

    def numbered(self, account: Account, numbers: Iterable[int]) -> None:
        """These were given out."""
        for number in numbers:
            if number in account.numbers:
                self.violate("a span number was given out twice", rollout_id=account.rollout_id, number=number)
            account.numbers.add(number)

    def stored(self, account: Account, spans: Iterable[Span | None], expected: int) -> None:
        """The answer to a call that had ``expected`` spans, none of which was there before."""
        stored = [span for span in spans if span is not None]
        if len(stored) != expected:
            facts = {"rollout_id": account.rollout_id, "sent": expected, "stored": len(stored)}
            self.violate("new spans were taken for duplicates", **facts)
        account.stored.update((span.span_id, span.sequence_id) for span in stored)
        self.done["spans"] += len(stored)

    # --- Completions -------------------------------------------------------------------------------------------------

    def told(self, feed: str, completed: CompletedRollout) -> None:
        """A feed told of a completion."""
        rollout = completed.rollout
        account = self.account(rollout)
        facts = {"feed": feed, "rollout_id": rollout.rollout_id, "cursor": completed.cursor, "status": rollout.status}
        if completed.cursor in self._cursors[feed]:
            self.violate("a feed told a completion twice", **facts)
        self._cursors[feed].add(completed.cursor)
        former = account.told.setdefault(feed, [])
        former.append(rollout.status)
        if len(former) > 1 and (self.strict or not account.cancelled):
            self.violate("a feed told a rollout twice", statuses=former, **facts)
        if rollout.status == "succeeded" and not account.cancelled:
            assert rollout.end_time is not None
            if rollout.end_time < self._last_end[feed]:
                self.violate("a feed is out of order", end_time=rollout.end_time, last=self._last_end[feed], **facts)
            self._last_end[feed] = rollout.end_time
        account.ended_at = account.ended_at or rollout.end_time
        self.done["completions told"] += 1
        if len(account.told) == len(self._feeds):
            account.told_by_all.set()

    # --- Resources ---------------------------------------------------------------------------------------------------

    @property
    def resources_ids(self) -> list[str]:
        """Those that anybody has published."""
        return list(self._versions)

    def published(self, resources_id: str, version: int) -> None:
        versions = self._versions.setdefault(resources_id, set())
        if version in versions:
            self.violate("two updates of resources have one version", resources_id=resources_id, version=version)
        versions.add(version)

    def check_versions(self) -> None:
        """At the end: none was left out."""
        for resources_id, versions in self._versions.items():
            if versions != set(range(1, len(versions) + 1)):
                self.violate("versions of resources have gaps", resources_id=resources_id, versions=sorted(versions))

    # --- A finished rollout, as it is stored -------------------------------------------------------------------------

    def check(
        self, account: Account, rollout: Rollout, handed_out: dict[str, int], attempts: Sequence[Attempt]
    ) -> None:
        """A rollout that a wait or a feed gave, and its attempts read after that and after some were handed out."""
        facts = {"rollout_id": account.rollout_id, "status": rollout.status}
        if rollout.status not in TERMINAL or rollout.end_time is None:
            self.violate("a wait gave a rollout that is not finished", **facts)
        if [attempt.sequence_id for attempt in attempts] != list(range(1, len(attempts) + 1)):
            self.violate("attempts are not dense", attempts=attempts, **facts)
        stored = {attempt.attempt_id: attempt.sequence_id for attempt in attempts}
        if not handed_out.items() <= stored.items():
            self.violate("an attempt was lost", handed_out=handed_out, stored=stored, **facts)
        # The answer to a claim may still be on its way when the attempt is over.
        self._unclaimed.update((one.attempt_id, one) for one in attempts if one.attempt_id not in account.attempts)
        if rollout.status == "cancelled" and not account.cancelled:
            self.violate("nobody cancelled this", **facts)
        if not account.cancelled:
            self._check_outcome(account, rollout, attempts[-1])

    def _check_outcome(self, account: Account, rollout: Rollout, latest: Attempt) -> None:
        """The rollout ended as its latest attempt did, and that as its runner reported or in silence."""
        reported = account.reports.get(latest.attempt_id)
        facts = {"rollout": rollout, "latest": latest, "reported": reported}
        if (rollout.status == "succeeded") != (latest.status == "succeeded"):
            self.violate("a rollout does not follow its latest attempt", **facts)
        if latest.status in ("succeeded", "failed") and latest.status != reported:
            self.violate("an attempt has an outcome that nobody reported", **facts)
        if rollout.status == "failed" and latest.sequence_id < rollout.config.max_attempts:
            self.violate("a rollout failed that has attempts left", **facts)

    def check_spans(self, account: Account, acknowledged: dict[str, int], spans: Sequence[Span]) -> None:
        """All spans of a rollout; ``acknowledged`` were stored before they were read."""
        facts = {"rollout_id": account.rollout_id}
        read = {span.span_id: span.sequence_id for span in spans}
        if len(read) != len(spans):
            self.violate("a span is stored twice", **facts)
        if lost := acknowledged.items() - read.items():
            self.violate("spans are lost or numbered anew", lost=lost, **facts)
        if unknown := read.keys() - account.sent:
            self.violate("spans were never sent", unknown=unknown, **facts)
        numbers = account.numbers.union(read.values())
        gaps = set(range(1, max(numbers, default=0) + 1)) - numbers
        if len(gaps) > account.numbers_under_way:
            self.violate("span numbers have gaps", gaps=gaps, under_way=account.numbers_under_way, **facts)

    def check_claims(self) -> None:
        """At the end: each attempt was handed to somebody, or its claim given up."""
        for attempt in self._unclaimed.values():
            if attempt.worker_id not in self._claims_given_up:
                self.violate("an attempt was handed to nobody", attempt=attempt)

    def close(self, rollout_ids: Iterable[str]) -> None:
        """These are deleted, and nothing more is expected of them."""
        for rollout_id in rollout_ids:
            self.accounts.pop(rollout_id, None)
            self._closed.add(rollout_id)
