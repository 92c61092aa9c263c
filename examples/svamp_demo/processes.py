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
from urllib.parse import urlsplit, urlunsplit

from lightning_store.arguments import is_postgres
from lightning_store_client import LightningStoreClient

PROJECT_ROOT: Final = Path(__file__).resolve().parents[2]
SQLITE: Final = "sqlite:"
DATABASE_NAME: Final = "store.db"
PAGE_PORT: Final = 4748
"""Where the page is while somebody looks into what a run has left."""
LOOKS: Final = ("stats", "rollouts --sort-by end_time --desc --limit 10", "workers", "resources --limit 5")
"""Commands that show what a run has left."""
SERVER_COMMAND: Final = "lightning-store-grpc"
START_SECONDS: Final = 30.0
"""How long the server may take to get ready."""
STOP_SECONDS: Final = 10.0
"""How long a process may take to end before it is killed."""

_HOST: Final = "127.0.0.1"
_READY: Final = re.compile(r"serving on (\S+:[1-9]\d*) \(.*HTTP on (\S+:[1-9]\d*),")


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


@dataclass(frozen=True, slots=True)
class Server:
    """A store's server of this run, which is ready."""

    child: Child
    endpoint: str
    """``host:port`` of gRPC."""
    http: str
    """``host:port`` of the page, the probes and the metrics."""

    @property
    def page(self) -> str:
        """The address for a browser."""
        return f"http://{self.http}/"


class Children:
    """The processes of one run. Leaving ``running()`` ends them all, those started last first, servers after those that
    would wait for them."""

    def __init__(self, log_directory: Path) -> None:
        log_directory.mkdir(parents=True, exist_ok=True)
        self._log_directory = log_directory
        self._started: list[Child] = []
        self._servers: list[Child] = []

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
        self,
        database: str,
        *,
        at: Server | None = None,
        http_port: int = 0,
        name: str = "server",
        flags: Sequence[str] = (),
    ) -> Server:
        """Start the store's server, and wait until it is ready.

        Args:
            database: Where it keeps the data, as ``serve --database`` takes it.
            at: A server that has ended, whose ports it is to take; without it they are free ones.
            http_port: The port of its HTTP side; 0 takes any free one.
            name: What its log is called.
            flags: Further flags of ``serve``.

        Raises:
            StartError: It did not start, or is not ready in time.
        """
        port, http = (0, http_port) if at is None else (_port_of(at.endpoint), _port_of(at.http))
        command = [server_command(), "serve", "--host", _HOST, "--port", str(port), "--http-port", str(http)]
        try:
            child = await self.start(name, [*command, "--database", database, *flags])
        except OSError as error:
            raise StartError(f"cannot start {SERVER_COMMAND}: {error.strerror}; install the extra 'server'") from error
        self._servers.append(child)
        try:
            async with asyncio.timeout(START_SECONDS):
                return await _until_ready(child)
        except TimeoutError:
            raise StartError(f"the server is not ready after {START_SECONDS:g} seconds:\n{child.log_end()}") from None

    async def _stop(self) -> None:
        others = [child for child in self._started if child not in self._servers]
        for child in reversed([*self._servers, *others]):
            child.signal(signal.SIGCONT)
            child.signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(child.process.wait(), STOP_SECONDS)
            child.signal(signal.SIGKILL)
            await child.process.wait()


async def _until_ready(child: Child) -> Server:
    """The server, once it has printed where it is."""
    while True:
        if not child.alive:
            raise StartError(f"the server ended with exit code {child.process.returncode}:\n{child.log_end()}")
        found = _READY.search(child.log_end(lines=1000))
        if found is not None:
            return Server(child, found[1], found[2])
        await asyncio.sleep(0.05)


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


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


def for_people(database: str) -> str:
    """Where the data is, as ``serve --database`` takes it, without a password."""
    if is_postgres(database):
        parts = urlsplit(database)
        who, at, where = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=who.partition(":")[0] + at + where))
    if database.startswith(SQLITE):
        return SQLITE + _shorter(database.removeprefix(SQLITE))
    return database


def look_into(database: str, server: str | None, looks: Sequence[str] = LOOKS) -> str:
    """The commands, and the address, that look into what a run has left.

    Args:
        database: Where it is.
        server: The server that the run was told to use, which goes on; None if those of the run have ended.
        looks: What to look at: subcommands with their flags.
    """
    command = server_command()
    if os.path.isabs(command):
        command = _shorter(command)
    if server is not None:
        lines = [f"  {command} {look} --server {server}" for look in looks]
        return "\n".join([f"the store is that of {server}; look into it:", *lines])
    if not (database.startswith(SQLITE) or is_postgres(database)):
        return f"the store was in memory and is gone; give --database {SQLITE}PATH to keep it"
    kept = for_people(database)
    serve = f"  {command} serve --database {shlex.quote(kept)} --http-port {PAGE_PORT} &"
    if kept != database and is_postgres(database):
        serve += "  # the password in PGPASSWORD or PGPASSFILE"
    return "\n".join(
        [
            f"the store is kept in {kept}; look into it:",
            serve,
            *(f"  {command} {look}" for look in looks),
            "  kill %1",
            f"and, as long as it is served, at http://{_HOST}:{PAGE_PORT}/",
        ]
    )


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
