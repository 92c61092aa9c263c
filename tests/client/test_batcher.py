"""Calls for one item each that go to the server as one."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lightning_store import InvalidTypeError, RolloutNotFoundError, StoreUnavailableError
from lightning_store.errors import CallCancelledError, InternalError, InvalidArgumentError, MessageTooLargeError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.testing.contract.base import make_span
from lightning_store_client import LightningStoreClient
from lightning_store_client.batcher import BATCHED_BYTES_MAX, ITEMS_MAX, Batcher

pytestmark = pytest.mark.asyncio


class Sender:
    """Doubles numbers, and notes the calls that it gets. It refuses negative ones, and more than ``most`` at once."""

    def __init__(self, most: int = 1000) -> None:
        self.calls: list[list[int]] = []
        self.most = most
        self.failure: Exception | None = None
        self.begun = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.cancelled = 0

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(list(numbers))
        self.begun.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        if len(numbers) > self.most:
            raise MessageTooLargeError("too much at once")
        for number in numbers:
            if number < 0:
                raise InvalidArgumentError(f"{number} is negative")
        return [2 * number for number in numbers]


def batcher_of(send: Callable[[Sequence[int]], Awaitable[Sequence[Any]]], *, idle: bool = False) -> Batcher[int, Any]:
    """For a connection that has nothing to do, or always something."""
    return Batcher(send, lambda: idle)


# --- Who goes together -----------------------------------------------------------------------------------------------


async def test_calls_of_one_turn_are_one_call():
    sender = Sender()
    batcher = batcher_of(sender)
    assert await asyncio.gather(*map(batcher.call, range(10))) == [2 * n for n in range(10)]
    assert sender.calls == [list(range(10))]


async def test_a_call_alone_goes_alone():
    sender = Sender()
    batcher = batcher_of(sender)
    assert [await batcher.call(number) for number in (1, 2)] == [2, 4]
    assert sender.calls == [[1], [2]]


async def test_one_goes_before_its_turn_ends_if_there_is_nothing_else_to_do():
    sender = Sender()
    call = batcher_of(sender, idle=True).call(1)
    with pytest.raises(StopIteration) as end:
        call.send(None)
    assert (sender.calls, end.value.value) == ([[1]], 2)


async def test_nobody_overtakes_those_who_have_called_before():
    sender = Sender()
    idle = False
    batcher = Batcher(sender, lambda: idle)
    gathered = [asyncio.create_task(batcher.call(number)) for number in range(ITEMS_MAX)]
    await asyncio.sleep(0)
    assert sender.calls == [], "they are to be sent in the next turn"
    idle = True
    assert await batcher.call(ITEMS_MAX) == 2 * ITEMS_MAX
    await asyncio.gather(*gathered)
    assert [number for call in sender.calls for number in call] == list(range(ITEMS_MAX + 1))


async def test_what_becomes_of_one_that_goes_at_once_is_told_as_it_is():
    async def answer(_: Sequence[int]) -> Sequence[int]:
        return []

    with pytest.raises(InvalidArgumentError, match="-1 is negative"):
        await batcher_of(Sender(), idle=True).call(-1)
    with pytest.raises(InternalError, match="the server answered for 0 of 1 items"):
        await batcher_of(answer, idle=True).call(1)


async def test_nobody_waits_for_a_call_that_is_under_way():
    sender = Sender()
    sender.may_answer.clear()
    batcher = batcher_of(sender)
    first = asyncio.create_task(batcher.call(1))
    await sender.begun.wait()
    sender.may_answer.set()
    assert await batcher.call(2) == 4
    assert await first == 2
    assert sender.calls == [[1], [2]]


async def test_very_many_are_several_calls():
    sender = Sender()
    batcher = batcher_of(sender)
    count = 2 * ITEMS_MAX + 1
    assert await asyncio.gather(*map(batcher.call, range(count))) == [2 * n for n in range(count)]
    assert [len(call) for call in sender.calls] == [ITEMS_MAX, ITEMS_MAX, 1]


async def test_each_event_loop_has_turns_of_its_own():
    async def answer(numbers: Sequence[int]) -> list[tuple[int, int]]:
        return [(number, threading.get_ident()) for number in numbers]

    batcher = batcher_of(answer)
    together = threading.Barrier(4)

    async def calls(number: int) -> None:
        for _ in range(10):
            assert await batcher.call(number) == (number, threading.get_ident())

    def run(number: int) -> None:
        together.wait(SAFETY_SECONDS)
        for _ in range(20):
            asyncio.run(calls(number))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, run, n) for n in range(4)))
    finally:
        sys.setswitchinterval(interval)


async def test_a_loop_that_was_closed_in_the_middle_of_a_turn_is_forgotten():
    batcher = batcher_of(Sender())
    loop = asyncio.new_event_loop()
    in_vain = batcher.call(1)

    def begin_and_close() -> None:
        asyncio.set_event_loop(loop)
        loop.call_soon(lambda: (in_vain.send(None), loop.stop()))
        loop.run_forever()
        loop.close()

    await asyncio.to_thread(begin_and_close)
    in_vain.close()
    assert await batcher.call(2) == 4
    assert not batcher._turns


# --- What becomes of each --------------------------------------------------------------------------------------------


async def test_each_gets_its_own_error():
    sender = Sender()
    results = await asyncio.gather(*map(batcher_of(sender).call, [1, -2, 3, -4]), return_exceptions=True)
    assert [str(result) for result in results] == ["2", "-2 is negative", "6", "-4 is negative"]
    assert sender.calls == [[1, -2, 3, -4], [1], [-2], [3], [-4]]


async def test_what_is_too_large_together_goes_one_by_one():
    sender = Sender(most=1)
    assert await asyncio.gather(*map(batcher_of(sender).call, [1, 2])) == [2, 4]


@pytest.mark.parametrize(
    "failure",
    [StoreUnavailableError("down"), InternalError("incident"), CallCancelledError("stopped"), ValueError("a bug")],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_failure_of_the_call_is_everyones_and_it_is_not_made_again(failure: Exception):
    sender = Sender()
    sender.failure = failure
    results = await asyncio.gather(*map(batcher_of(sender).call, [1, 2, 3]), return_exceptions=True)
    assert [(type(result), str(result)) for result in results] == [(type(failure), str(failure))] * 3
    assert len({id(result) for result in results}) == 3, "each can get a traceback of its own"
    assert sender.calls == [[1, 2, 3]]


async def test_one_that_is_cancelled_while_all_are_refused_is_not_sent_again():
    sender = Sender()
    sender.may_answer.clear()
    batcher = batcher_of(sender)
    calls = [asyncio.create_task(batcher.call(number)) for number in (1, -2, 3)]
    await sender.begun.wait()
    calls[2].cancel()
    sender.may_answer.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [int, InvalidArgumentError, asyncio.CancelledError]
    assert sender.calls == [[1, -2, 3], [1], [-2]]


async def test_an_answer_for_fewer_than_were_sent_is_an_error_of_all():
    async def answer(numbers: Sequence[int]) -> Sequence[int]:
        return numbers[1:]

    results = await asyncio.gather(*map(batcher_of(answer).call, [1, 2, 3]), return_exceptions=True)
    assert [str(result) for result in results] == ["the server answered for 2 of 3 items"] * 3
    assert {type(result) for result in results} == {InternalError}


async def test_cancelling_one_is_nothing_to_the_others():
    sender = Sender()
    sender.may_answer.clear()
    batcher = batcher_of(sender)
    calls = [asyncio.create_task(batcher.call(number)) for number in range(3)]
    await sender.begun.wait()
    calls[1].cancel()
    await asyncio.wait([calls[1]])
    sender.may_answer.set()
    assert [await calls[0], await calls[2]] == [0, 4]
    assert calls[1].cancelled()


async def test_one_that_is_cancelled_before_the_turn_ends_is_not_sent():
    sender = Sender()
    batcher = batcher_of(sender)
    calls = [batcher.call(number) for number in range(3)]
    futures = [call.send(None) for call in calls]
    futures[1].cancel()
    await sender.begun.wait()
    assert sender.calls == [[0, 2]]
    for call in calls:
        call.close()


async def test_when_all_are_cancelled_the_call_is():
    sender = Sender()
    sender.may_answer.clear()
    batcher = batcher_of(sender)
    calls = [asyncio.create_task(batcher.call(number)) for number in range(3)]
    await sender.begun.wait()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await asyncio.sleep(0)
    assert sender.cancelled == 1


# --- On the client ---------------------------------------------------------------------------------------------------


async def test_callers_of_the_client_get_what_is_theirs(rig):
    client: LightningStoreClient = rig.client()
    made = await asyncio.gather(*(client.enqueue_rollout(number) for number in range(50)))
    assert [rollout.input for rollout in made] == list(range(50))
    attempts = [await client.start_attempt(rollout.rollout_id) for rollout in made]
    keys = [(one.rollout_id, one.attempt.attempt_id) for one in attempts]
    assert await asyncio.gather(*(client.get_next_span_sequence_id(*key) for key in keys)) == [1] * 50
    spans = [make_span(attempt, name=f"span {index}") for index, attempt in enumerate(attempts)]
    assert await asyncio.gather(*map(client.add_span, spans)) == spans
    assert await asyncio.gather(*map(client.add_span, spans)) == [None] * 50
    for key, span in zip(keys, spans, strict=True):
        assert list(await client.query_spans(key[0])) == [span]


async def test_one_bad_call_hurts_no_other(rig):
    client: LightningStoreClient = rig.client()
    started = await client.start_rollout("task")
    key = (started.rollout_id, started.attempt.attempt_id)
    numbers = await asyncio.gather(
        client.get_next_span_sequence_id(*key),
        client.get_next_span_sequence_id("ro-unknown", "at-unknown"),
        client.get_next_span_sequence_id(*key),
        client.get_next_span_sequence_id("", "at"),
        return_exceptions=True,
    )
    assert [numbers[0], numbers[2]] == [1, 2]
    assert isinstance(numbers[1], RolloutNotFoundError)
    assert isinstance(numbers[3], InvalidArgumentError)
    added = await asyncio.gather(
        client.add_span(make_span(started)),
        client.add_span(make_span(started, attempt_id="at-unknown")),
        client.add_span("no span"),
        return_exceptions=True,
    )
    assert [type(result).__name__ for result in added] == ["Span", "AttemptNotFoundError", "InvalidTypeError"]
    assert isinstance(added[2], InvalidTypeError)


async def test_a_large_item_goes_by_itself(rig):
    client: LightningStoreClient = rig.client()
    large = "x" * BATCHED_BYTES_MAX
    made = await asyncio.gather(client.enqueue_rollout("small"), client.enqueue_rollout(large))
    assert [rollout.input for rollout in made] == ["small", large]
    started = await client.start_rollout("task")
    spans = [make_span(started, number, attributes={"a": text}) for number, text in enumerate(("small", large))]
    assert await asyncio.gather(*map(client.add_span, spans)) == spans


async def test_a_client_is_pickled_without_the_calls_that_it_makes(rig):
    client: LightningStoreClient = rig.client()
    call = asyncio.create_task(client.enqueue_rollout("task"))
    await asyncio.sleep(0)
    other = pickle.loads(pickle.dumps(client))
    assert (await call).input == "task"
    assert (await other.enqueue_rollout("of the other")).input == "of the other"
    await other.close()
