"""Log records of the server process, on stderr: lines for people or one JSON object per line for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Final, Literal

LogFormat = Literal["text", "json"]

TEXT_FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"


class JsonFormatter(logging.Formatter):
    """One JSON object, on one line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``; ``call`` in access
    records (method, code, duration_ms, peer), ``exception`` and ``stack`` where the record has them."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = getattr(record, "call", None)
        if call is not None:
            fields["call"] = call
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields, default=str)


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send warnings, and records of ``level`` (a name that :mod:`logging` knows) and above, to stderr alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else _text_formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def _text_formatter() -> logging.Formatter:
    """Lines with the time in UTC, as in the JSON form, so that logs of several machines can be read together."""
    formatter = logging.Formatter(TEXT_FORMAT, TIME_FORMAT)
    formatter.converter = time.gmtime
    return formatter
