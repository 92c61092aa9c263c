"""Metrics of one server, in Prometheus's format: a registry of its own, observers that fill it, and what is read at the
moment of a scrape. Labels have a bounded set of values: methods, status codes, modes; never an id."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPMethod
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lightning_store.backends.records import QUEUE_LOOK
from lightning_store.engine.observing import TransactionDetails
from lightning_store.lifecycle import QUEUED
from lightning_store.store import LightningStore, LightningStoreStatistics
from lightning_store.wire.methods import BY_PATH
from lightning_store_server.admission import Admission
from lightning_store_server.observers import CallDetails, HttpDetails
from lightning_store_server.record_store import engine_of
from lightning_store_server.tallies import Counters, Distribution, Histograms

CALL_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from a call that is answered from memory to one that waits."""
AGE_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Seconds that rollouts wait and take."""
COMMIT_BUCKETS: Final = (0.00001, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Seconds: from memory to a disk that is slow to sync."""
GROUP_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
STATISTICS_SECONDS: Final = 5.0
"""How long somebody else's store may take to count what it holds."""

MODES: Final = {None: "none", "train": "train", "val": "val", "test": "test"}
OTHER: Final = "other"
"""What any value becomes that is not one of a known few."""


class StoreMetrics(Collector):
    """What a store of ours tells of its transactions. It may be told on any thread."""

    def __init__(self) -> None:
        def counters(name: str, text: str, labels: Sequence[str] = ()) -> Counters:
            return Counters(f"lightning_store_{name}", text, labels)

        def histograms(name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> Histograms:
            return Histograms(f"lightning_store_{name}", text, bounds, labels)

        self._lock = threading.Lock()
        self._operations = histograms("transaction_operations", "Operations of one transaction.", GROUP_BUCKETS)
        self._commits = histograms("commit_duration_seconds", "What the commit of a transaction took.", COMMIT_BUCKETS)
        self._recorded = counters("replies_recorded", "Replies that were recorded for repeated requests.")
        self._replayed = counters("replies_replayed", "Requests that were answered from a recorded reply.")
        self._queued = counters("rollouts_queued", "Rollouts that were put into the queue, also again.")
        self._spans = counters("spans_stored", "Spans that were stored.")
        self._span_bytes = counters("span_bytes_stored", "Bytes of spans that were stored.")
        self._dropped = counters("spans_dropped", "Spans that were not stored for their names.")
        self._evicted = counters("rollouts_evicted", "Rollouts whose spans were dropped for want of room.")
        self._begun = counters("attempts_begun", "Attempts that were begun: first ones and retries.", ["kind"])
        self._attempts = counters("attempts_ended", "Attempts that ended, by outcome.", ["status"])
        self._rollouts = counters("rollouts_ended", "Rollouts that ended, by outcome.", ["mode", "status"])
        self._given_up = counters(
            "rollouts_given_up", "Rollouts that failed, by the outcome of their last attempt.", ["reason"]
        )
        self._waited = histograms(
            "rollout_queue_duration_seconds",
            "From the making of a rollout to its first attempt.",
            AGE_BUCKETS,
            ["mode"],
        )
        self._lasted = histograms(
            "rollout_duration_seconds", "From the making of a rollout to its end.", AGE_BUCKETS, ["mode", "status"]
        )
        self._of_each_transaction = self._operations.at(), self._commits.at()
        for kind in ("first", "retry"):
            self._begun.add(0, kind)

    def transaction(self, details: TransactionDetails) -> None:
        operations, commits = self._of_each_transaction
        with self._lock:
            operations.observe(details.operations)
            commits.observe(details.commit_seconds)
            for counters, amount in (
                (self._recorded, details.replies_recorded),
                (self._replayed, details.replies_replayed),
                (self._queued, details.rollouts_queued),
                (self._spans, details.spans),
                (self._span_bytes, details.span_bytes),
                (self._dropped, details.spans_dropped),
            ):
                if amount:
                    counters.add(amount)
            if details.begun or details.ended_attempts or details.ended_rollouts:
                self._count_transitions(details)

    def _count_transitions(self, details: TransactionDetails) -> None:
        for begun in details.begun:
            self._begun.add(1, "first" if begun.sequence_id == 1 else "retry")
            if begun.sequence_id == 1:
                self._waited.at(_mode(begun.mode)).observe(begun.age_seconds)
        for attempt in details.ended_attempts:
            self._attempts.add(1, attempt.status)
        for ended in details.ended_rollouts:
            self._rollouts.add(1, _mode(ended.mode), ended.status)
            self._lasted.at(_mode(ended.mode), ended.status).observe(ended.age_seconds)
            if ended.status == "failed":
                self._given_up.add(1, ended.attempt_status or OTHER)

    def spans_evicted(self, rollouts: int) -> None:
        with self._lock:
            self._evicted.add(rollouts)

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            return [one.collect() for one in vars(self).values() if isinstance(one, (Counters, Histograms))]

    def describe(self) -> Iterable[Metric]:
        return ()


class ServerMetrics:
    """The metrics of one server.

    Args:
        store: What is served. A store of ours tells of its transactions from now on.
        admission: Knows the calls that are under way.
        version: Of the program.
        rejected_spans: Tells how many spans OTLP has rejected.
        http_connections: Tells how many connections the HTTP side has.
        sessions: Tells how many sessions are open.
        certificate_expires: Tells when the certificate expires, in seconds since the epoch; None if there is none.
    """

    def __init__(
        self,
        store: LightningStore,
        admission: Admission,
        *,
        version: str,
        rejected_spans: Callable[[], int],
        http_connections: Callable[[], int],
        sessions: Callable[[], int],
        certificate_expires: Callable[[], float] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._calls = Histograms(
            "rpc_server_call_duration_seconds",
            "Duration of calls, waits included; as OpenTelemetry's rpc.server.call.duration.",
            CALL_BUCKETS,
            ["rpc_system_name", "rpc_method", "rpc_response_status_code"],
        )
        self._requests = Histograms(
            "http_server_request_duration_seconds",
            "Duration of requests over HTTP; as OpenTelemetry's http.server.request.duration.",
            CALL_BUCKETS,
            ["http_request_method", "http_route", "http_response_status_code"],
        )
        self._of_calls: dict[tuple[str, str], Distribution] = {}
        self._store = store
        self._engine = engine_of(store)
        if self._engine is not None:
            self._engine.observer = of_store = StoreMetrics()
            self.registry.register(of_store)
        self._gauges = _Gauges()
        self.registry.register(self._gauges)
        self.registry.register(_Families(self._calls, self._requests))
        self.registry.register(
            _ServerState(admission, version, rejected_spans, http_connections, sessions, certificate_expires)
        )
        ProcessCollector(registry=self.registry)

    def observe_call(self, details: CallDetails) -> None:
        """Of a call over gRPC."""
        key = (details.method, details.code)
        of_call = self._of_calls.get(key)
        if of_call is None:
            method = details.method.removeprefix("/") if details.method in BY_PATH else OTHER
            of_call = self._calls.at("grpc", method, details.code)
            if method != OTHER:
                self._of_calls[key] = of_call
        of_call.observe(details.seconds)

    def observe_http(self, details: HttpDetails) -> None:
        """Of a request over HTTP."""
        method = details.method if details.method in HTTPMethod.__members__ else "_OTHER"
        self._requests.at(method, details.route or OTHER, str(details.status)).observe(details.seconds)

    def routes(self) -> list[BaseRoute]:
        """``/metrics``."""
        return [Route("/metrics", self._scrape)]

    async def _scrape(self, request: Request) -> Response:
        await self._refresh()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.registry), headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    async def _refresh(self) -> None:
        if self._engine is not None:
            gauges, memory, disk = await self._engine.gauges(), self._engine.memory, self._engine.disk_use
            self._gauges.families = [
                *_queue(gauges.queue.rollouts, gauges.queue.workers),
                _ages(gauges.queue.oldest_by_mode, gauges.time),
                _gauge("attempts", "Attempts that are stored.", gauges.counts.attempts),
                _gauge("spans", "Spans that are stored.", gauges.counts.spans),
                _gauge("resources", "Resources that are stored.", gauges.counts.resources),
                _gauge("span_bytes", "Bytes of the spans that are stored.", gauges.counts.span_bytes),
                _gauge("stored_bytes", "Bytes of all that is stored.", gauges.counts.bytes),
            ]
            if memory is not None:
                self._gauges.families += [
                    _gauge("memory_limit_bytes", "Above this, what would store more is refused.", memory.limit_bytes),
                    _gauge("eviction_threshold_bytes", "Above this, spans are dropped.", memory.eviction_bytes),
                ]
            if disk is not None:
                self._gauges.families += [
                    _gauge("disk_used_bytes", "What the data takes of the disk.", disk.used_bytes),
                    _gauge("disk_file_bytes", "What the files take, the log included.", disk.file_bytes),
                    _gauge("disk_free_bytes", "What is left on the disk.", disk.free_bytes),
                ]
                if disk.limit_bytes is not None:
                    text = "Above this, what would store more is refused."
                    self._gauges.families.append(_gauge("disk_limit_bytes", text, disk.limit_bytes))
            return
        async with asyncio.timeout(STATISTICS_SECONDS):
            statistics = await self._store.statistics()
        self._gauges.families = list(_of_statistics(statistics))


class _Families(Collector):
    """Histograms as a collector."""

    def __init__(self, *histograms: Histograms) -> None:
        self._histograms = histograms

    def collect(self) -> Iterable[Metric]:
        return [one.collect() for one in self._histograms]

    def describe(self) -> Iterable[Metric]:
        return ()


class _Gauges(Collector):
    """What the last look at the store has found."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self.families

    def describe(self) -> Iterable[Metric]:
        return ()


class _ServerState(Collector):
    """What the server has in memory."""

    def __init__(
        self,
        admission: Admission,
        version: str,
        rejected_spans: Callable[[], int],
        http_connections: Callable[[], int],
        sessions: Callable[[], int],
        certificate_expires: Callable[[], float] | None,
    ) -> None:
        self._admission = admission
        self._certificate_expires = certificate_expires
        self._version = version
        self._rejected_spans = rejected_spans
        self._http_connections = http_connections
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("lightning_store_server", "The program.", value={"version": self._version})
        under_way = GaugeMetricFamily(
            "lightning_store_calls_under_way", "Calls that are under way, by kind.", labels=["kind"]
        )
        held = GaugeMetricFamily(
            "lightning_store_call_held_bytes", "Bytes of requests and replies that are held, by kind.", labels=["kind"]
        )
        limit = GaugeMetricFamily("lightning_store_calls_limit", "How many there may be, by kind.", labels=["kind"])
        for kind, lane in self._admission.lanes.items():
            under_way.add_metric([kind], lane.count)
            held.add_metric([kind], lane.request_bytes + lane.reply_bytes)
            limit.add_metric([kind], lane.count_max)
        yield from (under_way, held, limit)
        yield _gauge("sessions", "Sessions that are open.", self._sessions())
        yield _gauge("http_connections", "Connections of the HTTP side.", self._http_connections())
        if self._certificate_expires is not None:
            yield _gauge("certificate_expiry_timestamp_seconds", "When it expires.", self._certificate_expires())
        rejected = CounterMetricFamily("lightning_store_spans_rejected", "Spans that came over OTLP and were rejected.")
        rejected.add_metric([], self._rejected_spans())
        yield rejected

    def describe(self) -> Iterable[Metric]:
        return ()


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"lightning_store_{name}", text, value=value)


def _mode(mode: str | None) -> str:
    return MODES.get(mode, OTHER)


def _queue(rollouts: Mapping[tuple[str, str | None], int], workers: Mapping[str, int]) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "lightning_store_rollouts", "Rollouts that are stored, by status and mode.", labels=["status", "mode"]
    )
    queue = dict.fromkeys(MODES.values(), 0)
    totals: dict[tuple[str, str], int] = {}
    for (status, given), count in rollouts.items():
        mode = _mode(given)
        totals[status, mode] = totals.get((status, mode), 0) + count
        if status in QUEUED:
            queue[mode] = queue.get(mode, 0) + count
    for labels, count in totals.items():
        family.add_metric(labels, count)
    yield family
    depth = GaugeMetricFamily("lightning_store_queue_rollouts", "Rollouts in the queue, by mode.", labels=["mode"])
    for name, count in queue.items():
        depth.add_metric([name], count)
    yield depth
    of_workers = GaugeMetricFamily("lightning_store_workers", "Workers that are known, by status.", labels=["status"])
    for status, count in workers.items():
        of_workers.add_metric([status], count)
    yield of_workers


def _ages(oldest_by_mode: Mapping[str | None, float], now: float) -> Metric:
    text = f"Age of the first rollout of each mode in the queue, among the first {QUEUE_LOOK}; 0 if there is none."
    family = GaugeMetricFamily("lightning_store_queue_oldest_seconds", text, labels=["mode"])
    ages = dict.fromkeys(MODES.values(), 0.0)
    for mode, time in oldest_by_mode.items():
        ages[_mode(mode)] = max(ages.get(_mode(mode), 0.0), now - time)
    for name, age in ages.items():
        family.add_metric([name], age)
    return family


def _of_statistics(statistics: LightningStoreStatistics) -> Iterator[Metric]:
    """Of somebody else's store."""
    yield from _queue({(status, None): n for status, n in statistics.get("rollouts_by_status", {}).items()}, {})
    for name, text, value in (
        ("attempts", "Attempts that are stored.", statistics.get("total_attempts")),
        ("spans", "Spans that are stored.", statistics.get("total_spans")),
        ("resources", "Resources that are stored.", statistics.get("total_resources")),
        ("span_bytes", "Bytes of the spans that are stored.", statistics.get("total_span_bytes")),
        ("stored_bytes", "Bytes of all that is stored.", statistics.get("total_bytes")),
    ):
        if value is not None:
            yield _gauge(name, text, value)
