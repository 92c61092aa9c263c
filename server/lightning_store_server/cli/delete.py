"""The commands that delete what a served store holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, get_args

import click

from lightning_store.clock import SystemClock
from lightning_store.lifecycle import TERMINAL
from lightning_store.model import ResourcesUpdate, Rollout, RolloutStatus
from lightning_store_client import LightningStoreClient
from lightning_store_server.cli.change import choose, dry_run, ids_of, listed, refuse, say
from lightning_store_server.cli.options import Whole, parse_time
from lightning_store_server.cli.selecting import Selection, selecting
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
@selecting(variables=False)
@dry_run
def delete(
    rollout_ids: tuple[str, ...],
    server: str,
    timeout: float,
    as_json: bool,
    older_than: float | None,
    dry_run: bool,
    **flags: Any,
) -> None:
    """Delete rollouts with their attempts and spans: those with these IDs, or those that ended long ago; of them, those
    that the flags choose.

    With IDs, nothing is deleted unless each of them is there and all that is asked for holds for it.
    """
    if not rollout_ids and older_than is None:
        raise click.UsageError("say which rollouts: give IDs, or --older-than")
    selection = Selection.of(flags)
    statuses = selection.statuses
    if older_than is not None and statuses and not TERMINAL.intersection(statuses):
        raise click.UsageError(f"--older-than is about rollouts that ended, and {', '.join(statuses)} are not")

    async def change(client: LightningStoreClient) -> list[str]:
        if not (rollout_ids or dry_run or selection.metadata or selection.contains):
            filters = selection.filters
            return await client.delete_rollouts(older_than=older_than, status_in=statuses or None, **filters)
        found = ids_of(await _chosen(client, server, rollout_ids, selection, older_than))
        return found if dry_run else await client.delete_rollouts(found, older_than=older_than)

    deleted = ask(server, timeout, change)
    say("would delete" if dry_run else "deleted", deleted, len(deleted), as_json)


async def _chosen(
    client: LightningStoreClient,
    server: str,
    rollout_ids: Sequence[str],
    selection: Selection,
    older_than: float | None,
) -> Sequence[Rollout]:
    if rollout_ids:
        found = await choose(client, server, rollout_ids, selection)
    else:
        found = await selection.query(client)
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
@click.argument("resources_ids", metavar="[ID]...", nargs=-1)
@on_server
@click.option(
    "--keep",
    type=Whole(1),
    metavar="N",
    help="Instead of IDs: all but the N newest of each run, and but those that rollouts have which have not ended.",
)
@dry_run
def delete_resources(
    resources_ids: tuple[str, ...], server: str, timeout: float, as_json: bool, keep: int | None, dry_run: bool
) -> None:
    """Delete sets of resources. The latest one, of all or of a run, is refused, and then none is deleted."""
    if bool(resources_ids) == (keep is not None):
        raise click.UsageError("give IDs, or --keep")

    async def change(client: LightningStoreClient) -> list[str]:
        if keep is not None:
            unneeded = await _unneeded(client, keep)
            return unneeded if dry_run else await client.delete_resources(unneeded)
        found = [await client.get_resources_by_id(one) for one in resources_ids]
        refuse(server, "resources", [one for one, there in zip(resources_ids, found, strict=True) if there is None])
        if not dry_run:
            return await client.delete_resources(resources_ids)
        for run in {None, *(one.run for one in found if one is not None)}:
            latest = await client.get_latest_resources(run=run)
            if latest is not None and latest.resources_id in resources_ids:
                message = f"{latest.resources_id!r} is the latest set of resources, and is not deleted"
                raise click.ClickException(message)
        return list(dict.fromkeys(resources_ids))

    deleted = ask(server, timeout, change)
    say("would delete" if dry_run else "deleted", deleted, len(deleted), as_json, "set of resources")


async def _unneeded(client: LightningStoreClient, keep: int) -> list[str]:
    """All resources but the newest of each run, the latest ones, and those of rollouts that have not ended."""
    by_run: defaultdict[str | None, list[ResourcesUpdate]] = defaultdict(list)
    for one in await client.query_resources():
        by_run[one.run].append(one)
    old: list[str] = []
    needed: set[str | None] = set()
    for published in by_run.values():
        needed.add(max(published, key=lambda one: one.policy_version).resources_id)  # that its rollouts get
        published.sort(key=lambda one: (one.policy_version, one.update_time))
        old += [one.resources_id for one in published[:-keep]]
    latest = await client.get_latest_resources()
    if latest is not None:
        needed.add(latest.resources_id)
    if old:
        unfinished = [one for one in get_args(RolloutStatus) if one not in TERMINAL]
        using = await client.query_rollouts(status_in=unfinished, resources_id_in=old)
        needed.update(one.resources_id for one in using)
    return [one for one in old if one not in needed]
