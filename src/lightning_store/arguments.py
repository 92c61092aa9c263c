"""Checks of arguments that a store makes before anything else, be it the engine or a client of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter

from lightning_store.errors import InvalidArgumentError, InvalidTypeError
from lightning_store.model import (
    EnqueueRolloutRequest,
    NamedResources,
    Resource,
    RolloutConfig,
    RolloutMode,
    Unset,
)

_NAMED_RESOURCES: Final[TypeAdapter[dict[str, Resource]]] = TypeAdapter(NamedResources)


def rollout_request(
    input: Any,
    mode: RolloutMode | None,
    resources_id: str | None,
    config: RolloutConfig | None,
    metadata: Mapping[str, Any] | None,
) -> EnqueueRolloutRequest:
    """The request of these arguments; pydantic.ValidationError where one is not legal."""
    fields = {"input": input, "mode": mode, "resources_id": resources_id, "config": config, "metadata": metadata}
    return EnqueueRolloutRequest.model_validate(fields)


def checked_requests(requests: Sequence[EnqueueRolloutRequest]) -> list[EnqueueRolloutRequest]:
    """The same requests, checked again: their fields may have been set by hand since they were made."""
    return [EnqueueRolloutRequest.model_validate(dict(request)) for request in requests]


def named_resources(resources: object) -> dict[str, Resource]:
    """The resources, each in the class that its ``resource_type`` names; pydantic.ValidationError where one is none."""
    if not isinstance(resources, Mapping):
        raise InvalidTypeError("resources must be a mapping from name to resource", field="resources")
    return _NAMED_RESOURCES.validate_python(dict(resources))


def check_heartbeat(worker_id: str, heartbeat_stats: object) -> None:
    """ValueError for an empty ``worker_id``, TypeError for ``heartbeat_stats`` that are no mapping."""
    if not worker_id:
        raise InvalidArgumentError("worker_id is empty; give the worker's name", field="worker_id")
    if not isinstance(heartbeat_stats, Mapping | Unset):
        message = f"heartbeat_stats is {heartbeat_stats!r}; give a mapping, or leave it out to keep the former ones"
        raise InvalidTypeError(message, field="heartbeat_stats")
