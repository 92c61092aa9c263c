"""CancellableLitAgentRunner, on Agent Lightning's own store and on ours."""

from __future__ import annotations

import asyncio

import agentlightning as agl
import pytest

from lightning_store.testing.clock import SAFETY_SECONDS
from lightning_store_agentlightning import CancellableLitAgentRunner
from tests.agentlightning.programs import ONCE_MORE, RESOURCES, NoTracer


class Sleeper(agl.LitAgent[str]):
    """Works on "long" for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.interrupted = False

    async def rollout_async(self, task, resources, rollout):
        self.begun.set()
        if task == "long":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.interrupted = True
                raise
        return 0.5


class Seen(agl.Hook):
    """What hooks are given."""

    def __init__(self) -> None:
        self.agents: list[bool] = []

    async def on_rollout_end(self, *, agent, **_):
        self.agents.append(isinstance(agent, Sleeper) and agent.begun.is_set())


@pytest.mark.parametrize("mode", ["train", "val"])
def test_the_agent_stops_when_its_rollout_is_cancelled(make_store, mode):
    async def program():
        store, agent, hook = make_store(), Sleeper(), Seen()
        await store.add_resources(RESOURCES)
        long = await store.enqueue_rollout("long", mode=mode, config=ONCE_MORE)
        short = await store.enqueue_rollout("short", mode=mode)
        runner = CancellableLitAgentRunner[str](NoTracer(), max_rollouts=2, poll_interval=0.05, interval_jitter=0.01)
        runner.init(agent, hooks=[hook])
        runner.init_worker(0, store)
        running = asyncio.create_task(runner.iter())
        await agent.begun.wait()
        await store.update_rollout(long.rollout_id, status="cancelled")
        await running
        statuses = [(await store.get_rollout_by_id(one.rollout_id)).status for one in (long, short)]
        assert (agent.interrupted, statuses) == (True, ["cancelled", "succeeded"])
        assert hook.agents == [True, True]
        runner.teardown_worker(0)
        runner.teardown()

    asyncio.run(asyncio.wait_for(program(), SAFETY_SECONDS))


def test_a_failure_of_the_agent_is_reported(make_store):
    class Broken(agl.LitAgent[str]):
        async def rollout_async(self, task, resources, rollout):
            raise TimeoutError("its own")

    async def program():
        store = make_store()
        await store.add_resources(RESOURCES)
        runner = CancellableLitAgentRunner[str](NoTracer())
        runner.init(Broken())
        runner.init_worker(0, store)
        with pytest.raises(TimeoutError, match="its own"):
            await runner.step("task")
        [rollout] = await store.query_rollouts()
        assert rollout.status == "failed"

    asyncio.run(asyncio.wait_for(program(), SAFETY_SECONDS))
