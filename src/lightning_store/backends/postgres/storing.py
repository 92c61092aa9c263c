"""Set-wise writes: everything that a group of operations changes, as one statement before its COMMIT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, starmap
from typing import Any, Final, NamedTuple

from asyncpg import Connection

from lightning_store.backends.base import Changes, Needs
from lightning_store.backends.postgres import rows
from lightning_store.backends.postgres.conditions import looked_up
from lightning_store.backends.postgres.loading import PostgresLoaded, load
from lightning_store.backends.postgres.rows import Totals
from lightning_store.backends.postgres.text import all_escaped, escaped, plain
from lightning_store.backends.records import AdmissionRecord, ResourcesRecord, RolloutRecord, WorkerRecord
from lightning_store.labels import labels_of
from lightning_store.lifecycle import TERMINAL

LOG_ROWS: Final = 4096
"""Transactions that are remembered for the other servers: what each did that somebody may wait for."""
LOG_TRIM: Final = 256
"""How many transactions pass until the log is trimmed."""
EXPIRED_MAX: Final = 2000
"""Recorded replies that one transaction deletes at the most."""


class Batch:
    """Statements that write to different rows, sent as one."""

    def __init__(self) -> None:
        self._statements: list[str] = []
        self._parameters: list[Any] = []

    def parameter(self, value: object, kind: str) -> str:
        """The place of a value of this type in the statement."""
        self._parameters.append(value)
        return f"${len(self._parameters)}::{kind}"

    def rows(self, columns: Sequence[str], values: Iterable[Sequence[Any]]) -> str:
        """A table of these rows, of which there are some, with columns of these names."""
        arrays = (
            self.parameter(array, f"{rows.kind_of(column)}[]")
            for column, array in zip(columns, zip(*values, strict=True), strict=True)
        )
        return f"unnest({', '.join(arrays)}) AS n ({', '.join(columns)})"

    def insert(
        self, table: str, columns: Sequence[str], values: Sequence[Sequence[Any]], key: Sequence[str] = ()
    ) -> None:
        """Insert rows, if there are any. With a ``key`` they replace those that have the same."""
        if values:
            names = ", ".join(columns)
            others = ", ".join(f"{one} = excluded.{one}" for one in columns if one not in key)
            replaced = f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {others}" if key else ""
            self.add(f"INSERT INTO {table} ({names}) SELECT {names} FROM {self.rows(columns, values)}{replaced}")

    def update(
        self, table: str, columns: Sequence[str], values: Sequence[Sequence[Any]], changing: Sequence[str]
    ) -> None:
        """Set the columns that change of the rows with these numbers, if there are any."""
        if values:
            assignments = ", ".join(f"{one} = n.{one}" for one in changing)
            self.add(
                f"UPDATE {table} t SET {assignments} FROM {self.rows(columns, values)}"
                f" WHERE {looked_up('t.number', 'n.number')}"
            )

    def delete(self, table: str, columns: Sequence[str], values: Sequence[Sequence[Any]]) -> None:
        """Delete the rows in which these columns have one of these values, if there are any."""
        if values:
            condition = " AND ".join(looked_up(f"t.{one}", f"n.{one}") for one in columns)
            self.add(f"DELETE FROM {table} t USING {self.rows(columns, values)} WHERE {condition}")

    def add(self, statement: str) -> None:
        self._statements.append(statement)

    async def execute(self, connection: Connection) -> None:
        if self._statements:
            named = ", ".join(f"s{place} AS ({one} RETURNING 1)" for place, one in enumerate(self._statements))
            await connection.execute(f"WITH {named} SELECT 1", *self._parameters)


async def write(connection: Connection, changes: Changes, loaded: PostgresLoaded, server: str) -> tuple[Totals, Done]:
    """Write ``changes`` into the open transaction.

    Args:
        connection: The one that writes.
        changes: What the group of operations changes.
        loaded: What the transaction has loaded. A rollout or an attempt that is not in it is new.
        server: Who writes.

    Returns:
        What is stored when the COMMIT is done, and what has been done then.
    """
    writer = _Writer(connection, changes, loaded)
    await writer.load_what_is_changed()
    done = await writer.write(server)
    return writer.totals, done


@dataclass(slots=True)
class _Rollouts:
    """What is written of the rollouts that changed. A row is named by its number, a place by its position."""

    inserted: list[tuple[RolloutRecord, int, int]] = field(default_factory=list)
    """Each with its number and its span counter."""
    updated: list[tuple[RolloutRecord, int, int]] = field(default_factory=list)
    payloads: list[tuple[int, str, str | None]] = field(default_factory=list)
    left_labels: list[tuple[str, int]] = field(default_factory=list)
    labels: list[tuple[str, int]] = field(default_factory=list)
    left_queue: list[tuple[int]] = field(default_factory=list)
    queue: list[tuple[int, int]] = field(default_factory=list)
    left_completions: list[tuple[int]] = field(default_factory=list)
    completions: list[tuple[int, int]] = field(default_factory=list)


class _Writer:
    """One transaction's changes on their way."""

    def __init__(self, connection: Connection, changes: Changes, loaded: PostgresLoaded) -> None:
        self._connection = connection
        self._changes = changes
        self._loaded = loaded
        self._batch = Batch()
        self.totals = loaded.totals.copied()
        self._deleted = {one for one, record in changes.rollouts.items() if record is None}
        self._former = {one: loaded.rollouts.get(one) for one in changes.rollouts}
        self._new_attempts = {key for key in changes.attempts if loaded.attempts.get(key) is None}
        self._ended: list[tuple[int, str]] = []
        self._queued = 0
        self._deadline: float | None = None

    async def load_what_is_changed(self) -> None:
        """What this writes to and has not loaded, because nothing had to be decided on it."""
        loaded, changes = self._loaded, self._changes
        named = {*self._deleted, *changes.sequences, *(one[0] for one in (*changes.attempts, *changes.spans))}
        named.update(rollout_id for _, rollout_id in changes.marks)
        needs = Needs(
            rollouts=(named - changes.rollouts.keys() | self._deleted) - loaded.rollouts.keys(),
            attempts={key[:2] for key in changes.spans} - changes.attempts.keys() - loaded.attempts.keys(),
            workers=set(changes.workers) - loaded.workers.keys(),
            resources=set(changes.resources) - loaded.resources_by_id.keys(),
        )
        if needs.rollouts or needs.attempts or needs.workers or needs.resources:
            await load(self._connection, needs, None, loaded)
        self._former.update({one: loaded.rollouts.get(one) for one in self._deleted})

    async def write(self, server: str) -> Done:
        changes, totals = self._changes, self.totals
        if self._deleted:
            await self._delete()
        self._put_rollouts()
        self._put_attempts()
        self._put_spans_and_counters()
        self._put_workers()
        self._put_resources()
        self._put_marks()
        self._put_admissions()
        totals.newest_time = max(totals.newest_time, changes.time)
        self._put_replies()
        ended = [rollout_id for _, rollout_id in sorted(self._ended)]
        deleted = [one for one in self._deleted if self._former[one] is not None]
        done = Done(ended, deleted, self._queued, self._deadline)
        put_log(self._batch, totals, server, done)
        await self._batch.execute(self._connection)
        return done

    # --- Rollouts ----------------------------------------------------------------------------------------------------

    async def _delete(self) -> None:
        """What belongs to the rollouts that are deleted goes first: it is not all known here."""
        loaded, totals, batch = self._loaded, self.totals, self._batch
        records = [one for one in map(loaded.rollouts.get, self._deleted) if one is not None]
        numbers = [loaded.numbers[one.rollout_id] for one in records]
        if not numbers:
            return
        row = await self._connection.fetchrow(
            "SELECT count(*), coalesce(sum(size_bytes), 0)::bigint,"
            " (SELECT count(*) FROM spans WHERE rollout = ANY($1::bigint[]))"
            " FROM attempts WHERE rollout = ANY($1::bigint[])",
            numbers,
        )
        assert row is not None
        totals.attempts -= row[0]
        totals.other_bytes -= row[1]
        totals.spans -= row[2]
        totals.span_bytes -= sum(loaded.span_bytes[one.rollout_id] for one in records)
        totals.rollouts -= len(records)
        totals.completed -= sum(one.completion_position is not None for one in records)
        totals.other_bytes -= sum(one.size_bytes for one in records)
        for one in records:
            totals.rollout_tallies[one.status, one.mode] -= 1
        place = batch.parameter(numbers, "bigint[]")
        labels = [_labels(number, labels_of(one.metadata_json)) for number, one in zip(numbers, records, strict=True)]
        batch.delete("labels", ("label", "rollout"), list(chain.from_iterable(labels)))
        for table in ("spans", "attempts", "payloads", "consumed"):
            batch.add(f"DELETE FROM {table} WHERE rollout = ANY({place})")
        batch.add(f"DELETE FROM rollouts WHERE number = ANY({place})")

    def _put_rollouts(self) -> None:
        batch, changed = self._batch, _Rollouts()
        for rollout_id, record in self._changes.rollouts.items():
            old = self._former[rollout_id]
            if record is not None:
                self._put_rollout(record, old, changed)
            elif old is not None:
                if old.queue_key is not None and old.in_queue:
                    changed.left_queue.append((old.queue_key,))
                if old.completion_position is not None:
                    changed.left_completions.append((old.completion_position,))
        batch.delete("queue", ("position",), changed.left_queue)
        batch.delete("completions", ("position",), changed.left_completions)
        self._write_rollouts(changed.inserted, changed.updated)
        batch.insert("payloads", ("rollout", "input_json", "metadata_json"), changed.payloads, ("rollout",))
        batch.delete("labels", ("label", "rollout"), changed.left_labels)
        batch.insert("labels", ("label", "rollout"), changed.labels)
        batch.insert("queue", ("position", "rollout"), changed.queue)
        batch.insert("completions", ("position", "rollout"), changed.completions)
        self._put_bounds(changed)

    def _put_rollout(self, record: RolloutRecord, old: RolloutRecord | None, changed: _Rollouts) -> None:
        loaded, totals, rollout_id = self._loaded, self.totals, record.rollout_id
        sequence = self._changes.sequences.get(rollout_id, loaded.sequences.get(rollout_id, 0))
        totals.rollout_tallies[record.status, record.mode] += 1
        if old is None:
            totals.last_rollout += 1
            number = loaded.numbers[rollout_id] = totals.last_rollout
            changed.inserted.append((record, number, sequence))
            changed.payloads.append((number, record.input_json, record.metadata_json))
            changed.labels += _labels(number, set(labels_of(record.metadata_json)))
            totals.rollouts += 1
            totals.other_bytes += record.size_bytes
        else:
            number = loaded.numbers[rollout_id]
            changed.updated.append((record, number, sequence))
            if record.input_json is not old.input_json or record.metadata_json is not old.metadata_json:
                changed.payloads.append((number, record.input_json, record.metadata_json))
                former, present = set(labels_of(old.metadata_json)), set(labels_of(record.metadata_json))
                changed.left_labels += _labels(number, former - present)
                changed.labels += _labels(number, present - former)
            totals.other_bytes += record.size_bytes - old.size_bytes
            totals.rollout_tallies[old.status, old.mode] -= 1
        self._place(record, old, number, changed)

    def _place(self, record: RolloutRecord, old: RolloutRecord | None, number: int, changed: _Rollouts) -> None:
        """The rollout's places in the queue and among the completions, and when it is due."""
        totals = self.totals
        if record.deadline is not None:
            self._deadline = record.deadline if self._deadline is None else min(self._deadline, record.deadline)
        former_key = old.queue_key if old is not None and old.in_queue else None
        key = record.queue_key if record.in_queue else None
        if former_key != key:
            if former_key is not None:
                changed.left_queue.append((former_key,))
            if key is not None:
                changed.queue.append((key, number))
                self._queued += 1
        before = None if old is None else old.completion_position
        if before != record.completion_position:
            totals.completed += (record.completion_position is not None) - (before is not None)
            if before is not None:
                changed.left_completions.append((before,))
            if record.completion_position is not None:
                changed.completions.append((record.completion_position, number))
                self._ended.append((record.completion_position, record.rollout_id))
        totals.last_queue_position = max(totals.last_queue_position, record.queue_position or 0)
        totals.last_completion_position = max(totals.last_completion_position, record.completion_position or 0)

    def _put_bounds(self, changed: _Rollouts) -> None:
        """Where the queue begins, as far as it was loaded, and the earliest deadline."""
        totals, left = self.totals, {key for (key,) in changed.left_queue}
        for key in self._loaded.queue_keys:
            totals.queue_from = key
            if key not in left:
                break
            totals.queue_from += 1
        totals.queue_from = min([totals.queue_from, *(key for key, _ in changed.queue)])
        if self._deadline is not None:
            totals.due_from = min(totals.due_from, self._deadline)

    def _write_rollouts(
        self, inserted: Sequence[tuple[RolloutRecord, int, int]], updated: Sequence[tuple[RolloutRecord, int, int]]
    ) -> None:
        added = self._span_bytes()

        def values(record: RolloutRecord, number: int, sequence: int) -> Sequence[Any]:
            rollout_id = record.rollout_id
            span_bytes = self._loaded.span_bytes.get(rollout_id, 0) + added.get(rollout_id, 0)
            return rows.rollout_values(record, number, sequence, span_bytes)

        self._batch.insert("rollouts", rows.ROLLOUT_COLUMNS, list(starmap(values, inserted)))
        self._batch.update("rollouts", rows.ROLLOUT_COLUMNS, list(starmap(values, updated)), rows.ROLLOUT_UPDATES)

    # --- Attempts and spans ------------------------------------------------------------------------------------------

    def _rollout_number(self, rollout_id: str) -> int | None:
        """None of a rollout that is deleted, or that there is not: what is said of it is void."""
        return None if rollout_id in self._deleted else self._loaded.numbers.get(rollout_id)

    def _put_attempts(self) -> None:
        loaded, totals, batch = self._loaded, self.totals, self._batch
        inserted, updated = [], []
        alive: list[tuple[int, float | None]] = []
        for key, record in self._changes.attempts.items():
            rollout = self._rollout_number(record.rollout_id)
            if rollout is None:
                continue
            if key in self._new_attempts:
                totals.last_attempt += 1
                loaded.attempt_numbers[key] = totals.last_attempt
                inserted.append(rows.attempt_values(record, totals.last_attempt, rollout))
                totals.attempts += 1
                totals.other_bytes += record.size_bytes
                continue
            number, old = loaded.attempt_numbers[key], loaded.attempts[key]
            assert old is not None
            if old._replace(last_heartbeat_time=record.last_heartbeat_time) == record:
                alive.append((number, record.last_heartbeat_time))
            else:
                updated.append(rows.attempt_values(record, number, rollout))
                totals.other_bytes += record.size_bytes - old.size_bytes
        batch.insert("attempts", rows.ATTEMPT_VALUES, inserted)
        batch.update("attempts", ("number", "last_heartbeat_time"), alive, ("last_heartbeat_time",))
        batch.update("attempts", rows.ATTEMPT_VALUES, updated, ("size_bytes", *rows.ATTEMPT_COLUMNS[1:]))

    def _span_bytes(self) -> dict[str, int]:
        """What the new spans of each rollout take."""
        added: dict[str, int] = {}
        for (rollout_id, _, _), (_, size_bytes) in self._changes.spans.items():
            added[rollout_id] = added.get(rollout_id, 0) + size_bytes
        return added

    def _put_spans_and_counters(self) -> None:
        totals, batch, changes = self.totals, self._batch, self._changes
        inserted: list[tuple[Any, ...]] = []
        added_bytes: dict[str, int] = dict.fromkeys(changes.sequences, 0)
        for (rollout_id, attempt_id, _), (span, size_bytes) in changes.spans.items():
            rollout = self._rollout_number(rollout_id)
            attempt = self._loaded.attempt_numbers.get((rollout_id, attempt_id))
            if rollout is None or attempt is None:
                continue
            totals.last_span += 1
            totals.spans += 1
            totals.span_bytes += size_bytes
            added_bytes[rollout_id] = added_bytes.get(rollout_id, 0) + size_bytes
            trace_id, span_id, parent_id, name, *others = span[2:-1]
            texts = (escaped(trace_id), escaped(span_id), None if parent_id is None else escaped(parent_id))
            inserted.append((totals.last_span, rollout, attempt, *texts, escaped(name), *others))
        batch.insert("spans", ("number", "rollout", "attempt", *rows.SPAN_COLUMNS), inserted)
        self._put_counters(added_bytes)

    def _put_counters(self, added_bytes: Mapping[str, int]) -> None:
        """Those of rollouts of which nothing else changes."""
        counters = [
            (number, self._changes.sequences.get(rollout_id), size_bytes)
            for rollout_id, size_bytes in added_bytes.items()
            if rollout_id not in self._changes.rollouts
            if (number := self._rollout_number(rollout_id)) is not None
        ]
        if counters:
            self._batch.add(
                "UPDATE rollouts t SET last_sequence = coalesce(n.last_sequence, t.last_sequence),"
                " span_bytes = t.span_bytes + n.span_bytes"
                f" FROM {self._batch.rows(('number', 'last_sequence', 'span_bytes'), counters)}"
                f" WHERE {looked_up('t.number', 'n.number')}"
            )

    # --- All else ----------------------------------------------------------------------------------------------------

    def _put_workers(self) -> None:
        totals = self.totals
        for worker_id, worker in self._changes.workers.items():
            old = self._loaded.workers[worker_id]
            totals.workers += (worker is not None) - (old is not None)
            totals.other_bytes += _size_of(worker) - _size_of(old)
            if old is not None:
                totals.worker_tallies[old.status] -= 1
            if worker is not None:
                totals.worker_tallies[worker.status] += 1
        self._replace_workers()

    def _replace_workers(self) -> None:
        batch, present = self._batch, self._loaded.worker_rows
        changed = self._changes.workers
        left = [(escaped(one), present[one][1]) for one in changed if one in present]
        batch.delete("workers", ("worker_id", "version"), left)
        version = self.totals.id + 1
        workers = [(present.get(key), rows.worker_values(one)) for key, one in changed.items() if one is not None]
        known = [(row[0], version, *values) for row, values in workers if row is not None]
        batch.insert("workers", ("number", "version", *WorkerRecord._fields), known)
        new = [(version, *values) for row, values in workers if row is None]
        batch.insert("workers", ("version", *WorkerRecord._fields), new)

    def _put_resources(self) -> None:
        batch, totals, changed = self._batch, self.totals, self._changes.resources
        for resources_id, resources in changed.items():
            old = self._loaded.resources_by_id[resources_id]
            totals.resources += (resources is not None) - (old is not None)
            totals.other_bytes += _size_of(resources) - _size_of(old)
        stored = [rows.resources_values(one) for one in changed.values() if one is not None]
        batch.insert("resources", ResourcesRecord._fields, stored, ("resources_id",))
        batch.delete("resources", ("resources_id",), _deleted(changed))
        totals.latest_resources = self._changes.latest_resources or totals.latest_resources

    def _put_marks(self) -> None:
        marks = [
            (escaped(consumer), number, mark)
            for (consumer, rollout_id), mark in self._changes.marks.items()
            if (number := self._rollout_number(rollout_id)) is not None
        ]
        checkpoints = [
            (escaped(consumer), escaped(name), number) for (consumer, name), number in self._changes.checkpoints.items()
        ]
        self._put_or_delete("consumed", ("consumer", "rollout"), marks)
        self._put_or_delete("checkpoints", ("consumer", "checkpoint"), checkpoints)

    def _put_or_delete(self, table: str, key: Sequence[str], values: Sequence[tuple[Any, ...]]) -> None:
        """Rows with a number; those that have none are deleted."""
        self._batch.delete(table, key, [one[:-1] for one in values if one[-1] is None])
        stored = [one for one in values if one[-1] is not None]
        self._batch.insert(table, (*key, "number"), stored, key)

    def _put_admissions(self) -> None:
        admissions = self._changes.admissions
        self._batch.delete("admissions", ("run",), _deleted(admissions))
        stored = [one._replace(run=escaped(one.run)) for one in admissions.values() if one is not None]
        self._batch.insert("admissions", AdmissionRecord._fields, stored, ("run",))

    def _put_replies(self) -> None:
        replies = []
        for reply in self._changes.replies.values():
            self.totals.last_reply += 1
            replies.append((self.totals.last_reply, *rows.reply_values(reply)))
        self._batch.insert("replies", ("number", *rows.REPLY_COLUMNS), replies, ("request_id",))


