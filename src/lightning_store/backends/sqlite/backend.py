"""SqliteBackend: everything in one SQLite database, which survives the process.

One connection writes. A transaction has it to itself from its first load to its end: the statements run on the event
loop, a few milliseconds at a stretch, and the COMMIT, which waits for the disk, in a thread. Snapshots read on
connections of their own and hold nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from time import perf_counter
from typing import Any, Final, TypeVar

from lightning_store.backends.base import (
    Backend,
    Changes,
    CommitUnknownError,
    DiskUse,
    Due,
    Loaded,
    Needs,
    Rows,
    Snapshot,
    Transaction,
    Unconsumed,
)
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
from lightning_store.backends.sqlite import reading, rows, storing
from lightning_store.backends.sqlite.errors import REPLACED, as_store_error, primary_code, store_errors
from lightning_store.backends.sqlite.file import Durability, FileLock, file_identity, open_writer, wal_bytes
from lightning_store.backends.sqlite.loading import SqliteLoaded, load, newest_resources, next_deadline, pacer
from lightning_store.backends.sqlite.network import network_type
from lightning_store.backends.sqlite.readers import Reader, Readers
from lightning_store.backends.sqlite.replies import ReplyIndex
from lightning_store.backends.sqlite.room import FREE_BYTES_MIN, Room
from lightning_store.backends.sqlite.rows import Totals
from lightning_store.backends.sqlite.storing import Written
from lightning_store.errors import InvalidArgumentError, ResourceExhaustedError, StoreUnavailableError
from lightning_store.model import TIME_MAX_SECONDS
from lightning_store.queries import AttemptQuery, ResourcesQuery, RolloutQuery, SpanBatchQuery, SpanQuery, WorkerQuery

T = TypeVar("T")

logger = logging.getLogger(__name__)

REPLAY_WINDOW_SECONDS: Final = 600.0
"""How long a reply is kept: well beyond the time over which a client retries."""
REPLAY_ENTRIES_MAX: Final = 200_000
"""Replies kept at most; the oldest go first."""
READER_THREADS: Final = 2
"""Lists that are read at a time."""
LOOK_UP_BYTES_MAX: Final = 128 * 1024
"""Spans that are read on the event loop, in less than 2 ms. To have a thread read a few takes longer than that."""
WAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""When the write-ahead log is longer, no snapshot begins until it is empty: one that is open keeps it from being."""

SHRINK_AGAIN_SECONDS: Final = 1.0
"""When to try again to empty the log, after another process had kept it from being emptied."""


