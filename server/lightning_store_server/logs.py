"""Log records of the server process, on stderr: lines for people or one JSON object per line for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

from lightning_store.text import clipped, printable

LogFormat = Literal["text", "json"]

TEXT_FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"


MESSAGE_CHARS_MAX: Final = 4000
"""Characters of one message; what a peer sends may be in it."""
TRACEBACK_CHARS_MAX: Final = 50_000
"""Characters of one traceback; its end is kept, which has the error."""


class JsonFormatter(logging.Formatter):
    """One JSON object, on one line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``; ``call`` in access
    records (method, code, duration_ms, peer), ``exception`` and ``stack`` where the record has them."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": clipped(record.getMessage(), MESSAGE_CHARS_MAX),
        }
        call = getattr(record, "call", None)
        if call is not None:
            fields["call"] = {
                name: clipped(value, MESSAGE_CHARS_MAX) if isinstance(value, str) else value
                for name, value in call.items()
            }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)[-TRACEBACK_CHARS_MAX:]
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields, default=str)


class TextFormatter(logging.Formatter):
    """A line with the time in UTC, as in the JSON form, so that logs of several machines can be read together. Whatever
    the message has in it, it is one line; those of a traceback follow, indented, so that none looks like a record."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT, TIME_FORMAT)
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(clipped(record.message, MESSAGE_CHARS_MAX))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {printable(line)}" for line in text[-TRACEBACK_CHARS_MAX:].split("\n"))


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send warnings, and records of ``level`` (a name that :mod:`logging` knows) and above, to stderr alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
