"""Programs that tests run as processes of their own, to kill them or to take something from them.

python programs.py NAME DATABASE
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from lightning_store import ResourceExhaustedError, StoreError, StoreUnavailableError
from lightning_store.engine.idempotency import request_scope
from lightning_store.sqlite_store import SqliteLightningStore

R = TypeVar("R")

CALLERS = 16
LENGTH_BYTES = 40_000
"""More than SQLite's index of the log has, and less than the log."""


async def work_until_killed(path: str) -> None:
    """Whole lives of rollouts, each acknowledged step as a line. With a SYNC_FAULT, one sync in seven fails."""
    store = SqliteLightningStore(path)
    if "SYNC_FAULT" in os.environ:
        os.environ["SYNC_FAILS_EVERY"] = "7"

    async def caller(number: int) -> None:
        count = 0
        while True:
            name = f"{number}-{count}"
            made = await until_done(f"enqueue-{name}", partial(store.enqueue_rollout, name))
            print("enqueued", name, made.rollout_id, flush=True)
            claimed = await until_done(f"claim-{name}", partial(store.dequeue_rollout, worker_id=f"w-{number}"))
            assert claimed is not None
            print("claimed", claimed.input, claimed.attempt.attempt_id, flush=True)
            ids = claimed.rollout_id, claimed.attempt.attempt_id
            await until_done(f"report-{name}", partial(store.update_attempt, *ids, status="succeeded"))
            print("succeeded", claimed.input, claimed.attempt.attempt_id, flush=True)
            count += 1

    await asyncio.gather(*map(caller, range(CALLERS)))


async def until_done(request_id: str, call: Callable[[], Awaitable[R]]) -> R:
    """Make a call until it succeeds, as a client does."""
    repeated = False
    while True:
        try:
            with request_scope(request_id, repeated=repeated):
                return await call()
        except StoreUnavailableError:
            repeated = True


async def open_only(path: str) -> None:
    """Prints what comes of it."""
    try:
        SqliteLightningStore(path).close()
    except StoreError as error:
        print(type(error).__name__, error)
    else:
        print("opened")


async def open_as_nobody(path: str) -> None:
    """The same, as a user who may read the file and not write it."""
    SqliteLightningStore(f"{path}.other").close()  # imports everything: the files may be for this user only
    if os.geteuid() == 0:
        os.setuid(65534)
    await open_only(path)


async def lose_the_disk(path: str) -> None:
    """No file may be longer than the log is for a while: what writes to it fails with an I/O error."""
    with SqliteLightningStore(path) as store:
        with request_scope("id-1"):
            await store.enqueue_rollout("first")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LENGTH_BYTES, hard))
        try:
            with request_scope("id-2"):
                await store.enqueue_rollout("second")
        except StoreError as error:
            print(type(error).__name__)
        assert [one.input for one in await store.query_rollouts()] == ["first"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        for _ in range(2):
            with request_scope("id-2", repeated=True):
                await store.enqueue_rollout("second")
        print(*[one.input for one in await store.query_rollouts()])


async def fill_the_disk(path: str) -> None:
    """Callers fill the disk, on which there is a file that goes when it is full."""
    ballast = Path(path).with_name("ballast")
    ballast.write_bytes(b"x" * 12_000_000)
    acknowledged: list[str] = []
    refused = 0

    async def fill(store: SqliteLightningStore, number: int) -> None:
        nonlocal refused
        try:
            for count in range(1000):
                name = f"{number}-{count} {'x' * 20_000}"
                await store.enqueue_rollout(name)
                acknowledged.append(name)
        except ResourceExhaustedError:
            refused += 1

    with SqliteLightningStore(path, free_bytes_min=0) as store:
        running = await store.start_rollout("running")
        await asyncio.gather(*(fill(store, number) for number in range(CALLERS)))
        assert sorted(one.input for one in await store.query_rollouts(status_in=["queuing"])) == sorted(acknowledged)
        ballast.unlink()
        acknowledged.append((await store.enqueue_rollout("room again")).input)
        await store.update_attempt(running.rollout_id, running.attempt.attempt_id, status="succeeded")
    with SqliteLightningStore(path, free_bytes_min=4_000_000) as store:
        stored = await store.query_rollouts(status_in=["queuing"])
        assert sorted(one.input for one in stored) == sorted(acknowledged)
        await store.delete_rollouts(rollout_ids=[one.rollout_id for one in stored[: len(stored) // 2]])
        await store.enqueue_rollout("in the place of others")
    print(refused)


def lose_a_sync(path: str) -> None:
    """One fdatasync fails, and the process is killed after the call that it hit has returned."""
    store = SqliteLightningStore(path)
    asyncio.run(store.enqueue_rollout("first"))
    fault = Path(os.environ["SYNC_FAULT"])
    fault.touch()
    made = asyncio.run(until_done("id-2", partial(store.enqueue_rollout, "second")))
    print(fault.exists(), made.rollout_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_call(path: str) -> None:
    """A child that was forked while the store is open calls it, and closes it; the parent goes on."""
    with SqliteLightningStore(path) as store:
        asyncio.run(store.enqueue_rollout("parent's"))
        child = os.fork()
        if not child:
            try:
                asyncio.run(store.enqueue_rollout("child's"))
            except StoreError as error:
                print("forked" in str(error), flush=True)
            store.close()
            os._exit(0)
        os.waitpid(child, 0)
        asyncio.run(store.enqueue_rollout("parent's again"))
        print(*[one.input for one in asyncio.run(store.query_rollouts())], sep=", ")


if __name__ == "__main__":
    program = globals()[sys.argv[1]](sys.argv[2])
    if program is not None:
        asyncio.run(program)
