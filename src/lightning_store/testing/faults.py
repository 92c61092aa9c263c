"""FaultProxy: stands between a client and its server and breaks connections by a plan that can be repeated.

It is a TCP proxy that reads along. gRPC sends all that a client has to say over one HTTP/2 connection, as interleaved
frames; each frame begins with nine bytes that give its length, type, flags and stream, and in the data of a stream each
message begins with five bytes that give its length. That is enough to tell where a request begins and where its reply
does, so a fault can be aimed at "every third call". The contents stay closed: neither the compressed headers nor the
messages are looked at.

A call is here a request message. Most streams carry one, and all that the server sends on them is its reply. On a
stream that the client goes on using, a session, each message is a call: of one of the store's methods, or of several
that were called at once. Its reply is the next message that the server begins to send when the request has passed. So
the aim is exact for callers that take turns; among others, the reply may be that to somebody else, before the server
has acted. A message that only calls others off has none of its own.

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
    """The connection ends before any of the request message has reached the server."""
    CUT_REPLY = "cut reply"
    """The server has acted; its reply is swallowed and the connection ends."""
    RESET = "reset"
    """The same, but the client is told by a TCP reset instead of an orderly end."""
    LATE_REQUEST = "late request"
    """The connection ends for the client, and the request reaches the server later: on ``deliver_late_requests``. It is
    the last on its stream then. Until then the server does not read it: it must fit into the
    server's flow-control window, which is 64 KiB in older releases of gRPC."""
    DELAY = "delay"
    """The request, and what the client sends after it, is held up for ``delay_seconds``."""
    BLACK_HOLE = "black hole"
    """From the request on, nothing passes either way, and the connection stays open."""
    THROTTLE = "throttle"
    """From the request on, the connection carries ``bytes_per_second`` each way."""


CUTS: Final = (Fault.CUT_REQUEST, Fault.CUT_REPLY, Fault.RESET, Fault.LATE_REQUEST)
"""The faults that end a connection."""
AT_REPLY: Final = (Fault.CUT_REPLY, Fault.RESET, Fault.LATE_REQUEST)
"""The faults that act when the server answers."""


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
    """Request messages that arrived, repeated ones and probes included."""
    answered: int = 0
    """Calls whose whole reply, or the end of their stream, was handed to the client."""
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

    @property
    def connections_open(self) -> int:
        """How many connections the server has through it now, those that their clients have left included."""
        return len(self._connections)

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
        """Hand the requests that were held back to the server, and return when it has answered on their streams; how
        many."""
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
        under_way = sum(connection.calls_under_way for connection in connections)
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
MESSAGE_HEAD_BYTES: Final = 5
"""Before each gRPC message: whether it is compressed, and in four bytes how long it is."""
THROTTLE_SLICES_PER_SECOND: Final = 20
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: closing the socket resets the connection."""


class _Frame(NamedTuple):
    """One HTTP/2 frame, RFC 9113, section 4.1. gRPC pads none."""

    kind: int
    flags: int
    stream: int
    """The stream that it belongs to; 0 for what concerns the connection."""
    payload: bytes
    begins_message: bool = False
    ends_message: bool = False
    """Whether the first byte of a message, or its last, is in here: known of frames that were :meth:`cut`."""

    @property
    def data(self) -> bytes:
        """All of it, the head included."""
        head = len(self.payload).to_bytes(3) + bytes((self.kind, self.flags)) + self.stream.to_bytes(4)
        return head + self.payload

    @property
    def ends_stream(self) -> bool:
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    def cut(self, messages: _Messages) -> Iterator[_Frame]:
        """This frame as frames none of which has to do with more than one message."""
        if self.kind != DATA:
            yield self
            return
        left = self.payload
        while True:
            size, begins, ends = messages.take(left)
            part, left = left[:size], left[size:]
            flags = self.flags & ~END_STREAM if left else self.flags
            yield self._replace(flags=flags, payload=part, begins_message=begins, ends_message=ends)
            if not left:
                return


class _Messages:
    """How far the messages are that one side sends on a stream."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        """Bytes of the message whose head is complete."""

    def take(self, data: bytes) -> tuple[int, bool, bool]:
        """How many of the bytes that come next belong to one message, and whether they begin it and whether they end
        it."""
        if not data:
            return 0, False, False
        begins = not self._head
        size = 0
        if len(self._head) < MESSAGE_HEAD_BYTES:
            head = data[: MESSAGE_HEAD_BYTES - len(self._head)]
            self._head += head
            size = len(head)
            if len(self._head) < MESSAGE_HEAD_BYTES:
                return size, begins, False
            self._left = int.from_bytes(self._head[1:])
        body = min(self._left, len(data) - size)
        self._left -= body
        ends = self._left == 0
        if ends:
            self._head = b""
        return size + body, begins, ends


class _Stream:
    """One stream that is under way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests = _Messages()
        self.replies = _Messages()
        self.calls: list[Fault | None] = []
        """Those without a whole reply, each with its fault."""
        self.client_is_done = False
        """All that the server sends is the reply to what the client has sent; until then each message is one."""
        self._being_answered = 0

    def awaited(self) -> Fault | None:
        """The fault that the next reply is to meet."""
        return next((fault for fault in self.calls if fault in AT_REPLY), None)

    def answered(self, frame: _Frame) -> int:
        """Take note of what the server has sent; how many calls have their whole reply with it."""
        if frame.ends_stream or frame.kind == RST_STREAM:
            return len(self.calls)
        if self.client_is_done:
            return 0
        if frame.begins_message:
            self._being_answered = len(self.calls)
        if not frame.ends_message:
            return 0
        count, self._being_answered = self._being_answered, 0
        del self.calls[:count]
        return count


