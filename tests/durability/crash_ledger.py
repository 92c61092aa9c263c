"""What the callers of a server that is killed again and again were told, held against what its file has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

from lightning_store.model import AttemptedRollout, CompletedRollout, Rollout, RolloutStatus, Span
from lightning_store.store import LightningStore

TERMINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Account:
    """One rollout, as callers were told of it. One caller at a time works on it."""

    rollout_id: str
    attempts: dict[str, int] = field(default_factory=dict)
    """Numbers of the attempts that somebody was handed, by id."""
    batches: dict[str, set[str]] = field(default_factory=dict)
    """Ids of the spans of each call that was sent, by the call's name."""
    stored: set[str] = field(default_factory=set)
    """Names of those calls that were acknowledged."""
    numbers: list[int] = field(default_factory=list)
    """Span numbers that were handed out."""
    note_sent = 0
    note_stored = 0
    """Numbers in the metadata of the rollout: of the last update that was sent, and that was acknowledged."""
    reports: dict[str, str] = field(default_factory=dict)
    """Outcomes by attempt, acknowledged ones."""
    status_sent: RolloutStatus | None = None
    """The end that somebody has begun to bring about."""
    ended: RolloutStatus | None = None
    """The end that was acknowledged."""
    delete_sent: bool = False
    deleted: bool = False


class Ledger:
    """The accounts of all callers."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.calls: Counter[str] = Counter()
        self.sent: dict[str, frozenset[str]] = {}
        """All inputs that a call with this name was to enqueue."""
        self.acknowledged: dict[str, dict[str, str]] = {}
        """Rollout ids by input, of the calls that returned."""
        self.inputs_deleted: set[str] = set()
        """Of the rollouts that somebody has asked to delete, also before the caller that made them has its answer."""
        self.versions: list[int] = []
        """Of the one shared resource."""
        self.violations: list[str] = []
        self._touched: set[str] = set()
        self._calls_touched: set[str] = set()

    def violate(self, what: str, **facts: object) -> None:
        """Something that must not be."""
        self.violations.append(f"{what}: " + ", ".join(f"{name}={value!r}" for name, value in facts.items()))

    # --- What callers are told ---------------------------------------------------------------------------------------

    def account(self, rollout_id: str) -> Account:
        """The rollout's account, to change it now."""
        self._touched.add(rollout_id)
        return self.accounts.setdefault(rollout_id, Account(rollout_id))

    def enqueued(self, name: str, rollouts: Iterable[Rollout]) -> None:
        self.acknowledged[name] = {rollout.input: rollout.rollout_id for rollout in rollouts}
        self._calls_touched.add(name)
        for rollout_id in self.acknowledged[name].values():
            self.account(rollout_id)

    def claimed(self, rollout: AttemptedRollout) -> None:
        account, attempt = self.account(rollout.rollout_id), rollout.attempt
        if attempt.attempt_id in account.attempts or attempt.sequence_id in account.attempts.values():
            self.violate("an attempt was handed out twice", rollout=rollout)
        account.attempts[attempt.attempt_id] = attempt.sequence_id

    # --- What a copy of the file has ---------------------------------------------------------------------------------

    def acknowledgements(self) -> Acknowledgements:
        """Everything that was acknowledged since the last time that this was called."""
        accounts = [deepcopy(self.accounts[one]) for one in self._touched]
        calls = {name: dict(self.acknowledged[name]) for name in self._calls_touched}
        deleted = {one.rollout_id for one in self.accounts.values() if one.delete_sent}
        self._touched, self._calls_touched = set(), set()
        return Acknowledgements(self, accounts, calls, deleted, self.inputs_deleted.copy(), list(self.versions))

    # --- What the store has in the end -------------------------------------------------------------------------------

    async def check_end(self, store: LightningStore, told: list[CompletedRollout]) -> None:
        """All calls have returned: what was acknowledged is all that there is."""
        self._touched = set(self.accounts)
        self._calls_touched = set(self.acknowledged)
        await self.acknowledgements().check(store)
        kept = {one.rollout_id: one for one in self.accounts.values() if not one.deleted}
        stored = {one.rollout_id: one for one in await store.query_rollouts()}
        if stored.keys() != kept.keys():
            self.violate("other rollouts are stored than acknowledged", which=stored.keys() ^ kept.keys())
        for rollout_id, account in kept.items():
            attempts = {one.attempt_id: one.sequence_id for one in await store.query_attempts(rollout_id)}
            if attempts != account.attempts:
                self.violate("other attempts than were handed out", account=account, attempts=attempts)
            spans = await store.query_spans(rollout_id)
            numbers = sorted([*account.numbers, *(one.sequence_id for one in spans if one.sequence_id)])
            if numbers != list(range(1, len(numbers) + 1)):
                self.violate("span numbers have gaps, or come twice", rollout_id=rollout_id, numbers=numbers)
            if stored[rollout_id].status not in TERMINAL:
                self.violate("a rollout is stuck", rollout=stored[rollout_id])
        if sorted(self.versions) != list(range(1, len(self.versions) + 1)):
            self.violate("versions of resources have gaps, or come twice", versions=sorted(self.versions))
        self._check_feed(kept, told)

    def _check_feed(self, kept: dict[str, Account], told: list[CompletedRollout]) -> None:
        cursors = Counter(one.cursor for one in told)
        counts = Counter(one.rollout.rollout_id for one in told)
        if repeated := {one: count for one, count in [*cursors.items(), *counts.items()] if count > 1}:
            self.violate("the feed told a completion twice", repeated=repeated)
        if untold := kept.keys() - counts.keys():
            self.violate("the feed did not tell of rollouts", untold=untold)


