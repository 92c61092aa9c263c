"""Messages over the limit."""

from __future__ import annotations

import asyncio

import pytest

from lightning_store import InMemoryLightningStore, MessageTooLargeError
from lightning_store.v1 import rollout_pb2, server_pb2
from lightning_store_client import LightningStoreClient

LIMIT = 2000


def enqueue(size_bytes):
    """A request of exactly so many bytes."""
    letters = size_bytes
    while True:
        new = rollout_pb2.NewRollout(input_json=f'"{"x" * letters}"')
        request = rollout_pb2.EnqueueRolloutsRequest(request_id="id", rollouts=[new])
        if request.ByteSize() == size_bytes:
            return request
        letters -= request.ByteSize() - size_bytes


@pytest.fixture
def limited(serve):
    return serve(max_message_bytes=LIMIT)


def test_a_message_of_the_limit_is_taken_and_a_larger_one_refused(limited):
    assert len(limited.call("EnqueueRollouts", enqueue(LIMIT)).rollouts) == 1
    failure = limited.failure("EnqueueRollouts", enqueue(LIMIT + 1))
    assert failure.code == "RESOURCE_EXHAUSTED"
    assert str(LIMIT) in failure.message


def test_the_server_stays_well(limited):
    for _ in range(2):
        assert limited.failure("EnqueueRollouts", enqueue(LIMIT * 10)).code == "RESOURCE_EXHAUSTED"
    assert limited.health() == "SERVING"
    assert limited.call("GetStatistics", server_pb2.GetStatisticsRequest()).total_rollouts == 0


def test_the_limit_is_told(limited):
    info = limited.call("GetServerInfo", server_pb2.GetServerInfoRequest())
    assert info.limits.max_message_bytes == LIMIT


def test_a_reply_may_be_larger_than_a_request(limited):
    async def fill():
        for _ in range(10):
            await limited.store.enqueue_rollout("x" * 1000)

    asyncio.run(fill())
    assert limited.call("ListRollouts", rollout_pb2.ListRolloutsRequest()).ByteSize() > LIMIT


def test_a_client_with_a_larger_limit_of_its_own_gets_the_same_error_class(limited):
    async def scenario():
        async with LightningStoreClient(limited.server.endpoint) as client:
            with pytest.raises(MessageTooLargeError, match="--max-message-bytes"):
                await client.enqueue_rollout("x" * LIMIT)

    asyncio.run(scenario())


def test_the_default_limit_takes_what_grpc_alone_would_not(serve):
    served = serve(InMemoryLightningStore())
    assert len(served.call("EnqueueRollouts", enqueue(5 * 1024 * 1024)).rollouts) == 1
