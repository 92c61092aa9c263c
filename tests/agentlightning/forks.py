"""Work in forked processes, so that each test has fresh globals (tracers can be set once a process) at no cost.

The process of the tests never serves: it may be forked at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

from lightning_store import InMemoryLightningStore
from lightning_store_server import LightningStoreServer, ServerConfig

T = TypeVar("T")

SECONDS_MAX = 60.0

_FORK = multiprocessing.get_context("fork")


def in_fork(work: Callable[[], T], *, meanwhile: Callable[[int, Connection], object] | None = None) -> T:
    """The result of ``work()``, done in a forked process; AssertionError with its traceback if it fails.

    ``meanwhile`` gets its process id and a connection to it, see :func:`tell`. No process that it starts outlives it.
    """
    here, there = _FORK.Pipe()
    process = _FORK.Process(target=_child, args=(there, work))
    process.start()
    there.close()
    try:
        if meanwhile is not None:
            meanwhile(process.pid, here)
        assert here.poll(SECONDS_MAX), f"no result within {SECONDS_MAX} s"
        try:
            result, failure = here.recv()
        except EOFError:
            process.join()
            raise AssertionError(f"the process ended with {process.exitcode}") from None
        assert failure is None, failure
        return result
    finally:
        process.kill()  # it may have no session of its own yet
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        here.close()


_to_parent: list[Connection] = []


def tell(what: object) -> None:
    """In the forked process, and in those that it forks: say something to ``meanwhile``."""
    _to_parent[-1].send(what)


def _child(connection: Connection, work: Callable[[], object]) -> None:
    os.setsid()
    _to_parent.append(connection)
    try:
        connection.send((work(), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))


class Served(NamedTuple):
    """Where a server listens."""

    endpoint: str
    otlp_traces_endpoint: str


@contextlib.contextmanager
def serving() -> Iterator[Served]:
    """A server with an empty store, in a process of its own."""
    here, there = _FORK.Pipe()
    process = _FORK.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(SECONDS_MAX), "the server did not start"
        yield here.recv()
    finally:
        process.kill()
        process.join()
        here.close()


def _serve(connection: Connection) -> None:
    async def serve() -> None:
        config = ServerConfig(http_port=0)
        async with LightningStoreServer(InMemoryLightningStore(), port=0, config=config) as server:
            connection.send(Served(server.endpoint, server.otlp_traces_endpoint()))
            await asyncio.Event().wait()

    asyncio.run(serve())
