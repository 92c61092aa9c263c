"""What peers do with connections and streams rather than with calls."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import h2.config
import h2.connection
import pytest
from grpc_health.v1 import health_pb2

from lightning_store.testing import Fault, FaultProxy, FaultSchedule
from lightning_store.wire.methods import METHODS
from lightning_store_client import LightningStoreClient
from tests.attacks.target import MIB, Bystander, Target, long_form, start_target

pytestmark = pytest.mark.slow

WATCH = "/grpc.health.v1.Health/Watch"
AT_A_TIME = 50


class RawPeer:
    """HTTP/2 as no library for gRPC speaks it."""

    def __init__(self, target: Target) -> None:
        host, port = target.endpoint.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.http.initiate_connection()
        self.flush()
        self._path = METHODS["GetServerInfo"].path

    def flush(self) -> None:
        self.socket.sendall(self.http.data_to_send())

    def request(self) -> int:
        """Begin a call; the number of its stream."""
        stream = self.http.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._path),
            (":authority", "here"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self.http.send_headers(stream, headers)
        return stream

    def take(self, seconds: float) -> bool:
        """Look at what comes; False if the connection was closed."""
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 20)
        except TimeoutError:
            return True
        except OSError:
            return False
        if data:
            self.http.receive_data(data)
        return bool(data)


@contextmanager
def raw_peer(target: Target) -> Iterator[RawPeer]:
    peer = RawPeer(target)
    try:
        yield peer
    finally:
        peer.socket.close()


@pytest.mark.parametrize("resets", [4000, pytest.param(90_000, marks=long_form)])
def test_streams_that_are_begun_and_reset(target: Target, resets: int) -> None:
    begun = time.perf_counter()
    with Bystander(target) as bystander, raw_peer(target) as peer:
        sent = 0
        try:
            for _ in range(resets // AT_A_TIME):
                for _ in range(AT_A_TIME):
                    peer.http.reset_stream(peer.request())
                peer.flush()
                sent += AT_A_TIME
                if not peer.take(0.0001):
                    break
        except (OSError, h2.exceptions.ProtocolError) as error:
            print("cut off:", repr(error)[:100])
        bystander.wait_for_rounds(5)
    print(f"{sent} resets in {time.perf_counter() - begun:.1f} s")
    assert bystander.grown_bytes < 150 * MIB


def test_connections_that_say_nothing(tmp_path: Path) -> None:
    flags = ("--connections-max", "20", "--handshake-timeout", "1", "--connection-idle", "1")
    target = start_target("memory:", tmp_path / "log", *flags)
    host, port = target.endpoint.rsplit(":", 1)
    try:
        with ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection((host, int(port)), 30)) for _ in range(30)]
            assert all(one.recv(1 << 16) is not None and is_closed(one) for one in silent)
            with Bystander(target):
                idle = stack.enter_context(raw_peer(target))
                while idle.take(30.0):
                    pass
        assert target.end() == 0
    finally:
        target.kill()


def is_closed(connection: socket.socket) -> bool:
    """Whether it ends within the time that the socket waits."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def test_streams_that_never_say_anything(target: Target) -> None:
    """On several connections; each has its own share of the places."""
    with ExitStack() as stack, Bystander(target) as bystander:
        refused = 0
        for _ in range(3):
            channel = stack.enter_context(target.raw())
            request = health_pb2.HealthCheckRequest().SerializeToString()
            watches = [channel.unary_stream(WATCH)(request, timeout=60) for _ in range(600)]
            last = watches[-1]
            refused += last.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for one in watches:
                stack.callback(one.cancel)
        assert refused == 3
        bystander.wait_for_rounds(5)
    assert bystander.grown_bytes < 100 * MIB


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=long_form)])
def test_clients_behind_a_partition(target: Target, count: int) -> None:
    """Each has a call under way when nothing passes any more; the network tells nobody."""

    async def partition(bystander: Bystander) -> None:
        hole = FaultSchedule(lambda number: Fault.BLACK_HOLE if number > count else None)
        async with FaultProxy(target.endpoint, hole) as proxy:
            clients = [LightningStoreClient(proxy.endpoint, timeout=60.0) for _ in range(count)]
            await asyncio.gather(*(one.statistics() for one in clients))
            cut_off = [asyncio.ensure_future(one.dequeue_rollout("cut off", max_wait=60)) for one in clients]
            await asyncio.to_thread(bystander.wait_for_rounds, 20)
            assert not any(one.done() for one in cut_off)
            for one in cut_off:
                one.cancel()
            await asyncio.wait(cut_off)
            await asyncio.gather(*(one.close() for one in clients))

    with Bystander(target) as bystander:
        asyncio.run(partition(bystander))
    assert bystander.grown_bytes < 100 * MIB
