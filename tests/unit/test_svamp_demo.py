"""The demo: its problems, its gradients, its learning, its two sides on a store, and the whole thing as processes."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from examples.svamp_demo import demo
from examples.svamp_demo.algorithm import Settings, Trainer, TrainingError, progress_bar
from examples.svamp_demo.arithmetic import candidates
from examples.svamp_demo.messages import POLICY, PolicyWeights, Task
from examples.svamp_demo.policy import (
    FEATURE_COUNT,
    Adam,
    Episode,
    best,
    encode,
    entropy_gradient,
    initial_weights,
    log_probability_gradient,
    policy_gradient,
    probabilities,
    sample,
)
from examples.svamp_demo.problems import DataError, Problem, ProblemSet, generate, load, obtain
from examples.svamp_demo.processes import PROJECT_ROOT, Children, Server, for_people, look_into
from examples.svamp_demo.report import IterationRecord, Report, Summary, write_plot
from examples.svamp_demo.runner import Runner
from examples.svamp_demo.tracing import CHOICE, REWARD, ROLLOUT_SPAN, TRY_SPAN, Recorder, Try, read_tries
from lightning_store import InMemoryLightningStore, LightningStore, Resource
from lightning_store_server.cli.root import root

APPLES = Problem(
    problem_id="apples", body="Ann had 12 apples and ate 5 of them.", question="How many are left?", answer=7
)


@pytest.fixture
def chance() -> np.random.Generator:
    return np.random.default_rng(7)


# --- Problems --------------------------------------------------------------------------------------------------------


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def line(number: int = 5, **changes: object) -> str:
    fields = {"ID": f"p{number}", "Body": f"Ann had {number} pens. She lost 2.", "Question": "How many are left?"}
    return json.dumps({**fields, "Answer": number - 2, **changes})


def test_candidates_are_all_operations_on_all_pairs() -> None:
    assert {each.expression for each in candidates([6.0, 3.0])} == {
        "6 + 3", "6 * 3", "6 - 3", "3 - 6", "6 / 3", "3 / 6",
    }  # fmt: skip
    assert len(candidates([1.0, 2.0, 3.0])) == 18
    assert candidates([1.0]) == []


def test_division_by_zero_is_never_right() -> None:
    assert not any(each.is_correct(float("nan")) for each in candidates([4.0, 0.0]) if each.operation == "divide")


def test_load_keeps_what_one_operation_solves(tmp_path: Path) -> None:
    two_steps = line(40, Answer=80, Equation="( ( 40.0 - 2.0 ) + 42.0 )")
    unreachable = line(41, Answer=1000)
    lines = [line(number) for number in range(10, 35)]
    loaded = load(write_lines(tmp_path / "data.jsonl", *lines, "", two_steps, unreachable, lines[0]))
    assert len(loaded.problems) == 25
    assert loaded.left_out == 3
    assert loaded.problems[0] == Problem(
        problem_id="p10", body="Ann had 10 pens. She lost 2.", question="How many are left?", answer=8
    )


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "should be"),
        ('{"Body": "x", "Question": "y"}', "Answer: Field required"),
        (line(Answer="many"), "Answer: Input should be a valid number"),
        (line(Answer=float("nan")), "Answer: Input should be a finite number"),
        (line(Body=""), "Body: String should have at least 1 character"),
        (line(Question=None), "Question: Input should be a valid string"),
    ],
)
def test_malformed_line_is_named_with_what_to_do(tmp_path: Path, bad: str, expected: str) -> None:
    path = write_lines(tmp_path / "data.jsonl", line(), "", bad)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert expected in str(caught.value)
    assert "leave out --data" in str(caught.value)


def test_a_file_may_be_one_list_of_problems_too(tmp_path: Path) -> None:
    lines = [line(number) for number in range(10, 35)]
    listed = load(write_lines(tmp_path / "SVAMP.json", "[", ",\n".join(lines), "]"))
    assert listed.problems == load(write_lines(tmp_path / "data.jsonl", *lines)).problems
    with pytest.raises(DataError, match=r"SVAMP.json:2: Answer: Field required"):
        load(write_lines(tmp_path / "SVAMP.json", f'[{line()}, {{"Body": "x", "Question": "y"}}]'))
    with pytest.raises(DataError, match=r"SVAMP.json: not valid JSON"):
        load(write_lines(tmp_path / "SVAMP.json", f"[{line()}"))


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        load(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match="solves 1 of 1 problems; the demo needs 20"):
        load(write_lines(tmp_path / "short.jsonl", line()))


def test_generated_problems_are_solvable_different_and_repeatable() -> None:
    problems = generate(200, seed=3)
    assert all(problem.is_solvable() for problem in problems)
    assert len({problem.text() for problem in problems}) == 200
    assert problems == generate(200, seed=3)
    assert problems != generate(200, seed=4)


def test_obtain_generates_unless_there_is_a_file(tmp_path: Path) -> None:
    assert obtain(None, seed=1).source == "templates with seed 1"
    path = write_lines(tmp_path / "data.jsonl", *[line(number) for number in range(10, 40)])
    assert obtain(path, seed=1).source == str(path)


def test_split_is_repeatable_and_holds_out_a_fifth() -> None:
    problems = ProblemSet("test", tuple(generate(100, seed=0)), left_out=0)
    train, held_out = problems.split(seed=5)
    assert (len(train), len(held_out)) == (80, 20)
    ids = [problem.problem_id for problem in (*train, *held_out)]
    assert sorted(ids) == sorted(problem.problem_id for problem in problems.problems)
    assert problems.split(seed=5) == (train, held_out)


# --- Policy ----------------------------------------------------------------------------------------------------------


def numeric_gradient(function: Callable[[np.ndarray], float], weights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Central differences of ``function`` at some places of ``weights``."""
    step = 1e-5
    differences = []
    for place in places:
        shift = np.zeros_like(weights)
        shift[place] = step
        differences.append((function(weights + shift) - function(weights - shift)) / (2 * step))
    return np.array(differences)


