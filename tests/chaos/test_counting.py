"""Many callers at once, a fifth of all replies lost: everything that was acknowledged is there, once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack

import pytest

from lightning_store import InMemoryLightningStore, LightningStore, PromptTemplate
from lightning_store.model import AttemptedRollout, EnqueueRolloutRequest
from lightning_store.testing.contract.base import make_span
from lightning_store.testing.contract.spans import make_readable_span
from lightning_store.testing.faults import Fault, FaultSchedule, FaultStatistics
from lightning_store_client import LightningStoreClient
from tests.chaos.flaky import PATIENCE, flaky_wire

CLIENTS = 4
CALLERS_PER_CLIENT = 4
LOST = 0.2
"""The share of messages whose reply is lost. Each takes those down that share its connection, so more are."""


class Ledger:
    """What callers were told."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.enqueued: list[str] = []
        """Inputs."""
        self.attempts: dict[str, list[str]] = defaultdict(list)
        """Attempt ids by rollout."""
        self.inputs: dict[str, str] = {}
        """By rollout."""
        self.numbers: dict[str, list[int]] = defaultdict(list)
        """Span numbers by rollout, those of stored spans included."""
        self.spans: Counter[str] = Counter()
        """How many were stored, by rollout."""
        self.published: list[str] = []
        """Ids of resources that were added."""
        self.versions: dict[str, list[int]] = defaultdict(list)
        self.notes: dict[tuple[str, str], int] = {}
        """The metadata that was set last, by rollout and attempt; each attempt has one caller."""

    def began(self, rollout: AttemptedRollout) -> None:
        self.inputs[rollout.rollout_id] = rollout.input
        self.attempts[rollout.rollout_id].append(rollout.attempt.attempt_id)


class Caller:
    """Makes calls of all kinds, one after the other, and writes down what it is told."""

    def __init__(self, name: str, store: LightningStore, ledger: Ledger, rng: random.Random) -> None:
        self.name = name
        self.store = store
        self.ledger = ledger
        self.rng = rng
        self.held: list[AttemptedRollout] = []
        """The attempts that this caller began."""
        self.made = 0

    async def run(self, calls: int) -> None:
        for _ in range(calls):
            actions = [self.enqueue, self.dequeue, self.dequeue, self.add_resources, self.update_resources]
            if self.held:
                actions += [self.start_attempt, self.number, self.number, self.add_spans, self.add_otel_span, self.note]
            action = self.rng.choice(actions)
            self.ledger.calls[action.__name__] += 1
            await action()

    def _held(self) -> AttemptedRollout:
        return self.rng.choice(self.held)

    def _new(self) -> str:
        self.made += 1
        return f"{self.name}-{self.made}"

    async def enqueue(self) -> None:
        inputs = [self._new() for _ in range(self.rng.choice([1, 2, 3]))]
        await self.store.enqueue_many_rollouts([EnqueueRolloutRequest(input=given) for given in inputs])
        self.ledger.enqueued += inputs

    async def dequeue(self) -> None:
        for claimed in await self.store.dequeue_many_rollouts(limit=self.rng.choice([1, 2]), worker_id=self.name):
            self.ledger.began(claimed)
            self.held.append(claimed)

    async def start_attempt(self) -> None:
        started = await self.store.start_attempt(self._held().rollout_id)
        self.ledger.began(started)
        self.held.append(started)

    async def number(self) -> None:
        rollout = self._held()
        pairs = [(rollout.rollout_id, rollout.attempt.attempt_id)] * self.rng.choice([1, 3])
        self.ledger.numbers[rollout.rollout_id] += await self.store.get_many_span_sequence_ids(pairs)

    async def add_spans(self) -> None:
        """With numbers of 0, which do not count."""
        rollout = self._held()
        spans = [make_span(rollout, 0, span_id=f"{self.rng.getrandbits(64):016x}") for _ in range(3)]
        self.ledger.spans[rollout.rollout_id] += len(await self.store.add_many_spans(spans))

    async def add_otel_span(self) -> None:
        """The server gives the number."""
        rollout = self._held()
        recorded = make_readable_span(self.rng.getrandbits(63))
        stored = await self.store.add_otel_span(rollout.rollout_id, rollout.attempt.attempt_id, recorded)
        if stored is not None:
            self.ledger.numbers[rollout.rollout_id].append(stored.sequence_id)
            self.ledger.spans[rollout.rollout_id] += 1

    async def add_resources(self) -> None:
        update = await self.store.add_resources(self._resources())
        assert update.version == 1
        self.ledger.published.append(update.resources_id)

    async def update_resources(self) -> None:
        resources_id = self.rng.choice(["rs-a", "rs-b"])
        update = await self.store.update_resources(resources_id, self._resources())
        self.ledger.versions[resources_id].append(update.version)

    def _resources(self) -> Mapping[str, PromptTemplate]:
        return {"prompt": PromptTemplate(template=self._new(), engine="f-string")}

    async def note(self) -> None:
        rollout = self._held()
        key = (rollout.rollout_id, rollout.attempt.attempt_id)
        number = self.ledger.notes.get(key, 0) + 1
        updated = await self.store.update_attempt(*key, metadata={"number": number})
        assert updated.metadata == {"number": number}
        self.ledger.notes[key] = number


