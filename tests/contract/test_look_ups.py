"""Look-ups of rollouts share a snapshot where each read is a round trip; none waits for those before it that read for
long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from lightning_store import StoreUnavailableError
from lightning_store.backends.base import Snapshot, SnapshotEndedError
from lightning_store.backends.records import RolloutRow
from lightning_store.engine.look_ups import Found, LookUps

pytestmark = pytest.mark.asyncio

LIMIT_SECONDS = 60.0


class Snapshots:
    """Has a rollout for each id but for those that begin with "no"."""

    def __init__(self) -> None:
        self.looks: list[Sequence[str]] = []
        """What each snapshot was asked for."""
        self.open = 0
        self.failure: Exception | None = None

    async def read(self, select: Callable[[Snapshot], Awaitable[None]]) -> None:
        self.open += 1
        try:
            await asyncio.sleep(0)
            await select(cast(Snapshot, self))
        finally:
            self.open -= 1

    async def closed(self) -> None:
        """Return when none is open any more."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while self.open:  # noqa: ASYNC110  # its group has a turn to end
                await asyncio.sleep(0)

    async def rollouts(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.looks.append(rollout_ids)
        return [None if one.startswith("no") else cast(RolloutRow, f"row of {one}") for one in rollout_ids]


@pytest.fixture
def snapshots() -> Snapshots:
    return Snapshots()


async def nothing_else(_: Snapshot, found: Found) -> list[Any]:
    return list(found)


async def test_those_that_are_ready_are_one_look(snapshots: Snapshots) -> None:
    look_ups = LookUps(snapshots.read)
    wanted = [["a"], ["b", "a"], ["none"], [], ["a"]]
    found = await asyncio.gather(*(look_ups.rollouts(one, nothing_else) for one in wanted))
    assert found == [["row of a"], ["row of b", "row of a"], [None], [], ["row of a"]]
    assert [list(one) for one in snapshots.looks] == [["a"], ["b", "a", "none"]]
    await snapshots.closed()


async def test_a_snapshot_is_open_until_all_have_read_from_it(snapshots: Snapshots) -> None:
    look_ups, may_end = LookUps(snapshots.read), asyncio.Event()
    opened: list[int] = []

    async def read_on(snapshot: Snapshot, _: Found) -> None:
        await may_end.wait()
        opened.append(snapshots.open)

    reading = [asyncio.create_task(look_ups.rollouts([one], read_on)) for one in "abc"]
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await look_ups.rollouts(["d"], nothing_else) == ["row of d"]  # those before read for long
        may_end.set()
        await asyncio.gather(*reading)
    assert all(opened)
    await snapshots.closed()


@pytest.mark.parametrize("turns", range(6))
async def test_one_that_is_cancelled_leaves_the_others_alone(snapshots: Snapshots, turns: int) -> None:
    look_ups = LookUps(snapshots.read)
    looks = [asyncio.create_task(look_ups.rollouts([one], nothing_else)) for one in "abcd"]
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled = [looks[0], looks[2]]
    for one in cancelled:
        one.cancel()
    async with asyncio.timeout(LIMIT_SECONDS):
        results = await asyncio.gather(*looks, return_exceptions=True)
        assert [results[1], results[3]] == [["row of b"], ["row of d"]]
        assert await look_ups.rollouts(["e"], nothing_else) == ["row of e"]
    await snapshots.closed()


async def test_a_failure_is_that_of_each_and_ends_with_it(snapshots: Snapshots) -> None:
    look_ups, snapshots.failure = LookUps(snapshots.read), StoreUnavailableError("it is away")
    results: list[Any] = await asyncio.gather(
        *(look_ups.rollouts([one], nothing_else) for one in "abc"), return_exceptions=True
    )
    assert [str(one) for one in results] == ["it is away"] * 3
    assert len(set(map(id, results))) == 3
    snapshots.failure = None
    assert await look_ups.rollouts(["d"], nothing_else) == ["row of d"]


async def test_where_another_one_has_ended_the_snapshot_it_is_a_second_one(snapshots: Snapshots) -> None:
    tries: list[Found] = []

    async def end(_: Snapshot, found: Found) -> list[Any]:
        tries.append(found)
        if len(tries) == 1:
            raise SnapshotEndedError("a read beside this one failed")
        return list(found)

    assert await LookUps(snapshots.read).rollouts(["a"], end) == ["row of a"]
    assert len(snapshots.looks) == 2


async def test_what_one_makes_of_it_fails_for_itself(snapshots: Snapshots) -> None:
    async def refuse(_: Snapshot, found: Found) -> None:
        raise LookupError("not this one")

    look_ups = LookUps(snapshots.read)
    results = await asyncio.gather(
        look_ups.rollouts(["a"], refuse), look_ups.rollouts(["b"], nothing_else), return_exceptions=True
    )
    assert isinstance(results[0], LookupError)
    assert results[1] == ["row of b"]
