"""What each heartbeat tells of the runner's process and machine."""

from __future__ import annotations

import functools
import socket
from typing import Any, Final

import psutil

from lightning_store.clock import SystemClock

FRESH_SECONDS: Final = 1.0
"""How long stats are good for the heartbeats of other workers of the process."""

_clock = SystemClock()


class ProcessStats:
    """Of this process, from now on, for all its workers."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._gathered: dict[str, Any] = {}
        self._gathered_at = -FRESH_SECONDS

    def gather(self) -> dict[str, Any]:
        """Stats that are one second old at most."""
        now = _clock.monotonic()
        if now - self._gathered_at >= FRESH_SECONDS:
            self._gathered, self._gathered_at = self._gather(), now
        return dict(self._gathered)

    def _gather(self) -> dict[str, Any]:
        """``host`` (its name) and ``pid``; ``process_cpu_percent`` (100 is one core) and ``machine_cpu_percent`` (100
        is all cores), both since the time before, and 0.0 at first; ``process_rss_bytes`` (resident memory) and
        ``process_memory_percent`` (its share of the machine's); ``machine_memory_percent`` (in use) and
        ``machine_memory_available_bytes``.
        """
        process, memory = self._process, psutil.virtual_memory()
        with process.oneshot():
            return {
                "host": socket.gethostname(),
                "pid": process.pid,
                "process_cpu_percent": process.cpu_percent(),
                "process_rss_bytes": process.memory_info().rss,
                "process_memory_percent": round(process.memory_percent(), 2),
                "machine_cpu_percent": psutil.cpu_percent(),
                "machine_memory_percent": memory.percent,
                "machine_memory_available_bytes": memory.available,
            }


@functools.cache
def stats_of_process(pid: int) -> ProcessStats:
    """Those of the present process, which has this id: a forked child begins anew."""
    return ProcessStats()
