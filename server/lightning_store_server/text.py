"""How values are written for people: sizes, lengths of time, moments, JSON in short, and stored text made harmless."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from lightning_store.text import clipped, printable

TEXT_MAX: Final = 400
"""Characters of one value that are written at most; a terminal shows fewer."""


def byte_size(count: int) -> str:
    """``count`` bytes in the largest binary unit that keeps it at 1 or more: ``64MiB``, ``1.5GiB``, ``17B``."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{round(value, 1):g}{units[0]}" if value < 10_000 else f"{value:.0f}{units[0]}"


def duration(seconds: float | None) -> str:
    """A length of time in at most two units: ``0.8ms``, ``3.2s``, ``5m 03s``, ``2h 05m``, ``3d 04h``; "" for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}h"
    return f"{hours}h {minute:02}m" if hours else f"{minute}m {second:02}s"


def age(seconds: float) -> str:
    """How long ago, in one unit: ``now``, ``12s ago``, ``3m ago``, ``5h ago``, ``2d ago``; ``in 12s`` if negative."""
    length = int(abs(seconds))
    for unit, unit_seconds in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if length >= unit_seconds:
            amount = f"{length // unit_seconds}{unit}"
            return f"{amount} ago" if seconds > 0 else f"in {amount}"
    return "now"


def moment(time: float | None, now: float) -> str:
    """``time`` (seconds since the epoch) as local ISO date and time, and as an age at ``now``; empty for None."""
    if time is None:
        return ""
    local = datetime.fromtimestamp(time, UTC).astimezone().replace(tzinfo=None)
    return f"{local.isoformat(sep=' ', timespec='seconds')} {age(now - time)}"


def short_json(value: Any, length: int = TEXT_MAX) -> str:
    """``value`` as JSON on one line of at most ``length`` characters; text that is a whole value goes unquoted."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return clip(text, length)


def clip(text: str, length: int = TEXT_MAX) -> str:
    """The first ``length`` characters of ``text``, with control characters and the like written as escapes.

    Stored text comes from other programs: it must not move the cursor, recolour the terminal or break a row.
    """
    return printable(clipped(text, length))


def counted(count: int, noun: str) -> str:
    """``1 rollout``, ``2 rollouts``, ``2 sets of resources``."""
    head, of, rest = noun.partition(" of ")
    return f"{count} {head}{'' if count == 1 else 's'}{of}{rest}"