def used_places(problem: Problem) -> np.ndarray:
    """The weights that matter for a problem, without the one that stands for "no feature"."""
    places = np.unique(encode(problem).features)
    return places[places > 0]


def log_probability(choice: int, weights: np.ndarray) -> float:
    return float(np.log(probabilities(weights, encode(APPLES))[choice]))


def entropy(weights: np.ndarray, problem: Problem) -> float:
    likely = probabilities(weights, encode(problem))
    return float(-(likely * np.log(likely)).sum())


def test_untrained_policy_finds_all_answers_equally_likely(chance: np.random.Generator) -> None:
    encoded = encode(APPLES)
    np.testing.assert_allclose(probabilities(initial_weights(), encoded), np.full(6, 1 / 6))
    assert {best(initial_weights(), encoded, chance) for _ in range(200)} == set(range(6))


def test_log_probability_gradient_agrees_with_finite_differences(chance: np.random.Generator) -> None:
    weights = chance.normal(size=FEATURE_COUNT)
    weights[0] = 0.0
    places = used_places(APPLES)
    for choice in range(6):
        exact = log_probability_gradient(weights, encode(APPLES), choice)
        numeric = numeric_gradient(partial(log_probability, choice), weights, places)
        np.testing.assert_allclose(exact[places], numeric, atol=1e-6)
        assert np.count_nonzero(np.delete(exact, places)) == 0


def test_entropy_gradient_agrees_with_finite_differences(chance: np.random.Generator) -> None:
    weights = chance.normal(scale=0.1, size=FEATURE_COUNT)
    weights[0] = 0.0
    places = used_places(APPLES)
    numeric = numeric_gradient(lambda w: entropy(w, APPLES), weights, places)
    np.testing.assert_allclose(entropy_gradient(weights, encode(APPLES))[places], numeric, atol=1e-6)


def test_policy_gradient_is_advantage_times_score_plus_entropy(chance: np.random.Generator) -> None:
    weights = chance.normal(scale=0.1, size=FEATURE_COUNT)
    weights[0] = 0.0
    encoded = encode(APPLES)
    found = policy_gradient(weights, [Episode(encoded, (0, 2, 2), (0.0, 1.0, 1.0))], entropy_bonus=0.3)
    scores = [log_probability_gradient(weights, encoded, choice) for choice in (0, 2, 2)]
    advantages = [0.0 - 1.0, 1.0 - 0.5, 1.0 - 0.5]
    expected = sum(advantage * score for advantage, score in zip(advantages, scores, strict=True)) / 3
    np.testing.assert_allclose(found, expected + 0.3 * entropy_gradient(weights, encoded), atol=1e-12)


def test_policy_gradient_of_nothing_is_zero() -> None:
    assert not policy_gradient(initial_weights(), [], entropy_bonus=1.0).any()


def test_a_text_without_two_numbers_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="fewer than two numbers"):
        encode(APPLES.model_copy(update={"body": "Ann had some apples."}))


