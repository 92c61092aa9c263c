"""The algorithm and the runners started separately, as on several machines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys

import agentlightning as agl
import pytest
from agentlightning.execution.client_server import ClientServerExecutionStrategy

from lightning_store_agentlightning import GrpcExecutionStrategy, GrpcLightningStore
from tests.agentlightning.forks import in_fork, tell
from tests.agentlightning.programs import BROKEN_TASK, SHAKY_TASK, TASKS, trained
from tests.processes.programs import Program, free_port

RUNNERS = 2


def summary(outcomes):
    return [[outcome["input"], outcome["status"], outcome["attempts"], outcome["reward"]] for outcome in outcomes]


EXPECTED = [
    [
        task,
        "failed" if number == BROKEN_TASK else "succeeded",
        {BROKEN_TASK: ["failed", "failed"], SHAKY_TASK: ["failed", "succeeded"]}.get(number, ["succeeded"]),
        None if number == BROKEN_TASK else 3 * number / 100,
    ]
    for number, task in enumerate(TASKS)
]


@pytest.mark.slow
def test_two_programs(tmp_path):
    """The runner may be there before the algorithm is, and ends with Ctrl+C."""
    variables = {**os.environ, "AGL_SERVER_HOST": "127.0.0.1", "AGL_SERVER_PORT": str(free_port())}
    command = [sys.executable, "-W", "ignore", "-m", "tests.agentlightning.role_program"]
    with contextlib.ExitStack() as programs:

        def start(role):
            program = Program(command, {**variables, "AGL_CURRENT_ROLE": role}, tmp_path / role, seconds=100)
            programs.callback(program.discard)
            return program

        runner, algorithm = start("runner"), start("algorithm")
        ended = algorithm.end()
        assert ended.code == 0, ended.errors
        assert json.loads(ended.output) == EXPECTED
        runner.signal(signal.SIGINT)
        ended = runner.end()
        assert ended.code == 0, ended.errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_roles_with_a_server_of_its_own(endpoint, kind, monkeypatch):
    """Agent Lightning's strategy takes the roles too; the store is the same in all processes."""

    def run(**options):
        if kind == "ours":
            return trained(GrpcLightningStore(endpoint, dequeue_wait=0.5), GrpcExecutionStrategy(**options))
        strategy = ClientServerExecutionStrategy(managed_store=False, **options)
        return trained(GrpcLightningStore(endpoint, dequeue_wait=0.5), strategy)

    def runners():
        monkeypatch.setenv("AGL_CURRENT_ROLE", "runner")
        tell("started")
        run(n_runners=RUNNERS)

    def algorithm(runner_pid, there):
        there.recv()
        monkeypatch.setenv("AGL_CURRENT_ROLE", "algorithm")
        assert summary(in_fork(run)) == EXPECTED
        os.killpg(runner_pid, signal.SIGINT)

    in_fork(runners, meanwhile=algorithm)
    workers = asyncio.run(GrpcLightningStore(endpoint).query_workers(sort_by="worker_id"))
    assert [worker.worker_id for worker in workers] == [f"Worker-{number}" for number in range(RUNNERS)]


def test_late_reports_of_a_runner_that_was_given_up(endpoint):
    """Its attempt has timed out, and another one has succeeded meanwhile."""

    async def main():
        store = GrpcLightningStore(endpoint)
        queued = await store.enqueue_rollout(
            "task", config=agl.RolloutConfig(max_attempts=2, retry_condition=["timeout"])
        )
        slow = await store.dequeue_rollout("Worker-0")
        await store.update_attempt(queued.rollout_id, slow.attempt.attempt_id, status="timeout")
        quick = await store.dequeue_rollout("Worker-0")
        await store.update_attempt(queued.rollout_id, quick.attempt.attempt_id, status="succeeded")
        late = await store.update_attempt(queued.rollout_id, slow.attempt.attempt_id, status="failed")
        assert late.status == "failed"
        return (await store.get_rollout_by_id(queued.rollout_id)).status

    assert asyncio.run(main()) == "succeeded"
