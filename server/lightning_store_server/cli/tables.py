"""What people see: tables as wide as the terminal, and a rollout as a tree."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lightning_store.clock import SystemClock
from lightning_store.model import (
    Attempt,
    AttemptedRollout,
    PaginatedResult,
    Resource,
    ResourcesUpdate,
    Rollout,
    Span,
    Worker,
)
from lightning_store_server.cli.text import age, byte_size, clip, duration, moment, short_json

WIDTH_WITHOUT_TERMINAL: Final = 160
"""Columns where the output goes into a file or a pipe."""
TREE_DEPTH_MAX: Final = 12
"""Spans nested deeper are drawn at this depth."""
WIDE_MIN: Final = 16
"""Columns that the last column of a table has at least."""
VALUE_MAX: Final = 40
"""Characters of an attribute's value in the tree."""
SECRETS: Final = ("api_key", "token", "password", "secret")
"""Fields of resources whose name ends so are not shown to people; JSON has them."""
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

Cell = str | Text


def now() -> float:
    """The moment that ages are counted from."""
    return SystemClock().now()


def show(*parts: RenderableType) -> None:
    """Print to stdout: in colour and to its width on a terminal, plain elsewhere."""
    clipped = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(
        file=sys.stdout, width=None if clipped else WIDTH_WITHOUT_TERMINAL, markup=False, emoji=False, highlight=False
    )
    for part in parts:
        console.print(part)


def styled(word: str) -> Text:
    """A status in its colour."""
    return Text(clip(word), style=STYLES.get(word, ""))


# --- Tables ----------------------------------------------------------------------------------------------------------


def table_of(*names: str, wide: str | None = None) -> Table:
    """An empty table. On a narrow terminal times wrap; the last column, ``wide``, is cut to what is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=wide is not None, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=name not in TIME_COLUMNS)
    if wide is not None:
        table.add_column(wide, no_wrap=True, overflow="ellipsis", ratio=1, width=WIDE_MIN)
    return table


TIME_COLUMNS: Final = frozenset({"STARTED", "UPDATED", "CREATED", "HEARTBEAT"})


def rollouts_table(page: Sequence[Rollout], now: float) -> Table:
    table = table_of("ROLLOUT", "STATUS", "MODE", "ATTEMPT", "STARTED", "TOOK", wide="INPUT")
    for rollout in page:
        number = rollout.attempt.sequence_id if isinstance(rollout, AttemptedRollout) else 0
        table.add_row(
            clip(rollout.rollout_id),
            styled(rollout.status),
            rollout.mode or "",
            f"{number}/{rollout.config.max_attempts}",
            moment(rollout.start_time, now),
            took(rollout.start_time, rollout.end_time),
            short_json(rollout.input),
        )
    return table


def workers_table(page: Sequence[Worker], now: float) -> Table:
    table = table_of("WORKER", "STATUS", "ROLLOUT", "ATTEMPT", "HEARTBEAT", wide="STATS")
    for worker in page:
        table.add_row(
            clip(worker.worker_id),
            styled(worker.status),
            clip(worker.current_rollout_id or ""),
            clip(worker.current_attempt_id or ""),
            moment(worker.last_heartbeat_time, now),
            short_json(worker.heartbeat_stats) if worker.heartbeat_stats is not None else "",
        )
    return table


def resources_table(page: Sequence[ResourcesUpdate], now: float) -> Table:
    table = table_of("RESOURCES", "VERSION", "UPDATED", "CREATED", wide="NAMES")
    for update in page:
        names = ", ".join(f"{name} ({resource.resource_type})" for name, resource in sorted(update.resources.items()))
        table.add_row(
            clip(update.resources_id),
            str(update.version),
            moment(update.update_time, now),
            moment(update.create_time, now),
            clip(names),
        )
    return table


PAGE_TABLES: Final[Mapping[str, Callable[[Any, float], Table]]] = {
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


def resources_detail(update: ResourcesUpdate, now: float) -> list[RenderableType]:
    """One set of resources: a line on the set, a table of what is in it."""
    head = line(clip(update.resources_id), f"version {update.version}, updated {moment(update.update_time, now)}")
    table = table_of("NAME", "TYPE", "FIELD", wide="VALUE")
    for name, resource in sorted(update.resources.items()):
        label, kind = clip(name), clip(resource.resource_type)
        for field, value in public_fields(resource):
            table.add_row(label, kind, clip(field), value)
            label = kind = ""
    return [head, table]


def public_fields(resource: Resource) -> Iterator[tuple[str, str]]:
    """Each field with a value, in short; a resource without any gives one empty pair."""
    fields = resource.model_dump(exclude={"resource_type"}, exclude_none=True)
    if not fields:
        yield "", ""
    for key, value in fields.items():
        hidden = key.lower().endswith(SECRETS)
        yield key, "(set; shown by --json)" if hidden else short_json(value)


def statistics_table(server: str, info: Mapping[str, Any], statistics: Mapping[str, Any]) -> Table:
    """Two columns: what the server is, then what it holds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_row("server", f"{server}, version {clip(info['version'])}{', strict' if info['strict'] else ''}")
    can = [name for name, value in info["capabilities"].items() if value]
    table.add_row("capabilities", ", ".join(can))
    for name, value in {**info, **statistics}.items():
        if name not in {"version", "strict", "capabilities"}:
            table.add_row(name, with_unit(name, value) + share_of_limit(name, statistics))
    return table


def share_of_limit(name: str, statistics: Mapping[str, Any]) -> str:
    """How close a figure is to the limit that it has, if it has one."""
    limit_name = LIMITS.get(name, "")
    limit = statistics.get(limit_name)
    return f", {100 * statistics[name] / limit:.3g}% of {limit_name}" if limit else ""


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
    tree = Tree(line("rollout", clip(rollout.rollout_id), styled(rollout.status), *times(rollout, now)))
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


def times(item: Rollout | Attempt, now: float) -> list[Cell]:
    length = took(item.start_time, item.end_time)
    return [moment(item.start_time, now), f"took {length}" if length else ""]


def attempt_line(attempt: Attempt, now: float) -> Text:
    seen = attempt.last_heartbeat_time
    return line(
        f"attempt {attempt.sequence_id}",
        clip(attempt.attempt_id),
        styled(attempt.status),
        *times(attempt, now),
        f"worker {clip(attempt.worker_id)}" if attempt.worker_id else "",
        f"seen {age(now - seen)}" if seen is not None and attempt.end_time is None else "",
        short_json(attempt.metadata) if attempt.metadata else "",
    )


def add_spans(branch: Tree, spans: Sequence[Span]) -> None:
    """Hang ``spans``, all of one attempt, under ``branch``."""
    path = [branch]
    for depth, span in nested(spans):
        level = min(depth, TREE_DEPTH_MAX)
        del path[level + 1 :]
        path.append(path[level].add(span_line(span)))


def nested(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Each span once with its depth, a parent before its children, siblings in the order given.

    A span whose parent is not here is a root. Of spans that are each other's parents, the first given counts as one.
    """
    known = {span.span_id for span in spans}
    children: defaultdict[str | None, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_id if span.parent_id in known else None].append(span)
    seen: set[str] = set()
    for root in (*children[None], *spans):
        stack = [(0, root)]
        while stack:
            depth, span = stack.pop()
            if span.span_id not in seen:
                seen.add(span.span_id)
                yield depth, span
                stack.extend((depth + 1, child) for child in reversed(children[span.span_id]))


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
