"""Calls of the gRPC service in process, for one request over HTTP: what surrounds them is what surrounds them there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, nullcontext
from typing import Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message

from lightning_store.errors import StoreTimeoutError, StoreUnavailableError
from lightning_store.v1.query_pb2 import StreamQueryRequest, StreamQueryResponse
from lightning_store.wire.methods import METHODS, REPEATED_METADATA, REQUESTS, Method, Repeat
from lightning_store_server.access import caller_now
from lightning_store_server.admission import Admission, Slot
from lightning_store_server.http.rest.deliveries import CallId
from lightning_store_server.interceptors import Rpc, is_cancelled
from lightning_store_server.servicer import StoreServicer
from lightning_store_server.slices import HEAVY_BYTES, in_slices

M = TypeVar("M", bound=Message)
T = TypeVar("T")
R = TypeVar("R")

QUERY: Final = "StreamQuery"


class Service:
    """The methods of the service.

    Args:
        servicer: Serves them.
        admission: Has places for calls.
        items_max: Items of one repeated field of a request.
        wait_seconds_max: How long a call may wait.
    """

    def __init__(self, servicer: StoreServicer, admission: Admission, items_max: int, wait_seconds_max: float) -> None:
        self.heavy = servicer.heavy
        self.admission = admission
        self._servicer = servicer
        self._items_max = items_max
        self._wait_seconds_max = wait_seconds_max
        self._rpcs: dict[str, Rpc] = {}

    def rpc(self, method: Method) -> Rpc:
        """What handles a method."""
        if method.name not in self._rpcs:
            make: Callable[..., Any] = (
                grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
            )
            handler = make(getattr(self._servicer, method.name), REQUESTS[method.name].FromString)
            self._rpcs[method.name] = Rpc.of(method, handler, self._items_max)
        return self._rpcs[method.name]

    def seconds(self, method: Method) -> float:
        """How long a call may take."""
        return method.deadline_seconds + (self._wait_seconds_max if method.long_poll else 0.0)


class Call:
    """One request: it makes calls, and keeps their places until it is answered.

    Args:
        service: What is called.
        id: Of the call, if it changes something.
        peer: The connection, as gRPC names it.
        size_bytes: Bytes of the body.
        path: Values of the parameters in the path.
    """

    def __init__(self, service: Service, id: CallId, peer: str, size_bytes: int, path: Mapping[str, str]) -> None:
        self._service = service
        self._id = id
        self._peer = peer
        self._size_bytes = self._body_bytes = self._large_bytes = size_bytes
        self._slots: list[tuple[Slot, Method]] = []
        self.path = path

    @property
    def request_id(self) -> str:
        """The id of the next call, which is another for each."""
        return f"{self._id.id}/{len(self._slots)}" if self._slots else self._id.id

    def body(self, name: str) -> AbstractContextManager[object]:
        """While a body of such a call is read and worked on. ResourceExhaustedError if a large one has no room."""
        if not name or self._body_bytes <= HEAVY_BYTES:
            return nullcontext()
        self._size_bytes = 0  # it is counted here
        return self._service.admission.calls.enter(self._body_bytes, self._peer)

    def work(self, name: str) -> AbstractAsyncContextManager[None]:
        """The turn of such a call, if it is a large one."""
        return self._service.admission.work(METHODS[name], self._body_bytes, self.peer) if name else nullcontext()

    async def convert(self, function: Callable[[T], R], item: T) -> R:
        """Call ``function(item)``, which takes as long as the body of the request, or what was found, is large."""
        return await self._service.heavy.convert(function, item, self._large_bytes)

    async def convert_row(self, function: Callable[[M], R], row: M) -> R:
        """The same for one of many rows."""
        return await self._service.heavy.convert(function, row, row.ByteSize())

    async def convert_all(self, function: Callable[[int, T], R], items: Sequence[T]) -> list[R]:
        """The same for each of many items."""
        if self._body_bytes <= HEAVY_BYTES:
            return await in_slices(function, items)
        return await self.convert(lambda several: list(map(function, range(len(several)), several)), items)

    async def make(self, name: str, request: Message) -> Any:
        """The reply of a method. StoreError if the call fails."""
        rpc, decoded = self._enter(name, request)
        bound = asyncio.timeout(self._service.seconds(rpc.method))
        try:
            async with bound:
                reply = await rpc.behaviour(decoded, self)
        except TimeoutError:
            if not bound.expired():
                raise
            raise StoreTimeoutError(f"{name} took longer than it may") from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise StoreUnavailableError("the store gave this call up; try again") from None
        self._large_bytes = max(self._large_bytes, reply.ByteSize())
        return reply

    async def query(self, **query: Message) -> AsyncIterator[StreamQueryResponse]:
        """The replies of StreamQuery, as they come; at least one. StoreError if the call fails."""
        rpc, decoded = self._enter(QUERY, StreamQueryRequest(**cast(Any, query)))
        async with asyncio.timeout(rpc.method.deadline_seconds), aclosing(rpc.behaviour(decoded, self)) as replies:
            async for reply in replies:
                yield StreamQueryResponse.FromString(reply.SerializeToString())

    def _enter(self, name: str, request: Message) -> tuple[Rpc, Any]:
        method = METHODS[name]
        caller, data = caller_now(), request.SerializeToString()
        size_bytes = 0 if self._slots else max(len(data), self._size_bytes)
        if caller is not None:
            caller.admit(method, size_bytes)
        rpc = self._service.rpc(method)
        decoded = rpc.decode(data)
        slot = self._service.admission.enter(method, decoded, size_bytes, self._peer)
        self._slots.append((slot, method))
        return rpc, decoded

    def reply(self, size_bytes: int) -> None:
        """So many bytes of the answer are about to be sent. StoreError: they may not."""
        if self._slots:
            slot, method = self._slots[-1]
            slot.reply(size_bytes, may_refuse=method.repeat is Repeat.READ)

    def sent(self, size_bytes: int) -> None:
        """So many bytes of it are no longer held."""
        if self._slots:
            self._slots[-1][0].sent(size_bytes)

    def leave(self) -> None:
        """The request is answered, or is not to be."""
        for slot, _ in self._slots:
            slot.leave()

    # --- What a method asks of its gRPC context ----------------------------------------------------------------------

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        """A method asks how long it may wait: as long as the server lets it."""
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (REPEATED_METADATA,) if self._id.repeated else ()
