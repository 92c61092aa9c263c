"""Heartbeats in processes that end without having stopped them, and in those that fork."""

from __future__ import annotations

import asyncio

import pytest

from tests.processes.programs import SECONDS_PROMPT

pytestmark = pytest.mark.slow


def workers(server):
    return sorted(worker.worker_id for worker in asyncio.run(server.query_workers()))


@pytest.mark.parametrize("interval", [0.5, 1000.0])
def test_a_worker_that_is_not_left_keeps_no_program_alive(run_script, server, interval):
    ended = run_script(
        f"""
        client = LightningStoreClient(sys.argv[1])
        worker = client.worker("forgotten", interval={interval})
        asyncio.run(worker.__aenter__())
        """,
        server.endpoint,
    )
    assert ended.seconds < SECONDS_PROMPT
    assert workers(server) == ["forgotten"]


def test_a_runner_that_is_interrupted_by_ctrl_c(run_script, server):
    ended = run_script(
        """
        async def main():
            async with LightningStoreClient(sys.argv[1]) as client, client.worker("runner") as worker:
                await client.enqueue_rollout("task")
                async with worker.hold(await client.dequeue_rollout(worker.worker_id)):
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.Event().wait()

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", [thread.name for thread in threading.enumerate() if "heartbeat" in thread.name])
        """,
        server.endpoint,
    )
    assert ended.output == "interrupted []\n"
    assert ended.seconds < SECONDS_PROMPT


def test_a_forked_child_has_no_heartbeats_until_it_enters_a_worker_of_its_own(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])
        inherited = client.worker("parent", interval=0.2)

        async def is_called_off(worker):
            claimed = await client.dequeue_rollout(worker.worker_id)
            async with worker.hold(claimed) as cancelled:
                await client.cancel_rollouts([claimed.rollout_id])
                await asyncio.Event().wait()
            return cancelled.is_set()

        async def child(number):
            try:
                async with inherited.hold(await client.dequeue_rollout("parent")):
                    raise AssertionError("it pretends to send heartbeats")
            except RuntimeError as error:
                assert "sends no heartbeats here" in str(error), error
            await inherited.__aexit__()
            async with client.worker("child", interval=0.2) as worker:
                assert await is_called_off(worker)

        async def parent():
            for number in range(5):
                await client.enqueue_rollout(number)
            async with inherited:
                for _ in range(2):
                    await asyncio.to_thread(begin_children(1, child))
                assert await is_called_off(inherited)

        asyncio.run(parent())
        """,
        server.endpoint,
    )
    assert workers(server) == ["child", "parent"]
