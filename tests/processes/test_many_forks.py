"""Thousands of forks under load, beside other channels of the process, and what a fork costs."""

from __future__ import annotations

import asyncio
import os

import pytest

from lightning_store_client.channel import CHILD_MAY_KEEP_CORE

pytestmark = [pytest.mark.slow, pytest.mark.forks]

FORKS = int(os.environ.get("LIGHTNING_STORE_TEST_FORKS", "2000"))
AT_ONCE = 8

SCRIPT = """
import json, statistics
import grpc

endpoint, beside, forks, at_once = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
client = LightningStoreClient(endpoint, timeout=60.0)
stop = threading.Event()
failures = []
# Held by a foreign call: gRPC's own handler hangs in a child that is forked in the middle of one, with or without us.
calm = threading.Lock()
threading.excepthook = lambda failed: failures.append(repr(failed.exc_value))

async def load():
    while not stop.is_set():
        await asyncio.gather(client.query_workers(), client.statistics(), client.enqueue_rollout("parent"))
        await asyncio.sleep(0.002)

async def poll():
    while not stop.is_set():
        await client.wait_for_rollouts([endless], timeout=1.0)

def foreign_sync():
    with grpc.insecure_channel(endpoint) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        while not stop.is_set():
            with calm:
                call(b"", timeout=60)
            time.sleep(0.002)

async def foreign_aio():
    async with grpc.aio.insecure_channel(endpoint) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        while not stop.is_set():
            with calm:
                await call(b"", timeout=60)
            await asyncio.sleep(0.002)

def child():
    signal.alarm(60)

    async def use():
        await asyncio.gather(client.statistics(), client.enqueue_rollout("child"))

    try:
        asyncio.run(use())
    except BaseException as error:
        print(f"child: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

def fork(pauses):
    with calm:
        begun = time.perf_counter()
        pid = os.fork()
        if not pid:
            child()
        pauses.append(time.perf_counter() - begun)
    return pid

endless = asyncio.run(client.start_rollout("endless")).rollout_id
works = [lambda: asyncio.run(load()), lambda: asyncio.run(poll())]
works += {"alone": [], "sync": [foreign_sync], "aio": [lambda: asyncio.run(foreign_aio())]}[beside]
busy = [threading.Thread(target=work) for work in works]
for thread in busy:
    thread.start()
time.sleep(0.3)
pauses, codes = [], {}
for _ in range(forks // at_once):
    children = [fork(pauses) for _ in range(at_once)]
    for pid in children:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        codes[code] = codes.get(code, 0) + 1
stop.set()
asyncio.run(client.update_attempt(endless, "latest", status="succeeded"))
for thread in busy:
    thread.join()
pauses.sort()
share = lambda part: round(pauses[int(part * (len(pauses) - 1))] * 1000, 2)
print(json.dumps({"codes": codes, "failures": failures, "pause_ms": [share(part) for part in (0.5, 0.95, 1.0)]}))
"""


def without_log_of_grpc(errors: str) -> str:
    """gRPC notes each fork for which its core does not prepare itself, with a poller of ``grpc.aio`` in it."""
    return "".join(line for line in errors.splitlines(keepends=True) if "fork_posix.cc" not in line)


BESIDE = [
    "alone",
    "sync",
    pytest.param(
        "aio",
        marks=pytest.mark.skipif(
            not CHILD_MAY_KEEP_CORE, reason="gRPC up to 1.81 ends each child of a process with calls of grpc.aio"
        ),
    ),
]


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("forks", [40, pytest.param(FORKS, marks=pytest.mark.chaos)])
def test_no_child_is_bad_and_the_parent_sees_no_error(start_script, server, beside, forks, capsys):
    ended = start_script(SCRIPT, server.endpoint, beside, str(forks), str(AT_ONCE), seconds=60 + forks // 4).end()
    assert (ended.code, without_log_of_grpc(ended.complaints)) == (0, ""), ended
    with capsys.disabled():
        print(f"\n{beside}: {ended.output.strip()}")
    assert f'"codes": {{"0": {forks}}}, "failures": []' in ended.output
    made = [rollout.input for rollout in asyncio.run(server.query_rollouts())]
    assert made.count("child") == forks
