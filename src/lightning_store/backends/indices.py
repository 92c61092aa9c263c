"""Indices of the memory backend: maps that grow without a pause, and what keeps things in order.

Python rebuilds a dictionary as a whole each time that it has outgrown its table: with 700,000 entries that takes 50 ms,
in which nobody is served. An OrderedDict takes three times as long.

Entries out of date are skipped, and dropped in bulk.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from lightning_store.backends.base import Completion

SLACK: Final = 1000
"""Entries out of date that an index may hold beyond as many as are live."""
SHARDS: Final = 64
BLOCK: Final = 4096
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


class Numbered(Protocol):
    """An entry with a number of its own, later ones with higher numbers."""

    @property
    def ordinal(self) -> int: ...


EntryT = TypeVar("EntryT", bound=Numbered)


class Blocks(Generic[EntryT]):
    """A set of entries: a dictionary for each range of numbers. In order, if they are added in order."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, EntryT]] = {}

    def __iter__(self) -> Iterator[EntryT]:
        return chain.from_iterable(block.values() for block in self._blocks.values())

    def add(self, entry: EntryT) -> None:
        number = entry.ordinal // BLOCK
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = {}
        block[entry.ordinal] = entry

    def remove(self, entry: EntryT) -> None:
        """KeyError if it is not in."""
        number = entry.ordinal // BLOCK
        block = self._blocks[number]
        del block[entry.ordinal]
        if not block:
            del self._blocks[number]


class Fifo:
    """Ids in the order in which they came, each at most once; any of them may leave."""

    def __init__(self) -> None:
        self._places: Shards[int] = Shards()
        self._line: deque[tuple[int, str]] = deque()
        self._next_place = 0

    def push(self, id_: str) -> None:
        """At the tail; one that is in already keeps its place."""
        if id_ not in self._places:
            self._places[id_] = self._next_place
            self._line.append((self._next_place, id_))
            self._next_place += 1

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return (id_ for place, id_ in self._line if self._places.get(id_) == place)

    def head(self) -> str | None:
        """None if there is none."""
        while self._line:
            place, id_ = self._line[0]
            if self._places.get(id_) == place:
                return id_
            self._line.popleft()
        return None

    def pop(self) -> str | None:
        """Take the head; None if there is none."""
        id_ = self.head()
        if id_ is not None:
            self._line.popleft()
            self._places.pop(id_)
        return id_

    def discard(self, id_: str) -> None:
        """Take it out, if it is in."""
        if self._places.pop(id_) is not None and len(self._line) > 2 * len(self._places) + SLACK:
            self._line = deque(entry for entry in self._line if self._places.get(entry[1]) == entry[0])


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
        self._log: list[Completion] = []
        self._first = 0
        """Everything before this is out of date."""
        self._live: Shards[Completion] = Shards()
        self._position = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def position(self) -> int:
        """Of the last completion ever; 0 before the first."""
        return self._position

    def note(self, rollout_id: str, time: float) -> None:
        self._position += 1
        completion = Completion(rollout_id, self._position, time)
        self._live[rollout_id] = completion
        self._log.append(completion)
        self._tidy()

    def forget(self, rollout_id: str) -> None:
        if self._live.pop(rollout_id) is not None:
            self._tidy()

    def get(self, rollout_id: str) -> Completion | None:
        return self._live.get(rollout_id)

    def after(self, position: int) -> Iterator[Completion]:
        """Those past ``position``, in order. The log must not change meanwhile."""
        start = bisect_left(self._log, position + 1, lo=self._first, key=attrgetter("position"))
        log = self._log
        return (log[i] for i in range(start, len(log)) if self._is_live(log[i]))

    def _is_live(self, completion: Completion) -> bool:
        return self._live.get(completion.rollout_id) is completion

    def _tidy(self) -> None:
        log = self._log
        while self._first < len(log) and not self._is_live(log[self._first]):
            self._first += 1
        if self._first > max(SLACK, len(log) // 2):  # as when the oldest are deleted: no need to look at the others
            del log[: self._first]
            self._first = 0
        if len(log) > 2 * len(self._live) + SLACK:
            self._log = list(filter(self._is_live, log))
            self._first = 0
