"""Processes that end without having cleaned up: quietly and at once."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.processes.programs import SECONDS_PROMPT

pytestmark = pytest.mark.slow
starts_threads_at_exit = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="these releases of Python start no thread at exit (gh-113964)"
)


def test_a_client_that_is_used_at_exit(run_script, server):
    run_script(
        """
        import atexit

        client = LightningStoreClient(sys.argv[1])
        asyncio.run(client.enqueue_rollout("before"))

        @atexit.register
        def report():
            rollout = asyncio.run(client.enqueue_rollout("at exit"))
            assert asyncio.run(client.query_rollouts()).total == 2
            asyncio.run(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0))
        """,
        server.endpoint,
    )
    assert [rollout.input for rollout in asyncio.run(server.query_rollouts())] == ["before", "at exit"]


@starts_threads_at_exit
def test_a_client_that_is_first_used_at_exit(run_script, server):
    run_script(
        """
        import atexit

        client = LightningStoreClient(sys.argv[1])
        atexit.register(lambda: asyncio.run(client.enqueue_rollout("at exit")))
        """,
        server.endpoint,
    )
    assert [rollout.input for rollout in asyncio.run(server.query_rollouts())] == ["at exit"]


@starts_threads_at_exit
def test_results_of_many_pages_at_exit(run_script):
    """These come as a stream, which is read in a thread; at exit no more threads of a pool can be had."""
    run_script(
        """
        import atexit

        config = ServerConfig(page_rows_max=1)
        server = LightningStoreServer(InMemoryLightningStore(), port=0, config=config)
        asyncio.run(server.start())
        client = LightningStoreClient(server.endpoint)
        for number in range(3):
            asyncio.run(client.enqueue_rollout(number))

        @atexit.register
        def report():
            assert len(asyncio.run(client.query_rollouts())) == 3
            asyncio.run(client.close())
            asyncio.run(server.stop())
        """
    )


@pytest.mark.parametrize("used", [False, True])
def test_a_client_that_is_not_closed(run_script, server, used):
    ended = run_script(
        f"""
        client = LightningStoreClient(sys.argv[1])
        if {used}:
            asyncio.run(client.enqueue_rollout("task"))
        """,
        server.endpoint,
    )
    assert ended.seconds < SECONDS_PROMPT


def test_a_client_with_calls_under_way(run_script, server):
    ended = run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        def wait():
            rollout = asyncio.run(client.enqueue_rollout("never done"))
            asyncio.run(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))

        threading.Thread(target=wait, daemon=True).start()
        while not asyncio.run(client.query_rollouts()):
            pass
        """,
        server.endpoint,
    )
    assert ended.seconds < SECONDS_PROMPT


@pytest.mark.parametrize("times", [1, pytest.param(30, marks=pytest.mark.chaos)])
def test_a_client_with_calls_of_all_kinds_that_begin_and_end_in_many_threads(run_script, server, times):
    """The interpreter is taken down under them: threads are in the middle of telling callers of replies."""
    rollout = asyncio.run(server.start_rollout("never done"))
    for _ in range(times):
        ended = run_script(
            """
            client = LightningStoreClient(sys.argv[1])
            under_way = threading.Barrier(6 + 1)

            async def watch():
                async for _ in client.watch_rollouts():
                    pass

            async def repeat():
                watching = asyncio.create_task(watch())
                await client.statistics()
                under_way.wait()
                while True:
                    await asyncio.gather(
                        client.update_worker("worker", {"busy": True}),
                        client.statistics(),
                        client.query_workers(),
                        client.dequeue_rollout(max_wait=0.01),
                        client.wait_for_rollouts(rollout_ids=[sys.argv[2]], timeout=0.01),
                    )

            for _ in range(6):
                threading.Thread(target=asyncio.run, args=(repeat(),), daemon=True).start()
            under_way.wait()
            asyncio.run(client.statistics())
            """,
            server.endpoint,
            rollout.rollout_id,
        )
        assert ended.seconds < SECONDS_PROMPT


def test_a_main_program_that_fails(run_script, server):
    """asyncio.run cancels what is left; the client adds no noise to the traceback."""
    ended = run_script(
        """
        client = LightningStoreClient(sys.argv[1])

        async def main():
            rollout = await client.enqueue_rollout("never done")
            tasks = [asyncio.create_task(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id])) for _ in range(3)]
            await asyncio.sleep(0)
            await client.statistics()
            raise KeyError("as planned")

        try:
            asyncio.run(main())
        except KeyError:
            print("failed as planned")
        """,
        server.endpoint,
    )
    assert ended.output == "failed as planned\n"
    assert ended.seconds < SECONDS_PROMPT


@pytest.mark.parametrize("wrap", ["", "LightningStoreThreaded"])
def test_a_server_that_is_not_stopped(run_script, wrap):
    ended = run_script(
        f"""
        from lightning_store import LightningStoreThreaded

        server = LightningStoreServer({wrap}(InMemoryLightningStore()), port=0)
        asyncio.run(server.start())
        client = LightningStoreClient(server.endpoint)
        asyncio.run(client.enqueue_rollout("task"))
        asyncio.run(server.enqueue_rollout("task"))
        """
    )
    assert ended.seconds < SECONDS_PROMPT


def test_a_server_that_is_not_stopped_while_somebody_waits(run_script):
    ended = run_script(
        """
        server = LightningStoreServer(InMemoryLightningStore(), port=0)
        asyncio.run(server.start())
        client = LightningStoreClient(server.endpoint, retry_delays=())
        rollout = asyncio.run(client.enqueue_rollout("never done"))

        def wait():
            asyncio.run(client.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))

        threading.Thread(target=wait, daemon=True).start()
        asyncio.run(client.statistics())
        """
    )
    assert ended.seconds < SECONDS_PROMPT


def test_run_forever_ends_with_ctrl_c(run_script):
    ended = run_script(
        """
        import signal

        server = LightningStoreServer(InMemoryLightningStore(), port=0)

        async def main():
            asyncio.get_running_loop().call_soon(interrupt)
            await server.run_forever()

        def interrupt():
            loop = asyncio.get_running_loop()
            if server._serving is None:
                loop.call_soon(interrupt)
            else:
                os.kill(os.getpid(), signal.SIGINT)

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert ended.output == "interrupted\n"
