"""Server reflection, so that grpcurl and its like need no .proto files.

The package grpcio-reflection speaks v1alpha only. v1 is the same protocol, message for message, under another name, so
the same servicer answers for both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from lightning_store.errors import StoreError
from lightning_store_server.admission import Lane
from lightning_store_server.interceptors import Context, abort, peer_of

V1ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
SERVICE = "ServerReflection"


def add_reflection(server: grpc.aio.Server, services: Sequence[str], watches: Lane) -> None:
    """Let ``server`` describe ``services`` and reflection itself, in v1 and v1alpha. ``watches`` has the places."""
    _describe_v1()
    names = [*services, f"{V1}.{SERVICE}", f"{V1ALPHA}.{SERVICE}"]
    servicer: Any = reflection.aio.ReflectionServicer(names, pool=_Pool())  # type: ignore[attr-defined]  # not in its stub

    async def info(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        try:
            slot = watches.enter(0, peer_of(context))
        except StoreError as error:
            await abort(f"/{V1}.{SERVICE}/ServerReflectionInfo", context, error)
        with slot:
            async for response in servicer.ServerReflectionInfo(requests, context):
                yield response

    handler = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods: dict[str, Any] = {"ServerReflectionInfo": handler}
    for package in (V1, V1ALPHA):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"{package}.{SERVICE}", methods),))


class _Pool:
    """The default descriptor pool, which in addition finds a method by its service: so ``grpcurl describe`` can too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(descriptor_pool.Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        pool = descriptor_pool.Default()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindServiceByName(symbol.rpartition(".")[0]).file


def _describe_v1() -> None:
    """Put the description of v1 beside that of v1alpha, so that v1 can be described too."""
    pool = descriptor_pool.Default()
    name = "grpc/reflection/v1/reflection.proto"
    try:
        pool.FindFileByName(name)
    except KeyError:
        alpha = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        # As text, because the package's name stands in every reference from one message to another.
        renamed = descriptor_pb2.FileDescriptorProto()
        text_format.Parse(text_format.MessageToString(alpha).replace(V1ALPHA, V1), renamed)
        renamed.name = name
        renamed.ClearField("options")  # v1alpha is marked deprecated, and has its own package names
        pool.Add(renamed)
