"""What a store in a SQLite database keeps when it is closed and opened again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lightning_store import LLM, EnqueueRolloutRequest, RolloutConfig, Span
from lightning_store.backends.sqlite import loading
from lightning_store.backends.sqlite.maintenance import check
from lightning_store.engine.idempotency import request_scope
from lightning_store.errors import CursorUnknownError, StoreUnavailableError
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span
from tests.durability.looks import everything

pytestmark = pytest.mark.asyncio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def opened(path: Path, clock: FakeClock, **options: Any) -> SqliteLightningStore:
    return SqliteLightningStore(path, clock=clock, **options)


async def test_what_trainers_rely_on_survives(path, clock):
    def groups(*names: str) -> list[EnqueueRolloutRequest]:
        return [
            EnqueueRolloutRequest(input=name, group_id=name, group_size=2, metadata={"lightning.run": "r"})
            for name in names
            for _ in range(2)
        ]

    with opened(path, clock) as store:
        await store.set_admission("r", max_open_groups=1)
        queued = await store.enqueue_many_rollouts(groups("a", "b", "c"), idempotency_key="step")
        [first, second] = await store.dequeue_many_rollouts(limit=9)
        await store.update_attempt(first.rollout_id, "latest", status="succeeded")
        await store.mark_consumed("trainer", [first.rollout_id], checkpoint="one")
        await store.dequeue_rollout()
        await store.mark_consumed("trainer", [queued[4].rollout_id])
    with opened(path, clock) as store:
        assert await store.enqueue_many_rollouts(groups("a", "b", "c"), idempotency_key="step")
        assert [one.group_id for one in await store.dequeue_many_rollouts(limit=9)] == ["b"]
        assert await store.mark_consumed("trainer", [second.rollout_id]) == []
        assert await store.rewind_consumer("trainer", checkpoint="one") == [one.rollout_id for one in queued[4:]]
        await store.mark_consumed("trainer", [queued[2].rollout_id])
        assert [one.group_id for one in await store.dequeue_many_rollouts(limit=9)] == ["c", "c"]
        assert await store.wait_for_groups(["b", "c"], timeout=0, min_done=1) == []
    assert list(check(str(path))) == []


async def test_everything_that_is_shown_survives(path, clock):
    config = RolloutConfig(timeout_seconds=60, max_attempts=2, retry_condition=["failed"])
    with opened(path, clock) as store:
        await store.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="first")})
        await store.add_resources({"llm": LLM(endpoint="http://localhost/v1", model="second")})
        for number in range(4):
            await store.enqueue_rollout(
                {"task": number, "text": "☃"}, mode="train", config=config, metadata={"n": number}
            )
            clock.advance(1)
        first = await store.dequeue_rollout(worker_id="w-1")
        second = await store.dequeue_rollout(worker_id="w-2")
        await store.add_many_spans([make_span(first, number, attributes={"n": number}) for number in (1, 2, 3)])
        await store.update_worker("w-1", {"load": 0.5})
        await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="succeeded")
        await store.update_attempt(second.rollout_id, second.attempt.attempt_id, status="failed")
        before = await everything(store)
    with opened(path, clock) as store:
        assert await everything(store) == before
        assert await store.get_next_span_sequence_id(first.rollout_id, first.attempt.attempt_id) == 4
        assert await store.add_span(make_span(first, 2)) is None
        claimed = await store.dequeue_many_rollouts(limit=9)
        assert [one.input["task"] for one in claimed] == [2, 3, 1]
        assert [one.attempt.sequence_id for one in claimed] == [1, 1, 2]


async def test_deadlines_count_on(path, clock):
    with opened(path, clock) as store:
        timed = await store.start_rollout("t", config=RolloutConfig(timeout_seconds=10))
    clock.advance(9)
    with opened(path, clock) as store:
        assert (await store.get_rollout_by_id(timed.rollout_id)).status == "preparing"
        clock.advance(2)
        assert (await store.get_latest_attempt(timed.rollout_id)).status == "timeout"


async def test_nobody_is_judged_for_silence_while_the_store_was_closed(path, clock):
    options = {"worker_timeout_seconds": 5.0}
    with opened(path, clock, **options) as store:
        silent = await store.start_rollout("t", config=RolloutConfig(unresponsive_seconds=4))
        await store.enqueue_rollout("u")
        held = await store.dequeue_rollout(worker_id="w")
        await store.update_worker("w")
    clock.advance(3600)
    with opened(path, clock, **options) as store:
        clock.advance(3.9)
        assert {one.status for one in await store.query_rollouts()} == {"preparing"}
        await store.update_worker("w")
        clock.advance(1)
        assert (await store.get_latest_attempt(silent.rollout_id)).status == "unresponsive"
        clock.advance(3.9)
        assert (await store.get_latest_attempt(held.rollout_id)).status == "preparing"
        clock.advance(1)
        assert (await store.get_latest_attempt(held.rollout_id)).status == "unresponsive"


async def test_the_time_of_the_store_does_not_go_back(path, clock, caplog):
    """The machine's clock was set back while the store was closed. Records keep their right age."""
    options = {"replay_window_seconds": 60.0}
    with opened(path, clock, **options) as store, request_scope("id-1"):
        made = await store.enqueue_rollout("first")
        clock.advance(5)
        await store.update_worker("w")
    clock.jump(-3600)
    with opened(path, clock, **options) as store:
        assert "the machine's clock is 3600 s behind" in caplog.text.lower()
        clock.advance(54)
        with request_scope("id-1", repeated=True):
            assert await store.enqueue_rollout("first") == made
        clock.advance(2)
        second = await store.enqueue_rollout("second")
        assert second.start_time == pytest.approx(made.start_time + 61)
        with request_scope("id-1", repeated=True):
            assert await store.enqueue_rollout("first") != made


