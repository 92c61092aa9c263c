"""Two hundred runners, one algorithm and a wire that breaks, for minutes: nothing is lost, doubled or stuck, and
nothing grows.

``make test-soak SOAK_SECONDS=60 SOAK_SEED=7``. The seed, which is printed, decides which calls meet a fault and what
each runner does; the order in which calls come is the machine's, so no two runs are quite the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.soak.scene import END_SECONDS_MAX, Served, Soak

SECONDS: Final = float(os.environ.get("SOAK_SECONDS") or 600)
SEED: Final = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(10_000))
STRICT: Final = bool(SEED % 2)
BROKEN_SECONDS: Final = 30.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + END_SECONDS_MAX + 90)]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Lost heartbeats and calls that are made again are the rule here."""
    caplog.set_level(logging.ERROR, "lightning_store_client")


def soaked(directory: Path, seconds: float, **flags: object) -> tuple[Soak, list[str]]:
    """One that has run, with a server that has ``flags`` beside the usual ones; and what went wrong."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    served = Served(directory, seconds + END_SECONDS_MAX + 60, flags, strict=STRICT)
    try:
        soak = Soak(served, seconds, SEED, strict=STRICT)
        asyncio.run(soak.run())
        return soak, [*soak.ledger.violations, *soak.gauges.growing(), *served.problems()]
    finally:
        served.program.discard()


def test_nothing_is_lost_doubled_stuck_or_growing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak, problems = soaked(tmp_path, SECONDS)
    with capsys.disabled():
        print(f"\n{soak.report() if problems else soak.summary()}")
    if problems:
        again = f"make test-soak SOAK_SECONDS={SECONDS:g} SOAK_SEED={SEED}"
        pytest.fail("\n".join([again, *problems]), pytrace=False)


def test_a_server_that_replays_nothing_is_caught(tmp_path: Path) -> None:
    soak, _ = soaked(tmp_path, BROKEN_SECONDS, replay_entries_max=1)
    assert soak.ledger.violations
