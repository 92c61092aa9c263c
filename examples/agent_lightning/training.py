"""One training run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import agentlightning as agl
from rich.console import Console

from examples.agent_lightning.agent import ANSWER_SPAN, WordProblemAgent
from examples.agent_lightning.algorithm import Reinforce
from examples.agent_lightning.stores import OnPage, StoreKind, opened
from examples.svamp_demo.algorithm import Settings
from examples.svamp_demo.problems import ProblemSet
from examples.svamp_demo.report import Report, Summary

POLL_SECONDS: Final = 0.05
"""How often runners ask Agent Lightning's own store for work; asking ours waits for it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, whatever the store."""

    problems: ProblemSet
    settings: Settings
    runners: int
    agent: type[WordProblemAgent] = WordProblemAgent


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that has completed."""

    algorithm: Reinforce
    summary: Summary
    report: Report


def train(
    plan: Plan,
    kind: StoreKind,
    output: Path,
    console: Console,
    server: str | None = None,
    on_page: OnPage | None = None,
) -> Trained:
    """Run ``plan`` on a store of the kind; log, plot and the server's output go to the directory ``output``.

    ``on_page`` is told the address of the page, if a server is started.

    Raises what the algorithm does, RuntimeError if a runner fails, and KeyboardInterrupt.
    """
    report = Report(output)
    algorithm = Reinforce(plan.settings, report, console)
    tracer = agl.OtelTracer()  # type: ignore[no-untyped-call]
    agent: agl.LitAgent[Any] = plan.agent()
    learn_from, held_out = plan.problems.split(plan.settings.seed)
    with opened(kind, plan.runners, output, server, on_page) as (store, strategy):
        trainer = agl.Trainer(
            store=store,
            strategy=strategy,
            algorithm=algorithm,
            tracer=tracer,
            adapter=agl.TracerTraceToTriplet(llm_call_match=re.escape(ANSWER_SPAN)),
            runner=agl.LitAgentRunner(tracer, poll_interval=POLL_SECONDS, interval_jitter=0.0),
        )
        trainer.fit(agent, learn_from, val_dataset=held_out)
    if algorithm.summary is None:
        raise KeyboardInterrupt  # strategies keep it to themselves
    return Trained(algorithm, algorithm.summary, report)
