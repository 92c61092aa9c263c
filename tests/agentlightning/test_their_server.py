"""Agent Lightning's own HTTP server in front of our stores, spoken to by its own client."""

from __future__ import annotations

import asyncio

import agentlightning as agl
import pytest
from agentlightning.store.client_server import LightningStoreClient, LightningStoreServer

from lightning_store_agentlightning import GrpcLightningStore, InProcessLightningStore
from tests.agentlightning.forks import in_fork
from tests.agentlightning.programs import RESOURCES
from tests.processes.programs import free_port


@pytest.fixture(params=["in-process", "grpc"])
def run(request):
    """``run(program)``: the result of ``await program(client, store)``, in a process of its own, since it serves."""
    where = request.getfixturevalue("endpoint") if request.param == "grpc" else None
    port = free_port()

    async def main(program):
        store = InProcessLightningStore() if where is None else GrpcLightningStore(where)
        server = LightningStoreServer(store, host="127.0.0.1", port=port)
        await server.start()
        client = LightningStoreClient(server.endpoint)
        try:
            return await program(client, store)
        finally:
            await client.close()
            await server.stop()

    return lambda program: in_fork(lambda: asyncio.run(main(program)))


def test_a_rollout(run):
    async def program(client, store):
        await client.add_resources(RESOURCES)
        queued = await client.enqueue_rollout({"a": 1}, mode="train", metadata={"k": [1, None]})
        claimed = await client.dequeue_rollout("w")
        assert (claimed.rollout_id, claimed.input, claimed.metadata) == (queued.rollout_id, {"a": 1}, {"k": [1, None]})
        assert (await client.get_resources_by_id(claimed.resources_id)).resources == RESOURCES
        ids = (claimed.rollout_id, claimed.attempt.attempt_id)
        [number] = await client.get_many_span_sequence_ids([ids])
        span = agl.Span.from_attributes(
            attributes={"x": [1, 2], "y": 0.5},
            rollout_id=ids[0],
            attempt_id=ids[1],
            sequence_id=number,
            start_time=1_700_000_000.123456,
        )
        assert await client.add_span(span) == span
        assert await client.add_span(span) is None
        assert list(await client.query_spans(ids[0], "latest")) == [span]
        await client.update_attempt(*ids, status="succeeded")
        [done] = await client.wait_for_rollouts(rollout_ids=[ids[0]], timeout=0.05)
        page = await client.query_rollouts(status_in=["succeeded"])
        worker = await client.get_worker_by_id("w")
        assert (await client.statistics())["total_spans"] == 1
        direct = await store.get_rollout_by_id(ids[0])
        assert page.items == [direct]
        return done.status, page.total, worker.status

    assert run(program) == ("succeeded", 1, "idle")


def test_many_requests_at_once(run):
    """Their server holds a thread lock across the await for stores that do not say that they need none."""

    async def program(client, store):
        await asyncio.gather(*(client.enqueue_rollout(number) for number in range(16)))
        claimed = await asyncio.gather(*(client.dequeue_rollout(f"w-{number}") for number in range(16)))
        waits = [asyncio.create_task(store.wait_for_rollouts(rollout_ids=[one.rollout_id])) for one in claimed]
        async with asyncio.timeout(10):
            await asyncio.gather(
                *(client.update_attempt(one.rollout_id, "latest", status="succeeded") for one in claimed)
            )
            return len({rollout.rollout_id for [rollout] in await asyncio.gather(*waits)})

    assert run(program) == 16
