"""The commands that enqueue, cancel and requeue rollouts, and the one that watches them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import click
import pytest

from lightning_store import InMemoryLightningStore, Rollout
from lightning_store_server import LightningStoreServer
from lightning_store_server.cli.selecting import Selection, has_member, parse_moment, parse_pair
from lightning_store_server.cli.watch import line_of


class Scene:
    """A served store with three rollouts that wait, one that runs and one that has succeeded."""

    def __init__(self, run) -> None:
        self.store = InMemoryLightningStore()
        self.server = LightningStoreServer(self.store, port=0)
        self._run = run

    async def start(self) -> None:
        await self.server.start()
        self.done, self.running, *self.waiting = [
            (await self.store.enqueue_rollout(number, mode="train", metadata={"number": number})).rollout_id
            for number in range(5)
        ]
        await self.store.dequeue_rollout("runner-1")
        await self.store.update_attempt(self.done, "latest", status="succeeded")
        await self.store.dequeue_rollout("runner-2")

    def say(self, *arguments: str) -> str:
        result = self._run(*arguments, "--server", self.server.endpoint)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    def error(self, *arguments: str, code: int = 1) -> str:
        result = self._run(*arguments, "--server", self.server.endpoint)
        assert (result.exit_code, result.stdout) == (code, "")
        return result.stderr

    def rollouts(self) -> list[Rollout]:
        return list(asyncio.run(self.store.query_rollouts()))

    def statuses(self) -> list[str]:
        return [rollout.status for rollout in self.rollouts()]


BEFORE = ["succeeded", "preparing", "queuing", "queuing", "queuing"]


@pytest.fixture
def scene(run) -> Iterator[Scene]:
    scene = Scene(run)
    asyncio.run(scene.start())
    yield scene
    asyncio.run(scene.server.stop())


# --- enqueue ---------------------------------------------------------------------------------------------------------


def test_enqueue_for_trainers_and_choose_by_label_and_reason(scene) -> None:
    command = (
        "enqueue",
        "1",
        "2",
        "--metadata",
        "lightning.run=run-8",
        "--priority",
        "5",
        "--idempotency-key",
        "step-1",
    )
    ids = scene.say(*command).split()
    assert scene.say(*command).split() == ids
    late = scene.say("enqueue", "3", "--metadata", "lightning.run=run-8").strip()
    store = scene.store
    claimed = asyncio.run(store.dequeue_rollout("runner-3"))
    assert (claimed.rollout_id, claimed.priority) == (ids[0], 5)
    asyncio.run(store.update_attempt(ids[0], "latest", status="timeout"))
    table = scene.say("rollouts", "--label", "run=run-8")
    assert re.findall(r"ro-[\w-]+", table) == [*ids, late]
    assert "failed (timeout)" in table
    failed = scene.say("rollouts", "--label", "lightning.run=run-8", "--end-reason", "timeout", "--json")
    assert [one["rollout_id"] for one in json.loads(failed)["items"]] == ids[:1]
    assert scene.say("cancel", "--label", "run=run-8") == "cancelled 2 rollouts\n"
    assert "has no value" in scene.error("cancel", "--label", "run", code=2)


def test_groups(scene) -> None:
    metadata = ("--metadata", "lightning.run=r", "--metadata", "lightning.group_size=3")
    ids = scene.say("enqueue", "1", "2", *metadata, "--metadata", "lightning.group_id=g").split()
    asyncio.run(scene.store.update_rollout(ids[0], status="succeeded"))
    [header, line] = scene.say("groups", "--label", "run=r").splitlines()
    assert header.split()[:3] == ["GROUP", "STATUS", "DONE"]
    assert line.split()[:3] == ["g", "open", "1/3"]
    [group] = json.loads(scene.say("groups", "--group", "g", "--json"))
    assert [one["rollout_id"] for one in group["rollouts"]] == ids
    assert scene.say("cancel", "--group", "g") == "cancelled 1 rollout\n"
    assert scene.say("groups").splitlines()[1].split()[:4] == ["g", "failed", "1/3", "1"]
    assert scene.say("groups", "--min-done", "2").splitlines()[1].split()[:2] == ["g", "open"]  # one is to come
    asyncio.run(scene.store.enqueue_rollout(3, metadata={"lightning.group_id": "g"}))
    scene.say("cancel", "--group", "g")
    assert scene.say("groups", "--min-done", "1").splitlines()[1].split()[:2] == ["g", "partial"]


def test_enqueue(scene) -> None:
    flags = ("--mode", "val", "--metadata", "a=1", "--metadata", "b=x", "--attempts", "3")
    ids = scene.say("enqueue", '{"question": "6 * 7"}', "null", *flags).split()
    first, second = scene.rollouts()[-2:]
    assert [first.rollout_id, second.rollout_id] == ids
    assert (first.input, first.mode, first.metadata) == ({"question": "6 * 7"}, "val", {"a": 1, "b": "x"})
    assert (first.config.max_attempts, first.config.retry_condition) == (3, ["failed", "timeout", "unresponsive"])
    assert second.input is None


def test_enqueue_lines_of_a_file(scene, tmp_path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"n": 1}\n\n"two ☃"\n', encoding="utf-8")
    [first, second] = json.loads(scene.say("enqueue", "--file", str(path), "--json"))
    assert (first["input"], second["input"]) == ({"n": 1}, "two ☃")
    scene.say("enqueue", "--file", str(path), "--text")
    assert scene.rollouts()[-1].input == '"two ☃"'


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give INPUTs, or --file"),
        (("what is 6 * 7?",), "'what is 6 * 7?' is not JSON"),
        (("1", "--metadata", "a"), "--metadata a has no value"),
        (("1", "--attempts", "0"), "0 is not in the range"),
    ],
)
def test_enqueue_refuses(scene, arguments, says) -> None:
    assert says in scene.error("enqueue", *arguments, code=2)
    assert scene.statuses() == BEFORE


# --- cancel and requeue ----------------------------------------------------------------------------------------------


def test_cancel_by_id(scene) -> None:
    assert scene.say("cancel", scene.running, scene.done) == "cancelled 1 rollout\n"
    assert scene.statuses() == ["succeeded", "cancelled", *BEFORE[2:]]


def test_cancel_what_is_chosen(scene) -> None:
    flags = ("--status", "queuing", "--mode", "train", "--metadata", "number=3")
    assert scene.say("cancel", *flags, "--dry-run") == f"would cancel 1 rollout\n{scene.waiting[1]}\n"
    assert scene.statuses() == BEFORE
    assert json.loads(scene.say("cancel", *flags, "--json")) == {"cancelled": [scene.waiting[1]]}
    assert scene.statuses() == [*BEFORE[:3], "cancelled", "queuing"]
    assert scene.say("cancel", "--status", "queuing") == "cancelled 2 rollouts\n"


def test_requeue(scene) -> None:
    ids = (scene.done, scene.running, scene.waiting[0])
    assert scene.say("requeue", *ids, "--dry-run").startswith("would requeue 2 rollouts\n")
    assert scene.statuses() == BEFORE
    assert scene.say("requeue", *ids) == "requeued 2 rollouts\n"
    assert scene.statuses() == ["requeuing", "requeuing", *BEFORE[2:]]


def test_admission(scene) -> None:
    assert scene.say("admission") == "no run is bounded\n"
    assert scene.say("admission", "r") == "r: 0 groups open, 0 waiting\n"
    metadata = {"lightning.run": "r"}
    for group in ("a", "b"):
        asyncio.run(scene.store.enqueue_rollout(0, metadata=metadata | {"lightning.group_id": group}, priority=1))
    asyncio.run(scene.store.dequeue_rollout())
    assert scene.say("admission", "r", "--max-open-groups", "1") == "r: 1 group of 1 open, 1 waiting\n"
    assert json.loads(scene.say("admission", "r", "--json"))["open_group_ids"] == ["a"]
    assert scene.say("admission", "r", "--paused") == "r: paused, 1 group open, 1 waiting\n"
    assert scene.say("admission") == "r: paused, 1 group open, 1 waiting\n"
    assert len(json.loads(scene.say("admission", "--json"))) == 1
    assert scene.say("admission", "r", "--unbounded") == "r: 1 group open, 1 waiting\n"
    assert "give --unbounded, or bounds" in scene.error("admission", "r", "--unbounded", "--paused", code=2)
    assert "say of which run" in scene.error("admission", "--paused", code=2)


@pytest.mark.parametrize("command", ["cancel", "requeue"])
def test_what_is_not_said_is_not_guessed(scene, command) -> None:
    assert "say which rollouts" in scene.error(command, code=2)
    assert "has no rollout 'ro-x'" in scene.error(command, scene.waiting[0], "ro-x")
    assert "does not hold for" in scene.error(command, scene.waiting[0], scene.done, "--status", "succeeded")
    assert scene.statuses() == BEFORE


@pytest.mark.parametrize("command", ["cancel", "requeue"])
def test_no_variable_says_what_to_change(run, scene, command) -> None:
    variables = {"LIGHTNING_STORE_STATUS": "queuing", "LIGHTNING_STORE_SERVER": scene.server.endpoint}
    assert run(command, env=variables).exit_code == 2
    assert scene.statuses() == BEFORE


# --- Which rollouts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("a=1", True),
        ("a=1.0", True),
        ("a=true", False),
        ("a=2", False),
        ("a", True),
        ("z", False),
        ("b.c=x", True),
        ("b.c.d", False),
        ("e.f=null", True),
        ("g=12", True),
        ("h=true", True),
        ("h=1", False),
        ("i=", True),
    ],
)
def test_metadata(text, matches) -> None:
    metadata = {"a": 1, "b": {"c": "x"}, "e.f": None, "g": "12", "h": True, "i": ""}
    assert has_member(metadata, parse_pair(text)) == matches
    assert not has_member(None, parse_pair(text))


def test_times() -> None:
    assert parse_moment("15m", 1000.0) == 100.0
    assert parse_moment("1970-01-02T00:00+00:00", 0.0) == 86_400.0
    for bad in ("yesterday", "2026-13-01", "-1h"):
        with pytest.raises(click.BadParameter):
            parse_moment(bad, 0.0)
    with pytest.raises(click.BadParameter):
        parse_pair("=x")


def test_an_empty_selection_is_known_as_such() -> None:
    assert Selection().is_empty
    assert not Selection(contains="").is_empty


# --- watch -----------------------------------------------------------------------------------------------------------


def test_watch(scene) -> None:
    lines = scene.say("watch", "--count", "2", "--interval", "0.1").splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"3 queued, 1 claimed, oldest (now|\d+s), 1 ended, 1/min, 1/2 busy", lines[0])
    looks = [json.loads(line) for line in scene.say("watch", "--count", "1", "--json").splitlines()]
    assert [look["rollouts_by_status"] for look in looks] == [{"queuing": 3, "preparing": 1, "succeeded": 1}]


def test_a_line_is_narrow_as_long_as_the_numbers_are() -> None:
    statuses = ("queuing", "preparing", "running", "succeeded", "failed", "cancelled")
    look = {
        "rollouts_by_status": dict.fromkeys(statuses, 999),
        "oldest_queued_time": 0.0,
        "time": 59.0,
        "completed_last_minute": 999,
        "busy_workers": 9,
        "total_workers": 9,
        "rejected_spans": 0,
    }
    assert len(line_of(look)) <= 80