def test_learning_on_a_toy_set_raises_the_reward(chance: np.random.Generator) -> None:
    problems = generate(40, seed=1)
    encoded = [encode(problem) for problem in problems]
    right = [
        np.array([each.is_correct(problem.answer) for each in problem_encoded.candidates], dtype=float)
        for problem, problem_encoded in zip(problems, encoded, strict=True)
    ]

    def expected_reward(weights: np.ndarray) -> float:
        return float(np.mean([probabilities(weights, e) @ r for e, r in zip(encoded, right, strict=True)]))

    weights, optimizer = initial_weights(), Adam(0.1)
    before = expected_reward(weights)
    for _ in range(15):
        drawn = [tuple(sample(weights, each, 4, chance)) for each in encoded]
        episodes = [
            Episode(each, choices, tuple(rewards[list(choices)]))
            for each, choices, rewards in zip(encoded, drawn, right, strict=True)
        ]
        weights = optimizer.step(weights, policy_gradient(weights, episodes, entropy_bonus=0.02))
    assert before < 0.2
    assert expected_reward(weights) > 0.8


# --- Messages and spans ----------------------------------------------------------------------------------------------


def test_weights_survive_a_store_that_does_not_know_their_type(chance: np.random.Generator) -> None:
    weights = chance.normal(size=FEATURE_COUNT).astype(np.float32).astype(np.float64)
    generic = Resource.model_validate(PolicyWeights.pack(weights, iteration=3).model_dump())
    back = PolicyWeights.of(generic)
    assert back.iteration == 3
    np.testing.assert_array_equal(back.unpack(), weights)
    assert len(back.model_dump_json()) < 12_000


@pytest.mark.parametrize(("text", "message"), [("%%%", "not base64"), ("AAAAAA==", "has 1 weights")])
def test_unusable_weights_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyWeights(iteration=0, weights_base64=text).unpack()


@pytest.mark.asyncio
async def test_spans_carry_the_tries_through_a_store() -> None:
    store = InMemoryLightningStore()
    rollout = await store.start_rollout("x")
    encoded = encode(APPLES)
    tries = [Try(2, 1.0), Try(0, 0.0)]
    spans = Recorder("runner-0").record(APPLES, encoded.candidates, tries, [1 / 6] * 6)
    for span in spans:
        await store.add_otel_span(rollout.rollout_id, rollout.attempt.attempt_id, span)
    stored = await store.query_spans(rollout.rollout_id)
    assert [span.name for span in stored] == [ROLLOUT_SPAN, TRY_SPAN, TRY_SPAN]
    assert {span.parent_id for span in stored[1:]} == {stored[0].span_id}
    assert stored[0].attributes[REWARD] == 0.5
    assert stored[0].resource.attributes["service.instance.id"] == "runner-0"
    assert read_tries(stored) == tries


@pytest.mark.asyncio
async def test_a_span_without_its_attributes_is_named() -> None:
    store = InMemoryLightningStore()
    rollout = await store.start_rollout("x")
    (_, span) = Recorder("runner-0").record(APPLES, encode(APPLES).candidates, [Try(0, 0.0)], [1 / 6] * 6)
    stored = await store.add_otel_span(rollout.rollout_id, rollout.attempt.attempt_id, span)
    assert stored is not None
    del stored.attributes[CHOICE]
    with pytest.raises(ValueError, match=f"span {stored.span_id} of rollout {rollout.rollout_id} has no attribute"):
        read_tries([stored])


# --- Both sides on a store in this process ---------------------------------------------------------------------------


async def train_in_process(store: LightningStore, output: Path, settings: Settings, runners: int = 2) -> Summary:
    """A run whose runners are tasks of this process. A runner that breaks ends it at once."""
    stop = asyncio.Event()
    problems = ProblemSet("test", tuple(generate(150, seed=0)), left_out=0)
    trainer = Trainer(store, problems, settings, Report(output))

    async def train() -> Summary:
        try:
            return await trainer.run(progress_bar(Console(file=io.StringIO())))
        finally:
            stop.set()

    async with asyncio.TaskGroup() as tasks:
        training = tasks.create_task(train())
        for index in range(runners):
            tasks.create_task(Runner(store, f"runner-{index}").run(stop))
    return training.result()


