"""Templates, the files that they refer to, and what every page is sent with."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response

from lightning_store_server.http.guard import PAGE_PREFIX
from lightning_store_server.text import age, byte_size, clip, duration, short_json

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
STATIC: Final = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
MEASURED_MAX: Final = 2**60
JSON_CHARS_MAX: Final = 200_000
"""Characters of one value that a page shows."""


class Pages:
    """Renders templates. ``version`` is that of the program, which pages show and by which files are told apart."""

    def __init__(self, version: str) -> None:
        self._environment = Environment(
            loader=PackageLoader("lightning_store_server.http.page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            age=age,
            bytes=byte_size,
            clip=clip,
            duration=duration,
            iso=iso,
            json=pretty,
            measured=measured,
            short=short_json,
            thousands=thousands,
        )
        self._environment.globals.update(prefix=PAGE_PREFIX, version=version)

    def render(self, name: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
        """A page."""
        text = self._environment.get_template(name).render(**values)
        return Response(text.encode(errors="replace"), status, HEADERS, media_type="text/html; charset=utf-8")


@cache
def static_file(name: str) -> bytes:
    """The content of one of :data:`STATIC`."""
    return (files("lightning_store_server.http.page") / "static" / name).read_bytes()


def iso(time: float) -> str:
    """A moment in UTC."""
    return datetime.fromtimestamp(time, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")


def pretty(value: Any) -> str:
    """A value as JSON on several lines, as much of it as a page shows."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    if len(text) <= JSON_CHARS_MAX:
        return text
    return f"{text[:JSON_CHARS_MAX]}\n… ({len(text) - JSON_CHARS_MAX:,} characters more)"


def measured(value: Any, unit: str) -> str:
    """A number that somebody measured, in per cent or bytes; empty if it is none that can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MEASURED_MAX:
        return ""
    return f"{value:.0f}%" if unit == "%" else byte_size(int(value))


def thousands(count: float | None) -> str:
    """A count with its thousands apart."""
    return "" if count is None else f"{count:,.0f}"


def difference(before: str, after: str) -> Sequence[tuple[str, str]]:
    """The lines of two texts, each with "same", "gone" or "new"; of what is the same some lines around the rest."""
    kinds = {"+": "new", "-": "gone", " ": "same", "@": "at"}
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=3, lineterm="")
    return [(kinds[line[0]], line[1:] if line[0] != "@" else line) for line in list(lines)[2:]]
