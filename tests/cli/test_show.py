"""The commands that look into a served store, as tables and as JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from lightning_store import SpansEvictedError
from lightning_store_client import LightningStoreClient


@pytest.fixture
def show(run, served):
    """Run a command against the served store; what it printed."""

    def show(*arguments: str) -> str:
        result = run(*arguments, env={"LIGHTNING_STORE_SERVER": served.endpoint})
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    return show


@pytest.fixture
def show_json(show):
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    return lambda *arguments: json.loads(show(*arguments, "--json"), parse_constant=refuse)


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An endpoint where nothing listens, and nothing else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_health(run, served, closed_port) -> None:
    as_json = run("health", "--json", "--server", served.endpoint)
    assert (as_json.exit_code, json.loads(as_json.output)) == (0, {"server": served.endpoint, "serving": True})
    serving = run("health", "--server", served.endpoint)
    assert (serving.exit_code, serving.output) == (0, f"{served.endpoint} SERVING\n")
    absent = run("health", "--server", closed_port, "--timeout", "1")
    assert absent.exit_code == 1
    assert len(absent.output.splitlines()) == 1
    assert absent.output.startswith(f"{closed_port} NOT_SERVING")


def test_health_of_a_server_that_does_not_answer(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        result = run("health", "--server", f"127.0.0.1:{port}", "--timeout", "0.2")
    assert result.exit_code == 1


def test_health_of_a_server_that_is_no_store(run) -> None:
    bare = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    endpoint = f"127.0.0.1:{bare.add_insecure_port('127.0.0.1:0')}"
    bare.start()
    try:
        result = run("health", "--server", endpoint)
    finally:
        bare.stop(None).wait()
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert result.output.startswith(f"{endpoint} NOT_SERVING: no store")


@pytest.mark.parametrize(("flags", "seconds"), [([], 2.0), (["--timeout", "30"], 30.0), (["--timeout", "0.5"], 0.5)])
def test_health_waits_for_an_answer_as_long_as_it_is_told(run, served, monkeypatch, flags, seconds) -> None:
    given = []

    async def healthy(self: LightningStoreClient, *, timeout: float) -> bool:
        given.append(timeout)
        return True

    monkeypatch.setattr(LightningStoreClient, "healthy", healthy)
    assert run("health", "--server", served.endpoint, *flags).exit_code == 0
    assert given == [seconds]
    assert "Give up after this long." in run("health", "--help").output


def test_stats(show, show_json, served) -> None:
    answer = show_json("stats")
    assert answer["server"]["strict"] is False
    assert answer["server"]["page_rows_max"] == 10_000
    assert (answer["statistics"]["total_rollouts"], answer["statistics"]["total_spans"]) == (2, 4)
    table = show("stats")
    assert served.endpoint in table
    assert "64MiB (67108864)" in table
    for name, limit in (("total_bytes", "memory_limit_bytes"), ("total_span_bytes", "eviction_threshold_bytes")):
        [line] = [line for line in table.splitlines() if line.startswith(f"{name} ")]
        assert line.rstrip().endswith("% of its limit")
        assert answer["statistics"][limit] > answer["statistics"][name] > 0


def test_rollouts(show, show_json, served) -> None:
    page = show_json("rollouts")
    assert {name: page[name] for name in ("total", "limit", "offset")} == {"total": 2, "limit": 50, "offset": 0}
    retried, waiting = page["items"]
    assert (retried["rollout_id"], retried["attempt"]["sequence_id"]) == (served.retried.rollout_id, 2)
    assert (waiting["input"], waiting["status"]) == ("a plain text task", "queuing")
    lines = show("rollouts").splitlines()
    assert lines[0].split() == ["ROLLOUT", "STATUS", "MODE", "ATTEMPT", "CREATED", "TOOK", "REWARD", "INPUT"]
    assert '{"question": "6 * 7\\u001b[31m"}' in lines[1]
    assert " 0.5 " in lines[1]
    assert lines[-1] == "2 rollouts"


def test_rollouts_filtered_sorted_and_paged(show, show_json, served) -> None:
    def ids(*arguments: str) -> list[str]:
        return [rollout["rollout_id"] for rollout in show_json("rollouts", *arguments)["items"]]

    both = [served.retried.rollout_id, served.waiting_id]
    assert ids("--status", "queuing") == [served.waiting_id]
    assert ids("--status", "queuing", "--status", "running") == both
    assert ids("--contains", served.waiting_id[3:]) == [served.waiting_id]
    assert ids("--sort-by", "start_time", "--desc") == both[::-1]
    assert ids("--limit", "1", "--offset", "1") == both[1:]
    assert "1 to 1 of 2 rollouts; the next with --offset 1" in show("rollouts", "--limit", "1")


def test_rollout_as_a_tree(show, served) -> None:
    lines = show("rollout", served.retried.rollout_id).splitlines()
    assert lines[0].startswith(f"rollout {served.retried.rollout_id} running")
    attempts = [line for line in lines if "── attempt " in line]
    assert ["failed" in line for line in attempts] == [True, False]
    assert f"attempt 2 {served.retried.attempt.attempt_id} running" in attempts[1]
    spans = [line[line.index("──") + 3 :] for line in lines if "── #" in line]
    assert spans == [
        "#1 first try 500ms ERROR",
        "#2 agent 500ms OK",
        "#3 chat 500ms OK",
        "#4 grade 500ms OK reward.value=0.5",
    ]
    depths = [line.index("#") // 4 for line in lines if "── #" in line]
    assert depths == [2, 2, 3, 3]


def test_rollouts_filtered_by_what_the_store_does_not_index(show_json, served) -> None:
    def ids(*arguments: str) -> list[str]:
        page = show_json("rollouts", *arguments)
        assert page["total"] == 2 or len(page["items"]) == page["total"]
        return [rollout["rollout_id"] for rollout in page["items"]]

    both = [served.retried.rollout_id, served.waiting_id]
    assert ids("--mode", "train") == both[:1]
    assert ids("--mode", "train", "--mode", "val") == both
    assert ids("--worker", "runner-1") == both[:1]
    assert ids("--worker", "nobody") == []
    assert ids("--since", "1h") == both
    assert ids("--until", "1h") == []
    assert ids("--since", "2020-01-01", "--until", "2020-01-01T00:00+02:00") == []
    assert ids("--metadata", "a.b=1") == []
    assert ids("--mode", "train", "--mode", "val", "--limit", "1", "--offset", "1") == both[1:]


def test_a_number_that_is_none_is_told_so(run) -> None:
    result = run("rollouts", "--limit", "abc")
    assert "'abc' is not a valid whole number" in result.stderr


def test_rollout_as_json(show_json, served) -> None:
    answer = show_json("rollout", served.retried.rollout_id)
    assert answer["rollout"]["input"] == {"question": "6 * 7\x1b[31m"}
    assert [attempt["status"] for attempt in answer["attempts"]] == ["failed", "running"]
    assert [span["sequence_id"] for span in answer["spans"]] == [1, 2, 3, 4]


def test_evicted_spans_are_not_the_same_as_none(show, show_json, served, monkeypatch) -> None:
    async def query_spans(*_: object, **__: object) -> None:
        raise SpansEvictedError.of(served.retried.rollout_id)

    monkeypatch.setattr("lightning_store_client.LightningStoreClient.query_spans", query_spans)
    assert show_json("rollout", served.retried.rollout_id)["spans"] is None
    assert "spans: dropped to free memory" in show("rollout", served.retried.rollout_id)


def test_workers(show, show_json, served) -> None:
    [worker] = show_json("workers")["items"]
    assert (worker["worker_id"], worker["status"]) == ("runner-1", "busy")
    assert worker["heartbeat_stats"] == {"gpu": "Infinity"}
    row = show("workers").splitlines()[1].split()
    assert row[:4] == ["runner-1", "busy", served.retried.rollout_id, served.retried.attempt.attempt_id]


def test_workers_filtered(run, served) -> None:
    def ids(*arguments: str) -> list[str]:
        variables = {
            "LIGHTNING_STORE_SERVER": served.endpoint,
            "LIGHTNING_STORE_STATUS": "queuing",
            "LIGHTNING_STORE_CONTAINS": "ro-",
        }
        result = run("workers", "--json", *arguments, env=variables)
        return [worker["worker_id"] for worker in json.loads(result.stdout)["items"]]

    assert ids() == ["runner-1"]
    assert ids("--status", "busy", "--contains", "runner") == ["runner-1"]
    assert ids("--status", "idle") == ids("--contains", "no") == []


def test_resources(show, show_json, served) -> None:
    [update] = show_json("resources")["items"]
    assert (update["resources_id"], update["version"]) == (served.resources_id, 1)
    table = show("resources")
    assert "llm (llm), policy (weights)" in table
    assert table.splitlines()[-1] == "1 resource"


def test_one_set_of_resources(show, show_json, served) -> None:
    assert "sk-hidden" not in str(show_json("resources")) + str(show_json("resources", served.resources_id))
    update = show_json("resources", served.resources_id, "--show-secrets")
    assert update["resources"]["llm"]["api_key"] == "sk-hidden"
    assert update["resources"]["policy"]["bias"] == "NaN"
    table = show("resources", served.resources_id)
    assert "http://llm:8000/v1" in table
    assert "sk-hidden" not in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("rollout", "ro-none"), "no rollout 'ro-none'"), (("resources", "rs-none"), "no resources 'rs-none'")],
)
def test_unknown_ids_exit_with_1(arguments, message, run, served) -> None:
    result = run(*arguments, "--server", served.endpoint)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: the store at {served.endpoint} has {message}\n"


@pytest.mark.parametrize(
    "arguments", [("stats",), ("rollouts",), ("rollout", "x"), ("workers",), ("resources",), ("resources", "x")]
)
def test_server_that_is_down_exits_with_1(arguments, run, closed_port) -> None:
    result = run(*arguments, "--server", closed_port, "--timeout", "5")
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"Error: no answer from a store at {closed_port}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("stats", "--server", "localhost"),
        ("stats", "--timeout", "0"),
        ("rollouts", "--status", "done"),
        ("rollouts", "--sort-by", "input"),
        ("rollouts", "--limit", "-2"),
        ("rollouts", "--offset", "-1"),
        ("rollout",),
    ],
    ids=" ".join,
)
def test_wrong_flags_exit_with_2(arguments, run) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
