"""The contract suite itself: it covers every fact, and stores can deviate from it only by name and with a reason."""

from __future__ import annotations

import re

import pytest

from lightning_store.testing import StoreContract

pytest_plugins = ["pytester"]

NAMES = [name for name in dir(StoreContract) if name.startswith("test_")]


def test_every_fact_has_a_test():
    numbered = {int(match[1]) for name in NAMES if (match := re.match(r"test_f(\d\d)_", name))}
    assert numbered == set(range(1, 35))


def test_every_test_says_whether_it_is_of_a_fact_or_of_an_extension():
    assert [name for name in NAMES if not re.match(r"test_(f\d\d|x)_\w", name)] == []


def test_no_part_hides_a_test_of_another():
    names = [name for part in StoreContract.__bases__ for name in vars(part) if name.startswith("test_")]
    assert sorted(names) == NAMES


def test_a_deviation_must_name_a_test():
    with pytest.raises(TypeError, match="test_f99_nothing"):
        type("Deviant", (StoreContract,), {"deviations": {"test_f99_nothing": "no such test"}})


def test_a_deviation_is_skipped_with_its_reason(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        from lightning_store import InMemoryLightningStore
        from lightning_store.testing import StoreContract

        class TestMyStore(StoreContract):
            deviations = {"test_f04_an_empty_queue_gives_none": "the queue is never empty"}
            async def open_store(self, clock, **options):
                yield InMemoryLightningStore(clock=clock, **options)
        """
    )
    result = pytester.runpytest_inprocess(
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-rs",
        "-k",
        "empty_queue or first_in",
    )
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(["*the queue is never empty*"])
