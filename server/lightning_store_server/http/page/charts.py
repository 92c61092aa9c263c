"""Charts as numbers in the units of an SVG. The templates draw them: presentation attributes only, no styles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 640.0
HEIGHT: Final = 180.0
LEFT: Final = 46.0
BOTTOM: Final = 22.0
TOP: Final = 8.0
RIGHT: Final = 8.0
TICKS_MAX: Final = 8
BAR_MAX: Final = 48.0


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its spread."""

    x: float
    y: float
    spread: float = 0.0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart, drawn."""

    name: str
    path: str
    band: str
    dots: Sequence[tuple[float, float, str]]
    """Each with what it tells."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, drawn."""

    x: float
    y: float
    width: float
    height: float
    told: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What a template draws."""

    title: str
    summary: str
    """The same in words."""
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    x_ticks: Sequence[tuple[float, str]] = ()
    y_ticks: Sequence[tuple[float, str]] = ()
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    base: float = HEIGHT - BOTTOM


def line_chart(title: str, summary: str, series: Sequence[tuple[str, Sequence[Point]]], x_name: str) -> Chart | None:
    """Lines with bands of one spread to either side; None if there are no two points."""
    points = [point for _, some in series for point in some]
    xs = sorted({point.x for point in points})
    if len(xs) < 2:
        return None
    low = min(point.y - point.spread for point in points)
    high = max(point.y + point.spread for point in points)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP), 1),
        )

    lines = []
    for name, some in series:
        upper = [at(point.x, point.y + point.spread) for point in some]
        lower = [at(point.x, point.y - point.spread) for point in reversed(some)]
        dots = [
            (
                *at(point.x, point.y),
                f"{name}, {x_name} {point.x:g}: {point.y:.3f} ± {point.spread:.3f} of {point.count}",
            )
            for point in some
        ]
        lines.append(Line(name, _path(dots), f"{_path(upper + lower)}Z" if some else "", dots))
    step = max(1, -(-len(xs) // TICKS_MAX))
    return Chart(
        title,
        summary,
        lines,
        x_ticks=[(at(x, low)[0], f"{x:g}") for x in xs[::step]],
        y_ticks=[(at(xs[0], y)[1], f"{y:.2f}") for y in (low, (low + high) / 2, high)],
    )


def bar_chart(title: str, summary: str, values: Sequence[tuple[str, float]], *, unit: str) -> Chart:
    """A bar for each value, with its name below where there is room."""
    high = max((value for _, value in values), default=0.0) or 1.0
    step = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    gap = max(step * 0.2, step - BAR_MAX)
    bars, ticks = [], []
    every = max(1, -(-len(values) // TICKS_MAX))
    for place, (name, value) in enumerate(values):
        length = value / high * (HEIGHT - BOTTOM - TOP)
        x = LEFT + place * step
        bars.append(
            Bar(
                round(x + gap / 2, 1),
                round(HEIGHT - BOTTOM - length, 1),
                round(step - gap, 1),
                round(length, 1),
                f"{name}: {value:g} {unit}",
            )
        )
        if place % every == 0:
            ticks.append((round(x + step / 2, 1), name))
    y_ticks = [(HEIGHT - BOTTOM, "0"), (TOP, f"{high:g}")]
    return Chart(title, summary, bars=bars, x_ticks=ticks, y_ticks=y_ticks)


def _path(points: Sequence[tuple[float, ...] | tuple[float, float, str]]) -> str:
    return "M" + "L".join(f"{point[0]} {point[1]}" for point in points) if points else ""


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of ``values``, which are sorted, does not exceed; None of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else None
