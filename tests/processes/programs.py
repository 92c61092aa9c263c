"""Processes that tests start, talk to, signal and wait for; nothing here can hang. And servers in the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_store import LightningStore
from lightning_store_server import LightningStoreServer, ServerConfig

SECONDS_MAX = 30
"""After this long a script shows the stacks of its threads and ends; a little later all its processes are killed."""
SERVE_SECONDS_MAX = 120
"""After this long a server process is killed."""
SECONDS_PROMPT = 15.0
"""What is done at once takes no longer than this on a busy machine; what hangs takes longer, a long poll for one."""

HEADER = """
from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time

faulthandler.register(signal.SIGALRM, chain=True)
signal.alarm(SECONDS)

from lightning_store import InMemoryLightningStore
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer, ServerConfig


def in_children(count, work):
    \"\"\"Run the async function ``work(number)`` in forked children at once; return when they have ended well.\"\"\"
    begin_children(count, work)()


def begin_children(count, work, start_method="fork"):
    context = multiprocessing.get_context(start_method)
    children = [context.Process(target=run_child, args=(work, number)) for number in range(count)]
    for child in children:
        child.start()

    def end():
        for child in children:
            child.join()
            while child.exitcode is None:  # the start of a process in another thread is taking note of it
                time.sleep(0.001)
        codes = [child.exitcode for child in children]
        assert codes == [0] * count, f"children ended with {codes}"

    return end


def run_child(work, number):
    signal.alarm(SECONDS)
    asyncio.run(work(number))
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    code: int
    """The exit code; negative if a signal ended it."""
    output: str
    """What it printed that was not read before."""
    errors: str
    seconds: float
    """Since it was started."""

    @property
    def complaints(self) -> str:
        """The errors, less the client's warning that a server cannot be reached."""
        lines = self.errors.splitlines(keepends=True)
        return "".join(line for line in lines if not line.endswith("; it is made again\n"))


class Program:
    """A process that leads a session of its own, and tells what it does in lines."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], errors: Path, seconds: float) -> None:
        """It, and all processes that it starts, are killed after ``seconds``. What it says on stderr goes to a file,
        which unlike a pipe is never full."""
        self._errors = errors
        self._begun = time.perf_counter()
        with errors.open("w") as stderr:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self._killer = threading.Timer(seconds, self.kill)
        self._killer.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> str:
        """The next line that it prints, without its end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it said no more, and ended: {self.end()}"
        return line.removesuffix("\n")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> Ended:
        """Wait until it has ended. None of its processes outlives this, though it may have ended without them."""
        assert self._process.stdout is not None
        output = self._process.stdout.read()
        code = self._process.wait()
        seconds = time.perf_counter() - self._begun
        self.kill()
        self._killer.cancel()
        self._process.stdout.close()
        return Ended(code, output, self._errors.read_text(), seconds)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def discard(self) -> None:
        """Kill it, unless ``end`` was called."""
        assert self._process.stdout is not None
        if not self._process.stdout.closed:
            self.kill()
            self.end()


class ServingProgram(Program):
    """``lightning-store-grpc serve`` that takes calls."""

    def __init__(self, arguments: Sequence[str], errors: Path) -> None:
        command = [sys.executable, "-m", "lightning_store_server", "serve", *arguments]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTNING_STORE_")}
        super().__init__(command, variables, errors, SERVE_SECONDS_MAX)
        self.endpoint = self.line().removeprefix("lightning-store-grpc serving on ").partition(" ")[0]
        self.port = self.endpoint.rpartition(":")[2]

    def die(self) -> None:
        """Be killed in the middle of whatever it does; its port is free then."""
        self.signal(signal.SIGKILL)
        assert self.end().code == -signal.SIGKILL


def free_port() -> int:
    """A port outside the range from which systems hand them out, so that nobody takes it while its server is away."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def serving(store: LightningStore, **config: Any) -> Iterator[LightningStoreServer]:
    """A server in the process of the tests, whose store the tests can look at."""
    server = LightningStoreServer(store, port=0, config=ServerConfig(grace_seconds=0.0, **config))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())
