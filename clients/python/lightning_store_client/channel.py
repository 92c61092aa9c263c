"""The connection to one server: a gRPC channel for each process, and calls on it that asyncio can await.

The channel is of gRPC's synchronous kind, its calls bridged to the caller's event loop. Unlike ``grpc.aio``, such a
channel serves any number of threads and loops and can be followed by a fork (if gRPC was imported with
GRPC_ENABLE_FORK_SUPPORT=1, which importing this package sees to).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from lightning_store.clock import Clock
from lightning_store.errors import InvalidArgumentError, StoreTimeoutError
from lightning_store.v1 import service_pb2_grpc
from lightning_store.watched_files import WatchedFiles
from lightning_store.wire.methods import METHODS, REPLIES, SERVICE, SESSION
from lightning_store_client.credentials import Credentials, Shown, TokenInterceptor, bearer
from lightning_store_client.endpoint import Target, refuse_gevent, target_of
from lightning_store_client.grpc_internals import MessageStream, hide_from_fork_handlers, show_to_fork_handlers
from lightning_store_client.session import Session, SessionUnsupported
from lightning_store_client.streams import Replies, now, warn_of_grpc

logger = logging.getLogger("lightning_store_client")

Metadata = tuple[tuple[str, str], ...]

GRPC_VERSION: Final = tuple(map(int, grpc.__version__.split(".")[:2]))
MIB: Final = 1024 * 1024
MAX_MESSAGE_BYTES: Final = 64 * MIB
"""The largest request that is sent; the server's own default limit."""

OPTIONS: Final = [
    ("grpc.max_send_message_length", -1),  # checked before sending, with a better message
    ("grpc.max_receive_message_length", -1),  # the server bounds its replies
    ("grpc.enable_retries", 0),  # one retry layer: the call funnel
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),  # a store is reached directly, not through the proxy for the web
    ("grpc.use_local_subchannel_pool", 1),  # a new client starts afresh, not with another's connection backoff
    ("grpc.initial_reconnect_backoff_ms", 100),
    # What one attempt to connect may take. A refusal is tried again sooner, but by older releases no sooner than this.
    ("grpc.min_reconnect_backoff_ms", 5000 if GRPC_VERSION >= (1, 81) else 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A connection that falls silent is given up, so that calls are made again on another within their deadline of 30 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),  # when the other end acknowledges nothing
    ("grpc.http2.ping_timeout_ms", 5_000),  # when it acknowledges and does not answer; a minute if left alone
]


DEADLINE_SECONDS_MAX: Final = 365 * 24 * 3600.0
"""A year. gRPC has deadlines as nanoseconds since 1970: one beyond April 2262 would have passed already. Not even an
endless one is left out, since the server would then put its own in place."""
READ_AHEAD: Final = 4
"""Replies of a stream that may wait for their reader; the server waits before it sends more."""
CLOSED_LOOP_SECONDS: Final = 1.0
"""How often a stream whose reader is slow looks whether its loop is still there: loops are closed without notice."""


class Connection:
    """One process's channel to a server and the stubs on it."""

    def __init__(self, endpoint: str, target: Target, shown: Shown) -> None:
        self._endpoint = endpoint
        options = [*OPTIONS, *target.options]
        self.channel = (
            grpc.insecure_channel(target.name, options=options)
            if shown.tls is None
            else grpc.secure_channel(target.name, shown.tls, options=options)
        )
        _gate.stand_before_grpc()
        _gate.connections.add(self)
        self._metadata: Metadata = () if shown.token is None else (bearer(shown.token),)
        """Of every call."""
        self._calls: grpc.Channel = self.channel
        if shown.token is not None:
            self._calls = grpc.intercept_channel(self.channel, TokenInterceptor(bearer(shown.token)))
        # gRPC's fork handlers hold on to every channel that was not closed. At exit that is well: collecting one then
        # waits for the ends of its calls, which gRPC's threads can no longer tell.
        weakref.finalize(self, hide_from_fork_handlers, self.channel).atexit = False
        self.stub = service_pb2_grpc.LightningStoreServiceStub(self._calls)
        self.has_sessions = True
        """Whether the server offers them, as far as is known."""
        self._session: Session | None = None
        self._closing_session: weakref.finalize[..., Any] | None = None
        self._starting = threading.Lock()
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self._methods: dict[str, Any] = {}

    def method(self, rpc: str) -> Any:
        """What makes a call of a method that is not streaming by itself, from the serialized request."""
        made = self._methods.get(rpc)
        if made is None:
            made = self._calls.unary_unary(METHODS[rpc].path, None, REPLIES[rpc].FromString)
            self._methods[rpc] = made
        return made

    @property
    def is_idle(self) -> bool:
        """Whether there is a session on which no call is under way."""
        session = self._session
        return session is not None and session.is_idle

    def session(self) -> Session:
        """The one that is open, or a new one."""
        session = self._session
        if session is None or session.ended:
            with self._starting:
                session = self._session
                if session is None or session.ended:
                    session = self._session = self._open_session()
        return session

    def _open_session(self) -> Session:
        with _gate.lock:
            stream = _begin_stream(self.channel, f"/{SERVICE}/{SESSION}", self._metadata)
            session = Session(stream, self._endpoint)
            _gate.sessions.add(session)
        # Its thread would keep it alive, and so the connection, for ever.
        if self._closing_session is not None:
            self._closing_session.detach()
        self._closing_session = weakref.finalize(self, _close_forgotten, session)
        self._closing_session.atexit = False
        return session

    def retire(self) -> None:
        """End the session when its calls have ended. The channel ends when nobody holds it any more."""
        session = self._session
        if session is not None:
            session.retire()

    def close(self) -> None:
        """Calls that are under way end as cancelled."""
        session = self._session
        if session is not None:
            session.close()
        self.channel.close()


