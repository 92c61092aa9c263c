"""The commands that delete what a served store holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import click

from lightning_store.clock import SystemClock
from lightning_store.lifecycle import TERMINAL
from lightning_store.model import Rollout, RolloutStatus
from lightning_store_client import LightningStoreClient
from lightning_store_server.cli.change import choose, dry_run, ids_of, listed, refuse, say
from lightning_store_server.cli.options import parse_time
from lightning_store_server.cli.selecting import Selection
from lightning_store_server.cli.show import ask, on_server


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
@dry_run
def delete(
    rollout_ids: tuple[str, ...],
    server: str,
    timeout: float,
    as_json: bool,
    older_than: float | None,
    statuses: tuple[RolloutStatus, ...],
    dry_run: bool,
) -> None:
    """Delete rollouts with their attempts and spans: those with these IDs, or those that ended long ago.

    With IDs, nothing is deleted unless each of them is there and all that is asked for holds for it.
    """
    if not rollout_ids and older_than is None:
        raise click.UsageError("say which rollouts: give IDs, or --older-than")
    if older_than is not None and statuses and not TERMINAL.intersection(statuses):
        raise click.UsageError(f"--older-than is about rollouts that ended, and {', '.join(statuses)} are not")

    async def change(client: LightningStoreClient) -> list[str]:
        found: Sequence[Rollout] = ()
        if rollout_ids or dry_run:
            found = await _chosen(client, server, rollout_ids, statuses, older_than)
        if dry_run:
            return ids_of(found)
        return await client.delete_rollouts(rollout_ids or None, older_than=older_than, status_in=statuses or None)

    deleted = ask(server, timeout, change)
    say("would delete" if dry_run else "deleted", deleted, len(deleted), as_json)


async def _chosen(
    client: LightningStoreClient,
    server: str,
    rollout_ids: Sequence[str],
    statuses: tuple[RolloutStatus, ...],
    older_than: float | None,
) -> Sequence[Rollout]:
    if rollout_ids:
        found = await choose(client, server, rollout_ids, Selection(statuses))
    else:
        found = await Selection(statuses).query(client)
    if older_than is None:
        return found
    before = SystemClock().now() - older_than
    old = [one for one in found if one.status in TERMINAL and one.end_time is not None and one.end_time <= before]
    if rollout_ids and len(old) < len(found):
        young = sorted(set(ids_of(found)) - set(ids_of(old)))
        raise click.ClickException(f"{listed(young)} did not end so long ago; nothing is changed")
    return old


@click.command("delete-workers")
@click.argument("worker_ids", metavar="ID...", nargs=-1, required=True)
@on_server
@dry_run
def delete_workers(worker_ids: tuple[str, ...], server: str, timeout: float, as_json: bool, dry_run: bool) -> None:
    """Delete workers. One that is at work is refused, and then none is deleted."""

    async def change(client: LightningStoreClient) -> list[str]:
        found = {worker_id for worker_id in worker_ids if await client.get_worker_by_id(worker_id) is not None}
        refuse(server, "worker", [one for one in worker_ids if one not in found])
        if not dry_run:
            return await client.delete_workers(worker_ids)
        for worker_id in found:
            await _check_idle(client, worker_id)
        return list(dict.fromkeys(worker_ids))

    deleted = ask(server, timeout, change)
    say("would delete" if dry_run else "deleted", deleted, len(deleted), as_json, "worker")


async def _check_idle(client: LightningStoreClient, worker_id: str) -> None:
    """What a deletion would check."""
    worker = await client.get_worker_by_id(worker_id)
    if worker is None or worker.current_rollout_id is None:
        return
    rollout = await client.get_rollout_by_id(worker.current_rollout_id)
    if rollout is not None and rollout.status not in TERMINAL and worker.status == "busy":
        raise click.ClickException(f"{worker_id!r} is at work on {rollout.rollout_id}, and is not deleted")


@click.command("delete-resources")
@click.argument("resources_ids", metavar="ID...", nargs=-1, required=True)
@on_server
@dry_run
def delete_resources(resources_ids: tuple[str, ...], server: str, timeout: float, as_json: bool, dry_run: bool) -> None:
    """Delete sets of resources. The latest one is refused, and then none is deleted."""

    async def change(client: LightningStoreClient) -> list[str]:
        found = {one for one in resources_ids if await client.get_resources_by_id(one) is not None}
        refuse(server, "resources", [one for one in resources_ids if one not in found])
        if not dry_run:
            return await client.delete_resources(resources_ids)
        latest = await client.get_latest_resources()
        if latest is not None and latest.resources_id in found:
            raise click.ClickException(f"{latest.resources_id!r} is the latest set of resources, and is not deleted")
        return list(dict.fromkeys(resources_ids))

    deleted = ask(server, timeout, change)
    say("would delete" if dry_run else "deleted", deleted, len(deleted), as_json, "set of resources")
