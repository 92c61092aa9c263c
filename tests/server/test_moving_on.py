"""Connections that have become old, and a server that is about to go: callers move on, and no call fails."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lightning_store import InMemoryLightningStore
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.v1 import service_pb2_grpc
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest
from lightning_store_client import LightningStoreClient
from lightning_store_server import ServerConfig
from lightning_store_server.app import GrpcServer
from lightning_store_server.sessions import MOVE_SECONDS
from tests.server.test_http_side import fetch

pytestmark = pytest.mark.asyncio

AGE = 100.0
NO_RETRIES = {"retry_delays": (), "health_retry_delays": (), "timeout": SAFETY_SECONDS}

channel_to = grpc.aio.insecure_channel


@asynccontextmanager
async def serving(clock=None, **config):
    settings = ServerConfig(port=0, grace_seconds=SAFETY_SECONDS, **config)
    server = GrpcServer(InMemoryLightningStore(), settings, clock)
    await server.start()
    try:
        yield server, f"127.0.0.1:{server.bound_port}"
    finally:
        await server.stop(0.0)


async def test_a_session_asks_its_caller_to_move_on_and_answers_what_is_under_way():
    clock = FakeClock()
    async with (
        serving(clock, max_connection_age_seconds=AGE) as (_, endpoint),
        channel_to(endpoint) as channel,
    ):
        session = service_pb2_grpc.LightningStoreServiceStub(channel).Session()

        async def call(id_):
            await session.write(SessionRequest(calls=[SessionCall(id=id_, method="GetStatistics")]))
            return await session.read()

        assert (await call(1)).replies[0].id == 1
        clock.advance(1.2 * AGE)
        told: Any = await session.read()
        assert told.moving_on
        assert not told.replies
        assert (await call(2)).replies[0].response
        clock.advance(MOVE_SECONDS)
        assert not await session.read()  # the end
        assert await session.code() is grpc.StatusCode.OK


async def test_a_client_moves_on_with_its_next_call_and_loses_none():
    clock = FakeClock()
    async with (
        serving(clock, max_connection_age_seconds=AGE) as (_, endpoint),
        LightningStoreClient(endpoint, **NO_RETRIES) as client,
    ):
        waiting = asyncio.create_task(client.dequeue_rollout(max_wait=SAFETY_SECONDS))
        await client.statistics()
        before = client._connector.get().session()
        clock.advance(1.2 * AGE)
        while not before.ended:
            await client.statistics()
        queued = await client.enqueue_rollout("work")
        assert client._connector.get().session() is not before
        claimed = await asyncio.wait_for(waiting, SAFETY_SECONDS)
        assert claimed is not None
        assert claimed.rollout_id == queued.rollout_id
        clock.advance(MOVE_SECONDS)
        await client.statistics()


async def test_calls_go_on_over_one_connection_after_another(caplog):
    caplog.set_level(logging.INFO, "lightning_store_server.access")
    async with (
        serving(max_connection_age_seconds=0.05, access_log=True) as (_, endpoint),
        LightningStoreClient(endpoint, **NO_RETRIES) as client,
    ):
        for number in range(10_000):
            await asyncio.gather(*(client.enqueue_rollout(number) for _ in range(4)))
            peers = {record.call["peer"] for record in caplog.records if hasattr(record, "call")}
            if len(peers) > 3:
                break
        assert len(peers) > 3
        assert (await client.statistics())["total_rollouts"] == 4 * (number + 1)


async def test_a_server_is_not_ready_before_it_drains():
    clock = FakeClock()
    async with serving(clock, drain_delay_seconds=15, http_port=0) as (server, endpoint):
        base = f"http://127.0.0.1:{server.bound_http_port}"
        async with (
            LightningStoreClient(endpoint, **NO_RETRIES) as client,
            channel_to(endpoint) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            waiting = asyncio.create_task(client.dequeue_rollout(max_wait=SAFETY_SECONDS))
            await client.statistics()
            stopping = asyncio.create_task(server.stop())
            await clock.until_waiting(clock.now() + 15)
            said = await health.Check(health_pb2.HealthCheckRequest())
            assert said.status == health_pb2.HealthCheckResponse.NOT_SERVING
            status, _, body = await asyncio.to_thread(fetch, f"{base}/readyz")
            assert (status, body) == (503, b'{"status":"leaving"}')
            assert (await asyncio.to_thread(fetch, f"{base}/healthz"))[0] == 200
            assert (await asyncio.to_thread(fetch, f"{base}/metrics"))[0] == 200
            await client.enqueue_rollout("still taken")
            assert await asyncio.wait_for(waiting, SAFETY_SECONDS) is not None
            clock.advance(15)
            assert await asyncio.wait_for(stopping, SAFETY_SECONDS)
