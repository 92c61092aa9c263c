"""What other servers do on the same data: each follows the log, and is notified that there is something new in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

from asyncpg import Connection

from lightning_store.backends.base import Elsewhere
from lightning_store.backends.postgres.connections import Settings, close
from lightning_store.backends.postgres.errors import as_store_error
from lightning_store.backends.postgres.membership import BEAT_SECONDS, Membership
from lightning_store.backends.postgres.text import plain

logger = logging.getLogger(__name__)

NOTIFY_SECONDS: Final = 0.01
"""A server notifies the others so often at the most: each notification takes a lock on the whole database."""
POLL_SECONDS: Final = 0.1
"""How often it looks without a notification."""
PATIENCE_SECONDS: Final = 1.0
"""After so long without an answer a connection is replaced: one that died silently does not say so."""
SLOWNESS: Final = 4
"""A database that is slow to answer gets so many times as long as it took the last time."""
RECONNECT_SECONDS: Final = 0.5
STOP_SECONDS: Final = 0.2
ROWS_AT_ONCE: Final = 500


class Follower:
    """Reads the log as it grows.

    Args:
        settings: How to reach the database.
        server: Whose own rows are passed over.
        after: The id of the last row that is known.
        membership: What the server is kept in meanwhile.
    """

    def __init__(self, settings: Settings, server: str, after: int, membership: Membership) -> None:
        self._settings = settings
        self._membership = membership
        self._server = server
        self._after = after
        self._tell: Callable[[Elsewhere], None] | None = None
        self._notifying = False
        self._notified = False
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._monotonic = asyncio.get_running_loop().time
        self._answered_at = self._monotonic()
        self._patience = PATIENCE_SECONDS
        self._failures = 0
        """How often it failed since the database answered."""
        self._reachable = True
        """A new connection to the database was not refused, and it answered within the time that a statement may
        take."""
        self._turned = asyncio.Event()
        """Set, and replaced, when ``available`` may have changed."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def follow(self, tell: Callable[[Elsewhere], None]) -> None:
        self._tell = tell

    @property
    def available(self) -> bool:
        """Whether the database can be reached, and serves this server."""
        return self._reachable and self._membership.refused is None

    async def wait_for(self, available: bool) -> None:
        """Return when ``available`` is this."""
        while self.available is not available:
            await self._turned.wait()

    def notify(self) -> None:
        """Have the other servers look, soon."""
        self._notifying = True
        self._something.set()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._stopped = True
            while not task.done():  # a cancellation may be lost to something that comes at the same time
                task.cancel()
                await asyncio.wait([task], timeout=STOP_SECONDS)

    async def _run(self) -> None:
        """Follow on one connection after the other. The first that breaks is replaced at once."""
        while not self._stopped:
            connection: Connection | None = None
            try:
                connection = await self._settings.connect()
                async with asyncio.timeout(self._patience):
                    await self._listen(connection)
                await self._follow(connection)
            except Exception as error:
                self._note_failure(error)
            finally:
                if connection is not None:
                    connection.terminate() if self._failures else await close(connection)
            if self._failures > 1:
                await asyncio.sleep(RECONNECT_SECONDS)

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        if isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError):
            timeout = self._settings.statement_timeout
            self._patience = min(2 * self._patience, timeout)
            if self._monotonic() - self._answered_at < timeout:
                return  # it may be slow
        elif self._failures == 1:
            return  # the connection is gone, which says nothing of the database
        if self._reachable:
            logger.warning("The database is gone: %s", as_store_error(error))
            self._reachable = False
            self._turn()

    def _note_answer(self, asked_at: float) -> None:
        self._failures = 0
        self._answered_at = self._monotonic()
        self._patience = max(PATIENCE_SECONDS, SLOWNESS * (self._answered_at - asked_at))
        if not self._reachable:
            logger.warning("The database is back")
            self._reachable = True
            self._turn()

    def _turn(self) -> None:
        self._turned.set()
        self._turned = asyncio.Event()

    async def _listen(self, connection: Connection) -> None:
        """Poolers that give each transaction another connection do not deliver notifications; polling goes on."""
        own = connection.get_server_pid()

        def note(_: Any, pid: int, *__: Any) -> None:
            if pid != own:
                self._notified = True
                self._something.set()

        await connection.add_listener(self._settings.schema, note)

    async def _follow(self, connection: Connection) -> None:
        monotonic = self._monotonic
        looked_at = -POLL_SECONDS
        beat_at = -BEAT_SECONDS
        while not self._stopped:
            if monotonic() - beat_at >= BEAT_SECONDS:
                beat_at = monotonic()
                async with asyncio.timeout(self._patience):
                    await self._membership.beat(connection)
                self._turn()
            if self._notifying:
                self._notifying = False
                async with asyncio.timeout(self._patience):
                    await connection.execute("SELECT pg_notify($1, '')", self._settings.schema)
            if self._notified or monotonic() - looked_at >= POLL_SECONDS:
                self._notified = False
                looked_at = monotonic()
                await self._look(connection)
            await asyncio.sleep(NOTIFY_SECONDS)
            if not self._notifying and not self._notified:
                self._something.clear()
                left = POLL_SECONDS - (monotonic() - looked_at)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._something.wait(), max(0.0, left))

    async def _look(self, connection: Connection) -> None:
        while True:
            asked_at = self._monotonic()
            async with asyncio.timeout(self._patience):
                found = await connection.fetch(
                    f"SELECT id, server, ended, deleted, queued, deadline FROM {self._settings.schema}.log"
                    f" WHERE id > $1 ORDER BY id LIMIT {ROWS_AT_ONCE}",
                    self._after,
                )
            missed = not self._reachable or bool(found and found[0][0] > self._after + 1)
            self._note_answer(asked_at)
            others = [row for row in found if row[1] != self._server]
            if found:
                self._after = found[-1][0]
            if self._tell is not None and (others or missed):
                deadlines = [row[5] for row in others if row[5] is not None]
                self._tell(
                    Elsewhere(
                        ended=[plain(one) for row in others for one in row[2]],
                        deleted=[plain(one) for row in others for one in row[3]],
                        queued=sum(row[4] for row in others),
                        deadline=min(deadlines, default=None),
                        missed=missed,
                    )
                )
            if len(found) < ROWS_AT_ONCE:
                return
