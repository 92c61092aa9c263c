"""The status rules, as pure functions: no clock, no storage, no lock. ``docs/state_machine.md`` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from lightning_store.model import (
    TIME_MAX_SECONDS,
    AttemptStatus,
    EndReason,
    GroupStatus,
    RolloutConfig,
    RolloutStatus,
)

QUEUED: Final[frozenset[str]] = frozenset({"queuing", "requeuing"})
"""Rollout statuses that a dequeue hands out."""
ACTIVE: Final[frozenset[str]] = frozenset({"preparing", "running"})
"""Statuses, of rollouts and of attempts, in which work goes on and deadlines count."""
TERMINAL: Final[frozenset[str]] = frozenset({"failed", "succeeded", "cancelled"})
"""Rollout statuses that end a wait."""
REPORTED: Final[frozenset[str]] = frozenset({"failed", "succeeded"})
"""Attempt statuses that a worker reports at its end; after them it is idle."""


RETRIES_COUNTED_MAX: Final = 64
"""After so many retries the delay grows no more."""
_FAILURES: Final[Mapping[str | None, EndReason]] = {"timeout": "timeout", "unresponsive": "worker_lost"}
"""Attempt statuses that say more of a failure than that there was one."""


class Expiry(NamedTuple):
    """When an attempt is given up if nothing changes until then, and as what."""

    time: float
    """It is given up once the clock is past this, in seconds since the epoch."""
    status: AttemptStatus


def rollout_status_after(
    attempt_status: AttemptStatus, counted: int, config: RolloutConfig, *, counts: bool = True
) -> RolloutStatus:
    """The status of a rollout whose latest attempt has ``attempt_status``.

    Args:
        attempt_status: Of the latest attempt.
        counted: How many attempts there were, without those that do not count.
        config: Says after what there is a retry.
        counts: Whether the latest attempt counts. A failure that does not is always tried again.
    """
    if attempt_status == "preparing" or attempt_status == "running" or attempt_status == "succeeded":
        return attempt_status
    if not counts or (attempt_status in config.retry_condition and counted < config.max_attempts):
        return "requeuing"
    return "failed"


def retry_time(config: RolloutConfig, sequence_id: int, now: float) -> float | None:
    """When a rollout whose attempt ``sequence_id`` has failed is back in the queue; None for at once."""
    delay_seconds = config.retry_delay_seconds * config.retry_backoff ** min(sequence_id - 1, RETRIES_COUNTED_MAX)
    return min(now + delay_seconds, TIME_MAX_SECONDS) if delay_seconds else None


def end_reason(status: RolloutStatus, latest: AttemptStatus | None) -> EndReason | None:
    """Why a rollout with this status did not succeed, whose latest attempt has the status ``latest``; None if it is not
    over, or succeeded."""
    if status == "cancelled":
        return "cancelled"
    return _FAILURES.get(latest, "error") if status == "failed" else None


def group_status(statuses: Sequence[str], size: int, needed: int) -> GroupStatus:
    """The status of a group before any deadline.

    Args:
        statuses: Of the members that there are.
        size: How many members it has, or is to have.
        needed: How many of them have to succeed.
    """
    succeeded = statuses.count("succeeded")
    pending = size - sum(status in TERMINAL for status in statuses)
    if succeeded == size:
        return "whole"
    if succeeded + pending < needed:
        return "failed"
    return "open" if pending or succeeded < needed else "partial"


def limits(
    rollout_status: RolloutStatus,
    attempt_status: AttemptStatus,
    start_time: float,
    last_heartbeat_time: float | None,
    config: RolloutConfig,
    lease_end: float | None = None,
    watched_since: float = 0.0,
) -> list[Expiry]:
    """The limits that an attempt is under, the one that wins a tie first. Empty where no deadline counts.

    ``lease_end`` is when its worker counts as dead; see ``lightning_store.engine.workers``. Silence of an
    attempt that began before ``watched_since`` counts from then at the earliest: before that, nobody could hear a sign.
    """
    if rollout_status not in ACTIVE or attempt_status not in ACTIVE:
        return []
    found: list[Expiry] = []
    if config.timeout_seconds is not None:
        found.append(Expiry(start_time + config.timeout_seconds, "timeout"))
    if config.unresponsive_seconds is not None:
        last_sign = start_time if last_heartbeat_time is None else last_heartbeat_time
        heard = max(last_sign, watched_since) if start_time < watched_since else last_sign
        found.append(Expiry(heard + config.unresponsive_seconds, "unresponsive"))
    if lease_end is not None:
        found.append(Expiry(lease_end, "unresponsive"))
    return found


def may_leave(current: RolloutStatus, new: RolloutStatus) -> bool:
    """Whether strict mode lets ``update_rollout`` go from ``current`` to ``new``: a finished rollout only re-queues."""
    return current not in TERMINAL or new in QUEUED
