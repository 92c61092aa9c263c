"""What remains of a run: a log of its steps, and a plot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from pydantic import BaseModel

from lightning_store.model import GroupStatus

LOG_NAME: Final = "steps.jsonl"
PLOT_NAME: Final = "grpo.png"

_COLOURS: Final = {"whole": "#5b8c3e", "partial": "#e0a030", "failed": "#c4571b"}


class SampleRecord(BaseModel):
    """A sample that was trained on."""

    policy_version: int
    staleness: int
    """Policy versions between the one that made it and the one that was trained."""
    reward: float


class GroupRecord(BaseModel):
    """A group that was taken."""

    group_id: str
    status: GroupStatus


class StepRecord(BaseModel):
    """One line of the log. A step that a killed trainer has taken may be taken again; then the later line counts."""

    step: int
    samples: list[SampleRecord]
    groups: list[GroupRecord]
    stale: int
    """Samples that were left out for being too old."""


class Report:
    """The log in a directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOG_NAME

    def add(self, record: StepRecord) -> None:
        with self._path.open("a", encoding="utf-8") as log:
            log.write(record.model_dump_json() + "\n")

    def steps(self) -> list[StepRecord]:
        """The steps that count, in order."""
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        records = []
        for line in lines:
            try:
                records.append(StepRecord.model_validate_json(line))
            except ValueError:  # its writer was killed
                continue
        return sorted({record.step: record for record in records}.values(), key=lambda record: record.step)


def write_plot(path: Path, steps: Sequence[StepRecord]) -> None:
    """Reward by policy version, staleness, and what became of groups, as a PNG."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # the backend has to be chosen before

    rewards: dict[int, list[float]] = defaultdict(list)
    for record in steps:
        for sample in record.samples:
            rewards[sample.policy_version].append(sample.reward)
    figure, (upper, middle, lower) = pyplot.subplots(3, 1, figsize=(8, 9), layout="constrained")
    versions = sorted(rewards)
    upper.plot(versions, [float(np.mean(rewards[one])) for one in versions], color="#1f5f9e", linewidth=2)
    upper.set(xlabel="policy version", ylabel="mean reward", ylim=(0, 1.02), title="Reward by policy version")
    staleness = Counter(sample.staleness for record in steps for sample in record.samples)
    middle.bar([str(one) for one in sorted(staleness)], [staleness[one] for one in sorted(staleness)], color="#1f5f9e")
    middle.bar(["too old"], [sum(record.stale for record in steps)], color="#c4571b")
    middle.set(xlabel="policy versions behind", ylabel="samples", title="Staleness")
    numbers, bottom = [record.step for record in steps], np.zeros(len(steps))
    for status, colour in _COLOURS.items():
        counts = np.array([sum(group.status == status for group in record.groups) for record in steps])
        lower.bar(numbers, counts, bottom=bottom, color=colour, label="dropped" if status == "failed" else status)
        bottom += counts
    lower.set(xlabel="step", ylabel="groups", title="Groups")
    lower.legend(loc="lower right")
    for axes in (upper, middle, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
