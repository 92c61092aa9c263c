"""What people see: tables as wide as the terminal, and a rollout as a tree."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, get_args

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lightning_store.clock import SystemClock
from lightning_store.masking import masked
from lightning_store.model import (
    Attempt,
    AttemptedRollout,
    Group,
    PaginatedResult,
    Resource,
    ResourcesUpdate,
    Rollout,
    RolloutStatus,
    Span,
    Worker,
)
from lightning_store_server.rewards import final_reward, nested
from lightning_store_server.text import age, byte_size, clip, duration, moment, short_json
from lightning_store_server.tokens import Token

WIDTH_WITHOUT_TERMINAL: Final = 160
"""Columns where the output goes into a file or a pipe."""
TREE_DEPTH_MAX: Final = 12
"""Spans nested deeper are drawn at this depth."""
WIDE_MIN: Final = 10
"""Columns that the last column of a table has at least."""
DATES_WIDTH_MIN: Final = 120
"""A terminal with so many columns shows moments with their dates, a narrower one as ages."""
VALUE_MAX: Final = 40
"""Characters of an attribute's value in the tree."""
REWARDS: Final = ("reward", "score")
"""Attributes with such a word in their name are shown beside their span."""

LIMITS: Final = {
    "total_bytes": "memory_limit_bytes",
    "total_span_bytes": "eviction_threshold_bytes",
    "disk_used_bytes": "disk_limit_bytes",
}
"""Statistics with what limits them."""

STYLES: Final = {
    "succeeded": "green",
    "OK": "green",
    "idle": "green",
    "running": "cyan",
    "busy": "cyan",
    "failed": "red",
    "ERROR": "red",
    "timeout": "red",
    "unresponsive": "red",
    "cancelled": "yellow",
    "requeuing": "yellow",
}

TOLD_BY_STATUS = (None, "error", "cancelled")

Cell = str | Text


def now() -> float:
    """The moment that ages are counted from."""
    return SystemClock().now()


def console() -> Console:
    """Stdout: in colour and to its width on a terminal, plain elsewhere."""
    clipped = sys.stdout.isatty() or "COLUMNS" in os.environ
    width = None if clipped else WIDTH_WITHOUT_TERMINAL
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


def has_dates() -> bool:
    """Whether there is room for the dates of moments."""
    return console().width >= DATES_WIDTH_MIN


def show(*parts: RenderableType) -> None:
    """Print to stdout."""
    printer = console()
    for part in parts:
        printer.print(part)


def styled(word: str) -> Text:
    """A status in its colour."""
    return Text(clip(word), style=STYLES.get(word, ""))


def outcome(rollout: Rollout) -> Text:
    """The status, with what it does not say of why."""
    text = styled(rollout.status)
    return text if rollout.end_reason in TOLD_BY_STATUS else text.append(f" ({rollout.end_reason})")


# --- Tables ----------------------------------------------------------------------------------------------------------


