"""PgBouncer in transaction mode before a PostgreSQL server: each transaction may get another connection."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tools.postgres_server import PostgresServer

PORT = 6432

_SETTINGS = """
[databases]
postgres = host={folder} user={user}
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


def program() -> str:
    """PgBouncer, which Debian keeps where only administrators look. Skips the test if there is none."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("needs PgBouncer (Debian, Ubuntu: apt install pgbouncer)")
    return found


@contextmanager
def bouncer_to(postgres: PostgresServer) -> Iterator[str]:
    """The address of a database behind one. A client that connects before it listens has to try again."""
    settings = Path(postgres.folder) / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(folder=postgres.folder, user=postgres.user, port=PORT))
    command = postgres.demoted([program(), "-q", str(settings)])
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"postgresql://{postgres.user}@/postgres?host={postgres.folder}&port={PORT}"
    finally:
        running.terminate()
        running.wait()
        with suppress(FileNotFoundError):
            settings.unlink()
