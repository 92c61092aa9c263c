"""LegacyServer: the algorithm's side of the legacy protocol, with Agent Lightning's own client on the other."""

from __future__ import annotations

import asyncio

import agentlightning as agl
import pytest
from agentlightning.client import AgentLightningClient
from agentlightning.types import RolloutLegacy, Triplet

from lightning_store import InMemoryLightningStore
from lightning_store.testing import FakeClock
from lightning_store_agentlightning import LegacyServer
from lightning_store_client import LightningStoreClient


def report(rollout_id, **fields):
    return RolloutLegacy(
        rollout_id=rollout_id,
        triplets=[Triplet(prompt="p", response="r", reward=1.0)],
        trace=[{"name": "a", "attributes": {"x": 1}}, {"name": "b"}],
        **fields,
    )


@pytest.mark.slow
@pytest.mark.asyncio
async def test_tasks_and_what_is_reported_of_them(served):
    with pytest.warns(DeprecationWarning, match="AgentLightningClient"):
        client = AgentLightningClient(served.otlp_traces_endpoint.removesuffix("/v1/traces"), poll_interval=0.05)
    async with LightningStoreClient(served.endpoint) as store:
        server = LegacyServer(store)
        resources_id = await server.update_resources({"llm": agl.LLM(endpoint="e", model="m")})
        assert (await client.get_latest_resources_async()).resources_id == resources_id
        ids = [await server.queue_task({"n": n}, mode="train", metadata={"k": n}) for n in range(3)]
        tasks = [await client.poll_next_task_async() for _ in ids]
        assert [(one.rollout_id, one.input, one.resources_id) for one in tasks] == [
            (id, {"n": n}, resources_id) for n, id in enumerate(ids)
        ]
        assert await server.get_completed_rollout(ids[0]) is None
        assert await server.poll_completed_rollout(ids[0], timeout=0.01) is None
        waiting = asyncio.create_task(server.poll_completed_rollout(ids[0]))
        reports = [report(id, final_reward=0.5, metadata={"m": id}) for id in ids]
        for one in reports:
            await client.post_rollout_async(one)
        assert await waiting == reports[0]
        assert await server.get_completed_rollout(ids[0]) is None
        assert await server.retrieve_completed_rollouts() == reports[1:]
        assert await server.retrieve_completed_rollouts() == []


@pytest.mark.asyncio
async def test_a_task_is_handed_out_again_when_its_time_is_over():
    clock = FakeClock()
    store = InMemoryLightningStore(clock=clock)
    server = LegacyServer(store, task_timeout_seconds=60)
    task = await server.queue_task("sample")
    for number in range(1, 4):
        claimed = await store.dequeue_rollout()
        assert (claimed.rollout_id, claimed.attempt.sequence_id) == (task, number)
        assert await store.dequeue_rollout() is None
        clock.advance(61)
    assert await server.retrieve_completed_rollouts() == []


@pytest.mark.asyncio
async def test_a_task_that_was_ended_through_another_interface():
    store = InMemoryLightningStore()
    server = LegacyServer(store)
    task = await server.queue_task("sample")
    await store.update_rollout(task, status="cancelled")
    assert await server.get_completed_rollout(task) == RolloutLegacy(rollout_id=task)
    with pytest.raises(ValueError, match="task_timeout_seconds is 0; give more than 0"):
        LegacyServer(store, 0)
