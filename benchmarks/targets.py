"""What the store promises about its speed, as bounds that a run is held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.records import Record, Spread, Transport, ratio
from benchmarks.sides import OURS, PEER

Relation = Literal["times", "share", "at most"]
"""Ours over the peer's at least, ours over the peer's at most, or our own value at most."""


@dataclass(frozen=True, slots=True)
class Target:
    """One bound on one metric of one cell."""

    cell: str
    metric: str
    relation: Relation
    bound: float
    callers: int | None = None
    """None: at any number of callers."""
    transport: Transport = "wire"

    def applies_to(self, record: Record) -> bool:
        """Whether a record of ours is held against this."""
        at = self.callers is None or self.callers == record.callers
        return at and (record.cell, record.transport) == (self.cell, self.transport) and self.metric in record.metrics

    def __str__(self) -> str:
        signs = {"times": f">= {self.bound:g} x peer", "share": f"<= {self.bound:g} x peer"}
        return f"{self.metric} {signs.get(self.relation, f'<= {self.bound:g}')}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target held against a run."""

    record: Record
    target: Target
    value: Spread
    """The ratio, or for ``at most`` the metric itself."""

    @property
    def is_met(self) -> bool:
        """By the median."""
        return self.value.median >= self.target.bound if self.target.relation == "times" else not self._is_above

    @property
    def _is_above(self) -> bool:
        return self.value.median > self.target.bound


_SMALL_CALLS: Final = ("enqueue", "dequeue", "update_attempt", "get_next_span_sequence_id", "get_rollout_by_id")
_IN_PROCESS: Final = (*_SMALL_CALLS, "add_span", "add_many_spans", "lifecycle")
_GROWING: Final = ("get_rollout_by_id", "enqueue", "dequeue", "update_attempt")

TARGETS: Final[Sequence[Target]] = (
    *(Target(cell, "calls_per_second", "times", 15, callers=64) for cell in _SMALL_CALLS),
    *(Target(cell, "p50_ms", "share", 0.4, callers=1) for cell in _SMALL_CALLS),
    Target("add_span", "calls_per_second", "times", 25, callers=64),
    Target("add_many_spans", "calls_per_second", "times", 100),
    Target("add_many_spans_otlp", "calls_per_second", "times", 5),
    Target("lifecycle", "calls_per_second", "times", 30, callers=64),
    *(Target(cell, "calls_per_second", "times", 2, transport="process") for cell in _IN_PROCESS),
    Target("wait_wake", "p50_ms", "at most", 3),
    Target("wait_idle", "server_cpu_percent", "at most", 1),
    Target("wait_idle", "client_cpu_percent", "at most", 1),
    Target("span_memory", "times_serialized", "at most", 1.25),
    *(Target(f"growth_{cell}", "p50_growth", "at most", 1.2) for cell in _GROWING),
    Target("growth_pause", "longest_pause_ms", "at most", 50),
    Target("serve_ready", "seconds", "at most", 1),
    Target("import_client", "seconds", "at most", 0.4),
)


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """Every target that this run says something about. A failed cell of either side says nothing."""
    found = list(records)
    peers = {record.key: record for record in found if record.side == PEER}
    held: list[Verdict] = []
    for record in found:
        if record.side != OURS:
            continue
        for target in TARGETS:
            value = _value(target, record, peers.get(record.key)) if target.applies_to(record) else None
            if value is not None:
                held.append(Verdict(record, target, value))
    return held


def _value(target: Target, record: Record, peer: Record | None) -> Spread | None:
    ours = record.metrics[target.metric]
    if target.relation == "at most":
        return ours
    if peer is None or target.metric not in peer.metrics:
        return None
    return ratio(ours, peer.metrics[target.metric])
