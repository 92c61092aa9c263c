"""The command that deletes rollouts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store_server import LightningStoreServer


class Scene:
    """A served store with three rollouts that ended, as succeeded, failed and cancelled, and one that waits."""

    def __init__(self, run) -> None:
        self.store = InMemoryLightningStore()
        self.server = LightningStoreServer(self.store, port=0)
        self._run = run

    async def start(self) -> None:
        await self.server.start()
        self.ids = [(await self.store.enqueue_rollout(number)).rollout_id for number in range(4)]
        for rollout_id, status in zip(self.ids, ("succeeded", "failed", "cancelled"), strict=False):
            await self.store.update_rollout(rollout_id, status=status)

    def delete(self, *arguments: str) -> str:
        result = self._run("delete", *arguments, "--server", self.server.endpoint)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    def left(self) -> list[str]:
        return [rollout.rollout_id for rollout in asyncio.run(self.store.query_rollouts())]


@pytest.fixture
def scene(run) -> Iterator[Scene]:
    scene = Scene(run)
    asyncio.run(scene.start())
    yield scene
    asyncio.run(scene.server.stop())


def test_by_id(scene) -> None:
    assert scene.delete(scene.ids[3]) == "deleted 1 rollout\n"
    assert scene.left() == scene.ids[:3]


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_what_is_not_there_is_an_error_and_nothing_is_deleted(run, scene, flags) -> None:
    result = run("delete", scene.ids[3], "ro-x", *flags, "--server", scene.server.endpoint)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"the store at {scene.server.endpoint} has no rollout 'ro-x'; nothing is changed" in result.stderr
    assert scene.left() == scene.ids


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--status", "queuing"), "does not hold for"),
        (("--older-than", "0"), "did not end so long ago"),
        (("--older-than", "1d"), "did not end so long ago"),
    ],
)
def test_an_id_for_which_not_all_holds_is_an_error(run, scene, flags, says) -> None:
    result = run("delete", scene.ids[0], scene.ids[3], *flags, "--server", scene.server.endpoint)
    assert (result.exit_code, result.stdout) == (1, "")
    assert says in result.stderr
    assert scene.left() == scene.ids


def test_a_dry_run_deletes_nothing(scene) -> None:
    told = scene.delete("--older-than", "0", "--dry-run").splitlines()
    assert told == ["would delete 3 rollouts", *scene.ids[:3]]
    assert json.loads(scene.delete(scene.ids[3], "--dry-run", "--json")) == {"would_delete": scene.ids[3:]}
    assert scene.left() == scene.ids


def test_workers(run, scene) -> None:
    asyncio.run(scene.store.update_worker("idle"))
    claimed = asyncio.run(scene.store.dequeue_rollout("busy"))
    flags = ("--server", scene.server.endpoint)
    for dry in ((), ("--dry-run",)):
        assert "is at work" in (told := run("delete-workers", "idle", "busy", *dry, *flags).stderr) or "holds" in told
        assert "has no worker 'none'" in run("delete-workers", "idle", "none", *dry, *flags).stderr
    assert run("delete-workers", "idle", "--dry-run", *flags).stdout == "would delete 1 worker\nidle\n"
    assert run("delete-workers", "idle", *flags).stdout == "deleted 1 worker\n"
    asyncio.run(scene.store.cancel_rollouts([claimed.rollout_id]))
    assert run("delete-workers", "busy", *flags).stdout == "deleted 1 worker\n"
    assert list(asyncio.run(scene.store.query_workers())) == []


def test_resources(run, scene) -> None:
    old, latest = (asyncio.run(scene.store.add_resources({})).resources_id for _ in range(2))
    flags = ("--server", scene.server.endpoint)
    for dry in ((), ("--dry-run",)):
        assert "latest" in run("delete-resources", old, latest, *dry, *flags).stderr
        assert "has no resources 'none'" in run("delete-resources", old, "none", *dry, *flags).stderr
    assert run("delete-resources", old, "--dry-run", *flags).stdout == f"would delete 1 set of resources\n{old}\n"
    assert run("delete-resources", old, *flags).stdout == "deleted 1 set of resources\n"
    assert [one.resources_id for one in asyncio.run(scene.store.query_resources())] == [latest]


def test_old_resources(run, scene) -> None:
    async def fill() -> list[str]:
        made = [(await scene.store.add_resources({}, run=name)).resources_id for name in ("a", "a", "b", "a", "a")]
        await scene.store.enqueue_rollout("in the queue", resources_id=made[1])
        await scene.store.update_rollout(scene.ids[0], resources_id=made[0])
        return made

    made = asyncio.run(fill())
    flags = ("--server", scene.server.endpoint)
    assert run("delete-resources", "--keep", "2", "--dry-run", *flags).stdout.splitlines()[1:] == made[:1]
    assert run("delete-resources", "--keep", "1", *flags).stdout == "deleted 2 sets of resources\n"
    left = [one.resources_id for one in asyncio.run(scene.store.query_resources())]
    assert left == [made[1], made[2], made[4]]
    assert run("delete-resources", "--keep", "1", *flags).stdout == "deleted 0 sets of resources\n"
    for wrong in ((), ("--keep", "1", made[1]), ("--keep", "0")):
        assert run("delete-resources", *wrong, *flags).exit_code == 2
    for dry in ((), ("--dry-run",)):  # the latest of its run
        said = run("delete-resources", made[2], *dry, *flags).stderr
        assert made[2] in said
        assert "latest" in said


def test_by_age(scene) -> None:
    assert scene.delete("--older-than", "1d") == "deleted 0 rollouts\n"
    assert scene.delete("--older-than", "0") == "deleted 3 rollouts\n"
    assert scene.left() == scene.ids[3:]


def test_by_status(scene) -> None:
    output = scene.delete("--older-than", "0s", "--status", "failed", "--status", "cancelled", "--json")
    assert json.loads(output) == {"deleted": scene.ids[1:3]}
    assert scene.left() == [scene.ids[0], scene.ids[3]]


def test_by_what_else_they_are(scene) -> None:
    async def fill() -> list[str]:
        made = [await scene.store.enqueue_rollout(n, metadata={"lightning.run": "r", "n": n}) for n in range(3)]
        return [one.rollout_id for one in await scene.store.cancel_rollouts([one.rollout_id for one in made])]

    made = asyncio.run(fill())
    assert scene.delete("--older-than", "0", "--label", "run=s", "--resources", "rs") == "deleted 0 rollouts\n"
    assert json.loads(scene.delete("--older-than", "0", "--metadata", "n=1", "--json")) == {"deleted": made[1:2]}
    flags = ("--older-than", "0", "--label", "run=r")
    assert json.loads(scene.delete(*flags, "--dry-run", "--json")) == {"would_delete": [made[0], made[2]]}
    assert json.loads(scene.delete(*flags, "--json")) == {"deleted": [made[0], made[2]]}
    assert scene.left() == scene.ids


def test_by_id_and_status(scene) -> None:
    assert scene.delete(scene.ids[3], "--status", "queuing", "--status", "failed") == "deleted 1 rollout\n"
    assert scene.left() == scene.ids[:3]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give IDs, or --older-than"),
        (("--status", "failed"), "give IDs, or --older-than"),
        (("--older-than", "-1h"), "'-1h' is not a length of time; give one like 90s, 15m, 12h"),
        (("--older-than", "0", "--status", "done"), "done"),
        (("--older-than", "0", "--status", "queuing", "--status", "running"), "queuing, running are not"),
    ],
)
def test_what_is_not_said_is_not_guessed(run, arguments, says) -> None:
    result = run("delete", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--status", "failed")])
def test_no_variable_says_what_to_delete(run, scene, arguments) -> None:
    variables = {"LIGHTNING_STORE_OLDER_THAN": "0", "LIGHTNING_STORE_SERVER": scene.server.endpoint}
    result = run("delete", *arguments, env=variables)
    assert (result.exit_code, scene.left()) == (2, scene.ids)
    assert "give IDs, or --older-than" in result.stderr


def test_the_status_that_rollouts_lists_narrows_no_deletion(run, scene) -> None:
    variables = {"LIGHTNING_STORE_STATUS": "failed", "LIGHTNING_STORE_SERVER": scene.server.endpoint}
    listed = json.loads(run("rollouts", "--json", env=variables).stdout)["items"]
    assert [rollout["rollout_id"] for rollout in listed] == [scene.ids[1]]
    assert run("delete", scene.ids[0], env=variables).stdout == "deleted 1 rollout\n"
    assert scene.left() == scene.ids[1:]


def test_a_store_that_is_not_there(run, scene) -> None:
    asyncio.run(scene.server.stop())
    result = run("delete", "ro-x", "--server", scene.server.endpoint, "--timeout", "1")
    assert result.exit_code == 1
    assert "no answer from a store" in result.stderr
