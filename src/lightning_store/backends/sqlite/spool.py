"""Long lists: what a snapshot has read, kept on the disk until somebody looks at it."""

from __future__ import annotations

import marshal
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

MEMORY_BYTES_MAX: Final = 4 * 1024 * 1024
"""What a list keeps in memory; the rest is in a file without a name beside the database, if there is room for it."""


class Spool(Sequence[T]):
    """Records that are read again when they are looked at. Safe to use from any thread, and in a forked child.

    Args:
        chunks: Their rows, which are read to the end: all chunks but the last are of ``chunk_rows``.
        chunk_rows: How many rows are read again at a time.
        record: Makes a record of a row.
        folder: Where the file is.
    """

    __slots__ = ("__weakref__", "_chunk_rows", "_chunks", "_end", "_file", "_last", "_length", "_record")

    def __init__(
        self,
        chunks: Iterable[Sequence[tuple[Any, ...]]],
        chunk_rows: int,
        record: Callable[[tuple[Any, ...]], T],
        folder: str,
    ) -> None:
        self._chunk_rows = chunk_rows
        self._record = record
        self._length = self._end = 0
        self._chunks: list[bytes | tuple[int, int]] = []
        """Each in memory, or its place in the file and its length."""
        self._last: tuple[int, Sequence[T]] | None = None
        """The chunk that was looked at last, with its number."""
        self._file: int | None = None
        in_memory = 0
        for rows in chunks:
            self._length += len(rows)
            data = marshal.dumps(list(rows))
            place = None
            if in_memory + len(data) > MEMORY_BYTES_MAX:
                place = self._put(data, folder)
            self._chunks.append(data if place is None else place)
            in_memory += len(data) if place is None else 0

    def _put(self, data: bytes, folder: str) -> tuple[int, int] | None:
        """Write it to the end of the file; None where that is not possible."""
        try:
            if self._file is None:
                file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it goes with the list
                weakref.finalize(self, file.close)
                self._file = file.fileno()
            if os.pwrite(self._file, data, self._end) < len(data):
                return None
        except OSError:
            return None
        place = self._end, len(data)
        self._end += len(data)
        return place

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        place = range(self._length)[index]
        return self._at(place) if isinstance(place, int) else [self._at(one) for one in place]

    def _at(self, place: int) -> T:
        number, place_in_chunk = divmod(place, self._chunk_rows)
        last = self._last
        if last is None or last[0] != number:
            last = self._last = number, self._read(self._chunks[number])
        return last[1][place_in_chunk]

    def _read(self, chunk: bytes | tuple[int, int]) -> Sequence[T]:
        if isinstance(chunk, tuple):
            assert self._file is not None
            offset, length = chunk
            chunk = os.pread(self._file, length, offset)
        return [self._record(row) for row in marshal.loads(chunk)]
