"""How many bytes a store in memory keeps: of spans before it drops some, and of everything before it refuses more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil

from lightning_store.errors import InvalidArgumentError, ResourceExhaustedError
from lightning_store.model import Span

EVICTION_RATIO_DEFAULT: Final = 0.7
"""Of the machine's memory."""
SAFE_RATIO_DEFAULT: Final = 0.8
"""Of the eviction threshold."""
LIMIT_RATIO_DEFAULT: Final = 0.9
"""Of the machine's memory."""
RESERVE_SHARE: Final = 8
"""Attempts, workers and marks may take so large a part of the limit beyond it, and so may a call that passes it."""
RETRY_AFTER_SECONDS: Final = 5.0
"""When to try again what was refused: somebody has to read and delete first."""


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Past ``eviction_bytes`` of spans, whole rollouts' spans are dropped until ``safe_bytes`` or less remain.

    Past ``limit_bytes`` of everything stored, spans of finished rollouts are dropped; when there are none left, calls
    that would store more are refused.
    """

    capacity_bytes: int
    eviction_bytes: int
    safe_bytes: int
    limit_bytes: int
    span_size_estimator: Callable[[Span], int] | None = None
    """Bytes to count for a span; None counts its encoded size and a fixed overhead."""

    def is_past_reserve(self, stored_bytes: int) -> bool:
        """Whether so many bytes are more than the limit and what is kept free beyond it."""
        return stored_bytes > self.limit_bytes + self.limit_bytes // RESERVE_SHARE

    def excess(self, stored_bytes: int, coming_bytes: int) -> int:
        """How many bytes have to go so that others may come; 0 or less if there is room."""
        past_reserve = stored_bytes + coming_bytes - self.limit_bytes - self.limit_bytes // RESERVE_SHARE
        return max(stored_bytes - self.limit_bytes, past_reserve)

    @classmethod
    def of(
        cls,
        eviction_memory_threshold: float | int | None = None,
        safe_memory_threshold: float | int | None = None,
        span_size_estimator: Callable[[Span], int] | None = None,
        memory_capacity_bytes: int | None = None,
        memory_limit: float | int | None = None,
    ) -> MemoryLimits:
        """Limits from a ratio of total memory (a float up to 1) or bytes (an int) each; ValueError if not legal.

        ``memory_capacity_bytes`` is the total; None asks the machine.
        """
        capacity = psutil.virtual_memory().total if memory_capacity_bytes is None else memory_capacity_bytes
        eviction = _bytes(
            "eviction_memory_threshold",
            EVICTION_RATIO_DEFAULT if eviction_memory_threshold is None else eviction_memory_threshold,
            capacity,
        )
        if safe_memory_threshold is None:
            safe = int(eviction * SAFE_RATIO_DEFAULT)
        else:
            safe = _bytes("safe_memory_threshold", safe_memory_threshold, capacity)
        if safe >= eviction:
            raise InvalidArgumentError(
                f"safe_memory_threshold is {safe} bytes; it must be below the eviction threshold of {eviction} bytes",
                field="safe_memory_threshold",
            )
        limit = _bytes("memory_limit", LIMIT_RATIO_DEFAULT if memory_limit is None else memory_limit, capacity)
        return cls(capacity, eviction, safe, limit, span_size_estimator)


def memory_full(stored_bytes: int, coming_bytes: int, limit_bytes: int) -> ResourceExhaustedError:
    """What is raised past ``limit_bytes`` with nothing left to drop."""
    if stored_bytes > limit_bytes:
        problem = f"the store holds {stored_bytes} bytes, more than its limit of {limit_bytes}"
    else:
        problem = f"the store holds {stored_bytes} bytes, and its limit of {limit_bytes} has no room for {coming_bytes}"
    error = ResourceExhaustedError(
        f"{problem}, and has no spans of finished rollouts left to drop; read and delete finished rollouts "
        "(delete_rollouts), or raise memory_limit",
        limit="memory_limit",
    )
    error.retry_after_seconds = RETRY_AFTER_SECONDS
    return error


def _bytes(name: str, threshold: float | int, capacity_bytes: int) -> int:
    if isinstance(threshold, float):
        if not 0 <= threshold <= 1:
            message = f"{name} is {threshold}; give a ratio of total memory up to 1.0, or bytes as an int"
            raise InvalidArgumentError(message, field=name)
        return int(threshold * capacity_bytes)
    if threshold < 0:
        raise InvalidArgumentError(f"{name} is {threshold}; give 0 bytes or more", field=name)
    return threshold
