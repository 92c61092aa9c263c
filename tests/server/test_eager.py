"""Coroutines that are begun at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from lightning_store_server.eager import begin

pytestmark = pytest.mark.asyncio

place: ContextVar[str] = ContextVar("place", default="outside")


async def test_what_does_not_wait_is_done_at_once():
    done = []

    async def work() -> None:
        done.append(place.get())

    assert begin(work()) is None
    assert done == ["outside"]


async def test_what_it_raises_before_it_waits_is_raised():
    async def work() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        begin(work())


async def test_what_waits_goes_on_in_a_task():
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        await asyncio.sleep(0)
        number = await ready
        await asyncio.sleep(0)
        return number + 1

    task = begin(work())
    assert isinstance(task, asyncio.Task)
    ready.set_result(4)
    assert await task == 5


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_it_can_be_cancelled_wherever_it_waits(turns: int):
    ended: list[Any] = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            ended.append(error)
            await asyncio.sleep(0)
            raise

    task = begin(work())
    assert task is not None
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert len(ended) == 1


async def test_what_it_waits_for_is_cancelled_with_it_before_its_first_turn():
    inner: list[asyncio.Task[bool]] = []

    async def work() -> None:
        inner.append(asyncio.create_task(asyncio.Event().wait()))
        await inner[0]

    task = begin(work())
    assert task is not None
    task.cancel()
    await asyncio.wait([task, *inner])
    assert (task.cancelled(), inner[0].cancelled()) == (True, True)


async def test_what_is_cancelled_leaves_nothing_to_the_garbage_collector():
    """Which may have been told to leave alone what was there while it waited."""

    class Held:
        pass

    async def work(held: Held) -> None:
        await asyncio.Event().wait()

    held = Held()
    there = weakref.ref(held)
    gc.disable()
    try:
        task = begin(work(held))
        assert task is not None
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        del held, task
        assert there() is None
    finally:
        gc.enable()


async def test_an_error_later_is_that_of_the_task():
    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("lost")

    task = begin(work())
    assert task is not None
    with pytest.raises(KeyError, match="lost"):
        await task


async def test_a_context_of_its_own_from_its_beginning_to_its_end():
    seen = []

    async def work() -> None:
        token = place.set("inside")
        await asyncio.sleep(0)
        seen.append(place.get())
        place.reset(token)
        seen.append(place.get())

    task = begin(work())
    assert task is not None
    assert place.get() == "outside"
    await task
    assert seen == ["inside", "outside"]
