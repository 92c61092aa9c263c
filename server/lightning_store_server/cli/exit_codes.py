"""Exit codes, in the numbers of sysexits.h: what a supervisor can act on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final, NoReturn

import click

from lightning_store.errors import (
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StoreError,
    StoreUnavailableError,
    UnsupportedError,
)


class ExitCode(IntEnum):
    """Why a command ended. 2 is click's, for flags that are not legal."""

    STOPPED = 0
    FOUND = 1
    """``check`` found something; a command that asks a server got no answer."""
    DATAERR = 65
    NOINPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    CANTCREAT = 73
    IOERR = 74
    TEMPFAIL = 75
    CONFIG = 78


PROBLEMS: Final = {
    "damaged": ExitCode.DATAERR,
    "missing": ExitCode.NOINPUT,
    "in_use": ExitCode.UNAVAILABLE,
    "read_only": ExitCode.CANTCREAT,
    "disk": ExitCode.IOERR,
}
"""By what is wrong with a file, as an error's details tell."""


def exit_code_of(error: StoreError) -> ExitCode:
    """Of a command that ended with this."""
    problem = PROBLEMS.get(error.details.get("problem", ""))
    if problem is not None:
        return problem
    match error:
        case StoreUnavailableError():
            return ExitCode.UNAVAILABLE
        case ResourceExhaustedError():
            return ExitCode.IOERR
        case InternalError():
            return ExitCode.SOFTWARE
        case InvalidArgumentError() if error.details.get("field") == "target":  # is there already
            return ExitCode.CANTCREAT
        case InvalidArgumentError() | UnsupportedError():
            return ExitCode.CONFIG
    return ExitCode.SOFTWARE


@contextmanager
def exiting() -> Iterator[None]:
    """End the command with one line and its exit code where a store error is raised."""
    try:
        yield
    except StoreError as error:
        fail(str(error), exit_code_of(error))


def fail(message: str, code: ExitCode) -> NoReturn:
    """End the command."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