def table_of(*names: str, wide: str | None = None) -> Table:
    """An empty table, whose rows are a line each. The last column, ``wide``, is cut to what is left of the terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=wide is not None, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    if wide is not None:
        table.add_column(wide, no_wrap=True, overflow="ellipsis", ratio=1, width=WIDE_MIN)
    return table


def when(time: float | None, now: float, dates: bool) -> str:
    """A moment, in short where there is no room for dates."""
    return moment(time, now) if dates else "" if time is None else age(now - time)


def rollouts_table(
    page: Sequence[Rollout], now: float, *, dates: bool = True, rewards: Mapping[str, float] | None = None
) -> Table:
    """A row for each rollout; TOOK is what its latest attempt took, without the time in the queue."""
    table = table_of("ROLLOUT", "STATUS", "MODE", "ATTEMPT", "CREATED", "TOOK", "REWARD", wide="INPUT")
    for rollout in page:
        attempt = rollout.attempt if isinstance(rollout, AttemptedRollout) else None
        reward = (rewards or {}).get(rollout.rollout_id)
        table.add_row(
            clip(rollout.rollout_id),
            outcome(rollout),
            rollout.mode or "",
            f"{0 if attempt is None else attempt.sequence_id}/{rollout.config.max_attempts}",
            when(rollout.start_time, now, dates),
            "" if attempt is None else took(attempt.start_time, attempt.end_time),
            "" if reward is None else f"{reward:.4g}",
            short_json(rollout.input),
        )
    return table


def groups_table(page: Sequence[Group], now: float, *, dates: bool = True) -> Table:
    """A row for each group; DONE is how many of its members have succeeded."""
    table = table_of("GROUP", "STATUS", "DONE", "FAILED", "CANCELLED", "CREATED", wide="MEMBERS")
    for group in page:
        counts = Counter(rollout.status for rollout in group.rollouts)
        table.add_row(
            clip(group.group_id),
            styled(group.status),
            f"{counts['succeeded']}/{group.size}",
            str(counts["failed"] or ""),
            str(counts["cancelled"] or ""),
            when(group.rollouts[0].start_time, now, dates),
            " ".join(group.rollout_ids),
        )
    return table


def workers_table(page: Sequence[Worker], now: float, *, dates: bool = True) -> Table:
    table = table_of("WORKER", "STATUS", "ROLLOUT", "ATTEMPT", "HEARTBEAT", wide="STATS")
    for worker in page:
        table.add_row(
            clip(worker.worker_id),
            styled(worker.status),
            clip(worker.current_rollout_id or ""),
            clip(worker.current_attempt_id or ""),
            when(worker.last_heartbeat_time, now, dates),
            short_json(worker.heartbeat_stats) if worker.heartbeat_stats is not None else "",
        )
    return table


def resources_table(page: Sequence[ResourcesUpdate], now: float, *, dates: bool = True) -> Table:
    table = table_of("RESOURCES", "VERSION", "UPDATED", "CREATED", wide="NAMES")
    for update in page:
        names = ", ".join(f"{name} ({resource.resource_type})" for name, resource in sorted(update.resources.items()))
        table.add_row(
            clip(update.resources_id),
            str(update.version),
            when(update.update_time, now, dates),
            when(update.create_time, now, dates),
            clip(names),
        )
    return table


def tokens_table(tokens: Sequence[Token], now: float) -> Table:
    table = table_of("TOKEN", "ROLE", "STATE", "CREATED", wide="MAY")
    for token in tokens:
        state = "revoked" if token.revoked is not None else "counts" if token.counts_at(now) else "expired"
        if state == "counts" and token.expires is not None:
            state = f"counts until {token.expires:%Y-%m-%d %H:%M}"
        limits = token.limits.model_dump(exclude_none=True)
        may = [f"{value:g} {name.replace('_per_second', '/s')}" for name, value in limits.items()]
        if token.workers:
            may.insert(0, f"as {', '.join(token.workers)}")
        table.add_row(token.name, token.role.value, state, f"{token.created:%Y-%m-%d %H:%M}", clip("; ".join(may)))
    return table


PAGE_TABLES: Final[Mapping[str, Callable[..., Table]]] = {
    "rollouts": rollouts_table,
    "workers": workers_table,
    "resources": resources_table,
}


def page_note(page: PaginatedResult[Any], kind: str) -> str:
    """How many of how many rows are shown, and how to see the others."""
    if len(page) == page.total:
        return f"{page.total} {kind if page.total != 1 else kind.removesuffix('s')}"
    if not len(page):
        return f"none of {page.total} {kind} in this part"
    until = page.offset + len(page)
    more = f"; the next with --offset {until}" if until < page.total else ""
    return f"{page.offset + 1} to {until} of {page.total} {kind}{more}"


def resources_detail(update: ResourcesUpdate, now: float, *, show_secrets: bool = False) -> list[RenderableType]:
    """One set of resources: a line on the set, a table of what is in it."""
    head = line(clip(update.resources_id), f"version {update.version}, updated {moment(update.update_time, now)}")
    table = table_of("NAME", "TYPE", "FIELD", wide="VALUE")
    for name, resource in sorted(update.resources.items()):
        label, kind = clip(name), clip(resource.resource_type)
        for field, value in shown_fields(resource, show_secrets=show_secrets):
            table.add_row(label, kind, clip(field), value)
            label = kind = ""
    return [head, table]


def shown_fields(resource: Resource, *, show_secrets: bool) -> Iterator[tuple[str, str]]:
    """Each field with a value, in short; a resource without any gives one empty pair."""
    fields = resource.model_dump(exclude={"resource_type"}, exclude_none=True)
    if not fields:
        yield "", ""
    for key, value in (fields if show_secrets else masked(fields)).items():
        yield key, short_json(value)


def statistics_table(server: str, info: Mapping[str, Any], statistics: Mapping[str, Any], now: float) -> Table:
    """Two columns: where the rollouts stand, what the server is, then what it holds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("server", f"{server}, version {clip(info['version'])}{', strict' if info['strict'] else ''}")
    for name, value in progress_of(statistics, now):
        table.add_row(name, value)
    can = [name for name, value in info["capabilities"].items() if value]
    table.add_row("capabilities", ", ".join(can))
    for name, value in {**info, **statistics}.items():
        if name not in {"version", "strict", "capabilities", *PROGRESS}:
            table.add_row(name, with_unit(name, value) + share_of_limit(name, statistics))
    return table


PROGRESS: Final = ("rollouts_by_status", "oldest_queued_time", "completed_last_minute", "rejected_spans")
"""Statistics that are shown in words."""


