"""Records as rows of tables, and the totals that each transaction writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any, Final, NamedTuple

from lightning_store.backends.configs import config_of, config_text
from lightning_store.backends.postgres.conditions import looked_up
from lightning_store.backends.postgres.text import escaped, escaped_or_none, plain, plain_or_none
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

Row = Sequence[Any]

# --- Totals ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Totals:
    """What is stored, and the last numbers and positions: a row of ``log``, but for its id and what it did."""

    last_rollout: int
    last_attempt: int
    last_span: int
    last_queue_position: int
    last_completion_position: int
    last_reply: int
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
    tallies: str
    id: int
    queue_from: int
    """The queue has no position before it."""
    due_from: float
    """No rollout has a deadline before it."""
    rollout_tallies: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    worker_tallies: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        rollouts, workers = json.loads(self.tallies)
        self.rollout_tallies.update({(status, mode): count for status, mode, count in rollouts})
        self.worker_tallies.update(dict(workers))
        if self.latest_resources is not None:
            self.latest_resources = plain(self.latest_resources)

    def copied(self) -> Totals:
        copied = copy(self)
        copied.rollout_tallies = self.rollout_tallies.copy()
        copied.worker_tallies = self.worker_tallies.copy()
        return copied

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

    def columns(self) -> list[Any]:
        """What is inserted, in the order of :data:`TOTALS`."""
        rollouts = [(*key, count) for key, count in self.rollout_tallies.items() if count]
        workers = [item for item in self.worker_tallies.items() if item[1]]
        self.tallies = json.dumps([rollouts, workers])
        values = [getattr(self, one) for one in TOTALS]
        values[TOTALS.index("latest_resources")] = escaped_or_none(self.latest_resources)
        return values


TOTALS: Final = [one.name for one in fields(Totals) if not one.name.endswith("_tallies")]
SELECT_TOTALS: Final = f"SELECT {', '.join(TOTALS)} FROM log ORDER BY id DESC LIMIT 1"

# --- Columns ---------------------------------------------------------------------------------------------------------

_KINDS: Final = {
    "boolean": "counts held paused refused spans_evicted",
    "bytea": "body document",
    "float8": """completion_time create_time deadline due_from end_time first_claim_time last_busy_time
        last_dequeue_time last_heartbeat_time last_idle_time newest_time recorded_at start_time update_time""",
    "bigint": """attempt attempts completed completion_position consumers group_size id last_attempt
        last_completion_position last_queue_position last_reply last_rollout last_sequence last_span max_open_groups
        number other_bytes payload_bytes policy_version policy_version_max policy_version_min position priority
        queue_band queue_from queue_position resources resources_version rollout rollouts sequence_id size_bytes
        span_bytes spans uncounted_attempts version workers""",
}
_KIND_OF: Final = {column: kind for kind, columns in _KINDS.items() for column in columns.split()}


def kind_of(column: str) -> str:
    """The type of a column of this name, in whatever table."""
    return _KIND_OF.get(column, "text")


# --- Rollouts and attempts -------------------------------------------------------------------------------------------


class RolloutEntry(NamedTuple):
    """A rollout's row."""

    number: int
    last_sequence: int
    span_bytes: int
    rollout: RolloutRecord


class AttemptEntry(NamedTuple):
    """An attempt's row."""

    number: int
    rollout: int
    attempt: AttemptRecord


_FIELDS: Final = RolloutRecord._fields
_PAYLOADS: Final = ("input_json", "metadata_json")
_UNCHANGING: Final = ("rollout_id", "start_time", "run", "group_id", "group_size")
_BEFORE: Final = 3
_CONFIG: Final = _FIELDS.index("config")
_ESCAPED: Final = [_FIELDS.index(one) for one in ("rollout_id", "resources_id", "latest_attempt_id", "run", "group_id")]
_KEPT: Final = [one for one in _FIELDS if one not in _PAYLOADS]
ROLLOUT_COLUMNS: Final = ["number", "last_sequence", "span_bytes", "payload_bytes", *_KEPT]
ROLLOUT_UPDATES: Final = [one for one in ROLLOUT_COLUMNS if one not in ("number", *_UNCHANGING)]

SELECT_ROLLOUTS: Final = f"""
    SELECT r.number, r.last_sequence, r.span_bytes,
        {", ".join(f"{'p' if one in _PAYLOADS else 'r'}.{one}" for one in _FIELDS)}
    FROM rollouts r JOIN payloads p ON {looked_up("p.rollout", "r.number")}
"""


def rollout_entry(row: Row) -> RolloutEntry:
    """Of a row of ``SELECT_ROLLOUTS``."""
    columns = list(row[_BEFORE : _BEFORE + len(_FIELDS)])
    columns[_CONFIG] = config_of(columns[_CONFIG])
    for index in _ESCAPED:
        columns[index] = plain_or_none(columns[index])
    return RolloutEntry(row[0], row[1], row[2], RolloutRecord._make(columns))


_kept: Final = itemgetter(*map(_FIELDS.index, _KEPT))


def rollout_values(record: RolloutRecord, number: int, last_sequence: int, span_bytes: int) -> Sequence[Any]:
    """What is written of a rollout, in the order of ``ROLLOUT_COLUMNS``."""
    columns: list[Any] = list(record)
    columns[_CONFIG] = config_text(record.config)
    for index in _ESCAPED:
        columns[index] = escaped_or_none(columns[index])
    return number, last_sequence, span_bytes, record.payload_bytes, *_kept(columns)


