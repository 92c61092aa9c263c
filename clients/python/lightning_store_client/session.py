"""Calls that share one stream: what gRPC costs for each call is then paid for all that are made at once.

A call goes at once while no other is under way. Small ones that are made in one turn of an event loop, or while others
are being written, go together in the next message. Replies come in the order in which the server has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import math
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from lightning_store.errors import (
    CallCancelledError,
    InternalError,
    MessageTooLargeError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnsupportedError,
)
from lightning_store.loops import forget_closed
from lightning_store.v1.session_pb2 import SessionCall, SessionReply, SessionRequest, SessionResponse
from lightning_store.wire.errors import error_from_proto, from_rpc_error
from lightning_store.wire.frames import tag_of, varint
from lightning_store.wire.methods import ACCEPTED_METADATA
from lightning_store_client.grpc_internals import MessageStream
from lightning_store_client.streams import now, warn_of_grpc
from lightning_store_client.trace_context import NONE, TraceContext

CALL_BYTES_MAX: Final = 1024 * 1024
"""A larger request goes by itself, so that it does not hold up the others."""
MESSAGE_BYTES_MAX: Final = CALL_BYTES_MAX
"""Calls of one message, but for the last of them. Far less than servers take: a message that is too large ends the
stream."""
MESSAGE_CALLS_MAX: Final = 1000
"""Likewise."""
TURN_CALLS_MAX: Final = 16
"""Calls that are gathered in one turn of an event loop. They are sent before its end then, …"""
TURN_BYTES_MAX: Final = 4096
"""… and so is a larger one at once: the server has something to do while the others are being made."""
TIMEOUT_MS_MAX: Final = 2**32 - 1
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
"""Where gRPC carries the details that the server gives a status."""
CUT_CODES: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""What gRPC makes of a stream, or a connection, that somebody ends without a status."""

_CALLS: Final = tag_of(SessionRequest, "calls")
_REQUEST: Final = tag_of(SessionCall, "request")


class _Waiting(NamedTuple):
    """Who waits for a reply, on which event loop, for how long and until when of that loop's clock."""

    loop: asyncio.AbstractEventLoop
    reply: asyncio.Future[SessionReply]
    timeout: float
    until: float


class SessionUnsupported(Exception):
    """The server has no sessions, or takes only messages that are too small for them: make the call by itself."""

    def __init__(self, *, repeated: bool = False) -> None:
        super().__init__()
        self.repeated = repeated
        """Whether this call may have reached the server."""


class SessionRetired(Exception):
    """The session was ended because this process forks, or moves on. Make the call on a new one; the server may have
    it."""


class StreamCut(Exception):
    """The session had been taken by the server, and broke off. Make the call again; the server may have it."""

    def __init__(self, failure: StoreUnavailableError) -> None:
        super().__init__(failure)
        self.failure = failure


