"""AgentLightningClient of 0.2.2 against a store of ours."""

from __future__ import annotations

import asyncio
import json

import pytest
from agentlightning.client import AgentLightningClient
from agentlightning.types import LLM, RolloutLegacy, Triplet
from opentelemetry.sdk.trace import TracerProvider

from lightning_store import RolloutConfig
from lightning_store.agent_lightning import LEGACY_REPORT
from lightning_store.model import LLM as OurLLM

RETRIED = RolloutConfig(timeout_seconds=300, max_attempts=100, retry_condition=["timeout"])


def client_of(address):
    with pytest.warns(DeprecationWarning, match="AgentLightningClient"):
        return AgentLightningClient(address, poll_interval=0.05)


def reported(task, **fields):
    recorded = TracerProvider().get_tracer("t").start_span("llm", attributes={"x": 1})
    recorded.end()
    return RolloutLegacy(
        rollout_id=task.rollout_id,
        task=task,
        final_reward=0.5,
        triplets=[Triplet(prompt=[1], response="r", reward=0.5)],
        trace=[json.loads(recorded.to_json())],
        **fields,
    )


def test_every_method(address, store):
    client = client_of(address)
    assert client.get_latest_resources() is None
    added = asyncio.run(store.add_resources({"llm": OurLLM(endpoint="e", model="m")}))
    assert client.get_latest_resources().resources == {"llm": LLM(endpoint="e", model="m")}
    assert client.get_resources_by_id(added.resources_id).resources_id == added.resources_id
    assert client.get_resources_by_id("no") is None
    asyncio.run(store.enqueue_rollout({"q": 1}, mode="train", config=RETRIED, metadata={"k": 1}))
    task = client.poll_next_task()
    assert (task.input, task.mode, task.num_claims, task.metadata) == ({"q": 1}, "train", 1, {"k": 1})
    assert client.post_rollout(reported(task, logs=["l"]))["status"] == "ok"
    [rollout] = asyncio.run(store.query_rollouts())
    assert rollout.status == "succeeded"
    assert rollout.attempt.metadata[LEGACY_REPORT]["triplets"][0]["response"] == "r"
    [span] = asyncio.run(store.query_spans(rollout.rollout_id))
    assert (span.name, span.attributes) == ("llm", {"x": 1})
    assert client.post_rollout(RolloutLegacy(rollout_id="no")) is None


@pytest.mark.asyncio
async def test_every_asynchronous_method(address, store):
    client = client_of(address)
    assert await client.get_latest_resources_async() is None
    added = await store.add_resources({"llm": OurLLM(endpoint="e", model="m")})
    assert (await client.get_latest_resources_async()).resources_id == added.resources_id
    client._resource_cache.clear()
    assert (await client.get_resources_by_id_async(added.resources_id)).resources_id == added.resources_id
    waiting = asyncio.create_task(client.poll_next_task_async())
    await store.enqueue_rollout("late")
    task = await waiting
    assert (await client.post_rollout_async(reported(task)))["message"] == (
        f"Rollout {task.rollout_id} received and stored."
    )
    assert (await store.get_rollout_by_id(task.rollout_id)).status == "succeeded"
