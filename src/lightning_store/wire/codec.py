"""Rollouts, attempts, resources, workers and what the server says of itself, to the wire and back.

For each message both directions stand side by side. ``…_from_proto`` takes the path of the message (``field``) for its
errors: an InvalidArgumentError that names the field which is missing, malformed or not legal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

from google.protobuf.message import Message

from lightning_store import json_text
from lightning_store.model import (
    KNOWN_RESOURCES,
    Attempt,
    AttemptedRollout,
    EnqueueRolloutRequest,
    Resource,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutStatus,
    Worker,
    construct,
    copy_of,
)
from lightning_store.store import LightningStoreCapabilities, LightningStoreStatistics
from lightning_store.text import clipped
from lightning_store.v1 import resources_pb2, rollout_pb2, server_pb2, worker_pb2
from lightning_store.wire.checks import (
    bounded_text,
    invalid,
    json_object,
    not_negative,
    optional_json_to_proto,
    optional_text_to_proto,
    require,
    required_text,
    text_to_proto,
    validated,
)
from lightning_store.wire.enums import ATTEMPT_STATUS, ROLLOUT_STATUS, WORKER_STATUS, mode_from_proto, mode_to_proto
from lightning_store.wire.times import (
    duration_from_proto,
    duration_to_proto,
    optional_duration_to_proto,
    optional_timestamp_to_proto,
    timestamp_from_proto,
    timestamp_to_proto,
)

CONFIGS_MAX: Final = 256
"""Different configs that are remembered."""
CONFIG_BYTES_MAX: Final = 256
"""A larger config is not: it has something that is not known here."""
RETRY_CONDITIONS_MAX: Final = 100
NAME_CHARS_SHOWN: Final = 100

# --- Rollouts --------------------------------------------------------------------------------------------------------


def rollout_to_proto(rollout: Rollout) -> rollout_pb2.Rollout:
    """The message; ``latest_attempt`` is set for an AttemptedRollout."""
    latest = rollout.attempt if isinstance(rollout, AttemptedRollout) else None
    return rollout_pb2.Rollout(
        rollout_id=rollout.rollout_id,
        input_json=optional_json_to_proto(rollout.input, "input"),
        start_time=timestamp_to_proto(rollout.start_time),
        end_time=optional_timestamp_to_proto(rollout.end_time),
        mode=mode_to_proto(rollout.mode, "mode"),
        resources_id=rollout.resources_id,
        status=ROLLOUT_STATUS.to_proto(rollout.status, "status"),
        config=config_to_proto(rollout.config),
        metadata_json=optional_json_to_proto(rollout.metadata, "metadata"),
        latest_attempt=None if latest is None else attempt_to_proto(latest),
        end_reason=rollout.end_reason or "",
        priority=rollout.priority,
        group_id=rollout.group_id,
        group_size=rollout.group_size,
    )


def rollout_from_proto(message: rollout_pb2.Rollout, field: str) -> Rollout:
    """An AttemptedRollout where ``latest_attempt`` is set, else a Rollout."""
    has = message.HasField
    require(message, "start_time", f"{field}.start_time")
    require(message, "config", f"{field}.config")
    values: dict[str, Any] = {
        "rollout_id": required_text(message.rollout_id, f"{field}.rollout_id"),
        "input": input_from_proto(message, field),
        "start_time": timestamp_from_proto(message.start_time, f"{field}.start_time"),
        "end_time": timestamp_from_proto(message.end_time, f"{field}.end_time") if has("end_time") else None,
        "mode": mode_from_proto(message.mode, f"{field}.mode"),
        "resources_id": bounded_text(message.resources_id, f"{field}.resources_id") if has("resources_id") else None,
        "status": ROLLOUT_STATUS.from_proto(message.status, f"{field}.status"),
        "config": copy_of(shared_config_from_proto(message.config, f"{field}.config")),
        "metadata": metadata_from_proto(message, field),
        "end_reason": message.end_reason or None,
        "priority": message.priority,
        "group_id": message.group_id if has("group_id") else None,
        "group_size": message.group_size if has("group_size") else None,
    }
    if not has("latest_attempt"):
        return construct(Rollout, values)
    attempt = attempt_from_proto(message.latest_attempt, f"{field}.latest_attempt")
    if attempt.rollout_id != message.rollout_id:
        raise invalid(f"{field}.latest_attempt.rollout_id", f"is {attempt.rollout_id!r}, not {message.rollout_id!r}")
    values["attempt"] = attempt
    return construct(AttemptedRollout, values)


def attempted_rollout_from_proto(message: rollout_pb2.Rollout, field: str) -> AttemptedRollout:
    """The rollout of a reply that always has an attempt."""
    rollout = rollout_from_proto(message, field)
    if not isinstance(rollout, AttemptedRollout):
        raise invalid(f"{field}.latest_attempt", "is missing; it must be set")
    return rollout


def new_rollout_to_proto(request: EnqueueRolloutRequest, prefix: str = "") -> rollout_pb2.NewRollout:
    """``prefix`` goes before a field's name in an error: "rollouts[3]." for one of a batch."""
    return rollout_pb2.NewRollout(
        input_json=optional_json_to_proto(request.input, f"{prefix}input"),
        mode=mode_to_proto(request.mode, f"{prefix}mode"),
        resources_id=optional_text_to_proto(request.resources_id, f"{prefix}resources_id"),
        config=None if request.config is None else config_to_proto(request.config),
        metadata_json=optional_json_to_proto(request.metadata, f"{prefix}metadata"),
        priority=request.priority,
        group_id=request.group_id,
        group_size=request.group_size,
    )


