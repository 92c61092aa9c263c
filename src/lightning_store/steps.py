"""Runs steps: a transaction each, what is overdue first, the reply remembered with it, who waits told after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

from lightning_store.backends.base import Backend
from lightning_store.clock import Clock
from lightning_store.errors import RequestIdReusedError, ResourceExhaustedError, StoreError
from lightning_store.memory_limits import MemoryLimits, memory_full
from lightning_store.replay import Request, current_request
from lightning_store.step import Effects, Policy, Step, Unfinished
from lightning_store.waiters import Claimants, Waiters, Watchers
from lightning_store.watchdog import Watchdog

R = TypeVar("R")


class _Call(NamedTuple, Generic[R]):
    """What is to be run in one step, and how it is replayed."""

    body: Callable[[Step], Awaitable[R | Unfinished]]
    operation: str = ""
    request: Request | None = None
    """None for a call that may as well run twice."""
    stores: bool = False
    """Whether it takes memory, which may be refused."""
    final: bool = True
    """Whether an empty reply is the answer, rather than a reason to wait and look again."""

    @property
    def signature(self) -> str:
        """What a reply is remembered for, beside the request's id."""
        assert self.request is not None
        return f"{self.operation} {self.request.fingerprint}"

    def replayed(self, signature: str, reply: Any) -> R:
        """The reply that was remembered; a refusal is raised again. RequestIdReusedError if it was to another call."""
        assert self.request is not None
        if signature != self.signature:
            message = f"request_id {self.request.id} was used for another call already; make a new one for each call"
            raise RequestIdReusedError(message, field="request_id")
        if isinstance(reply, _Refusal):
            raise copy(reply.error)
        return cast(R, reply)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Stands for the reply to a call that was refused."""

    error: StoreError


class Steps:
    """The steps of one store, and who waits for what they bring about."""

    def __init__(self, backend: Backend, policy: Policy, clock: Clock, memory: MemoryLimits | None) -> None:
        self._backend = backend
        self._policy = policy
        self._clock = clock
        self._memory = memory
        self.waiters = Waiters()
        self.claimants = Claimants()
        self.watchers = Watchers()
        self.watchdog = Watchdog(clock, self._look_at_deadlines)

    async def run(self, body: Callable[[Step], Awaitable[R | Unfinished]]) -> R:
        """Run a step that may as well run twice."""
        return await self._run(_Call(body))

    async def once(
        self,
        operation: str,
        body: Callable[[Step], Awaitable[R | Unfinished]],
        *,
        stores: bool = False,
        final: bool = True,
    ) -> R:
        """Run a step that must not run twice for one request id; a repeated id gets the first reply again."""
        return await self._run(_Call(body, operation, current_request(), stores, final))

    async def _run(self, call: _Call[R]) -> R:
        while True:
            now, at = self._clock.now(), self._clock.monotonic()
            effects = Effects()
            try:
                async with self._backend.transaction() as tx:
                    if call.request is not None:
                        remembered = await tx.recall_reply(call.request.id, at)
                        if remembered is not None:
                            return call.replayed(*remembered)
                    step = Step(tx, now, effects, self._policy)
                    if await step.give_up_overdue() and await step.drop_expendable():
                        reply = await self._perform(step, call, at)
                        self.watchdog.watch(await step.next_deadline())
                        if not isinstance(reply, Unfinished):
                            return reply
            finally:
                self._tell(effects)
            await asyncio.sleep(0)  # there was a great deal to do: let others in between

    async def _perform(self, step: Step, call: _Call[R], at: float) -> R | Unfinished:
        """Run the call's body and remember its reply, if there is one yet."""
        try:
            if call.stores:
                await self._make_room(step)
            reply = await call.body(step)
            if call.stores:
                await self._drop_excess(step)
        except StoreError as error:
            # What is refused for want of room may be granted when it is asked for again: that is no answer to remember.
            for_good = not isinstance(error, ResourceExhaustedError)
            if call.request is not None and call.request.repeated and for_good:
                await step.tx.remember_reply(call.request.id, call.signature, _Refusal(copy(error)), at)
            raise
        if isinstance(reply, Unfinished):
            return reply
        if call.request is not None and (reply or (call.request.repeated and call.final)):
            await step.tx.remember_reply(call.request.id, call.signature, reply, at)
        return reply

    async def _make_room(self, step: Step) -> None:
        """ResourceExhaustedError if the memory limit is reached, with nothing left that may be dropped."""
        if self._memory is None:
            return
        excess = await step.tx.stored_bytes() - self._memory.limit_bytes
        if excess <= 0:
            return
        await step.tx.evict_spans(excess, unfinished=False)
        stored = await step.tx.stored_bytes()
        if stored > self._memory.limit_bytes:
            raise memory_full(stored, self._memory.limit_bytes)

    async def _drop_excess(self, step: Step) -> None:
        """Of spans, which have a limit of their own: if they are past it, those of the rollouts that ended first go."""
        if self._memory is None:
            return
        total_bytes = await step.tx.span_bytes()
        if total_bytes > self._memory.eviction_bytes:
            await step.tx.evict_spans(total_bytes - self._memory.safe_bytes, unfinished=True)

    def _tell(self, effects: Effects) -> None:
        """Wake who waits for what a step did."""
        self.waiters.notify(effects.ended)
        self.waiters.notify(effects.deleted)
        self.claimants.notify(effects.queued)
        self.watchers.notify(effects.ended, effects.deleted)

    async def _look_at_deadlines(self) -> None:
        """A step that is only about deadlines, which every step looks at first."""

        async def nothing_else(step: Step) -> None:
            return

        await self.run(nothing_else)
