"""A server process that is killed and comes back on its port, empty, under clients that go on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lightning_store import (
    CompletedRollout,
    CursorUnknownError,
    PromptTemplate,
    RolloutNotFoundError,
    Span,
    StoreUnavailableError,
)
from lightning_store_client import LightningStoreClient
from tests.processes.programs import SECONDS_PROMPT, Program, ServingProgram

pytestmark = pytest.mark.slow

Serve = Callable[..., ServingProgram]
StartScript = Callable[..., Program]

TEMPLATE = {"prompt": PromptTemplate(template="{question}", engine="f-string")}


@dataclass(frozen=True)
class Known:
    """What a runner knows of the store from before the restart."""

    rollout_id: str
    attempt_id: str
    resources_id: str

    def span(self, number: int) -> Span:
        return Span(
            rollout_id=self.rollout_id,
            attempt_id=self.attempt_id,
            sequence_id=number,
            trace_id=f"{1:032x}",
            span_id=f"{number:016x}",
            name="step",
        )


async def a_past(client: LightningStoreClient) -> Known:
    resources = await client.add_resources(TEMPLATE)
    claimed = await client.start_rollout("task", worker_id="runner")
    known = Known(claimed.rollout_id, claimed.attempt.attempt_id, resources.resources_id)
    assert await client.add_span(known.span(1))
    return known


def changes(client: LightningStoreClient, known: Known) -> dict[str, Awaitable[Any]]:
    """Calls that change something about a rollout."""
    return {
        "update_rollout": client.update_rollout(known.rollout_id, metadata={"reward": 1.0}),
        "update_attempt": client.update_attempt(known.rollout_id, known.attempt_id, status="succeeded"),
        "update_latest_attempt": client.update_attempt(known.rollout_id, "latest", status="failed"),
        "start_attempt": client.start_attempt(known.rollout_id, worker_id="runner"),
        "cancel_rollouts": client.cancel_rollouts([known.rollout_id]),
        "add_span": client.add_span(known.span(2)),
        "add_many_spans": client.add_many_spans([known.span(3), known.span(4)]),
        "get_next_span_sequence_id": client.get_next_span_sequence_id(known.rollout_id, known.attempt_id),
    }


def reads(client: LightningStoreClient, known: Known) -> dict[str, Awaitable[Any]]:
    """Calls that look for what was there, each with nothing as its answer."""
    return {
        "get_rollout_by_id": client.get_rollout_by_id(known.rollout_id),
        "query_rollouts": client.query_rollouts(rollout_id_in=[known.rollout_id]),
        "get_resources_by_id": client.get_resources_by_id(known.resources_id),
        "get_worker_by_id": client.get_worker_by_id("runner"),
        "query_workers": client.query_workers(worker_id_contains="runner"),
    }


def reads_of_a_rollout(client: LightningStoreClient, known: Known) -> dict[str, Awaitable[Any]]:
    """The same, but in strict mode an unknown rollout is an error."""
    return {
        "get_latest_attempt": client.get_latest_attempt(known.rollout_id),
        "query_attempts": client.query_attempts(known.rollout_id),
        "query_spans": client.query_spans(known.rollout_id),
        "wait_for_rollouts": client.wait_for_rollouts(rollout_ids=[known.rollout_id, known.rollout_id]),
    }


def with_client(server: ServingProgram, scenario: Callable[[LightningStoreClient], Coroutine[Any, Any, None]]) -> None:
    """Run the scenario with a client that outlasts any restart, on a machine however busy."""

    async def run() -> None:
        delays = {"retry_delays": (0.1,) * 500, "health_retry_delays": ()}
        async with LightningStoreClient(server.endpoint, timeout=60.0, **delays) as client:
            await scenario(client)

    asyncio.run(run())


def begin(calls: dict[str, Awaitable[Any]]) -> dict[str, asyncio.Future[Any]]:
    """They are sent when the loop has its next turn."""
    return {name: asyncio.ensure_future(call) for name, call in calls.items()}


async def outcomes(begun: dict[str, asyncio.Future[Any]]) -> list[tuple[str, Any]]:
    """What each call returned or raised."""
    return list(zip(begun, await asyncio.gather(*begun.values(), return_exceptions=True), strict=True))


@contextlib.contextmanager
def promptly() -> Iterator[None]:
    begun = time.perf_counter()
    yield
    assert time.perf_counter() - begun < SECONDS_PROMPT


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_calls_in_the_middle_of_which_the_server_is_killed(serve: Serve, strict: bool) -> None:
    """They reach the new server, which knows nothing, and say so. The last heartbeat is lost: it is not sent again."""
    flags = ["--strict"] if strict else []
    server = serve(*flags)

    async def scenario(client: LightningStoreClient) -> None:
        known = await a_past(client)
        server.signal(signal.SIGSTOP)
        updating = begin(changes(client, known))
        reading = begin(reads(client, known))
        reading_rollout = begin(reads_of_a_rollout(client, known))
        heartbeat = asyncio.create_task(client.update_worker("runner", {"gpu": 0.5}))
        await asyncio.sleep(0)
        server.die()
        with pytest.raises(StoreUnavailableError):
            await heartbeat
        await asyncio.to_thread(serve, *flags, after=server)

        with promptly():
            for name, error in await outcomes(updating):
                assert isinstance(error, ValueError), name
                assert f"Rollout {known.rollout_id} not found" in str(error)
            for name, found in await outcomes(reading):
                assert not found, name
            for name, found in await outcomes(reading_rollout):
                assert isinstance(found, RolloutNotFoundError) if strict else not found, name

    with_client(server, scenario)


def test_long_waits_in_the_middle_of_which_the_server_is_killed(serve: Serve) -> None:
    """A wait for rollouts ends, since they are unknown now; a wait for work goes on at the new server."""
    server = serve()

    async def scenario(client: LightningStoreClient) -> None:
        known = await a_past(client)
        wait = asyncio.create_task(client.wait_for_rollouts(rollout_ids=[known.rollout_id]))
        work = asyncio.create_task(client.dequeue_rollout(worker_id="runner", max_wait=1000.0))
        await asyncio.sleep(0)  # they are on their way: the answer to the next call comes after they were taken
        await client.statistics()
        server.die()
        async with LightningStoreClient(server.endpoint, retry_delays=()) as impatient:
            with pytest.raises(StoreUnavailableError):
                await impatient.get_rollout_by_id(known.rollout_id)
        await asyncio.to_thread(serve, after=server)

        with promptly():
            assert await wait == []
            task = await client.enqueue_rollout("task")
            claimed = await work
            assert (claimed.rollout_id, claimed.attempt.worker_id) == (task.rollout_id, "runner")

    with_client(server, scenario)


def test_feeds_in_the_middle_of_which_the_server_is_killed(serve: Serve) -> None:
    """One that has told nothing yet goes on at the new server; one that has says that it cannot."""
    first = serve()

    async def next_of(feed: AsyncIterator[CompletedRollout]) -> str:
        return (await anext(feed)).rollout.rollout_id

    async def told_by(feed: AsyncIterator[CompletedRollout]) -> list[str]:
        return [completed.rollout.rollout_id async for completed in feed]

    async def scenario(client: LightningStoreClient) -> None:
        known = await a_past(client)
        of_known = asyncio.create_task(told_by(client.watch_rollouts([known.rollout_id])))
        of_all = client.watch_rollouts()
        completed = asyncio.create_task(next_of(of_all))
        await client.statistics()
        first.die()
        second = await asyncio.to_thread(serve, after=first)
        with promptly():
            assert await of_known == []
            done = await client.start_rollout("task")
            await client.update_rollout(done.rollout_id, status="succeeded")
            assert await completed == done.rollout_id

        completed = asyncio.create_task(next_of(of_all))
        await client.statistics()
        second.die()
        await asyncio.to_thread(serve, after=second)
        with promptly(), pytest.raises(CursorUnknownError):
            await completed

    with_client(first, scenario)


MANY_RUNNERS = """
import time

