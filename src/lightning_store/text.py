"""Text that not every encoding and not every database holds."""

from __future__ import annotations

import re
from typing import Final

ID_BYTES_MAX: Final = 1024
"""Bytes of an id or a name in UTF-8."""
ID_CHARS_SAFE: Final = ID_BYTES_MAX // 4
"""Any text of so many characters is short enough."""
REPLACEMENT: Final = "\ufffd"
ELLIPSIS: Final = "…"
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def has_surrogate(text: str) -> bool:
    """Tell whether text has no UTF-8 form.

    Args:
        text: Any text.

    Returns:
        Whether it has a lone surrogate.
    """
    return not text.isascii() and _SURROGATES.search(text) is not None


def replace_surrogates(text: str) -> str:
    """Make text that has a UTF-8 form.

    Args:
        text: Any text.

    Returns:
        The text with U+FFFD for each lone surrogate.
    """
    return _SURROGATES.sub(REPLACEMENT, text)


def column_text(text: str) -> str:
    """Make text that every database holds, such as the name of a span, by which spans are found.

    Args:
        text: Any text.

    Returns:
        The text with U+FFFD for each lone surrogate and each U+0000.
    """
    return text if text.isascii() and "\0" not in text else replace_surrogates(text).replace("\0", REPLACEMENT)


def is_id(text: str) -> bool:
    """Tell whether text is short enough for an id or a name.

    Args:
        text: Any text that has a UTF-8 form.

    Returns:
        Whether it has :data:`ID_BYTES_MAX` bytes or less.
    """
    return len(text) <= ID_BYTES_MAX and (text.isascii() or len(text.encode(errors="replace")) <= ID_BYTES_MAX)


def printable(text: str) -> str:
    """Make text that cannot move a cursor, recolour a terminal or begin a new line.

    Args:
        text: Any text.

    Returns:
        The text with escapes for control characters, line ends and what else does not print.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def clipped(text: str, length: int) -> str:
    """Cut text that is too long.

    Args:
        text: Any text.
        length: Characters to keep at most, 1 or more.

    Returns:
        The text, with an ellipsis in the place of what was cut off.
    """
    return text if len(text) <= length else text[: length - 1] + ELLIPSIS
