"""Agent Lightning's types and ours, both ways, side by side. Nothing is lost in either direction.

The field names are the same. What is different, and what becomes of it:

* Our open types (spans, resources) keep fields that they do not declare; some of Agent Lightning's do not. Such an
  object becomes one of a subclass that does (:class:`OpenLLM`, …), and one of a ``resource_type`` that Agent Lightning
  does not know an :class:`OpenResource`.
* What :mod:`lightning_store.agent_lightning` has: extra fields of spans, and versions in the metadata of attempts.
* Objects that come from the store are made without being validated again: Agent Lightning's attributes, say, hold no
  None and no mapping, and one such span that some other program stored must not make a whole query fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar, cast

import agentlightning as agl
from agentlightning.types import Event, Link, OtelResource, PaginatedResult, SpanContext, TraceStatus
from pydantic import BaseModel, ConfigDict, TypeAdapter

from lightning_store import model
from lightning_store.agent_lightning import (
    STAMPS,
    attempt_metadata_to_agl,
    span_values_from_agl,
    span_values_to_agl,
)
from lightning_store.labels import RESERVED_PREFIX

T = TypeVar("T")
U = TypeVar("U")
ModelT = TypeVar("ModelT", bound=BaseModel)

_ANY: Final = TypeAdapter(Any)
_NAMED_RESOURCES: Final = TypeAdapter(model.NamedResources)


class OpenOtelResource(OtelResource):
    """An OpenTelemetry resource with more than attributes and a schema."""

    model_config = ConfigDict(extra="allow")


class OpenLLM(agl.LLM):
    """An LLM with fields that Agent Lightning's does not declare."""

    model_config = ConfigDict(extra="allow")


class OpenProxyLLM(agl.ProxyLLM):
    """A ProxyLLM with fields that Agent Lightning's does not declare."""

    model_config = ConfigDict(extra="allow")


class OpenPromptTemplate(agl.PromptTemplate):
    """A PromptTemplate with fields that Agent Lightning's does not declare."""

    model_config = ConfigDict(extra="allow")


class OpenResource(agl.Resource):
    """A resource of a type that Agent Lightning does not know, with all its fields."""

    model_config = ConfigDict(extra="allow")


_RESOURCES: Final[Mapping[type[model.Resource], tuple[type[agl.Resource], type[agl.Resource]]]] = {
    model.LLM: (agl.LLM, OpenLLM),
    model.ProxyLLM: (agl.ProxyLLM, OpenProxyLLM),
    model.PromptTemplate: (agl.PromptTemplate, OpenPromptTemplate),
    model.Resource: (OpenResource, OpenResource),
}
"""For each class of ours, theirs without extra fields and with them."""


# --- Plain values ----------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """``value`` with the pydantic models and dataclasses in it as dictionaries: what their HTTP client makes of it."""
    return _ANY.dump_python(value, warnings=False)


def _fields(source: BaseModel) -> dict[str, Any]:
    """All fields of a model, extra ones included, as plain values."""
    return source.model_dump(warnings=False, serialize_as_any=True)


def _made(into: type[ModelT], values: Any) -> ModelT:
    """An object with exactly these values. What is no mapping (None, say) stays as it is."""
    if not isinstance(values, dict):
        return cast(ModelT, values)
    declared = {name: values[name] for name in into.model_fields if name in values}
    made = into.model_construct(**declared)
    if made.model_extra is not None:  # not as keyword arguments, since they may have any name
        made.model_extra.update({name: value for name, value in values.items() if name not in declared})
    return made


# --- Rollouts and attempts -------------------------------------------------------------------------------------------


def config_to_agl(config: model.RolloutConfig) -> agl.RolloutConfig:
    return _made(agl.RolloutConfig, _fields(config))


def config_from_agl(config: agl.RolloutConfig) -> model.RolloutConfig:
    """``pydantic.ValidationError``, a ValueError, for what is not legal here: negative or infinite seconds."""
    return model.RolloutConfig.model_validate(_fields(config))


def attempt_to_agl(attempt: model.Attempt) -> agl.Attempt:
    values = _fields(attempt)
    return _made(agl.Attempt, {**values, "metadata": attempt_metadata_to_agl(values)})


def attempt_from_agl(attempt: agl.Attempt) -> model.Attempt:
    values = _fields(attempt)
    metadata = values["metadata"] or {}
    stamps = {name: metadata.pop(f"{RESERVED_PREFIX}{name}", None) for name in STAMPS}
    return model.Attempt.model_validate(values | stamps)


def rollout_to_agl(rollout: model.Rollout) -> agl.Rollout:
    """An AttemptedRollout for an AttemptedRollout, else a Rollout."""
    if isinstance(rollout, model.AttemptedRollout):
        return attempted_rollout_to_agl(rollout)
    return plain_rollout_to_agl(rollout)


