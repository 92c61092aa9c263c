"""Forks of a process whose threads are in the middle of calls of all kinds, from one of its threads or from several."""

from __future__ import annotations

import asyncio

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
endpoint, kinds, forkers, rounds = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
client = LightningStoreClient(endpoint, timeout=60.0)
stop = threading.Event()

async def load():
    while not stop.is_set():
        await asyncio.gather(*(client.query_workers() for _ in range(8)), client.enqueue_rollout("thread"))

async def poll():
    while not stop.is_set():
        await client.wait_for_rollouts(rollout_ids=[endless], timeout=1.0)

async def watch():
    async for _ in client.watch_rollouts():
        if stop.is_set():
            return

async def child(number):
    await asyncio.gather(client.statistics(), client.enqueue_rollout("child"), client.server_info())

def fork():
    for _ in range(rounds):
        in_children(4, child)

endless = asyncio.run(client.start_rollout("endless")).rollout_id
works = {"load": load, "poll": poll, "watch": watch}
busy = [threading.Thread(target=lambda work=works[kind]: asyncio.run(work())) for kind in kinds]
forking = [threading.Thread(target=fork) for _ in range(forkers)]
for thread in busy:
    thread.start()
asyncio.run(client.statistics())
failures = []
threading.excepthook = lambda failed: failures.append(failed.exc_value)
for thread in forking:
    thread.start()
for thread in forking:
    thread.join()
stop.set()
asyncio.run(client.update_attempt(endless, "latest", status="succeeded"))
for thread in busy:
    thread.join()
assert not failures, failures
"""


@pytest.mark.parametrize("kinds", ["load", "poll", "load,load,poll,watch"])
@pytest.mark.parametrize(
    ("forkers", "rounds"),
    [(1, 4), (2, 2), *(pytest.param(forkers, 90 // forkers, marks=pytest.mark.chaos) for forkers in (1, 3))],
)
def test_no_fork_hurts_parent_or_child(run_script, server, kinds, forkers, rounds):
    run_script(SCRIPT, server.endpoint, kinds, str(forkers), str(rounds), seconds=20 + 4 * forkers * rounds)
    made = [rollout.input for rollout in asyncio.run(server.query_rollouts())]
    assert made.count("child") == 4 * forkers * rounds