def _close_forgotten(session: Session) -> None:
    """Of a connection that nobody closed. When Python ends there is nothing to do, and nothing that could be done:
    gRPC's threads are gone, with whatever they held locked."""
    if not sys.is_finalizing():
        session.close()


class Connector:
    """Makes the connection when it is first needed, anew in each process, and when a file of its credentials has
    changed. Pickles as its arguments.

    Args:
        endpoint: Where the server is.
        credentials: What it is shown. InvalidArgumentError if its files cannot be read.
        clock: Tells when to look at the files.
    """

    def __init__(self, endpoint: str, credentials: Credentials, clock: Clock | None = None) -> None:
        self.endpoint = endpoint
        self._credentials = credentials
        self._clock = clock
        credentials.read()  # what is wrong with them is best told at once
        self._reset()
        with _gate.lock:
            _connectors.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self.connection: Connection | None = None
        self._closed = False
        files = self._credentials.files
        self._files = WatchedFiles(files, self._clock) if files else None

    def get(self) -> Connection:
        """This process's connection. RuntimeError after ``close``; StoreUnavailableError if no host is known."""
        connection = self.connection
        if connection is not None and (self._files is None or not self._files.changed() or not self._renew()):
            return connection
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the client of {self.endpoint} is closed; make a new one")
            if self.connection is None:
                refuse_gevent()
                target, shown = target_of(self.endpoint), self._credentials.read()
                with _gate.lock:
                    self.connection = Connection(self.endpoint, target, shown)
            return self.connection

    def look_again(self) -> bool:
        """Whether the next call is made with other credentials, since their files have just changed."""
        return self._files is not None and self._files.changed(at_once=True) and self._renew()

    def _renew(self) -> bool:
        """Have the next call connect anew; those that are under way end as they would have. False, and a warning, if
        the files do not hold what they should: then all stays as it is."""
        try:
            self._credentials.read()
        except InvalidArgumentError as error:
            logger.warning("%s: the credentials stay as they were: %s", self.endpoint, error)
            return False
        with self._lock:
            connection, self.connection = self.connection, None
        if connection is not None:
            connection.retire()
        return True

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, in this process or before the fork that made it."""
        return self._closed

    def close(self) -> None:
        """Close the channel; calls that are under way end as cancelled. May be called more than once."""
        with self._lock:
            connection, self.connection = self.connection, None
            self._closed = True
        if connection is not None:
            connection.close()

    def after_fork(self) -> None:
        """In the child: forget the parent's connection and whatever another thread held locked."""
        closed = self._closed
        self._reset()
        self._closed = closed

    def __getstate__(self) -> dict[str, Any]:
        return {"endpoint": self.endpoint, "credentials": self._credentials}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


_connectors: weakref.WeakSet[Connector] = weakref.WeakSet()
_inherited: list[Connection] = []
"""Connections of parent processes: kept, because collecting a channel closes it, and this one is not ours to close."""


