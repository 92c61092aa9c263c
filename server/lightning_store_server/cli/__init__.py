"""The command ``lightning-store-grpc``. Its packages come with the extra ``server``."""

from __future__ import annotations

import importlib
import os
import sys
from io import TextIOWrapper
from typing import Final

PROGRAM: Final = "lightning-store-grpc"
PACKAGES: Final = ("click", "rich")
"""What the command needs beyond a base install."""


def main() -> None:
    """Run the command that ``sys.argv`` holds, and exit with its code; 2 where the extra is not installed."""
    try:
        for package in PACKAGES:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        sys.stderr.write(
            f"{PROGRAM} needs the package {error.name}, of its extra server: pip install {' '.join(PACKAGES)}\n"
        )
        sys.exit(2)
    # gRPC's core logs in a form of its own, to stderr; what it says also comes as an error, which is logged properly.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from lightning_store_server.cli.root import root

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode still shows stored text
    root(prog_name=PROGRAM)
