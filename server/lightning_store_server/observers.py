"""Hooks that are told of each call when it has ended: the access log, metrics, traces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

access_logger: Final = logging.getLogger("lightning_store_server.access")


class CallDetails(NamedTuple):
    """One call of a method that has ended."""

    method: str
    """Its path, "/service/Method"; a name of the caller's if there is no such method."""
    code: str
    """The name of its status code."""
    seconds: float
    """How long it took, waits included."""
    peer: str
    """gRPC's name of the caller's address."""
    request_id: str = ""
    """Empty if it has none."""
    metadata: Any = ()
    """What came along with it, as pairs; with a call of a session, what came with the session and then its own trace
    context."""
    caller: str = ""
    """The name of the token; empty if there is none."""


class HttpDetails(NamedTuple):
    """One request over HTTP that has been answered."""

    method: str
    path: str
    """As it may be shown."""
    route: str
    """The path of the route that answered; empty if there is none."""
    status: int
    seconds: float
    peer: str
    headers: Any = ()
    """Pairs of text."""
    caller: str = ""


CallObserver: TypeAlias = Callable[[CallDetails], object]
HttpObserver: TypeAlias = Callable[[HttpDetails], object]


def log_call(details: CallDetails) -> None:
    """One line for a call: method, status code, milliseconds, peer. The values are also fields of the log record."""
    call: dict[str, Any] = {
        "method": details.method,
        "code": details.code,
        "duration_ms": round(details.seconds * 1000, 3),
        "peer": details.peer,
    }
    more = {"request_id": details.request_id, **({"caller": details.caller} if details.caller else {})}
    access_logger.info("%s %s %.3f ms %s", *call.values(), extra={"call": {**call, **more}})


def log_http(details: HttpDetails) -> None:
    """The same for a request over HTTP."""
    method = f"{details.method} {details.path}"
    log_call(CallDetails(method, str(details.status), details.seconds, details.peer, caller=details.caller))
