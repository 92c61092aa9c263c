"""Memory that was freed a moment ago is kept for the next call.

glibc hands what is free at the end of the heap back to the system as soon as it is more than some hundred kilobytes. A
server that is asked for the same pages of rows again and again would get the same memory from the system again for each
of them: 150 page faults for a page of 170 kB, which take a third of the time.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

KEPT_BYTES: Final = 32 * 1024 * 1024
"""At the most, of each of the heaps that threads have."""
HEAP_BYTES_MAX: Final = 8 * 1024 * 1024
"""What is larger comes from the system each time, and goes back to it. (To set one of the two fixes the other.)"""

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
SET_BY_USER: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """For a process that does nothing but serve. Whether it has an effect: not without glibc, and not where the
    environment says how it is to be."""
    if any(name in os.environ for name in SET_BY_USER):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(set_option(_TRIM_THRESHOLD, KEPT_BYTES) and set_option(_MMAP_THRESHOLD, HEAP_BYTES_MAX))