class Session:
    """One stream of one connection, for callers on any thread and event loop. It ends once, and is then ``ended``."""

    def __init__(self, stream: MessageStream, endpoint: str) -> None:
        """``stream`` is one that was just begun, to the server at ``endpoint``."""
        self._endpoint = endpoint
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._looks: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}
        """When each loop looks which of its calls took too long: one timer for all of them, since nearly none does."""
        self._outbox: deque[tuple[bytes, bytes] | int] = deque()
        """What is to be sent: calls, each as a SessionCall that has all but the request, and the request; and the ids
        of those that were cancelled."""
        self._sending = False
        """Whether gRPC still has the last message."""
        self._gathering: asyncio.AbstractEventLoop | None = None
        """The loop that sends when it has done what it has to do now, if one does."""
        self._sender = threading.Lock()
        """Held by the one who sends; nobody waits for it."""
        self._end: Exception | None = None
        self._ending = threading.RLock()  # the end of a call may be the work of a finalizer, in a thread that holds it
        """Held to take a call, and to end: so each call is either taken before the end or refused."""
        self._closed = False
        self._retired = False
        self._stream = stream
        self._thread = threading.Thread(target=self._read, name="lightning-store-session", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            stream.cancel()
            raise StoreUnavailableError(f"there is no thread to be had for the connection: {error}") from None

    @property
    def ended(self) -> bool:
        """Whether it is to get no more calls."""
        return self._retired or self._end is not None

    @property
    def is_idle(self) -> bool:
        """Whether it takes calls and has none."""
        return not (self.ended or self._waiting)

    async def call(
        self, method: str, request: bytes, timeout: float, *, repeated: bool, trace_context: TraceContext = NONE
    ) -> bytes:
        """The reply to ``request``, both serialized. Cancelling cancels the call.

        StoreError if it fails: StoreTimeoutError after ``timeout`` seconds, StoreUnavailableError if the stream ends.
        SessionUnsupported and SessionRetired if the call is to be made otherwise.
        """
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[SessionReply] = loop.create_future()
        id_ = next(self._ids)
        until = loop.time() + timeout
        call = SessionCall(id=id_, method=method, timeout_ms=_milliseconds(timeout), repeated=repeated, **trace_context)
        head = call.SerializeToString()
        with self._ending:
            if self._end is not None:
                raise copy.copy(self._end)
            alone = not self._waiting
            self._waiting[id_] = _Waiting(loop, reply, timeout, until)
        self._outbox.append((head, request))
        if alone or len(request) > TURN_BYTES_MAX or len(self._outbox) >= TURN_CALLS_MAX:
            self._send()
        elif self._gathering is not loop:
            loop.call_soon(self._send_gathered)
            self._gathering = loop
        look = self._looks.get(loop)
        if look is None or look.when() > until:
            self._look_at(until, loop)
        try:
            answer = await reply
        finally:
            if self._waiting.pop(id_, None) is not None:
                self._outbox.append(id_)
                self._send()
            self._end_if_retired()
        if answer.HasField("error"):
            raise _error_of(answer.error)
        return answer.response

    def _look_at(self, time: float, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that the calls of this loop, the present one, are looked at then."""
        forget_closed(self._looks)
        former = self._looks.pop(loop, None)
        if former is not None:
            former.cancel()
        if not math.isinf(time):
            self._looks[loop] = loop.call_at(time, _look, weakref.ref(self), loop)

    def _give_up_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the calls of this loop that took too long, and look again when the next one will have."""
        time = loop.time()
        next_time = math.inf
        for waiting in list(self._waiting.values()):
            if waiting.loop is not loop or waiting.reply.done():
                continue
            if waiting.until > time:
                next_time = min(next_time, waiting.until)
            else:
                message = f"The deadline of {waiting.timeout:.3g} s passed before the server answered"
                waiting.reply.set_exception(naming_server(StoreTimeoutError(message), self._endpoint))
        self._look_at(next_time, loop)

    def retire(self) -> None:
        """End the stream when the calls that are under way have ended."""
        self._retired = True
        self._end_if_retired()

    def _end_if_retired(self) -> None:
        if not self._retired:
            return
        with self._ending:
            if self._waiting or self._end is not None:
                return
            self._end = SessionRetired("the connection was given up before the call was sent")
        self._stream.cancel()

    def close(self) -> None:
        """End the stream; calls that are under way end as cancelled."""
        self._closed = True
        self._stream.cancel()

    def leave(self, until: float) -> None:
        """End it because the process is about to fork. Returns when nothing of it is inside gRPC, at the time ``until``
        of the system's clock at the latest. Calls that are under way are to be made again on another."""
        with self._ending:
            if self._end is None:
                self._end = SessionRetired("the process forked before the server answered")
        self._stream.cancel()
        self._thread.join(max(0.0, until - now()))

    def _send(self) -> None:
        """Send what is to be sent, if gRPC has nothing of this session's to send: otherwise it goes when that has gone.

        Whoever cannot become the sender may go: the sender looks again when it no longer is. This may be called in a
        thread that is the sender, by the finalizer of a call that nobody waits for any more.
        """
        while self._outbox and not self._sending and self._sender.acquire(blocking=False):
            try:
                if self._outbox and not self._sending:
                    self._sending = True
                    self._stream.send(self._next_message())
            except BaseException:  # a signal, say: what was to be sent may be lost, so this session is
                self._stream.cancel()
                raise
            finally:
                self._sender.release()

    def _send_gathered(self) -> None:
        self._gathering = None
        self._send()

    def _next_message(self) -> bytes:
        """A SessionRequest. (protobuf would copy each request three times on the way.)"""
        parts: list[bytes] = []
        cancelled_ids: list[int] = []
        size_bytes = taken = 0
        while self._outbox and size_bytes <= MESSAGE_BYTES_MAX and taken < MESSAGE_CALLS_MAX:
            taken += 1
            item = self._outbox.popleft()
            if isinstance(item, int):
                cancelled_ids.append(item)
            else:
                call, request = item
                call += _REQUEST + varint(len(request))
                parts += _CALLS, varint(len(call) + len(request)), call, request
                size_bytes += len(request)
        if cancelled_ids:
            parts.append(SessionRequest(cancelled_ids=cancelled_ids).SerializeToString())
        return b"".join(parts)

    # --- In a thread of its own --------------------------------------------------------------------------------------

    def _read(self) -> None:
        error: Exception = StreamCut(StoreUnavailableError(f"{self._endpoint}: the server ended the connection"))
        try:
            self._stream.run(self._take, self._sent)
        except grpc.RpcError as failure:
            error = self._end_of(failure)
        except Exception as failure:
            warn_of_grpc(failure)
            error = SessionUnsupported(repeated=True)
            with contextlib.suppress(Exception):
                self._stream.cancel()
        with self._ending:
            if self._end is None:
                self._end = error
        self._fail_all(self._end)

    def _sent(self) -> None:
        self._sending = False
        self._send()

    def _take(self, message: bytes) -> None:
        try:
            response = SessionResponse.FromString(message)
            self._hand_over(response)
            if response.moving_on:
                self.retire()
        except DecodeError as error:
            with self._ending:
                self._end = self._end or InternalError(f"the server sent what is no message of a session: {error}")
            self._stream.cancel()

    def _end_of(self, failure: grpc.RpcError) -> Exception:
        """What becomes of the calls under way when the stream fails."""
        error = from_rpc_error(failure)
        if isinstance(error, UnsupportedError):
            return SessionUnsupported()
        if isinstance(error, MessageTooLargeError):  # of several calls together; each of them may be small enough
            return SessionUnsupported(repeated=True)
        if not self._closed and was_cut(failure):
            message = f"{self._endpoint}: the connection broke off: {error}"
            return StreamCut(StoreUnavailableError(message))
        if isinstance(error, CallCancelledError) and not self._closed:
            error = _given_up(error)
        return naming_server(error, self._endpoint)

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
                _call_soon(waiting.loop, _fail, waiting.reply, copy.copy(error))


def was_cut(failure: Any) -> bool:
    """Whether a stream that the server had taken was ended by somebody else, such as a proxy."""
    taken = ACCEPTED_METADATA in [tuple(one) for one in failure.initial_metadata() or ()]
    return taken and failure.code() in CUT_CODES and not is_of_store(failure)


def is_of_store(failure: Any) -> bool:
    """Whether the status is of the server's making, and not of gRPC's."""
    return any(key == STATUS_DETAILS_KEY for key, _ in failure.trailing_metadata() or ())


def naming_server(error: StoreError, endpoint: str) -> StoreError:
    """The same error with the address that the client was given, if it is about reaching the server: gRPC's own text
    names other addresses, or none."""
    if isinstance(error, StoreUnavailableError | StoreTimeoutError):
        error.args = (f"{endpoint}: {error}", *error.args[1:])
    return error


def _error_of(status: Any) -> StoreError:
    """A call that ends as cancelled, though nobody did, and not by the store, is one that the server did not make."""
    error = error_from_proto(status)
    return _given_up(error) if isinstance(error, CallCancelledError) and not status.details else error


def _given_up(error: CallCancelledError) -> StoreUnavailableError:
    return StoreUnavailableError(f"The server gave the call up: {error}")


def _milliseconds(timeout: float) -> int:
    return 0 if math.isinf(timeout) else max(1, int(min(timeout * 1000, TIMEOUT_MS_MAX)))


def _look(session: weakref.ref[Any], loop: asyncio.AbstractEventLoop) -> None:
    alive: Session | None = session()
    if alive is not None:
        alive._give_up_overdue(loop)


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
