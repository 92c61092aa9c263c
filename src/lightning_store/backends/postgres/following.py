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
from lightning_store.backends.postgres.text import plain

logger = logging.getLogger(__name__)

NOTIFY_SECONDS: Final = 0.01
"""A server notifies the others so often at the most: each notification takes a lock on the whole database."""
POLL_SECONDS: Final = 0.1
"""How often it looks without a notification."""
RECONNECT_SECONDS: Final = 0.5
STOP_SECONDS: Final = 0.2
ROWS_AT_ONCE: Final = 500


class Follower:
    """Reads the log as it grows.

    Args:
        settings: How to reach the database.
        server: Whose own rows are passed over.
        after: The id of the last row that is known.
    """

    def __init__(self, settings: Settings, server: str, after: int) -> None:
        self._settings = settings
        self._server = server
        self._after = after
        self._tell: Callable[[Elsewhere], None] | None = None
        self._notifying = False
        self._notified = False
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self.available = True
        """Whether the database answered the last time that it was asked."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def follow(self, tell: Callable[[Elsewhere], None]) -> None:
        self._tell = tell

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
        while not self._stopped:
            connection: Connection | None = None
            try:
                connection = await self._settings.connect()
                await self._listen(connection)
                await self._follow(connection)
            except Exception as error:
                if self.available:
                    logger.warning("The database is gone: %s", as_store_error(error))
                self.available = False
            finally:
                if connection is not None:
                    connection.terminate() if not self.available else await close(connection)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self, connection: Connection) -> None:
        """Poolers that give each transaction another connection do not deliver notifications; polling goes on."""
        own = connection.get_server_pid()

        def note(_: Any, pid: int, *__: Any) -> None:
            if pid != own:
                self._notified = True
                self._something.set()

        await connection.add_listener(self._settings.schema, note)

    async def _follow(self, connection: Connection) -> None:
        monotonic = asyncio.get_running_loop().time
        looked_at = -POLL_SECONDS
        while not self._stopped:
            if self._notifying:
                self._notifying = False
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
            found = await connection.fetch(
                f"SELECT id, server, ended, deleted, queued, deadline FROM {self._settings.schema}.log"
                f" WHERE id > $1 ORDER BY id LIMIT {ROWS_AT_ONCE}",
                self._after,
            )
            missed = not self.available or bool(found and found[0][0] > self._after + 1)
            if not self.available:
                logger.warning("The database is back")
                self.available = True
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
