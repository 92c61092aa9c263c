"""The HTTP/1.1 side of OTLP: sockets, connections, limits on bytes and time, and the drain. h11 knows the protocol."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import h11

from lightning_store_server.config import MIB
from lightning_store_server.interceptors import access_logger
from lightning_store_server.otlp.http import (
    RETRY_AFTER_SECONDS,
    Answer,
    Decoder,
    HttpError,
    TracesEndpoint,
    decoder_of,
    failure,
)

logger = logging.getLogger("lightning_store_server")

READ_BYTES: Final = 64 * 1024
BACKLOG: Final = 128
TAKEN: Final = frozenset({h11.DONE, h11.MUST_CLOSE, h11.CLOSED})
"""States of a peer of which nothing more is expected."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a sender may take of the server. Exporters give up after 10 s, as a rule."""

    connections: int = 1000
    held_bytes: int = 512 * MIB
    """Of all the bodies that are coming in. What is over either limit is told to come back."""
    head_bytes: int = 16 * 1024
    idle_seconds: float = 60.0
    """A connection on which nothing comes is closed, …"""
    head_seconds: float = 10.0
    """… and so is one on which a request's head does not end, …"""
    body_seconds: float = 30.0
    """… or its body, …"""
    write_seconds: float = 10.0
    """… or that does not take its answer."""
    linger_seconds: float = 2.0
    """How long the rest of a refused body is taken and dropped, so that the answer is not lost with the connection."""


