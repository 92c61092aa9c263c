"""What the overview tells, kept from one look to the next.

Nothing here depends on how many rollouts are stored: a look reads the completions since the look before, at most
:data:`WINDOW` of them, what the workers hold, and numbers that the store keeps anyway. It reads what is stored as it
stands, so that it waits for no writer, and it stops when its time is over; what is left is for the next look.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lightning_store.backends.records import AttemptRecord, RolloutRecord, RolloutRow
from lightning_store.clock import Clock
from lightning_store.engine.conversion import rollout_with_attempt
from lightning_store.errors import StoreError
from lightning_store.lifecycle import TERMINAL
from lightning_store.model import Admission, Span, Worker
from lightning_store.queries import ResourcesQuery, RolloutQuery
from lightning_store.store import LightningStore
from lightning_store_server.http.page.causes import cause_of
from lightning_store_server.record_store import engine_of, records_of
from lightning_store_server.rewards import reward_of

WINDOW: Final = 2000
"""Completions that are remembered, the last ones."""
LOOK_SECONDS: Final = 0.06
"""How long one look takes, about."""
FRESH_SECONDS: Final = 1.0
"""So old may be what is shown again."""
CHUNK: Final = 100
"""Rollouts that are read at once."""
TOGETHER: Final = 16
"""Rollouts whose spans are looked at beside each other."""
CONSUMED_SECONDS: Final = 5.0
"""How often is looked whether somebody has consumed what had not been."""
WORKERS_MAX: Final = 1000
VERSIONS_MAX: Final = 50
"""Sets of resources that are looked at for their policy versions, the newest ones."""
GROUPS_MAX: Final = 200
"""Groups that have begun and are not decided, the ones that moved last."""
SLOWEST: Final = 10


@dataclass(slots=True)
class Ended:
    """A rollout that has ended, as far as the overview needs it."""

    row: RolloutRow
    """Without its payloads."""
    time: float
    """When it ended."""
    consumed: bool
    reward: float | None = None
    looked: bool = False
    """Whether its reward, or the cause of its failure, was looked for."""
    cause: str = ""

    @property
    def rollout(self) -> RolloutRecord:
        return self.row.rollout

    @property
    def attempt(self) -> AttemptRecord | None:
        return self.row.attempt

    @property
    def seconds(self) -> float | None:
        """What the latest attempt took."""
        if self.attempt is None or self.attempt.end_time is None:
            return None
        return max(0.0, self.attempt.end_time - self.attempt.start_time)

    @property
    def claim_seconds(self) -> float | None:
        """From the making to the first claim; None where only later attempts are known."""
        if self.rollout.first_claim_time is not None:
            return max(0.0, self.rollout.first_claim_time - self.rollout.start_time)
        if self.attempt is None or self.attempt.sequence_id != 1:
            return None
        return max(0.0, self.attempt.start_time - self.rollout.start_time)

    @property
    def policy_version(self) -> int | None:
        return None if self.attempt is None else self.attempt.policy_version


@dataclass(frozen=True, slots=True)
class AtWork:
    """What a busy worker holds."""

    worker: Worker
    row: RolloutRow
    wasted: str
    """Why its work is for nothing; empty if it is not."""
    span_name: str = ""
    """Of the last span that came of it."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group that has begun."""

    group_id: str
    size: int
    counts: Mapping[str, int]
    """Members by status."""
    made: float

    @property
    def status(self) -> str:
        """ "open" until all members have ended; then "whole", "partial" if some have succeeded, "dropped" if none."""
        done = sum(count for status, count in self.counts.items() if status in TERMINAL)
        succeeded = self.counts.get("succeeded", 0)
        if done < self.size:
            return "open"
        return "whole" if succeeded == self.size else "partial" if succeeded else "dropped"


class Version(NamedTuple):
    """Resources that were published."""

    run: str | None
    policy_version: int
    time: float


@dataclass(slots=True)
class State:
    """What is known at one moment."""

    now: float = 0.0
    ended: Sequence[Ended] = ()
    """The last completions, the earliest first."""
    more: bool = False
    """Whether completions are still to be read."""
    at_work: Sequence[AtWork] = ()
    workers: Sequence[Worker] = ()
    workers_total: int = 0
    groups: Mapping[str, GroupState] = field(default_factory=dict)
    versions: Sequence[Version] = ()
    """The newest first."""
    rollouts: Mapping[tuple[str, str | None], int] = field(default_factory=dict)
    """How many rollouts have each status and mode."""
    oldest_queued_time: float | None = None
    admissions: Sequence[Admission] = ()
    """The runs whose groups are bounded."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What is stored, and its limits."""

    @property
    def looked(self) -> int:
        """Ended rollouts whose rewards were looked for."""
        return sum(one.looked for one in self.ended)


