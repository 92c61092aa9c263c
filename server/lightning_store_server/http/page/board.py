"""The overview's numbers, made of what the digest knows."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lightning_store.lifecycle import ACTIVE, QUEUED
from lightning_store_server.http.page.charts import Chart, Point, bar_chart, line_chart, percentile
from lightning_store_server.http.page.digest import SLOWEST, AtWork, Ended, GroupState, State, Version

VERSIONS_SHOWN: Final = 40
"""Policy versions of the chart, the last ones."""
BINS: Final = 20
"""Without policy versions rewards are shown by time, in so many parts."""
MINUTES: Final = 30
CAUSES: Final = 8
MODES: Final = ("train", "val", "test", "no mode")


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """How groups stand."""

    title: str
    whole: int
    partial: int
    open: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Reward:
    """Rewards of one mode."""

    mode: str
    count: int
    mean: float
    spread: float


@dataclass(frozen=True, slots=True)
class Times:
    """Percentiles of some durations."""

    name: str
    count: int
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Failures of one kind."""

    reason: str
    line: str
    count: int
    rollout_id: str
    """One of them, the last."""


class Board:
    """Everything that the overview shows."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.now = state.now
        self.window = len(state.ended)
        self.looked = state.looked
        self._groups(state)
        self._rewards(state)
        self._staleness(state)
        self._slots(state)
        self._queue(state)
        self._durations(state)
        self._failures(state.ended)
        self._flow(state)

    def _groups(self, state: State) -> None:
        groups = state.groups.values()
        self.has_groups = bool(groups)
        moved = max((one.time for one in state.ended), default=state.now)
        latest = max((one for one in state.versions if one.time <= moved), key=lambda one: one.time, default=None)
        self.latest: Version | None = latest
        ended: dict[str, float] = {}
        for one in state.ended:
            if one.rollout.group_id is not None:
                ended[one.rollout.group_id] = one.time
        self.group_counts: list[GroupCounts] = []
        if latest is not None and latest.policy_version:
            now = [one for one in groups if one.status == "open" or ended.get(one.group_id, 0) >= latest.time]
            self.group_counts.append(_counts(f"since policy version {latest.policy_version}", now))
        self.group_counts.append(_counts(f"of the last {self.window:,} completions", groups))
        opened = [one for one in groups if one.status == "open"]
        self.oldest_open = min(opened, key=lambda one: one.made, default=None)
        self.open_groups = sorted(opened, key=lambda one: one.made)[:SLOWEST]
        self.rollout_counts = Counter[str]()
        for (status, _), count in state.rollouts.items():
            self.rollout_counts[status] += count

    def _rewards(self, state: State) -> None:
        rewarded = [one for one in state.ended if one.reward is not None]
        by_mode: defaultdict[str, list[Ended]] = defaultdict(list)
        for one in rewarded:
            by_mode[one.rollout.mode or "no mode"].append(one)
        modes = sorted(by_mode, key=MODES.index)
        self.rewards = [_reward(mode, by_mode[mode]) for mode in modes]
        versions = {one.policy_version for one in rewarded if one.policy_version}
        self.by_version = len(versions) > 1
        x_name = "policy version" if self.by_version else "part"
        series = [(mode, _by_version(by_mode[mode]) if self.by_version else _by_time(by_mode[mode])) for mode in modes]
        told = "; ".join(
            f"{one.mode}: mean {one.mean:.3f}, spread {one.spread:.3f} of {one.count}" for one in self.rewards
        )
        title = "Reward by policy version" if self.by_version else "Reward in the order of completion"
        self.reward_chart = line_chart(title, told, series, x_name)
        rewards: defaultdict[str, list[float]] = defaultdict(list)
        for one in rewarded:
            if one.rollout.group_id is not None and one.reward is not None:
                rewards[one.rollout.group_id].append(one.reward)
        compared = [some for some in rewards.values() if len(some) > 1]
        self.groups_compared = len(compared)
        self.groups_flat = sum(max(some) - min(some) < 1e-9 for some in compared)

    def _staleness(self, state: State) -> None:
        """How many versions had been published when a rollout ended, that it did not have."""
        counts: Counter[int] = Counter()
        for one in state.ended:
            if not one.consumed or not one.policy_version:
                continue
            newest = max(
                (v.policy_version for v in state.versions if v.run == one.rollout.run and v.time <= one.time),
                default=one.policy_version,
            )
            counts[max(0, newest - one.policy_version)] += 1
        self.staleness_count = counts.total()
        self.staleness_mean = sum(k * n for k, n in counts.items()) / max(1, counts.total())
        self.stale = sum(one.rollout.end_reason == "stale" for one in state.ended)
        self.staleness_chart: Chart | None = None
        if counts:
            values = [(str(k), float(counts[k])) for k in range(max(counts) + 1)]
            summary = ", ".join(f"{count:g} were {k} versions behind" for k, count in values)
            self.staleness_chart = bar_chart("Policy versions behind", summary, values, unit="rollouts")

    def _slots(self, state: State) -> None:
        self.busy = [one for one in state.at_work if not one.wasted]
        self.wasted = [one for one in state.at_work if one.wasted]
        status = Counter(one.status for one in state.workers)
        self.waiting = status["idle"]
        self.unknown = status["unknown"]
        self.slots = [
            ("busy", len(self.busy), "good"),
            ("waiting", self.waiting, "idle"),
            ("wasted", len(self.wasted), "bad"),
            ("silent or unknown", self.unknown, "warn"),
        ]
        total = sum(count for _, count, _ in self.slots)
        self.slots_total = total
        self.slot_parts: list[tuple[str, float, float]] = []
        place = 0.0
        for _, count, kind in self.slots:
            width = 100 * count / total if total else 0.0
            self.slot_parts.append((kind, round(place, 2), round(width, 2)))
            place += width

    def _queue(self, state: State) -> None:
        depth: Counter[str] = Counter()
        for (status, mode), count in state.rollouts.items():
            if status in QUEUED:
                depth[mode or "no mode"] += count
        waits: defaultdict[str, list[float]] = defaultdict(list)
        for one in state.ended:
            if one.claim_seconds is not None:
                waits[one.rollout.mode or "no mode"].append(one.claim_seconds)
        modes = [mode for mode in MODES if mode in depth or mode in waits]
        self.queue = [(mode, depth[mode], times(mode, waits[mode])) for mode in modes]
        self.queue_depth = depth.total()
        oldest = state.oldest_queued_time
        self.queue_age = None if oldest is None else max(0.0, state.now - oldest)

    def _durations(self, state: State) -> None:
        by_mode: defaultdict[str, list[float]] = defaultdict(list)
        for one in state.ended:
            if one.seconds is not None:
                by_mode[one.rollout.mode or "no mode"].append(one.seconds)
        self.durations = [times(mode, some) for mode, some in sorted(by_mode.items())]
        if len(self.durations) > 1:
            self.durations.append(times("all", [each for some in by_mode.values() for each in some]))
        self.slowest: Sequence[AtWork] = self.busy[:SLOWEST] if self.busy else []
        self.at_work_count = sum(self.rollout_counts[status] for status in ACTIVE)

    def _failures(self, ended: Sequence[Ended]) -> None:
        found: dict[tuple[str, str], list[str]] = {}
        for one in ended:
            reason = one.rollout.end_reason
            if reason is not None:
                found.setdefault((reason, one.cause), []).append(one.rollout.rollout_id)
        causes = [Cause(reason, line, len(ids), ids[-1]) for (reason, line), ids in found.items()]
        causes.sort(key=lambda one: -one.count)
        self.failed = sum(one.count for one in causes)
        self.causes, self.causes_more = causes[:CAUSES], max(0, len(causes) - CAUSES)

    def _flow(self, state: State) -> None:
        succeeded = [one for one in state.ended if one.rollout.status == "succeeded"]
        self.produced = len(succeeded)
        self.consumed = sum(one.consumed for one in succeeded)
        self.backlog = self.produced - self.consumed
        minutes = Counter(int((state.now - one.time) // 60) for one in state.ended)
        values = [("now" if k == 0 else f"{k}m ago", float(minutes[k])) for k in reversed(range(MINUTES))]
        self.last_minute = minutes[0]
        self.rate_chart = bar_chart(
            "Completions a minute", f"{minutes[0]} in the last minute", values, unit="completions"
        )


def _counts(title: str, groups: Iterable[GroupState]) -> GroupCounts:
    count = Counter(one.status for one in groups)
    return GroupCounts(title, count["whole"], count["partial"], count["open"], count["dropped"])


def times(name: str, values: Iterable[float]) -> Times:
    """The percentiles of some durations."""
    found = sorted(values)
    return Times(name, len(found), *(percentile(found, share) for share in (0.5, 0.9, 0.95, 0.99)))


def _reward(mode: str, ended: Sequence[Ended]) -> Reward:
    values = [one.reward for one in ended if one.reward is not None]
    return Reward(mode, len(values), statistics.fmean(values), statistics.pstdev(values))


def _point(x: float, ended: Sequence[Ended]) -> Point:
    found = _reward("", ended)
    return Point(x, found.mean, found.spread, found.count)


def _by_version(ended: Sequence[Ended]) -> list[Point]:
    by_version: defaultdict[int, list[Ended]] = defaultdict(list)
    for one in ended:
        if one.policy_version:
            by_version[one.policy_version].append(one)
    return [_point(version, by_version[version]) for version in sorted(by_version)[-VERSIONS_SHOWN:]]


def _by_time(ended: Sequence[Ended]) -> list[Point]:
    size = max(1, -(-len(ended) // BINS))
    parts = [ended[start : start + size] for start in range(0, len(ended), size)]
    return [_point(place + 1, part) for place, part in enumerate(parts)]
