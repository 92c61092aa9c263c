"""Certificates and keys in PEM files, checked as they are read: gRPC would only say that a handshake failed."""

from __future__ import annotations

import ssl
from pathlib import Path

from lightning_store.errors import InvalidArgumentError


def read_authorities(path: str, field: str) -> bytes:
    """The certificates of authorities. InvalidArgumentError, which names ``field``, if there are none in the file."""
    content = _read(path, field)
    try:
        ssl.create_default_context(cadata=content.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        message = f"{field} is {path}, which holds no certificates of authorities in PEM: {_reason(error)}"
        raise InvalidArgumentError(message, field=field) from None
    return content


def read_pair(cert: str, key: str, field: str) -> tuple[bytes, bytes]:
    """A certificate, with those that it was issued by, and its private key.

    Raises:
        InvalidArgumentError: A file cannot be read, or the two do not belong together. It names ``field``.
    """
    pair = _read(cert, field), _read(key, field)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError, OSError) as error:
        message = f"{cert} and {key} are no certificate with its key in PEM, without a password: {_reason(error)}"
        raise InvalidArgumentError(message, field=field) from None
    return pair


def _no_password() -> str:
    raise ValueError("the key has a password")


def _read(path: str, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{field} is {path}, which cannot be read: {error.strerror}", field=field) from None


def _reason(error: Exception) -> str:
    reason: str | None = getattr(error, "reason", None)
    return reason or str(error)
