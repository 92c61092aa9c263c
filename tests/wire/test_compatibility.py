"""The wire only grows: what tests/data/wire_v1.txt has stays, and what an older client sends is understood."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from lightning_store import InMemoryLightningStore
from lightning_store.errors import UnsupportedError
from lightning_store.v1 import (
    common_pb2,
    query_pb2,
    resources_pb2,
    rollout_pb2,
    server_pb2,
    service_pb2,
    session_pb2,
    span_pb2,
    transfer_pb2,
    worker_pb2,
)
from lightning_store.wire.methods import METHODS, REQUESTS
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer

FILES = (
    common_pb2,
    query_pb2,
    resources_pb2,
    rollout_pb2,
    server_pb2,
    service_pb2,
    session_pb2,
    span_pb2,
    transfer_pb2,
    worker_pb2,
)
KEPT = Path(__file__).parents[1] / "data" / "wire_v1.txt"


def described() -> Iterator[str]:
    """A line for each field, enum value and method."""
    for module in FILES:
        file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for message in file.message_type:
            yield from _fields(message)
        for enum in file.enum_type:
            yield from (f"{enum.name} {value.number} {value.name}" for value in enum.value)
        for service in file.service:
            for rpc in service.method:
                request, reply = "stream " * rpc.client_streaming, "stream " * rpc.server_streaming
                yield f"{service.name}.{rpc.name} {request}{rpc.input_type} {reply}{rpc.output_type}"


def _fields(message: DescriptorProto) -> Iterator[str]:
    for field in message.field:
        kind = field.type_name or f"type {field.type}"
        optional = " optional" * (field.proto3_optional or field.HasField("oneof_index"))
        yield f"{message.name} {field.number} {field.name} label {field.label} {kind}{optional}"
    for nested in message.nested_type:
        yield from _fields(nested)


def test_nothing_that_clients_and_servers_send_was_taken_away_or_changed():
    """Add the lines of what is new when a version is released: then it cannot be taken back either."""
    kept = KEPT.read_text().splitlines()
    assert len(kept) > 300
    assert sorted(set(kept) - set(described())) == []


@pytest.fixture
def server() -> Iterator[LightningStoreServer]:
    server = LightningStoreServer(InMemoryLightningStore(), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


OLD_REQUESTS = {
    "EnqueueRollouts": "0a046964316112100a087b2261223a20317d10012a027b7d",
    "DequeueRollouts": "0a046964316210011a0177",
}
"""As version 0.1 sends them, byte by byte."""


def test_bytes_that_an_older_client_sends_are_understood(server):
    async def program() -> None:
        async with LightningStoreClient(server.endpoint) as client:
            connection: Any = client.stub
            enqueued, claimed = (
                getattr(connection, rpc)(REQUESTS[rpc].FromString(bytes.fromhex(text)), timeout=10)
                for rpc, text in OLD_REQUESTS.items()
            )
            assert enqueued.rollouts[0].input_json == '{"a": 1}'
            assert enqueued.rollouts[0].mode == rollout_pb2.ROLLOUT_MODE_TRAIN
            assert claimed.rollouts[0].latest_attempt.worker_id == "w"

    asyncio.run(program())


def test_fields_of_a_newer_client_are_passed_over(server):
    async def program() -> None:
        async with LightningStoreClient(server.endpoint) as client:
            request = rollout_pb2.EnqueueRolloutsRequest(request_id="id-1", rollouts=[rollout_pb2.NewRollout()])
            newer = request.SerializeToString() + bytes.fromhex("fa3f0474657374")  # field 1023, a text
            reply: Any = client.stub.EnqueueRollouts(type(request).FromString(newer), timeout=10)
            assert len(reply.rollouts) == 1

    asyncio.run(program())


def test_a_method_that_an_older_server_lacks_is_unsupported(monkeypatch):
    """And nothing else: the other calls go on."""
    older = {name: method for name, method in METHODS.items() if name != "ExportRollouts"}
    monkeypatch.setattr("lightning_store_server.sessions.METHODS", older)

    async def program() -> None:
        served = LightningStoreServer(InMemoryLightningStore(), port=0)
        await served.start()
        try:
            async with LightningStoreClient(served.endpoint) as client:
                with pytest.raises(UnsupportedError):
                    _ = [page async for page in client.export_pages()]
                await client.enqueue_rollout("task")
        finally:
            await served.stop()

    asyncio.run(program())