class HttpListener:
    """Takes connections from ``bind`` on, and serves them from ``start`` to ``stop``."""

    def __init__(self, endpoint: TracesEndpoint, limits: HttpLimits | None = None, *, access_log: bool = False) -> None:
        self.endpoint = endpoint
        self.limits = limits if limits is not None else HttpLimits()
        self.access_log = access_log
        self.draining = False
        self.held_bytes = 0
        """Of the bodies that are coming in."""
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: dict[_Connection, asyncio.Task[None]] = {}

    def bind(self, addresses: Iterable[tuple[socket.AddressFamily, str]], port: int) -> int:
        """Listen on each of the addresses; the port, which is any free one for 0. OSError if one is taken."""
        for family, host in addresses:
            try:
                listening = _listen(family, host, port)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and self._sockets:
                    continue  # localhost may name an address of a family that this machine does not have
                self.close()
                address = f"[{host}]" if family is socket.AF_INET6 else host
                message = f"cannot listen on {address}:{port} for OTLP over HTTP: {error.strerror}"
                raise OSError(error.errno, message) from None
            self._sockets.append(listening)
            port = listening.getsockname()[1]
        return port

    async def start(self) -> None:
        """Serve the connections that come, and those that came since ``bind``."""
        for listening in self._sockets:
            self._servers.append(await asyncio.start_server(self._serve, sock=listening, limit=READ_BYTES))

    def close(self) -> None:
        """Listen no longer."""
        for server in self._servers:
            server.close()
        for listening in self._sockets:
            listening.close()

    async def stop(self, grace_seconds: float) -> bool:
        """Drain: no new connections, idle ones are closed, requests under way get ``grace_seconds`` to finish. Whether
        all of them did."""
        self.draining = True
        self.close()
        for connection in self._connections:
            connection.end_if_idle()
        tasks = set(self._connections.values())
        cut = (await asyncio.wait(tasks, timeout=grace_seconds))[1] if tasks else set()
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        await asyncio.sleep(0)  # connections that were cut are closed at the loop's next turn
        return not cut

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.draining:
            writer.close()
            return
        connection = _Connection(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._connections[connection] = task
        try:
            await connection.run(too_many=len(self._connections) > self.limits.connections)
        finally:
            del self._connections[connection]


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # though old connections are not quite gone
        if family is socket.AF_INET6:
            # As gRPC does: "::" takes IPv4 too.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listening.bind((host, port))
        # At once, for on Linux two sockets may be bound to one port as long as neither listens.
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class _PeerGoneError(Exception):
    """The connection is lost, or its peer takes nothing."""


class _Connection:
    """One connection: requests one after the other, each answered before the next is looked at."""

    def __init__(self, listener: HttpListener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._listener = listener
        self._endpoint = listener.endpoint
        self._limits = listener.limits
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        self._idle = True

    def end_if_idle(self) -> None:
        """Close it unless a request is under way; then it is closed after its answer."""
        if self._idle:
            self._writer.close()

    async def run(self, *, too_many: bool) -> None:
        """Serve requests until the connection ends. A failure of its peer is nobody's concern."""
        try:
            if too_many:
                await self._refuse(_busy("there are too many connections"))
            else:
                while await self._exchange() and not self._listener.draining:
                    self._http.start_next_cycle()
                    await asyncio.sleep(0)  # requests that came together must not hold up the others
                await self._linger()
            await self._close()
        except _PeerGoneError:
            pass
        except asyncio.CancelledError:
            pass  # by ``stop``; handed on, asyncio would log it as a failure
        except Exception:
            logger.exception("a connection of OTLP over HTTP failed")
        finally:
            self._writer.transport.abort()

    async def _exchange(self) -> bool:
        """Take one request and answer it. Whether another one may follow."""
        self._idle = True
        if not await self._begins():
            return False
        self._idle = False
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                event = await self._event()
        except TimeoutError:
            await self._refuse(HttpError(HTTPStatus.REQUEST_TIMEOUT, "the head of the request did not come in time"))
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(_malformed(error))
            return False
        if not isinstance(event, h11.Request):
            return False
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        answer = await self._answer(event, headers)
        await self._send(answer, has_body=event.method != b"HEAD")
        self._log(event, answer, started)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _begins(self) -> bool:
        """Wait for a request's first bytes. False: there are no more requests."""
        if self._http.trailing_data[0]:
            return True  # it came right behind the one before
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                data = await self._read()
        except TimeoutError:
            return False
        self._http.receive_data(data)
        return bool(data)

    async def _answer(self, request: h11.Request, headers: Mapping[str, str]) -> Answer:
        try:
            if request.http_version not in (b"1.0", b"1.1"):
                message = "send HTTP/1.1; gRPC is taken on the server's other port"
                raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, message, Connection="close")
            self._endpoint.check(request.method.decode("latin-1"), request.target.decode("latin-1"), headers)
            return await self._endpoint.export(headers, await self._body(headers))
        except h11.RemoteProtocolError as error:
            return failure(_malformed(error), headers)
        except _PeerGoneError:
            raise
        except Exception as error:
            return failure(error, headers)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        """The body, decoded."""
        decoder, body = decoder_of(headers), bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                await self._fill(body, decoder)
        except TimeoutError:
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from None
        finally:
            self._listener.held_bytes -= len(body)
        decoder.finish()
        return bytes(body)

    async def _fill(self, body: bytearray, decoder: Decoder) -> None:
        """Add what comes to ``body``, which is bounded as it was sent and as it is."""
        received_bytes = 0
        while isinstance(event := await self._event(), h11.Data):
            received_bytes += len(event.data)
            for piece in decoder.decode(bytes(event.data)):
                body += piece
                self._listener.held_bytes += len(piece)
                if max(len(body), received_bytes) > self._endpoint.body_bytes_max:
                    raise self._endpoint.too_large()
                # A body alone is never too much: it may be as large as the limit, and would be refused for ever.
                if self._listener.held_bytes - len(body) >= self._limits.held_bytes:
                    raise _busy("too much is coming in at once")
                await asyncio.sleep(0)  # a large body must not hold up the other calls

    async def _event(self) -> Any:
        """The next thing that comes. h11.RemoteProtocolError if it is not HTTP."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._http.receive_data(await self._read())
        return event

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(READ_BYTES)
        except OSError as error:
            raise _PeerGoneError from error

    async def _refuse(self, error: HttpError) -> None:
        """Answer what is not even a request."""
        await self._send(failure(error, {}), has_body=True)

    async def _send(self, answer: Answer, *, has_body: bool) -> None:
        headers = {
            "Date": email.utils.formatdate(usegmt=True),
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            **answer.headers,
        }
        if not self._is_taken() or self._listener.draining:
            headers["Connection"] = "close"
        response = h11.Response(status_code=answer.status, reason=answer.status.phrase, headers=list(headers.items()))
        sent = self._http.send(response) or b""
        if has_body:
            sent += self._http.send(h11.Data(data=answer.body)) or b""
        await self._write(sent + (self._http.send(h11.EndOfMessage()) or b""))

    def _is_taken(self) -> bool:
        """Whether the whole request is here. What came of a body that nobody wants is dropped."""
        with suppress(h11.RemoteProtocolError):
            while self._http.their_state is h11.SEND_BODY and isinstance(self._http.next_event(), h11.Data):
                pass
        return self._http.their_state in TAKEN

    async def _write(self, data: bytes | None) -> None:
        self._writer.write(data or b"")
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await self._writer.drain()
        except OSError as error:  # a TimeoutError too
            raise _PeerGoneError from error

    async def _linger(self) -> None:
        """Take and drop what is still coming: to close at once would make the peer drop the answer too."""
        if self._http.their_state in TAKEN or self._writer.transport.is_closing():
            return
        try:
            self._writer.write_eof()
        except OSError as error:
            raise _PeerGoneError from error
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger_seconds):
                while await self._read():
                    pass

    async def _close(self) -> None:
        """Close the connection once all is sent."""
        self._writer.close()
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await self._writer.wait_closed()
        except OSError as error:  # a TimeoutError too
            raise _PeerGoneError from error

    def _log(self, request: h11.Request, answer: Answer, started: float) -> None:
        if not self._listener.access_log:
            return
        host, port, *_ = self._writer.get_extra_info("peername") or ("", 0)
        call = {
            "method": f"{request.method.decode('latin-1')} {request.target.decode('latin-1')}",
            "code": str(answer.status.value),
            "duration_ms": round((time.perf_counter() - started) * 1000, 3),
            "peer": f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}",
        }
        access_logger.info("%s %s %.3f ms %s", *call.values(), extra={"call": call})


def _busy(why: str) -> HttpError:
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{why}; try again later", Retry_After=str(RETRY_AFTER_SECONDS))


def _malformed(error: h11.RemoteProtocolError) -> HttpError:
    return HttpError(HTTPStatus(error.error_status_hint), f"the request is not valid HTTP/1.1: {error}")
