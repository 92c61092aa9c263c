"""Trains the agent with one server, one algorithm and several runner processes."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from examples.svamp_demo.messages import POLICY, PolicyWeights
from examples.svamp_demo.problems import DataError, ProblemSet, obtain
from examples.svamp_demo.processes import (
    PROJECT_ROOT,
    Child,
    Children,
    StartError,
    look_into,
    new_database,
    patient_client,
)
from lightning_store import LightningStore
from lightning_store.errors import StoreError

DEFAULT_OUTPUT: Final = PROJECT_ROOT / "out" / "svamp_demo"

POLL_SECONDS: Final = 0.05
SETTLE_SECONDS: Final = 0.05
"""How long after a runner was halted its last call may still be on the way to the store."""


HalfWay: TypeAlias = Callable[[LightningStore], Awaitable[bool]]
"""Tells whether it is time to kill something."""


class RunError(RuntimeError):
    """The run did not complete. The message says what ended it."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, with what ``--quick`` implies filled in."""
    parser = argparse.ArgumentParser(prog="python -m examples.svamp_demo", description=__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="problems in the form of SVAMP, instead of generated ones"
    )
    parser.add_argument("--runners", type=_positive, default=4, metavar="N", help="runner processes (%(default)s)")
    parser.add_argument("--iterations", type=_positive, metavar="N", help="training steps (60; quick: 12)")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="rollouts a step (48; quick: 24)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="split, order and draws (%(default)s)")
    parser.add_argument("--kill-runner", action="store_true", help="SIGKILL a runner at work half way through")
    parser.add_argument(
        "--database",
        metavar="memory:|sqlite:PATH",
        help="where the server keeps the data (a new sqlite:DIR/store.db)",
    )
    parser.add_argument(
        "--kill-server",
        action="store_true",
        help="SIGKILL the server half way through, and start it on its database again",
    )
    parser.add_argument("--quick", action="store_true", help="a small run")
    parser.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="DIR",
        help="log, plot, processes' output (out/svamp_demo)",
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="use this running server instead of starting one")
    options = parser.parse_args(arguments)
    options.iterations = options.iterations or (12 if options.quick else 60)
    options.batch_size = options.batch_size or (24 if options.quick else 48)
    if options.kill_runner and options.runners < 2:
        parser.error("--kill-runner leaves nobody to do the work: give --runners 2 or more")
    if options.kill_server and options.database == "memory:":
        parser.error("--kill-server loses everything that is in memory: leave --database memory: out")
    if options.server is not None and options.kill_server:
        parser.error("--kill-server is for a server that this starts, and --server names one that runs already")
    if options.server is not None and options.database is not None:
        parser.error("--database is for a server that this starts, and --server names one that runs already")
    if options.seed < 0:
        parser.error("--seed must not be negative")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Exit code: 0; 1 for a run that failed; 2 for bad arguments or data; 130 if it was interrupted."""
    options = parse(arguments)
    try:
        problems = obtain(options.data, seed=options.seed)
        asyncio.run(_run(options, problems))
    except DataError as error:
        return _complain(str(error), 2)
    except (RunError, StartError, StoreError, OSError) as error:
        return _complain(str(error), 1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _complain("interrupted", 130)
    return 0


def _complain(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return exit_code


async def _run(options: argparse.Namespace, problems: ProblemSet) -> None:
    """Start the processes, see the algorithm through, end them."""
    _cancel_on_signals()
    _say(f"problems: {len(problems.problems)} from {problems.source}")
    if problems.left_out:
        _say(f"  ({problems.left_out} more take several operations, which this agent cannot do; they are left out)")
    async with Children.running(options.output) as children:
        essential: list[Child] = []
        endpoint, database = options.server, options.database or new_database(options.output)
        if endpoint is None:
            server, endpoint = await children.start_server(database)
            essential.append(server)
        former = await _latest_weights(endpoint)
        runners = [
            await children.start_module(name, "runner", ["--server", endpoint, "--worker-id", name])
            for name in (f"runner-{index}" for index in range(options.runners))
        ]
        algorithm = await children.start_module("algorithm", "algorithm", _passed_on(options, endpoint), logged=False)
        _say(f"server at {endpoint}, 1 algorithm, {len(runners)} runners; their output is in {options.output}")
        half_way = partial(_half_way, former=former, iterations=options.iterations)
        killings: dict[str, asyncio.Task[None]] = {}
        if options.kill_runner:
            killings["runner"] = asyncio.create_task(_kill_runner(endpoint, runners, half_way))
        if options.kill_server:
            killings["server"] = asyncio.create_task(_kill_server(endpoint, database, children, essential, half_way))
        try:
            await _see_through(algorithm, essential, runners)
        finally:
            for name, killing in killings.items():
                if not killing.done():
                    killing.cancel()
                    _say(f"no {name} was killed: the run was over before it was time; give it more --iterations")
            await asyncio.gather(*killings.values(), return_exceptions=True)
    for name, killing in killings.items():
        if not killing.cancelled() and (error := killing.exception()) is not None:
            raise RunError(f"the {name} was not killed, or did not come back: {error}")
    _say(look_into(database, options.server))


def _passed_on(options: argparse.Namespace, endpoint: str) -> list[str]:
    """The algorithm's flags."""
    source = ["--data", str(options.data)] if options.data else []
    numbers = {"--iterations": options.iterations, "--batch-size": options.batch_size, "--seed": options.seed}
    flags = [part for flag, value in numbers.items() for part in (flag, str(value))]
    return ["--server", endpoint, "--output", str(options.output), *source, *flags]


