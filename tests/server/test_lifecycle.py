"""Where the server listens, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading

import psutil
import pytest

from lightning_store import InMemoryLightningStore, InvalidArgumentError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer, ServerConfig


def make_server(port=0, **config):
    return LightningStoreServer(InMemoryLightningStore(), port=port, config=ServerConfig(**config))


def is_listening(port):
    """Whether this process is: when it stops, another that runs tests may take the port."""
    connections = psutil.Process().net_connections("tcp")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


async def reachable(server):
    async with LightningStoreClient(server.endpoint, retry_delays=()) as client:
        return await client.healthy()


# --- Where it listens ------------------------------------------------------------------------------------------------


def test_any_free_port():
    async def scenario():
        server = make_server()
        with pytest.raises(RuntimeError, match="start it first"):
            _ = server.bound_port
        with pytest.raises(RuntimeError, match="start it first"):
            _ = server.endpoint
        async with server:
            assert server.endpoint == f"127.0.0.1:{server.bound_port}"
            assert await reachable(server)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "127.0.0.1:4747"),
        ("localhost", "localhost:4747"),
        ("0.0.0.0", "127.0.0.1:4747"),
        ("", "127.0.0.1:4747"),
        ("::", "[::1]:4747"),
        ("::1", "[::1]:4747"),
        ("store.example.org", "store.example.org:4747"),
    ],
)
def test_endpoint_is_for_clients_on_the_same_machine(host, endpoint):
    config = ServerConfig(insecure=True)
    assert LightningStoreServer(InMemoryLightningStore(), host, config=config).endpoint == endpoint


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost"])
def test_listens_on_other_hosts_too(host):
    async def scenario():
        async with LightningStoreServer(
            InMemoryLightningStore(), host, 0, config=ServerConfig(insecure=True)
        ) as server:
            assert await reachable(server)

    asyncio.run(scenario())


def test_an_own_port_beats_the_one_in_the_config():
    config = ServerConfig(host="::1", port=1)
    server = LightningStoreServer(InMemoryLightningStore(), "127.0.0.1", 4999, config=config)
    assert server.endpoint == "127.0.0.1:4999"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "store.example.org", "10.0.0.1"])
def test_who_listens_beyond_loopback_says_who_may_call(host):
    with pytest.raises(InvalidArgumentError, match="give --auth-tokens or --tls-client-ca, or --insecure"):
        ServerConfig(host=host)
    with pytest.raises(InvalidArgumentError, match="everybody who can reach it"):
        ServerConfig(host=host, tls_cert="cert.pem", tls_key="key.pem")
    ServerConfig(host=host, insecure=True)
    ServerConfig(host=host, auth_tokens="tokens.json")
    ServerConfig(host=host, tls_cert="cert.pem", tls_key="key.pem", tls_client_ca="ca.pem")
    ServerConfig(host=host, unix_path="store.sock")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("max_message_bytes", 0),
        ("page_rows_max", 0),
        ("page_bytes_max", -1),
        ("wait_seconds_max", 0),
        ("drain_delay_seconds", -1),
        ("max_connection_age_seconds", float("nan")),
        ("grace_seconds", -0.1),
        ("keepalive_seconds", 0),
        ("keepalive_timeout_seconds", -1),
    ],
)
def test_settings_that_make_no_sense(field, value):
    with pytest.raises(ValueError, match=field):
        ServerConfig(**{field: value})


# --- A port that is taken --------------------------------------------------------------------------------------------


def test_a_port_that_another_server_has_is_refused_at_once_and_never_shared():
    async def scenario():
        async with make_server() as first:
            second = make_server(first.bound_port)
            for _ in range(2):
                with pytest.raises(OSError, match=f"cannot listen on {first.endpoint}") as caught:
                    await asyncio.wait_for(second.start(), SAFETY_SECONDS)
                assert caught.value.errno == errno.EADDRINUSE
            assert await reachable(first)
        await second.start()
        assert await reachable(second)
        await second.stop()

    asyncio.run(scenario())


def test_a_port_that_some_other_program_has_is_refused():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            asyncio.run(make_server(port).start())
    assert caught.value.errno == errno.EADDRINUSE


def test_no_thread_is_left_of_a_start_that_failed():
    before = threading.active_count()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other, pytest.raises(OSError, match="listen"):
        asyncio.run(make_server(other.getsockname()[1]).start())
    assert threading.active_count() <= before  # or fewer: those of other tests may be ending


# --- Start and stop --------------------------------------------------------------------------------------------------


def test_starts_once():
    async def scenario():
        async with make_server() as server:
            with pytest.raises(RuntimeError, match=f"started already, on {server.endpoint}"):
                await server.start()
            assert await reachable(server)

    asyncio.run(scenario())


def test_two_starts_at_once_are_one():
    async def scenario():
        server = make_server(grace_seconds=0.0)
        before = threading.active_count()
        results = await asyncio.gather(server.start(), server.start(), return_exceptions=True)
        await server.stop()
        assert sorted(type(result).__name__ for result in results) == ["NoneType", "RuntimeError"]
        assert threading.active_count() <= before

    asyncio.run(scenario())


def test_stop_is_harmless_before_the_start_and_when_repeated():
    async def scenario():
        server = make_server()
        await server.stop()
        await server.start()
        port = server.bound_port
        await server.stop()
        await server.stop()
        assert not is_listening(port)

    asyncio.run(scenario())


def test_starts_again_after_a_stop_with_the_same_data():
    async def scenario():
        server = make_server()
        await server.start()
        rollout = await server.enqueue_rollout("task")
        await server.stop()
        await server.start()
        async with LightningStoreClient(server.endpoint) as client:
            assert await client.get_rollout_by_id(rollout.rollout_id) == rollout
        await server.stop()

    asyncio.run(scenario())


def test_started_on_one_event_loop_and_stopped_on_another():
    server = make_server()
    asyncio.run(server.start())
    assert asyncio.run(reachable(server))
    asyncio.run(server.stop())
    assert not is_listening(server.bound_port)


@pytest.mark.parametrize("started_before", [False, True])
def test_run_forever_ends_when_stop_is_called(started_before):
    async def scenario():
        server = make_server()
        if started_before:
            await server.start()
        run = asyncio.create_task(server.run_forever())
        while server._serving is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await reachable(server)
        assert not run.done()
        await server.stop()
        assert await asyncio.wait_for(run, SAFETY_SECONDS) is None
        assert not is_listening(server.bound_port)

    asyncio.run(scenario())


def test_run_forever_stops_the_server_when_it_is_cancelled():
    async def scenario():
        server = make_server()
        await server.start()
        run = asyncio.create_task(server.run_forever())
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(run, SAFETY_SECONDS)
        assert not is_listening(server.bound_port)

    asyncio.run(scenario())


def test_run_forever_says_that_the_port_is_taken():
    async def scenario():
        async with make_server() as first:
            with pytest.raises(OSError, match="cannot listen"):
                await asyncio.wait_for(make_server(first.bound_port).run_forever(), SAFETY_SECONDS)

    asyncio.run(scenario())


def test_no_thread_is_left_after_a_stop():
    async def scenario():
        before = threading.active_count()
        server = make_server()
        await server.start()
        assert threading.active_count() > before
        await server.stop()
        assert threading.active_count() <= before  # or fewer: those of other tests may be ending

    asyncio.run(scenario())


# --- The server as a store -------------------------------------------------------------------------------------------


def test_in_its_own_process_it_is_the_store():
    async def scenario():
        store = InMemoryLightningStore()
        server = LightningStoreServer(store, port=0)
        rollout = await server.enqueue_rollout("before the start")
        async with server, LightningStoreClient(server.endpoint) as client:
            claimed = await client.dequeue_rollout(worker_id="w")
            assert claimed is not None
            assert claimed.rollout_id == rollout.rollout_id
            assert await server.get_rollout_by_id(rollout.rollout_id) == claimed
            assert (await server.statistics())["name"] == "InMemoryLightningStore"
        assert await server.get_rollout_by_id(rollout.rollout_id) == claimed

    asyncio.run(scenario())


def test_capabilities_say_that_any_process_and_thread_may_call():
    capabilities = make_server().capabilities
    assert capabilities == {"thread_safe": True, "async_safe": True, "zero_copy": True, "otlp_traces": False}
