"""Rollouts a page at a time, which holds with a million of them: a page begins at a place, looks at so many rollouts at
the most, and tells where it has stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from lightning_store.backends.matching import matches
from lightning_store.backends.records import RolloutRow
from lightning_store.clock import Clock
from lightning_store.engine.engine import Engine
from lightning_store.errors import InvalidArgumentError
from lightning_store.loops import Slicer
from lightning_store.model import EndReason, RolloutMode, RolloutStatus
from lightning_store.queries import RolloutQuery
from lightning_store.store import LightningStore
from lightning_store_server.http.page.digest import Ended
from lightning_store_server.record_store import engine_of, records_of

PAGE_ROWS: Final = 50
LOOKED_MAX: Final = 20_000
"""Rollouts that one page looks at."""
LOOK_SECONDS: Final = 0.1
WINDOW_MIN: Final = 64
WINDOW_MAX: Final = 512
"""Places that are read at once."""
GAP_MAX: Final = 1 << 20
"""… where most of them are empty, since their rollouts were deleted."""

BY_PLACE: Final = {"newest": "newest first", "oldest": "oldest first"}
BY_DIGEST: Final = {
    "ended": "ended last first",
    "slowest": "longest attempt first",
    "fastest": "shortest attempt first",
    "best": "highest reward first",
    "worst": "lowest reward first",
}
"""Orders of the rollouts that ended last, as many as the overview remembers."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a page of rollouts is to show."""

    query: RolloutQuery
    text: str = ""
    """In the input or the metadata, as JSON text has it."""
    reward_min: float | None = None
    reward_max: float | None = None
    order: str = "newest"

    @property
    def of_digest(self) -> bool:
        """Whether only rollouts can be shown that the overview remembers."""
        return self.order in BY_DIGEST or self.reward_min is not None or self.reward_max is not None

    @classmethod
    def read(cls, given: Mapping[str, str], many: Mapping[str, Sequence[str]]) -> Filters:
        """Those of a request's query string. InvalidArgumentError names the one that is not legal."""

        def listed(name: str) -> list[str] | None:
            return [one.strip() for one in given.get(name, "").split(",") if one.strip()] or None

        statuses = [one for one in many.get("status", ()) if one]
        modes = [None if one == "none" else one for one in many.get("mode", ()) if one]
        reasons = [one for one in many.get("reason", ()) if one]
        order = given.get("order") or "newest"
        if order not in BY_PLACE | BY_DIGEST:
            raise InvalidArgumentError(f"order is {order!r}; give one of {', '.join(BY_PLACE | BY_DIGEST)}")
        query = RolloutQuery(
            status_in=statuses or None,  # type: ignore[arg-type]  # it checks them
            mode_in=modes or None,  # type: ignore[arg-type]
            end_reason_in=reasons or None,  # type: ignore[arg-type]
            worker_id_in=listed("worker"),
            resources_id_in=listed("resources"),
            group_id_in=listed("group"),
            metadata_equals=dict(map(_member, listed("metadata") or ())) or None,
            policy_version_min=_whole(given, "policy_min"),
            policy_version_max=_whole(given, "policy_max"),
            rollout_id_contains=given.get("id") or None,
            start_time_min=number(given, "since"),
            start_time_max=number(given, "until"),
        )
        return cls(
            query,
            given.get("text", "").strip(),
            number(given, "reward_min"),
            number(given, "reward_max"),
            order,
        )

    def passes(self, row: RolloutRow) -> bool:
        """Whether all but the reward fits."""
        return matches(row.rollout, self.query, row.attempt) and (
            not self.text
            or self.text in row.rollout.input_json
            or (row.rollout.metadata_json is not None and self.text in row.rollout.metadata_json)
        )


def number(given: Mapping[str, str], name: str) -> float | None:
    """The number under this name; None for none. InvalidArgumentError if it is something else."""
    text = given.get(name, "").strip()
    try:
        return float(text) if text else None
    except ValueError:
        raise InvalidArgumentError(f"{name} is {text!r}; give a number", field=name) from None


def _whole(given: Mapping[str, str], name: str) -> int | None:
    found = number(given, name)
    if found is not None and not found.is_integer():
        raise InvalidArgumentError(f"{name} is {given[name]!r}; give a whole number", field=name)
    return None if found is None else int(found)


