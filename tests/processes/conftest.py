"""Scripts that run in processes of their own, where warnings are errors and nothing can hang."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store_server import LightningStoreServer, ServerConfig

SECONDS_MAX = 30
"""After this long a script shows the stacks of its threads and ends; a little later all its processes are killed."""

HEADER = """
from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading

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
        codes = [child.exitcode for child in children]
        assert codes == [0] * count, f"children ended with {codes}"

    return end


def run_child(work, number):
    signal.alarm(SECONDS)
    asyncio.run(work(number))
"""


@dataclass(frozen=True)
class Ended:
    """A script that ended well."""

    output: str
    seconds: float


RunScript = Callable[..., Ended]


@pytest.fixture
def run_script(tmp_path: Path) -> RunScript:
    """``run_script(text, *arguments)``: run it; it must exit with 0 and say nothing on stderr.

    ``seconds`` is how long it may take. ``grpc_verbosity`` is what gRPC's own code is told to log, None what it likes.
    """

    def run(text: str, *arguments: str, seconds: int = SECONDS_MAX, grpc_verbosity: str | None = "NONE") -> Ended:
        script = tmp_path / "script.py"
        script.write_text(HEADER.replace("SECONDS", str(seconds)) + textwrap.dedent(text))
        # Python 3.12 warns of every fork of a process with threads; here it is what is tested.
        warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
        variables = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        if grpc_verbosity is not None:
            variables["GRPC_VERBOSITY"] = grpc_verbosity
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *warnings, str(script), *arguments],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        output, errors = _communicate(process, seconds + 5)
        assert (process.returncode, errors) == (0, "")
        return Ended(output, time.perf_counter() - begun)

    return run


def _communicate(process: subprocess.Popen[str], seconds: int) -> tuple[str, str]:
    """What the script printed. None of its processes outlives this, though it may have ended without them."""
    killer = threading.Timer(seconds, _kill_all, [process.pid])
    killer.start()
    try:
        return process.communicate()
    finally:
        killer.cancel()
        _kill_all(process.pid)


def _kill_all(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


@pytest.fixture
def server() -> Iterator[LightningStoreServer]:
    """A server in the process of the tests, whose store the tests can look at."""
    server = LightningStoreServer(InMemoryLightningStore(), port=0, config=ServerConfig(grace_seconds=0.0))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())