async def make_calls(
    store: LightningStore, calls: int, seed: int, clients: int = CLIENTS, callers_per_client: int = CALLERS_PER_CLIENT
) -> tuple[Ledger, FaultStatistics]:
    """``calls`` of all kinds, from ``clients * callers_per_client`` callers at once; then the queue is emptied."""
    ledger = Ledger()
    schedule = FaultSchedule.random(seed, {Fault.CUT_REPLY: LOST})
    async with flaky_wire(store, schedule) as proxy, AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(LightningStoreClient(proxy.endpoint, **PATIENCE)) for _ in range(clients)
        ]
        callers = [
            Caller(f"caller-{number}", made[number % clients], ledger, random.Random(f"{seed}/{number}"))
            for number in range(clients * callers_per_client)
        ]
        share, rest = divmod(calls, len(callers))
        await asyncio.gather(*(caller.run(share + (number < rest)) for number, caller in enumerate(callers)))
        assert ledger.calls.total() == calls
        for claimed in await made[0].dequeue_many_rollouts(limit=1000):
            ledger.began(claimed)
    assert proxy.statistics.cut > LOST / 4 * proxy.statistics.calls
    return ledger, proxy.statistics


async def check_rollouts(store: LightningStore, ledger: Ledger) -> None:
    """None was made twice, none was lost; each attempt was given to one caller."""
    rollouts = await store.query_rollouts()
    assert Counter(rollout.input for rollout in rollouts) == Counter(ledger.enqueued)
    assert {rollout.rollout_id: rollout.input for rollout in rollouts} == ledger.inputs
    for rollout in rollouts:
        attempts = await store.query_attempts(rollout.rollout_id)
        assert sorted(attempt.attempt_id for attempt in attempts) == sorted(ledger.attempts[rollout.rollout_id])
        assert [attempt.sequence_id for attempt in attempts] == list(range(1, len(attempts) + 1))
        for attempt in attempts:
            number = ledger.notes.get((rollout.rollout_id, attempt.attempt_id))
            assert attempt.metadata == (None if number is None else {"number": number})


async def check_spans(store: LightningStore, ledger: Ledger) -> None:
    """Each number was given once and none was left out; each span is stored."""
    for rollout in await store.query_rollouts():
        numbers = ledger.numbers[rollout.rollout_id]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        spans = await store.query_spans(rollout.rollout_id)
        assert len(spans) == ledger.spans[rollout.rollout_id]


async def check_resources(store: LightningStore, ledger: Ledger) -> None:
    """Versions are dense."""
    updates = await store.query_resources()
    assert sorted(update.resources_id for update in updates) == sorted([*ledger.published, *ledger.versions])
    for resources_id, versions in ledger.versions.items():
        assert sorted(versions) == list(range(1, len(versions) + 1))
        update = await store.get_resources_by_id(resources_id)
        assert update is not None
        assert update.version == len(versions)


async def check(store: LightningStore, ledger: Ledger) -> None:
    await check_rollouts(store, ledger)
    await check_spans(store, ledger)
    await check_resources(store, ledger)


@pytest.mark.parametrize(
    ("calls", "seed"), [(300, 1), *(pytest.param(2000, seed, marks=pytest.mark.chaos) for seed in (2, 3, 4))]
)
@pytest.mark.asyncio
async def test_nothing_is_lost_and_nothing_doubled(calls: int, seed: int):
    store = InMemoryLightningStore()
    ledger, statistics = await make_calls(store, calls, seed)
    await check(store, ledger)
    assert statistics.calls > calls / 3


@pytest.mark.parametrize(
    ("calls", "seed"), [(600, 1), *(pytest.param(8000, seed, marks=pytest.mark.chaos) for seed in (2, 3, 4))]
)
@pytest.mark.asyncio
async def test_nothing_is_lost_and_nothing_doubled_of_calls_that_share_a_message(calls: int, seed: int):
    """A cut hits all calls of a message, and those of the messages before it that are not answered yet."""
    store = InMemoryLightningStore()
    ledger, statistics = await make_calls(store, calls, seed, clients=2, callers_per_client=40)
    await check(store, ledger)
    assert statistics.answered < calls / 2


@pytest.mark.asyncio
async def test_a_store_that_replays_nothing_is_caught():
    store = InMemoryLightningStore(replay_window_seconds=0)
    ledger, _ = await make_calls(store, 150, 5)
    for failing in (check_rollouts, check_spans, check_resources):
        with pytest.raises(AssertionError):
            await failing(store, ledger)
