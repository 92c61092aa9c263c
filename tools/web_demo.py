"""Servers with data of the demos, for tests of the page in a browser and for its pictures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECONDS_MAX: Final = 120
POLL_SECONDS: Final = 0.1
READY: Final = re.compile(r"serving on (\S+) \(.*HTTP on (\S+),")


@dataclass(frozen=True)
class Served:
    """A server, as clients and as browsers find it."""

    endpoint: str
    url: str


@contextmanager
def serving(database: str, log: Path, flags: Sequence[str] = ()) -> Iterator[Served]:
    """A server on free ports."""
    command = ["serve", "--port", "0", "--http-port", "0", "--database", database, *flags]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_store_server", *command], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        found = READY.search(process.stdout.readline())
        if found is None:
            raise RuntimeError(f"the server did not start: {log.read_text()}")
        yield Served(found[1], f"http://{found[2]}")
    finally:
        _end(process)


@contextmanager
def training(server: Served, folder: Path, steps: int = 10_000) -> Iterator[None]:
    """The trainer and the runners of the GRPO demo, at work on a server until this is left."""
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(_module("grpo.runner", folder, "--server", server.endpoint, "--name", f"runner-{name}"))
        flags = ("--server", server.endpoint, "--output", str(folder), "--steps", str(steps))
        stack.enter_context(_module("grpo.trainer", folder, *flags))
        yield


@contextmanager
def _module(name: str, folder: Path, *arguments: str) -> Iterator[None]:
    with (folder / f"{name}{arguments[-1].replace('/', '-')}.log").open("w") as log:
        command = [sys.executable, "-m", f"examples.{name}", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.kill()  # a demo is to be killed at any moment
        process.wait()


def svamp(server: Served, folder: Path) -> None:
    """Run the SVAMP demo on a server, in short."""
    flags = ("--quick", "--runners", "2", "--server", server.endpoint, "--output", str(folder))
    with (folder / "svamp.log").open("w") as log:
        command = [sys.executable, "-m", "examples.svamp_demo", *flags]
        subprocess.run(command, check=True, stdout=log, stderr=log, timeout=5 * SECONDS_MAX)


def wait_for(url: str, text: str) -> None:
    """Wait until a page has this text, as a regular expression."""
    until = time.monotonic() + SECONDS_MAX
    while time.monotonic() < until:
        with urllib.request.urlopen(url, timeout=SECONDS_MAX) as reply:
            if re.search(text, reply.read().decode()):
                return
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"{url} never had {text}")


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
