"""What happens around every call: a place for it, a bound on its time, errors as gRPC status, and observers of how it
ended."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from lightning_store.errors import (
    InvalidArgumentError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from lightning_store.items import ITEMS_MAX, check_items
from lightning_store.wire.errors import as_store_error, to_status
from lightning_store.wire.methods import BY_PATH, REQUESTS, Method, Repeat
from lightning_store_server.access import Access, bearer_digest, caller_now, note_caller
from lightning_store_server.admission import WAITS, Admission, Slot
from lightning_store_server.observers import CallDetails, CallObserver
from lightning_store_server.slices import HEAVY_BYTES

logger = logging.getLogger("lightning_store_server")

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


class CallerGoneError(asyncio.CancelledError):
    """Nobody is there any more to whom a reply could be sent. gRPC takes a call that ends so as cancelled; of its own
    error it would make a failure in the log."""


class MethodInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub only
    """Wraps the methods that the table of RPCs has, once each. Health and reflection go by untouched."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    @abstractmethod
    def wrap(self, method: str, handler: Handler) -> Handler:
        """What handles calls of the method, given what did so far. The request is one message."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        handler = self._wrapped.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is None or method not in BY_PATH:
                return handler
            handler = self._wrapped[method] = self.wrap(method, handler)
        return handler


class CallInterceptor(MethodInterceptor):
    """Passes each call of the store's service through ``handle``. What it wraps must be coroutine functions, which send
    a streamed reply by themselves, as those of :class:`AdmissionInterceptor` do.

    ``handle`` uses plain ``try`` statements, and no ``@asynccontextmanager``: that one's frame holds the exception
    which it passes on, and the traceback of the exception that replaces it holds the frame. In such a cycle the request
    stays in memory until a collection finds it.
    """

    @abstractmethod
    async def handle(self, method: str, behaviour: Behaviour, request: Any, context: Context) -> Any:
        """Call ``behaviour(request, context)`` and return its reply.

        Args:
            method: The path of the RPC, "/service/Method".
            behaviour: What handles the call so far.
            request: The serialized request.
            context: gRPC's context of the call.

        Returns:
            The serialized reply; None if ``behaviour`` has sent a stream of them.

        Raises:
            Exception: What ends the call instead of a reply.
        """

    def wrap(self, method: str, handler: Handler) -> Handler:
        behaviour = _behaviour_of(handler)

        async def call(request: Any, context: Context) -> Any:
            return await self.handle(method, behaviour, request, context)

        return _make_handler(handler)(call, handler.request_deserializer, handler.response_serializer)


class AdmissionInterceptor(MethodInterceptor):
    """Lets a call in while there is room, and keeps its place until its reply is sent. The innermost: it takes requests
    and hands out replies as bytes, which it counts."""

    def __init__(self, admission: Admission, items_max: int = ITEMS_MAX) -> None:
        super().__init__()
        self._admission = admission
        self._items_max = items_max

    def wrap(self, method: str, handler: Handler) -> Handler:
        rpc = Rpc.of(BY_PATH[method], handler, self._items_max)
        return _make_handler(handler)(self._streaming(rpc) if handler.response_streaming else self._unary(rpc))

    def _unary(self, rpc: Rpc) -> Any:
        may_refuse = rpc.method.repeat is Repeat.READ

        async def call(data: bytes, context: Context) -> bytes:
            request, slot = self._enter(rpc, data, context)
            async with self._admission.work(rpc.method, len(data), context.peer):
                request = _read(rpc, data, request)
                if len(data) > HEAVY_BYTES:  # each of these steps takes long
                    await asyncio.sleep(0)
                message = await rpc.behaviour(request, context)
                if len(data) > HEAVY_BYTES:
                    await asyncio.sleep(0)
                reply = rpc.encode(message)
            slot.reply(len(reply), may_refuse=may_refuse)
            return reply

        return call

    def _streaming(self, rpc: Rpc) -> Any:
        async def call(data: bytes, context: Context) -> None:
            request, slot = self._enter(rpc, data, context)
            request = _read(rpc, data, request)
            async with aclosing(rpc.behaviour(request, context)) as messages:
                async for message in messages:
                    reply = rpc.encode(message)
                    slot.reply(len(reply))
                    await write(context, reply)
                    slot.sent(len(reply))

        return call

    def _enter(self, rpc: Rpc, data: bytes, context: Context) -> tuple[Any, Slot]:
        """A place until the call has ended, and the request if it had to be looked at for that."""
        request = rpc.decode(data) if rpc.method.name in WAITS else None
        slot = self._admission.enter(rpc.method, request, len(data), peer_of(context))
        when_over(slot.leave)  # after the handler would be too soon: a unary reply is sent then
        return request, slot


@dataclass(frozen=True, slots=True)
class Rpc:
    """A method, and what its handler is made of."""

    method: Method
    behaviour: Any
    decode: Callable[[bytes], Any]
    """Raises InvalidArgumentError for bytes that are no message, or one of too many items."""
    encode: Callable[[Any], bytes]

    @classmethod
    def of(cls, method: Method, handler: Handler, items_max: int = ITEMS_MAX) -> Rpc:
        deserialize, request_type = handler.request_deserializer, REQUESTS.get(method.name)

        def decode(data: bytes) -> Any:
            if deserialize is None:
                return data
            if request_type is not None:
                check_items(data, request_type, items_max)
            try:
                return deserialize(data)
            except DecodeError as error:
                raise InvalidArgumentError(f"the request is no message of this method's type: {error}") from None

        return cls(method, _behaviour_of(handler), decode, _serialized)


def _read(rpc: Rpc, data: bytes, request: Any) -> Any:
    """The request, which observers are told of."""
    request = rpc.decode(data) if request is None else request
    observed = _observed.get()
    if observed is not None:
        observed.request_id = getattr(request, "request_id", "")
    return request


def _serialized(reply: Message) -> bytes:
    """Of a message, or of what stands for one."""
    return reply.SerializeToString()


async def write(context: Context, reply: Any) -> None:
    """Returns when the reader has room for it: a slow one holds up its own call and no other."""
    try:
        await context.write(reply)
    except grpc.aio.BaseError as error:
        raise CallerGoneError from error


async def abort(method: str, context: Context, error: Exception) -> NoReturn:
    """End the call with the status of this error. Raises AbortError, for gRPC."""
    status = to_status(shown_error(method, error))
    try:
        await context.abort(status.code, status.message, status.trailing_metadata)
    except grpc.aio.AbortError as ended:
        # gRPC keeps it with the call, and what it was raised through knows the call.
        when_over(partial(_forget_origin, ended))
        raise
    raise AssertionError("aborting raises")


def when_over(then: Callable[[], object]) -> None:
    """Do it when the present call is over, its reply sent or given up. (A callback of gRPC's context would keep the
    call until garbage is collected.)"""
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: then())


def _forget_origin(error: BaseException) -> None:
    error.__traceback__ = error.__context__ = None


def _behaviour_of(handler: Handler) -> Any:
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


def _make_handler(like: Handler) -> Callable[..., Handler]:
    return grpc.unary_stream_rpc_method_handler if like.response_streaming else grpc.unary_unary_rpc_method_handler


class ErrorInterceptor(CallInterceptor):
    """Turns an exception into a status with details. What the caller did not cause becomes INTERNAL with an incident
    id; the cause goes to the log under that id and nowhere else."""

    async def handle(self, method: str, behaviour: Behaviour, request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except CallerGoneError:
            raise
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            await abort(method, context, StoreUnavailableError("the store gave this call up; try again"))
        except Exception as error:
            await abort(method, context, error)


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets in calls of those who may make them, and notes who it is. The outermost: what strangers send is not read.

    Args:
        access: Knows who may.
        public: Services that are for everyone.
        observers: Told of the calls that are refused here.
    """

    def __init__(self, access: Access, public: Collection[str], observers: Sequence[CallObserver]) -> None:
        self._access = access
        self._public = public
        self._observers = observers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        if method.rpartition("/")[0].removeprefix("/") in self._public:
            return await continuation(handler_call_details)
        caller = None
        try:
            caller = self._access.caller(bearer_digest(handler_call_details.invocation_metadata))
            if method in BY_PATH:  # any other, such as reflection, is for each role
                caller.require(BY_PATH[method].role, BY_PATH[method].name)
        except StoreError as error:
            return self._refusing(method, error, "" if caller is None else caller.name)
        note_caller(caller)  # in this call's own task
        return await continuation(handler_call_details)

    def _refusing(self, method: str, error: StoreError, name: str) -> Handler:
        """What ends the call, of whatever kind, with this error."""

        async def refuse(_: Any, context: Context) -> None:
            with ObservedCall(self._observers, method, context.peer(), context.invocation_metadata()) as observed:
                observed.caller = name
                observed.code = to_status(error).code
            await abort(method, context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)


