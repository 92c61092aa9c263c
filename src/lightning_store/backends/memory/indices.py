"""Indices of the memory backend: maps that grow without a pause, and what keeps things in order.

Python rebuilds a dictionary as a whole each time that it has outgrown its table: with 700,000 entries that takes 50 ms,
in which nobody is served. An OrderedDict takes three times as long.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

SLACK: Final = 1000
"""Entries out of date that a heap may hold beyond as many as are live."""
SHARDS: Final = 64
BLOCK: Final = 1024
"""Into how many dictionaries entries are spread, and how many numbers one of them has."""
HASH_HIGH_BITS: Final = 32

ValueT = TypeVar("ValueT")


class Shards(Generic[ValueT]):
    """Values by id, in no order: many small dictionaries, which are rebuilt one by one.

    Which one is told by high bits of the hash: a dictionary begins to look where the low ones say, and would find ids
    that agree in these all in the same few places.
    """

    def __init__(self) -> None:
        self._shards: tuple[dict[str, ValueT], ...] = tuple({} for _ in range(SHARDS))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, id_: str) -> bool:
        return id_ in self._shard(id_)

    def __getitem__(self, id_: str) -> ValueT:
        return self._shard(id_)[id_]

    def get(self, id_: str) -> ValueT | None:
        return self._shards[(hash(id_) >> HASH_HIGH_BITS) % SHARDS].get(id_)  # as _shard, for all look-ups

    def __setitem__(self, id_: str, value: ValueT) -> None:
        shard = self._shard(id_)
        self._count -= len(shard)
        shard[id_] = value
        self._count += len(shard)

    def pop(self, id_: str) -> ValueT | None:
        """None if it is not there."""
        shard = self._shard(id_)
        self._count -= len(shard)
        value = shard.pop(id_, None)
        self._count += len(shard)
        return value

    def _shard(self, id_: str) -> dict[str, ValueT]:
        return self._shards[(hash(id_) >> HASH_HIGH_BITS) % SHARDS]


EntryT = TypeVar("EntryT")


class Blocks(Generic[EntryT]):
    """Entries by number: a dictionary for each range of numbers. In order, if they are added in order."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, EntryT]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[EntryT]:
        return chain.from_iterable(block.values() for block in self._blocks.values())

    def __setitem__(self, number: int, entry: EntryT) -> None:
        """The number must not be in yet."""
        block = self._blocks.get(number // BLOCK)
        if block is None:
            block = self._blocks[number // BLOCK] = {}
        block[number] = entry
        self._count += 1

    def insert(self, number: int, entry: EntryT) -> None:
        """Add an entry in its place among entries that are in order. The number must not be in yet."""
        index = number // BLOCK
        is_new = index not in self._blocks
        self[number] = entry
        self._blocks[index] = dict(sorted(self._blocks[index].items()))
        if is_new:
            self._blocks = dict(sorted(self._blocks.items()))

    def __delitem__(self, number: int) -> None:
        """KeyError if it is not in."""
        block = self._blocks[number // BLOCK]
        del block[number]
        self._count -= 1
        if not block:
            del self._blocks[number // BLOCK]

    def since(self, first: int) -> Iterator[EntryT]:
        """Those with numbers from ``first`` on, if they are in order. Must not change meanwhile.

        However many were deleted before the first and after the last of them costs nothing.
        """
        if not self._blocks:
            return
        oldest, newest = next(iter(self._blocks)), next(reversed(self._blocks))
        for index in range(max(first // BLOCK, oldest), newest + 1):
            block = self._blocks.get(index)
            if block is None:
                continue
            if first <= next(iter(block)):
                yield from block.values()
            else:
                yield from (block[number] for number in range(first, next(reversed(block)) + 1) if number in block)


class Deadlines:
    """One deadline a rollout at most, in a heap that tolerates entries that are out of date."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, rollout_id: str, time: float | None) -> None:
        """Replace the rollout's deadline; None removes it."""
        if time is not None:
            self._due[rollout_id] = time
            heapq.heappush(self._heap, (time, rollout_id))
        elif self._due.pop(rollout_id, None) is None:
            return
        if len(self._heap) > 2 * len(self._due) + SLACK:  # many were moved, or are gone
            self._heap = [(time, rollout_id) for rollout_id, time in self._due.items()]
            heapq.heapify(self._heap)

    def earliest(self) -> float | None:
        """The earliest deadline, or an earlier time; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def passed(self, now: float, limit: int) -> list[str]:
        """Up to ``limit`` rollouts whose deadline is before ``now``, earliest first."""
        if not self._heap or self._heap[0][0] >= now:
            return []
        passed: dict[str, float] = {}
        while self._heap and self._heap[0][0] < now and len(passed) < limit:
            time, rollout_id = heapq.heappop(self._heap)
            if self._due.get(rollout_id) == time:
                passed[rollout_id] = time
        for rollout_id, time in passed.items():
            heapq.heappush(self._heap, (time, rollout_id))
        return list(passed)
