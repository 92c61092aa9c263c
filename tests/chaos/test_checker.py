"""The linearizability checker, on histories written by hand, and on random ones beside a search by brute force."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.errors import InternalError, StoreTimeoutError, StoreUnavailableError
from lightning_store.testing.linearizability import (
    Call,
    History,
    Operation,
    Raised,
    RecordedStore,
    SearchLimitError,
    StoreModel,
    check_history,
)

MODEL = StoreModel()


class Script:
    """Writes a history: ``begin`` and ``end`` in the order in which they happened."""

    def __init__(self) -> None:
        self.operations: dict[str, Operation] = {}
        self.moment = 0

    def begin(self, label: str, name: str, *args: Hashable) -> Script:
        self.moment += 1
        self.operations[label] = Operation(label, Call(name, args), self.moment)
        return self

    def end(self, label: str, result: Hashable = None) -> Script:
        self.moment += 1
        begun = self.operations[label]
        self.operations[label] = Operation(begun.client, begun.call, begun.began, self.moment, result)
        return self

    def call(self, label: str, name: str, *args: Hashable, gives: Hashable) -> Script:
        return self.begin(label, name, *args).end(label, gives)

    @property
    def history(self) -> list[Operation]:
        return list(self.operations.values())


def enqueued(*names: str) -> Script:
    """One after the other."""
    script = Script()
    for name in names:
        script.call(f"enqueue {name}", "enqueue", name, gives=("queuing",))
    return script


A1, B1 = (("a", 1),), (("b", 1),)

# --- Histories by hand -----------------------------------------------------------------------------------------------

LINEARIZABLE = {
    "nothing": Script(),
    "first in, first out": enqueued("a", "b").call("1", "claim", 1, gives=A1).call("2", "claim", 1, gives=B1),
    "an empty queue": Script().call("1", "claim", 1, gives=()),
    "a batch": Script().call("1", "enqueue", "a", "b", gives=("queuing",) * 2).call("2", "claim", 5, gives=A1 + B1),
    "parallel enqueues in either order": (
        Script()
        .begin("1", "enqueue", "a")
        .begin("2", "enqueue", "b")
        .end("1", ("queuing",))
        .end("2", ("queuing",))
        .call("3", "claim", 2, gives=B1 + A1)
    ),
    "parallel claims in either order": (
        enqueued("a", "b").begin("1", "claim", 1).begin("2", "claim", 1).end("1", B1).end("2", A1)
    ),
    "a claim beside the enqueue finds nothing": (
        Script().begin("1", "enqueue", "a").begin("2", "claim", 1).end("1", ("queuing",)).end("2", ())
    ),
    "a claim beside the enqueue finds it": (
        Script().begin("1", "enqueue", "a").begin("2", "claim", 1).end("2", A1).end("1", ("queuing",))
    ),
    "a lost enqueue never happened": Script().begin("1", "enqueue", "a").call("2", "claim", 1, gives=()),
    "a lost enqueue happened late": (
        Script().begin("1", "enqueue", "a").call("2", "claim", 1, gives=()).call("3", "claim", 1, gives=A1)
    ),
    "a lost claim happened": enqueued("a", "b").begin("1", "claim", 1).call("2", "claim", 1, gives=B1),
    "a lost claim happened late": (
        enqueued("a")
        .begin("1", "claim", 1)
        .call("2", "look", "a", gives=("queuing", 0))
        .call("3", "claim", 1, gives=())
    ),
    "a lost start of an attempt leaves a number out": (
        enqueued("a").begin("1", "begin_attempt", "a").call("2", "begin_attempt", "a", gives=2)
    ),
    "lost numbers leave a gap": (
        enqueued("a").begin("1", "next_numbers", "a", 2).call("2", "next_numbers", "a", 1, gives=(3,))
    ),
    "numbers go on after those of spans": (
        enqueued("a")
        .call("1", "claim", 1, gives=A1)
        .call("2", "add_span", "a", 1, "s", 7, gives=True)
        .call("3", "add_span", "a", 1, "s", 9, gives=False)
        .call("4", "next_numbers", "a", 1, gives=(8,))
        .call("5", "look", "a", gives=("running", 1, "running"))
    ),
    "a failure is retried, at the tail, and then final": (
        enqueued("a", "b")
        .call("1", "claim", 1, gives=A1)
        .call("2", "report", "a", 1, "failed", gives="failed")
        .call("3", "claim", 2, gives=(("b", 1), ("a", 2)))
        .call("4", "report", "a", 2, "failed", gives="failed")
        .call("5", "look", "a", gives=("failed", 2, "failed"))
        .call("6", "claim", 1, gives=())
    ),
    "a late report moves nothing": (
        enqueued("a")
        .call("1", "begin_attempt", "a", gives=1)
        .call("2", "begin_attempt", "a", gives=2)
        .call("3", "report", "a", 1, "succeeded", gives="succeeded")
        .call("4", "look", "a", gives=("preparing", 2, "preparing"))
    ),
    "cancelled ones leave the queue, running ones keep their places": (
        enqueued("a", "b", "c")
        .call("1", "set_status", "a", "cancelled", gives="cancelled")
        .call("2", "set_status", "b", "running", gives="running")
        .call("3", "set_status", "a", "queuing", gives="queuing")
        .call("4", "set_status", "b", "queuing", gives="queuing")
        .call("5", "claim", 3, gives=(("b", 1), ("c", 1), ("a", 1)))
    ),
    "a span revives an unresponsive attempt, and its rollout while that waits for a retry": (
        enqueued("a")
        .call("1", "begin_attempt", "a", gives=1)
        .call("2", "report", "a", 1, "unresponsive", gives="unresponsive")
        .call("3", "add_span", "a", 1, "s", 1, gives=True)
        .call("4", "look", "a", gives=("running", 1, "running"))
        .call("5", "claim", 1, gives=())
    ),
    "a span revives an unresponsive attempt and not a rollout that failed": (
        enqueued("a")
        .call("1", "begin_attempt", "a", gives=1)
        .call("2", "begin_attempt", "a", gives=2)
        .call("3", "report", "a", 2, "unresponsive", gives="unresponsive")
        .call("4", "add_span", "a", 2, "s", 1, gives=True)
        .call("5", "look", "a", gives=("failed", 2, "running"))
    ),
    "cancelled ones are skipped": (
        enqueued("a", "b")
        .call("1", "set_status", "a", "cancelled", gives="cancelled")
        .call("2", "claim", 1, gives=B1)
        .call("3", "set_status", "a", "queuing", gives="queuing")
        .call("4", "claim", 1, gives=A1)
    ),
    "a change that changes nothing where it is tried first": (
        enqueued("a")
        .begin("1", "set_status", "a", "queuing")
        .begin("2", "set_status", "a", "cancelled")
        .end("1", "queuing")
        .end("2", "cancelled")
        .call("3", "look", "a", gives=("queuing", 0))
    ),
    "versions of resources": (
        Script()
        .call("0", "latest_resources", gives=None)
        .begin("1", "publish", "rs", "one")
        .begin("2", "publish", "rs", "two")
        .end("1", 2)
        .end("2", 1)
        .call("3", "latest_resources", gives=("rs", 2, "one"))
    ),
    "what is not there": (
        Script()
        .call("1", "begin_attempt", "x", gives=Raised("ROLLOUT_NOT_FOUND"))
        .call("2", "look", "x", gives=None)
        .call("3", "report", "x", 1, "failed", gives=Raised("ROLLOUT_NOT_FOUND"))
    ),
}

NOT_LINEARIZABLE = {
    "claimed twice": enqueued("a").call("1", "claim", 1, gives=A1).call("2", "claim", 1, gives=A1),
    "claimed twice, by parallel claims, as two attempts": (
        enqueued("a").begin("1", "claim", 1).begin("2", "claim", 1).end("1", A1).end("2", (("a", 2),))
    ),
    "last in, first out": enqueued("a", "b").call("1", "claim", 1, gives=B1),
    "never enqueued": Script().call("1", "claim", 1, gives=A1),
    "claimed before the enqueue began": (
        Script().call("1", "claim", 1, gives=A1).call("2", "enqueue", "a", gives=("queuing",))
    ),
    "an enqueue that is over is not seen": enqueued("a").call("1", "claim", 1, gives=()),
    "a rollout that was there is gone": enqueued("a").call("1", "look", "a", gives=None),
    "a lost claim claims one rollout only": (
        enqueued("a", "b", "c").begin("1", "claim", 1).call("2", "claim", 1, gives=(("c", 1),))
    ),
    "a lost claim does not happen before it began": (
        enqueued("a").call("1", "claim", 1, gives=()).begin("2", "claim", 1)
    ),
    "a lost enqueue happens once": (
        Script().begin("1", "enqueue", "a").call("2", "claim", 1, gives=A1).call("3", "claim", 1, gives=A1)
    ),
    "a batch is all or nothing": (
        Script().begin("1", "enqueue", "a", "b").call("2", "claim", 1, gives=A1).call("3", "claim", 1, gives=())
    ),
    "a number was given twice": (
        enqueued("a")
        .begin("1", "next_numbers", "a", 1)
        .begin("2", "next_numbers", "a", 1)
        .end("1", (1,))
        .end("2", (1,))
    ),
    "a number was left out": enqueued("a").call("1", "next_numbers", "a", 1, gives=(2,)),
    "numbers went backwards": (
        enqueued("a").call("1", "next_numbers", "a", 2, gives=(1, 2)).call("2", "next_numbers", "a", 1, gives=(1,))
    ),
    "a version was lost": (
        Script().begin("1", "publish", "rs", "x").begin("2", "publish", "rs", "y").end("1", 1).end("2", 1)
    ),
    "the latest went backwards": (
        Script()
        .call("1", "publish", "rs", "x", gives=1)
        .call("2", "publish", "rs", "y", gives=2)
        .call("3", "latest_resources", gives=("rs", 1, "x"))
    ),
    "a status was seen and then the one before": (
        enqueued("a")
        .begin("1", "set_status", "a", "cancelled")
        .call("2", "look", "a", gives=("cancelled", 0))
        .call("3", "look", "a", gives=("queuing", 0))
    ),
    "a report was forgotten": (
        enqueued("a")
        .call("1", "claim", 1, gives=A1)
        .call("2", "report", "a", 1, "succeeded", gives="succeeded")
        .call("3", "look", "a", gives=("preparing", 1, "preparing"))
    ),
    "a duplicate span was stored": (
        enqueued("a")
        .call("1", "claim", 1, gives=A1)
        .call("2", "add_span", "a", 1, "s", 1, gives=True)
        .call("3", "add_span", "a", 1, "s", 1, gives=True)
    ),
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_a_history_that_is_linearizable(name: str):
    history = LINEARIZABLE[name].history
    verdict = check_history(history, MODEL)
    assert verdict, verdict.explanation
    assert {one for one in history if one.returned is not None} <= set(verdict.order)
    assert explains(verdict.order)


@pytest.mark.parametrize("name", NOT_LINEARIZABLE)
def test_a_history_that_is_not_linearizable(name: str):
    verdict = check_history(NOT_LINEARIZABLE[name].history, MODEL)
    assert not verdict, verdict.explanation
    assert explains(verdict.order)


def test_the_explanation_says_what_should_have_come():
    verdict = check_history(NOT_LINEARIZABLE["claimed twice"].history, MODEL)
    assert verdict.explanation.splitlines() == [
        "No order explains what was seen. So far:",
        "  [1..2] enqueue a: enqueue('a') gave ('queuing',)",
        "  [3..4] 1: claim(1) gave (('a', 1),)",
        "and then each of these is wrong:",
        "  [5..6] 2: claim(1) gave (('a', 1),), but should give ()",
    ]


def test_a_search_that_is_too_long_gives_no_verdict():
    script = enqueued("a")
    for number in range(8):
        script.begin(f"{number}", "next_numbers", "a", number + 1)
    script.call("last", "next_numbers", "a", 1, gives=(99,))
    assert not check_history(script.history, MODEL)
    with pytest.raises(SearchLimitError, match="after 50 states"):
        check_history(script.history, MODEL, states_max=50)


# --- Against brute force ---------------------------------------------------------------------------------------------


def explains(order: Sequence[Operation]) -> bool:
    """Whether the model answers so in this order, and the order respects real time."""
    state = MODEL.initial
    for operation in order:
        state, result = MODEL.apply(state, operation.call)
        if operation.returned is not None and result != operation.result:
            return False
    return all(
        later.returned is None or earlier.began < later.returned for earlier, later in itertools.combinations(order, 2)
    )


def by_brute_force(history: Sequence[Operation]) -> bool:
    """All orders of all subsets that leave out nothing but open-ended operations."""
    completed = [one for one in history if one.returned is not None]
    opened = [one for one in history if one.returned is None]
    chosen = (some for size in range(len(opened) + 1) for some in itertools.combinations(opened, size))
    return any(explains(order) for some in chosen for order in itertools.permutations([*completed, *some]))


def random_history(rng: random.Random) -> list[Operation]:
    """Six calls that overlap somehow, some open-ended, answered mostly as the model does in some order."""
    calls: list[Call] = []
    for number in range(6):
        options = [
            Call("enqueue", (f"r{number}",)),
            Call("claim", (rng.choice([1, 2]),)),
            Call("next_numbers", ("r0", 1)),
            Call("set_status", ("r0", rng.choice(["queuing", "requeuing"]))),
            Call("set_status", ("r0", rng.choice(["queuing", "cancelled"]))),
            Call("look", ("r0",)),
            Call("look", ("r0",)),
            Call("publish", ("rs", str(number))),
            Call("latest_resources"),
        ]
        calls.append(rng.choice(options) if number else Call("enqueue", ("r0",)))
    rng.shuffle(calls)
    state, results = MODEL.initial, []
    for call in calls:
        state, result = MODEL.apply(state, call)
        results.append(result)
    if rng.random() < 0.6:  # somebody saw the answer to another call
        results[rng.randrange(6)] = rng.choice(results)
    operations = []
    for place, (call, result) in enumerate(zip(calls, results, strict=True)):
        began = place * 10 - rng.randrange(25)
        returned = None if rng.random() < 0.25 else place * 10 + 1 + rng.randrange(25)
        operations.append(Operation(str(place), call, began, returned, None if returned is None else result))
    return operations


def test_it_agrees_with_brute_force():
    rng = random.Random(11)
    histories = [random_history(rng) for _ in range(400)]
    verdicts = [bool(check_history(history, MODEL)) for history in histories]
    assert verdicts == [by_brute_force(history) for history in histories]
    assert 100 < sum(verdicts) < 300


# --- Recording -------------------------------------------------------------------------------------------------------


async def record(answer: Any) -> tuple[Hashable | None, Operation]:
    history = History()

    async def work() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    seen = await history.record("client", Call("look", ("a",)), work(), lambda found: found)
    [operation] = history.operations
    return seen, operation


@pytest.mark.parametrize("error", [StoreUnavailableError("cut"), StoreTimeoutError("late"), InternalError("bug")])
@pytest.mark.asyncio
async def test_a_call_that_fails_on_the_way_is_open_ended(error: Exception):
    seen, operation = await record(error)
    assert seen is None
    assert (operation.began, operation.returned, operation.result) == (1, None, None)


@pytest.mark.asyncio
async def test_a_refusal_is_a_result():
    store = InMemoryLightningStore()
    history = History()
    history.rollout_ids["x"] = "ro-x"
    seen = await RecordedStore(history, "client", store).begin_attempt("x")
    assert seen == Raised("ROLLOUT_NOT_FOUND")
    assert check_history(history.operations, MODEL)


@pytest.mark.asyncio
async def test_an_error_that_no_store_raises_passes():
    with pytest.raises(ZeroDivisionError):
        await record(ZeroDivisionError())


@pytest.mark.asyncio
async def test_moments_are_those_of_beginnings_and_returns():
    history = History()
    first, second = asyncio.Event(), asyncio.Event()
    calls = [
        asyncio.create_task(history.record(name, Call("look", ("a",)), event.wait(), lambda found: found))
        for name, event in (("one", first), ("two", second))
    ]
    await asyncio.sleep(0)
    second.set()
    await calls[1]
    first.set()
    await calls[0]
    assert [(one.client, one.began, one.returned) for one in history.operations] == [("one", 1, 4), ("two", 2, 3)]


@pytest.mark.asyncio
async def test_each_recorded_call_is_one_of_the_model():
    history = History()
    store: LightningStore = InMemoryLightningStore()
    client = RecordedStore(history, "client", store)
    assert await client.enqueue("a") == ("queuing",)
    assert await client.enqueue("b", "c") == ("queuing", "queuing")
    assert await client.look("a") == ("queuing", 0)
    assert await client.claim(2) == (("a", 1), ("b", 1))
    assert await client.begin_attempt("c") == 1
    assert await client.next_numbers("a", 2) == (1, 2)
    assert await client.add_span("a", 1, "00000000000000aa", 5) is True
    assert await client.add_span("a", 1, "00000000000000aa", 6) is False
    assert await client.next_numbers("a") == (6,)
    assert await client.look("a") == ("running", 1, "running")
    assert await client.report("a", 1, "failed") == "failed"
    assert await client.set_status("b", "cancelled") == "cancelled"
    assert await client.claim() == (("a", 2),)
    assert await client.claim() == ()
    assert await client.latest_resources() is None
    assert await client.publish("rs", "x") == 1
    assert await client.publish("rs", "y") == 2
    assert await client.latest_resources() == ("rs", 2, "y")
    verdict = check_history(history.operations, MODEL)
    assert verdict, verdict.explanation
    assert list(verdict.order) == history.operations
