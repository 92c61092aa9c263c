"""Members of metadata that stand for arguments, for programs whose interface has no name for these.

They count when a rollout is made or an attempt is updated, where the argument itself is not given.
"""

from __future__ import annotations

import json
from typing import Annotated, Final

from pydantic import BaseModel, Field, ValidationError

from lightning_store.arguments import check_text
from lightning_store.backends.records import NewRollout
from lightning_store.errors import InvalidArgumentError
from lightning_store.labels import RESERVED_PREFIX, may_have_labels
from lightning_store.model import (
    DEFAULT_CONFIG,
    Bind,
    Counter,
    Duration,
    GroupId,
    GroupSize,
    ModelT,
    OnStale,
    Priority,
    RetryBackoff,
    RetryPosition,
    RolloutConfig,
)


class _OfRollout(BaseModel):
    """Of a new rollout: each is ``lightning.`` and the name of its field."""

    idempotency_key: Annotated[str, Field(strict=True, min_length=1)] | None = None
    priority: Priority = 0
    retry_position: RetryPosition = "tail"
    retry_delay_seconds: Duration = 0.0
    retry_backoff: RetryBackoff = 1.0
    bind: Bind = "enqueue"
    max_staleness: Counter | None = None
    on_stale: OnStale = "cancel"
    run: Annotated[str, Field(strict=True)] | None = None
    group_id: GroupId | None = None
    group_size: GroupSize | None = None


class _OfAttempt(BaseModel):
    """Of an attempt, likewise."""

    counts: Annotated[bool, Field(strict=True)] | None = None


IDEMPOTENCY_KEY: Final = f"{RESERVED_PREFIX}idempotency_key"
_CONFIG: Final = _OfRollout.model_fields.keys() & RolloutConfig.model_fields


def with_reserved(new: NewRollout) -> NewRollout:
    """The rollout with what its metadata say.

    Raises:
        InvalidArgumentError: One of these members is not legal.
    """
    said = _read(_OfRollout, new.metadata_json)
    if said is None:
        return new
    config = {
        name: getattr(said, name)
        for name in _CONFIG & said.model_fields_set
        if getattr(new.config, name) == getattr(DEFAULT_CONFIG, name)
    }
    return new._replace(
        config=new.config.model_copy(update=config) if config else new.config,
        priority=new.priority or said.priority,
        idempotency_key=said.idempotency_key,
        run=said.run,
        group_id=new.group_id or said.group_id,
        group_size=new.group_size or said.group_size,
    )


def run_of(metadata_json: str | None) -> str | None:
    """The run to which a rollout with this metadata belongs; None if they name none."""
    if metadata_json is None or not may_have_labels(metadata_json):
        return None
    run = json.loads(metadata_json).get(f"{RESERVED_PREFIX}run")
    return run if isinstance(run, str) else None


def counts_of(metadata_json: str | None) -> bool | None:
    """Whether an attempt with this metadata counts; None if they do not say.

    Raises:
        InvalidArgumentError: What they say is not legal.
    """
    said = _read(_OfAttempt, metadata_json)
    return None if said is None else said.counts


def _read(model: type[ModelT], metadata_json: str | None) -> ModelT | None:
    if metadata_json is None or not may_have_labels(metadata_json):
        return None
    metadata = json.loads(metadata_json)
    labels = {key.removeprefix(RESERVED_PREFIX): metadata[key] for key in metadata if key.startswith(RESERVED_PREFIX)}
    try:
        said = model.model_validate(labels)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        message = f"metadata: {RESERVED_PREFIX}{found['loc'][0]}: {found['msg']}"
        raise InvalidArgumentError(message, field="metadata") from None
    for name in said.model_fields_set & {"run", "group_id"}:
        check_text(f"metadata: {RESERVED_PREFIX}{name}", getattr(said, name))
    return said if said.model_fields_set else None