def config_to_proto(config: RolloutConfig) -> rollout_pb2.RolloutConfig:
    return rollout_pb2.RolloutConfig(
        timeout=optional_duration_to_proto(config.timeout_seconds),
        unresponsive=optional_duration_to_proto(config.unresponsive_seconds),
        max_attempts=config.max_attempts,
        retry_condition=[ATTEMPT_STATUS.to_proto(status, "retry_condition") for status in config.retry_condition],
        retry_delay=optional_duration_to_proto(config.retry_delay_seconds or None),
        retry_backoff=config.retry_backoff if config.retry_backoff != 1 else None,
        retry_at_head=config.retry_position == "head",
        bind_at_claim=config.bind == "claim",
        max_staleness=config.max_staleness,
        rebind_stale=config.on_stale == "rebind",
    )


def config_from_proto(message: rollout_pb2.RolloutConfig, field: str) -> RolloutConfig:
    if len(message.retry_condition) > RETRY_CONDITIONS_MAX:
        raise invalid(f"{field}.retry_condition", f"has more than {RETRY_CONDITIONS_MAX} statuses; give each one once")
    values: dict[str, Any] = {
        "retry_condition": [
            ATTEMPT_STATUS.from_proto(status, f"{field}.retry_condition[{index}]")
            for index, status in enumerate(message.retry_condition)
        ],
        "retry_position": "head" if message.retry_at_head else "tail",
        "bind": "claim" if message.bind_at_claim else "enqueue",
        "on_stale": "rebind" if message.rebind_stale else "cancel",
    }
    if message.HasField("timeout"):
        values["timeout_seconds"] = duration_from_proto(message.timeout, f"{field}.timeout")
    if message.HasField("unresponsive"):
        values["unresponsive_seconds"] = duration_from_proto(message.unresponsive, f"{field}.unresponsive")
    if message.HasField("max_attempts"):
        values["max_attempts"] = message.max_attempts
    if message.HasField("retry_delay"):
        values["retry_delay_seconds"] = duration_from_proto(message.retry_delay, f"{field}.retry_delay")
    if message.HasField("retry_backoff"):
        values["retry_backoff"] = message.retry_backoff
    if message.HasField("max_staleness"):
        values["max_staleness"] = message.max_staleness
    return validated(RolloutConfig, values, field)


