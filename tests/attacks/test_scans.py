"""Queries that look through everything that is stored."""

from __future__ import annotations

import threading

import pytest

from lightning_store import EnqueueRolloutRequest
from lightning_store_client import SyncLightningStoreClient
from tests.attacks.target import MIB, Bystander, Target, long_form

pytestmark = pytest.mark.slow

CALLERS = 8


@pytest.mark.parametrize("count", [1000, pytest.param(200_000, marks=long_form)])
def test_callers_that_look_through_all_rollouts(target: Target, count: int) -> None:
    with SyncLightningStoreClient(target.endpoint, timeout=120.0) as client:
        client.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * count)

        def look() -> None:
            for _ in range(3):
                client.query_rollouts(rollout_id_contains="none has this", sort_by="rollout_id")

        with Bystander(target) as bystander:
            callers = [threading.Thread(target=look) for _ in range(CALLERS)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        client.delete_rollouts([one.rollout_id for one in client.query_rollouts(status_in=["queuing"])])
    assert bystander.grown_bytes < 200 * MIB
