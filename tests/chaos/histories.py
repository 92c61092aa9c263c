"""Three clients that do what comes to their minds, on one store behind a wire, and what they saw."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from lightning_store import AttemptStatus, LightningStore, RolloutStatus
from lightning_store.testing.faults import FaultSchedule, FaultStatistics
from lightning_store.testing.linearizability import History, RecordedStore
from lightning_store_client import LightningStoreClient
from tests.chaos.flaky import flaky_wire

CLIENTS = 3
OPERATIONS = 12
"""Of each client."""


class Session:
    """One client. It chooses its next call by ``rng`` from what the clients know by then."""

    def __init__(self, name: str, history: History, store: LightningStore, rng: random.Random) -> None:
        self.name = name
        self.history = history
        self.store = RecordedStore(history, name, store)
        self.rng = rng
        self.made = 0

    async def run(self, operations: int, between: Callable[[], Awaitable[Any]]) -> None:
        """Make so many calls, with ``between`` now and then between two of them."""
        for _ in range(operations):
            if self.rng.random() < 0.3:
                await between()
            known = sorted(self.history.rollout_ids)
            calls = [self._enqueue, self._enqueue, self._claim, self._claim, self._publish, self.store.latest_resources]
            if known:
                calls += [self._begin, self._look, self._next_numbers, self._next_numbers, self._set_status]
            if self.history.attempt_ids:
                calls += [self._report, self._report, self._add_span, self._add_span]
            await self.rng.choice(calls)()

    def _rollout(self) -> str:
        return self.rng.choice(sorted(self.history.rollout_ids))

    def _attempt(self) -> tuple[str, int]:
        return self.rng.choice(sorted(self.history.attempt_ids))

    async def _enqueue(self) -> Any:
        names = [f"{self.name}{self.made + number}" for number in range(self.rng.choice([1, 1, 2]))]
        self.made += len(names)
        return await self.store.enqueue(*names)

    async def _claim(self) -> Any:
        return await self.store.claim(self.rng.choice([1, 1, 2]))

    async def _begin(self) -> Any:
        return await self.store.begin_attempt(self._rollout())

    async def _look(self) -> Any:
        return await self.store.look(self._rollout())

    async def _next_numbers(self) -> Any:
        return await self.store.next_numbers(self._rollout(), self.rng.choice([1, 2]))

    async def _set_status(self) -> Any:
        statuses: list[RolloutStatus] = ["queuing", "requeuing", "cancelled", "running"]
        return await self.store.set_status(self._rollout(), self.rng.choice(statuses))

    async def _report(self) -> Any:
        statuses: list[AttemptStatus] = ["running", "succeeded", "failed", "failed", "unresponsive", "unresponsive"]
        return await self.store.report(*self._attempt(), self.rng.choice(statuses))

    async def _add_span(self) -> Any:
        number = self.rng.randrange(1, 6)
        return await self.store.add_span(*self._attempt(), f"{number:016x}", number)

    async def _publish(self) -> Any:
        return await self.store.publish(self.rng.choice(["rs-1", "rs-2"]), f"{self.name} {self.rng.random()}")


async def record_history(
    store: LightningStore, schedule: FaultSchedule, seed: int, **client_settings: Any
) -> tuple[History, FaultStatistics]:
    """What ``CLIENTS`` clients at once see of ``store`` over a wire with faults."""
    history = History()
    async with flaky_wire(store, schedule) as proxy, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(LightningStoreClient(proxy.endpoint, **client_settings))
            for _ in range(CLIENTS)
        ]
        sessions = [
            Session("abc"[number], history, client, random.Random(f"{seed}/{number}"))
            for number, client in enumerate(clients)
        ]
        await asyncio.gather(*(session.run(OPERATIONS, proxy.deliver_late_requests) for session in sessions))
        return history, proxy.statistics
