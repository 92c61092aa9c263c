"""What becomes of a call that is sent again: it happens once, lasts as long as asked, and is over when it returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore, LightningStore, NoAttemptsError
from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStoreCapabilities
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.testing.contract.base import within_safety
from lightning_store.testing.faults import Fault, FaultProxy, FaultSchedule
from lightning_store_client import LightningStoreClient
from tests.chaos.flaky import PATIENCE, flaky_wire


@asynccontextmanager
async def wire(
    store: LightningStore, clock: FakeClock, *faults: Fault | None
) -> AsyncIterator[tuple[FaultProxy, LightningStoreClient]]:
    """A proxy whose first calls meet ``faults``, and a client that tries again at once."""
    async with (
        flaky_wire(store, FaultSchedule.first(*faults)) as proxy,
        LightningStoreClient(proxy.endpoint, clock=clock, **PATIENCE) as client,
    ):
        yield proxy, client


class WatchedStore(ForwardingStore):
    """Tells the event loop that made it of the seconds that the store is asked to wait."""

    def __init__(self, inner: LightningStore) -> None:
        self.inner = inner
        self.waits: asyncio.Queue[float] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self.inner.capabilities

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        for name in ("timeout", "max_wait"):
            if name in kwargs:
                self._loop.call_soon_threadsafe(self.waits.put_nowait, kwargs[name])
        return await getattr(self.inner, method)(*args, **kwargs)

    async def wait(self) -> float:
        """How long the next one is to be."""
        return await within_safety(self.waits.get())


@pytest.mark.asyncio
async def test_a_wait_for_rollouts_that_is_cut_goes_on_for_the_time_that_is_left():
    clock = FakeClock()
    store = WatchedStore(InMemoryLightningStore(clock=clock))
    async with wire(store, clock) as (proxy, client):
        rollout = await client.enqueue_rollout("task")
        call = asyncio.create_task(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=15))
        await clock.until_waiting(clock.now() + 15)
        clock.advance(10)
        await proxy.cut_connections()
        waits = [await store.wait(), await store.wait()]
        call.cancel()
        assert waits == pytest.approx([15, 5], abs=1)


@pytest.mark.asyncio
async def test_a_wait_for_work_that_is_cut_goes_on_for_the_time_that_is_left():
    clock = FakeClock()
    store = WatchedStore(InMemoryLightningStore(clock=clock))
    async with wire(store, clock) as (proxy, client):
        call = asyncio.create_task(client.dequeue_rollout(max_wait=15))
        await clock.until_waiting(clock.now() + 15)
        clock.advance(10)
        await proxy.cut_connections()
        waits = [await store.wait(), await store.wait()]
        call.cancel()
        assert waits == pytest.approx([15, 5], abs=1)


@pytest.mark.asyncio
async def test_a_claim_in_vain_claims_nothing_later():
    clock = FakeClock()
    async with wire(InMemoryLightningStore(clock=clock), clock, Fault.LATE_REQUEST) as (proxy, client):
        assert await client.dequeue_rollout() is None
        made = await client.enqueue_rollout("task")
        assert await within_safety(proxy.deliver_late_requests()) == 1
        claimed = await client.dequeue_rollout()
        assert claimed is not None
        assert claimed.rollout_id == made.rollout_id


@pytest.mark.asyncio
async def test_a_wait_for_work_is_not_taken_over_by_its_twin_that_comes_late():
    clock = FakeClock()
    store = WatchedStore(InMemoryLightningStore(clock=clock))
    async with wire(store, clock, Fault.LATE_REQUEST) as (proxy, client):
        call = asyncio.create_task(client.dequeue_rollout(max_wait=15))
        await store.wait()
        delivery = asyncio.create_task(proxy.deliver_late_requests())
        arrival = asyncio.create_task(store.wait())
        await within_safety(asyncio.wait([delivery, arrival], return_when=asyncio.FIRST_COMPLETED))
        made = await client.enqueue_rollout("task")
        async with asyncio.timeout(SAFETY_SECONDS):
            while not (call.done() and delivery.done()):  # at the latest when the time is over
                clock.advance(1)
                await asyncio.sleep(0)
        arrival.cancel()
        claimed = await call
        assert claimed is not None
        assert claimed.rollout_id == made.rollout_id


@pytest.mark.asyncio
async def test_a_call_that_was_refused_does_nothing_later():
    clock = FakeClock()
    async with wire(InMemoryLightningStore(clock=clock), clock, None, Fault.LATE_REQUEST) as (proxy, client):
        made = await client.enqueue_rollout("task")
        with pytest.raises(NoAttemptsError):
            await client.update_attempt(made.rollout_id, "latest", status="failed")
        await client.dequeue_rollout()
        assert await within_safety(proxy.deliver_late_requests()) == 1
        found = await client.get_rollout_by_id(made.rollout_id)
        assert found is not None
        assert found.status == "preparing"


@pytest.mark.asyncio
async def test_a_call_whose_reply_was_lost_does_nothing_later():
    """The twins of calls that ended well are known, whenever they come."""
    clock = FakeClock()
    async with wire(InMemoryLightningStore(clock=clock), clock, *[Fault.LATE_REQUEST, None] * 3) as (proxy, client):
        made = await client.enqueue_rollout("task")
        claimed = await client.dequeue_rollout()
        assert claimed is not None
        numbers = await client.get_many_span_sequence_ids([(made.rollout_id, claimed.attempt.attempt_id)] * 2)
        await client.update_rollout(made.rollout_id, status="queuing")
        assert await within_safety(proxy.deliver_late_requests()) == 3
        assert numbers == [1, 2]
        assert await client.get_next_span_sequence_id(made.rollout_id, claimed.attempt.attempt_id) == 3
        assert [rollout.rollout_id for rollout in await client.dequeue_many_rollouts(limit=5)] == [made.rollout_id]
