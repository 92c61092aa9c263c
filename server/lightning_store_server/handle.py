"""LightningStoreServer: a store that also listens. The only module of the server that knows the client."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

from lightning_store.errors import CallCancelledError
from lightning_store.forwarding import ForwardingStore
from lightning_store.loop_thread import LoopThread
from lightning_store.store import LightningStore, LightningStoreCapabilities
from lightning_store.threaded import LightningStoreThreaded
from lightning_store_client import LightningStoreClient
from lightning_store_server.app import GrpcServer
from lightning_store_server.config import DEFAULT_HOST, DEFAULT_PORT, ServerConfig

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Addresses that mean "every one of this machine", and one of them to connect to."""


class LightningStoreServer(ForwardingStore):
    """Serves ``store`` over gRPC, and is a store itself.

    In the process that made it, its methods call ``store`` directly. Forked or pickled into another process, it is a
    client of itself: the same methods go over the wire to the process that serves. Where that asks for a token or
    speaks TLS, the client takes its own from the environment.

    The server has an event loop and a thread of its own, so it goes on serving whatever the caller's loop does. A store
    that is not thread safe is called from one more thread only (``LightningStoreThreaded``).
    """

    def __init__(
        self,
        store: LightningStore,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        *,
        config: ServerConfig | None = None,
    ) -> None:
        """``config`` holds every other setting; its host and port do not count. Port 0 takes any free one."""
        base = config if config is not None else ServerConfig()
        self._config = dataclasses.replace(base, host=host, port=port)
        self._store: LightningStore | None = (
            store if store.capabilities["thread_safe"] else LightningStoreThreaded(store)
        )
        self._capabilities = store.capabilities
        self._strict = store.strict
        self._replay_window_seconds = store.replay_window_seconds
        self._owner_pid = os.getpid()
        self._bound_port: int | None = None
        self._bound_http_port: int | None = None
        self._client: LightningStoreClient | None = None
        self._starting = False
        self._stopping: concurrent.futures.Future[bool] | None = None
        self._serving: tuple[GrpcServer, LoopThread] | None = None

    # --- Where it listens --------------------------------------------------------------------------------------------

    @property
    def bound_port(self) -> int:
        """The port that is listened on. RuntimeError before ``start`` if the port was given as 0."""
        port = self._bound_port or self._config.port
        if port == 0:
            raise RuntimeError("the server has no port yet: start it first, or give it a port other than 0")
        return port

    @property
    def endpoint(self) -> str:
        """``host:port``, or ``unix:///path``, for clients on this machine."""
        if self._config.unix_path is not None:
            return f"unix://{os.path.abspath(self._config.unix_path)}"
        return self._address(self.bound_port)

    def _address(self, port: int) -> str:
        host = WILDCARDS.get(self._config.host, self._config.host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    # --- Start and stop ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve in the background. OSError if the port is taken; RuntimeError if started, or in another process."""
        if self._store is None or os.getpid() != self._owner_pid:
            raise RuntimeError("only the process that made the server can start it")
        if self._serving is not None:
            raise RuntimeError(f"the server is started already, on {self.endpoint}")
        if self._starting:
            raise RuntimeError("the server is being started already")
        server, thread = GrpcServer(self._store, self._config), LoopThread("lightning-store-server")
        self._starting = True
        try:
            await thread.run(server.start())
        except BaseException:
            thread.stop()
            raise
        finally:
            self._starting = False
        self._bound_port = server.bound_port
        self._bound_http_port = server.bound_http_port
        self._serving = (server, thread)

    async def run_forever(self) -> None:
        """Serve until ``stop`` is called or this task is cancelled."""
        if self._serving is None:
            await self.start()
        assert self._serving is not None
        server, thread = self._serving
        try:
            await thread.run(server.wait())
        except CallCancelledError:
            pass  # stopped, and the thread with it
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop serving: calls that are under way get the configured grace to finish. Harmless when not started.

        Cancelling it leaves the stop under way; another call waits for its end.
        """
        if self._serving is None or os.getpid() != self._owner_pid:
            return
        server, thread = self._serving
        if self._stopping is None:
            self._stopping = thread.submit(server.stop())
        try:
            await asyncio.shield(asyncio.wrap_future(self._stopping))
        except asyncio.CancelledError:
            self._stopping.add_done_callback(lambda _: thread.stop())
            raise
        thread.stop()
        self._serving = self._stopping = None

    async def __aenter__(self) -> LightningStoreServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- Being a store -----------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        otlp_traces = self._capabilities["otlp_traces"] or self._config.http_port is not None
        own: LightningStoreCapabilities = {**self._capabilities, "otlp_traces": otlp_traces}
        return {**own, "thread_safe": True, "async_safe": True, "zero_copy": True}

    @property
    def strict(self) -> bool:
        return self._strict

    @property
    def replay_window_seconds(self) -> float:
        return self._replay_window_seconds

    def otlp_traces_endpoint(self) -> str:
        """URL for exporters on this machine. RuntimeError before ``start`` if the port was given as 0."""
        if self._config.http_port is None:
            return self._target().otlp_traces_endpoint()
        port = self._bound_http_port or self._config.http_port
        if port == 0:
            raise RuntimeError("the server has no port for OTLP yet: start it first, or give a port other than 0")
        scheme = "http" if self._config.tls_cert is None else "https"
        return f"{scheme}://{self._address(port)}/v1/traces"

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await getattr(self._target(), method)(*args, **kwargs)

    def _forward_stream(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = getattr(self._target(), method)(*args, **kwargs)
        return stream

    def _target(self) -> LightningStore:
        if self._store is not None and os.getpid() == self._owner_pid:
            return self._store
        if self._client is None:
            self._client = LightningStoreClient(self.endpoint, tls=None if self._config.tls_cert else False)
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs in order to be a client: no store, no thread."""
        here_only = {"_store": None, "_client": None, "_serving": None, "_stopping": None}
        bound_port = self._bound_port if self._config.unix_path is not None else self.bound_port
        return {**vars(self), **here_only, "_bound_port": bound_port}
