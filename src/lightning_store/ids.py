"""Ids that nobody else has made: random ones, without a system call for each.

``uuid4`` asks the operating system for every id, and Python lets other threads run meanwhile: in a process that makes
thousands of calls a second, waiting to go on afterwards takes longer than all the rest of a call. The ids are unique,
and no secret.
"""

from __future__ import annotations

import os
import random
from typing import Final

TICKS_A_SECOND: Final = 10
"""Ids that are made within one of them begin alike."""
_TIME_DIGITS: Final = 5
"""Of an id that is made at some time: for 29 hours no beginning comes again."""

_random = random.Random()
"""Seeded by the operating system: a program that seeds Python's shared generator does not make its ids repeat."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_hex(digits: int) -> str:
    """So many random hexadecimal digits."""
    return f"{_random.getrandbits(4 * digits):0{digits}x}"


def new_hex_at(now: float, digits: int) -> str:
    """The same, beginning with the time: an index by such ids is written at one place at a time, and not all over.

    Args:
        now: The time, in seconds since the epoch.
        digits: How many, of which all but five are random.
    """
    ticks = int(now * TICKS_A_SECOND) % 16**_TIME_DIGITS
    return f"{ticks:0{_TIME_DIGITS}x}{new_hex(digits - _TIME_DIGITS)}"
