"""Where servers are: names, several addresses, Unix domain sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import types

import pytest

from lightning_store import InMemoryLightningStore, InvalidArgumentError, StoreUnavailableError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store_client import LightningStoreClient
from lightning_store_client.endpoint import checked_endpoint, target_of
from lightning_store_server import LightningStoreServer, ServerConfig

QUICK = {"retry_delays": (0.05, 0.1, 0.2, 0.4), "health_retry_delays": ()}


@pytest.fixture
def store():
    return InMemoryLightningStore()


def server_of(store, **config):
    return LightningStoreServer(store, port=0, config=ServerConfig(**{"grace_seconds": 5.0, **config}))


def listed(*servers):
    return ",".join(server.endpoint for server in servers)


# --- Forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["dns", "unix", "ipv4", "ipv6", "vsock", "localhost", "127.0.0.1", "[::1]"])
def test_any_host_may_have_any_name(host):
    assert target_of(checked_endpoint(f"{host}:4747")).name == f"dns:///{host}:4747"


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
        ("127.0.0.1:1,[::1]:2", "ipv6:[::ffff:127.0.0.1]:1,[::1]:2"),
        ("127.0.0.1:1,no-such-host.invalid:2", "ipv4:127.0.0.1:1"),
        ("unix:///run/store.sock", "unix:///run/store.sock"),
    ],
)
def test_several_addresses_and_sockets(endpoint, target):
    assert target_of(checked_endpoint(endpoint)).name == target


def test_names_of_several_are_looked_up(monkeypatch):
    addresses = {"a": ["10.0.0.1", "10.0.0.2"], "b": ["10.0.0.2"]}

    def known(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    assert target_of("a:4747,b:4747").name == "ipv4:10.0.0.1:4747,10.0.0.2:4747"


@pytest.mark.parametrize(
    "endpoint", ["a:4747,", ",a:4747", "a:4747,b", "a:1,unix:///x", "unix://", "unix://x", "unix:///x/", "unix:///a\n"]
)
def test_what_is_no_address_is_refused(endpoint):
    with pytest.raises(InvalidArgumentError, match=r"give host:port, such as .*unix:///run/store\.sock"):
        LightningStoreClient(endpoint)


def test_a_path_that_is_too_long_is_refused():
    with pytest.raises(InvalidArgumentError, match="107 bytes"):
        LightningStoreClient(f"unix:///{'x' * 200}")


@pytest.mark.parametrize("endpoint", ["dns:1", "no-such-host.invalid:1", "a.invalid:1,b.invalid:2", "127.0.0.1:1"])
def test_errors_name_the_address_that_was_given(endpoint):
    async def call():
        async with LightningStoreClient(endpoint, timeout=5, retry_delays=()) as client:
            await client.statistics()

    with pytest.raises((StoreUnavailableError, TimeoutError)) as caught:
        asyncio.run(call())
    assert str(caught.value).startswith(f"{endpoint}: ")


def test_gevent_is_told_of(monkeypatch):
    monkey = types.ModuleType("gevent.monkey")
    monkeypatch.setattr(monkey, "is_module_patched", lambda name: name == "threading", raising=False)
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    with pytest.raises(RuntimeError, match=r"gevent\.monkey has patched threading"):
        asyncio.run(LightningStoreClient("localhost:1").statistics())


# --- Several servers of one store ------------------------------------------------------------------------------------


def test_clients_are_spread_over_the_servers(store):
    async def scenario():
        async with server_of(store, access_log=True) as one, server_of(store) as other:
            for _ in range(40):
                async with LightningStoreClient(listed(one, other)) as client:
                    await client.enqueue_rollout("task")
            await one.stop()
            served = (await store.statistics())["total_rollouts"]
            assert served == 40

    asyncio.run(scenario())


@pytest.mark.parametrize("round_", range(4))
@pytest.mark.parametrize("grace_seconds", [0.0, 5.0], ids=["dead", "draining"])
def test_a_server_that_goes_is_left_without_an_error(store, grace_seconds, round_):
    """Whichever of them the client has chosen."""

    async def scenario():
        servers = [server_of(store, grace_seconds=grace_seconds) for _ in range(2)]
        for server in servers:
            await server.start()
        async with LightningStoreClient(listed(*servers), **QUICK) as client:
            queued = await client.enqueue_rollout("waited for")
            feed = client.watch_rollouts()
            wait = asyncio.create_task(client.wait_for_rollouts([queued.rollout_id]))
            following = asyncio.ensure_future(anext(feed))
            going = asyncio.Event()

            async def call():
                while not going.is_set():
                    await client.enqueue_rollout("task")
                    await client.get_rollout_by_id(queued.rollout_id)

            calls = [asyncio.create_task(call()) for _ in range(4)]
            await asyncio.sleep(0.1)
            await servers[round_ % 2].stop()
            await asyncio.sleep(0.3)
            going.set()
            await asyncio.gather(*calls)
            await client.cancel_rollouts([queued.rollout_id])
            async with asyncio.timeout(SAFETY_SECONDS):
                [waited] = await wait
                completed = await following
            assert waited.rollout_id == completed.rollout.rollout_id == queued.rollout_id
        for server in servers:
            await server.stop()

    asyncio.run(scenario())


# --- Unix domain sockets ---------------------------------------------------------------------------------------------


def test_a_unix_domain_socket(store, tmp_path):
    path = tmp_path / "store.sock"

    async def scenario():
        async with server_of(store, unix_path=str(path)) as server:
            assert server.endpoint == f"unix://{path}"
            async with LightningStoreClient(server.endpoint) as client:
                queued = await client.enqueue_rollout("task")
                assert await client.get_rollout_by_id(queued.rollout_id) == queued
            with pytest.raises(OSError, match="another server does") as caught:
                await server_of(store, unix_path=str(path)).start()
            assert caught.value.errno == errno.EADDRINUSE
            async with LightningStoreClient(server.endpoint) as client:
                assert await client.healthy()

    asyncio.run(scenario())


def test_a_socket_that_was_left_behind_is_taken_over(store, tmp_path):
    path = tmp_path / "store.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def scenario():
        async with server_of(store, unix_path=str(path)) as server, LightningStoreClient(server.endpoint) as client:
            assert await client.healthy()

    asyncio.run(scenario())


def test_where_no_socket_can_be(store, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")

    async def start(path):
        await server_of(store, unix_path=str(path)).start()

    with pytest.raises(OSError, match=r"file: it is there already, and no socket"):
        asyncio.run(start(file))
    assert file.read_text() == "precious"
    with pytest.raises(OSError, match="cannot listen on .*No such file or directory"):
        asyncio.run(start(tmp_path / "missing" / "store.sock"))
    with pytest.raises(InvalidArgumentError, match="107 bytes"):
        ServerConfig(unix_path="x" * 200)


def test_a_relative_path_is_one_of_the_working_directory(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert server_of(store, unix_path="s.sock").endpoint == f"unix://{os.path.realpath(tmp_path)}/s.sock"