def shared_config_from_proto(message: rollout_pb2.RolloutConfig, field: str) -> RolloutConfig:
    """The same object for the same config, not to be changed: a training run has few, each for very many rollouts."""
    if message.ByteSize() > CONFIG_BYTES_MAX:
        return config_from_proto(message, field)
    return _known_config(message.SerializeToString(), field)


@lru_cache(CONFIGS_MAX)
def _known_config(serialized: bytes, field: str) -> RolloutConfig:
    return config_from_proto(rollout_pb2.RolloutConfig.FromString(serialized), field)


# --- Attempts --------------------------------------------------------------------------------------------------------


VERSIONS: Final = ("resources_version", "policy_version", "policy_version_min", "policy_version_max")
"""Fields of an attempt that are optional numbers."""


def attempt_to_proto(attempt: Attempt) -> rollout_pb2.Attempt:
    return rollout_pb2.Attempt(
        rollout_id=attempt.rollout_id,
        attempt_id=attempt.attempt_id,
        sequence_id=attempt.sequence_id,
        start_time=timestamp_to_proto(attempt.start_time),
        end_time=optional_timestamp_to_proto(attempt.end_time),
        status=ATTEMPT_STATUS.to_proto(attempt.status, "status"),
        worker_id=attempt.worker_id,
        last_heartbeat_time=optional_timestamp_to_proto(attempt.last_heartbeat_time),
        metadata_json=optional_json_to_proto(attempt.metadata, "metadata"),
        counts=None if attempt.counts else False,
        resources_id=optional_text_to_proto(attempt.resources_id, "resources_id"),
        **{name: getattr(attempt, name) for name in VERSIONS},
    )


def attempt_from_proto(message: rollout_pb2.Attempt, field: str) -> Attempt:
    require(message, "start_time", f"{field}.start_time")
    values = {
        "rollout_id": required_text(message.rollout_id, f"{field}.rollout_id"),
        "attempt_id": required_text(message.attempt_id, f"{field}.attempt_id"),
        "sequence_id": not_negative(message.sequence_id, f"{field}.sequence_id"),
        "start_time": timestamp_from_proto(message.start_time, f"{field}.start_time"),
        "end_time": _optional_time(message, "end_time", field),
        "status": ATTEMPT_STATUS.from_proto(message.status, f"{field}.status"),
        "worker_id": bounded_text(message.worker_id, f"{field}.worker_id") if message.HasField("worker_id") else None,
        "last_heartbeat_time": _optional_time(message, "last_heartbeat_time", field),
        "metadata": metadata_from_proto(message, field),
        "counts": message.counts if message.HasField("counts") else True,
        "resources_id": message.resources_id if message.HasField("resources_id") else None,
        **{
            name: not_negative(getattr(message, name), f"{field}.{name}") if message.HasField(name) else None
            for name in VERSIONS
        },
    }
    return construct(Attempt, values)


# --- Resources -------------------------------------------------------------------------------------------------------


def resources_to_proto(resources: ResourcesUpdate) -> resources_pb2.Resources:
    return resources_pb2.Resources(
        resources_id=resources.resources_id,
        resources_json=named_resources_to_proto(resources.resources),
        create_time=timestamp_to_proto(resources.create_time),
        update_time=timestamp_to_proto(resources.update_time),
        version=resources.version,
        policy_version=resources.policy_version,
        run=optional_text_to_proto(resources.run, "run"),
    )


def resources_from_proto(message: resources_pb2.Resources, field: str) -> ResourcesUpdate:
    require(message, "create_time", f"{field}.create_time")
    require(message, "update_time", f"{field}.update_time")
    values = {
        "resources_id": required_text(message.resources_id, f"{field}.resources_id"),
        "resources": named_resources_from_proto(message.resources_json, f"{field}.resources_json"),
        "create_time": timestamp_from_proto(message.create_time, f"{field}.create_time"),
        "update_time": timestamp_from_proto(message.update_time, f"{field}.update_time"),
        "version": message.version,
        "policy_version": message.policy_version,
        "run": message.run if message.HasField("run") else None,
    }
    return validated(ResourcesUpdate, values, field)


