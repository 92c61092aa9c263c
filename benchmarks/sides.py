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
    """Whether its server keeps its data in a database."""
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
            database: The file of its data, if it keeps them in a file.
        """
        address = ["--host", HOST, "--port", str(port)]
        if self.family == "lightning_store":
            kept = ["--database", f"sqlite:{database}"] if self.is_durable else []
            return ["lightning_store_server", "serve", *address, *kept, *self.flags, "--log-level", "warning"]
        return ["agentlightning.cli.store", *address, "--log-level", "WARNING"]

    @property
    def health_path(self) -> str:
        """What answers 200 once a server that prints nothing takes calls."""
        return "/v1/agl/health"


def sides(base: Path | None, flags: Sequence[str] = ()) -> dict[str, Side]:
    """All sides that can be measured, by name; ``base`` is the checkout that is the side of that name, and ``flags``
    are what another one adds to ours: flags of ``serve``, behind variables for all its processes, as in a shell."""
    known = [
        Side(OURS, "lightning-store-grpc", "lightning_store"),
        Side(SQLITE, "lightning-store-grpc on SQLite", "lightning_store", is_durable=True),
        Side(PEER, "Agent Lightning", "agentlightning"),
    ]
    if base is not None:
        known.append(Side(BASE, f"lightning-store-grpc of {base.name}", "lightning_store", base.resolve()))
    if flags:
        of_serve = tuple(dropwhile(lambda word: _ASSIGNMENT.fullmatch(word) is not None, flags))
        variables = dict(word.split("=", 1) for word in flags[: len(flags) - len(of_serve)])
        title = f"lightning-store-grpc {' '.join(of_serve)}"
        known.append(Side(FLAGS, title, "lightning_store", flags=of_serve, variables=variables))
    return {side.name: side for side in known}
