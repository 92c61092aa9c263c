"""Numbers that must not grow: memory, threads, file descriptors and tasks, of the server and of its callers."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

MIB: Final = 1024 * 1024
SAMPLE_SECONDS: Final = 0.5
GROWTH_MAX: Final = 1.1
"""The highest value of the last third of the run, against the highest before."""
SLACK: Final = {"server tasks": 200.0, "other server descriptors": 40.0, "other client descriptors": 40.0}
"""And so much more: a storm leaves many calls under way at once, each with its tasks, and for a moment the sockets of
all connections that it has ended …"""
SLACK_DEFAULT: Final = 10.0
"""… and of small numbers a few more mean nothing."""
TREND_MAX: Final = 0.05
"""By how much memory may grow over the second half of a long run, as a line through its values has it."""
SHORT_RUN_SECONDS: Final = 45.0
"""A run that is shorter tells nothing."""
LONG_RUN_SECONDS: Final = 300.0


class Gauges:
    """Samples of each number."""

    def __init__(self, server: psutil.Process, server_tasks: Path, connections: Callable[[], int]) -> None:
        """``server_tasks`` is a file in which the server writes how many tasks it has; ``connections`` tells how many
        there must be, as the weather is: each with a socket of the server, and two of the proxy in this process."""
        own = psutil.Process()
        self._read: dict[str, Callable[[], float]] = {
            "server RSS MiB": lambda: server.memory_info().rss / MIB,
            "server threads": server.num_threads,
            "other server descriptors": lambda: server.num_fds() - connections(),
            "server tasks": lambda: float(server_tasks.read_text() or 0),
            "client RSS MiB": lambda: own.memory_info().rss / MIB,
            "client threads": threading.active_count,
            "other client descriptors": lambda: own.num_fds() - 2 * connections(),
            "client tasks": lambda: len(asyncio.all_tasks()),
        }
        self.samples: defaultdict[str, list[float]] = defaultdict(list)

    async def sample(self) -> None:
        """Until cancelled."""
        while True:
            for name, read in self._read.items():
                self.samples[name].append(read())
            await asyncio.sleep(SAMPLE_SECONDS)

    def growing(self) -> list[str]:
        """What is not flat, in words."""
        if len(self.samples["server RSS MiB"]) * SAMPLE_SECONDS < SHORT_RUN_SECONDS:
            return []
        found = [_growth(name, values) for name, values in self.samples.items()]
        found.append(_trend("server RSS MiB", self.samples["server RSS MiB"]))
        return [text for text in found if text]

    def table(self) -> str:
        """The highest of each third."""
        return "\n".join(
            f"  {name:25}" + "".join(f"{max(third, default=0):10.1f}" for third in _thirds(values))
            for name, values in self.samples.items()
        )


def _thirds(values: list[float]) -> tuple[list[float], list[float], list[float]]:
    third = len(values) // 3
    return values[:third], values[third : 2 * third], values[2 * third :]


def _growth(name: str, values: list[float]) -> str:
    first, middle, last = (max(third) for third in _thirds(values))
    allowed = max(first, middle) * GROWTH_MAX + SLACK.get(name, SLACK_DEFAULT)
    return f"{name} grows: {last:.1f} after {max(first, middle):.1f}" if last > allowed else ""


def _trend(name: str, values: list[float]) -> str:
    half = values[len(values) // 2 :]
    if len(values) * SAMPLE_SECONDS < LONG_RUN_SECONDS:
        return ""
    slope = statistics.linear_regression(range(len(half)), half).slope
    growth = slope * len(half) / statistics.mean(half)
    return f"{name} grows by {growth:.1%} over the second half" if growth > TREND_MAX else ""
