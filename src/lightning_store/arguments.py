"""Checks of arguments that a store makes before anything else, be it the engine or a client of one."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Final, cast, get_args

from pydantic import TypeAdapter, ValidationError

from lightning_store.errors import InvalidArgumentError, InvalidTypeError
from lightning_store.model import (
    POLICY_VERSIONS,
    EnqueueRolloutRequest,
    NamedResources,
    Resource,
    ReturnWhen,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    Span,
    Unset,
    explained,
)
from lightning_store.text import ID_BYTES_MAX, has_surrogate, is_id

_NAMED_RESOURCES: Final[TypeAdapter[dict[str, Resource]]] = TypeAdapter(NamedResources)


def rollout_request(
    input: Any,
    mode: RolloutMode | None,
    resources_id: str | None,
    config: RolloutConfig | None,
    metadata: Mapping[str, Any] | None,
    priority: int = 0,
    group_id: str | None = None,
    group_size: int | None = None,
) -> EnqueueRolloutRequest:
    """The request of these arguments; pydantic.ValidationError where one is not legal."""
    fields: dict[str, Any] = {
        "input": input,
        "mode": mode,
        "resources_id": resources_id,
        "config": config,
        "metadata": metadata,
    }
    if priority != 0 or group_id is not None or group_size is not None:
        fields |= {"priority": priority, "group_id": group_id, "group_size": group_size}
    return _sendable(EnqueueRolloutRequest.model_validate(fields), "resources_id")


def checked_requests(requests: Sequence[EnqueueRolloutRequest]) -> list[EnqueueRolloutRequest]:
    """The same requests, checked again: their fields may have been set by hand since they were made."""
    return [
        _sendable(EnqueueRolloutRequest.model_validate(dict(request)), f"rollouts[{index}].resources_id")
        for index, request in enumerate(requests)
    ]


def _sendable(request: EnqueueRolloutRequest, argument: str) -> EnqueueRolloutRequest:
    check_text(argument, request.resources_id)
    if request.group_id is not None:
        check_text(argument.replace("resources_id", "group_id"), request.group_id)
    elif request.group_size is not None:
        message = f"group_size is {request.group_size} and group_id is None; give both, or neither"
        raise InvalidArgumentError(message, field=argument.replace("resources_id", "group_id"))
    return request


def named_resources(resources: object) -> dict[str, Resource]:
    """The resources, each in the class that its ``resource_type`` names; pydantic.ValidationError where one is none."""
    if not isinstance(resources, Mapping):
        raise InvalidTypeError("resources must be a mapping from name to resource", field="resources")
    fields = {
        # From its fields: an object may have been changed by hand since it was made.
        name: value.model_dump(warnings=False) if isinstance(value, Resource) else value
        for name, value in resources.items()
    }
    try:
        named = _NAMED_RESOURCES.validate_python(fields)
    except ValidationError as error:
        raise explained(error, title="resources") from None
    for name in named:
        check_text("resources", name)
    return named


POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")


def is_postgres(database: str) -> bool:
    """Whether this is the URL of a PostgreSQL database."""
    return database.startswith(POSTGRES_SCHEMES)


def without_password(url: str) -> str:
    """The URL of a database, to be shown. A password is hidden as a whole, whatever characters it has."""
    return re.sub(r"://([^:/@?]*):.*@", r"://\1:***@", re.sub(r"(?i)([?&](?:ssl)?password=)[^&]*", r"\1***", url))


def database_path(database: str) -> str | None:
    """The path of ``"sqlite:PATH"``, None for ``"memory:"``. ValueError for anything else."""
    kind, _, path = database.partition(":")
    if database == "memory:":
        return None
    if kind != "sqlite" or not path:
        raise InvalidArgumentError(f"{database!r} is neither memory: nor sqlite:PATH", field="database")
    return path


def check_admission(run: object, max_open_groups: object, paused: object) -> None:
    """InvalidArgumentError or InvalidTypeError for what ``set_admission`` does not take."""
    check_id("run", run)
    if max_open_groups is not None and (not isinstance(max_open_groups, int) or isinstance(max_open_groups, bool)):
        message = f"max_open_groups is {max_open_groups!r}; give a number of groups"
        raise InvalidTypeError(message, field="max_open_groups")
    if isinstance(max_open_groups, int) and not 1 <= max_open_groups < 2**31:
        message = f"max_open_groups is {max_open_groups}; give 1 or more, or paused=True for none"
        raise InvalidArgumentError(message, field="max_open_groups")
    if not isinstance(paused, bool):
        raise InvalidTypeError(f"paused is {paused!r}; give True or False", field="paused")


def check_id(argument: str, value: object) -> None:
    """TypeError unless ``value`` is text, ValueError if it is empty or cannot be sent."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"{argument} is {value!r}; give text", field=argument)
    if not value:
        raise InvalidArgumentError(f"{argument} is empty", field=argument)
    check_text(argument, value)


