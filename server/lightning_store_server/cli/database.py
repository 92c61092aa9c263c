"""The commands that work on the database of a store: backup, restore, check, vacuum, migrate."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from lightning_store.arguments import is_postgres
from lightning_store.backends.base import Violation
from lightning_store.backends.sqlite import maintenance
from lightning_store_server.app import check_postgres, migrate_postgres
from lightning_store_server.cli.exit_codes import ExitCode, exiting, fail
from lightning_store_server.cli.options import database_url, namespace, parse_database, setting, switch
from lightning_store_server.cli.show import echo_json
from lightning_store_server.text import byte_size

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

EXIT_CODES: Final = """\
\b
Exit codes:
   0  done
   2  a flag or variable has a value that is not legal
  65  the database is damaged, or a file of something else
  66  there is no such file, or no such namespace
  69  the database is in use, or cannot be reached
  73  a file cannot be written, or is there already
  74  the disk is full, or it fails
  78  the database is of another version, or the package is missing that speaks to it
"""
CHECK_EXIT_CODES: Final = EXIT_CODES.replace("   0  done\n", "   0  all is well\n   1  something is wrong\n")

INSTEAD: Final = {
    "backup": "PostgreSQL's pg_dump --schema=lightning_store_NAMESPACE makes one, also while servers are at work",
    "restore": "PostgreSQL's psql or pg_restore brings back what pg_dump has written",
    "vacuum": "PostgreSQL's autovacuum looks after one, and its VACUUM FULL gives space back",
}
"""What does for a database of PostgreSQL what these commands do for a file."""


def on_file(command: F) -> F:
    """The flag that names the database's file."""

    def parse(ctx: click.Context, _: click.Parameter, value: str) -> str:
        if is_postgres(value):
            name = str(ctx.info_name)
            raise click.BadParameter(f"{name} is for a SQLite database; {INSTEAD[name]}")
        path = parse_database(value)
        if path is None:
            raise click.BadParameter("a store in memory has no file; give sqlite:PATH")
        return path

    flag = setting(
        "--database", "path", required=True, callback=parse, metavar="sqlite:PATH", help="The database of the store."
    )
    return flag(command)


@contextmanager
def progress_bar(label: str) -> Iterator[maintenance.Progress | None]:
    """Shows on a terminal how far a copy is; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # slow to import
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


@click.command(epilog=EXIT_CODES)
@on_file
@click.option("--to", "target", required=True, metavar="FILE", help="The file to make; it must not be there yet.")
def backup(path: str, target: str) -> None:
    """Copy a store into FILE, also while a server has it open and calls come in.

    The copy is of one moment. It is a store of its own, with a new id: serve it, or put it in its place with restore.
    It has the keys that resources hold, and is for its owner alone (0600).
    """
    with exiting(), progress_bar("backup") as progress:
        size_bytes = maintenance.back_up(path, target, progress=progress)
    click.echo(f"backed up {path} to {target}: {byte_size(size_bytes)}")


@click.command(epilog=EXIT_CODES)
@click.argument("source", metavar="FILE")
@on_file
@click.option("--overwrite", is_flag=True, help="Replace the store that is there.")  # for this call alone: no variable
def restore(source: str, path: str, overwrite: bool) -> None:
    """Put the backup FILE in the place of a store. No server may have that open.

    FILE is checked first, and stays as it is. The store that was restored refuses cursors of watch_rollouts: what they
    have seen since the backup is not in it.
    """
    with exiting(), progress_bar("restore") as progress:
        size_bytes = maintenance.restore(source, path, overwrite=overwrite, progress=progress)
    click.echo(f"restored {path} from {source}: {byte_size(size_bytes)}")


def _of_store(_: click.Context, __: click.Parameter, value: str) -> str:
    found = database_url(value)
    if found is None:
        raise click.BadParameter("a store in memory has no file; give sqlite:PATH or postgresql://…")
    return found


def on_database(command: F) -> F:
    """The flags that name a database of either kind."""
    flag = setting(
        "--database",
        required=True,
        callback=_of_store,
        metavar="sqlite:PATH|postgresql://…",
        help="The database of the store.",
    )
    return flag(namespace(setting)(command))


@click.command(epilog=CHECK_EXIT_CODES)
@on_database
@switch("--quick", help="For SQLite. Leave out what takes long: whether indexes agree with their tables.")
@switch("--json", "as_json", help="Print the answer as one JSON document.")
def check(database: str, namespace: str, quick: bool, as_json: bool) -> None:
    """Look for what is wrong with a store: the file, and what the store relies on.

    Servers may be at work on it. Check a large store in a backup of it: while a check reads, the log of a SQLite
    database cannot be emptied, nor old rows of one of PostgreSQL cleaned up.
    """
    found = []
    path = database
    if is_postgres(database):
        if quick:
            raise click.UsageError("--quick is for a SQLite database")
        path = f"namespace {namespace}"
    with exiting():
        for violation in _checked(database, namespace, quick):
            found.append(violation)
            if not as_json:
                click.echo(f"violated: {violation.rule}: {violation.found}")
    if as_json:
        echo_json({"path": path, "violations": [one._asdict() for one in found]})
    elif not found:
        click.echo(f"{path} is sound")
    if found:
        raise click.exceptions.Exit(ExitCode.FOUND)


@click.command(epilog=EXIT_CODES)
@on_file
@switch("--incremental", help="Cut off what is free, and leave the rest where it is: quick, and gives less.")
def vacuum(path: str, incremental: bool) -> None:
    """Give space that a store does not use any more back to the file system. No server may have it open.

    Without --incremental the file is written anew, which takes up to twice its size of the disk meanwhile.
    """
    with exiting():
        sizes = maintenance.vacuum(path, incremental=incremental)
    click.echo(f"{path} was {byte_size(sizes.before)} and is {byte_size(sizes.after)}")


@click.command(epilog=EXIT_CODES)
@on_database
def migrate(database: str, namespace: str) -> None:
    """Bring a store up to the format of this version. No server may have its file open.

    A server does the same when it starts. Afterwards older versions refuse the store: make a backup first.
    """
    with exiting():
        if is_postgres(database):
            what = f"namespace {namespace}"
            before, after = _run(migrate_postgres(database, namespace))
        else:
            what = database
            before, after = maintenance.migrate(database)
    if before == after:
        click.echo(f"{what} has format {after} already")
    else:
        click.echo(f"{what} had format {before} and has format {after}")


def _checked(database: str, namespace: str, quick: bool) -> Iterable[Violation]:
    if is_postgres(database):
        return _run(check_postgres(database, namespace))
    return maintenance.check(database, quick=quick)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """What comes of work on PostgreSQL; the command ends where the package is missing for that."""
    try:
        return asyncio.run(work)
    except ImportError as error:
        fail(str(error), ExitCode.CONFIG)
