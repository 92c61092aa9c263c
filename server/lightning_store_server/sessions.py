"""Sessions: many calls of the unary methods on one stream. What surrounds a call here is what surrounds it elsewhere: a
place for it, errors as statuses, observers of how it ended; its caller sees to its deadline.

Calls are made as they are read, a few at a stretch, and the replies of those are sent while the next ones are made. A
call that may wait has a task of its own, so that it holds up no other; one that an inline store carries out at once
needs none.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from lightning_store.clock import Clock, SystemClock, Timer
from lightning_store.errors import InvalidArgumentError, StoreUnavailableError, UnsupportedError
from lightning_store.items import check_items
from lightning_store.loops import Slicer
from lightning_store.store import LightningStore
from lightning_store.text import clipped, printable
from lightning_store.v1.session_pb2 import CallStatus, SessionCall, SessionRequest, SessionResponse
from lightning_store.wire.errors import error_to_proto
from lightning_store.wire.methods import (
    ACCEPTED_METADATA,
    METHODS,
    REPEATED_METADATA,
    REQUESTS,
    SERVICE,
    SESSION,
    Method,
    Repeat,
)
from lightning_store_server.access import Access, Caller, bearer_digest, note_caller
from lightning_store_server.admission import WAITS, Admission, Slot
from lightning_store_server.config import MOVE_AFTER, ServerConfig
from lightning_store_server.interceptors import (
    CallerGoneError,
    Context,
    ObservedCall,
    Rpc,
    abort,
    is_cancelled,
    peer_of,
    shown_error,
    write,
)
from lightning_store_server.observers import CallObserver
from lightning_store_server.servicer import StoreServicer
from lightning_store_server.slices import HEAVY_BYTES

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Replies of one message, but for the last of them."""
CALLS_AT_A_STRETCH: Final = 32
"""Calls that are begun before others get their turn, the sending of replies among them: with all at once, the caller
would wait while the server works, and the server while the caller does."""
UNSENT_MAX: Final = 1000
"""Replies that wait until their caller reads. With more, no further calls are read."""
SEVERAL_TURNS: Final = frozenset(
    {"DeleteRollouts", "ListAttempts", "ListResources", "ListRollouts", "ListSpans", "ListWorkers", "WaitForRollouts"}
)
"""Methods that let other calls in between, whatever the store is."""
BRIEF_BYTES_MAX: Final = 64 * 1024
"""A larger request may have many items, which are worked on in slices."""
METHOD_CHARS_MAX: Final = 100
"""Characters of an unknown method's name that are logged and told."""
PATH: Final = f"/{SERVICE}/{SESSION}"
MOVE_SECONDS: Final = 30.0
"""How long a caller that is asked to move on may make calls all the same, as one that does not know of that does."""
Judge: TypeAlias = Callable[[], Caller]
"""Who makes the calls of a session, as of now; UnauthenticatedError once the token counts no longer."""


