"""The one way in which the client makes a call: deadline, retries, health, errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from lightning_store.clock import Clock
from lightning_store.errors import (
    CallCancelledError,
    InternalError,
    MessageTooLargeError,
    ResourceExhaustedError,
    StoreError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from lightning_store.ids import new_hex
from lightning_store.v1.server_pb2 import GetServerInfoRequest
from lightning_store.wire.errors import from_rpc_error
from lightning_store.wire.methods import METHODS, REPEATED_METADATA, REPLIES, SERVICE, Method, Repeat
from lightning_store.wire.times import duration_to_proto
from lightning_store_client.channel import Connector, call_unary, replies_of
from lightning_store_client.outages import Outages
from lightning_store_client.retry import RetryPolicy, jittered
from lightning_store_client.session import (
    CALL_BYTES_MAX,
    Session,
    SessionRetired,
    SessionUnsupported,
    StreamCut,
    is_of_store,
    naming_server,
    was_cut,
)
from lightning_store_client.trace_context import TraceContext, current_trace_context

logger = logging.getLogger("lightning_store_client")

Attempt = Callable[[float, bool], Awaitable[Any]]
"""Sends the request once; takes the seconds that it may take, and whether it was sent before."""

HEALTH_TIMEOUT_SECONDS = 2.0
"""What one probe of the server's health may take."""


class Deadline:
    """When a call is given up, whatever attempts of it there are."""

    __slots__ = ("_clock", "_seconds", "_until", "_until_at_most")

    def __init__(self, clock: Clock, seconds: float, seconds_max: float = 0.0) -> None:
        """``seconds`` from now, and from whenever it is put off, but then never later than ``seconds_max`` from now."""
        now = clock.monotonic()
        self._clock = clock
        self._seconds = seconds
        self._until = now + seconds
        self._until_at_most = now + max(seconds, seconds_max)

    def put_off(self) -> None:
        """The server has said something: it has its time again."""
        self._until = min(self._clock.monotonic() + self._seconds, self._until_at_most)

    @property
    def left(self) -> float:
        """Seconds, 0 once it has passed."""
        return max(0.0, self._until - self._clock.monotonic())

    @property
    def left_at_most(self) -> float:
        """Seconds that are left if it is put off again and again."""
        return max(0.0, self._until_at_most - self._clock.monotonic())


