"""What ``check`` looks for: a store with some of everything, and for each rule what violates it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lightning_store import AttemptedRollout, LightningStore, RolloutConfig
from lightning_store.engine.idempotency import request_scope
from lightning_store.testing.contract.base import make_span


async def fill(store: LightningStore) -> None:
    """Some of everything."""

    async def claimed(worker_id: str) -> AttemptedRollout:
        found = await store.dequeue_rollout(worker_id)
        assert found is not None
        return found

    async def ended(one: AttemptedRollout, status: str) -> None:
        await store.add_many_spans([make_span(one, number) for number in (1, 2)])
        await store.update_attempt(one.rollout_id, one.attempt.attempt_id, status=status)

    await store.update_resources("rs-" + "é" * 60, {})
    await store.enqueue_rollout("☃", metadata={"lightning.run": "☃", "lightning.\x01a": 1, "b": "é"}, mode="train")
    done = await claimed("w-1")
    await ended(done, "succeeded")
    await store.mark_consumed("trainer", [done.rollout_id], checkpoint="step-1")
    await store.enqueue_rollout("failed")
    await ended(await claimed("w-1"), "failed")
    retried = RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_delay_seconds=3600.0)
    await store.enqueue_rollout("waits for its retry", config=retried)
    await ended(await claimed("w-\0" + "\x01\x03beef" + "x" * 120), "failed")
    await store.enqueue_rollout("timed", config=RolloutConfig(timeout_seconds=3600.0))
    await store.add_span(make_span(await claimed("w-2"), 1))
    await store.enqueue_rollout("listened to", config=RolloutConfig(unresponsive_seconds=3600.0))
    await store.add_span(make_span(await claimed("w-3"), 1))
    await store.update_worker("w-3", {"load": 0.5})
    await store.set_admission("r", max_open_groups=1)
    for group_id in ("begun", "held"):
        for member in range(2):
            await store.enqueue_rollout(member, metadata={"lightning.run": "r"}, group_id=group_id, group_size=2)
    await claimed("w-4")
    with request_scope("id-1"):
        await store.enqueue_rollout("queued")


FIRST: Final = "(SELECT min(number) FROM rollouts)"
VIOLATED: Final[Mapping[str, Sequence[str]]] = {
    "the store has an id": ["DELETE FROM meta", "UPDATE meta SET value = '' WHERE name = 'store_id'"],
    "totals has one row": ["DELETE FROM {totals}"],
    **{
        f"totals.{name} is what is stored": [f"UPDATE {{totals}} SET {name} = {name} + 1"]
        for name in (
            *("rollouts", "completed", "attempts", "spans", "resources", "workers"),
            *("span_bytes", "other_bytes"),
        )
    },
    **{
        f"totals.{name} is not below a number that is in use": [f"UPDATE {{totals}} SET {name} = {name} - 1"]
        for name in (
            *("last_rollout", "last_attempt", "last_span", "last_reply"),
            *("last_queue_position", "last_completion_position"),
        )
    },
    "rollout_tallies are what is stored": [],
    "worker_tallies are what is stored": [],
    "totals.newest_time is not before a reply was recorded": ["UPDATE {totals} SET newest_time = newest_time - 9e8"],
    "statuses are those that the store knows": [
        f"UPDATE {table} SET status = 'x'" for table in ("rollouts", "attempts", "workers")
    ],
    "configs can be read": [
        f"UPDATE rollouts SET config = '{text}' WHERE config IS NOT NULL" for text in ("[", "1", '[1, 2, 3, "x"]')
    ],
    "each rollout has its payloads": [f"DELETE FROM payloads WHERE rollout = {FIRST}"],
    "payloads, labels, attempts, spans and marks are of rollouts that exist": [
        f"UPDATE {table} SET rollout = rollout + 1000"
        for table in ("payloads", "labels", "attempts", "spans", "consumed")
    ],
    "the labels of rollouts are those of their metadata": [
        f"DELETE FROM labels WHERE rollout = {FIRST}",
        f"INSERT INTO labels VALUES ('lightning.x=1', {FIRST})",
        "UPDATE payloads SET metadata_json = '[\"lightning.\"'",
        "UPDATE payloads SET metadata_json = '[\"lightning.\"]'",
        "UPDATE labels SET label = 'lightning.run=\"s\"' WHERE label = 'lightning.run=\"r\"'",
    ],
    "why a rollout did not succeed stands with it while it is failed or cancelled": [
        "UPDATE rollouts SET end_reason = NULL",
        "UPDATE rollouts SET end_reason = 'error' WHERE status = 'succeeded'",
    ],
    "a queued rollout is in the queue, in its place, or waits for its retry": [
        "DELETE FROM queue",
        "UPDATE queue SET position = position + 1000",
        "UPDATE rollouts SET status = 'queuing' WHERE status = 'running'",
        "UPDATE rollouts SET deadline = NULL WHERE status = 'requeuing'",
    ],
    "what is in the queue is a queued rollout": [
        "UPDATE queue SET position = position + 1000",
        "UPDATE queue SET rollout = rollout + 1000",
        "UPDATE rollouts SET status = 'running' WHERE status = 'queuing'",
        "UPDATE rollouts SET held = true",
        "UPDATE rollouts SET queue_band = queue_band + 1",
    ],
    "what is held is queued, in a group of a run that has bounds": [
        "DELETE FROM admissions",
        "UPDATE rollouts SET group_id = NULL WHERE held",
        "UPDATE rollouts SET run = NULL WHERE held",
        "UPDATE rollouts SET status = 'running' WHERE held",
    ],
    "what is held keeps its place in the queue, or waits for its retry": [
        "UPDATE rollouts SET queue_position = NULL WHERE held"
    ],
    "a rollout is terminal if and only if it has a place among the completions, and has ended then": [
        "DELETE FROM completions",
        "UPDATE rollouts SET completion_position = NULL",
        "UPDATE rollouts SET completion_time = NULL",
        "UPDATE rollouts SET end_time = NULL",
        "UPDATE rollouts SET status = 'running' WHERE status = 'succeeded'",
    ],
    "what is among the completions is a rollout that has that place": [
        "UPDATE completions SET position = position + 1000",
        "UPDATE rollouts SET completion_position = NULL",
    ],
    "the attempts of a rollout are numbered 1, 2, 3, …": ["UPDATE attempts SET sequence_id = 2"],
    "a rollout names its latest attempt, if it has any": [
        "UPDATE rollouts SET latest_attempt_id = 'x'",
        "UPDATE rollouts SET latest_attempt_id = NULL",
        "DELETE FROM attempts",
    ],
    "a rollout knows how many of its attempts do not count": [
        "UPDATE rollouts SET uncounted_attempts = 1",
        "UPDATE attempts SET counts = false",
    ],
    "a member of a group knows when it was claimed first, if it was": [
        "UPDATE rollouts SET first_claim_time = NULL",
        "UPDATE rollouts SET first_claim_time = start_time WHERE held",
        "UPDATE rollouts SET first_claim_time = start_time WHERE group_id IS NULL",
    ],
    "a rollout whose attempt has a limit of time has a deadline that is not after it": [
        "UPDATE rollouts SET deadline = NULL",
        """
        UPDATE rollouts SET deadline = a.start_time + 3600.01 FROM attempts a
        WHERE a.rollout = rollouts.number AND config LIKE '[3600.0, null%'
        """,
        "UPDATE rollouts SET deadline = deadline + 9e8 WHERE config LIKE '[null, 3600.0%'",
    ],
    "a rollout knows how many consumers have consumed it": [
        "UPDATE rollouts SET consumers = consumers + 1",
        "DELETE FROM consumed",
    ],
    "a mark is of no later time than the last checkpoint of its consumer": [
        "UPDATE consumed SET number = 2",
        "UPDATE consumed SET consumer = 'x', number = 1",
    ],
    "a span is of an attempt of its rollout": [
        "UPDATE spans SET attempt = attempt + 1000",
        "UPDATE spans SET attempt = (SELECT min(number) FROM attempts) WHERE number = (SELECT max(number) FROM spans)",
    ],
    "a rollout's span counter is not below the number of a span": ["UPDATE rollouts SET last_sequence = 0"],
    "a rollout without spans counts no bytes of them": ["DELETE FROM spans"],
    "the latest resources exist": [
        "UPDATE {totals} SET latest_resources = 'x'",
        "UPDATE {totals} SET latest_resources = NULL",
    ],
    "a worker holds an attempt that exists, or none": [
        "UPDATE workers SET current_attempt_id = 'x' WHERE status = 'busy'",
        "UPDATE workers SET current_rollout_id = NULL",
        "DELETE FROM attempts",
    ],
}
"""The rules of both databases, each with statements after which it is violated. ``{totals}`` is the table of totals."""
