"""The measuring instrument: its arithmetic, its sizes, its tables, its refusals, and one cell from end to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from benchmarks import cli, records, reference
from benchmarks.bench import Opened, in_turn
from benchmarks.cells.runners import shares_of
from benchmarks.plot import write_plot
from benchmarks.processes import CellError
from benchmarks.records import Environment, Record, ResultsError, Spread, percentile, ratio
from benchmarks.rounds import Round, WrongAnswerError, metrics_of, run_round
from benchmarks.sides import OURS, PEER, Side, sides
from benchmarks.stores import dialect, open_store
from benchmarks.tables import markdown, number, spread
from benchmarks.targets import verdicts
from benchmarks.workloads import WORKLOADS, Subject
from lightning_store import Span
from lightning_store.spans.document import encode

SERVED_ONLY = {"add_many_spans_otlp"}


@pytest.fixture(scope="module")
def environment() -> Environment:
    return Environment.here()


def record(environment: Environment, side: str, *values: float, **fields: Any) -> Record:
    metrics = {name: Spread.of(values) for name in ("calls_per_second", "p50_ms") if values}
    return Record(
        **{"cell": "add_span", "transport": "wire", "callers": 64, "metrics": metrics, **fields},
        side=side,
        environment=environment,
    )


# --- Arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.99, 10), (1.0, 10)])
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile(range(1, 11), share) == expected
    assert percentile([7.0], share) == 7.0


def test_ratio_is_that_of_medians_and_its_spread_that_of_rounds() -> None:
    assert ratio(Spread.of([10, 30, 20]), Spread.of([1, 2, 4])) == Spread(median=10, low=5, high=15, rounds=(10, 15, 5))


def test_rounds_that_cannot_be_paired_have_no_spread() -> None:
    assert ratio(Spread.of([10, 20, 30]), Spread.of([2, 2])) == Spread(median=10, low=10, high=10, rounds=())
    assert ratio(Spread.of([1]), Spread.of([0])) is None


def test_runners_are_shared_out_evenly() -> None:
    assert shares_of(10, 4) == [3, 3, 2, 2]


def test_numbers_have_three_digits_that_count() -> None:
    assert [number(value) for value in (123456.7, 99.94, 0.012345)] == ["123,457", "99.9", "0.0123"]
    assert spread(Spread.of([1, 2, 3])) == "2 (1..3)"


def test_the_reference_is_of_the_published_sizes() -> None:
    fields = reference.span_fields("ro-0123456789ab", "at-01234567", 6)
    assert reference.json_bytes(fields) == reference.SPAN_JSON_BYTES
    assert len(encode(Span.model_validate(fields)).document) == reference.SPAN_DOCUMENT_BYTES
    assert reference.json_bytes(reference.rollout_input(12345678)) == reference.PAYLOAD_JSON_BYTES


def test_a_trainers_span_is_the_reference_with_its_tokens() -> None:
    plain, trainers = (
        fields("ro-0123456789ab", "at-01234567", 6) for fields in (reference.span_fields, reference.trainer_span_fields)
    )
    tokens = {name: trainers["attributes"].pop(name) for name in set(trainers["attributes"]) - set(plain["attributes"])}
    assert trainers == plain
    assert {name: len(values) for name, values in tokens.items()} == {
        "prompt_token_ids": 1_500,
        "response_token_ids": 500,
        "logprobs": 500,
    }


# --- Rounds ----------------------------------------------------------------------------------------------------------


def measured(items: Iterator[Any], *, callers: int = 1, seconds: float = 60.0) -> Round:
    async def call(item: Any, caller: int) -> None:
        await asyncio.sleep(0)
        if item is None:
            raise WrongAnswerError(f"caller {caller} got nothing")

    return asyncio.run(run_round(call, items, callers=callers, seconds=seconds))


def test_a_round_uses_each_item_once_whoever_calls() -> None:
    one = measured(iter(range(100)), callers=7)
    assert one.calls == 100
    assert one.server_cpu_us is None
    assert one.calls_per_second == pytest.approx(100 / one.seconds)
    assert set(metrics_of([one])) == {"calls_per_second", "p50_ms", "p99_ms", "client_cpu_us"}


def test_a_round_ends_with_its_time() -> None:
    one = measured(iter(int, 1), seconds=0.001)
    assert one.calls >= 1


def test_errors_are_counted_and_are_no_calls() -> None:
    one = measured(iter([1, None, 2, None]))
    assert one.calls == 2
    assert one.errors == {"WrongAnswerError: caller 0 got nothing": 2}


async def turns(rounds: int, failing: str | None = None, seconds_enough: float = 1e9) -> tuple[list[str], Any]:
    order: list[str] = []

    async def ask(one: Opened) -> int:
        if one.side.name == failing:
            raise CellError("down")
        order.append(one.side.name)
        return len(order)

    opened = [Opened(Side(name, name, "lightning_store")) for name in ("a", "b")]
    return order, await in_turn(opened, rounds, ask, seconds_enough=seconds_enough)


def test_sides_take_turns_and_alternate_who_is_first() -> None:
    order, outcomes = asyncio.run(turns(4))
    assert "".join(order) == "abbaabba"
    assert outcomes["a"].results == [1, 4, 5, 8]


def test_a_side_that_fails_leaves_the_others_alone() -> None:
    order, outcomes = asyncio.run(turns(2, failing="b"))
    assert order == ["a", "a"]
    assert (outcomes["b"].failure, outcomes["b"].results) == ("down", [])


def test_slow_rounds_become_fewer() -> None:
    order, _ = asyncio.run(turns(9, seconds_enough=0.0))
    assert len(order) == 2 * 3


# --- Workloads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["query_spans", "query_rollouts", "trainer_query_spans", "lifecycle"])
def test_queries_read_every_field(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    dump = BaseModel.model_dump

    def noted(model: BaseModel, **options: Any) -> dict[str, Any]:
        read.append(type(model).__name__)
        return dump(model, **options)

    monkeypatch.setattr(BaseModel, "model_dump", noted)

    async def drive() -> None:
        workload = WORKLOADS[name](Subject(open_store("lightning_store", None), dialect("lightning_store"), None))
        item = next(await workload.items(1))
        read.clear()
        await workload.call(item, 0)

    asyncio.run(drive())
    rows, kind = {
        "query_spans": (100, "Span"),
        "query_rollouts": (1_000, "AttemptedRollout"),
        "trainer_query_spans": (2, "Span"),
        "lifecycle": (4, "Span"),
    }[name]
    assert read == [kind] * rows


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in SERVED_ONLY])
def test_workloads_run_on_the_store_in_process(name: str) -> None:
    async def drive() -> Round:
        subject = Subject(open_store("lightning_store", None), dialect("lightning_store"), None)
        workload = WORKLOADS[name](subject)
        items = await workload.items(3)
        return await run_round(workload.call, (next(items) for _ in range(3)), callers=2, seconds=60.0)

    one = asyncio.run(drive())
    assert one.calls == 3
    assert not one.errors


def test_items_that_were_not_used_are_there_for_the_next_round() -> None:
    async def drive() -> list[int]:
        workload = WORKLOADS["enqueue"](Subject(open_store("lightning_store", None), dialect("lightning_store"), None))
        next(await workload.items(5))
        return [len(list(await workload.items(count))) for count in (2, 6)]

    assert asyncio.run(drive()) == [4, 6]


# --- Results ---------------------------------------------------------------------------------------------------------


def test_results_survive_their_file(tmp_path: Path, environment: Environment) -> None:
    path = tmp_path / "results.jsonl"
    kept = [record(environment, OURS, 1.5, 2.5), record(environment, PEER, 1, errors={"Lost": 3}, size=10)]
    for one in kept:
        records.append(path, one)
    assert records.read(path) == kept
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert line["metrics"]["calls_per_second"] == {"median": 2.0, "low": 1.5, "high": 2.5, "rounds": [1.5, 2.5]}
    assert {"python", "cores", "packages"} <= set(line["environment"])


def test_a_broken_results_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"broken\.jsonl, line 1"):
        records.read(path)
    with pytest.raises(ResultsError, match=r"absent\.jsonl"):
        records.read(tmp_path / "absent.jsonl")


def test_targets_are_held_against_the_ratio(environment: Environment) -> None:
    [met] = verdicts([record(environment, OURS, 2500), record(environment, PEER, 100)])
    [missed] = verdicts([record(environment, OURS, 2400), record(environment, PEER, 100)])
    assert (met.is_met, met.value.median) == (True, 25)
    assert not missed.is_met
    assert verdicts([record(environment, OURS, 2500)]) == []


def test_targets_of_our_own_need_no_peer(environment: Environment) -> None:
    ready = record(environment, OURS, cell="serve_ready", callers=None, metrics={"seconds": Spread.of([0.4, 1.6])})
    [verdict] = verdicts([ready])
    assert verdict.is_met


def test_tables_tell_ratio_target_and_errors(environment: Environment) -> None:
    text = markdown([
        record(environment, OURS, 100, 300, 200),
        record(environment, PEER, 10, 10, 10, errors={"ServerDisconnectedError: gone": 7}),
        record(environment, OURS, cell="runners", metrics={}, failure="no server"),
    ])  # fmt: skip
    lines = [line for line in text.splitlines() if line.startswith("| add_span")]
    assert "calls_per_second >= 25 x peer" in lines[0]
    assert "20 (10..30)" in lines[0]
    assert "NO" in lines[0]
    assert "| 7" in text
    assert "ServerDisconnectedError: gone" in text
    assert "not measured: no server" in text
    assert "### Targets" in text


def test_each_run_is_told_with_its_commit_and_load(environment: Environment) -> None:
    packages = {**environment.packages, "agentlightning": "0.3.0"}
    update = {"started_at": environment.started_at + timedelta(hours=1), "commit": "abc1234", "packages": packages}
    later = environment.model_copy(update={**update, "load_average": 2.5})
    text = markdown([record(later, OURS, 100), record(environment, OURS, 50, cell="get"), record(later, PEER, 10)])
    head, *runs = [line for line in text.partition("###")[0].splitlines() if line]
    assert "agentlightning 0.3.0" in head
    assert [run.partition(": ")[2] for run in runs] == ["get", "add_span"]
    assert "commit abc1234, load average before it 2.5" in runs[1]


def test_the_plot_is_a_picture(tmp_path: Path, environment: Environment) -> None:
    grown = [
        record(environment, OURS, size=size, metrics={"p50_ms": Spread.of([1.0])}, cell="growth_enqueue")
        for size in (10, 100)
    ]
    path = tmp_path / "plot.png"
    assert write_plot(path, [record(environment, OURS, 2, 3), record(environment, PEER, 1), *grown])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not write_plot(path, [])


def test_documenting_replaces_what_is_between_the_marks(tmp_path: Path, environment: Environment) -> None:
    results, document = tmp_path / "results.jsonl", tmp_path / "performance.md"
    for side in (OURS, PEER):
        records.append(results, record(environment, side, 2500))
    document.write_text(f"before\n{cli.BEGIN_MARK}\nold\n{cli.END_MARK}\nafter\n", encoding="utf-8")
    for _ in range(2):
        assert cli.main(["document", str(results), "--into", str(document)]) == 0
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("### Calls per second, side by side") == 1
    assert "2,500" in text


def test_the_document_has_a_place_for_results() -> None:
    text = cli.DOCUMENT.read_text(encoding="utf-8")
    assert text.index(cli.BEGIN_MARK) < text.index(cli.END_MARK)


# --- The command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["quick", "--only", "add_spam"], "'add_spam' is none of enqueue"),
        (["growth", "--only", "add_span"], "add_span: not in this suite, which has growth_get_rollout_by_id"),
        (["quick", "--callers", "0"], "0 is not 1 or more"),
        (["quick", "--seconds", "0"], "0 is not between 0 and 3600 seconds"),
        (["quick", "--over", "air"], "'air' is none of wire, process"),
        (["quick", "--base", "nowhere"], "--base nowhere is no checkout"),
        (["nonsense"], "invalid choice"),
    ],
)
def test_bad_options_are_named(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_missing_peer_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["peer"])
    assert "needs the package agentlightning" in capsys.readouterr().err


def test_another_checkout_goes_before_what_is_installed(tmp_path: Path) -> None:
    base = sides(tmp_path)["base"]
    assert base.paths[:3] == [tmp_path / "src", tmp_path / "server", tmp_path / "clients/python"]


@pytest.mark.slow
def test_one_cell_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quick", "--only", "enqueue", "--over", "process", "--seconds", "0.02", "--rounds", "2"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
    [results] = tmp_path.glob("*-quick.jsonl")
    [found] = records.read(results)
    assert (found.cell, found.transport, found.side, found.callers) == ("enqueue", "process", OURS, 1)
    assert len(found.metrics["calls_per_second"].rounds) == 2
    assert results.with_suffix(".png").exists()
    assert "enqueue" in capsys.readouterr().out
