"""Log records on stderr, for people and for programs."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import datetime

import pytest

from lightning_store_server.logs import LogFormat, configure_logging

logger = logging.getLogger("lightning_store_server.test")


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    call = {"method": "/x/Y", "code": "OK", "duration_ms": 1.5, "peer": "ipv4:127.0.0.1:1"}
    logger.info("two\nlines of %s \ud800", "naïve text", extra={"call": call})
    logger.debug("not this one")
    [record] = records(capsys)
    assert datetime.fromisoformat(str(record.pop("time"))).tzinfo is not None
    assert record == {
        "level": "INFO",
        "logger": "lightning_store_server.test",
        "message": "two\nlines of naïve text \ud800",
        "call": call,
    }


def test_json_has_the_exception_as_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("error", "json")
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        logger.exception("failed", stack_info=True)
    [record] = records(capsys)
    assert str(record["exception"]).endswith("ZeroDivisionError: by nothing")
    assert "test_logs.py" in str(record["stack"])


def test_warnings_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    [record] = records(capsys)
    assert record["logger"] == "py.warnings"


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    logger.warning("look: %s", 1)
    assert capsys.readouterr().err.endswith(" WARNING lightning_store_server.test: look: 1\n")


FORGED = "GetRollout\n2026-01-01T00:00:00.000Z INFO root: all is well\x1b[2J\u2028\u202e"


def test_a_line_of_text_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    logger.warning("%s failed", FORGED)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(r"GetRollout\n2026-01-01T00:00:00.000Z INFO root: all is well\x1b[2J\u2028\u202e failed")


def test_a_traceback_looks_like_no_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("failed", stack_info=True)
    first, *others = capsys.readouterr().err.split("\n")[:-1]
    assert first.endswith(" ERROR lightning_store_server.test: failed")
    assert all(line.startswith("  ") and line.isprintable() for line in others)
    assert any("ValueError: GetRollout" in line for line in others)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_is_logged_is_bounded(capsys: pytest.CaptureFixture[str], log_format: LogFormat) -> None:
    configure_logging("info", log_format)
    long = "x" * 1_000_000
    logger.info("%s", long, extra={"call": {"method": long, "code": "OK"}})
    try:
        raise ValueError(long)
    except ValueError:
        logger.exception("failed")
    assert len(capsys.readouterr().err) < 100_000
