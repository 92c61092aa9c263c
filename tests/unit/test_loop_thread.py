"""LoopThread: whatever ends first, the thread or its caller, every call ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lightning_store.errors import CallCancelledError
from lightning_store.loop_thread import LoopThread
from lightning_store.testing import SAFETY_SECONDS

pytestmark = pytest.mark.asyncio


ROUNDS = 20
CALLS = 50


async def thread_id() -> int:
    return threading.get_ident()


class Forever:
    """Work that never ends by itself; events tell that it began, and that it was cancelled."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.cancelled = threading.Event()

    async def work(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def happened(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, SAFETY_SECONDS)


async def test_work_runs_in_a_thread_of_its_own():
    loop_thread = LoopThread("test")
    try:
        ids = [await loop_thread.run(thread_id()) for _ in range(2)]
        assert ids[0] == ids[1] != threading.get_ident()
        assert loop_thread.is_alive
    finally:
        loop_thread.stop()
    assert not loop_thread.is_alive


async def test_errors_of_the_work_come_back():
    async def fail() -> None:
        raise KeyError("x")

    loop_thread = LoopThread("test")
    try:
        with pytest.raises(KeyError):
            await loop_thread.run(fail())
    finally:
        loop_thread.stop()


async def test_once_stopped_it_refuses_work():
    loop_thread = LoopThread("test")
    loop_thread.stop()
    loop_thread.stop()
    with pytest.raises(CallCancelledError, match="was stopped"):
        await loop_thread.run(thread_id())
    with pytest.raises(CallCancelledError, match="was stopped"):
        loop_thread.submit(thread_id())


async def test_stopping_ends_the_calls_under_way():
    loop_thread, forever = LoopThread("test"), Forever()
    call = asyncio.create_task(loop_thread.run(forever.work()))
    assert await happened(forever.began)
    await asyncio.to_thread(loop_thread.stop)
    with pytest.raises(CallCancelledError, match="during the call"):
        await asyncio.wait_for(call, SAFETY_SECONDS)
    assert forever.cancelled.is_set()


async def test_work_that_ends_in_the_last_moment_has_a_result():
    loop_thread, began = LoopThread("test"), threading.Event()

    async def stop_and_return() -> int:
        loop_thread.stop()
        began.set()
        await asyncio.sleep(0)  # it ends in the same round of the loop as the loop itself
        return 1

    call = asyncio.create_task(loop_thread.run(stop_and_return()))
    assert await happened(began)
    await asyncio.to_thread(loop_thread.stop)
    for _ in range(5):  # the thread has ended: what it had to say is waiting here already
        await asyncio.sleep(0)
    told = call.done()
    call.cancel()
    [outcome] = await asyncio.gather(call, return_exceptions=True)
    assert told
    assert outcome == 1 or isinstance(outcome, CallCancelledError)


async def test_calls_that_race_with_the_stop_all_end():
    for _ in range(ROUNDS):
        loop_thread = LoopThread("test")
        calls = [asyncio.create_task(loop_thread.run(asyncio.sleep(0, number))) for number in range(CALLS)]
        stopping = asyncio.create_task(asyncio.to_thread(loop_thread.stop))
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SAFETY_SECONDS)
        await stopping
        for number, outcome in enumerate(outcomes):
            assert outcome == number or isinstance(outcome, CallCancelledError)


async def test_calls_of_other_threads_that_race_with_the_stop_all_end():
    def submit_until_stopped(loop_thread: LoopThread, submitting: threading.Event) -> list[str]:
        async def call_until_stopped() -> list[str]:
            ended = []
            while "CallCancelledError" not in ended:
                submitting.set()
                call = asyncio.wait_for(loop_thread.run(asyncio.sleep(0)), SAFETY_SECONDS)
                [outcome] = await asyncio.gather(call, return_exceptions=True)
                ended.append(type(outcome).__name__)
            return ended

        return asyncio.run(call_until_stopped())

    for _ in range(ROUNDS):
        loop_thread, submitting = LoopThread("test"), threading.Event()
        callers = [asyncio.to_thread(submit_until_stopped, loop_thread, submitting) for _ in range(3)]
        running = [asyncio.create_task(caller) for caller in callers]
        assert await happened(submitting)
        await asyncio.to_thread(loop_thread.stop)
        ended = await asyncio.gather(*running)
        assert {name for names in ended for name in names} <= {"NoneType", "CallCancelledError"}


async def test_cancelling_the_caller_cancels_the_work():
    loop_thread, forever = LoopThread("test"), Forever()
    try:
        call = asyncio.create_task(loop_thread.run(forever.work()))
        assert await happened(forever.began)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await happened(forever.cancelled)
    finally:
        loop_thread.stop()
