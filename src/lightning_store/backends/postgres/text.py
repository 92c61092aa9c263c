"""Ids and names as PostgreSQL holds them: its text has neither U+0000 nor lone surrogates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_ESCAPED: Final = re.compile("[\0\x01\ud800-\udfff]")
_ESCAPES: Final = re.compile("\x01(\x01|\x02|\x03[0-9a-f]{4})")


def escaped(text: str) -> str:
    """The form in which ids and names are stored, and looked up."""
    return text if text.isprintable() and text.isascii() else _ESCAPED.sub(_escape, text)


def escaped_or_none(text: str | None) -> str | None:
    return None if text is None else escaped(text)


def all_escaped(texts: Iterable[str]) -> list[str]:
    return list(map(escaped, texts))


def plain(text: str) -> str:
    """The text that was stored."""
    return _ESCAPES.sub(_unescape, text) if "\x01" in text else text


def plain_or_none(text: str | None) -> str | None:
    return None if text is None else plain(text)


def _escape(found: re.Match[str]) -> str:
    match found[0]:
        case "\0":
            return "\x01\x01"
        case "\x01":
            return "\x01\x02"
        case surrogate:
            return f"\x01\x03{ord(surrogate):04x}"


def _unescape(found: re.Match[str]) -> str:
    match found[1]:
        case "\x01":
            return "\0"
        case "\x02":
            return "\x01"
        case code:
            return chr(int(code[1:], 16))
