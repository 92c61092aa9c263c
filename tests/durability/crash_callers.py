"""Callers that make calls of all kinds, go on through the restarts of the server, and write down what they are told."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Final

from lightning_store.errors import StoreTimeoutError, StoreUnavailableError
from lightning_store.model import AttemptedRollout, EnqueueRolloutRequest, PromptTemplate, RolloutConfig
from lightning_store.store import LightningStore
from lightning_store.testing.contract.base import make_span
from lightning_store.testing.contract.spans import make_readable_span
from tests.durability.crash_ledger import Ledger

HELD_MAX: Final = 6
"""Attempts that a caller works on at a time; with so many it claims no more."""
RETRYING: Final = RolloutConfig(max_attempts=1000, retry_condition=["failed"])


class Caller:
    """Makes calls, one after the other, until ``stopping`` is set on it; then it finishes what it has begun."""

    def __init__(self, name: str, store: LightningStore, ledger: Ledger, seed: str) -> None:
        self.name = name
        self.stopping = False
        self._store = store
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._names = (f"{name}-{number}" for number in count())
        self._held: list[AttemptedRollout] = []

    async def run(self) -> None:
        while not self.stopping:
            await self._step()
        while await self._claim(max_wait=0) or self._held:
            while self._held:
                await self._succeed(self._held.pop())

    async def _step(self) -> None:
        actions = [self._enqueue, self._publish, self._beat]
        if len(self._held) < HELD_MAX:
            actions += [self._claim_some] * 3 + [self._start]
        if self._held:
            actions += [self._add_spans, self._add_otel_span, self._number, self._note, self._report, self._report]
        action = self._rng.choice(actions)
        self._ledger.calls[action.__name__.removeprefix("_")] += 1
        await action()

    # --- New rollouts and claims -------------------------------------------------------------------------------------

    async def _enqueue(self) -> None:
        name = next(self._names)
        inputs = [f"{name}.{number}" for number in range(self._rng.choice([1, 3]))]
        self._ledger.sent[name] = frozenset(inputs)
        requests = [EnqueueRolloutRequest(input=one, config=RETRYING) for one in inputs]
        self._ledger.enqueued(name, await self._store.enqueue_many_rollouts(requests))

    async def _start(self) -> None:
        name = next(self._names)
        self._ledger.sent[name] = frozenset([name])
        started = await self._store.start_rollout(name, config=RETRYING, worker_id=self.name)
        self._ledger.enqueued(name, [started])
        self._ledger.claimed(started)
        self._held.append(started)

    async def _claim_some(self) -> None:
        await self._claim(max_wait=self._rng.choice([0, 0.2]))

    async def _claim(self, max_wait: float) -> bool:
        claimed = await self._store.dequeue_many_rollouts(limit=2, worker_id=self.name, max_wait=max_wait)
        for one in claimed:
            self._ledger.claimed(one)
        self._held += claimed
        return bool(claimed)

    # --- Work on a rollout -------------------------------------------------------------------------------------------

    async def _add_spans(self) -> None:
        """In one call, under numbers of 0, which do not count."""
        held, name = self._rng.choice(self._held), next(self._names)
        spans = [make_span(held, 0, span_id=f"{self._rng.getrandbits(64):016x}") for _ in range(3)]
        account = self._ledger.account(held.rollout_id)
        account.batches[name] = {one.span_id for one in spans}
        stored = await self._store.add_many_spans(spans)
        self._acknowledge_spans(held, name, [one.span_id for one in stored])

    async def _add_otel_span(self) -> None:
        """The server gives the number."""
        held, name = self._rng.choice(self._held), next(self._names)
        recorded = make_readable_span(self._rng.getrandbits(63))
        span_id = f"{recorded.get_span_context().span_id:016x}"
        self._ledger.account(held.rollout_id).batches[name] = {span_id}
        stored = await self._store.add_otel_span(held.rollout_id, held.attempt.attempt_id, recorded)
        self._acknowledge_spans(held, name, [] if stored is None else [stored.span_id])

    def _acknowledge_spans(self, held: AttemptedRollout, name: str, stored: list[str]) -> None:
        account = self._ledger.account(held.rollout_id)
        account.stored.add(name)
        if set(stored) != account.batches[name]:
            self._ledger.violate("new spans were taken for duplicates", name=name, stored=stored)

    async def _number(self) -> None:
        held = self._rng.choice(self._held)
        pairs = [(held.rollout_id, held.attempt.attempt_id)] * 2
        numbers = await self._store.get_many_span_sequence_ids(pairs)
        self._ledger.account(held.rollout_id).numbers += numbers

    async def _note(self) -> None:
        held = self._rng.choice(self._held)
        account = self._ledger.account(held.rollout_id)
        account.note_sent += 1
        number = account.note_sent
        updated = await self._store.update_rollout(held.rollout_id, metadata={"note": number})
        if updated.metadata != {"note": number}:
            self._ledger.violate("an update has no effect", updated=updated)
        self._ledger.account(held.rollout_id).note_stored = number

    # --- Its end -----------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        held = self._held.pop(self._rng.randrange(len(self._held)))
        end = self._rng.choice([self._fail, self._succeed, self._succeed, self._cancel])
        await end(held)

    async def _fail(self, held: AttemptedRollout) -> None:
        """It is claimed again."""
        reports = self._ledger.account(held.rollout_id).reports
        await self._store.update_attempt(held.rollout_id, held.attempt.attempt_id, status="failed")
        reports[held.attempt.attempt_id] = "failed"
        self._ledger.account(held.rollout_id)

    async def _succeed(self, held: AttemptedRollout) -> None:
        await self._store.update_attempt(held.rollout_id, held.attempt.attempt_id, status="succeeded")
        account = self._ledger.account(held.rollout_id)
        account.reports[held.attempt.attempt_id] = account.ended = "succeeded"
        await self._delete(held, share=0.5)

    async def _cancel(self, held: AttemptedRollout) -> None:
        [cancelled] = await self._store.cancel_rollouts([held.rollout_id])
        if cancelled.status != "cancelled":
            self._ledger.violate("a cancellation has no effect", cancelled=cancelled)
        self._ledger.account(held.rollout_id).ended = "cancelled"
        await self._delete(held, share=0.5)

    async def _delete(self, held: AttemptedRollout, share: float) -> None:
        if self._rng.random() >= share:
            return
        self._ledger.account(held.rollout_id).delete_sent = True
        self._ledger.inputs_deleted.add(held.input)
        deleted = await self._store.delete_rollouts([held.rollout_id])
        if deleted != [held.rollout_id]:
            self._ledger.violate("a deletion has no effect", rollout_id=held.rollout_id, deleted=deleted)
        self._ledger.account(held.rollout_id).deleted = True

    # --- All else ----------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        update = await self._store.update_resources("rs-shared", self._resources())
        self._ledger.versions.append(update.version)

    def _resources(self) -> Mapping[str, PromptTemplate]:
        return {"prompt": PromptTemplate(template=next(self._names), engine="f-string")}

    async def _beat(self) -> None:
        """The one call that is not made again."""
        with suppress(StoreUnavailableError, StoreTimeoutError):
            await self._store.update_worker(self.name, {"calls": self._ledger.calls.total()})
