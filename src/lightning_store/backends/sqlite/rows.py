"""Records as rows of tables, and statements on sets of keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from operator import itemgetter
from sqlite3 import Connection
from typing import Any, Final, NamedTuple

from lightning_store.backends.configs import config_of, config_text
from lightning_store.backends.records import (
    NO_PLACE,
    POSITIONS_PER_BAND,
    AttemptRecord,
    Counts,
    OpenGroup,
    ReplyRecord,
    ResourcesRecord,
    RolloutRecord,
    RolloutRow,
    SpanRecord,
    WorkerRecord,
)

SET_SIZES: Final = (1, 4, 16, 64, 256)
"""How many keys a statement has: few sizes, so that the connection knows all statements. Absent keys are NULL."""


@dataclass(slots=True)
class Totals:
    """The row that each transaction writes once: what is stored, and the last numbers and positions."""

    last_rollout: int
    last_attempt: int
    last_span: int
    last_reply: int
    last_queue_position: int
    last_completion_position: int
    rollouts: int
    completed: int
    attempts: int
    spans: int
    resources: int
    workers: int
    span_bytes: int
    other_bytes: int
    latest_resources: str | None
    newest_time: float

    @property
    def counts(self) -> Counts:
        return Counts(
            rollouts=self.rollouts,
            attempts=self.attempts,
            spans=self.spans,
            resources=self.resources,
            workers=self.workers,
            span_bytes=self.span_bytes,
            bytes=self.span_bytes + self.other_bytes,
        )


_TOTALS: Final = [one.name for one in fields(Totals)]
_SELECT_TOTALS: Final = f"SELECT {', '.join(_TOTALS)} FROM totals"
_UPDATE_TOTALS: Final = f"UPDATE totals SET {', '.join(f'{one} = ?' for one in _TOTALS)}"


def read_totals(connection: Connection) -> Totals:
    return Totals(*connection.execute(_SELECT_TOTALS).fetchone())


def write_totals(connection: Connection, totals: Totals) -> None:
    connection.execute(_UPDATE_TOTALS, astuple(totals))


# --- Sets of keys ----------------------------------------------------------------------------------------------------


def chunks(keys: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    """The keys in chunks, each with None at its end up to one of a few sizes."""
    largest = SET_SIZES[-1]
    for start in range(0, len(keys), largest):
        chunk = list(keys[start : start + largest])
        size = next(one for one in SET_SIZES if one >= len(chunk))
        chunk += [None] * (size - len(chunk))
        yield size, chunk


@cache
def _with_list(statement: str, size: int) -> str:
    return statement.replace("(?*)", f"({', '.join('?' * size)})")


@cache
def _with_values(statement: str, size: int, width: int) -> str:
    return statement.replace("(?*)", ", ".join([f"({', '.join('?' * width)})"] * size))


def fetch(connection: Connection, statement: str, parameters: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
    """The rows of a statement. A text that has no UTF-8 form is not stored anywhere, and matches nothing."""
    try:
        return connection.execute(statement, parameters).fetchall()
    except UnicodeEncodeError:
        return connection.execute(statement, [one if _is_storable(one) else None for one in parameters]).fetchall()


def _is_storable(value: Any) -> bool:
    return not isinstance(value, str) or not any("\ud800" <= one <= "\udfff" for one in value)


def select_in(connection: Connection, statement: str, keys: Iterable[Any]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """The rows of a statement with the list ``(?*)``, a chunk of keys at a time."""
    for size, chunk in chunks(list(keys)):
        yield fetch(connection, _with_list(statement, size), chunk)


def rows_in(connection: Connection, statement: str, keys: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """The same rows one by one: they are read as they are asked for."""
    for size, chunk in chunks(list(keys)):
        yield from connection.execute(_with_list(statement, size), chunk)


def select_values(
    connection: Connection, statement: str, keys: Iterable[tuple[Any, ...]], width: int, more: Sequence[Any] = ()
) -> Iterator[Sequence[tuple[Any, ...]]]:
    """The rows of a statement with ``VALUES (?*)``, each key a tuple of ``width``, a chunk of keys at a time. ``more``
    are the parameters that follow."""
    nothing = (None,) * width
    for size, chunk in chunks(list(keys)):
        parameters = [one for key in chunk for one in (key or nothing)]
        yield fetch(connection, _with_values(statement, size, width), [*parameters, *more])


def execute_in(connection: Connection, statement: str, keys: Iterable[Any]) -> Iterator[int]:
    """How many rows a statement with the list ``(?*)`` changes, a chunk of keys at a time."""
    for size, chunk in chunks(list(keys)):
        yield connection.execute(_with_list(statement, size), chunk).rowcount


# --- Rollouts and attempts -------------------------------------------------------------------------------------------


class RolloutEntry(NamedTuple):
    """A rollout's row and that of its latest attempt."""

    number: int
    last_sequence: int
    span_bytes: int
    rollout: RolloutRecord
    attempt_number: int | None
    attempt: AttemptRecord | None

    @property
    def row(self) -> RolloutRow:
        return RolloutRow(self.rollout, self.attempt)


