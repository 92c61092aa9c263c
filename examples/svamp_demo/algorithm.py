"""The algorithm process: trains the policy by REINFORCE, from nothing but what the store returns.

Each iteration publishes the weights as a resource, enqueues a batch of problems, waits until all are done (whoever does
them, and in however many attempts), reads the spans back, and takes one step. ``demo`` starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from examples.svamp_demo.messages import POLICY, PolicyWeights, Task
from examples.svamp_demo.policy import Adam, Episode, Vector, encode, initial_weights, policy_gradient
from examples.svamp_demo.problems import DataError, Problem, ProblemSet, obtain
from examples.svamp_demo.processes import patient_client
from examples.svamp_demo.report import IterationRecord, Report, Summary
from examples.svamp_demo.tracing import TRY_SPAN, Try, read_tries
from lightning_store import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    LightningStore,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutMode,
)
from lightning_store.errors import StoreError

ROLLOUT_CONFIG: Final = RolloutConfig(
    timeout_seconds=30.0,
    unresponsive_seconds=3.0,
    max_attempts=3,
    retry_condition=["failed", "timeout", "unresponsive"],
)
"""A runner that dies is noticed after six missed heartbeats; its rollout goes to another one."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train."""

    iterations: int
    batch_size: int
    seed: int
    tries: int = 4
    """Answers drawn for each rollout; each is judged against the others."""
    learning_rate: float = 0.03
    entropy_bonus: float = 0.1
    """Keeps the policy curious."""
    evaluate_every: int = 10
    """Iterations between two measurements on the held-out problems."""
    wait_seconds: float = 120.0
    """How long a batch may take before the run is given up."""


class TrainingError(RuntimeError):
    """Training cannot go on. The message says what to look at."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished rollout as the store tells it."""

    rollout: Rollout
    tries: Sequence[Try]
    """Empty if the rollout failed or was cancelled."""

    @property
    def retried(self) -> bool:
        """Whether one attempt was not enough."""
        return isinstance(self.rollout, AttemptedRollout) and self.rollout.attempt.sequence_id > 1


class Trainer:
    """One training run on a store."""

    def __init__(self, store: LightningStore, problems: ProblemSet, settings: Settings, report: Report) -> None:
        self._store = store
        self._settings = settings
        self._report = report
        self._train, self._held_out = problems.split(settings.seed)
        self._chance = random.Random(settings.seed)
        self._weights = initial_weights()
        self._optimizer = Adam(settings.learning_rate)
        self._rollouts = self._second_attempts = self._failed = 0

    async def run(self, progress: Progress) -> Summary:
        """Train, and measure the accuracy on the held-out problems before, in between and after."""
        started = time.perf_counter()
        bar = progress.add_task("training", total=self._settings.iterations, reward="")
        progress.console.print(f"{len(self._train)} problems to learn from, {len(self._held_out)} held out")
        untrained = trained = await self._evaluate(0, progress)
        problems = self._endless()
        for iteration in range(1, self._settings.iterations + 1):
            batch = list(itertools.islice(problems, self._settings.batch_size))
            await self._iterate(iteration, batch, progress, bar)
            if iteration % self._settings.evaluate_every == 0 or iteration == self._settings.iterations:
                trained = await self._evaluate(iteration, progress)
        summary = Summary(
            untrained_accuracy=untrained,
            trained_accuracy=trained,
            held_out_problems=len(self._held_out),
            rollouts=self._rollouts,
            second_attempts=self._second_attempts,
            failed=self._failed,
            seconds=time.perf_counter() - started,
        )
        self._report.finish(summary)
        return summary

    async def _iterate(self, iteration: int, batch: Sequence[Problem], progress: Progress, bar: TaskID) -> None:
        """One step of training."""
        started = time.perf_counter()
        published = await self._publish(iteration - 1)
        outcomes = await self._roll_out(batch, "train", published.resources_id)
        self._weights = await self._improved(published.resources_id, outcomes)
        rewards = [each.reward for outcome in outcomes for each in outcome.tries]
        mean_reward = sum(rewards) / max(1, len(rewards))
        self._report.add(_record(iteration, outcomes, started, mean_reward=mean_reward))
        progress.update(bar, advance=1, reward=f"reward {mean_reward:.2f}")

    async def _improved(self, resources_id: str, outcomes: Sequence[Outcome]) -> Vector:
        """The weights after one step, computed from the weights, problems and spans that the store holds."""
        stored = await self._store.get_resources_by_id(resources_id)
        if stored is None:
            raise TrainingError(f"the store has lost the resources {resources_id}; was the server restarted?")
        weights = PolicyWeights.of(stored.resources[POLICY]).unpack()
        gradient = policy_gradient(
            weights, [_episode(each) for each in outcomes if each.tries], self._settings.entropy_bonus
        )
        return self._optimizer.step(self._weights, gradient)

    async def _evaluate(self, iteration: int, progress: Progress) -> float:
        """The share of held-out problems that the runners get right with the present weights."""
        started = time.perf_counter()
        published = await self._publish(iteration)
        outcomes = await self._roll_out(self._held_out, "val", published.resources_id)
        accuracy = sum(outcome.tries[0].reward for outcome in outcomes if outcome.tries) / len(outcomes)
        self._report.add(_record(iteration, outcomes, started, held_out_accuracy=accuracy))
        progress.console.print(f"  after {iteration:>3} iterations: {accuracy:6.1%} of the held-out problems right")
        return accuracy

    async def _publish(self, iteration: int) -> ResourcesUpdate:
        return await self._store.add_resources({POLICY: PolicyWeights.pack(self._weights, iteration)})

    async def _roll_out(self, problems: Sequence[Problem], mode: RolloutMode, resources_id: str) -> list[Outcome]:
        """Have the runners work on ``problems``; what came of it, in the same order."""
        rollouts = await self._store.enqueue_many_rollouts(
            [self._request(each, mode, resources_id) for each in problems]
        )
        rollout_ids = [rollout.rollout_id for rollout in rollouts]
        done = await self._store.wait_for_rollouts(rollout_ids=rollout_ids, timeout=self._settings.wait_seconds)
        if len(done) < len(rollout_ids):
            raise TrainingError(
                f"{len(rollout_ids) - len(done)} of {len(rollout_ids)} rollouts are not finished after "
                f"{self._settings.wait_seconds:g} seconds; are runners at work on this server?"
            )
        found = await self._store.query_rollouts(rollout_id_in=rollout_ids)
        by_id = {rollout.rollout_id: rollout for rollout in found}
        outcomes = await asyncio.gather(*(self._outcome(by_id[rollout_id]) for rollout_id in rollout_ids))
        self._rollouts += len(outcomes)
        self._second_attempts += sum(outcome.retried for outcome in outcomes)
        self._failed += sum(not outcome.tries for outcome in outcomes)
        return outcomes

    async def _outcome(self, rollout: Rollout) -> Outcome:
        """Only the attempt that succeeded counts: one that was cut short may have left spans as well."""
        if rollout.status != "succeeded" or not isinstance(rollout, AttemptedRollout):
            return Outcome(rollout, ())
        attempt_id = rollout.attempt.attempt_id
        return Outcome(
            rollout, read_tries(await self._store.query_spans(rollout.rollout_id, attempt_id, name=TRY_SPAN))
        )

    def _request(self, problem: Problem, mode: RolloutMode, resources_id: str) -> EnqueueRolloutRequest:
        greedy = mode == "val"
        tries = 1 if greedy else self._settings.tries
        task = Task(problem=problem, tries=tries, greedy=greedy, seed=self._chance.getrandbits(32))
        return EnqueueRolloutRequest(
            input=task.model_dump(), mode=mode, resources_id=resources_id, config=ROLLOUT_CONFIG
        )

    def _endless(self) -> Iterator[Problem]:
        """The training problems in random order, over and over."""
        while True:
            yield from self._chance.sample(self._train, len(self._train))


