"""One client in many threads, on loops that come and go, closed or forgotten in the middle of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store_server import LightningStoreServer
from tests.processes.programs import Ended, serving

pytestmark = pytest.mark.slow

RunScript = Callable[..., Ended]

WORKERS = 20
"""On pages of one row they are a longer stream than a client reads ahead."""

CALLS = """
import gc
import logging
from concurrent.futures import ThreadPoolExecutor

pending = sys.argv[2]

def calls(client):
    yield client.wait_for_rollouts(rollout_ids=[pending])
    yield client.query_workers()  # a stream
    yield watch(client)

async def watch(client):
    async for _ in client.watch_rollouts([pending]):
        pass

logging.getLogger("asyncio").disabled = True  # it tells of what comes next

def close_loop_in_the_middle(client):
    loop = asyncio.new_event_loop()
    for call in calls(client):
        loop.create_task(call)
    loop.run_until_complete(client.statistics())
    loop.close()

def in_threads(count, work):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))

"""


@pytest.fixture
def server() -> Iterator[LightningStoreServer]:
    with serving(InMemoryLightningStore(), page_rows_max=1) as server:
        for number in range(WORKERS):
            asyncio.run(server.update_worker(f"worker-{number}"))
        yield server


@pytest.fixture
def pending_id(server: LightningStoreServer) -> str:
    """A rollout that does not end by itself."""
    return asyncio.run(server.start_rollout("never done")).rollout_id


def test_loops_that_come_and_go_in_many_threads(
    run_script: RunScript, server: LightningStoreServer, pending_id: str
) -> None:
    """Calls of loops that are closed, or left by an error, disturb nobody else's."""
    run_script(
        CALLS
        + """
client = LightningStoreClient(sys.argv[1])

async def use(number):
    made = [client.enqueue_rollout((number, n)) for n in range(4)]
    waits = [client.dequeue_rollout(max_wait=0.01), client.wait_for_rollouts(rollout_ids=[pending], timeout=0.01)]
    workers, *_ = await asyncio.gather(client.query_workers(), *made, *waits)
    assert len(workers) == WORKERS

async def fail():
    under_way = [asyncio.create_task(call) for call in calls(client)]
    await client.statistics()
    raise KeyError("as planned")

def work(number):
    for _ in range(6):
        asyncio.run(use(number))
        close_loop_in_the_middle(client)
        try:
            asyncio.run(fail())
        except KeyError:
            pass

in_threads(8, work)
""".replace("WORKERS", str(WORKERS)),
        server.endpoint,
        pending_id,
    )
    assert asyncio.run(server.statistics())["total_rollouts"] == 1 + 8 * 6 * 4


def test_clients_that_are_forgotten_in_the_middle_of_calls(
    run_script: RunScript, server: LightningStoreServer, pending_id: str
) -> None:
    """They keep their threads and connections until the calls end, and no longer."""
    run_script(
        CALLS
        + """
import psutil

def left():
    gc.collect()
    return threading.active_count(), len(psutil.Process().net_connections("tcp"))

client = LightningStoreClient(sys.argv[1])
asyncio.run(client.statistics())
before = left()

def work(_):
    for _ in range(4):
        close_loop_in_the_middle(LightningStoreClient(sys.argv[1]))

in_threads(4, work)
asyncio.run(client.update_rollout(pending, status="succeeded"))
while left() != before:
    pass
""",
        server.endpoint,
        pending_id,
    )


def test_a_client_that_is_closed_in_the_middle_of_calls_of_many_threads(
    run_script: RunScript, server: LightningStoreServer, pending_id: str
) -> None:
    """Each of them gets an error that says so, and none waits for an answer that never comes."""
    run_script(
        CALLS
        + """
CALLS = [
    lambda client: client.statistics(),
    lambda client: client.enqueue_rollout("task"),
    lambda client: client.dequeue_rollout(max_wait=1000.0),
    lambda client: client.wait_for_rollouts(rollout_ids=[pending]),
    lambda client: client.query_workers(),
    watch,
]

def close_in_the_middle(_):
    client = LightningStoreClient(sys.argv[1])
    under_way = threading.Barrier(len(CALLS) + 1)

    async def repeat(call):
        await client.statistics()
        under_way.wait()
        while True:
            await call(client)

    def end_of(call):
        try:
            asyncio.run(repeat(call))
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(len(CALLS)) as pool:
        ends = pool.map(end_of, CALLS)
        under_way.wait()
        asyncio.run(client.close())
        for end in ends:
            assert "closed" in end or "cancelled" in end, end

in_threads(4, close_in_the_middle)
""",
        server.endpoint,
        pending_id,
    )
