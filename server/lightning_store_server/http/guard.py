"""Who may make a request of the HTTP side."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Scope

from lightning_store.wire.methods import TRACE_EXPORT, Role
from lightning_store_server.access import Access, bearer_digest, note_caller
from lightning_store_server.http.answers import HttpError, shown_path
from lightning_store_server.http.rest.tables import role_at
from lightning_store_server.otlp.endpoint import TRACES_PATH

PUBLIC: Final = frozenset({"/healthz", "/readyz", "/startupz"})
"""Paths that answer without a token: supervisors have none."""
PAGE_PREFIX: Final = "/ui"
"""Of all paths of the page but that of the overview, which is ``/``."""
ROLES: Final[Mapping[str, Role]] = {
    "/metrics": Role.READER,
    "/openapi.json": Role.READER,
    TRACES_PATH: TRACE_EXPORT.role,
}
"""The least role for each other path that is no operation of the REST interfaces. One that is missing is for admins."""
TOKEN_PARAMETERS: Final = frozenset({"access_token", "api_key", "authorization", "bearer", "token"})
"""By which tokens come in URLs elsewhere."""


def is_page(path: str) -> bool:
    """Whether this is a path of the operator's page."""
    return path == "/" or path.startswith(f"{PAGE_PREFIX}/")


class Guard:
    """Checks each request before anything else looks at it.

    Args:
        access: Knows who may make requests; None for everybody.
        hosts: Names by which the server may be called beside addresses and ``localhost``; None for any.
    """

    def __init__(self, access: Access | None, hosts: Sequence[str] | None) -> None:
        self._access = access
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    def check(self, scope: Scope) -> None:
        """Let a request through, as one of its caller.

        Raises:
            HttpError: It names another host, or has a token in its URL.
            UnauthenticatedError: It has no token that counts.
            PermissionDeniedError: Its token's role does not suffice.
            ResourceExhaustedError: Its token has had its calls.
        """
        headers, path = Headers(scope=scope), scope["path"]
        if self._hosts is not None:
            self._check_host(headers.get("host", ""))
        names = {name.lower() for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)}
        if names & TOKEN_PARAMETERS:
            # Whoever logs or keeps URLs would have it.
            message = "a token is not taken from a URL, where others read it: send it as `Authorization: Bearer TOKEN`"
            raise HttpError(HTTPStatus.BAD_REQUEST, message)
        if self._access is None or path in PUBLIC or is_page(path):  # which knows its viewers by sessions
            return
        caller = self._access.caller(bearer_digest(headers.items()))
        note_caller(caller)
        of_operation = role_at(scope["method"], path)
        role = ROLES.get(path, Role.ADMIN) if of_operation is None else of_operation
        caller.require(role, f"{scope['method']} {shown_path(path)}")
        if of_operation is None and path != TRACES_PATH:  # these count with their bytes when they have come
            caller.take(0)

    def _check_host(self, given: str) -> None:
        """A page of another site can have its own name lead here (DNS rebinding), and call as if it were ours. An
        address it cannot take."""
        host = given.rsplit(":", 1)[0] if not given.endswith("]") else given
        name = host.strip("[]").lower().rstrip(".")
        assert self._hosts is not None
        if not given or name in self._hosts or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return
        message = f"there is no host {shown_path(host)!r} here; add it by --http-allowed-host if it is this server"
        raise HttpError(HTTPStatus.MISDIRECTED_REQUEST, message)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
