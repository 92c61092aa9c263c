"""Updates, claims, heartbeats and waits: the client's arguments as requests, and requests as the store's arguments.

Requests with no more in them than ids need nothing of this; those of queries are in ``lightning_store.wire.queries``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from lightning_store.model import TIME_MAX_SECONDS, AttemptUpdate, ReturnWhen, RolloutUpdate, Unset
from lightning_store.v1 import resources_pb2, rollout_pb2, span_pb2, worker_pb2
from lightning_store.wire import enums
from lightning_store.wire.checks import (
    INT32_MAX,
    bounded_text,
    invalid,
    json_object,
    not_negative,
    optional_json_to_proto,
    optional_text_to_proto,
    required_text,
    text_to_proto,
)
from lightning_store.wire.codec import config_from_proto, config_to_proto
from lightning_store.wire.times import (
    NANOS_PER_SECOND,
    duration_to_proto,
    from_nanos,
    optional_timestamp_to_proto,
    timestamp_from_proto,
)

UpdateT = TypeVar("UpdateT", rollout_pb2.RolloutUpdate, rollout_pb2.AttemptUpdate)

HEARTBEAT_CHARS_MAX: Final = 64 * 1024
"""Of a heartbeat's stats, which come often and go before other calls."""


# --- The queue -------------------------------------------------------------------------------------------------------


def idempotency_key_from_proto(request: rollout_pb2.EnqueueRolloutsRequest) -> str | None:
    if not request.HasField("idempotency_key"):
        return None
    return required_text(request.idempotency_key, "idempotency_key")


def checkpoint_from_proto(
    request: rollout_pb2.MarkConsumedRequest | rollout_pb2.RewindConsumerRequest,
) -> str | None:
    return required_text(request.checkpoint, "checkpoint") if request.HasField("checkpoint") else None


# --- Resources -------------------------------------------------------------------------------------------------------


def run_from_proto(
    request: resources_pb2.GetLatestResourcesRequest
    | resources_pb2.AddResourcesRequest
    | resources_pb2.UpdateResourcesRequest,
) -> dict[str, Any]:
    """The keyword ``run``, if it is there: a store need not know of it."""
    return {"run": required_text(request.run, "run")} if request.HasField("run") else {}


def policy_from_proto(
    request: resources_pb2.AddResourcesRequest | resources_pb2.UpdateResourcesRequest,
) -> dict[str, Any]:
    """The keywords ``run`` and ``policy_version``, as far as they are there."""
    if not request.HasField("policy_version"):
        return run_from_proto(request)
    return {**run_from_proto(request), "policy_version": not_negative(request.policy_version, "policy_version")}


# --- Updates ---------------------------------------------------------------------------------------------------------

_ROLLOUT_PATHS: Final[Mapping[str, str]] = {
    "input_json": "input",
    "mode": "mode",
    "resources_id": "resources_id",
    "status": "status",
    "config": "config",
    "metadata_json": "metadata",
}
"""Paths of a mask over RolloutUpdate, each with the field of the model."""

_ATTEMPT_PATHS: Final[Mapping[str, str]] = {
    "status": "status",
    "worker_id": "worker_id",
    "last_heartbeat_time": "last_heartbeat_time",
    "metadata_json": "metadata",
    "counts": "counts",
}
"""Paths of a mask over AttemptUpdate, each with the field of the model."""


def update_rollout_to_proto(
    request_id: str, rollout_id: str, update: RolloutUpdate
) -> rollout_pb2.UpdateRolloutRequest:
    """The mask names exactly the fields in ``update.model_fields_set``."""
    given = update.model_fields_set
    message = rollout_pb2.RolloutUpdate(
        input_json=optional_json_to_proto(update.input, "input"),
        mode=enums.mode_to_proto(update.mode, "mode"),
        resources_id=optional_text_to_proto(update.resources_id, "resources_id"),
        metadata_json=optional_json_to_proto(update.metadata, "metadata"),
    )
    if "status" in given:
        message.status = enums.ROLLOUT_STATUS.to_proto(update.status, "status")
    if "config" in given:
        message.config.CopyFrom(config_to_proto(update.config))
    return rollout_pb2.UpdateRolloutRequest(
        request_id=request_id,
        rollout_id=text_to_proto(rollout_id, "rollout_id"),
        update=message,
        update_mask=_mask_to_proto(given, _ROLLOUT_PATHS),
    )