class Calls:
    """Makes the calls of one client. A request is built once, with its request id, and sent as often as it takes."""

    def __init__(self, connector: Connector, policy: RetryPolicy, clock: Clock, max_message_bytes: int) -> None:
        self._connector = connector
        self._policy = policy
        self.clock = clock
        self._max_message_bytes = max_message_bytes
        self._outages = Outages()

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed."""
        return self._connector.closed

    def check_open(self) -> None:
        """RuntimeError if the client is closed."""
        self._connector.get()

    def is_idle(self) -> bool:
        """Whether there is a stream that calls share, and no call is under way on it."""
        return self._connector.get().is_idle

    async def unary(self, rpc: str, request: Message, *, wait_seconds: float = 0.0) -> Any:
        """The reply to ``request``. ``wait_seconds`` is what a long poll asks for; it may take so much longer.

        StoreError of the class that the store behind the server raised, or StoreUnavailableError, StoreTimeoutError.
        """
        method = METHODS[rpc]
        data = request.SerializeToString()
        if len(data) > self._max_message_bytes:
            raise too_large(f"{rpc}: the request", len(data), self._max_message_bytes, "send less at a time")
        wait = Deadline(self.clock, wait_seconds) if wait_seconds > 0 else None

        def attempt(seconds: float, repeated: bool) -> Awaitable[Any]:
            nonlocal data
            if repeated and wait is not None:
                getattr(request, method.wait_field).CopyFrom(duration_to_proto(wait.left))
                data = request.SerializeToString()
            return self._send(rpc, data, seconds, repeated)

        return await self._funnel(method, attempt, Deadline(self.clock, self._timeout(method) + wait_seconds))

    async def once(self, rpc: str, request: Message, seconds: float) -> Any:
        """The reply to ``request``, which is sent once and may take so many seconds.

        StoreError if it fails. RuntimeError once the client is closed.
        """
        data = request.SerializeToString()
        repeated = False
        while True:
            try:
                return await self._send(rpc, data, seconds, repeated)
            except SessionRetired:
                repeated = True
            except StreamCut as cut:
                raise cut.failure from None
            except grpc.RpcError as error:
                raise self._failure(error) from None

    async def _send(self, rpc: str, data: bytes, seconds: float, repeated: bool) -> Any:
        """Send the serialized request once: with other calls on one stream, or by itself if it is large or the server
        cannot do otherwise."""
        connection = self._connector.get()
        trace_context = current_trace_context()
        if connection.has_sessions and len(data) <= CALL_BYTES_MAX:
            try:
                reply = await _call_on(connection.session(), rpc, data, seconds, repeated, trace_context)
                return REPLIES[rpc].FromString(reply)
            except DecodeError as error:
                raise InternalError(f"{rpc}: the reply is no message of this method's type: {error}") from None
            except SessionUnsupported as unsupported:
                connection.has_sessions = False
                repeated = repeated or unsupported.repeated
        metadata = tuple((key, str(value)) for key, value in trace_context.items() if value)
        if repeated:
            metadata += (REPEATED_METADATA,)
        return await call_unary(connection.method(rpc), data, seconds, metadata)

    async def stream(self, rpc: str, request: Message) -> list[Any]:
        """All replies to ``request``; an attempt that breaks off starts from the beginning.

        Each reply may take as long as a call, so that a long answer may take its time, up to the method's default, and
        one that does not come is noticed.
        """
        method = METHODS[rpc]
        deadline = Deadline(self.clock, self._policy.timeout_seconds, method.deadline_seconds)

        async def attempt(seconds: float, repeated: bool) -> list[Any]:
            stub_method = getattr(self._connector.get().stub, rpc)
            replies: list[Any] = []
            async for reply in replies_of(
                stub_method, request, deadline.left_at_most, lambda: deadline.left if replies else seconds
            ):
                replies.append(reply)
                deadline.put_off()
            return replies

        replies: list[Any] = await self._funnel(method, attempt, deadline)
        return replies

    async def follow(self, rpc: str, request: Callable[[], Message]) -> AsyncGenerator[Any, None]:
        """The replies of a stream, for ever: where it ends or breaks off, it is opened again with a new ``request()``.

        It may fail as often as calls are retried; then the error is raised. A stream that the server had taken when it
        broke off, as proxies cut those that last, does not count. Nor does one that held for longer than a call may
        take.
        """
        method = METHODS[rpc]
        delays = list(self._policy.delays)
        while True:
            opened = self.clock.monotonic()
            stub_method = getattr(self._connector.get().stub, rpc)
            try:
                async with aclosing(replies_of(stub_method, request(), method.deadline_seconds)) as replies:
                    async for reply in replies:
                        delays = list(self._policy.delays)
                        self._outages.end()
                        yield reply
            except grpc.RpcError as error:
                failure = self._failure(error)
                cut = was_cut(error)
                if cut:
                    failure = StoreUnavailableError(f"{self._connector.endpoint}: the connection broke off: {failure}")
                if cut or self.clock.monotonic() - opened > self._policy.timeout_seconds:
                    delays = list(self._policy.delays)
                if not delays or not failure.may_pass:
                    raise failure from None
                self._outages.note(rpc, failure, cut=cut)
                await self._pause(failure, delays.pop(0), Deadline(self.clock, self._policy.timeout_seconds))

    async def is_healthy(self, seconds: float) -> bool:
        """Whether a store says within ``seconds`` that it takes calls. One without a health service, as a server of
        somebody else may be, has to say what it is: most servers that are no store have none either."""
        deadline = Deadline(self.clock, seconds)
        serving = await self._health(seconds)
        if serving is not None:
            return serving
        try:
            await call_unary(self._connector.get().stub.GetServerInfo, GetServerInfoRequest(), deadline.left)
        except grpc.RpcError:
            return False
        return True

    async def _health(self, seconds: float) -> bool | None:
        """Whether the server says within ``seconds`` that it takes calls; None if it has no health service."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            reply = await call_unary(self._connector.get().health.Check, request, seconds)
        except grpc.RpcError as error:
            return None if error.code() is grpc.StatusCode.UNIMPLEMENTED else False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def _funnel(self, method: Method, attempt: Attempt, deadline: Deadline) -> Any:
        delays = [] if method.repeat is Repeat.LWW else list(self._policy.delays)
        repeated = False
        unanswered: StoreError | None = None
        failure: StoreError
        while True:
            cut = False
            try:
                reply = await attempt(self._policy.attempt_timeout(deadline.left, len(delays)), repeated)
                self._outages.end()
                return reply
            except StreamCut as stream_cut:
                failure, cut = stream_cut.failure, True
                delays = list(self._policy.delays) if delays else delays
            except SessionRetired as retired:
                unanswered = unanswered or StoreUnavailableError(str(retired))
                repeated = True
                continue
            except (grpc.RpcError, StoreError) as error:
                failure = self._failure(error)
            if isinstance(failure, UnauthenticatedError) and self._connector.look_again():
                continue
            if isinstance(failure, ResourceExhaustedError):
                # It was not looked at, so it is not known what became of an attempt whose reply was lost before.
                final = unanswered or failure
            else:
                final = unanswered = failure
            if not delays or not failure.may_pass:
                raise final
            self._outages.note(method.name, failure, cut=cut)
            await self._pause(failure, delays.pop(0), deadline)
            if deadline.left == 0:
                raise final
            repeated = True

    def _failure(self, error: grpc.RpcError | StoreError) -> StoreError:
        """What an attempt failed with. gRPC ends as cancelled, though nobody did, what a server has not begun when it
        stops."""
        if isinstance(error, StoreError):
            return error
        failure = from_rpc_error(error)
        if is_of_store(error):
            return failure
        if isinstance(failure, CallCancelledError) and not self._connector.closed:
            failure = StoreUnavailableError(f"The server gave the call up: {failure}")
        return naming_server(failure, self._connector.endpoint)

    def _timeout(self, method: Method) -> float:
        """A heartbeat that is late is worth nothing, so its deadline is short."""
        timeout = self._policy.timeout_seconds
        return min(timeout, method.deadline_seconds) if method.repeat is Repeat.LWW else timeout

    async def _pause(self, failure: StoreError, delay: float, deadline: Deadline) -> None:
        """Wait before the next attempt: as long as the server asked for, and until it says that it is well."""
        if isinstance(failure, ResourceExhaustedError):
            delay = max(delay, failure.retry_after_seconds or 0.0)
        await self._sleep(delay, deadline)
        for probe_delay in self._policy.health_delays:
            left = deadline.left
            if left == 0 or await self._health(min(HEALTH_TIMEOUT_SECONDS, left)) is not False:
                return
            await self._sleep(probe_delay, deadline)

    async def _sleep(self, seconds: float, deadline: Deadline) -> None:
        await self.clock.sleep(min(jittered(seconds), deadline.left))


async def _call_on(
    session: Session, rpc: str, data: bytes, seconds: float, repeated: bool, trace_context: TraceContext
) -> bytes:
    try:
        return await session.call(rpc, data, seconds, repeated=repeated, trace_context=trace_context)
    except StoreUnavailableError:
        session.retire()  # its server drains, say: another stream may lead to another server
        raise


def new_request_id() -> str:
    """Made once for each call, before its first attempt."""
    return new_hex(32)


def too_large(what: str, size_bytes: int, max_message_bytes: int, advice: str) -> MessageTooLargeError:
    """For what is not even sent; its details are those of the server's own refusal."""
    return MessageTooLargeError(
        f"{what} is {size_bytes} bytes, more than the limit of {max_message_bytes}; {advice}, "
        "or raise the server's --max-message-bytes and the client's max_message_bytes",
        size_bytes=str(size_bytes),
        limit_bytes=str(max_message_bytes),
    )
