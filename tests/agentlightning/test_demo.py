"""The demo: what it publishes, its flags, short runs, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import agentlightning as agl
import numpy as np
import psutil
import pytest
from rich.console import Console

from examples.agent_lightning import demo, messages
from examples.agent_lightning.algorithm import Attempt, Outcome, Reinforce
from examples.agent_lightning.comparison import differing
from examples.agent_lightning.training import Trained
from examples.svamp_demo.algorithm import Settings
from examples.svamp_demo.policy import FEATURE_COUNT
from examples.svamp_demo.problems import generate
from examples.svamp_demo.report import LOG_NAME, PLOT_NAME, SUMMARY_NAME, Report, Summary
from tests.agentlightning.forks import in_fork

PROBLEMS = 40
HELD_OUT = 8
SECONDS_MAX = 240


@pytest.fixture
def run(tmp_path):
    """Runs the demo on a few problems in a process of its own; the exit code."""
    data = tmp_path / "problems.jsonl"
    lines = [{"Body": one.body, "Question": one.question, "Answer": one.answer} for one in generate(PROBLEMS, seed=1)]
    data.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--data", str(data), "--output", str(tmp_path), "--batch-size", "6"]

    def in_process(*more, meanwhile=lambda pid, result: result.poll(SECONDS_MAX)):
        return in_fork(lambda: demo.main([*flags, *more]), meanwhile=meanwhile)

    return in_process


def test_weights_survive_as_parameters_of_a_model():
    weights = np.linspace(-1, 1, FEATURE_COUNT)
    resources = messages.pack(weights, step=3)
    assert np.allclose(messages.unpack_weights(resources), weights)
    assert messages.unpack_prompt(resources).format(body="A.", question="B?") == "A. B?"


def test_resources_of_somebody_else():
    resources = {"policy": agl.PromptTemplate(template="", engine="f-string")}
    with pytest.raises(ValueError, match="no model 'policy'"):
        messages.unpack_weights(resources)
    with pytest.raises(ValueError, match="no prompt template 'prompt'"):
        messages.unpack_prompt(resources)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--runners", "0"], "0 is not 1 or more"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--compare", "--store", "in-process"], "not allowed with argument"),
        (["--store", "in-process", "--server", "localhost:4747"], "--server is for our store over gRPC"),
    ],
)
def test_bad_flags_are_usage_errors(flags, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.parse(flags)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_bad_data_ends_the_demo_before_anything_starts(tmp_path, capfd):
    arguments = ["--data", str(tmp_path / "none.jsonl"), "--output", str(tmp_path / "out")]
    assert in_fork(lambda: demo.main(arguments)) == 2
    assert "none.jsonl" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["grpc", "in-process"])
def test_a_short_run(store, run, tmp_path, capfd):
    assert run("--steps", "2", "--store", store) == 0
    summary = Summary.model_validate_json((tmp_path / SUMMARY_NAME).read_text())
    assert (summary.rollouts, summary.failed) == (2 * 6 + 3 * HELD_OUT, 0)
    assert summary.second_attempts > 0
    printed = capfd.readouterr().out
    assert ("watch it: http://" in printed, "serve --database sqlite:" in printed) == (store == "grpc",) * 2
    assert (tmp_path / PLOT_NAME).exists()


@pytest.mark.slow
def test_a_server_that_runs_already(endpoint, run, tmp_path):
    assert run("--steps", "1", "--server", endpoint) == 0
    assert not (tmp_path / "server.log").exists()


@pytest.mark.slow
def test_all_stores_give_the_same(run, capfd):
    assert run("--compare", "--steps", "2") == 0
    printed = capfd.readouterr().out
    rows = {line.split("  ")[1].strip(): line.split()[-3:] for line in printed.splitlines() if line.startswith("  ")}
    for name in ("rollouts", "attempts", "spans", "rewards", "checksum of the weights"):
        assert len(set(rows[name])) == 1, printed
    assert f"of {2 * 6 + 2 * HELD_OUT} rollouts: the same on all stores" in printed


def test_differences_are_told(tmp_path):
    def trained(*outcomes):
        report = Report(tmp_path)
        algorithm = Reinforce(Settings(1, 1, 0), report, Console())
        algorithm.outcomes.extend(outcomes)
        return Trained(algorithm, Summary.model_construct(), report)

    good = Outcome("p1", "train", "succeeded", (Attempt("succeeded", ("answer",), (1.0,)),))
    bad = dataclasses.replace(good, status="failed")
    assert differing("grpc", trained(good), trained(good)) == []
    assert differing("grpc", trained(good), trained()) == ["grpc: 0 rollouts instead of 1"]
    [line] = differing("grpc", trained(good, good), trained(good, bad))
    assert line.startswith("grpc, rollout 1 (p1): Outcome(problem_id='p1', mode='train', status='failed'")


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_behind(run, tmp_path):
    processes = []

    def interrupt(pid, result):
        log = tmp_path / LOG_NAME
        while not (log.exists() and log.read_text()):
            assert not result.poll(0.1), "it has ended already"
        processes.extend(psutil.Process(pid).children(recursive=True))
        os.killpg(pid, signal.SIGINT)

    assert run("--steps", "1000", meanwhile=interrupt) == 130
    assert len(processes) >= 3
    assert psutil.wait_procs(processes, timeout=10)[1] == []
