"""Long lists: what a snapshot has read, kept on the disk until somebody looks at it."""

from __future__ import annotations

import marshal
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, overload

T = TypeVar("T")

MEMORY_BYTES_MAX: Final = 4 * 1024 * 1024
"""What a list keeps in memory; the rest is in a file without a name beside the database, if there is room for it."""
LARGE_BYTES: Final = 64 * 1024
"""A row with a larger text is put aside by itself: a chunk of such rows does not fit into memory."""

Row: TypeAlias = tuple[Any, ...]


class Aside(NamedTuple):
    """The place of something in the file, and its length."""

    offset: int
    length: int


class Spool(Sequence[T]):
    """Records that are read again when they are looked at. Safe to use from any thread, and in a forked child.

    Args:
        chunk_rows: How many rows are read again at a time.
        record: Makes a record of a row.
        folder: Tells where the file is to be, while the rows are added.
    """

    __slots__ = (
        "__weakref__",
        "_chunk_rows",
        "_chunks",
        "_end",
        "_file",
        "_folder",
        "_in_memory",
        "_last",
        "_length",
        "_record",
    )

    def __init__(self, chunk_rows: int, record: Callable[[Row], T], folder: Callable[[], str]) -> None:
        self._chunk_rows = chunk_rows
        self._record = record
        self._folder = folder
        self._length = self._end = self._in_memory = 0
        self._chunks: list[bytes | Aside] = []
        """Each in memory, or its place in the file."""
        self._last: tuple[int, Sequence[Row | Aside]] | None = None
        """The chunk that was looked at last, with its number."""
        self._file: int | None = None

    @property
    def has_file(self) -> bool:
        """Whether anything is on the disk."""
        return self._file is not None

    def put_aside(self, row: Row) -> Row | Aside:
        """What stands for a large row; itself where it cannot be written."""
        return self._put(marshal.dumps(row)) or row

    def append(self, rows: Sequence[Row | Aside]) -> None:
        """Add a chunk. All but the last are of as many rows as a chunk has."""
        self._length += len(rows)
        data = marshal.dumps([list(row) if isinstance(row, Aside) else row for row in rows])
        place = self._put(data) if self._in_memory + len(data) > MEMORY_BYTES_MAX else None
        self._chunks.append(data if place is None else place)
        self._in_memory += len(data) if place is None else 0

    def _put(self, data: bytes) -> Aside | None:
        """Write it to the end of the file; None where that is not possible."""
        try:
            if self._file is None:
                file = tempfile.TemporaryFile(dir=self._folder())  # noqa: SIM115 - it goes with the list
                weakref.finalize(self, file.close)
                self._file = file.fileno()
            if os.pwrite(self._file, data, self._end) < len(data):
                return None
        except OSError:
            return None
        place = Aside(self._end, len(data))
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

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, list | Spool) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as that of a list

    def _at(self, place: int) -> T:
        number, place_in_chunk = divmod(place, self._chunk_rows)
        last = self._last
        if last is None or last[0] != number:
            last = self._last = number, self._rows(self._chunks[number])
        row = last[1][place_in_chunk]
        return self._record(marshal.loads(self._read(row)) if isinstance(row, Aside) else row)

    def _rows(self, chunk: bytes | Aside) -> Sequence[Row | Aside]:
        data = self._read(chunk) if isinstance(chunk, Aside) else chunk
        return [Aside(*row) if isinstance(row, list) else row for row in marshal.loads(data)]

    def _read(self, place: Aside) -> bytes:
        assert self._file is not None
        return os.pread(self._file, place.length, place.offset)
