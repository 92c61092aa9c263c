"""Which rollouts a command is about: the flags that several commands share, and what they choose.

The store filters by all but members of members of metadata: by these the command filters itself, what the store streams
to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple, TypeVar, cast, get_args

import click

from lightning_store.clock import SystemClock
from lightning_store.labels import RESERVED_PREFIX
from lightning_store.model import (
    TIME_MAX_SECONDS,
    EndReason,
    PaginatedResult,
    Rollout,
    RolloutFilters,
    RolloutMode,
    RolloutStatus,
    SortOrder,
)
from lightning_store_client import LightningStoreClient
from lightning_store_server.cli.options import Whole, parse_time, setting

F = TypeVar("F", bound=Callable[..., Any])


class Pair(NamedTuple):
    """A member of the metadata."""

    path: str
    value: Any
    """``...`` for any."""
    text: str | None
    """The value as it was given."""


@dataclass(frozen=True)
class Selection:
    """What the flags choose: rollouts for which all of it holds."""

    statuses: tuple[RolloutStatus, ...] = ()
    contains: str | None = None
    modes: tuple[str, ...] = ()
    """``"none"`` for those without one."""
    metadata: tuple[Pair, ...] = ()
    workers: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    labels: tuple[Pair, ...] = ()
    reasons: tuple[EndReason, ...] = ()
    policy_min: int | None = None
    policy_max: int | None = None
    groups: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None

    @classmethod
    def of(cls, flags: dict[str, Any]) -> Selection:
        """Takes its flags out of those of a command."""
        return cls(**{one.name: flags.pop(one.name) for one in fields(cls)})

    @property
    def is_empty(self) -> bool:
        """Whether it chooses every rollout."""
        return self == Selection()

    @property
    def filters(self) -> RolloutFilters:
        """What the store filters by, beside status and id."""
        return RolloutFilters(
            mode_in=[None if one == "none" else cast(RolloutMode, one) for one in self.modes] or None,
            worker_id_in=self.workers or None,
            resources_id_in=self.resources or None,
            metadata_equals={f"{RESERVED_PREFIX}{one.path}": one.value for one in self.labels} or None,
            end_reason_in=self.reasons or None,
            group_id_in=self.groups or None,
            policy_version_min=self.policy_min,
            policy_version_max=self.policy_max,
            start_time_min=None if self.since is None else max(0.0, self.since),
            start_time_max=None if self.until is None else max(0.0, math.nextafter(self.until, math.inf)),
        )

    def matches(self, rollout_id: str, metadata: Mapping[str, Any] | None) -> bool:
        """Whether all holds that the store does not filter by: what ``filters`` leaves out, but for the status."""
        return (self.contains or "") in rollout_id and all(has_member(metadata, pair) for pair in self.metadata)

    async def query(
        self,
        client: LightningStoreClient,
        *,
        rollout_ids: Sequence[str] | None = None,
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Rollout]:
        """The rollouts that are chosen, of all or of these."""
        page = (-1, 0) if self.metadata else (limit, offset)
        found = await client.query_rollouts(
            status_in=self.statuses or None,
            rollout_id_in=rollout_ids,
            rollout_id_contains=self.contains,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=page[0],
            offset=page[1],
            **self.filters,
        )
        if not self.metadata:
            return found
        chosen = [one for one in found if self.matches(one.rollout_id, one.metadata)]
        end = None if limit < 0 else offset + limit
        return PaginatedResult(chosen[offset:end], limit, offset, len(chosen))


def selecting(*, variables: bool = True) -> Callable[[F], F]:
    """The flags of a Selection.

    Args:
        variables: Whether they have environment variables too. Nothing is changed for what the environment holds,
            perhaps for another command.
    """

    def flag(name: str, *names: str, **attributes: Any) -> Callable[[F], F]:
        return setting(name, *names, **attributes) if variables else click.option(name, *names, **attributes)

    def decorate(command: F) -> F:
        for one in reversed(
            [
                flag(
                    "--status",
                    "statuses",
                    type=click.Choice(get_args(RolloutStatus)),
                    multiple=True,
                    help="Only rollouts with this status; may be given several times, as the flags that follow.",
                ),
                flag("--contains", metavar="TEXT", help="Only rollouts whose id has this in it."),
                flag(
                    "--mode",
                    "modes",
                    type=click.Choice([*get_args(RolloutMode), "none"]),
                    multiple=True,
                    help="Only rollouts of this mode; none is those without one.",
                ),
                flag(
                    "--metadata",
                    metavar="KEY[=VALUE]",
                    multiple=True,
                    callback=lambda _, __, texts: tuple(map(parse_pair, texts)),
                    help="Only rollouts whose metadata has this; a.b is member b of a.",
                ),
                flag(
                    "--worker",
                    "workers",
                    metavar="ID",
                    multiple=True,
                    help="Only rollouts whose latest attempt it has.",
                ),
                flag("--resources", metavar="ID", multiple=True, help="Only rollouts with these resources."),
                flag(
                    "--label",
                    "labels",
                    metavar="KEY=VALUE",
                    multiple=True,
                    callback=lambda _, __, texts: tuple(map(parse_label, texts)),
                    help="Only rollouts whose metadata has lightning.KEY with this value, for which there is an index.",
                ),
                flag(
                    "--end-reason",
                    "reasons",
                    type=click.Choice(get_args(EndReason)),
                    multiple=True,
                    help="Only rollouts that failed or were cancelled for this reason.",
                ),
                flag(
                    "--policy-min",
                    type=Whole(0),
                    metavar="VERSION",
                    help="Only rollouts whose latest attempt began with this policy version or a later one.",
                ),
                flag(
                    "--policy-max",
                    type=Whole(0),
                    metavar="VERSION",
                    help="Only rollouts whose latest attempt began with this policy version or an earlier one.",
                ),
                flag("--group", "groups", metavar="ID", multiple=True, help="Only members of this group."),
                flag(
                    "--since",
                    metavar="TIME",
                    callback=_moment,
                    help="Only rollouts made since: 15m, 12h, 7d ago, or a date.",
                ),
                flag("--until", metavar="TIME", callback=_moment, help="Only rollouts made until then."),
            ]
        ):
            command = one(command)
        return command

    return decorate


def _moment(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    return None if text is None else parse_moment(text, SystemClock().now())


def parse_moment(text: str, now: float) -> float:
    """Seconds since the epoch of ``"15m"`` (before ``now``) or of an ISO date and time, local unless it has a zone."""
    if not re.match(r"\s*\d{4}-", text):
        return now - parse_time(text)
    try:
        seconds = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        message = f"{text!r} is no time; give a length of time like 15m or 7d, or a date like 2026-01-31T12:00"
        raise click.BadParameter(message) from None
    if not 0 <= seconds <= TIME_MAX_SECONDS:
        raise click.BadParameter(f"{text!r} is not between 1970 and 2262")
    return seconds


def parse_pair(text: str) -> Pair:
    """The member and its value, which is JSON if it reads as such and text otherwise; ``...`` without one."""
    path, equals, value = text.partition("=")
    if not path:
        raise click.BadParameter(f"{text!r} names no member; give KEY or KEY=VALUE")
    if not equals:
        return Pair(path, ..., None)
    try:
        return Pair(path, json.loads(value), value)
    except ValueError:
        return Pair(path, value, value)


def parse_label(text: str) -> Pair:
    """The same with a value, for a key that may leave out its prefix."""
    pair = parse_pair(text)
    if pair.text is None:
        raise click.BadParameter(f"{text!r} has no value; give KEY=VALUE")
    return pair._replace(path=pair.path.removeprefix(RESERVED_PREFIX))


def has_member(metadata: Mapping[str, Any] | None, pair: Pair) -> bool:
    """Whether the metadata has this member, by its whole name or step by step, with this value."""
    found: Any = metadata or {}
    for step in [pair.path] if pair.path in found else pair.path.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return False
        found = found[step]
    if isinstance(found, str):
        return pair.value is ... or found == pair.text
    return pair.value is ... or (found == pair.value and isinstance(found, bool) == isinstance(pair.value, bool))
