"""Set-wise writes: everything that a group of operations changes, before its COMMIT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Any, Final

from lightning_store.backends.base import Changes, Needs
from lightning_store.backends.records import AttemptRecord, ResourcesRecord, RolloutRecord, WorkerRecord
from lightning_store.backends.sqlite import rows
from lightning_store.backends.sqlite.loading import SqliteLoaded, load
from lightning_store.backends.sqlite.replies import Entry, ReplyIndex
from lightning_store.backends.sqlite.rows import Totals
from lightning_store.labels import labels_of
from lightning_store.lifecycle import TERMINAL
from lightning_store.loops import Slicer

ROWS_AT_ONCE: Final = 64
"""Rows that one call inserts or updates: well below what may hold the event loop."""
DELETED_AT_ONCE: Final = 500
"""Spans that one statement deletes."""


@dataclass(slots=True)
class Written:
    """What has to be known in memory once the transaction is committed."""

    totals: Totals
    deadline: float | None
    """No rollout has an earlier one."""
    replies: list[Entry] = field(default_factory=list)
    expired: int = 0
    """The row up to which all replies were deleted."""


async def write(
    connection: Connection, changes: Changes, loaded: SqliteLoaded, replies: ReplyIndex, pacer: Slicer
) -> Written:
    """Write ``changes`` into the open transaction.

    Args:
        connection: The one that writes.
        changes: What the group of operations changes.
        loaded: What the transaction has loaded. A rollout or an attempt that is not in it is new.
        replies: Which replies are stored.
        pacer: Lets others in between.

    Returns:
        What the memory has to follow when the COMMIT is done.
    """
    writer = _Writer(connection, loaded, pacer)
    await writer.write(changes, replies)
    return writer.written


class _Writer:
    """One transaction's changes on their way."""

    def __init__(self, connection: Connection, loaded: SqliteLoaded, pacer: Slicer) -> None:
        self._connection = connection
        self._loaded = loaded
        self._pacer = pacer
        self._totals = copy(loaded.totals)
        self.written = Written(self._totals, loaded.deadline)
        self._deleted: set[str] = set()

    async def write(self, changes: Changes, replies: ReplyIndex) -> None:
        self._deleted = {one for one, record in changes.rollouts.items() if record is None}
        former = {one: self._loaded.rollouts.get(one) for one in changes.rollouts}
        new_attempts = {key for key in changes.attempts if self._loaded.attempts.get(key) is None}
        await self._load_what_is_changed(changes, replies)
        if self._deleted:
            await self._delete()
        await self._put_rollouts([one for one in changes.rollouts.values() if one is not None], former)
        await self._put_attempts(changes, new_attempts)
        await self._insert_spans(changes)
        await self._put_workers_and_resources(changes)
        await self._put_replies(changes, replies)
        for run, admission in changes.admissions.items():
            self._connection.execute("DELETE FROM admissions WHERE run = ?", (run,))
            if admission is not None:
                self._connection.execute("INSERT INTO admissions VALUES (?, ?, ?)", admission)
        if changes.marks or changes.checkpoints:
            await self._put_marks(changes)
        self._totals.newest_time = max(self._totals.newest_time, changes.time)
        rows.write_totals(self._connection, self._totals)

    async def _load_what_is_changed(self, changes: Changes, replies: ReplyIndex) -> None:
        """What this writes to and has not loaded, because nothing had to be decided on it."""
        loaded = self._loaded
        named = {*self._deleted, *changes.sequences, *(one[0] for one in (*changes.attempts, *changes.spans))}
        named.update(rollout_id for _, rollout_id in changes.marks)
        needs = Needs(
            rollouts=named - changes.rollouts.keys() | self._deleted,
            attempts={key[:2] for key in changes.spans} - changes.attempts.keys(),
            workers=set(changes.workers),
            resources=set(changes.resources),
        )
        needs.rollouts -= loaded.numbers.keys()
        needs.attempts -= loaded.attempt_numbers.keys()
        await load(self._connection, needs, None, loaded, replies, self._pacer)

    async def _execute_many(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        for start in range(0, len(parameters), ROWS_AT_ONCE):
            self._connection.executemany(statement, parameters[start : start + ROWS_AT_ONCE])
            await self._pacer.breathe()

    async def _execute_in(self, statement: str, keys: Iterable[Any]) -> int:
        changed = 0
        for count in rows.execute_in(self._connection, statement, keys):
            changed += count
            await self._pacer.breathe()
        return changed

    # --- Rollouts ----------------------------------------------------------------------------------------------------

    async def _delete(self) -> None:
        loaded, totals = self._loaded, self._totals
        records = [one for one in map(loaded.rollouts.get, self._deleted) if one is not None]
        numbers = [loaded.numbers[one.rollout_id] for one in records]
        for one in records:
            await self._drop_spans(loaded.numbers[one.rollout_id], loaded.span_bytes[one.rollout_id])
        statement = "SELECT worker_id, metadata_json FROM attempts WHERE rollout IN (?*)"
        for found in rows.select_in(self._connection, statement, numbers):
            for worker_id, metadata_json in found:
                attempt = AttemptRecord("", "", 0, 0.0, None, "failed", worker_id, None, metadata_json)
                totals.other_bytes -= attempt.size_bytes
            await self._pacer.breathe()
        totals.attempts -= await self._execute_in("DELETE FROM attempts WHERE rollout IN (?*)", numbers)
        await self._leave(records, {})
        await self._execute_in("DELETE FROM payloads WHERE rollout IN (?*)", numbers)
        await self._execute_in("DELETE FROM consumed WHERE rollout IN (?*)", numbers)
        await self._unlabel([(label, loaded.numbers[one.rollout_id]) for one in records for label in _labels(one)])
        totals.rollouts -= await self._execute_in("DELETE FROM rollouts WHERE number IN (?*)", numbers)
        totals.completed -= sum(one.completion_position is not None for one in records)
        totals.other_bytes -= sum(one.size_bytes for one in records)

    async def _drop_spans(self, number: int, span_bytes: int) -> None:
        dropped = await drop_spans(self._connection, number, self._pacer)
        self._totals.spans -= dropped
        self._totals.span_bytes -= span_bytes

    async def _leave(self, former: Iterable[RolloutRecord], records: dict[str, RolloutRecord]) -> None:
        """Take rollouts out of the places in the queue and among the completions that they do not keep."""
        queue, completions = [], []
        for one in former:
            record = records.get(one.rollout_id)
            if one.in_queue and (record is None or not record.in_queue or record.queue_place != one.queue_place):
                queue.append(one.queue_key)
            if one.completion_position is not None and (
                record is None or record.completion_position != one.completion_position
            ):
                completions.append(one.completion_position)
        await self._execute_in("DELETE FROM queue WHERE position IN (?*)", queue)
        await self._execute_in("DELETE FROM completions WHERE position IN (?*)", completions)

    async def _put_rollouts(self, records: Sequence[RolloutRecord], former: dict[str, RolloutRecord | None]) -> None:
        loaded, totals = self._loaded, self._totals
        inserted, updated, new_payloads, payloads, queue, completions = [], [], [], [], [], []
        labels, former_labels = [], []
        earliest = self.written.deadline
        for record in records:
            rollout_id, old = record.rollout_id, former[record.rollout_id]
            if record.deadline is not None and (earliest is None or record.deadline < earliest):
                earliest = record.deadline
            if old is None:
                totals.last_rollout += 1
                number = loaded.numbers[rollout_id] = totals.last_rollout
                inserted.append(rows.inserted_columns(record, number))
                new_payloads.append((number, record.input_json, record.metadata_json))
                labels += [(label, number) for label in _labels(record)]
                totals.rollouts += 1
                totals.other_bytes += record.size_bytes
            else:
                number = loaded.numbers[rollout_id]
                updated.append((*rows.rollout_columns(record), number))
                if record.input_json is not old.input_json or record.metadata_json is not old.metadata_json:
                    payloads.append((record.input_json, record.metadata_json, number))
                    former_labels += [(label, number) for label in _labels(old)]
                    labels += [(label, number) for label in _labels(record)]
                totals.other_bytes += record.size_bytes - old.size_bytes
            totals.completed += (record.completion_position is not None) - (
                old is not None and old.completion_position is not None
            )
            if record.in_queue and (old is None or not old.in_queue or old.queue_place != record.queue_place):
                queue.append((record.queue_key, number))
            if record.completion_position is not None and (
                old is None or old.completion_position != record.completion_position
            ):
                completions.append((record.completion_position, number))
            totals.last_queue_position = max(totals.last_queue_position, record.queue_position or 0)
            totals.last_completion_position = max(totals.last_completion_position, record.completion_position or 0)
        self.written.deadline = earliest
        await self._leave(
            [old for old in former.values() if old is not None and old.rollout_id not in self._deleted],
            {one.rollout_id: one for one in records},
        )
        await self._execute_many(rows.INSERT_ROLLOUT, inserted)
        await self._execute_many(
            "INSERT INTO payloads (rollout, input_json, metadata_json) VALUES (?, ?, ?)", new_payloads
        )
        await self._execute_many(rows.UPDATE_ROLLOUT, updated)
        await self._execute_many("UPDATE payloads SET input_json = ?, metadata_json = ? WHERE rollout = ?", payloads)
        await self._unlabel(former_labels)
        await self._execute_many("INSERT INTO labels (label, rollout) VALUES (?, ?)", labels)
        await self._execute_many("INSERT INTO queue (position, rollout) VALUES (?, ?)", queue)
        await self._execute_many("INSERT INTO completions (position, rollout) VALUES (?, ?)", completions)

    async def _unlabel(self, labels: Sequence[tuple[str, int]]) -> None:
        await self._execute_many("DELETE FROM labels WHERE label = ? AND rollout = ?", labels)

    async def _put_marks(self, changes: Changes) -> None:
        marks = [
            (consumer, number, mark)
            for (consumer, rollout_id), mark in changes.marks.items()
            if (number := self._rollout_number(rollout_id)) is not None
        ]
        await self._replace("consumed (consumer, rollout, number)", marks)
        checkpoints = [(*key, number) for key, number in changes.checkpoints.items()]
        await self._replace("checkpoints (consumer, checkpoint, number)", checkpoints)

    async def _replace(self, table: str, values: Sequence[tuple[str, Any, int | None]]) -> None:
        """Insert, replace or, where the last value is None, delete rows of a table with two keys."""
        name, _, columns = table.partition(" (")
        first, second, *_ = columns.split(", ")
        gone = [one[:2] for one in values if one[2] is None]
        await self._execute_many(f"DELETE FROM {name} WHERE {first} = ? AND {second} = ?", gone)
        stored = [one for one in values if one[2] is not None]
        await self._execute_many(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", stored)

    # --- Attempts and spans ------------------------------------------------------------------------------------------

    def _rollout_number(self, rollout_id: str) -> int | None:
        """None of a rollout that is deleted, or that there is not: what is said of it is void."""
        return None if rollout_id in self._deleted else self._loaded.numbers.get(rollout_id)

    async def _put_attempts(self, changes: Changes, new: set[tuple[str, str]]) -> None:
        loaded, totals = self._loaded, self._totals
        inserted, updated = [], []
        for key, record in changes.attempts.items():
            rollout = self._rollout_number(record.rollout_id)
            if rollout is None:
                continue
            columns = record[2:]
            if key in new:
                totals.last_attempt += 1
                loaded.attempt_numbers[key] = totals.last_attempt
                inserted.append((*columns, totals.last_attempt, rollout, record.attempt_id))
                totals.attempts += 1
                totals.other_bytes += record.size_bytes
            else:
                updated.append((*columns, loaded.attempt_numbers[key]))
                old = loaded.attempts[key]
                if old is not None:
                    totals.other_bytes += record.size_bytes - old.size_bytes
        await self._execute_many(rows.INSERT_ATTEMPT, inserted)
        await self._execute_many(rows.UPDATE_ATTEMPT, updated)

    async def _insert_spans(self, changes: Changes) -> None:
        totals = self._totals
        added_bytes: dict[str, int] = dict.fromkeys(changes.sequences, 0)
        inserted = []
        for (rollout_id, attempt_id, _), (span, size_bytes) in changes.spans.items():
            rollout = self._rollout_number(rollout_id)
            attempt = self._loaded.attempt_numbers.get((rollout_id, attempt_id))
            if rollout is None or attempt is None:
                continue
            totals.last_span += 1
            totals.spans += 1
            totals.span_bytes += size_bytes
            added_bytes[rollout_id] = added_bytes.get(rollout_id, 0) + size_bytes
            inserted.append((totals.last_span, rollout, attempt, *span[2:-1]))
            if len(inserted) >= ROWS_AT_ONCE:
                await self._execute_many(rows.INSERT_SPAN, inserted)
                inserted = []
        await self._execute_many(rows.INSERT_SPAN, inserted)
        counters = []
        for rollout_id, size_bytes in added_bytes.items():
            rollout = self._rollout_number(rollout_id)
            if rollout is not None:
                counters.append((changes.sequences.get(rollout_id), size_bytes, rollout))
        statement = """
            UPDATE rollouts SET last_sequence = coalesce(?, last_sequence), span_bytes = span_bytes + ? WHERE number = ?
        """
        await self._execute_many(statement, counters)

    # --- All else ----------------------------------------------------------------------------------------------------

    async def _put_workers_and_resources(self, changes: Changes) -> None:
        loaded, totals = self._loaded, self._totals
        for worker_id, worker in changes.workers.items():
            old_worker = loaded.workers[worker_id]
            totals.workers += (worker is not None) - (old_worker is not None)
            totals.other_bytes += _size_of(worker) - _size_of(old_worker)
        await self._execute_many(rows.PUT_WORKER, [one for one in changes.workers.values() if one is not None])
        await self._execute_in("DELETE FROM workers WHERE worker_id IN (?*)", _deleted(changes.workers))
        for resources_id, resources in changes.resources.items():
            old = loaded.resources_by_id[resources_id]
            totals.resources += (resources is not None) - (old is not None)
            totals.other_bytes += _size_of(resources) - _size_of(old)
        await self._execute_many(rows.PUT_RESOURCES, [one for one in changes.resources.values() if one is not None])
        await self._execute_in("DELETE FROM resources WHERE resources_id IN (?*)", _deleted(changes.resources))
        totals.latest_resources = changes.latest_resources or totals.latest_resources

    async def _put_replies(self, changes: Changes, replies: ReplyIndex) -> None:
        if not changes.replies:
            return
        totals = self._totals
        inserted, added = [], []
        for reply in changes.replies.values():
            totals.last_reply += 1
            stored = reply.encoded()
            inserted.append((totals.last_reply, *stored[:5]))
            added.append(Entry(totals.last_reply, reply.request_id, reply.recorded_at, len(stored.body)))
        replaced = [number for number in map(replies.number, changes.replies) if number is not None]
        await self._execute_in("DELETE FROM replies WHERE number IN (?*)", replaced)
        expired = replies.expired(added)
        if expired:
            self._connection.execute("DELETE FROM replies WHERE number <= ?", (expired,))
        await self._execute_many(rows.INSERT_REPLY, inserted)
        self.written.replies, self.written.expired = added, expired


def _labels(record: RolloutRecord) -> Sequence[str]:
    return labels_of(record.metadata_json)


def _size_of(record: WorkerRecord | ResourcesRecord | None) -> int:
    return 0 if record is None else record.size_bytes


def _deleted(table: Mapping[str, object | None]) -> list[str]:
    return [key for key, record in table.items() if record is None]


async def drop_spans(connection: Connection, number: int, pacer: Slicer) -> int:
    """Delete the spans of the rollout in this row; how many these were."""
    statement = "DELETE FROM spans WHERE number IN (SELECT number FROM spans WHERE rollout = ? LIMIT ?)"
    dropped = 0
    while True:
        count = connection.execute(statement, (number, DELETED_AT_ONCE)).rowcount
        dropped += count
        if count < DELETED_AT_ONCE:
            return dropped
        await pacer.breathe()


async def evict(
    connection: Connection, written: Written, excess_bytes: int, unfinished: bool, pacer: Slicer
) -> list[str]:
    """Drop whole rollouts' spans in the open transaction until so many bytes are free.

    Args:
        connection: The one that writes.
        written: What the memory has to follow; its totals are changed.
        excess_bytes: How many bytes to free at the least.
        unfinished: Whether rollouts that are not terminal may lose theirs, oldest first, when nothing else is left.
        pacer: Lets others in between.

    Returns:
        The rollouts whose spans were dropped.
    """
    totals = written.totals
    marks = ", ".join("?" * len(TERMINAL))
    terminal = f"SELECT number, rollout_id, span_bytes FROM rollouts INDEXED BY rollouts_with_spans \
        WHERE span_bytes > 0 AND status IN ({marks}) ORDER BY end_time, number LIMIT 1"
    others = "SELECT number, rollout_id, span_bytes FROM rollouts INDEXED BY rollouts_with_spans \
        WHERE span_bytes > 0 ORDER BY number LIMIT 1"
    evicted: list[str] = []
    freed_bytes = 0
    while freed_bytes < excess_bytes:
        row = connection.execute(terminal, sorted(TERMINAL)).fetchone()
        if row is None and unfinished:
            row = connection.execute(others).fetchone()
        if row is None:
            break
        number, rollout_id, span_bytes = row
        totals.spans -= await drop_spans(connection, number, pacer)
        totals.span_bytes -= span_bytes
        freed_bytes += span_bytes
        connection.execute("UPDATE rollouts SET span_bytes = 0, spans_evicted = 1 WHERE number = ?", (number,))
        evicted.append(rollout_id)
        await pacer.breathe()
    if evicted:
        rows.write_totals(connection, totals)
    return evicted
