"""What a client shows a server, and asks of it: its token, TLS, its certificate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import grpc

from lightning_store.errors import InvalidArgumentError
from lightning_store.tls_files import read_authorities, read_pair

TOKEN: Final = "LIGHTNING_STORE_TOKEN"
TOKEN_FILE: Final = "LIGHTNING_STORE_TOKEN_FILE"
TLS: Final = "LIGHTNING_STORE_TLS"
TLS_CA: Final = "LIGHTNING_STORE_TLS_CA"
TLS_CLIENT_CERT: Final = "LIGHTNING_STORE_TLS_CLIENT_CERT"
TLS_CLIENT_KEY: Final = "LIGHTNING_STORE_TLS_CLIENT_KEY"

_SWITCH: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("", "0", "false", "no", "off"), False),
}


class Shown(NamedTuple):
    """What one connection is made with."""

    token: str | None
    tls: grpc.ChannelCredentials | None


@dataclass(frozen=True)
class Credentials:
    """The arguments of a client; what is None is taken from the environment.

    InvalidArgumentError if they contradict each other.
    """

    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    tls: bool | str | None = None
    """Whether to speak TLS; or the file with the authorities to trust, in place of those that gRPC knows."""
    tls_client_cert: str | None = None
    tls_client_key: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and self.token_file is not None:
            raise InvalidArgumentError("give token or token_file, not both", field="token")
        if self.token is not None:
            _checked(self.token, "token")
        if (self._client_cert is None) is not (self._client_key is None):
            message = "give both tls_client_cert and tls_client_key, or neither"
            raise InvalidArgumentError(message, field="tls_client_cert")
        if self._client_cert is not None and self._tls is False and self.tls is not None:
            raise InvalidArgumentError("tls is False, and there is a tls_client_cert", field="tls")

    @property
    def files(self) -> list[str]:
        """The files that are read."""
        ca = self._tls if isinstance(self._tls, str) else None
        found = (self._token_file, ca, *((self._client_cert, self._client_key) if self._tls else ()))
        return [path for path in found if path is not None]

    def read(self) -> Shown:
        """Read the files. InvalidArgumentError if that cannot be done, or if they do not hold what they should."""
        return Shown(self._read_token(), self._read_tls())

    def _read_token(self) -> str | None:
        if self._token_file is None:
            text = self.token if self.token is not None else os.environ.get(TOKEN) or None
            return None if text is None else _checked(text, TOKEN)
        try:
            with open(self._token_file, encoding="utf-8") as file:
                text = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            message = f"token_file is {self._token_file}, which cannot be read: {reason}"
            raise InvalidArgumentError(message, field="token_file") from None
        return _checked(text, "token_file")

    def _read_tls(self) -> grpc.ChannelCredentials | None:
        tls = self._tls
        if tls is False:
            return None
        authorities = read_authorities(tls, "tls") if isinstance(tls, str) else None
        if self._client_cert is None or self._client_key is None:
            return grpc.ssl_channel_credentials(authorities)
        cert, key = read_pair(self._client_cert, self._client_key, "tls_client_cert")
        return grpc.ssl_channel_credentials(authorities, key, cert)

    @property
    def _token_file(self) -> str | None:
        if self.token is not None or self.token_file is not None:
            return self.token_file
        return None if os.environ.get(TOKEN) else os.environ.get(TOKEN_FILE) or None

    @property
    def _tls(self) -> bool | str:
        if self.tls is not None:
            return self.tls
        ca = os.environ.get(TLS_CA)
        if ca:
            return ca
        text = os.environ.get(TLS, "").strip().lower()
        if text not in _SWITCH:
            raise InvalidArgumentError(f"{TLS} is {text!r}; give 1 or 0", field="tls")
        return _SWITCH[text] or self._client_cert is not None

    @property
    def _client_cert(self) -> str | None:
        return self.tls_client_cert if self.tls_client_cert is not None else os.environ.get(TLS_CLIENT_CERT) or None

    @property
    def _client_key(self) -> str | None:
        return self.tls_client_key if self.tls_client_key is not None else os.environ.get(TLS_CLIENT_KEY) or None


def _checked(token: str, name: str) -> str:
    """The token. InvalidArgumentError, without it, if it can be none."""
    if not (token.isascii() and token.isprintable() and token.strip()) or " " in token:
        raise InvalidArgumentError(f"{name} holds no token: it is empty, or has more than printable ASCII", field=name)
    return token


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class TokenInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in its stub only
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Sends a token with each call."""

    def __init__(self, metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), self._metadata)
        return continuation(
            _CallDetails(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                details.wait_for_ready,
                details.compression,
            ),
            request,
        )

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._call(continuation, client_call_details, request_iterator)


def bearer(token: str) -> tuple[str, str]:
    """The metadata that has the token."""
    return "authorization", f"Bearer {token}"
