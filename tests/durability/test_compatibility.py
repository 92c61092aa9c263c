"""Files that older versions have written: tests/data has one of each format, and this version opens them all."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lightning_store import Admission, InMemoryLightningStore, LightningStore
from lightning_store.backends.sqlite.file import migrations
from lightning_store.backends.sqlite.maintenance import back_up, check, migrate
from lightning_store.engine.idempotency import request_scope
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span

pytest.importorskip("click", reason="needs the server extra")

from click.testing import CliRunner

from lightning_store_server import LightningStoreServer
from lightning_store_server.cli.export_lines import read_line
from lightning_store_server.cli.root import root

DATA = Path(__file__).parents[1] / "data"
FORMATS = sorted(DATA.glob("format_*.sql"))
EXPORTS = sorted(DATA.glob("export_*.jsonl"))
WRITTEN_UNTIL = 1_700_000_010.0
"""By the clock of who wrote these."""


@pytest.fixture(params=FORMATS, ids=lambda path: path.stem)
def old_file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = str(tmp_path / "store.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(request.param.read_text())
    return path


def schema(connection: sqlite3.Connection) -> list[Any]:
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return sorted((*row[:3], " ".join(row[3].split())) for row in rows)


async def look(store: LightningStore) -> None:
    """That everything is there which version 0.1 has stored, and that life goes on."""
    rollouts: list[Any] = list(await store.query_rollouts(sort_by="start_time"))
    assert [one.status for one in rollouts] == [
        *("succeeded", "requeuing", "running", "queuing", "queuing", "queuing", "cancelled", "queuing")
    ]
    assert rollouts[3].input == {"task": 3, "text": "☃"}
    assert (rollouts[1].mode, rollouts[1].metadata, rollouts[1].config.max_attempts) == ("train", {"n": 1}, 3)
    assert [len(await store.query_spans(one.rollout_id)) for one in rollouts] == [2, 2, 2, 0, 0, 0, 0, 0]
    running = rollouts[2]
    [first, _] = await store.query_spans(running.rollout_id)
    assert first.attributes == {"n": 1, "inf": float("inf")}
    latest = await store.get_latest_resources()
    assert latest is not None
    assert (latest.version, getattr(latest.resources["llm"], "model", None)) == (2, "third")
    assert {one.worker_id: one.status for one in await store.query_workers()} == {
        **dict.fromkeys(("w-1", "w-2"), "idle"),
        "w-3": "busy",
    }
    assert await store.get_next_span_sequence_id(running.rollout_id, running.attempt.attempt_id) == 3
    assert await store.add_span(make_span(running, 2)) is None
    await store.update_attempt(running.rollout_id, running.attempt.attempt_id, status="succeeded")
    claimed = [one.input for one in await store.dequeue_many_rollouts(limit=9)]
    assert [one if one == "repeated" else one["task"] for one in claimed] == [3, 4, 5, 1, "repeated"]
    assert (await store.enqueue_rollout("new")).status == "queuing"


def test_there_is_a_file_of_each_format():
    assert [path.stem for path in FORMATS] == [f"format_{number + 1}" for number in range(len(migrations()))]


def test_a_file_of_an_older_format_opens_and_life_goes_on(old_file):
    with SqliteLightningStore(old_file, clock=FakeClock(WRITTEN_UNTIL)) as store:
        asyncio.run(look(store))
    assert list(check(old_file)) == []


def test_a_call_that_an_older_version_has_answered_is_not_made_again(old_file):
    async def program(store: SqliteLightningStore) -> None:
        before = len(await store.query_rollouts())
        with request_scope("id-1", repeated=True):
            assert (await store.enqueue_rollout("repeated")).input == "repeated"
        assert len(await store.query_rollouts()) == before

    with SqliteLightningStore(old_file, clock=FakeClock(WRITTEN_UNTIL)) as store:
        asyncio.run(program(store))


def test_a_file_of_an_older_format_is_backed_up_as_it_is_and_migrated(old_file, tmp_path):
    copy = str(tmp_path / "copy.db")
    back_up(old_file, copy)
    formats = migrate(old_file)
    assert formats.after == len(migrations())
    assert list(check(old_file)) == []
    assert migrate(copy) == formats


@pytest.mark.parametrize("old_file", FORMATS[:3], indirect=True, ids=lambda path: path.stem)
def test_labels_and_reasons_are_made_of_what_formats_without_them_have(old_file):
    metadata = {"lightning.run": 'a "☃"\n\u0001', "lightning.step": 7, "lightning.on": True, "lightning.none": None}
    others = {"lightning.list": [1], "lightning.long": "x" * 600, "mine": "lightning."}
    with closing(sqlite3.connect(old_file)) as connection, connection:
        connection.execute(
            "UPDATE payloads SET metadata_json = ? WHERE rollout = 1", (json.dumps({**metadata, **others}),)
        )
    with SqliteLightningStore(old_file, clock=FakeClock(WRITTEN_UNTIL)) as store:
        for key, value in {**metadata, **others}.items():
            [found] = asyncio.run(store.query_rollouts(metadata_equals={key: value}))
            assert found.input == {"task": 0, "text": "☃"}
        [cancelled] = asyncio.run(store.query_rollouts(end_reason_in=["cancelled"]))
        assert cancelled.status == "cancelled"
    assert [one for one in check(old_file) if "totals" not in one.rule] == []


@pytest.mark.parametrize("number", range(1, len(FORMATS) + 1))
def test_steps_that_were_released_stay_as_they_are(number):
    """Or files that have gone through them differ from those that will."""
    with closing(sqlite3.connect(":memory:")) as made, closing(sqlite3.connect(":memory:")) as kept:
        made.executescript("\n".join(migrations()[:number]))
        kept.executescript((DATA / f"format_{number}.sql").read_text())
        assert schema(made) == schema(kept)


@pytest.fixture
def target() -> Iterator[LightningStoreServer]:
    server = LightningStoreServer(InMemoryLightningStore(clock=FakeClock(WRITTEN_UNTIL)), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_an_older_export_is_imported(target, path):
    result = CliRunner().invoke(root, ["import", str(path), "--server", target.endpoint], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "imported 8 rollouts, 6 spans, 2 resources, 3 workers" in result.output
    asyncio.run(look(target))


def test_what_trainers_rely_on_comes_with_version_2(target):
    path = str(DATA / "export_2.jsonl")
    result = CliRunner().invoke(root, ["import", path, "--server", target.endpoint], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert asyncio.run(target.rewind_consumer("trainer", checkpoint="step-1")) == ["ro-f28ecc6fd4c0"]
    assert asyncio.run(target.rewind_consumer("trainer")) == ["ro-3b81f1a359fc"]
    assert asyncio.run(target.query_admissions()) == [Admission("run-1", 2)]


def test_members_that_a_newer_export_adds_are_passed_over():
    for text in EXPORTS[-1].read_text().splitlines():
        line = json.loads(text)
        newer = {**line, "newer": 1}
        kind = line["type"]
        if kind in ("rollout", "resources", "worker"):
            newer[kind] = {**line[kind], "newer": {"a": 1}}
        newer["attempts"] = [{**one, "newer": []} for one in line.get("attempts", ())]
        known = read_line(text)
        assert isinstance(known, dict) or read_line(json.dumps(newer)) == known
