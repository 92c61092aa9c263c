"""Facts 1-3 and 7-9: making rollouts, updating them, looking at them."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any, cast, get_args

import pytest
from pydantic import ValidationError

from lightning_store.errors import InvalidTransitionError, NotJsonError, ResourcesNotFoundError
from lightning_store.model import (
    Attempt,
    AttemptedRollout,
    EnqueueRolloutRequest,
    Rollout,
    RolloutConfig,
    RolloutStatus,
)
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import (
    ContractBase,
    claim,
    drain,
    look,
    look_at_attempt,
    look_at_worker,
    report,
    retrying,
    some_llm,
    within_safety,
)

ALL_STATUSES: tuple[RolloutStatus, ...] = get_args(RolloutStatus)
TERMINAL: tuple[RolloutStatus, ...] = ("failed", "succeeded", "cancelled")
QUEUED: tuple[RolloutStatus, ...] = ("queuing", "requeuing")


class MakingContract(ContractBase):
    """Facts 1-3: enqueue_rollout, enqueue_many_rollouts, start_rollout."""

    async def test_f01_enqueue_returns_a_queuing_rollout(self, store: LightningStore, clock: FakeClock) -> None:
        config = RolloutConfig(
            timeout_seconds=1.5, unresponsive_seconds=0.25, max_attempts=3, retry_condition=["timeout"]
        )
        made = await store.enqueue_rollout({"q": [1]}, mode="train", config=config, metadata={"a": 1})
        assert made == Rollout(
            rollout_id=made.rollout_id,
            input={"q": [1]},
            start_time=clock.now(),
            mode="train",
            status="queuing",
            config=config,
            metadata={"a": 1},
        )
        assert type(made) is Rollout
        assert await store.get_rollout_by_id(made.rollout_id) == made

    async def test_f01_enqueue_makes_no_attempt(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        assert list(await store.query_attempts(made.rollout_id)) == []
        assert await store.get_latest_attempt(made.rollout_id) is None

    async def test_f01_absent_arguments_have_defaults(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        assert (made.mode, made.resources_id, made.config, made.metadata) == (None, None, RolloutConfig(), {})

    async def test_f01_ids_have_their_form(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        published = await store.add_resources({})
        assert_hex(started.rollout_id, "ro-", 12)
        assert_hex(started.attempt.attempt_id, "at-", 8)
        assert_hex(published.resources_id, "rs-", 12)

    async def test_f01_start_rollout_has_its_first_attempt(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task", mode="val", metadata={"a": 1}, worker_id="w")
        attempt = Attempt(
            rollout_id=started.rollout_id,
            attempt_id=started.attempt.attempt_id,
            sequence_id=1,
            start_time=clock.now(),
            status="preparing",
            worker_id="w",
        )
        assert started == AttemptedRollout(
            rollout_id=started.rollout_id,
            input="task",
            start_time=clock.now(),
            mode="val",
            status="preparing",
            metadata={"a": 1},
            attempt=attempt,
        )
        assert await look(store, started) == started

    async def test_f01_start_rollout_skips_the_queue(self, store: LightningStore) -> None:
        await store.start_rollout("task")
        assert await store.dequeue_rollout() is None

    async def test_f01_later_changes_of_the_callers_objects_do_not_show(self, store: LightningStore) -> None:
        task: dict[str, Any] = {"steps": [1]}
        metadata: dict[str, Any] = {"tags": ["a"]}
        config = RolloutConfig(retry_condition=["failed"])
        made = await store.enqueue_rollout(task, config=config, metadata=metadata)
        task["steps"].append(2)
        metadata["tags"].append("b")
        config.retry_condition.append("timeout")
        stored = await store.get_rollout_by_id(made.rollout_id)
        assert stored is not None
        assert stored.input == {"steps": [1]}
        assert stored.metadata == {"tags": ["a"]}
        assert stored.config == RolloutConfig(retry_condition=["failed"])

    async def test_f01_returned_rollouts_are_snapshots(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout({"steps": [1]}, metadata={})
        unchanged = made.model_copy(deep=True)
        for returned in (made, await store.get_rollout_by_id(made.rollout_id), (await store.query_rollouts())[0]):
            assert returned is not None
            returned.input["steps"].append(2)
            returned.metadata = {"changed": True}
            returned.config.retry_condition.append("failed")
            returned.status = "failed"
        assert await store.get_rollout_by_id(made.rollout_id) == unchanged

    async def test_f01_returned_attempts_are_snapshots(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        unchanged = started.attempt.model_copy(deep=True)
        latest = await store.get_latest_attempt(started.rollout_id)
        for returned in (started.attempt, latest, (await store.query_attempts(started.rollout_id))[0]):
            assert returned is not None
            returned.status = "failed"
            returned.worker_id = "somebody"
        assert await store.get_latest_attempt(started.rollout_id) == unchanged

    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            7,
            7.0,
            -(2**70),
            12345678901234567,
            0.1,
            math.inf,
            "",
            "\u00e9\u2603\U0001f600\x00",
            [],
            {},
            {"a": [None, {"b": [[1], 2.5]}], "": False},
        ],
        ids=repr,
    )
    async def test_f01_any_json_value_comes_back_equal(self, store: LightningStore, value: Any) -> None:
        made = await store.enqueue_rollout(value, metadata={"value": value})
        stored = await store.get_rollout_by_id(made.rollout_id)
        assert stored is not None
        for returned in (made.input, stored.input, cast(dict[str, Any], stored.metadata)["value"]):
            assert returned == value
            assert type(returned) is type(value)

    async def test_f01_nan_comes_back(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout([math.nan])
        assert math.isnan(made.input[0])

    async def test_f01_tuples_come_back_as_lists(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout((1, {"pair": (2, 3)}))
        assert made.input == [1, {"pair": [2, 3]}]

    async def test_f01_what_json_cannot_hold_is_refused_with_its_place(self, store: LightningStore) -> None:
        with pytest.raises(NotJsonError, match=r"input\.a\[1\]"):
            await store.enqueue_rollout({"a": [1, object()]})
        with pytest.raises(TypeError, match=r"metadata\.f"):
            await store.enqueue_rollout("task", metadata={"f": print})
        assert len(await store.query_rollouts()) == 0

    async def test_f01_enqueue_many_keeps_the_order(self, store: LightningStore, clock: FakeClock) -> None:
        requests = [
            EnqueueRolloutRequest(input=1, mode="test", config=RolloutConfig(max_attempts=2), metadata={"n": 1}),
            EnqueueRolloutRequest(input=2, resources_id="rs-mine"),
        ]
        made = await store.enqueue_many_rollouts(requests)
        assert list(made) == [
            Rollout(
                rollout_id=made[0].rollout_id,
                input=1,
                start_time=clock.now(),
                mode="test",
                config=RolloutConfig(max_attempts=2),
                metadata={"n": 1},
            ),
            Rollout(
                rollout_id=made[1].rollout_id, input=2, start_time=clock.now(), resources_id="rs-mine", metadata={}
            ),
        ]
        assert await drain(store) == [rollout.rollout_id for rollout in made]

    async def test_f01_enqueue_many_is_all_or_nothing(self, store: LightningStore) -> None:
        requests = [EnqueueRolloutRequest(input="good"), EnqueueRolloutRequest(input={1, 2})]
        with pytest.raises(NotJsonError):
            await store.enqueue_many_rollouts(requests)
        assert await store.dequeue_rollout() is None
        assert len(await store.query_rollouts()) == 0

    async def test_f01_enqueue_many_of_nothing(self, store: LightningStore) -> None:
        assert list(await store.enqueue_many_rollouts([])) == []

    # --- Fact 2 ------------------------------------------------------------------------------------------------------

    async def test_f02_no_resources_id_without_any_resources(self, store: LightningStore) -> None:
        assert (await store.enqueue_rollout("task")).resources_id is None
        assert (await store.start_rollout("task")).resources_id is None

    async def test_f02_no_resources_id_takes_the_latest(self, store: LightningStore) -> None:
        older = await store.add_resources(some_llm("old"))
        newer = await store.add_resources(some_llm("new"))
        assert (await store.enqueue_rollout("task")).resources_id == newer.resources_id
        await store.update_resources(older.resources_id, some_llm("newest"))
        assert (await store.start_rollout("task")).resources_id == older.resources_id
        many = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input="task")])
        assert many[0].resources_id == older.resources_id

    async def test_f02_the_latest_is_bound_when_the_rollout_is_made(self, store: LightningStore) -> None:
        first = await store.add_resources(some_llm())
        await store.enqueue_rollout("task")
        await store.add_resources(some_llm())
        assert (await claim(store)).resources_id == first.resources_id

    async def test_f02_an_empty_resources_id_stays_empty(self, store: LightningStore) -> None:
        await store.add_resources(some_llm())
        assert (await store.enqueue_rollout("task", resources_id="")).resources_id == ""

    async def test_f02_an_unknown_resources_id_is_kept(self, store: LightningStore) -> None:
        assert (await store.enqueue_rollout("task", resources_id="rs-unknown")).resources_id == "rs-unknown"
        assert (await store.start_rollout("task", resources_id="rs-unknown")).resources_id == "rs-unknown"

    async def test_f02_strict_refuses_an_unknown_resources_id(self, strict_store: LightningStore) -> None:
        with pytest.raises(ResourcesNotFoundError, match="rs-unknown"):
            await strict_store.enqueue_rollout("task", resources_id="rs-unknown")
        with pytest.raises(ResourcesNotFoundError, match="rs-unknown"):
            await strict_store.start_rollout("task", resources_id="rs-unknown")
        requests = [EnqueueRolloutRequest(input="good"), EnqueueRolloutRequest(input="bad", resources_id="rs-unknown")]
        with pytest.raises(ResourcesNotFoundError, match="rs-unknown"):
            await strict_store.enqueue_many_rollouts(requests)
        assert len(await strict_store.query_rollouts()) == 0

    async def test_f02_strict_takes_known_resources(self, strict_store: LightningStore) -> None:
        known = await strict_store.add_resources(some_llm())
        assert (
            await strict_store.enqueue_rollout("t", resources_id=known.resources_id)
        ).resources_id == known.resources_id

    # --- Fact 3 ------------------------------------------------------------------------------------------------------

    async def test_f03_an_illegal_mode_changes_nothing(self, store: LightningStore) -> None:
        mode = cast(Any, "production")
        existing = await store.enqueue_rollout("task", mode="train")
        with pytest.raises(ValidationError):
            await store.enqueue_rollout("task", mode=mode)
        with pytest.raises(ValidationError):
            await store.start_rollout("task", mode=mode)
        with pytest.raises(ValidationError):
            await store.update_rollout(existing.rollout_id, mode=mode, metadata={"changed": True})
        assert list(await store.query_rollouts()) == [existing]

    async def test_f03_an_illegal_status_changes_nothing(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        with pytest.raises(ValidationError):
            await store.update_rollout(started.rollout_id, status=cast(Any, "done"), metadata={"changed": True})
        with pytest.raises(ValidationError):
            await store.update_attempt(
                started.rollout_id, "latest", status=cast(Any, "done"), metadata={"changed": True}
            )
        with pytest.raises(ValidationError):
            await store.update_attempt(started.rollout_id, "latest", status=cast(Any, "cancelled"))
        assert await look(store, started) == started

    async def test_f03_an_illegal_config_changes_nothing(self, store: LightningStore) -> None:
        existing = await store.enqueue_rollout("task")
        spoiled = RolloutConfig()
        spoiled.max_attempts = 0
        for config in (spoiled, cast(Any, {"max_attempts": 0}), cast(Any, {"retry_condition": ["cancelled"]})):
            with pytest.raises(ValidationError):
                await store.enqueue_rollout("task", config=config)
            with pytest.raises(ValidationError):
                await store.start_rollout("task", config=config)
            with pytest.raises(ValidationError):
                await store.update_rollout(existing.rollout_id, config=config, metadata={"changed": True})
        assert list(await store.query_rollouts()) == [existing]


class UpdatingContract(ContractBase):
    """Facts 7-9: update_rollout, get_rollout_by_id."""

    async def test_f07_unset_leaves_alone(self, store: LightningStore) -> None:
        config = retrying()
        made = await store.enqueue_rollout("task", mode="val", resources_id="rs-x", config=config, metadata={"a": 1})
        assert await store.update_rollout(made.rollout_id) == made
        assert await store.get_rollout_by_id(made.rollout_id) == made

    async def test_f07_sets_what_is_given(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task", mode="val")
        changed = await store.update_rollout(
            made.rollout_id,
            input=[1],
            mode="test",
            resources_id="rs-x",
            status="running",
            config=retrying(4),
            metadata={"b": 2},
        )
        assert changed == Rollout(
            rollout_id=made.rollout_id,
            input=[1],
            start_time=made.start_time,
            mode="test",
            resources_id="rs-x",
            status="running",
            config=retrying(4),
            metadata={"b": 2},
        )
        assert await store.get_rollout_by_id(made.rollout_id) == changed

    async def test_f07_none_clears(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task", mode="val", resources_id="rs-x", metadata={"a": 1})
        changed = await store.update_rollout(made.rollout_id, input=None, mode=None, resources_id=None, metadata=None)
        cleared = {"input": None, "mode": None, "resources_id": None, "metadata": None}
        assert changed == made.model_copy(update=cleared)
        assert await store.get_rollout_by_id(made.rollout_id) == changed

    async def test_f07_none_is_no_status_and_no_config(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        with pytest.raises(ValidationError):
            await store.update_rollout(made.rollout_id, status=cast(Any, None), metadata={"changed": True})
        with pytest.raises(ValidationError):
            await store.update_rollout(made.rollout_id, config=cast(Any, None), metadata={"changed": True})
        assert await store.get_rollout_by_id(made.rollout_id) == made

    async def test_f07_metadata_is_replaced_not_merged(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task", metadata={"a": 1, "b": 1})
        assert (await store.update_rollout(made.rollout_id, metadata={"b": 2})).metadata == {"b": 2}

    async def test_f07_returns_a_plain_rollout(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        assert type(await store.update_rollout(started.rollout_id, metadata={})) is Rollout

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_f07_a_terminal_status_stamps_end_time(
        self, store: LightningStore, clock: FakeClock, status: RolloutStatus
    ) -> None:
        made = await store.enqueue_rollout("task")
        clock.advance(5)
        assert (await store.update_rollout(made.rollout_id, status=status)).end_time == clock.now()

    async def test_f07_end_time_is_stamped_again_each_time(self, store: LightningStore, clock: FakeClock) -> None:
        made = await store.enqueue_rollout("task")
        await store.update_rollout(made.rollout_id, status="succeeded")
        clock.advance(5)
        assert (await store.update_rollout(made.rollout_id, status="succeeded")).end_time == clock.now()

    async def test_f07_end_time_stays_when_the_status_is_not_given(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        made = await store.enqueue_rollout("task")
        ended = await store.update_rollout(made.rollout_id, status="succeeded")
        clock.advance(5)
        assert (await store.update_rollout(made.rollout_id, metadata={})).end_time == ended.end_time

    @pytest.mark.parametrize("status", ["queuing", "requeuing", "preparing", "running"])
    async def test_f07_end_time_is_never_cleared(
        self, store: LightningStore, clock: FakeClock, status: RolloutStatus
    ) -> None:
        made = await store.enqueue_rollout("task")
        ended = await store.update_rollout(made.rollout_id, status="failed")
        clock.advance(5)
        assert (await store.update_rollout(made.rollout_id, status=status)).end_time == ended.end_time

    async def test_f07_a_terminal_status_wakes_waiters(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        wait = store.wait_for_rollouts(rollout_ids=[made.rollout_id])
        finish = store.update_rollout(made.rollout_id, status="cancelled")
        waited, finished = await within_safety(asyncio.gather(wait, finish))
        assert waited == [finished]

    async def test_f07_every_transition_is_allowed(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        for current, new in itertools.product(ALL_STATUSES, repeat=2):
            await store.update_rollout(made.rollout_id, status=current)
            assert (await store.update_rollout(made.rollout_id, status=new)).status == new

    @pytest.mark.parametrize("current", TERMINAL)
    async def test_f07_strict_a_finished_rollout_is_only_put_back(
        self, strict_store: LightningStore, current: RolloutStatus
    ) -> None:
        for new in ALL_STATUSES:
            made = await strict_store.enqueue_rollout("task")
            ended = await strict_store.update_rollout(made.rollout_id, status=current)
            if new in QUEUED:
                assert (await strict_store.update_rollout(made.rollout_id, status=new)).status == new
            elif new != current:
                with pytest.raises(InvalidTransitionError):
                    await strict_store.update_rollout(made.rollout_id, status=new, metadata={"changed": True})
                assert await strict_store.get_rollout_by_id(made.rollout_id) == ended

    async def test_f07_strict_allows_the_rest(self, strict_store: LightningStore) -> None:
        unfinished: tuple[RolloutStatus, ...] = ("queuing", "preparing", "running", "requeuing")
        for current, new in itertools.product(unfinished, ALL_STATUSES):
            made = await strict_store.enqueue_rollout("task")
            await strict_store.update_rollout(made.rollout_id, status=current)
            assert (await strict_store.update_rollout(made.rollout_id, status=new)).status == new

    async def test_f07_strict_a_finished_rollout_takes_other_fields(self, strict_store: LightningStore) -> None:
        made = await strict_store.enqueue_rollout("task")
        ended = await strict_store.update_rollout(made.rollout_id, status="succeeded")
        changed = await strict_store.update_rollout(made.rollout_id, metadata={"note": "kept"})
        assert changed == ended.model_copy(update={"metadata": {"note": "kept"}})

    # --- Fact 8 ------------------------------------------------------------------------------------------------------

    async def test_f08_cancelling_touches_neither_attempt_nor_worker(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        await store.enqueue_rollout("task")
        claimed = await claim(store, "w")
        worker = await look_at_worker(store, "w")
        clock.advance(5)
        await store.update_rollout(claimed.rollout_id, status="cancelled")
        assert await look_at_attempt(store, claimed) == claimed.attempt
        assert await look_at_worker(store, "w") == worker

    # --- Fact 9 ------------------------------------------------------------------------------------------------------

    async def test_f09_without_an_attempt_it_is_a_rollout(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        assert type(await store.get_rollout_by_id(made.rollout_id)) is Rollout
        assert [row.__class__ for row in await store.query_rollouts()] == [Rollout]

    async def test_f09_with_an_attempt_it_carries_the_latest(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying())
        await report(store, first, "failed")
        second = await claim(store)
        assert await store.get_rollout_by_id(first.rollout_id) == second
        rows = await store.query_rollouts()
        assert list(rows) == [second]
        assert type(rows[0]) is AttemptedRollout

    async def test_f09_an_older_attempt_does_not_show(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        await report(store, first, "succeeded")
        assert (await look(store, first)).attempt == second.attempt


def assert_hex(text: str, prefix: str, digits: int) -> None:
    """``text`` is ``prefix`` and then so many hexadecimal digits in lower case."""
    tail = text.removeprefix(prefix)
    assert text == prefix + tail
    assert len(tail) == digits
    assert set(tail) <= set("0123456789abcdef")
