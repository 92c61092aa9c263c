"""Clients and servers that are pickled into processes which start from nothing."""

from __future__ import annotations

import asyncio

import pytest

pytestmark = pytest.mark.slow


def test_a_pickled_client(run_script, server):
    run_script(
        """
        class Use:
            def __init__(self, client):
                self.client = client

            async def __call__(self, number):
                await self.client.enqueue_rollout(f"child {number}")

        if __name__ == "__main__":
            client = LightningStoreClient(sys.argv[1], timeout=20.0)
            asyncio.run(client.enqueue_rollout("parent"))
            end = begin_children(2, Use(client), "spawn")
            asyncio.run(client.enqueue_rollout("parent"))
            end()
        """,
        server.endpoint,
    )
    inputs = sorted(rollout.input for rollout in asyncio.run(server.query_rollouts()))
    assert inputs == ["child 0", "child 1", "parent", "parent"]


def test_a_pickled_server_is_a_client_of_itself(run_script):
    run_script(
        """
        class Use:
            def __init__(self, server):
                self.server = server

            async def __call__(self, number):
                claimed = await self.server.dequeue_rollout(worker_id=f"w{number}")
                await self.server.update_attempt(claimed.rollout_id, "latest", status="succeeded")
                assert self.server.capabilities["zero_copy"]
                try:
                    await self.server.start()
                except RuntimeError as error:
                    assert "only the process that made the server" in str(error)
                else:
                    raise AssertionError("it started")

        if __name__ == "__main__":
            server = LightningStoreServer(InMemoryLightningStore(), port=0)

            async def parent():
                async with server:
                    rollouts = [await server.enqueue_rollout(number) for number in range(2)]
                    end = begin_children(2, Use(server), "spawn")
                    ended = await server.wait_for_rollouts(rollout_ids=[rollout.rollout_id for rollout in rollouts])
                    assert [rollout.status for rollout in ended] == ["succeeded"] * 2
                    await asyncio.to_thread(end)

            asyncio.run(parent())
        """
    )