class SqliteBackend(Backend):
    """Everything in one SQLite database. It belongs to one event loop, that of its first call.

    Args:
        path: The database's file. It is made if there is none; its folder must exist, on a local file system.
        durability: What an acknowledged call survives: "full" a loss of power, "normal" the end of the process.
        size_bytes_max: How many bytes of the file may be in use; past it, calls that store more are refused, and
            reports and deletions may take an eighth more. None: as many as the disk allows.
        free_bytes_min: How many bytes of the disk stay free: below, calls that store more are refused.
        replay_window_seconds: How long a recorded reply is kept.
        replay_entries_max: How many replies are kept at most.

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
        replay_window_seconds: float = REPLAY_WINDOW_SECONDS,
        replay_entries_max: int = REPLAY_ENTRIES_MAX,
    ) -> None:
        if not 0 <= replay_window_seconds <= TIME_MAX_SECONDS:
            message = f"replay_window_seconds is {replay_window_seconds}; give 0 to {TIME_MAX_SECONDS}"
            raise InvalidArgumentError(message, field="replay_window_seconds")
        if replay_entries_max < 1:
            message = f"replay_entries_max is {replay_entries_max}; give 1 or more"
            raise InvalidArgumentError(message, field="replay_entries_max")
        self.path = os.fspath(path)
        if size_bytes_max is not None and size_bytes_max < 1:
            raise InvalidArgumentError(f"size_bytes_max is {size_bytes_max}; give 1 or more", field="size_bytes_max")
        if free_bytes_min < 0:
            raise InvalidArgumentError(f"free_bytes_min is {free_bytes_min}; give 0 or more", field="free_bytes_min")
        self._room = Room(self.path, size_bytes_max, free_bytes_min)
        self._durability: Durability = durability
        self._size_bytes_max = size_bytes_max
        self._replay_window_seconds = replay_window_seconds
        self.replies = ReplyIndex(replay_window_seconds, replay_entries_max)
        self._turn = asyncio.Lock()
        self.readers = Readers(self.path)
        self._background: set[asyncio.Future[Any]] = set()
        self._shrinking = False
        self._shrink_at = 0.0
        self._closed = False
        self._process = os.getpid()
        self._writer: sqlite3.Connection | None = None
        """None after a COMMIT of which nobody knows what became of it."""
        self._store_id = ""
        self._lock = FileLock(self.path)
        try:
            self._writer = self._opened()
            self._identity = file_identity(self.path)
        except BaseException:
            self._lock.release()
            raise
        self._writer_thread = ThreadPoolExecutor(1, "lightning-store-sqlite-commit")
        self._reader_threads = ThreadPoolExecutor(READER_THREADS, "lightning-store-sqlite-read")
        logger.info("%s is open: SQLite %s, durability %s", self.path, sqlite3.sqlite_version, durability)
        if (network := network_type(self.path)) is not None:
            logger.warning(
                "%s is on a %s file system: SQLite needs a local one, or it may damage it", self.path, network
            )

    def _opened(self) -> sqlite3.Connection:
        """The connection that writes, and what is known of the data."""
        writer = open_writer(self.path, self._durability, self._size_bytes_max)
        try:
            with store_errors(self.path):
                [self._store_id] = writer.execute("SELECT value FROM meta WHERE name = 'store_id'").fetchone()
                self.totals = rows.read_totals(writer)
                self.deadline = next_deadline(writer)
                self.replies.read(writer)
                self._room.measure(writer)
        except BaseException:
            writer.close()
            raise
        return writer

    def _opened_again(self) -> sqlite3.Connection:
        """The same after a COMMIT that failed. What it left in the log may be in the machine's memory only, since the
        disk has refused it once; emptying the log has it written anew."""
        writer = self._opened()
        try:
            with store_errors(self.path):
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except BaseException:
            writer.close()
            raise
        return writer

    @property
    def store_id(self) -> str:
        return self._store_id

    @property
    def replay_window_seconds(self) -> float:
        return self._replay_window_seconds

    def refusal(self) -> ResourceExhaustedError | None:
        return self._room.refusal()

    @property
    def disk_use(self) -> DiskUse:
        return self._room.use

    @property
    def stored_bytes(self) -> int:
        return self.totals.span_bytes + self.totals.other_bytes

    @property
    def span_bytes(self) -> int:
        return self.totals.span_bytes

    @property
    def newest_time(self) -> float:
        return self.totals.newest_time

    def transaction(self) -> Transaction:
        return _Transaction(self)

    def snapshot(self) -> _Snapshot:
        return _Snapshot(self)

    async def evict_spans(self, excess_bytes: int, *, unfinished: bool) -> list[str]:
        return await self.unbroken(self._evict_spans(excess_bytes, unfinished))

    def close(self) -> None:
        """Wait for a COMMIT that is under way, and close the file. May be called more than once.

        Calls that are made afterwards raise StoreUnavailableError.
        """
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._reader_threads.shutdown()
        self._writer_thread.shutdown()
        self.readers.close()
        if self._writer is not None:
            self._writer.close()
        self._lock.release()

    # --- What transactions do with the connection that writes --------------------------------------------------------

    async def begin(self) -> sqlite3.Connection:
        """The connection that writes, in a transaction of its own; ``end`` gives it back."""
        await self._turn.acquire()
        try:
            self._check_open()
            if self._writer is None:
                self._writer = self._opened_again()
            with store_errors(self.path):
                self._writer.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._turn.release()
            raise
        return self._writer

    def end(self) -> None:
        """Undo what was not committed, and let the next transaction begin."""
        if self._writer is not None and not self._closed and self._writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # one that SQLite has rolled back by itself
                self._writer.execute("ROLLBACK")
        self._turn.release()

    async def commit(self, written: Written) -> None:
        """COMMIT what was written, in a thread. A caller that is cancelled waits for it all the same.

        Raises:
            CommitUnknownError: It may have happened or not.
        """
        writer = self._writer
        assert writer is not None
        if not writer.in_transaction:  # a full disk ends it
            raise StoreUnavailableError(f"the database {self.path} has rolled a transaction back", path=self.path)
        committing = self._writer_thread.submit(self._commit, writer)
        try:
            await asyncio.shield(asyncio.wrap_future(committing))
        except asyncio.CancelledError:  # the event loop comes to its end
            committing.result()
            self._committed(written)
            raise
        except CommitUnknownError:
            self.readers.close()  # with the connection that wrote
            raise
        self._committed(written)

    def _commit(self, writer: sqlite3.Connection) -> None:
        try:
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            if primary_code(error) != sqlite3.SQLITE_IOERR:
                raise as_store_error(error, self.path) from error
            logger.exception("A COMMIT to %s failed; it is opened again", self.path)
            self._writer = None
            writer.close()
            raise CommitUnknownError(f"{self.path}: {error}") from error
        self._room.measure(writer)

    def _committed(self, written: Written) -> None:
        self.readers.renew()
        self.totals = written.totals
        self.deadline = written.deadline
        if written.expired:
            self.replies.delete(written.expired)
        self.replies.add(written.replies)
        if not self._shrinking and perf_counter() >= self._shrink_at and wal_bytes(self.path) > WAL_BYTES_MAX:
            self._shrinking = True
            self._in_background(self._shrink_log())

    async def _shrink_log(self) -> None:
        """Empty the write-ahead log, with no snapshot open that needs it."""
        try:
            async with self.readers.none_open(), self._turn:
                if self._writer is not None and not self._closed:
                    statement = "PRAGMA wal_checkpoint(TRUNCATE)"
                    checkpoint = self._writer_thread.submit(self._writer.execute, statement)
                    await asyncio.shield(asyncio.wrap_future(checkpoint))
                    [[busy, *_]] = checkpoint.result().fetchall()
                    if busy:  # another process reads, for a backup say: let ours read as well
                        self._shrink_at = perf_counter() + SHRINK_AGAIN_SECONDS
        except sqlite3.Error as error:
            logger.warning("The write-ahead log of %s is long and was not emptied: %s", self.path, error)
        finally:
            self._shrinking = False

    async def unbroken(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which goes on when the caller is cancelled."""
        return await asyncio.shield(self._in_background(work))

    def _in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _evict_spans(self, excess_bytes: int, unfinished: bool) -> list[str]:
        connection = await self.begin()
        try:
            with store_errors(self.path):
                written = Written(copy(self.totals), self.deadline)
                evicted = await storing.evict(connection, written, excess_bytes, unfinished, pacer())
                if evicted:
                    await self.commit(written)
            return evicted
        finally:
            self.end()

    # --- What snapshots do with a connection that reads --------------------------------------------------------------

    async def take_reader(self) -> Reader:
        """A read transaction; ``readers.give_back`` ends it."""
        self._check_open()
        with store_errors(self.path):
            return await self.readers.take()

    def read_in_thread(self, read: Callable[[], T]) -> Future[T]:
        return self._reader_threads.submit(read)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"the database {self.path} was closed", path=self.path)
        if self._process != os.getpid():  # a connection that two processes have damages the file
            message = f"the database {self.path} was opened before this process was forked; serve it to share it"
            raise StoreUnavailableError(message, path=self.path)
        if file_identity(self.path) != self._identity:  # what is written to ours now is gone when it is closed
            message = f"the file {self.path} was removed or replaced while it is open; put it back, or open the new one"
            raise StoreUnavailableError(message, path=self.path, problem=REPLACED)


