"""Everything about a server that can be set, with its default and the reason for it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Final

from lightning_store.errors import InvalidArgumentError
from lightning_store.items import ITEMS_MAX

KIB: Final = 1024
MIB: Final = 1024 * 1024
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 4747

PENDING_CALLS_MAX: Final = 10_000
"""Calls of one method that may have come and not been looked at yet. gRPC cancels those beyond and says no reason, from
1,000 on if left alone, which many runners that start together are; so this is only the last line of defence."""

INT32_MAX: Final = 2**31 - 1
SECONDS_MAX: Final = INT32_MAX // 1000
"""Some 24 days: gRPC counts its times in milliseconds of 32 bits."""
UNIX_PATH_BYTES_MAX: Final = 107
"""What fits into the address of a socket, on Linux."""
SECONDS: Final = (
    "wait_seconds_max",
    "idle_seconds",
    "handshake_seconds",
    "keepalive_seconds",
    "keepalive_timeout_seconds",
)
MOVE_AFTER: Final = (1.1, 1.2)
"""When sessions move on, in ages of connections: gRPC's own age varies by a tenth. Had a session ended before its
connection has refused new streams, the next one would be on the same connection."""
CONNECTION_GRACE_SECONDS: Final = 360.0
"""What calls and feeds may take when their connection is to end; the longest that the table of methods has is 300 s."""
POSITIVE: Final = (
    "max_message_bytes",
    "request_items_max",
    "calls_max",
    "waits_max",
    "stream_queries_max",
    "sessions_max",
    "watches_max",
    "connections_max",
    "streams_max",
    "queued_bytes_max",
    "read_ahead_bytes",
    "page_rows_max",
    "page_bytes_max",
    *SECONDS,
)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the server. ValueError if they contradict each other."""

    host: str = DEFAULT_HOST
    """Address to listen on. One beyond loopback asks for tokens or certificates of clients, or for ``insecure``."""
    port: int = DEFAULT_PORT
    """0 takes any free port."""
    unix_path: str | None = None
    """Unix domain socket to listen on instead of host and port. Whoever may write to it may use the store."""
    http_port: int | None = None
    """Port for HTTP (probes, metrics, spans as OTLP), on the same host; 0 takes any free one. None: not offered."""
    http_cors_origins: tuple[str, ...] = ()
    """Origins, like ``https://example.org``, whose pages may call the HTTP side from a browser."""
    http_allowed_hosts: tuple[str, ...] = ()
    """Names by which the HTTP side may be called, beside ``localhost`` and addresses. They are checked on loopback
    without tokens, where any page in a browser could have a name of its own lead here."""
    auth_tokens: str | None = None
    """File of the tokens of those who may make calls. None: everybody may do everything."""
    tls_cert: str | None = None
    """PEM file with the server's certificate, and those that it was issued by. None: no TLS."""
    tls_key: str | None = None
    """PEM file with the key of that certificate."""
    tls_client_ca: str | None = None
    """PEM file with the authorities whose certificates callers must show. None: they need none."""
    insecure: bool = False
    """Whether everybody on the network may do everything: a server beyond loopback that asks for nothing is refused
    otherwise."""
    max_message_bytes: int = 64 * MIB
    """The largest request that is taken. gRPC's own default is 4 MiB, less than one long trajectory."""
    request_items_max: int = ITEMS_MAX
    """Items of one repeated field of a request, such as the rollouts to enqueue; all its fields may be ten times as
    many. They are counted before the request is parsed, which may take a hundred times its size."""
    calls_max: int = 10_000
    """Calls under way at once; more are refused. Waits and stream queries do not count here, and heartbeats have as
    many places of their own. A thousand runners with several calls each stay below."""
    waits_max: int = 10_000
    """DequeueRollouts, WaitForRollouts and feeds that wait at once: some 20 kB each, and no work."""
    stream_queries_max: int = 256
    """StreamQuery under way at once. Each holds its whole result, and one message of it, until its reader has it."""
    sessions_max: int = 4096
    """Sessions at once: one for each process with a client, some 24 kB each while nothing happens."""
    watches_max: int = 1000
    """Watches of the health, and reflections, at once."""
    queued_bytes_max: int = 512 * MIB
    """Bytes of requests that are worked on and of replies that are not sent yet. Calls, waits, stream queries and
    heartbeats have so many each. One request above 1 MiB is worked on at a time; it takes ten times its size meanwhile,
    or twenty with characters beyond U+FFFF, which comes on top. Of these bytes, as of the numbers above, no connection
    may have more than it leaves to others."""
    read_ahead_bytes: int = 256 * KIB
    """What is taken of a request from the network before its turn comes; the rest stays with its sender. More lets
    large requests cross a slow network in fewer rounds."""
    page_rows_max: int = 10_000
    """Rows in one List reply or one StreamQuery message."""
    page_bytes_max: int = 8 * MIB
    """Bytes in one List reply or one StreamQuery message, unless a single row is larger."""
    wait_seconds_max: float = 20.0
    """How long one WaitForRollouts may hold; clients ask again. Below the idle limits of common proxies."""
    max_connection_age_seconds: float = 0.0
    """A connection of gRPC that is older takes no further calls (give or take a tenth), so that its client connects
    anew, to another server perhaps; what is under way goes on. 0: never."""
    drain_delay_seconds: float = 0.0
    """When the server is told to stop it is not ready any more, and for so long takes calls as before: load balancers
    notice."""
    connections_max: int = 10_000
    """Connections of gRPC at once; one more is closed as soon as it is made."""
    streams_max: int = 2000
    """Calls and sessions on one connection at once; its client keeps back more. A stream that is begun and reset takes
    memory until its turn comes, so that without a limit one connection could fill it."""
    idle_seconds: float = 300.0
    """A connection without calls is closed after so long. Clients make another when they need it."""
    handshake_seconds: float = 10.0
    """A connection that has not begun to speak HTTP/2, or TLS, by then is closed."""
    grace_seconds: float = 10.0
    """How long calls that are under way may take when the server is told to stop."""
    keepalive_seconds: float = 20.0
    """A connection silent for this long is probed, …"""
    keepalive_timeout_seconds: float = 10.0
    """… and closed if the probe gets no answer for this long: so a dead peer is noticed."""
    metrics: bool = True
    """Whether calls are measured, for /metrics of the HTTP side; without an http_port they are not."""
    access_log: bool = False
    """One INFO line for each call."""

    def __post_init__(self) -> None:
        for name in ("port", "http_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise InvalidArgumentError(f"{name} is {port}; give 0 (any free port) to 65535", field=name)
        if self.port and self.port == self.http_port:
            message = f"port and http_port are both {self.port}; give two different ports"
            raise InvalidArgumentError(message, field="http_port")
        if self.unix_path is not None and len(os.path.abspath(self.unix_path).encode()) > UNIX_PATH_BYTES_MAX:
            message = f"unix_path is {self.unix_path!r}; the path of a socket has {UNIX_PATH_BYTES_MAX} bytes at most"
            raise InvalidArgumentError(message, field="unix_path")
        self._check_access()
        self._check_numbers()
        for origin in self.http_cors_origins:
            if not re.fullmatch(r"https?://[^/\s]+", origin):
                message = f"http_cors_origins has {origin!r}; an origin is like https://example.org, without a path"
                raise InvalidArgumentError(message, field="http_cors_origins")

    def _check_numbers(self) -> None:
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name} is {getattr(self, name)}; give more than 0", field=name)
        for name in SECONDS:
            if getattr(self, name) > SECONDS_MAX:
                message = f"{name} is {getattr(self, name)}; give {SECONDS_MAX} s or less"
                raise InvalidArgumentError(message, field=name)
        for name in ("max_connection_age_seconds", "drain_delay_seconds", "grace_seconds"):
            if not 0 <= getattr(self, name) <= SECONDS_MAX:
                message = f"{name} is {getattr(self, name)}; give 0 to {SECONDS_MAX} s"
                raise InvalidArgumentError(message, field=name)

    def _check_access(self) -> None:
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise InvalidArgumentError("give both tls_cert and tls_key, or neither", field="tls_cert")
        if self.tls_client_ca is not None and self.tls_cert is None:
            message = "tls_client_ca asks callers for certificates, and without tls_cert there is no TLS"
            raise InvalidArgumentError(message, field="tls_client_ca")
        if not (self.is_local or self.asks_who_calls or self.insecure):
            message = (
                f"host is {self.host!r}, and everybody who can reach it could do everything: give --auth-tokens or "
                "--tls-client-ca, or --insecure on a network where that is as it should be"
            )
            raise InvalidArgumentError(message, field="host")

    @property
    def is_local(self) -> bool:
        """Whether the server listens for callers on this machine alone."""
        if self.unix_path is not None and self.http_port is None:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def asks_who_calls(self) -> bool:
        """Whether not everybody may do everything."""
        return self.auth_tokens is not None or self.tls_client_ca is not None

    def channel_options(self) -> list[tuple[str, int]]:
        """The settings that gRPC itself acts on."""
        age: list[tuple[str, int]] = []
        if self.max_connection_age_seconds:
            # A session that begins last has moved on by itself before the connection is closed, as have its calls.
            grace = MOVE_AFTER[1] * self.max_connection_age_seconds + CONNECTION_GRACE_SECONDS
            age = [
                ("grpc.max_connection_age_ms", _milliseconds(self.max_connection_age_seconds)),
                ("grpc.max_connection_age_grace_ms", _milliseconds(grace)),
            ]
        return [
            *age,
            # Two servers on one port would each get half of the calls: refuse the port instead.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # Left alone, gRPC reads requests as fast as they come, and keeps them in memory until their turn.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", self.read_ahead_bytes),
            ("grpc.max_concurrent_streams", self.streams_max),
            # A peer that resets streams is asked for a sign of life each time, and gets no new ones until it comes.
            ("grpc.http2.ping_on_rst_stream_percent", 100),
            ("grpc.max_allowed_incoming_connections", self.connections_max),
            ("grpc.max_connection_idle_ms", _milliseconds(self.idle_seconds)),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake_seconds)),
            ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
            ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
            # Replies are bounded by the page limits; what a caller was allowed to store it may also get back.
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive_seconds)),
            ("grpc.keepalive_timeout_ms", _milliseconds(self.keepalive_timeout_seconds)),
            # What a probe waits for its answer where TCP stays open; by itself the setting above does not decide that.
            ("grpc.http2.ping_timeout_ms", _milliseconds(self.keepalive_timeout_seconds)),
            ("grpc.keepalive_permit_without_calls", 1),
            # Clients probe too; answer them instead of cutting them off as abusive.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
            ("grpc.http2.max_ping_strikes", 0),
        ]


def _milliseconds(seconds: float) -> int:
    return min(INT32_MAX, max(1, round(seconds * 1000)))
