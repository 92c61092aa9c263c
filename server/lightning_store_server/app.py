"""The server as a whole: services, port, health, start and drain. The one place that chooses a concrete backend."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lightning_store.backends.base import Violation
from lightning_store.clock import Clock, SystemClock
from lightning_store.engine.engine import Engine
from lightning_store.in_memory import REPLAY_ENTRIES_MAX as REPLAY_ENTRIES_MAX
from lightning_store.in_memory import REPLAY_WINDOW_SECONDS as REPLAY_WINDOW_SECONDS
from lightning_store.in_memory import InMemoryLightningStore
from lightning_store.sqlite_store import FREE_BYTES_MIN as FREE_BYTES_MIN
from lightning_store.sqlite_store import Durability as Durability
from lightning_store.sqlite_store import SqliteEngineStore
from lightning_store.store import LightningStore
from lightning_store.v1 import service_pb2_grpc
from lightning_store.wire.methods import SERVICE, TRACE_SERVICE
from lightning_store_server.access import Access
from lightning_store_server.admission import Admission, Lane
from lightning_store_server.config import ServerConfig
from lightning_store_server.connections import cut_connection
from lightning_store_server.health import HealthServicer
from lightning_store_server.interceptors import (
    AccessInterceptor,
    AdmissionInterceptor,
    DeadlineInterceptor,
    ErrorInterceptor,
    LimitsInterceptor,
    MethodInterceptor,
    ObserverInterceptor,
)
from lightning_store_server.observers import CallObserver, log_call
from lightning_store_server.otlp.ingest import TraceIngest, add_trace_service
from lightning_store_server.record_store import engine_of
from lightning_store_server.sessions import SessionInterceptor, SessionServicer
from lightning_store_server.tls import ServerTls
from lightning_store_server.tracing import tracing_of

if TYPE_CHECKING:
    from lightning_store_server.http.side import HttpSide

logger = logging.getLogger("lightning_store_server")

WORKER_TIMEOUT_SECONDS = 120.0
"""A worker that sends heartbeats and is silent for this long counts as dead: many times the usual interval."""
WORKER_RETENTION_SECONDS = 7 * 86_400.0
"""A worker that is at work on nothing and was silent for so long is gone."""
WORKER_DEFAULTS: Final[dict[str, Any]] = {
    "worker_timeout_seconds": WORKER_TIMEOUT_SECONDS,
    "worker_retention_seconds": WORKER_RETENTION_SECONDS,
}
"""Settings of a served store that an embedded one has not."""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcServer:
    """Serves a store on the event loop that starts it. Starts and stops once.

    InvalidArgumentError if the tokens or the certificate cannot be read.
    """

    def __init__(self, store: LightningStore, config: ServerConfig, clock: Clock | None = None) -> None:
        self._store = store
        self._config = config
        self._admission = Admission(config, self._cut)
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._tls = tls_of(config, self._clock)
        self._access = access_of(config, self._clock)
        self._servicer = SessionServicer(store, config, self._admission, self._access, self._clock)
        self._ingest = TraceIngest(store, self._servicer.heavy)
        self._servicer.rejections = self._ingest.rejections
        self._health = HealthServicer(self._admission.watches)
        self._server: grpc.aio.Server | None = None
        self._http: HttpSide | None = None
        self._observers: list[CallObserver] = [log_call] if config.access_log else []
        self._cutting: set[asyncio.Future[bool]] = set()
        self._watching_data: asyncio.Task[None] | None = None
        self._tracing = tracing_of()
        if self._tracing is not None:
            self._observers.append(self._tracing.observe_call)
        self.bound_port: int | None = None
        """The port that is listened on; None until started, and with a Unix domain socket."""
        self.bound_http_port: int | None = None
        """The same for HTTP; None too if that is not offered."""

    async def start(self) -> None:
        """Listen and serve. OSError (EADDRINUSE) at once if a port is taken."""
        http = None if self._config.http_port is None else self._bind_http(self._config.http_port)
        try:
            if http is not None:
                await http.start()
            await self._start_grpc()
        except BaseException:
            if http is not None:
                await http.stop(0.0)
            raise
        self._http = http
        if http is not None:
            http.note_started()

    def _bind_http(self, port: int) -> HttpSide:
        try:
            from lightning_store_server.http.page.pages import Page
            from lightning_store_server.http.side import HttpSide
        except ImportError as error:
            package = (error.name or "").partition(".")[0]
            message = f"HTTP needs the package {package}: pip install {package}"
            raise ImportError(message, name=package) from error
        http = HttpSide(self._config, self._ingest, self._admission, self._access, self._tls)
        http.offer_rest(self._servicer)
        if self._config.metrics:
            self._measure(http)
        page = Page(self._store, self._config, self._access, self._clock, version("lightning-store-grpc"))
        http.add_routes(page.routes())
        if self._tracing is not None:
            http.observers.append(self._tracing.observe_http)
        self.bound_http_port = http.bind(_addresses(self._config.host), port)
        self._servicer.otlp_http_port = self.bound_http_port
        return http

    def _measure(self, http: HttpSide) -> None:
        """Measure calls, and tell it at /metrics."""
        from lightning_store_server.metrics import ServerMetrics

        metrics = ServerMetrics(
            self._store,
            self._admission,
            version=version("lightning-store-grpc"),
            rejected_spans=lambda: self._ingest.rejections.count,
            http_connections=lambda: http.listener.connections,
            sessions=lambda: self._servicer.session_count,
            certificate_expires=None if self._tls is None else self._certificate_expires,
        )
        self._observers.append(metrics.observe_call)
        http.observers.append(metrics.observe_http)
        http.add_routes(metrics.routes())

    def _certificate_expires(self) -> float:
        assert self._tls is not None
        return self._tls.expires

    async def _start_grpc(self) -> None:
        self._servicer.call_observers = self._observers
        server = grpc.aio.server(interceptors=self._interceptors(), options=self._config.channel_options())
        service_pb2_grpc.add_LightningStoreServiceServicer_to_server(self._servicer, server)
        add_trace_service(server, self._ingest)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        _add_reflection(server, self._admission.watches)
        if self._config.unix_path is None:
            self.bound_port = _bind(server, self._config, self._tls)
        else:
            _bind_unix(server, self._config.unix_path, self._tls)
        await server.start()
        await self._health.set(SERVICE, SERVING)
        self._server = server
        engine = engine_of(self._store)
        if engine is not None:
            self._watching_data = asyncio.create_task(self._watch_data(engine))

    async def _watch_data(self, engine: Engine) -> None:
        """Health says whether the data is within reach. A drain ends this."""
        available = True
        while True:
            await engine.wait_for_availability(not available)
            available = not available
            if self._http is not None:
                self._http.note_data(available)
            for service in (SERVICE, ""):
                await self._health.set(service, SERVING if available else NOT_SERVING)

    def _interceptors(self) -> list[Any]:
        """The outermost first: the log sees the status that the errors were mapped to."""
        observers: list[MethodInterceptor] = [ObserverInterceptor(self._observers)] if self._observers else []
        deadline = DeadlineInterceptor(self._config.wait_seconds_max)
        inner = [deadline, AdmissionInterceptor(self._admission, self._config.request_items_max), SessionInterceptor()]
        if self._access is None:
            return [*observers, ErrorInterceptor(), *inner]
        access = AccessInterceptor(self._access, (health.SERVICE_NAME,), self._observers)
        return [access, *observers, ErrorInterceptor(), LimitsInterceptor(), *inner]

    def _cut(self, peer: str) -> None:
        """Close a connection, in a thread: to look through thousands of them takes long."""
        cutting = asyncio.ensure_future(asyncio.to_thread(cut_connection, peer))
        self._cutting.add(cutting)
        cutting.add_done_callback(self._cutting.discard)

    async def stop(self, grace_seconds: float | None = None) -> bool:
        """Drain: health turns NOT_SERVING; then, after the configured delay, waits end as UNAVAILABLE, and the other
        calls get ``grace_seconds`` to finish (None: as configured). Whether all of them did."""
        server, self._server = self._server, None
        if server is None:
            return True
        grace = self._config.grace_seconds if grace_seconds is None else grace_seconds
        watching, self._watching_data = self._watching_data, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        await self._health.drain()
        if self._config.drain_delay_seconds:
            if self._http is not None:
                self._http.note_leaving()
            await self._clock.sleep(self._config.drain_delay_seconds)
        if self._http is not None:
            self._http.drain()
        self._servicer.drain()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        at_work = self._admission.at_work
        await server.stop(grace)
        finished = self._http is None or await self._http.stop(max(0.0, until - loop.time()))
        self._ingest.rejections.close()
        self._servicer.heavy.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        in_time = loop.time() < until if grace > 0 else not at_work
        return finished and in_time

    async def wait(self) -> None:
        """Return when the server has stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()


