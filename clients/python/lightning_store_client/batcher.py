"""Batches calls that are for one item each: those of one turn of an event loop become one request.

No call waits for another to end, and while the connection is idle a call is sent at once. Under load replies arrive
several at a time, so their callers call again in one turn.

Batching is apart from the session, which packs requests into messages: a request for 32 items is one transaction and
one reply, where 32 requests in one message are 32 of each.
"""

from __future__ import annotations

import asyncio
import copy
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from lightning_store.errors import InternalError, InvalidArgumentError, InvalidTypeError
from lightning_store.loops import forget_closed

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

ITEMS_MAX: Final = 32
"""Items of one call, so that the server has something to do while the next ones are being made."""
BATCHED_BYTES_MAX: Final = 16 * 1024
"""An item that is larger goes in a call of its own, so that it does not hold up the others."""
REFUSALS: Final = (InvalidArgumentError, InvalidTypeError)
"""What a call is refused with before anything is done for it, be it for one item or for their size together."""


class _Turn(Generic[ItemT, ResultT]):
    """The items of one call, and who waits for what becomes of them."""

    def __init__(self) -> None:
        self.items: list[ItemT] = []
        self.results: list[asyncio.Future[ResultT]] = []
        self.sending: asyncio.Task[None] | None = None


class Batcher(Generic[ItemT, ResultT]):
    """Batches one kind of call. Each caller gets the result of its own item, or its error; cancelling one leaves the
    others alone."""

    def __init__(
        self, send: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT]]], is_idle: Callable[[], bool]
    ) -> None:
        """``send`` makes one request: it returns a result for each item, in order, or raises. One of :data:`REFUSALS`
        means that nothing was done for any of them. ``is_idle`` tells whether no call is under way."""
        self._send = send
        self._is_idle = is_idle
        self._turns: dict[asyncio.AbstractEventLoop, _Turn[ItemT, ResultT]] = {}
        """Those that are being gathered."""
        self._delivering: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
        """Of turns that ended. Some may not have sent anything yet, and nobody is to overtake them."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without the calls that are being made in this process."""
        return Batcher, (self._send, self._is_idle)

    async def call(self, item: ItemT) -> ResultT:
        """The result of ``item``, or the error that was made of it."""
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None and not self._delivering and self._is_idle():
            [alone] = await self._sent([item])
            return alone
        if turn is None:
            forget_closed(self._turns)
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

    async def _sent(self, items: Sequence[ItemT]) -> Sequence[ResultT]:
        found = await self._send(items)
        if len(found) != len(items):
            raise InternalError(f"the server answered for {len(found)} of {len(items)} items")
        return found

    def _end(self, turn: _Turn[ItemT, ResultT], loop: asyncio.AbstractEventLoop) -> None:
        if turn.sending is not None:
            return
        del self._turns[loop]
        if not all(result.done() for result in turn.results):
            turn.sending = loop.create_task(self._deliver(turn.items, turn.results))
            self._delivering.add(turn.sending)
            turn.sending.add_done_callback(self._delivering.discard)

    async def _deliver(self, items: Sequence[ItemT], results: Sequence[asyncio.Future[ResultT]]) -> None:
        """Send the items whose callers are still there, and give each what became of its own."""
        waiting = {index: result for index, result in enumerate(results) if not result.done()}
        try:
            found = await self._sent([items[index] for index in waiting]) if waiting else []
            for result, value in zip(waiting.values(), found, strict=True):
                if not result.done():
                    result.set_result(value)
        except REFUSALS as error:
            if len(waiting) > 1:
                await asyncio.gather(*(self._deliver([items[index]], [result]) for index, result in waiting.items()))
            else:
                _fail(waiting.values(), error)
        except Exception as error:
            _fail(waiting.values(), error)
        except BaseException:
            for result in waiting.values():
                result.cancel()
            raise


def _fail(results: Iterable[asyncio.Future[ResultT]], error: Exception) -> None:
    """Each gets an error of its own, to which its traceback can be attached."""
    for result in results:
        if not result.done():
            result.set_exception(copy.copy(error))