async def expire_replies(
    connection: Connection, numbers: tuple[int, int], passed: int, before: float, entries_max: int
) -> int:
    """Delete recorded replies that are not kept any more, the oldest ones, in the open transaction.

    Args:
        connection: The one that writes.
        numbers: The number of the newest one before the transaction, and in it. Those of the transaction itself are
            kept: it may run again.
        passed: What this returned the last time; 0 if it was not called yet.
        before: Those that were recorded before this time, in seconds since the epoch, are deleted,
        entries_max: and those beyond so many.

    Returns:
        A number below those that are left, so that the next look need not pass those that are deleted.
    """
    former, last = numbers
    first = await connection.fetchval("SELECT min(number) FROM replies WHERE number > $1", passed)
    if first is None:
        return passed
    await connection.execute(
        "DELETE FROM replies WHERE number BETWEEN $1 AND $2 AND (recorded_at < $3 OR number <= $4)",
        first,
        min(first + EXPIRED_MAX, former),
        before,
        last - entries_max,
    )
    return int(first) - 1


class Done(NamedTuple):
    """What a transaction did that somebody may wait for."""

    ended: Sequence[str] = ()
    deleted: Sequence[str] = ()
    queued: int = 0
    deadline: float | None = None
    """The earliest that it set."""

    @property
    def is_anything(self) -> bool:
        return bool(self.ended or self.deleted or self.queued) or self.deadline is not None


