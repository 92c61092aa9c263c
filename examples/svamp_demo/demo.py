"""Trains the agent with a server, or several, one algorithm and several runner processes."""

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
    LOOKS,
    PROJECT_ROOT,
    Child,
    Children,
    Server,
    StartError,
    for_people,
    look_into,
    new_database,
    patient_client,
)
from lightning_store import LightningStore
from lightning_store.arguments import is_postgres
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
    parser.add_argument(
        "--kill-runner",
        action=argparse.BooleanOptionalAction,
        help="SIGKILL a runner at work half way through, so that another one tries again (yes, with two or more)",
    )
    parser.add_argument(
        "--servers", type=_positive, default=1, metavar="N", help="servers on one database (%(default)s)"
    )
    parser.add_argument("--http-port", type=int, default=0, metavar="PORT", help="where the page is (any free port)")
    parser.add_argument(
        "--database",
        metavar="memory:|sqlite:PATH|postgresql://…",
        help="where the server keeps the data (a new sqlite:DIR/store.db)",
    )
    parser.add_argument(
        "--kill-server",
        action="store_true",
        help="SIGKILL a server half way through; one that is alone is started on its database again",
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
    if options.kill_runner is None:
        options.kill_runner = options.runners > 1
    if error := _contradiction(options):
        parser.error(error)
    return options


def _contradiction(options: argparse.Namespace) -> str | None:
    """What is wrong with flags that are each legal."""
    if options.server is not None:
        for_own = {
            "--kill-server": options.kill_server,
            "--database": options.database,
            "--servers": options.servers > 1,
        }
        for flag, given in for_own.items():
            if given:
                return f"{flag} is for a server that this starts, and --server names one that runs already"
    if options.kill_server and options.database == "memory:":
        return "--kill-server loses everything that is in memory: leave --database memory: out"
    if options.servers > 1 and not is_postgres(options.database or ""):
        return (
            f"--servers {options.servers} needs a database that several servers can have: give --database "
            "postgresql://…; one in memory, or in a file of SQLite, belongs to one server"
        )
    return None if options.seed >= 0 else "--seed must not be negative"


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
    database = options.database or new_database(options.output)
    async with Children.running(options.output) as children:
        servers = [] if options.server else await _start_servers(children, database, options)
        endpoint = options.server or ",".join(server.endpoint for server in servers)
        for server in servers:
            _say(f"watch it: {server.page}")
        former = await _latest_weights(endpoint)
        runners = [
            await children.start_module(name, "runner", ["--server", endpoint, "--worker-id", name])
            for name in (f"runner-{index}" for index in range(options.runners))
        ]
        algorithm = await children.start_module("algorithm", "algorithm", _passed_on(options, endpoint), logged=False)
        _say(f"server at {endpoint}, 1 algorithm, {len(runners)} runners; their output is in {options.output}")
        half_way = partial(_half_way, former=former, iterations=options.iterations)
        killings: dict[str, asyncio.Task[str | None]] = {}
        if options.kill_runner:
            killings["runner"] = asyncio.create_task(_kill_runner(endpoint, runners, half_way))
        if options.kill_server:
            killings["server"] = asyncio.create_task(_kill_server(endpoint, database, children, servers, half_way))
        try:
            await _see_through(algorithm, servers, runners)
        finally:
            for name, killing in killings.items():
                if not killing.done():
                    killing.cancel()
                    _say(f"no {name} was killed: the run was over before it was time; give it more --iterations")
            await asyncio.gather(*killings.values(), return_exceptions=True)
    looks = list(LOOKS)
    for name, killing in killings.items():
        if killing.cancelled():
            continue
        if (error := killing.exception()) is not None:
            raise RunError(f"the {name} was not killed, or did not come back: {error}")
        if (tried_again := killing.result()) is not None:
            looks.append(f"rollout {tried_again}")
    _say(look_into(database, options.server, looks))


async def _start_servers(children: Children, database: str, options: argparse.Namespace) -> list[Server]:
    """As many as are wanted, the first with the page's port."""
    names = ["server", *(f"server-{number}" for number in range(2, options.servers + 1))]
    ports = [options.http_port, *(0 for _ in names[1:])]
    return [
        await children.start_server(database, http_port=port, name=name)
        for name, port in zip(names, ports, strict=True)
    ]


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


async def _see_through(algorithm: Child, servers: Sequence[Server], runners: Sequence[Child]) -> None:
    """Wait for the algorithm to end. RunError if it fails, or if it cannot succeed any more."""
    while algorithm.alive:
        for server in servers:
            if not server.child.alive:
                code, words = server.child.process.returncode, server.child.log_end()
                raise RunError(f"the {server.child.name} ended with code {code}:\n{words}")
        if not any(runner.alive for runner in runners):
            raise RunError(f"all runners have ended; the last words of {runners[0].name}:\n{runners[0].log_end()}")
        await asyncio.sleep(POLL_SECONDS)
    if algorithm.process.returncode != 0:
        raise RunError(f"the algorithm ended with exit code {algorithm.process.returncode}")


# --- Killing processes -----------------------------------------------------------------------------------------------


async def _kill_runner(endpoint: str, runners: Sequence[Child], half_way: HalfWay) -> str:
    """SIGKILL one runner while it holds a rollout, once half of the iterations are done; the id of that rollout."""
    async with patient_client(endpoint) as store:
        for runner in itertools.cycle(runners):
            await asyncio.sleep(POLL_SECONDS)
            if not await half_way(store):
                continue
            if (rollout_id := await _kill_if_busy(store, runner)) is not None:
                _say(f"  killed {runner.name} in the middle of the rollout {rollout_id}: another one tries again")
                return rollout_id
    raise AssertionError("there is always one more runner to look at")


async def _kill_server(
    endpoint: str, database: str, children: Children, servers: list[Server], half_way: HalfWay
) -> None:
    """SIGKILL a server once half of the iterations are done. If it was alone, start it again in the same place."""
    async with patient_client(endpoint) as store:
        while not await half_way(store):  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
    server = servers.pop(0)
    server.child.signal(signal.SIGKILL)
    await server.child.process.wait()
    _say(f"  killed the server at {server.endpoint}")
    if servers:
        _say(f"  the run goes on at {', '.join(other.endpoint for other in servers)}")
        return
    servers.append(await children.start_server(database, at=server, name="server-again"))
    _say(f"  started the server on {for_people(database)} again")


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


async def _kill_if_busy(store: LightningStore, runner: Child) -> str | None:
    """Kill the runner if it holds a rollout, and tell which.

    It is halted first: else it could finish the rollout between the look and the kill, and nobody would have to
    take over.
    """
    if not runner.signal(signal.SIGSTOP):
        return None
    await asyncio.sleep(SETTLE_SECONDS)
    worker = await store.get_worker_by_id(runner.name)
    if worker is not None and worker.status == "busy" and runner.signal(signal.SIGKILL):
        return worker.current_rollout_id
    runner.signal(signal.SIGCONT)
    return None


def _say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    sys.exit(main())
