"""Flags: each one with its environment variable and its help in a single call, and the values that they take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click

from lightning_store.arguments import database_path, is_postgres
from lightning_store.errors import InvalidArgumentError
from lightning_store_server.config import DEFAULT_PORT, INT32_MAX, MIB, SECONDS_MAX
from lightning_store_server.text import byte_size

F = TypeVar("F", bound=Callable[..., Any])

VARIABLE_PREFIX: Final = "LIGHTNING_STORE_"
INT64_MAX: Final = 2**63 - 1
DEFAULT_SERVER: Final = f"localhost:{DEFAULT_PORT}"

UNITS: Final[dict[str, int]] = {"": 1, "b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", start=1)
    for base, units in ((1000, (letter, f"{letter}b")), (1024, (f"{letter}i", f"{letter}ib")))
    for unit in units
}
"""Bytes in each unit, in lower case: k and kb are 1000, ki and kib 1024, and so on to t."""
UNITLESS_BYTES_MIN: Final = 16 * MIB
"""A threshold of memory that is below this needs a unit."""
NAMESPACE: Final = "default"
TIME_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
"""Seconds in each unit."""


@dataclass(frozen=True)
class Retention:
    """What is kept of finished rollouts: so many, or each for so long. None: however many, or for ever."""

    count: int | None = None
    seconds: float | None = None


class Setting(click.Option):
    """An option whose variable may hold what another program put there."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        # For a service named lightning-store, Kubernetes sets LIGHTNING_STORE_PORT=tcp://<address>:<port> in every
        # container of the namespace; it is not meant for this program.
        value = super().resolve_envvar_value(ctx)
        return None if value is not None and value.startswith("tcp://") else value


def setting(flag: str, *names: str, help: str, **attributes: Any) -> Callable[[F], F]:
    """The option ``flag`` with its variable (``--log-level``: ``LIGHTNING_STORE_LOG_LEVEL``) and its help. Further
    flags among ``names`` mean the same, with a variable each.

    ``names`` and ``attributes`` are those of :func:`click.option`; a default is shown.
    """
    flags = [flag, *(name for name in names if name.startswith("--"))]
    variables = [VARIABLE_PREFIX + one.partition("/")[0].removeprefix("--").replace("-", "_").upper() for one in flags]
    envvar = variables[0] if len(variables) == 1 else variables
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(flag, *names, help=help, cls=Setting, envvar=envvar, show_envvar=True, **attributes)


def switch(flag: str, *names: str, help: str) -> Callable[[F], F]:
    """A flag that is on when given; its variable takes 1, true, 0, false and the like."""
    return setting(flag, *names, help=help, is_flag=True)


class Whole(click.IntRange):
    """A whole number, from ``min`` to ``max``."""

    name = "whole number"


class Seconds(click.FloatRange):
    """A length of time in seconds, from ``min`` to :data:`SECONDS_MAX`."""

    name = "number of seconds"

    def __init__(self, min: float = 0, min_open: bool = False) -> None:
        super().__init__(min=min, max=SECONDS_MAX, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):  # which no comparison with a bound refuses
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


def seconds(
    flag: str, *names: str, help: str, min: float = 0, min_open: bool = False, default: float
) -> Callable[[F], F]:
    """A setting that is a length of time."""
    return setting(flag, *names, help=help, type=Seconds(min, min_open), default=default, metavar="SECONDS")


def size(flag: str, *names: str, help: str, default: int, max: int = INT32_MAX) -> Callable[[F], F]:
    """A setting that is a number of bytes, from 1 to ``max``: as a rule the most that a gRPC message can have."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> int:
        parsed = parse_bytes(value)
        if not 1 <= parsed <= max:
            raise click.BadParameter(f"{value!r} is not between 1 and {max} bytes", ctx, param)
        return parsed

    return setting(flag, *names, help=help, default=byte_size(default), callback=parse, metavar="BYTES")


def threshold(flag: str, *names: str, help: str, show_default: str) -> Callable[[F], F]:
    """A setting that is a share of the machine's memory, or bytes."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> float | int | None:
        return None if value is None else parse_threshold(value)

    return setting(flag, *names, help=help, show_default=show_default, callback=parse, metavar="RATIO|BYTES")


def optional_size(flag: str, *names: str, help: str, show_default: str | bool = False) -> Callable[[F], F]:
    """A setting in bytes that need not be given."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
        return None if value is None else parse_bytes(value)

    return setting(flag, *names, help=help, show_default=show_default, callback=parse, metavar="BYTES")


def retention(flag: str, *names: str, help: str) -> Callable[[F], F]:
    """A setting that is a number of things to keep, or the time for which each is kept."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> Retention:
        return Retention() if value is None else parse_retention(value)

    return setting(flag, *names, help=help, callback=parse, metavar="COUNT|TIME")


