"""Runner processes that get a signal in the middle of calls: they end at once, quietly, and hold on to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStoreCapabilities
from tests.processes.programs import SECONDS_MAX, SECONDS_PROMPT, Ended, Program, free_port, serving

pytestmark = pytest.mark.slow

CALLS = """
client = LightningStoreClient(sys.argv[1])
unreachable = LightningStoreClient(sys.argv[2], timeout=1000.0, retry_delays=(500.0,), health_retry_delays=())

def calls():
    yield client.enqueue_rollout("task")
    yield client.dequeue_rollout(worker_id="runner", max_wait=1000.0)
    yield client.wait_for_rollouts(rollout_ids=[sys.argv[3]])
    yield client.query_workers()  # a stream
    yield next_completion()

async def next_completion():
    async for completed in client.watch_rollouts():
        return completed

def tick():
    asyncio.get_running_loop().call_later(0.1, tick)

async def main():
    tick()
    await asyncio.gather(*calls(), unreachable.statistics())

"""
"""Calls of every kind: none is ever answered, and one waits for its retry.

The loop ticks, since Python handles a signal between two instructions: one that comes just when the loop begins to wait
is handled when it has waited.
"""

TAKEN = ["dequeue_many_rollouts", "enqueue_many_rollouts", "query_workers", "wait_for_rollouts", "watch_rollouts"]
"""What the server makes of them."""


class UnansweringStore(ForwardingStore):
    """A store in memory that does not answer these ``CALLS``, and notes when they begin and end."""

    def __init__(self) -> None:
        self.inner = InMemoryLightningStore()
        self.begun: SimpleQueue[str] = SimpleQueue()
        self.ended: SimpleQueue[str] = SimpleQueue()
        self._is_first_page = itertools.cycle((True, False))

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self.inner.capabilities

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if method not in TAKEN or (method == "query_workers" and next(self._is_first_page)):
            return await getattr(self.inner, method)(*args, **kwargs)
        with self._noted(method):
            if method in ("enqueue_many_rollouts", "query_workers"):
                await asyncio.Event().wait()
            return await getattr(self.inner, method)(*args, **kwargs)

    async def _forward_stream(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        with self._noted(method):
            async for item in getattr(self.inner, method)(*args, **kwargs):
                yield item

    @contextlib.contextmanager
    def _noted(self, method: str) -> Iterator[None]:
        self.begun.put(method)
        try:
            yield
        finally:
            self.ended.put(method)


Interrupt = Callable[..., Ended]


@pytest.fixture
def store() -> UnansweringStore:
    return UnansweringStore()


@pytest.fixture
def endpoint(store: UnansweringStore) -> Iterator[str]:
    """Of a server whose replies hold one row."""
    with serving(store, page_rows_max=1) as server:
        yield server.endpoint


@pytest.fixture
def interrupt(start_script: Callable[..., Program], store: UnansweringStore, endpoint: str) -> Interrupt:
    """``interrupt(text, number, …)``: run ``CALLS`` and ``text``; when the server has the calls, send the signal.
    Further signals are sent when the program prints a line.

    How the process ended: promptly. The server has given its calls up; what is queued later stays in the queue.
    """

    def run(text: str, number: signal.Signals, *further: signal.Signals) -> Ended:
        rollout = asyncio.run(store.inner.start_rollout("never done"))
        for worker_id in ("one", "two"):
            asyncio.run(store.inner.update_worker(worker_id))
        arguments = (endpoint, f"127.0.0.1:{free_port()}", rollout.rollout_id)
        program = start_script(CALLS + text, *arguments)
        assert sorted(store.begun.get(timeout=SECONDS_MAX) for _ in TAKEN) == TAKEN
        sent = time.perf_counter()
        program.signal(number)
        for another in further:
            program.line()
            program.signal(another)
        ended = program.end()
        assert time.perf_counter() - sent < SECONDS_PROMPT, ended.errors
        assert sorted(store.ended.get(timeout=SECONDS_MAX) for _ in TAKEN) == TAKEN
        queued = asyncio.run(store.inner.enqueue_rollout("task"))
        assert asyncio.run(store.inner.dequeue_rollout()).rollout_id == queued.rollout_id
        return ended

    return run


def assert_no_noise(errors: str) -> None:
    """All that was said, if anything, is where Python was interrupted."""
    for noise in ("Exception ignored", "was destroyed", "site-packages/grpc", "RuntimeError", "RpcError", "StoreError"):
        assert noise not in errors


def test_a_signal_that_nobody_handles(interrupt: Interrupt) -> None:
    ended = interrupt("asyncio.run(main())", signal.SIGTERM)
    assert (ended.code, ended.complaints) == (-signal.SIGTERM, "")


def test_ctrl_c_that_nobody_handles(interrupt: Interrupt) -> None:
    """asyncio.run cancels the main task; Python shows where it was, and nothing else."""
    ended = interrupt("asyncio.run(main())", signal.SIGINT)
    assert ended.code == -signal.SIGINT
    assert ended.complaints.startswith("Traceback (most recent call last):\n")
    assert ended.complaints.endswith("\nKeyboardInterrupt\n")
    assert "never retrieved" not in ended.complaints
    assert_no_noise(ended.complaints)


def test_ctrl_c_that_the_program_handles(interrupt: Interrupt) -> None:
    ended = interrupt(
        """
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
""",
        signal.SIGINT,
    )
    assert (ended.code, ended.output, ended.complaints) == (0, "interrupted\n", "")


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_ctrl_c_twice(interrupt: Interrupt, times: int) -> None:
    """The second one ends what the program does because of the first. gRPC may not have ended its calls by then.

    Python raises it wherever it is; if that is in a task, asyncio says so.
    """
    for _ in range(times):
        ended = interrupt(
            """
