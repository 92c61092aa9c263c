"""What a program can tell of a store: the same of Agent Lightning's own and of ours, in process and over gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import pickle
from unittest import mock

import agentlightning as agl
import pydantic
import pytest
from agentlightning.store.base import UNSET
from agentlightning.types import PaginatedResult
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from lightning_store.errors import NotJsonError, SpansRejectedError
from lightning_store.testing.clock import FakeClock
from lightning_store_agentlightning import AdaptedStore, GrpcLightningStore, InProcessLightningStore

PROMPT = {"prompt": agl.PromptTemplate(template="{x}", engine="f-string")}

METHODS = [name for name in vars(agl.LightningStore) if not name.startswith("_")]


def shape(method):
    """Names, kinds and defaults of the arguments."""
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize("name", METHODS)
def test_signatures_are_theirs(name):
    theirs, ours = getattr(agl.LightningStore, name), getattr(AdaptedStore, name)
    if isinstance(theirs, property):
        assert isinstance(ours, property)
        return
    assert ours is not theirs
    assert shape(ours) == shape(theirs)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


@pytest.fixture
def run(make_store):
    """``run(program)``: the result of ``await program(store)`` on an empty store."""

    return lambda program: asyncio.run(program(make_store()))


@pytest.fixture(params=["in-process", "grpc"])
def run_ours(request):
    """The same, on our stores alone."""
    where = request.getfixturevalue("endpoint") if request.param == "grpc" else None
    store = InProcessLightningStore() if where is None else GrpcLightningStore(where)
    return lambda program: asyncio.run(program(store))


def span_of(attempted, number=1, **fields):
    return agl.Span.from_attributes(
        attributes={"n": number},
        rollout_id=attempted.rollout_id,
        attempt_id=attempted.attempt.attempt_id,
        sequence_id=number,
        span_id=f"{number:016x}",
        start_time=1_700_000_000.123456789,
        **fields,
    )


# --- About the store -------------------------------------------------------------------------------------------------


def test_capabilities(endpoint):
    in_process = {"thread_safe": True, "async_safe": True, "zero_copy": False, "otlp_traces": False}
    assert InProcessLightningStore().capabilities == in_process
    assert GrpcLightningStore(endpoint).capabilities == {**in_process, "zero_copy": True}


@pytest.mark.parametrize("make", [lambda **o: GrpcLightningStore("localhost:1", **o), AdaptedStore])
def test_otlp_is_for_those_who_ask_for_it(make):
    arguments = () if make is not AdaptedStore else (InProcessLightningStore().store,)
    store = make(*arguments)
    assert store.capabilities["otlp_traces"] is False
    with pytest.raises(NotImplementedError, match="otlp_traces_endpoint"):
        store.otlp_traces_endpoint()
    store = make(*arguments, otlp_traces_endpoint="http://localhost:4318/v1/traces")
    assert store.capabilities["otlp_traces"] is True
    assert store.otlp_traces_endpoint() == "http://localhost:4318/v1/traces"


def test_statistics(run):
    async def program(store):
        attempted = await store.start_rollout("task", worker_id="w")
        await store.add_span(span_of(attempted))
        return type(store).__name__, await store.statistics()

    name, statistics = run(program)
    assert statistics["name"] == name
    counts = ("total_rollouts", "total_attempts", "total_spans", "total_resources", "total_workers")
    assert [statistics[count] for count in counts] == [1, 1, 1, 0, 1]


# --- Rollouts --------------------------------------------------------------------------------------------------------


def test_types_of_rollouts(run):
    async def program(store):
        await store.enqueue_rollout({"a": [1, 2.5, None, "x"]}, "train", metadata={"k": 1})
        queued = await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=number) for number in range(3)])
        assert type(queued) is list
        assert [type(rollout) for rollout in queued] == [agl.Rollout] * 3
        first = await store.dequeue_rollout(worker_id="w")
        more = await store.dequeue_many_rollouts(limit=2, worker_id="w")
        assert type(more) is list
        assert [type(rollout) for rollout in [first, *more]] == [agl.AttemptedRollout] * 3
        assert (first.input, first.mode, first.metadata) == ({"a": [1, 2.5, None, "x"]}, "train", {"k": 1})
        assert type(first.attempt) is agl.Attempt
        assert type(first.config) is agl.RolloutConfig
        page = await store.query_rollouts(sort_by="start_time")
        assert type(page) is PaginatedResult
        assert (len(page), page.limit, page.offset, page.total) == (4, -1, 0, 4)
        assert [type(rollout) for rollout in page] == [agl.AttemptedRollout] * 3 + [agl.Rollout]
        found = await store.get_rollout_by_id(first.rollout_id)
        assert type(found) is agl.AttemptedRollout
        [attempt] = await store.query_attempts(first.rollout_id)
        assert attempt == await store.get_latest_attempt(first.rollout_id) == first.attempt
        assert await store.get_rollout_by_id("unknown") is None
        return [rollout.input for rollout in page]

    assert run(program) == [{"a": [1, 2.5, None, "x"]}, 0, 1, 2]


def test_arguments_by_position(run):
    async def program(store):
        config = agl.RolloutConfig(timeout_seconds=5, max_attempts=2, retry_condition=["timeout"])
        started = await store.start_rollout("a", "val", "rs", config, {"m": 1}, "w")
        assert (started.mode, started.resources_id, started.config, started.metadata) == ("val", "rs", config, {"m": 1})
        assert started.attempt.worker_id == "w"
        queued = await store.enqueue_rollout("b", "test", "rs", config, {"m": 2})
        assert (queued.mode, queued.resources_id, queued.config, queued.metadata) == ("test", "rs", config, {"m": 2})
        again = await store.start_attempt(started.rollout_id, "v")
        assert (again.attempt.sequence_id, again.attempt.worker_id) == (2, "v")
        ids = (started.rollout_id, again.attempt.attempt_id)
        attempt = await store.update_attempt(*ids, "running", "u", 1_700_000_000.5, {"m": 3})
        assert (attempt.status, attempt.worker_id, attempt.metadata) == ("running", "u", {"m": 3})
        assert attempt.last_heartbeat_time == 1_700_000_000.5
        updated = await store.update_rollout(started.rollout_id, "c", "train", None, "failed", config, None)
        assert (updated.input, updated.mode, updated.resources_id) == ("c", "train", None)
        assert (updated.status, updated.config, updated.metadata) == ("failed", config, None)

    run(program)


def test_unset_and_none(run):
    async def program(store):
        queued = await store.enqueue_rollout("a", "val", "rs", metadata={"m": 1})
        same = await store.update_rollout(queued.rollout_id, UNSET, UNSET, status="queuing", metadata=UNSET)
        assert (same.input, same.mode, same.resources_id, same.metadata) == ("a", "val", "rs", {"m": 1})
        cleared = await store.update_rollout(queued.rollout_id, input=None, mode=None, resources_id=None, metadata=None)
        assert (cleared.input, cleared.mode, cleared.resources_id, cleared.metadata) == (None, None, None, None)
        first = await store.update_worker("w", {"cpu": 1})
        second = await store.update_worker("w")
        assert first.heartbeat_stats == second.heartbeat_stats == {"cpu": 1}

    run(program)


def test_the_older_names_of_filters(run):
    async def program(store):
        ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(3)]
        await store.update_rollout(ids[0], status="cancelled")
        [cancelled] = await store.query_rollouts(status=["cancelled"])
        [asked] = await store.query_rollouts(rollout_ids=[ids[1]])
        assert [cancelled.rollout_id, asked.rollout_id] == ids[:2]

    run(program)


@dataclasses.dataclass
class Task:
    question: str


class Case(pydantic.BaseModel):
    task: Task
    answer: int


def test_inputs_that_are_models_and_dataclasses():
    async def main():
        store = InProcessLightningStore()
        queued = await store.enqueue_rollout({"cases": [Case(task=Task("6 x 7"), answer=42)]})
        assert queued.input == {"cases": [{"task": {"question": "6 x 7"}, "answer": 42}]}
        [request] = await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=Task("1"))])
        assert request.input == {"question": "1"}
        with pytest.raises(NotJsonError, match=r"input\.open"):
            await store.enqueue_rollout({"open": object()})

    asyncio.run(main())


def test_waiting(run):
    async def program(store):
        ids = [(await store.start_rollout(number)).rollout_id for number in range(3)]
        for rollout_id in ids[:2]:
            await store.update_attempt(rollout_id, "latest", status="succeeded")
        done = await store.wait_for_rollouts(rollout_ids=ids[:2], timeout=5)
        assert type(done) is list
        assert sorted(rollout.rollout_id for rollout in done) == sorted(ids[:2])
        assert [rollout.status for rollout in done] == ["succeeded"] * 2
        assert await store.wait_for_rollouts(rollout_ids=ids[2:], timeout=0) == []

    run(program)


def test_one_clock_reading_a_call(run):
    async def program(store):
        started = await store.start_rollout("task")
        attempt = await store.update_attempt(started.rollout_id, "latest", status="succeeded")
        rollout = await store.get_rollout_by_id(started.rollout_id)
        assert rollout.end_time >= attempt.end_time

    run(program)


def test_errors_are_value_errors(run):
    async def program(store):
        for call in [
            store.update_rollout("unknown", status="failed"),
            store.update_attempt("unknown", "latest", status="failed"),
            store.start_attempt("unknown"),
        ]:
            with pytest.raises(ValueError, match="unknown"):
                await call
        with pytest.raises(ValueError, match="mode"):
            await store.enqueue_rollout("task", mode="dance")

    run(program)


def test_what_theirs_lets_pass_is_a_value_error(run_ours):
    async def program(store):
        with pytest.raises(ValueError, match="timeout_seconds"):
            await store.enqueue_rollout("task", config=agl.RolloutConfig(timeout_seconds=-1))
        with pytest.raises(ValueError, match="unknown"):
            await store.get_next_span_sequence_id("unknown", "unknown")

    run_ours(program)


# --- Spans -----------------------------------------------------------------------------------------------------------


def test_add_span_returns_the_very_object(run):
    async def program(store):
        attempted = await store.start_rollout("task")
        span = span_of(attempted)
        assert await store.add_span(span) is span
        assert await store.add_span(span.model_copy()) is None
        [stored] = await store.query_spans(attempted.rollout_id)
        assert type(stored) is agl.Span
        assert stored == span
        assert stored.start_time == 1_700_000_000.123456789

    run(program)


def test_add_many_spans_returns_the_very_objects(run):
    async def program(store):
        attempted = await store.start_rollout("task")
        spans = [span_of(attempted, number) for number in range(1, 4)]
        assert [id(span) for span in await store.add_many_spans(spans)] == [id(span) for span in spans]
        assert await store.add_many_spans(spans) == []

    run(program)


def test_duplicates_in_a_batch(run_ours):
    async def program(store):
        attempted = await store.start_rollout("task")
        known = span_of(attempted, 1)
        await store.add_span(known)
        spans = [span_of(attempted, 2), known.model_copy(), span_of(attempted, 3)]
        assert [id(span) for span in await store.add_many_spans(spans)] == [id(spans[0]), id(spans[2])]

    run_ours(program)


def test_rejected_spans_leave_the_others_stored(run_ours):
    async def program(store):
        attempted = await store.start_rollout("task")
        good, early, broken = (span_of(attempted, number) for number in range(1, 4))
        early.start_time = -1.0
        broken.events = None
        with pytest.raises(SpansRejectedError, match="2 of 3 spans") as caught:
            await store.add_many_spans([early, good, broken])
        assert [id(span) for span in caught.value.stored] == [id(good)]
        assert list(await store.query_spans(attempted.rollout_id)) == [good]

    run_ours(program)


def test_sequence_ids(run):
    async def program(store):
        attempted = await store.start_rollout("task")
        ids = (attempted.rollout_id, attempted.attempt.attempt_id)
        first = await store.get_next_span_sequence_id(*ids)
        more = await store.get_many_span_sequence_ids([ids, ids])
        assert type(more) is list
        return [first, *more]

    assert run(program) == [1, 2, 3]


def recorded_span(**attributes):
    with TracerProvider().get_tracer("test").start_as_current_span("act") as span:
        span.set_attributes(attributes)
    return span


def test_otel_spans(run):
    async def program(store):
        attempted = await store.start_rollout("task")
        ids = (attempted.rollout_id, attempted.attempt.attempt_id)
        added = [await store.add_otel_span(*ids, recorded_span(n=1)), await store.add_otel_span(*ids, recorded_span())]
        added.append(await store.add_otel_span(*ids, recorded_span(), 7))
        assert [type(span) for span in added] == [agl.Span] * 3
        assert [span.sequence_id for span in added] == [1, 2, 7]
        assert list(await store.query_spans(attempted.rollout_id)) == added
        assert await store.get_next_span_sequence_id(*ids) == 8
        span = recorded_span()
        assert await store.add_otel_span(*ids, span) is not None
        assert await store.add_otel_span(*ids, span) is None
        with pytest.raises(ValueError, match="not found"):
            await store.add_otel_span(attempted.rollout_id, "unknown", recorded_span())

    run(program)


def test_otel_spans_may_be_test_doubles(run):
    async def program(store):
        attempted = await store.start_rollout("task")
        ids = (attempted.rollout_id, attempted.attempt.attempt_id)
        wanted = span_of(attempted, 5)
        with mock.patch.object(agl.Span, "from_opentelemetry", return_value=wanted) as convert:
            assert await store.add_otel_span(*ids, mock.Mock(spec=ReadableSpan)) is wanted
        assert convert.call_args.kwargs["sequence_id"] == 1
        assert list(await store.query_spans(attempted.rollout_id)) == [wanted]

    run(program)


def test_queries_of_spans(run):
    async def program(store):
        attempted = await store.start_rollout("task")
        for number in range(1, 5):
            await store.add_span(span_of(attempted, number, name=f"step {number % 2}"))
        odd = await store.query_spans(attempted.rollout_id, "latest", name="step 1", limit=1, offset=1)
        assert (odd.total, odd.limit, odd.offset, [span.sequence_id for span in odd]) == (2, 1, 1, [3])
        last = await store.query_spans(
            attempted.rollout_id, sort_by="sequence_id", sort_order="desc", span_id_contains="4", name_contains="1"
        )
        assert list(last) == []
        either = await store.query_spans(
            attempted.rollout_id, span_id_contains="4", name_contains="1", filter_logic="or"
        )
        return [span.sequence_id for span in either]

    assert run(program) == [1, 3, 4]


# --- Resources and workers -------------------------------------------------------------------------------------------


def test_resources(run):
    async def program(store):
        assert await store.get_latest_resources() is None
        llm = agl.LLM(endpoint="http://a", model="m", sampling_parameters={"temperature": 0.5})
        added = await store.add_resources({"llm": llm, "proxy": agl.ProxyLLM(endpoint="http://b/v1", model="m")})
        assert (type(added), added.version) == (agl.ResourcesUpdate, 1)
        updated = await store.update_resources(added.resources_id, PROMPT)
        named = await store.update_resources("default", PROMPT)
        assert (updated.version, updated.resources, updated.create_time) == (2, PROMPT, added.create_time)
        assert (named.resources_id, named.version) == ("default", 1)
        assert await store.get_latest_resources() == named
        assert await store.get_resources_by_id(added.resources_id) == updated
        page = await store.query_resources(sort_by="create_time")
        assert type(page) is PaginatedResult
        assert list(page) == [updated, named]
        assert (await store.enqueue_rollout("task")).resources_id == "default"

    run(program)


def test_workers(run):
    async def program(store):
        await store.enqueue_rollout("task")
        claimed = await store.dequeue_rollout("w-1")
        await store.update_worker("w-2", heartbeat_stats={"cpu": 0.5})
        page = await store.query_workers(sort_by="worker_id")
        assert type(page) is PaginatedResult
        assert [type(worker) for worker in page] == [agl.Worker] * 2
        busy = await store.get_worker_by_id("w-1")
        assert (busy.status, busy.current_rollout_id) == ("busy", claimed.rollout_id)
        assert [worker.worker_id for worker in await store.query_workers(status_in=["busy"])] == ["w-1"]
        assert await store.get_worker_by_id("w-3") is None
        await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        assert (await store.get_worker_by_id("w-1")).status == "idle"

    run(program)


# --- Ours ------------------------------------------------------------------------------------------------------------


def test_the_options_of_the_store_in_process():
    async def main():
        clock = FakeClock()
        store = InProcessLightningStore(strict=True, clock=clock)
        assert (await store.enqueue_rollout("task")).start_time == clock.now()
        with pytest.raises(ValueError, match="rs-unknown"):
            await store.enqueue_rollout("task", resources_id="rs-unknown")

    asyncio.run(main())


def test_a_store_in_process_on_a_database_survives(tmp_path):
    database = f"sqlite:{tmp_path}/runs.db"

    async def main():
        store = InProcessLightningStore(database, strict=True)
        queued = await store.enqueue_rollout({"task": 1})
        with pytest.raises(ValueError, match="rs-unknown"):
            await store.enqueue_rollout("task", resources_id="rs-unknown")
        with pytest.raises(ConnectionError, match="in use"):
            InProcessLightningStore(database)
        store.close()
        store.close()
        again = InProcessLightningStore(database)
        assert await again.get_rollout_by_id(queued.rollout_id) == queued
        again.close()

    asyncio.run(main())


@pytest.mark.parametrize("database", ["runs.db", "sqlite:", "postgres:x"])
def test_databases_that_there_are_not(database):
    with pytest.raises(ValueError, match="neither memory: nor sqlite:PATH"):
        InProcessLightningStore(database)


def test_what_their_interface_has_no_name_for():
    async def main():
        store = InProcessLightningStore()
        queued = await store.enqueue_rollout("task")
        await store.store.cancel_rollouts([queued.rollout_id])
        assert (await store.get_rollout_by_id(queued.rollout_id)).status == "cancelled"

    asyncio.run(main())


def test_a_store_in_process_cannot_be_pickled():
    with pytest.raises(TypeError, match="GrpcLightningStore"):
        pickle.dumps(InProcessLightningStore())


def test_metadata_stand_for_what_their_interface_has_no_name_for(run_ours):
    async def program(store):
        metadata = {"lightning.run": "r", "lightning.group_id": "g", "lightning.group_size": 2, "lightning.priority": 1}
        requests = [
            agl.EnqueueRolloutRequest(input=n, metadata={**metadata, "lightning.idempotency_key": "step-1"})
            for n in range(2)
        ]
        first = await store.enqueue_many_rollouts(requests)
        again = await store.enqueue_many_rollouts(requests)
        assert [one.rollout_id for one in again] == [one.rollout_id for one in first]
        for _ in range(2):
            claimed = await store.dequeue_rollout()
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        [group] = await store.store.wait_for_groups(["g"], consumer="trainer")
        assert (group.status, group.rollout_ids) == ("whole", [one.rollout_id for one in first])
        assert await store.store.mark_consumed("trainer", group.rollout_ids[:1]) == group.rollout_ids

    run_ours(program)
