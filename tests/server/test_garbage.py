"""What a long full collection leaves is set aside, and what a short one leaves is not."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from lightning_store_server.garbage import PAUSE_SECONDS_MAX, YOUNGER_COLLECTIONS, GarbageWatch


@pytest.fixture
def seconds() -> list[float]:
    """The readings of the clock to come."""
    return []


@pytest.fixture
def watch(seconds: list[float]) -> Iterator[GarbageWatch]:
    with GarbageWatch(lambda: seconds.pop(0) if seconds else 0.0) as watch:
        yield watch


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize(("took", "set_aside"), [(PAUSE_SECONDS_MAX / 2, False), (PAUSE_SECONDS_MAX * 2, True)])
def test_a_long_full_collection_is_the_last_to_see_what_is_there(seconds: list[float], took: float, set_aside: bool):
    kept = [[number] for number in range(1000)]
    before = gc.get_freeze_count()
    seconds.extend([0.0, took])
    gc.collect()
    assert (gc.get_freeze_count() >= before + len(kept)) == set_aside


@pytest.mark.usefixtures("watch")
def test_short_collections_are_left_alone(seconds: list[float]):
    seconds.extend([0.0, 1.0])
    before = gc.get_freeze_count()
    gc.collect(1)
    assert gc.get_freeze_count() == before
    assert seconds == [0.0, 1.0]


def test_afterwards_all_is_as_before():
    callbacks, thresholds = list(gc.callbacks), gc.get_threshold()
    with GarbageWatch():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[1:] == YOUNGER_COLLECTIONS or sys.version_info >= (3, 14)  # which has no third
    assert (gc.callbacks, gc.get_threshold()) == (callbacks, thresholds)
    assert gc.get_freeze_count() == 0
