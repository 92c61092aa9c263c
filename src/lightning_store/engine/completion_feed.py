"""One caller's way through the completions of a store: which were returned already, which come next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from lightning_store.backends.base import Snapshot
from lightning_store.backends.matching import matches
from lightning_store.backends.records import CompletionRow
from lightning_store.errors import CursorUnknownError, InvalidTypeError, RolloutNotFoundError
from lightning_store.queries import RolloutQuery

FEED_BATCH: Final = 256
"""Completions that are read at a stretch."""
LOOK_MAX: Final = 4096
"""Completions that are looked at at a stretch for those that a consumer has not consumed."""
POSITION_DIGITS_MAX: Final = 18
"""More completions than these digits can count do not happen."""


class Stretch(NamedTuple):
    """Completions that follow a position."""

    rows: Sequence[CompletionRow]
    position: int
    """To go on after."""
    is_last: bool
    """Whether no more follow."""


async def next_stretch(snapshot: Snapshot, after: int, consumer: str | None) -> Stretch:
    """Some of the completions past a position, without those that a consumer has consumed, if one is given."""
    if consumer is None:
        found = await snapshot.completions(after, FEED_BATCH)
        return Stretch(found, found[-1].position if found else after, len(found) < FEED_BATCH)
    rows, reached = await snapshot.unconsumed(consumer, after, LOOK_MAX, FEED_BATCH)
    if reached is None:
        return Stretch(rows, max(after, await snapshot.last_completion()), True)
    return Stretch(rows, reached, False)


class CompletionFeed:
    """The completions past a position, in order, each once.

    Args:
        pending: The rollouts that are still to be returned; None is all, for ever.
        position: The position to begin after; 0 is the beginning.
        where: Has filters; completions that do not match are passed over.
        consumer: What it has consumed is passed over; None: nothing.
        strict: Whether a rollout that is not known is refused at the beginning.
    """

    def __init__(
        self, pending: set[str] | None, position: int, where: RolloutQuery, consumer: str | None, *, strict: bool
    ) -> None:
        self.pending = pending
        self._where = where
        self._consumer = consumer
        self._position = position
        self._strict = strict
        self._begun = pending is None
        self.caught_up = False
        """Whether the last look found all there was."""

    @property
    def done(self) -> bool:
        return self.pending is not None and not self.pending

    def drop(self, rollout_ids: Iterable[str]) -> None:
        """Stop waiting for these, which are returned or deleted."""
        if self.pending is not None:
            self.pending.difference_update(rollout_ids)

    async def look(self, snapshot: Snapshot) -> list[CompletionRow]:
        """What comes next, in order; it counts as returned.

        Raises:
            RolloutNotFoundError: Strict mode, and a rollout that was asked for is not known.
        """
        if self.pending is not None and not self._begun:
            found = await self._begin(snapshot, self.pending)
        else:
            found, self._position, self.caught_up = await next_stretch(snapshot, self._position, self._consumer)
        wanted = [one for one in found if self.pending is None or one.row.rollout.rollout_id in self.pending]
        self.drop(one.row.rollout.rollout_id for one in wanted)
        matching = [one for one in wanted if matches(one.row.rollout, self._where, one.row.attempt)]
        if self._consumer is None or not matching:
            return matching
        consumed = await snapshot.consumed(self._consumer, [one.row.rollout.rollout_id for one in matching])
        return [one for one in matching if one.row.rollout.rollout_id not in consumed]

    async def _begin(self, snapshot: Snapshot, pending: set[str]) -> Sequence[CompletionRow]:
        """The rollouts asked for that are complete already. Each is looked up: they may be few among very many."""
        found: list[CompletionRow] = []
        wanted = list(pending)
        for rollout_id, row in zip(wanted, await snapshot.rollouts(wanted), strict=True):
            if row is None:
                if self._strict and not self._position:  # a feed that goes on began when they were known
                    raise RolloutNotFoundError.of(rollout_id)
                pending.discard(rollout_id)
                continue
            position, time = row.rollout.completion_position, row.rollout.completion_time
            if position is None or time is None:
                continue
            if position > self._position:
                found.append(CompletionRow(position, time, row))
            else:
                pending.discard(rollout_id)
        self._position = await snapshot.last_completion()
        self._begun = True
        return sorted(found, key=lambda one: one.position)


# --- Cursors ---------------------------------------------------------------------------------------------------------


def cursor_of(store_id: str, position: int) -> str:
    return f"{store_id}-{position}"


def position_of(store_id: str, cursor: str | None) -> int:
    """The position of a cursor of this store, 0 for none.

    Raises:
        CursorUnknownError: The cursor is another store's, or none at all.
        InvalidTypeError: It is not text.
    """
    if cursor is None or cursor == "":
        return 0
    if not isinstance(cursor, str):
        raise InvalidTypeError(f"after is {cursor!r}; give the cursor of a completion", field="after")
    prefix, _, number = cursor.rpartition("-")
    is_number = number.isascii() and number.isdigit() and len(number) <= POSITION_DIGITS_MAX
    if prefix != store_id or not is_number:
        raise CursorUnknownError.of(cursor)
    return int(number)