@pytest.mark.asyncio
async def test_training_through_a_store_raises_held_out_accuracy(tmp_path: Path) -> None:
    store = InMemoryLightningStore()
    settings = Settings(iterations=20, batch_size=16, seed=0, learning_rate=0.1, evaluate_every=10)
    summary = await train_in_process(store, tmp_path, settings)
    assert summary.untrained_accuracy <= 0.35
    assert summary.trained_accuracy >= 0.45
    assert (summary.rollouts, summary.failed, summary.second_attempts) == (20 * 16 + 3 * 30, 0, 0)
    assert {worker.status for worker in await store.query_workers()} == {"idle"}
    records = [IterationRecord.model_validate_json(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record.iteration for record in records if record.held_out_accuracy is not None] == [0, 10, 20]
    assert sum(record.rollouts for record in records) == summary.rollouts
    assert Summary.model_validate_json((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.asyncio
async def test_a_run_repeats_whoever_does_the_work(tmp_path: Path) -> None:
    settings = Settings(iterations=3, batch_size=8, seed=4)
    one = await train_in_process(InMemoryLightningStore(), tmp_path / "one", settings, runners=1)
    three = await train_in_process(InMemoryLightningStore(), tmp_path / "three", settings, runners=3)
    assert one.trained_accuracy == three.trained_accuracy
    assert one.untrained_accuracy == three.untrained_accuracy


@pytest.mark.asyncio
async def test_without_runners_the_trainer_gives_up_with_a_hint(tmp_path: Path) -> None:
    settings = Settings(iterations=1, batch_size=4, seed=0, wait_seconds=0.0)
    with pytest.raises(ExceptionGroup) as caught:
        await train_in_process(InMemoryLightningStore(), tmp_path, settings, runners=0)
    assert caught.group_contains(TrainingError, match="are runners at work")


@pytest.mark.asyncio
async def test_a_runner_fails_what_it_cannot_do_and_goes_on() -> None:
    store = InMemoryLightningStore()
    published = await store.add_resources({POLICY: PolicyWeights.pack(initial_weights(), 0)})
    good = Task(problem=APPLES, tries=2, greedy=False, seed=1).model_dump()
    no_weights = await store.enqueue_rollout(good, resources_id="rs-unknown")
    no_task = await store.enqueue_rollout({"problem": "what?"})
    fine = await store.enqueue_rollout(good, resources_id=published.resources_id)
    stop = asyncio.Event()
    work = asyncio.create_task(Runner(store, "runner-0").run(stop))
    ids = [each.rollout_id for each in (no_weights, no_task, fine)]
    done = await store.wait_for_rollouts(rollout_ids=ids)
    stop.set()
    await work
    assert [rollout.status for rollout in done] == ["failed", "failed", "succeeded"]
    attempt = await store.get_latest_attempt(no_weights.rollout_id)
    assert attempt is not None
    assert attempt.metadata == {"error": "resources rs-unknown hold no 'policy'"}


# --- Report and flags ------------------------------------------------------------------------------------------------


def test_plot_of_an_empty_run_is_a_picture_too(tmp_path: Path) -> None:
    write_plot(
        tmp_path / "empty.png", [IterationRecord(iteration=0, rollouts=0, second_attempts=0, failed=0, seconds=0)]
    )
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")


def test_quick_implies_a_small_run() -> None:
    options = demo.parse(["--quick", "--iterations", "3"])
    assert (options.iterations, options.batch_size, options.runners, options.kill_runner) == (3, 24, 4, True)
    assert not demo.parse(["--runners", "1"]).kill_runner
    assert not demo.parse(["--no-kill-runner"]).kill_runner
    shared = demo.parse(["--servers", "2", "--kill-server", "--database", "postgresql://localhost/store"])
    assert (shared.servers, shared.kill_server) == (2, True)


@pytest.mark.parametrize("module", ["algorithm", "runner", "demo"])
def test_help_names_a_command_that_there_is(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"examples.svamp_demo.{module}").main(["--help"])
    command = "examples.svamp_demo" if module == "demo" else f"examples.svamp_demo.{module}"
    assert capsys.readouterr().out.startswith(f"usage: python -m {command} ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--runners", "0"], "0 is not 1 or more"),
        (["--runners", "1", "--kill-runner"], "give --runners 2 or more"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--kill-server", "--database", "memory:"], "leave --database memory: out"),
        (["--server", "localhost:1", "--kill-server"], "--server names one that runs already"),
        (["--server", "localhost:1", "--database", "sqlite:x"], "--server names one that runs already"),
        (["--server", "localhost:1", "--servers", "2"], "--server names one that runs already"),
        (["--servers", "2"], "--servers 2 needs a database that several servers can have"),
        (["--servers", "2", "--database", "memory:"], "give --database postgresql://"),
        (["--servers", "2", "--database", "sqlite:x"], "belongs to one server"),
    ],
)
def test_bad_flags_are_usage_errors(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.parse(arguments)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_bad_data_ends_the_demo_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "data.jsonl", "{")
    assert demo.main(["--data", str(path), "--output", str(tmp_path / "out")]) == 2
    assert f"error: {path}:1: not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_ends_with_what_looks_into_it() -> None:
    kept = look_into("postgresql://ada:s3cret@db:5432/store?sslmode=require", None, ["stats"])
    assert "s3cret" not in kept
    assert (
        "serve --database 'postgresql://ada@db:5432/store?sslmode=require' --http-port 4748 &  # the password" in kept
    )
    assert kept.endswith("http://127.0.0.1:4748/")
    assert "PGPASSWORD" not in look_into("postgresql://db/store", None)
    assert for_people("postgresql://db/store") == "postgresql://db/store"
    assert look_into("memory:", None).startswith("the store was in memory and is gone")
    assert look_into("memory:", "db:4747", ["stats"]).endswith("stats --server db:4747")


@pytest.mark.asyncio
async def test_of_two_servers_one_is_killed_and_stays_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def at_once(_: LightningStore) -> bool:
        return True

    async with Children.running(tmp_path) as children:
        started = [await children.start(name, ["sleep", "600"]) for name in ("server", "server-2")]
        servers = [Server(child, f"127.0.0.1:{port}", "127.0.0.1:1") for port, child in enumerate(started, start=1)]
        await demo._kill_server("127.0.0.1:1,127.0.0.1:2", "postgresql://db/store", children, servers, at_once)
        assert [server.child.name for server in servers] == ["server-2"]
        assert [child.alive for child in started] == [False, True]
    assert capsys.readouterr().out == ("  killed the server at 127.0.0.1:1\n  the run goes on at 127.0.0.1:2\n")


# --- The whole thing -------------------------------------------------------------------------------------------------


def run_demo(output: Path, *arguments: str) -> tuple[str, Summary]:
    """What a small run prints, and what comes of it."""
    command = [sys.executable, "-m", "examples.svamp_demo", "--quick", "--runners", "2", "--iterations", "6"]
    ran = subprocess.run(
        [*command, "--output", str(output), *arguments],
        cwd=PROJECT_ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, Summary.model_validate_json((output / "summary.json").read_text())


def run_printed(said: str) -> list[str]:
    """Run the commands that a run ends with, as they stand but for the ports; what they print."""
    block = said[said.index("look into it:") :].splitlines()[1:]
    serve, *looks, stop = [shlex.split(line, comments=True) for line in block if line.startswith("  ")]
    assert (serve.pop(), stop) == ("&", ["kill", "%1"])
    with subprocess.Popen(
        [*serve, "--port", "0", "--http-port", "0"], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            ready = re.search(r"serving on (\S+) .*HTTP on (\S+),", server.stdout.readline())
            assert ready is not None
            with urllib.request.urlopen(f"http://{ready[2]}/", timeout=60) as page:
                assert "<html" in page.read().decode()
            results = [CliRunner().invoke(root, [*look[1:], "--server", ready[1]]) for look in looks]
        finally:
            server.terminate()
    assert [result.exit_code for result in results] == [0] * len(looks), [result.output for result in results]
    assert server.returncode == 0
    return [result.stdout for result in results]


@pytest.mark.slow
def test_demo_completes_with_the_same_result_whether_a_runner_or_the_server_is_killed(tmp_path: Path) -> None:
    said, summary = run_demo(tmp_path / "runner")
    assert re.search(r"^watch it: http://127\.0\.0\.1:\d+/$", said, re.MULTILINE)
    killed = re.search(r"killed runner-\d in the middle of the rollout (\S+):", said)
    assert killed is not None
    assert summary.second_attempts >= 1
    assert summary.failed == 0
    assert summary.trained_accuracy > summary.untrained_accuracy + 0.2
    assert (tmp_path / "runner" / "reward.png").exists()
    shown = run_printed(said)
    assert killed[1] in shown[-1]
    assert "unresponsive" in shown[-1]

    database = f"sqlite:{tmp_path / 'a store.db'}"
    said, other = run_demo(tmp_path / "server", "--database", database, "--kill-server", "--no-kill-runner")
    assert re.search(r"^  killed the server at 127\.0\.0\.1:\d+$", said, re.MULTILINE)
    assert re.search(r"^  started the server on sqlite:\S.*/a store.db again$", said, re.MULTILINE)
    assert (other.trained_accuracy, other.rollouts, other.failed) == (summary.trained_accuracy, summary.rollouts, 0)
    assert re.search(rf"^succeeded +{other.rollouts}\b", run_printed(said)[0], re.MULTILINE)
