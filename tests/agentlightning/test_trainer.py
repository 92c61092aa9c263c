"""The real Trainer, runners, tracers and adapters on our stores, and the same program on Agent Lightning's own."""

from __future__ import annotations

import asyncio
import functools

import agentlightning as agl
import pytest
from agentlightning.execution.client_server import ClientServerExecutionStrategy
from agentlightning.execution.shared_memory import SharedMemoryExecutionStrategy

from lightning_store_agentlightning import GrpcExecutionStrategy, GrpcLightningStore, InProcessLightningStore
from tests.agentlightning.forks import in_fork
from tests.agentlightning.programs import (
    BROKEN_TASK,
    RESOURCES,
    SHAKY_TASK,
    TASKS,
    Adder,
    Lister,
    NoTracer,
    quick_runner,
    trained,
)
from tests.processes.programs import free_port

pytestmark = pytest.mark.slow


def shared_memory(managed_store=False):
    return SharedMemoryExecutionStrategy(n_runners=1, main_thread="algorithm", managed_store=managed_store)


@pytest.fixture(scope="module")
def expected():
    """What the program makes of Agent Lightning's own store."""
    store = agl.InMemoryLightningStore(thread_safe=True)
    return in_fork(lambda: trained(store, shared_memory()))


def ordered(outcomes):
    """Where several runners work, the numbers of spans do not tell more than their order."""
    return [{**outcome, "spans": [rest for _, *rest in outcome["spans"]]} for outcome in outcomes]


def test_what_the_program_does(expected):
    assert [outcome["input"] for outcome in expected] == TASKS
    statuses = {number: outcome["status"] for number, outcome in enumerate(expected)}
    assert statuses == {**dict.fromkeys(range(8), "succeeded"), BROKEN_TASK: "failed"}
    assert expected[SHAKY_TASK]["attempts"] == ["failed", "succeeded"]
    assert [outcome["reward"] for outcome in expected[:3]] == [0.0, 0.03, 0.06]
    assert expected[1]["spans"] == [
        (1, "openai.chat.completion", "UNSET"),
        (2, "agentlightning.annotation", "OK"),
    ]
    [(prompt, response, reward)] = expected[1]["triplets"]
    assert (prompt["token_ids"], response["token_ids"], reward) == ([1, 2], [3], 0.03)
    assert expected[1]["messages"][0]["messages"][-1]["content"] == "3"


# --- Strategies ------------------------------------------------------------------------------------------------------


def test_shared_memory_in_process(expected):
    assert in_fork(lambda: trained(InProcessLightningStore(), shared_memory())) == expected


def test_shared_memory_in_process_and_managed(expected):
    assert in_fork(lambda: trained(InProcessLightningStore(), shared_memory(managed_store=True))) == expected


def test_shared_memory_over_grpc(endpoint, expected):
    assert in_fork(lambda: trained(GrpcLightningStore(endpoint), shared_memory())) == expected


@pytest.mark.parametrize("n_runners", [2, 4])
def test_client_server_over_grpc(endpoint, expected, n_runners):
    strategy = ClientServerExecutionStrategy(n_runners=n_runners, managed_store=False)
    found = in_fork(lambda: trained(GrpcLightningStore(endpoint, dequeue_wait=0.5), strategy))
    assert ordered(found) == ordered(expected)
    workers = asyncio.run(GrpcLightningStore(endpoint).query_workers(sort_by="worker_id"))
    assert [worker.worker_id for worker in workers] == [f"Worker-{number}" for number in range(n_runners)]


@pytest.mark.parametrize("kind", ["in-process", "grpc"])
def test_client_server_managed(endpoint, expected, kind, monkeypatch):
    """Agent Lightning's own HTTP server in front of our store. Its clients send spans by OTLP, and OpenTelemetry 1.45
    and later need to be told where."""
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://localhost:{port}/v1/traces")
    strategy = ClientServerExecutionStrategy(n_runners=2, server_port=port)
    store = InProcessLightningStore() if kind == "in-process" else GrpcLightningStore(endpoint)
    assert ordered(in_fork(lambda: trained(store, strategy))) == ordered(expected)


@pytest.mark.parametrize("n_runners", [1, 2, 4])
def test_our_strategy(expected, n_runners):
    strategy = GrpcExecutionStrategy(n_runners=n_runners, server_port=free_port())
    assert ordered(in_fork(lambda: trained(InProcessLightningStore(), strategy))) == ordered(expected)


def test_our_strategy_on_a_database(expected, tmp_path):
    """Runners are forked while the file is open, and use it through the server alone."""
    database = f"sqlite:{tmp_path}/runs.db"
    strategy = GrpcExecutionStrategy(n_runners=2, server_port=free_port())
    found = in_fork(lambda: trained(InProcessLightningStore(database), strategy))
    assert ordered(found) == ordered(expected)
    store = InProcessLightningStore(database)
    assert [one.status for one in asyncio.run(store.query_rollouts())] == [one["status"] for one in found]
    store.close()


def test_shared_memory_on_a_database(expected, tmp_path):
    store = f"sqlite:{tmp_path}/runs.db"
    assert in_fork(lambda: trained(InProcessLightningStore(store), shared_memory())) == expected


def test_our_strategy_with_a_server_elsewhere(endpoint, expected):
    strategy = GrpcExecutionStrategy(n_runners=2, server_port=free_port())
    assert ordered(in_fork(lambda: trained(GrpcLightningStore(endpoint), strategy))) == ordered(expected)