def update_attempt_to_proto(
    request_id: str, rollout_id: str, attempt_id: str, update: AttemptUpdate
) -> rollout_pb2.UpdateAttemptRequest:
    """The mask names exactly the fields in ``update.model_fields_set``. "latest" is the newest attempt."""
    given = update.model_fields_set
    message = rollout_pb2.AttemptUpdate(
        worker_id=optional_text_to_proto(update.worker_id, "worker_id"),
        last_heartbeat_time=optional_timestamp_to_proto(update.last_heartbeat_time),
        metadata_json=optional_json_to_proto(update.metadata, "metadata"),
        counts=update.counts if "counts" in given else None,
    )
    if "status" in given:
        message.status = enums.ATTEMPT_STATUS.to_proto(update.status, "status")
    request = rollout_pb2.UpdateAttemptRequest(
        request_id=request_id,
        rollout_id=text_to_proto(rollout_id, "rollout_id"),
        update=message,
        update_mask=_mask_to_proto(given, _ATTEMPT_PATHS),
    )
    select_attempt(request, attempt_id)
    return request


def _mask_to_proto(given: set[str], paths: Mapping[str, str]) -> FieldMask:
    return FieldMask(paths=[path for path, name in paths.items() if name in given])


def masked_fields(
    update: UpdateT, mask: FieldMask, paths: Mapping[str, str], readers: Mapping[str, Callable[[UpdateT, str], Any]]
) -> dict[str, Any]:
    """The fields that the mask names, each with its value in ``update``; ``paths`` has the field of each path."""
    if not mask.paths and update.ListFields():
        raise invalid("update_mask", f"is empty, but update has values; name those to set, out of {', '.join(paths)}")
    for index, path in enumerate(mask.paths):
        if path not in paths:
            raise invalid(f"update_mask.paths[{index}]", f"is {path!r}; it must be one of {', '.join(paths)}")
    return {paths[path]: readers[path](update, f"update.{path}") for path in mask.paths}


def _config_of(update: rollout_pb2.RolloutUpdate, field: str) -> Any:
    if not update.HasField("config"):
        raise invalid(field, "is in the mask, but missing; it cannot be cleared")
    return config_from_proto(update.config, field)


def _counts_of(update: rollout_pb2.AttemptUpdate, field: str) -> bool:
    if not update.HasField("counts"):
        raise invalid(field, "is in the mask, but missing; it cannot be cleared")
    return update.counts


def _heartbeat_of(update: rollout_pb2.AttemptUpdate, field: str) -> float | None:
    if not update.HasField("last_heartbeat_time"):
        return None
    return timestamp_from_proto(update.last_heartbeat_time, field)


ROLLOUT_READERS: Final[Mapping[str, Callable[[rollout_pb2.RolloutUpdate, str], Any]]] = {
    "mode": lambda update, field: enums.mode_from_proto(update.mode, field),
    "resources_id": lambda update, field: (
        bounded_text(update.resources_id, field) if update.HasField("resources_id") else None
    ),
    "status": lambda update, field: enums.ROLLOUT_STATUS.from_proto(update.status, field),
    "config": _config_of,
}

ATTEMPT_READERS: Final[Mapping[str, Callable[[rollout_pb2.AttemptUpdate, str], Any]]] = {
    "status": lambda update, field: enums.ATTEMPT_STATUS.from_proto(update.status, field),
    "worker_id": lambda update, field: bounded_text(update.worker_id, field) if update.HasField("worker_id") else None,
    "last_heartbeat_time": _heartbeat_of,
    "counts": _counts_of,
}

# --- Which attempt ---------------------------------------------------------------------------------------------------


def select_attempt(request: rollout_pb2.UpdateAttemptRequest | span_pb2.ListSpansRequest, attempt_id: str) -> None:
    """Set ``attempt``: "latest" is the newest attempt."""
    if attempt_id == "latest":
        request.latest = True
    else:
        request.attempt_id = text_to_proto(attempt_id, "attempt_id")


