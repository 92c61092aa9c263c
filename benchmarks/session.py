"""What a client process holds between two requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from benchmarks.stores import Family, close_store, dialect, open_store
from benchmarks.workloads import WORKLOADS, Subject, Workload

if TYPE_CHECKING:
    from lightning_store import AttemptedRollout


class Session:
    """One store at a time, the server process behind it, and the workloads that have run on it."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._subject: Subject | None = None
        self._workloads: dict[str, Workload] = {}
        self.server: psutil.Process | None = None
        self.calls_per_second: dict[tuple[str, int], float] = {}
        """What a workload reached with so many callers the last time."""
        self.attempts: list[AttemptedRollout] = []
        """Attempts that wait for their spans."""

    @property
    def subject(self) -> Subject:
        """The store that is open."""
        if self._subject is None:
            raise RuntimeError("no store is open; ask for 'open' first")
        return self._subject

    async def open(self, *, endpoint: str | None = None, server_pid: int | None = None) -> None:
        """Open a client of the server at ``endpoint``, or a new store in this process."""
        await self.close()
        self.server = None if server_pid is None else psutil.Process(server_pid)
        self._subject = Subject(open_store(self.family, endpoint), dialect(self.family), endpoint)

    async def close(self) -> None:
        """Close the store, and forget what belongs to it."""
        for workload in self._workloads.values():
            await workload.close()
        self._workloads.clear()
        self.calls_per_second.clear()
        self.attempts.clear()
        if self._subject is not None:
            await close_store(self._subject.store)
            self._subject = None

    def workload(self, name: str) -> Workload:
        """The workload of this name on the open store; always the same one."""
        if name not in self._workloads:
            self._workloads[name] = WORKLOADS[name](self.subject)
        return self._workloads[name]
