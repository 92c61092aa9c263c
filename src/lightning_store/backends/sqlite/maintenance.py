"""Work on the file of a store: backups, restoring them, checks, giving space back, migrations.

A backup and a check read, and may run while a store has the file open. Everything else makes sure that none has. A file
is made under another name beside its own, and gets its own when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final, NamedTuple, TypeAlias

from lightning_store.backends.base import Violation
from lightning_store.backends.sqlite.checking import violations
from lightning_store.backends.sqlite.errors import DAMAGED, MISSING, is_damage, opening_errors, problem_of
from lightning_store.backends.sqlite.file import (
    FileLock,
    check_format,
    migrations,
    open_reader,
    open_writer,
    sync_folder,
)
from lightning_store.errors import InvalidArgumentError, StoreUnavailableError, UnsupportedError
from lightning_store.ids import new_hex

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many bytes are done, and of how many."""

STEP_PAGES: Final = 1024
"""Pages that are copied between two reports of progress."""
BESIDE: Final = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, by the end of its name."""


class Sizes(NamedTuple):
    """The file of a database, in bytes."""

    before: int
    after: int


class Formats(NamedTuple):
    """The version of a file's format."""

    before: int
    after: int


def back_up(source: str, target: str, *, progress: Progress | None = None) -> int:
    """Copy a store, which may be open and in use.

    The copy is of one moment. It has a store id of its own, since its feed goes on differently from the source's; and
    it is one file, without a log beside it.

    Args:
        source: The database's file.
        target: The file to make. Its folder must exist.
        progress: Told how far it is.

    Returns:
        The size of the copy, in bytes.

    Raises:
        InvalidArgumentError: ``source`` holds no store or is damaged, or ``target`` exists.
        UnsupportedError: A newer version of the program has written ``source``.
        StoreUnavailableError: A file cannot be read or written.
    """
    _refuse_existing(target)
    with _made_beside(target) as made:
        _copy(source, made, progress)
        size_bytes = os.stat(made).st_size
        _refuse_existing(target)
    return size_bytes


def restore(source: str, path: str, *, overwrite: bool = False, progress: Progress | None = None) -> int:
    """Make a store of a copy that :func:`back_up` made. No store may have ``path`` open.

    Args:
        source: The copy, which stays as it is.
        path: The database's file.
        overwrite: Whether a store that is there may be replaced.
        progress: Told how far it is.

    Returns:
        The size of the store, in bytes.

    Raises:
        InvalidArgumentError: ``source`` holds no store or is damaged, or ``path`` exists and ``overwrite`` is not set.
        UnsupportedError: A newer version of the program has written ``source``.
        StoreUnavailableError: ``path`` is in use, or a file cannot be read or written.
    """
    _refuse_missing(source)
    if os.path.exists(path) and os.path.samefile(source, path):
        raise InvalidArgumentError(f"{source} is the store itself, and no copy of it", field="source")
    with _locked(path):
        if not overwrite:
            _refuse_existing(path)
        with _made_beside(path) as made:
            _copy(source, made, progress)
            with _reading(made) as connection:
                for violation in violations(connection, quick=True):
                    message = f"{source} is damaged: {violation.rule}: {violation.found}; nothing was restored"
                    raise InvalidArgumentError(message, field="source", problem=DAMAGED)
            size_bytes = os.stat(made).st_size
            # The log of the store that is replaced must not be there when its successor is.
            for ending in BESIDE:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + ending)
    return size_bytes


def check(path: str, *, quick: bool = False) -> Iterator[Violation]:
    """Look for what is wrong with a store, which may be open and in use.

    Args:
        path: The database's file.
        quick: Whether to leave out what takes long: whether indexes agree with their tables.

    Returns:
        What is found, as it is found; nothing, if all is well.

    Raises:
        InvalidArgumentError: The file holds no store, or is so damaged that it cannot be read.
        UnsupportedError: Its format is not the present one.
        StoreUnavailableError: It cannot be read.
    """
    with _reading(path) as connection, opening_errors(path):
        version, known = check_format(connection, path), len(migrations())
        if version < known:
            message = f"{path} has format {version}, and what is checked has format {known}; migrate it first"
            raise UnsupportedError(message, path=path)
        yield from violations(connection, quick=quick)


