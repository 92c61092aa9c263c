"""The trainer. ``python -m examples.grpo.trainer --server HOST:PORT --output DIR`` starts it, or goes on with a run.

It may be killed at any moment. What it has learned is in its newest checkpoint; which samples that includes, the store
knows, and returns the others again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel

from examples.grpo.policy import (
    ANSWER,
    LEARNING_RATE,
    POLICY,
    PROMPTS,
    REWARD,
    RUN,
    gradient,
    to_resource,
    untrained,
)
from examples.grpo.report import GroupRecord, Report, SampleRecord, StepRecord
from examples.svamp_demo.processes import patient_client
from lightning_store import AttemptedRollout, EnqueueRolloutRequest, Group, LightningStore, RolloutConfig
from lightning_store.errors import StoreError

CONSUMER: Final = "trainer"
GROUPS: Final = 16
SAMPLES: Final = 8
"""Of a group; a step takes so many groups."""
SAMPLES_MIN: Final = 6
GROUP_SECONDS: Final = 1.5
"""After so long a group of which enough is done goes without the rest."""
STEPS_AHEAD: Final = 2
"""How far the queue reaches."""
OPEN_GROUPS: Final = 2 * GROUPS
STEPS_A_CHECKPOINT: Final = 4
POLICIES_KEPT: Final = 10

CONFIG: Final = RolloutConfig(
    max_attempts=2,
    retry_condition=["failed", "unresponsive"],
    retry_position="head",
    unresponsive_seconds=30.0,
    bind="claim",
    max_staleness=1,
)


class State(BaseModel):
    """A checkpoint."""

    step: int = 0
    logits: list[list[float]] = untrained().tolist()
    trained: list[str] = []
    """Ids of all samples behind it."""

    @property
    def name(self) -> str:
        return f"step-{self.step}"


class Checkpoints:
    """Checkpoints in a directory, the newest of which counts."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._newest = directory / "checkpoint.json"
        self._written = directory / "checkpoint.json.written"

    def newest(self) -> State | None:
        return State.model_validate_json(self._newest.read_text()) if self._newest.exists() else None

    async def save(self, state: State, store: LightningStore) -> None:
        """Write it, have the store record that it includes what was consumed, and make it the newest, in this order."""
        self._written.write_text(state.model_dump_json())
        await store.mark_consumed(CONSUMER, [], checkpoint=state.name)
        self._written.replace(self._newest)


class Trainer:
    """Trains on a store until all steps are done."""

    def __init__(self, store: LightningStore, directory: Path, steps: int) -> None:
        self._store = store
        self._checkpoints = Checkpoints(directory)
        self._report = Report(directory)
        self._steps = steps
        self._published: list[str] = []
        self._policy_version = 0

    async def run(self) -> None:
        restored = self._checkpoints.newest()
        state = restored or State()
        again = await self._store.rewind_consumer(CONSUMER, checkpoint=None if restored is None else restored.name)
        print(f"begins after step {state.step}; {len(again)} samples that no checkpoint has come again", flush=True)
        await self._store.set_admission(RUN, max_open_groups=OPEN_GROUPS)
        published = await self._store.query_resources(sort_by="policy_version")
        self._published = [one.resources_id for one in published if one.run == RUN]
        await self._publish(state)
        for step in range(1, min(state.step + STEPS_AHEAD, self._steps) + 1):
            await self._enqueue(step)
        groups = self._store.watch_groups(
            run=RUN, consumer=CONSUMER, min_done=SAMPLES_MIN, deadline=GROUP_SECONDS, on_partial="cancel"
        )
        while state.step < self._steps:
            await self._step(state, groups)
            if state.step % STEPS_A_CHECKPOINT == 0 or state.step == self._steps:
                await self._checkpoints.save(state, self._store)
        await self._store.set_admission(RUN)

    async def _enqueue(self, step: int) -> None:
        """Queue the groups of a step, unless a trainer before has done so."""
        prompts = np.random.default_rng(step).choice(PROMPTS, GROUPS, replace=False)
        requests = [
            EnqueueRolloutRequest(
                input={"prompt": int(prompt), "sample": sample},
                mode="train",
                config=CONFIG,
                group_id=f"{RUN}/{step}/{prompt}",
                group_size=SAMPLES,
                metadata={"lightning.run": RUN},
            )
            for prompt in prompts
            for sample in range(SAMPLES)
        ]
        await self._store.enqueue_many_rollouts(requests, idempotency_key=f"{RUN}/step-{step}")

    async def _step(self, state: State, groups: AsyncIterator[Group]) -> None:
        taken = [await anext(groups) for _ in range(GROUPS)]
        usable = {
            group.group_id: [one for one in group.succeeded if one.end_reason != "stale"]
            for group in taken
            if group.status != "failed"
        }
        ids = [sample.rollout_id for samples in usable.values() for sample in samples]
        spans = await self._store.query_many_spans(ids, attributes=[ANSWER, REWARD])
        logits, samples = np.array(state.logits), []
        for members in usable.values():
            read = []
            for member in members:
                assert isinstance(member, AttemptedRollout)
                [span] = spans[member.rollout_id]
                read.append((span.attributes[ANSWER], span.attributes[REWARD]))
                version = member.attempt.policy_version or 0
                staleness = self._policy_version - version
                samples.append(
                    SampleRecord(policy_version=version, staleness=staleness, reward=span.attributes[REWARD])
                )
            if len(members) > 1:
                prompt = members[0].input["prompt"]
                logits[prompt] += LEARNING_RATE * gradient(logits, prompt, read)
        state.step += 1
        state.logits = logits.tolist()
        state.trained += ids
        await self._store.mark_consumed(CONSUMER, [one for group in taken for one in group.rollout_ids])
        stale = sum(one.end_reason == "stale" for group in taken for one in group.rollouts)
        told = [GroupRecord(group_id=group.group_id, status=group.status) for group in taken]
        self._report.add(StepRecord(step=state.step, samples=samples, groups=told, stale=stale))
        await self._publish(state)
        if state.step + STEPS_AHEAD <= self._steps:
            await self._enqueue(state.step + STEPS_AHEAD)

    async def _publish(self, state: State) -> None:
        """Publish the weights as the next policy of the run, and delete those that nobody needs."""
        published = await self._store.add_resources({POLICY: to_resource(np.array(state.logits))}, run=RUN)
        self._policy_version = published.policy_version
        self._published.append(published.resources_id)
        await self._store.delete_resources(self._published[:-POLICIES_KEPT])
        del self._published[:-POLICIES_KEPT]


async def _train(endpoint: str, output: Path, steps: int) -> None:
    async with patient_client(endpoint) as store:
        await Trainer(store, output, steps).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.grpo.trainer", description="The trainer of the GRPO demo."
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the store")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="checkpoints and log")
    parser.add_argument("--steps", type=int, default=40, help="training steps (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_train(options.server, options.output, options.steps))
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
