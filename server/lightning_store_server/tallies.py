"""Counters and histograms for what happens with every call. Those of prometheus_client take a lock and walk through the
buckets for each observation, a tenth of a small call for some; these are numbers that become families at a scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Distribution:
    """The observations with one set of labels. Not safe for several threads."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Write what was observed so far."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)


class Histograms:
    """A metric of distributions.

    Args:
        name: Its name.
        text: What it is.
        bounds: The upper bounds of its buckets.
        labels: The names of its labels; none is one distribution from the start.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self._name = name
        self._text = text
        self._bounds: Final = tuple(bounds)
        self._labels = tuple(labels)
        self._found: dict[tuple[str, ...], Distribution] = {}
        if not labels:
            self.at()

    def at(self, *labels: str) -> Distribution:
        """That with these values of the labels."""
        found = self._found.get(labels)
        if found is None:
            found = self._found[labels] = Distribution(self._bounds)
        return found

    def collect(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, distribution in list(self._found.items()):
            distribution.add_to(family, labels)
        return family


class Counters:
    """A metric of counters; the arguments are those of :class:`Histograms`."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._found: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, amount: float, *labels: str) -> None:
        """Count so many with these values of the labels."""
        self._found[labels] = self._found.get(labels, 0) + amount

    def collect(self) -> CounterMetricFamily:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in list(self._found.items()):
            family.add_metric(labels, count)
        return family
