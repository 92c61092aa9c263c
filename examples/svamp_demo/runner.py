"""A runner process: claims rollouts, answers their problems with the weights that they name, and reports.

``python -m examples.svamp_demo.runner --server HOST:PORT --worker-id NAME`` starts one; as many as wanted may work for
one algorithm. SIGTERM and SIGINT end it after the rollout at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Final

import numpy as np

from examples.svamp_demo.messages import POLICY, PolicyWeights, Task
from examples.svamp_demo.policy import Vector, best, encode, probabilities, sample
from examples.svamp_demo.processes import patient_client
from examples.svamp_demo.tracing import Recorder, Try
from lightning_store import AttemptedRollout, LightningStore
from lightning_store.errors import StoreTimeoutError, StoreUnavailableError

WAIT_SECONDS: Final = 0.5
"""How long one call waits for a rollout; between two calls the runner looks whether it is to stop."""
HEARTBEAT_SECONDS: Final = 0.5

_log = logging.getLogger("svamp.runner")


class Runner:
    """One worker on a store."""

    def __init__(self, store: LightningStore, worker_id: str) -> None:
        self._store = store
        self._worker_id = worker_id
        self._recorder = Recorder(worker_id)
        self._finished = 0
        self._weights: tuple[str, Vector] | None = None
        """The weights fetched last, with their resources_id: a batch of rollouts shares them."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set. Raises what the store raises once it cannot be reached."""
        while not stop.is_set():
            rollout = await self._store.dequeue_rollout(self._worker_id, max_wait=WAIT_SECONDS)
            if rollout is not None:
                await self._work(rollout)

    def stats(self) -> dict[str, int]:
        """For the heartbeats, which are sent by whoever runs this."""
        return {"rollouts_finished": self._finished}

    async def _work(self, rollout: AttemptedRollout) -> None:
        """One attempt, from its task to its report. What is wrong with the task fails the attempt, not the runner."""
        rollout_id, attempt_id = rollout.rollout_id, rollout.attempt.attempt_id
        try:
            await self._solve(rollout)
        except (StoreUnavailableError, StoreTimeoutError):
            raise
        except ValueError as error:
            _log.warning("rollout %s, attempt %s failed: %s", rollout_id, attempt_id, error)
            await self._store.update_attempt(rollout_id, attempt_id, status="failed", metadata={"error": str(error)})
            return
        await self._store.update_attempt(rollout_id, attempt_id, status="succeeded")
        self._finished += 1

    async def _solve(self, rollout: AttemptedRollout) -> None:
        """Answer the problem and store the spans. ValueError if the task or the weights cannot be used."""
        task = Task.model_validate(rollout.input)
        weights = await self._fetch_weights(rollout.resources_id)
        problem = encode(task.problem)
        chance = np.random.default_rng(task.seed)
        choices = [best(weights, problem, chance)] if task.greedy else sample(weights, problem, task.tries, chance)
        answer = task.problem.answer
        tries = [Try(choice, float(problem.candidates[choice].is_correct(answer))) for choice in choices]
        likely = probabilities(weights, problem).tolist()
        for span in self._recorder.record(task.problem, problem.candidates, tries, likely):
            await self._store.add_otel_span(rollout.rollout_id, rollout.attempt.attempt_id, span)

    async def _fetch_weights(self, resources_id: str | None) -> Vector:
        if self._weights is not None and self._weights[0] == resources_id:
            return self._weights[1]
        found = await self._store.get_resources_by_id(resources_id) if resources_id else None
        if found is None or POLICY not in found.resources:
            raise ValueError(f"resources {resources_id} hold no {POLICY!r}")
        weights = PolicyWeights.of(found.resources[POLICY]).unpack()
        self._weights = (found.resources_id, weights)
        return weights


async def _serve(endpoint: str, worker_id: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with patient_client(endpoint) as store:
        _log.info("%s works for %s", worker_id, endpoint)
        runner = Runner(store, worker_id)
        async with store.worker(worker_id, interval=HEARTBEAT_SECONDS, stats=runner.stats):
            await runner.run(stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process; returns its exit code: 1 if the store cannot be reached."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.svamp_demo.runner", description="Works on the rollouts of the SVAMP demo."
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the store")
    parser.add_argument(
        "--worker-id", required=True, metavar="NAME", help="under what name the store knows this runner"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_serve(options.server, options.worker_id))
    except (StoreUnavailableError, StoreTimeoutError) as error:
        _log.error("the store at %s does not answer: %s", options.server, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
