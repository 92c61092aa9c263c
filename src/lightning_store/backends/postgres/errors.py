"""What PostgreSQL and asyncpg raise, as errors of a store."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from lightning_store.backends.base import ConflictError
from lightning_store.errors import (
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StoreError,
    StoreUnavailableError,
)

RETRY_AFTER_SECONDS: Final = 5.0
"""When to try again what a full disk refused: somebody has to make room first."""
LOST: Final = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
)
"""The connection is gone, or may hang. The fourth says so of one that the database ends while a statement begins."""
OF_DATABASE: Final = (*LOST, asyncpg.PostgresError, UnicodeError)
"""Whatever a statement raises."""

_CONFLICTS: Final = ("40001", "40P01", "23505")
"""Serialization failure, deadlock, an id that is taken."""
_GONE: Final = ("08", "57P", "25P03", "57P05", "53", "58", "25006", "XX")
"""No connection, shut down, idle for too long, out of resources, failing, only a standby, damaged."""
_LATE: Final = ("55P03", "57014")
"""A lock was not to be had, or a statement took too long."""
_TLS_ADVICE: Final = (
    "sslrootcert has to name the authority of the database's certificate, and the host has to be one that the"
    " certificate is for; where the database asks for a certificate, sslcert and sslkey have to name one that it takes"
)
_LOGIN_ADVICE: Final = "look at user, password, sslmode and sslcert here, and at pg_hba.conf there"


def state_of(error: BaseException) -> str:
    """The SQLSTATE of an error; empty if it has none."""
    return getattr(error, "sqlstate", None) or ""


def breaks_connection(error: BaseException) -> bool:
    """Whether the connection is not to be used any more."""
    return isinstance(error, LOST) or state_of(error).startswith(_GONE)


def as_store_error(error: Exception) -> Exception:
    """The error that callers get, or the conflict that the engine resolves. It names no credentials."""
    state = state_of(error)
    said = f"{type(error).__name__}: {error}" + (f" ({state})" if state else "")
    if state in _CONFLICTS:
        return ConflictError(said)
    if state == "53100":
        full = ResourceExhaustedError(f"the database has no room left: {said}; nothing was stored", limit="disk")
        full.retry_after_seconds = RETRY_AFTER_SECONDS
        return full
    if state in _LATE:
        return StoreUnavailableError(f"the database is too slow, or another server holds it up: {said}")
    if isinstance(error, ssl.SSLError):
        return StoreUnavailableError(f"no TLS with the database: {said}; {_TLS_ADVICE}")
    if state.startswith("28"):
        return StoreUnavailableError(f"the database lets nobody in so: {said}; {_LOGIN_ADVICE}")
    if isinstance(error, asyncpg.DataError | UnicodeEncodeError):
        return InvalidArgumentError(f"a value cannot be stored: {said}")
    if breaks_connection(error) or state.startswith(("3D", "42501")):
        return StoreUnavailableError(f"the database cannot be reached: {said}")
    return InternalError(f"the database failed: {said}")


def as_final_error(error: Exception) -> Exception:
    """The error that callers get where nobody resolves conflicts: they may try again."""
    raised = as_store_error(error)
    if isinstance(raised, ConflictError):
        return StoreUnavailableError(f"the database gave it up for the sake of others; try again: {raised}")
    return raised


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise the store's errors for those of the database, where nobody resolves conflicts."""
    try:
        yield
    except StoreError:  # some are OSErrors
        raise
    except OF_DATABASE as error:
        raise as_final_error(error) from error
