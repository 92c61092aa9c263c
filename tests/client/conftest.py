"""A server, a proxy before it that can break calls and sees each attempt, and a clock that never lets a test wait."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStoreCapabilities
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import service_pb2
from lightning_store.wire.methods import METHODS, SERVICE
from lightning_store_client import LightningStoreClient, calls
from lightning_store_server import LightningStoreServer, ServerConfig

HEALTH_CHECK = "Check"


@dataclass(frozen=True)
class Sent:
    """One attempt of a call, as it came to the proxy."""

    rpc: str
    body: bytes
    seconds_left: float

    @property
    def message(self) -> Any:
        """The request."""
        method = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"].methods_by_name[self.rpc]
        return GetMessageClass(method.input_type).FromString(self.body)


@dataclass(frozen=True)
class Break:
    """How an attempt is broken."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    message: str = "broken by the proxy"
    lose_reply: bool = False
    """The server acts all the same; only its reply is lost."""
    after_messages: int = 0
    """Of a stream, so many get through before."""
    metadata: tuple[tuple[str, bytes], ...] = ()


class Proxy(grpc.GenericRpcHandler):
    """Hands calls on to a server as bytes; breaks those that ``plan`` says, in order, by the name of their method."""

    def __init__(self, endpoint: str) -> None:
        self.sent: list[Sent] = []
        self.plan: dict[str, deque[Break]] = defaultdict(deque)
        self._noted = threading.Condition()
        self._channel = grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)])
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self], options=[("grpc.so_reuseport", 0)])
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def breaks(self, rpc: str, *breaks: Break) -> None:
        self.plan[rpc].extend(breaks)

    def close(self) -> None:
        self._server.stop(None).wait(SAFETY_SECONDS)
        self._channel.close()

    def calls(self, rpc: str) -> list[Sent]:
        """The attempts of one method."""
        return [sent for sent in self.sent if sent.rpc == rpc]

    async def until_sent(self, rpc: str, attempts: int = 1) -> None:
        """Return when so many attempts of a method have come."""
        await asyncio.to_thread(self._until_sent, rpc, attempts)

    def _until_sent(self, rpc: str, attempts: int) -> None:
        with self._noted:
            assert self._noted.wait_for(lambda: len(self.calls(rpc)) >= attempts, SAFETY_SECONDS)

    def order(self) -> list[str]:
        """The methods of all attempts, probes of the health included."""
        return [sent.rpc for sent in self.sent]

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler:
        path = handler_call_details.method
        method = METHODS.get(path.rpartition("/")[2]) if SERVICE in path else None
        if method is not None and method.streams:
            return grpc.unary_stream_rpc_method_handler(lambda body, context: self._stream(path, body, context))
        return grpc.unary_unary_rpc_method_handler(lambda body, context: self._unary(path, body, context))

    def _note(self, path: str, body: bytes, context: Any) -> Break | None:
        rpc = path.rpartition("/")[2]
        with self._noted:
            self.sent.append(Sent(rpc, body, context.time_remaining()))
            self._noted.notify_all()
        return self.plan[rpc].popleft() if self.plan[rpc] else None

    def _unary(self, path: str, body: bytes, context: Any) -> bytes:
        broken = self._note(path, body, context)
        if broken is not None and not broken.lose_reply:
            _abort(context, broken)
        call = self._channel.unary_unary(path).future(body, timeout=_timeout(context))
        if not context.add_callback(call.cancel):
            call.cancel()  # the caller is gone already
        try:
            reply: bytes = call.result()
        except grpc.RpcError:
            _abort(context, Break(call.code(), call.details(), metadata=tuple(call.trailing_metadata())))
        except grpc.FutureCancelledError:
            _abort(context, Break(grpc.StatusCode.CANCELLED))
        if broken is not None:
            _abort(context, broken)
        return reply

    def _stream(self, path: str, body: bytes, context: Any) -> Iterator[bytes]:
        broken = self._note(path, body, context)
        for number, reply in enumerate(self._channel.unary_stream(path)(body, timeout=_timeout(context))):
            if broken is not None and number == broken.after_messages:
                _abort(context, broken)
            yield reply


def _timeout(context: Any) -> float | None:
    """What is left of the caller's deadline; gRPC tells the lack of one as hundreds of years."""
    seconds: float = context.time_remaining()
    return seconds if seconds < 1e9 else None


def _abort(context: Any, broken: Break) -> None:
    context.set_trailing_metadata(broken.metadata)
    context.abort(broken.code, broken.message)


class LeapingClock:
    """A clock on which sleeping takes no time but moves it on, and that notes how long was slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.time += seconds
        await asyncio.sleep(0)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Any:
        raise NotImplementedError("a client has no timers")


class Rig:
    """A store, its server, the proxy before it."""

    def __init__(self, store: LightningStore, config: ServerConfig) -> None:
        self.store = store
        self.server = LightningStoreServer(store, port=0, config=config)
        asyncio.run(self.server.start())
        self.proxy = Proxy(self.server.endpoint)
        self.clock = LeapingClock()
        self._clients: list[LightningStoreClient] = []

    def client(self, **settings: Any) -> LightningStoreClient:
        """A client through the proxy, on the leaping clock."""
        client = LightningStoreClient(self.proxy.endpoint, **{"clock": self.clock, **settings})
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            asyncio.run(client.close())
        self.proxy.close()
        asyncio.run(self.server.stop())


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """``make_rig(store, **config)``; closed after the test."""
    with ExitStack() as stack:

        def make(store: LightningStore | None = None, **config: Any) -> Rig:
            settings = ServerConfig(**{"grace_seconds": 0.0, **config})
            rig = Rig(InMemoryLightningStore() if store is None else store, settings)
            stack.callback(rig.close)
            return rig

        yield make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture
def broken() -> type[Break]:
    """The class, for the plan of a proxy."""
    return Break


@pytest.fixture
def exact_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """No jitter."""
    monkeypatch.setattr(calls, "jittered", lambda delay: delay)


@pytest.fixture
def dead_endpoint() -> str:
    """A port of this machine on which nobody listens."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def leaping_clock() -> LeapingClock:
    return LeapingClock()


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


class HookedStore(ForwardingStore):
    """A store some methods of which a test replaces."""

    def __init__(self, inner: LightningStore, **hooks: Callable[..., Awaitable[Any]]) -> None:
        self.inner = inner
        self.hooks = hooks

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self.inner.capabilities

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await self.hooks.get(method, getattr(self.inner, method))(*args, **kwargs)

    def _forward_stream(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = getattr(self.inner, method)(*args, **kwargs)
        return stream


@pytest.fixture
def hooked() -> type[HookedStore]:
    """The class."""
    return HookedStore
