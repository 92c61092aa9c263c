"""A server process that is stopped for a while: nobody is judged for what it could not hear."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from lightning_store.clock import PAUSE_SECONDS
from lightning_store_client import LightningStoreClient
from tests.processes.programs import ServingProgram

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]

TIMEOUT_SECONDS = 1.5
PAUSED_SECONDS = 2 * TIMEOUT_SECONDS + 0.5
assert PAUSED_SECONDS > PAUSE_SECONDS


async def test_a_server_that_was_stopped_gives_up_no_worker(serve: Callable[..., ServingProgram]) -> None:
    """A worker sends its heartbeats all the while; the server reads those when it goes on, not before it judges."""
    server = serve("--port", "0", "--worker-timeout", str(TIMEOUT_SECONDS))
    async with LightningStoreClient(server.endpoint) as client, client.worker("w", interval=0.2):
        started = await client.start_rollout("task", worker_id="w")
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSED_SECONDS)  # real time: it is the server's
        server.signal(signal.SIGCONT)
        attempt = await client.get_latest_attempt(started.rollout_id)
        assert attempt is not None
        assert attempt.status == "preparing"
        await asyncio.sleep(TIMEOUT_SECONDS + 0.5)
        attempt = await client.get_latest_attempt(started.rollout_id)
        assert attempt is not None
        assert attempt.status == "preparing"
        worker = await client.get_worker_by_id("w")
        assert worker is not None
        assert worker.status == "busy"
