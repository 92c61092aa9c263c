"""Sockets and connections of the HTTP side, and their drain. uvicorn has the protocol; its own server would take over
the process's signals, and wake it up ten times a second."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
from collections.abc import Iterable
from functools import partial
from typing import Final

from starlette.applications import Starlette
from uvicorn import Config
from uvicorn.server import ServerState

from lightning_store_server.http.app import Lifecycle
from lightning_store_server.http.limits import HttpLimits
from lightning_store_server.http.protocol import LimitedProtocol

BACKLOG: Final = 128


class HttpListener:
    """Takes connections from ``bind`` on, and serves them from ``start`` to ``stop``.

    Args:
        app: What answers.
        lifecycle: Where the server stands.
        limits: What peers may take of it.
        tls: What connections speak TLS with; None for none.
    """

    def __init__(
        self,
        app: Starlette,
        lifecycle: Lifecycle,
        limits: HttpLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._limits = limits if limits is not None else HttpLimits()
        self._lifecycle = lifecycle
        self._server_state = ServerState()
        self._config = Config(
            app,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=self._limits.head_bytes,
            timeout_keep_alive=math.ceil(self._limits.idle_seconds),
        )
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._server_state.connections)

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
                message = f"cannot listen on {address}:{port} for HTTP: {error.strerror}"
                raise OSError(error.errno, message) from None
            self._sockets.append(listening)
            port = listening.getsockname()[1]
        return port

    async def start(self) -> None:
        """Serve the connections that come, and those that came since ``bind``."""
        self._config.load()
        loop = asyncio.get_running_loop()
        connect = partial(
            LimitedProtocol,
            self._limits,
            config=self._config,
            server_state=self._server_state,
            app_state={},
            _loop=loop,
        )
        for listening in self._sockets:
            self._servers.append(
                await loop.create_server(
                    connect,
                    sock=listening,
                    backlog=BACKLOG,
                    ssl=self._tls,
                    ssl_handshake_timeout=None if self._tls is None else self._limits.head_seconds,
                )
            )

    def close(self) -> None:
        """Listen no longer."""
        for server in self._servers:
            server.close()
        for listening in self._sockets:
            listening.close()

    def drain(self) -> None:
        """Close connections that idle between requests, and the others after their answers.

        Probes that come are still told how it stands, also on connections that were just made: to close one while its
        first request is on its way would reset it.
        """
        for connection in list(self._server_state.connections):
            if isinstance(connection, LimitedProtocol) and connection.was_asked:
                connection.shutdown()

    async def stop(self, grace_seconds: float) -> bool:
        """Listen no longer; requests under way get ``grace_seconds`` to finish. Whether all of them did."""
        self.close()
        for connection in list(self._server_state.connections):
            connection.shutdown()
        tasks = set(self._server_state.tasks)
        cut = (await asyncio.wait(tasks, timeout=grace_seconds))[1] if tasks else set()
        if cut:
            self._lifecycle.cut = True
            self._abort_connections()
            await asyncio.sleep(0)  # connections learn in the loop's next turn that they are lost
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        self._abort_connections()
        await asyncio.sleep(0)
        return not cut

    def _abort_connections(self) -> None:
        for connection in list(self._server_state.connections):
            if not connection.transport.is_closing() or self._lifecycle.cut:
                connection.transport.abort()


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
