"""``serve`` as supervisors run it: a process with variables, signals, logs and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lightning_store import StoreUnavailableError
from lightning_store_client import LightningStoreClient

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "lightning_store_server")
SECONDS_MAX = 60

Start = Callable[..., "Server"]


class Server:
    """A ``serve`` process that printed its ready line."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *arguments],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        watchdog = threading.Timer(SECONDS_MAX, self.process.kill)
        watchdog.start()
        self.ready_line = self.process.stdout.readline()
        watchdog.cancel()
        found = re.fullmatch(r"lightning-store-grpc serving on (127\.0\.0\.1:(\d+)) \(.*\)\n", self.ready_line)
        if found is None:
            self.process.kill()
            pytest.fail(f"printed {self.ready_line!r}, and {self.process.communicate()[1]}")
        self.endpoint, self.port = found[1], found[2]

    def stop(self, signal_number: int) -> tuple[int, str, list[str]]:
        """The exit code, what else it printed, and its log."""
        self.process.send_signal(signal_number)
        output, errors = self.process.communicate(timeout=SECONDS_MAX)
        return self.process.returncode, output, errors.splitlines()


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Server] = []

    def start(*arguments: str, **variables: str) -> Server:
        started.append(Server(*arguments, **variables))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


async def stop_while_waiting(server: Server) -> tuple[int, str, list[str]]:
    """Stop the server while a client waits for a rollout; the wait must end as unavailable."""
    async with LightningStoreClient(server.endpoint, retry_delays=(), health_retry_delays=()) as client:
        rollout = await client.enqueue_rollout("never done")
        wait = asyncio.create_task(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await asyncio.sleep(0)  # its request is on its way: the answer to the next one comes after it was taken
        await client.statistics()
        stopped = await asyncio.to_thread(server.stop, signal.SIGTERM)
        with pytest.raises(StoreUnavailableError):
            await wait
        return stopped


def test_variables_access_log_and_drain(start: Start) -> None:
    variables = {"PORT": "0", "ACCESS_LOG": "1", "LOG_FORMAT": "json", "STRICT": "true", "GRACE": "30"}
    server = start(**{f"LIGHTNING_STORE_{name}": value for name, value in variables.items()})
    assert "strict" in server.ready_line
    code, output, log = asyncio.run(stop_while_waiting(server))
    assert (code, output) == (0, "")
    records = [json.loads(line) for line in log]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    calls = {record["call"]["method"].rpartition("/")[2]: record["call"] for record in records if "call" in record}
    assert calls["EnqueueRollouts"]["code"] == "OK"
    assert calls["WaitForRollouts"]["code"] == "UNAVAILABLE"
    assert any(record["message"].startswith("SIGTERM: draining") for record in records)


def test_otlp_over_http(start: Start) -> None:
    server = start("--port", "0", "--otlp-http-port", "0")
    found = re.search(r"HTTP on (127\.0\.0\.1:(\d+)), ", server.ready_line)
    assert found is not None
    request = urllib.request.Request(
        f"http://{found[1]}/v1/traces", b"", {"Content-Type": "application/x-protobuf"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=SECONDS_MAX) as reply:
        assert reply.status == 200
    second = subprocess.run(
        [*COMMAND, "serve", "--port", "0", "--otlp-http-port", found[2]],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (second.returncode, second.stdout) == (69, "")
    assert f"cannot listen on {found[1]} for HTTP" in second.stderr
    code, output, log = server.stop(signal.SIGTERM)
    assert (code, output) == (0, "")
    assert [line.partition(": ")[2].partition(";")[0] for line in log] == ["SIGTERM: draining", "stopped"]


async def one_call(endpoint: str) -> None:
    async with LightningStoreClient(endpoint) as client:
        await client.enqueue_rollout("a task")


@contextmanager
def hangups(handler: signal.Handlers) -> Iterator[None]:
    """What becomes of SIGHUP, in what is started inside."""
    former = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_terminal_that_closes_drains(start: Start) -> None:
    with hangups(signal.SIG_DFL):
        server = start("--port", "0")
    code, _, log = server.stop(signal.SIGHUP)
    assert code == 0
    assert [line.partition(": ")[2].partition(";")[0] for line in log] == ["SIGHUP: draining", "stopped"]


def test_nohup_is_heeded(start: Start) -> None:
    with hangups(signal.SIG_IGN):
        server = start("--port", "0")
    server.process.send_signal(signal.SIGHUP)
    asyncio.run(one_call(server.endpoint))
    assert server.stop(signal.SIGTERM)[0] == 0


def test_quiet_log_taken_port_and_ctrl_c(start: Start) -> None:
    server = start("--port", "0")
    asyncio.run(one_call(server.endpoint))
    second = subprocess.run(
        [*COMMAND, "serve", "--port", server.port], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    assert (second.returncode, second.stdout) == (69, "")
    assert f"cannot listen on {server.endpoint}" in second.stderr
    assert "Traceback" not in second.stderr
    code, output, log = server.stop(signal.SIGINT)
    assert (code, output) == (0, "")
    assert [line.partition(": ")[2].partition(";")[0] for line in log] == ["SIGINT: draining", "stopped"]
