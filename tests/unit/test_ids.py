"""Ids that no other process makes."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import pytest

from lightning_store.ids import new_hex, new_hex_at


def test_an_id_has_as_many_digits_as_asked_for() -> None:
    assert all(re.fullmatch("[0-9a-f]{12}", new_hex(12)) for _ in range(1000))


def test_an_id_with_a_time_begins_with_it() -> None:
    """So those that are made at about the same time are neighbours, the later ones after the earlier ones."""
    begun = 1_700_000_000.0
    ids = [new_hex_at(begun + seconds, 12) for seconds in range(100)]
    assert ids == sorted(ids)
    assert len({one[:5] for one in ids}) == 100
    assert all(re.fullmatch("[0-9a-f]{12}", one) for one in ids)
    assert len({new_hex_at(begun, 12) for _ in range(1000)}) == 1000
    assert new_hex_at(begun, 12)[:5] == new_hex_at(begun + 16**5 / 10, 12)[:5]


def test_a_program_that_seeds_the_shared_generator_does_not_make_them_repeat() -> None:
    random.seed(7)
    first = new_hex(32)
    random.seed(7)
    assert new_hex(32) != first


FORKING = r"""
import os
from lightning_store.ids import new_hex

child = os.fork()
os.write(1, f"{new_hex(32)}\n".encode())
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_makes_others_than_its_parent() -> None:
    result = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True)
    first, second = result.stdout.split()
    assert first != second
