"""Results as a picture: throughput side by side, and latency over the number of stored rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = ("#1f5f9e", "#c4571b", "#5b8c3e", "#7a5ba6")
_ROW_INCHES: Final = 0.3
_GROWTH_INCHES: Final = 4.5


def write_plot(path: Path, records: Sequence[Record]) -> bool:
    """Write a PNG; False if there is nothing to draw."""
    calls = [record for record in records if "calls_per_second" in record.metrics and record.size is None]
    growth = [record for record in records if record.size is not None and "p50_ms" in record.metrics]
    rows = len({record.key for record in calls})
    panels = [
        (_draw_calls, calls, _ROW_INCHES * rows + 1.5),
        (_draw_growth, growth, _GROWTH_INCHES),
    ]
    drawn = [panel for panel in panels if panel[1]]
    if not drawn:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot  # the backend has to be chosen before

    heights = [inches for _, _, inches in drawn]
    figure, axes = pyplot.subplots(
        len(drawn), 1, figsize=(9, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for (draw, found, _), (axis,) in zip(drawn, axes, strict=True):
        draw(axis, found)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _draw_calls(axes: Axes, calls: Sequence[Record]) -> None:
    """A group of bars for each cell, a bar for each side, whiskers from the slowest round to the fastest."""
    keys = list(dict.fromkeys(record.key for record in calls))
    sides = list(dict.fromkeys(record.side for record in calls))
    height = 0.8 / len(sides)
    for index, side in enumerate(sides):
        found = {record.key: record.metrics["calls_per_second"] for record in calls if record.side == side}
        places = [row + (index - (len(sides) - 1) / 2) * height for row, key in enumerate(keys) if key in found]
        values = [found[key] for key in keys if key in found]
        axes.barh(
            places,
            [value.median for value in values],
            height,
            xerr=[[v.median - v.low for v in values], [v.high - v.median for v in values]],
            color=_COLOURS[index % len(_COLOURS)],
            label=side,
            error_kw={"elinewidth": 0.8},
        )
    axes.set(xscale="log", xlabel="calls per second", title="Throughput: median of rounds, least to greatest")
    axes.set_yticks(range(len(keys)), [f"{cell} x{callers}, {transport}" for cell, transport, callers, _ in keys])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.legend()


def _draw_growth(axes: Axes, growth: Sequence[Record]) -> None:
    """A line for each call: its median latency over the number of rollouts stored."""
    for name in dict.fromkeys((record.cell, record.side) for record in growth):
        points = sorted(
            (record.size, record.metrics["p50_ms"].median)
            for record in growth
            if (record.cell, record.side) == name and record.size is not None
        )
        axes.plot(*zip(*points, strict=True), "o-", label=f"{name[0].removeprefix('growth_')} ({name[1]})")
    axes.set(xscale="log", xlabel="rollouts stored", ylabel="p50, ms", title="One caller, as rollouts pile up")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