class LimitsInterceptor(CallInterceptor):
    """Counts what the callers take that :class:`AccessInterceptor` lets in."""

    async def handle(self, method: str, behaviour: Behaviour, request: Any, context: Context) -> Any:
        caller = caller_now()
        if caller is None:
            raise UnauthenticatedError("nobody has looked at the token of this call")
        observed = _observed.get()
        if observed is not None:
            observed.caller = caller.name
        caller.take(len(request))
        return await behaviour(request, context)


class DeadlineInterceptor(CallInterceptor):
    """Ends a call whose caller set no deadline at the default of its method."""

    def __init__(self, wait_seconds_max: float) -> None:
        """``wait_seconds_max`` is what a long poll may wait beside its default."""
        super().__init__()
        self._wait_seconds_max = wait_seconds_max

    async def handle(self, method: str, behaviour: Behaviour, request: Any, context: Context) -> Any:
        if seconds_left(context) is not None:
            return await behaviour(request, context)  # gRPC cancels a call at the deadline that its caller set
        policy = BY_PATH[method]
        seconds = policy.deadline_seconds + (self._wait_seconds_max if policy.long_poll else 0.0)
        bound = asyncio.timeout(seconds)
        try:
            async with bound:
                return await behaviour(request, context)
        except TimeoutError:
            if not bound.expired():
                raise
            raise StoreTimeoutError(f"the call took longer than {seconds:g} s; set a deadline if it may") from None