def check_optional_id(argument: str, value: object) -> None:
    """As ``check_id``, where None is legal."""
    if value is not None:
        check_id(argument, value)


def check_text(argument: str, value: str | None) -> None:
    """ValueError for text that cannot be sent, or is too long for an id or a name."""
    if value is None or (value.isascii() and len(value) <= ID_BYTES_MAX):  # as a rule
        return
    if has_surrogate(value):
        raise InvalidArgumentError(f"{argument} is {value!r}, which has no UTF-8 form", field=argument)
    if not is_id(value):
        raise InvalidArgumentError(f"{argument} has more than {ID_BYTES_MAX} bytes", field=argument)


def distinct_ids(ids: Sequence[object], argument: str = "rollout_ids") -> dict[str, None]:
    """The ids without repeats, in order. TypeError unless it is a list of texts."""
    _check_list(argument, ids)
    for one in ids:
        check_id(argument, one)
    return dict.fromkeys(map(str, ids))


def check_policy_version(policy_version: int | None) -> None:
    """ValueError unless it is a number that a policy may have, or None."""
    if policy_version is None or (type(policy_version) is int and 0 <= policy_version < POLICY_VERSIONS):
        return
    message = f"policy_version is {policy_version!r}; give a whole number from 0 to {POLICY_VERSIONS - 1}, or None"
    raise InvalidArgumentError(message, field="policy_version")


def is_any(return_when: str) -> bool:
    """Whether one rollout ends the wait. ValueError unless it is "all" or "any"."""
    if return_when not in get_args(ReturnWhen):
        raise InvalidArgumentError(f"return_when is {return_when!r}; give 'all' or 'any'", field="return_when")
    return return_when == "any"


def check_deletion(
    rollout_ids: Sequence[object] | None, older_than: float | None, status_in: Sequence[object] | None
) -> None:
    """ValueError unless these say which rollouts to delete; TypeError unless they are lists and a number."""
    if rollout_ids is None and older_than is None:
        message = "neither rollout_ids nor older_than is given; give one (older_than=0 is every finished rollout)"
        raise InvalidArgumentError(message, field="older_than")
    if rollout_ids is not None:
        distinct_ids(rollout_ids)
    if older_than is not None:
        _check_age(older_than)
    if status_in is not None:
        _check_list("status_in", status_in)
        legal = get_args(RolloutStatus)
        if any(status not in legal for status in status_in):
            message = f"status_in is {status_in!r}; give a list of some of {', '.join(legal)}"
            raise InvalidArgumentError(message, field="status_in")


def _check_age(older_than: object) -> None:
    if not isinstance(older_than, Real):
        raise InvalidTypeError(f"older_than is {older_than!r}; give seconds", field="older_than")
    if not cast(float, older_than) >= 0:
        raise InvalidArgumentError(f"older_than is {older_than}; give 0 seconds or more", field="older_than")


def _check_list(argument: str, values: object) -> None:
    if isinstance(values, str) or not isinstance(values, Collection):
        raise InvalidTypeError(f"{argument} is {values!r}; give a list", field=argument)


def worker_name(worker_id: object) -> str | None:
    """The worker's id; None for an empty one, which stands for no worker. TypeError unless it is text or None."""
    if worker_id is None or worker_id == "":
        return None
    check_id("worker_id", worker_id)
    return str(worker_id)


def checked_spans(spans: Iterable[object]) -> list[Span]:
    """The spans as a list. TypeError unless each of them is a Span."""
    checked: list[Span] = []
    for index, span in enumerate(spans):
        if not isinstance(span, Span):
            raise InvalidTypeError(f"spans[{index}] is a {type(span).__name__}; give a Span", field=f"spans[{index}]")
        checked.append(span)
    return checked


def wait_seconds(argument: str, seconds: object) -> float:
    """``seconds`` as a float of 0 or more, infinite if it is an integer beyond all floats. TypeError unless it is a
    number, ValueError for NaN."""
    if type(seconds) is float and seconds >= 0:  # as a rule
        return seconds
    if not isinstance(seconds, Real):
        raise InvalidTypeError(f"{argument} is {seconds!r}; give seconds", field=argument)
    try:
        waited = float(seconds)
    except OverflowError:
        waited = math.inf if cast(int, seconds) > 0 else 0.0
    if math.isnan(waited):
        raise InvalidArgumentError(f"{argument} is {seconds}; give seconds", field=argument)
    return max(0.0, waited)


def check_heartbeat(worker_id: str, heartbeat_stats: object) -> None:
    """ValueError for an empty ``worker_id``, TypeError for ``heartbeat_stats`` that are no mapping."""
    check_id("worker_id", worker_id)
    if not isinstance(heartbeat_stats, Mapping | Unset):
        message = f"heartbeat_stats is {heartbeat_stats!r}; give a mapping, or leave it out to keep the former ones"
        raise InvalidTypeError(message, field="heartbeat_stats")