CHILD_MAY_KEEP_CORE: Final = GRPC_VERSION >= (1, 82)
"""Whether a child may leave its parent's channels open. Up to grpcio 1.81 gRPC's handler ends a child in which gRPC's
core is still in use, with exit code 64; so it has to close the channels there itself."""
FORK_SECONDS_MAX: Final = 5.0
"""What a fork waits for our own threads. gRPC waits as long for its threads."""
NUDGE_SECONDS: Final = 0.005


class _ForkGate:
    """Lets no call begin and none of our streams move on during a fork, and keeps gRPC's own hands off our channels in
    the child.

    What another thread holds locked at the moment of a fork stays locked in the child for ever. gRPC's handler would
    close each channel there, and wait for such a lock; the child forgets them instead, and connects anew.
    """

    def __init__(self) -> None:
        self._stands_before_grpc = False
        self._reset()

    def _reset(self) -> None:
        self.lock = threading.RLock()
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        """Of this process, those that others have replaced included."""
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        """To leave gRPC while this process forks."""
        self.streams: weakref.WeakSet[Replies] = weakref.WeakSet()
        """To be paused while this process forks."""
        self.calls: weakref.WeakSet[Any] = weakref.WeakSet()
        """Made by themselves: gRPC's thread waits for their replies."""
        self._paused: list[Replies] = []
        self._nudging: _Nudging | None = None
        self._times_closed = 0

    def stand(self) -> None:
        """Be asked before whoever was asked first so far, and be told last when all is over."""
        os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def stand_before_grpc(self) -> None:
        """To be called when gRPC has put up its fork handlers: they need its threads to be at rest, and nobody else to
        fork at the same time."""
        if not self._stands_before_grpc:
            self._stands_before_grpc = True
            self.stand()

    def _before(self) -> None:
        self.lock.acquire()
        self._times_closed += 1
        if self._times_closed == 1:
            self._pause()
        elif self._nudging is not None:  # gRPC has been asked in between
            self._nudging.stop()

    def _pause(self) -> None:
        if CHILD_MAY_KEEP_CORE:
            for channel in _open_channels():
                hide_from_fork_handlers(channel)
        until = now() + FORK_SECONDS_MAX
        for session in list(self.sessions):
            session.leave(until)
        for stream in list(self.streams):
            stream.pause(until)
            self._paused.append(stream)
        if any(not stream.over for stream in self._paused) or any(not call.done() for call in self.calls):
            self._nudging = _Nudging(_open_channels())

    def _in_parent(self) -> None:
        self._times_closed -= 1
        if self._times_closed == 0:
            if self._nudging is not None:
                self._nudging.stop()
                self._nudging.wait_for_threads()
                self._nudging = None
            while self._paused:
                self._paused.pop().resume()
            for channel in _open_channels():
                show_to_fork_handlers(channel)
        self.lock.release()

    def _in_child(self) -> None:
        _inherited.extend(self.connections)
        self._reset()
        for connector in list(_connectors):
            connector.after_fork()


class _Nudging:
    """Gives gRPC's threads something to do until ``stop``: one that waits for a reply looks whether it is to make way
    for a fork each time that something has happened, but otherwise once a second."""

    def __init__(self, channels: list[grpc.Channel]) -> None:
        self._calls = [channel.unary_unary("/nothing/Nothing", None, None) for channel in channels]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._nudge, name="lightning-store-fork", daemon=True)
        self._thread.start()

    def _nudge(self) -> None:
        while not self._stopped.wait(NUDGE_SECONDS):
            self._make_calls()

    def _make_calls(self) -> list[Any]:
        """That have failed before they are sent."""
        made = []
        for call in self._calls:
            with contextlib.suppress(ValueError):  # the channel was closed meanwhile
                made.append(call.future(b"", timeout=0))
        return made

    def stop(self) -> None:
        """Return when it does nothing any more. May be called again."""
        self._stopped.set()
        self._thread.join()

    def wait_for_threads(self) -> None:
        """Return when gRPC's threads are at work again. At the next fork it would take those that are not for threads
        that have made way already, though they may still come."""
        for made in self._make_calls():
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError):
                made.exception(FORK_SECONDS_MAX)


def _open_channels() -> list[grpc.Channel]:
    return [connection.channel for connection in list(_gate.connections)]


_gate = _ForkGate()
_gate.stand()


def no_fork() -> contextlib.AbstractContextManager[Any]:
    """``with no_fork(): …`` for what must not be half done when another thread forks."""
    return _gate.lock


