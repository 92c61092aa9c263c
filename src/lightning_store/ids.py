"""Ids that nobody else has made: random ones, without a system call for each.

``uuid4`` asks the operating system for every id, and Python lets other threads run meanwhile: in a process that makes
thousands of calls a second, waiting to go on afterwards takes longer than all the rest of a call. The ids are unique,
and no secret.
"""

from __future__ import annotations

import os
import random

_random = random.Random()
"""Seeded by the operating system: a program that seeds Python's shared generator does not make its ids repeat."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_hex(digits: int) -> str:
    """So many random hexadecimal digits."""
    return f"{_random.getrandbits(4 * digits):0{digits}x}"
