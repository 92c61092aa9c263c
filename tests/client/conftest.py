"""A server, a proxy before it that can break calls and sees each attempt, and a clock that never lets a test wait."""

from __future__ import annotations

import asyncio
import contextlib
import queue
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
from lightning_store.v1.session_pb2 import CallStatus, SessionCall, SessionReply, SessionRequest, SessionResponse
from lightning_store.wire.methods import METHODS, REPEATED_METADATA, SERVICE, SESSION
from lightning_store_client import LightningStoreClient, calls
from lightning_store_server import LightningStoreServer, ServerConfig

HEALTH_CHECK = "Check"
DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Sent:
    """One attempt of a call, as it came to the proxy."""

    rpc: str
    body: bytes
    seconds_left: float
    repeated: bool
    """Whether the client says that it sent this call before."""
    in_session: bool = False

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
    """Hands calls on to a server as bytes; breaks those that ``plan`` says, in order, by the name of their method.

    The calls of a session are taken apart: each is noted, broken or handed on by itself. A break of "Session" is one of
    the stream, as it is opened.
    """

    def __init__(self, endpoint: str) -> None:
        self.sent: list[Sent] = []
        self.sessions: list[ProxiedSession] = []
        """All that were opened."""
        self.plan: dict[str, deque[Break | None]] = defaultdict(deque)
        self._noted = threading.Condition()
        self._channel = grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)])
        self._server = grpc.server(ThreadPoolExecutor(32), handlers=[self], options=[("grpc.so_reuseport", 0)])
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def breaks(self, rpc: str, *breaks: Break | None) -> None:
        """What happens to the next attempts of a method, one after the other; None hands one on."""
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

    def note(self, sent: Sent) -> Break | None:
        """Take note of an attempt; how it is to be broken."""
        with self._noted:
            self.sent.append(sent)
            self._noted.notify_all()
        return self.next_break(sent.rpc)

    def next_break(self, rpc: str) -> Break | None:
        return self.plan[rpc].popleft() if self.plan[rpc] else None

    def hand_on(self, path: str, body: bytes, timeout: float | None, repeated: bool) -> Any:
        """The call to the server, as a future of its reply."""
        metadata = (REPEATED_METADATA,) if repeated else ()
        return self._channel.unary_unary(path).future(body, timeout=timeout, metadata=metadata)

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler:
        path = handler_call_details.method
        rpc = path.rpartition("/")[2]
        if rpc == SESSION:
            return grpc.stream_stream_rpc_method_handler(self._session)
        if SERVICE in path and METHODS[rpc].streams:
            return grpc.unary_stream_rpc_method_handler(lambda body, context: self._stream(path, body, context))
        return grpc.unary_unary_rpc_method_handler(lambda body, context: self._unary(path, body, context))

    def _note(self, path: str, body: bytes, context: Any) -> Break | None:
        repeated = REPEATED_METADATA in tuple(map(tuple, context.invocation_metadata()))
        return self.note(Sent(path.rpartition("/")[2], body, context.time_remaining(), repeated))

    def _unary(self, path: str, body: bytes, context: Any) -> bytes:
        broken = self._note(path, body, context)
        if broken is not None and not broken.lose_reply:
            _abort(context, broken)
        call = self.hand_on(path, body, _timeout(context), self.sent[-1].repeated)
        if not context.add_callback(call.cancel):
            call.cancel()  # the caller is gone already
        reply, failure = _outcome(call)
        if failure is None and broken is None:
            return reply
        _abort(context, broken or failure)
        raise AssertionError("aborting raises")

    def _stream(self, path: str, body: bytes, context: Any) -> Iterator[bytes]:
        broken = self._note(path, body, context)
        for number, reply in enumerate(self._channel.unary_stream(path)(body, timeout=_timeout(context))):
            if broken is not None and number == broken.after_messages:
                _abort(context, broken)
            yield reply

    def _session(self, bodies: Iterator[bytes], context: Any) -> Iterator[bytes]:
        broken = self.next_break(SESSION)
        if broken is not None:
            _abort(context, broken)
        session = ProxiedSession(self)
        self.sessions.append(session)
        if not context.add_callback(session.end):
            session.end()
        threading.Thread(target=session.take, args=(bodies,), daemon=True).start()
        for reply in iter(session.replies.get, None):
            if isinstance(reply, Break):
                _abort(context, reply)
            yield reply if isinstance(reply, bytes) else SessionResponse(replies=[reply]).SerializeToString()


class ProxiedSession:
    """The calls of one session, each handed on by itself."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._under_way: dict[int, Any] = {}
        self.replies: queue.SimpleQueue[SessionReply | bytes | Break | None] = queue.SimpleQueue()
        """To be sent, bytes as they are; None ends the stream well, and a break otherwise."""
        self.messages: list[SessionRequest] = []
        """All that came."""

    def end(self, broken: Break | None = None) -> None:
        """End the stream; the server does not come to hear of it."""
        self.replies.put(broken)

    def take(self, bodies: Iterator[bytes]) -> None:
        with contextlib.suppress(Exception):  # whatever gRPC raises here when the client is gone
            for body in bodies:
                request = SessionRequest.FromString(body)
                self.messages.append(request)
                for call in request.calls:
                    self._begin(call)
                for id_ in request.cancelled_ids:
                    self._cancel(id_)
        self.end()
        for id_ in list(self._under_way):
            self._cancel(id_)

    def _cancel(self, id_: int) -> None:
        call = self._under_way.pop(id_, None)
        if call is not None:
            call.cancel()

    def _begin(self, call: SessionCall) -> None:
        seconds = call.timeout_ms / 1000 if call.timeout_ms else float("inf")
        broken = self._proxy.note(Sent(call.method, call.request, seconds, call.repeated, in_session=True))
        if broken is not None and not broken.lose_reply:
            self.replies.put(_error_reply(call.id, broken))
            return
        timeout = seconds if call.timeout_ms else None
        made = self._proxy.hand_on(f"/{SERVICE}/{call.method}", call.request, timeout, call.repeated)
        self._under_way[call.id] = made
        made.add_done_callback(lambda _: self._finish(call.id, made, broken))

    def _finish(self, id_: int, made: Any, broken: Break | None) -> None:
        if self._under_way.pop(id_, None) is None:
            return  # it was called off
        reply, failure = _outcome(made)
        failed = broken or failure
        self.replies.put(SessionReply(id=id_, response=reply) if failed is None else _error_reply(id_, failed))


def _outcome(call: Any) -> tuple[bytes, Break | None]:
    """The reply, or how the call failed."""
    try:
        return call.result(), None
    except grpc.RpcError:
        return b"", Break(call.code(), call.details(), metadata=tuple(call.trailing_metadata()))
    except grpc.FutureCancelledError:
        return b"", Break(grpc.StatusCode.CANCELLED)


def _error_reply(id_: int, broken: Break) -> SessionReply:
    details = dict(broken.metadata).get(DETAILS_KEY)
    plain = CallStatus(code=broken.code.value[0], message=broken.message)
    return SessionReply(id=id_, error=plain if details is None else CallStatus.FromString(details))


def _timeout(context: Any) -> float | None:
    """What is left of the caller's deadline; gRPC tells the lack of one as hundreds of years."""
    seconds: float = context.time_remaining()
    return seconds if seconds < 1e9 else None


def _abort(context: Any, broken: Break | None) -> None:
    assert broken is not None
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

    def awake_since(self) -> float:
        raise NotImplementedError("a client judges nobody")

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
