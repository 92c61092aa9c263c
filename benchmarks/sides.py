"""The sides that are compared: which server each starts, and which client drives it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import Final

from benchmarks.records import PROJECT_ROOT
from benchmarks.stores import Family

OURS: Final = "ours"
SQLITE: Final = "sqlite"
"""Ours with its data in a SQLite database, acknowledged after the commit is on disk."""
POSTGRES: Final = "postgres"
"""Ours with its data in a PostgreSQL database."""
HELD: Final = "postgres-held"
"""The same in a database where somebody holds a transaction open."""
PAIR: Final = "postgres-pair"
"""The same with two servers on one namespace."""
PEER: Final = "peer"
BASE: Final = "base"
FLAGS: Final = "flags"
"""Ours with further flags of ``serve``."""
BASELINE: Final = "baseline"
"""Not a side that is measured, but ours of an earlier results file."""

HOST: Final = "127.0.0.1"
_ASSIGNMENT: Final = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True, slots=True)
class Side:
    """One implementation, in all its processes."""

    name: str
    title: str
    family: Family
    source: Path | None = None
    """A checkout of ours whose packages are used instead of the installed ones."""
    is_durable: bool = False
    """Whether its server keeps its data in a SQLite database."""
    dsn: str | None = None
    """The PostgreSQL database in which its server keeps its data, in a namespace of its own."""
    flags: Sequence[str] = ()
    """Further flags of ``serve``."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Further variables of its processes."""

    @property
    def paths(self) -> list[Path]:
        """What goes to the front of PYTHONPATH; the last one is where ``benchmarks`` is."""
        if self.source is None:
            return [PROJECT_ROOT]
        return [self.source / "src", self.source / "server", self.source / "clients/python", PROJECT_ROOT]

    @property
    def says_when_ready(self) -> bool:
        """Whether the server prints a line when it takes calls; otherwise it is asked over and over."""
        return self.family == "lightning_store"

    def server_module(self, port: int, database: Path) -> Sequence[str]:
        """The server's own command line, behind ``python -m``. It logs warnings alone, on both sides.

        Args:
            port: Where it listens; 0 for any free port, if it says which.
            database: The file of its data, if it keeps them in a file; else what its namespace is named after.
        """
        address = ["--host", HOST, "--port", str(port)]
        if self.family == "lightning_store":
            kept = ["--database", f"sqlite:{database}"] if self.is_durable else []
            if self.dsn is not None:
                kept = ["--database", self.dsn, "--namespace", _namespace(database)]
            return ["lightning_store_server", "serve", *address, *kept, *self.flags, "--log-level", "warning"]
        return ["agentlightning.cli.store", *address, "--log-level", "WARNING"]

    @property
    def health_path(self) -> str:
        """What answers 200 once a server that prints nothing takes calls."""
        return "/v1/agl/health"


def _namespace(database: Path) -> str:
    """One for each server of each run, which has a folder named after its time."""
    name = f"{database.parent.name.partition('-')[0]}_{database.stem.removeprefix('server-')}"
    return re.sub("[^a-z0-9]", "_", name.lower())[-40:]


def sides(base: Path | None, flags: Sequence[str] = (), dsn: str | None = None) -> dict[str, Side]:
    """All sides that can be measured, by name; ``base`` is the checkout that is the side of that name, and ``flags``
    are what another one adds to ours: flags of ``serve``, behind variables for all its processes, as in a shell.
    ``dsn`` is the database of the side on PostgreSQL."""
    known = [
        Side(OURS, "lightning-store-grpc", "lightning_store"),
        Side(SQLITE, "lightning-store-grpc on SQLite", "lightning_store", is_durable=True),
        Side(PEER, "Agent Lightning", "agentlightning"),
    ]
    if dsn is not None:
        known.append(Side(POSTGRES, "lightning-store-grpc on PostgreSQL", "lightning_store", dsn=dsn))
    if base is not None:
        known.append(Side(BASE, f"lightning-store-grpc of {base.name}", "lightning_store", base.resolve()))
    if flags:
        of_serve = tuple(dropwhile(lambda word: _ASSIGNMENT.fullmatch(word) is not None, flags))
        variables = dict(word.split("=", 1) for word in flags[: len(flags) - len(of_serve)])
        title = f"lightning-store-grpc {' '.join(of_serve)}"
        known.append(Side(FLAGS, title, "lightning_store", flags=of_serve, variables=variables))
    return {side.name: side for side in known}
