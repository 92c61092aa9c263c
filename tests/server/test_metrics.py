"""/metrics: what is measured, with bounded labels, by a tool and a server of Prometheus's own."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from lightning_store import InMemoryLightningStore, RolloutConfig, Span
from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID
from lightning_store.sqlite_store import SqliteEngineStore
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.testing.contract.base import until
from lightning_store.v1 import rollout_pb2, server_pb2
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer, ServerConfig
from lightning_store_server.app import GrpcServer

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def scrape_text(url, accept="text/plain"):
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=SAFETY_SECONDS) as reply:
        return reply.read().decode(), reply.headers["Content-Type"]


def url_of(served):
    return served.server.otlp_traces_endpoint().removesuffix("/v1/traces") + "/metrics"


class Samples:
    """What one scrape has found."""

    def __init__(self, text):
        self.all = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def __call__(self, name, **labels):
        """The value of the one sample with this name and these labels; None if there is none."""
        found = [one.value for one in self.all if one.name == name and labels.items() <= one.labels.items()]
        assert len(found) < 2
        return found[0] if found else None


def scrape(served):
    return Samples(scrape_text(url_of(served))[0])


def scrape_when(served, is_there):
    """A scrape that finds something: calls are counted when they have ended, which is after their replies."""
    asyncio.run(until(lambda: is_there(scrape(served))))
    return scrape(served)


@pytest.fixture
def measured(serve):
    return serve(http_port=0)


def method(name):
    return f"lightning_store.v1.LightningStoreService/{name}"


# --- What is measured ------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_method_and_code_alone_and_in_sessions(measured):
    async def calls():
        async with LightningStoreClient(measured.server.endpoint) as client:
            await client.enqueue_rollout("task")

    asyncio.run(calls())
    measured.call("GetStatistics", server_pb2.GetStatisticsRequest())
    measured.failure("StartAttempt", rollout_pb2.StartAttemptRequest(request_id="a", rollout_id="ro-no"))
    counted = "rpc_server_call_duration_seconds_count"
    ended = {"EnqueueRollouts": "OK", "GetStatistics": "OK", "StartAttempt": "NOT_FOUND"}

    def has_all(found):
        counts = [found(counted, rpc_method=method(name), rpc_response_status_code=ended[name]) for name in ended]
        return counts == [1, 1, 1] and found("lightning_store_calls_under_way", kind="calls") == 0

    found = scrape_when(measured, has_all)
    assert has_all(found)
    assert found("lightning_store_calls_under_way", kind="calls") == 0
    assert found("lightning_store_calls_limit", kind="stream_queries") == 256


def test_the_way_of_rollouts_is_measured(measured):
    async def way(store):
        await store.enqueue_rollout("a", mode="train")
        await store.enqueue_rollout("b", mode="val", config=RolloutConfig(max_attempts=2, retry_condition=["failed"]))
        await store.enqueue_rollout("c")
        first = await store.dequeue_rollout(worker_id="w")
        await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="succeeded")
        await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="succeeded")  # no news
        for _ in range(2):
            begun = await store.dequeue_rollout(worker_id="w")
            if begun.input == "c":
                await store.update_attempt(begun.rollout_id, begun.attempt.attempt_id, status="succeeded")
                begun = await store.dequeue_rollout(worker_id="w")
            await store.update_attempt(begun.rollout_id, begun.attempt.attempt_id, status="failed")

    asyncio.run(way(measured.store))
    found = scrape(measured)
    assert found("lightning_store_rollouts", status="succeeded", mode="train") == 1
    assert found("lightning_store_rollouts", status="failed", mode="val") == 1
    assert found("lightning_store_queue_rollouts", mode="train") == 0
    assert found("lightning_store_rollouts_queued_total") == 4
    assert found("lightning_store_attempts_begun_total", kind="first") == 3
    assert found("lightning_store_attempts_begun_total", kind="retry") == 1
    assert found("lightning_store_attempts_ended_total", status="succeeded") == 2
    assert found("lightning_store_attempts_ended_total", status="failed") == 2
    assert found("lightning_store_rollouts_ended_total", mode="train", status="succeeded") == 1
    assert found("lightning_store_rollouts_given_up_total", reason="failed") == 1
    assert found("lightning_store_rollout_queue_duration_seconds_count", mode="train") == 1
    assert found("lightning_store_rollout_duration_seconds_count", mode="val", status="failed") == 1
    assert found("lightning_store_workers", status="idle") == 1
    assert found("lightning_store_queue_oldest_seconds", mode="train") == 0
    assert found("lightning_store_commit_duration_seconds_count") >= 9


def test_repeated_requests_are_counted(measured):
    request = rollout_pb2.StartRolloutRequest(request_id="once")
    request.rollout.input_json = "1"
    for _ in range(3):
        measured.call("StartRollout", request)
    found = scrape(measured)
    assert found("lightning_store_replies_recorded_total") == 1
    assert found("lightning_store_replies_replayed_total") == 2


def test_spans_of_no_interest_are_signs_of_life_and_counted_and_not_stored(serve):
    served = serve(InMemoryLightningStore(drop_spans=["noise", "a\ud800"]), http_port=0)
    asyncio.run(_noisy(served))
    found = scrape(served)
    assert found("lightning_store_spans_dropped_total") == 4
    assert found("lightning_store_spans_stored_total") == 1


async def _noisy(served):
    async with LightningStoreClient(served.server.endpoint) as client:
        started = await client.start_rollout("task")
        ids = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id, "trace_id": "1" * 32}
        noise = Span(**ids, sequence_id=5, span_id="1" * 16, name="noise")
        assert [await client.add_span(noise), await client.add_span(noise)] == [noise, noise]
        assert (await client.get_rollout_by_id(started.rollout_id)).status == "running"
        odd = noise.model_copy(update={"name": "a\udfff", "sequence_id": 6})
        kept = noise.model_copy(update={"name": "act", "sequence_id": 9})
        assert await client.add_many_spans([odd, kept]) == [odd, kept]
        assert await client.get_next_span_sequence_id(started.rollout_id, ids["attempt_id"]) == 10
        await asyncio.to_thread(_export, served, {ROLLOUT_ID: ids["rollout_id"], ATTEMPT_ID: ids["attempt_id"]})
        assert [span.name for span in await client.query_spans(started.rollout_id)] == ["act"]


def _export(served, labels):
    resource = Resource.create(labels)
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(served.server.otlp_traces_endpoint())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("test").start_span("noise").end()
    provider.shutdown()


def test_no_id_becomes_a_label(measured):
    async def way(store):
        for number in range(30):
            started = await store.start_rollout(f"task {number}", worker_id=f"worker-{number}")
            await store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")

    asyncio.run(way(measured.store))
    text, _ = scrape_text(url_of(measured))
    before = len(text.splitlines())
    asyncio.run(way(measured.store))
    for path in ("/x1", "/x2", "/%ff"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            scrape_text(url_of(measured).replace("/metrics", path))
        caught.value.close()
    text, _ = scrape_text(url_of(measured))
    assert not re.search(r"(ro|at|rs)-[0-9a-f]{6}|worker-\d|task|/x1", text)
    assert len(text.splitlines()) < before + 60  # of two more routes and statuses, at most


def test_a_server_in_a_database_measures_the_disk_and_its_groups(tmp_path):
    async def scenario():
        store = SqliteEngineStore(tmp_path / "store.db", size_bytes_max=10**9)
        server = GrpcServer(store, ServerConfig(port=0, http_port=0))
        await server.start()
        try:
            await asyncio.gather(*(store.enqueue_rollout(str(number), mode="test") for number in range(20)))
            url = f"http://127.0.0.1:{server.bound_http_port}/metrics"
            found = Samples((await asyncio.to_thread(scrape_text, url))[0])
        finally:
            await server.stop(0)
            store.close()
        assert found("lightning_store_queue_rollouts", mode="test") == 20
        assert found("lightning_store_transaction_operations_sum") == 20
        assert found("lightning_store_transaction_operations_count") < 20
        assert found("lightning_store_disk_limit_bytes") == 10**9
        assert found("lightning_store_disk_used_bytes") > 0

    asyncio.run(scenario())


def test_somebody_else_s_store_has_the_gauges_that_it_counts(serve, hooked):
    served = serve(hooked(InMemoryLightningStore()), http_port=0)
    asyncio.run(served.store.enqueue_rollout("task"))
    found = scrape(served)
    assert found("lightning_store_queue_rollouts", mode="none") == 1
    assert found("lightning_store_commit_duration_seconds_count") is None


def test_a_scrape_expires_nothing_and_so_waits_for_no_writer(measured):
    async def fill(store):
        config = RolloutConfig(timeout_seconds=1e-6)
        return await store.start_rollout("task", config=config)

    asyncio.run(fill(measured.store))
    before = scrape(measured)("lightning_store_commit_duration_seconds_count")
    found = scrape(measured)
    assert found("lightning_store_commit_duration_seconds_count") <= before + 1  # of the timer, at most


def test_two_servers_in_one_process_count_apart(serve):
    first, second = serve(http_port=0), serve(http_port=0)
    first.call("GetStatistics", server_pb2.GetStatisticsRequest())
    labels = {"rpc_method": method("GetStatistics")}
    assert scrape(first)("rpc_server_call_duration_seconds_count", **labels) == 1
    assert scrape(second)("rpc_server_call_duration_seconds_count", **labels) is None
    assert not any(family.name.startswith(("lightning", "rpc")) for family in REGISTRY.collect())


def test_metrics_can_be_switched_off(serve):
    served = serve(http_port=0, metrics=False)
    with pytest.raises(urllib.error.HTTPError) as caught:
        scrape_text(url_of(served))
    with caught.value:
        assert caught.value.code == 404


def test_openmetrics_is_spoken_to_those_who_ask(measured):
    text, content_type = scrape_text(url_of(measured), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


# --- Prometheus's own tools ------------------------------------------------------------------------------------------


def tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (Debian, Ubuntu: apt install prometheus)")
    return found


def names_in(text):
    return set(re.findall(r"\b(?:lightning_store|rpc_server|http_server|process)_[a-z_]+", text)) - {"rpc_server"}


def told_names(measured, tmp_path):
    """All names that a server can have."""
    test_the_way_of_rollouts_is_measured(measured)
    measured.call("GetStatistics", server_pb2.GetStatisticsRequest())
    text, _ = scrape_text(url_of(measured))
    disk = {f"lightning_store_disk_{name}_bytes" for name in ("used", "file", "free", "limit")}
    return (
        {sample.name for sample in Samples(text).all} | disk | {"lightning_store_certificate_expiry_timestamp_seconds"}
    )


def test_alerts_and_board_ask_for_metrics_that_there_are(measured, tmp_path):
    told = told_names(measured, tmp_path)
    board = json.loads((DEPLOY / "grafana" / "lightning-store.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += re.findall(
        r"expr: (.*?)\n +for:|expr: (.*?)\n +labels:", (DEPLOY / "prometheus/alerts.yml").read_text(), re.DOTALL
    )[0]
    assert len(board["panels"]) > 10
    for expression in asked:
        assert names_in(expression) <= told
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    expressions = re.sub(r"^ *(?:summary|reason|action|#).*$", "", alerts, flags=re.MULTILINE)
    assert names_in(expressions) - {"rpc_response_status_code", "rpc_method"} <= told


def test_each_alert_has_its_reason():
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    count = alerts.count("- alert: ")
    assert count > 8
    for name in ("summary", "reason", "action"):
        assert len(re.findall(rf"^ +{name}: ", alerts, re.MULTILINE)) == count


def test_promtool_finds_no_fault(measured):
    promtool = tool("promtool")
    test_the_way_of_rollouts_is_measured(measured)
    text, _ = scrape_text(url_of(measured))
    checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    rules = subprocess.run(
        [promtool, "check", "rules", DEPLOY / "prometheus" / "alerts.yml"], capture_output=True, text=True, check=False
    )
    assert rules.returncode == 0, rules.stderr
    count = (DEPLOY / "prometheus" / "alerts.yml").read_text().count("- alert: ")
    assert f"{count} rules found" in rules.stdout


@pytest.mark.slow
def test_prometheus_scrapes_a_server(measured, tmp_path):
    prometheus = tool("prometheus")
    address = url_of(measured).removeprefix("http://").removesuffix("/metrics")
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    config = config.replace("localhost:4318", address).replace("15s", "200ms")
    (tmp_path / "prometheus.yml").write_text(config)
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asyncio.run(measured.store.enqueue_rollout("task", mode="train"))
    with subprocess.Popen(
        [
            prometheus,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert wait_for_value(f"http://127.0.0.1:{port}", 'lightning_store_queue_rollouts{mode="train"}') == "1"
        finally:
            process.terminate()


def wait_for_value(base, query):
    """The value, once Prometheus has one."""
    url = f"{base}/api/v1/query?query={urllib.parse.quote(query)}"
    until = time.perf_counter() + 30
    while time.perf_counter() < until:
        try:
            with urllib.request.urlopen(url, timeout=SAFETY_SECONDS) as reply:
                result = json.load(reply)["data"]["result"]
        except OSError:
            continue
        if result:
            return result[0]["value"][1]
    return None


def test_an_embedded_server_is_measured_too():
    async def scenario():
        config = ServerConfig(http_port=0)
        async with LightningStoreServer(InMemoryLightningStore(), port=0, config=config) as server:
            await server.enqueue_rollout("task")  # calls the store directly
            url = server.otlp_traces_endpoint().removesuffix("/v1/traces") + "/metrics"
            return Samples((await asyncio.to_thread(scrape_text, url))[0])

    assert asyncio.run(scenario())("lightning_store_rollouts_queued_total") == 1
