"""Scripts that run in processes of their own, where warnings are errors and nothing can hang."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store_server import LightningStoreServer
from tests.processes.programs import HEADER, SECONDS_MAX, Ended, Program, ServingProgram, free_port, serving

StartScript = Callable[..., Program]
RunScript = Callable[..., Ended]
Serve = Callable[..., ServingProgram]


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[StartScript]:
    """``start_script(text, *arguments)``: run it, to be ended by the test.

    ``seconds`` is how long it may take. ``grpc_verbosity`` is what gRPC's core is told to log; its default if None.
    """
    started: list[Program] = []

    def start(text: str, *arguments: str, seconds: int = SECONDS_MAX, grpc_verbosity: str | None = None) -> Program:
        script = tmp_path / f"script-{len(started)}.py"
        script.write_text(HEADER.replace("SECONDS", str(seconds)) + textwrap.dedent(text))
        # Python 3.12 warns of every fork of a process with threads; here it is what is tested.
        warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
        variables = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        if grpc_verbosity is not None:
            variables["GRPC_VERBOSITY"] = grpc_verbosity
        command = [sys.executable, *warnings, str(script), *arguments]
        started.append(Program(command, variables, script.with_suffix(".errors"), seconds + 5))
        return started[-1]

    yield start
    for program in started:
        program.discard()


@pytest.fixture
def run_script(start_script: StartScript) -> RunScript:
    """``run_script(text, *arguments)``: run it to its end; it must exit with 0 and say nothing on stderr.

    Takes the same settings as ``start_script``.
    """

    def run(text: str, *arguments: str, **settings: Any) -> Ended:
        ended = start_script(text, *arguments, **settings).end()
        assert (ended.code, ended.errors) == (0, "")
        return ended

    return run


@pytest.fixture
def server() -> Iterator[LightningStoreServer]:
    """A server in the process of the tests, whose store the tests can look at."""
    with serving(InMemoryLightningStore()) as server:
        yield server


# --- Servers that are processes --------------------------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve(*arguments)``: a server process that takes calls; ``serve(…, after=dead)`` takes the port of another."""
    started: list[ServingProgram] = []

    def start(*arguments: str, after: ServingProgram | None = None) -> ServingProgram:
        port = str(free_port()) if after is None else after.port
        errors = tmp_path / f"serve-{len(started)}.errors"
        started.append(ServingProgram(["--port", port, *arguments], errors))
        return started[-1]

    yield start
    for program in started:
        program.discard()
