"""``export`` and ``import``: what comes out of a store goes into another one, over the wire and through a file."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_store import Admission, InMemoryLightningStore, LightningStore
from lightning_store.engine import transfer as engine_transfer
from lightning_store.spans.otlp.requests import received_spans_from_json
from lightning_store.sqlite_store import SqliteLightningStore
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span, retrying
from lightning_store_server import LightningStoreServer
from lightning_store_server.cli import export_lines
from lightning_store_server.cli import transfer as transfer_module
from lightning_store_server.cli.export_lines import read_line
from tests.cli.conftest import Run, Served, cli_runner


async def everything(store: LightningStore) -> dict[str, Any]:
    """All that a store shows, NaN as text."""
    rollouts = list(await store.query_rollouts())
    latest, resources = await store.get_latest_resources(), list(await store.query_resources())
    shown = {
        "rollouts": rollouts,
        "attempts": [list(await store.query_attempts(one.rollout_id)) for one in rollouts],
        "spans": [list(await store.query_spans(one.rollout_id)) for one in rollouts],
        "resources": [(one.model_dump(exclude={"resources"}), sorted(one.resources.items())) for one in resources],
        "latest": None if latest is None else latest.resources_id,
        "workers": list(await store.query_workers()),
    }
    return {name: repr(value) for name, value in shown.items()}


@pytest.fixture
def target() -> Iterator[LightningStoreServer]:
    """A server with a store that is empty."""
    server = LightningStoreServer(InMemoryLightningStore(), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
def exported(run: Run, served: Served, tmp_path: Path) -> Path:
    """The file of an export of the served store."""
    path = tmp_path / "export.jsonl"
    result = run("export", "--server", served.endpoint, "--output", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "exported 2 rollouts, 4 spans, 1 resources, 1 worker\n"
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_has_a_line_for_each_thing(exported: Path, served: Served) -> None:
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    head, resources, retried, waiting, worker, end = lines_of(exported)
    assert (head["type"], head["format"], head["version"]) == ("export", "lightning-store-export", 2)
    assert resources["resources"]["resources"]["llm"]["model"] == "small"
    assert retried["rollout"]["input"] == {"question": "6 * 7\x1b[31m"}
    assert retried["rollout"]["config"]["max_attempts"] == 2
    assert [one["status"] for one in retried["attempts"]] == ["failed", "running"]
    assert [one["document"]["name"] for one in retried["spans"]] == ["first try", "agent", "chat", "grade"]
    assert (waiting["rollout"]["rollout_id"], waiting["queue_position"]) == (served.waiting_id, 3)
    assert worker["worker"]["current_rollout_id"] == served.retried.rollout_id
    assert end == {
        "type": "end",
        "rollouts": 2,
        "spans": 4,
        "resources": 1,
        "workers": 1,
        "checkpoints": 0,
        "admissions": 0,
    }


def test_an_import_makes_the_same_store(run: Run, served: Served, exported: Path, target: LightningStoreServer) -> None:
    result = run("import", str(exported), "--server", target.endpoint)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "imported 2 rollouts, 4 spans, 1 resources, 1 worker\n"
    assert asyncio.run(everything(target)) == asyncio.run(everything(served.store))
    again = run("import", str(exported), "--server", target.endpoint)
    assert again.stdout.splitlines() == [
        "imported 0 rollouts, 0 spans, 0 resources, 0 workers",
        "present already: 2 rollouts, 4 spans, 1 resources, 1 worker",
    ]
    assert asyncio.run(everything(target)) == asyncio.run(everything(served.store))


def test_a_store_in_memory_moves_to_a_database_and_back(
    run: Run, served: Served, exported: Path, target: LightningStoreServer, tmp_path: Path
) -> None:
    database = f"sqlite:{tmp_path / 'store.db'}"
    assert run("import", str(exported), "--database", database).exit_code == 0
    assert run("check", "--database", database).exit_code == 0
    with SqliteLightningStore(tmp_path / "store.db") as store:
        assert asyncio.run(everything(store)) == asyncio.run(everything(served.store))
        assert run("export", "--database", database).exit_code == 69
    back = run("export", "--database", database)
    assert len(back.stdout.splitlines()) == len(lines_of(exported))
    assert (
        cli_runner()
        .invoke(transfer_module.import_, ["-", "--server", target.endpoint], input=back.stdout.encode())
        .exit_code
        == 0
    )
    assert asyncio.run(everything(target)) == asyncio.run(everything(served.store))


def test_what_trainers_rely_on_is_in_it(run: Run, target: LightningStoreServer, tmp_path: Path) -> None:
    source, path = SqliteLightningStore(tmp_path / "source.db"), tmp_path / "export.jsonl"

    async def train(store: LightningStore) -> list[str]:
        ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(2)]
        await store.mark_consumed("trainer", ids[:1], checkpoint="step-1")
        await store.mark_consumed("trainer", ids[1:])
        await store.set_admission("r", max_open_groups=3)
        return ids

    with source:
        ids = asyncio.run(train(source))
    database = ("--database", f"sqlite:{source.path}")
    result = run("export", *database, "--output", str(path))
    assert result.stderr == "exported 2 rollouts, 0 spans, 0 resources, 0 workers, 1 checkpoint, 1 admission\n"
    lines = lines_of(path)
    assert [line["type"] for line in lines] == ["export", "checkpoint", "admission", "rollout", "rollout", "end"]
    assert [line["consumed"] for line in lines[3:5]] == [{"trainer": 0}, {"trainer": 1}]
    result = run("import", str(path), "--server", target.endpoint)
    assert result.stdout == "imported 2 rollouts, 0 spans, 0 resources, 0 workers, 1 checkpoint, 1 admission\n"
    assert asyncio.run(target.rewind_consumer("trainer", checkpoint="step-1")) == ids[1:]
    assert asyncio.run(target.query_admissions()) == [Admission("r", 3)]
    some = run("export", *database, "--status", "running").stdout.splitlines()
    assert [json.loads(line)["type"] for line in some] == ["export", "checkpoint", "end"]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_an_import_that_was_cut_off_is_made_again(
    run: Run, served: Served, exported: Path, target: LightningStoreServer, tmp_path: Path, kept: int
) -> None:
    cut = tmp_path / "cut.jsonl"
    lines = exported.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[: 1 + kept]))
    result = run("import", str(cut), "--server", target.endpoint)
    assert result.exit_code == 65
    assert "it was cut off; what is in it was imported" in result.stderr
    cut.write_bytes(b"".join(lines[: 1 + kept]) + lines[1 + kept][:-20])
    result = run("import", str(cut), "--server", target.endpoint)
    assert result.exit_code == 65
    assert f"line {kept + 2}: no JSON" in result.stderr
    assert run("import", str(exported), "--server", target.endpoint).exit_code == 0
    assert asyncio.run(everything(target)) == asyncio.run(everything(served.store))


def test_the_queue_keeps_its_order(run: Run, target: LightningStoreServer, tmp_path: Path, monkeypatch) -> None:
    """It is not that in which rollouts were made; and calls that import are small here."""
    monkeypatch.setattr(transfer_module, "BATCH_ITEMS", 2)

    async def fill(store: LightningStore) -> None:
        for number in range(7):
            await store.enqueue_rollout(number, config=retrying(3))
        for _ in range(3):
            claimed = await store.dequeue_rollout()
            assert claimed is not None
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="failed")

    async def queue(store: LightningStore) -> list[Any]:
        return [one.input for one in await store.dequeue_many_rollouts(limit=9)]

    source = tmp_path / "source.db"
    with SqliteLightningStore(source) as store:
        asyncio.run(fill(store))
    path = str(tmp_path / "export.jsonl")
    run("export", "--database", f"sqlite:{source}", "--output", path)
    assert run("import", path, "--server", target.endpoint).exit_code == 0
    assert asyncio.run(queue(target)) == [3, 4, 5, 6, 0, 1, 2]


def test_payloads_and_spans_stay_what_they_are(
    run: Run, target: LightningStoreServer, tmp_path: Path, monkeypatch
) -> None:
    """Also those that are hard to write: deep, large, not finite, with lone surrogates, ends of lines, in parts."""
    monkeypatch.setattr(engine_transfer, "PAGE_BYTES", 1)
    deep: Any = 0
    for _ in range(198):
        deep = [deep]
    task = {"deep": deep, "large": 10**4000, "nan": float("nan"), "text": "\ud800 \u2028 é\n", "float": 0.1}
    source = SqliteLightningStore(tmp_path / "source.db", clock=FakeClock())

    async def fill(store: LightningStore) -> None:
        claimed = await store.start_rollout(task, metadata={"\n": "\r\n"})
        spans = [
            make_span(claimed, number, name="☃", attributes={"t": "a\nb", "f": float("inf")}) for number in (1, 2, 3)
        ]
        await store.add_many_spans(spans)

    with source:
        asyncio.run(fill(source))
        expected = asyncio.run(everything(source))
    path = tmp_path / "export.jsonl"
    run("export", "--database", f"sqlite:{source.path}", "--output", str(path))
    assert [line["spans_before"] for line in lines_of(path) if line["type"] == "rollout"] == [0, 1, 2]
    assert run("import", str(path), "--server", target.endpoint).exit_code == 0
    assert asyncio.run(everything(target)) == expected


@pytest.mark.parametrize(
    ("arguments", "rollouts"),
    [
        (("--status", "queuing"), 1),
        (("--status", "queuing", "--status", "running"), 2),
        (("--mode", "train"), 1),
        (("--mode", "none"), 0),
        (("--since", "1h"), 2),
        (("--until", "1h"), 0),
        (("--since", "2020-01-01", "--until", "2200-01-01T00:00:00+00:00"), 2),
        (("--since", "2200-01-01"), 0),
    ],
)
def test_only_some_rollouts(run: Run, served: Served, arguments: tuple[str, ...], rollouts: int) -> None:
    result = run("export", "--server", served.endpoint, *arguments)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["export", "resources", *["rollout"] * rollouts, "end"]


def test_only_what_all_commands_choose_by(run: Run, tmp_path: Path) -> None:
    async def fill(store: LightningStore) -> str:
        await store.add_resources({})
        claimed = await store.start_rollout("claimed", mode="train", worker_id="w")
        metadata = {"lightning.run": "r", "a": {"b": 1}}
        await store.enqueue_rollout("member", group_id="g", metadata=metadata)
        return claimed.rollout_id

    with SqliteLightningStore(tmp_path / "store.db") as store:
        claimed_id = asyncio.run(fill(store))
    for arguments, chosen in (
        (("--group", "g", "--group", "h", "--label", "run=r"), ["member"]),
        (("--group", "g", "--label", "run=s"), []),
        (("--mode", "none", "--mode", "train"), ["claimed", "member"]),
        (("--metadata", "a.b=1"), ["member"]),
        (("--metadata", "a.b=2"), []),
        (("--contains", claimed_id), ["claimed"]),
        (("--worker", "w"), ["claimed"]),
    ):
        result = run("export", "--database", f"sqlite:{store.path}", *arguments)
        lines = map(json.loads, result.stdout.splitlines())
        assert [line["rollout"]["input"] for line in lines if line["type"] == "rollout"] == chosen
        counted = f"{len(chosen)} rollout{'s' * (len(chosen) != 1)}"
        assert result.stderr == f"exported {counted}, 0 spans, 1 resources, 0 workers\n"


def test_spans_as_otlp(run: Run, served: Served) -> None:
    result = run("export", "--server", served.endpoint, "--format", "otlp")
    assert result.stderr == "exported 2 rollouts, 4 spans\n"
    [line] = result.stdout.splitlines()
    received = [one.record for one in received_spans_from_json(line.encode())]
    assert [(one.rollout_id, one.attempt_id, one.sequence_id, one.name) for one in received if one is not None] == [
        (span.rollout_id, span.attempt_id, span.sequence_id, span.name)
        for span in asyncio.run(served.store.query_spans(served.retried.rollout_id))
    ]


def test_spans_that_otlp_cannot_hold_are_left_out(run: Run, tmp_path: Path) -> None:
    async def fill(store: LightningStore) -> None:
        claimed = await store.start_rollout("t")
        await store.add_many_spans([make_span(claimed, 1), make_span(claimed, 2, span_id="of another form")])

    with SqliteLightningStore(tmp_path / "store.db") as store:
        asyncio.run(fill(store))
    result = run("export", "--database", f"sqlite:{store.path}", "--format", "otlp")
    assert "exported 1 rollout, 1 span, 1 left out" in result.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "its type is None"),
        ('{"type": "thing"}', "its type is 'thing'; it must be one of export, checkpoint, admission, resources"),
        ('{"type": ["rollout"]}', "its type is ['rollout']"),
        ('{"type": "export", "format": "theirs"}', "its format is 'theirs'"),
        ('{"type": "export", "format": "lightning-store-export", "version": 3}', "knows versions up to 2"),
        ('{"type": "rollout"}', "it is no rollout: KeyError('rollout')"),
        ('{"type": "rollout", "rollout": 1}', "Input should be a valid dictionary"),
        ('{"type": "rollout", "rollout": {"rollout_id": "r", "status": "odd"}}', "input: Field required"),
        ('{"type": "worker", "worker": {}}', "worker_id: Field required"),
        ('{"type": "checkpoint", "consumer": "c"}', "it is no checkpoint: KeyError('checkpoint')"),
        ('{"type": "admission", "run": 1, "max_open_groups": null, "paused": false}', "it is no admission: TypeError"),
    ],
)
def test_a_malformed_line_is_named(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=".") as raised:
        read_line(line)
    assert says in str(raised.value)


def test_a_file_of_something_else(run: Run, target: LightningStoreServer, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    head = export_lines.head_line(0.0, "1.0")
    for content, says in (("{}\n", "line 1: "), (f"{head}\n{head}\n", "line 2: the first line, and no other")):
        path.write_text(content)
        result = run("import", str(path), "--server", target.endpoint)
        assert result.exit_code == 65
        assert says in result.stderr


def test_what_is_not_there(run: Run, served: Served, tmp_path: Path) -> None:
    assert run("import", str(tmp_path / "missing"), "--server", served.endpoint).exit_code == 66
    assert run("export", "--database", f"sqlite:{tmp_path / 'missing.db'}").exit_code == 66
    assert not (tmp_path / "missing.db").exists()
    assert run("export", "--server", served.endpoint, "--output", str(tmp_path / "no" / "file")).exit_code == 73
    assert run("export", "--server", "127.0.0.1:1", "--timeout", "1").exit_code == 1
    assert run("export", "--database", "memory:").exit_code == 2
    for moment in ("soon", "2999-01-01", "1969-01-01"):
        assert run("export", "--since", moment).exit_code == 2
