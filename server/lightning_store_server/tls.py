"""TLS of a server: one certificate for gRPC and HTTP, read again when its files change."""

from __future__ import annotations

import itertools
import logging
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

import grpc

from lightning_store.clock import Clock, SystemClock
from lightning_store.errors import InvalidArgumentError
from lightning_store.tls_files import read_authorities, read_pair
from lightning_store.watched_files import WatchedFiles

logger = logging.getLogger("lightning_store_server")

WARN_SECONDS: Final = 14 * 86_400.0
"""A certificate that expires within so long is warned of, …"""
WARN_AGAIN_SECONDS: Final = 86_400.0
"""… and so often again, as connections come."""
NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python has no name for."""
HANDSHAKE_STEPS_MAX: Final = 10


class _Loaded(NamedTuple):
    """What the files held when they were read."""

    expires: float
    grpc: grpc.ServerCertificateConfiguration
    http: ssl.SSLContext


class ServerTls:
    """The certificate that a server shows, and which certificates of callers it takes.

    Each handshake has what the files hold then. Where they hold nothing that can be used, what they held before stays.

    Args:
        cert: PEM file with the certificate, and those that it was issued by.
        key: PEM file with its key.
        client_ca: PEM file with the authorities whose certificates callers must show; None if they need none.
        clock: Tells what has expired, and when to look at the files.

    Raises:
        InvalidArgumentError: The files cannot be read, do not belong together, or the certificate has expired.
    """

    def __init__(self, cert: str, key: str, client_ca: str | None = None, clock: Clock | None = None) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._files = WatchedFiles([cert, key, *([client_ca] if client_ca is not None else [])], self._clock)
        self._lock = threading.Lock()
        self._warn_at = 0.0
        self._loaded = self._load()
        self._warn()

    @property
    def expires(self) -> float:
        """When the certificate expires, in seconds since the epoch."""
        return self._now().expires

    def for_grpc(self) -> grpc.ServerCredentials:
        """What a port of gRPC speaks TLS with."""
        told = self._loaded

        def news() -> grpc.ServerCertificateConfiguration | None:
            """Called at each handshake, in a thread of gRPC's; None if all is as before."""
            nonlocal told
            before, told = told, self._now()
            return None if told is before else told.grpc

        return grpc.dynamic_ssl_server_credentials(
            self._loaded.grpc,
            cast(Callable[[], grpc.ServerCertificateConfiguration], news),
            require_client_authentication=self._client_ca is not None,
        )

    def for_http(self) -> ssl.SSLContext:
        """What asyncio speaks TLS with."""
        context = self._http_context()

        def choose(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            connection.context = self._now().http

        context.sni_callback = choose  # it is called for callers that name no host, too
        return context

    def _now(self) -> _Loaded:
        with self._lock:
            if self._files.changed():
                try:
                    self._loaded = self._load()
                except InvalidArgumentError as error:
                    logger.error("the certificate stays as it was: %s", error)
                else:
                    logger.info("%s was read again", self._cert)
                    self._warn_at = 0.0
            self._warn()
            return self._loaded

    def _load(self) -> _Loaded:
        pair = read_pair(self._cert, self._key, "tls_cert")
        authorities = None if self._client_ca is None else read_authorities(self._client_ca, "tls_client_ca")
        expires = expiry_of(self._cert, self._key)
        if expires <= self._clock.now():
            raise InvalidArgumentError(f"the certificate in {self._cert} has expired", field="tls_cert")
        configuration = grpc.ssl_server_certificate_configuration([(pair[1], pair[0])], authorities)
        return _Loaded(expires, configuration, self._http_context())

    def _http_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._client_ca)
        context.load_cert_chain(self._cert, self._key)
        # From Python 3.13 on it would refuse certificates that gRPC takes, such as those of a plain `openssl x509`.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _warn(self) -> None:
        now = self._clock.now()
        left = self._loaded.expires - now
        if left < WARN_SECONDS and now >= self._warn_at:
            self._warn_at = now + WARN_AGAIN_SECONDS
            what = f"expires in {left / 86_400:.1f} days" if left > 0 else "has expired"
            logger.warning("the certificate in %s %s", self._cert, what)


def expiry_of(cert: str, key: str) -> float:
    """When a certificate expires, in seconds since the epoch.

    Python reads a certificate for nobody but a peer, so this is one, in memory.

    Args:
        cert: PEM file with the certificate.
        key: PEM file with its key.

    Raises:
        InvalidArgumentError: No server can use it.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags = ssl.VerifyFlags(client.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    try:
        for end in itertools.islice(itertools.cycle(ends), HANDSHAKE_STEPS_MAX):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
        shown: Any = ends[0].getpeercert()
    except (ssl.SSLError, ValueError) as error:
        message = f"the certificate in {cert} cannot be used by a server: {error}"
        raise InvalidArgumentError(message, field="tls_cert") from None
    return float(ssl.cert_time_to_seconds(shown["notAfter"]))