def _member(text: str) -> tuple[str, Any]:
    """A member of the metadata, whose value is JSON if it reads as such and text otherwise."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidArgumentError(f"metadata has {text!r}; give name=value", field="metadata")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


STATUSES: Final = get_args(RolloutStatus)
MODES: Final = (*get_args(RolloutMode), "none")
REASONS: Final = get_args(EndReason)


@dataclass(frozen=True, slots=True)
class RolloutsPage:
    """Some rollouts, and how to go on."""

    rows: Sequence[RolloutRow]
    looked: int
    """Rollouts that were looked at for them."""
    next: str | None
    """Where the next page begins; None after the last."""
    of_last: int | None = None
    """Of so many that have ended last; None of all."""


class Listing:
    """Pages of rollouts of one store."""

    def __init__(self, store: LightningStore, clock: Clock) -> None:
        self._records = records_of(store)
        self._engine = engine_of(store)
        self._clock = clock
        self._last_place = 0

    async def page(self, filters: Filters, begin: str, ended: Sequence[Ended]) -> RolloutsPage:
        """A page that begins at ``begin``, which is empty for the first. InvalidArgumentError if it is not a place."""
        if begin and not (begin.isascii() and begin.isdigit() and len(begin) < 20):
            raise InvalidArgumentError(f"the page begins at {begin!r}; give a number", field="begin")
        place = int(begin) if begin else None
        if filters.of_digest:
            return await self._of_digest(filters, place or 0, ended)
        if self._engine is None or filters.query.group_id_in is not None:
            return await self._of_query(filters, place or 0)
        if filters.order == "oldest":
            return await self._upward(self._engine, filters, place or 0)
        return await self._downward(self._engine, filters, place)

    async def _of_digest(self, filters: Filters, offset: int, ended: Sequence[Ended]) -> RolloutsPage:
        low, high = filters.reward_min, filters.reward_max
        chosen = [
            one
            for one in ended
            if (low is None or (one.reward is not None and one.reward >= low))
            and (high is None or (one.reward is not None and one.reward <= high))
            and matches(one.rollout, filters.query, one.attempt)
        ]
        chosen = _ordered(chosen, filters.order)
        found: list[RolloutRow] = []
        place = offset
        until = self._clock.monotonic() + LOOK_SECONDS
        while place < len(chosen) and len(found) < PAGE_ROWS and self._clock.monotonic() < until:
            some = [one.rollout.rollout_id for one in chosen[place : place + PAGE_ROWS - len(found)]]
            place += len(some)
            found += [row for row in await self._rows(some) if row is not None and filters.passes(row)]
        return RolloutsPage(found, place - offset, str(place) if place < len(chosen) else None, len(ended))

    async def _rows(self, rollout_ids: Sequence[str]) -> Sequence[RolloutRow | None]:
        if self._engine is not None:
            return await self._engine.rollouts_as_stored(rollout_ids)
        found = (await self._records.query_rollouts(RolloutQuery(rollout_id_in=rollout_ids))).items
        by_id = {row.rollout.rollout_id: row for row in found}
        return [by_id.get(one) for one in rollout_ids]

    async def _of_query(self, filters: Filters, offset: int) -> RolloutsPage:
        """Of somebody else's store, or of groups, which have an index."""
        query = replace(
            filters.query,
            sort_by=None if self._engine is not None else "start_time",
            sort_order="asc" if filters.order == "oldest" else "desc",
            limit=PAGE_ROWS,
            offset=offset,
        )
        found = await self._records.query_rollouts(query)
        rows = [row for row in found.items if filters.passes(row)]
        reached = offset + len(found.items)
        return RolloutsPage(rows, len(found.items), str(reached) if reached < found.total else None)

    async def _upward(self, engine: Engine, filters: Filters, after: int) -> RolloutsPage:
        found: list[RolloutRow] = []
        looked, until, slicer = 0, self._clock.monotonic() + LOOK_SECONDS, Slicer()
        while True:
            rows = await engine.placed(after, WINDOW_MIN if looked < WINDOW_MIN else WINDOW_MAX)
            if not rows:
                return RolloutsPage(found, looked, None)
            for place, row in rows:
                if len(found) == PAGE_ROWS:
                    return RolloutsPage(found, looked, str(after))
                after, looked = place, looked + 1
                if filters.passes(row):
                    found.append(row)
            if looked >= LOOKED_MAX or self._clock.monotonic() > until:
                return RolloutsPage(found, looked, str(after))
            await slicer.breathe()

    async def _downward(self, engine: Engine, filters: Filters, before: int | None) -> RolloutsPage:
        """The other way, in windows of places: the store reads upward."""
        if before is None:
            before = await self._find_last(engine) + 1
        found: list[RolloutRow] = []
        looked, width = 0, WINDOW_MIN
        until, slicer = self._clock.monotonic() + LOOK_SECONDS, Slicer()
        while before > 1:
            low = max(1, before - width)
            rows = [one for one in await engine.placed(low - 1, WINDOW_MAX) if one[0] < before]
            if len(rows) == WINDOW_MAX and rows[-1][0] < before - 1:  # it was too wide
                width = max(WINDOW_MIN, width // 2)
                continue
            for place, row in reversed(rows):
                if len(found) == PAGE_ROWS:
                    return RolloutsPage(found, looked, str(before))
                before, looked = place, looked + 1
                if filters.passes(row):
                    found.append(row)
            before = low
            width = min(width * 2, WINDOW_MAX if len(rows) > WINDOW_MIN // 4 else GAP_MAX)
            if looked >= LOOKED_MAX or self._clock.monotonic() > until:
                break
            await slicer.breathe()
        return RolloutsPage(found, looked, str(before) if before > 1 else None)

    async def _find_last(self, engine: Engine) -> int:
        """The greatest place of all, looked for from the last one that was known."""
        low, step = self._last_place, 1
        while await engine.has_placed(low + step):
            step *= 2
        high = low + step
        while low < high:
            middle = (low + high) // 2
            if await engine.has_placed(middle):
                low = middle + 1
            else:
                high = middle
        self._last_place = low
        return low


def _ordered(chosen: list[Ended], order: str) -> list[Ended]:
    if order in ("slowest", "fastest"):
        timed = [one for one in chosen if one.seconds is not None]
        return sorted(timed, key=lambda one: one.seconds or 0.0, reverse=order == "slowest")
    if order in ("best", "worst"):
        rewarded = [one for one in chosen if one.reward is not None]
        return sorted(rewarded, key=lambda one: one.reward or 0.0, reverse=order == "best")
    return chosen if order == "oldest" else chosen[::-1]