async def test_what_is_not_retained_goes_by_its_size(path, clock, monkeypatch):
    """A transaction deletes a few large rollouts only, so that nobody waits for long."""
    monkeypatch.setattr(loading, "EXPENDABLE_BYTES", 100_000)
    with opened(path, clock, retain_finished_seconds=60) as store:
        for number in range(5):
            rollout = await store.start_rollout(number)
            await store.add_span(make_span(rollout, attributes={"text": "x" * 60_000}))
            await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
        clock.advance(61)
        await store.enqueue_rollout("new")
        with sqlite3.connect(path) as connection:
            [stored] = connection.execute("SELECT count(*) FROM rollouts").fetchone()
            assert stored > 3  # the call has deleted one, and the timer perhaps another
        connection.close()
        for _ in range(4):
            clock.advance(0.01)
            await store.update_worker("w")
        assert [one.input for one in await store.query_rollouts()] == ["new"]
        assert (await store.statistics())["total_spans"] == 0


async def finish(store: SqliteLightningStore, name: str) -> str:
    rollout = await store.start_rollout(name)
    await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    return rollout.rollout_id


async def next_completion(store: SqliteLightningStore, after: str | None) -> Any:
    stream: Any = store.watch_rollouts(after=after)
    try:
        return await anext(stream)
    finally:
        await stream.aclose()


async def test_a_cursor_goes_on_after_a_restart(path, clock):
    """Also when the last completion was deleted: its position is not used again."""
    with opened(path, clock) as store:
        await finish(store, "first")
        last = await finish(store, "last")
        first = await next_completion(store, None)
        cursor = (await next_completion(store, first.cursor)).cursor
        await store.delete_rollouts(rollout_ids=[last])
    with opened(path, clock) as store:
        another = await finish(store, "another")
        found = await next_completion(store, cursor)
        assert found.rollout.rollout_id == another
        assert (await next_completion(store, first.cursor)).rollout.rollout_id == another


async def test_a_cursor_of_another_file_is_refused(path, clock, tmp_path):
    with opened(path, clock) as store, opened(tmp_path / "other.db", clock) as other:
        await finish(store, "first")
        cursor = (await next_completion(store, None)).cursor
        with pytest.raises(CursorUnknownError):
            await next_completion(other, cursor)


async def test_a_call_that_is_repeated_after_a_restart_is_not_made_again(path, clock):
    with opened(path, clock, replay_window_seconds=60.0) as store, request_scope("id-1"):
        made = await store.enqueue_rollout("t")
    clock.advance(59)
    with opened(path, clock, replay_window_seconds=60.0) as store:
        with request_scope("id-1", repeated=True):
            assert await store.enqueue_rollout("t") == made
        assert len(await store.query_rollouts()) == 1
        clock.advance(2)
        with request_scope("id-1", repeated=True):
            assert await store.enqueue_rollout("t") != made


async def test_row_numbers_and_places_go_on(path, clock):
    """What is inserted after a restart follows what was there, in the queue and in every list."""
    with opened(path, clock) as store:
        ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(3)]
        await store.delete_rollouts(rollout_ids=ids[2:])
    with opened(path, clock) as store:
        ids[2] = (await store.enqueue_rollout("new")).rollout_id
        assert [one.rollout_id for one in await store.query_rollouts()] == ids
        assert [one.rollout_id for one in await store.dequeue_many_rollouts(limit=9)] == ids


async def test_a_closed_store_says_so(path, clock):
    store = opened(path, clock)
    await store.enqueue_rollout("t")
    store.close()
    store.close()
    with pytest.raises(StoreUnavailableError, match="was closed"):
        await store.enqueue_rollout("t")


async def test_spans_come_back_as_they_were(path, clock):
    with opened(path, clock) as store:
        rollout = await store.start_rollout("t")
        span: Span = make_span(
            rollout, 7, name="☃", start_time=1.25, end_time=None, attributes={"list": [1, 2.5], "text": "x" * 100_000}
        )
        await store.add_span(span)
    with opened(path, clock) as store:
        assert list(await store.query_spans(rollout.rollout_id)) == [span]