def test_several_runs_of_one_process(expected):
    def twice():
        store, strategy = InProcessLightningStore(), GrpcExecutionStrategy(n_runners=2, server_port=free_port())
        return [trained(store, strategy) for _ in range(2)]

    for outcomes in in_fork(twice):
        assert ordered(outcomes) == ordered(expected)


# --- Tracers ---------------------------------------------------------------------------------------------------------


def untraced(outcomes):
    return [{key: outcome[key] for key in ("input", "status", "attempts", "reward")} for outcome in outcomes]


def test_no_tracer(endpoint, expected):
    strategy = GrpcExecutionStrategy(n_runners=2)
    found = in_fork(lambda: trained(GrpcLightningStore(endpoint), strategy, NoTracer()))
    assert untraced(found) == untraced(expected)
    assert [outcome["spans"] for outcome in found[:2]] == [[(1, "agentlightning.annotation", "OK")]] * 2


def test_no_tracer_and_spans_as_results(endpoint, expected):
    strategy = GrpcExecutionStrategy(n_runners=2)
    found = in_fork(lambda: trained(GrpcLightningStore(endpoint), strategy, NoTracer(), Lister()))
    assert untraced(found) == untraced(expected)
    assert [name for _, name, _ in found[1]["spans"]] == ["think", "agentlightning.annotation"]


def test_the_default_tracer(endpoint, expected):
    strategy = GrpcExecutionStrategy(n_runners=2)
    tracer = agl.AgentOpsTracer()
    found = in_fork(lambda: trained(GrpcLightningStore(endpoint), strategy, tracer))
    assert untraced(found) == untraced(expected)
    assert {name.partition(".")[2] for _, name, _ in found[0]["spans"]} >= {"session", "chat.completion", "annotation"}


@pytest.mark.parametrize("strategy", ["shared memory", "ours"])
def test_spans_over_otlp(served, expected, strategy, monkeypatch):
    """OpenTelemetry from 1.45 on goes by the variable alone; Agent Lightning's setting does not reach it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", served.otlp_traces_endpoint)
    store = GrpcLightningStore(served.endpoint, otlp_traces_endpoint=served.otlp_traces_endpoint)
    made = shared_memory() if strategy == "shared memory" else GrpcExecutionStrategy(n_runners=2)
    found = in_fork(lambda: trained(store, made))
    assert ordered(found) == ordered(expected)
    assert [outcome["spans"] for outcome in found[:4]] == [outcome["spans"] for outcome in expected[:4]]


# --- The Trainer -----------------------------------------------------------------------------------------------------


def develop(store, strategy):
    tracer = agl.OtelTracer()
    baseline = agl.Baseline(polling_interval=0.05, span_verbosity="none")
    trainer = agl.Trainer(
        store=store,
        strategy=strategy,
        algorithm=baseline,
        tracer=tracer,
        runner=quick_runner(tracer),
        initial_resources=RESOURCES,
    )
    trainer.dev(Adder(), TASKS[:3], val_dataset=TASKS[3:5])


@pytest.mark.parametrize("strategy", ["shared memory", "ours"])
def test_dev(endpoint, strategy):
    store = GrpcLightningStore(endpoint)
    made = shared_memory() if strategy == "shared memory" else GrpcExecutionStrategy(n_runners=2)
    in_fork(functools.partial(develop, store, made))
    rollouts = asyncio.run(store.query_rollouts(sort_by="start_time"))
    assert [(rollout.input, rollout.mode) for rollout in rollouts] == [
        (task, "train" if number < 3 else "val") for number, task in enumerate(TASKS[:5])
    ]
    assert {rollout.status for rollout in rollouts} == {"succeeded"}
    assert {rollout.resources_id for rollout in rollouts} == {"default"}


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "lightning_store_agentlightning.GrpcLightningStore", "endpoint": "localhost:4747"},
        functools.partial(GrpcLightningStore, "localhost:4747"),
        GrpcLightningStore("localhost:4747"),
    ],
)
def test_ways_to_name_the_store(spec):
    trainer = agl.Trainer(store=spec, tracer=NoTracer())
    assert isinstance(trainer.store, GrpcLightningStore)
    assert trainer.store.endpoint == "localhost:4747"


def test_ways_to_name_the_strategy():
    named = "lightning_store_agentlightning.GrpcExecutionStrategy"
    trainer = agl.Trainer(store=InProcessLightningStore, strategy=named, n_runners=3, port=5000, tracer=NoTracer())
    assert isinstance(trainer.store, InProcessLightningStore)
    assert isinstance(trainer.strategy, GrpcExecutionStrategy)
    assert (trainer.strategy.n_runners, trainer.strategy.server_port, trainer.n_runners) == (3, 5000, 3)


def test_runner_step(endpoint):
    """Without queue and trainer."""

    async def step():
        store, tracer = GrpcLightningStore(endpoint), agl.OtelTracer()
        runner = quick_runner(tracer)
        with runner.run_context(agent=Adder(), store=store, worker_id=3):
            rollout = await runner.step(TASKS[2], resources=RESOURCES, mode="train")
        return rollout.status, rollout.input, len(await store.query_spans(rollout.rollout_id))

    assert in_fork(lambda: asyncio.run(step())) == ("succeeded", TASKS[2], 2)