class _End(NamedTuple):
    """A connection as one of its two ends is reached."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frame(self) -> _Frame:
        """The next frame. IncompleteReadError, an EOFError, at the end of the connection."""
        head = await self.reader.readexactly(FRAME_HEAD_BYTES)
        length, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
        return _Frame(kind, flags, stream & 0x7FFFFFFF, await self.reader.readexactly(length))

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
        self._proxy = proxy
        self._client = client
        self._server = server
        self._streams: dict[int, _Stream] = {}
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

    @property
    def calls_under_way(self) -> int:
        return sum(len(stream.calls) for stream in self._streams.values())

    # --- From the client to the server -------------------------------------------------------------------------------

    async def _forward_requests(self) -> None:
        await self._server.send(await self._client.reader.readexactly(PREFACE_BYTES))
        while True:
            frame = await self._client.frame()
            stream = self._stream_of(frame)
            for part in [frame] if stream is None else frame.cut(stream.requests):
                if stream is not None and part.begins_message:
                    fault = self._proxy.next_fault()
                    stream.calls.append(fault)
                    if fault is Fault.LATE_REQUEST:
                        return await self._forward_late(stream, part)
                    if not await self._meet_at_request(stream, fault):
                        return None
                if not self._silent:
                    await self._forward(self._server, part)

    def _stream_of(self, frame: _Frame) -> _Stream | None:
        """The stream of a frame from the client; None if the server has ended it, or it is that of the connection."""
        # Stream ids only grow, and a client sends headers once a stream: such a frame is its beginning.
        if frame.kind == HEADERS and frame.stream > self._last_stream:
            self._last_stream = frame.stream
            self._streams[frame.stream] = _Stream(frame.stream)
        if frame.kind == RST_STREAM:  # the client gave up what is under way there
            self._streams.pop(frame.stream, None)
        stream = self._streams.get(frame.stream)
        if stream is not None and frame.ends_stream:
            stream.client_is_done = True
        return stream

    async def _meet_at_request(self, stream: _Stream, fault: Fault | None) -> bool:
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

    async def _forward_late(self, stream: _Stream, first: _Frame) -> None:
        """Take the whole request, leave the client, and send the request on when told to. The reply ends it all."""
        held = [first]
        while not held[-1].ends_message:
            frame = await self._client.frame()
            if frame.stream == stream.number and frame.kind == DATA:
                held.append(next(frame.cut(stream.requests)))
        self._silent = True
        self._strike(stream, Fault.LATE_REQUEST)
        self._proxy.hold_back(self)
        await self._client.close()
        await self.released.wait()
        # Nothing more comes from a client that is gone. And what has no reply of its own ends with the stream.
        held[-1] = held[-1]._replace(flags=END_STREAM)
        for frame in held:
            await self._server.send(frame.data)
        await asyncio.Event().wait()

    # --- From the server to the client -------------------------------------------------------------------------------

    async def _forward_replies(self) -> None:
        while True:
            frame = await self._server.frame()
            stream = self._streams.get(frame.stream)
            for part in [frame] if stream is None else frame.cut(stream.replies):
                # A server sends the headers of a session before any reply, and trailers instead of one that fails.
                begins_reply = part.begins_message or (part.kind == HEADERS and part.ends_stream)
                if stream is not None and begins_reply and self._meet_at_reply(stream):
                    return
                if not self._silent:
                    if stream is not None:  # before the client can have it, who may look at the statistics next
                        self._note_answer(stream, part)
                    await self._forward(self._client, part)

    def _note_answer(self, stream: _Stream, frame: _Frame) -> None:
        self._proxy.statistics.answered += stream.answered(frame)
        if frame.ends_stream or frame.kind == RST_STREAM:
            self._streams.pop(stream.number, None)

    def _meet_at_reply(self, stream: _Stream) -> bool:
        """Act on a reply that begins; whether that ends the connection."""
        fault = stream.awaited()
        if fault is Fault.LATE_REQUEST:
            return self.released.is_set()
        if fault is None:
            return False
        self._strike(stream, fault)
        if fault is Fault.RESET:
            self._client.reset()
        return True

    # --- Both ways ---------------------------------------------------------------------------------------------------

    def _strike(self, stream: _Stream, fault: Fault) -> None:
        statistics = self._proxy.statistics
        statistics.struck[fault] += 1
        if fault in CUTS:
            statistics.cut_along += self.calls_under_way - 1
            stream.calls = [fault]
            self._streams = {stream.number: stream}

    async def _forward(self, to: _End, frame: _Frame) -> None:
        for part in self._slices(frame.data):
            await to.send(part)
            if self._throttled:
                await self._proxy.clock.sleep(len(part) / self._proxy.bytes_per_second)

    def _slices(self, data: bytes) -> Iterator[bytes]:
        size = max(1, int(self._proxy.bytes_per_second / THROTTLE_SLICES_PER_SECOND)) if self._throttled else len(data)
        for start in range(0, len(data), size):
            yield data[start : start + size]
