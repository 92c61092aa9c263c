"""One client or server, used in a process and in those that are forked from it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from lightning_store_client.channel import CHILD_MAY_KEEP_CORE

pytestmark = pytest.mark.slow
child_of_server_lives = pytest.mark.skipif(
    not CHILD_MAY_KEEP_CORE, reason="gRPC up to 1.81 ends each child of a process that serves (docs/wire.md)"
)
child_after_close_lives = pytest.mark.skipif(
    not CHILD_MAY_KEEP_CORE,
    reason="gRPC up to 1.81 ends or hangs some children forked at once after a channel was closed (docs/wire.md)",
)


def inputs(server):
    return Counter(rollout.input for rollout in asyncio.run(server.query_rollouts()))


def test_children_use_the_client_that_their_parent_used_and_goes_on_using(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        async def child(number):
            await asyncio.gather(*(client.enqueue_rollout(f"child {number}") for _ in range(3)))
            assert await client.dequeue_rollout(worker_id=f"child-{os.getpid()}")

        async def use(text):
            await asyncio.gather(*(client.enqueue_rollout(text) for _ in range(3)))

        asyncio.run(use("parent before"))
        for _ in range(3):
            end = begin_children(4, child)
            asyncio.run(use("parent meanwhile"))
            end()
            asyncio.run(use("parent after"))
        """,
        server.endpoint,
    )
    expected = {"parent before": 3, "parent meanwhile": 9, "parent after": 9}
    assert inputs(server) == {**expected, **{f"child {number}": 9 for number in range(4)}}
    workers = asyncio.run(server.query_workers())
    assert len(workers) == 12
    assert len({worker.current_rollout_id for worker in workers}) == 12


def test_a_fork_before_the_first_use(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        async def use(number):
            await client.enqueue_rollout(number)

        in_children(3, use)
        asyncio.run(use(99))
        in_children(3, use)
        """,
        server.endpoint,
    )
    assert inputs(server) == {0: 2, 1: 2, 2: 2, 99: 1}


def test_a_fork_while_calls_of_the_parent_are_under_way(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        async def child(number):
            claimed = await client.dequeue_rollout(worker_id=f"child-{number}")
            await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")

        async def parent():
            rollouts = [await client.enqueue_rollout(number) for number in range(4)]
            ids = [rollout.rollout_id for rollout in rollouts]
            waits = [asyncio.create_task(client.wait_for_rollouts(rollout_ids=ids)) for _ in range(3)]
            await asyncio.sleep(0)
            await client.statistics()
            end = begin_children(4, child)
            for wait in waits:
                ended = await wait
                assert [rollout.status for rollout in ended] == ["succeeded"] * 4
            await asyncio.to_thread(end)

        asyncio.run(parent())
        """,
        server.endpoint,
    )
    workers = asyncio.run(server.query_workers())
    assert {worker.worker_id for worker in workers} == {f"child-{number}" for number in range(4)}


def test_a_fork_while_another_thread_makes_calls(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])
        started, stop = threading.Event(), threading.Event()

        async def busy():
            while not stop.is_set():
                await client.enqueue_rollout("thread")
                started.set()

        async def child(number):
            await client.enqueue_rollout("child")

        thread = threading.Thread(target=asyncio.run, args=(busy(),))
        thread.start()
        started.wait()
        for _ in range(6):
            in_children(4, child)
        stop.set()
        thread.join()
        """,
        server.endpoint,
        seconds=10,
    )
    assert inputs(server)["child"] == 24
    assert inputs(server)["thread"] > 0


def test_grandchildren(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        async def use(number):
            await client.enqueue_rollout("grandchild")

        async def child(number):
            await client.enqueue_rollout("child")
            in_children(2, use)
            await client.enqueue_rollout("child")

        asyncio.run(use(0))
        in_children(2, child)
        """,
        server.endpoint,
    )
    assert inputs(server) == {"child": 4, "grandchild": 5}


@child_after_close_lives
def test_a_client_that_was_closed_stays_closed_in_the_child(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        async def use(number):
            try:
                await client.statistics()
            except RuntimeError as error:
                assert "closed" in str(error)
            else:
                raise AssertionError("it is not closed")

        asyncio.run(client.statistics())
        asyncio.run(client.close())
        in_children(1, use)
        """,
        server.endpoint,
    )


def test_closing_in_a_child_leaves_the_parent_its_connection(run_script, server):
    run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        async def close(number):
            await client.statistics()
            await client.close()

        asyncio.run(client.statistics())
        in_children(2, close)
        asyncio.run(client.enqueue_rollout("parent"))
        """,
        server.endpoint,
    )
    assert inputs(server) == {"parent": 1}


# --- Servers ---------------------------------------------------------------------------------------------------------
#
# A process that serves while it forks is for `make test-chaos`: gRPC's core cannot reset itself in the child while the
# server's thread is inside it, and so a child crashes now and then (docs/wire.md). At such a fork it notes on
# stderr that it did nothing, unless it is told to be quiet.


