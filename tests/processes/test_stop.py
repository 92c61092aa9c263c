"""``lightning-store-grpc serve`` that is told to stop in the middle of calls."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from lightning_store import EnqueueRolloutRequest, StoreUnavailableError
from lightning_store.v1.query_pb2 import StreamQueryRequest
from lightning_store.v1.rollout_pb2 import ListRolloutsRequest
from lightning_store.v1.service_pb2_grpc import LightningStoreServiceStub
from lightning_store_client import LightningStoreClient
from tests.processes.programs import SECONDS_MAX, Ended, ServingProgram

pytestmark = pytest.mark.slow

Serve = Callable[..., ServingProgram]

ROWS, ROW_CHARACTERS = 20, 200_000
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
"""A connection holds no more than this of what its reader has not asked for yet: less than one row."""


@contextlib.asynccontextmanager
async def a_long_call(endpoint: str) -> AsyncIterator[Any]:
    """The replies of a call that is under way until they are read. It leaves the queue empty."""
    async with LightningStoreClient(endpoint) as client:
        await client.enqueue_many_rollouts([EnqueueRolloutRequest(input="x" * ROW_CHARACTERS)] * ROWS)
        await client.dequeue_many_rollouts(limit=ROWS)
    with grpc.insecure_channel(endpoint, options=SMALL_WINDOW) as channel:
        request = StreamQueryRequest(rollouts=ListRolloutsRequest())
        replies: Any = LightningStoreServiceStub(channel).StreamQuery(request, timeout=SECONDS_MAX)
        assert len(next(replies).rollouts) == 1
        yield replies


def messages(ended: Ended) -> list[str]:
    """What a server logged, without what differs from run to run."""
    return [line.partition("lightning_store_server: ")[2].partition(";")[0] for line in ended.errors.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.chaos)])
def test_calls_under_way_finish_and_waits_end(serve: Serve, number: signal.Signals) -> None:
    """A client that tries again goes on at the next server; one that does not is told."""
    server = serve("--page-rows-max", "1", "--grace", "60")
    impatient = LightningStoreClient(server.endpoint, retry_delays=())
    patient = LightningStoreClient(server.endpoint, timeout=60.0, retry_delays=(0.1,) * 500, health_retry_delays=())

    async def scenario(replies: Any) -> None:
        pending = await patient.start_rollout("never done")
        wait = asyncio.create_task(impatient.wait_for_rollouts(rollout_ids=[pending.rollout_id]))
        work = asyncio.create_task(patient.dequeue_rollout(worker_id="runner", max_wait=1000.0))
        await asyncio.sleep(0)  # they are on their way: the answers to the next calls come after they were taken
        await asyncio.gather(impatient.statistics(), patient.statistics())

        server.signal(number)
        with pytest.raises(StoreUnavailableError, match="the server is shutting down"):
            await wait
        with pytest.raises(StoreUnavailableError):
            await impatient.statistics()
        assert sum(len(reply.rollouts) for reply in replies) == ROWS - 1
        ended = await asyncio.to_thread(server.end)
        assert (ended.code, messages(ended)) == (0, [f"{number.name}: draining", "stopped"])

        await asyncio.to_thread(serve, after=server)
        task = await patient.enqueue_rollout("task")
        claimed = await work
        assert claimed is not None
        assert (claimed.rollout_id, claimed.attempt.worker_id) == (task.rollout_id, "runner")

    async def run() -> None:
        async with impatient, patient, a_long_call(server.endpoint) as replies:
            await scenario(replies)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("grace", "signals", "says"),
    [
        ("0.1", [signal.SIGTERM], "calls did not finish within 0.1 s and were cut"),
        ("0", [signal.SIGTERM], "calls did not finish within 0 s and were cut"),
        ("1000", [signal.SIGTERM, signal.SIGINT], "SIGINT: ending at once"),
    ],
)
def test_a_call_that_is_cut(serve: Serve, grace: str, signals: list[signal.Signals], says: str) -> None:
    """Its caller learns of it, and so does whoever started the server."""
    server = serve("--page-rows-max", "1", "--grace", grace)

    async def scenario() -> None:
        async with LightningStoreClient(server.endpoint) as client, a_long_call(server.endpoint) as replies:
            for number in signals:
                server.signal(number)
                while await client.healthy():
                    pass
            ended = await asyncio.to_thread(server.end)
            assert (ended.code, messages(ended)) == (75, ["SIGTERM: draining", says])
            with pytest.raises(grpc.RpcError) as caught:
                list(replies)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())
