"""The training demo on two servers, of which one is killed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_svamp_demo import run_demo
from tools.postgres_server import PostgresServer


@pytest.mark.slow
def test_a_training_run_goes_on_when_one_of_two_servers_is_killed(postgres: PostgresServer, tmp_path: Path) -> None:
    shared = ("--database", postgres.dsn(), "--servers", "2", "--kill-server", "--no-kill-runner")
    said, summary = run_demo(tmp_path, *shared)
    found = re.search(r"^  killed the server at (\S+)\n  the run goes on at (\S+)$", said, re.MULTILINE)
    assert found is not None
    assert found[1] != found[2]
    assert len(re.findall(r"^watch it: ", said, re.MULTILINE)) == 2
    assert summary.failed == 0
    assert summary.trained_accuracy > summary.untrained_accuracy + 0.2
