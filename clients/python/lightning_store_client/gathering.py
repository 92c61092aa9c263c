"""Calls that are for one item each, made in the same turn of an event loop, go to the server as one call for them all.

Nothing waits for another call to end: whoever calls alone sends alone, at the end of the turn. Under load replies come
several at a time, so whoever was waiting for them calls again in one turn.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from lightning_store.errors import StoreError
from lightning_store_client.retry import is_retriable

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

ITEMS_MAX: Final = 32
"""Items of one call, so that the server has something to do while the next ones are being made."""


class _Turn(Generic[ItemT, ResultT]):
    """The items of one call, and who waits for what becomes of them."""

    def __init__(self) -> None:
        self.items: list[ItemT] = []
        self.results: list[asyncio.Future[ResultT]] = []
        self.sending: asyncio.Task[None] | None = None


class Gathering(Generic[ItemT, ResultT]):
    """One kind of call. Each caller gets the result of its own item, or its error; cancelling one is nothing to the
    others."""

    def __init__(self, send: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT]]]) -> None:
        """``send`` makes one call: a result for each item, in order, or an error if none of them had any effect."""
        self._send = send
        self._turns: dict[asyncio.AbstractEventLoop, _Turn[ItemT, ResultT]] = {}
        """Those that are being gathered."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without the calls that are being made in this process."""
        return Gathering, (self._send,)

    async def call(self, item: ItemT) -> ResultT:
        """The result of ``item``; StoreError if there is none."""
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            for closed in [other for other in self._turns if other.is_closed()]:
                del self._turns[closed]
            turn = self._turns[loop] = _Turn()
            loop.call_soon(self._end, turn, loop)
        result: asyncio.Future[ResultT] = loop.create_future()
        turn.items.append(item)
        turn.results.append(result)
        if len(turn.items) == ITEMS_MAX:
            self._end(turn, loop)
        try:
            return await result
        except asyncio.CancelledError:
            if turn.sending is not None and all(one.cancelled() for one in turn.results):
                turn.sending.cancel()
            raise

    def _end(self, turn: _Turn[ItemT, ResultT], loop: asyncio.AbstractEventLoop) -> None:
        if turn.sending is None:
            del self._turns[loop]
            turn.sending = loop.create_task(self._deliver(turn))

    async def _deliver(self, turn: _Turn[ItemT, ResultT]) -> None:
        wanted = [index for index, result in enumerate(turn.results) if not result.done()]
        items = [turn.items[index] for index in wanted]
        waiting = [turn.results[index] for index in wanted]
        try:
            for result, found in zip(waiting, await self._results(items), strict=True):
                if not result.done():
                    _settle(result, found)
        except BaseException:
            for result in waiting:
                result.cancel()
            raise

    async def _results(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        try:
            return await self._send(items) if items else []
        except StoreError as error:
            if len(items) == 1 or is_retriable(error):
                return [error, *(copy.copy(error) for _ in items[1:])]
        except Exception as error:
            return [error, *(copy.copy(error) for _ in items[1:])]
        # It may be about one of them, or about all of them being too large together.
        return [result for item in items for result in await self._results([item])]


def _settle(result: asyncio.Future[ResultT], found: ResultT | Exception) -> None:
    if isinstance(found, Exception):
        result.set_exception(found)
    else:
        result.set_result(found)