class SessionServicer(StoreServicer):
    """The service with its sessions."""

    def __init__(
        self,
        store: LightningStore,
        config: ServerConfig,
        admission: Admission,
        access: Access | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``access`` knows who may make calls; None for everybody. ``clock`` tells when a session is to move on."""
        super().__init__(store, config)
        self._access = access
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._age_seconds = config.max_connection_age_seconds
        self._admission = admission
        self._calls = _Calls(
            {name: self._rpc(method) for name, method in METHODS.items() if not method.streams},
            admission,
            inline=self._records.inline,
            items_max=config.request_items_max,
        )
        self.call_observers: Sequence[CallObserver] = ()
        """Told of each call of a session."""
        self._sessions: set[_Session] = set()

    @property
    def session_count(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    def _rpc(self, method: Method) -> Rpc:
        handler = grpc.unary_unary_rpc_method_handler(getattr(self, method.name), REQUESTS[method.name].FromString)
        return Rpc.of(method, handler, self._config.request_items_max)

    def drain(self) -> None:
        super().drain()
        for session in self._sessions:
            session.take_no_more()

    # It writes by itself, as gRPC lets it: the generated base knows only generators.
    async def Session(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request_iterator: AsyncIterator[bytes], context: Context
    ) -> None:
        observe = None
        if self.call_observers:
            observe = partial(
                ObservedCall, self.call_observers, peer=context.peer(), metadata=context.invocation_metadata()
            )
        judge = None
        if self._access is not None:  # which has let this stream in
            judge = partial(self._access.caller, bearer_digest(context.invocation_metadata() or ()))
        peer = peer_of(context)
        session = _Session(self._calls, partial(write, context), observe, judge, peer)
        moving: list[Timer] = []
        if self._age_seconds:
            after = random.uniform(*MOVE_AFTER) * self._age_seconds
            moving.append(self._clock.call_later(after, session.move_on))
            end = partial(session.take_no_more, "this session is as old as it may be; make the call on another")
            moving.append(self._clock.call_later(after + MOVE_SECONDS, end))
        try:
            with self._admission.sessions.enter(0, peer):
                self._sessions.add(session)
                if self._draining:
                    session.take_no_more()
                await context.send_initial_metadata((ACCEPTED_METADATA,))
                await session.serve(context.read)
        except Exception as error:
            await abort(PATH, context, error)
        finally:
            self._sessions.discard(session)
            for timer in moving:
                timer.cancel()


class SessionInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub only
    """Hands the messages of a session on as bytes, so that their calls are counted before they are parsed."""

    def __init__(self) -> None:
        self._handler: Any = None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if handler_call_details.method != PATH:
            return await continuation(handler_call_details)
        if self._handler is None:
            handler = await continuation(handler_call_details)
            self._handler = grpc.stream_stream_rpc_method_handler(
                handler.stream_stream, response_serializer=handler.response_serializer
            )
        return self._handler


class _Ended(NamedTuple):
    """A call that ended, and the place that it keeps until its reply is sent."""

    id: int
    response: bytes
    error: Status | None
    """If there is one, there is no response."""
    slot: Slot | None


class _CallContext:
    """What a method asks of its gRPC context, for one call of a session."""

    __slots__ = ("_call", "_peer")

    def __init__(self, call: SessionCall, peer: str) -> None:
        self._call = call
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        """As of when the call came: a method asks before it waits."""
        return self._call.timeout_ms / 1000 if self._call.timeout_ms else None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (REPEATED_METADATA,) if self._call.repeated else ()


class _Calls:
    """Makes the calls of all sessions."""

    def __init__(self, rpcs: Mapping[str, Rpc], admission: Admission, *, inline: bool, items_max: int) -> None:
        """``inline`` tells whether the store carries out a call that does not wait without suspending."""
        self.items_max = items_max
        self._rpcs = rpcs
        self._admission = admission
        self._inline = inline

    def is_brief(self, call: SessionCall) -> bool:
        """Whether the call is over before another could have its turn."""
        if not self._inline or call.method in SEVERAL_TURNS or len(call.request) > BRIEF_BYTES_MAX:
            return False
        rpc, wait = self._rpcs.get(call.method), WAITS.get(call.method)
        if rpc is None or wait is None:
            return True
        try:
            return not wait.holds(rpc.decode(call.request))
        except InvalidArgumentError:  # with which it fails at once
            return True

    async def make(
        self, call: SessionCall, judge: Judge | None, peer: str, observed: ObservedCall | None = None
    ) -> _Ended:
        """Its end, whatever that is. CancelledError only if nobody waits for it any more."""
        slot = None
        try:
            rpc = self._rpc(call.method)
            if judge is not None:
                caller = judge()
                if observed is not None:
                    observed.caller = caller.name
                caller.admit(rpc.method, len(call.request))
                note_caller(caller)
            size_bytes = len(call.request)
            request = rpc.decode(call.request) if rpc.method.name in WAITS else None
            slot = self._admission.enter(rpc.method, request, size_bytes, peer)
            async with self._admission.work(rpc.method, size_bytes, lambda: peer):
                request = rpc.decode(call.request) if request is None else request
                if observed is not None:
                    observed.request_id = getattr(request, "request_id", "")
                reply = rpc.encode(await rpc.behaviour(request, _CallContext(call, peer)))
            slot.reply(len(reply), may_refuse=rpc.method.repeat is Repeat.READ)
            return _Ended(call.id, reply, None, slot)
        except asyncio.CancelledError:
            if is_cancelled():
                if slot is not None:
                    slot.leave()
                raise
            return _failed(call, StoreUnavailableError("the store gave this call up; try again"), slot)
        except Exception as error:
            return _failed(call, error, slot)

    def held(self, size_bytes: int, peer: str) -> contextlib.AbstractContextManager[object]:
        """A message of this size, until its calls are begun. ResourceExhaustedError if a large one has no room."""
        return self._admission.calls.enter(size_bytes, peer) if size_bytes > HEAVY_BYTES else contextlib.nullcontext()

    def _rpc(self, method: str) -> Rpc:
        try:
            return self._rpcs[method]
        except KeyError:
            # As gRPC itself answers a method that a server lacks: a newer client knows then what it has to do without.
            takes = ", ".join(self._rpcs)
            message = f"method is {clipped(method, METHOD_CHARS_MAX)!r}; a session of this server takes {takes}"
            raise UnsupportedError(message, field="method") from None


def _failed(call: SessionCall, error: Exception, slot: Slot | None) -> _Ended:
    """(Apart, since a variable of the caller that held the error would be in a cycle with it.)"""
    return _Ended(call.id, b"", error_to_proto(shown_error(_name_of(call), error)), slot)


def _name_of(call: SessionCall) -> str:
    """For logs: as gRPC has it, if it is a method of ours."""
    method = METHODS.get(call.method)
    return printable(clipped(call.method, METHOD_CHARS_MAX)) if method is None else method.path


class _Session:
    """One stream: reads calls, begins each, and sends what they end with."""

    def __init__(
        self,
        calls: _Calls,
        write: Callable[[SessionResponse], Coroutine[Any, Any, None]],
        observe: Callable[[str], ObservedCall] | None,
        judge: Judge | None,
        peer: str,
    ) -> None:
        self._calls = calls
        self._peer = peer
        self._write = write
        self._observe = observe
        self._judge = judge
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._ended: list[_Ended] = []
        """Whose replies are to be sent next."""
        self._unsent = 0
        """How many replies are not sent yet, those that are being sent included."""
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._reading = True
        self._sending = False
        self._sender: asyncio.Task[None] | None = None
        self._draining = False
        self._refusal = ""
        self._moving_on = False
        """Whether the caller is still to be told."""
        self._failure: Exception | None = None
        """Why nothing more can be read, or sent."""
        self._over = asyncio.Event()

    async def serve(self, read: Callable[[], Awaitable[Any]]) -> None:
        """Until the caller has said all and has its answers, or the server drains. ``read`` has the next message.

        Raises at once if what the caller says cannot be understood.
        """
        reading = asyncio.create_task(self._read(read))
        try:
            await self._over.wait()
        finally:
            reading.cancel()
            self._abandon()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            try:
                raise failure
            finally:
                del failure  # which knows this frame

    def take_no_more(self, why: str = "the server is shutting down; try again when it is back") -> None:
        """Refuse what comes from now on, and end when the calls that are under way have ended."""
        self._draining = True
        self._refusal = why
        self._note_whether_over()

    def move_on(self) -> None:
        """Ask the caller to make further calls on another stream."""
        self._moving_on = True
        self._begin_sending()

    # --- Reading -----------------------------------------------------------------------------------------------------

    async def _read(self, read: Callable[[], Awaitable[Any]]) -> None:
        """(gRPC's iterator, and a variable of a loop, would keep a message until the next one comes.)"""
        try:
            with contextlib.suppress(grpc.aio.BaseError):
                while await self._take_next(read):
                    pass
        except DecodeError as error:
            self._failure = InvalidArgumentError(f"what came is no SessionRequest: {error}")
        except Exception as error:
            self._failure = error
        self._reading = False
        self._note_whether_over()

    async def _take_next(self, read: Callable[[], Awaitable[Any]]) -> bool:
        """Whether there was another message."""
        data = await read()
        if not isinstance(data, bytes):  # it is gRPC's EOF
            return False
        with self._calls.held(len(data), self._peer):
            await self._take(data)
        return True

    async def _take(self, data: bytes) -> None:
        """Begin the calls of one message."""
        slicer = Slicer()
        check_items(data, SessionRequest, self._calls.items_max)
        request = SessionRequest.FromString(data)
        called_off = {id_ for id_ in request.cancelled_ids if not self._cancel(id_)}
        for begun, call in enumerate(one for one in request.calls if one.id not in called_off):
            if slicer.is_over():
                await slicer.next_turn()
            elif begun and begun % CALLS_AT_A_STRETCH == 0:
                await asyncio.sleep(0)
            if self._unsent >= UNSENT_MAX:
                self._may_read.clear()
                await self._may_read.wait()
            await self._begin(call)

    async def _begin(self, call: SessionCall) -> None:
        if call.id in self._under_way:
            raise InvalidArgumentError(f"the id {call.id} belongs to a call that is under way", field="calls.id")
        if self._draining:
            error = StoreUnavailableError(self._refusal)
            self._send(_Ended(call.id, b"", error_to_proto(error), None))
        elif self._calls.is_brief(call):
            self._send(await self._make(call))
        else:
            self._under_way[call.id] = asyncio.create_task(self._run(call))

    def _cancel(self, id_: int) -> bool:
        """Whether the call was under way."""
        task = self._under_way.pop(id_, None)
        if task is None:
            return False
        task.cancel()
        self._note_whether_over()
        return True

    async def _run(self, call: SessionCall) -> None:
        ended = await self._make(call)
        if self._under_way.get(call.id) is not asyncio.current_task():  # it was cancelled, and ended all the same
            _leave([ended])
            return
        del self._under_way[call.id]
        self._send(ended)

    async def _make(self, call: SessionCall) -> _Ended:
        if self._observe is None:
            return await self._calls.make(call, self._judge, self._peer)
        with self._observe(_name_of(call)) as observed:
            if call.traceparent:
                own = ("traceparent", call.traceparent), ("tracestate", call.tracestate)
                observed.metadata = (*observed.metadata, *own)
            ended = await self._calls.make(call, self._judge, self._peer, observed)
            observed.code = 0 if ended.error is None else ended.error.code
        return ended

    # --- Sending -----------------------------------------------------------------------------------------------------

    def _send(self, ended: _Ended) -> None:
        """Send this, after what is being sent, with all that ends in this turn of the event loop."""
        self._ended.append(ended)
        self._unsent += 1
        self._begin_sending()

    def _begin_sending(self) -> None:
        if not self._sending:
            self._sending = True
            self._sender = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._ended or self._moving_on:
                if self._moving_on:
                    self._moving_on = False
                    await self._write(SessionResponse(moving_on=True))
                ended, self._ended = self._ended, []
                try:
                    for run in _runs(ended):
                        await self._write(_message_of(run))
                        _leave(run)
                        self._unsent -= len(run)
                        if self._unsent < UNSENT_MAX:
                            self._may_read.set()
                finally:  # the caller may be gone
                    _leave(ended)
            self._sending = False
        except CallerGoneError:
            self._over.set()
        except Exception as error:
            self._failure = error
            self._over.set()
        self._note_whether_over()

    def _note_whether_over(self) -> None:
        if self._ended or self._sending or (self._under_way and self._failure is None):
            return
        if self._draining or not self._reading:
            self._over.set()

    def _abandon(self) -> None:
        """The stream is over: nobody waits for what is under way."""
        given_up, self._under_way = self._under_way, {}
        for task in given_up.values():
            task.cancel()
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        _leave(self._ended)


def _runs(ended: list[_Ended]) -> Iterator[list[_Ended]]:
    """In order, a message each."""
    run: list[_Ended] = []
    size_bytes = 0
    for one in ended:
        run.append(one)
        size_bytes += len(one.response)
        if size_bytes > MESSAGE_BYTES_MAX:
            yield run
            run, size_bytes = [], 0
    if run:
        yield run


def _message_of(run: Iterable[_Ended]) -> SessionResponse:
    """(Replies that are made beforehand would be copied into it, with all that is in them.)"""
    message = SessionResponse()
    for one in run:
        if one.error is None:
            message.replies.add(id=one.id, response=one.response)
        else:
            error = CallStatus(code=one.error.code, message=one.error.message, details=one.error.details)
            message.replies.add(id=one.id, error=error)
    return message


def _leave(run: Iterable[_Ended]) -> None:
    for one in run:
        if one.slot is not None:
            one.slot.leave()