def tls_of(config: ServerConfig, clock: Clock | None = None) -> ServerTls | None:
    """What the server speaks TLS with, if it does. InvalidArgumentError if that cannot be read."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return ServerTls(config.tls_cert, config.tls_key, config.tls_client_ca, clock)


def access_of(config: ServerConfig, clock: Clock | None = None) -> Access | None:
    """Who may make calls; None for everybody. InvalidArgumentError if the tokens cannot be read."""
    return None if config.auth_tokens is None else Access(config.auth_tokens, clock)


def _bind(server: grpc.aio.Server, config: ServerConfig, tls: ServerTls | None) -> int:
    """Listen on every address of the host. OSError if one is taken: gRPC itself would be content with another."""
    port = config.port
    bound = False
    for family, host in _addresses(config.host):
        address = f"[{host}]" if family is socket.AF_INET6 else host
        try:
            port = _add_port(server, f"{address}:{port}", tls)
            bound = True
        except RuntimeError:
            cause = _why_not(family, host, port)
            if cause.errno == errno.EADDRNOTAVAIL and bound:
                continue  # localhost may name an address of a family that this machine does not have
            message = f"cannot listen on {address}:{port}: {cause.strerror}"
            raise OSError(cause.errno, message) from None
    return port


def _bind_unix(server: grpc.aio.Server, path: str, tls: ServerTls | None) -> None:
    """Listen on a Unix domain socket. OSError if another server does, or if it cannot be made: gRPC itself would remove
    a socket that is in use."""
    path = os.path.abspath(path)
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, f"cannot listen on {path}: it is there already, and no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == 0:
                raise OSError(errno.EADDRINUSE, f"cannot listen on {path}: another server does")
    try:
        _add_port(server, f"unix://{path}", tls)
    except RuntimeError:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(path)
            except OSError as error:
                raise OSError(error.errno, f"cannot listen on {path}: {error.strerror}") from None
            os.unlink(path)
        raise OSError(errno.EADDRINUSE, f"cannot listen on {path}") from None


def _add_port(server: grpc.aio.Server, address: str, tls: ServerTls | None) -> int:
    """RuntimeError if it cannot be listened on."""
    return server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls.for_grpc())


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        message = f"cannot listen on {host}: no such host or address ({error.strerror})"
        raise OSError(errno.EADDRNOTAVAIL, message) from None
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _why_not(family: socket.AddressFamily, host: str, port: int) -> OSError:
    """Why gRPC could not listen there, which it does not say."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return OSError(errno.EADDRINUSE, "the port is taken")


