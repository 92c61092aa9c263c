"""The application: its routes, and what surrounds each request. A further surface is a further list of routes."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Final, NoReturn

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_store_server.access import Access, caller_now
from lightning_store_server.http.answers import JSON, PROTOBUF, HttpError, busy, error_encoding, failure, shown_path
from lightning_store_server.http.guard import PUBLIC, Guard
from lightning_store_server.http.rest.errors import failed
from lightning_store_server.http.rest.tables import version_at
from lightning_store_server.observers import HttpDetails, HttpObserver
from lightning_store_server.otlp.endpoint import TRACES_PATH, TracesEndpoint

CORS_HEADERS: Final = ("Authorization", "Content-Encoding", "Content-Type")
CORS_SECONDS: Final = 600
"""How long a browser may keep the answer to a preflight request."""


WHILE_DRAINING: Final = PUBLIC | {"/metrics"}
"""Paths that are served to the end."""


class Stage(StrEnum):
    """How far the server is."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"
    """Not ready any more, and answering as before."""
    DRAINING = "draining"


class Lifecycle:
    """The stage of one server, whether its data is within reach, and whether its requests are being cut."""

    def __init__(self) -> None:
        self.stage = Stage.STARTING
        self.has_data = True
        self.cut = False

    @property
    def is_ready(self) -> bool:
        return self.stage is Stage.SERVING and self.has_data

    @property
    def status(self) -> str:
        """What probes are told."""
        return self.stage if self.has_data or self.stage is not Stage.SERVING else "unavailable"


def make_app(
    routes: Sequence[BaseRoute],
    lifecycle: Lifecycle,
    *,
    cors_origins: Sequence[str] = (),
    access: Access | None = None,
    hosts: Sequence[str] | None = None,
    observers: Sequence[HttpObserver] = (),
) -> Starlette:
    """The application of one server.

    Args:
        routes: What it serves.
        lifecycle: Where the server stands.
        cors_origins: Origins whose pages may call it from a browser.
        access: Knows who may make requests; None for everybody.
        hosts: Names by which it may be called beside addresses and ``localhost``; None for any.
        observers: Told of each request that was answered.
    """
    guard = Guard(access, hosts)
    middleware = [Middleware(_Surroundings, lifecycle=lifecycle, guard=guard, observers=observers)]
    if cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=list(CORS_HEADERS),
            expose_headers=["Retry-After"],
            max_age=CORS_SECONDS,
        )
        middleware.insert(0, cors)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _refuse})
    app.router.redirect_slashes = False
    return app


def trace_routes(endpoint: TracesEndpoint) -> list[BaseRoute]:
    """OTLP over HTTP."""
    return [Route(TRACES_PATH, endpoint.export, methods=["POST"])]


def probe_routes(lifecycle: Lifecycle) -> list[BaseRoute]:
    """What a supervisor asks: whether the process lives, has started, and wants calls."""

    def answer(ok: Callable[[], bool]) -> Callable[[Request], Awaitable[Response]]:
        async def probe(_: Request) -> Response:
            status = HTTPStatus.OK if ok() else HTTPStatus.SERVICE_UNAVAILABLE
            return JSONResponse({"status": lifecycle.status}, status, {"Cache-Control": "no-store"})

        return probe

    return [
        Route("/healthz", answer(lambda: True)),
        Route("/startupz", answer(lambda: lifecycle.stage is not Stage.STARTING)),
        Route("/readyz", answer(lambda: lifecycle.is_ready)),
    ]


def _refuse(request: Request, error: Exception) -> NoReturn:
    """Of a path or a method that there is none of."""
    assert isinstance(error, HTTPException)
    status, path = HTTPStatus(error.status_code), shown_path(request.url.path)
    if status is HTTPStatus.NOT_FOUND:
        raise HttpError(status, f"there is no {path}; spans are taken by POST at {TRACES_PATH}")
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(one.strip() for one in (error.headers or {}).get("Allow", "").split(",")))
        message = f"{path} takes {allowed}, not {shown_path(request.method)}"
        raise HttpError(status, message, Allow=allowed)
    raise HttpError(status, error.detail)


def _route_of(scope: Scope) -> str:
    """The path of the route that answered, which has no ids in it; empty if there is none."""
    return str(getattr(scope["endpoint"], "route_path", scope["path"])) if "endpoint" in scope else ""


class _Surroundings:
    """Errors as answers, headers that every answer has, and observers of each request."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, guard: Guard, observers: Sequence[HttpObserver]) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._guard = guard
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(scope, message)
            await send(message)

        try:
            await self._respond(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._lifecycle.cut:
                raise
        except Exception as error:
            if status:
                raise
            await self._fail(error, scope, receive, send_with_headers)
        finally:
            if status:
                self._observe(scope, status, time.perf_counter() - started)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["http_version"] not in ("1.0", "1.1"):
            message = "send HTTP/1.1; gRPC is taken on the server's other port"
            raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, message, Connection="close")
        lengths = {name for name, _ in scope["headers"]} & {b"content-length", b"transfer-encoding"}
        if len(lengths) == 2:  # RFC 9112, section 6.1: a proxy may have taken another part of this for the next request
            message = "the request has both Content-Length and Transfer-Encoding; send one of them"
            raise HttpError(HTTPStatus.BAD_REQUEST, message, Connection="close")
        if self._lifecycle.stage is Stage.DRAINING and scope["path"] not in WHILE_DRAINING:
            raise busy("the server is shutting down")
        self._guard.check(scope)
        await self._app(scope, receive, send)

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        version = version_at(path)
        if version is None:
            encoding = error_encoding(headers, PROTOBUF if path == TRACES_PATH else JSON)
            response = failure(error, scope["method"], path, encoding)
        else:
            response = failed(error, scope["method"], path, of_0_3=version == "0.3")
        if "expect" in headers:
            response.headers["Connection"] = "close"  # nobody knows whether the body comes
        await response(scope, receive, send)

    def _add_headers(self, scope: Scope, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers["Date"] = email.utils.formatdate(usegmt=True)
        if self._lifecycle.stage is Stage.DRAINING:
            headers["Connection"] = "close"

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        if not self._observers:
            return
        host, port = scope["client"] or ("", 0)
        details = HttpDetails(
            method=shown_path(scope["method"]),
            path=shown_path(scope["path"]),
            route=_route_of(scope),
            status=status,
            seconds=seconds,
            peer=f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}",
            headers=Headers(scope=scope).items(),
            caller=caller.name if (caller := caller_now()) is not None else "",
        )
        for observe in self._observers:
            observe(details)
