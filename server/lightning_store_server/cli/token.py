"""The commands that look after the file of tokens: create, list, revoke."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from lightning_store.clock import SystemClock
from lightning_store.wire.methods import Role
from lightning_store_server.cli.exit_codes import exiting
from lightning_store_server.cli.options import parse_bytes, setting, span_of_time, switch
from lightning_store_server.cli.show import echo_json
from lightning_store_server.tokens import Limits, add_token, read_tokens, revoke_token

F = TypeVar("F", bound=Callable[..., Any])

PER_SECOND: Final = click.FloatRange(min=0, min_open=True)


def _size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    size_bytes = None if text is None else parse_bytes(text)
    if size_bytes == 0:
        raise click.BadParameter("give more than 0")
    return size_bytes


@click.group()
def token() -> None:
    """Look after the tokens of a server.

    They are in the file that `serve --auth-tokens` names, as hashes. A server that runs reads it again when it changes.
    """


def on_file(command: F) -> F:
    """The flag that names the file."""
    flag = setting("--auth-tokens", "path", required=True, metavar="FILE", help="The file of tokens.")
    return flag(command)


@token.command()
@click.argument("name")
@on_file
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it lets do.")
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="PATTERN",
    help="Workers that a runner with it may be, like gpu-7-*: it claims as one of them, and reports on what they hold."
    " Any if left out. May be repeated.",
)
@span_of_time("--expires", help="Have it count for so long (12h, 90d); for ever if left out.")
@click.option("--calls-per-second", type=PER_SECOND, metavar="CALLS", help="Calls that it may make a second.")
@click.option("--spans-per-second", type=PER_SECOND, metavar="SPANS", help="Spans that it may store a second.")
@click.option(
    "--bytes-per-second",
    callback=_size,
    metavar="BYTES",
    help="Bytes of requests that it may send a second (8MB).",
)
def create(
    name: str,
    path: str,
    role: str,
    workers: tuple[str, ...],
    expires: float | None,
    calls_per_second: float | None,
    spans_per_second: float | None,
    bytes_per_second: float | None,
) -> None:
    """Make a token called NAME, and print it. It is shown this once.

    Roles, each of which may do what those before it may: reader (read; keys in resources are masked), runner (claim,
    report, heartbeats), algorithm (enqueue, cancel, publish resources, export), admin (delete, import).
    """
    if workers and role != Role.RUNNER.value:
        raise click.UsageError(f"--worker is for the role runner, and --role is {role}")
    now = _now()
    limits = Limits(
        calls_per_second=calls_per_second, spans_per_second=spans_per_second, bytes_per_second=bytes_per_second
    )
    with exiting():
        made = add_token(
            path,
            name,
            Role(role),
            now,
            expires=None if expires is None else now + timedelta(seconds=expires),
            workers=workers,
            limits=limits,
        )
    click.echo(made)


@token.command("list")
@on_file
@switch("--json", "as_json", help="Print them as one JSON document.")
def list_(path: str, as_json: bool) -> None:
    """List the tokens: their names, roles, times and limits."""
    with exiting():
        tokens = read_tokens(path).tokens
    if as_json:
        return echo_json([one.model_dump(mode="json", exclude={"sha256"}, exclude_none=True) for one in tokens])
    from lightning_store_server.cli import tables

    return tables.show(tables.tokens_table(tokens, SystemClock().now()))


@token.command()
@click.argument("name")
@on_file
def revoke(name: str, path: str) -> None:
    """Have the token called NAME count no longer. Calls that are under way end as they would have."""
    with exiting():
        revoke_token(path, name, _now())
    click.echo(f"revoked {name}")


def _now() -> datetime:
    return datetime.fromtimestamp(SystemClock().now(), UTC).replace(microsecond=0)