def span_of_time(flag: str, *names: str, help: str, default: str | None = None) -> Callable[[F], F]:
    """A setting that is a length of time with its unit, in seconds."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
        return None if value is None else parse_time(value)

    return setting(flag, *names, help=help, default=default, callback=parse, metavar="TIME")


def names(flag: str, *others: str, help: str) -> Callable[[F], F]:
    """A setting that is a list of names, with commas between them."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
        return () if value is None else tuple(filter(None, map(str.strip, value.split(","))))

    return setting(flag, *others, help=help, callback=parse, metavar="NAME[,NAME]")


def database(flag: str, *names: str, help: str) -> Callable[[F], F]:
    """A setting that says where a store keeps its data: the path of a SQLite database, the URL of one of PostgreSQL, or
    None for memory."""

    def parse(_: click.Context, __: click.Parameter, value: str) -> str | None:
        return database_url(value)

    metavar = "memory:|sqlite:PATH|postgresql://…"
    return setting(flag, *names, help=help, default="memory:", callback=parse, metavar=metavar)


def database_url(text: str) -> str | None:
    """The path of a SQLite database, the URL of one of PostgreSQL, None for memory. click.BadParameter for neither."""
    return text if is_postgres(text) else parse_database(text)


def namespace(option: Callable[..., Callable[[F], F]]) -> Callable[[F], F]:
    """The flag ``--namespace`` of a command whose ``--database`` may be one of PostgreSQL.

    Args:
        option: Makes it, as that of the database is made.
    """

    def decorate(command: F) -> F:
        @wraps(command)
        def checked(database: str | None, namespace: str | None, **others: Any) -> Any:
            if namespace is not None and not is_postgres(database or ""):
                message = "it is for a PostgreSQL database; give --database postgresql://… with it"
                raise click.BadParameter(message, param_hint="'--namespace'")
            return command(database=database, namespace=namespace or NAMESPACE, **others)

        help = f"For PostgreSQL. Which store in the database, {NAMESPACE} if not given."
        return option("--namespace", help=help)(cast(F, checked))

    return decorate


def parse_database(text: str) -> str | None:
    """The path of a SQLite database, None for memory. click.BadParameter for neither."""
    try:
        return database_path(text)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from None


def parse_retention(text: str) -> Retention:
    """So many for a plain whole number, for so long for one with a unit. click.BadParameter for neither, and for 0."""
    plain = text.strip()
    count = int(plain) if re.fullmatch(r"\d{1,18}", plain, re.ASCII) else None
    seconds = parse_time(text) if count is None and not plain[-1:].isdigit() else None
    if not (count or seconds):
        raise click.BadParameter(f"{text!r} is neither how many to keep, like 10000, nor how long, like 3600s or 12h")
    return Retention(count, seconds)


def parse_time(text: str) -> float:
    """Seconds of ``"90"``, ``"90s"``, ``"1.5h"`` or ``"7d"``. click.BadParameter if it is none of these."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d*)?)\s*([smhd]?)", text.strip().lower(), re.ASCII)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a length of time; give one like 90s, 15m, 12h or 7d")
    return float(found[1]) * TIME_UNITS[found[2] or "s"]


def parse_bytes(text: str) -> int:
    """Bytes of ``"8000000000"``, ``"8e9"``, ``"8GB"`` or ``"8GiB"``. click.BadParameter if it is none of these."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d{1,2})?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in UNITS:
        raise click.BadParameter(f"{text!r} is not a number of bytes; give one like 8000000000, 8GB or 8GiB")
    number, unit = found[1], UNITS[found[2]]
    return int(number) * unit if number.isdigit() else round(float(number) * unit)


def parse_threshold(text: str) -> float | int:
    """A share of memory, as a float, for a number above 0 and up to 1; any other one is bytes, as an int.

    A small number of bytes needs a unit: who writes 8 means 8 GiB as a rule.
    """
    try:
        number = float(text)
    except ValueError:
        return parse_bytes(text)
    if 0 < number <= 1:
        return number
    if number > 1 and not number.is_integer():
        raise click.BadParameter(f"{text!r} is neither a ratio up to 1 nor a whole number of bytes")
    size_bytes = parse_bytes(text)
    if size_bytes < UNITLESS_BYTES_MIN:
        least = byte_size(UNITLESS_BYTES_MIN)
        raise click.BadParameter(
            f"{text!r} has no unit; below {least} give one, like {text.strip()}GiB or {text.strip()}B"
        )
    return size_bytes
