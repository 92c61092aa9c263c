"""What all tests share: repeatable property tests, and a line that says how many contract tests each store passed."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections import Counter
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# A shell that runs the tests in the background has them ignore Ctrl-C, and they would hand that on to their programs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=10)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

collect_ignore = [] if find_spec("playwright") else ["web"]

_CONTRACT_TEST = re.compile(r"tests/contract/test_(?P<store>\w+)\.py::Test\w+::test_(?:f\d\d|x)_")


def pytest_collection_finish() -> None:
    """Spare the garbage collector the thousands of tests, which all stay."""
    given(st.none())(lambda _: None)()  # Hypothesis 6.100 looks for references at first, which it could not find later
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        if report.when == "call" and (match := _CONTRACT_TEST.match(report.nodeid)):
            passed[match["store"].replace("_", "-")] += 1
    if passed:
        terminalreporter.write_line(
            "contract: " + ", ".join(f"{store} {count} passed" for store, count in passed.items())
        )
