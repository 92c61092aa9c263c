"""The algorithm: REINFORCE on what the store returns. It runs in the Trainer's process."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import agentlightning as agl
from rich.console import Console
from rich.progress import Progress, TaskID

from examples.agent_lightning.messages import pack, unpack_weights
from examples.svamp_demo.algorithm import Settings, TrainingError, progress_bar
from examples.svamp_demo.messages import Task
from examples.svamp_demo.policy import Adam, Episode, encode, initial_weights, policy_gradient
from examples.svamp_demo.problems import Problem
from examples.svamp_demo.report import IterationRecord, Report, Summary

ROLLOUT_CONFIG: Final = agl.RolloutConfig(
    timeout_seconds=60.0, max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"]
)
WAIT_SLICE_SECONDS: Final = 1.0
"""Agent Lightning's own store waits in threads, which Ctrl-C does not end."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one attempt, ids and times aside."""

    status: str
    spans: tuple[str, ...]
    """Their names, in the order of their sequence ids."""
    rewards: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one rollout, ids and times aside: the same program gives the same on every store."""

    problem_id: str
    mode: str
    status: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class _Finished:
    """A finished rollout, with the spans of its last attempt."""

    task: Task
    outcome: Outcome
    spans: Sequence[agl.Span]

    @property
    def succeeded(self) -> bool:
        return self.outcome.status == "succeeded"


class Reinforce(agl.Algorithm):
    """Trains the policy on the problems of ``train_dataset``, and measures it on the held-out ones, ``val_dataset``.

    The Trainer's adapter has to make one triplet of each answer.
    """

    def __init__(self, settings: Settings, report: Report, console: Console) -> None:
        super().__init__()
        self.weights = initial_weights()
        self.outcomes: list[Outcome] = []
        """Of all rollouts, in the order in which they were enqueued."""
        self.summary: Summary | None = None
        """There is one once ``run`` has completed."""
        self._settings = settings
        self._report = report
        self._console = console
        self._optimizer = Adam(settings.learning_rate)
        self._chance = random.Random(settings.seed)

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        """Train, and measure the accuracy on the held-out problems before, in between and after."""
        if not train_dataset or not val_dataset:
            raise ValueError("there is nothing to learn from: give Trainer.fit train_dataset and val_dataset")
        with progress_bar(self._console) as progress:
            await self._train(list(train_dataset), list(val_dataset), progress)

    async def _train(self, train: Sequence[Problem], held_out: Sequence[Problem], progress: Progress) -> None:
        started, steps = time.perf_counter(), self._settings.iterations
        bar = progress.add_task("training", total=steps, reward="")
        progress.console.print(f"{len(train)} problems to learn from, {len(held_out)} held out")
        untrained = trained = await self._evaluate(0, held_out, progress)
        problems = self._endless(train)
        for step in range(1, steps + 1):
            await self._step(step, list(itertools.islice(problems, self._settings.batch_size)), progress, bar)
            if step % self._settings.evaluate_every == 0 or step == steps:
                trained = await self._evaluate(step, held_out, progress)
        self.summary = Summary(
            untrained_accuracy=untrained,
            trained_accuracy=trained,
            held_out_problems=len(held_out),
            rollouts=len(self.outcomes),
            second_attempts=sum(len(outcome.attempts) > 1 for outcome in self.outcomes),
            failed=sum(outcome.status != "succeeded" for outcome in self.outcomes),
            seconds=time.perf_counter() - started,
        )
        self._report.finish(self.summary)

    async def _step(self, step: int, batch: Sequence[Problem], progress: Progress, bar: TaskID) -> None:
        """One step of training, computed from the weights, inputs and spans that the store holds."""
        started = time.perf_counter()
        published = await self.get_store().add_resources(pack(self.weights, step - 1))
        finished = await self._roll_out(batch, "train", published.resources_id)
        episodes = [self._episode(each) for each in finished if each.succeeded]
        gradient = policy_gradient(unpack_weights(published.resources), episodes, self._settings.entropy_bonus)
        self.weights = self._optimizer.step(self.weights, gradient)
        rewards = [reward for episode in episodes for reward in episode.rewards]
        mean_reward = sum(rewards) / max(1, len(rewards))
        self._report.add(_record(step, finished, started, mean_reward=mean_reward))
        progress.update(bar, advance=1, reward=f"reward {mean_reward:.2f}")

    def _episode(self, finished: _Finished) -> Episode:
        """What the gradient needs of a rollout, from its spans by way of the Trainer's adapter."""
        triplets = [triplet for triplet in self.get_adapter().adapt(finished.spans) if triplet.reward is not None]
        if len(triplets) != finished.task.tries:
            raise TrainingError(
                f"the store has {len(triplets)} of {finished.task.tries} answers to {finished.outcome.problem_id}"
            )
        choices = tuple(int(triplet.response["token_ids"][0]) for triplet in triplets)
        return Episode(encode(finished.task.problem), choices, tuple(float(triplet.reward) for triplet in triplets))

    async def _evaluate(self, step: int, held_out: Sequence[Problem], progress: Progress) -> float:
        """The share of held-out problems that the agents get right with the present weights."""
        started = time.perf_counter()
        published = await self.get_store().add_resources(pack(self.weights, step))
        finished = await self._roll_out(held_out, "val", published.resources_id)
        accuracy = sum(_final_reward(each) for each in finished if each.succeeded) / len(finished)
        self._report.add(_record(step, finished, started, held_out_accuracy=accuracy))
        progress.console.print(f"  after {step:>3} steps: {accuracy:6.1%} of the held-out problems right")
        return accuracy

    def _endless(self, problems: Sequence[Problem]) -> Iterator[Problem]:
        """The problems in random order, over and over."""
        while True:
            yield from self._chance.sample(problems, len(problems))

    # --- Rollouts ----------------------------------------------------------------------------------------------------

    async def _roll_out(self, problems: Sequence[Problem], mode: agl.RolloutMode, resources_id: str) -> list[_Finished]:
        """Have the agents work on ``problems``; what came of it, in the same order."""
        store = self.get_store()
        tasks = [self._task(problem, mode) for problem in problems]
        requests = [
            agl.EnqueueRolloutRequest(
                input=task.model_dump(), mode=mode, resources_id=resources_id, config=ROLLOUT_CONFIG
            )
            for task in tasks
        ]
        rollout_ids = [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(requests)]
        ended = await self._wait(rollout_ids)
        finished = await asyncio.gather(
            *(self._finished(task, ended[rollout_id]) for task, rollout_id in zip(tasks, rollout_ids, strict=True))
        )
        self.outcomes.extend(each.outcome for each in finished)
        if not any(each.succeeded for each in finished):
            raise TrainingError(f"all {len(finished)} rollouts failed")
        return finished

    def _task(self, problem: Problem, mode: agl.RolloutMode) -> Task:
        greedy = mode == "val"
        tries = 1 if greedy else self._settings.tries
        return Task(problem=problem, tries=tries, greedy=greedy, seed=self._chance.getrandbits(32))

    async def _wait(self, rollout_ids: list[str]) -> dict[str, agl.Rollout]:
        """The rollouts by id, once all have ended. TrainingError if that takes longer than ``wait_seconds``."""
        deadline = time.monotonic() + self._settings.wait_seconds
        while True:
            ended = await self.get_store().wait_for_rollouts(rollout_ids=rollout_ids, timeout=WAIT_SLICE_SECONDS)
            missing = len(rollout_ids) - len(ended)
            if not missing:
                return {rollout.rollout_id: rollout for rollout in ended}
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"{missing} of {len(rollout_ids)} rollouts are not finished after {self._settings.wait_seconds:g} "
                    "seconds; are runners at work on this store?"
                )

    async def _finished(self, task: Task, rollout: agl.Rollout) -> _Finished:
        store = self.get_store()
        attempts = await store.query_attempts(rollout.rollout_id)
        spans = await store.query_spans(rollout.rollout_id)
        of_attempts = [[span for span in spans if span.attempt_id == one.attempt_id] for one in attempts]
        outcome = Outcome(
            problem_id=task.problem.problem_id,
            mode=str(rollout.mode),
            status=rollout.status,
            attempts=tuple(map(_attempt, attempts, of_attempts)),
        )
        return _Finished(task, outcome, of_attempts[-1])


def _final_reward(finished: _Finished) -> float:
    reward = agl.find_final_reward(finished.spans)
    if reward is None:
        raise TrainingError(f"the store has no reward for {finished.outcome.problem_id}")
    return reward


def _attempt(attempt: agl.Attempt, spans: Sequence[agl.Span]) -> Attempt:
    rewards = (agl.get_reward_value(span) for span in spans)
    return Attempt(
        status=attempt.status,
        spans=tuple(span.name for span in spans),
        rewards=tuple(reward for reward in rewards if reward is not None),
    )


def _record(
    step: int,
    finished: Sequence[_Finished],
    started: float,
    *,
    mean_reward: float | None = None,
    held_out_accuracy: float | None = None,
) -> IterationRecord:
    return IterationRecord(
        iteration=step,
        mean_reward=mean_reward,
        held_out_accuracy=held_out_accuracy,
        rollouts=len(finished),
        second_attempts=sum(len(each.outcome.attempts) > 1 for each in finished),
        failed=sum(not each.succeeded for each in finished),
        seconds=time.perf_counter() - started,
    )
