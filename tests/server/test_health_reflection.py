"""The standard services beside the store's own: health and reflection."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from lightning_store.testing import SAFETY_SECONDS
from lightning_store.v1 import server_pb2
from lightning_store.wire.methods import METHODS, SERVICE, SESSION, TRACE_SERVICE

VERSIONS = ["v1", "v1alpha"]
HEALTH = "grpc.health.v1.Health"


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_of_each_service(served, service):
    assert served.health(service) == "SERVING"


def test_health_of_an_unknown_service(served):
    with pytest.raises(grpc.RpcError) as caught:
        served.health("no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_can_be_watched(served):
    call = served.health_stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=SAFETY_SECONDS)
    assert next(call).status == health_pb2.HealthCheckResponse.SERVING
    call.cancel()


def test_unknown_methods_and_services_are_unimplemented(served):
    for path in (f"/{SERVICE}/NoSuchMethod", "/no.such.Service/Method"):
        with pytest.raises(grpc.RpcError) as caught:
            served.channel.unary_unary(path)(b"", timeout=SAFETY_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- Reflection, as any tool speaks it: by name and raw bytes --------------------------------------------------------


def reflect(served, version, **request):
    """The reply to one request on the stream of ``grpc.reflection.<version>``."""
    call = served.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    [reply] = call(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=SAFETY_SECONDS)
    return reply


def described_files(reply):
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in reply.file_descriptor_response.file_descriptor_proto
    ]
    return {file.name: file for file in files}


@pytest.mark.parametrize("version", VERSIONS)
def test_services_are_listed(served, version):
    reply = reflect(served, version, list_services="")
    listed = {service.name for service in reply.list_services_response.service}
    reflections = {f"grpc.reflection.{version}.ServerReflection" for version in VERSIONS}
    assert listed == {SERVICE, TRACE_SERVICE, HEALTH, *reflections}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_store_is_described_by_symbol_with_all_that_it_needs(served, version):
    files = described_files(reflect(served, version, file_containing_symbol=SERVICE))
    [service] = files["lightning_store/v1/service.proto"].service
    assert {method.name for method in service.method} == {*METHODS, SESSION}
    wanted = {dependency for file in files.values() for dependency in file.dependency}
    missing = wanted - files.keys()
    while missing:
        name = missing.pop()
        more = described_files(reflect(served, version, file_by_filename=name))
        assert name in more
        files |= more
        missing |= {dependency for file in more.values() for dependency in file.dependency} - files.keys()
    assert "google/protobuf/timestamp.proto" in files


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "symbol",
    [
        "lightning_store.v1.Rollout",
        TRACE_SERVICE,
        HEALTH,
        *(f"grpc.reflection.{version}.ServerReflection" for version in VERSIONS),
    ],
)
def test_other_symbols_are_described(served, version, symbol):
    files = described_files(reflect(served, version, file_containing_symbol=symbol))
    package, _, name = symbol.rpartition(".")
    assert any(
        file.package == package and name in {item.name for item in (*file.service, *file.message_type)}
        for file in files.values()
    )


def test_v1_is_described_as_v1_all_through(served):
    files = described_files(reflect(served, "v1", file_containing_symbol="grpc.reflection.v1.ServerReflection"))
    [file] = [file for file in files.values() if file.package == "grpc.reflection.v1"]
    assert "v1alpha" not in f"{file.name} {file.service} {file.message_type}"
    assert not file.options.deprecated
    [method] = file.service[0].method
    assert method.input_type == ".grpc.reflection.v1.ServerReflectionRequest"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_symbol_is_an_error_reply(served, version):
    reply = reflect(served, version, file_containing_symbol="no.such.Symbol")
    assert reply.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_reflection_is_seen_by_no_interceptor_that_is_for_the_store(serve, log, version):
    served = serve(access_log=True)
    reflect(served, version, list_services="")
    served.health()
    served.call("GetServerInfo", server_pb2.GetServerInfoRequest())
    assert "GetServerInfo" in log.next("lightning_store_server.access").getMessage()