RUNNERS = 16
client = LightningStoreClient(sys.argv[1], timeout=60.0, retry_delays=(0.1,) * 500, health_retry_delays=())
all_at_work = threading.Barrier(RUNNERS + 1)
seconds = []

async def one_rollout(worker_id):
    \"\"\"Whether all of it was done at one server.\"\"\"
    await client.enqueue_rollout(worker_id)
    claimed = await client.dequeue_rollout(worker_id=worker_id, max_wait=0.5)
    if claimed is None:
        return False
    ids = claimed.rollout_id, claimed.attempt.attempt_id
    try:
        await client.get_next_span_sequence_id(*ids)
        await client.update_attempt(*ids, status="succeeded")
    except ValueError as error:
        assert str(error) == f"Rollout {claimed.rollout_id} not found", error
        return False
    ended = await client.wait_for_rollouts(rollout_ids=ids[:1])
    return [one.status for one in ended] == ["succeeded"]

async def timed(worker_id):
    begun = time.perf_counter()
    done = await one_rollout(worker_id)
    seconds.append(time.perf_counter() - begun)
    return done

def run(number):
    try:
        run_until_second_server(f"runner-{number}")
    except BaseException:
        all_at_work.abort()
        raise

def run_until_second_server(worker_id):
    first = asyncio.run(client.enqueue_rollout("known to the first server alone")).rollout_id
    assert asyncio.run(timed(worker_id))
    all_at_work.wait()
    while asyncio.run(client.get_rollout_by_id(first)):
        asyncio.run(timed(worker_id))
    done = 0
    while done < 3:
        done += asyncio.run(timed(worker_id))

from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(RUNNERS) as pool:
    runs = pool.map(run, range(RUNNERS))
    all_at_work.wait()
    print("all at work", flush=True)
    list(runs)
print(max(seconds))
"""
"""Each runner works in a thread and on many loops, one after another, until it has met a second server."""


def kill(server: ServingProgram) -> None:
    server.die()


def terminate(server: ServingProgram) -> None:
    """It finishes what it can, and says nothing of the calls that came too late."""
    server.signal(signal.SIGTERM)
    ended = server.end()
    assert ended.code == 0
    messages = [line.partition("lightning_store_server: ")[2].partition(";")[0] for line in ended.errors.splitlines()]
    assert messages == ["SIGTERM: draining", "stopped"]


@pytest.mark.parametrize("stop", [terminate, pytest.param(kill, marks=pytest.mark.chaos)])
def test_many_threads_of_one_client_while_the_server_restarts(
    serve: Serve, start_script: StartScript, stop: Callable[[ServingProgram], None]
) -> None:
    server = serve()
    runners = start_script(MANY_RUNNERS, server.endpoint, seconds=60)
    assert runners.line() == "all at work"
    begun = time.perf_counter()
    stop(server)
    serve(after=server)
    away = time.perf_counter() - begun
    ended = runners.end()
    assert ended.code == 0, ended.errors
    assert ended.complaints == ""
    assert float(ended.output) < away + SECONDS_PROMPT
