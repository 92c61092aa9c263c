"""The table of methods against the service's descriptor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.message_factory import GetMessageClass

from lightning_store.v1 import service_pb2
from lightning_store.wire.methods import BY_PATH, METHODS, REPLIES, REQUESTS, SERVICE, SESSION, Repeat, Role

ROOT = Path(__file__).parent.parent.parent
ROLES = {role.value for role in Role}
RPCS = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"].methods_by_name


def test_every_rpc_but_that_of_sessions_is_in_the_table_and_nothing_else():
    assert set(METHODS) == set(RPCS) - {SESSION}
    own = {f"/lightning_store.v1.LightningStoreService/{name}" for name in METHODS}
    assert set(BY_PATH) == own | {"/opentelemetry.proto.collector.trace.v1.TraceService/Export"}
    assert SERVICE == "lightning_store.v1.LightningStoreService"


def test_exactly_the_once_methods_carry_a_request_id():
    with_id = {name for name, rpc in RPCS.items() if "request_id" in rpc.input_type.fields_by_name}
    assert with_id == {name for name, method in METHODS.items() if method.repeat is Repeat.ONCE}


def test_streams_are_told():
    streams = {name for name, rpc in RPCS.items() if rpc.server_streaming}
    assert streams == {method.name for method in METHODS.values() if method.streams} | {SESSION}
    assert {name for name, rpc in RPCS.items() if rpc.client_streaming} == {SESSION}


def test_every_method_has_a_deadline_and_only_waiting_is_a_long_poll():
    assert all(method.deadline_seconds > 0 for method in METHODS.values())
    assert {method.name for method in METHODS.values() if method.long_poll} == {"DequeueRollouts", "WaitForRollouts"}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_its_request_and_its_reply(name):
    assert REPLIES[name] is GetMessageClass(RPCS[name].output_type)
    request = GetMessageClass(RPCS[name].input_type)()
    taken = REQUESTS[name].FromString(request.SerializeToString())
    assert type(taken) is type(request) or taken.SerializeToString() == b""


def test_those_of_all_methods_and_of_no_others_are_known():
    assert REQUESTS.keys() == REPLIES.keys() == METHODS.keys()


def test_the_comments_of_the_rpcs_and_the_documentation_name_the_role_that_each_method_needs():
    proto = (ROOT / "proto" / "lightning_store" / "v1" / "service.proto").read_text(encoding="utf-8")
    commented = re.findall(r"^  // Role: (.+)\.\n  rpc (\w+)\(", proto, re.MULTILINE)
    assert {rpc: role for role, rpc in commented} == {
        **{name: method.role.value for name, method in METHODS.items()},
        SESSION: "that of each call",
    }

    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "docs" / "wire.md").read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: role for role, names in rows if role in ROLES for name in names.split(", ")}
    own = {name: method.role.value for name, method in METHODS.items()}
    assert documented == {**own, "OTLP's Export": "runner"}


def test_each_role_may_do_what_those_before_it_may():
    ranked = [Role.READER, Role.RUNNER, Role.ALGORITHM, Role.ADMIN]
    for rank, role in enumerate(ranked):
        assert [role.suffices_for(needed) for needed in ranked] == [True] * (rank + 1) + [False] * (3 - rank)
