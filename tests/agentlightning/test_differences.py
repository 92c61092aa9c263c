"""What docs/agent_lightning.md says differs: each row on Agent Lightning's own store, and on ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import agentlightning as agl
import pytest

from lightning_store.testing.clock import FakeClock
from lightning_store_agentlightning import InProcessLightningStore

Program = Callable[[Any], Coroutine[Any, Any, Any]]

RETRIED = agl.RolloutConfig(max_attempts=2, retry_condition=["failed", "timeout"])


async def add_span(store: Any, attempted: Any, number: int = 1) -> None:
    ids = {"rollout_id": attempted.rollout_id, "attempt_id": attempted.attempt.attempt_id}
    await store.add_span(agl.Span.from_attributes(attributes={}, sequence_id=number, span_id=f"{number:016x}", **ids))


async def report(store: Any, attempted: Any, status: str) -> None:
    await store.update_attempt(attempted.rollout_id, attempted.attempt.attempt_id, status=status)


# --- Filters, order, pages -------------------------------------------------------------------------------------------


def rollouts(**arguments: Any) -> Program:
    """The inputs of what query_rollouts gives, of three."""

    async def program(store: Any) -> list[Any]:
        for name in "abc":
            await store.enqueue_rollout(name)
        return [rollout.input for rollout in await store.query_rollouts(**arguments)]

    return program


def spans(**arguments: Any) -> Program:
    """The numbers of what query_spans gives, of two."""

    async def program(store: Any) -> list[int]:
        started = await store.start_rollout("task")
        for number in (1, 2):
            await add_span(store, started, number)
        return [span.sequence_id for span in await store.query_spans(started.rollout_id, **arguments)]

    return program


# --- Workers and attempts --------------------------------------------------------------------------------------------


async def the_end_of_an_attempt_that_the_worker_no_longer_holds(store: Any) -> str:
    first = await store.start_rollout("task", config=RETRIED, worker_id="w")
    await report(store, first, "timeout")
    await store.dequeue_rollout(worker_id="w")
    await report(store, first, "failed")
    return str((await store.get_worker_by_id("w")).status)


async def a_busy_worker_that_asks_in_vain(store: Any) -> str:
    await store.start_rollout("task", worker_id="w")
    await store.dequeue_rollout(worker_id="w")
    return str((await store.get_worker_by_id("w")).status)


async def a_worker_whose_attempt_is_given_to_another(store: Any) -> str:
    started = await store.start_rollout("task", worker_id="w")
    await store.update_attempt(started.rollout_id, "latest", worker_id="other")
    return str((await store.get_worker_by_id("w")).status)


async def the_worker_of_an_attempt_that_is_revived(store: Any) -> tuple[str, ...]:
    started = await store.start_rollout("task", worker_id="w")
    await report(store, started, "unresponsive")
    await add_span(store, started)
    found = await store.get_rollout_by_id(started.rollout_id)
    return found.status, found.attempt.status, (await store.get_worker_by_id("w")).status


def idle_time_after(status: str) -> Program:
    """Whether the worker has one."""

    async def program(store: Any) -> bool:
        await report(store, await store.start_rollout("task", worker_id="w"), status)
        return (await store.get_worker_by_id("w")).last_idle_time is not None

    return program


async def a_heartbeat_at_zero(store: Any) -> str:
    started = await store.start_rollout("task", config=agl.RolloutConfig(unresponsive_seconds=60))
    await store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=0.0)
    return str((await store.get_rollout_by_id(started.rollout_id)).attempt.status)


async def workers_after_a_dequeue_of_none(store: Any) -> list[str]:
    await store.dequeue_many_rollouts(limit=0, worker_id="w")
    return [worker.worker_id for worker in await store.query_workers()]


async def a_heartbeat_of_nobody(store: Any) -> str:
    return str((await store.update_worker("")).worker_id)


# --- Rollouts --------------------------------------------------------------------------------------------------------


async def the_queue_after_cancelling_and_queuing_its_head(store: Any) -> list[str]:
    made = [await store.enqueue_rollout(name) for name in "ab"]
    for status in ("cancelled", "queuing"):
        await store.update_rollout(made[0].rollout_id, status=status)
    return [claimed.input for claimed in await store.dequeue_many_rollouts(limit=2)]


async def a_span_on_a_failed_attempt_whose_retry_is_due(store: Any) -> str:
    started = await store.start_rollout("task", config=RETRIED)
    await report(store, started, "failed")
    await add_span(store, started)
    return str((await store.get_rollout_by_id(started.rollout_id)).status)


DIFFERENT: list[tuple[str, Program, Any, Any]] = [
    ("an unknown status", rollouts(status_in=["nonsense"]), [], ValueError),
    ("an unknown order, not used", rollouts(sort_order="up"), ["a", "b", "c"], ValueError),
    ("an unknown filter logic, not used", rollouts(filter_logic="xor"), ["a", "b", "c"], ValueError),
    ("a negative limit", rollouts(limit=-2), [], ValueError),
    ("a negative offset", spans(offset=-1), [2], ValueError),
    ("an input has no order", rollouts(sort_by="input"), ["a", "b", "c"], TypeError),
    ("or without filters", spans(filter_logic="or"), [], [1, 2]),
    ("descending without a field", rollouts(sort_order="desc"), ["a", "b", "c"], ["c", "b", "a"]),
    ("another attempt's end", the_end_of_an_attempt_that_the_worker_no_longer_holds, "idle", "busy"),
    ("asking in vain", a_busy_worker_that_asks_in_vain, "idle", "busy"),
    ("given to another", a_worker_whose_attempt_is_given_to_another, "busy", "idle"),
    (
        "revived",
        the_worker_of_an_attempt_that_is_revived,
        ("failed", "running", "unknown"),
        ("failed", "running", "busy"),
    ),
    ("idle after a timeout", idle_time_after("timeout"), True, False),
    ("idle after unresponsive", idle_time_after("unresponsive"), True, False),
    ("a heartbeat at zero", a_heartbeat_at_zero, "preparing", "unresponsive"),
    ("a limit of 0", workers_after_a_dequeue_of_none, ["w"], []),
    ("an empty worker id", a_heartbeat_of_nobody, "", ValueError),
    ("cancelled and queued", the_queue_after_cancelling_and_queuing_its_head, ["a", "b"], ["b", "a"]),
    ("a span on a failed attempt", a_span_on_a_failed_attempt_whose_retry_is_due, "running", "requeuing"),
]


def outcome(store: Any, program: Program) -> Any:
    """What the program returns, or ValueError or TypeError if it raises one."""
    try:
        return asyncio.run(program(store))
    except ValueError:
        return ValueError
    except TypeError:
        return TypeError


@pytest.mark.parametrize(
    ("program", "theirs", "ours"), [row[1:] for row in DIFFERENT], ids=[row[0] for row in DIFFERENT]
)
def test_what_differs(program: Program, theirs: Any, ours: Any) -> None:
    assert outcome(agl.InMemoryLightningStore(thread_safe=True, scan_debounce_seconds=0), program) == theirs
    assert outcome(InProcessLightningStore(clock=FakeClock()), program) == ours


def test_the_message_of_an_update_of_an_unknown_rollout(make_store: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="^Item does not exist"):
        asyncio.run(make_store().update_rollout("ro-x", status="failed"))


def test_our_message_names_the_rollout() -> None:
    with pytest.raises(ValueError, match="^Item does not exist: Rollout ro-x not found$") as caught:
        asyncio.run(InProcessLightningStore().update_rollout("ro-x"))
    assert caught.value.details == {"rollout_id": "ro-x"}  # type: ignore[attr-defined]
