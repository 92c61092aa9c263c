"""How sizes, times and stored text are written."""

from __future__ import annotations

import time

import pytest

from lightning_store_server.text import age, byte_size, clip, duration, moment, short_json


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (17, "17B"),
        (1023, "1023B"),
        (64 * 2**20, "64MiB"),
        (3 * 2**29, "1.5GiB"),
        (2**60, "1048576TiB"),
    ],
)
def test_byte_size(count: int, text: str) -> None:
    assert byte_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "0ms"),
        (0.00084, "0.84ms"),
        (0.5, "500ms"),
        (3.25, "3.25s"),
        (303.9, "5m 03s"),
        (7500, "2h 05m"),
        (274_000, "3d 04h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "now"),
        (-0.2, "now"),
        (12, "12s ago"),
        (-12, "in 12s"),
        (200, "3m ago"),
        (20_000, "5h ago"),
        (200_000, "2d ago"),
    ],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_moment_is_local_time_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")  # POSIX counts westwards: two hours east of Greenwich
    time.tzset()
    try:
        assert moment(1_700_000_000.9, 1_700_000_060.9) == "2023-11-15 00:13:20 1m ago"
        assert moment(None, 0) == ""
    finally:
        monkeypatch.undo()
        time.tzset()


def test_stored_text_cannot_reach_the_terminal() -> None:
    assert clip("red \x1b[31m\r\n\u202e") == "red \\x1b[31m\\r\\n\\u202e"
    assert clip("\ud800") == "\\ud800"
    assert clip("naïve 数") == "naïve 数"
    assert clip("abcdef", 4) == "abc…"


def test_short_json() -> None:
    assert short_json("plain") == "plain"
    assert short_json({"a": [1, None, float("nan")]}) == '{"a": [1, null, NaN]}'
    assert short_json({"a": "数"}, 7) == '{"a": …'
