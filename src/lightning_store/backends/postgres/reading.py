"""What a snapshot reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

from asyncpg import Connection

from lightning_store.backends.base import Due, Rows, Unconsumed
from lightning_store.backends.postgres import rows
from lightning_store.backends.postgres.conditions import looked_up, row_of
from lightning_store.backends.postgres.connections import PLANNED_FREELY
from lightning_store.backends.postgres.loading import (
    DUE_FROM,
    QUEUE_FROM,
    Statement,
    expendable,
    newest_resources,
    overdue,
)
from lightning_store.backends.postgres.rows import Row, Totals
from lightning_store.backends.postgres.text import all_escaped, escaped, plain
from lightning_store.backends.records import (
    QUEUE_LOOK,
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    CompletionRow,
    GroupRow,
    OpenGroup,
    PlacedRollout,
    QueueCounts,
    ResourcesRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)
from lightning_store.labels import has_members, label_of
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

SEARCH_ROWS: Final = 256
"""Rows of a search through metadata that are in memory at a time."""


async def has_due(connection: Connection, due: Due) -> bool:
    s = Statement()
    s.part("overdue", overdue(s, due._replace(limit=1)))
    select = expendable(s, due._replace(limit=1))
    if select is not None:
        s.part("expendable", select)
    found = await s.fetch(connection)
    return any(found.values())


async def rollouts(connection: Connection, rollout_ids: Sequence[str]) -> list[RolloutRow | None]:
    statement = f"{rows.SELECT_ROLLOUT_ROWS} WHERE r.rollout_id = ANY($1::text[])"
    found = map(rows.rollout_row, await connection.fetch(statement, all_escaped(dict.fromkeys(rollout_ids))))
    by_id = {row.rollout.rollout_id: row for row in found}
    return list(map(by_id.get, rollout_ids))


async def groups(connection: Connection, group_ids: Sequence[str]) -> list[GroupRow]:
    members: dict[str, list[RolloutRow]] = {group_id: [] for group_id in group_ids}
    statement = f"{rows.SELECT_ROLLOUT_ROWS} WHERE r.group_id = ANY($1::text[])"
    found = sorted(await connection.fetch(statement, all_escaped(members)), key=itemgetter(0))
    for row in map(rows.rollout_row, found):
        members[row.rollout.group_id or ""].append(row)
    return [GroupRow(group_id, some) for group_id, some in members.items() if some]


async def consumed(connection: Connection, consumer: str, rollout_ids: Sequence[str]) -> set[str]:
    statement = f"""
        SELECT r.rollout_id FROM rollouts r {row_of("consumed", "c", consumer="$1", rollout="r.number")}
        WHERE r.rollout_id = ANY($2::text[])
    """
    found = await connection.fetch(statement, escaped(consumer), all_escaped(rollout_ids))
    return {plain(rollout_id) for (rollout_id,) in found}


async def marks(connection: Connection, rollout_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    statement = f"""
        SELECT r.rollout_id, c.consumer, c.number
        FROM rollouts r JOIN consumed c ON {looked_up("c.rollout", "r.number")} WHERE r.rollout_id = ANY($1::text[])
    """
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for rollout_id, consumer, number in await connection.fetch(statement, all_escaped(rollout_ids)):
        found[plain(rollout_id)][plain(consumer)] = number
    return found


async def checkpoints(connection: Connection) -> list[CheckpointRecord]:
    found = await connection.fetch("SELECT consumer, checkpoint, number FROM checkpoints ORDER BY consumer, number")
    return [CheckpointRecord(plain(consumer), plain(checkpoint), number) for consumer, checkpoint, number in found]


async def admissions(connection: Connection) -> list[AdmissionRecord]:
    found = await connection.fetch("SELECT run, max_open_groups, paused FROM admissions ORDER BY run")
    return [AdmissionRecord(plain(run), max_open_groups, paused) for run, max_open_groups, paused in found]


async def open_groups(connection: Connection, run: str) -> list[OpenGroup]:
    found = await connection.fetch(rows.open_groups("$1::text[]"), [escaped(run)])
    return [rows.open_group_of(group) for _, *group in found]


async def resources(connection: Connection, resources_id: str | None) -> ResourcesRecord | None:
    latest = "(SELECT latest_resources FROM log ORDER BY id DESC LIMIT 1)"
    statement = f"SELECT {rows.RESOURCES_COLUMNS} FROM resources WHERE resources_id = "
    if resources_id is None:
        row = await connection.fetchrow(statement + latest)
    else:
        row = await connection.fetchrow(statement + "$1", escaped(resources_id))
    return None if row is None else rows.resources_of(row)


async def newest(connection: Connection, run: str | None) -> ResourcesRecord | None:
    s = Statement()
    s.part("newest", newest_resources(s, run))
    found = (await s.fetch(connection))["newest"]
    return rows.resources_of(found[0]) if found else None


async def worker(connection: Connection, worker_id: str) -> WorkerRecord | None:
    row = await connection.fetchrow(rows.present_worker("$1"), escaped(worker_id))
    return None if row is None else rows.worker_of(row)


async def completions(connection: Connection, after: int, limit: int) -> list[CompletionRow]:
    statement = f"""
        {rows.SELECT_ROLLOUT_ROWS} JOIN completions c ON {looked_up("r.number", "c.rollout")}
        WHERE c.position > $1 ORDER BY c.position LIMIT $2
    """
    return list(map(_completion, await connection.fetch(statement, after, limit)))


async def unconsumed(connection: Connection, consumer: str, after: int, look: int, limit: int) -> Unconsumed:
    window = "(SELECT position, rollout FROM completions WHERE position > $1 ORDER BY position LIMIT $2)"
    statement = f"""
        {rows.SELECT_ROLLOUT_ROWS} JOIN {window} c ON {looked_up("r.number", "c.rollout")}
        WHERE NOT EXISTS (SELECT 1 FROM consumed k WHERE k.consumer = $3 AND k.rollout = c.rollout OFFSET 0)
        ORDER BY c.position LIMIT $4
    """
    found = list(map(_completion, await connection.fetch(statement, after, look, escaped(consumer), limit)))
    if len(found) == limit:
        return Unconsumed(found, found[-1].position)
    [(looked, last)] = await connection.fetch(f"SELECT count(*), max(position) FROM {window} c", after, look)
    return Unconsumed(found, last if looked == look else None)


def _completion(row: rows.Row) -> CompletionRow:
    found = rows.rollout_row(row)
    position, time = found.rollout.completion_position, found.rollout.completion_time
    assert position is not None
    assert time is not None
    return CompletionRow(position, time, found)


async def placed_rollouts(connection: Connection, after: int, limit: int) -> list[PlacedRollout]:
    statement = f"{rows.SELECT_ROLLOUTS} WHERE r.number > $1 ORDER BY r.number LIMIT $2"
    entries = map(rows.rollout_entry, await connection.fetch(statement, after, limit))
    return [PlacedRollout(entry.number, entry.rollout, entry.last_sequence) for entry in entries]


async def next_deadline(connection: Connection) -> float | None:
    deadline: float | None = await connection.fetchval(
        f"SELECT min(deadline) FROM rollouts WHERE deadline >= {DUE_FROM}"
    )
    return deadline


async def totals(connection: Connection) -> Totals:
    row = await connection.fetchrow(rows.SELECT_TOTALS)
    assert row is not None
    return Totals(*row)


async def queue_counts(connection: Connection) -> QueueCounts:
    present = await totals(connection)
    queued = await connection.fetch(
        f"SELECT r.mode, r.start_time FROM queue q JOIN rollouts r ON {looked_up('r.number', 'q.rollout')}"
        f" WHERE q.position >= {QUEUE_FROM} ORDER BY q.position LIMIT $1",
        QUEUE_LOOK,
    )
    return QueueCounts(
        {key: count for key, count in present.rollout_tallies.items() if count},
        {key: count for key, count in present.worker_tallies.items() if count},
        queued[0]["start_time"] if queued else None,
        {one["mode"]: one["start_time"] for one in reversed(queued)},
    )


# --- Lists -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table(Generic[T]):
    """How records of one kind are found and read."""

    source: str
    """Tables, of which ``t`` has the number of a row and the columns but for ``elsewhere``."""
    statement: str
    """Selects rows."""
    record: Callable[[Row], T]
    number: str
    """The number of a row of ``statement``."""
    elsewhere: tuple[tuple[str, str], ...] = ()

    def column(self, name: str) -> str:
        return dict(self.elsewhere).get(name, f"t.{name}")


_OF_LATEST_ATTEMPT: Final = "(SELECT {} FROM attempts WHERE rollout = t.number AND attempt_id = t.latest_attempt_id)"
_ROLLOUTS: Final[_Table[RolloutRow]] = _Table(
    "rollouts t",
    rows.SELECT_ROLLOUT_ROWS,
    rows.rollout_row,
    "r.number",
    (
        ("metadata_json", "(SELECT metadata_json FROM payloads WHERE rollout = t.number)"),
        *((one, _OF_LATEST_ATTEMPT.format(one)) for one in ("worker_id", "policy_version")),
    ),
)
_ATTEMPTS: Final[_Table[AttemptRecord]] = _Table(
    f"rollouts r JOIN attempts t ON {looked_up('t.rollout', 'r.number')}",
    rows.SELECT_ATTEMPTS,
    lambda row: rows.attempt_entry(row).attempt,
    "a.number",
    (("rollout_id", "r.rollout_id"),),
)
_SPANS: Final[_Table[SpanRecord]] = _Table(
    f"rollouts r JOIN spans t ON {looked_up('t.rollout', 'r.number')}"
    f" JOIN attempts a ON {looked_up('a.number', 't.attempt')}",
    rows.SELECT_SPANS,
    rows.span_of,
    "t.number",
    (("rollout_id", "r.rollout_id"), ("attempt_id", "a.attempt_id")),
)
_RESOURCES: Final[_Table[ResourcesRecord]] = _Table(
    "resources t", f"SELECT {rows.RESOURCES_COLUMNS} FROM resources t", rows.resources_of, "t.number"
)
_WORKERS: Final[_Table[WorkerRecord]] = _Table(
    "workers t", f"SELECT {rows.WORKER_COLUMNS} FROM workers t", rows.worker_of, "t.number"
)


async def query_rollouts(connection: Connection, query: RolloutQuery) -> Rows[RolloutRow]:
    return await _Select(connection, _ROLLOUTS, query).page()


async def query_attempts(connection: Connection, query: AttemptQuery) -> Rows[AttemptRecord]:
    return await _Select(connection, _ATTEMPTS, query, {"r.rollout_id": query.rollout_id}).page()


async def query_spans(connection: Connection, queries: Sequence[SpanQuery]) -> dict[SpanQuery, Rows[SpanRecord]]:
    """The spans that each query asks for. Queries that differ in their rollout and attempt alone are one statement."""
    alike: defaultdict[Any, dict[tuple[str, str | None], SpanQuery]] = defaultdict(dict)
    found: dict[SpanQuery, Rows[SpanRecord]] = {}
    for query in queries:
        terms = (query.filters, query.filter_logic, query.sort_by, query.descending, query.limit, query.offset)
        alike[terms][query.rollout_id, query.attempt_id] = query
    for some in alike.values():
        found.update(await _query_alike(connection, list(some.values())))
    return found


async def _query_alike(connection: Connection, queries: Sequence[SpanQuery]) -> dict[SpanQuery, Rows[SpanRecord]]:
    select = _Select(connection, _SPANS, queries[0])
    rollout_ids = select.parameter(all_escaped(one.rollout_id for one in queries), "text[]")
    attempts = (None if one.attempt_id is None else escaped(one.attempt_id) for one in queries)
    attempt_ids = select.parameter(list(attempts), "text[]")
    where = f"{looked_up('r.rollout_id', 'q.rollout_id')} AND (q.attempt_id IS NULL OR a.attempt_id = q.attempt_id)"
    numbers = f"""
        SELECT q.place AS query, n.*
        FROM unnest({rollout_ids}, {attempt_ids}) WITH ORDINALITY AS q (rollout_id, attempt_id, place)
        CROSS JOIN LATERAL ({select.numbers(f"{where} AND {await select.where()}")}) n
    """
    statement = f"""
        SELECT k.query, t.* FROM ({numbers}) k
        JOIN ({rows.SELECT_SPANS}) t ON {looked_up("t.number", "k.number")} ORDER BY k.query, k.place
    """
    found: list[list[SpanRecord]] = [[] for _ in queries]
    for query, *row in await connection.fetch(statement, *select.parameters):
        found[query - 1].append(rows.span_of(row))
    return {query: await _paged(connection, query, some) for query, some in zip(queries, found, strict=True)}


async def _paged(connection: Connection, query: SpanQuery, found: Sequence[SpanRecord]) -> Rows[SpanRecord]:
    which = {"r.rollout_id": query.rollout_id}
    if query.attempt_id is not None:
        which["a.attempt_id"] = query.attempt_id
    select = _Select(connection, _SPANS, query, which)
    return await select.rows(found, await select.where(), select.parameters)


async def query_many_spans(
    connection: Connection, query: SpanBatchQuery, attempts: Sequence[tuple[str, str | None]]
) -> Rows[SpanRecord]:
    select = _Select(connection, _SPANS, query)
    where = await select.where()
    rollout_ids = select.parameter(all_escaped(one[0] for one in attempts), "text[]")
    attempt_ids = select.parameter([None if one[1] is None else escaped(one[1]) for one in attempts], "text[]")
    statement = f"""
        SELECT t.* FROM (
            SELECT t.number, q.place, t.sequence_id
            FROM unnest({rollout_ids}, {attempt_ids}) WITH ORDINALITY AS q (rollout_id, attempt_id, place)
            CROSS JOIN {_SPANS.source}
            WHERE {looked_up("r.rollout_id", "q.rollout_id")} AND (q.attempt_id IS NULL OR a.attempt_id = q.attempt_id)
            AND {where}
        ) k JOIN ({rows.SELECT_SPANS}) t ON {looked_up("t.number", "k.number")}
        ORDER BY k.place, k.sequence_id, k.number
    """
    found = [rows.span_of(row) for row in await connection.fetch(statement, *select.parameters)]
    return Rows(found, len(found))


async def query_resources(connection: Connection, query: ResourcesQuery) -> Rows[ResourcesRecord]:
    return await _Select(connection, _RESOURCES, query).page()


async def query_workers(connection: Connection, query: WorkerQuery) -> Rows[WorkerRecord]:
    return await _Select(connection, _WORKERS, query).page()


class _Select(Generic[T]):
    """The page that a query asks for: first the numbers of its rows in order, so that nothing else is sorted, then the
    rows."""

    def __init__(
        self, connection: Connection, table: _Table[T], query: Query[Any], which: dict[str, str] | None = None
    ) -> None:
        self._connection = connection
        self._table = table
        self._query = query
        self._which = which or {}
        self.parameters: list[Any] = []

    def parameter(self, value: object, kind: str) -> str:
        self.parameters.append(value)
        return f"${len(self.parameters)}::{kind}"

    async def page(self) -> Rows[T]:
        table = self._table
        if not self._which:
            await self._connection.execute(PLANNED_FREELY)
        where = await self.where()
        counted = list(self.parameters)
        statement = f"{table.statement} JOIN ({self.numbers(where)}) k"
        found_by = looked_up(table.number, "k.number") if self._which else f"{table.number} = k.number"
        statement += f" ON {found_by} ORDER BY k.place"
        found = await self._connection.fetch(statement, *self.parameters)
        return await self.rows([table.record(row) for row in found], where, counted)

    def numbers(self, where: str) -> str:
        """Selects the numbers of the rows, each with its place in their order."""
        limit = self.parameter(None if self._query.limit < 0 else self._query.limit, "bigint")
        offset = self.parameter(self._query.offset, "bigint")
        return f"""
            SELECT t.number, row_number() OVER (ORDER BY {self._order()}) AS place FROM {self._table.source}
            WHERE {where} ORDER BY {self._order()} LIMIT {limit} OFFSET {offset}
        """

    async def rows(self, found: Sequence[T], where: str, parameters: Sequence[Any]) -> Rows[T]:
        """These, and how many there are in all, which are counted only if it does not follow from these."""
        query = self._query
        if (len(found) < query.limit or query.limit < 0) and (found or not query.offset):
            return Rows(found, query.offset + len(found))
        count = f"SELECT count(*) FROM {self._table.source} WHERE {where}"
        total: Any = await self._connection.fetchval(count, *parameters)
        return Rows(found, total)

    async def where(self) -> str:
        conditions = [f"{column} = {self.parameter(escaped(value), 'text')}" for column, value in self._which.items()]
        filters = [await self._condition(self._table.column(one.field), one) for one in self._query.filters]
        if filters:
            conditions.append(f"({f' {self._query.filter_logic} '.join(filters)})")
        return " AND ".join(conditions) or "TRUE"

    async def _condition(self, column: str, wanted: Filter) -> str:
        match wanted.kind:
            case "in":
                values = [value for value in wanted.value if value is not None]
                null = f"{column} IS NULL OR " if None in wanted.value else ""
                kind = "bigint[]" if values and isinstance(values[0], int) else "text[]"
                listed = values if kind == "bigint[]" else all_escaped(values)
                return f"({null}{column} = ANY({self.parameter(listed, kind)}))"
            case "equals":
                return f"{column} = {self.parameter(escaped(wanted.value), 'text')}"
            case "contains":
                return f"strpos({column}, {self.parameter(escaped(wanted.value), 'text')}) > 0"
            case "from":
                return f"{column} >= {self.parameter(wanted.value, 'float8')}"
            case "before":
                return f"{column} < {self.parameter(wanted.value, 'float8')}"
            case "members":
                return await self._has_members(wanted.value)

    async def _has_members(self, members: Sequence[tuple[str, str]]) -> str:
        """Through the index of labels for those that are in it; by a search for the others."""
        conditions = []
        others = []
        for member in members:
            label = label_of(*member)
            if label is None:
                others.append(member)
            else:
                place = self.parameter(escaped(label), "text")
                conditions.append(f"t.number IN (SELECT rollout FROM labels WHERE label = {place})")
        if others or not members:
            place = self.parameter(await self._search(others), "bigint[]")
            conditions.append(f"t.number = ANY({place})")
        return f"({' AND '.join(conditions)})"

    async def _search(self, members: Sequence[tuple[str, str]]) -> list[int]:
        """The rollouts whose metadata has all of these. PostgreSQL's JSON has other equal numbers than ours."""
        found: list[int] = []
        statement = "SELECT rollout, metadata_json FROM payloads WHERE metadata_json IS NOT NULL"
        async for number, metadata_json in self._connection.cursor(statement, prefetch=SEARCH_ROWS):
            if has_members(metadata_json, members):
                found.append(number)
        return found

    def _order(self) -> str:
        """Equal rows as they were inserted, in either direction."""
        query = self._query
        direction = "DESC" if query.descending else "ASC"
        if query.sort_by is None:
            return f"t.number {direction}"
        column = self._table.column(query.sort_by)
        null = "IS NOT NULL" if query.none_first else "IS NULL"
        return f"({column} {null}) {direction}, {column} {direction}, t.number"
