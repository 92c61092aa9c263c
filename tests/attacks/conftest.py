"""One server for each backend, which all attacks share: it has to survive them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.target import Target, start_target


@pytest.fixture(scope="session", params=["memory", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder: Path = tmp_path_factory.mktemp("attacks")
    database = "memory:" if request.param == "memory" else f"sqlite:{folder / 'store.db'}"
    started = start_target(database, folder / "server.log")
    try:
        yield started
        assert started.end() == 0
    finally:
        started.kill()
        print(started.log.read_text()[-3000:])
