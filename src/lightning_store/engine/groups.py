"""Groups: when one is returned, as a function of its members; and one reader's way through them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lightning_store.backends.base import Snapshot
from lightning_store.backends.records import GroupRow
from lightning_store.engine.completion_feed import next_stretch
from lightning_store.lifecycle import group_status
from lightning_store.model import GroupStatus
from lightning_store.queries import GroupQuery


class Judged(NamedTuple):
    """A group and where it stands."""

    group: GroupRow
    status: GroupStatus
    deadline: float | None = None
    """Of one that is open: when it may be returned though nothing has changed."""


def judge(group: GroupRow, terms: GroupQuery, now: float) -> Judged:
    """Where a group stands."""
    needed = group.size if terms.min_done is None else min(terms.min_done, group.size)
    statuses = [one.rollout.status for one in group.rows]
    status = group_status(statuses, group.size, needed)
    if status != "open" or statuses.count("succeeded") < needed:
        return Judged(group, status)
    if terms.deadline is None or group.first_claim_time is None:
        return Judged(group, "open")
    deadline = group.first_claim_time + terms.deadline
    return Judged(group, "partial") if now > deadline else Judged(group, "open", deadline)


class GroupFeed:
    """The groups that are not open any more, in the order in which that is found, each once.

    Args:
        pending: The groups that are still to be returned; None is all, for ever.
        terms: Which groups, and what it takes for one to be returned.
    """

    def __init__(self, pending: Iterable[str] | None, terms: GroupQuery) -> None:
        self.pending = None if pending is None else dict.fromkeys(pending)
        self._terms = terms
        self._position: int | None = None
        self._returned: set[str] = set()
        self._deadlines: dict[str, float] = {}
        """Of the open groups that have one."""
        self.caught_up = False
        """Whether the last look found all there was."""

    @property
    def done(self) -> bool:
        return self.pending is not None and not self.pending

    @property
    def next_deadline(self) -> float | None:
        """When to look again though nothing has changed."""
        return min(self._deadlines.values(), default=None)

    def note_returned(self, group_id: str) -> None:
        """It does not come again."""
        self._returned.add(group_id)
        self._deadlines.pop(group_id, None)
        if self.pending is not None:
            self.pending.pop(group_id, None)

    async def look(self, snapshot: Snapshot, now: float, *, deleted: bool) -> list[Judged]:
        """The groups that may be returned now.

        Args:
            snapshot: The data.
            now: The time.
            deleted: Whether rollouts may have been deleted since the last look.
        """
        candidates = await self._candidates(snapshot, now, deleted)
        groups = await snapshot.groups(list(candidates))
        if self.pending is not None:
            for group_id in candidates.keys() - {group.group_id for group in groups}:
                self.pending.pop(group_id)
        consumed: set[str] = set()
        if self._terms.consumer is not None:
            members = [one.rollout.rollout_id for group in groups for one in group.rows]
            consumed = await snapshot.consumed(self._terms.consumer, members)
        found = []
        for group in groups:
            judged = judge(group, self._terms, now)
            self._deadlines.pop(group.group_id, None)
            is_other = self._terms.run is not None and group.rows[0].rollout.run != self._terms.run
            if is_other or consumed.intersection(one.rollout.rollout_id for one in group.rows):
                self.note_returned(group.group_id)
            elif judged.status != "open":
                found.append(judged)
            elif judged.deadline is not None:
                self._deadlines[group.group_id] = judged.deadline
        return found

    async def _candidates(self, snapshot: Snapshot, now: float, deleted: bool) -> dict[str, None]:
        """The groups of which something has changed since the last look, without those that were returned."""
        due = (group_id for group_id, deadline in self._deadlines.items() if now > deadline)
        if self.pending is not None and (deleted or self._position is None):
            self._position = await snapshot.last_completion()
            self.caught_up = True
            return dict(self.pending)
        found = await next_stretch(snapshot, self._position or 0, self._terms.consumer)
        completions, self._position, self.caught_up = found
        candidates = dict.fromkeys(due)
        for one in completions:
            group_id = one.row.rollout.group_id
            if group_id is not None and (self.pending is None or group_id in self.pending):
                candidates[group_id] = None
        return {group_id: None for group_id in candidates if group_id not in self._returned}
