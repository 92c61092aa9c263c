"""Which store a run uses, and how the processes of the run share it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

import agentlightning as agl
from agentlightning.execution.client_server import ClientServerExecutionStrategy

from examples.svamp_demo.processes import Children, new_database
from lightning_store_agentlightning import GrpcExecutionStrategy, GrpcLightningStore, InProcessLightningStore

StoreKind = Literal["grpc", "in-process", "agentlightning"]
OnPage = Callable[[str], None]
"""Is told the address of a server's page."""

_HOST: Final = "127.0.0.1"
_DEQUEUE_WAIT_SECONDS: Final = 1.0


class Setup(NamedTuple):
    """What a Trainer has to be given."""

    store: agl.LightningStore
    strategy: agl.ExecutionStrategy


def opened(
    kind: StoreKind, runners: int, output: Path, server: str | None = None, on_page: OnPage | None = None
) -> contextlib.AbstractContextManager[Setup]:
    """An empty store of the kind, for an algorithm in this process and ``runners`` runner processes.

    * ``"grpc"``: a :class:`GrpcLightningStore`. Its server is ``server``, ``"host:port"``, whatever that holds already;
      or one is started as a process that logs into the directory ``output``, and ``on_page`` is told where its page is.
      StartError if that fails.
    * ``"in-process"``: an :class:`InProcessLightningStore`, served to the runners by this process.
    * ``"agentlightning"``: Agent Lightning's own store, served to the runners by its own strategy over HTTP.
    """
    match kind:
        case "grpc":
            return _grpc(runners, output, server, on_page)
        case "in-process":
            return _in_process(runners)
        case "agentlightning":
            return _agent_lightnings_own(runners)


@contextlib.contextmanager
def _grpc(runners: int, output: Path, server: str | None, on_page: OnPage | None) -> Iterator[Setup]:
    with contextlib.nullcontext(server) if server is not None else _serving(output, on_page) as endpoint:
        store = GrpcLightningStore(endpoint, dequeue_wait=_DEQUEUE_WAIT_SECONDS)
        try:
            yield Setup(store, GrpcExecutionStrategy("both", n_runners=runners))
        finally:
            asyncio.run(store.close())


@contextlib.contextmanager
def _in_process(runners: int) -> Iterator[Setup]:
    strategy = GrpcExecutionStrategy("both", _HOST, _free_port(), runners, dequeue_wait=_DEQUEUE_WAIT_SECONDS)
    yield Setup(InProcessLightningStore(), strategy)


@contextlib.contextmanager
def _agent_lightnings_own(runners: int) -> Iterator[Setup]:
    port = _free_port()
    strategy = ClientServerExecutionStrategy("both", _HOST, port, runners, managed_store=True)
    # Its runners send spans by OTLP, and the exporter of OpenTelemetry 1.45 and later does not look at the address that
    # Agent Lightning sets.
    with _variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://{_HOST}:{port}/v1/traces"):
        yield Setup(agl.InMemoryLightningStore(thread_safe=True), strategy)


@contextlib.contextmanager
def _serving(output: Path, on_page: OnPage | None) -> Iterator[str]:
    """A server in a process of its own; its endpoint."""
    with asyncio.Runner() as loop:
        processes = contextlib.AsyncExitStack()
        try:
            children = loop.run(processes.enter_async_context(Children.running(output)))
            started = loop.run(children.start_server(new_database(output)))
            if on_page is not None:
                on_page(started.page)
            yield started.endpoint
        finally:
            loop.run(processes.aclose())


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment, which child processes inherit."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as listening:
        return int(listening.getsockname()[1])
