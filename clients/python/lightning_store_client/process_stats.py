"""What each heartbeat tells of the runner's process and machine."""

from __future__ import annotations

import socket
from typing import Any

import psutil


class ProcessStats:
    """Of this process, from now on."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def gather(self) -> dict[str, Any]:
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
