"""PostgresBackend: everything in one PostgreSQL database, which several servers share.

A transaction that writes is alone in its namespace, from its first load to its end: it holds a lock of the database,
which ends with it. So it meets no other, and its load and its changes are one statement each, however many operations
are in it. Snapshots read on connections of their own and hold nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, Final, TypeVar
from uuid import uuid4

from asyncpg import Connection

from lightning_store.backends.base import (
    Backend,
    Changes,
    CommitUnknownError,
    ConflictError,
    Due,
    Elsewhere,
    Loaded,
    Needs,
    Rows,
    Snapshot,
    SnapshotEndedError,
    Transaction,
    Unconsumed,
)
from lightning_store.backends.postgres import reading, storing
from lightning_store.backends.postgres.connections import Connections, Settings, Tasks, close
from lightning_store.backends.postgres.errors import (
    OF_DATABASE,
    as_final_error,
    as_store_error,
    breaks_connection,
    state_of,
    store_errors,
)
from lightning_store.backends.postgres.following import Follower
from lightning_store.backends.postgres.loading import PostgresLoaded, load
from lightning_store.backends.postgres.membership import Membership
from lightning_store.backends.postgres.migrating import migrate
from lightning_store.backends.postgres.rows import Totals
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    CompletionRow,
    Counts,
    GroupRow,
    OpenGroup,
    PlacedRollout,
    QueueCounts,
    ResourcesRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.clock import SystemClock
from lightning_store.errors import InvalidArgumentError, StoreError
from lightning_store.model import TIME_MAX_SECONDS
from lightning_store.queries import AttemptQuery, ResourcesQuery, RolloutQuery, SpanBatchQuery, SpanQuery, WorkerQuery

T = TypeVar("T")

REPLAY_WINDOW_SECONDS: Final = 600.0
"""How long a reply is kept: well beyond the time over which a client retries."""
REPLAY_ENTRIES_MAX: Final = 200_000
"""Replies kept at most; the oldest go first."""
CONNECTIONS: Final = 10
"""One writes, one follows the other servers, and the others read."""
STATEMENT_TIMEOUT: Final = 30.0
LOCK_TIMEOUT: Final = 10.0
STATEMENTS: Final = 200
NAMESPACE: Final = "default"
EXPIRE_EVERY: Final = 1024
"""How many replies are recorded until those that are too old are deleted."""
EXPIRE_SECONDS: Final = 1.0
LEAVE_SECONDS: Final = 2.0
"""How long a server that ends waits for the database to note it."""


class PostgresBackend(Backend):
    """Everything in one PostgreSQL database. It belongs to the event loop on which :meth:`open` made it."""

    is_remote = True

    def __init__(
        self,
        settings: Settings,
        membership: Membership,
        server: str,
        store_id: str,
        totals: Totals,
        readers: int,
    ) -> None:
        self.membership = membership
        self._store_id = store_id
        self._replay_window_seconds: float = membership.rules["replay_window_seconds"]
        self._replay_entries_max: int = membership.rules["replay_entries_max"]
        self.server = server
        self.totals = totals
        self._opened_with = totals
        self.writers = Connections(settings, 1, settings.begin)
        self.readers = Connections(settings, readers, settings.begin_snapshot)
        self.tasks = Tasks()
        self._follower = Follower(settings, self.server, totals.id, membership)
        self._closed = False
        self._settings = settings
        self._recorded = 0
        self._expired_at = 0.0
        self._replies_passed = 0

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        namespace: str = NAMESPACE,
        connections: int = CONNECTIONS,
        statement_timeout: float = STATEMENT_TIMEOUT,
        lock_timeout: float = LOCK_TIMEOUT,
        statement_cache_size: int = STATEMENTS,
        replay_window_seconds: float = REPLAY_WINDOW_SECONDS,
        replay_entries_max: int = REPLAY_ENTRIES_MAX,
        rules: Mapping[str, Any] | None = None,
        adopt_rules: bool = False,
        create: bool = True,
    ) -> PostgresBackend:
        """Make the tables if there are none, and begin to follow what other servers do.

        Args:
            dsn: As libpq takes it, ``postgresql://HOST/DATABASE``. What it does not say comes from the environment and
                from the file of passwords.
            namespace: Which store in the database: each has a schema of its own.
            connections: How many are open at the most: one writes, one follows the other servers, the others read. At
                least 3.
            statement_timeout: After how long a statement is given up, in seconds.
            lock_timeout: After how long one that waits for another server is, in seconds; also a new connection.
            statement_cache_size: How many statements a connection keeps prepared. 0 for PgBouncer before 1.21.
            replay_window_seconds: How long a recorded reply is kept.
            replay_entries_max: How many replies are kept at most.
            rules: What else this server decides by, as JSON has it: all servers of a namespace have to agree on it.
            adopt_rules: Whether the rules of other servers count instead, if any are alive; ``rules`` of the backend
                has those that count.
            create: Whether to make the namespace if there is none.

        Raises:
            InvalidArgumentError: An argument is not legal, or there is no such namespace.
            UnsupportedError: A newer version of the program has written the tables, or the database is too old.
            StoreUnavailableError: The database cannot be reached, or servers that are alive have other rules.
        """
        if not 0 <= replay_window_seconds <= TIME_MAX_SECONDS:
            message = f"replay_window_seconds is {replay_window_seconds}; give 0 to {TIME_MAX_SECONDS}"
            raise InvalidArgumentError(message, field="replay_window_seconds")
        for name, value, least in (("replay_entries_max", replay_entries_max, 1), ("connections", connections, 3)):
            if value < least:
                raise InvalidArgumentError(f"{name} is {value}; give {least} or more", field=name)
        settings = Settings(dsn, namespace, statement_timeout, lock_timeout, statement_cache_size)
        await migrate(settings, create=create)
        server = uuid4().hex
        replies = {"replay_window_seconds": replay_window_seconds, "replay_entries_max": replay_entries_max}
        membership = Membership(settings, server, {**(rules or {}), **replies})
        clock = SystemClock()
        connection = await settings.connect()
        try:
            with store_errors():
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL search_path = {settings.schema}")
                    store_id: Any = await connection.fetchval("SELECT value FROM meta WHERE name = 'store_id'")
                    totals = await reading.totals(connection)
                before = clock.now()
                database_time: Any = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())")
                ahead = float(database_time) - (before + clock.now()) / 2
            await membership.join(connection, adopt=adopt_rules)
        finally:
            await close(connection)
        backend = cls(settings, membership, server, store_id, totals, connections - 2)
        backend.clock_ahead_seconds = ahead
        backend._follower.start()
        return backend

    clock_ahead_seconds: float = 0.0
    """How far the clock of the database was ahead of this machine's."""

    @property
    def store_id(self) -> str:
        return self._store_id

    @property
    def schema(self) -> str:
        """Where the tables are."""
        return self._settings.schema

    @property
    def replay_window_seconds(self) -> float:
        return self._replay_window_seconds

    @property
    def newest_time(self) -> float:
        return self._opened_with.newest_time

    @property
    def rules(self) -> Mapping[str, Any]:
        """What all servers of the namespace decide by, as JSON has it."""
        return self.membership.rules

    @property
    def available(self) -> bool:
        return self._follower.available

    async def wait_for_availability(self, available: bool) -> None:
        await self._follower.wait_for(available)

    def follow(self, tell: Callable[[Elsewhere], None]) -> None:
        self._follower.follow(tell)

    @property
    def stored_bytes(self) -> int:
        return self.totals.span_bytes + self.totals.other_bytes

    @property
    def span_bytes(self) -> int:
        return self.totals.span_bytes

    def transaction(self) -> Transaction:
        return _Transaction(self)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        snapshot = _Snapshot(self)
        try:
            yield snapshot
        finally:
            await snapshot.end()

    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        return await asyncio.shield(self.tasks.begin(self._evict_spans(excess_bytes, unfinished)))

    async def aclose(self) -> None:
        """Wait for transactions that are under way, and close the connections. May be called more than once.

        Calls that are made afterwards raise StoreUnavailableError.
        """
        await self._follower.stop()
        await self.tasks.finish()
        await self.writers.close()
        await self.readers.close()
        if not self._closed:
            self._closed = True
            await self._leave()

    async def _leave(self) -> None:
        """Others need not wait until this server counts as gone."""
        with contextlib.suppress(StoreError, *OF_DATABASE):
            async with asyncio.timeout(LEAVE_SECONDS):
                connection = await self._settings.connect()
                try:
                    await self.membership.leave(connection)
                finally:
                    await close(connection)

    # --- What transactions do ----------------------------------------------------------------------------------------

    async def write(
        self, connection: Connection, changes: Changes, loaded: PostgresLoaded
    ) -> tuple[Totals, storing.Done]:
        """The changes, in the open transaction."""
        totals, done = await storing.write(connection, changes, loaded, self.server)
        self._recorded += len(changes.replies)
        every = max(1, min(EXPIRE_EVERY, self._replay_entries_max // 8))
        if self._recorded >= every or (changes.replies and changes.time - self._expired_at >= EXPIRE_SECONDS):
            self._recorded, self._expired_at = 0, changes.time
            recorded = max((one.recorded_at for one in changes.replies.values()), default=changes.time)
            before = recorded - self._replay_window_seconds
            numbers = loaded.totals.last_reply, totals.last_reply
            self._replies_passed = await storing.expire_replies(
                connection, numbers, self._replies_passed, before, self._replay_entries_max
            )
        return totals, done

    async def commit(self, connection: Connection, totals: Totals, *, others_wait: bool) -> None:
        """COMMIT.

        Args:
            connection: The one that writes.
            totals: What is stored then.
            others_wait: Whether there are other servers, on which somebody may wait for what was done.

        Raises:
            ConflictError: It did not happen.
            CommitUnknownError: It may have happened or not.
        """
        try:
            done = await connection.execute("COMMIT")
        except Exception as error:
            if breaks_connection(error) or not state_of(error):
                raise CommitUnknownError(f"no answer to a COMMIT: {type(error).__name__}: {error}") from error
            raise as_store_error(error) from error
        if done != "COMMIT":
            raise ConflictError(f"the transaction was undone: {done}")
        self.note(totals)
        if others_wait:
            self._follower.notify()

    def note(self, totals: Totals) -> None:
        """What is stored, as far as is known here."""
        if totals.id > self.totals.id:
            self.totals = totals

    async def _evict_spans(self, excess_bytes: int, unfinished: bool) -> list[str]:
        connection = await self.writers.begin()
        try:
            with store_errors():
                await self.membership.admit(connection, await self.membership.members(connection))
                present = await reading.totals(connection)
                totals, evicted = await storing.evict(connection, present, excess_bytes, unfinished, self.server)
            if evicted:
                await self.commit(connection, totals, others_wait=False)
            return evicted
        finally:
            await self.writers.end(connection)


class _Transaction(Transaction):
    """What is sent to the database is not cancelled with its caller: that would cost a connection, and a COMMIT that
    has begun has to be waited for. ``rollback`` waits for it."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._connection: Connection | None = None
        self._loaded = PostgresLoaded(backend.server)
        self._work: asyncio.Task[Any] | None = None
        self._broken = False

    async def load(self, needs: Needs, due: Due | None = None) -> Loaded:
        try:
            await self._unbroken(self._load(needs, due))
        except BaseException:
            await self.rollback()
            raise
        return self._loaded

    async def commit(self, changes: Changes) -> None:
        await self._unbroken(self._commit(changes))

    async def rollback(self) -> None:
        if self._connection is not None or self._work is not None:
            await asyncio.shield(self._backend.tasks.begin(self._rollback()))

    async def _unbroken(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._work = self._backend.tasks.begin(work)
        await asyncio.shield(task)

    async def _load(self, needs: Needs, due: Due | None) -> None:
        if self._connection is None:
            self._connection = await self._backend.writers.begin()
        await self._on(self._connection, load(self._connection, needs, due, self._loaded))
        await self._backend.membership.admit(self._connection, self._loaded.members)
        self._backend.note(self._loaded.totals)

    async def _commit(self, changes: Changes) -> None:
        connection = self._connection
        assert connection is not None
        if changes.is_empty:
            await self._end()
            return
        totals, done = await self._on(connection, self._backend.write(connection, changes, self._loaded))
        others_wait = done.is_anything and len(self._loaded.members) > 1
        try:
            await self._backend.commit(connection, totals, others_wait=others_wait)
        except CommitUnknownError:
            self._broken = True
            raise
        finally:
            await self._end()

    async def _on(self, connection: Connection, work: Awaitable[T]) -> T:
        try:
            return await work
        except OF_DATABASE as error:
            self._broken = breaks_connection(error)
            raise as_store_error(error) from error

    async def _rollback(self) -> None:
        work = self._work
        if work is not None and not work.done():
            if self._connection is None:
                work.cancel()
            await asyncio.wait([work])
        await self._end()

    async def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._backend.writers.end(connection, broken=self._broken)


class _Snapshot(Snapshot):
    """Begins with the first read. Reads take turns: one whose caller is cancelled goes on to its end."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._work: asyncio.Task[Any] | None = None
        self._broken = False
        self._ended_by: Exception | None = None
        """The first read that failed: the database undoes what a transaction has left then."""
        self._span_queries: list[SpanQuery] = []
        self._spans: asyncio.Task[dict[SpanQuery, Rows[SpanRecord]]] | None = None

    async def end(self) -> None:
        if self._connection is not None or self._work is not None:
            await asyncio.shield(self._backend.tasks.begin(self._end()))

    async def _end(self) -> None:
        if self._connection is None and self._work is not None:
            self._work.cancel()  # it waits for a connection, and for nobody
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await self._backend.readers.end(connection, broken=self._broken)

    async def _read(self, read: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        task = self._work = self._backend.tasks.begin(self._on_connection(read, *arguments))
        return await asyncio.shield(task)

    async def _on_connection(self, read: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        async with self._turn:
            if self._ended_by is not None:
                raise SnapshotEndedError(f"a read beside this one failed: {self._ended_by}")
            if self._connection is None:
                self._backend.membership.admit_reader()
                self._connection = await self._backend.readers.begin()
            try:
                return await read(self._connection, *arguments)
            except OF_DATABASE as error:
                self._broken = breaks_connection(error)
                self._ended_by = as_final_error(error)
                raise self._ended_by from error

    async def has_due(self, due: Due) -> bool:
        return await self._read(reading.has_due, due)

    async def rollouts(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        return await self._read(reading.rollouts, rollout_ids)

    async def groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        return await self._read(reading.groups, group_ids)

    async def consumed(self, consumer: str, rollout_ids: Sequence[str]) -> set[str]:
        return await self._read(reading.consumed, consumer, rollout_ids)

    async def marks(self, rollout_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        return await self._read(reading.marks, rollout_ids)

    async def checkpoints(self) -> list[CheckpointRecord]:
        return await self._read(reading.checkpoints)

    async def admissions(self) -> list[AdmissionRecord]:
        return await self._read(reading.admissions)

    async def open_groups(self, run: str) -> Sequence[OpenGroup]:
        return await self._read(reading.open_groups, run)

    async def resources(self, resources_id: str | None) -> ResourcesRecord | None:
        return await self._read(reading.resources, resources_id)

    async def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        return await self._read(reading.newest, run)

    async def worker(self, worker_id: str) -> WorkerRecord | None:
        return await self._read(reading.worker, worker_id)

    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        return await self._read(reading.query_rollouts, query)

    async def query_attempts(self, query: AttemptQuery) -> Rows[AttemptRecord]:
        return await self._read(reading.query_attempts, query)

    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]:
        """With all that are asked for at the same time."""
        if self._spans is None:
            self._work = self._spans = self._backend.tasks.begin(self._query_spans())
        self._span_queries.append(query)
        try:
            return (await asyncio.shield(self._spans))[query]
        except StoreError as error:
            raise copy(error) from error

    async def _query_spans(self) -> dict[SpanQuery, Rows[SpanRecord]]:
        queries, self._span_queries, self._spans = self._span_queries, [], None
        return await self._on_connection(reading.query_spans, queries)

    async def query_many_spans(
        self, query: SpanBatchQuery, attempts: Sequence[tuple[str, str | None]]
    ) -> Rows[SpanRecord]:
        return await self._read(reading.query_many_spans, query, attempts)

    async def query_resources(self, query: ResourcesQuery) -> Rows[ResourcesRecord]:
        return await self._read(reading.query_resources, query)

    async def query_workers(self, query: WorkerQuery) -> Rows[WorkerRecord]:
        return await self._read(reading.query_workers, query)

    async def completions(self, after: int, limit: int) -> list[CompletionRow]:
        return await self._read(reading.completions, after, limit)

    async def unconsumed(self, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
        return await self._read(reading.unconsumed, consumer, after, look, limit)

    async def last_completion(self) -> int:
        return (await self._read(reading.totals)).last_completion_position

    async def next_deadline(self) -> float | None:
        return await self._read(reading.next_deadline)

    async def placed_rollouts(self, after: int, limit: int) -> list[PlacedRollout]:
        return await self._read(reading.placed_rollouts, after, limit)

    async def counts(self) -> Counts:
        return (await self._read(reading.totals)).counts

    async def queue_counts(self) -> QueueCounts:
        return await self._read(reading.queue_counts)
