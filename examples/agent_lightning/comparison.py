"""The same program on Agent Lightning's own store and on ours, side by side."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from examples.agent_lightning.stores import StoreKind
from examples.agent_lightning.training import Plan, Trained, train

REFERENCE: Final[StoreKind] = "agentlightning"
TITLES: Final[Mapping[StoreKind, str]] = {
    REFERENCE: "Agent Lightning",
    "in-process": "ours in process",
    "grpc": "ours over gRPC",
}

_DIFFERENCES_SHOWN_MAX: Final = 5

_Figure = tuple[str, str]
"""The name of a row, and of which kind it counts."""


def compare(plan: Plan, output: Path, console: Console, server: str | None = None) -> bool:
    """Run ``plan`` on each store and print what came of it as a table. Whether it was the same on all."""
    runs: dict[StoreKind, Trained] = {}
    for kind, title in TITLES.items():
        console.print(f"\nStore: {title}")
        runs[kind] = train(plan, kind, output / kind, console, server)
    console.print()
    console.print(table(runs))
    differences = [line for kind, run in runs.items() for line in differing(kind, runs[REFERENCE], run)]
    for line in differences[:_DIFFERENCES_SHOWN_MAX]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    rollouts = len(runs[REFERENCE].algorithm.outcomes)
    verdict = f"{len(differences)} differences" if differences else "the same on all stores"
    console.print(f"statuses, attempts, spans and rewards of {rollouts} rollouts: {verdict}")
    return not differences


def differing(kind: StoreKind, reference: Trained, run: Trained) -> list[str]:
    """One line for each rollout that came out otherwise than in the reference."""
    expected, found = reference.algorithm.outcomes, run.algorithm.outcomes
    if len(expected) != len(found):
        return [f"{kind}: {len(found)} rollouts instead of {len(expected)}"]
    return [
        f"{kind}, rollout {index} ({theirs.problem_id}): {ours} instead of {theirs}"
        for index, (theirs, ours) in enumerate(zip(expected, found, strict=True))
        if theirs != ours
    ]


def table(runs: Mapping[StoreKind, Trained]) -> Table:
    """What came of the runs: a column for each store."""
    made = Table(title="The same program on several stores", title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("", no_wrap=True)
    for kind in runs:
        made.add_column(TITLES[kind], justify="right")
    columns = [dict(_figures(run)) for run in runs.values()]
    for figure in dict.fromkeys(figure for column in columns for figure in column):
        name, of_kind = figure
        made.add_row(f"  {of_kind}" if of_kind else name, *(column.get(figure, "0") for column in columns))
    return made


def _figures(run: Trained) -> Iterator[tuple[_Figure, str]]:
    """A column of the table."""
    outcomes, summary = run.algorithm.outcomes, run.summary
    attempts = [attempt for outcome in outcomes for attempt in outcome.attempts]
    rewards = [reward for attempt in attempts for reward in attempt.rewards]
    yield from _counted("rollouts", [outcome.status for outcome in outcomes])
    yield from _counted("attempts", [attempt.status for attempt in attempts])
    yield from _counted("spans", [name for attempt in attempts for name in attempt.spans])
    yield ("rewards", ""), str(len(rewards))
    yield ("rewards", "their sum"), f"{sum(rewards):g}"
    yield ("held-out accuracy before", ""), f"{summary.untrained_accuracy:.1%}"
    yield ("held-out accuracy after", ""), f"{summary.trained_accuracy:.1%}"
    yield ("checksum of the weights", ""), f"{zlib.crc32(run.algorithm.weights.tobytes()):08x}"
    yield ("seconds", ""), f"{summary.seconds:.1f}"


def _counted(name: str, kinds: Sequence[str]) -> Iterator[tuple[_Figure, str]]:
    """How many there are in all, and of each kind."""
    yield (name, ""), str(len(kinds))
    for kind, count in sorted(Counter(kinds).items()):
        yield (name, kind), str(count)
