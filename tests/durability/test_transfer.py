"""Exports and imports, in each direction between stores of all kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from lightning_store import LLM, AttemptedRollout, EnqueueRolloutRequest, InMemoryLightningStore, RolloutConfig
from lightning_store.backends.records import ResourcesRecord, StoredRollout, WorkerRecord
from lightning_store.backends.sqlite.maintenance import check
from lightning_store.engine import transfer
from lightning_store.engine.idempotency import request_scope
from lightning_store.engine.store import EngineStore
from lightning_store.engine.transfer import Counted, Imported, Place
from lightning_store.errors import InvalidArgumentError, ResourceExhaustedError, SpansEvictedError
from lightning_store.queries import ALL_ROLLOUTS, ResourcesQuery, RolloutQuery, WorkerQuery
from lightning_store.sqlite_store import SqliteEngineStore
from lightning_store.testing import FakeClock
from lightning_store.testing.backends import BACKENDS, store_on
from lightning_store.testing.contract.base import make_span, retrying
from lightning_store.wire import transfer as transfers
from tests.durability.looks import everything

pytestmark = pytest.mark.asyncio

Opened: TypeAlias = Callable[..., AbstractAsyncContextManager[EngineStore]]
KINDS = ("memory", "sqlite", *BACKENDS)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def opened(clock: FakeClock, tmp_path: Path) -> Opened:
    """Open a store of a kind."""

    @asynccontextmanager
    async def open_store(kind: str, **options: Any) -> AsyncIterator[EngineStore]:
        if kind == "memory":
            yield InMemoryLightningStore(clock=clock, **options)
        elif kind == "sqlite":
            store = SqliteEngineStore(tmp_path / "store.db", clock=clock, **options)
            try:
                yield store
            finally:
                store.close()
                assert list(check(store.path)) == []
        else:
            yield store_on(BACKENDS[kind], clock=clock, **options)

    return open_store


@pytest_asyncio.fixture(params=KINDS, loop_scope="function")
async def store(request: pytest.FixtureRequest, opened: Opened) -> AsyncIterator[EngineStore]:
    """A new store of each kind."""
    async with opened(request.param) as store:
        yield store


async def fill(store: EngineStore, clock: FakeClock) -> None:
    """Rollouts in each status, a queue whose order is not that in which they were made, and something of all else."""
    for name in ("first", "second"):
        await store.add_resources({"llm": LLM(endpoint="http://localhost/v1", model=name)})
        clock.advance(1)
    for number in range(6):
        await store.enqueue_rollout(
            {"task": number, "text": "☃\ud800"},
            mode="train" if number % 2 else None,
            config=retrying(3),
            metadata={"n": [number]},
        )
        clock.advance(1)
    for status, worker in (("succeeded", "w-1"), ("failed", "w-2"), (None, "w-3"), (None, None)):
        claimed = await store.dequeue_rollout(worker_id=worker)
        assert claimed is not None
        await store.add_many_spans([make_span(claimed, number, attributes={"n": number}) for number in (1, 2)])
        if status is not None:
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status=status)
        clock.advance(1)
    await store.update_worker("w-3", {"load": 0.5})
    await store.cancel_rollouts([claimed.rollout_id])


async def exported(store: EngineStore, selection: RolloutQuery = ALL_ROLLOUTS) -> list[StoredRollout]:
    found: list[StoredRollout] = []
    place: Place | None = Place()
    seen = 0
    while place is not None:
        page = await store.engine.export_page(selection, place)
        found += page.rollouts
        seen += page.seen
        place = page.next
    assert seen == page.total
    return found


async def others(store: EngineStore) -> tuple[Sequence[ResourcesRecord], Sequence[WorkerRecord]]:
    """Resources and workers, as records."""
    resources = (await store.engine.query_resources(ResourcesQuery())).items
    return resources, (await store.engine.query_workers(WorkerQuery())).items


def in_queue_order(parts: Sequence[StoredRollout]) -> list[StoredRollout]:
    """As an import sends them: what is queued last, in the order of the queue."""
    return sorted(parts, key=lambda one: one.rollout.queue_position or 0)


@pytest_asyncio.fixture(loop_scope="function")
async def source(clock: FakeClock) -> InMemoryLightningStore:
    store = InMemoryLightningStore(clock=clock)
    await fill(store, clock)
    return store


async def test_an_idempotency_key_holds_in_the_other_store(store, clock):
    source = InMemoryLightningStore(clock=clock)
    batch = [EnqueueRolloutRequest(input=number) for number in range(3)]
    queued = await source.enqueue_many_rollouts(batch, idempotency_key="k")
    parts = [transfers.stored_rollout_to_proto(one) for one in await exported(source)]
    await store.engine.import_rollouts([transfers.stored_rollout_from_proto(one, "rollouts") for one in parts])
    again = await store.enqueue_many_rollouts(batch, idempotency_key="k")
    assert [one.rollout_id for one in again] == [one.rollout_id for one in queued]
    assert len(await store.query_rollouts()) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_that_was_imported_is_as_it_was(opened, clock, store, kind):
    """From each kind to each kind; and a second time it changes nothing."""
    await fill(store, clock)
    clock.advance(1)
    parts, (resources, workers) = await exported(store), await others(store)
    if kind == "sqlite" and isinstance(store, SqliteEngineStore):
        pytest.skip("one file in the folder of a test")
    async with opened(kind) as target:
        done = await target.engine.import_rollouts(parts, resources, workers)
        assert done == Imported(Counted(6, 8, 2, 3), Counted())
        assert await everything(target) == await everything(store)
        assert await target.engine.import_rollouts(parts, resources, workers) == Imported(
            Counted(), Counted(6, 8, 2, 3)
        )
        assert await everything(target) == await everything(store)
        assert await exported(target) == [
            one._replace(
                rollout=one.rollout._replace(
                    completion_time=clock.now() if one.rollout.completion_time else None,
                    completion_position=again.rollout.completion_position,
                    queue_position=again.rollout.queue_position,
                    deadline=again.rollout.deadline,
                )
            )
            for one, again in zip(parts, await exported(target), strict=True)
        ]


async def test_life_goes_on(store, source, clock):
    """The queue has its order, attempts are reported and retried, numbers go on."""
    await store.engine.import_rollouts(in_queue_order(await exported(source)), *await others(source))
    [running] = [one for one in await store.query_rollouts() if one.status == "running"]
    ids = (running.rollout_id, running.attempt.attempt_id)
    assert await store.get_next_span_sequence_id(*ids) == 3
    assert await store.add_span(make_span(running, 2)) is None
    await store.update_attempt(*ids, status="succeeded")
    assert (await store.get_worker_by_id("w-3")).status == "idle"
    expected = [one.input["task"] for one in await source.dequeue_many_rollouts(limit=9)]
    claimed = await store.dequeue_many_rollouts(limit=9)
    assert [one.input["task"] for one in claimed] == expected == [4, 5, 1]
    assert [one.attempt.sequence_id for one in claimed] == [1, 1, 2]


async def test_deadlines_go_on(store, clock):
    source = InMemoryLightningStore(clock=clock)
    timed = await source.start_rollout("t", config=RolloutConfig(timeout_seconds=10))
    clock.advance(9)
    await store.engine.import_rollouts(await exported(source))
    assert (await store.get_rollout_by_id(timed.rollout_id)).status == "preparing"
    clock.advance(2)
    assert (await store.get_latest_attempt(timed.rollout_id)).status == "timeout"


async def test_what_is_stored_is_left_alone_and_lacking_spans_are_added(store, source):
    parts = await exported(source)
    cut = [part._replace(spans=part.spans[:1]) for part in parts]
    await store.engine.import_rollouts(cut)
    [running] = [one for one in await store.query_rollouts() if one.status == "running"]
    await store.update_attempt(running.rollout_id, running.attempt.attempt_id, status="succeeded")
    before = await everything(store)
    done = await store.engine.import_rollouts(parts)
    assert done == Imported(Counted(0, 4), Counted(6, 4))
    after = await everything(store)
    assert after["rollouts"] == before["rollouts"]
    assert after["attempts"] == before["attempts"]
    assert after["spans"] == (await everything(source))["spans"]


async def test_spans_without_an_attempt_and_dropped_ones_are_left_out(store, source):
    [part, *_] = await exported(source)
    rollout_id = part.rollout.rollout_id
    stray = part.spans[0]._replace(attempt_id="at-none", span_id="f" * 16)
    dropped = part._replace(rollout=part.rollout._replace(spans_evicted=True), spans=[*part.spans, stray])
    assert await store.engine.import_rollouts([dropped]) == Imported(Counted(1), Counted(0, 3))
    with pytest.raises(SpansEvictedError):
        await store.query_spans(rollout_id)


async def test_resources_become_the_latest_unless_there_are_later_ones(store, source, clock):
    resources, _ = await others(source)
    own = await store.add_resources({})
    await store.engine.import_rollouts([], resources)
    assert await store.get_latest_resources() == own
    later = resources[0]._replace(resources_id="rs-later", update_time=clock.now() + 1)
    await store.engine.import_rollouts([], [later, resources[1]])
    latest = await store.get_latest_resources()
    assert latest is not None
    assert latest.resources_id == "rs-later"


async def test_a_worker_holds_no_attempt_that_is_not_there(store, source):
    _, workers = await others(source)
    await store.engine.import_rollouts([], [], workers)
    worker = await store.get_worker_by_id("w-3")
    assert worker is not None
    assert (worker.status, worker.current_rollout_id) == ("idle", None)


async def test_waiters_are_told(store, source):
    """Who waits for work gets it, and the feed has what has ended, in the order of the import."""
    await store.engine.import_rollouts(await exported(source))
    ended = [one.rollout_id for one in await store.query_rollouts(status_in=["succeeded", "failed", "cancelled"])]
    feed: Any = store.watch_rollouts()
    assert [(await anext(feed)).rollout.rollout_id for _ in ended] == ended
    await feed.aclose()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_has_ended_is_kept_as_if_it_ended_now(opened, source, clock, kind):
    clock.advance(1000)
    async with opened(kind, retain_finished_seconds=60.0) as store:
        await store.engine.import_rollouts(await exported(source))
        clock.advance(59)
        assert len(await store.query_rollouts()) == 6
        clock.advance(2)
        assert {one.status for one in await store.query_rollouts()} == {"queuing", "requeuing", "running"}


async def test_a_call_that_is_repeated_has_the_same_reply(store, source):
    parts = await exported(source)
    with request_scope("id-1"):
        first = await store.engine.import_rollouts(parts)
    with request_scope("id-1", repeated=True):
        assert await store.engine.import_rollouts(parts) == first


async def test_all_or_nothing(store, source):
    parts = await exported(source)
    ended = next(index for index, part in enumerate(parts) if part.rollout.status == "cancelled")
    parts[ended] = parts[ended]._replace(rollout=parts[ended].rollout._replace(end_time=None))
    with pytest.raises(InvalidArgumentError, match="has no end_time"):
        await store.engine.import_rollouts(parts)
    assert len(await store.query_rollouts()) == 0


async def test_a_full_store_takes_no_import(source, clock):
    store = InMemoryLightningStore(clock=clock, memory_limit=4_000)
    await store.engine.import_rollouts(await exported(source))
    with pytest.raises(ResourceExhaustedError):
        await store.engine.import_rollouts(await exported(source))


# --- What trainers rely on -------------------------------------------------------------------------------------------

RUN = "r"


async def trained(clock: FakeClock) -> InMemoryLightningStore:
    """Groups a to d of a run that may have two open: a is in a checkpoint of the trainer, b is consumed since, c is
    under way, and d has to wait."""
    store = InMemoryLightningStore(clock=clock)
    await store.set_admission(RUN, max_open_groups=2)
    for name in "abcd":
        members = [
            EnqueueRolloutRequest(input=name, group_id=name, group_size=2, metadata={"lightning.run": RUN})
            for _ in range(2)
        ]
        await store.enqueue_many_rollouts(members)
    for name in "ab":
        for claimed in await store.dequeue_many_rollouts(limit=2):
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
            await store.mark_consumed("trainer", [claimed.rollout_id])
            if name == "a":
                await store.mark_consumed("evaluator", [claimed.rollout_id])
        if name == "a":
            await store.mark_consumed("trainer", [], checkpoint="step-1")
    await store.dequeue_many_rollouts(limit=2)
    await store.set_admission(RUN, max_open_groups=1)
    return store


async def send(source: EngineStore, target: EngineStore) -> Imported:
    """All of it as an import does, over the wire and back."""
    page = await source.engine.export_page(ALL_ROLLOUTS, Place())
    parts = [transfers.stored_rollout_to_proto(one) for one in in_queue_order(page.rollouts)]
    checkpoints = [transfers.checkpoint_to_proto(one) for one in page.checkpoints]
    admissions = [transfers.admission_record_to_proto(one) for one in page.admissions]
    return await target.engine.import_rollouts(
        [transfers.stored_rollout_from_proto(one, "rollouts") for one in parts],
        checkpoints=[transfers.checkpoint_from_proto(one, "checkpoints") for one in checkpoints],
        admissions=[transfers.admission_record_from_proto(one, "admissions") for one in admissions],
    )


async def inputs(store: EngineStore, rollout_ids: Sequence[str]) -> list[Any]:
    return [one.input for one in await store.query_rollouts(rollout_id_in=rollout_ids)]


async def test_what_was_consumed_and_the_bounds_of_runs_go_along(store, clock):
    source = await trained(clock)
    assert await send(source, store) == Imported(Counted(8, 0, 0, 0, 1, 1), Counted())
    assert await store.get_admission(RUN) == await source.get_admission(RUN)
    assert (await store.get_admission(RUN)).open_group_ids == ["c"]
    assert await store.dequeue_rollout() is None  # d is held
    assert await store.wait_for_groups(["a", "b"], timeout=0, consumer="trainer") == []
    assert await inputs(store, await store.rewind_consumer("trainer", checkpoint="step-1")) == ["b", "b"]
    [group] = await store.wait_for_groups(["a", "b"], timeout=0, consumer="trainer")
    assert group.group_id == "b"
    again = await send(source, store)
    assert again == Imported(Counted(), Counted(8, 0, 0, 0, 1, 1))
    assert await store.wait_for_groups(["b"], timeout=0, consumer="trainer") == [group]
    assert await inputs(store, await store.rewind_consumer("evaluator")) == ["a", "a"]
    assert await inputs(store, await store.rewind_consumer("trainer")) == ["a", "a"]


async def test_what_a_checkpoint_cannot_have_is_in_none(store, clock):
    """The store was exported while its trainer went on: marks are newer than the checkpoints that were read first."""
    source = await trained(clock)
    early = await source.engine.export_page(ALL_ROLLOUTS, Place())
    await source.mark_consumed("trainer", [], checkpoint="step-2")
    c = [one.rollout.rollout_id for one in early.rollouts if one.rollout.group_id == "c"]
    await source.mark_consumed("trainer", c)
    late = await source.engine.export_page(ALL_ROLLOUTS, Place())
    await store.engine.import_rollouts(late.rollouts, checkpoints=early.checkpoints)
    assert await store.mark_consumed("trainer", [], checkpoint="step-2 here") == []
    assert await store.rewind_consumer("trainer", checkpoint="step-2 here") == []
    assert await inputs(store, await store.rewind_consumer("trainer", checkpoint="step-1")) == ["b", "b", "c", "c"]


async def test_bounds_that_are_set_stay(store, clock):
    await store.set_admission(RUN, paused=True)
    await store.mark_consumed("trainer", [], checkpoint="step-1")
    assert await send(await trained(clock), store) == Imported(Counted(8), Counted(0, 0, 0, 0, 1, 1))
    assert (await store.get_admission(RUN)).admission.paused


# --- Pages -----------------------------------------------------------------------------------------------------------


async def test_pages_of_a_few_rollouts(store, clock, monkeypatch):
    monkeypatch.setattr(transfer, "PAGE_ROLLOUTS", 2)
    await fill(store, clock)
    rollouts = list(await store.query_rollouts())
    assert [one.rollout.rollout_id for one in await exported(store)] == [one.rollout_id for one in rollouts]
    page = await store.engine.export_page(ALL_ROLLOUTS, Place())
    assert (len(page.rollouts), page.seen, page.total) == (2, 2, 6)
    await store.delete_rollouts([rollouts[2].rollout_id, rollouts[0].rollout_id])
    assert page.next is not None
    after = await store.engine.export_page(ALL_ROLLOUTS, page.next)
    assert [one.rollout.rollout_id for one in after.rollouts] == [one.rollout_id for one in rollouts[3:5]]


@pytest.mark.parametrize("bytes_max", [1, 500, 2500])
async def test_a_large_rollout_comes_in_parts(store, source, monkeypatch, bytes_max):
    whole = await exported(source)
    large = await source.start_rollout("large")
    await source.add_many_spans([make_span(large, number, name="x" * 300) for number in range(1, 8)])
    monkeypatch.setattr(transfer, "PAGE_BYTES", bytes_max)
    monkeypatch.setattr(transfer, "SPANS_AT_ONCE", 3)
    parts = await exported(source)
    of_large = [part for part in parts if part.rollout.rollout_id == large.rollout_id]
    assert len(of_large) > 1
    assert [span.sequence_id for part in of_large for span in part.spans] == list(range(1, 8))
    assert [part.spans_before for part in of_large][:2] == [0, len(of_large[0].spans)]
    done = [await store.engine.import_rollouts([part]) for part in parts]
    assert sum(one.imported.rollouts for one in done) == len(whole) + 1
    assert sum(one.present.rollouts for one in done) == 0
    assert len(await store.query_rollouts()) == len(whole) + 1
    assert list(await store.query_spans(large.rollout_id)) == list(await source.query_spans(large.rollout_id))


async def test_a_part_of_a_rollout_that_is_deleted_meanwhile(store, monkeypatch):
    monkeypatch.setattr(transfer, "PAGE_BYTES", 1)
    claims: list[AttemptedRollout] = [await store.start_rollout(name) for name in ("first", "second")]
    for claimed in claims:
        await store.add_many_spans([make_span(claimed, number) for number in (1, 2)])
    page = await store.engine.export_page(ALL_ROLLOUTS, Place())
    assert page.next is not None
    assert page.next.spans == 1
    await store.delete_rollouts([claims[0].rollout_id])
    page = await store.engine.export_page(ALL_ROLLOUTS, page.next)
    [part] = page.rollouts
    assert (part.rollout.rollout_id, part.spans_before) == (claims[1].rollout_id, 0)


async def test_only_what_is_asked_for(store, clock):
    await fill(store, clock)
    rollouts = list(await store.query_rollouts())
    middle = rollouts[3].start_time
    for selection, expected in (
        (
            RolloutQuery(status_in=["succeeded", "queuing"]),
            [one for one in rollouts if one.status in ("succeeded", "queuing")],
        ),
        (RolloutQuery(mode_in=["train"]), rollouts[1::2]),
        (RolloutQuery(mode_in=[None, "val"]), rollouts[0::2]),
        (RolloutQuery(start_time_min=middle), rollouts[3:]),
        (RolloutQuery(start_time_max=middle), rollouts[:3]),
        (RolloutQuery(status_in=[]), []),
        (RolloutQuery(metadata_equals={"n": [4]}), rollouts[4:5]),
        (RolloutQuery(worker_id_in=["w-1", "w-3"], mode_in=[None]), rollouts[0:3:2]),
        (RolloutQuery(group_id_in=["g"]), []),
    ):
        found = [one.rollout.rollout_id for one in await exported(store, selection)]
        assert found == [one.rollout_id for one in expected]
