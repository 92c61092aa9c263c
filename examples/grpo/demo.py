"""Runs the loop with a server, a trainer that is killed now and then, and 16 runners in two processes."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from examples.grpo.policy import FREE_TIME, RUN
from examples.grpo.report import LOG_NAME, PLOT_NAME, Report, write_plot
from examples.grpo.trainer import CONSUMER, Checkpoints
from examples.svamp_demo.processes import (
    LOOKS,
    PROJECT_ROOT,
    Child,
    Children,
    StartError,
    look_into,
    new_database,
    patient_client,
)
from lightning_store import AttemptedRollout, Rollout
from lightning_store.errors import StoreError

DEFAULT_OUTPUT: Final = PROJECT_ROOT / "out" / "grpo"
SERVER_FLAGS: Final = ("--final-outcomes", "--fence-attempts", "refuse")
"""A sample that was cancelled stays so, whatever its runner says later."""
POLL_SECONDS: Final = 0.05


class RunError(RuntimeError):
    """The run did not complete, or what came of it is not as it has to be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Exit code: 0; 1 for a run that failed; 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m examples.grpo", description=__doc__)
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="training steps (%(default)s)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="how often to kill the trainer (%(default)s)")
    parser.add_argument("--kill-server", action="store_true", help="kill the server too, each time")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="when to kill (%(default)s)")
    parser.add_argument("--http-port", type=int, default=0, metavar="PORT", help="where the page is (any free port)")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="database, checkpoints, plot (out/grpo)"
    )
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_run(options))
    except (RunError, StartError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    output: Path = options.output
    async with Children.running(output) as children:
        database = new_database(output)
        for left in ("checkpoint.json", "checkpoint.json.written", LOG_NAME):
            (output / left).unlink(missing_ok=True)
        server = await children.start_server(database, http_port=options.http_port, flags=SERVER_FLAGS)
        endpoint = server.endpoint
        print(f"watch it: {server.page}", flush=True)
        runners = [
            await children.start(f"runners-{name}", _module("runner", "--server", endpoint, "--name", f"runner-{name}"))
            for name in ("a", "b")
        ]
        print(f"server at {endpoint}, 1 trainer, 16 runners; their output is in {output}", flush=True)
        flags = ["--server", endpoint, "--output", str(output), "--steps", str(options.steps)]
        kill_at = sorted(random.Random(options.seed).sample(range(1, options.steps), options.kills))
        for kill, step in enumerate(kill_at):
            trainer = await children.start(f"trainer-{kill}", _module("trainer", *flags), logged=False)
            await _see_through(trainer, runners, Report(output), step)
            trainer.signal(signal.SIGKILL)
            await trainer.process.wait()
            print(f"  killed the trainer after step {step}", flush=True)
            if options.kill_server:
                server.child.signal(signal.SIGKILL)
                await server.child.process.wait()
                server = await children.start_server(database, at=server, name=f"server-{kill}", flags=SERVER_FLAGS)
        trainer = await children.start("trainer", _module("trainer", *flags), logged=False)
        await _see_through(trainer, runners)
        await _check(endpoint, output)
    write_plot(output / PLOT_NAME, Report(output).steps())
    print(f"plot: {output / PLOT_NAME}")
    print(look_into(database, None, [*LOOKS, "groups --status failed"]))


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"examples.grpo.{name}", *arguments]


async def _see_through(
    trainer: Child, runners: Sequence[Child], report: Report | None = None, step: int | None = None
) -> None:
    """Wait until the trainer has ended, or has taken this step. RunError if it fails, or if the runners have ended."""
    while trainer.alive:
        for one in runners:
            if not one.alive:
                raise RunError(f"{one.name} ended with exit code {one.process.returncode}:\n{one.log_end()}")
        if report is not None and step is not None and any(record.step >= step for record in report.steps()):
            return
        await asyncio.sleep(POLL_SECONDS)
    if report is not None or trainer.process.returncode != 0:
        raise RunError(f"the trainer ended with exit code {trainer.process.returncode}")


async def _check(endpoint: str, output: Path) -> None:
    """No sample was trained on twice, and none was lost: RunError otherwise."""
    state = Checkpoints(output).newest()
    steps = Report(output).steps()
    if state is None or state.step != len(steps):
        raise RunError("the last step has no checkpoint")
    async with patient_client(endpoint) as store:
        samples = await store.query_rollouts(metadata_equals={"lightning.run": RUN})
        open_still = await store.rewind_consumer(CONSUMER, checkpoint=state.name)
    groups = [group for record in steps for group in record.groups]
    dropped = {group.group_id for group in groups if group.status == "failed"}
    usable = {
        one.rollout_id
        for one in samples
        if one.status == "succeeded" and one.end_reason is None and one.group_id not in dropped
    }
    trained = Counter(state.trained)
    told = {
        "samples that were trained on twice": sum(count > 1 for count in trained.values()),
        "samples that were lost": len(usable - trained.keys()),
        "samples that were trained on and are not there": len(trained.keys() - usable),
        "groups that came twice": len(groups) - len({group.group_id for group in groups}),
        "groups that never came": len({one.group_id for one in samples}) - len({group.group_id for group in groups}),
        "samples of no checkpoint": len(open_still),
    }
    rewards = [float(np.mean([sample.reward for sample in record.samples])) for record in steps]
    kinds = Counter(group.status for group in groups)
    print(f"reward: {rewards[0]:.2f} in the first step, {rewards[-1]:.2f} in the last")
    print(f"groups: {kinds['whole']} whole, {kinds['partial']} partial, {kinds['failed']} dropped")
    if free := list(_free_seconds(samples)):
        median, p95 = np.percentile(free, [50, 95])
        print(
            f"called off at work: {len(free)}; 50 % of their runners were free in {median:.3f} s, 95 % in {p95:.3f} s"
        )
    print(f"samples: {len(trained)} trained on, {sum(record.stale for record in steps)} too old")
    if wrong := {what: count for what, count in told.items() if count}:
        raise RunError(", ".join(f"{count} {what}" for what, count in wrong.items()))
    print("no sample was trained on twice, and none was lost")


def _free_seconds(samples: Iterable[Rollout]) -> Iterator[float]:
    """How long after each cancellation of a sample its runner was free."""
    for one in samples:
        if isinstance(one, AttemptedRollout) and one.end_time is not None:
            free_time = (one.attempt.metadata or {}).get(FREE_TIME)
            if free_time is not None:
                yield free_time - one.end_time


if __name__ == "__main__":
    sys.exit(main())
