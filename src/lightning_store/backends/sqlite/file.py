"""The database's file: who has it open, its format, and connections to it.

There is exactly one connection that writes, in one process: SQLite up to 3.51.2 can damage a database in WAL mode when
two connections write or checkpoint at once. All others only read.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from lightning_store.backends.sqlite.errors import DAMAGED, IN_USE, opening_errors, problem_of
from lightning_store.errors import InvalidArgumentError, StoreUnavailableError, UnsupportedError
from lightning_store.ids import new_hex
from lightning_store.labels import has_members

Durability: TypeAlias = Literal["full", "normal"]
"""What an acknowledged call survives: "full" a loss of power, "normal" the end of the process."""

APPLICATION_ID: Final = 0x4C535447
"""In the file's header: whose format it is."""
PAGE_BYTES: Final = 8192
CACHE_KIB: Final = 64 * 1024
"""Pages that the writing connection keeps in memory."""
CHECKPOINT_PAGES: Final = 1000
"""Pages of the write-ahead log after which a COMMIT copies them into the database. Rarer ones take longer."""
STATEMENTS: Final = 256
"""Prepared statements that a connection keeps."""
MARGIN_SHARE: Final = 8
"""One part in so many of its limit is what a database may grow beyond it: by reports and deletions, not by new data."""
READER_TIMEOUT_SECONDS: Final = 5.0

_open_paths: set[str] = set()
_opening: Final = threading.Lock()


class FileLock:
    """Makes this process the only one that has the database open, and this the only time that it has.

    Args:
        path: The database's.

    Raises:
        StoreUnavailableError: It is open already.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        with _opening:
            # A process has a lock of a file once: closing the file a second time would release it.
            if self._path in _open_paths:
                message = f"{path} is in use by this process already"
                raise StoreUnavailableError(message, path=path, problem=IN_USE)
            self._file = _locked(path)
            _open_paths.add(self._path)

    def release(self) -> None:
        """May be called more than once."""
        with _opening:
            if self._file is not None:
                os.close(self._file)
                self._file = None
                _open_paths.discard(self._path)


def _locked(path: str) -> int | None:
    import fcntl

    try:
        file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{path} cannot be opened: {error.strerror} ({error.filename})"
        raise StoreUnavailableError(message, path=path, problem=problem_of(error)) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(file, 32).decode("ascii", "replace").strip()
        os.close(file)
        message = f"{path} is in use by another process ({holder})"
        raise StoreUnavailableError(message, path=path, problem=IN_USE) from error
    os.truncate(file, 0)
    os.write(file, f"pid {os.getpid()}\n".encode())
    return file


def open_writer(path: str, durability: Durability, size_bytes_max: int | None) -> sqlite3.Connection:
    """The connection that writes. It makes the database if there is none, and brings an older one up to date.

    Args:
        path: The database's file.
        durability: When a COMMIT waits for the disk.
        size_bytes_max: How many bytes of it may be in use, with an eighth more for reports and deletions; None as many
            as the disk allows.

    Raises:
        InvalidArgumentError: The file is damaged, or something else.
        UnsupportedError: A newer version of the program has written it.
        StoreUnavailableError: It cannot be written.
    """
    if durability not in get_args(Durability):
        message = f"durability is {durability!r}; give one of {', '.join(get_args(Durability))}"
        raise InvalidArgumentError(message, field="durability")
    if not os.path.exists(path):
        _make_file(path)
    with opening_errors(path):
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS, timeout=0
        )
        try:
            check_format(connection, path)
            _configure(connection, durability)
            _migrate(connection)
            _limit(connection, size_bytes_max)
            connection.execute("BEGIN IMMEDIATE")  # an error for a file that can only be read
            connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            raise
    return connection


def open_reader(path: str) -> sqlite3.Connection:
    """A connection that only reads."""
    uri = f"{Path(path).absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS,
        timeout=READER_TIMEOUT_SECONDS,
    )
    connection.execute("PRAGMA query_only = ON")
    connection.create_function("has_members", 2, _has_members, deterministic=True)
    return connection


def _has_members(metadata_json: str | None, members: str) -> bool:
    return has_members(metadata_json, json.loads(members))


def _make_file(path: str) -> None:
    """So that nobody else can read it: SQLite gives the files beside it the same permissions.

    Never of a file that is there: closing it here would release the locks that SQLite has on it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_folder(path)  # or a loss of power may take the file with everything in it
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise StoreUnavailableError(message, path=path, problem=problem_of(error)) from error


def sync_folder(path: str) -> None:
    """Wait until the disk knows which files the folder of this one has."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_format(connection: sqlite3.Connection, path: str) -> int:
    """Refuse what is not ours before anything is written.

    Returns:
        The version of the format; 0 of an empty file.
    """
    version: int
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        return 0
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        message = f"{path} is a database of another program; name another file"
        raise InvalidArgumentError(message, field="path", problem=DAMAGED)
    known = len(migrations())
    if version > known:
        message = (
            f"{path} has format {version}, and this version of the program knows formats up to {known}; "
            "use the version that wrote it, or a newer one"
        )
        raise UnsupportedError(message, path=path)
    return version


def _configure(connection: sqlite3.Connection, durability: Durability) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # this and the next before the first table
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute(f"PRAGMA synchronous = {durability}")
    connection.execute("PRAGMA secure_delete = OFF").fetchone()
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}").fetchone()
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")


@lru_cache(maxsize=1)
def migrations() -> Sequence[str]:
    """The steps from an empty file to the present format, in order: that many steps are done, the file says."""
    folder = files("lightning_store.backends.sqlite") / "migrations"
    steps = sorted((one.name, one.read_text("utf-8")) for one in folder.iterdir() if one.name.endswith(".sql"))
    return tuple(script for _, script in steps)


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to the present format, all of it or nothing."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    steps = migrations()[version:]
    if not steps:
        return
    try:
        connection.executescript("BEGIN IMMEDIATE;" + "\n".join(steps))
        if not version:
            connection.execute("INSERT INTO meta (name, value) VALUES ('store_id', ?)", (new_hex(12),))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version + len(steps)}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _limit(connection: sqlite3.Connection, size_bytes_max: int | None) -> None:
    """A file that is larger already stays as it is, and does not grow."""
    if size_bytes_max is not None:
        pages = (size_bytes_max + size_bytes_max // MARGIN_SHARE) // PAGE_BYTES
        connection.execute(f"PRAGMA max_page_count = {max(1, pages)}").fetchone()


def file_identity(path: str) -> tuple[int, int] | None:
    """Tells the file at ``path`` from any other that is put in its place; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def wal_bytes(path: str) -> int:
    """How long the write-ahead log is."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(f"{path}-wal").st_size
    return 0
