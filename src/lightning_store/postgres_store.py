"""The store in a PostgreSQL database: the engine on the PostgreSQL backend. Several servers share one database."""

from __future__ import annotations

from typing import Any, Final

from lightning_store.backends.postgres import REPLAY_ENTRIES_MAX as REPLAY_ENTRIES_MAX
from lightning_store.backends.postgres import REPLAY_WINDOW_SECONDS as REPLAY_WINDOW_SECONDS
from lightning_store.backends.postgres import PostgresBackend
from lightning_store.clock import Clock, ShiftedClock, SleepCountingClock
from lightning_store.engine.policy import Policy
from lightning_store.engine.store import EngineStore
from lightning_store.memory_limits import MemoryLimits
from lightning_store.store import LightningStoreCapabilities

_OF_BACKEND: Final = (
    "namespace",
    "readers",
    "statement_timeout",
    "lock_timeout",
    "statement_cache_size",
    "replay_window_seconds",
    "replay_entries_max",
)


class PostgresEngineStore(EngineStore):
    """A store in a PostgreSQL database, for the event loop on which it was opened: what a server hosts."""

    def __init__(
        self, backend: PostgresBackend, *, policy: Policy, clock: Clock | None, memory: MemoryLimits | None
    ) -> None:
        self._backend = backend
        if clock is None:  # several servers go by one clock, that of the database
            clock = ShiftedClock(SleepCountingClock(), backend.clock_ahead_seconds)
        super().__init__(backend, policy=policy, clock=clock, memory=memory)

    @classmethod
    async def open(
        cls, dsn: str, *, clock: Clock | None = None, limits: MemoryLimits | None = None, **options: Any
    ) -> PostgresEngineStore:
        """Open a store, and make it if there is none.

        Args:
            dsn: As libpq takes it, ``postgresql://HOST/DATABASE``.
            clock: The time; that of the database for None.
            limits: How many bytes may be stored before spans are dropped or calls refused; None is no limit.
            options: The other arguments of :meth:`PostgresBackend.open`, and those of :class:`Policy`.

        Raises:
            InvalidArgumentError: An argument is not legal.
            UnsupportedError: A newer version of the program has written the tables, or the database is too old.
            StoreUnavailableError: The database cannot be reached.
        """
        given = {name: options.pop(name) for name in _OF_BACKEND if name in options}
        if "retain_for" in options:
            options["retain_for"] = tuple(options["retain_for"])
        policy = Policy(**options)
        backend = await PostgresBackend.open(dsn, **given)
        return cls(backend, policy=policy, clock=clock, memory=limits)

    @property
    def schema(self) -> str:
        """Where its tables are in the database."""
        return self._backend.schema

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {**super().capabilities, "thread_safe": False}

    async def aclose(self) -> None:
        """Wait for commits that are under way, and close the connections. May be called more than once."""
        await self._backend.aclose()