class _Transaction(Transaction):
    """Has the connection that writes from its first load on."""

    __slots__ = ("_backend", "_connection", "_ending", "_loaded")

    def __init__(self, backend: SqliteBackend) -> None:
        self._backend = backend
        self._connection: sqlite3.Connection | None = None
        self._loaded = SqliteLoaded(backend.totals, backend.deadline)
        self._ending = False

    async def load(self, needs: Needs, due: Due | None = None) -> Loaded:
        backend = self._backend
        if self._connection is None:
            self._connection = await backend.begin()
            self._loaded.totals, self._loaded.deadline = backend.totals, backend.deadline
        with store_errors(backend.path):
            await load(self._connection, needs, due, self._loaded, backend.replies, pacer())
        return self._loaded

    async def commit(self, changes: Changes) -> None:
        assert self._connection is not None
        self._ending = True
        if changes.is_empty:
            self._backend.deadline = self._loaded.deadline
            self._backend.end()
        else:
            await self._backend.unbroken(self._commit(self._connection, changes))

    async def _commit(self, connection: sqlite3.Connection, changes: Changes) -> None:
        backend = self._backend
        try:
            with store_errors(backend.path):
                written = await storing.write(connection, changes, self._loaded, backend.replies, pacer())
                await backend.commit(written)
        finally:
            backend.end()

    async def rollback(self) -> None:
        if self._connection is not None and not self._ending:
            self._ending = True
            self._backend.end()


