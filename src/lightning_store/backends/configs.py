"""A rollout's config as text, as databases store it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final

from lightning_store.model import DEFAULT_CONFIG, RolloutConfig

_LATER: Final = ("retry_delay_seconds", "retry_backoff", "retry_position", "bind", "max_staleness", "on_stale")
"""What the first formats do not have, in the order in which it came."""
_LATER_DEFAULTS: Final = [getattr(DEFAULT_CONFIG, one) for one in _LATER]


def config_text(config: RolloutConfig) -> str | None:
    """None for the default."""
    if config == DEFAULT_CONFIG:
        return None
    columns: list[Any] = [
        config.timeout_seconds,
        config.unresponsive_seconds,
        config.max_attempts,
        list(config.retry_condition),
    ]
    later = [getattr(config, one) for one in _LATER]
    if later != _LATER_DEFAULTS:
        columns += later
    return json.dumps(columns)


@lru_cache(maxsize=256)
def config_of(text: str | None) -> RolloutConfig:
    """Shared by the records that have the same: a config is never changed in place."""
    if text is None:
        return DEFAULT_CONFIG
    timeout_seconds, unresponsive_seconds, max_attempts, retry_condition, *later = json.loads(text)
    return RolloutConfig(
        timeout_seconds=timeout_seconds,
        unresponsive_seconds=unresponsive_seconds,
        max_attempts=max_attempts,
        retry_condition=retry_condition,
        **dict(zip(_LATER, later, strict=False)),
    )