@pytest.mark.parametrize("wrap", ["", "LightningStoreThreaded"])
def test_children_that_were_forked_before_the_start_are_clients_of_the_server(run_script, wrap):
    run_script(
        f"""
        import socket
        from lightning_store import LightningStoreThreaded

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        store = {wrap}(InMemoryLightningStore())
        server = LightningStoreServer(store, port=port)
        started = multiprocessing.get_context("fork").Event()

        async def child(number):
            await asyncio.to_thread(started.wait, 30)
            await asyncio.gather(*(server.enqueue_rollout(f"child {{number}}") for _ in range(3)))
            claimed = await server.dequeue_rollout(worker_id=f"w{{number}}")
            await server.update_attempt(claimed.rollout_id, "latest", status="succeeded")
            await server.stop()  # this stops nothing: it serves in another process

        async def parent():
            end = begin_children(4, child)
            await server.start()
            started.set()
            await asyncio.gather(*(server.enqueue_rollout("parent") for _ in range(3)))
            await asyncio.to_thread(end)
            texts = sorted(rollout.input for rollout in await store.query_rollouts())
            assert texts == sorted(["parent"] * 3 + [f"child {{n}}" for n in range(4)] * 3), texts
            assert len(await server.query_rollouts(status_in=["succeeded"])) == 4
            await server.stop()

        asyncio.run(parent())
        """
    )


@pytest.mark.chaos
@pytest.mark.parametrize("wrap", ["", "LightningStoreThreaded"])
def test_a_server_object_is_a_client_of_itself_in_forked_children(run_script, wrap):
    run_script(
        f"""
        from lightning_store import LightningStoreThreaded

        store = {wrap}(InMemoryLightningStore())
        server = LightningStoreServer(store, port=0)

        async def child(number):
            await asyncio.gather(*(server.enqueue_rollout(f"child {{number}}") for _ in range(3)))
            claimed = await server.dequeue_rollout(worker_id=f"w{{number}}")
            await server.update_attempt(claimed.rollout_id, "latest", status="succeeded")
            await server.stop()  # this stops nothing: it serves in another process

        async def parent():
            await server.start()
            for _ in range(2):
                end = begin_children(4, child)
                await asyncio.gather(*(server.enqueue_rollout("parent") for _ in range(3)))
                await asyncio.to_thread(end)
                await server.enqueue_rollout("parent")
            texts = sorted(rollout.input for rollout in await store.query_rollouts())
            assert texts == sorted(["parent"] * 8 + [f"child {{n}}" for n in range(4)] * 6), texts
            assert len(await server.query_rollouts(status_in=["succeeded"])) == 8
            async with LightningStoreClient(server.endpoint) as client:
                assert (await client.statistics())["total_rollouts"] == 32
            await server.stop()

        asyncio.run(parent())
        """,
        grpc_verbosity="NONE",
    )


@child_of_server_lives
def test_only_the_process_that_made_a_server_can_start_it(run_script):
    run_script(
        """
        server = LightningStoreServer(InMemoryLightningStore(), port=0)

        async def child(number):
            try:
                await server.start()
            except RuntimeError as error:
                assert "only the process that made the server" in str(error)
            else:
                raise AssertionError("it started")

        asyncio.run(server.start())
        in_children(1, child)
        asyncio.run(server.stop())
        in_children(1, child)
        """,
        grpc_verbosity="NONE",
    )


@pytest.mark.chaos
def test_a_server_and_a_client_of_it_in_one_process_that_forks(run_script):
    run_script(
        """
        server = LightningStoreServer(InMemoryLightningStore(), port=0)
        asyncio.run(server.start())
        client = LightningStoreClient(server.endpoint)

        async def use(number):
            await client.enqueue_rollout(number)
            await server.enqueue_rollout(number)

        asyncio.run(use(0))
        for _ in range(2):
            end = begin_children(3, use)
            asyncio.run(use(0))
            end()
        asyncio.run(use(0))
        assert asyncio.run(server.query_rollouts()).total == 2 * (1 + 2 * (3 + 1) + 1)
        asyncio.run(server.stop())
        """,
        grpc_verbosity="NONE",
    )


@child_of_server_lives
def test_the_port_is_free_again_when_the_server_stops_though_children_live_on(run_script):
    """A child inherits the listening socket, and must not keep it."""
    run_script(
        """
        import multiprocessing.synchronize

        server = LightningStoreServer(InMemoryLightningStore(), port=0, config=ServerConfig(grace_seconds=0.0))
        asyncio.run(server.start())
        release = multiprocessing.get_context("fork").Event()

        async def child(number):
            await asyncio.to_thread(release.wait, 30)

        end = begin_children(1, child)
        asyncio.run(server.stop())
        again = LightningStoreServer(InMemoryLightningStore(), port=server.bound_port)
        try:
            asyncio.run(again.start())
            asyncio.run(again.stop())
        finally:
            release.set()
        end()
        """,
        grpc_verbosity="NONE",
    )
