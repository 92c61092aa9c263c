"""The protocol of the legacy server: a task is a rollout, and what is reported of it goes to its latest attempt."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from lightning_store import model
from lightning_store.agent_lightning import LEGACY_REPORT, LEGACY_SPAN
from lightning_store.errors import StoreError
from lightning_store.v1 import rollout_pb2, span_pb2
from lightning_store.wire import codec, requests
from lightning_store.wire.checks import text_to_proto
from lightning_store.wire.errors import span_outcome_from_proto
from lightning_store_server.http.rest import handlers, shapes, values
from lightning_store_server.http.rest.calls import Call
from lightning_store_server.http.rest.errors import RestError

_HEX: Final = re.compile(r"(?:0x)?([0-9a-fA-F]+)")


async def next_task(call: Call) -> Any:
    claimed = await handlers.dequeue_one(call)
    return {"is_available": claimed is not None, "task": None if claimed is None else task_value(claimed)}


def task_value(claimed: Mapping[str, Any]) -> dict[str, Any]:
    """A claimed rollout as the task that it is."""
    return {
        "rollout_id": claimed["rollout_id"],
        "input": claimed["input"],
        "mode": claimed["mode"],
        "resources_id": claimed["resources_id"],
        "create_time": claimed["start_time"],
        "last_claim_time": claimed["attempt"]["start_time"],
        "num_claims": claimed["attempt"]["sequence_id"],
        "metadata": claimed["metadata"] or {},
    }


async def latest_resources(call: Call) -> Any:
    return _found(await handlers.latest_resources(call), "No resources have been set on the server.")


async def resources_by_id(call: Call) -> Any:
    found = await handlers.resources_by_id(call)
    return _found(found, f"Resource ID '{call.path['resources_id']}' not found.")


def _found(value: Any, detail: str) -> Any:
    if value is None:
        raise RestError(HTTPStatus.NOT_FOUND, detail)
    return value


async def report(call: Call, body: shapes.LegacyRollout) -> Any:
    """Store the spans of the trace, then the rest, with which the rollout has succeeded. Again it changes nothing."""
    reply = await call.make(
        "GetRollout", rollout_pb2.GetRolloutRequest(rollout_id=text_to_proto(body.rollout_id, "rollout_id"))
    )
    found = codec.rollout_from_proto(reply.rollout, "rollout") if reply.HasField("rollout") else None
    if not isinstance(found, model.AttemptedRollout):
        raise RestError(HTTPStatus.NOT_FOUND, f"Rollout {body.rollout_id} not found, or nobody has claimed it.")
    attempt = found.attempt
    if body.trace:
        added = await call.make(
            "AddSpans", await call.convert(partial(_add_spans, call.request_id, attempt), body.trace)
        )
        for number, message in enumerate(added.outcomes):
            outcome = span_outcome_from_proto(message, f"outcomes[{number}]")
            if isinstance(outcome, StoreError):
                raise outcome
    await call.make("UpdateAttempt", await call.convert(partial(_update, call.request_id, attempt), body))
    return {"status": "ok", "message": f"Rollout {body.rollout_id} received and stored.", "data": None}


def _add_spans(request_id: str, attempt: model.Attempt, trace: Sequence[dict[str, Any]]) -> span_pb2.AddSpansRequest:
    return values.add_spans(request_id, [_span(one, attempt, number) for number, one in enumerate(trace)])


def _update(request_id: str, attempt: model.Attempt, body: shapes.LegacyRollout) -> rollout_pb2.UpdateAttemptRequest:
    told = body.model_dump(exclude={"trace"})
    if body.trace is None:
        told["trace"] = None
    update = model.AttemptUpdate(status="succeeded", metadata={**(attempt.metadata or {}), LEGACY_REPORT: told})
    return requests.update_attempt_to_proto(request_id, body.rollout_id, attempt.attempt_id, update)


def _span(told: dict[str, Any], attempt: model.Attempt, number: int) -> dict[str, Any]:
    """One of ours, as far as what was reported can be read, and all of that beside it."""
    context, resource = _object(told.get("context")), _object(told.get("resource"))
    status = _object(told.get("status"))
    code = status.get("status_code")
    unique = hashlib.blake2b(f"{attempt.attempt_id}/{number}".encode(), digest_size=16).hexdigest()
    return {
        "rollout_id": attempt.rollout_id,
        "attempt_id": attempt.attempt_id,
        "sequence_id": number + 1,
        "trace_id": _hex(context.get("trace_id"), 32) or unique,
        "span_id": _hex(context.get("span_id"), 16) or unique[:16],
        "parent_id": _hex(told.get("parent_id"), 16),
        "name": name if isinstance(name := told.get("name"), str) else "",
        "status": {"status_code": code if code in ("UNSET", "OK", "ERROR") else "UNSET"},
        "attributes": _object(told.get("attributes")),
        "events": [],
        "links": [],
        "start_time": _seconds(told.get("start_time")),
        "end_time": _seconds(told.get("end_time")),
        "context": None,
        "parent": None,
        "resource": {"attributes": _object(resource.get("attributes")), "schema_url": ""},
        LEGACY_SPAN: told,
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _hex(value: Any, digits: int) -> str | None:
    found = _HEX.fullmatch(value) if isinstance(value, str) else None
    return found[1].lower() if found and len(found[1]) == digits else None


def _seconds(value: Any) -> float | None:
    """Of a time as the SDK of OpenTelemetry writes it."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
