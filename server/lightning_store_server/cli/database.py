"""The commands that work on the file of a store: backup, restore, check, vacuum, migrate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from lightning_store.backends.sqlite import maintenance
from lightning_store_server.cli.exit_codes import ExitCode, exiting
from lightning_store_server.cli.options import parse_database, setting, switch
from lightning_store_server.cli.show import echo_json
from lightning_store_server.text import byte_size

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES: Final = """\
\b
Exit codes:
   0  done
   2  a flag or variable has a value that is not legal
  65  the database is damaged, or a file of something else
  66  there is no such file
  69  the database is in use
  73  a file cannot be written, or is there already
  74  the disk is full, or it fails
  78  the database is of another version
"""
CHECK_EXIT_CODES: Final = EXIT_CODES.replace("   0  done\n", "   0  all is well\n   1  something is wrong\n")


def on_file(command: F) -> F:
    """The flag that names the database's file."""

    def parse(_: click.Context, __: click.Parameter, value: str) -> str:
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


@click.command(epilog=CHECK_EXIT_CODES)
@on_file
@switch("--quick", help="Leave out what takes long: whether indexes agree with their tables.")
@switch("--json", "as_json", help="Print the answer as one JSON document.")
def check(path: str, quick: bool, as_json: bool) -> None:
    """Look for what is wrong with a store: the file, and what the store relies on.

    A server may have the file open. Check a large store in a backup of it: while a check reads, the log of the store
    cannot be emptied.
    """
    found = []
    with exiting():
        for violation in maintenance.check(path, quick=quick):
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
@on_file
def migrate(path: str) -> None:
    """Bring a store's file up to the format of this version. No server may have it open.

    A server does the same when it starts. Afterwards older versions refuse the file: make a backup first.
    """
    with exiting():
        formats = maintenance.migrate(path)
    if formats.before == formats.after:
        click.echo(f"{path} has format {formats.after} already")
    else:
        click.echo(f"{path} had format {formats.before} and has format {formats.after}")
