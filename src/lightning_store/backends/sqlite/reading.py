"""What a snapshot reads, on a connection that only reads."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, Final, Generic, TypeVar

from lightning_store.backends.base import Due, Rows, Unconsumed
from lightning_store.backends.records import (
    QUEUE_LOOK,
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    CompletionRow,
    GroupRow,
    PlacedRollout,
    QueueCounts,
    ResourcesRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.backends.sqlite import rows
from lightning_store.backends.sqlite.loading import expendable, has_passed, overdue
from lightning_store.backends.sqlite.spool import LARGE_BYTES, Aside, Row, Spool
from lightning_store.labels import label_of
from lightning_store.queries import (
    AttemptQuery,
    Filter,
    Query,
    ResourcesQuery,
    RolloutQuery,
    SpanBatchQuery,
    SpanQuery,
    WorkerQuery,
)

T = TypeVar("T")

CHUNK_ROWS: Final = 256
"""Rows of a list that are in memory at a time. More of them are spooled."""
PARAMETERS_MAX: Final = 1000
"""Values of a filter that are parameters of the statement; more are one text."""


def has_due(connection: Connection, due: Due, deadline: float | None) -> bool:
    one = due._replace(limit=1)
    return bool((has_passed(deadline, due) and overdue(connection, one)) or expendable(connection, one))


def rollouts(connection: Connection, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
    found: dict[str, RolloutRow] = {}
    for some in rows.select_in(connection, rows.SELECT_ROLLOUTS_BY_ID, dict.fromkeys(rollout_ids)):
        for row in some:
            entry = rows.rollout_entry(row)
            found[entry.rollout.rollout_id] = entry.row
    return list(map(found.get, rollout_ids))


def groups(connection: Connection, group_ids: Sequence[str]) -> list[GroupRow]:
    members: dict[str, list[RolloutRow]] = {group_id: [] for group_id in group_ids}
    for found in rows.select_in(connection, rows.SELECT_ROLLOUTS_BY_GROUP, members):
        for row in found:
            entry = rows.rollout_entry(row)
            members[entry.rollout.group_id or ""].append(entry.row)
    return [GroupRow(group_id, found) for group_id, found in members.items() if found]


def consumed(connection: Connection, consumer: str, rollout_ids: Sequence[str]) -> set[str]:
    statement = """
        SELECT r.rollout_id FROM json_each(?) ids CROSS JOIN rollouts r ON r.rollout_id = ids.value
        CROSS JOIN consumed c ON c.consumer = ? AND c.rollout = r.number
    """
    return {rollout_id for (rollout_id,) in rows.fetch(connection, statement, [json.dumps(rollout_ids), consumer])}


def marks(connection: Connection, rollout_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    statement = """
        SELECT r.rollout_id, c.consumer, c.number FROM json_each(?) ids
        CROSS JOIN rollouts r ON r.rollout_id = ids.value CROSS JOIN consumed c ON c.rollout = r.number
    """
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for rollout_id, consumer, number in rows.fetch(connection, statement, [json.dumps(rollout_ids)]):
        found[rollout_id][consumer] = number
    return found


def checkpoints(connection: Connection) -> list[CheckpointRecord]:
    found = rows.fetch(connection, "SELECT consumer, checkpoint, number FROM checkpoints ORDER BY consumer, number", [])
    return list(map(CheckpointRecord._make, found))


def admissions(connection: Connection) -> list[AdmissionRecord]:
    found = rows.fetch(connection, "SELECT run, max_open_groups, paused FROM admissions ORDER BY run", [])
    return [AdmissionRecord(run, max_open_groups, bool(paused)) for run, max_open_groups, paused in found]


def resources(connection: Connection, resources_id: str | None) -> ResourcesRecord | None:
    if resources_id is None:
        row = connection.execute(rows.SELECT_LATEST_RESOURCES).fetchone()
        return None if row is None else rows.resources_of(row)
    [[*found]] = rows.select_in(connection, rows.SELECT_RESOURCES_BY_ID, [resources_id])
    return rows.resources_of(found[0]) if found else None


def worker(connection: Connection, worker_id: str) -> WorkerRecord | None:
    [[*found]] = rows.select_in(connection, rows.SELECT_WORKERS_BY_ID, [worker_id])
    return rows.worker_of(found[0]) if found else None


def completions(connection: Connection, after: int, limit: int) -> list[CompletionRow]:
    return list(map(_completion, connection.execute(rows.SELECT_COMPLETIONS, (after, limit))))


def unconsumed(connection: Connection, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
    found = list(map(_completion, rows.fetch(connection, rows.SELECT_UNCONSUMED, [after, look, consumer, limit])))
    if len(found) == limit:
        return Unconsumed(found, found[-1].position)
    statement = f"SELECT count(*), max(position) FROM ({rows.COMPLETIONS_PAST})"
    looked, last = connection.execute(statement, (after, look)).fetchone()
    return Unconsumed(found, last if looked == look else None)


def _completion(row: tuple[Any, ...]) -> CompletionRow:
    entry = rows.rollout_entry(row)
    position, time = entry.rollout.completion_position, entry.rollout.completion_time
    assert position is not None
    assert time is not None
    return CompletionRow(position, time, entry.row)


def placed_rollouts(connection: Connection, after: int, limit: int) -> list[PlacedRollout]:
    entries = map(rows.rollout_entry, connection.execute(rows.SELECT_ROLLOUTS_AFTER, (after, limit)))
    return [PlacedRollout(entry.number, entry.rollout, entry.last_sequence) for entry in entries]


def last_completion(connection: Connection) -> int:
    position: int
    [position] = connection.execute("SELECT last_completion_position FROM totals").fetchone()
    return position


def span_bytes(connection: Connection, rollout_id: str) -> int:
    """What the spans of a rollout take."""
    row = rows.fetch(connection, "SELECT span_bytes FROM rollouts WHERE rollout_id = ?", [rollout_id])
    return row[0][0] if row else 0


def queue_counts(connection: Connection) -> QueueCounts:
    tallies = connection.execute("SELECT status, mode, rollouts FROM rollout_tallies WHERE rollouts > 0").fetchall()
    workers = connection.execute("SELECT status, workers FROM worker_tallies WHERE workers > 0").fetchall()
    statement = """
        SELECT r.mode, r.start_time FROM queue q CROSS JOIN rollouts r ON r.number = q.rollout
        ORDER BY q.position LIMIT ?
    """
    queued = connection.execute(statement, [QUEUE_LOOK]).fetchall()
    by_status_and_mode = {(status, mode or None): count for status, mode, count in tallies}
    return QueueCounts(by_status_and_mode, dict(workers), queued[0][1] if queued else None, dict(reversed(queued)))


# --- Lists -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table(Generic[T]):
    """How records of one kind are found and read."""

    source: str
    """Tables, of which ``t`` has the number of a row and the columns but for ``elsewhere``."""
    statement: str
    """Selects rows by number, which each begins with."""
    record: Callable[[tuple[Any, ...]], T]
    elsewhere: tuple[tuple[str, str], ...] = ()

    def column(self, name: str) -> str:
        return dict(self.elsewhere).get(name, f"t.{name}")


_OF_LATEST_ATTEMPT: Final = "(SELECT {} FROM attempts WHERE rollout = t.number AND attempt_id = t.latest_attempt_id)"
_ROLLOUTS: Final[_Table[RolloutRow]] = _Table(
    "rollouts t",
    rows.SELECT_ROLLOUTS_BY_NUMBER,
    lambda row: rows.rollout_entry(row).row,
    (
        ("metadata_json", "(SELECT metadata_json FROM payloads WHERE rollout = t.number)"),
        *((one, _OF_LATEST_ATTEMPT.format(one)) for one in ("worker_id", "policy_version")),
    ),
)
_ATTEMPTS: Final[_Table[AttemptRecord]] = _Table(
    "rollouts r CROSS JOIN attempts t ON t.rollout = r.number",
    rows.SELECT_ATTEMPTS_BY_NUMBER,
    rows.attempt_of,
    (("rollout_id", "r.rollout_id"),),
)
_SPANS: Final[_Table[SpanRecord]] = _Table(
    "rollouts r CROSS JOIN spans t ON t.rollout = r.number CROSS JOIN attempts a ON a.number = t.attempt",
    rows.SELECT_SPANS_BY_NUMBER,
    rows.span_of,
    (("rollout_id", "r.rollout_id"), ("attempt_id", "a.attempt_id")),
)
_RESOURCES: Final[_Table[ResourcesRecord]] = _Table(
    "resources t", rows.SELECT_RESOURCES_BY_NUMBER, lambda row: rows.resources_of(row[1:])
)
_WORKERS: Final[_Table[WorkerRecord]] = _Table(
    "workers t", rows.SELECT_WORKERS_BY_NUMBER, lambda row: rows.worker_of(row[1:])
)


def query_rollouts(connection: Connection, query: RolloutQuery) -> Rows[RolloutRow]:
    return _select(connection, _ROLLOUTS, query, {})


def query_attempts(connection: Connection, query: AttemptQuery) -> Rows[AttemptRecord]:
    return _select(connection, _ATTEMPTS, query, {"r.rollout_id": query.rollout_id})


def query_spans(connection: Connection, query: SpanQuery) -> Rows[SpanRecord]:
    which = {"r.rollout_id": query.rollout_id}
    if query.attempt_id is not None:
        which["a.attempt_id"] = query.attempt_id
    return _select(connection, _SPANS, query, which)


def query_many_spans(
    connection: Connection, query: SpanBatchQuery, attempts: Sequence[tuple[str, str | None]]
) -> Rows[SpanRecord]:
    where, parameters = _where(_SPANS, query, {})
    statement = f"{rows.SELECT_SPAN_NUMBERS} AND {where} ORDER BY k.place, t.sequence_id, t.number"
    keys = [(place, *key) for place, key in enumerate(attempts)]
    found = rows.select_values(connection, statement, keys, 3, parameters)
    numbers = [number for some in found for (number,) in some]
    return Rows(_records(connection, _SPANS, numbers), len(numbers))


def query_resources(connection: Connection, query: ResourcesQuery) -> Rows[ResourcesRecord]:
    return _select(connection, _RESOURCES, query, {})


def query_workers(connection: Connection, query: WorkerQuery) -> Rows[WorkerRecord]:
    return _select(connection, _WORKERS, query, {})


def _select(connection: Connection, table: _Table[T], query: Query[Any], which: dict[str, str]) -> Rows[T]:
    """The page that ``query`` asks for: first the numbers of its rows in order, so that nothing else is sorted, then
    the rows."""
    where, parameters = _where(table, query, which)
    statement = f"SELECT t.number FROM {table.source} WHERE {where} ORDER BY {_order(table, query)} LIMIT ? OFFSET ?"
    numbers = [number for (number,) in rows.fetch(connection, statement, [*parameters, query.limit, query.offset])]
    total = len(numbers)
    if query.limit >= 0 or query.offset:
        [[total]] = rows.fetch(connection, f"SELECT count(*) FROM {table.source} WHERE {where}", parameters)
    return Rows(_records(connection, table, numbers), total)


def _records(connection: Connection, table: _Table[T], numbers: Sequence[int]) -> Sequence[T]:
    """The records of the rows with these numbers, in their order."""
    spool = Spool(CHUNK_ROWS, table.record, lambda: _folder_of(connection))
    for start in range(0, len(numbers), CHUNK_ROWS):
        chunk = numbers[start : start + CHUNK_ROWS]
        found: dict[int, Row | Aside] = {}
        for row in rows.rows_in(connection, table.statement, chunk):
            is_large = any(len(one) > LARGE_BYTES for one in row if isinstance(one, str | bytes))
            found[row[0]] = spool.put_aside(row) if is_large else row
        in_order = [found[number] for number in chunk]
        if len(numbers) <= CHUNK_ROWS and not spool.has_file:
            return [table.record(row) for row in in_order]
        spool.append(in_order)
    return spool


def _folder_of(connection: Connection) -> str:
    _, _, path = connection.execute("PRAGMA database_list").fetchone()
    return os.path.dirname(str(path))


def _where(table: _Table[T], query: Query[Any], which: dict[str, str]) -> tuple[str, list[Any]]:
    conditions = [f"{column} = ?" for column in which]
    parameters: list[Any] = list(which.values())
    filters = []
    for one in query.filters:
        condition, values = _condition(table.column(one.field), one)
        filters.append(condition)
        parameters += values
    if filters:
        conditions.append(f"({f' {query.filter_logic} '.join(filters)})")
    return " AND ".join(conditions) or "TRUE", parameters


def _condition(column: str, wanted: Filter) -> tuple[str, list[Any]]:
    match wanted.kind:
        case "in":
            values = sorted(value for value in wanted.value if value is not None)
            null = f"{column} IS NULL OR " if None in wanted.value else ""
            if len(values) <= PARAMETERS_MAX:
                return f"({null}{column} IN ({', '.join('?' * len(values))}))", values
            return f"({null}{column} IN (SELECT value FROM json_each(?)))", [json.dumps(values)]
        case "equals":
            return f"{column} = ?", [wanted.value]
        case "contains":
            return f"instr({column}, ?)", [wanted.value]
        case "from":
            return f"{column} >= ?", [wanted.value]
        case "before":
            return f"{column} < ?", [wanted.value]
        case "members":
            return _has_members(column, wanted.value)


def _has_members(column: str, members: Sequence[tuple[str, str]]) -> tuple[str, list[Any]]:
    """Through the index of labels for those that are in it; by a search for the others."""
    labels = [label_of(*member) for member in members]
    conditions = ["t.number IN (SELECT rollout FROM labels WHERE label = ?)" for label in labels if label is not None]
    parameters: list[Any] = [label for label in labels if label is not None]
    others = [member for member, label in zip(members, labels, strict=True) if label is None]
    if others or not members:
        conditions.append(f"has_members({column}, ?)")
        parameters.append(json.dumps(others))
    return f"({' AND '.join(conditions)})", parameters


def _order(table: _Table[T], query: Query[Any]) -> str:
    """Equal rows as they were inserted, in either direction."""
    direction = "DESC" if query.descending else "ASC"
    if query.sort_by is None:
        return f"t.number {direction}"
    column = table.column(query.sort_by)
    null = "IS NOT NULL" if query.none_first else "IS NULL"
    return f"{column} {null} {direction}, {column} {direction}, t.number"
