"""Spans that OTLP's Export rejected: counted, and logged at a bounded rate. Most exporters drop the response in
silence, so the log and the count are what tells of them."""

from __future__ import annotations

import logging
from typing import Final

from lightning_store.clock import Clock, SystemClock, Timer
from lightning_store.text import clipped, printable

logger = logging.getLogger("lightning_store_server")

PERIOD_SECONDS: Final = 60.0
LINES_MAX: Final = 10
"""Lines that are logged in a period; one more at its end has the number of the others."""


CAUSE_CHARS_MAX: Final = 1000


class Rejections:
    """The rejected spans of one server. Used on its event loop.

    Args:
        clock: Bounds the rate of the log.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.count = 0
        """Since the server started."""
        self._clock = clock if clock is not None else SystemClock()
        self._lines = 0
        self._unlogged = 0
        self._period: Timer | None = None

    def add(self, path: str, cause: str) -> None:
        """Count a span, and log it if the rate allows.

        Args:
            path: Its place in the request.
            cause: Why it cannot be stored.
        """
        self.count += 1
        if self._period is None:
            self._period = self._clock.call_later(PERIOD_SECONDS, self._end_period)
        if self._lines < LINES_MAX:
            self._lines += 1
            logger.warning("OTLP: span rejected: %s (%s)", printable(clipped(cause, CAUSE_CHARS_MAX)), path)
        else:
            self._unlogged += 1

    def close(self) -> None:
        """Log what is not logged yet."""
        if self._period is not None:
            self._period.cancel()
            self._end_period()

    def _end_period(self) -> None:
        self._period = None
        self._lines = 0
        unlogged, self._unlogged = self._unlogged, 0
        if unlogged:
            logger.warning("OTLP: %d more spans rejected; %d since the server started", unlogged, self.count)
