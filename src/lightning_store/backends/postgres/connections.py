"""Connections to a database: how one is opened, and a few that are used in turn."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg import Connection

from lightning_store.backends.postgres.errors import as_store_error, breaks_connection
from lightning_store.errors import InvalidArgumentError, StoreUnavailableError

T = TypeVar("T")

APPLICATION: Final = "lightning-store-grpc"
PLANNED_FREELY: Final = (
    "SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on; SET LOCAL enable_indexonlyscan = on;"
    " SET LOCAL plan_cache_mode = force_custom_plan"
)
"""For statements that may read most of a table, by values of which some are rare and others are not."""
_NAMESPACE: Final = re.compile("[a-z0-9_]{1,40}")
_TLS_FILES: Final = ("sslrootcert", "sslcrl", "sslkey", "sslcert")
"""Parameters of a URL that name files; PGSSLROOTCERT and the like do so where it does not."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach a database, and how long to wait for it.

    Args:
        dsn: As libpq takes it, ``postgresql://HOST/DATABASE``. What it does not say comes from the environment and from
            the file of passwords.
        namespace: Which store in the database.
        statement_timeout: After how long a statement is given up, in seconds.
        lock_timeout: After how long one that waits for another server is, in seconds.
        statement_cache_size: How many statements a connection keeps prepared; 0 for a pooler that gives each
            transaction another connection and does not know prepared statements.
    """

    dsn: str
    namespace: str
    statement_timeout: float
    lock_timeout: float
    statement_cache_size: int

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            message = f"namespace is {self.namespace!r}; give 1 to 40 of a-z, 0-9 and _"
            raise InvalidArgumentError(message, field="namespace")
        for name in ("statement_timeout", "lock_timeout"):
            if not 0 < getattr(self, name) <= 86400:
                raise InvalidArgumentError(f"{name} is {getattr(self, name)}; give seconds, up to a day", field=name)

    @property
    def schema(self) -> str:
        return f"lightning_store_{self.namespace}"

    @property
    def lock(self) -> str:
        """Takes the lock of the namespace, until the transaction ends."""
        return f"SELECT pg_advisory_xact_lock(hashtextextended('{self.schema}', 0))"

    def missing(self) -> InvalidArgumentError:
        """Says that the database has no such namespace."""
        message = f"the database has no namespace {self.namespace}: there is no schema {self.schema} with a store"
        return InvalidArgumentError(message, field="namespace", problem="missing")

    @property
    def _local(self) -> str:
        """Settings of a transaction, whose statements look rows up by their keys, however little the planner knows of
        the tables yet."""
        milliseconds = round(self.statement_timeout * 1000)
        return (
            f"SET LOCAL search_path = {self.schema}; SET LOCAL statement_timeout = {milliseconds};"
            f" SET LOCAL idle_in_transaction_session_timeout = {milliseconds}; SET LOCAL jit = off;"
            " SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_indexonlyscan = off;"
            " SET LOCAL plan_cache_mode = force_generic_plan;"
        )

    @property
    def begin(self) -> str:
        """Begins a transaction that writes, alone in its namespace."""
        return (
            f"BEGIN ISOLATION LEVEL READ COMMITTED; {self._local}"
            f" SET LOCAL lock_timeout = {round(self.lock_timeout * 1000)}; {self.lock}"
        )

    @property
    def begin_snapshot(self) -> str:
        return f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {self._local[:-1]}"

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            StoreUnavailableError: The database cannot be reached.
        """
        try:
            connection: Connection = await asyncpg.connect(
                self.dsn,
                timeout=self.lock_timeout,  # pyright: ignore[reportArgumentType]  # declared as whole seconds, taken as any
                command_timeout=self.statement_timeout + self.lock_timeout,
                statement_cache_size=self.statement_cache_size,
                max_cached_statement_lifetime=0,
                server_settings={"application_name": APPLICATION},
            )
        except OSError as error:  # also a certificate that is not valid, which is a ValueError too
            is_of_file = isinstance(error, ssl.SSLError | FileNotFoundError | PermissionError)
            unusable = unusable_tls_file(self.dsn) if is_of_file else None
            if unusable is not None:
                raise StoreUnavailableError(f"the database cannot be reached: {unusable}") from error
            raise as_store_error(error) from error
        except (asyncpg.ClientConfigurationError, ValueError) as error:
            raise InvalidArgumentError(f"the database cannot be reached so: {error}", field="database") from None
        except Exception as error:
            raise as_store_error(error) from error
        return connection


def unusable_tls_file(dsn: str) -> str | None:
    """Which of the files for TLS cannot be used, and why, which the error of a connection does not tell; None if all
    can."""
    query = parse_qs(urlsplit(dsn).query)
    paths = {name: query.get(name, [os.environ.get(f"PG{name.upper()}", "")])[-1] for name in _TLS_FILES}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    password = query.get("sslpassword", [""])[-1]
    for name, path in paths.items():
        try:
            if not path:
                continue
            if name in ("sslrootcert", "sslcrl"):
                context.load_verify_locations(path)
            elif name == "sslcert":
                context.load_cert_chain(path, paths["sslkey"] or None, lambda: password)
            else:
                open(path).close()
        except OSError as error:
            named = f"{name}={path}" + (f" with sslkey={paths['sslkey']}" if name == "sslcert" else "")
            return f"{named} cannot be used: {error}"
    return None


async def close(connection: Connection) -> None:
    """Whatever state it is in, without waiting long."""
    try:
        await connection.close(timeout=1)
    except Exception:
        connection.terminate()


class Connections:
    """Some connections, which callers use in turn, each in a transaction of its own.

    Args:
        settings: How to open one.
        size: How many are open at a time.
        begin: What begins a transaction.
    """

    def __init__(self, settings: Settings, size: int, begin: str) -> None:
        self._settings = settings
        self._begin = begin
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._closed = False

    async def begin(self) -> Connection:
        """A connection with a transaction that has begun; ``end`` it.

        Raises:
            StoreError: The database cannot be reached.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("a store in PostgreSQL is for the event loop on which it was opened")
        await self._turns.acquire()
        connection: Connection | None = None
        try:
            while True:
                if self._closed:
                    raise StoreUnavailableError("the store was closed")
                idle = bool(self._idle)
                connection = self._idle.pop() if idle else await self._settings.connect()
                try:
                    await connection.execute(self._begin)
                except Exception as error:
                    connection.terminate()
                    if idle and breaks_connection(error):
                        continue  # it broke while nobody used it: the others may have, too
                    raise as_store_error(error) from error
                return connection
        except BaseException:
            if connection is not None:
                connection.terminate()
            self._turns.release()
            raise

    async def end(self, connection: Connection, *, broken: bool = False) -> None:
        """Undo what is not committed, and give the connection back."""
        try:
            if not (broken or self._closed or connection.is_closed()) and connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            if broken or self._closed or connection.is_closed():  # it may have been closed meanwhile
                connection.terminate()
            else:
                self._idle.append(connection)
        except BaseException:
            connection.terminate()
        finally:
            self._turns.release()

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await close(connection)


class Tasks:
    """Work that goes on when its caller is cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may be gone

    async def finish(self) -> None:
        """Wait for all that has begun."""
        while self._tasks:
            await asyncio.wait(self._tasks)
