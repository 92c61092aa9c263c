"""What happens around every call: a bound on its time, errors as gRPC status, and an access log when asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from lightning_store.errors import InvalidArgumentError, StoreTimeoutError, StoreUnavailableError
from lightning_store.wire.errors import to_status
from lightning_store.wire.methods import BY_PATH

logger = logging.getLogger("lightning_store_server")
access_logger = logging.getLogger("lightning_store_server.access")

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub only
    """Runs each call of the store's service, unary or streaming its reply, inside ``around``."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    @abstractmethod
    def around(self, method: str, request: Any, context: Context) -> AbstractAsyncContextManager[None]:
        """Entered before the call and left after it, with its exception if there is one."""

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
            handler = self._wrapped[method] = self._wrap(method, handler)
        return handler

    def _wrap(self, method: str, handler: Handler) -> Handler:
        if handler.response_streaming:
            make, behaviour = grpc.unary_stream_rpc_method_handler, self._wrap_stream(method, handler.unary_stream)
        else:
            make, behaviour = grpc.unary_unary_rpc_method_handler, self._wrap_unary(method, handler.unary_unary)
        return make(behaviour, self.deserializer(handler), handler.response_serializer)

    def deserializer(self, handler: Handler) -> Any:
        """Makes the request from its bytes."""
        return handler.request_deserializer

    def _wrap_unary(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self.around(method, request, context):
                return await behaviour(request, context)

        return call

    def _wrap_stream(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self.around(method, request, context):
                async for response in behaviour(request, context):
                    yield response

        return call


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands for a request whose bytes are no message."""

    cause: str


class ErrorInterceptor(CallInterceptor):
    """Turns an exception into a status with details. What the caller did not cause becomes INTERNAL with an incident
    id; the cause goes to the log under that id and nowhere else."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        try:
            if isinstance(request, Undecodable):
                raise InvalidArgumentError(f"the request is no message of this method's type: {request.cause}")
            yield
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            await self._abort(method, context, StoreUnavailableError("the store gave this call up; try again"))
        except Exception as error:
            await self._abort(method, context, error)

    async def _abort(self, method: str, context: Context, error: Exception) -> None:
        status = to_status(error)
        if status.incident_id is not None:
            logger.error("%s failed, incident %s", method, status.incident_id, exc_info=error)
        await context.abort(status.code, status.message, status.trailing_metadata)

    def deserializer(self, handler: Handler) -> Any:
        """Bytes that are no message are let through to ``around``: gRPC itself would log them as a failure."""
        deserialize = super().deserializer(handler)

        def tolerant(data: bytes) -> Any:
            try:
                return deserialize(data)
            except DecodeError as error:
                return Undecodable(str(error))

        return tolerant


class DeadlineInterceptor(CallInterceptor):
    """Ends a call whose caller set no deadline at the default of its method."""

    def __init__(self, wait_seconds_max: float) -> None:
        """``wait_seconds_max`` is what a long poll may wait beside its default."""
        super().__init__()
        self._wait_seconds_max = wait_seconds_max

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        if seconds_left(context) is not None:
            yield  # gRPC cancels a call at the deadline that its caller set
            return
        policy = BY_PATH[method]
        seconds = policy.deadline_seconds + (self._wait_seconds_max if policy.long_poll else 0.0)
        bound = asyncio.timeout(seconds)
        try:
            async with bound:
                yield
        except TimeoutError:
            if not bound.expired():
                raise
            raise StoreTimeoutError(f"the call took longer than {seconds:g} s; set a deadline if it may") from None


class AccessLogInterceptor(CallInterceptor):
    """One INFO line a call: method, status code, milliseconds, peer. The values are also fields of the log record."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        started = time.perf_counter()
        code = None
        try:
            yield
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            milliseconds = (time.perf_counter() - started) * 1000
            call = {
                "method": method,
                "code": code or _code_name(context.code()),
                "duration_ms": round(milliseconds, 3),
                "peer": context.peer(),
            }
            access_logger.info("%s %s %.3f ms %s", *call.values(), extra={"call": call})


def seconds_left(context: Context) -> float | None:
    """Until the deadline that the caller set; None if it set none, which gRPC's types do not tell."""
    left: float | None = context.time_remaining()
    return left


def _is_cancelled() -> bool:
    """Whether the task that handles the call was told to end: by its caller, its deadline, or the server's stop."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _code_name(code: Any) -> str:
    """The name of a status code; a call that set none ended well."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "OK")
