"""LightningStoreClient of 0.2.2, all its public methods."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager

import agentlightning as agl
import aiohttp
import pytest
from agentlightning.store.base import LightningStore
from agentlightning.store.client_server import LightningStoreClient
from opentelemetry.sdk.trace import TracerProvider

RESOURCES = {
    "llm": agl.LLM(endpoint="http://localhost", model="m"),
    "prompt": agl.PromptTemplate(template="{x}", engine="f-string"),
}


@asynccontextmanager
async def client_of(address):
    client = LightningStoreClient(address, retry_delays=(), health_retry_delays=())
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("prefix", ["", "/agl/v1"])
@pytest.mark.asyncio
async def test_every_method(address, prefix):
    called = set()

    class Noting:
        def __init__(self, client):
            self._client = client

        def __getattr__(self, name):
            called.add(name)
            return getattr(self._client, name)

    async with client_of(address + prefix) as inner:
        client = Noting(inner)
        assert await client.get_latest_resources() is None
        added = await client.add_resources(RESOURCES)
        assert added.resources == RESOURCES
        updated = await client.update_resources(added.resources_id, {"llm": RESOURCES["llm"]})
        assert await client.get_resources_by_id(added.resources_id) == updated == await client.get_latest_resources()
        queued = await client.enqueue_rollout({"a": 1}, mode="val", metadata={"k": 1})
        claimed = await client.dequeue_rollout()
        assert (claimed.rollout_id, claimed.input, claimed.resources_id) == (
            queued.rollout_id,
            {"a": 1},
            added.resources_id,
        )
        assert await client.dequeue_rollout() is None
        started = await client.start_rollout("now", config=agl.RolloutConfig(max_attempts=3))
        assert started.config.max_attempts == 3
        ids = (claimed.rollout_id, claimed.attempt.attempt_id)
        assert await client.get_next_span_sequence_id(*ids) == 1
        recorded = TracerProvider().get_tracer("t").start_span("otel")
        recorded.end()
        span = await client.add_otel_span(*ids, recorded)
        assert (await client.add_span(span)).span_id == span.span_id
        assert [one.span_id for one in await client.query_spans(ids[0], "latest")] == [span.span_id]
        assert await client.query_spans("no") == []
        assert (await client.get_latest_attempt(ids[0])).status == "running"
        await client.update_attempt(*ids, status="failed", metadata={"why": "x"})
        assert (await client.start_attempt(ids[0])).attempt.sequence_id == 2
        await client.update_attempt(ids[0], "latest", status="succeeded", worker_id="w", last_heartbeat_time=1.0)
        assert len(await client.query_attempts(ids[0])) == 2
        [done] = await client.wait_for_rollouts(rollout_ids=[ids[0]], timeout=0.05)
        assert done.status == "succeeded"
        assert [one.rollout_id for one in await client.query_rollouts(status=["succeeded"])] == [ids[0]]
        assert len(await client.query_rollouts()) == 2
        changed = await client.update_rollout(ids[0], input=2, mode=None, metadata={"m": 1})
        assert (changed.input, changed.mode, changed.metadata) == (2, None, {"m": 1})
        assert (await client.get_rollout_by_id(ids[0])).input == 2
        assert await client.get_rollout_by_id("no") is None
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await client.update_rollout("no", status="failed")
        assert caught.value.status == 400
    public = {name for name, _ in inspect.getmembers(LightningStore, inspect.isfunction) if not name.startswith("_")}
    assert public - called == set()
