"""The commands that look into a served store, as tables for people and as JSON for programs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, get_args

import click
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from lightning_store.errors import (
    SpansEvictedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from lightning_store.items import parts
from lightning_store.lifecycle import group_status
from lightning_store.masking import masked
from lightning_store.model import (
    Attempt,
    Group,
    PaginatedResult,
    ResourcesUpdate,
    Rollout,
    SortOrder,
    Span,
    Worker,
    WorkerStatus,
)
from lightning_store_client import LightningStoreClient
from lightning_store_server.cli.connecting import client_of, on_any_server
from lightning_store_server.cli.options import Whole, seconds, setting, switch
from lightning_store_server.cli.selecting import Selection, selecting
from lightning_store_server.rewards import rewards_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

ROLLOUT_ORDERS = ("rollout_id", "start_time", "end_time", "mode", "resources_id", "status")


HEALTH_SECONDS = 2.0
REWARDED_MAX = 200
"""Rows for which rewards are looked up."""


def on_server(command: F) -> F:
    """The flags of each command that asks a server and shows the answer."""
    timeout = seconds("--timeout", min_open=True, default=10.0, help="Give up after this long.")
    as_json = switch("--json", "as_json", help="Print the whole answer as one JSON document.")
    return on_any_server(timeout(as_json(command)))


def paged(command: F) -> F:
    """The flags that choose a part of many rows."""
    limit = setting("--limit", type=Whole(-1), default=50, help="Rows at most; -1 for all.")
    offset = setting("--offset", type=Whole(0), default=0, help="Rows to skip.")
    return limit(offset(command))


@click.command()
@on_any_server
@seconds("--timeout", min_open=True, default=HEALTH_SECONDS, help="Give up after this long.")
@switch("--json", "as_json", help="Print the answer as one JSON document.")
def health(server: str, timeout: float, as_json: bool) -> None:
    """Probe a server: exit code 0 if it is serving, 1 if not."""
    serving = ask(server, timeout, lambda client: client.healthy(timeout=timeout))
    if as_json:
        echo_json({"server": server, "serving": serving})
    else:
        click.echo(f"{server} {'SERVING' if serving else 'NOT_SERVING: no store answers, or it is shutting down'}")
    if not serving:
        raise click.exceptions.Exit(1)


@click.command()
@on_server
def stats(server: str, timeout: float, as_json: bool) -> None:
    """Show what a server is and how much it stores."""

    async def question(client: LightningStoreClient) -> dict[str, Any]:
        info = dataclasses.asdict(await client.server_info())
        statistics = await client.statistics()
        statistics.pop("name")  # it names the client that asked
        return {"server": info, "statistics": statistics}

    answer = ask(server, timeout, question)
    if as_json:
        return echo_json(answer)
    from lightning_store_server.cli import tables  # rich is slow to import, and programs do not need it

    return tables.show(tables.statistics_table(server, answer["server"], answer["statistics"], tables.now()))


@click.command()
@on_server
@selecting()
@paged
@setting("--sort-by", type=click.Choice(ROLLOUT_ORDERS), help="Sort by this field, otherwise as they were enqueued.")
@switch("--desc", help="The last ones first.")
def rollouts(
    server: str,
    timeout: float,
    as_json: bool,
    limit: int,
    offset: int,
    sort_by: str | None,
    desc: bool,
    **flags: Any,
) -> None:
    """List rollouts, each with its latest attempt.

    TOOK is what that took, without the time in the queue. REWARD is the last number in its spans that is called a
    reward; it is looked up in tables of up to 200 rows.
    """
    selection = Selection.of(flags)
    sort_order: SortOrder = "desc" if desc else "asc"

    async def question(client: LightningStoreClient) -> tuple[PaginatedResult[Rollout], dict[str, float]]:
        page = await selection.query(client, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset)
        return page, {} if as_json or len(page) > REWARDED_MAX else await rewards_of(client, page)

    page, rewards = ask(server, timeout, question)
    show_page(page, as_json, "rollouts", rewards=rewards)


@click.command()
@on_server
@selecting()
@setting("--min-done", type=Whole(1), metavar="N", help="How many members have to succeed; otherwise all.")
def groups(server: str, timeout: float, as_json: bool, min_done: int | None, **flags: Any) -> None:
    """List the groups of rollouts: those that have members which the flags choose.

    A group is whole when all its members have succeeded, and failed when too few of them can. With --min-done it is
    partial when so many have succeeded and the others have ended otherwise.
    """
    selection = Selection.of(flags)

    async def question(client: LightningStoreClient) -> list[Group]:
        chosen = await selection.query(client)
        ids = dict.fromkeys(rollout.group_id for rollout in chosen if rollout.group_id is not None)
        members: dict[str, list[Rollout]] = {group_id: [] for group_id in ids}
        for some in parts(list(ids)):
            for rollout in await client.query_rollouts(group_id_in=some):
                members[rollout.group_id or ""].append(rollout)
        return [_group_of(group_id, found, min_done) for group_id, found in members.items() if found]

    found = ask(server, timeout, question)
    if as_json:
        return echo_json([dataclasses.asdict(group) for group in found])
    from lightning_store_server.cli import tables

    return tables.show(tables.groups_table(found, tables.now(), dates=tables.has_dates()))


def _group_of(group_id: str, members: Sequence[Rollout], min_done: int | None) -> Group:
    size = max(len(members), *(one.group_size or 0 for one in members))
    needed = size if min_done is None else min(min_done, size)
    return Group(group_id, size, group_status([one.status for one in members], size, needed), members)


@click.command()
@click.argument("rollout_id", metavar="ID")
@on_server
def rollout(rollout_id: str, server: str, timeout: float, as_json: bool) -> None:
    """Show one rollout with its attempts and their spans."""

    async def question(
        client: LightningStoreClient,
    ) -> tuple[Rollout | None, PaginatedResult[Attempt] | None, PaginatedResult[Span] | None]:
        found = await client.get_rollout_by_id(rollout_id)
        if found is None:
            return None, None, None
        try:
            spans = await client.query_spans(rollout_id)
        except SpansEvictedError:
            spans = None
        return found, await client.query_attempts(rollout_id), spans  # after the spans: none lacks its attempt

    found, attempts, spans = ask(server, timeout, question)
    if found is None or attempts is None:
        raise click.ClickException(f"the store at {server} has no rollout {rollout_id!r}")
    if as_json:
        span_list = None if spans is None else list(spans)
        return echo_json({"rollout": found, "attempts": list(attempts), "spans": span_list})
    from lightning_store_server.cli import tables

    return tables.show(tables.rollout_tree(found, attempts, spans, tables.now()))


# No variables: those of these names are about rollouts.
@click.command()
@on_server
@click.option(
    "--status",
    "statuses",
    type=click.Choice(get_args(WorkerStatus)),
    multiple=True,
    help="Only workers with this status; may be given several times.",
)
@click.option("--contains", metavar="TEXT", help="Only workers whose id has this in it.")
@paged
def workers(
    server: str,
    timeout: float,
    as_json: bool,
    statuses: tuple[WorkerStatus, ...],
    contains: str | None,
    limit: int,
    offset: int,
) -> None:
    """List the workers that the store knows."""

    async def question(client: LightningStoreClient) -> PaginatedResult[Worker]:
        return await client.query_workers(
            status_in=statuses or None, worker_id_contains=contains, limit=limit, offset=offset
        )

    show_page(ask(server, timeout, question), as_json, "workers")


@click.command()
@click.argument("resources_id", metavar="[ID]", required=False)
@on_server
@paged
@switch("--show-secrets", help="Show keys and passwords, which are masked otherwise.")
def resources(
    resources_id: str | None,
    server: str,
    timeout: float,
    as_json: bool,
    limit: int,
    offset: int,
    show_secrets: bool,
) -> None:
    """List the sets of resources, or show the one with this ID."""
    shown = jsonable if show_secrets else _masked
    if resources_id is None:
        page = ask(server, timeout, lambda client: client.query_resources(limit=limit, offset=offset))
        return show_page(page, as_json, "resources", shown)
    found = ask(server, timeout, lambda client: client.get_resources_by_id(resources_id))
    if found is None:
        raise click.ClickException(f"the store at {server} has no resources {resources_id!r}")
    if as_json:
        return echo_json(shown(found))
    from lightning_store_server.cli import tables

    return tables.show(*tables.resources_detail(found, tables.now(), show_secrets=show_secrets))


def _masked(update: ResourcesUpdate) -> object:
    return masked(jsonable(update))


def ask(server: str, timeout: float, question: Callable[[LightningStoreClient], Awaitable[T]]) -> T:
    """The answer of the store at ``server``, or one clear line and exit code 1. Nothing is tried twice."""

    async def session() -> T:
        async with client_of(server, timeout=timeout, retry_delays=(), health_retry_delays=()) as client:
            return await question(client)

    try:
        return asyncio.run(session())
    except (StoreUnavailableError, StoreTimeoutError) as error:
        raise click.ClickException(f"no answer from a store at {server}: {error}") from None
    except StoreError as error:
        raise click.ClickException(f"the store at {server} refused: {error}") from None


def show_page(
    page: PaginatedResult[Any],
    as_json: bool,
    kind: str,
    shown: Callable[[Any], object] = lambda row: row,
    **more: Any,
) -> None:
    """Print one page of ``kind``: rollouts, workers or resources. As JSON each row is what ``shown`` makes of it."""
    if as_json:
        items = [shown(row) for row in page]
        return echo_json({"total": page.total, "limit": page.limit, "offset": page.offset, "items": items})
    from lightning_store_server.cli import tables

    table = tables.PAGE_TABLES[kind](page, tables.now(), dates=tables.has_dates(), **more)
    return tables.show(table, tables.page_note(page, kind))


def echo_json(document: object) -> None:
    """Print ``document`` as JSON that every parser reads: NaN and the infinities become text, as in protobuf's JSON."""
    text = json.dumps(document, default=jsonable)
    click.echo(json.dumps(json.loads(text, parse_constant=str), indent=2))


def jsonable(value: object) -> object:
    """``value`` in types that :mod:`json` knows, at least on its outside."""
    if isinstance(value, BaseModel):
        return value.model_dump()  # pydantic's own JSON would have null for NaN
    return to_jsonable_python(value, bytes_mode="base64")