def _episode(outcome: Outcome) -> Episode:
    """What the gradient needs of a rollout, from the input and the spans that the store returned."""
    problem = encode(Task.model_validate(outcome.rollout.input).problem)
    choices = tuple(each.choice for each in outcome.tries)
    return Episode(problem, choices, tuple(each.reward for each in outcome.tries))


def _record(
    iteration: int,
    outcomes: Sequence[Outcome],
    started: float,
    *,
    mean_reward: float | None = None,
    held_out_accuracy: float | None = None,
) -> IterationRecord:
    return IterationRecord(
        iteration=iteration,
        mean_reward=mean_reward,
        held_out_accuracy=held_out_accuracy,
        rollouts=len(outcomes),
        second_attempts=sum(outcome.retried for outcome in outcomes),
        failed=sum(not outcome.tries for outcome in outcomes),
        seconds=time.perf_counter() - started,
    )


def progress_bar(console: Console) -> Progress:
    """The bar that a run is shown by."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[reward]}"),
        TimeRemainingColumn(),
        console=console,
    )


async def _train(endpoint: str, problems: ProblemSet, settings: Settings, report: Report, console: Console) -> Summary:
    async with patient_client(endpoint) as store:
        with progress_bar(console) as progress:
            return await Trainer(store, problems, settings, report).run(progress)


def _print_summary(console: Console, summary: Summary, report: Report) -> None:
    console.print(f"held-out accuracy of the untrained policy: {summary.untrained_accuracy:.1%}")
    console.print(f"held-out accuracy of the trained policy:   {summary.trained_accuracy:.1%}")
    console.print(
        f"{summary.rollouts} rollouts in {summary.seconds:.0f} seconds; "
        f"{summary.second_attempts} needed a second attempt, {summary.failed} failed"
    )
    console.print(f"plot: {report.plot_path}\nlog:  {report.log_path}", soft_wrap=True)


def arguments_parser() -> argparse.ArgumentParser:
    """The flags of this process; ``demo`` passes them on."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.svamp_demo.algorithm", description="Trains the agent of the SVAMP demo."
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the store")
    parser.add_argument("--data", type=Path, metavar="FILE", help="problems, instead of generated ones")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the log and the plot go")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process; returns its exit code: 0, 1 for a run that failed, 2 for data that cannot be used."""
    options = arguments_parser().parse_args(arguments)
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    settings = Settings(iterations=options.iterations, batch_size=options.batch_size, seed=options.seed)
    try:
        problems = obtain(options.data, seed=options.seed)
        report = Report(options.output)
        summary = asyncio.run(_train(options.server, problems, settings, report, console))
    except DataError as error:
        errors.print(f"error: {error}", markup=False)
        return 2
    except (TrainingError, StoreError, OSError) as error:
        errors.print(f"error: {error}", markup=False)
        return 1
    _print_summary(console, summary, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
