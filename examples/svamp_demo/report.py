"""What remains of a run: a log of JSON lines, a plot, a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from pydantic import BaseModel

LOG_NAME: Final = "log.jsonl"
PLOT_NAME: Final = "reward.png"
SUMMARY_NAME: Final = "summary.json"

_SMOOTH_OVER: Final = 5
"""Iterations that the moving average in the plot covers."""


class IterationRecord(BaseModel):
    """One line of the log."""

    iteration: int
    """From 1; 0 is the state before training."""
    mean_reward: float | None = None
    """Share of right answers among those drawn in this iteration."""
    held_out_accuracy: float | None = None
    """Share of held-out problems whose best answer is right, where it was measured after this iteration."""
    rollouts: int
    second_attempts: int
    """Rollouts that needed more than one attempt."""
    failed: int
    """Rollouts that ended without an answer; they are left out of the gradient."""
    seconds: float


class Summary(BaseModel):
    """The outcome of a run."""

    untrained_accuracy: float
    trained_accuracy: float
    held_out_problems: int
    rollouts: int
    second_attempts: int
    failed: int
    seconds: float


class Report:
    """Writes into one directory, which it makes."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._records: list[IterationRecord] = []
        self.log_path = directory / LOG_NAME
        self.plot_path = directory / PLOT_NAME
        self.log_path.write_text("", encoding="utf-8")

    @property
    def records(self) -> Sequence[IterationRecord]:
        """All records so far."""
        return self._records

    def add(self, record: IterationRecord) -> None:
        """Append a record to the log."""
        self._records.append(record)
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(record.model_dump_json(exclude_none=True) + "\n")

    def finish(self, summary: Summary) -> None:
        """Write the summary and the plot."""
        (self._directory / SUMMARY_NAME).write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_plot(self.plot_path, self._records)


def write_plot(path: Path, records: Sequence[IterationRecord]) -> None:
    """Reward and held-out accuracy over the iterations, as a PNG."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # the backend has to be chosen before
    from matplotlib.ticker import MaxNLocator

    rewards = [(record.iteration, record.mean_reward) for record in records if record.mean_reward is not None]
    held_out = [
        (record.iteration, record.held_out_accuracy) for record in records if record.held_out_accuracy is not None
    ]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if rewards:
        iterations, values = zip(*rewards, strict=True)
        axes.plot(iterations, values, color="#b8c7d9", linewidth=1, label="reward of each iteration")
        axes.plot(
            iterations, _smooth(values), color="#1f5f9e", linewidth=2, label=f"mean over {_SMOOTH_OVER} iterations"
        )
    if held_out:
        iterations, values = zip(*held_out, strict=True)
        axes.plot(iterations, values, "o--", color="#c4571b", label="accuracy on held-out problems (best answer)")
    axes.set(
        xlabel="iteration", ylabel="share of right answers", ylim=(0, 1.02), title="Word problems: reward in training"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if rewards or held_out:
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, up to _SMOOTH_OVER in all."""
    return [float(np.mean(values[max(0, end - _SMOOTH_OVER) : end])) for end in range(1, len(values) + 1)]
