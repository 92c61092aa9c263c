"""Agent Lightning's APO, and batches as VERL takes them, on a store that keeps outcomes final and fences attempts."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import agentlightning as agl
import pytest
from agentlightning.algorithm.apo import APO
from agentlightning.execution.shared_memory import SharedMemoryExecutionStrategy

from lightning_store import InMemoryLightningStore
from lightning_store_agentlightning import AdaptedStore
from tests.agentlightning.forks import in_fork
from tests.agentlightning.programs import RESOURCES, TASKS, Adder, quick_runner

pytestmark = pytest.mark.slow

SAMPLES = 4
"""Rollouts of each task, which are one group."""
STEPS = 2
RUN = "run-1"


def strict_enough() -> InMemoryLightningStore:
    return InMemoryLightningStore(final_outcomes=True, fence_attempts="refuse")


def fit(store: InMemoryLightningStore, algorithm: agl.Algorithm, agent: agl.LitAgent[Any], **options: Any) -> None:
    tracer = agl.OtelTracer()
    trainer = agl.Trainer(
        store=AdaptedStore(store),
        strategy=SharedMemoryExecutionStrategy(n_runners=1, main_thread="algorithm", managed_store=False),
        algorithm=algorithm,
        tracer=tracer,
        runner=quick_runner(tracer),
        **options,
    )
    trainer.fit(agent, TASKS[:4], val_dataset=TASKS[:2])


# --- APO -------------------------------------------------------------------------------------------------------------


class Editor:
    """Stands for the model that criticizes prompts and edits them: it adds a word each time."""

    def __init__(self) -> None:
        self.chat = SimpleNamespace(completions=self)
        self.edits = 0

    async def create(self, **_: Any) -> Any:
        self.edits += 1
        text = "Please add {a} and {b}." if self.edits % 2 == 0 else "It is not polite."
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])


class Polite(agl.LitAgent[dict[str, int]]):
    """Is rewarded for its prompt."""

    def rollout(self, task: Any, resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        prompt = resources["prompt"]
        assert isinstance(prompt, agl.PromptTemplate)
        return 1.0 if prompt.format(**task).startswith("Please") else 0.1


def improved() -> tuple[str, int, set[str]]:
    store = strict_enough()
    editor: Any = Editor()
    apo: Any = APO(editor, gradient_batch_size=2, val_batch_size=2, beam_width=1, branch_factor=1, beam_rounds=1)
    fit(store, apo, Polite(), initial_resources=dict(RESOURCES), adapter=agl.TraceToMessages())
    statuses: set[str] = {one.status for one in asyncio.run(store.query_rollouts())}
    return apo.get_best_prompt().template, len(asyncio.run(store.query_resources())), statuses


def test_apo_finds_the_better_prompt() -> None:
    best, resources, statuses = in_fork(improved)
    assert best.startswith("Please add")
    assert resources >= 2
    assert statuses == {"succeeded"}


# --- Batches ---------------------------------------------------------------------------------------------------------


class Batches(agl.Algorithm):
    """Makes the calls of the daemon that feeds VERL: a batch of several rollouts for each task, asked for again and
    again until all of it has ended, and read rollout by rollout. Metadata make each task's rollouts a group."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: dict[str, list[float | None]] = defaultdict(list)

    def is_async(self) -> bool:
        return True

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        for step in range(STEPS):
            await self._step(self.get_store(), step, train_dataset)

    async def _step(self, store: agl.LightningStore, step: int, tasks: Any) -> None:
        published = await store.add_resources(RESOURCES)
        config = agl.RolloutConfig(unresponsive_seconds=600, timeout_seconds=600)
        requests = [
            agl.EnqueueRolloutRequest(
                input=task,
                mode="train",
                resources_id=published.resources_id,
                config=config,
                metadata={
                    "data_id": f"{step}-{number}",
                    "is_train": True,
                    "lightning.run": RUN,
                    "lightning.group_id": f"{RUN}/{step}/{number}",
                    "lightning.group_size": SAMPLES,
                    "lightning.idempotency_key": f"{RUN}/{step}",
                },
            )
            for number, task in enumerate(tasks)
            for _ in range(SAMPLES)
        ]
        queued = await store.enqueue_many_rollouts(requests)
        again = await store.enqueue_many_rollouts(requests)  # as a trainer does that was started anew
        assert [one.rollout_id for one in again] == [one.rollout_id for one in queued]
        data_ids = {one.rollout_id: (one.metadata or {})["data_id"] for one in queued}
        done: dict[str, agl.Rollout] = {}
        while len(done) < len(queued):
            ended = await store.wait_for_rollouts(rollout_ids=list(data_ids), timeout=0)
            for rollout in ended:
                if rollout.rollout_id not in done:
                    spans = await store.query_spans(rollout.rollout_id, attempt_id="latest")
                    self.rewards[data_ids[rollout.rollout_id]].append(agl.find_final_reward(spans))
                    done[rollout.rollout_id] = rollout
            await asyncio.sleep(0.05)


def taken_in_batches() -> tuple[dict[str, list[float | None]], list[tuple[str, str, int]], int]:
    store = strict_enough()
    algorithm = Batches()
    fit(store, algorithm, Adder())

    async def consume() -> list[tuple[str, str, int]]:
        ids = [f"{RUN}/{step}/{number}" for step in range(STEPS) for number in range(4)]
        groups = await store.wait_for_groups(ids)
        for group in groups:
            await store.mark_consumed("trainer", group.rollout_ids)
        return sorted((group.group_id, group.status, len(group.succeeded)) for group in groups)

    groups = asyncio.run(consume())
    return dict(algorithm.rewards), groups, len(asyncio.run(store.query_rollouts()))


def test_batches_are_groups() -> None:
    rewards, groups, rollouts = in_fork(taken_in_batches)
    assert rewards == {f"{step}-{n}": [3 * n / 100] * SAMPLES for step in range(STEPS) for n in range(4)}
    assert groups == [(f"{RUN}/{step}/{n}", "whole", SAMPLES) for step in range(STEPS) for n in range(4)]
    assert rollouts == STEPS * 4 * SAMPLES