def put_log(batch: Batch, totals: Totals, server: str, done: Done) -> None:
    """Write the next row of the log. Two transactions that do not see each other meet here, whatever has failed."""
    totals.id += 1
    values = ", ".join(
        batch.parameter(value, rows.kind_of(name)) for name, value in zip(rows.TOTALS, totals.columns(), strict=True)
    )
    batch.add(
        f"INSERT INTO log ({', '.join(rows.TOTALS)}, server, ended, deleted, queued, deadline) VALUES ({values},"
        f" {batch.parameter(server, 'text')}, {batch.parameter(all_escaped(done.ended), 'text[]')},"
        f" {batch.parameter(all_escaped(done.deleted), 'text[]')}, {batch.parameter(done.queued, 'integer')},"
        f" {batch.parameter(done.deadline, 'float8')})"
    )
    if totals.id % LOG_TRIM == 0:
        until = totals.id - LOG_ROWS
        first, last = batch.parameter(until - LOG_TRIM + 1, "bigint"), batch.parameter(until, "bigint")
        batch.add(f"DELETE FROM log WHERE id BETWEEN {first} AND {last}")


def _size_of(record: WorkerRecord | ResourcesRecord | None) -> int:
    return 0 if record is None else record.size_bytes


def _deleted(table: Mapping[str, object | None]) -> list[tuple[str]]:
    return [(escaped(key),) for key, record in table.items() if record is None]


