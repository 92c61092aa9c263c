"""One caller's way through the completions of a store: which are told already, which come next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from lightning_store.backends.base import Completion, RolloutRow
from lightning_store.errors import CursorUnknownError, InvalidTypeError
from lightning_store.step import Step

FEED_BATCH: Final = 256
"""Completions that are read at a stretch."""
POSITION_DIGITS_MAX: Final = 18
"""More completions than these digits can count do not happen."""


class Told(NamedTuple):
    """One completion, with its rollout at the time of the look."""

    position: int
    row: RolloutRow


class Feed:
    """``pending`` are the rollouts that are still to be told; None is all, for ever."""

    def __init__(self, pending: set[str] | None, position: int) -> None:
        self.pending = pending
        self._position = position
        self._begun = pending is None
        self.caught_up = False
        """Whether the last look found all there was."""

    @property
    def done(self) -> bool:
        return self.pending is not None and not self.pending

    def pass_over(self, rollout_ids: Iterable[str]) -> None:
        """These are gone."""
        if self.pending is not None:
            self.pending.difference_update(rollout_ids)

    async def look(self, step: Step) -> list[Told]:
        """What comes next, in order; it counts as told."""
        if self.pending is not None and not self._begun:
            found = await self._begin(step, self.pending)
        else:
            found = await step.tx.list_completions(self._position, FEED_BATCH)
            self.caught_up = len(found) < FEED_BATCH
            self._position = found[-1].position if found else self._position
        told = [
            await _told(step, completion)
            for completion in found
            if self.pending is None or completion.rollout_id in self.pending
        ]
        self.pass_over(one.row.rollout.rollout_id for one in told)
        return told

    async def _begin(self, step: Step, pending: set[str]) -> list[Completion]:
        """The rollouts asked for that are complete already. Each is looked up: they may be few among very many."""
        found: list[Completion] = []
        for rollout_id in list(pending):
            if not self._position:  # a feed that goes on began when they were known
                await step.known_if_strict(rollout_id)
            completion = await step.tx.get_completion(rollout_id)
            if completion is not None and completion.position > self._position:
                found.append(completion)
            elif completion is not None or await step.tx.get_rollout(rollout_id) is None:
                pending.discard(rollout_id)
        self._position = await step.tx.last_completion()
        self._begun = True
        return sorted(found, key=lambda completion: completion.position)


async def _told(step: Step, completion: Completion) -> Told:
    rollout = await step.rollout(completion.rollout_id)
    return Told(completion.position, RolloutRow(rollout, await step.tx.latest_attempt(completion.rollout_id)))


# --- Cursors ---------------------------------------------------------------------------------------------------------


def cursor_of(store_id: str, position: int) -> str:
    return f"{store_id}-{position}"


def position_of(store_id: str, cursor: str | None) -> int:
    """The position of a cursor of this store, 0 for none; CursorUnknownError for another store's."""
    if cursor is None or cursor == "":
        return 0
    if not isinstance(cursor, str):
        raise InvalidTypeError(f"after is {cursor!r}; give the cursor of a completion", field="after")
    prefix, _, number = cursor.rpartition("-")
    is_number = number.isascii() and number.isdigit() and len(number) <= POSITION_DIGITS_MAX
    if prefix != store_id or not is_number:
        raise CursorUnknownError.of(cursor)
    return int(number)
