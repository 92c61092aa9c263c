"""What the operations do, each as one call of the service or a few. Those that end in ``_02`` are for 0.2 alone."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from lightning_store.errors import StoreError
from lightning_store.model import UNSET
from lightning_store.queries import RolloutQuery
from lightning_store.v1 import resources_pb2, rollout_pb2, server_pb2, span_pb2, worker_pb2
from lightning_store.wire import codec, queries, requests
from lightning_store.wire.checks import optional_text_to_proto, text_to_proto
from lightning_store.wire.errors import span_outcome_from_proto
from lightning_store_server.http.rest import listings, shapes, values
from lightning_store_server.http.rest.calls import Call
from lightning_store_server.http.rest.errors import RestError
from lightning_store_server.http.rest.operations import Rows
from lightning_store_server.slices import in_slices


async def health(call: Call) -> Mapping[str, str]:
    return {"status": "ok"}


async def statistics(call: Call) -> Mapping[str, Any]:
    reply = await call.make("GetStatistics", server_pb2.GetStatisticsRequest())
    return codec.statistics_from_proto(reply)


# --- The queue -------------------------------------------------------------------------------------------------------


async def enqueue(call: Call, body: shapes.EnqueueRequest) -> list[Any]:
    if not body.rollouts:
        return []
    new = await call.convert_all(lambda index, one: values.new_rollout(one, f"rollouts[{index}]."), body.rollouts)
    request = rollout_pb2.EnqueueRolloutsRequest(request_id=call.request_id, rollouts=new)
    reply = await call.make("EnqueueRollouts", request)
    return await call.convert_all(lambda _, one: values.rollout_value(one), reply.rollouts)


async def enqueue_one(call: Call, body: shapes.NewRollout) -> Any:
    [queued] = await enqueue(call, shapes.EnqueueRequest(rollouts=[body]))
    return queued


async def dequeue(call: Call, body: shapes.DequeueRequest | None) -> list[Any]:
    asked = body or shapes.DequeueRequest()
    if asked.limit <= 0:
        return []
    request = requests.dequeue_to_proto(call.request_id, asked.limit, asked.worker_id, 0.0)
    reply = await call.make("DequeueRollouts", request)
    return await in_slices(lambda _, one: values.row_value(one), reply.rollouts)


async def dequeue_one(call: Call, body: shapes.StartAttemptRequest | None = None) -> Any:
    worker_id = None if body is None else body.worker_id
    return next(iter(await dequeue(call, shapes.DequeueRequest(worker_id=worker_id))), None)


async def start_rollout(call: Call, body: shapes.StartRolloutRequest) -> Any:
    request = rollout_pb2.StartRolloutRequest(
        request_id=call.request_id,
        rollout=await call.convert(values.new_rollout, body),
        worker_id=optional_text_to_proto(body.worker_id, "worker_id"),
    )
    return await call.convert(values.row_value, (await call.make("StartRollout", request)).rollout)


async def start_rollout_02(call: Call, body: shapes.NewRollout) -> Any:
    return await start_rollout(call, shapes.StartRolloutRequest(**dict(body)))


async def start_attempt(call: Call, body: shapes.StartAttemptRequest | None) -> Any:
    return await _start_attempt(call, call.path["rollout_id"], None if body is None else body.worker_id)


async def start_attempt_02(call: Call, body: shapes.RolloutId02) -> Any:
    return await _start_attempt(call, body.rollout_id)


async def _start_attempt(call: Call, rollout_id: str, worker_id: str | None = None) -> Any:
    request = rollout_pb2.StartAttemptRequest(
        request_id=call.request_id,
        rollout_id=text_to_proto(rollout_id, "rollout_id"),
        worker_id=optional_text_to_proto(worker_id, "worker_id"),
    )
    return values.row_value((await call.make("StartAttempt", request)).rollout)


async def wait(call: Call, body: shapes.WaitRequest) -> list[Any]:
    reply = await call.make("WaitForRollouts", values.wait(body.rollout_ids, body.timeout))
    ended = {one.rollout_id: values.rollout_value(one) for one in reply.rollouts}
    if reply.omitted_rollout_ids:  # more than fits into one reply of the service
        query = RolloutQuery(rollout_id_in=list(reply.omitted_rollout_ids))
        async for some in call.query(rollouts=queries.list_rollouts_to_proto(query)):
            ended.update((one.rollout_id, values.rollout_value(one)) for one in some.rollouts)
    return [ended[rollout_id] for rollout_id in body.rollout_ids if rollout_id in ended]


# --- Rollouts and attempts -------------------------------------------------------------------------------------------


async def rollouts(call: Call, asked: shapes.RolloutsQuery) -> Rows:
    return listings.page(call, "rollouts", asked)


async def rollouts_02(call: Call, asked: shapes.RolloutsQuery02) -> Rows:
    rows = listings.rows(call, "rollouts", status_in=asked.status, rollout_id_in=asked.rollout_ids)
    rows.convert = values.rollout_value
    return rows


async def rollout(call: Call) -> Any:
    return await _rollout(call, values.row_value)


async def rollout_02(call: Call) -> Any:
    return await _rollout(call, values.rollout_value)


async def _rollout(call: Call, convert: Any) -> Any:
    reply = await call.make("GetRollout", rollout_pb2.GetRolloutRequest(rollout_id=call.path["rollout_id"]))
    return await call.convert(lambda found: values.if_any(convert, found, "rollout"), reply)


async def update_rollout(call: Call, body: shapes.RolloutUpdate) -> Any:
    return await _update_rollout(call, call.path["rollout_id"], body)


async def update_rollout_02(call: Call, body: shapes.UpdateRollout02) -> Any:
    return await _update_rollout(call, body.rollout_id, body)


async def _update_rollout(call: Call, rollout_id: str, body: shapes.RolloutUpdate) -> Any:
    _refuse_null(body, "status", "config")
    request = await call.convert(
        lambda told: requests.update_rollout_to_proto(call.request_id, rollout_id, values.rollout_update(told)), body
    )
    return await call.convert(values.rollout_value, (await call.make("UpdateRollout", request)).rollout)


async def attempts(call: Call, asked: shapes.AttemptsQuery) -> Rows:
    return listings.page(call, "attempts", asked, rollout_id=call.path["rollout_id"])


async def attempts_02(call: Call) -> Rows:
    return listings.rows(call, "attempts", rollout_id=call.path["rollout_id"])


async def latest_attempt(call: Call) -> Any:
    request = rollout_pb2.GetLatestAttemptRequest(rollout_id=call.path["rollout_id"])
    return values.if_any(values.attempt_value, await call.make("GetLatestAttempt", request), "attempt")


async def update_attempt(call: Call, body: shapes.AttemptUpdate) -> Any:
    return await _update_attempt(call, call.path["rollout_id"], call.path["attempt_id"], body)


async def update_attempt_02(call: Call, body: shapes.UpdateAttempt02) -> Any:
    return await _update_attempt(call, body.rollout_id, body.attempt_id, body)


async def _update_attempt(call: Call, rollout_id: str, attempt_id: str, body: shapes.AttemptUpdate) -> Any:
    _refuse_null(body, "status", "worker_id", "last_heartbeat_time", "metadata")
    request = await call.convert(
        lambda told: requests.update_attempt_to_proto(
            call.request_id, rollout_id, attempt_id, values.attempt_update(told)
        ),
        body,
    )
    return await call.convert(values.attempt_value, (await call.make("UpdateAttempt", request)).attempt)


def _refuse_null(body: BaseModel, *names: str) -> None:
    for name in names:
        if name in body.model_fields_set and getattr(body, name) is None:
            raise RestError(HTTPStatus.BAD_REQUEST, f"{name} is invalid; it cannot be a null value.")


# --- Workers ---------------------------------------------------------------------------------------------------------


async def workers(call: Call, asked: shapes.WorkersQuery) -> Rows:
    return listings.page(call, "workers", asked)


async def worker(call: Call) -> Any:
    request = worker_pb2.GetWorkerRequest(worker_id=call.path["worker_id"])
    return values.if_any(values.worker_value, await call.make("GetWorker", request), "worker")


async def update_worker(call: Call, body: shapes.WorkerUpdate | None) -> Any:
    sent = body or shapes.WorkerUpdate()
    _refuse_null(sent, "heartbeat_stats")
    stats = UNSET if sent.heartbeat_stats is None else sent.heartbeat_stats
    request = await call.convert(lambda told: requests.update_worker_to_proto(call.path["worker_id"], told), stats)
    return values.worker_value((await call.make("UpdateWorker", request)).worker)


# --- Resources -------------------------------------------------------------------------------------------------------


async def resources(call: Call, asked: shapes.ResourcesQuery) -> Rows:
    return listings.page(call, "resources", asked)


async def latest_resources(call: Call) -> Any:
    reply = await call.make("GetLatestResources", resources_pb2.GetLatestResourcesRequest())
    return await call.convert(lambda found: values.if_any(values.resources_value, found, "resources"), reply)


async def resources_by_id(call: Call) -> Any:
    request = resources_pb2.GetResourcesRequest(resources_id=call.path["resources_id"])
    reply = await call.make("GetResources", request)
    return await call.convert(lambda found: values.if_any(values.resources_value, found, "resources"), reply)


async def add_resources(call: Call, body: Any) -> Any:
    texts = await call.convert(values.resources_texts, body)
    request = resources_pb2.AddResourcesRequest(request_id=call.request_id, resources_json=texts)
    return await call.convert(values.resources_value, (await call.make("AddResources", request)).resources)


async def add_resources_02(call: Call, body: shapes.AddResources02) -> Any:
    return await add_resources(call, body.resources)


async def update_resources(call: Call, body: Any) -> Any:
    return await _update_resources(call, call.path["resources_id"], body)


async def update_resources_02(call: Call, body: shapes.UpdateResources02) -> Any:
    return await _update_resources(call, body.resources_id, body.resources)


async def _update_resources(call: Call, resources_id: str, named: Any) -> Any:
    request = resources_pb2.UpdateResourcesRequest(
        request_id=call.request_id,
        resources_id=text_to_proto(resources_id, "resources_id"),
        resources_json=await call.convert(values.resources_texts, named),
    )
    return await call.convert(values.resources_value, (await call.make("UpdateResources", request)).resources)


# --- Spans -----------------------------------------------------------------------------------------------------------


async def add_span(call: Call, body: shapes.Span) -> Any:
    """The span; None if it is stored already."""
    sent = await call.convert(shapes.Span.model_dump, body)
    return sent if await _is_new(call, sent) else None


async def add_span_02(call: Call, body: shapes.Span) -> Any:
    """The span, also if it is stored already: a client of 0.2 reads no null."""
    sent = await call.convert(shapes.Span.model_dump, body)
    await _is_new(call, sent)
    return sent


async def _is_new(call: Call, sent: dict[str, Any]) -> bool:
    """Store a span. False if it is stored already; StoreError if it is refused."""
    request = await call.convert(lambda span: values.add_spans(call.request_id, [span]), sent)
    reply = await call.make("AddSpans", request)
    outcome = span_outcome_from_proto(reply.outcomes[0], "outcomes[0]")
    if isinstance(outcome, StoreError):
        raise outcome
    return outcome is not None


async def spans(call: Call, asked: shapes.SpansQuery) -> Rows:
    return listings.page(call, "spans", asked)


async def spans_02(call: Call, asked: shapes.SpansQuery02) -> Rows:
    return listings.rows(call, "spans", rollout_id=asked.rollout_id, attempt_id=asked.attempt_id)


async def spans_of_rollout_02(call: Call, asked: shapes.SpansOfRolloutQuery02) -> Rows:
    return listings.rows(call, "spans", rollout_id=call.path["rollout_id"], attempt_id=asked.attempt_id)


async def next_sequence_id(call: Call, body: shapes.SequenceIdRequest) -> Any:
    return {"sequence_id": await _next_sequence_id(call, body.rollout_id, body.attempt_id)}


async def next_sequence_id_02(call: Call) -> int:
    return await _next_sequence_id(call, call.path["rollout_id"], call.path["attempt_id"])


async def _next_sequence_id(call: Call, rollout_id: str, attempt_id: str) -> int:
    key = span_pb2.AttemptKey(
        rollout_id=text_to_proto(rollout_id, "rollout_id"), attempt_id=text_to_proto(attempt_id, "attempt_id")
    )
    request = span_pb2.AllocateSpanSequenceIdsRequest(request_id=call.request_id, keys=[key])
    number: int = (await call.make("AllocateSpanSequenceIds", request)).sequence_ids[0]
    return number
