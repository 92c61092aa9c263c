"""What is made of texts that come again and again, such as ids and names in spans, is made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeVar

REMEMBERED_MAX: Final = 8192
"""What is remembered of each kind, at the most."""
CHARS_MAX: Final = 256
"""Longer texts are not remembered: anybody may send them, and they would fill the memory."""

MadeT = TypeVar("MadeT")


def remembering(make: Callable[[str], MadeT]) -> Callable[[str], MadeT]:
    """``make``, which must depend on the text alone, and returns the same object again for a text in use."""
    remembered = lru_cache(REMEMBERED_MAX)(make)

    def made_of(text: str) -> MadeT:
        return remembered(text) if len(text) <= CHARS_MAX else make(text)

    return made_of
