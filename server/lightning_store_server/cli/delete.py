"""The command that deletes rollouts from a served store."""

from __future__ import annotations

from typing import get_args

import click

from lightning_store.model import RolloutStatus
from lightning_store_server.cli.options import parse_time
from lightning_store_server.cli.show import ask, echo_json, on_server


# The selection has no variables: nothing is deleted for what the environment holds, perhaps for another command.
@click.command()
@click.argument("rollout_ids", metavar="[ID]...", nargs=-1)
@on_server
@click.option(
    "--older-than",
    metavar="TIME",
    callback=lambda _, __, text: None if text is None else parse_time(text),
    help="Only rollouts that ended so long ago or longer: 3600s, 15m, 12h, 7d; 0 is all that ended.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(get_args(RolloutStatus)),
    multiple=True,
    help="Only rollouts with this status; may be given several times.",
)
def delete(
    rollout_ids: tuple[str, ...],
    server: str,
    timeout: float,
    as_json: bool,
    older_than: float | None,
    statuses: tuple[RolloutStatus, ...],
) -> None:
    """Delete rollouts with their attempts and spans: those with these IDs, or those that ended long ago."""
    if not rollout_ids and older_than is None:
        raise click.UsageError("say which rollouts: give IDs, or --older-than")
    deleted = ask(
        server,
        timeout,
        lambda client: client.delete_rollouts(rollout_ids or None, older_than=older_than, status_in=statuses or None),
    )
    if as_json:
        return echo_json({"deleted": deleted})
    return click.echo(f"deleted {len(deleted)} rollout{'' if len(deleted) == 1 else 's'}")
