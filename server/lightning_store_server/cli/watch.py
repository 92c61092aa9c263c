"""The command that shows how the work goes on, live."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any, Final, get_args

import click

from lightning_store.clock import SystemClock
from lightning_store.lifecycle import TERMINAL
from lightning_store.model import RolloutStatus
from lightning_store_client import LightningStoreClient
from lightning_store_server.cli.options import Whole, seconds, setting
from lightning_store_server.cli.show import ask, on_server
from lightning_store_server.text import age

SHORT: Final = {"queuing": "queued", "preparing": "claimed", "requeuing": "again"}
"""Statuses whose names are shown in other words."""


@click.command()
@on_server
@seconds("--interval", min=0.1, default=2.0, help="How long to wait between two looks.")
@setting("--count", type=Whole(1), help="End after so many looks.")
def watch(server: str, timeout: float, as_json: bool, interval: float, count: int | None) -> None:
    """Show live where the rollouts stand, until Ctrl-C.

    A terminal has one line, that changes; a file or a pipe gets a line for each look, with --json a JSON object.
    """

    async def follow(client: LightningStoreClient) -> None:
        looks = 0
        async for look in _looks(client, interval):
            looks += 1
            _show(look, as_json)
            if looks == count:
                return

    with contextlib.suppress(KeyboardInterrupt):
        ask(server, timeout, follow)
    if not as_json and sys.stdout.isatty():
        click.echo()


async def _looks(client: LightningStoreClient, interval: float) -> AsyncIterator[dict[str, Any]]:
    while True:
        statistics = await client.statistics()
        busy = await client.query_workers(status_in=["busy"], limit=0)
        yield {**statistics, "busy_workers": busy.total, "time": SystemClock().now()}
        await asyncio.sleep(interval)


def _show(look: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(look))
    elif sys.stdout.isatty():
        click.echo(f"\r\033[K{line_of(look)[: _width() - 1]}", nl=False)
    else:
        click.echo(line_of(look))


def line_of(look: dict[str, Any]) -> str:
    """One line, of up to 80 columns as long as the numbers have up to three digits."""
    by_status = look.get("rollouts_by_status", {})
    parts = [
        f"{by_status[status]} {SHORT.get(status, status)}"
        for status in get_args(RolloutStatus)
        if by_status.get(status) and status not in TERMINAL
    ]
    if "oldest_queued_time" in look:
        parts.append(f"oldest {age(look['time'] - look['oldest_queued_time']).removesuffix(' ago')}")
    ended = sum(by_status.get(status, 0) for status in TERMINAL)
    parts += [f"{ended} ended", f"{look.get('completed_last_minute', 0)}/min"]
    parts.append(f"{look['busy_workers']}/{look['total_workers']} busy")
    if look.get("rejected_spans"):
        parts.append(f"{look['rejected_spans']} rejected")
    return ", ".join(parts)


def _width() -> int:
    from lightning_store_server.cli import tables

    return tables.console().width
