"""Trains the agent with an Agent Lightning Trainer on a store, or compares stores."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from examples.svamp_demo.algorithm import Settings
from examples.svamp_demo.problems import DataError, ProblemSet, obtain
from examples.svamp_demo.processes import PROJECT_ROOT, StartError, database_in, look_into
from lightning_store.errors import StoreError

if TYPE_CHECKING:
    from examples.agent_lightning.training import Trained

DEFAULT_OUTPUT: Final = PROJECT_ROOT / "out" / "agent_lightning"
LOG_NAME: Final = "agent_lightning.log"
EVALUATIONS: Final = 3
"""On the way; one more comes before."""
COMPARED_PROBLEMS: Final = 200
"""The first ones. More would take longer, and not tell more."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, with what ``--compare`` implies filled in."""
    parser = argparse.ArgumentParser(prog="python -m examples.agent_lightning", description=__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="problems in the form of SVAMP, instead of generated ones"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--store",
        choices=["grpc", "in-process", "agentlightning"],
        default="grpc",
        help="ours behind a server of its own, ours in the algorithm's process, or Agent Lightning's (%(default)s)",
    )
    what.add_argument(
        "--compare", action="store_true", help="run the same program, with agents that break down, on all three"
    )
    parser.add_argument(
        "--failures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="have agents break down in one of eight first attempts (yes)",
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="use this running server instead of starting one")
    parser.add_argument("--runners", type=_positive, default=2, metavar="N", help="runner processes (%(default)s)")
    parser.add_argument("--steps", type=_positive, metavar="N", help="training steps (24; to compare: 6)")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="rollouts a step (32; to compare: 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="split, order and draws (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="log, plot, … (out/agent_lightning)"
    )
    options = parser.parse_args(arguments)
    options.steps = options.steps or (6 if options.compare else 24)
    options.batch_size = options.batch_size or (16 if options.compare else 32)
    if options.server is not None and options.store != "grpc":
        parser.error(f"--server is for our store over gRPC, not for --store {options.store}")
    if options.seed < 0:
        parser.error("--seed must not be negative")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Exit code: 0; 1 for a run that failed, and for stores that differ; 2 for bad arguments or data; 130 if interrupted.
    """
    options = parse(arguments)
    if importlib.util.find_spec("agentlightning") is None:
        return _complain("this needs Agent Lightning: make demo-agentlightning installs it and runs this", 1)
    try:
        _interrupt_on_signals()
        problems = obtain(options.data, seed=options.seed)
        return _run(options, problems)
    except DataError as error:
        return _complain(str(error), 2)
    except (StartError, StoreError, OSError, RuntimeError) as error:
        return _complain(f"{error}; more is in {options.output / LOG_NAME}", 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return exit_code


def _interrupt_on_signals() -> None:
    """A terminal that closes and a supervisor that stops the demo end it as cleanly as Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


def _run(options: argparse.Namespace, problems: ProblemSet) -> int:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"problems: {len(problems.problems)} from {problems.source}", markup=False)
    if problems.left_out:
        console.print(f"  ({problems.left_out} more take several operations, which this agent cannot do)")
    options.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=options.output / LOG_NAME,
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    console.print("importing Agent Lightning …")
    from examples.agent_lightning import agent, comparison, training

    settings = Settings(
        iterations=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        evaluate_every=options.steps if options.compare else -(-options.steps // EVALUATIONS),
    )
    if options.compare:
        problems = dataclasses.replace(problems, problems=problems.problems[:COMPARED_PROBLEMS])
    shaky = agent.ShakyAgent if options.failures else agent.WordProblemAgent
    plan = training.Plan(problems, settings, options.runners, agent.UnreliableAgent if options.compare else shaky)
    if options.compare:
        return 0 if comparison.compare(plan, options.output, console, options.server) else 1
    trained = training.train(
        plan, options.store, options.output, console, options.server, lambda page: console.print(f"watch it: {page}")
    )
    _print_summary(console, trained)
    if options.store == "grpc":
        console.print(look_into(database_in(options.output), options.server), markup=False)
    return 0


def _print_summary(console: Console, trained: Trained) -> None:
    summary, report = trained.summary, trained.report
    console.print(f"held-out accuracy of the untrained policy: {summary.untrained_accuracy:.1%}")
    console.print(f"held-out accuracy of the trained policy:   {summary.trained_accuracy:.1%}")
    console.print(
        f"{summary.rollouts} rollouts in {summary.seconds:.0f} seconds; "
        f"{summary.second_attempts} needed a second attempt, {summary.failed} failed"
    )
    console.print(f"plot: {report.plot_path}\nlog:  {report.log_path}")
