"""Files that may be replaced while a program uses them: tokens, certificates."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Final, TypeAlias

from lightning_store.clock import Clock, SystemClock

LOOK_SECONDS: Final = 1.0
"""Between two looks at the files."""

_Signature: TypeAlias = "tuple[int, ...] | None"


class WatchedFiles:
    """Tells when one of some files has changed. For any thread.

    Args:
        paths: The files. One that is missing has changed when it is there, and any when others may read it.
        clock: Tells when to look again.
    """

    def __init__(self, paths: Iterable[str], clock: Clock | None = None) -> None:
        self._paths = tuple(paths)
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._lock = threading.Lock()
        self._seen = self._signatures()
        self._look_at = self._clock.monotonic() + LOOK_SECONDS

    def changed(self, *, at_once: bool = False) -> bool:
        """Whether a file is another one than when this was made, or last said so. Looks once a second at most, but
        ``at_once`` if asked."""
        if not at_once and self._clock.monotonic() < self._look_at:
            return False
        with self._lock:
            self._look_at = self._clock.monotonic() + LOOK_SECONDS
            before, self._seen = self._seen, self._signatures()
            return self._seen != before

    def _signatures(self) -> tuple[_Signature, ...]:
        return tuple(map(_signature, self._paths))


def _signature(path: str) -> _Signature:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode, found.st_uid, found.st_gid