def _add_reflection(server: grpc.aio.Server, watches: Lane) -> None:
    try:
        from lightning_store_server.reflection import add_reflection
    except ImportError:
        logger.info("no server reflection: it needs the package grpcio-reflection")
        return
    add_reflection(server, [SERVICE, TRACE_SERVICE, health.SERVICE_NAME], watches)


def sqlite_store(path: str, **settings: Any) -> SqliteEngineStore:
    """The store in a SQLite database that ``serve`` hosts. ``settings`` are those of SqliteEngineStore."""
    return SqliteEngineStore(path, **(WORKER_DEFAULTS | settings))


@contextlib.asynccontextmanager
async def postgres_store(dsn: str, **settings: Any) -> AsyncIterator[LightningStore]:
    """The store in a PostgreSQL database that ``serve`` hosts. ``settings`` are those of PostgresEngineStore.open.

    ImportError if the package is missing that speaks to PostgreSQL.
    """
    with _needing_postgres():
        from lightning_store.postgres_store import PostgresEngineStore
    store = await PostgresEngineStore.open(dsn, **(WORKER_DEFAULTS | settings))
    try:
        yield store
    finally:
        await store.aclose()


async def migrate_postgres(dsn: str, namespace: str) -> tuple[int, int]:
    """Bring a namespace to the format of this version. The format before and after.

    ImportError if the package is missing that speaks to PostgreSQL.
    """
    with _needing_postgres():
        from lightning_store.postgres_store import migrate_namespace
    return await migrate_namespace(dsn, namespace)


async def check_postgres(dsn: str, namespace: str) -> list[Violation]:
    """What is wrong with a namespace.

    ImportError if the package is missing that speaks to PostgreSQL.
    """
    with _needing_postgres():
        from lightning_store.postgres_store import check_namespace
    return await check_namespace(dsn, namespace)


@contextlib.contextmanager
def _needing_postgres() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        message = f"a PostgreSQL database needs the package {package}: pip install 'lightning-store-grpc[postgres]'"
        raise ImportError(message, name=package) from error


def memory_store(**settings: Any) -> LightningStore:
    """The store that ``serve`` hosts unless told otherwise. ``settings`` are those of InMemoryLightningStore."""
    return InMemoryLightningStore(**(WORKER_DEFAULTS | settings))
