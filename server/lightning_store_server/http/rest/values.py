"""Replies of the gRPC service as the values that Agent Lightning reads, and its values as requests."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from lightning_store import model
from lightning_store.agent_lightning import attempt_metadata_to_agl, span_values_from_agl, span_values_to_agl
from lightning_store.spans.document import encode_fields
from lightning_store.v1 import resources_pb2, rollout_pb2, span_pb2, worker_pb2
from lightning_store.wire import codec, requests, spans
from lightning_store_server.http.rest import shapes

T = TypeVar("T")

_ROLLOUT: Final = tuple(name for name in shapes.Rollout.model_fields if name != "config")
_CONFIG: Final = tuple(shapes.RolloutConfig.model_fields)
_ATTEMPT: Final = tuple(shapes.Attempt.model_fields)
_RESOURCES: Final = tuple(name for name in shapes.Resources.model_fields if name != "resources")
_WORKER: Final = tuple(shapes.Worker.model_fields)


def new_request_id() -> str:
    """For a call that its caller has no id for."""
    return str(uuid.uuid4())


# --- To Agent Lightning ----------------------------------------------------------------------------------------------


def rollout_value(message: rollout_pb2.Rollout) -> dict[str, Any]:
    """A rollout without its attempt."""
    return _rollout(codec.rollout_from_proto(message, "rollout"))


def row_value(message: rollout_pb2.Rollout) -> dict[str, Any]:
    """A rollout, with its latest attempt if it has one."""
    rollout = codec.rollout_from_proto(message, "rollout")
    if isinstance(rollout, model.AttemptedRollout):
        return {**_rollout(rollout), "attempt": _attempt(rollout.attempt)}
    return _rollout(rollout)


def attempt_value(message: rollout_pb2.Attempt) -> dict[str, Any]:
    return _attempt(codec.attempt_from_proto(message, "attempt"))


def worker_value(message: worker_pb2.Worker) -> dict[str, Any]:
    return _picked(codec.worker_from_proto(message, "worker"), _WORKER)


def resources_value(message: resources_pb2.Resources) -> dict[str, Any]:
    resources = codec.resources_from_proto(message, "resources")
    named = {name: one.model_dump() for name, one in resources.resources.items()}
    return {**_picked(resources, _RESOURCES), "resources": named}


def span_value(message: span_pb2.Span) -> dict[str, Any]:
    values = spans.span_from_proto(message, "span").model_dump()
    span_values_to_agl(values)
    return values


def if_any(convert: Callable[[T], Any], reply: Any, field: str) -> Any:
    """The converted field of a reply; None if it is not set."""
    return convert(getattr(reply, field)) if reply.HasField(field) else None


def _rollout(rollout: model.Rollout) -> dict[str, Any]:
    return {**_picked(rollout, _ROLLOUT), "config": _picked(rollout.config, _CONFIG)}


def _attempt(attempt: model.Attempt) -> dict[str, Any]:
    return {**_picked(attempt, _ATTEMPT), "metadata": attempt_metadata_to_agl(vars(attempt))}


def _picked(of: BaseModel, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}


# --- From Agent Lightning --------------------------------------------------------------------------------------------


def new_rollout(new: shapes.NewRollout, prefix: str = "") -> rollout_pb2.NewRollout:
    """``prefix`` goes before a field's name in an error."""
    request = model.EnqueueRolloutRequest(
        input=new.input,
        mode=new.mode,
        resources_id=new.resources_id,
        config=_config(new.config),
        metadata=new.metadata,
    )
    return codec.new_rollout_to_proto(request, prefix)


def rollout_update(update: shapes.RolloutUpdate) -> model.RolloutUpdate:
    """The same members are set."""
    given = {name: getattr(update, name) for name in _sent(update, model.RolloutUpdate)}
    if "config" in given:
        given["config"] = _config(update.config)
    return model.RolloutUpdate(**given)


def attempt_update(update: shapes.AttemptUpdate) -> model.AttemptUpdate:
    """The same members are set."""
    return model.AttemptUpdate(**{name: getattr(update, name) for name in _sent(update, model.AttemptUpdate)})


def resources_texts(named: Any) -> dict[str, str]:
    """JSON text of each resource, by name."""
    dumped = {name: one.model_dump() for name, one in named.items()}
    known = {name: model.KNOWN_RESOURCES[one["resource_type"]].model_validate(one) for name, one in dumped.items()}
    return codec.named_resources_to_proto(known)


def add_spans(request_id: str, many: Sequence[dict[str, Any]]) -> span_pb2.AddSpansRequest:
    """The request that stores spans, given as Agent Lightning's."""
    records = []
    for fields in many:
        values = dict(fields)
        span_values_from_agl(values)
        records.append(encode_fields(values))
    return spans.add_spans_to_proto(request_id, records)


def wait(ids: Sequence[str], timeout: float | None) -> rollout_pb2.WaitForRolloutsRequest:
    """None, and not a number, wait as long as the server lets a call wait."""
    return requests.wait_to_proto(ids, None if timeout is None or math.isnan(timeout) else timeout)


def _config(config: shapes.RolloutConfig | None) -> model.RolloutConfig | None:
    return None if config is None else model.RolloutConfig(**config.model_dump())


def _sent(update: BaseModel, of: type[BaseModel]) -> list[str]:
    return [name for name in of.model_fields if name in update.model_fields_set]
