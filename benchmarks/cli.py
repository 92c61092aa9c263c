"""The command line: suites that measure, ``report`` that shows results again, ``document`` that writes them down."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar, get_args

from benchmarks import records
from benchmarks.bench import Bench, Options
from benchmarks.cells import calls, contention, disk, growth, memory, runners, startup, waiting
from benchmarks.plot import write_plot
from benchmarks.records import PROJECT_ROOT, Record, ResultsError, Transport
from benchmarks.sides import BASE, BASELINE, FLAGS, OURS, PEER, POSTGRES, SQLITE, sides
from benchmarks.tables import markdown, show

T = TypeVar("T")

DEFAULT_OUTPUT: Final = PROJECT_ROOT / "benchmarks" / "results"
DOCUMENT: Final = PROJECT_ROOT / "docs" / "performance.md"
BEGIN_MARK: Final = "<!-- results: written by `make bench-document` -->"
END_MARK: Final = "<!-- end of results -->"

CELLS: Final = (
    *calls.CELLS, *waiting.CELLS, *startup.CELLS, memory.CELL, *growth.CELLS,
    runners.CELL, disk.CELL, *contention.CELLS,
)  # fmt: skip
"""In the order in which they are measured."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A selection of cells, and how long to look at them."""

    about: str
    cells: tuple[str, ...]
    sides: tuple[str, ...]
    seconds: float
    rounds: int
    transports: tuple[Transport, ...] = ("wire",)
    left_out: tuple[tuple[str, int], ...] = ()
    """Cells with so many callers that take too long for this suite."""
    callers: tuple[int, ...] | None = None
    """None: each cell's own."""


_CALLS: Final = (*calls.CELLS, *waiting.CELLS, *startup.CELLS)

SUITES: Final[dict[str, Suite]] = {
    "quick": Suite(
        "our side alone, in two minutes",
        _CALLS,
        (OURS,),
        0.3,
        3,
        ("wire", "process"),
        left_out=(("query_rollouts", 64), ("add_many_spans", 64)),
    ),
    "peer": Suite("side by side with Agent Lightning", _CALLS, (OURS, PEER), 1.0, 5, ("wire", "process")),
    "memory": Suite("memory of a stored span, side by side", (memory.CELL,), (OURS, PEER), 1.0, 1),
    "growth": Suite("from a thousand rollouts to a million", growth.CELLS, (OURS,), 2.0, 5),
    "runners": Suite("a thousand runners in a few processes", (runners.CELL,), (OURS,), 5.0, 3),
    "durable": Suite(
        "a database side by side with memory, and with what the disk takes by itself",
        (disk.CELL, *calls.CELLS, startup.SERVE_CELL, runners.CELL),
        (OURS, SQLITE),
        1.0,
        5,
    ),
    "postgres": Suite(
        "a PostgreSQL database side by side with memory and with Agent Lightning, and shared with others",
        ("enqueue", "dequeue", "add_span", "lifecycle", *contention.CELLS),
        (OURS, POSTGRES, PEER),
        1.0,
        5,
        callers=(64,),
    ),
}
ALL: Final = "all"
_NOT_IN_ALL: Final = ("quick", "postgres")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit code: 0; 1 if a cell of ours failed; 2 for bad arguments or files; 130 if interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code: int = options.command(parser, options)
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("error: interrupted; what was measured is kept", file=sys.stderr)
        return 130
    return code


# --- Arguments -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, suite in SUITES.items():
        _add_measuring(commands.add_parser(name, help=suite.about, description=suite.about), (name,))
    in_all = tuple(name for name in SUITES if name not in _NOT_IN_ALL)
    _add_measuring(commands.add_parser(ALL, help=f"{', '.join(in_all)}, in turn"), in_all)
    report = commands.add_parser("report", help="tables and plot of results files")
    report.add_argument("files", nargs="*", type=Path, help="JSON lines (default: the newest in benchmarks/results)")
    report.set_defaults(command=_report)
    document = commands.add_parser("document", help="write the tables of a results file into docs/performance.md")
    document.add_argument("file", type=Path)
    document.add_argument("--into", type=Path, default=DOCUMENT, help="another document with the same marks")
    document.set_defaults(command=_document)
    return parser


