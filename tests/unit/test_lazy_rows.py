"""Rows of a query, which are made when they are looked at."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

from lightning_store.model import LazyRows, PaginatedResult
from lightning_store_server.pages import PageLimits, batches


class Maker:
    """Makes a row of a number, and notes for which."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, source: int) -> list[int]:
        if source < 0:
            raise ValueError(f"{source} is malformed")
        self.made.append(source)
        return [source]


def test_a_row_is_made_at_the_first_look_and_once():
    make = Maker()
    rows = LazyRows([5, 6, 7], make)
    assert (len(rows), make.made) == (3, [])
    assert rows[1] is rows[-2]
    assert make.made == [6]
    assert list(rows) == [[5], [6], [7]]
    assert make.made == [6, 5, 7]


def test_what_is_changed_in_a_row_stays():
    rows = LazyRows([1, 2], Maker())
    for row in rows:
        row.append(0)
    assert rows == [[1, 0], [2, 0]]


def test_a_slice_is_a_list_of_the_same_rows():
    rows = LazyRows([1, 2, 3, 4], Maker())
    assert rows[::-2] == [[4], [2]]
    assert rows[1:][0] is rows[1]


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_out_of_range(index: int):
    with pytest.raises(IndexError):
        LazyRows([1, 2, 3], Maker())[index]


def test_a_malformed_row_raises_at_each_look_and_spoils_no_other():
    rows = LazyRows([1, -1], Maker())
    assert rows[0] == [1]
    for _ in range(2):
        with pytest.raises(ValueError, match="-1 is malformed"):
            rows[1]


def test_it_equals_a_list_of_its_rows_and_looks_like_one():
    rows = LazyRows([1, 2], Maker())
    assert rows == [[1], [2]] == rows
    assert rows == LazyRows([1, 2], Maker())
    assert rows != [[1]]
    assert rows != ([1], [2])
    assert repr(rows) == "[[1], [2]]"
    assert PaginatedResult(rows, -1, 0, 2) == PaginatedResult([[1], [2]], -1, 0, 2)
    assert [2] in rows


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda rows: pickle.loads(pickle.dumps(rows))])
def test_a_copy_is_a_list(again):
    made = again(LazyRows([1, 2], Maker()))
    assert type(made) is list
    assert made == [[1], [2]]


def test_a_server_that_sends_rows_keeps_none_of_them():
    make = Maker()
    rows = LazyRows([5, 6, 7], make)

    async def sent() -> list[list[bytes]]:
        return [batch async for batch in batches(bytes, rows, PageLimits(2, 100))]

    assert asyncio.run(sent()) == [[b"\5", b"\6"], [b"\7"]]
    assert rows[0] == [5]
    assert make.made == [5, 6, 7, 5]
