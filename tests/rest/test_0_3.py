"""LightningStoreClient of 0.3, all its public methods; its exporter, its Trainer, and its dashboard's requests."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import urllib.request
from contextlib import asynccontextmanager

import agentlightning as agl
import aiohttp
import pytest
from agentlightning.execution.client_server import ClientServerExecutionStrategy
from agentlightning.store.base import LightningStore
from openapi_spec_validator import OpenAPIV31SpecValidator
from opentelemetry.sdk.trace import TracerProvider

from lightning_store_server.http.rest.openapi import description

LLM = agl.LLM(endpoint="http://localhost", model="m", sampling_parameters={"temperature": 0.5})
RESOURCES = {
    "llm": LLM,
    "proxy": agl.ProxyLLM(endpoint="http://localhost/v1", model="m"),
    "prompt": agl.PromptTemplate(template="{x}", engine="f-string"),
}


@asynccontextmanager
async def client_of(address, **options):
    client = agl.LightningStoreClient(address, **{"retry_delays": (), **options})
    try:
        yield client
    finally:
        await client.close()


def span_of(rollout, number, **fields):
    made = agl.Span.from_attributes(
        attributes={"x": [1, 2], "y": 0.5},
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        sequence_id=number,
        start_time=1_700_000_000.123456,
    )
    return made.model_copy(update=fields)


@pytest.mark.asyncio
async def test_every_method(address):
    """A method that their interface has and that is missing here fails the test: see the end."""
    called = set()

    class Noting:
        """Their client, and which of its methods were called."""

        def __init__(self, client):
            self._client = client

        def __getattr__(self, name):
            called.add(name)
            return getattr(self._client, name)

    async with client_of(address) as inner:
        client = Noting(inner)
        assert await client.get_latest_resources() is None
        added = await client.add_resources(RESOURCES)
        assert added.resources == RESOURCES
        updated = await client.update_resources(added.resources_id, {"llm": RESOURCES["llm"]})
        assert (updated.version, updated.create_time) == (2, added.create_time)
        assert await client.get_resources_by_id(added.resources_id) == updated == await client.get_latest_resources()
        assert await client.get_resources_by_id("no") is None
        assert (await client.query_resources(resources_id_contains="rs-", sort_by="version", limit=3)).items == [
            updated
        ]

        first = await client.enqueue_rollout(
            {"a": [1, None]},
            mode="train",
            config=agl.RolloutConfig(max_attempts=2, retry_condition=["failed"]),
            metadata={"k": 1},
        )
        assert (first.input, first.mode, first.resources_id) == ({"a": [1, None]}, "train", added.resources_id)
        assert (first.config.max_attempts, first.config.retry_condition) == (2, ["failed"])
        many = await client.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(3)])
        assert [one.input for one in many] == [0, 1, 2]
        claimed = await client.dequeue_rollout("w")
        assert (claimed.rollout_id, claimed.status, claimed.attempt.worker_id) == (first.rollout_id, "preparing", "w")
        assert [one.input for one in await client.dequeue_many_rollouts(limit=2, worker_id="v")] == [0, 1]
        started = await client.start_rollout("now", worker_id="u")
        assert type(started) is agl.AttemptedRollout

        ids = (claimed.rollout_id, claimed.attempt.attempt_id)
        assert await client.get_next_span_sequence_id(*ids) == 1
        assert await client.get_many_span_sequence_ids([ids, ids]) == [2, 3]
        span = span_of(claimed, 3)
        assert await client.add_span(span) == span
        assert await client.add_span(span) is None
        others = [span_of(claimed, 4, span_id="a" * 16, name="other"), span]
        assert await client.add_many_spans(others) == others[:1]
        recorded = TracerProvider().get_tracer("t").start_span("otel")
        recorded.end()
        otel = await client.add_otel_span(*ids, recorded)
        assert (otel.sequence_id, otel.name) == (5, "otel")
        assert [one.sequence_id for one in await client.query_spans(*ids)] == [3, 4, 5]
        found = await client.query_spans(ids[0], "latest", name_contains="the", sort_by="name", sort_order="desc")
        assert (found.items, found.total) == (others[:1], 1)
        either = {"filter_logic": "or", "span_id": "a" * 16, "name": "otel"}
        assert (await client.query_spans(ids[0], **either)).total == 2

        assert (await client.get_latest_attempt(ids[0])).status == "running"
        failed = await client.update_attempt(*ids, status="failed", metadata={"why": "x"}, worker_id="w")
        assert (failed.status, failed.metadata["why"]) == ("failed", "x")
        assert (await client.get_rollout_by_id(ids[0])).status == "requeuing"
        second = await client.start_attempt(ids[0], worker_id="w")
        assert second.attempt.sequence_id == 2
        await client.update_attempt(ids[0], "latest", status="running", last_heartbeat_time=1.0)
        assert [one.sequence_id for one in await client.query_attempts(ids[0], sort_order="desc")] == [2, 1]
        await client.update_attempt(ids[0], "latest", status="succeeded")
        [done] = await client.wait_for_rollouts(rollout_ids=[ids[0], many[2].rollout_id], timeout=0.05)
        assert (done.rollout_id, done.status) == (ids[0], "succeeded")
        changed = await client.update_rollout(
            many[2].rollout_id,
            input=[1],
            mode=None,
            resources_id=None,
            status="cancelled",
            config=agl.RolloutConfig(timeout_seconds=5),
            metadata={"m": 2},
        )
        assert (changed.input, changed.status, changed.config.timeout_seconds) == ([1], "cancelled", 5.0)
        page = await client.query_rollouts(status_in=["succeeded", "cancelled"], sort_by="status", limit=1, offset=1)
        assert ([one.rollout_id for one in page], page.total) == ([ids[0]], 2)
        assert type(page[0]) is agl.AttemptedRollout
        assert (await client.query_rollouts(status_in=[])).total == 0
        assert (await client.query_rollouts(rollout_id_contains=ids[0][3:])).total == 1
        assert (await client.query_rollouts(rollout_ids=[ids[0]], status=["failed"])).total == 0
        assert await client.get_rollout_by_id("no") is None

        worker = await client.update_worker("w", {"cpu": 0.5})
        assert (worker.heartbeat_stats, worker.status) == ({"cpu": 0.5}, "idle")
        assert (await client.update_worker("w")).heartbeat_stats == {"cpu": 0.5}
        assert await client.get_worker_by_id("no") is None
        assert (await client.get_worker_by_id("v")).status == "busy"
        assert (await client.query_workers(status_in=["busy"], worker_id_contains="v")).total == 1
        assert (await client.statistics())["total_spans"] == 3
        assert client.capabilities["otlp_traces"]
        assert client.otlp_traces_endpoint() == f"{address}/v1/traces"
    public = {name for name, _ in inspect.getmembers(LightningStore) if not name.startswith("_")}
    assert public - called == set()


@pytest.mark.asyncio
async def test_errors_are_of_the_class_that_they_expect(address):
    async with client_of(address, health_retry_delays=()) as client:
        calls = [
            client.update_rollout("no", status="failed"),
            client.start_attempt("no"),
            client.update_attempt("no", "latest", status="failed"),
            client.add_span(span_of((await client.start_rollout(1)).model_copy(update={"rollout_id": "no"}), 1)),
        ]
        for call in calls:
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await call
            assert caught.value.status == 500
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await client.query_rollouts(sort_by="nothing")
        assert caught.value.status == 400


@pytest.mark.asyncio
async def test_many_callers_claim_each_rollout_once(address):
    async with client_of(address) as client:
        await client.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(60)])
        claimed = await asyncio.gather(*(client.dequeue_rollout(f"w{n}") for n in range(80)))
        found = [one.input for one in claimed if one is not None]
        assert sorted(found) == list(range(60))
        copy = pickle.loads(pickle.dumps(client))
        assert (await copy.query_rollouts(limit=-1)).total == 60
        await copy.close()


@pytest.mark.asyncio
async def test_what_it_sends_again_when_its_time_is_over_happens_once(store, serve, monkeypatch):
    from lightning_store_server.servicer import StoreServicer

    original, calls, late = StoreServicer.EnqueueRollouts, [], asyncio.Event()

    async def slow_once(self, request, context):
        reply = await original(self, request, context)
        calls.append(request.request_id)
        if len(calls) == 1:
            await late.wait()
        return reply

    monkeypatch.setattr(StoreServicer, "EnqueueRollouts", slow_once)
    async with client_of(serve(store), retry_delays=(0.1,), health_retry_delays=(0.1,), request_timeout=0.5) as client:
        queued = await client.enqueue_rollout("once")
        assert calls == [calls[0]] * 2
        assert [one.rollout_id for one in await client.query_rollouts()] == [queued.rollout_id]


# --- Its exporter, Trainer and dashboard -----------------------------------------------------------------------------


@agl.rollout
def agent(task, llm: agl.LLM) -> float:
    return task["x"] / 10


class Algorithm(agl.Algorithm):
    """Queues three tasks, and reads what became of them."""

    async def run(self, train_dataset=None, val_dataset=None):
        store = self.get_store()
        await store.add_resources({"llm": LLM})
        queued = [await store.enqueue_rollout(input={"x": number}) for number in range(3)]
        done = []
        while len(done) < 3:  # for as long as the process may take
            done = await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in queued], timeout=0.1)
            await asyncio.sleep(0.05)
        assert {one.status for one in done} == {"succeeded"}
        for one in done:
            assert agl.find_final_reward(await store.query_spans(one.rollout_id)) == one.input["x"] / 10


def test_its_trainer_with_its_own_strategy(monkeypatch):
    from tests.agentlightning.forks import in_fork, serving
    from tests.processes.programs import free_port

    async def results(address):
        async with client_of(address) as client:
            found = await client.query_rollouts()
            return [(one.status, (await client.query_spans(one.rollout_id)).total > 0) for one in found]

    with serving() as served:
        address = served.otlp_traces_endpoint.removesuffix("/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", served.otlp_traces_endpoint)

        def work():
            strategy = ClientServerExecutionStrategy(
                role="both", n_runners=1, server_port=free_port(), main_process="algorithm", managed_store=False
            )
            store = agl.LightningStoreClient(address)
            agl.Trainer(
                algorithm=Algorithm(), n_runners=1, tracer=agl.OtelTracer(), store=store, strategy=strategy
            ).fit(agent)

        in_fork(work)
        assert asyncio.run(results(address)) == [("succeeded", True)] * 3


def test_the_requests_of_its_dashboard(address):
    agl_ = f"{address}/v1/agl"
    for path in (
        "rollouts?limit=20&offset=0&sort_by=start_time&sort_order=desc&status_in=running&rollout_id_contains=ro",
        "rollouts/ro-1/attempts?limit=100&offset=0&sort_by=sequence_id&sort_order=asc",
        "spans?rollout_id=ro-1&attempt_id=at-1&limit=50&offset=0&sort_by=start_time&sort_order=asc&name_contains=x",
        "resources?limit=20&offset=0&sort_by=update_time&sort_order=desc&resources_id_contains=rs",
        "workers?limit=20&offset=0&sort_by=last_heartbeat_time&sort_order=desc&worker_id_contains=w",
    ):
        with urllib.request.urlopen(f"{agl_}/{path}", timeout=30) as reply:
            assert (reply.status, b'"total":0' in reply.read()) == (200, True)


def test_the_description_is_valid():
    OpenAPIV31SpecValidator(description()).validate()
