"""Short pauses with much stored: keeps Python's garbage collector from walking what is no garbage.

A full collection walks every object there is, stored rollouts and spans among them, and nothing else happens meanwhile.
Stored data is in no reference cycle, so the collector never frees any of it; it goes when it is deleted. So when a full
collection has taken too long, what it left is set aside (``gc.freeze``), and the next one begins from nothing. What is
set aside and is garbage in a cycle later stays for good: so what a call holds must be in none when the call is over.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

FULL_COLLECTION: Final = 2
YOUNGER_COLLECTIONS: Final = (3, 2)
"""How many collections of the youngest come before one of the middle generation, and how many of these before each full
one. With 10 and 10, as usual, 80,000 objects gather while much is being stored, which take 100 ms to walk; with these
some thousands, and 10 ms. All collections together take less time."""
PAUSE_SECONDS_MAX: Final = 0.002
"""A full collection that takes longer is the last one to see what is there. With 10 ms it is often the second one that
takes so long, and then 20."""


class GarbageWatch:
    """For a process that does nothing but serve, from when its modules are loaded: ``with GarbageWatch(): …``."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begun = 0.0

    def __enter__(self) -> GarbageWatch:
        gc.collect()
        gc.freeze()
        self._former_thresholds = gc.get_threshold()
        if sys.version_info < (3, 14):  # from which on each collection takes a part of what is old, and not all at once
            gc.set_threshold(self._former_thresholds[0], *YOUNGER_COLLECTIONS)
        gc.callbacks.append(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self.note)
        gc.set_threshold(*self._former_thresholds)
        gc.unfreeze()

    def note(self, phase: str, info: Mapping[str, Any]) -> None:
        """Called by the collector, before and after."""
        if info["generation"] != FULL_COLLECTION:
            return
        if phase == "start":
            self._begun = self._clock()
        elif self._clock() - self._begun > PAUSE_SECONDS_MAX:
            gc.freeze()