def named_resources_to_proto(resources: Mapping[str, Resource]) -> dict[str, str]:
    """JSON text of each resource, by name."""
    return {
        text_to_proto(name, "resources"): json_text.dumps(resource.model_dump(), f"resources.{name}")
        for name, resource in resources.items()
    }


def named_resources_from_proto(texts: Mapping[str, str], field: str) -> dict[str, Resource]:
    return {
        bounded_text(name, f"the name {clipped(name, NAME_CHARS_SHOWN)!r} in {field}"): _resource_from_json(
            text, f"{field}[{clipped(name, NAME_CHARS_SHOWN)!r}]"
        )
        for name, text in texts.items()
    }


def _resource_from_json(text: str, field: str) -> Resource:
    value = json_object(text, field)
    resource_type = value.get("resource_type")
    if not isinstance(resource_type, str):
        raise invalid(f"{field}.resource_type", 'must be text, such as "llm" or "prompt_template"')
    return validated(KNOWN_RESOURCES.get(resource_type, Resource), value, field)


# --- Workers ---------------------------------------------------------------------------------------------------------


def worker_to_proto(worker: Worker) -> worker_pb2.Worker:
    return worker_pb2.Worker(
        worker_id=worker.worker_id,
        status=WORKER_STATUS.to_proto(worker.status, "status"),
        heartbeat_stats_json=optional_json_to_proto(worker.heartbeat_stats, "heartbeat_stats"),
        last_heartbeat_time=optional_timestamp_to_proto(worker.last_heartbeat_time),
        last_dequeue_time=optional_timestamp_to_proto(worker.last_dequeue_time),
        last_busy_time=optional_timestamp_to_proto(worker.last_busy_time),
        last_idle_time=optional_timestamp_to_proto(worker.last_idle_time),
        current_rollout_id=worker.current_rollout_id,
        current_attempt_id=worker.current_attempt_id,
    )


def worker_from_proto(message: worker_pb2.Worker, field: str) -> Worker:
    stats = None
    if message.HasField("heartbeat_stats_json"):
        stats = json_object(message.heartbeat_stats_json, f"{field}.heartbeat_stats_json")
    values = {
        "worker_id": required_text(message.worker_id, f"{field}.worker_id"),
        "status": WORKER_STATUS.from_proto(message.status, f"{field}.status"),
        "heartbeat_stats": stats,
        "last_heartbeat_time": _optional_time(message, "last_heartbeat_time", field),
        "last_dequeue_time": _optional_time(message, "last_dequeue_time", field),
        "last_busy_time": _optional_time(message, "last_busy_time", field),
        "last_idle_time": _optional_time(message, "last_idle_time", field),
        "current_rollout_id": message.current_rollout_id if message.HasField("current_rollout_id") else None,
        "current_attempt_id": message.current_attempt_id if message.HasField("current_attempt_id") else None,
    }
    return construct(Worker, values)


# --- The server ------------------------------------------------------------------------------------------------------

_COUNTS: Final = (
    "total_rollouts",
    "total_attempts",
    "total_spans",
    "total_resources",
    "total_workers",
    "total_span_bytes",
    "eviction_threshold_bytes",
    "safe_threshold_bytes",
    "memory_capacity_bytes",
    "total_bytes",
    "memory_limit_bytes",
    "disk_used_bytes",
    "disk_file_bytes",
    "disk_free_bytes",
    "disk_limit_bytes",
    "completed_last_minute",
    "rejected_spans",
)


def statistics_to_proto(statistics: LightningStoreStatistics) -> server_pb2.GetStatisticsResponse:
    message = server_pb2.GetStatisticsResponse(
        name=statistics.get("name"),
        uptime=optional_duration_to_proto(statistics.get("uptime")),
        oldest_queued_time=optional_timestamp_to_proto(statistics.get("oldest_queued_time")),
    )
    for status, count in statistics.get("rollouts_by_status", {}).items():
        message.rollouts_by_status.add(
            status=ROLLOUT_STATUS.to_proto(cast(RolloutStatus, status), "rollouts_by_status"), count=count
        )
    for name in _COUNTS:
        if name in statistics:
            setattr(message, name, statistics[name])
    return message


