"""Programs that tests run as processes of their own, to kill them or to take something from them.

python programs.py NAME DATABASE
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys

from lightning_store import StoreError
from lightning_store.engine.idempotency import request_scope
from lightning_store.sqlite_store import SqliteLightningStore

CALLERS = 16
LENGTH_BYTES = 40_000
"""More than SQLite's index of the log has, and less than the log."""


async def work_until_killed(path: str) -> None:
    """Whole lives of rollouts, each acknowledged step as a line."""
    store = SqliteLightningStore(path)

    async def caller(number: int) -> None:
        count = 0
        while True:
            name = f"{number}-{count}"
            with request_scope(f"enqueue-{name}"):
                made = await store.enqueue_rollout(name)
            print("enqueued", name, made.rollout_id, flush=True)
            claimed = await store.dequeue_rollout(worker_id=f"w-{number}")
            assert claimed is not None
            print("claimed", claimed.input, claimed.attempt.attempt_id, flush=True)
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
            print("succeeded", claimed.input, claimed.attempt.attempt_id, flush=True)
            count += 1

    await asyncio.gather(*map(caller, range(CALLERS)))


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
