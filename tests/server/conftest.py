"""A server on a free port, a raw stub that speaks to it, and what its process logs meanwhile."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStoreCapabilities
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import service_pb2_grpc
from lightning_store_server import LightningStoreServer, ServerConfig

Hook = Callable[..., Awaitable[Any]]


class HookedStore(ForwardingStore):
    """Somebody else's store: it has the public methods and nothing more. ``hooks`` replace methods by name."""

    def __init__(self, inner: LightningStore, *, thread_safe: bool = True, **hooks: Hook) -> None:
        self.inner = inner
        self.hooks = hooks
        self._thread_safe = thread_safe

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {**self.inner.capabilities, "thread_safe": self._thread_safe}

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await self.hooks.get(method, getattr(self.inner, method))(*args, **kwargs)

    def _forward_stream(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = getattr(self.inner, method)(*args, **kwargs)
        return stream


@dataclass(frozen=True)
class Failure:
    """How a call failed, as its caller can tell."""

    code: str
    reason: str
    message: str
    fields: list[str]
    details: dict[str, str]
    metadata: str
    """All trailing metadata, as text to search in."""

    @classmethod
    def of(cls, error: Any) -> Failure:
        info, bad_request = ErrorInfo(), BadRequest()
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            detail.Unpack(info)
            detail.Unpack(bad_request)
        return cls(
            code=error.code().name,
            reason=info.reason,
            message=error.details(),
            fields=[violation.field for violation in bad_request.field_violations],
            details=dict(info.metadata),
            metadata=str(error.trailing_metadata()),
        )


class Served:
    """A server that is running, and raw stubs that speak to it."""

    def __init__(self, store: LightningStore, config: ServerConfig) -> None:
        self.store = store
        self.server = LightningStoreServer(store, port=0, config=config)
        asyncio.run(self.server.start())
        # How much gRPC reads ahead of its caller grows with the speed of the line, unless it does not look at that.
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.http2.bdp_probe", 0),
        ]
        self.channel = grpc.insecure_channel(self.server.endpoint, options=options)
        self.stub = service_pb2_grpc.LightningStoreServiceStub(self.channel)
        self.health_stub = health_pb2_grpc.HealthStub(self.channel)

    def stop(self) -> None:
        asyncio.run(self.server.stop())

    def close(self) -> None:
        self.channel.close()
        self.stop()

    def call(self, rpc: str, request: Any) -> Any:
        """The reply; of a stream, the list of its messages."""
        reply = getattr(self.stub, rpc)(request, timeout=SAFETY_SECONDS)
        return list(reply) if hasattr(reply, "__next__") else reply

    def failure(self, rpc: str, request: Any) -> Failure:
        """How the call fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(rpc, request)
        return Failure.of(caught.value)

    def health(self, service: str = "") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        status = self.health_stub.Check(request, timeout=SAFETY_SECONDS).status
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


NOISE: Final = (
    # Of an event loop that was closed a moment ago, in whatever test comes next.
    "PollerCompletionQueue._handle_events",
    # Of a call that is over before its status is sent (seen with 1.81, of a session with too large a message).
    "ExecuteBatchError raised in core by servicer method",
)
"""What gRPC says; nothing comes of it."""


class Log(logging.Handler):
    """Records of all loggers, from any thread. What is worse than a warning, or one, must be expected by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put(record)

    def next(self, logger: str) -> logging.LogRecord:
        """The next record of ``logger``; those of others before it are dropped."""
        while (record := self.records.get(timeout=SAFETY_SECONDS)).name != logger:
            pass
        return record

    def rejections(self) -> list[str]:
        """The messages about spans that OTLP's Export rejected, of all records so far; the others are dropped."""
        return [message for message in self.left() if message.startswith("OTLP: span rejected: ")]

    def left(self, level: int = logging.WARNING) -> list[str]:
        """The messages of at least ``level`` that nobody asked for yet."""
        found = []
        while not self.records.empty():
            record = self.records.get()
            if record.levelno >= level and not any(noise in record.getMessage() for noise in NOISE):
                found.append(self.format(record))
        return found


@pytest.fixture
def log() -> Iterator[Log]:
    """All records of the test; it fails if warnings or errors among them were not looked at."""
    handler = Log()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert handler.left() == []


Serve = Callable[..., Served]


@pytest.fixture
def serve(log: Log) -> Iterator[Serve]:
    """Start a server: ``serve(store, **config)``. It is stopped after the test, and before its log is looked at."""
    with ExitStack() as stack:

        def start(store: LightningStore | None = None, **config: Any) -> Served:
            settings = ServerConfig(**{"grace_seconds": 0.0, **config})
            served = Served(InMemoryLightningStore() if store is None else store, settings)
            stack.callback(served.close)
            return served

        yield start


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve()


@pytest.fixture
def hooked() -> type[HookedStore]:
    """The class, for tests that make a store of somebody else's."""
    return HookedStore


@pytest.fixture
def failure_of() -> Callable[[Callable[[], object]], Failure]:
    """How a call fails that the test makes by itself."""

    def failure_of(call: Callable[[], object]) -> Failure:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return Failure.of(caught.value)

    return failure_of
