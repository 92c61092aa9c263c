"""A proxy before PostgreSQL that counts what clients send, loses answers to COMMIT, is slow, and hangs."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

from tools.postgres_server import PostgresServer

_HEADER = 5
COMMIT = b"COMMIT\0"
LISTEN = b"\0LISTEN "


class PostgresProxy:
    """Hands on what a client sends, a message at a time."""

    def __init__(self, server: PostgresServer, folder: str) -> None:
        self._server = server
        self._folder = folder
        self.dsn = f"postgresql://{server.user}@/postgres?host={folder}"
        self.sent: Counter[str] = Counter()
        """How many messages of each type clients have sent: "S" is Sync, "Q" a simple query."""
        self.lost_commits = 0
        """Of how many COMMITs to come the answer is lost, whose connection is then cut."""
        self.open = asyncio.Event()
        """Cleared, it hands nothing on, in either direction."""
        self.open.set()
        self.delay_seconds = 0.0
        """How late answers come, each time that the database sends some."""
        self.listeners: set[asyncio.StreamReader] = set()
        """The connections that are open and listen to notifications."""
        self.silent: set[asyncio.StreamReader] = set()
        """Connections that stay open, and on which nothing comes from the database any more."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def path(self) -> str:
        return os.path.join(self._folder, ".s.PGSQL.5432")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._server.socket_path)
        except OSError:
            writer.close()
            self._tasks.discard(task)
            return
        down = asyncio.create_task(self._answers(reader, up_reader, writer))
        try:
            await self._requests(reader, up_writer, down)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            down.cancel()
            await asyncio.wait([down])
            for each in (writer, up_writer):
                each.transport.abort()
            self.listeners.discard(reader)
            self._tasks.discard(task)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: asyncio.Task[None]
    ) -> None:
        length = await reader.readexactly(4)  # the first message has no type
        writer.write(length + await reader.readexactly(int.from_bytes(length, "big") - 4))
        while True:
            header = await reader.readexactly(_HEADER)
            body = await reader.readexactly(int.from_bytes(header[1:], "big") - 4)
            await self.open.wait()
            kind = chr(header[0])
            self.sent[kind] += 1
            if kind == "P" and LISTEN in body:
                self.listeners.add(reader)
            if kind == "Q" and body == COMMIT and self.lost_commits:
                self.lost_commits -= 1
                answers.cancel()
                writer.write(header + body)
                await writer.drain()
                writer.write(b"X\0\0\0\4")  # it reads on after the COMMIT, and ends
                await writer.drain()
                return
            writer.write(header + body)
            await writer.drain()

    async def _answers(
        self, of: asyncio.StreamReader, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(1 << 16):
            await self.open.wait()
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if of in self.silent:
                continue
            writer.write(data)
            await writer.drain()
        writer.close()

    async def close(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@asynccontextmanager
async def proxy_to(server: PostgresServer) -> AsyncIterator[PostgresProxy]:
    with TemporaryDirectory(prefix="pp-", dir="/tmp") as folder:
        proxy = PostgresProxy(server, folder)
        listener = await asyncio.start_unix_server(proxy.connected, proxy.path)
        try:
            yield proxy
        finally:
            listener.close()
            await proxy.close()
