"""The store in a SQLite database: the engine on the SQLite backend, with spans encoded as on the wire."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from typing import Any, TypedDict, Unpack

from lightning_store.backends.sqlite import FREE_BYTES_MIN as FREE_BYTES_MIN
from lightning_store.backends.sqlite import REPLAY_ENTRIES_MAX as REPLAY_ENTRIES_MAX
from lightning_store.backends.sqlite import REPLAY_WINDOW_SECONDS as REPLAY_WINDOW_SECONDS
from lightning_store.backends.sqlite import Durability as Durability
from lightning_store.backends.sqlite import SqliteBackend
from lightning_store.clock import Clock
from lightning_store.engine.policy import Fence, Policy
from lightning_store.engine.store import EngineStore
from lightning_store.errors import StoreUnavailableError
from lightning_store.loop_thread import LoopThread
from lightning_store.memory_limits import MemoryLimits
from lightning_store.store import LightningStoreCapabilities, LightningStoreStatistics
from lightning_store.threaded import LightningStoreThreaded


class SqliteOptions(TypedDict, total=False):
    """What else a store in a SQLite database takes; see :class:`SqliteEngineStore`."""

    durability: Durability
    size_bytes_max: int | None
    free_bytes_min: int
    strict: bool
    final_outcomes: bool
    fence_attempts: Fence
    worker_timeout_seconds: float
    worker_retention_seconds: float | None
    retain_finished_seconds: float | None
    retain_finished_count: int | None
    retain_for: Sequence[str]
    drop_spans: Collection[str]
    replay_window_seconds: float
    replay_entries_max: int
    limits: MemoryLimits | None
    clock: Clock | None


class SqliteEngineStore(EngineStore):
    """The same for one event loop, that of its first call: what a server hosts.

    Args:
        path: The database's file. It is made if there is none; its folder must exist, on a local file system.
        durability: What an acknowledged call survives: "full" a loss of power, "normal" the end of the process.
        size_bytes_max: How many bytes of the file may be in use; past it, calls that store more are refused, and
            reports and deletions may take an eighth more. None: as many as the disk allows.
        free_bytes_min: How many bytes of the disk stay free: below, calls that store more are refused.
        strict: Whether calls that name what does not exist are refused.
        final_outcomes: Whether a terminal rollout stays as it is until it is put back into the queue.
        fence_attempts: Whether the spans of attempts that were cancelled or superseded are refused ("refuse") or kept
            without any effect ("keep"), and such attempts get no span numbers; "off" treats them as any.
        worker_timeout_seconds: After how long the attempts of workers that sent heartbeats and fell silent are given
            up, in seconds; 0 does not.
        worker_retention_seconds: Workers that are at work on nothing and were silent for longer are deleted; None keeps
            them.
        retain_finished_seconds: Rollouts that have been terminal for longer are deleted; None keeps them.
        retain_finished_count: Terminal rollouts beyond so many are deleted, those that ended first; None keeps them.
        retain_for: Consumers: rollouts that one of them has not consumed are not deleted for their age or number.
        drop_spans: The names of spans that are not stored. All else that a span does it does: it begins its attempt and
            keeps it alive.
        replay_window_seconds: How long replies are kept for repeated request ids, in seconds.
        replay_entries_max: How many of them.
        limits: How many bytes may be stored before spans are dropped or calls refused; None is no limit.
        clock: The time.

    Raises:
        InvalidArgumentError: An argument is not legal; the file is damaged, or something else than such a database.
        UnsupportedError: A newer version of the program has written the file.
        StoreUnavailableError: The file is in use already, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "full",
        size_bytes_max: int | None = None,
        free_bytes_min: int = FREE_BYTES_MIN,
        strict: bool = False,
        final_outcomes: bool = False,
        fence_attempts: Fence = "off",
        worker_timeout_seconds: float = 0.0,
        worker_retention_seconds: float | None = None,
        retain_finished_seconds: float | None = None,
        retain_finished_count: int | None = None,
        retain_for: Sequence[str] = (),
        drop_spans: Collection[str] = (),
        replay_window_seconds: float = REPLAY_WINDOW_SECONDS,
        replay_entries_max: int = REPLAY_ENTRIES_MAX,
        limits: MemoryLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        policy = Policy(
            strict=strict,
            final_outcomes=final_outcomes,
            fence_attempts=fence_attempts,
            worker_timeout_seconds=worker_timeout_seconds,
            worker_retention_seconds=worker_retention_seconds,
            retain_finished_seconds=retain_finished_seconds,
            retain_finished_count=retain_finished_count,
            retain_for=tuple(retain_for),
            drop_spans=drop_spans,
        )
        self._backend = SqliteBackend(
            path,
            durability=durability,
            size_bytes_max=size_bytes_max,
            free_bytes_min=free_bytes_min,
            replay_window_seconds=replay_window_seconds,
            replay_entries_max=replay_entries_max,
        )
        super().__init__(self._backend, policy=policy, clock=clock, memory=limits)

    @property
    def path(self) -> str:
        """The database's file."""
        return self._backend.path

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {**super().capabilities, "thread_safe": False}

    def close(self) -> None:
        """Wait for a commit that is under way, and close the file. May be called more than once."""
        self._backend.close()


class SqliteLightningStore(LightningStoreThreaded):
    """A LightningStore that survives its process, in a SQLite database. Safe to call from any thread and event loop.

    A call returns when what it changed is on disk. One process has the file open at a time. Close the store when it is
    no longer needed; a process that is killed instead loses nothing that a call has returned for::

        with SqliteLightningStore("runs.db") as store:
            ...

    Args:
        path: The database's file. It is made if there is none; its folder must exist, on a local file system.
        options: The other arguments of :class:`SqliteEngineStore`.

    Raises:
        InvalidArgumentError: An argument is not legal; the file is damaged, or something else than such a database.
        UnsupportedError: A newer version of the program has written the file.
        StoreUnavailableError: The file is in use already, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[SqliteOptions]) -> None:
        self._closing = threading.Lock()
        self._closed = False
        self._inner = SqliteEngineStore(path, **options)
        super().__init__(self._inner)

    @property
    def path(self) -> str:
        """The database's file."""
        return self._inner.path

    async def statistics(self) -> LightningStoreStatistics:
        statistics: LightningStoreStatistics = await super().statistics()
        return {**statistics, "name": type(self).__name__}

    def _running_thread(self) -> LoopThread:
        if self._closed:
            raise StoreUnavailableError(f"the store in {self._inner.path} was closed", path=self._inner.path)
        return super()._running_thread()

    def close(self) -> None:
        """Cancel the calls that are under way and close the file. May be called more than once."""
        with self._closing:
            self._closed = True
            super().close()
            self._inner.close()

    def __enter__(self) -> SqliteLightningStore:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
