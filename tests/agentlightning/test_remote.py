"""GrpcLightningStore: outages, threads and loops, forks and pickles."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import pickle
import threading

import pytest

from lightning_store.errors import InternalError, StoreTimeoutError, StoreUnavailableError
from lightning_store.testing.clock import FakeClock
from lightning_store_agentlightning import GrpcLightningStore
from lightning_store_agentlightning.remote import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX
from tests.agentlightning.forks import in_fork
from tests.logged import levels

NOBODY = "localhost:1"


class Outage:
    """A client whose requests for work fail as often as they are told to."""

    def __init__(self, store, error=None):
        self.error = error
        self.waits = []
        store.store.dequeue_many_rollouts = self.ask

    async def ask(self, *, limit, worker_id, max_wait):
        self.waits.append(max_wait)
        if self.error is not None:
            raise self.error
        return []


class RecordingClock(FakeClock):
    """Nobody sleeps; it is noted for how long they would have."""

    def __init__(self):
        super().__init__()
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)


@pytest.fixture
def clock():
    return RecordingClock()


@pytest.fixture
def store(clock):
    return GrpcLightningStore(NOBODY, clock=clock)


@pytest.mark.parametrize("error", [StoreUnavailableError("gone"), StoreTimeoutError("slow"), InternalError("broken")])
def test_no_work_while_the_server_cannot_be_asked(store, clock, error):
    Outage(store, error)
    assert asyncio.run(store.dequeue_rollout("w")) is None
    assert asyncio.run(store.dequeue_many_rollouts(limit=2)) == []
    assert len(clock.slept) == 2


def test_pauses_grow_to_a_limit_and_start_afresh(store, clock):
    outage = Outage(store, StoreUnavailableError("gone"))
    for _ in range(2000):
        asyncio.run(store.dequeue_rollout())
    assert clock.slept[0] == pytest.approx(BACKOFF_SECONDS, rel=0.21)
    assert clock.slept[1] == pytest.approx(2 * BACKOFF_SECONDS, rel=0.21)
    assert clock.slept[-1] == pytest.approx(BACKOFF_SECONDS_MAX, rel=0.21)
    outage.error = None
    asyncio.run(store.dequeue_rollout())
    outage.error = StoreUnavailableError("gone again")
    asyncio.run(store.dequeue_rollout())
    assert clock.slept[-1] == pytest.approx(BACKOFF_SECONDS, rel=0.21)


def test_one_warning_an_outage(store, caplog):
    caplog.set_level(logging.DEBUG)
    outage = Outage(store, StoreUnavailableError("not yet there"))
    for _ in range(3):
        asyncio.run(store.dequeue_rollout())
    assert levels(caplog) == ["INFO", "DEBUG", "DEBUG"]
    caplog.clear()
    outage.error = None
    asyncio.run(store.dequeue_rollout())
    outage.error = StoreUnavailableError("gone")
    for _ in range(2):
        asyncio.run(store.dequeue_rollout())
    assert levels(caplog) == ["INFO", "WARNING", "DEBUG"]
    assert "gone" in caplog.text


def test_mistakes_are_raised(store):
    Outage(store, ValueError("worker_id"))
    with pytest.raises(ValueError, match="worker_id"):
        asyncio.run(store.dequeue_rollout())


def test_other_calls_raise_what_the_client_raises():
    store = GrpcLightningStore(NOBODY, retry_delays=())
    with pytest.raises(ConnectionError):
        asyncio.run(store.get_latest_resources())


@pytest.mark.parametrize(("options", "wait"), [({}, 0.0), ({"dequeue_wait": 2.0}, 2.0)])
def test_asking_for_work_waits_if_told_to(clock, options, wait):
    store = GrpcLightningStore(NOBODY, clock=clock, **options)
    outage = Outage(store)
    asyncio.run(store.dequeue_rollout())
    asyncio.run(store.dequeue_many_rollouts())
    assert outage.waits == [wait, wait]


def test_options_are_those_of_the_client():
    with pytest.raises(ValueError, match="host:port"):
        GrpcLightningStore("http://localhost:4747")
    with pytest.raises(ValueError, match="timeout"):
        GrpcLightningStore(NOBODY, timeout=0)
    with pytest.raises(TypeError, match="no_such"):
        GrpcLightningStore(NOBODY, no_such=1)


def test_healthy(endpoint):
    assert asyncio.run(GrpcLightningStore(endpoint).healthy())
    assert not asyncio.run(GrpcLightningStore(NOBODY).healthy())


def test_closing(endpoint):
    store = GrpcLightningStore(endpoint)
    asyncio.run(store.enqueue_rollout("task"))
    asyncio.run(store.close())
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(store.dequeue_rollout())


# --- Threads, loops, processes ---------------------------------------------------------------------------------------


async def work(store, text):
    """As a runner, its tracer and its heartbeat do; loops die without notice."""
    await asyncio.gather(*(store.enqueue_rollout(text) for _ in range(5)))
    return {(await store.dequeue_rollout("w")).rollout_id for _ in range(5)}


def test_many_threads_and_loops(endpoint):
    store = GrpcLightningStore(endpoint)
    claimed = []
    threads = [threading.Thread(target=lambda: claimed.append(asyncio.run(work(store, "thread")))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set().union(*claimed)) == 30


def test_forks_of_a_process_that_uses_it(endpoint):
    store = GrpcLightningStore(endpoint)
    claimed = [asyncio.run(work(store, "parent"))]
    for _ in range(3):
        claimed.append(in_fork(lambda: asyncio.run(work(store, "child"))))
        claimed.append(asyncio.run(work(store, "parent")))
    assert len(set().union(*claimed)) == 35


def test_pickles_hold_the_address_and_settings(endpoint):
    url = "http://localhost:4318/v1/traces"
    store = GrpcLightningStore(endpoint, timeout=7.0, dequeue_wait=1.5, otlp_traces_endpoint=url)
    asyncio.run(store.enqueue_rollout("task"))
    data = pickle.dumps(store)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert (copy.endpoint, copy.otlp_traces_endpoint()) == (endpoint, url)
    assert asyncio.run(copy.dequeue_rollout("w")).input == "task"


def claim_one(store):
    assert asyncio.run(store.dequeue_rollout("spawned")) is not None


@pytest.mark.slow
def test_a_spawned_process(endpoint):
    store = GrpcLightningStore(endpoint)
    asyncio.run(store.enqueue_rollout("task"))
    process = multiprocessing.get_context("spawn").Process(target=claim_one, args=(store,))
    process.start()
    process.join()
    assert process.exitcode == 0
    [worker] = asyncio.run(store.query_workers())
    assert worker.worker_id == "spawned"