async def until_told():
    try:
        await main()
    except asyncio.CancelledError:
        print("cleaning up", flush=True)
        await unreachable.statistics()

try:
    asyncio.run(until_told())
except KeyboardInterrupt:
    print("interrupted")
""",
            signal.SIGINT,
            signal.SIGINT,
        )
        assert (ended.code, ended.output) == (0, "interrupted\n")
        assert_no_noise(ended.complaints)


def test_a_handler_that_exits(interrupt: Interrupt) -> None:
    ended = interrupt(
        """
async def until_told():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sys.exit, 3)
    await main()

asyncio.run(until_told())
""",
        signal.SIGTERM,
    )
    assert (ended.code, ended.complaints) == (3, "")


def test_a_handler_that_cancels_the_main_task_and_then_uses_the_client(interrupt: Interrupt) -> None:
    """As a runner does that reports its attempt as failed before it goes."""
    ended = interrupt(
        """
async def until_told():
    work = asyncio.create_task(main())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        attempt = await client.update_attempt(sys.argv[3], "latest", status="failed")
        print(attempt.status)
        await client.close()

asyncio.run(until_told())
""",
        signal.SIGTERM,
    )
    assert (ended.code, ended.output, ended.complaints) == (0, "failed\n", "")


def test_calls_in_daemon_threads_when_the_main_thread_exits(interrupt: Interrupt) -> None:
    ended = interrupt(
        """
import time

async def wait_for(call):
    await call

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
for call in [*calls(), unreachable.statistics()]:
    threading.Thread(target=asyncio.run, args=(wait_for(call),), daemon=True).start()
while True:
    time.sleep(0.1)
""",
        signal.SIGTERM,
    )
    assert (ended.code, ended.complaints) == (3, "")


def test_closing_the_client_ends_the_calls_of_all_threads(interrupt: Interrupt) -> None:
    """Threads that are no daemons hold the process up until their calls end."""
    ended = interrupt(
        """
import time

async def wait_for(call):
    try:
        await call
    except RuntimeError:
        sys.stdout.write("ended\\n")
    else:
        raise AssertionError("it was answered")

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
for call in calls():
    threading.Thread(target=asyncio.run, args=(wait_for(call),)).start()
while not told:
    time.sleep(0.1)
asyncio.run(client.close())
""",
        signal.SIGTERM,
    )
    assert (ended.code, ended.output, ended.complaints) == (0, "ended\n" * len(TAKEN), "")
