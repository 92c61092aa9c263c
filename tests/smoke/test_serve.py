"""The server as users run it, a process started by its command, and a client that goes through one rollout."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("click", reason="needs the server extra")

from lightning_store import Span
from lightning_store_client import LightningStoreClient

pytestmark = pytest.mark.slow

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
COMMAND = str(Path(sys.executable).with_name("lightning-store-grpc"))


class Server:
    """A running ``serve`` process, and the endpoint that it printed."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0"], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.endpoint = self._wait_until_ready()

    def _wait_until_ready(self) -> str:
        """Read the one line that says so; a watchdog kills a server that never prints it."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(START_SECONDS_MAX, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        found = re.search(r"\b([\w.-]+:\d+)\b", line)
        if found is None:
            self.process.kill()
            _, errors = self.process.communicate()
            pytest.fail(f"the server printed {line!r} and not its endpoint: {errors}")
        return found.group(1)

    def stop(self, signal_number: int) -> tuple[int, str, str]:
        """Exit code and what else it printed."""
        self.process.send_signal(signal_number)
        output, errors = self.process.communicate(timeout=STOP_SECONDS_MAX)
        return self.process.returncode, output, errors


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.communicate()


async def one_rollout(endpoint: str) -> None:
    """An algorithm and a runner in one: enqueue, claim, trace, finish, and read it all back."""
    async with LightningStoreClient(endpoint) as client:
        rollout = await client.enqueue_rollout({"question": "6 * 7"}, mode="train")
        claimed = await client.dequeue_rollout(worker_id="runner-1")
        assert claimed is not None
        assert (claimed.rollout_id, claimed.status) == (rollout.rollout_id, "preparing")
        span = Span(
            rollout_id=claimed.rollout_id,
            attempt_id=claimed.attempt.attempt_id,
            sequence_id=await client.get_next_span_sequence_id(claimed.rollout_id, claimed.attempt.attempt_id),
            trace_id="0af7651916cd43dd8448eb211c80319c",
            span_id="b7ad6b7169203331",
            name="answer",
            attributes={"reward": 1.0},
        )
        assert await client.add_span(span) == span
        await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        [done] = await client.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=30)
        assert (done.status, done.input) == ("succeeded", {"question": "6 * 7"})
        assert list(await client.query_spans(rollout.rollout_id)) == [span]
        assert (await client.query_rollouts(status_in=["succeeded"])).total == 1
        assert await client.dequeue_rollout() is None


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_serve_takes_a_rollout_through_and_stops_cleanly(server: Server, signal_name: str) -> None:
    asyncio.run(one_rollout(server.endpoint))
    code, _, errors = server.stop(signal.Signals[signal_name])
    assert code == 0, errors
    assert "Traceback" not in errors


def test_health_command_is_a_probe(server: Server) -> None:
    probe = [COMMAND, "health", "--server", server.endpoint]
    assert subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 0
    server.stop(signal.SIGTERM)
    assert subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 1
