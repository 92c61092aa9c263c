"""Payloads that are cheap to send and dear to read."""

from __future__ import annotations

import pytest

from lightning_store.v1 import rollout_pb2
from tests.attacks.target import MIB, Bystander, Target, call

pytestmark = pytest.mark.slow

PAYLOADS = {
    "lists": ("[" + "[]," * 5_000_000 + "0]", "INVALID_ARGUMENT"),
    "numbers": ("[" + "1.5," * 6_000_000 + "0]", "INVALID_ARGUMENT"),
    "a long path": ('{"' + "k" * 100_000 + '":[' + "1," * 2_000_000 + '"\\ud800"]}', "OK"),
    "deep": ("[" * 900_000, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_that_grows_when_it_is_parsed(target: Target, name: str) -> None:
    text, expected = PAYLOADS[name]
    request = rollout_pb2.EnqueueRolloutsRequest(request_id=name, rollouts=[rollout_pb2.NewRollout(input_json=text)])
    with Bystander(target) as bystander, target.raw(("grpc.max_receive_message_length", -1)) as channel:
        code, message = call(channel, "EnqueueRollouts", request.SerializeToString())
        assert (code, len(message) < 1100) == (expected, True), message
    assert bystander.grown_bytes < 150 * MIB