_FIELDS: Final = RolloutRecord._fields
_PAYLOADS: Final = ("input_json", "metadata_json")
_UNCHANGING: Final = ("rollout_id", "start_time", "run", "group_id", "group_size")
_CHANGING: Final = [one for one in _FIELDS if one not in (*_PAYLOADS, *_UNCHANGING, "config")]
"""The columns of a rollout that change, but for its config, which is stored in another form."""
_BEFORE: Final = 3
"""Columns that come before those of the record."""
_CONFIG: Final = _FIELDS.index("config")
_EVICTED: Final = _FIELDS.index("spans_evicted")
_HELD: Final = _FIELDS.index("held")
_AFTER: Final = _BEFORE + len(_FIELDS)
"""Where the columns of the latest attempt begin."""

_SELECT_ROLLOUTS: Final = f"""
    SELECT r.number, r.last_sequence, r.span_bytes,
        {", ".join(f"{'p' if one in _PAYLOADS else 'r'}.{one}" for one in _FIELDS)},
        a.number, {", ".join(f"a.{one}" for one in AttemptRecord._fields[2:])}
    FROM {{}} CROSS JOIN payloads p ON p.rollout = r.number
    LEFT JOIN attempts a ON a.rollout = r.number AND a.attempt_id = r.latest_attempt_id
    WHERE {{}}
"""
SELECT_ROLLOUTS_BY_ID: Final = _SELECT_ROLLOUTS.format("rollouts r", "r.rollout_id IN (?*)")
SELECT_ROLLOUTS_BY_NUMBER: Final = _SELECT_ROLLOUTS.format("rollouts r", "r.number IN (?*)")
SELECT_ROLLOUTS_BY_GROUP: Final = _SELECT_ROLLOUTS.format("rollouts r", "r.group_id IN (?*) ORDER BY r.number")
_SELECT_OPEN_GROUPS: Final = f"""
    SELECT group_id, EXISTS (SELECT 1 FROM rollouts m WHERE m.group_id = r.group_id AND m.first_claim_time IS NOT NULL),
        max(held), min(held), min(queue_band * {POSITIONS_PER_BAND} + queue_position)
    FROM rollouts r INDEXED BY rollouts_open
    WHERE run = ? AND group_id IS NOT NULL AND consumers = 0 AND status NOT IN ('failed', 'cancelled')
    GROUP BY group_id
"""
SELECT_GROUPS: Final = "SELECT group_id, rollout_id FROM rollouts WHERE group_id IN (?*) ORDER BY number"
SELECT_ROLLOUTS_AFTER: Final = _SELECT_ROLLOUTS.format("rollouts r", "r.number > ? ORDER BY r.number LIMIT ?")
SELECT_QUEUE: Final = _SELECT_ROLLOUTS.format(
    "queue q CROSS JOIN rollouts r ON r.number = q.rollout", "q.position > ? ORDER BY q.position LIMIT ?"
)
SELECT_COMPLETIONS: Final = _SELECT_ROLLOUTS.format(
    "completions c CROSS JOIN rollouts r ON r.number = c.rollout", "c.position > ? ORDER BY c.position LIMIT ?"
)
COMPLETIONS_PAST: Final = "SELECT position, rollout FROM completions WHERE position > ? ORDER BY position LIMIT ?"
SELECT_UNCONSUMED: Final = _SELECT_ROLLOUTS.format(
    f"({COMPLETIONS_PAST}) c CROSS JOIN rollouts r ON r.number = c.rollout",
    "NOT EXISTS (SELECT 1 FROM consumed k WHERE k.consumer = ? AND k.rollout = c.rollout) ORDER BY c.position LIMIT ?",
)