ATTEMPT_COLUMNS: Final = AttemptRecord._fields[1:]
_SELECTED_ATTEMPT: Final = ", ".join(f"a.{one}" for one in ATTEMPT_COLUMNS)
SELECT_ATTEMPTS: Final = f"""
    SELECT a.number, a.rollout, r.rollout_id, {_SELECTED_ATTEMPT}
    FROM attempts a JOIN rollouts r ON {looked_up("r.number", "a.rollout")}
"""
_ATTEMPT_ESCAPED: Final = [
    AttemptRecord._fields.index(one) for one in ("rollout_id", "attempt_id", "worker_id", "resources_id")
]


def attempt_entry(row: Row) -> AttemptEntry:
    """Of a row of ``SELECT_ATTEMPTS``."""
    columns = list(row[2:])
    for index in _ATTEMPT_ESCAPED:
        columns[index] = plain_or_none(columns[index])
    return AttemptEntry(row[0], row[1], AttemptRecord._make(columns))


ATTEMPT_VALUES: Final = ("number", "rollout", "size_bytes", *ATTEMPT_COLUMNS)


def attempt_values(record: AttemptRecord, number: int, rollout: int) -> Sequence[Any]:
    """What is written of an attempt, in the order of ``ATTEMPT_VALUES``."""
    columns: list[Any] = list(record)
    for index in _ATTEMPT_ESCAPED:
        columns[index] = escaped_or_none(columns[index])
    return number, rollout, record.size_bytes, *columns[1:]


SELECT_ROLLOUT_ROWS: Final = f"""
    SELECT r.number, r.last_sequence, r.span_bytes,
        {", ".join(f"{'p' if one in _PAYLOADS else 'r'}.{one}" for one in _FIELDS)},
        a.number, a.rollout, r.rollout_id, {_SELECTED_ATTEMPT}
    FROM rollouts r JOIN payloads p ON {looked_up("p.rollout", "r.number")}
    LEFT JOIN attempts a ON {looked_up("a.rollout", "r.number")} AND {looked_up("a.attempt_id", "r.latest_attempt_id")}
"""
"""Rollouts with their latest attempts."""


def rollout_row(row: Row) -> RolloutRow:
    """Of a row of ``SELECT_ROLLOUT_ROWS``."""
    after = row[_BEFORE + len(_FIELDS) :]
    return RolloutRow(rollout_entry(row).rollout, None if after[0] is None else attempt_entry(after).attempt)


def open_groups(runs: str) -> str:
    """Selects the groups of these runs that nobody has consumed, with a member that is neither failed nor cancelled."""
    return f"""
        SELECT run, group_id,
            EXISTS (SELECT 1 FROM rollouts m WHERE m.group_id = r.group_id AND m.first_claim_time IS NOT NULL),
            bool_or(held), bool_and(held), min(queue_band * {POSITIONS_PER_BAND} + queue_position)
        FROM rollouts r WHERE run = ANY ({runs}) AND is_open GROUP BY run, group_id
    """


def open_group_of(row: Row) -> OpenGroup:
    """Of a row of ``open_groups`` but for its run."""
    group_id, begun, any_held, all_held, key = row
    place = NO_PLACE if key is None else divmod(key, POSITIONS_PER_BAND)
    return OpenGroup(plain(group_id), begun, any_held, all_held, place)


# --- Spans -----------------------------------------------------------------------------------------------------------

SPAN_COLUMNS: Final = SpanRecord._fields[2:-1]
SELECT_SPANS: Final = f"""
    SELECT t.number, r.rollout_id, a.attempt_id, {", ".join(f"t.{one}" for one in SPAN_COLUMNS)}
    FROM spans t JOIN attempts a ON {looked_up("a.number", "t.attempt")}
    JOIN rollouts r ON {looked_up("r.number", "t.rollout")}
"""


def span_of(row: Row) -> SpanRecord:
    """Of a row of ``SELECT_SPANS``."""
    columns = list(row[1:])
    for index in range(6):  # rollout, attempt, trace, span, parent, name
        columns[index] = plain_or_none(columns[index])
    return SpanRecord._make([*columns, None])


# --- Resources, workers, replies -------------------------------------------------------------------------------------

RESOURCES_COLUMNS: Final = ", ".join(ResourcesRecord._fields)


def resources_of(row: Row) -> ResourcesRecord:
    resources_id, *others, run = row
    return ResourcesRecord._make((plain(resources_id), *others, plain_or_none(run)))


def resources_values(record: ResourcesRecord) -> Sequence[Any]:
    return record._replace(resources_id=escaped(record.resources_id), run=escaped_or_none(record.run))


WORKER_COLUMNS: Final = ", ".join(WorkerRecord._fields)


def present_worker(worker_id: str) -> str:
    """Selects a worker. The rows that it had before may still be there for others, but not after this one."""
    columns = f"{WORKER_COLUMNS}, number, version"
    return f"SELECT {columns} FROM workers WHERE worker_id = {worker_id} ORDER BY version DESC LIMIT 1"


def worker_of(row: Row) -> WorkerRecord:
    """Of a row that begins with ``WORKER_COLUMNS``."""
    worker_id, *others, rollout_id, attempt_id = row[: len(WorkerRecord._fields)]
    return WorkerRecord._make((plain(worker_id), *others, plain_or_none(rollout_id), plain_or_none(attempt_id)))


def worker_values(record: WorkerRecord) -> Sequence[Any]:
    *columns, rollout_id, attempt_id = record
    columns[0] = escaped(record.worker_id)
    return *columns, escaped_or_none(rollout_id), escaped_or_none(attempt_id)


REPLY_COLUMNS: Final = ("request_id", "recorded_at", "signature", "refused", "body")


def reply_values(reply: ReplyRecord) -> Sequence[Any]:
    return escaped(reply.request_id), reply.recorded_at, escaped(reply.signature), reply.refused, reply.body


def reply_of(row: Row) -> ReplyRecord:
    return ReplyRecord(plain(row[0]), row[1], plain(row[2]), row[3], row[4])
