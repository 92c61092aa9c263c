"""Who looks at the page: a browser logs in with a token, and is known by a cookie from then on.

A change asks for a token against forged requests, which only the page itself shows, and for the page's own origin.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from lightning_store.clock import Clock
from lightning_store.errors import UnauthenticatedError
from lightning_store.wire.methods import Role
from lightning_store_server.access import Access, Caller
from lightning_store_server.http.answers import HttpError
from lightning_store_server.tokens import digest_of

COOKIE: Final = "lightning_store_session"
SESSION_SECONDS: Final = 12 * 3600.0
SESSIONS_MAX: Final = 1000
"""Sessions that are kept; the oldest one ends for another."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who makes a request."""

    caller: Caller | None
    """None where the server has no tokens."""
    csrf: str
    """What a form that changes something has to bring back."""

    def may(self, role: Role) -> bool:
        """Whether methods of this role are for this viewer."""
        return self.caller is None or self.caller.token.role.suffices_for(role)

    @property
    def sees_secrets(self) -> bool:
        """The page shows secrets to nobody who would not get them over gRPC, and hides them at first from all."""
        return self.caller is None or self.caller.sees_secrets


@dataclass(frozen=True, slots=True)
class _Session:
    digest: str
    csrf: str
    until: float


class Sessions:
    """The browsers that have logged in. They are forgotten when the server ends.

    Args:
        access: Knows the tokens; None where there are none, and everybody may do everything.
        clock: Tells when a session is over.
    """

    def __init__(self, access: Access | None, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        """By the hash of what the cookie holds."""
        self._csrf = secrets.token_urlsafe(24)
        """Of everybody where there are no tokens: other origins cannot read it."""

    @property
    def needed(self) -> bool:
        """Whether a browser has to log in."""
        return self._access is not None

    def viewer(self, request: Request) -> Viewer:
        """Who makes this request.

        Raises:
            UnauthenticatedError: Nobody who has logged in, or whose token counts no longer.
            ResourceExhaustedError: The token has had its calls.
        """
        if self._access is None:
            return Viewer(None, self._csrf)
        session = self._sessions.get(digest_of(request.cookies.get(COOKIE, "")))
        if session is None or self._clock.monotonic() > session.until:
            raise UnauthenticatedError("log in with a token")
        caller = self._access.caller(session.digest)
        caller.take(0)
        return Viewer(caller, session.csrf)

    def begin(self, token: str, request: Request, response: Response) -> None:
        """Log a browser in. UnauthenticatedError if the token is not one that counts."""
        assert self._access is not None
        digest = digest_of(token.strip())
        self._access.caller(digest)
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        key = secrets.token_urlsafe(32)
        until = self._clock.monotonic() + SESSION_SECONDS
        self._sessions[digest_of(key)] = _Session(digest, secrets.token_urlsafe(24), until)
        response.set_cookie(
            COOKIE, key, path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict"
        )

    def end(self, request: Request, response: Response) -> None:
        """Log a browser out."""
        self._sessions.pop(digest_of(request.cookies.get(COOKIE, "")), None)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


def check_origin(request: Request) -> None:
    """HttpError unless a form comes from a page of this server."""
    origin = request.headers.get("origin", "")
    if urlsplit(origin).netloc != request.headers.get("host") or not origin:
        message = "this form comes from another origin; open the page itself and try again"
        raise HttpError(HTTPStatus.FORBIDDEN, message)


def check_csrf(viewer: Viewer, given: str) -> None:
    """HttpError unless a form brings back what this viewer's page had."""
    if not hmac.compare_digest(viewer.csrf.encode(), given.encode()):
        message = "the form is not of this session; go back, load the page again and repeat it"
        raise HttpError(HTTPStatus.FORBIDDEN, message)
