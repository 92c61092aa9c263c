"""Where a server listens when a host has several addresses, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import errno
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lightning_store import InMemoryLightningStore
from lightning_store.testing import SAFETY_SECONDS
from lightning_store_server import LightningStoreServer, ServerConfig

pytestmark = pytest.mark.asyncio

NOT_OF_THIS_MACHINE = "192.0.2.1"
"""Reserved for documentation: no machine has it."""


def make_server(host: str, port: int = 0, *, insecure: bool = False) -> LightningStoreServer:
    config = ServerConfig(insecure=insecure)
    return LightningStoreServer(InMemoryLightningStore(), host=host, port=port, config=config)


async def refusal(server: LightningStoreServer) -> OSError:
    """Why the server does not start, told at once."""
    with pytest.raises(OSError, match="cannot listen on") as caught:
        await asyncio.wait_for(server.start(), SAFETY_SECONDS)
    return caught.value


async def serves(address: str) -> bool:
    """Whether a lightning store answers at ``address``, ``"host:port"``."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=SAFETY_SECONDS, wait_for_ready=True
        )
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def addresses_of(host: str) -> list[str]:
    """The addresses of ``host`` that this machine has, as they stand in a target."""
    found = []
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
        found.append(f"[{address[0]}]" if family is socket.AF_INET6 else str(address[0]))
    return found


@pytest.mark.parametrize(("first", "second"), [("127.0.0.1", "localhost"), ("localhost", "127.0.0.1")])
async def test_a_port_taken_on_one_address_of_the_host_is_refused(first: str, second: str):
    async with make_server(first) as server:
        error = await refusal(make_server(second, server.bound_port))
        assert error.errno == errno.EADDRINUSE
        assert f"cannot listen on 127.0.0.1:{server.bound_port}" in str(error)
        assert await serves(f"127.0.0.1:{server.bound_port}")


async def test_a_host_that_was_refused_leaves_no_address_taken():
    async with make_server("127.0.0.1") as server:
        late = make_server("localhost", server.bound_port)
        await refusal(late)
    async with late:
        assert await serves(f"127.0.0.1:{late.bound_port}")


async def test_an_address_of_another_machine_is_refused():
    error = await refusal(make_server(NOT_OF_THIS_MACHINE, insecure=True))
    assert error.errno == errno.EADDRNOTAVAIL
    assert f"cannot listen on {NOT_OF_THIS_MACHINE}:0" in str(error)


async def test_a_host_that_has_no_address_is_refused(monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await refusal(make_server("store.invalid", insecure=True))
    assert error.errno == errno.EADDRNOTAVAIL
    assert "cannot listen on store.invalid: no such host or address (Name or service not known)" in str(error)


async def test_any_free_port_is_the_same_on_every_address_of_the_host():
    async with make_server("localhost") as server:
        assert server.bound_port != 0
        addresses = addresses_of("localhost")
        assert "127.0.0.1" in addresses
        for address in addresses:
            assert await serves(f"{address}:{server.bound_port}")
