"""uvicorn's HTTP/1.1 protocol with limits on the time and the number of connections, of which it has none of its own.

What uvicorn leaves open is closed here: a connection that stays silent, a head that does not end, the rest of a body
that was refused, an answer that is not taken. Bodies that are wanted are bounded where they are read.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

import h11
from google.rpc.status_pb2 import Status
from uvicorn.protocols.http.h11_impl import H11Protocol

from lightning_store_server.http.answers import JSON, RETRY_AFTER_SECONDS, encoded
from lightning_store_server.http.limits import HttpLimits

protocol_logger: Final = logging.getLogger("lightning_store_server.http.protocol")
# Every malformed request is a warning of uvicorn, without a word about its sender or its cause.
protocol_logger.setLevel(logging.ERROR)


GONE: Final = "lightning_store.gone"
"""In the state of a request's scope, once its sender has closed the connection, or its own side of it, without waiting
for the answer."""


class _Phase(Enum):
    """What a connection is doing."""

    IDLE = auto()
    HEAD = auto()
    AT_WORK = auto()
    LINGERING = auto()
    """The answer is given, and the rest of the request is dropped as it comes."""
    CLOSING = auto()


class LimitedProtocol(H11Protocol):
    """One connection.

    Args:
        limits: What its peer may take of the server.
        arguments: Those of uvicorn's protocol.
    """

    def __init__(self, limits: HttpLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.logger = protocol_logger
        self.access_log = False
        self._limits = limits
        self._refused = False
        self._phase: _Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def was_asked(self) -> bool:
        """Whether a request has come."""
        return bool(self.cycle)

    # --- What happens to the connection ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many connections; try again later")
        self._watch()

    def data_received(self, data: bytes) -> None:
        while data and not self._refused and not self.transport.is_closing():
            # h11 bounds the part of a head that has come, and would take a larger one that comes at once.
            in_head = self.conn.their_state is h11.IDLE
            room = self._limits.head_bytes + 1 - len(self.conn.trailing_data[0]) if in_head else len(data)
            super().data_received(data[:room])
            data = data[room:]
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's returns None, which asyncio takes as False
        """Whether to keep the connection: a peer that has said all may still wait for the answer."""
        self._note_gone()
        if self._phase is not _Phase.AT_WORK or self.scheme == "https" or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._note_gone()
        super().connection_lost(exc)
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def _note_gone(self) -> None:
        if self.was_asked and not self.cycle.response_complete:
            self.cycle.scope["state"][GONE] = True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # --- Limits of time ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Bound the phase that the connection is in, from when it began."""
        phase = self._present_phase()
        if phase is self._phase:
            return
        self._phase = phase
        if self._timer is not None:
            self._timer.cancel()
        bounds: dict[_Phase, tuple[float, Callable[[], object]]] = {
            _Phase.IDLE: (self._limits.idle_seconds, self._close),
            _Phase.HEAD: (self._limits.head_seconds, self._give_up_head),
            _Phase.LINGERING: (self._limits.linger_seconds, self._close),
            _Phase.CLOSING: (self._limits.write_seconds, self.transport.abort),
        }
        bound = bounds.get(phase)
        self._timer = None if bound is None else self.loop.call_later(*bound)

    def _present_phase(self) -> _Phase:
        if self.transport.is_closing():
            return _Phase.CLOSING
        if self._refused:
            return _Phase.LINGERING
        if self._is_at_work():
            return _Phase.AT_WORK
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            return _Phase.LINGERING
        return _Phase.HEAD if self.conn.trailing_data[0] else _Phase.IDLE

    def _is_at_work(self) -> bool:
        """Whether a request has come that is not answered yet."""
        return self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)

    def _close(self) -> None:
        self.transport.close()
        self._watch()

    def _give_up_head(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the head of the request did not come in time")
        self._watch()

    # --- What is no request ------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; uvicorn calls it where h11 says so."""
        error = sys.exception()
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(HTTPStatus(hint), f"the request is not valid HTTP/1.1: {error or msg}")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer and hang up. What is still coming is dropped for a moment: to close at once would make the peer drop
        the answer too."""
        self._refused = True
        if self._is_at_work():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # in the middle of an answer
            return
        body = encoded(Status(message=message), JSON)
        headers = {"Content-Type": JSON, "Content-Length": str(len(body)), "Connection": "close"}
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        response = h11.Response(status_code=status, reason=status.phrase, headers=list(headers.items()))
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
