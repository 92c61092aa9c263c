"""Long work a slice at a time, so that other calls get their turn in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

from lightning_store.loops import Slicer

T = TypeVar("T")
R = TypeVar("R")


class FairGate:
    """Places for work of which only so much is done at once. Connections that wait for one get theirs in turn, however
    many calls each of them makes.

    Args:
        places: How many there are.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """The calls of each connection that wait. The one whose turn it is comes first."""

    def place(self, peer_of: Callable[[], str]) -> AbstractAsyncContextManager[None]:
        """Have a place meanwhile. ``peer_of`` tells the connection, and is asked only when there is none."""
        return _Place(self, peer_of)

    async def enter(self, peer_of: Callable[[], str]) -> None:
        """Get a place, and :meth:`leave` it."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(peer_of())

    async def _wait(self, peer: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had got its place
                self.leave()
            raise

    def leave(self) -> None:
        """Let another have it."""
        while self._waiting:
            peer = next(iter(self._waiting))
            turns = self._waiting.pop(peer)
            turn = turns.popleft()
            if turns:
                self._waiting[peer] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class _Place(AbstractAsyncContextManager[None]):
    """(A generator would keep an error that passes through it in a cycle, with all that its call holds.)"""

    __slots__ = ("_gate", "_peer_of")

    def __init__(self, gate: FairGate, peer_of: Callable[[], str]) -> None:
        self._gate = gate
        self._peer_of = peer_of

    async def __aenter__(self) -> None:
        await self._gate.enter(self._peer_of)

    async def __aexit__(self, *_: object) -> None:
        self._gate.leave()


HEAVY_BYTES: Final = 1024 * 1024
"""What is larger is parsed in a thread: it takes long, and cannot be cut into slices."""


class HeavyThread:
    """A thread for long work. There is one, so that the event loop shares Python's lock with no more than that."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "lightning-store-heavy")  # which starts it when it is needed

    async def run(self, function: Callable[..., R], *args: object) -> R:
        """Call ``function(*args)`` there, after what is being done already."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def convert(self, function: Callable[[T], R], item: T, size_bytes: int) -> R:
        """Call ``function(item)``, in the thread if the item is large."""
        return function(item) if size_bytes <= HEAVY_BYTES else await self.run(function, item)

    def close(self) -> None:
        """Begin nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)


async def in_slices(convert: Callable[[int, T], R], items: Sequence[T]) -> list[R]:
    """Convert each of many items.

    Args:
        convert: Gets the index of an item, and the item.
        items: The items. They do not change meanwhile.

    Returns:
        What they became, in order.
    """
    if len(items) == 1:  # as a rule
        return [convert(0, items[0])]
    made: list[R] = []
    slicer = Slicer()
    for index, item in enumerate(items):
        if slicer.is_over():
            await slicer.next_turn()
        made.append(convert(index, item))
    return made
