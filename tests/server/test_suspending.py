"""A server whose store suspends at each await, as one on a database does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightning_store import EnqueueRolloutRequest, LightningStore
from lightning_store.testing import FakeClock
from lightning_store.testing.backends import ConflictingBackend, ForgetfulBackend, SuspendingBackend, store_on
from lightning_store.testing.contract.attempts import StatusContract
from lightning_store.testing.contract.concurrency import AtomicityContract
from lightning_store.testing.contract.deletion import DeletionContract
from lightning_store.testing.contract.extensions import CancellingContract, WaitingClaimsContract
from lightning_store.testing.contract.feed import FeedContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.contract.spans import AddingSpansContract, ReadingSpansContract, SpanNumbersContract
from lightning_store.testing.contract.waiting import WaitingContract
from lightning_store.testing.contract.watchdog import WatchdogContract
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer


class TestServesAStoreThatSuspends(
    QueueContract,
    StatusContract,
    AddingSpansContract,
    SpanNumbersContract,
    ReadingSpansContract,
    WatchdogContract,
    WaitingContract,
    WaitingClaimsContract,
    CancellingContract,
    FeedContract,
    DeletionContract,
    AtomicityContract,
):
    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        store = store_on(SuspendingBackend, clock=clock, **options)
        async with (
            LightningStoreServer(store, port=0) as server,
            LightningStoreClient(server.endpoint, clock=clock) as client,
        ):
            yield client


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", [SuspendingBackend, ConflictingBackend, ForgetfulBackend])
async def test_calls_that_are_made_at_once_are_made_once(backend):
    """Calls of one session run in groups; each has its own reply, whatever becomes of the transactions."""
    async with (
        LightningStoreServer(store_on(backend), port=0) as server,
        LightningStoreClient(server.endpoint) as client,
    ):
        requests = [EnqueueRolloutRequest(input=number) for number in range(50)]
        await client.enqueue_many_rollouts(requests)
        claims = await asyncio.gather(*(client.dequeue_rollout(worker_id=f"w-{number}") for number in range(60)))
        claimed = [one for one in claims if one is not None]
        assert sorted(one.input for one in claimed) == list(range(50))
        reports = [client.update_attempt(one.rollout_id, one.attempt.attempt_id, status="succeeded") for one in claimed]
        assert {one.status for one in await asyncio.gather(*reports)} == {"succeeded"}
        ended = await client.wait_for_rollouts(rollout_ids=[one.rollout_id for one in claimed], timeout=0)
        assert len(ended) == 50
