"""The indices of the memory backend against the plainest thing that does the same, and that they stay small."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lightning_store.backends.memory import indices
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


class BlocksMachine(RuleBasedStateMachine):
    """A dictionary that is read in the order of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._block = mock.patch.object(indices, "BLOCK", LITTLE_BLOCK)
        self._block.start()
        self.blocks: Blocks[str] = Blocks()
        self.plain: dict[int, str] = {}
        self.last = 0

    def teardown(self) -> None:
        self._block.stop()

    @rule(id_=IDS, skipped=st.integers(0, 2 * LITTLE_BLOCK))
    def append(self, id_: str, skipped: int) -> None:
        self.last += 1 + skipped
        self.blocks[self.last] = self.plain[self.last] = id_

    @rule(id_=IDS, share=st.floats(0, 1))
    def insert(self, id_: str, share: float) -> None:
        number = int(self.last * share)
        if number not in self.plain:
            self.blocks.insert(number, id_)
            self.plain[number] = id_

    @rule(place=st.integers(0, 100))
    def delete(self, place: int) -> None:
        if self.plain:
            number = sorted(self.plain)[place % len(self.plain)]
            del self.blocks[number]
            del self.plain[number]

    @rule(id_=IDS, times=st.integers(1, 3 * LITTLE_BLOCK))
    def leave_again_and_again(self, id_: str, times: int) -> None:
        for _ in range(times):
            self.append(id_, 0)
            del self.blocks[self.last]
            del self.plain[self.last]

    @rule(share=st.floats(0, 1.1))
    def read_from(self, share: float) -> None:
        first = int(self.last * share)
        assert list(self.blocks.since(first)) == [self.plain[one] for one in sorted(self.plain) if one >= first]

    @invariant()
    def it_is_as_the_dictionary(self) -> None:
        assert list(self.blocks) == [self.plain[number] for number in sorted(self.plain)]
        assert len(self.blocks) == len(self.plain)


TestBlocks = BlocksMachine.TestCase


def test_entries_that_are_deleted_leave_nothing_behind() -> None:
    blocks: Blocks[int] = Blocks()
    for number in range(MANY):
        blocks[number] = number
    for number in reversed(range(MANY)):
        del blocks[number]
        assert len(list(blocks)) == len(blocks) == number
    assert list(blocks.since(0)) == []
    assert not blocks._blocks


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


@pytest.mark.parametrize("position", ["before all", "the last"])
def test_a_look_is_no_more_work_however_many_were_deleted(position: str) -> None:
    blocks: Blocks[int] = Blocks()
    costs = []
    for number in range(10 * BLOCK):
        blocks[number] = number
        if number:
            del blocks[number - 1]
        first = 0 if position == "before all" else number
        assert list(blocks.since(first)) == [number]
        if number % (BLOCK // 4) == 7:
            costs.append(instructions(lambda first=first: list(blocks.since(first))))  # type: ignore[misc]
    assert max(costs) < 200


@given(st.lists(st.tuples(IDS, st.none() | st.integers(0, 20))), st.integers(0, 21), st.integers(1, 8))
def test_deadlines_come_up_in_order(changes: list[tuple[str, int | None]], now: int, limit: int) -> None:
    deadlines, plain = Deadlines(), {}
    for rollout_id, time in changes:
        deadlines.set(rollout_id, time)
        plain[rollout_id] = time
    due = sorted((time, rollout_id) for rollout_id, time in plain.items() if time is not None and time < now)
    for _ in range(2):  # a look changes nothing
        passed = deadlines.passed(now, limit)
        assert [plain[rollout_id] for rollout_id in passed] == [time for time, _ in due[:limit]]
        assert set(passed) <= {rollout_id for _, rollout_id in due}
        assert len(set(passed)) == len(passed)
    earliest, times = deadlines.earliest(), [time for time in plain.values() if time is not None]
    assert earliest is None or earliest <= min(times, default=earliest)
    assert earliest is not None or not times
    for rollout_id in passed:
        deadlines.set(rollout_id, None)
        plain[rollout_id] = None
    left = sorted(time for time in plain.values() if time is not None and time < now)
    assert [plain[rollout_id] for rollout_id in deadlines.passed(now, len(plain))] == left


def test_what_is_earliest_is_right_after_a_look() -> None:
    deadlines = Deadlines()
    deadlines.set("moved", 1)
    deadlines.set("moved", 9)
    deadlines.set("gone", 2)
    deadlines.set("gone", None)
    assert deadlines.passed(5, 10) == []
    assert deadlines.earliest() == 9


def test_deadlines_that_are_taken_back_leave_little_behind() -> None:
    deadlines = Deadlines()
    for number in range(MANY):
        deadlines.set(f"ro-{number}", 1e6 + number)
        deadlines.set(f"ro-{number}", None)
        assert len(deadlines._heap) <= SLACK + 1
    assert not deadlines._due
    for number in range(MANY):
        deadlines.set(f"ro-{number}", 1e6 + number)
    for number in range(1, MANY):
        deadlines.set(f"ro-{number}", None)
    assert len(deadlines._heap) <= SLACK + 2
    assert deadlines.passed(2e6, MANY) == ["ro-0"]
