"""The indices of the memory backend against the plainest thing that does the same, and that they stay small."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lightning_store.backends.memory import indices
from lightning_store.backends.base import Completion
from lightning_store.backends.memory.indices import BLOCK, SHARDS, SLACK, Blocks, Deadlines, Shards

IDS = st.sampled_from("abcdefgh")
MANY = 5 * SLACK
LITTLE_BLOCK = 4


@given(st.lists(st.tuples(st.sampled_from(["set", "pop"]), IDS, st.integers())))
def test_shards_are_a_dictionary(changes: list[tuple[str, str, int]]) -> None:
    shards: Shards[int] = Shards()
    plain: dict[str, int] = {}
    for change, id_, value in changes:
        if change == "set":
            shards[id_] = plain[id_] = value
        else:
            assert shards.pop(id_) == plain.pop(id_, None)
        assert (len(shards), shards.get(id_), id_ in shards) == (len(plain), plain.get(id_), id_ in plain)
    assert all(shards[id_] == value for id_, value in plain.items())


@given(st.sets(st.integers(0, 5 * BLOCK)), st.data())
def test_blocks_are_in_order(numbers: set[int], data: st.DataObject) -> None:
    blocks: Blocks[int] = Blocks()
    for number in sorted(numbers):
        blocks[number] = number
    removed = data.draw(st.sets(st.sampled_from(sorted(numbers)))) if numbers else set()
    for number in removed:
        del blocks[number]
    left = sorted(numbers - removed)
    assert list(blocks) == left
    assert len(blocks._blocks) == len({number // BLOCK for number in left})
    first = data.draw(st.integers(0, 5 * BLOCK))
    assert list(blocks.since(first)) == [number for number in left if number >= first]


def test_no_dictionary_holds_much_of_it() -> None:
    shards: Shards[int] = Shards()
    blocks: Blocks[int] = Blocks()
    for number in range(MANY):
        shards[f"ro-{number}"] = blocks[number] = number
    assert max(map(len, shards._shards)) < 2 * MANY / SHARDS
    assert max(map(len, blocks._blocks.values())) == BLOCK


class FifoMachine(RuleBasedStateMachine):
    """A list in which an id stands once."""

    def __init__(self) -> None:
        super().__init__()
        self._block = mock.patch.object(indices, "BLOCK", LITTLE_BLOCK)
        self._block.start()
        self.fifo = Fifo()
        self.plain: list[str] = []

    def teardown(self) -> None:
        while self.plain:
            assert self.fifo.pop() == self.plain.pop(0)
        assert self.fifo.pop() is None
        self._block.stop()

    @rule(id_=IDS)
    def push(self, id_: str) -> None:
        self.fifo.push(id_)
        if id_ not in self.plain:
            self.plain.append(id_)

    @rule()
    def pop(self) -> None:
        assert self.fifo.pop() == (self.plain.pop(0) if self.plain else None)

    @rule(id_=IDS, times=st.integers(1, 3 * LITTLE_BLOCK))
    def leave_again_and_again(self, id_: str, times: int) -> None:
        for _ in range(times):
            self.push(id_)
            self.fifo.discard(id_)
            self.plain.remove(id_)

    @invariant()
    def it_is_as_the_list(self) -> None:
        assert (list(self.fifo), len(self.fifo)) == (self.plain, len(self.plain))
        assert self.fifo.head() == (self.plain[0] if self.plain else None)


TestFifo = FifoMachine.TestCase


class CompletionLogMachine(RuleBasedStateMachine):
    """A list in which a rollout stands once, at its last completion."""

    def __init__(self) -> None:
        super().__init__()
        self._block = mock.patch.object(indices, "BLOCK", LITTLE_BLOCK)
        self._block.start()
        self.log = CompletionLog()
        self.plain: list[Completion] = []
        self.position = 0

    def teardown(self) -> None:
        self._block.stop()

    def forget_plainly(self, rollout_id: str) -> None:
        self.plain = [one for one in self.plain if one.rollout_id != rollout_id]

    @rule(rollout_id=IDS, time=st.floats(0, 100))
    def note(self, rollout_id: str, time: float) -> None:
        self.position += 1
        self.forget_plainly(rollout_id)
        self.plain.append(Completion(rollout_id, self.position, time))
        self.log.note(rollout_id, time)

    @rule(rollout_id=IDS)
    def forget(self, rollout_id: str) -> None:
        self.forget_plainly(rollout_id)
        self.log.forget(rollout_id)

    @rule(rollout_id=IDS, times=st.integers(1, 2 * LITTLE_BLOCK))
    def end_again_and_again(self, rollout_id: str, times: int) -> None:
        for _ in range(times):
            self.note(rollout_id, 0.0)

    @rule(share=st.floats(0, 1.1))
    def read_after(self, share: float) -> None:
        position = int(self.position * share)
        assert list(self.log.after(position)) == [one for one in self.plain if one.position > position]

    @invariant()
    def it_is_as_the_list(self) -> None:
        assert list(self.log.after(0)) == self.plain
        assert (len(self.log), self.log.position) == (len(self.plain), self.position)
        completions = {one.rollout_id: one for one in self.plain}
        assert all(self.log.get(rollout_id) == completions.get(rollout_id) for rollout_id in "abcdefgh")


TestCompletionLog = CompletionLogMachine.TestCase


def test_completions_that_are_forgotten_leave_nothing_behind() -> None:
    log = CompletionLog()
    for number in range(MANY):
        log.note(f"ro-{number}", 0.0)
    for number in reversed(range(MANY)):
        log.forget(f"ro-{number}")
        assert len(list(log._in_order)) == number
    assert list(log.after(0)) == []
    assert log.position == MANY


def instructions(act: Callable[[], object]) -> int:
    """How many instructions Python runs for ``act``."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(former)
    return count


