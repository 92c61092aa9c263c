"""FaultProxy: stands between a client and its server and breaks connections by a plan that can be repeated.

It is a TCP proxy that reads along. gRPC sends all calls of a client over one HTTP/2 connection, as interleaved frames;
each frame begins with nine bytes that give its length, type, flags and stream, and each call is a stream of its own.
That is enough to tell where a call begins and where its reply does, so a fault can be aimed at "every third call". The
contents stay closed: neither the compressed headers nor the messages are looked at.

What a fault does to a connection it does to every call on it, as on a real wire. Calls that go down with another one
are counted apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from lightning_store.clock import Clock, SystemClock
from lightning_store.loop_thread import LoopThread


class Fault(Enum):
    """What happens to a call."""

    CUT_REQUEST = "cut request"
    """The connection ends before any of the request has reached the server."""
    CUT_REPLY = "cut reply"
    """The server has acted; its reply is swallowed and the connection ends."""
    RESET = "reset"
    """The same, but the client is told by a TCP reset instead of an orderly end."""
    LATE_REQUEST = "late request"
    """The connection ends for the client, and the request reaches the server later: on ``deliver_late_requests``."""
    DELAY = "delay"
    """The request, and what the client sends after it, is held up for ``delay_seconds``."""
    BLACK_HOLE = "black hole"
    """From the request on, nothing passes either way, and the connection stays open."""
    THROTTLE = "throttle"
    """From the request on, the connection carries ``bytes_per_second`` each way."""


CUTS: Final = (Fault.CUT_REQUEST, Fault.CUT_REPLY, Fault.RESET, Fault.LATE_REQUEST)
"""The faults that end a connection."""


@dataclass(frozen=True)
class FaultSchedule:
    """Which fault each call meets, by its number: 1 for the first request that reaches the proxy, on any connection.

    It depends on nothing but the number, so the same calls in the same order meet the same faults.
    """

    fault_of: Callable[[int], Fault | None]

    @classmethod
    def none(cls) -> FaultSchedule:
        """All is well."""
        return cls(lambda number: None)

    @classmethod
    def every(cls, nth: int, *faults: Fault, offset: int = 0) -> FaultSchedule:
        """Calls ``nth - offset``, ``2 * nth - offset`` and so on meet ``faults`` in turn."""
        if nth < 1 or not faults:
            raise ValueError(f"every {nth}th call cannot meet {len(faults)} faults; give 1 or more of both")

        def fault_of(number: int) -> Fault | None:
            turn, rest = divmod(number + offset, nth)
            return None if rest else faults[turn % len(faults)]

        return cls(fault_of)

    @classmethod
    def first(cls, *faults: Fault | None) -> FaultSchedule:
        """The first calls meet ``faults`` one by one; the others none."""
        return cls(lambda number: faults[number - 1] if number <= len(faults) else None)

    @classmethod
    def random(cls, seed: int | str, shares: Mapping[Fault, float]) -> FaultSchedule:
        """Each call meets a fault by chance, with the probabilities in ``shares``; what is left of 1 meets none."""
        if min(shares.values(), default=0.0) < 0 or sum(shares.values()) > 1:
            raise ValueError(f"shares are {dict(shares)}; give probabilities that add up to 1 at most")

        def fault_of(number: int) -> Fault | None:
            left = random.Random(f"{seed}/{number}").random()
            for fault, share in shares.items():
                left -= share
                if left < 0:
                    return fault
            return None

        return cls(fault_of)


@dataclass
class FaultStatistics:
    """What a proxy has seen and done so far."""

    connections: int = 0
    calls: int = 0
    """Requests that arrived, repeated ones and probes included."""
    answered: int = 0
    """Calls whose whole reply was handed to the client."""
    struck: Counter[Fault] = field(default_factory=Counter)
    """Calls that met their fault."""
    cut_along: int = 0
    """Calls that were under way on a connection which was cut because of another call."""

    @property
    def cut(self) -> int:
        """Calls that were aimed at and got no reply because their connection ended."""
        return sum(self.struck[fault] for fault in CUTS)


class FaultProxy:
    """Listens on a free port of 127.0.0.1 and hands connections on to ``target``, ``"host:port"``.

    ``async with FaultProxy(server.endpoint, FaultSchedule.every(3, Fault.CUT_REPLY)) as proxy:`` and give the client
    ``proxy.endpoint``. It runs on an event loop and a thread of its own, so it serves callers on any loop. Only
    cleartext HTTP/2 passes.
    """

    def __init__(
        self,
        target: str,
        schedule: FaultSchedule | None = None,
        *,
        delay_seconds: float = 0.05,
        bytes_per_second: float = 64 * 1024,
        clock: Clock | None = None,
    ) -> None:
        """``clock`` measures delays and rates."""
        host, _, port = target.rpartition(":")
        self.target = (host.strip("[]"), int(port))
        self.schedule = schedule if schedule is not None else FaultSchedule.none()
        """May be replaced at any time; it counts for the calls to come."""
        self.statistics = FaultStatistics()
        self.delay_seconds = delay_seconds
        self.bytes_per_second = bytes_per_second
        self.clock: Clock = clock if clock is not None else SystemClock()
        self._connections: set[_Connection] = set()
        self._late: list[_Connection] = []
        self._serving: tuple[asyncio.Server, LoopThread] | None = None
        self._port = 0

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients. RuntimeError before ``start``."""
        if not self._port:
            raise RuntimeError("the proxy has no port yet: start it first")
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen. A proxy starts once."""
        thread = LoopThread("lightning-store-fault-proxy")
        try:
            server = await thread.run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        except BaseException:
            thread.stop()
            raise
        self._port = server.sockets[0].getsockname()[1]
        self._serving = (server, thread)

    async def stop(self) -> None:
        """End all connections and listen no more. Harmless when not started."""
        serving, self._serving = self._serving, None
        if serving is not None:
            server, thread = serving
            await thread.run(self._stop(server))
            thread.stop()

    async def __aenter__(self) -> FaultProxy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def cut_connections(self) -> int:
        """End all present connections, and return when both ends have been told; how many calls were under way."""
        return await self._here(self._cut_connections())

    async def deliver_late_requests(self) -> int:
        """Hand the requests that were held back to the server, and return when it has answered them; how many."""
        return await self._here(self._deliver_late_requests())

    async def _here(self, work: Any) -> int:
        """The result of ``work`` on the proxy's own loop."""
        if self._serving is None:
            work.close()
            raise RuntimeError("the proxy is not running")
        result: int = await self._serving[1].run(work)
        return result

    # --- On the proxy's own event loop -------------------------------------------------------------------------------

    async def _stop(self, server: asyncio.Server) -> None:
        server.close()
        await self._end(list(self._connections))

    async def _cut_connections(self) -> int:
        connections = list(self._connections)
        under_way = sum(len(connection.calls) for connection in connections)
        self.statistics.cut_along += under_way
        await self._end(connections)
        return under_way

    async def _end(self, connections: list[_Connection]) -> None:
        for connection in connections:
            connection.end()
        await asyncio.gather(*(connection.ended.wait() for connection in connections))

    async def _deliver_late_requests(self) -> int:
        late, self._late = self._late, []
        for connection in late:
            connection.released.set()
        await asyncio.gather(*(connection.ended.wait() for connection in late))
        return len(late)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.statistics.connections += 1
        client = _End(reader, writer)
        try:
            server = _End(*await asyncio.open_connection(*self.target))
        except OSError:  # nobody listens behind the proxy: the client finds a connection that ends at once
            await client.close()
            return
        connection = _Connection(self, client, server)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def next_fault(self) -> Fault | None:
        """Count a call; the fault that it is to meet."""
        self.statistics.calls += 1
        return self.schedule.fault_of(self.statistics.calls)

    def hold_back(self, connection: _Connection) -> None:
        """Keep a connection with a late request until it is to be delivered."""
        self._late.append(connection)