def _labels(number: int, labels: Iterable[str]) -> list[tuple[str, int]]:
    return [(escaped(label), number) for label in labels]


# --- Dropping spans --------------------------------------------------------------------------------------------------


async def evict(
    connection: Connection, totals: Totals, excess_bytes: int, unfinished: bool, server: str
) -> tuple[Totals, list[str]]:
    """Drop whole rollouts' spans in the open transaction until so many bytes are free.

    Args:
        connection: The one that writes.
        totals: What is stored.
        excess_bytes: How many bytes to free at the least.
        unfinished: Whether rollouts that are not terminal may lose theirs, oldest first, when nothing else is left.
        server: Who writes.

    Returns:
        What is stored then, and the rollouts whose spans were dropped.
    """
    found: list[Any] = []
    freed_bytes = 0
    select = "SELECT number, rollout_id, span_bytes FROM rollouts WHERE has_spans"
    orders = [f"{select} AND status = ANY($1::text[]) ORDER BY end_time, number"]
    if unfinished:
        orders.append(f"{select} AND status <> ALL($1::text[]) ORDER BY number")
    for statement in orders:
        if freed_bytes >= excess_bytes:
            break
        async for row in connection.cursor(statement, sorted(TERMINAL)):
            found.append(row)
            freed_bytes += row[2]
            if freed_bytes >= excess_bytes:
                break
    if not found:
        return totals, []
    numbers = [row[0] for row in found]
    deleted = await connection.execute("DELETE FROM spans WHERE rollout = ANY($1::bigint[])", numbers)
    totals = totals.copied()
    totals.spans -= int(deleted.split()[-1])
    totals.span_bytes -= freed_bytes
    await connection.execute(
        "UPDATE rollouts SET span_bytes = 0, spans_evicted = TRUE WHERE number = ANY($1::bigint[])", numbers
    )
    batch = Batch()
    put_log(batch, totals, server, Done())
    await batch.execute(connection)
    return totals, [plain(row[1]) for row in found]
