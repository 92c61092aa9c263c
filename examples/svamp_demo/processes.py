"""The processes of a run: starting them, and ending them cleanly."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
import sysconfig
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightning_store_client import LightningStoreClient

PROJECT_ROOT: Final = Path(__file__).resolve().parents[2]
SQLITE: Final = "sqlite:"
DATABASE_NAME: Final = "store.db"
SERVER_COMMAND: Final = "lightning-store-grpc"
START_SECONDS: Final = 30.0
"""How long the server may take to get ready."""
STOP_SECONDS: Final = 10.0
"""How long a process may take to end before it is killed."""

_HOST: Final = "127.0.0.1"
_ENDPOINT: Final = re.compile(re.escape(_HOST) + r":[1-9]\d*")


class StartError(RuntimeError):
    """A process did not start. The message says why, as far as is known."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process of this run."""

    name: str
    process: Process
    log: Path | None
    """What it prints; None if it prints to the terminal."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False if the process has ended."""
        if not self.alive:
            return False
        try:
            self.process.send_signal(number)
        except ProcessLookupError:
            return False
        return True

    def log_end(self, lines: int = 5) -> str:
        """The last lines it printed."""
        if self.log is None:
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class Children:
    """The processes of one run. Leaving ``running()`` ends them all, those started last first."""

    def __init__(self, log_directory: Path) -> None:
        log_directory.mkdir(parents=True, exist_ok=True)
        self._log_directory = log_directory
        self._started: list[Child] = []

    @classmethod
    @asynccontextmanager
    async def running(cls, log_directory: Path) -> AsyncIterator[Children]:
        """Processes whose output goes to files in ``log_directory``."""
        children = cls(log_directory)
        try:
            yield children
        finally:
            await children._stop()

    async def start(self, name: str, command: Sequence[str], *, logged: bool = True) -> Child:
        """Start a process; with ``logged`` its output goes to ``<name>.log``, else to the terminal."""
        log = self._log_directory / f"{name}.log" if logged else None
        # A session of its own: Ctrl-C reaches the demo alone, which then ends the others in order.
        if log is None:
            process = await asyncio.create_subprocess_exec(*command, env=_environment(), start_new_session=True)
        else:
            with log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env=_environment(),
                    start_new_session=True,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                )
        child = Child(name, process, log)
        self._started.append(child)
        return child

    async def start_module(self, name: str, module: str, arguments: Sequence[str], *, logged: bool = True) -> Child:
        """Start a module of this package as a process."""
        return await self.start(
            name, [sys.executable, "-m", f"examples.svamp_demo.{module}", *arguments], logged=logged
        )

    async def start_server(
        self, database: str, endpoint: str = f"{_HOST}:0", *, name: str = "server", flags: Sequence[str] = ()
    ) -> tuple[Child, str]:
        """Start the store's server on a free port, or on the port of ``endpoint``, with further ``flags``; the process
        and its endpoint, ``host:port``."""
        host, _, port = endpoint.rpartition(":")
        command = [server_command(), "serve", "--host", host, "--port", port, "--database", database, *flags]
        try:
            server = await self.start(name, command)
        except OSError as error:
            raise StartError(f"cannot start {SERVER_COMMAND}: {error.strerror}; install the extra 'server'") from error
        try:
            async with asyncio.timeout(START_SECONDS):
                return server, await _wait_until_ready(server)
        except TimeoutError:
            message = f"the server is not ready after {START_SECONDS:g} seconds:\n{server.log_end()}"
            raise StartError(message) from None

    async def _stop(self) -> None:
        for child in reversed(self._started):
            child.signal(signal.SIGCONT)
            child.signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(child.process.wait(), STOP_SECONDS)
            child.signal(signal.SIGKILL)
            await child.process.wait()


async def _wait_until_ready(server: Child) -> str:
    """The endpoint, once the server has printed it."""
    while True:
        if not server.alive:
            raise StartError(f"the server ended with exit code {server.process.returncode}:\n{server.log_end()}")
        found = _ENDPOINT.search(server.log_end(lines=1000))
        if found is not None:
            return found.group()
        await asyncio.sleep(0.05)


def patient_client(endpoint: str) -> LightningStoreClient:
    """A client that gets over the time that a server takes to come back, on a busy machine too."""
    return LightningStoreClient(endpoint, timeout=120.0, retry_delays=(0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0))


def database_in(directory: Path) -> str:
    """Where the server of a run keeps its data unless told otherwise."""
    return f"{SQLITE}{directory / DATABASE_NAME}"


def new_database(directory: Path) -> str:
    """The same, without what a former run has left there."""
    for left in directory.glob(f"{DATABASE_NAME}*"):
        left.unlink()
    return database_in(directory)


def look_into(database: str, server: str | None) -> str:
    """The commands that look into what a run has left: in its database, or on a server that it was told to use."""
    command = server_command()
    if os.path.isabs(command):
        command = _shorter(command)
    at = "" if server is None else f" --server {server}"
    lines = [
        f"  {command} {what}{at}" for what in ("stats", "rollouts --sort-by end_time --desc --limit 10", "workers")
    ]
    if server is None:
        if not database.startswith(SQLITE):
            return f"the store was in memory and is gone; give --database {SQLITE}PATH to keep it"
        path = _shorter(database.removeprefix(SQLITE))
        serve = f"  {command} serve --database {shlex.quote(SQLITE + path)} &"
        lines = [serve, *lines, "  kill %1"]
    return "\n".join(["look into what it has left:", *lines])


def _shorter(path: str) -> str:
    return min(os.path.relpath(path), path, key=len)


def server_command() -> str:
    """The script that belongs to this interpreter, else whatever the PATH has."""
    beside = Path(sysconfig.get_path("scripts")) / SERVER_COMMAND
    return str(beside) if beside.exists() else SERVER_COMMAND


def _environment() -> dict[str, str]:
    """That of this process, with the project's root where modules are looked for."""
    paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
