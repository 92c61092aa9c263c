"""Bodies of requests: read within limits of bytes and time, and decoded."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final, Protocol

from starlette.datastructures import Headers
from starlette.requests import Request

from lightning_store_server.http.answers import HttpError, busy
from lightning_store_server.http.limits import HttpLimits

PIECE_BYTES: Final = 1024 * 1024
"""Bytes that are decompressed at a stretch."""


class Decoder(Protocol):
    """Undoes a content encoding, piece by piece."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What ``data``, which goes on where the last one ended, contains."""
        ...

    def finish(self) -> None:
        """The body has ended."""
        ...


class Identity:
    """A body that is sent as it is."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class Inflate:
    """gzip, of one member or several, or deflate. HttpError if the body is not what it says."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._window = zlib.MAX_WBITS + 16 if encoding == "gzip" else zlib.MAX_WBITS
        self._stream = zlib.decompressobj(self._window)
        self._ended = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._ended:
                self._stream, self._ended = zlib.decompressobj(self._window), False
            try:
                yield self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not valid {self._encoding}: {error}") from None
            self._ended = self._stream.eof
            data = self._stream.unused_data if self._ended else self._stream.unconsumed_tail

    def finish(self) -> None:
        if not self._ended:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not valid {self._encoding}: it ends too soon")


def decoder_of(headers: Headers) -> Decoder:
    """For the body's content encoding. HttpError: it is one that is not known here."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return Identity()
    if encoding in ("gzip", "x-gzip", "deflate"):
        return Inflate(encoding.removeprefix("x-"))  # RFC 9110, section 8.4.1.3
    message = f"Content-Encoding is {encoding}; send gzip, deflate or none"
    raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, Accept_Encoding="gzip, deflate")


class BodyReader:
    """Reads the bodies of one server's requests.

    Args:
        body_bytes_max: Of a body, compressed and not.
        limits: Of all of them together, and of their time.
    """

    def __init__(self, body_bytes_max: int, limits: HttpLimits) -> None:
        self._body_bytes_max = body_bytes_max
        self._limits = limits
        self.held_bytes = 0
        """Of the bodies that are coming in."""

    def check(self, headers: Headers) -> None:
        """HttpError if the body is to be refused before it is read."""
        length = headers.get("content-length")
        if length is None and "transfer-encoding" not in headers:
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length, or the body in chunks")
        if length is not None and int(length) > self._body_bytes_max:
            raise self._too_large()

    async def read(self, request: Request) -> bytes:
        """The body, decoded. HttpError: it is too large, too slow, or not what its headers say."""
        self.check(request.headers)
        decoder, body = decoder_of(request.headers), bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                await self._fill(body, decoder, request)
        except TimeoutError:
            message = "the body did not come in time"
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, message, Connection="close") from None
        finally:
            self.held_bytes -= len(body)
        decoder.finish()
        return bytes(body)

    async def _fill(self, body: bytearray, decoder: Decoder, request: Request) -> None:
        """Add what comes to ``body``, which is bounded as it was sent and as it is."""
        received_bytes = 0
        async for data in request.stream():
            received_bytes += len(data)
            for piece in decoder.decode(data):
                body += piece
                self.held_bytes += len(piece)
                if max(len(body), received_bytes) > self._body_bytes_max:
                    raise self._too_large()
                # A body alone is never too much: it may be as large as the limit, and would be refused for ever.
                if self.held_bytes - len(body) >= self._limits.held_bytes:
                    raise busy("too much is coming in at once")
                await asyncio.sleep(0)  # a large body must not hold up the other calls

    def _too_large(self) -> HttpError:
        message = (
            f"the body has more than {self._body_bytes_max} bytes; send less at once, or raise --max-message-bytes"
        )
        return HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def peer_of_http(request: Request) -> str:
    """The connection, as gRPC names it; empty if nobody can tell it from others."""
    if request.client is None:
        return ""
    host, port = request.client
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
