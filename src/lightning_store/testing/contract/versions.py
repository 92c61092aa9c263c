"""Versions of policies: which one an attempt has used, and what becomes of rollouts that are too far behind."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_store.errors import InUseError
from lightning_store.model import Attempt, AttemptedRollout, RolloutConfig
from lightning_store.store import LightningStore
from lightning_store.testing.contract.base import ContractBase, claim, make_span, report, retrying, some_llm

VERSION = "lightning.policy_version"


async def publish(store: LightningStore, **arguments: Any) -> int:
    return (await store.add_resources(some_llm(), **arguments)).policy_version


async def attempt_of(store: LightningStore, claimed: AttemptedRollout) -> Attempt:
    found = await store.get_latest_attempt(claimed.rollout_id)
    assert found is not None
    return found


def stamp(attempt: Attempt) -> tuple[str | None, int | None, int | None, int | None, int | None]:
    versions = attempt.policy_version_min, attempt.policy_version_max
    return attempt.resources_id, attempt.resources_version, attempt.policy_version, *versions


class PolicyVersionsContract(ContractBase):
    """``policy_version``, ``run``, and what attempts are stamped with."""

    async def test_x_policy_versions_go_up_within_a_run(self, store: LightningStore) -> None:
        assert [await publish(store), await publish(store, policy_version=7), await publish(store)] == [1, 7, 8]
        assert [await publish(store, run="a", policy_version=0), await publish(store, run="a")] == [0, 1]
        first = await store.update_resources("rs-a", some_llm(), run="a")
        again = await store.update_resources("rs-a", some_llm(), policy_version=5)
        assert [(one.version, one.policy_version, one.run) for one in (first, again)] == [(1, 2, "a"), (2, 5, "a")]
        taken: list[dict[str, Any]] = [{"policy_version": 8}, {"policy_version": 5, "run": "a"}, {"policy_version": -1}]
        for wrong in (*taken, {"run": ""}):
            with pytest.raises(ValueError, match="policy_version|run"):
                await publish(store, **wrong)
        with pytest.raises(ValueError, match="run 'a'"):
            await store.update_resources("rs-a", some_llm(), run="b")
        assert await store.get_latest_resources() == await store.get_latest_resources(run="a") == again
        assert await store.get_resources_by_id("rs-a") == again
        assert await store.get_latest_resources(run="no") is None

    async def test_x_policy_versions_are_those_of_the_run_that_metadata_names(self, store: LightningStore) -> None:
        await store.update_resources("rs-a", some_llm(), run="a")
        await store.update_resources("rs-none", some_llm())
        await store.update_resources("rs-b", some_llm(), run="b")
        made = {run: await store.enqueue_rollout("task", metadata={"lightning.run": run}) for run in ("a", "b", "c")}
        assert [rollout.resources_id for rollout in made.values()] == ["rs-a", "rs-b", "rs-none"]
        assert (await store.enqueue_rollout("task")).resources_id == "rs-b"
        for newest in ("rs-a", "rs-b", "rs-none"):
            with pytest.raises(InUseError):
                await store.delete_resources([newest])

    async def test_x_policy_versions_stamp_each_attempt(self, store: LightningStore) -> None:
        old = await store.add_resources(some_llm())
        queued = await store.enqueue_rollout("task", config=retrying())
        await store.add_resources(some_llm())
        first = await claim(store)
        assert stamp(first.attempt) == (old.resources_id, 1, 1, 1, 1)
        assert await attempt_of(store, first) == first.attempt
        await report(store, first, "failed")
        await store.update_resources(old.resources_id, some_llm())
        retry = await claim(store)
        assert stamp(retry.attempt) == (old.resources_id, 2, 3, 3, 3)
        assert retry.resources_id == queued.resources_id == old.resources_id
        assert stamp((await store.start_rollout("task", resources_id="rs-no")).attempt) == ("rs-no", *[None] * 4)
        assert stamp((await store.start_attempt(queued.rollout_id)).attempt) == stamp(retry.attempt)
        stamps = [stamp(one)[2] for one in await store.query_attempts(queued.rollout_id)]
        assert stamps == [1, 3, 3]

    async def test_x_policy_versions_of_nothing(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        assert stamp(started.attempt) == (None, None, None, None, None)
        await store.add_span(make_span(started, attributes={VERSION: 4}))
        assert stamp(await attempt_of(store, started)) == (None, None, None, 4, 4)

    async def test_x_policy_versions_of_spans_widen_what_an_attempt_has_used(self, store: LightningStore) -> None:
        await publish(store, policy_version=5)
        started = await store.start_rollout("task")
        odd: list[Any] = [True, 1.0, "1", -1, None, {"a": 1}, [], ["2", 2.5, -3], 2**64]
        named = [6, *odd, [8, 5], 7]
        spans = [make_span(started, number, attributes={VERSION: one}) for number, one in enumerate(named, 1)]
        await store.add_many_spans([*spans[:-1], make_span(started, 50)])
        assert stamp(await attempt_of(store, started))[2:] == (5, 5, 8)
        await store.add_many_spans([make_span(started, 60, attributes={VERSION: 3}), spans[0], spans[-1]])
        assert stamp(await attempt_of(store, started))[2:] == (5, 3, 8)
        assert [span.attributes.get(VERSION) for span in await store.query_spans(started.rollout_id)][:2] == [6, True]

    async def test_x_policy_versions_are_filtered_by(self, store: LightningStore) -> None:
        for version in (3, 4, 6):
            await publish(store, policy_version=version)
            await store.start_rollout(version)
        await store.enqueue_rollout("no attempt")

        async def found(**filters: Any) -> list[Any]:
            return [rollout.input for rollout in await store.query_rollouts(**filters)]

        assert await found(policy_version_min=4) == [4, 6]
        assert await found(policy_version_max=4) == [3, 4]
        assert await found(policy_version_min=4, policy_version_max=5) == [4]
        with pytest.raises(ValueError, match="policy_version_min"):
            await found(policy_version_min=-1)
        cancelled = await store.cancel_rollouts(policy_version_max=3)
        assert [rollout.input for rollout in cancelled] == [3]


class StalenessContract(ContractBase):
    """``bind``, ``max_staleness`` and ``on_stale``."""

    @pytest.mark.parametrize("by_metadata", [False, True])
    async def test_x_bind_each_claim_gets_the_latest(self, store: LightningStore, by_metadata: bool) -> None:
        config, metadata = retrying(bind="claim"), {"lightning.run": "a"}
        if by_metadata:
            config, metadata = retrying(), metadata | {"lightning.bind": "claim"}
        await store.update_resources("rs-1", some_llm(), run="a")
        queued = await store.enqueue_rollout("task", config=config, metadata=metadata)
        await store.update_resources("rs-2", some_llm(), run="a")
        await store.update_resources("rs-other", some_llm())
        claimed = await claim(store)
        assert (queued.resources_id, claimed.resources_id, claimed.attempt.policy_version) == ("rs-1", "rs-2", 2)
        await store.update_resources("rs-3", some_llm(), run="a")
        await report(store, claimed, "failed")
        retry = await claim(store)
        assert (retry.resources_id, stamp(retry.attempt)) == ("rs-3", ("rs-3", 1, 3, 3, 3))
        assert await store.get_rollout_by_id(queued.rollout_id) == retry
        assert (await store.start_attempt(queued.rollout_id)).resources_id == "rs-3"

    async def test_x_bind_without_resources(self, store: LightningStore) -> None:
        await store.enqueue_rollout("task", config=RolloutConfig(bind="claim", max_staleness=0))
        assert stamp((await claim(store)).attempt) == (None, None, None, None, None)

    async def test_x_stale_rollouts_are_cancelled_when_they_would_be_claimed(self, store: LightningStore) -> None:
        await publish(store)
        limited = RolloutConfig(max_staleness=1, max_attempts=2, retry_condition=["failed"])
        first = await store.enqueue_rollout("first", config=limited)
        await store.enqueue_rollout("unlimited")
        await publish(store)
        claimed = await claim(store)  # one behind, as it may be
        await store.enqueue_rollout("fresh", config=limited)
        await publish(store, run="other", policy_version=100)
        await publish(store)
        await report(store, claimed, "failed")
        got = await store.dequeue_many_rollouts(limit=9, worker_id="w")
        assert [rollout.input for rollout in got] == ["unlimited", "fresh"]
        [ended] = await store.wait_for_rollouts([first.rollout_id], timeout=0)
        assert (ended.status, ended.end_reason) == ("cancelled", "stale")
        assert [one.rollout_id for one in await store.query_rollouts(end_reason_in=["stale"])] == [first.rollout_id]
        assert await store.dequeue_rollout() is None

    async def test_x_stale_rollouts_may_get_the_latest_instead(self, store: LightningStore) -> None:
        await publish(store)
        await store.enqueue_rollout("task", config=RolloutConfig(max_staleness=0, on_stale="rebind"))
        await store.enqueue_rollout("other", config=RolloutConfig(max_staleness=1, on_stale="rebind"))
        newest = await store.add_resources(some_llm())
        rebound, kept = await store.dequeue_many_rollouts(limit=2)
        assert (rebound.resources_id, rebound.attempt.policy_version) == (newest.resources_id, 2)
        assert kept.attempt.policy_version == 1

    async def test_x_stale_rollouts_by_the_hundred_do_not_hide_what_follows(self, store: LightningStore) -> None:
        await publish(store)
        for number in range(70):
            metadata = {"lightning.max_staleness": 0}
            await store.enqueue_rollout(number, metadata=metadata)
        await publish(store)
        await store.enqueue_rollout("fresh")
        assert (await claim(store)).input == "fresh"
        assert len(await store.query_rollouts(end_reason_in=["stale"])) == 70

    async def test_x_stale_successes_are_marked(self, store: LightningStore) -> None:
        await publish(store)
        limited = RolloutConfig(max_staleness=1)
        started = [await store.start_rollout(name, config=limited) for name in ("in time", "used an old one", "late")]
        await publish(store)
        await store.add_span(make_span(started[1], attributes={VERSION: 0}))
        for one in started[:2]:
            await report(store, one, "succeeded")
        await publish(store)
        for one in (started[2], started[0]):  # the first again
            await report(store, one, "succeeded")
        ended = await store.query_rollouts(status_in=["succeeded"])
        assert [(one.input, one.end_reason) for one in ended] == [
            ("in time", None),
            ("used an old one", "stale"),
            ("late", "stale"),
        ]
        failed = await store.start_rollout("failed", config=limited)
        await publish(store, policy_version=50)
        await report(store, failed, "failed")
        assert [one.input for one in await store.query_rollouts(end_reason_in=["error"])] == ["failed"]
        again = await store.requeue_rollouts([ended[2].rollout_id])
        assert (again[0].status, again[0].end_reason) == ("requeuing", None)

    @pytest.mark.parametrize(
        "metadata",
        [{"lightning.max_staleness": -1}, {"lightning.bind": "never"}, {"lightning.on_stale": 1}, {"lightning.run": 1}],
        ids=str,
    )
    async def test_x_bind_and_staleness_of_metadata_are_checked(
        self, store: LightningStore, metadata: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match="lightning"):
            await store.enqueue_rollout("task", metadata=metadata)
