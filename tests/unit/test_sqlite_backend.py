"""What the SQLite backend does beside the contract: the log, readers, slices of work, recorded replies."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lightning_store.backends.base import Changes, Needs
from lightning_store.backends.records import RolloutRecord
from lightning_store.backends.sqlite import SqliteBackend, reading, replies, spool
from lightning_store.backends.sqlite import backend as backend_module
from lightning_store.backends.sqlite import loading as loading_module
from lightning_store.backends.sqlite.file import wal_bytes
from lightning_store.backends.sqlite.readers import READERS_MAX
from lightning_store.errors import StoreUnavailableError
from lightning_store.queries import RolloutQuery
from lightning_store.testing.contract.backend.base import (
    changes_of,
    loading,
    reply_record,
    rollout_record,
    running,
    span_record,
    store,
)

pytestmark = pytest.mark.asyncio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest_asyncio.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path)
    yield backend
    backend.close()


async def test_a_log_that_is_too_long_is_emptied_before_the_next_read(backend, path, monkeypatch):
    """A snapshot that is open keeps it; those that follow wait until it is empty, and writers do not."""
    monkeypatch.setattr(backend_module, "WAL_BYTES_MAX", 1_000_000)
    async with backend.snapshot() as snapshot:
        assert (await snapshot.counts()).rollouts == 0
        for number in range(20):
            await store(backend, rollout_record(f"ro-{number}", input_json=f'"{"x" * 100_000}"'))
        reading_next = asyncio.create_task(rollouts_now(backend))
        await store(backend, rollout_record("ro-last"))
        assert not reading_next.done()
        assert wal_bytes(str(path)) > 1_000_000
    assert await reading_next == (21, 0)


async def rollouts_now(backend: SqliteBackend) -> tuple[int, int]:
    """How many there are, and how long the log is then."""
    async with backend.snapshot() as snapshot:
        return (await snapshot.counts()).rollouts, wal_bytes(backend.path)


async def test_the_earliest_deadline_takes_no_look_at_all_rollouts(backend, path):
    """It is asked for with each wait."""
    await store(backend, *(rollout_record(f"ro-{number:04}") for number in range(2000)))
    with sqlite3.connect(path) as connection:
        steps: list[int] = []
        connection.set_progress_handler(lambda: steps.append(1), 1)
        assert loading_module.next_deadline(connection) is None
        assert len(steps) < 1000
    connection.close()


async def test_a_long_list_is_on_the_disk_and_stays_as_it_was(backend, path, monkeypatch):
    """It is read again when somebody looks, also when the rows are gone and the snapshot is over."""
    monkeypatch.setattr(spool, "MEMORY_BYTES_MAX", 100_000)
    sizes = [70_000 if number % 100 == 99 else 1000 for number in range(1000)]  # the larger ones by themselves
    made = [rollout_record(f"ro-{number:04}", input_json=f'"{number} {"x" * sizes[number]}"') for number in range(1000)]
    await store(backend, *made)
    async with backend.snapshot() as snapshot:
        listed = await snapshot.query_rollouts(RolloutQuery(sort_by="rollout_id", sort_order="desc"))
        few = await snapshot.query_rollouts(RolloutQuery(sort_by="rollout_id", limit=3, offset=98))
    await deleted(backend, *made)
    assert listed.total == len(listed.items) == 1000
    assert [row.rollout.rollout_id for row in listed.items] == [one.rollout_id for one in reversed(made)]
    assert listed.items[700].rollout.input_json == made[299].input_json
    assert [row.rollout.input_json for row in few.items] == [one.input_json for one in made[98:101]]
    assert isinstance(few.items, spool.Spool)
    assert [row.rollout.rollout_id for row in listed.items[998:]] == ["ro-0001", "ro-0000"]
    assert listed.items[-1].rollout.rollout_id == "ro-0000"
    with pytest.raises(IndexError):
        listed.items[1000]
    assert set(os.listdir(path.parent)) == {"store.db", "store.db-shm", "store.db-wal", "store.db.lock"}


@pytest.mark.parametrize("room", [0, 100_000])
async def test_a_long_list_for_which_the_disk_has_no_room_is_in_memory(backend, monkeypatch, room):
    monkeypatch.setattr(spool, "MEMORY_BYTES_MAX", 0)
    made = [rollout_record(f"ro-{number:04}", input_json=f'"{"x" * 500}"') for number in range(600)]
    await store(backend, *made)
    write = os.pwrite

    def write_to_full_disk(file: int, data: bytes, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[: room - offset], offset)

    monkeypatch.setattr(os, "pwrite", write_to_full_disk)
    async with backend.snapshot() as snapshot:
        listed = await snapshot.query_rollouts(RolloutQuery())
    assert [row.rollout.rollout_id for row in listed.items] == [one.rollout_id for one in made]


async def deleted(backend: SqliteBackend, *records: RolloutRecord) -> None:
    """Delete these rollouts."""
    changes = Changes()
    changes.rollouts = dict.fromkeys((one.rollout_id for one in records), None)
    transaction = backend.transaction()
    await transaction.load(Needs(rollouts=set(changes.rollouts)))
    await transaction.commit(changes)


async def test_a_list_whose_caller_is_gone_gives_its_connection_back_when_it_ends(backend, monkeypatch):
    begun, go_on, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def slow(connection: sqlite3.Connection, query: RolloutQuery) -> Any:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        return connection.execute("SELECT 1").fetchone()

    monkeypatch.setattr(reading, "query_rollouts", slow)

    async def read() -> None:
        async with backend.snapshot() as snapshot:
            await snapshot.query_rollouts(RolloutQuery())

    readers = [asyncio.create_task(read()) for _ in range(backend_module.READER_THREADS)]
    await begun.wait()
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    go_on.set()
    for _ in range(2 * READERS_MAX):
        async with backend.snapshot() as snapshot:
            assert (await snapshot.counts()).rollouts == 0


async def test_a_large_commit_lets_others_in_between(backend):
    turns = 0
    done = False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    spans = [span_record("ro-1", "at-1", number, document=b"x" * 1000) for number in range(6400)]
    transaction = backend.transaction()
    await transaction.load(Needs())
    before = turns
    changes = changes_of(*running("ro-1", "at-1"), *spans)
    await transaction.commit(changes)
    done = True
    await task
    assert turns - before >= 10


async def test_replies_are_bounded_in_number(path):
    for _ in range(2):
        backend = SqliteBackend(path, replay_entries_max=10)
        ids = [f"id-{number}" for number in range(30)]
        for request_id in ids:
            await store(backend, reply_record(request_id))
        async with loading(backend, Needs(replies=set(ids))) as loaded:
            kept = [one for one in ids if loaded.reply(one) is not None]
        backend.close()
    # Each transaction of this test records a reply of its own, too.
    assert kept == ids[-5:]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM replies").fetchone() == (10,)
    connection.close()


async def test_very_many_replies_expire_some_at_a_time(path, monkeypatch):
    monkeypatch.setattr(replies, "EXPIRED_AT_ONCE", 5)
    backend = SqliteBackend(path, replay_window_seconds=60.0)
    await store(backend, *(reply_record(f"id-{number}") for number in range(50)))
    left = []
    for number in range(4):
        await store(backend, reply_record(f"late-{number}", recorded_at=100.0))
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            left += connection.execute("SELECT count(*) FROM replies WHERE request_id LIKE 'id-%'").fetchone()
        connection.close()
    backend.close()
    assert left == [43, 36, 29, 22]


async def test_a_closed_backend_says_so(path):
    backend = SqliteBackend(path)
    backend.close()
    backend.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await backend.transaction().load(Needs())
    with pytest.raises(StoreUnavailableError, match="closed"):
        async with backend.snapshot():
            pass
