"""Calls that share one stream: what gRPC costs for each call is then paid for all that are made at once.

Calls are sent as soon as the stream takes them: one alone goes at once, and those that come while others are being
written go together in the next message. Replies come in the order in which the server has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import Message

from lightning_store.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from lightning_store.v1.session_pb2 import SessionCall, SessionReply, SessionRequest, SessionResponse
from lightning_store.wire.errors import error_from_proto, from_rpc_error

CALL_BYTES_MAX: Final = 1024 * 1024
"""A larger request goes by itself, so that it does not hold up the others."""
MESSAGE_BYTES_MAX: Final = 4 * CALL_BYTES_MAX
"""Calls of one message, but for the last of them."""
TIMEOUT_MS_MAX: Final = 2**32 - 1


class _Waiting(NamedTuple):
    """Who waits for a reply, and on which event loop."""

    loop: asyncio.AbstractEventLoop
    reply: asyncio.Future[SessionReply]


class SessionUnsupported(Exception):
    """The server has no sessions: make the call by itself."""


class Session:
    """One stream of one connection, for callers on any thread and event loop. It ends once, and is then ``ended``."""

    def __init__(self, begin: Callable[[Iterator[SessionRequest]], Any]) -> None:
        """``begin`` starts the streaming call."""
        self.ended = False
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._outbox: queue.SimpleQueue[SessionCall | int | None] = queue.SimpleQueue()
        self._call = begin(self._requests())
        threading.Thread(target=self._read, name="lightning-store-session", daemon=True).start()

    async def call(self, method: str, request: Message, timeout: float, *, repeated: bool) -> bytes:
        """The serialized reply to ``request``. Cancelling cancels the call.

        StoreError if it fails: StoreTimeoutError after ``timeout`` seconds, StoreUnavailableError if the stream ends.
        SessionUnsupported if the server has none.
        """
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[SessionReply] = loop.create_future()
        id_ = next(self._ids)
        self._waiting[id_] = _Waiting(loop, reply)
        self._outbox.put(
            SessionCall(
                id=id_,
                method=method,
                request=request.SerializeToString(),
                timeout_ms=_milliseconds(timeout),
                repeated=repeated,
            )
        )
        if self.ended:  # perhaps before it could see this call
            self._fail_all(StoreUnavailableError("the connection has ended"))
        timer = None if math.isinf(timeout) else loop.call_later(timeout, self._give_up, id_, timeout)
        try:
            answer = await reply
        finally:
            if timer is not None:
                timer.cancel()
            if self._waiting.pop(id_, None) is not None:
                self._outbox.put(id_)
        if answer.HasField("error"):
            raise error_from_proto(answer.error)
        return answer.response

    def _give_up(self, id_: int, timeout: float) -> None:
        waiting = self._waiting.get(id_)
        if waiting is not None and not waiting.reply.done():
            message = f"The deadline of {timeout:.3g} s passed before the server answered"
            waiting.reply.set_exception(StoreTimeoutError(message))

    # --- In gRPC's thread that sends ---------------------------------------------------------------------------------

    def _requests(self) -> Iterator[SessionRequest]:
        while True:
            calls: list[SessionCall] = []
            cancelled: list[int] = []
            size_bytes = 0
            item = self._outbox.get()
            while item is not None:
                if isinstance(item, int):
                    cancelled.append(item)
                else:
                    calls.append(item)
                    size_bytes += len(item.request)
                if size_bytes > MESSAGE_BYTES_MAX:
                    break
                try:
                    item = self._outbox.get_nowait()
                except queue.Empty:
                    break
            if calls or cancelled:
                yield SessionRequest(calls=calls, cancelled_ids=cancelled)
            if item is None:
                return

    # --- In a thread of its own --------------------------------------------------------------------------------------

    def _read(self) -> None:
        error: Exception = StoreUnavailableError("the server ended the connection")
        try:
            for response in self._call:
                self._hand_over(response)
        except grpc.RpcError as failure:
            unsupported = getattr(failure, "code", lambda: None)() is grpc.StatusCode.UNIMPLEMENTED
            error = SessionUnsupported() if unsupported else from_rpc_error(failure)
        self.ended = True
        self._outbox.put(None)
        self._fail_all(error)

    def _hand_over(self, response: SessionResponse) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[SessionReply], SessionReply]]]
        by_loop = defaultdict(list)
        for reply in response.replies:
            waiting = self._waiting.pop(reply.id, None)
            if waiting is not None:
                by_loop[waiting.loop].append((waiting.reply, reply))
        for loop, replies in by_loop.items():
            _call_soon(loop, _settle, replies)

    def _fail_all(self, error: Exception) -> None:
        """Each gets an error of its own, to which its traceback can be attached."""
        while self._waiting:
            with contextlib.suppress(KeyError):
                _, waiting = self._waiting.popitem()
                _call_soon(waiting.loop, _fail, waiting.reply, _copy(error))

    def close(self) -> None:
        """End the stream; calls that are under way end as cancelled."""
        self._call.cancel()


def _milliseconds(timeout: float) -> int:
    return 0 if math.isinf(timeout) else max(1, min(int(timeout * 1000), TIMEOUT_MS_MAX))


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits there
        loop.call_soon_threadsafe(callback, *args)


def _settle(replies: Iterable[tuple[asyncio.Future[SessionReply], SessionReply]]) -> None:
    for future, reply in replies:
        if not future.done():
            future.set_result(reply)


def _fail(future: asyncio.Future[SessionReply], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _copy(error: Exception) -> Exception:
    copied = type(error)(*error.args)
    if isinstance(error, StoreError) and isinstance(copied, StoreError):
        copied.details = error.details
    return copied