@pytest.mark.parametrize("position", ["before all", "the last but one"])
def test_a_look_is_no_more_work_however_many_were_forgotten(position: str) -> None:
    log = CompletionLog()
    costs = []
    for number in range(10 * BLOCK):
        log.note(f"ro-{number}", 0.0)
        if number:
            log.forget(f"ro-{number - 1}")
            after = 0 if position == "before all" else log.position - 1
            assert [one.rollout_id for one in log.after(after)] == [f"ro-{number}"]
        if number % (BLOCK // 4) == 7:
            costs.append(instructions(partial(list, log.after(after))))
    assert max(costs) < 200


@given(st.lists(st.tuples(IDS, st.none() | st.integers(0, 20))), st.integers(0, 21), st.integers(1, 8))
def test_deadlines_come_up_in_order(changes: list[tuple[str, int | None]], now: int, limit: int) -> None:
    deadlines, plain = Deadlines(), {}
    for rollout_id, time in changes:
        deadlines.set(rollout_id, time)
        plain[rollout_id] = time
    due = sorted((time, rollout_id) for rollout_id, time in plain.items() if time is not None and time < now)
    taken = deadlines.take(now, limit)
    assert [plain[rollout_id] for rollout_id in taken] == [time for time, _ in due[:limit]]
    assert set(taken) <= {rollout_id for _, rollout_id in due}
    left = [time for rollout_id, time in plain.items() if time is not None and rollout_id not in taken]
    earliest = deadlines.earliest()
    assert earliest is None or earliest <= min(left, default=earliest)
    assert earliest is not None or not left


def test_deadlines_that_are_taken_back_leave_little_behind() -> None:
    deadlines = Deadlines()
    for number in range(MANY):
        deadlines.set(f"ro-{number}", 1e6 + number)
        deadlines.set(f"ro-{number}", None)
        assert max(len(deadlines._heap), len(deadlines._entry)) <= SLACK
    for number in range(MANY):
        deadlines.set(f"ro-{number}", 1e6 + number)
    for number in range(1, MANY):
        deadlines.set(f"ro-{number}", None)
    assert max(len(deadlines._heap), len(deadlines._entry)) <= SLACK + 2
    assert deadlines.take(2e6, MANY) == ["ro-0"]
