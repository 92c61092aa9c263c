"""Ids that no other process makes."""

from __future__ import annotations

import os
import random
import re

import pytest

from lightning_store.ids import new_hex


def test_an_id_has_as_many_digits_as_asked_for() -> None:
    assert all(re.fullmatch("[0-9a-f]{12}", new_hex(12)) for _ in range(1000))


def test_a_program_that_seeds_the_shared_generator_does_not_make_them_repeat() -> None:
    random.seed(7)
    first = new_hex(32)
    random.seed(7)
    assert new_hex(32) != first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_makes_others_than_its_parent() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_hex(32).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as of_child:
        assert of_child.read() != new_hex(32)
    assert os.waitpid(child, 0)[1] == 0
