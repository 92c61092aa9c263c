"""Two hundred simulated runners: they claim, work, write spans, report, fail, fall silent, and come back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from lightning_store.model import AttemptedRollout
from lightning_store.store import LightningStore
from lightning_store.testing.contract.base import make_span
from lightning_store.testing.contract.spans import make_readable_span
from lightning_store_client import LightningStoreClient
from tests.soak.ledger import Account, Ledger
from tests.soak.measured import MeasuredStore

Fate = Literal["succeeded", "failed", "silence"]

LIVES: Final = 4
"""A runner that fell silent comes back under another name, so many of them in turn: heartbeats in the old one would
keep the attempt alive that it left behind."""
FAILED_SHARE: Final = 0.06
SILENT_SHARE: Final = 0.04
SURE_FROM_ATTEMPT: Final = 6
"""From this attempt on nothing goes wrong by itself."""
CLAIM_GIVEN_UP_SHARE: Final = 0.03
STEPS_MAX: Final = 5
STEP_SECONDS: Final = 0.8
"""The mean time between two calls of a runner at work."""
INTERVAL_SECONDS: Final = 1.0
"""Between heartbeats."""


@dataclass(frozen=True)
class Kind:
    """How a runner goes about its work."""

    name: str
    beats: bool = False
    """It has a worker session."""
    interrupt: bool = True
    """Being called off ends its work at once; else it looks now and then."""
    claims: int = 1
    """How many rollouts it claims at a time."""
    connects: bool = False
    """It has a client of its own, anew each time."""


KINDS: Final = (
    *[Kind("plain")] * 12,
    *[Kind("greedy", claims=2)] * 2,
    *[Kind("beating", beats=True)] * 4,
    Kind("looking", beats=True, interrupt=False),
    Kind("visiting", connects=True),
)
"""In these shares."""


class Runner:
    """One of them. ``run`` goes on until it is cancelled."""

    def __init__(
        self, number: int, client: LightningStoreClient, connect: Callable[[], LightningStoreClient], ledger: Ledger
    ) -> None:
        self.kind = KINDS[number % len(KINDS)]
        self.name = f"{self.kind.name}-{number}"
        self._client = client
        self._connect = connect
        self._ledger = ledger
        self._rng = random.Random(f"{ledger.seed}/{self.name}")
        self._life = 0

    @property
    def worker_id(self) -> str:
        return f"{self.name}.{self._life % LIVES}"

    async def run(self) -> None:
        while True:
            with self._ledger.no_errors(self.worker_id):
                async with self._reached() as client:
                    await self._live(client)
            self._life += 1
            self._ledger.done["runners gone silent"] += 1
            await asyncio.sleep(self._rng.uniform(0, 2 * STEP_SECONDS))

    @asynccontextmanager
    async def _reached(self) -> Any:
        if not self.kind.connects:
            yield self._client
            return
        async with self._connect() as client:
            yield client

    async def _live(self, client: LightningStoreClient) -> None:
        """Claim and work until it falls silent; a visitor does so only once."""
        store = MeasuredStore(client, self._ledger.latencies)
        if self.kind.beats:
            async with client.worker(self.worker_id, interval=INTERVAL_SECONDS) as worker:
                alive = True
                while alive:
                    for claimed in await self._claim(store):
                        async with worker.hold(claimed, interrupt=self.kind.interrupt) as cancelled:
                            alive = await self._work(store, claimed, cancelled.is_set)
                        if cancelled.is_set():
                            self._ledger.done[f"called off: {cancelled.reason}"] += 1
        else:
            alive = True
            while alive:
                for claimed in await self._claim(store):
                    alive = await self._work(store, claimed, lambda: False)
                    if not alive:
                        break
                alive &= not self.kind.connects

    async def _claim(self, store: LightningStore) -> Sequence[AttemptedRollout]:
        patience = self._rng.uniform(0.1, 30.0)
        if self._rng.random() < CLAIM_GIVEN_UP_SHARE:
            return await self._claim_and_give_up(store, patience)
        try:
            claimed = await store.dequeue_many_rollouts(
                limit=self.kind.claims, worker_id=self.worker_id, max_wait=patience
            )
        except asyncio.CancelledError:  # the soak ends
            self._ledger.claim_given_up(self.worker_id)
            raise
        return self._handed_out(claimed)

    async def _claim_and_give_up(self, store: LightningStore, patience: float) -> Sequence[AttemptedRollout]:
        try:
            async with asyncio.timeout(self._rng.uniform(0.0, 0.5)):
                claimed = await store.dequeue_rollout(self.worker_id, max_wait=patience)
        except (TimeoutError, asyncio.CancelledError) as end:
            self._ledger.claim_given_up(self.worker_id)
            if isinstance(end, TimeoutError):
                return []
            raise
        return self._handed_out([claimed] if claimed is not None else [])

    def _handed_out(self, claimed: Sequence[AttemptedRollout]) -> Sequence[AttemptedRollout]:
        for one in claimed:
            self._ledger.claimed(one, self.worker_id)
        return claimed

    def _fate(self, claimed: AttemptedRollout) -> Fate:
        if self._rng.random() < SILENT_SHARE and claimed.attempt.sequence_id < SURE_FROM_ATTEMPT:
            return "silence"
        if claimed.input["doomed"]:
            return "failed"
        if self._rng.random() < FAILED_SHARE and claimed.attempt.sequence_id < SURE_FROM_ATTEMPT:
            return "failed"
        return "succeeded"

    async def _work(self, store: LightningStore, claimed: AttemptedRollout, called_off: Callable[[], bool]) -> bool:
        """Whether the runner lives on."""
        work = Work(store, claimed, self._ledger, self._rng)
        fate = self._fate(claimed)
        with self._ledger.unless_gone(work.account):
            for _ in range(self._rng.randint(0, STEPS_MAX)):
                await asyncio.sleep(self._rng.uniform(0, 2 * STEP_SECONDS))
                if called_off():
                    return True
                await work.step()
            if fate == "silence":
                return False
            await work.report(fate)
        return True


class Work:
    """What a runner does for one attempt."""

    def __init__(self, store: LightningStore, claimed: AttemptedRollout, ledger: Ledger, rng: random.Random) -> None:
        self.account: Account = ledger.account(claimed)
        self._store = store
        self._claimed = claimed
        self._ledger = ledger
        self._rng = rng
        self._ids = (claimed.rollout_id, claimed.attempt.attempt_id)

    async def step(self) -> None:
        await self._rng.choice((self.add_span, self.add_spans, self.add_otel_span, self.note, self.read_resources))()

    def _span_id(self) -> str:
        span_id = f"{self._rng.getrandbits(64):016x}"
        self.account.sent.add(span_id)
        return span_id

    async def add_span(self) -> None:
        """Under a number that is allocated before."""
        with self._ledger.taking_numbers(self.account, 1):
            number = await self._store.get_next_span_sequence_id(*self._ids)
            self._ledger.numbered(self.account, [number])
        span = make_span(self._claimed, number, span_id=self._span_id(), attributes=self._attributes())
        self._ledger.stored(self.account, [await self._store.add_span(span)], 1)

    async def add_spans(self) -> None:
        count = self._rng.randint(2, 8)
        with self._ledger.taking_numbers(self.account, count):
            numbers = await self._store.get_many_span_sequence_ids([self._ids] * count)
            self._ledger.numbered(self.account, numbers)
        spans = [
            make_span(self._claimed, number, span_id=self._span_id(), attributes=self._attributes())
            for number in numbers
        ]
        self._ledger.stored(self.account, await self._store.add_many_spans(spans), count)

    async def add_otel_span(self) -> None:
        """The store gives the number."""
        recorded = make_readable_span(int(self._span_id(), 16))
        with self._ledger.taking_numbers(self.account, 1):
            stored = await self._store.add_otel_span(*self._ids, recorded)
            self._ledger.numbered(self.account, [] if stored is None else [stored.sequence_id])
        self._ledger.stored(self.account, [stored], 1)

    def _attributes(self) -> dict[str, Any]:
        return {"text": "x" * self._rng.randint(0, 500)}

    async def note(self) -> None:
        number = self._rng.randrange(1000)
        updated = await self._store.update_attempt(*self._ids, metadata={"number": number})
        if updated.metadata != {"number": number}:
            self._ledger.violate("an update has no effect", ids=self._ids, metadata=updated.metadata)

    async def read_resources(self) -> None:
        resources_id = self._claimed.resources_id
        if resources_id is not None and await self._store.get_resources_by_id(resources_id) is None:
            self._ledger.violate("resources are lost", resources_id=resources_id)

    async def report(self, status: Literal["succeeded", "failed"]) -> None:
        self.account.reports[self._claimed.attempt.attempt_id] = status
        updated = await self._store.update_attempt(*self._ids, status=status)
        if updated.status != status:
            self._ledger.violate("a report has no effect", ids=self._ids, status=updated.status)
        self._ledger.done[f"reported {status}"] += 1