def progress_of(statistics: Mapping[str, Any], now: float) -> Iterator[tuple[str, str]]:
    """Where the rollouts stand, and how the work goes on, as far as the store counts it."""
    by_status = statistics.get("rollouts_by_status")
    if by_status is not None:
        for status in get_args(RolloutStatus):
            yield status, str(by_status.get(status, 0))
    if "oldest_queued_time" in statistics:
        yield "oldest in the queue", f"created {moment(statistics['oldest_queued_time'], now)}"
    if "completed_last_minute" in statistics:
        yield "completed", f"{statistics['completed_last_minute']} in the last minute"
    if "rejected_spans" in statistics:
        yield "rejected spans", f"{statistics['rejected_spans']} over OTLP; the server's log has the causes"


def share_of_limit(name: str, statistics: Mapping[str, Any]) -> str:
    """How close a figure is to the limit that it has, if it has one."""
    limit_name = LIMITS.get(name, "")
    limit = statistics.get(limit_name)
    return f", {100 * statistics[name] / limit:.3g}% of its limit" if limit else ""


def with_unit(name: str, value: Any) -> str:
    """A figure whose name tells its unit."""
    if "bytes" in name:
        return f"{byte_size(value)} ({value})"
    if name == "uptime" or "seconds" in name:
        return duration(value)
    return short_json(value)


def took(start: float | None, end: float | None) -> str:
    return "" if start is None or end is None else duration(max(0.0, end - start))


# --- A rollout as a tree ---------------------------------------------------------------------------------------------


def rollout_tree(rollout: Rollout, attempts: Sequence[Attempt], spans: Sequence[Span] | None, now: float) -> Tree:
    """The rollout, its attempts, and their spans under each other; ``spans`` is None where they were evicted."""
    reward = final_reward([span for span in spans or () if attempts and span.attempt_id == attempts[-1].attempt_id])
    length = took(rollout.start_time, rollout.end_time)
    tree = Tree(
        line(
            "rollout",
            clip(rollout.rollout_id),
            outcome(rollout),
            "" if reward is None else f"reward {reward:.4g}",
            f"created {moment(rollout.start_time, now)}",
            f"ended {length} later" if length else "",
        )
    )
    for name in ("input", "mode", "resources_id", "metadata"):
        value = getattr(rollout, name)
        if value is not None and value != {}:
            tree.add(line(f"{name}:", short_json(value)))
    settings = rollout.config.model_dump(exclude_defaults=True)
    if settings:
        tree.add(line("config:", short_json(settings)))
    if spans is None:
        tree.add(line("spans: dropped to free memory"))
    by_attempt: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans or ():
        by_attempt[span.attempt_id].append(span)
    for attempt in attempts:
        branch = tree.add(attempt_line(attempt, now))
        add_spans(branch, by_attempt[attempt.attempt_id])
    return tree


def line(*parts: Cell) -> Text:
    """The parts that are not empty, on one line that is cut where the terminal ends."""
    text = Text(" ").join(Text(part) if isinstance(part, str) else part for part in parts if part)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def attempt_line(attempt: Attempt, now: float) -> Text:
    seen, length = attempt.last_heartbeat_time, took(attempt.start_time, attempt.end_time)
    return line(
        f"attempt {attempt.sequence_id}",
        clip(attempt.attempt_id),
        styled(attempt.status),
        moment(attempt.start_time, now),
        f"took {length}" if length else "",
        f"worker {clip(attempt.worker_id)}" if attempt.worker_id else "",
        f"seen {age(now - seen)}" if seen is not None and attempt.end_time is None else "",
        short_json(attempt.metadata) if attempt.metadata else "",
    )


def add_spans(branch: Tree, spans: Sequence[Span]) -> None:
    """Hang ``spans``, all of one attempt, under ``branch``."""
    path = [branch]
    for depth, span in nested(spans, lambda span: (span.span_id, span.parent_id)):
        level = min(depth, TREE_DEPTH_MAX)
        del path[level + 1 :]
        path.append(path[level].add(span_line(span)))


def span_line(span: Span) -> Text:
    status = span.status.status_code
    return line(
        f"#{span.sequence_id}",
        Text(clip(span.name), style="bold"),
        took(span.start_time, span.end_time),
        "" if status == "UNSET" else styled(str(status)),
        clip(span.status.description or "", VALUE_MAX),
        *(f"{name}={short_json(value, VALUE_MAX)}" for name, value in rewards(span)),
    )


def rewards(span: Span) -> Iterator[tuple[str, Any]]:
    """The attributes that look like a reward, each with the end of its name from that word on."""
    for key, value in span.attributes.items():
        at = min((key.lower().find(word) for word in REWARDS if word in key.lower()), default=-1)
        if at >= 0:
            yield clip(key[key.rfind(".", 0, at) + 1 :]), value