@dataclass
class Acknowledgements:
    """What was acknowledged by some moment, to be found in a copy of the file of that moment."""

    ledger: Ledger
    accounts: list[Account]
    calls: dict[str, dict[str, str]]
    deleted: set[str]
    """Rollouts that somebody has asked to delete."""
    inputs_deleted: set[str]
    versions: list[int]

    async def check(self, store: LightningStore) -> None:
        violate = self.ledger.violate
        stored = {one.rollout_id: one for one in await store.query_rollouts()}
        by_input = Counter(one.input for one in stored.values())
        if doubled := [one for one, count in by_input.items() if count > 1]:
            violate("rollouts were made twice", inputs=doubled)
        for name, inputs in self.ledger.sent.items():
            found = {one for one in inputs if one in by_input}
            if found and found | self.inputs_deleted & inputs != inputs:
                violate("a call was done by half", name=name, found=found)
        for name, rollouts in self.calls.items():
            if lost := {one for one in rollouts.values() if one not in stored and one not in self.deleted}:
                violate("rollouts were lost", name=name, lost=lost)
        for account in self.accounts:
            rollout = stored.get(account.rollout_id)
            if account.deleted and rollout is not None:
                violate("a deletion was lost", rollout=rollout)
            elif rollout is not None:
                await self._check_rollout(store, account, rollout)
            elif not account.delete_sent:
                violate("a rollout was lost", account=account)
        latest = await store.get_resources_by_id("rs-shared")
        if self.versions and (latest is None or latest.version < max(self.versions)):
            violate("a version of resources was lost", latest=latest, acknowledged=max(self.versions))

    async def _check_rollout(self, store: LightningStore, account: Account, rollout: Rollout) -> None:
        violate, facts = self.ledger.violate, {"rollout": rollout, "account": account}
        attempts = list(await store.query_attempts(account.rollout_id))
        numbers = {one.attempt_id: one.sequence_id for one in attempts}
        if not account.attempts.items() <= numbers.items():
            violate("an attempt was lost", attempts=attempts, **facts)
        if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
            violate("attempts are not dense", attempts=attempts, **facts)
        outcomes = {one.attempt_id: one.status for one in attempts}
        if not account.reports.items() <= outcomes.items():
            violate("a report was lost", attempts=attempts, **facts)
        if account.ended is not None and rollout.status != account.ended:
            violate("an end was lost", **facts)
        note = (rollout.metadata or {}).get("note", 0)
        if not account.note_stored <= note <= account.note_sent:
            violate("an update was lost, or came from nowhere", **facts)
        self._check_spans(account, list(await store.query_spans(account.rollout_id)))

    def _check_spans(self, account: Account, spans: list[Span]) -> None:
        ids = {one.span_id for one in spans}
        if len(ids) != len(spans):
            self.ledger.violate("a span is stored twice", account=account)
        for name, batch in account.batches.items():
            found = batch & ids
            if found != batch and (found or name in account.stored):
                self.ledger.violate("spans were lost, or stored by half", name=name, found=found, account=account)