class Digest:
    """Looks at a store for the overview.

    Args:
        store: What is served.
        clock: Tells how long a look may take.
        look_seconds: How long that is.
    """

    def __init__(self, store: LightningStore, clock: Clock, look_seconds: float = LOOK_SECONDS) -> None:
        self._store = store
        self._engine = engine_of(store)
        self._records = records_of(store)
        self._clock = clock
        self._look_seconds = look_seconds
        self._lock = asyncio.Lock()
        self._looked_at: float | None = None
        self._consumed_at: float | None = None
        self._position: int | None = None
        self._ended: deque[Ended] = deque(maxlen=WINDOW)
        self._groups: dict[str, GroupState] = {}
        self.state = State()

    async def look(self) -> State:
        """What is known now. Somebody else's look that is under way is not waited for, unless it is the first."""
        if self._lock.locked() and self._looked_at is not None:
            return self.state
        async with self._lock:
            now = self._clock.monotonic()
            unfinished = self.state.more or self.state.looked < len(self.state.ended)
            if self._looked_at is None or unfinished or now - self._looked_at >= FRESH_SECONDS:
                self._looked_at = now
                await self._look(now + self._look_seconds)
        return self.state

    async def _look(self, until: float) -> None:
        state = State()
        await self._count(state)
        state.more = await self._follow(state.now, until)
        state.versions = await self._versions()
        await self._note_work(state)
        await self._note_groups(state)
        state.groups = dict(self._groups)
        state.ended = list(self._ended)
        if not state.more:
            await self._note_consumed(until)
            await self._note_rewards(until)
        self.state = state

    async def _count(self, state: State) -> None:
        if self._engine is not None:
            gauges, memory, disk = await self._engine.gauges(), self._engine.memory, self._engine.disk_use
            state.now, state.rollouts = gauges.time, gauges.queue.rollouts
            state.oldest_queued_time = gauges.queue.oldest_queued_time
            state.admissions = [Admission(*one) for one in await self._engine.admissions()]
            state.figures = {
                **gauges.counts._asdict(),
                "memory_limit": None if memory is None else memory.limit_bytes,
                "disk": disk,
            }
            return
        statistics: Mapping[str, Any] = await self._store.statistics()
        state.now = self._clock.now()
        state.rollouts = {(status, None): n for status, n in statistics.get("rollouts_by_status", {}).items()}
        state.oldest_queued_time = statistics.get("oldest_queued_time")
        state.figures = {
            "rollouts": statistics.get("total_rollouts"),
            "attempts": statistics.get("total_attempts"),
            "spans": statistics.get("total_spans"),
            "resources": statistics.get("total_resources"),
            "bytes": statistics.get("total_bytes"),
            "memory_limit": statistics.get("memory_limit_bytes"),
            "disk": None,
        }

    # --- What has ended ----------------------------------------------------------------------------------------------

    async def _follow(self, now: float, until: float) -> bool:
        """Read the completions since the last look. Whether there are more."""
        if self._engine is None:
            await self._list_ended(now)
            return False
        if self._position is None:
            _, last = await self._engine.last_completions(0, 0)
            self._position = max(0, last - WINDOW)
        while True:
            found, last = await self._engine.last_completions(self._position, CHUNK)
            if not found:
                return False
            for one in found:
                self._ended.append(Ended(_slim(one.row), one.time, one.row.rollout.consumers > 0))
            self._position = found[-1].position
            if last - self._position > WINDOW:  # nobody has looked for long
                self._position = last - WINDOW
            if self._clock.monotonic() > until:
                return True

    async def _list_ended(self, now: float) -> None:
        """Of somebody else's store, which has no completions that can be followed."""
        query = RolloutQuery(
            status_in=("succeeded", "failed", "cancelled"), sort_by="end_time", sort_order="desc", limit=WINDOW // 10
        )
        known = {(one.rollout.rollout_id, one.time): one for one in self._ended}
        rows = (await self._records.query_rollouts(query)).items
        self._ended.clear()
        for row in reversed(rows):
            time = now if row.rollout.end_time is None else row.rollout.end_time
            found = known.get((row.rollout.rollout_id, time))
            self._ended.append(found or Ended(_slim(row), time, row.rollout.consumers > 0))

    async def _note_consumed(self, until: float) -> None:
        """Look again at what nobody had consumed."""
        now = self._clock.monotonic()
        if self._engine is None or (self._consumed_at is not None and now - self._consumed_at < CONSUMED_SECONDS):
            return
        self._consumed_at = now
        waiting = [one for one in self._ended if not one.consumed]
        for start in range(0, len(waiting), CHUNK):
            some = waiting[start : start + CHUNK]
            rows = await self._engine.rollouts_as_stored([one.rollout.rollout_id for one in some])
            for one, row in zip(some, rows, strict=True):
                one.consumed = row is not None and row.rollout.consumers > 0
            if self._clock.monotonic() > until:
                return

    async def _note_rewards(self, until: float) -> None:
        """Look for the rewards of those that succeeded and for the causes of the others, the last ones first."""
        left = [one for one in reversed(self._ended) if not one.looked]
        for start in range(0, len(left), TOGETHER):
            await asyncio.gather(*map(self._note_reward, left[start : start + TOGETHER]))
            if self._clock.monotonic() > until:
                return

    async def _note_reward(self, one: Ended) -> None:
        rollout = rollout_with_attempt(one.row)
        try:
            if one.rollout.status == "succeeded":
                reward = await reward_of(self._store, rollout)
                one.reward = reward if reward is not None and math.isfinite(reward) else None
            else:
                one.cause = await cause_of(self._store, rollout)
        except StoreError:
            pass  # it was deleted, or cannot be read now: there is nothing to tell of it
        one.looked = True

    # --- What goes on ------------------------------------------------------------------------------------------------

    async def _versions(self) -> Sequence[Version]:
        query = ResourcesQuery(sort_by="create_time", sort_order="desc", limit=VERSIONS_MAX)
        if self._engine is not None:
            records = (await self._engine.query_resources(query)).items
            return [Version(one.run, one.policy_version, one.create_time) for one in records]
        found = await self._store.query_resources(**query.arguments())
        return [Version(one.run, one.policy_version, one.create_time) for one in found]

    async def _note_work(self, state: State) -> None:
        workers = await self._store.query_workers(limit=WORKERS_MAX)
        state.workers, state.workers_total = list(workers), workers.total
        busy = [one for one in state.workers if one.current_rollout_id is not None]
        rows = await self._rows([one.current_rollout_id or "" for one in busy])
        held = [
            AtWork(worker, row, _wasted(worker, row)) for worker, row in zip(busy, rows, strict=True) if row is not None
        ]
        held.sort(key=_begun)
        slowest = [
            AtWork(one.worker, one.row, one.wasted, await self._last_span_name(one.row)) for one in held[:SLOWEST]
        ]
        state.at_work = [*slowest, *held[SLOWEST:]]

    async def _rows(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        found: list[RolloutRow | None] = []
        for start in range(0, len(rollout_ids), CHUNK):
            some = rollout_ids[start : start + CHUNK]
            if self._engine is not None:
                rows = await self._engine.rollouts_as_stored(some)
            else:
                known = (await self._records.query_rollouts(RolloutQuery(rollout_id_in=some))).items
                by_id = {row.rollout.rollout_id: row for row in known}
                rows = [by_id.get(one) for one in some]
            found += [None if row is None else _slim(row) for row in rows]
        return found

    async def _last_span_name(self, row: RolloutRow) -> str:
        if row.attempt is None:
            return ""
        try:
            spans: Sequence[Span] = await self._store.query_spans(
                row.rollout.rollout_id, attempt_id=row.attempt.attempt_id, sort_order="desc", limit=1
            )
        except StoreError:
            return ""
        return spans[0].name if spans else ""

    async def _note_groups(self, state: State) -> None:
        """Count the members of groups that are not decided."""
        moved = [one.rollout.group_id for one in self._ended] + [one.row.rollout.group_id for one in state.at_work]
        seen = dict.fromkeys(group_id for group_id in reversed(moved) if group_id is not None)
        for gone in self._groups.keys() - seen.keys():
            del self._groups[gone]
        wanted = [one for one in seen if one not in self._groups or self._groups[one].status == "open"][:GROUPS_MAX]
        for start in range(0, len(wanted), 10):
            some = wanted[start : start + 10]
            rows = (await self._records.query_rollouts(RolloutQuery(group_id_in=some))).items
            for group_id in some:
                members = [row.rollout for row in rows if row.rollout.group_id == group_id]
                if members:
                    self._groups[group_id] = group_state(group_id, members)


def group_state(group_id: str, members: Sequence[RolloutRecord]) -> GroupState:
    """Where a group with these members stands."""
    return GroupState(
        group_id,
        max(len(members), *(one.group_size or 0 for one in members)),
        Counter(one.status for one in members),
        min(one.start_time for one in members),
    )


def _slim(row: RolloutRow) -> RolloutRow:
    """The row without the task, which may be large."""
    return row._replace(rollout=row.rollout._replace(input_json="null", metadata_json=None))


def _begun(one: AtWork) -> float:
    return one.row.rollout.start_time if one.row.attempt is None else one.row.attempt.start_time


def _wasted(worker: Worker, row: RolloutRow) -> str:
    """As a worker's heartbeat is told."""
    if row.attempt is not None and row.attempt.attempt_id != worker.current_attempt_id:
        return "superseded"
    return "cancelled" if row.rollout.status == "cancelled" else ""
