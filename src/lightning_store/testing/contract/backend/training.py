"""Groups, what was consumed, and admission: what a backend loads, stores and reads of them."""

from __future__ import annotations

from typing import Any

from lightning_store.backends.base import Backend, Changes, Due, Needs
from lightning_store.backends.records import NO_PLACE, AdmissionRecord, CheckpointRecord, OpenGroup, RolloutRecord
from lightning_store.testing.contract.backend.base import (
    NOW,
    BackendContractBase,
    changes_of,
    complete,
    loading,
    rollout_record,
    store,
    transact,
)


def member(rollout_id: str, group_id: str, position: int | None = None, **fields: Any) -> RolloutRecord:
    return rollout_record(
        rollout_id,
        "running" if position is None else "queuing",
        run="r",
        group_id=group_id,
        queue_position=position,
        **fields,
    )


async def put(backend: Backend, **changes: dict[Any, Any]) -> None:
    """Store what is not a record, of rollouts that are stored."""

    def decide(_: object) -> Changes:
        made = changes_of()
        for name, values in changes.items():
            getattr(made, name).update(values)
        return made

    needs = Needs(rollouts={rollout_id for _, rollout_id in changes.get("marks", ())})
    await transact(backend, needs, decide)


class TrainingContract(BackendContractBase):
    """Beside the columns of rollouts, which are stored as all others."""

    async def test_x_load_groups_with_their_members(self, backend: Backend) -> None:
        first, second = member("ro-2", "g", group_size=3), member("ro-1", "g", 1, held=True, consumers=1)
        await store(backend, first, rollout_record("ro-0"))
        await store(backend, second)
        async with loading(backend, Needs(groups={"g", "none"})) as loaded:
            assert list(loaded.group("g")) == ["ro-2", "ro-1"]
            assert [loaded.rollout(one) for one in loaded.group("g")] == [first, second]
            assert list(loaded.group("none")) == []
        async with backend.snapshot() as snapshot:
            [group] = await snapshot.groups(["none", "g"])
            assert (group.group_id, group.size) == ("g", 3)
            assert [row.rollout for row in group.rows] == [first, second]
        await store(backend, deleted=["ro-2"])
        async with loading(backend, Needs(groups={"g"})) as loaded:
            assert list(loaded.group("g")) == ["ro-1"]

    async def test_x_load_marks_and_checkpoints(self, backend: Backend) -> None:
        await store(backend, *(rollout_record(f"ro-{n}") for n in range(3)))
        marks = {("a", "ro-0"): 0, ("a", "ro-2"): 1, ("b", "ro-1"): 0, ("a", "ro-gone"): 1}
        await put(backend, marks=marks, checkpoints={("a", "one"): 1, ("a", "two"): 2})
        await put(backend, marks={("a", "ro-2"): 2}, checkpoints={("a", "one"): None, ("a", "two"): 3})
        keys = {("a", "ro-0"), ("a", "ro-1"), ("b", "ro-1"), ("a", "ro-gone")}
        needs = Needs(
            rollouts={"ro-0", "ro-1", "ro-gone"},
            marks=keys,
            checkpoints={"a", "b"},
            marks_from={("a", 0), ("a", 1), ("a", 3)},
        )
        async with loading(backend, needs) as loaded:
            assert [loaded.mark_of(*key) for key in sorted(keys)] == [0, None, None, 0]
            assert (dict(loaded.checkpoints("a")), dict(loaded.checkpoints("b"))) == ({"two": 3}, {})
            assert [list(loaded.marks_from("a", number)) for number in (0, 1, 3)] == [["ro-0", "ro-2"], ["ro-2"], []]
        async with backend.snapshot() as snapshot:
            assert await snapshot.consumed("a", ["ro-1", "ro-2", "ro-gone"]) == {"ro-2"}
            marks_read = await snapshot.marks(["ro-0", "ro-1", "ro-gone"])
            assert {key: dict(one) for key, one in marks_read.items() if one} == {"ro-0": {"a": 0}, "ro-1": {"b": 0}}
            assert await snapshot.checkpoints() == [CheckpointRecord("a", "two", 3)]
        await put(backend, marks={("a", "ro-2"): None})
        await store(backend, deleted=["ro-0"])
        async with backend.snapshot() as snapshot:
            assert await snapshot.consumed("a", ["ro-0", "ro-1", "ro-2"]) == set()
            assert await snapshot.consumed("b", ["ro-1"]) == {"ro-1"}

    async def test_x_read_completions_that_are_not_consumed(self, backend: Backend) -> None:
        ids = [f"ro-{n}" for n in range(6)]
        await store(backend, *(rollout_record(one, "running") for one in ids))
        await complete(backend, *ids)
        await put(backend, marks={("a", one): 0 for one in (*ids[:3], ids[4])} | {("b", ids[5]): 0})
        async with backend.snapshot() as snapshot:
            places = [one.position for one in await snapshot.completions(0, 10)]
            for consumer, after, look, limit, expected, reached in (
                ("a", 0, 10, 10, [3, 5], None),
                ("a", 0, 4, 10, [3], places[3]),
                ("a", 0, 3, 10, [], places[2]),
                ("a", 0, 10, 1, [3], places[3]),
                ("a", places[3], 2, 10, [5], places[5]),
                ("a", places[5], 1, 10, [], None),
                ("b", places[2], 10, 10, [3, 4], None),
                ("c", 0, 10, 2, [0, 1], places[1]),
            ):
                found = await snapshot.unconsumed(consumer, after, look, limit)
                assert [one.row.rollout.rollout_id for one in found.rows] == [ids[one] for one in expected]
                assert [one.position for one in found.rows] == [places[one] for one in expected]
                assert found.reached == reached

    async def test_x_load_what_is_expendable_for_consumers(self, backend: Backend) -> None:
        await store(backend, *(rollout_record(f"ro-{n}", "running") for n in range(4)))
        await complete(backend, *(f"ro-{n}" for n in range(4)))
        await put(backend, marks={("a", "ro-1"): 0, ("a", "ro-2"): 1, ("b", "ro-1"): 0, ("b", "ro-2"): 0})
        due = Due(NOW, 10, NOW + 1, consumers=["a", "b"])
        async with loading(backend, due=due) as loaded:
            assert list(loaded.expendable) == ["ro-1", "ro-2"]
        await put(backend, checkpoints={("a", "one"): 1})
        async with loading(backend, due=due) as loaded:
            assert list(loaded.expendable) == ["ro-1"]
        async with loading(backend, due=due._replace(consumers=["c"])) as loaded:
            assert list(loaded.expendable) == []
        async with backend.snapshot() as snapshot:
            assert await snapshot.has_due(due)
            assert not await snapshot.has_due(due._replace(consumers=["c"]))

    async def test_x_load_admission_and_open_groups(self, backend: Backend) -> None:
        await store(
            backend,
            member("ro-1", "begun", 4, first_claim_time=NOW),
            member("ro-2", "held", 3, held=True),
            member("ro-3", "held", 2, queue_band=-2),
            member("ro-4", "running"),
            member("ro-5", "consumed", consumers=1),
            rollout_record("ro-6", "failed", run="r", group_id="failed", first_claim_time=NOW, end_time=NOW),
            rollout_record("ro-7", run="s", group_id="of another run"),
            rollout_record("ro-8", run="r"),
        )
        await put(backend, admissions={"r": AdmissionRecord("r", 2, False), "s": AdmissionRecord("s", None, True)})
        await put(backend, admissions={"s": None})
        async with loading(backend, Needs(admissions={"r", "s"}, open_groups={"r"})) as loaded:
            assert (loaded.admission("r"), loaded.admission("s")) == (AdmissionRecord("r", 2, False), None)
            assert sorted(loaded.open_groups("r")) == [
                OpenGroup("begun", True, False, False, (0, 4)),
                OpenGroup("held", False, True, False, (-2, 2)),
                OpenGroup("running", False, False, False, NO_PLACE),
            ]
            found = sorted(loaded.open_groups("r"))
        async with backend.snapshot() as snapshot:
            assert sorted(await snapshot.open_groups("r")) == found
            assert await snapshot.admissions() == [AdmissionRecord("r", 2, False)]

    async def test_x_store_marks_of_new_rollouts(self, backend: Backend) -> None:
        def decide(_: object) -> Changes:
            made = changes_of(rollout_record("ro-0", consumers=1))
            made.marks["a", "ro-0"] = 0
            return made

        await transact(backend, Needs(rollouts={"ro-0"}), decide)
        async with backend.snapshot() as snapshot:
            assert await snapshot.consumed("a", ["ro-0"]) == {"ro-0"}
