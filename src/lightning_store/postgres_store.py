"""The store in a PostgreSQL database: the engine on the PostgreSQL backend. Several servers share one database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from lightning_store.backends.base import Violation
from lightning_store.backends.postgres import REPLAY_ENTRIES_MAX as REPLAY_ENTRIES_MAX
from lightning_store.backends.postgres import REPLAY_WINDOW_SECONDS as REPLAY_WINDOW_SECONDS
from lightning_store.backends.postgres import PostgresBackend
from lightning_store.backends.postgres.backend import LOCK_TIMEOUT, STATEMENT_TIMEOUT
from lightning_store.backends.postgres.checking import violations
from lightning_store.backends.postgres.connections import Settings
from lightning_store.backends.postgres.migrating import migrate
from lightning_store.clock import Clock, ShiftedClock, SleepCountingClock
from lightning_store.engine.policy import Policy
from lightning_store.engine.store import EngineStore
from lightning_store.errors import UnsupportedError
from lightning_store.memory_limits import MemoryLimits
from lightning_store.store import LightningStoreCapabilities

CHECK_SECONDS: Final = 3600.0
"""How long one rule may take."""
_OF_BACKEND: Final = (
    "namespace",
    "connections",
    "statement_timeout",
    "lock_timeout",
    "statement_cache_size",
    "replay_window_seconds",
    "replay_entries_max",
    "create",
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
        cls,
        dsn: str,
        *,
        clock: Clock | None = None,
        limits: MemoryLimits | None = None,
        adopt_rules: bool = False,
        **options: Any,
    ) -> PostgresEngineStore:
        """Open a store, and make it if there is none.

        Args:
            dsn: As libpq takes it, ``postgresql://HOST/DATABASE``.
            clock: The time; that of the database for None.
            limits: How many bytes may be stored before spans are dropped or calls refused; None is no limit.
            adopt_rules: Whether the policy of servers that are alive counts instead of ``options``, if there are any.
            options: The other arguments of :meth:`PostgresBackend.open`, and those of :class:`Policy`.

        Raises:
            InvalidArgumentError: An argument is not legal.
            UnsupportedError: A newer version of the program has written the tables, or the database is too old.
            StoreUnavailableError: The database cannot be reached, or servers that are alive have another policy or
                other limits.
        """
        given = {name: options.pop(name) for name in _OF_BACKEND if name in options}
        if "retain_for" in options:
            options["retain_for"] = tuple(options["retain_for"])
        policy = Policy(**options)
        backend = await PostgresBackend.open(dsn, rules=_rules(policy, limits), adopt_rules=adopt_rules, **given)
        try:
            return cls(backend, policy=_policy(backend.rules), clock=clock, memory=limits)
        except BaseException:
            await backend.aclose()
            raise

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


async def migrate_namespace(dsn: str, namespace: str) -> tuple[int, int]:
    """Bring the tables of a namespace to the format of this program, as opening it does.

    Args:
        dsn: As libpq takes it, ``postgresql://HOST/DATABASE``.
        namespace: Which store in the database.

    Returns:
        The version of the format before and after.

    Raises:
        InvalidArgumentError: There is no such namespace.
        UnsupportedError: A newer version of the program has written the tables, or the database is too old.
        StoreUnavailableError: The database cannot be reached.
    """
    settings = Settings(dsn, namespace, STATEMENT_TIMEOUT, LOCK_TIMEOUT, statement_cache_size=0)
    return await migrate(settings, create=False)


async def check_namespace(dsn: str, namespace: str) -> list[Violation]:
    """Look for what is wrong with a store, beside the servers that serve it.

    Args:
        dsn: As libpq takes it, ``postgresql://HOST/DATABASE``.
        namespace: Which store in the database.

    Returns:
        What is not as it has to be.

    Raises:
        InvalidArgumentError: There is no such namespace.
        UnsupportedError: Another version of the program has written the tables.
        StoreUnavailableError: The database cannot be reached.
    """
    return await violations(Settings(dsn, namespace, CHECK_SECONDS, LOCK_TIMEOUT, statement_cache_size=0))


def _rules(policy: Policy, limits: MemoryLimits | None) -> dict[str, Any]:
    """What is not at its default, as JSON has it: so versions agree of which one knows more settings."""
    rules: dict[str, Any] = {}
    for one in fields(Policy):
        value = getattr(policy, one.name)
        value = value if isinstance(value, str | int | float | None) else sorted(value)
        if value not in (one.default, []):
            rules[one.name] = value
    if limits is not None:
        rules["limits"] = [limits.eviction_bytes, limits.safe_bytes, limits.limit_bytes]
    return rules


def _policy(rules: Mapping[str, Any]) -> Policy:
    known = {one.name for one in fields(Policy)}
    given = {name: value for name, value in rules.items() if name not in (*_OF_BACKEND, "limits")}
    if not known.issuperset(given):
        names = ", ".join(sorted({*given} - known))
        raise UnsupportedError(f"the servers that are alive go by {names}, which this version does not know")
    return Policy(**given)
