"""When a call is tried again, and after how long."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lightning_store.arguments import wait_seconds

JITTER: Final = 0.2
"""Delays vary by this share either way, so that callers that failed together do not come back together."""
ATTEMPT_SECONDS_MIN: Final = 5.0
"""An attempt is not given up sooner than this for the sake of the next."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long. Empty sequences switch retries, or the health probes between them, off."""

    timeout_seconds: float
    """What one call may take, all its attempts together."""
    delays: tuple[float, ...]
    """Seconds before the second attempt, the third, …"""
    health_delays: tuple[float, ...]
    """Seconds between probes of the server's health, before each further attempt."""

    @classmethod
    def of(cls, timeout: float, retry_delays: Sequence[float], health_retry_delays: Sequence[float]) -> RetryPolicy:
        """ValueError if one of them is no length of time."""
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; give more than 0 seconds")
        for name, delays in (("retry_delays", retry_delays), ("health_retry_delays", health_retry_delays)):
            if any(not delay >= 0 for delay in delays):
                raise ValueError(f"{name} is {delays}; give seconds of 0 or more, or () to switch them off")
        return cls(
            wait_seconds("timeout", timeout),
            tuple(wait_seconds("retry_delays", delay) for delay in retry_delays),
            tuple(wait_seconds("health_retry_delays", delay) for delay in health_retry_delays),
        )

    def attempt_timeout(self, seconds_left: float, attempts_left: int) -> float:
        """What the next attempt may take: all that is left for the last one, half of it before, so that a reply that
        never comes leaves time to ask again."""
        if attempts_left == 0:
            return seconds_left
        return min(seconds_left, max(ATTEMPT_SECONDS_MIN, seconds_left / 2))


def jittered(delay: float) -> float:
    return delay * random.uniform(1 - JITTER, 1 + JITTER)