def _begin(method: Any, request: Any, timeout: float, metadata: Metadata = ()) -> Any:
    """Begin a call; ``method`` is a multi-callable or the ``future`` of one. RuntimeError if the channel is closed."""
    with _gate.lock:
        try:
            return method(request, timeout=min(timeout, DEADLINE_SECONDS_MAX), metadata=metadata)
        except ValueError as error:
            raise _closed_error(error) from None


def _closed_error(error: ValueError) -> RuntimeError:
    """For what gRPC says of a channel that was closed a moment ago."""
    return RuntimeError(f"the client is closed: {error}")


def _begin_stream(channel: grpc.Channel, method: str, metadata: Metadata) -> MessageStream:
    """RuntimeError if the channel is closed. SessionUnsupported if this release of gRPC has not what it takes."""
    try:
        return MessageStream(channel, method, metadata)
    except ValueError as error:
        raise _closed_error(error) from None
    except (AttributeError, TypeError) as error:
        warn_of_grpc(error)
        raise SessionUnsupported from error


async def call_unary(method: Any, request: Any, timeout: float, metadata: Metadata = ()) -> Any:
    """Make the call ``method(request)`` from this event loop. ``grpc.RpcError`` if it fails; cancelling cancels it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not done.done():
            done.set_result(None)

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits for the call
            loop.call_soon_threadsafe(resolve)

    with _gate.lock:
        call = _begin(method.future, request, timeout, metadata)
        _gate.calls.add(call)
    call.add_done_callback(wake)
    try:
        await done
    except asyncio.CancelledError:
        call.cancel()
        raise
    if call.code() is not grpc.StatusCode.OK:
        raise call
    return call.result()


async def replies_of(
    method: Any, request: Any, timeout: float, patience: Callable[[], float] | None = None
) -> AsyncGenerator[Any, None]:
    """The replies of the streaming call ``method(request)``, one by one. ``grpc.RpcError`` if it breaks off, and
    StoreTimeoutError if none comes in the seconds that ``patience`` gives whenever one is waited for.

    Closing the generator cancels the call.

    gRPC's synchronous streams block, so this one is read in a thread of its own: the loop's pool may be full of callers
    that wait for the store. It reads no more than ``READ_AHEAD`` replies that nobody has taken yet.
    """
    loop = asyncio.get_running_loop()
    arrived: deque[tuple[Any, BaseException | None]] = deque()
    news = asyncio.Event()  # a wait for it, unlike one for an asyncio.Queue, can be dropped together with its loop
    room = threading.Semaphore(READ_AHEAD)
    with _gate.lock:
        call = _begin(method, request, timeout)
        incoming = Replies(call)
        _gate.streams.add(incoming)

    def take(reply: Any, end: BaseException | None) -> None:
        arrived.append((reply, end))
        news.set()

    def read() -> None:
        end: BaseException = StopAsyncIteration()
        try:
            for reply in incoming:
                loop.call_soon_threadsafe(take, reply, None)
                _acquire(room, loop)
        except Exception as error:
            end = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits for the replies
            loop.call_soon_threadsafe(take, None, end)
        call.cancel()

    threading.Thread(target=read, name="lightning-store-stream", daemon=True).start()
    try:
        while True:
            if not arrived:
                await _wait_for_more(arrived, news, patience)
            reply, end = arrived.popleft()
            if isinstance(end, StopAsyncIteration):
                return
            if end is not None:
                raise end
            yield reply
            room.release()
    finally:
        call.cancel()
        room.release()


async def _wait_for_more(
    arrived: Collection[object], news: asyncio.Event, patience: Callable[[], float] | None
) -> None:
    """Return when something has arrived. StoreTimeoutError after the seconds of ``patience``."""
    news.clear()
    if patience is None:
        await news.wait()
        return
    seconds = patience()
    giving_up = asyncio.get_running_loop().call_later(seconds, news.set)
    try:
        await news.wait()
    finally:
        giving_up.cancel()
    if not arrived:  # it may have come while something else held up the loop
        raise StoreTimeoutError(f"The server sent no more of its answer for {seconds:.3g} s")


def _acquire(room: threading.Semaphore, loop: asyncio.AbstractEventLoop) -> None:
    """Wait for room. RuntimeError if the loop was closed, and so nobody is left to make any."""
    while not room.acquire(timeout=CLOSED_LOOP_SECONDS):
        if loop.is_closed():
            raise RuntimeError("the event loop was closed")