def statistics_from_proto(message: server_pb2.GetStatisticsResponse) -> LightningStoreStatistics:
    statistics = LightningStoreStatistics()
    if message.HasField("name"):
        statistics["name"] = message.name
    if message.HasField("uptime"):
        statistics["uptime"] = duration_from_proto(message.uptime, "uptime")
    oldest = _optional_time(message, "oldest_queued_time", "statistics")
    if oldest is not None:
        statistics["oldest_queued_time"] = oldest
    statistics["rollouts_by_status"] = {
        ROLLOUT_STATUS.from_proto(one.status, "rollouts_by_status"): one.count for one in message.rollouts_by_status
    }
    for name in _COUNTS:
        if message.HasField(name):
            statistics[name] = getattr(message, name)
    return statistics


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    version: str
    strict: bool
    capabilities: LightningStoreCapabilities
    message_bytes_max: int
    """Size of a message in either direction."""
    page_rows_max: int
    page_bytes_max: int
    wait_seconds_max: float
    """The longest that one WaitForRollouts waits."""
    replay_window_seconds: float
    """How long the reply to a request id is remembered at most."""
    otlp_http_port: int | None = None
    """Where the same host takes spans as OTLP over HTTP, at /v1/traces; None: nowhere."""


def server_info_to_proto(info: ServerInfo) -> server_pb2.GetServerInfoResponse:
    return server_pb2.GetServerInfoResponse(
        version=info.version,
        strict=info.strict,
        capabilities=server_pb2.Capabilities(**info.capabilities),
        limits=server_pb2.ServerLimits(
            max_message_bytes=info.message_bytes_max,
            max_page_rows=info.page_rows_max,
            max_page_bytes=info.page_bytes_max,
            max_wait=duration_to_proto(info.wait_seconds_max),
        ),
        replay_window=duration_to_proto(info.replay_window_seconds),
        otlp_http_port=info.otlp_http_port or 0,
    )


def server_info_from_proto(message: server_pb2.GetServerInfoResponse) -> ServerInfo:
    for name in ("capabilities", "limits", "replay_window"):
        require(message, name, name)
    capabilities, limits = message.capabilities, message.limits
    return ServerInfo(
        version=message.version,
        strict=message.strict,
        capabilities=LightningStoreCapabilities(
            thread_safe=capabilities.thread_safe,
            async_safe=capabilities.async_safe,
            zero_copy=capabilities.zero_copy,
            otlp_traces=capabilities.otlp_traces,
        ),
        message_bytes_max=limits.max_message_bytes,
        page_rows_max=limits.max_page_rows,
        page_bytes_max=limits.max_page_bytes,
        wait_seconds_max=duration_from_proto(limits.max_wait, "limits.max_wait"),
        replay_window_seconds=duration_from_proto(message.replay_window, "replay_window"),
        otlp_http_port=message.otlp_http_port or None,
    )


# --- Fields that several messages have -------------------------------------------------------------------------------


def input_from_proto(
    message: rollout_pb2.Rollout | rollout_pb2.NewRollout | rollout_pb2.RolloutUpdate, field: str
) -> Any:
    if not message.HasField("input_json"):
        return None
    return json_text.loads(message.input_json, f"{field}.input_json")


def metadata_from_proto(
    message: rollout_pb2.Rollout
    | rollout_pb2.NewRollout
    | rollout_pb2.RolloutUpdate
    | rollout_pb2.Attempt
    | rollout_pb2.AttemptUpdate,
    field: str,
) -> dict[str, Any] | None:
    if not message.HasField("metadata_json"):
        return None
    return json_object(message.metadata_json, f"{field}.metadata_json")


def _optional_time(message: Message, name: str, field: str) -> float | None:
    if not message.HasField(name):
        return None
    return timestamp_from_proto(getattr(message, name), f"{field}.{name}")
