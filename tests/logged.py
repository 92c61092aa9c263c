"""What the project logged. With grpcio 1.71 asyncio logs too, whenever one event loop was woken for another."""

from __future__ import annotations

import logging

import pytest


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged under the project's names."""
    return [record for record in caplog.records if record.name.startswith("lightning_store")]


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The levels of what was logged."""
    return [record.levelname for record in records(caplog)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages of what was logged at WARNING or above."""
    return [record.getMessage() for record in records(caplog) if record.levelno >= logging.WARNING]
