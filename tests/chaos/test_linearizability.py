"""Concurrent calls over a wire that breaks are as good as one call after the other; those of broken stores are not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.engine.idempotency import part_scope
from lightning_store.forwarding import ForwardingStore
from lightning_store.model import AttemptedRollout
from lightning_store.sqlite_store import SqliteEngineStore
from lightning_store.store import LightningStoreCapabilities
from lightning_store.testing.backends import BACKENDS, store_on
from lightning_store.testing.faults import Fault, FaultSchedule
from lightning_store.testing.linearizability import StoreModel, Verdict, check_history
from tests.chaos.flaky import PATIENCE
from tests.chaos.histories import CLIENTS, OPERATIONS, record_history

CUT = {Fault.CUT_REPLY: 0.15, Fault.CUT_REQUEST: 0.05, Fault.RESET: 0.05, Fault.DELAY: 0.05}
LATE = {Fault.LATE_REQUEST: 0.15, Fault.CUT_REPLY: 0.1}
NO_RETRIES: dict[str, Any] = {"retry_delays": (), "health_retry_delays": ()}


async def verdict_on(
    store: LightningStore, seed: int, shares: dict[Fault, float], client_settings: dict[str, Any]
) -> Verdict:
    history, statistics = await record_history(store, FaultSchedule.random(seed, shares), seed, **client_settings)
    assert len(history.operations) == CLIENTS * OPERATIONS
    assert statistics.cut >= 1
    return check_history(history.operations, StoreModel())


seeds = pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(8, 150))]
)


@seeds
@pytest.mark.asyncio
async def test_with_retries_each_call_happens_once(seed: int):
    verdict = await verdict_on(InMemoryLightningStore(), seed, CUT, PATIENCE)
    assert verdict, verdict.explanation


@pytest.mark.parametrize("backend", BACKENDS)
@seeds
@pytest.mark.asyncio
async def test_on_backends_that_behave_as_databases_do(seed: int, backend: str):
    verdict = await verdict_on(store_on(BACKENDS[backend]), seed, CUT, PATIENCE)
    assert verdict, verdict.explanation


@seeds
@pytest.mark.asyncio
async def test_in_a_sqlite_database(seed: int, tmp_path: Path):
    store = SqliteEngineStore(tmp_path / "store.db")
    try:
        verdict = await verdict_on(store, seed, CUT, PATIENCE)
    finally:
        store.close()
    assert verdict, verdict.explanation


@pytest.mark.chaos  # calls without an end can make a search long
@seeds
@pytest.mark.asyncio
async def test_without_retries_each_call_happens_once_or_never(seed: int):
    verdict = await verdict_on(InMemoryLightningStore(), seed, CUT, NO_RETRIES)
    assert verdict, verdict.explanation


@pytest.mark.chaos
@seeds
@pytest.mark.asyncio
async def test_without_retries_a_call_may_happen_late(seed: int):
    verdict = await verdict_on(InMemoryLightningStore(), seed, LATE, NO_RETRIES)
    assert verdict, verdict.explanation


@pytest.mark.chaos
@pytest.mark.asyncio
async def test_with_retries_no_call_happens_late():
    for seed in range(60):
        verdict = await verdict_on(InMemoryLightningStore(), seed, LATE, PATIENCE)
        assert verdict, verdict.explanation


# --- Broken on purpose -----------------------------------------------------------------------------------------------


class Broken(ForwardingStore):
    """Has only the public methods: of a store in memory, the server takes what is below them."""

    def __init__(self) -> None:
        self.inner = InMemoryLightningStore()

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self.inner.capabilities

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await getattr(self.inner, method)(*args, **kwargs)


class ClaimsWithoutRemoval(Broken):
    """What it hands out stays in the queue."""

    async def dequeue_many_rollouts(self, **options: Any) -> Sequence[AttemptedRollout]:
        claimed = await super().dequeue_many_rollouts(**options)
        for rollout in claimed:
            with part_scope(f"keep {rollout.rollout_id}"):
                await self.update_rollout(rollout.rollout_id, status="queuing")
        return claimed


class ClaimsInTwoSteps(Broken):
    """It looks first and takes then, so that another call can come between."""

    async def dequeue_many_rollouts(self, *, limit: int = 1, **options: Any) -> Sequence[AttemptedRollout]:
        found = await self.query_rollouts(status_in=["queuing", "requeuing"], limit=limit)
        await asyncio.sleep(0.002)
        claimed = []
        for rollout in found:
            with part_scope(f"take {rollout.rollout_id}"):
                claimed.append(await self.start_attempt(rollout.rollout_id))
        return claimed


def replays_nothing() -> LightningStore:
    """It answers a request that it has seen by doing it again."""
    return InMemoryLightningStore(replay_window_seconds=0)


@pytest.mark.parametrize("make", [ClaimsWithoutRemoval, ClaimsInTwoSteps, replays_nothing])
@pytest.mark.asyncio
async def test_a_broken_store_is_caught(make):
    for seed in range(20):  # not every history touches upon what is broken
        if not await verdict_on(make(), seed, CUT, PATIENCE):
            return
    pytest.fail("all histories can be explained")