def rollout_entry(row: tuple[Any, ...]) -> RolloutEntry:
    """Of a row of one of these statements."""
    columns = list(row[_BEFORE:_AFTER])
    columns[_CONFIG] = config_of(columns[_CONFIG])
    columns[_EVICTED] = bool(columns[_EVICTED])
    columns[_HELD] = bool(columns[_HELD])
    rollout = RolloutRecord._make(columns)
    attempt = None
    if row[_AFTER] is not None:
        assert rollout.latest_attempt_id is not None
        attempt = attempt_of((None, None, rollout.rollout_id, rollout.latest_attempt_id, *row[_AFTER + 1 :]))
    return RolloutEntry(row[0], row[1], row[2], rollout, row[_AFTER], attempt)


_WRITTEN: Final = ("config", *_CHANGING)
INSERT_ROLLOUT: Final = f"""
    INSERT INTO rollouts ({", ".join(_WRITTEN)}, number, {", ".join(_UNCHANGING)})
    VALUES ({", ".join("?" * len(_WRITTEN))}, ?, {", ".join("?" * len(_UNCHANGING))})
"""
UPDATE_ROLLOUT: Final = f"UPDATE rollouts SET {', '.join(f'{one} = ?' for one in _WRITTEN)} WHERE number = ?"
_changing_columns: Final = itemgetter(*map(_FIELDS.index, _CHANGING))
_unchanging_columns: Final = itemgetter(*map(_FIELDS.index, _UNCHANGING))


def rollout_columns(record: RolloutRecord) -> tuple[Any, ...]:
    """What changes of a rollout, in the order of these statements."""
    return config_text(record.config), *_changing_columns(record)


def open_groups(connection: Connection, run: str) -> list[OpenGroup]:
    """Those of a run."""
    return list(map(_open_group_of, fetch(connection, _SELECT_OPEN_GROUPS, [run])))


def _open_group_of(row: tuple[Any, ...]) -> OpenGroup:
    group_id, begun, any_held, all_held, key = row
    place = NO_PLACE if key is None else divmod(key, POSITIONS_PER_BAND)
    return OpenGroup(group_id, bool(begun), bool(any_held), bool(all_held), place)


def inserted_columns(record: RolloutRecord, number: int) -> tuple[Any, ...]:
    """What is inserted of a new rollout."""
    return *rollout_columns(record), number, *_unchanging_columns(record)


_ATTEMPT_COLUMNS: Final = AttemptRecord._fields[2:]
"""But for those that tell which one it is."""
_COUNTS: Final = 2 + AttemptRecord._fields.index("counts")
_SELECT_ATTEMPTS: Final = f"""
    SELECT a.number, a.rollout, r.rollout_id, a.attempt_id, {", ".join(f"a.{one}" for one in _ATTEMPT_COLUMNS)}
    FROM {{}}
"""
SELECT_ATTEMPTS_BY_KEY: Final = "WITH keys (rollout_id, attempt_id) AS (VALUES (?*))" + _SELECT_ATTEMPTS.format(
    "keys k CROSS JOIN rollouts r ON r.rollout_id = k.rollout_id"
    " CROSS JOIN attempts a ON a.rollout = r.number AND a.attempt_id = k.attempt_id"
)
SELECT_ATTEMPTS_BY_NUMBER: Final = _SELECT_ATTEMPTS.format(
    "attempts a CROSS JOIN rollouts r ON r.number = a.rollout WHERE a.number IN (?*)"
)


def attempt_of(row: tuple[Any, ...]) -> AttemptRecord:
    """Of a row of one of these statements."""
    return AttemptRecord._make((*row[2:_COUNTS], bool(row[_COUNTS]), *row[_COUNTS + 1 :]))


INSERT_ATTEMPT: Final = f"""
    INSERT INTO attempts ({", ".join(_ATTEMPT_COLUMNS)}, number, rollout, attempt_id)
    VALUES ({", ".join("?" * len(_ATTEMPT_COLUMNS))}, ?, ?, ?)
"""
UPDATE_ATTEMPT: Final = f"UPDATE attempts SET {', '.join(f'{one} = ?' for one in _ATTEMPT_COLUMNS)} WHERE number = ?"

# --- Spans -----------------------------------------------------------------------------------------------------------