class _Snapshot(Snapshot):
    """A read transaction. Look-ups run on the event loop, where they take some microseconds; long lists in a thread."""

    __slots__ = ("_backend", "_reader", "_reading")

    _reader: Reader

    def __init__(self, backend: SqliteBackend) -> None:
        self._backend = backend
        self._reading: Future[Any] | None = None

    async def __aenter__(self) -> _Snapshot:
        self._reader = await self._backend.take_reader()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give the connection back, when nothing reads on it any more."""
        give_back, reading_still = self._backend.readers.give_back, self._reading
        if reading_still is None or reading_still.done():
            give_back(self._reader)
            return
        self._reader.connection.interrupt()
        loop = asyncio.get_running_loop()

        def end(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(give_back, self._reader)

        reading_still.add_done_callback(end)

    def _read(self, read: Callable[..., T], *arguments: Any) -> T:
        try:
            return read(self._reader.connection, *arguments)
        except sqlite3.Error as error:
            self._backend.readers.part(self._reader)
            raise as_store_error(error, self._backend.path) from error

    async def _read_in_thread(self, read: Callable[..., T], *arguments: Any) -> T:
        self._backend.readers.part(self._reader)
        future = self._reading = self._backend.read_in_thread(lambda: self._read(read, *arguments))
        return await asyncio.shield(asyncio.wrap_future(future))

    async def has_due(self, due: Due) -> bool:
        return self._read(reading.has_due, due, self._backend.deadline)

    async def rollouts(self, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
        return self._read(reading.rollouts, rollout_ids)

    async def groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        return self._read(reading.groups, group_ids)

    async def consumed(self, consumer: str, rollout_ids: Sequence[str]) -> set[str]:
        found: set[str] = self._read(reading.consumed, consumer, rollout_ids)
        return found

    async def marks(self, rollout_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        return await self._read_in_thread(reading.marks, rollout_ids)

    async def checkpoints(self) -> list[CheckpointRecord]:
        return await self._read_in_thread(reading.checkpoints)

    async def admissions(self) -> list[AdmissionRecord]:
        return await self._read_in_thread(reading.admissions)

    async def open_groups(self, run: str) -> Sequence[OpenGroup]:
        return await self._read_in_thread(rows.open_groups, run)

    async def resources(self, resources_id: str | None) -> ResourcesRecord | None:
        return self._read(reading.resources, resources_id)

    async def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        return self._read(newest_resources, run)

    async def worker(self, worker_id: str) -> WorkerRecord | None:
        return self._read(reading.worker, worker_id)

    async def query_rollouts(self, query: RolloutQuery) -> Rows[RolloutRow]:
        return await self._read_in_thread(reading.query_rollouts, query)

    async def query_attempts(self, query: AttemptQuery) -> Rows[AttemptRecord]:
        return await self._read_in_thread(reading.query_attempts, query)

    async def query_spans(self, query: SpanQuery) -> Rows[SpanRecord]:
        if self._read(reading.span_bytes, query.rollout_id) <= LOOK_UP_BYTES_MAX:
            return self._read(reading.query_spans, query)
        return await self._read_in_thread(reading.query_spans, query)

    async def query_many_spans(
        self, query: SpanBatchQuery, attempts: Sequence[tuple[str, str | None]]
    ) -> Rows[SpanRecord]:
        return await self._read_in_thread(reading.query_many_spans, query, attempts)

    async def query_resources(self, query: ResourcesQuery) -> Rows[ResourcesRecord]:
        return await self._read_in_thread(reading.query_resources, query)

    async def query_workers(self, query: WorkerQuery) -> Rows[WorkerRecord]:
        return await self._read_in_thread(reading.query_workers, query)

    async def completions(self, after: int, limit: int) -> list[CompletionRow]:
        return self._read(reading.completions, after, limit)

    async def unconsumed(self, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
        return self._read(reading.unconsumed, consumer, after, look, limit)

    async def last_completion(self) -> int:
        return self._read(reading.last_completion)

    async def next_deadline(self) -> float | None:
        return self._read(next_deadline)

    async def placed_rollouts(self, after: int, limit: int) -> list[PlacedRollout]:
        return await self._read_in_thread(reading.placed_rollouts, after, limit)

    async def counts(self) -> Counts:
        totals: Totals = self._read(rows.read_totals)
        return totals.counts

    async def queue_counts(self) -> QueueCounts:
        counts: QueueCounts = self._read(reading.queue_counts)
        return counts