class ObservedCall:
    """``with ObservedCall(observers, method, peer) as observed: …`` tells observers in the end how the call went."""

    __slots__ = ("_method", "_observers", "_peer", "_started", "caller", "code", "metadata", "request_id")

    def __init__(self, observers: Sequence[CallObserver], method: str, peer: str, metadata: Any = ()) -> None:
        self._observers = observers
        self._method = method
        self._peer = peer
        self.metadata = metadata or ()
        self._started = 0.0
        self.code: Any = None
        """A status code or its number; None, or 0, ended well."""
        self.request_id = ""
        self.caller = ""

    def __enter__(self) -> ObservedCall:
        self._started = time.perf_counter()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        cancelled = exc_type is not None and issubclass(exc_type, asyncio.CancelledError)
        code = "CANCELLED" if cancelled else _code_name(self.code)
        details = CallDetails(self._method, code, seconds, self._peer, self.request_id, self.metadata, self.caller)
        for observe in self._observers:
            observe(details)


_observed: Final[ContextVar[ObservedCall | None]] = ContextVar("_observed", default=None)
"""The present call of gRPC, so that the innermost interceptor, which has the request decoded, can tell its id."""


class ObserverInterceptor(CallInterceptor):
    """Tells observers of each call: see :class:`ObservedCall`."""

    def __init__(self, observers: Sequence[CallObserver]) -> None:
        super().__init__()
        self._observers = observers

    async def handle(self, method: str, behaviour: Behaviour, request: Any, context: Context) -> Any:
        with ObservedCall(self._observers, method, context.peer(), context.invocation_metadata()) as observed:
            _observed.set(observed)  # of this call's own task
            try:
                return await behaviour(request, context)
            finally:
                observed.code = context.code()


def shown_error(method: str, error: Exception) -> StoreError:
    """The error as the caller may see it. The cause of a failure of the server goes to the log."""
    shown = as_store_error(error)
    incident_id = shown.details.get("incident_id")
    if incident_id is not None:
        logger.error("%s failed, incident %s", method, incident_id, exc_info=error)
    return shown


def peer_of(context: Context) -> str:
    """The connection of a call, as gRPC tells it; empty for a Unix domain socket, whose peers have no addresses."""
    peer: str = context.peer()
    return "" if peer.startswith("unix") else peer


def seconds_left(context: Context) -> float | None:
    """Until the deadline that the caller set; None if it set none, which gRPC's types do not tell."""
    left: float | None = context.time_remaining()
    return left


def is_cancelled() -> bool:
    """Whether the task that handles the call was told to end: by its caller, its deadline, or the server's stop."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


_CODE_NAMES: Final = {known.value[0]: known.name for known in grpc.StatusCode}


def _code_name(code: Any) -> str:
    """The name of a status code or number; a call that set none ended well."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _CODE_NAMES.get(code, "OK")
