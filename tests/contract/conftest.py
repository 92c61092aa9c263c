"""Where the suites of the contract keep their databases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

IN_MEMORY = Path("/dev/shm")
FREE_BYTES_MIN = 1024**3


@pytest.fixture
def database_folder(tmp_path: Path) -> Iterator[Path]:
    """For databases whose plug no test pulls: in memory where there is room, since each commit waits for a disk."""
    if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > FREE_BYTES_MIN:
        with TemporaryDirectory(dir=IN_MEMORY) as folder:
            yield Path(folder)
    else:
        yield tmp_path
