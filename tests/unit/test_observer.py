"""What an observer is told of transactions, whichever backend has the data."""

from __future__ import annotations

import asyncio

import pytest

from lightning_store import InMemoryLightningStore, RolloutConfig, request_scope
from lightning_store.engine.observing import AttemptBegun, AttemptEnded, RolloutEnded
from lightning_store.sqlite_store import SqliteEngineStore
from lightning_store.testing import FakeClock


class Observed:
    def __init__(self):
        self.details = []
        self.evicted = 0

    def transaction(self, details):
        self.details.append(details)

    def spans_evicted(self, rollouts):
        self.evicted += rollouts

    def all(self, name):
        return [one for details in self.details for one in getattr(details, name)]

    def sum(self, name):
        return sum(getattr(details, name) for details in self.details)


@pytest.fixture(params=["memory", "sqlite"])
def make(request, tmp_path):
    def make(clock):
        if request.param == "memory":
            return InMemoryLightningStore(clock=clock)
        return SqliteEngineStore(tmp_path / "store.db", clock=clock)

    return make


def watch(make, scenario):
    """What the observer of a store was told of a scenario."""

    async def run():
        clock = FakeClock()
        store = make(clock)
        store.engine.observer = observed = Observed()
        try:
            await scenario(store, clock)
        finally:
            if hasattr(store, "close"):
                store.close()
        return observed

    return asyncio.run(run())


def test_attempts_and_rollouts_are_told_with_their_age(make):
    async def scenario(store, clock):
        await store.enqueue_rollout("a", mode="train")
        clock.advance(5)
        claimed = await store.dequeue_rollout(worker_id="w")
        clock.advance(7)
        for _ in range(2):  # the second is no news
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")

    observed = watch(make, scenario)
    assert observed.all("begun") == [AttemptBegun("train", 1, 5)]
    assert observed.all("ended_attempts") == [AttemptEnded("succeeded")]
    assert observed.all("ended_rollouts") == [RolloutEnded("train", "succeeded", 12, "succeeded")]
    assert (observed.sum("rollouts_queued"), observed.sum("operations")) == (1, 4)


def test_what_is_given_up_is_told_when_it_is(make):
    async def scenario(store, clock):
        config = RolloutConfig(timeout_seconds=10, max_attempts=2, retry_condition=["timeout"])
        await store.start_rollout("a", config=config)
        clock.advance(11)
        await store.dequeue_rollout(worker_id="w")
        clock.advance(11)
        await store.query_rollouts()

    observed = watch(make, scenario)
    assert [one.sequence_id for one in observed.all("begun")] == [1, 2]
    assert observed.all("ended_attempts") == [AttemptEnded("timeout")] * 2
    [ended] = observed.all("ended_rollouts")
    assert (ended.status, ended.attempt_status) == ("failed", "timeout")


def test_replies_are_told(make):
    async def scenario(store, clock):
        for _ in range(2):
            with request_scope("once", "print"):
                await store.enqueue_rollout("a")

    observed = watch(make, scenario)
    assert (observed.sum("replies_recorded"), observed.sum("replies_replayed")) == (1, 1)


def test_an_observer_that_fails_fails_no_call(make, caplog):
    class Failing(Observed):
        def transaction(self, details):
            raise RuntimeError("broken")

    async def scenario(store, clock):
        store.engine.observer = Failing()
        await store.enqueue_rollout("a")

    watch(make, scenario)
    assert "An observer of the store failed" in caplog.text