def _add_measuring(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    parser.set_defaults(command=_measure, suites=names)
    add = parser.add_argument
    add("--only", type=_list_of(_one_of(CELLS)), metavar="CELL,…", help=f"of {', '.join(CELLS)}")
    add("--callers", type=_list_of(_positive), metavar="N,…", help="concurrent callers in one client process (1,64)")
    add("--seconds", type=_seconds, metavar="S", help="length of a round")
    add("--rounds", type=_positive, metavar="N", help="rounds of each side, in turn")
    add("--sides", type=_list_of(_one_of((OURS, SQLITE, POSTGRES, PEER))), metavar="SIDE,…",
        help=f"of {OURS}, {SQLITE} and {POSTGRES} (over the wire), {PEER}")  # fmt: skip
    add("--over", type=_list_of(_one_of(get_args(Transport))), metavar="WHERE,…", help="of wire, process")
    add("--base", type=Path, metavar="DIR", help="also measure ours as it is in this other checkout")
    add("--flags", default="", metavar="FLAGS",
        help='also measure ours with these flags of serve, behind variables ("NAME=x --http-port 0")')  # fmt: skip
    add("--baseline", type=Path, metavar="FILE", help="show ours in this earlier results file too")
    add("--sizes", type=_list_of(_positive), default=(1_000, 10_000, 100_000, 1_000_000), metavar="N,…",
        help="growth: rollouts stored (1000,10000,100000,1000000)")  # fmt: skip
    add("--spans", type=_positive, default=100_000, metavar="N", help="memory: spans to store (%(default)s)")
    add("--runners", type=_positive, default=1_000, metavar="N", help="runners: how many (%(default)s)")
    add("--processes", type=_positive, default=4, metavar="N", help="runners: client processes (%(default)s)")
    add("--postgres", metavar="URL", help="the database of the side postgres; one for this alone, which may be deleted")
    add("--hold", type=_seconds, default=120.0, metavar="S",
        help="how long a transaction is held open beside claims (%(default)g)")  # fmt: skip
    add("--profile", action="store_true", help="run servers and clients under cProfile; the figures are worth nothing")
    add("--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="for results (benchmarks/results)")


def _list_of(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def values(text: str) -> tuple[T, ...]:
        return tuple(parse(part.strip()) for part in text.split(",") if part.strip())

    return values


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return name


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return seconds


def _options(parser: argparse.ArgumentParser, given: argparse.Namespace, suite: Suite) -> Options:
    """The suite's own settings where none were given."""
    cells = tuple(cell for cell in CELLS if cell in (given.only or suite.cells) and cell in suite.cells)
    if given.base is not None and not (given.base / "src" / "lightning_store").is_dir():
        parser.error(f"--base {given.base} is no checkout: it has no src/lightning_store")
    names = given.sides or suite.sides
    if PEER in names and importlib.util.find_spec("agentlightning") is None:
        parser.error("the side 'peer' needs the package agentlightning; run it by make, or give --sides ours")
    if POSTGRES in names and given.postgres is None:
        parser.error("the side 'postgres' needs a database: run it by make, or give --postgres URL")
    known = sides(given.base, shlex.split(given.flags), given.postgres)
    measured = tuple(side for name, side in known.items() if name in (*names, BASE, FLAGS))
    return Options(
        cells=cells,
        sides=measured,
        transports=given.over or suite.transports,
        seconds=given.seconds or suite.seconds,
        rounds=given.rounds or suite.rounds,
        callers=given.callers or suite.callers,
        left_out=() if given.callers else suite.left_out,
        sizes=tuple(sorted(given.sizes)),
        spans=given.spans,
        runners=given.runners,
        processes=min(given.processes, given.runners),
        hold_seconds=given.hold,
        profile=given.profile,
    )


# --- Commands --------------------------------------------------------------------------------------------------------


def _measure(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Run one suite or several, show what they found, and tell whether ours was without a fault."""
    wanted = [cell for name in given.suites for cell in SUITES[name].cells]
    strangers = [cell for cell in given.only or () if cell not in wanted]
    if strangers:
        parser.error(f"--only: {', '.join(strangers)}: not in this suite, which has {', '.join(wanted)}")
    baseline = [] if given.baseline is None else _of_ours(records.read(given.baseline))
    results = _results_path(given.output, given.suites[0] if len(given.suites) == 1 else ALL)
    found: list[Record] = []
    for name in given.suites:
        options = _options(parser, given, SUITES[name])
        if options.cells:
            found.extend(asyncio.run(_run(options, results)))
    if not given.profile:
        measured = {record.key for record in found}
        _tell([*found, *(record for record in baseline if record.key in measured)], results)
    print(f"\nresults: {results}; logs: {results.with_suffix('')}")
    return 0 if all(record.is_clean for record in found if record.side != PEER) else 1


def _results_path(directory: Path, name: str) -> Path:
    return directory / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}.jsonl"


def _of_ours(earlier: Sequence[Record]) -> list[Record]:
    """Records of our side, as the side that is shown beside it."""
    return [record.model_copy(update={"side": BASELINE}) for record in earlier if record.side == OURS]


async def _run(options: Options, results: Path) -> list[Record]:
    """Measure every cell of a suite."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with Bench.running(options, results) as bench:
        for cell in options.cells:
            await _run_cell(bench, cell)
        return bench.records


async def _run_cell(bench: Bench, cell: str) -> None:
    if cell in calls.CELLS:
        for transport in bench.options.transports:
            await calls.run(bench, cell, transport)
    elif cell in waiting.CELLS:
        await waiting.run(bench, cell)
    elif cell in startup.CELLS:
        await startup.run(bench, cell)
    elif cell in contention.CELLS:
        await contention.run(bench, cell)
    elif cell == disk.CELL:
        await disk.run(bench)
    elif cell == memory.CELL:
        await memory.run(bench)
    elif cell == runners.CELL:
        await runners.run_cell(bench)
    elif cell == next(one for one in bench.options.cells if one in growth.CELLS):
        await growth.run(bench)  # all of its cells, in one go


def _tell(found: Sequence[Record], results: Path) -> None:
    show(found)
    try:
        if write_plot(results.with_suffix(".png"), found):
            print(f"\nplot: {results.with_suffix('.png')}")
    except ImportError as error:
        print(f"\nno plot: {error}; install the extra 'bench'")


def _report(_: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Show files again."""
    files = given.files or sorted(DEFAULT_OUTPUT.glob("*.jsonl"))[-1:]
    if not files:
        raise ResultsError(f"no results in {DEFAULT_OUTPUT}; measure first, for instance with: make bench-quick")
    _tell([record for file in files for record in records.read(file)], files[-1])
    return 0


def _document(_: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Put the tables of a file between the marks of the document."""
    found = records.read(given.file)
    text = given.into.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ResultsError(f"{given.into} has no place for results: it needs the lines {BEGIN_MARK} and {END_MARK}")
    given.into.write_text(f"{before}{BEGIN_MARK}\n\n{markdown(found)}\n{END_MARK}{after}", encoding="utf-8")
    print(f"{given.into}: {len(found)} results of {given.file}")
    return 0
