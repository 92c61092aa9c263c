"""The HTTP side as a whole: its application, its listener, and where the server stands."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from starlette.routing import BaseRoute

from lightning_store_server.access import Access
from lightning_store_server.admission import Admission
from lightning_store_server.config import ServerConfig
from lightning_store_server.http.app import Lifecycle, Stage, make_app, probe_routes, trace_routes
from lightning_store_server.http.bodies import BodyReader
from lightning_store_server.http.limits import HttpLimits
from lightning_store_server.http.listener import HttpListener
from lightning_store_server.http.rest.calls import Service
from lightning_store_server.http.rest.openapi import openapi_route
from lightning_store_server.http.rest.operations import Surroundings, deliveries, routes_of
from lightning_store_server.http.rest.tables import OPERATIONS
from lightning_store_server.observers import HttpObserver, log_http
from lightning_store_server.otlp.endpoint import TracesEndpoint
from lightning_store_server.otlp.ingest import TraceIngest
from lightning_store_server.servicer import StoreServicer
from lightning_store_server.tls import ServerTls


class HttpSide:
    """Serves HTTP beside gRPC, on the same event loop.

    Args:
        config: Settings of the server.
        ingest: Stores spans.
        admission: Has places for calls.
        access: Knows who may make requests; None for everybody.
        tls: The certificate to show; None to speak no TLS.
        limits: What peers may take of the server; as configured for None.
    """

    def __init__(
        self,
        config: ServerConfig,
        ingest: TraceIngest,
        admission: Admission,
        access: Access | None = None,
        tls: ServerTls | None = None,
        limits: HttpLimits | None = None,
    ) -> None:
        limits = limits if limits is not None else HttpLimits(held_bytes=config.queued_bytes_max)
        self._config = config
        self._admission = admission
        self.lifecycle = Lifecycle()
        self.bodies = BodyReader(config.max_message_bytes, limits)
        self.observers: list[HttpObserver] = [log_http] if config.access_log else []
        """Told of each request."""
        self._app = make_app(
            [*probe_routes(self.lifecycle), *trace_routes(TracesEndpoint(ingest, admission, self.bodies))],
            self.lifecycle,
            cors_origins=config.http_cors_origins,
            access=access,
            hosts=None if access is not None or not config.is_local else config.http_allowed_hosts,
            observers=self.observers,
        )
        self.listener = HttpListener(self._app, self.lifecycle, limits, None if tls is None else tls.for_http())

    def add_routes(self, routes: Sequence[BaseRoute]) -> None:
        """Serve something more. Before ``start``."""
        self._app.router.routes.extend(routes)

    def offer_rest(self, servicer: StoreServicer) -> None:
        """Serve the REST interfaces, as calls of this service. Before ``start``."""
        config = self._config
        service = Service(servicer, self._admission, config.request_items_max, config.wait_seconds_max)
        around = Surroundings(service, self.bodies, deliveries(), config.http_cors_origins)
        self.add_routes([openapi_route(), *routes_of(OPERATIONS, around)])

    def bind(self, addresses: Iterable[tuple[socket.AddressFamily, str]], port: int) -> int:
        """Listen; the port, which is any free one for 0. OSError if it is taken."""
        return self.listener.bind(addresses, port)

    async def start(self) -> None:
        """Answer. Until ``note_started``, probes are told that the server is starting."""
        await self.listener.start()

    def note_started(self) -> None:
        """The whole server takes calls."""
        self.lifecycle.stage = Stage.SERVING

    def note_data(self, available: bool) -> None:
        """Be ready only while the data is within reach."""
        self.lifecycle.has_data = available

    def note_leaving(self) -> None:
        """Be ready no longer, and answer as before."""
        self.lifecycle.stage = Stage.LEAVING

    def drain(self) -> None:
        """Be ready no longer. Probes are still told so; other requests are refused."""
        self.lifecycle.stage = Stage.DRAINING
        self.listener.drain()

    async def stop(self, grace_seconds: float) -> bool:
        """End; requests under way get ``grace_seconds`` to finish. Whether all of them did."""
        self.lifecycle.stage = Stage.DRAINING
        return await self.listener.stop(grace_seconds)