def plain_rollout_to_agl(rollout: model.Rollout) -> agl.Rollout:
    """A Rollout, whatever attempt comes with it."""
    fields = {name: value for name, value in _fields(rollout).items() if name != "attempt"}
    return _made(agl.Rollout, {**fields, "config": config_to_agl(rollout.config)})


def attempted_rollout_to_agl(rollout: model.AttemptedRollout) -> agl.AttemptedRollout:
    nested = {"config": config_to_agl(rollout.config), "attempt": attempt_to_agl(rollout.attempt)}
    return _made(agl.AttemptedRollout, {**_fields(rollout), **nested})


def rollout_from_agl(rollout: agl.Rollout) -> model.Rollout:
    """An AttemptedRollout for an AttemptedRollout, else a Rollout."""
    into = model.AttemptedRollout if isinstance(rollout, agl.AttemptedRollout) else model.Rollout
    return into.model_validate(_fields(rollout))


def request_to_agl(request: model.EnqueueRolloutRequest) -> agl.EnqueueRolloutRequest:
    config = None if request.config is None else config_to_agl(request.config)
    return _made(agl.EnqueueRolloutRequest, {**_fields(request), "config": config})


def request_from_agl(request: agl.EnqueueRolloutRequest) -> model.EnqueueRolloutRequest:
    return model.EnqueueRolloutRequest.model_validate(_fields(request))


# --- Spans -----------------------------------------------------------------------------------------------------------


class _Family(NamedTuple):
    """A span's class and those of its parts: Agent Lightning's, or ours."""

    span: type[BaseModel]
    status: type[BaseModel]
    event: type[BaseModel]
    link: type[BaseModel]
    context: type[BaseModel]
    resource: type[BaseModel]


_THEIRS: Final = _Family(agl.Span, TraceStatus, Event, Link, SpanContext, OtelResource)
_OURS: Final = _Family(model.Span, model.TraceStatus, model.Event, model.Link, model.SpanContext, model.OtelResource)


def span_to_agl(span: model.Span) -> agl.Span:
    values = _fields(span)
    span_values_to_agl(values)
    family = _THEIRS._replace(resource=OpenOtelResource) if span.resource.model_extra else _THEIRS
    return cast(agl.Span, _span(family, values))


def span_from_agl(span: agl.Span) -> model.Span:
    """Not validated: the store checks each span that it is given, so one that is not legal does not spoil its batch."""
    values = _fields(span)
    span_values_from_agl(values)
    return cast(model.Span, _span(_OURS, values))


def _span(family: _Family, values: dict[str, Any]) -> BaseModel:
    parts = {
        "status": _made(family.status, values["status"]),
        "events": _each(values["events"], family.event),
        "links": _each(values["links"], family.link),
        "context": _made(family.context, values["context"]),
        "parent": _made(family.context, values["parent"]),
        "resource": _made(family.resource, values["resource"]),
    }
    for link in parts["links"] or ():
        link.context = _made(family.context, link.context)
    return _made(family.span, {**values, **parts})


def _each(items: Any, into: type[BaseModel]) -> Any:
    return [_made(into, values) for values in items] if isinstance(items, list) else items


# --- Resources -------------------------------------------------------------------------------------------------------


def resource_to_agl(resource: model.Resource) -> agl.Resource:
    closed, opened = _RESOURCES[type(resource)]
    return _made(opened if resource.model_extra else closed, _fields(resource))


def named_resources_from_agl(
    resources: Mapping[str, agl.Resource | Mapping[str, Any]],
) -> dict[str, model.Resource]:
    """``pydantic.ValidationError``, a ValueError, for what is no resource."""
    return _NAMED_RESOURCES.validate_python({name: plain(resource) for name, resource in resources.items()})


def resources_to_agl(update: model.ResourcesUpdate) -> agl.ResourcesUpdate:
    named = {name: resource_to_agl(resource) for name, resource in update.resources.items()}
    return _made(agl.ResourcesUpdate, {**_fields(update), "resources": named})


def resources_from_agl(update: agl.ResourcesUpdate) -> model.ResourcesUpdate:
    return model.ResourcesUpdate.model_validate(_fields(update))


# --- Workers ---------------------------------------------------------------------------------------------------------


def worker_to_agl(worker: model.Worker) -> agl.Worker:
    return _made(agl.Worker, _fields(worker))


def worker_from_agl(worker: agl.Worker) -> model.Worker:
    return model.Worker.model_validate(_fields(worker))


# --- Query results ---------------------------------------------------------------------------------------------------


def page_to_agl(page: model.PaginatedResult[T], to_agl: Callable[[T], U]) -> PaginatedResult[U]:
    items = [to_agl(row) for row in page]
    return PaginatedResult.model_construct(items=items, limit=page.limit, offset=page.offset, total=page.total)


def page_from_agl(page: PaginatedResult[U], from_agl: Callable[[U], T]) -> model.PaginatedResult[T]:
    return model.PaginatedResult([from_agl(row) for row in page], page.limit, page.offset, page.total)
