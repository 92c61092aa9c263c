"""The processes of a run: servers and clients; starting them, talking to them, ending them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.sides import HOST, Side

START_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 5.0
REPLY_BYTES_MAX: Final = 64 * 1024 * 1024
HEALTH_PERIOD_SECONDS: Final = 0.005

_READY_LINE: Final = re.compile(re.escape(HOST) + r":([1-9]\d*)")


class CellError(RuntimeError):
    """A cell cannot be measured. The message says why."""


class Server:
    """A server process that takes calls at ``endpoint``."""

    def __init__(self, process: Process, endpoint: str, ready_seconds: float, log: Path, database: Path) -> None:
        self._process = process
        self.endpoint = endpoint
        self.ready_seconds = ready_seconds
        """From the process's start until it took calls."""
        self.pid = process.pid
        self._log = log
        self.database = database

    @property
    def last_words(self) -> str | None:
        """Why it ended, or None if it is alive."""
        if self._process.returncode is None:
            return None
        return f"the server ended with exit code {self._process.returncode}: {_log_end(self._log)}"

    async def stop(self) -> None:
        """End it; kill it if it does not. Its files are deleted."""
        await end(self._process)
        for file in self.database.parent.glob(f"{self.database.name}*"):
            file.unlink()


async def start_server(side: Side, log: Path, database: Path, profile: Path | None = None) -> Server:
    """Start the side's server on a free port and wait until it takes calls. CellError if it does not.

    What it leaves in ``database`` and beside it goes when it is stopped.
    """
    given = 0 if side.says_when_ready else _free_port()
    began = time.perf_counter()
    process = await _start_python(side, side.server_module(given, database), log, profile, stdout=side.says_when_ready)
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            port = await (_read_port(process) if side.says_when_ready else _poll_health(process, side, given))
    except TimeoutError:
        await end(process)
        raise CellError(f"the server of {side.title} is not ready after {START_SECONDS_MAX:g} s") from None
    except BaseException:
        await end(process)
        raise
    if port is None:
        raise CellError(f"the server of {side.title} does not start: {_log_end(log)}")
    return Server(process, f"{HOST}:{port}", time.perf_counter() - began, log, database)


async def _read_port(process: Process) -> int | None:
    """The port that the server says it serves on; None if it ends before that."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if found := _READY_LINE.search(line.decode()):
            return int(found[1])
    await process.wait()
    return None


async def _poll_health(process: Process, side: Side, port: int) -> int | None:
    """The port, once the server answers that it is healthy; None if it ends before that."""
    while process.returncode is None:
        if await asyncio.to_thread(_answers, port, side.health_path):
            return port
        await asyncio.sleep(HEALTH_PERIOD_SECONDS)
    return None


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Worker:
    """A client process; see ``benchmarks.worker`` for what it can be asked."""

    def __init__(self, process: Process, side: Side, log: Path) -> None:
        self._process = process
        self._side = side
        self._log = log
        self._owes_reply = False

    @property
    def alive(self) -> bool:
        """Whether it can be asked anything."""
        return self._process.returncode is None and not self._owes_reply

    async def ask(self, task: str, *, seconds_max: float = 120.0, **arguments: Any) -> Any:
        """Have it do a task. CellError tells what went wrong, also if it takes longer than ``seconds_max``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"task": task, "seconds_max": seconds_max, "arguments": arguments}
        self._owes_reply = True
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
            # The worker keeps the limit itself, unless a call blocks its event loop.
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds_max + STOP_SECONDS_MAX)
        except (TimeoutError, ConnectionError) as error:
            await end(self._process, at_once=True)
            raise CellError(f"the client of {self._side.title} hangs in {task!r}: {_log_end(self._log)}") from error
        if not line:
            await self._process.wait()
            raise CellError(f"the client of {self._side.title} ended in {task!r}: {_log_end(self._log)}")
        self._owes_reply = False
        reply = json.loads(line)
        if "failure" in reply:
            raise CellError(f"{task}: {reply['failure']}")
        return reply["result"]

    async def stop(self) -> None:
        """End it; at once if it is at work."""
        if self.alive and self._process.stdin is not None:
            self._process.stdin.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS_MAX)
        await end(self._process)


async def start_worker(side: Side, log: Path, profile: Path | None = None) -> Worker:
    """Start a client process of this side."""
    module = ["benchmarks.worker", "--family", side.family]
    return Worker(await _start_python(side, module, log, profile, stdin=True, stdout=True), side, log)


async def _start_python(
    side: Side, module: Sequence[str], log: Path, profile: Path | None, *, stdin: bool = False, stdout: bool
) -> Process:
    """``python -m module…`` with the packages of this side; stderr, and stdout if it is not read, go to the log."""
    profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches the harness alone, which then ends the others in order.
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *profiler,
            "-m",
            *module,
            env=environment(side),
            start_new_session=True,
            stdin=PIPE if stdin else DEVNULL,
            stdout=PIPE if stdout else output,
            stderr=output,
            limit=REPLY_BYTES_MAX,
        )


NO_BYTECODE: Final = "PYTHONDONTWRITEBYTECODE"
"""Processes do without it: what is installed has been compiled, so imports are measured without compiling."""


def environment(side: Side) -> dict[str, str]:
    """The variables of a process of this side."""
    paths = [*map(str, side.paths), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {name: value for name, value in os.environ.items() if name != NO_BYTECODE}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        # Without it importing Agent Lightning asks the network for a price list, and waits for it.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **side.variables,
    }


async def end(process: Process, *, at_once: bool = False) -> None:
    """SIGTERM, then SIGKILL."""
    for number in [signal.SIGKILL] if at_once else [signal.SIGTERM, signal.SIGKILL]:
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)


def _log_end(log: Path, lines: int = 5) -> str:
    """The last lines that a process printed, or where they would be."""
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) or f"see {log}"
