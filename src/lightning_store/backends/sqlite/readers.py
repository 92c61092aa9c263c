"""The connections that read: one for each list, one for all look-ups of a turn of the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from lightning_store.backends.sqlite.file import open_reader

READERS_MAX: Final = 16
"""Read transactions that are open at a time; more wait."""


class Reader:
    """A connection in a read transaction, and how many snapshots see the data through it."""

    __slots__ = ("connection", "is_over", "pool", "snapshots")

    def __init__(self, connection: sqlite3.Connection, pool: list[sqlite3.Connection]) -> None:
        self.connection = connection
        self.pool = pool
        """Where the connection goes when it is not needed."""
        self.snapshots = 0
        self.is_over = False


class Readers:
    """The read transactions of one database.

    To begin and end one costs more than a look-up in it. So the look-ups of one turn of the event loop share one. A
    snapshot that reads in a thread has it to itself from then on. None stays open when nothing is read: it would keep
    the write-ahead log from being emptied.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._places = asyncio.Semaphore(READERS_MAX)
        self._idle: list[sqlite3.Connection] = []
        self._shared: Reader | None = None

    async def take(self) -> Reader:
        """A read transaction that sees everything committed; ``give_back`` it. May raise sqlite3.Error."""
        reader = self._shared or await self._begin()
        reader.snapshots += 1
        return reader

    async def _begin(self) -> Reader:
        await self._places.acquire()
        if (others := self._shared) is not None:
            self._places.release()
            return others
        connection = None
        try:
            connection = self._idle.pop() if self._idle else open_reader(self._path)
            connection.execute("BEGIN")
        except BaseException:
            if connection is not None:
                connection.close()
            self._places.release()
            raise
        self._shared = Reader(connection, self._idle)
        return self._shared

    def give_back(self, reader: Reader) -> None:
        """End it in the next turn of the event loop, unless others use it then."""
        reader.snapshots -= 1
        if not reader.snapshots:
            asyncio.get_running_loop().call_soon(self._end_unless_used, reader)

    def part(self, reader: Reader) -> None:
        """Let no further snapshot share it. Those that do, if any, wait while a statement runs on it in a thread."""
        if reader is self._shared:
            self._shared = None

    def renew(self) -> None:
        """Have snapshots from now on see what has been committed meanwhile."""
        self._shared = None

    def _end_unless_used(self, reader: Reader) -> None:
        if reader.snapshots or reader.is_over:
            return
        self.part(reader)
        reader.is_over = True
        connection = reader.connection
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if reader.pool is self._idle:
                self._idle.append(connection)
            else:
                connection.close()
        except sqlite3.Error:
            connection.close()
        finally:
            self._places.release()

    def close(self) -> None:
        """Close what is open; what snapshots still use, when they give it back. Others may follow."""
        idle, self._idle = self._idle, []
        if self._shared is not None:
            self._end_unless_used(self._shared)
        for connection in idle:
            connection.close()

    @asynccontextmanager
    async def none_open(self) -> AsyncIterator[None]:
        """No read transaction is open inside. Those that are, end first; others wait."""
        taken = 0
        try:
            for _ in range(READERS_MAX):
                await self._places.acquire()
                taken += 1
            yield
        finally:
            for _ in range(taken):
                self._places.release()
