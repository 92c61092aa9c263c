"""Results as tables: on a terminal, and as the Markdown of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from io import StringIO
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.records import Record, Spread, ratio
from benchmarks.sides import OURS, POSTGRES, SQLITE
from benchmarks.targets import Verdict, verdicts

CALL_METRICS: Final = ("calls_per_second", "p50_ms", "p99_ms", "client_cpu_us", "server_cpu_us")
TERMINAL_WIDTH_MIN: Final = 150
"""A narrower terminal wraps lines; cells that are cut would be worse."""
MARKDOWN_WIDTH: Final = 400


def show(records: Sequence[Record]) -> None:
    """Print all tables that these records fill."""
    console = Console(width=max(TERMINAL_WIDTH_MIN, Console().width))
    for table in tables(records):
        console.print()
        console.print(table)


def markdown(records: Sequence[Record]) -> str:
    """Where they were measured, then the targets, the ratios and what failed, as Markdown under a heading each."""
    parts = [_environments(records)] if records else []
    for table in _filled([*_summary(records), _failed(records)]):
        title, table.title, table.box = table.title, None, box.MARKDOWN
        text = StringIO()
        Console(file=text, width=MARKDOWN_WIDTH).print(table)
        parts.append(
            f"### {title}\n\n" + "\n".join(line.strip() for line in text.getvalue().splitlines() if line.strip())
        )
    return "\n\n".join(parts) + "\n"


def tables(records: Sequence[Record]) -> list[Table]:
    """The tables that have a row: targets, ratios of calls, calls, other measures, what failed."""
    others = [record for record in records if record.metrics and not _is_call(record)]
    calls = list(filter(_is_call, records))
    return _filled([*_summary(records), _calls(calls), _others(others), _failed(records)])


def _summary(records: Sequence[Record]) -> list[Table]:
    calls = [record for record in records if _is_call(record) and record.size is None]
    return [_targets(verdicts(records)), _ratios(calls)]


def _failed(records: Sequence[Record]) -> Table:
    return _failures([record for record in records if not record.is_clean])


def _filled(made: Sequence[Table]) -> list[Table]:
    return [table for table in made if table.row_count]


def _is_call(record: Record) -> bool:
    return "calls_per_second" in record.metrics


def number(value: float) -> str:
    """Three digits that count, thousands grouped."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(value: Spread) -> str:
    """Median (least..greatest), or the one value there is."""
    if value.low == value.high:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)}..{number(value.high)})"


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, no_wrap=True, justify="right")
    return table


def _where(record: Record) -> list[str]:
    at = "" if record.callers is None else str(record.callers)
    return [record.cell if record.size is None else f"{record.cell}, {record.size:,}", record.transport, at]


def _targets(held: Iterable[Verdict]) -> Table:
    table = _table("Targets", ["cell", "over", "callers", "target"], ["measured", "met"])
    for verdict in held:
        met = "yes" if verdict.is_met else "NO"
        table.add_row(*_where(verdict.record), str(verdict.target), spread(verdict.value), met)
    return table


def _ratios(calls: Sequence[Record]) -> Table:
    """Ours over each other side, call for call; where ours is in a database too, that over each other side."""
    table = _table(
        "Calls per second, side by side",
        ["cell", "over", "callers", "side"],
        ["calls/s", "other", "calls/s", "ratio", "p50 ratio"],
    )
    present = {record.side for record in calls}
    subject = next((side for side in (POSTGRES, SQLITE) if side in present), OURS)
    for record in calls:
        if record.side != subject:
            continue
        for other in calls:
            if other.key != record.key or other.side == subject:
                continue
            rates = [one.metrics["calls_per_second"] for one in (record, other)]
            ratios = [ratio(record.metrics[name], other.metrics[name]) for name in ("calls_per_second", "p50_ms")]
            cells = ["" if one is None else spread(one) for one in ratios]
            table.add_row(*_where(record), record.side, spread(rates[0]), other.side, spread(rates[1]), *cells)
    return table


def _calls(calls: Sequence[Record]) -> Table:
    heads = ["calls/s", "p50 ms", "p99 ms", "client us", "server us", "errors"]
    table = _table("Calls, with the CPU time of both processes for each", ["cell", "over", "callers", "side"], heads)
    for record in calls:
        values = [record.metrics.get(name) for name in CALL_METRICS]
        cells = [spread(values[0])] if values[0] is not None else [""]
        cells += ["" if value is None else number(value.median) for value in values[1:]]
        table.add_row(*_where(record), record.side, *cells, str(sum(record.errors.values())))
    return table


def _others(records: Sequence[Record]) -> Table:
    table = _table("Other measures", ["cell", "over", "callers", "side", "measure"], ["value"])
    for record in records:
        for name, value in record.metrics.items():
            table.add_row(*_where(record), record.side, name, spread(value))
    return table


def _failures(records: Sequence[Record]) -> Table:
    table = _table("What went wrong", ["cell", "over", "callers", "side", "times"], [])
    table.add_column("what")
    for record in records:
        if record.failure is not None:
            table.add_row(*_where(record), record.side, "", f"not measured: {record.failure}")
        for error, times in record.errors.items():
            table.add_row(*_where(record), record.side, str(times), error)
    return table


def _environments(records: Sequence[Record]) -> str:
    """The machine and all packages, then each run: when, of which commit, and what it measured."""
    runs: dict[datetime, list[Record]] = {}
    packages: dict[str, str] = {}
    for record in records:
        runs.setdefault(record.environment.started_at, []).append(record)
        packages |= record.environment.packages
    last = records[-1].environment
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    machine = f"{last.cores} cores ({last.processor}), {last.system}, {last.python}; {versions}."
    return "\n".join([f"Measured on {machine} Runs:", "", *(_run(*run) for run in sorted(runs.items()))])


def _run(started_at: datetime, records: Sequence[Record]) -> str:
    environment = records[0].environment
    cells = ", ".join(dict.fromkeys(record.cell for record in records))
    return (
        f"* {started_at:%Y-%m-%d %H:%M} UTC, commit {environment.commit or 'unknown'}, "
        f"load average before it {environment.load_average:g}: {cells}"
    )
