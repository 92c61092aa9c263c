"""Who serves a namespace: a server is a member while it is alive, and all members decide by the same rules."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from copy import copy
from typing import Any, Final

from asyncpg import Connection

from lightning_store.backends.postgres.connections import Settings
from lightning_store.backends.postgres.errors import store_errors
from lightning_store.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 5.0
"""How often a server says that it is alive."""
GONE_SECONDS: Final = 20.0
"""One that has not said so for longer is taken as gone."""
FLAGS: Final = {
    "strict": "--strict",
    "final_outcomes": "--final-outcomes",
    "fence_attempts": "--fence-attempts",
    "worker_timeout_seconds": "--worker-timeout",
    "worker_retention_seconds": "--retain-workers",
    "retain_finished_seconds": "--retain-finished",
    "retain_finished_count": "--retain-finished",
    "retain_for": "--retain-for",
    "drop_spans": "--drop-spans",
    "replay_window_seconds": "--replay-window",
    "replay_entries_max": "--replay-entries-max",
}
"""What ``serve`` calls each rule."""
SELECT_MEMBERS: Final = "SELECT server FROM servers"
_NOW: Final = "extract(epoch FROM clock_timestamp())::float8"


async def alive(connection: Connection) -> list[str]:
    """The servers of the namespace to which the connection is set, as people name them."""
    statement = f"SELECT name FROM servers WHERE seen_at >= {_NOW} - $1 ORDER BY name"
    return [name for (name,) in await connection.fetch(statement, GONE_SECONDS)]


class Membership:
    """That of one server.

    Each transaction that writes looks, under the lock of the namespace, whether its server is a member still (`load`).
    So a server that was taken as gone, because it stood still, changes nothing by rules that others have replaced.

    Args:
        settings: How to reach the database.
        server: The id of this server.
        rules: What it decides by, as JSON has it, without what is left at its default.
    """

    def __init__(self, settings: Settings, server: str, rules: Mapping[str, Any]) -> None:
        self._settings = settings
        self._server = server
        self._table = f"{settings.schema}.servers"
        self.rules = dict(rules)
        self.refused: StoreUnavailableError | None = None
        """Why it is no member any more: others that are alive decide by other rules."""

    async def admit(self, connection: Connection, members: set[str]) -> None:
        """Let a transaction that writes go on if its server is a member, or can be one again.

        Args:
            connection: In that transaction, with the lock of the namespace.
            members: Those that the database has; this server is among them afterwards.

        Raises:
            StoreUnavailableError: Others decide by other rules.
        """
        if self._server not in members:
            with store_errors():
                await self._enter(connection)
            members.add(self._server)
        self.refused = None

    def admit_reader(self) -> None:
        """The same for a snapshot, which asks nobody.

        Raises:
            StoreUnavailableError: As above.
        """
        if self.refused is not None:
            raise copy(self.refused)

    @staticmethod
    async def members(connection: Connection) -> set[str]:
        """Those that the database has, in the open transaction."""
        return {server for (server,) in await connection.fetch(SELECT_MEMBERS)}

    async def join(self, connection: Connection, *, adopt: bool = False) -> None:
        """Become a member.

        Args:
            connection: In no transaction.
            adopt: Decide by the rules of the others, if there are any; ``rules`` has them then.

        Raises:
            StoreUnavailableError: Others that are alive decide by other rules.
        """
        with store_errors():
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(self._settings.lock)
                await self._enter(connection, adopt=adopt)
        self.refused = None

    async def beat(self, connection: Connection) -> None:
        """Say that this server is alive."""
        said = await connection.execute(f"UPDATE {self._table} SET seen_at = {_NOW} WHERE server = $1", self._server)
        if said == "UPDATE 1":
            return
        was_refused = self.refused is not None
        try:
            await self.join(connection)
        except StoreUnavailableError as error:
            if self.refused is None:
                raise
            if not was_refused:
                logger.error("This server was taken as gone, and can do nothing now: %s", error)
            return
        logger.warning("This server was taken as gone, and goes on")

    async def leave(self, connection: Connection) -> None:
        """Be a member no more."""
        await connection.execute(f"DELETE FROM {self._table} WHERE server = $1", self._server)

    async def _enter(self, connection: Connection, *, adopt: bool = False) -> None:
        """Become a member, under the lock of the namespace."""
        await connection.execute(f"DELETE FROM {self._table} WHERE seen_at < {_NOW} - $1", GONE_SECONDS)
        others = await connection.fetch(
            f"SELECT name, rules, {_NOW} - seen_at AS ago FROM {self._table} WHERE server <> $1 ORDER BY ago",
            self._server,
        )
        if adopt and others:
            self.rules = json.loads(others[0]["rules"])
        for other in others:
            theirs = json.loads(other["rules"])
            if theirs != self.rules:
                self.refused = self._refusal(other["name"], theirs, other["ago"])
                raise copy(self.refused)
        await connection.execute(
            f"INSERT INTO {self._table} VALUES ($1, $2, $3, {_NOW})"
            " ON CONFLICT (server) DO UPDATE SET rules = excluded.rules, seen_at = excluded.seen_at",
            self._server,
            f"process {os.getpid()} on {socket.gethostname()}",
            json.dumps(self.rules, sort_keys=True),
        )

    def _refusal(self, name: str, theirs: Mapping[str, Any], ago: float) -> StoreUnavailableError:
        rules = [rule for rule in sorted({*self.rules, *theirs}) if self.rules.get(rule) != theirs.get(rule)]
        differences = (
            f"{FLAGS.get(rule, rule)} is {_shown(self.rules.get(rule))} here, and {_shown(theirs.get(rule))} there"
            for rule in rules
        )
        return StoreUnavailableError(
            f"{name} serves the namespace {self._settings.namespace} by other rules: {'; '.join(differences)}. Give all"
            " servers of a namespace the same flags. To change them stop all servers first; one that was killed counts"
            f" as gone after {GONE_SECONDS:g} s, and this one was seen {max(0.0, ago):.1f} s ago",
            problem="in_use",
            field=rules[0],
            server=name,
        )


def _shown(value: Any) -> str:
    """A rule as people write it; one that is left at its default is off."""
    if value is None:
        return "off"
    if value is True:
        return "on"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
