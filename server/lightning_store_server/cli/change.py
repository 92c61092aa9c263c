"""The commands that change rollouts: enqueue, cancel, requeue."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

import click

from lightning_store.lifecycle import QUEUED, TERMINAL
from lightning_store.model import (
    PRIORITY_MAX,
    AdmissionState,
    EnqueueRolloutRequest,
    Rollout,
    RolloutConfig,
    RolloutMode,
)
from lightning_store_client import LightningStoreClient
from lightning_store_server.cli.options import Whole
from lightning_store_server.cli.selecting import Pair, Selection, parse_pair, selecting
from lightning_store_server.cli.show import ask, echo_json, on_server
from lightning_store_server.text import counted

F = TypeVar("F", bound=Callable[..., Any])


def dry_run(command: F) -> F:
    """The flag of each command that changes something."""
    return click.option("--dry-run", is_flag=True, help="Only say what would be done.")(command)


@click.command()
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@on_server
@click.option("--file", "lines", type=click.File(encoding="utf-8"), help="Inputs from a file, a line each; - is stdin.")
@click.option("--text", "as_text", is_flag=True, help="The inputs are text, not JSON.")
@click.option("--mode", type=click.Choice(get_args(RolloutMode)), help="Which split they belong to.")
@click.option("--resources", "resources_id", metavar="ID", help="The resources to use, otherwise the latest.")
@click.option(
    "--metadata",
    metavar="KEY=VALUE",
    multiple=True,
    callback=lambda _, __, texts: tuple(map(parse_pair, texts)),
    help="A member of their metadata; may be given several times.",
)
@click.option("--attempts", "max_attempts", type=Whole(1), default=1, show_default=True, help="Attempts in all.")
@click.option(
    "--priority",
    type=Whole(-PRIORITY_MAX, PRIORITY_MAX),
    default=0,
    show_default=True,
    help="Higher ones are claimed first.",
)
@click.option(
    "--idempotency-key",
    metavar="TEXT",
    help="Names these rollouts: enqueued again under it, they are there once, and their ids are printed.",
)
@dry_run
def enqueue(
    inputs: tuple[str, ...],
    server: str,
    timeout: float,
    as_json: bool,
    lines: Any,
    as_text: bool,
    mode: RolloutMode | None,
    resources_id: str | None,
    metadata: tuple[Pair, ...],
    max_attempts: int,
    priority: int,
    idempotency_key: str | None,
    dry_run: bool,
) -> None:
    """Put rollouts at the tail of the queue: one for each INPUT, which is JSON. All of them, or on any error none.

    Prints their ids, one on each line. An attempt that fails, times out or falls silent is tried again while attempts
    are left.
    """
    texts = [*inputs, *(line.rstrip("\n") for line in lines or () if line.strip())]
    if not texts:
        raise click.UsageError("say what to enqueue: give INPUTs, or --file")
    for pair in metadata:
        if pair.text is None:
            raise click.UsageError(f"--metadata {pair.path} has no value; give KEY=VALUE")
    config = RolloutConfig(max_attempts=max_attempts)
    if max_attempts > 1:
        config.retry_condition = ["failed", "timeout", "unresponsive"]
    requests = [
        EnqueueRolloutRequest(
            input=text if as_text else _parsed(text),
            mode=mode,
            resources_id=resources_id,
            config=config,
            metadata={pair.path: pair.value for pair in metadata} or None,
            priority=priority,
        )
        for text in texts
    ]
    if dry_run:
        return say("would enqueue", [], len(requests), as_json)
    queued = ask(
        server, timeout, lambda client: client.enqueue_many_rollouts(requests, idempotency_key=idempotency_key)
    )
    if as_json:
        return echo_json(list(queued))
    for rollout in queued:
        click.echo(rollout.rollout_id)
    return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        message = f"{text[:80]!r} is not JSON ({error}); quote text as '\"text\"', or give --text"
        raise click.UsageError(message) from None


@click.command()
@click.argument("rollout_ids", metavar="[ID]...", nargs=-1)
@on_server
@selecting(variables=False)
@dry_run
def cancel(
    rollout_ids: tuple[str, ...], server: str, timeout: float, as_json: bool, dry_run: bool, **flags: Any
) -> None:
    """End rollouts as cancelled: those with these IDs, or those that the flags choose.

    Their runners hear of it at their next heartbeat. Those that have ended stay as they are.
    """

    async def change(client: LightningStoreClient) -> list[Rollout]:
        chosen = await choose(client, server, rollout_ids, Selection.of(flags))
        open_ids = [rollout.rollout_id for rollout in chosen if rollout.status not in TERMINAL]
        if dry_run or not open_ids:
            return [rollout for rollout in chosen if rollout.rollout_id in open_ids]
        return await client.cancel_rollouts(open_ids)

    changed = ask(server, timeout, change)
    say("would cancel" if dry_run else "cancelled", ids_of(changed), len(changed), as_json)


@click.command()
@click.argument("rollout_ids", metavar="[ID]...", nargs=-1)
@on_server
@selecting(variables=False)
@dry_run
def requeue(
    rollout_ids: tuple[str, ...], server: str, timeout: float, as_json: bool, dry_run: bool, **flags: Any
) -> None:
    """Put rollouts back to the tail of the queue: those with these IDs, or those that the flags choose.

    One that is under way gets another attempt, and what its runner reports no longer decides. Those that are in the
    queue stay where they are.
    """

    async def change(client: LightningStoreClient) -> list[Rollout]:
        chosen = await choose(client, server, rollout_ids, Selection.of(flags))
        away = [rollout for rollout in chosen if rollout.status not in QUEUED]
        if dry_run:
            return away
        return [await client.update_rollout(rollout.rollout_id, status="requeuing") for rollout in away]

    changed = ask(server, timeout, change)
    say("would requeue" if dry_run else "requeued", ids_of(changed), len(changed), as_json)


@click.command()
@click.argument("run", metavar="[RUN]", required=False)
@on_server
@click.option("--max-open-groups", type=Whole(1), help="Groups that have begun and are not consumed, at the most.")
@click.option("--paused", is_flag=True, help="No group begins.")
@click.option("--unbounded", is_flag=True, help="Runners may go as far as they like.")
def admission(
    run: str | None,
    server: str,
    timeout: float,
    as_json: bool,
    max_open_groups: int | None,
    paused: bool,
    unbounded: bool,
) -> None:
    """Bound how far runners may go ahead with the groups of RUN.

    Without flags, show how far they have gone; without RUN, that of each run that is bounded.
    """
    changes = unbounded or paused or max_open_groups is not None
    if unbounded and (paused or max_open_groups is not None):
        raise click.UsageError("give --unbounded, or bounds")
    if run is None and changes:
        raise click.UsageError("say of which run")

    async def change(client: LightningStoreClient) -> list[AdmissionState]:
        if run is None:
            return [await client.get_admission(one.run) for one in await client.query_admissions()]
        if changes:
            await client.set_admission(run, max_open_groups=max_open_groups, paused=paused)
        return [await client.get_admission(run)]

    found = ask(server, timeout, change)
    if as_json:
        states = [dataclasses.asdict(state) for state in found]
        return echo_json(states if run is None else states[0])
    return click.echo("\n".join(map(_admission_text, found)) or "no run is bounded")


def _admission_text(state: AdmissionState) -> str:
    paused = "paused, " if state.admission.paused else ""
    bound = state.admission.max_open_groups
    of = "" if bound is None else f" of {bound}"
    begun = counted(state.open_groups, "group")
    return f"{state.admission.run}: {paused}{begun}{of} open, {state.waiting_groups} waiting"


async def choose(
    client: LightningStoreClient, server: str, rollout_ids: Sequence[str], selection: Selection
) -> Sequence[Rollout]:
    """The rollouts that a command is to change.

    Raises:
        click.UsageError: It does not say which.
        click.ClickException: One of the ids is not there, or the flags do not choose it.
    """
    if not rollout_ids and selection.is_empty:
        raise click.UsageError("say which rollouts: give IDs, or a flag that chooses some, such as --status")
    chosen = await selection.query(client, rollout_ids=rollout_ids or None)
    missing = sorted(set(rollout_ids) - set(ids_of(chosen)))
    if missing:
        there = {one.rollout_id for one in await client.query_rollouts(rollout_id_in=missing)}
        refuse(server, "rollout", [one for one in missing if one not in there])
        raise click.ClickException(f"what else is asked for does not hold for {listed(missing)}; nothing is changed")
    return chosen


def refuse(server: str, kind: str, unknown: Sequence[str]) -> None:
    """click.ClickException if there are ids of what there is not."""
    if unknown:
        raise click.ClickException(f"the store at {server} has no {kind} {listed(unknown)}; nothing is changed")


def listed(ids: Sequence[str]) -> str:
    """A few of them, quoted."""
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(map(repr, ids[:5])) + more


def ids_of(rollouts: Sequence[Rollout]) -> list[str]:
    return [rollout.rollout_id for rollout in rollouts]


def say(verb: str, ids: Sequence[str], count: int, as_json: bool, kind: str = "rollout") -> None:
    """Print what was done, or would be."""
    if as_json:
        return echo_json({verb.replace(" ", "_"): list(ids)} if ids or not count else {verb.replace(" ", "_"): count})
    click.echo(f"{verb} {counted(count, kind)}{_names(ids) if verb.startswith('would') else ''}")
    return None


def _names(ids: Sequence[str]) -> str:
    return "".join(f"\n{one}" for one in ids)
