"""The algorithm's side: trainers that enqueue, wait in every way there is, read, check, and delete; and two feeds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Final

from lightning_store.errors import InvalidTransitionError, RolloutNotFoundError
from lightning_store.model import EnqueueRolloutRequest, PromptTemplate, Rollout, RolloutConfig
from lightning_store.store import LightningStore
from tests.soak.ledger import Account, Ledger
from tests.soak.runners import Work

STEADY_FEED: Final = "steady feed"
RESUMED_FEED: Final = "resumed feed"

BATCH_MAX: Final = 30
UNRESPONSIVE_SECONDS: Final = 6.0
TIMEOUT_SECONDS: Final = 25.0
DOOMED_SHARE: Final = 0.05
CANCELLING_SHARE: Final = 0.3
"""Of the batches."""
RETAINED_SHARE: Final = 0.2
"""Of the batches that nobody deletes."""
BATCH_SECONDS_MAX: Final = 120.0
"""Whatever happens, a batch is finished and told of by then."""


class Trainer:
    """Brings batch after batch through the store, until ``stopping`` is set."""

    def __init__(self, number: int, store: LightningStore, ledger: Ledger, retain_seconds: float) -> None:
        self.name = f"trainer-{number}"
        self._store = store
        self._ledger = ledger
        self._retain_seconds = retain_seconds
        self._rng = random.Random(f"{ledger.seed}/{self.name}")
        self._tasks = 0
        self._has_published = False

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            with self._ledger.no_errors(self.name):
                await self._publish()
                await self._train(await self._enqueue())

    async def _publish(self) -> None:
        prompt = {"prompt": PromptTemplate(template="x" * self._rng.randint(0, 1000), engine="f-string")}
        if not self._has_published:
            update = await self._store.add_resources(prompt)
            self._has_published = True
        else:
            chosen = self._rng.choice(self._ledger.resources_ids)
            update = await self._store.update_resources(chosen, prompt)
        self._ledger.published(update.resources_id, update.version)

    def _new(self) -> EnqueueRolloutRequest:
        self._tasks += 1
        doomed = self._rng.random() < DOOMED_SHARE
        config = RolloutConfig(
            max_attempts=2 if doomed else 100,
            retry_condition=["failed", "timeout", "unresponsive"],
            unresponsive_seconds=UNRESPONSIVE_SECONDS,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        return EnqueueRolloutRequest(input={"task": f"{self.name}-{self._tasks}", "doomed": doomed}, config=config)

    async def _enqueue(self) -> list[Rollout]:
        new = [self._new() for _ in range(self._rng.randint(1, BATCH_MAX))]
        if self._rng.random() < 0.5:
            rollouts = list(await self._store.enqueue_many_rollouts(new))
        else:
            rollouts = [await self._store.enqueue_rollout(one.input, config=one.config) for one in new]
        if [rollout.input for rollout in rollouts] != [one.input for one in new]:
            self._ledger.violate("a batch came back in another order", trainer=self.name)
        if self._rng.random() < 0.2:
            rollouts.append(await self._work_itself())
        self._ledger.done["enqueued"] += len(rollouts)
        return rollouts

    async def _work_itself(self) -> Rollout:
        """A rollout that skips the queue."""
        new = self._new()
        started = await self._store.start_rollout(new.input, config=new.config)
        account = self._ledger.claimed(started, None)
        work = Work(self._store, started, self._ledger, self._rng)
        await work.step()
        await work.report("failed" if account.doomed else "succeeded")
        return started

    # --- A batch -----------------------------------------------------------------------------------------------------

    async def _train(self, rollouts: Sequence[Rollout]) -> None:
        accounts = {rollout.rollout_id: self._ledger.account(rollout) for rollout in rollouts}
        read: set[str] = set()
        try:
            async with asyncio.timeout(BATCH_SECONDS_MAX), asyncio.TaskGroup() as group:
                group.create_task(self._cancel_some(accounts))
                async for rollout in self._collect(list(accounts)):
                    await self._read(accounts[rollout.rollout_id], rollout)
                    read.add(rollout.rollout_id)
        except TimeoutError:
            left = await self._store.query_rollouts(rollout_id_in=list(accounts.keys() - read))
            self._ledger.violate("rollouts are stuck", trainer=self.name, left=list(left))
        for account in accounts.values():
            if account.rollout_id not in read and not self._may_be_expired(account):
                self._ledger.violate("a wait left out a rollout", account=account)
        await self._dispose(accounts)

    def _may_be_expired(self, account: Account) -> bool:
        """Whether the retention may have deleted it by now."""
        ended_at = account.ended_at
        return ended_at is not None and self._ledger.clock.now() - ended_at > self._retain_seconds - 1

    async def _cancel_some(self, accounts: dict[str, Account]) -> None:
        if self._rng.random() > CANCELLING_SHARE:
            return
        await asyncio.sleep(self._rng.uniform(0, 2))
        chosen = self._rng.sample(sorted(accounts), min(4, len(accounts)))
        for rollout_id in chosen:
            accounts[rollout_id].cancelled = True
        if self._rng.random() < 0.5:
            await self._store.cancel_rollouts(chosen)
        else:
            for rollout_id in chosen:
                with suppress(InvalidTransitionError):  # it has ended; only a strict store minds
                    await self._store.update_rollout(rollout_id, status="cancelled")
        self._ledger.done["cancelled"] += len(chosen)

    def _collect(self, rollout_ids: list[str]) -> AsyncIterator[Rollout]:
        ways = (self._wait_for_all, self._wait_for_any, self._look_again_and_again, self._watch)
        return self._rng.choice(ways)(rollout_ids)

    async def _wait_for_all(self, rollout_ids: list[str]) -> AsyncIterator[Rollout]:
        for rollout in await self._store.wait_for_rollouts(rollout_ids=rollout_ids):
            yield rollout

    async def _wait_for_any(self, rollout_ids: list[str]) -> AsyncIterator[Rollout]:
        left = dict.fromkeys(rollout_ids)
        while ended := await self._store.wait_for_rollouts(rollout_ids=list(left), return_when="any"):
            for rollout in ended:
                del left[rollout.rollout_id]
                yield rollout

    async def _look_again_and_again(self, rollout_ids: list[str]) -> AsyncIterator[Rollout]:
        left = dict.fromkeys(rollout_ids)
        while left:
            seconds = self._rng.uniform(0, 3)
            for rollout in await self._store.wait_for_rollouts(rollout_ids=list(left), timeout=seconds):
                del left[rollout.rollout_id]
                yield rollout

    async def _watch(self, rollout_ids: list[str]) -> AsyncIterator[Rollout]:
        async with aclosing(self._store.watch_rollouts(rollout_ids)) as completions:  # type: ignore[type-var]
            async for completed in completions:
                yield completed.rollout

    async def _read(self, account: Account, rollout: Rollout) -> None:
        handed_out = dict(account.attempts)
        attempts = await self._store.query_attempts(account.rollout_id)
        acknowledged = dict(account.stored)
        spans = await self._store.query_spans(account.rollout_id)
        if attempts:
            self._ledger.check(account, rollout, handed_out, attempts)
            self._ledger.check_spans(account, acknowledged, spans)
        elif not account.cancelled:
            self._ledger.violate("a finished rollout has no attempts", rollout=rollout)

    # --- The end of a batch ------------------------------------------------------------------------------------------

    async def _dispose(self, accounts: dict[str, Account]) -> None:
        try:
            async with asyncio.timeout(BATCH_SECONDS_MAX):
                for account in accounts.values():
                    await account.told_by_all.wait()
        except TimeoutError:
            left = [one for one in accounts.values() if not one.told_by_all.is_set()]
            if untold := [one for one in left if not self._may_be_expired(one)]:
                self._ledger.violate("a feed did not tell of rollouts", untold=untold)
        for account in accounts.values():
            account.gone = True
        retained = (
            []
            if self._rng.random() > RETAINED_SHARE
            else [account.rollout_id for account in accounts.values() if not account.cancelled]
        )
        self._ledger.done["left to retention"] += len(retained)
        await self._delete([account for account in accounts.values() if account.rollout_id not in retained])
        self._ledger.close(accounts)

    async def _delete(self, accounts: Sequence[Account]) -> None:
        rollout_ids = [account.rollout_id for account in accounts]
        deleted = await self._store.delete_rollouts(rollout_ids)
        left_out = [one for one in accounts if one.rollout_id not in deleted and not self._may_be_expired(one)]
        if left_out or not set(deleted) <= set(rollout_ids):
            self._ledger.violate("not what was asked for was deleted", deleted=deleted, left_out=left_out)
        if left := await self._store.query_rollouts(rollout_id_in=rollout_ids):
            self._ledger.violate("a deletion has no effect", left=list(left))
        with suppress(RolloutNotFoundError):  # what a strict store says
            if rollout_ids and await self._store.query_spans(rollout_ids[0]):
                self._ledger.violate("spans of a deleted rollout are left", rollout_id=rollout_ids[0])
        self._ledger.done["deleted"] += len(deleted)


# --- Feeds -----------------------------------------------------------------------------------------------------------


async def follow(store: LightningStore, ledger: Ledger) -> None:
    """From the first completion to the last, at one go."""
    with ledger.no_errors(STEADY_FEED):
        async for completed in store.watch_rollouts():
            ledger.told(STEADY_FEED, completed)


async def follow_again_and_again(store: LightningStore, ledger: Ledger) -> None:
    """The same, left and taken up again all the time."""
    rng = random.Random(f"{ledger.seed}/{RESUMED_FEED}")
    cursor: str | None = None
    with ledger.no_errors(RESUMED_FEED):
        while True:
            try:
                async with (
                    asyncio.timeout(rng.uniform(0.1, 5)),
                    aclosing(store.watch_rollouts(after=cursor)) as completions,  # type: ignore[type-var]
                ):
                    async for completed in completions:
                        ledger.told(RESUMED_FEED, completed)
                        cursor = completed.cursor
            except TimeoutError:
                continue