# --- One connection --------------------------------------------------------------------------------------------------

PREFACE_BYTES: Final = 24
"""What a client sends before its first frame: ``PRI * HTTP/2.0`` and so on."""
FRAME_HEAD_BYTES: Final = 9
DATA: Final = 0x0
HEADERS: Final = 0x1
RST_STREAM: Final = 0x3
END_STREAM: Final = 0x1
"""The flag of a side's last frame in a stream, on DATA or HEADERS."""
THROTTLE_SLICES_PER_SECOND: Final = 20
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: closing the socket resets the connection."""


class _Frame(NamedTuple):
    """One HTTP/2 frame, RFC 9113, section 4.1."""

    kind: int
    flags: int
    stream: int
    """The call that it belongs to; 0 for what concerns the connection."""
    data: bytes
    """All of it, the head included."""

    @property
    def ends_stream(self) -> bool:
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)


class _End(NamedTuple):
    """A connection as one of its two ends is reached."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frame(self) -> _Frame:
        """The next frame. IncompleteReadError, an EOFError, at the end of the connection."""
        head = await self.reader.readexactly(FRAME_HEAD_BYTES)
        length, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
        return _Frame(kind, flags, stream & 0x7FFFFFFF, head + await self.reader.readexactly(length))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close at once, with a TCP reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.writer.transport.abort()

    async def close(self) -> None:
        """Send what is left, then end the connection."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class _Connection:
    """A client's connection and the one to the server that stands for it. When either ends, so does the other."""

    def __init__(self, proxy: FaultProxy, client: _End, server: _End) -> None:
        self.ended = asyncio.Event()
        self.released = asyncio.Event()
        """A late request may go to the server now."""
        self.calls: dict[int, Fault | None] = {}
        """The streams that are under way, with the fault that each is to meet at its reply."""
        self._proxy = proxy
        self._client = client
        self._server = server
        self._last_stream = 0
        self._silent = False
        """Nothing passes to the client any more, and only a late request to the server."""
        self._throttled = False
        self._pumps: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Hand frames on, both ways, until one way comes to its end."""
        self._pumps = [asyncio.ensure_future(way()) for way in (self._forward_requests, self._forward_replies)]
        try:
            await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.end()
            results = await asyncio.gather(*self._pumps, return_exceptions=True)
            await asyncio.gather(self._client.close(), self._server.close())
            self.ended.set()
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, EOFError | ConnectionError):
                raise result

    def end(self) -> None:
        """Hand on nothing more; ``run`` then closes both sides."""
        for pump in self._pumps:
            pump.cancel()

    # --- From the client to the server -------------------------------------------------------------------------------

    async def _forward_requests(self) -> None:
        await self._server.send(await self._client.reader.readexactly(PREFACE_BYTES))
        while True:
            frame = await self._client.frame()
            # Stream ids only grow, and a client sends headers once a stream: such a frame is the beginning of a call.
            if frame.kind == HEADERS and frame.stream > self._last_stream:
                self._last_stream = frame.stream
                fault = self.calls[frame.stream] = self._proxy.next_fault()
                if fault is Fault.LATE_REQUEST:
                    return await self._forward_late(frame)
                if not await self._meet_at_request(frame.stream, fault):
                    return None
            elif frame.kind == RST_STREAM:  # the client gave the call up
                self.calls.pop(frame.stream, None)
            if not self._silent:
                await self._forward(self._server, frame)

    async def _meet_at_request(self, stream: int, fault: Fault | None) -> bool:
        """Act on a call that begins; whether its connection lives on."""
        match fault:
            case Fault.CUT_REQUEST:
                self._strike(stream, fault)
                return False
            case Fault.DELAY:
                self._strike(stream, fault)
                await self._proxy.clock.sleep(self._proxy.delay_seconds)
            case Fault.BLACK_HOLE:
                self._strike(stream, fault)
                self._silent = True
            case Fault.THROTTLE:
                self._strike(stream, fault)
                self._throttled = True
        return True

    async def _forward_late(self, first: _Frame) -> None:
        """Take the whole request, leave the client, and send the request on when told to. The reply ends it all."""
        held = [first]
        while not (held[-1].stream == first.stream and held[-1].ends_stream):
            held.append(await self._client.frame())
        self._silent = True
        self._strike(first.stream, Fault.LATE_REQUEST)
        self._proxy.hold_back(self)
        await self._client.close()
        await self.released.wait()
        for frame in held:
            await self._server.send(frame.data)
        await asyncio.Event().wait()

    # --- From the server to the client -------------------------------------------------------------------------------

    async def _forward_replies(self) -> None:
        while True:
            frame = await self._server.frame()
            # A server sends the headers of a unary reply when its method has returned: by now it has acted.
            if frame.kind == HEADERS and self._meet_at_reply(frame.stream):
                return
            if not self._silent:
                self._note_answer(frame)  # before the client can have it, who may look at the statistics next
                await self._forward(self._client, frame)

    def _note_answer(self, frame: _Frame) -> None:
        if frame.stream in self.calls and (frame.ends_stream or frame.kind == RST_STREAM):
            del self.calls[frame.stream]
            self._proxy.statistics.answered += 1

    def _meet_at_reply(self, stream: int) -> bool:
        """Act on a call that the server answers; whether that ends the connection."""
        fault = self.calls.get(stream)
        if fault is Fault.LATE_REQUEST:
            return True
        if fault is not Fault.CUT_REPLY and fault is not Fault.RESET:
            return False
        self._strike(stream, fault)
        if fault is Fault.RESET:
            self._client.reset()
        return True

    # --- Both ways ---------------------------------------------------------------------------------------------------

    def _strike(self, stream: int, fault: Fault) -> None:
        statistics = self._proxy.statistics
        statistics.struck[fault] += 1
        if fault in CUTS:
            statistics.cut_along += len(self.calls) - 1
            self.calls = {stream: fault}

    async def _forward(self, to: _End, frame: _Frame) -> None:
        for part in self._slices(frame.data):
            await to.send(part)
            if self._throttled:
                await self._proxy.clock.sleep(len(part) / self._proxy.bytes_per_second)

    def _slices(self, data: bytes) -> Iterator[bytes]:
        size = max(1, int(self._proxy.bytes_per_second / THROTTLE_SLICES_PER_SECOND)) if self._throttled else len(data)
        for start in range(0, len(data), size):
            yield data[start : start + size]