def vacuum(path: str, *, incremental: bool = False) -> Sizes:
    """Give space that is not used any more back to the file system. No store may have the file open.

    Args:
        path: The database's file.
        incremental: Whether to cut off what is free and leave the rest as it is, rather than write the file anew, which
            takes longer and up to twice its size of the disk, and gives the most.

    Raises:
        InvalidArgumentError: The file holds no store, or is damaged.
        UnsupportedError: A newer version of the program has written it.
        StoreUnavailableError: It is in use, or cannot be written.
    """
    with _offline(path) as connection, opening_errors(path):
        before = _size_bytes(path)
        if incremental:
            connection.executescript("PRAGMA incremental_vacuum")  # all of its steps, each of which frees a page
        else:
            connection.execute("PRAGMA temp_store = DEFAULT")  # not in memory: it is as large as the file
            connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return Sizes(before, _size_bytes(path))


def migrate(path: str) -> Formats:
    """Bring a store's file up to the present format, as opening the store does. No store may have it open.

    Args:
        path: The database's file.

    Raises:
        InvalidArgumentError: The file holds no store, or is damaged.
        UnsupportedError: A newer version of the program has written it.
        StoreUnavailableError: It is in use, or cannot be written.
    """
    with _reading(path) as connection:
        before = check_format(connection, path)
    with _offline(path) as connection:
        return Formats(before, check_format(connection, path))


# --- Connections -----------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that reads a file that is there and holds a store."""
    _refuse_missing(path)
    with opening_errors(path):
        connection = open_reader(path)
        try:
            if not check_format(connection, path):
                raise InvalidArgumentError(f"{path} is empty: it holds no store", field="path", problem=DAMAGED)
        except BaseException:
            connection.close()
            raise
    with closing(connection):
        yield connection


@contextmanager
def _offline(path: str) -> Iterator[sqlite3.Connection]:
    """The connection that writes, while no store has the file open."""
    _refuse_missing(path)
    with _locked(path):
        with _reading(path):  # before anything is written to it
            pass
        with closing(open_writer(path, "full", None)) as connection:
            yield connection


@contextmanager
def _locked(path: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        yield
    finally:
        lock.release()


def _size_bytes(path: str) -> int:
    return os.stat(path).st_size


# --- Files -----------------------------------------------------------------------------------------------------------


def _refuse_missing(path: str) -> None:
    if not os.path.isfile(path):
        raise StoreUnavailableError(f"there is no file {path}", path=path, problem=MISSING)


def _refuse_existing(path: str) -> None:
    for name in (path, *(path + ending for ending in BESIDE)):
        if os.path.lexists(name):
            raise InvalidArgumentError(f"{name} is there already; nothing was written", field="target")


@contextmanager
def _made_beside(path: str) -> Iterator[str]:
    """The name of an empty file, which is called ``path`` when this ends, and deleted when it fails."""
    made = f"{path}.{new_hex(8)}.partial"
    try:
        os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise StoreUnavailableError(message, path=path, problem=problem_of(error)) from error
    try:
        yield made
        file = os.open(made, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(made, path)
    except BaseException:
        for name in (made, *(made + ending for ending in BESIDE)):
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise
    sync_folder(path)


@contextmanager
def _damage_of(source: str) -> Iterator[None]:
    """What is damaged when a copy fails so is what it is made of."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            with opening_errors(source):
                raise
        raise


def _copy(source: str, made: str, progress: Progress | None) -> None:
    """Copy a store as it is at one moment, under a new store id, into one file without a log."""
    with _reading(source) as reader:
        [page_bytes] = reader.execute("PRAGMA page_size").fetchone()

        def told(_: int, remaining: int, total: int) -> None:
            if progress is not None:
                progress((total - remaining) * page_bytes, total * page_bytes)

        with opening_errors(made), closing(sqlite3.connect(made, isolation_level=None)) as writer:
            writer.execute("PRAGMA synchronous = OFF")  # the file is synced when it is whole
            # While a read transaction is open, the copy need not begin anew when somebody else writes.
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            try:
                with _damage_of(source):
                    reader.backup(writer, pages=STEP_PAGES, progress=told)
            finally:
                reader.execute("ROLLBACK")
            writer.execute("PRAGMA journal_mode = DELETE").fetchone()
            writer.execute("UPDATE meta SET value = ? WHERE name = 'store_id'", (new_hex(12),))
