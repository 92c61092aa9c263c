"""Groups of operations: how often they await the backend, and what becomes of them when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from lightning_store import NoAttemptsError, RolloutConfig, StoreUnavailableError
from lightning_store.backends.base import Backend, Changes, CommitUnknownError, ConflictError
from lightning_store.backends.loaded import LoadedRecords
from lightning_store.backends.memory import MemoryBackend
from lightning_store.engine import executor
from lightning_store.engine.engine import Engine
from lightning_store.engine.operations import (
    AllocateSequenceIds,
    CancelRollouts,
    ClaimRollouts,
    EnqueueRollouts,
    Heartbeat,
    Operation,
    StartAttempt,
    StartRollout,
    UpdateAttempt,
)
from lightning_store.engine.policy import Policy
from lightning_store.memory_limits import MemoryLimits
from lightning_store.testing import FakeClock
from lightning_store.testing.backends import SuspendingBackend
from lightning_store.testing.contract.backend.groups import NEW, Group, deletion, spans_of
from lightning_store.testing.contract.base import within_safety

pytestmark = pytest.mark.asyncio

AWAITS_MAX = 4
LIMITED = NEW._replace(config=RolloutConfig(timeout_seconds=10))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# --- How often a group awaits ----------------------------------------------------------------------------------------


def engine_on(backend: Backend, clock: FakeClock, **policy: Any) -> Engine:
    return Engine(backend, policy=Policy(**policy), clock=clock, memory=MemoryLimits.of())


async def enqueue(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    return [EnqueueRollouts([NEW])] * count


async def claim(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    await engine.execute(EnqueueRollouts([NEW] * count))
    return [ClaimRollouts(1, f"w{number}") for number in range(count)]


async def claim_in_vain(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    return [ClaimRollouts(3, f"w{number}") for number in range(count)]


async def started(engine: Engine, count: int) -> list[tuple[str, str]]:
    claims = [await engine.execute(StartRollout(LIMITED, f"w{number}")) for number in range(count)]
    for number in range(count):
        await engine.execute(Heartbeat(f"w{number}", "{}"))
    return [(one.rollout.rollout_id, one.attempt.attempt_id) for one in claims]


async def add_spans(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    return [spans_of(*one, 1, 2, 3) for one in await started(engine, count)]


async def update_attempt(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    return [UpdateAttempt(*one, {}, "succeeded") for one in await started(engine, count)]


async def update_former_attempt(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    former = await started(engine, count)
    for rollout_id, _ in former:
        await engine.execute(StartAttempt(rollout_id, f"other-{rollout_id}"))
    return [UpdateAttempt(*one, {"worker_id": "another"}, "failed") for one in former]


async def heartbeat(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    await started(engine, count)
    return [Heartbeat(f"w{number}", None) for number in range(count)]


async def delete(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    return [deletion(rollout_id) for rollout_id, _ in await started(engine, count)]


async def claim_past_cancelled(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    """The claims find nothing of what they had loaded in the queue."""
    queued = await engine.execute(EnqueueRollouts([NEW] * 2 * count))
    ids = [one.rollout_id for one in queued]
    return [CancelRollouts(ids[:count]), ClaimRollouts(count, "w")]


async def mixed(engine: Engine, count: int) -> Sequence[Operation[Any]]:
    operations: list[Operation[Any]] = []
    for kind in (enqueue, add_spans, update_attempt, heartbeat, update_former_attempt, delete, claim):
        operations += await kind(engine, -(-count // 7))
    ids = [one.rollout_id for one in await engine.execute(EnqueueRollouts([NEW] * count))]
    return [*operations[:count], AllocateSequenceIds([(one, "a") for one in ids]), CancelRollouts(ids)]


KINDS = [
    enqueue,
    claim,
    claim_in_vain,
    claim_past_cancelled,
    add_spans,
    update_attempt,
    update_former_attempt,
    heartbeat,
    delete,
    mixed,
]


@pytest.mark.parametrize("count", [1, 10, 100])
@pytest.mark.parametrize("prepare", KINDS)
async def test_a_group_awaits_the_backend_a_few_times_however_large_it_is(
    clock: FakeClock, prepare: Callable[[Engine, int], Awaitable[Sequence[Operation[Any]]]], count: int
):
    backend = SuspendingBackend()
    engine = engine_on(backend, clock, worker_timeout_seconds=60.0)
    operations = await prepare(engine, count)
    backend.awaits.clear()
    await asyncio.gather(*map(engine.execute, operations))
    assert backend.awaits["commit"] == 1
    assert backend.awaits.total() <= AWAITS_MAX


@pytest.mark.parametrize("count", [1, 10, 100])
async def test_what_is_due_is_done_in_the_same_awaits(clock: FakeClock, count: int):
    backend = SuspendingBackend()
    engine = engine_on(backend, clock, worker_timeout_seconds=60.0, retain_finished_seconds=5.0)
    ended = await started(engine, count)
    for one in ended:
        await engine.execute(UpdateAttempt(*one, {}, "succeeded"))
    await started(engine, count)
    clock.advance(11)
    backend.awaits.clear()
    await engine.execute(EnqueueRollouts([NEW]))
    assert backend.awaits.total() <= AWAITS_MAX
    counts = await engine.counts()
    assert (counts.rollouts, counts.attempts) == (count + 1, count)


# --- A backend that fails --------------------------------------------------------------------------------------------


class FailingBackend(SuspendingBackend):
    """Fails its next commits as a test says: each is (what is raised, whether the commit happens all the same)."""

    def __init__(self) -> None:
        super().__init__(MemoryBackend())
        self.failures: list[tuple[Exception, bool]] = []
        self.before_failure: Callable[[], Awaitable[object]] | None = None

    async def write(self, changes: Changes, loaded: LoadedRecords) -> None:
        if not self.failures:
            return await super().write(changes, loaded)
        error, happens = self.failures.pop(0)
        if happens:
            await super().write(changes, loaded)
        if self.before_failure is not None:
            await self.before_failure()
        raise error


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "CONFLICT_BACKOFF_SECONDS_MAX", 0.0)


@pytest.fixture
def backend() -> FailingBackend:
    return FailingBackend()


@pytest.fixture
def group(backend: FailingBackend, clock: FakeClock) -> Group:
    return Group(backend, clock)


async def test_a_refusal_counts_no_more_when_the_group_runs_again(
    backend: FailingBackend, group: Group, clock: FakeClock
):
    """Another server begins the attempt that was missing, and that is what the conflict is about."""
    [rollout_id] = await group.enqueue(1)
    elsewhere = Group(backend.inner, clock)
    backend.failures = [(ConflictError(), False)]
    backend.before_failure = lambda: elsewhere.one(StartAttempt(rollout_id, None))
    attempt = await group.one(UpdateAttempt(rollout_id, "latest", {}, "running"))
    assert attempt.status == "running"


async def test_a_reply_counts_no_more_when_the_group_runs_again(
    backend: FailingBackend, group: Group, clock: FakeClock
):
    rollout_id, attempt_id = await group.start()
    elsewhere = Group(backend.inner, clock)
    backend.failures = [(ConflictError(), False)]
    backend.before_failure = lambda: elsewhere.one(deletion(rollout_id))
    with pytest.raises(ValueError, match="not found"):
        await group.one(UpdateAttempt(rollout_id, attempt_id, {}, "running"))


@pytest.mark.parametrize("happens", [True, False])
async def test_what_was_due_is_told_though_the_answer_was_lost(
    backend: FailingBackend, group: Group, clock: FakeClock, happens: bool
):
    """An empty claim leaves no record by which its commit could be told."""
    rollout_id, _ = await group.start(new=LIMITED)
    clock.advance(11)
    backend.failures = [(CommitUnknownError(), happens)]
    assert await group.one(ClaimRollouts(1, "w")) == []
    assert set(group.told.ended) == {rollout_id}


@pytest.mark.parametrize("happens", [True, False])
async def test_a_deletion_is_told_if_it_happened(backend: FailingBackend, group: Group, happens: bool):
    rollout_id, _ = await group.start()
    backend.failures = [(CommitUnknownError(), happens), *[(ConflictError(), False)] * 20]
    [reply] = await group.run(deletion(rollout_id))
    assert isinstance(reply, StoreUnavailableError)
    assert group.told.deleted == ([rollout_id] if happens else [])


async def test_what_happened_is_told_when_the_backend_is_back(
    backend: FailingBackend, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_on(backend, clock)
    claim = await engine.execute(StartRollout(NEW, None))
    rollout_id = claim.rollout.rollout_id
    waiting = asyncio.create_task(engine.wait({rollout_id: None}, 1000, one_is_enough=False))
    await clock.until_waiting(clock.now() + 1000)
    backend.failures = [(CommitUnknownError(), True), *[(OSError("gone"), False)] * 2]
    with monkeypatch.context() as patch:
        patch.setattr(backend, "snapshot", _gone)
        with pytest.raises(OSError, match="gone"):
            await engine.execute(UpdateAttempt(rollout_id, claim.attempt.attempt_id, {}, "succeeded"))
    await clock.until_waiting(clock.now() + 1.001)
    clock.advance(2)
    assert (await within_safety(waiting))[rollout_id].rollout.status == "succeeded"


def _gone() -> Any:
    raise OSError("gone")


async def test_only_the_culprit_of_a_failure_fails(backend: FailingBackend, group: Group):
    class Broken(ClaimRollouts):
        def decide(self, view: Any) -> Any:
            raise KeyError("a bug")

    [one], broken, refused, [two] = await group.run(
        EnqueueRollouts([NEW]), Broken(1, None), UpdateAttempt("no", "latest", {}, None), EnqueueRollouts([NEW])
    )
    assert isinstance(broken, KeyError)
    assert isinstance(refused, ValueError)
    backend.failures = [(OSError("the disk"), False)] * 2
    replies = await group.run(ClaimRollouts(1, None), EnqueueRollouts([NEW]), StartAttempt(two.rollout_id, None))
    assert [isinstance(reply, OSError) for reply in replies] == [True, False, False]
    assert [claim.rollout.rollout_id for claim in await group.one(ClaimRollouts(1, None))] == [one.rollout_id]


async def test_conflicts_without_end_are_an_error_that_may_pass(backend: FailingBackend, group: Group):
    backend.failures = [(ConflictError(), False)] * 21
    replies = await group.run(EnqueueRollouts([NEW]), ClaimRollouts(1, None))
    assert [type(reply) for reply in replies] == [StoreUnavailableError] * 2
    assert len(await group.enqueue(1)) == 1


async def test_a_read_of_a_store_that_takes_no_changes_gives_what_is_stored(backend: FailingBackend, clock: FakeClock):
    engine = engine_on(backend, clock)
    claim = await engine.execute(StartRollout(LIMITED, None))
    clock.advance(11)
    backend.failures = [(OSError("read-only"), False)] * 100
    row = await engine.rollout(claim.rollout.rollout_id)
    assert row is not None
    assert row.rollout.status == "preparing"
    backend.failures.clear()
    row = await engine.rollout(claim.rollout.rollout_id)
    assert row is not None
    assert row.rollout.status == "failed"


async def test_a_deadline_that_could_not_be_acted_on_comes_again(backend: FailingBackend, clock: FakeClock):
    engine = engine_on(backend, clock)
    claim = await engine.execute(StartRollout(LIMITED, None))
    rollout_id = claim.rollout.rollout_id
    waiting = asyncio.create_task(engine.wait({rollout_id: None}, 1000, one_is_enough=False))
    await clock.until_waiting(clock.now() + 1000)
    backend.failures = [(OSError("gone for a moment"), False)] * 2
    clock.advance(11)
    await clock.until_waiting(clock.now() + 1.001)
    clock.advance(2)
    assert (await within_safety(waiting))[rollout_id].rollout.status == "failed"


async def test_a_reader_that_is_cancelled_while_it_expires_others_leaves_nobody_waiting(clock: FakeClock):
    for turns in range(30):
        backend = SuspendingBackend()
        engine = engine_on(backend, clock)
        rollout_id = (await engine.execute(StartRollout(LIMITED, None))).rollout.rollout_id
        waiting = asyncio.create_task(engine.wait({rollout_id: None}, 1000 + turns, one_is_enough=False))
        await clock.until_waiting(clock.now() + 1000 + turns)
        clock.advance(10)  # it is due now, and the timer is later than that by its slack
        clock.advance(0.0001)
        reading = asyncio.create_task(engine.rollout(rollout_id))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        clock.advance(5)
        assert (await within_safety(waiting))[rollout_id].rollout.status == "failed"


async def test_a_refused_call_raises_an_error_of_its_own(group: Group):
    [rollout_id] = await group.enqueue(1)
    report = UpdateAttempt(rollout_id, "latest", {}, "running")
    one, other = await group.run(report, report)
    assert isinstance(one, NoAttemptsError)
    assert one is not other
