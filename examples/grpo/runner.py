"""A process with some runners. ``python -m examples.grpo.runner --server HOST:PORT --name NAME`` starts one."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

from examples.grpo.policy import (
    ANSWER,
    ANSWERS,
    FREE_TIME,
    POLICY,
    REWARD,
    Matrix,
    from_resource,
    probabilities,
    right_answer,
)
from examples.svamp_demo.processes import patient_client
from lightning_store import AttemptedRollout, Span
from lightning_store.errors import AttemptFencedError, StoreError
from lightning_store_client import LightningStoreClient

WAIT_SECONDS: Final = 0.5
SAMPLE_SECONDS: Final = 0.02
STRAGGLER_SECONDS: Final = 1.5
STRAGGLERS: Final = 0.05
FAILURES: Final = 0.2
WRONG_REWARD: Final = 0.05
"""How often an answer gets the wrong reward."""


class AgentError(Exception):
    """The stub of an agent that fails."""


class Runner:
    """One runner on a store."""

    def __init__(self, store: LightningStoreClient, worker_id: str, chance: random.Random) -> None:
        self._store = store
        self._worker_id = worker_id
        self._chance = chance
        self._policy: tuple[str, Matrix] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        async with self._store.worker(self._worker_id, interval=1.0) as worker:
            while not stop.is_set():
                claimed = await self._store.dequeue_rollout(self._worker_id, max_wait=WAIT_SECONDS)
                if claimed is None:
                    continue
                try:
                    async with worker.hold(claimed) as cancelled:  # ends here and now if the sample is called off
                        await self._work(claimed)
                    if cancelled.is_set():
                        await self._note_free(claimed)
                except (AgentError, AttemptFencedError):
                    pass  # a failure is reported, and tried again; what was called off is not

    async def _work(self, claimed: AttemptedRollout) -> None:
        logits = await self._weights(claimed.resources_id)
        slow = self._chance.random() < STRAGGLERS
        await asyncio.sleep((STRAGGLER_SECONDS if slow else SAMPLE_SECONDS) * self._chance.expovariate(1.0))
        if self._chance.random() < FAILURES:
            raise AgentError("the agent fails now and then")
        prompt = int(claimed.input["prompt"])
        [answer] = self._chance.choices(range(ANSWERS), list(probabilities(logits, prompt)))
        is_right = (answer == right_answer(prompt)) != (self._chance.random() < WRONG_REWARD)
        await self._store.add_span(
            Span(
                rollout_id=claimed.rollout_id,
                attempt_id=claimed.attempt.attempt_id,
                sequence_id=1,
                trace_id=f"{self._chance.getrandbits(128):032x}",
                span_id=f"{self._chance.getrandbits(64):016x}",
                name="sample",
                attributes={ANSWER: answer, REWARD: float(is_right)},
            )
        )
        await self._store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")

    async def _note_free(self, claimed: AttemptedRollout) -> None:
        """For the demo, which tells how soon runners are free after their samples are called off."""
        free = {FREE_TIME: time.time()}
        await self._store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, metadata=free)

    async def _weights(self, resources_id: str | None) -> Matrix:
        if self._policy is None or self._policy[0] != resources_id:
            found = None if resources_id is None else await self._store.get_resources_by_id(resources_id)
            if found is None:
                raise AgentError(f"there are no resources {resources_id}")
            self._policy = found.resources_id, from_resource(found.resources[POLICY])
        return self._policy[1]


async def _serve(endpoint: str, name: str, count: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with patient_client(endpoint) as store:
        names = [f"{name}-{number}" for number in range(count)]
        await asyncio.gather(*(Runner(store, one, random.Random(one)).run(stop) for one in names))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.grpo.runner", description="Some runners of the GRPO demo."
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the store")
    parser.add_argument("--name", required=True, help="what the names of the runners begin with")
    parser.add_argument("--count", type=int, default=8, help="how many there are (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(options.server, options.name, options.count))
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
