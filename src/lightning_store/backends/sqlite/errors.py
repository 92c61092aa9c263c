"""What SQLite raises, as errors of a store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lightning_store.backends.base import ConflictError
from lightning_store.errors import InternalError, InvalidArgumentError, ResourceExhaustedError, StoreUnavailableError

RETRY_AFTER_SECONDS: Final = 5.0
"""When to try again what a full disk refused: somebody has to make room first."""
_PRIMARY: Final = 0xFF


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its details; None for an error of the module."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY


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
            return StoreUnavailableError(f"the database {path} cannot be written: {said}", path=path)
        case _:
            return StoreUnavailableError(f"the database {path} failed: {said}", path=path)


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
        if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            message = f"{path} is damaged, or no SQLite database: {error}"
            raise InvalidArgumentError(message, field="path") from error
        raise as_store_error(error, path) from error
