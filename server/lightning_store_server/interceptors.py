"""What happens around every call: a bound on its time, errors as gRPC status, and an access log when asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from lightning_store.errors import StoreTimeoutError
from lightning_store.wire.errors import to_status
from lightning_store.wire.methods import BY_PATH

logger = logging.getLogger("lightning_store_server")
access_logger = logging.getLogger("lightning_store_server.access")

Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub only
    """Runs each call of the store's service, unary or streaming its reply, inside ``around(method, context)``."""

    def __init__(self) -> None:
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    @abstractmethod
    def around(self, method: str, context: Context) -> AbstractAsyncContextManager[None]:
        """Entered before the call and left after it, with its exception if there is one."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
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

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(method, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._wrap_unary(method, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _wrap_unary(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self.around(method, context):
                return await behaviour(request, context)

        return call

    def _wrap_stream(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self.around(method, context):
                async for response in behaviour(request, context):
                    yield response

        return call


class ErrorInterceptor(CallInterceptor):
    """Turns an exception into a status with details. What the caller did not cause becomes INTERNAL with an incident
    id; the cause goes to the log under that id and nowhere else."""

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            status = to_status(error)
            if status.incident_id is not None:
                logger.error("%s failed, incident %s", method, status.incident_id, exc_info=error)
            await context.abort(status.code, status.message, status.trailing_metadata)


class DeadlineInterceptor(CallInterceptor):
    """Ends a call that is past its deadline, or past the default of its method where the caller set none."""

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if context.time_remaining() is not None:
            yield  # gRPC cancels a call at the deadline that its caller set
            return
        seconds = BY_PATH[method].deadline_seconds
        bound = asyncio.timeout(seconds)
        try:
            async with bound:
                yield
        except TimeoutError:
            if not bound.expired():
                raise
            message = f"the call took longer than {seconds:g} s; set a deadline if it may"
            raise StoreTimeoutError(message) from None


class AccessLogInterceptor(CallInterceptor):
    """One INFO line a call: method, status code, milliseconds, peer. The values are also fields of the log record."""

    @asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            code = _code_name(context.code())
            milliseconds = (time.perf_counter() - started) * 1000
            peer = context.peer()
            fields = {"method": method, "code": code, "duration_ms": round(milliseconds, 3), "peer": peer}
            access_logger.info("%s %s %.3f ms %s", method, code, milliseconds, peer, extra={"call": fields})


def _code_name(code: Any) -> str:
    """The name of a status code; a call that set none ended well."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "OK")
