"""The rate at which rejected spans are logged."""

from __future__ import annotations

import asyncio

import pytest

from lightning_store.testing import FakeClock
from lightning_store_server.otlp.rejections import LINES_MAX, PERIOD_SECONDS, Rejections
from tests import logged

pytestmark = pytest.mark.asyncio


@pytest.fixture
def clock():
    return FakeClock()


async def test_the_first_ones_are_logged_and_the_others_counted(clock, caplog):
    rejections = Rejections(clock)
    for number in range(LINES_MAX + 25):
        rejections.add(f"spans[{number}]", "span_id is missing")
    assert len(logged.warnings(caplog)) == LINES_MAX
    assert logged.warnings(caplog)[0] == "OTLP: span rejected: span_id is missing (spans[0])"
    clock.advance(PERIOD_SECONDS)
    await asyncio.sleep(0)
    [line] = logged.warnings(caplog)[LINES_MAX:]
    assert line == f"OTLP: 25 more spans rejected; {LINES_MAX + 25} since the server started"
    rejections.add("spans[0]", "span_id is missing")
    assert len(logged.warnings(caplog)) == LINES_MAX + 2
    assert rejections.count == LINES_MAX + 26


async def test_a_quiet_period_adds_no_line(clock, caplog):
    rejections = Rejections(clock)
    rejections.add("spans[0]", "span_id is missing")
    clock.advance(PERIOD_SECONDS)
    await asyncio.sleep(0)
    rejections.close()
    assert len(logged.warnings(caplog)) == 1


async def test_what_is_not_logged_yet_is_logged_at_the_end(clock, caplog):
    rejections = Rejections(clock)
    for _ in range(LINES_MAX + 1):
        rejections.add("spans[0]", "span_id is missing")
    rejections.close()
    assert logged.warnings(caplog)[-1].startswith("OTLP: 1 more spans rejected")
