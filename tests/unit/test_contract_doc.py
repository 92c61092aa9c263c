"""docs/contract.md tells each fact that the conformance suite tests, under the number that the tests have."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/contract.md").read_text()
TESTS = "".join(path.read_text() for path in (ROOT / "src/lightning_store/testing/contract").glob("*.py"))


def test_the_facts_are_those_that_are_tested() -> None:
    told = [int(number) for number in re.findall(r"^\*\*(\d+)\. ", DOCUMENT, re.MULTILINE)]
    assert told == sorted({int(number) for number in re.findall(r"def test_f(\d+)_", TESTS)})


def test_a_fact_says_where_strict_mode_differs_if_it_has_a_strict_test() -> None:
    facts = {int(text.split(".")[0]): text for text in re.split(r"^\*\*(?=\d+\. )", DOCUMENT, flags=re.MULTILINE)[1:]}
    strict = {int(number) for number in re.findall(r"def test_f(\d+)_strict_", TESTS)}
    assert strict == {number for number, text in facts.items() if "**Strict:**" in text}
