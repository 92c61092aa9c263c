"""Proxies that cut every connection after a short life: neither feeds nor waits end, and the log is told once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from lightning_store import InMemoryLightningStore, StoreUnavailableError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.wire.methods import ACCEPTED_METADATA
from lightning_store_client import LightningStoreClient
from lightning_store_client.session import STATUS_DETAILS_KEY, was_cut
from lightning_store_server import LightningStoreServer
from tests import logged

LIFE_SECONDS = 0.15
QUICK = {"retry_delays": (0.02, 0.03), "health_retry_delays": ()}
"""A budget that is used up long before the waits of these tests end."""


class CuttingProxy:
    """Hands bytes on, and cuts each connection when it has lived for so long."""

    def __init__(self, endpoint: str, life_seconds: float) -> None:
        self._host, _, port = endpoint.rpartition(":")
        self._port = int(port)
        self._life_seconds = life_seconds
        self._connections = 0
        self._connected = asyncio.Condition()
        self._handing_on: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for one in self._handing_on:
            one.cancel()
        await asyncio.gather(*self._handing_on, return_exceptions=True)

    async def until_connections(self, count: int) -> None:
        """Return when there have been so many."""
        async with self._connected:
            await self._connected.wait_for(lambda: self._connections >= count)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handing_on = asyncio.ensure_future(self._hand_on(reader, writer))
        self._handing_on.add(handing_on)
        handing_on.add_done_callback(self._handing_on.discard)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with closed_in_the_end(writer):
            async with self._connected:
                self._connections += 1
                self._connected.notify_all()
            with contextlib.suppress(TimeoutError, OSError):
                server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
                async with closed_in_the_end(server_writer), asyncio.timeout(self._life_seconds):
                    await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))


@contextlib.asynccontextmanager
async def closed_in_the_end(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def behind_a_proxy(store, life_seconds=LIFE_SECONDS, **settings):
    async with (
        LightningStoreServer(store, port=0) as server,
        CuttingProxy(server.endpoint, life_seconds) as proxy,
        LightningStoreClient(proxy.endpoint, **{**QUICK, **settings}) as client,
    ):
        yield client, proxy


def run(scenario):
    async def limited():
        async with asyncio.timeout(2 * SAFETY_SECONDS):
            await scenario()

    asyncio.run(limited())


def test_waits_go_on_over_any_number_of_connections():
    store = InMemoryLightningStore()

    async def scenario():
        queued = await store.enqueue_rollout("task")
        async with behind_a_proxy(store) as (client, proxy):
            waiting = asyncio.create_task(client.wait_for_rollouts([queued.rollout_id], timeout=60))
            claiming = asyncio.create_task(client.dequeue_many_rollouts(limit=2, worker_id="w", max_wait=60))
            [claimed] = await claiming
            await proxy.until_connections(8)
            await store.update_attempt(claimed.rollout_id, "latest", status="succeeded")
            [ended] = await waiting
            assert ended.status == "succeeded"

    run(scenario)


def test_a_claim_that_waits_goes_on_and_claims_once():
    store = InMemoryLightningStore()

    async def scenario():
        async with behind_a_proxy(store) as (client, proxy):
            claiming = asyncio.create_task(client.dequeue_rollout("w", max_wait=60))
            await proxy.until_connections(8)
            queued = await store.enqueue_rollout("task")
            claimed = await claiming
            assert (claimed.rollout_id, claimed.attempt.sequence_id) == (queued.rollout_id, 1)

    run(scenario)


def test_a_feed_without_news_goes_on():
    store = InMemoryLightningStore()

    async def scenario():
        async with behind_a_proxy(store) as (client, proxy):
            following = asyncio.ensure_future(anext(client.watch_rollouts()))
            await proxy.until_connections(8)
            queued = await store.enqueue_rollout("task")
            await store.cancel_rollouts([queued.rollout_id])
            assert (await following).rollout.rollout_id == queued.rollout_id

    run(scenario)


def test_what_is_cut_is_no_outage_and_a_server_that_is_away_is_told_once(caplog):
    store = InMemoryLightningStore()

    async def scenario():
        async with behind_a_proxy(store) as (client, proxy):
            waiting = asyncio.create_task(client.dequeue_rollout("w", max_wait=60))
            await proxy.until_connections(4)
            assert logged.warnings(caplog) == []
            waiting.cancel()
        async with LightningStoreClient("127.0.0.1:9", retry_delays=(0.01, 0.01, 0.01)) as client:
            calls = [client.statistics() for _ in range(5)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in results} == {StoreUnavailableError}
        [warning] = logged.warnings(caplog)
        assert "GetStatistics: 127.0.0.1:9: " in warning

    with caplog.at_level(logging.INFO):
        run(scenario)


def test_the_end_of_an_outage_is_told_and_the_next_one_is_another(rig, broken, caplog):
    async def scenario():
        client = rig.client()
        for _ in range(2):
            rig.proxy.breaks("GetStatistics", broken(), broken())
            await client.statistics()

    with caplog.at_level(logging.INFO):
        run(scenario)
    assert logged.levels(caplog) == ["WARNING", "INFO", "INFO"] * 2
    assert caplog.text.count("calls succeed again") == 2


@pytest.mark.parametrize("retry_delays", [()])
def test_a_client_that_does_not_retry_does_not(retry_delays):
    async def scenario():
        async with behind_a_proxy(InMemoryLightningStore(), retry_delays=retry_delays) as (client, _):
            with pytest.raises(StoreUnavailableError, match="broke off"):
                await client.dequeue_rollout("w", max_wait=60)

    run(scenario)


@pytest.mark.parametrize(
    ("code", "taken", "details", "is_cut"),
    [
        (grpc.StatusCode.UNAVAILABLE, True, False, True),
        (grpc.StatusCode.INTERNAL, True, False, True),  # RST_STREAM(NO_ERROR), for instance
        (grpc.StatusCode.CANCELLED, True, False, True),
        (grpc.StatusCode.UNAVAILABLE, False, False, False),
        (grpc.StatusCode.UNAVAILABLE, True, True, False),
        (grpc.StatusCode.UNIMPLEMENTED, True, False, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, True, False, False),
    ],
)
def test_what_counts_as_cut(code, taken, details, is_cut):
    initial = grpc.aio.Metadata(*([ACCEPTED_METADATA] if taken else []))
    trailing = grpc.aio.Metadata(*([(STATUS_DETAILS_KEY, b"details")] if details else []))
    assert was_cut(grpc.aio.AioRpcError(code, initial, trailing)) == is_cut
