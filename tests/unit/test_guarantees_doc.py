"""docs/guarantees.md names tests that exist, and one or more for each promise."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/guarantees.md"
PLACES = {"contract": ROOT / "src/lightning_store/testing/contract"}
"""Where the files are whose names begin so; the others are in ``tests``."""
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows(section: str) -> list[list[str]]:
    """The cells of the tables in one of the two chapters, without their heads."""
    lines = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[-1].strip() not in ("shown by", "seen in")]


PROMISED, NOT_PROMISED = (rows(chapter) for chapter in DOCUMENT.read_text().split("# What is not promised\n"))


def path_of(file: str) -> Path:
    place, _, name = file.partition("/")
    return PLACES[place] / name if place in PLACES else ROOT / "tests" / file


@functools.cache
def names_in(path: Path) -> set[str]:
    """The names of its functions, methods and classes."""
    tree = ast.parse(path.read_text())
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, named)}


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED.findall(DOCUMENT.read_text()))))
def test_each_test_that_is_named_exists(file: str, name: str) -> None:
    assert re.match(r"test_|Test|\w+Contract$", name), f"{name} is no test"
    assert path_of(file).exists(), f"there is no file {path_of(file)}"
    assert name in names_in(path_of(file)), f"{path_of(file)} has no {name}"


@pytest.mark.parametrize("cells", PROMISED, ids=lambda cells: cells[0].strip())
def test_each_promise_has_a_test(cells: list[str]) -> None:
    assert len(cells) == 3
    assert NAMED.search(cells[2])


def test_both_chapters_have_rows() -> None:
    assert len(PROMISED) > 30
    assert all(len(cells) == 3 for cells in NOT_PROMISED)
    assert len(NOT_PROMISED) > 10
