"""What the store promises about its speed, as bounds that a run is held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.cells.contention import HELD_CELL, PAIR_CELL
from benchmarks.records import Record, Spread, Transport, ratio
from benchmarks.sides import HELD, OURS, PAIR, PEER, POSTGRES, SQLITE

Relation = Literal["times", "share", "at most"]
"""A side's value over another side's at least, over it at most, or a side's own value at most."""


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
    side: str = OURS
    other: str = PEER
    """The side that it is compared with."""

    def applies_to(self, record: Record) -> bool:
        """Whether a record is held against this."""
        at = self.callers is None or self.callers == record.callers
        same = (record.cell, record.transport, record.side) == (self.cell, self.transport, self.side)
        return at and same and self.metric in record.metrics

    def __str__(self) -> str:
        signs = {"times": f">= {self.bound:g} x {self.other}", "share": f"<= {self.bound:g} x {self.other}"}
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
_DURABLE: Final = ("enqueue", "dequeue", "update_attempt", "add_many_spans", "lifecycle")
_ON_POSTGRES: Final = ("enqueue", "dequeue", "add_span", "lifecycle")
_READ: Final = ("get_rollout_by_id", "query_spans", "query_rollouts")
_GROWING: Final = ("get_rollout_by_id", "enqueue", "dequeue", "update_attempt")

TARGETS: Final[Sequence[Target]] = (
    *(Target(cell, "calls_per_second", "times", 15, callers=64) for cell in _SMALL_CALLS),
    *(Target(cell, "p50_ms", "share", 0.4, callers=1) for cell in _SMALL_CALLS),
    Target("add_span", "calls_per_second", "times", 25, callers=64),
    Target("add_many_spans", "calls_per_second", "times", 150, callers=64),
    Target("query_spans", "calls_per_second", "times", 4),
    Target("query_rollouts", "calls_per_second", "times", 5),
    Target("trainer_add_span", "calls_per_second", "times", 5),
    Target("trainer_query_spans", "calls_per_second", "times", 5),
    Target("trainer_query_batch", "client_cpu_us", "at most", 100_000),
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
    *(Target(cell, "calls_per_second", "times", 0.5, 64, side=SQLITE, other=OURS) for cell in _DURABLE),
    *(Target(cell, "calls_per_second", "times", 0.5, side=SQLITE, other=OURS) for cell in _READ),
    Target("add_span", "calls_per_second", "times", 0.3, 64, side=SQLITE, other=OURS),
    Target("lifecycle", "calls_per_second", "times", 12, 64, side=SQLITE),
    Target("runners", "rollouts_per_second", "times", 0.5, side=SQLITE, other=OURS),
    Target("serve_ready", "seconds", "at most", 2, side=SQLITE),
    *(Target(cell, "calls_per_second", "times", 0.3, 64, side=POSTGRES, other=OURS) for cell in _ON_POSTGRES),
    Target("lifecycle", "calls_per_second", "times", 8, 64, side=POSTGRES),
    Target(HELD_CELL, "late_calls_per_second", "times", 0.7, side=HELD, other=POSTGRES),
    Target(PAIR_CELL, "server_cpu_us", "share", 1.2, side=PAIR, other=POSTGRES),
)


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """Every target that this run says something about. A failed cell of either side says nothing."""
    found = list(records)
    by_side = {(record.side, record.key): record for record in found}
    held: list[Verdict] = []
    for record in found:
        for target in TARGETS:
            other = by_side.get((target.other, record.key))
            value = _value(target, record, other) if target.applies_to(record) else None
            if value is not None:
                held.append(Verdict(record, target, value))
    return held


def _value(target: Target, record: Record, other: Record | None) -> Spread | None:
    value = record.metrics[target.metric]
    if target.relation == "at most":
        return value
    if other is None or target.metric not in other.metrics:
        return None
    return ratio(value, other.metrics[target.metric])
