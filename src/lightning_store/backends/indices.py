"""Indices of the memory backend: maps that grow without a pause, and what keeps things in order.

Python rebuilds a dictionary as a whole each time that it has outgrown its table: with 700,000 entries that takes 50 ms,
in which nobody is served. An OrderedDict takes three times as long.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

from lightning_store.backends.base import Completion

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
        return self._shard(id_).get(id_)

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

    def __iter__(self) -> Iterator[EntryT]:
        return chain.from_iterable(block.values() for block in self._blocks.values())

    def __setitem__(self, number: int, entry: EntryT) -> None:
        block = self._blocks.get(number // BLOCK)
        if block is None:
            block = self._blocks[number // BLOCK] = {}
        block[number] = entry

    def __delitem__(self, number: int) -> None:
        """KeyError if it is not in."""
        block = self._blocks[number // BLOCK]
        del block[number]
        if not block:
            del self._blocks[number // BLOCK]

    def since(self, first: int) -> Iterator[EntryT]:
        """Those with numbers from ``first`` on, if they were added in order. Must not change meanwhile.

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


class Fifo:
    """Ids in the order in which they came, each at most once; any of them may leave."""

    def __init__(self) -> None:
        self._places: Shards[int] = Shards()
        self._line: Blocks[str] = Blocks()
        self._next_place = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._line)

    def push(self, id_: str) -> None:
        """At the tail; one that is in already keeps its place."""
        if id_ not in self._places:
            self._places[id_] = self._next_place
            self._line[self._next_place] = id_
            self._next_place += 1

    def head(self) -> str | None:
        """None if there is none."""
        return next(iter(self._line), None)

    def pop(self) -> str | None:
        """Take the head; None if there is none."""
        id_ = self.head()
        if id_ is not None:
            self.discard(id_)
        return id_

    def discard(self, id_: str) -> None:
        """Take it out, if it is in."""
        place = self._places.pop(id_)
        if place is not None:
            del self._line[place]


class Deadlines:
    """One deadline a rollout at most, in a heap that tolerates entries that are out of date.

    A deadline that moves later (each heartbeat does that) leaves its heap entry alone; the entry is pushed back when
    it comes up. So the heap holds about one entry for each deadline, however often it moves. There are as many as
    attempts under way.
    """

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._entry: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, rollout_id: str, time: float | None) -> None:
        if time is None:
            if self._due.pop(rollout_id, None) is not None:
                self._tidy()
            return
        self._due[rollout_id] = time
        entry = self._entry.get(rollout_id)
        if entry is None or time < entry:
            self._push(rollout_id, time)

    def earliest(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def take(self, now: float, limit: int) -> list[str]:
        taken: list[str] = []
        while self._heap and self._heap[0][0] < now and len(taken) < limit:
            time, rollout_id = heapq.heappop(self._heap)
            if self._entry.get(rollout_id) != time:
                continue
            del self._entry[rollout_id]
            due = self._due.get(rollout_id)
            if due is None:
                continue
            if due < now:
                del self._due[rollout_id]
                taken.append(rollout_id)
            else:
                self._push(rollout_id, due)
        return taken

    def _push(self, rollout_id: str, time: float) -> None:
        self._entry[rollout_id] = time
        heapq.heappush(self._heap, (time, rollout_id))
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._due) + SLACK:  # many were moved earlier, or are gone
            self._entry = dict(self._due)
            self._heap = [(time, rollout_id) for rollout_id, time in self._due.items()]
            heapq.heapify(self._heap)


class CompletionLog:
    """Which rollouts are complete, in the order in which they became so, each at its last completion."""

    def __init__(self) -> None:
        self._live: Shards[Completion] = Shards()
        self._in_order: Blocks[Completion] = Blocks()
        self._position = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def position(self) -> int:
        """Of the last completion ever; 0 before the first."""
        return self._position

    def note(self, rollout_id: str, time: float) -> None:
        self.forget(rollout_id)
        self._position += 1
        completion = Completion(rollout_id, self._position, time)
        self._live[rollout_id] = self._in_order[self._position] = completion

    def forget(self, rollout_id: str) -> None:
        former = self._live.pop(rollout_id)
        if former is not None:
            del self._in_order[former.position]

    def get(self, rollout_id: str) -> Completion | None:
        return self._live.get(rollout_id)

    def after(self, position: int) -> Iterator[Completion]:
        """Those past ``position``, in order. The log must not change meanwhile."""
        return self._in_order.since(position + 1)