def attempt_from_request(request: rollout_pb2.UpdateAttemptRequest) -> str:
    """The attempt's id, or "latest"."""
    selected = selected_attempt(request)
    if selected is None:
        raise invalid("attempt", "is missing; give attempt_id, or latest = true")
    return selected


def selected_attempt(request: rollout_pb2.UpdateAttemptRequest | span_pb2.ListSpansRequest) -> str | None:
    """The attempt's id, "latest", or None where ``attempt`` is not set."""
    selector = request.WhichOneof("attempt")
    if selector is None:
        return None
    if selector == "attempt_id":
        return required_text(request.attempt_id, "attempt_id")
    if not request.latest:
        raise invalid("latest", "is false; give true, or another attempt_id")
    return "latest"


# --- Heartbeats, claims, waiting -------------------------------------------------------------------------------------


def update_worker_to_proto(
    worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset
) -> worker_pb2.UpdateWorkerRequest:
    stats = None if isinstance(heartbeat_stats, Unset) else heartbeat_stats
    return worker_pb2.UpdateWorkerRequest(
        worker_id=text_to_proto(worker_id, "worker_id"),
        heartbeat_stats_json=optional_json_to_proto(stats, "heartbeat_stats"),
    )


def heartbeat_from_proto(request: worker_pb2.UpdateWorkerRequest) -> dict[str, Any] | None:
    """The heartbeat's stats; None where it has none, which leaves the old ones."""
    if not request.HasField("heartbeat_stats_json"):
        return None
    if len(request.heartbeat_stats_json) > HEARTBEAT_CHARS_MAX:
        problem = f"has {len(request.heartbeat_stats_json)} characters; give at most {HEARTBEAT_CHARS_MAX}"
        raise invalid("heartbeat_stats_json", problem)
    return json_object(request.heartbeat_stats_json, "heartbeat_stats_json")


def dequeue_to_proto(
    request_id: str, limit: int, worker_id: str | None, max_wait_seconds: float
) -> rollout_pb2.DequeueRolloutsRequest:
    return rollout_pb2.DequeueRolloutsRequest(
        request_id=request_id,
        limit=min(max(limit, 0), INT32_MAX),
        worker_id=optional_text_to_proto(worker_id, "worker_id"),
        max_wait=duration_to_proto(max_wait_seconds) if max_wait_seconds > 0 else None,
    )


def dequeue_limit_from_proto(request: rollout_pb2.DequeueRolloutsRequest) -> int:
    return not_negative(request.limit, "limit") if request.HasField("limit") else 1


def wait_to_proto(
    rollout_ids: Sequence[str],
    wait_seconds: float | None,
    return_when: ReturnWhen = "all",
    *,
    omit_unless_complete: bool = False,
) -> rollout_pb2.WaitForRolloutsRequest:
    """None waits as long as the server lets a call wait."""
    wait = None if wait_seconds is None else duration_to_proto(min(max(wait_seconds, 0.0), TIME_MAX_SECONDS))
    return rollout_pb2.WaitForRolloutsRequest(
        rollout_ids=[
            text_to_proto(rollout_id, f"rollout_ids[{index}]") for index, rollout_id in enumerate(rollout_ids)
        ],
        wait=wait,
        return_when=enums.return_when_to_proto(return_when),
        omit_unless_complete=omit_unless_complete,
    )


def wait_seconds_from_proto(request: rollout_pb2.WaitForRolloutsRequest, wait_seconds_max: float) -> float:
    """How long to wait: what was asked, at least 0 and no more than ``wait_seconds_max``."""
    return _bounded_wait(request.wait, wait_seconds_max) if request.HasField("wait") else wait_seconds_max


def dequeue_wait_from_proto(request: rollout_pb2.DequeueRolloutsRequest, wait_seconds_max: float) -> float:
    """How long to wait for a rollout: 0 unless asked, and no more than ``wait_seconds_max``."""
    return _bounded_wait(request.max_wait, wait_seconds_max) if request.HasField("max_wait") else 0.0


def _bounded_wait(wait: Duration, wait_seconds_max: float) -> float:
    asked_seconds = from_nanos(wait.seconds * NANOS_PER_SECOND + wait.nanos)
    return min(max(asked_seconds, 0.0), wait_seconds_max)
