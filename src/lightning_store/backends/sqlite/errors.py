"""What SQLite raises, as errors of a store."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lightning_store.backends.base import ConflictError
from lightning_store.errors import InternalError, InvalidArgumentError, ResourceExhaustedError, StoreUnavailableError

RETRY_AFTER_SECONDS: Final = 5.0
"""When to try again what a full disk refused: somebody has to make room first."""
_PRIMARY: Final = 0xFF

# What is wrong with the file of a database: ``details["problem"]`` of the errors that speak of one.
IN_USE: Final = "in_use"
MISSING: Final = "missing"
READ_ONLY: Final = "read_only"
DISK: Final = "disk"
"""The disk is full, or it fails."""
DAMAGED: Final = "damaged"
"""Or no database of this program at all."""
REPLACED: Final = "replaced"
"""Removed, or another file is in its place, while a store has it open."""


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its details; None for an error of the module."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is damaged, or no database."""
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def problem_of(error: OSError | sqlite3.Error) -> str:
    """What is wrong with a file that cannot be opened or written."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return MISSING
        return READ_ONLY if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else DISK
    match primary_code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return IN_USE
        case sqlite3.SQLITE_CANTOPEN:
            return MISSING
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return READ_ONLY
        case _:
            return DISK


def as_store_error(error: sqlite3.Error, path: str) -> Exception:
    """The error that callers get, or the conflict that the engine resolves."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    said = f"{error} ({name})"
    match primary_code(error):
        case sqlite3.SQLITE_CONSTRAINT:
            return ConflictError(f"an id is taken: {said}")
        case sqlite3.SQLITE_FULL:
            full = ResourceExhaustedError(f"there is no room left for {path}: {said}; nothing was stored", limit="disk")
            full.retry_after_seconds = RETRY_AFTER_SECONDS
            return full
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return InternalError(f"the database {path} is damaged: {said}; restore it from a backup", path=path)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            message = f"the database {path} cannot be written: {said}"
            return StoreUnavailableError(message, path=path, problem=READ_ONLY)
        case _:
            message = f"the database {path} failed: {said}"
            return StoreUnavailableError(message, path=path, problem=problem_of(error))


@contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Raise the store's errors for those of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_store_error(error, path) from error
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{error.object!r} has no UTF-8 form and cannot be stored") from error


@contextmanager
def opening_errors(path: str) -> Iterator[None]:
    """The same while a file is opened, when a damaged one is the caller's to replace."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            message = f"{path} is damaged, or no SQLite database: {error}; restore it from a backup"
            raise InvalidArgumentError(message, field="path", problem=DAMAGED) from error
        raise as_store_error(error, path) from error