def _cancel_on_signals() -> None:
    """A terminal that closes and a supervisor that stops the demo end it as cleanly as Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _see_through(algorithm: Child, essential: Sequence[Child], runners: Sequence[Child]) -> None:
    """Wait for the algorithm to end. RunError if it fails, or if it cannot succeed any more."""
    while algorithm.alive:
        for child in essential:
            if not child.alive:
                raise RunError(f"the {child.name} ended with code {child.process.returncode}:\n{child.log_end()}")
        if not any(runner.alive for runner in runners):
            raise RunError(f"all runners have ended; the last words of {runners[0].name}:\n{runners[0].log_end()}")
        await asyncio.sleep(POLL_SECONDS)
    if algorithm.process.returncode != 0:
        raise RunError(f"the algorithm ended with exit code {algorithm.process.returncode}")


# --- Killing processes -----------------------------------------------------------------------------------------------


async def _kill_runner(endpoint: str, runners: Sequence[Child], half_way: HalfWay) -> None:
    """SIGKILL one runner while it holds a rollout, once half of the iterations are done."""
    async with patient_client(endpoint) as store:
        for runner in itertools.cycle(runners):
            await asyncio.sleep(POLL_SECONDS)
            if not await half_way(store):
                continue
            if await _kill_if_busy(store, runner):
                _say(f"  killed {runner.name} in the middle of a rollout")
                return


async def _kill_server(
    endpoint: str, database: str, children: Children, essential: list[Child], half_way: HalfWay
) -> None:
    """SIGKILL the server once half of the iterations are done, and start it again in the same place."""
    async with patient_client(endpoint) as store:
        while not await half_way(store):  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
    server = essential.pop()
    server.signal(signal.SIGKILL)
    await server.process.wait()
    _say("  killed the server")
    again, _ = await children.start_server(database, endpoint, name="server-again")
    essential.append(again)
    _say(f"  started the server on {database} again")


async def _latest_weights(endpoint: str) -> str | None:
    """The id of the weights that are there already, of another run."""
    async with patient_client(endpoint) as store:
        latest = await store.get_latest_resources()
    return None if latest is None else latest.resources_id


async def _half_way(store: LightningStore, *, former: str | None, iterations: int) -> bool:
    """Whether half of the iterations are done, as the weights published last tell."""
    latest = await store.get_latest_resources()
    if latest is None or latest.resources_id == former or POLICY not in latest.resources:
        return False
    return PolicyWeights.of(latest.resources[POLICY]).iteration >= iterations // 2


async def _kill_if_busy(store: LightningStore, runner: Child) -> bool:
    """Kill the runner if it holds a rollout, and tell whether it did.

    It is halted first: else it could finish the rollout between the look and the kill, and nobody would have to
    take over.
    """
    if not runner.signal(signal.SIGSTOP):
        return False
    await asyncio.sleep(SETTLE_SECONDS)
    worker = await store.get_worker_by_id(runner.name)
    if worker is not None and worker.status == "busy":
        return runner.signal(signal.SIGKILL)
    runner.signal(signal.SIGCONT)
    return False


def _say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    sys.exit(main())
