"""A connection that stays open and on which the other end says nothing any more."""

from __future__ import annotations

import asyncio

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store.testing.faults import Fault, FaultSchedule
from lightning_store_client import LightningStoreClient
from tests.chaos.flaky import flaky_wire

pytestmark = pytest.mark.chaos  # in real time, of which it takes some fifteen seconds


@pytest.mark.asyncio
async def test_a_connection_that_falls_silent_costs_no_call():
    """With the settings that a client has by itself."""
    store = InMemoryLightningStore()
    async with flaky_wire(store, FaultSchedule.none()) as proxy, LightningStoreClient(proxy.endpoint) as client:
        await client.enqueue_rollout("before")
        seen = proxy.statistics.calls
        proxy.schedule = FaultSchedule(lambda number: Fault.BLACK_HOLE if number == seen + 1 else None)
        made = await asyncio.gather(*(client.enqueue_rollout(f"task {number}") for number in range(5)))
        assert proxy.statistics.struck[Fault.BLACK_HOLE] == 1
        assert len({rollout.rollout_id for rollout in made}) == 5
        assert (await store.statistics())["total_rollouts"] == 6
