"""Large payloads in and out over HTTP, which become objects on their way."""

from __future__ import annotations

import http.client
import json

import pytest

from lightning_store_client import SyncLightningStoreClient
from tests.attacks.target import MIB, Bystander, Target, long_form

pytestmark = pytest.mark.slow


def asked(target: Target, method: str, path: str, body: object = None) -> bytes:
    """The answer to a request that is served."""
    connection = http.client.HTTPConnection("127.0.0.1", target.http_port, timeout=120)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        read = answer.read()
        assert answer.status in (200, 201), read[:1000]
        return read
    finally:
        connection.close()


@pytest.mark.parametrize("members", [20_000, pytest.param(120_000, marks=long_form)])
def test_rows_of_many_members(target: Target, members: int) -> None:
    attributes = {f"{number:0100}": "x" * 300 for number in range(members)}
    with SyncLightningStoreClient(target.endpoint) as client, Bystander(target) as bystander:
        mine = client.start_rollout("a task")
        span = {"rollout_id": mine.rollout_id, "attempt_id": mine.attempt.attempt_id, "sequence_id": 1, "name": "large"}
        ids = {"trace_id": f"{1:032}", "span_id": f"{1:016}", "parent_id": None, "start_time": 1.0, "end_time": 2.0}
        rest = {"status": {"status_code": "OK"}, "events": [], "links": [], "context": None, "parent": None}
        resource = {"attributes": {}, "schema_url": ""}
        sent = {**span, **ids, **rest, "resource": resource, "attributes": attributes}
        asked(target, "POST", "/v1/agl/spans", sent)
        size_bytes = len(asked(target, "GET", f"/v1/agl/spans?rollout_id={mine.rollout_id}&limit=-1"))
        assert size_bytes > 400 * members
        assert len(asked(target, "GET", f"/ui/rollouts/{mine.rollout_id}/json")) > 400 * members
        asked(target, "GET", f"/ui/rollouts/{mine.rollout_id}")
    assert bystander.grown_bytes < 10 * size_bytes + 100 * MIB