SELECT_SPANS_BY_KEY: Final = """
    WITH keys (rollout, attempt, span_id) AS (VALUES (?*))
    SELECT s.rollout, s.attempt, s.span_id
    FROM keys k CROSS JOIN spans s ON s.rollout = k.rollout AND s.attempt = k.attempt AND s.span_id = k.span_id
"""
SELECT_SPANS_BY_NUMBER: Final = """
    SELECT s.number, r.rollout_id, a.attempt_id, s.trace_id, s.span_id, s.parent_id, s.name, s.start_time, s.end_time,
        s.sequence_id, s.document
    FROM spans s CROSS JOIN attempts a ON a.number = s.attempt CROSS JOIN rollouts r ON r.number = s.rollout
    WHERE s.number IN (?*)
"""
SELECT_SPAN_NUMBERS: Final = """
    WITH keys (place, rollout_id, attempt_id) AS (VALUES (?*))
    SELECT t.number
    FROM keys k CROSS JOIN rollouts r ON r.rollout_id = k.rollout_id
    CROSS JOIN spans t ON t.rollout = r.number CROSS JOIN attempts a ON a.number = t.attempt
    WHERE (k.attempt_id IS NULL OR a.attempt_id = k.attempt_id)
"""
INSERT_SPAN: Final = """
    INSERT INTO spans (number, rollout, attempt, trace_id, span_id, parent_id, name, start_time, end_time, sequence_id,
        document)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def span_of(row: tuple[Any, ...]) -> SpanRecord:
    """Of a row of ``SELECT_SPANS_BY_NUMBER``."""
    return SpanRecord(*row[1:])


# --- What was consumed -----------------------------------------------------------------------------------------------

SELECT_MARKS: Final = """
    WITH keys (consumer, rollout) AS (VALUES (?*))
    SELECT c.consumer, c.rollout, c.number
    FROM keys k CROSS JOIN consumed c ON c.consumer = k.consumer AND c.rollout = k.rollout
"""
SELECT_MARKS_FROM: Final = """
    SELECT r.rollout_id FROM consumed c CROSS JOIN rollouts r ON r.number = c.rollout
    WHERE c.consumer = ? AND c.number >= ? ORDER BY r.number
"""

# --- Resources, workers, replies -------------------------------------------------------------------------------------

_RESOURCES: Final = ", ".join(ResourcesRecord._fields)
SELECT_RESOURCES_BY_ID: Final = f"SELECT {_RESOURCES} FROM resources WHERE resources_id IN (?*)"
SELECT_RESOURCES_BY_NUMBER: Final = f"SELECT number, {_RESOURCES} FROM resources WHERE number IN (?*)"
SELECT_LATEST_RESOURCES: Final = (
    f"SELECT {_RESOURCES} FROM resources WHERE resources_id = (SELECT latest_resources FROM totals)"
)
SELECT_NEWEST_RESOURCES: Final = (
    f"SELECT {_RESOURCES} FROM resources WHERE run IS ? ORDER BY policy_version DESC, number LIMIT 1"
)
PUT_RESOURCES: Final = f"""
    INSERT INTO resources ({_RESOURCES}) VALUES ({", ".join("?" * len(ResourcesRecord._fields))})
    ON CONFLICT (resources_id) DO UPDATE SET {
    ", ".join(f"{one} = excluded.{one}" for one in ResourcesRecord._fields[1:])
}
"""
resources_of = ResourcesRecord._make

_SELECT_WORKERS: Final = f"SELECT {{}}{', '.join(WorkerRecord._fields)} FROM workers WHERE {{}} IN (?*)"
SELECT_WORKERS_BY_ID: Final = _SELECT_WORKERS.format("", "worker_id")
SELECT_WORKERS_BY_NUMBER: Final = _SELECT_WORKERS.format("number, ", "number")
PUT_WORKER: Final = f"""
    INSERT INTO workers ({", ".join(WorkerRecord._fields)}) VALUES ({", ".join("?" * len(WorkerRecord._fields))})
    ON CONFLICT (worker_id) DO UPDATE SET {", ".join(f"{one} = excluded.{one}" for one in WorkerRecord._fields[1:])}
"""
worker_of = WorkerRecord._make

SELECT_REPLIES: Final = """
    SELECT request_id, recorded_at, signature, refused, body FROM replies WHERE number IN (?*)
"""
INSERT_REPLY: Final = """
    INSERT INTO replies (number, request_id, recorded_at, signature, refused, body) VALUES (?, ?, ?, ?, ?, ?)
"""


def reply_of(row: tuple[Any, ...]) -> ReplyRecord:
    """Of a row of ``SELECT_REPLIES``."""
    return ReplyRecord(row[0], row[1], row[2], bool(row[3]), row[4])
