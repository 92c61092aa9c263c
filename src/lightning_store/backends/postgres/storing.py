"""Set-wise writes: everything that a group of operations changes, as one statement before its COMMIT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from asyncpg import Connection

from lightning_store.backends.base import Changes, Needs
from lightning_store.backends.postgres import rows
from lightning_store.backends.postgres.loading import PostgresLoaded, load
from lightning_store.backends.postgres.rows import Totals
from lightning_store.backends.postgres.text import all_escaped, escaped, plain
from lightning_store.backends.records import ResourcesRecord, RolloutRecord, WorkerRecord
from lightning_store.labels import labels_of
from lightning_store.lifecycle import TERMINAL

LOG_ROWS: Final = 4096
"""Transactions that are remembered for the other servers: what each did that somebody may wait for."""
LOG_TRIM: Final = 256
"""How many transactions pass until the log is trimmed."""

EXPIRED_MAX: Final = 10_000
"""Recorded replies that one transaction deletes."""


class Batch:
    """Statements that write to different rows, sent as one."""

    def __init__(self) -> None:
        self._statements: list[str] = []
        self._parameters: list[Any] = []

    def parameter(self, value: object, kind: str) -> str:
        """The place of a value of this type in the statement."""
        self._parameters.append(value)
        return f"${len(self._parameters)}::{kind}"

    def records(self, table: str, values: Sequence[Mapping[str, Any]]) -> str:
        """Rows of a table, with these columns, in this order."""
        text = json.dumps(values, ensure_ascii=False)
        return f"json_populate_recordset(NULL::{table}, {self.parameter(text, 'json')})"

    def add(self, statement: str) -> None:
        self._statements.append(statement)

    async def execute(self, connection: Connection) -> None:
        if self._statements:
            named = ", ".join(f"s{place} AS ({one} RETURNING 1)" for place, one in enumerate(self._statements))
            await connection.execute(f"WITH {named} SELECT 1", *self._parameters)


async def write(connection: Connection, changes: Changes, loaded: PostgresLoaded, server: str) -> Totals:
    """Write ``changes`` into the open transaction.

    Args:
        connection: The one that writes.
        changes: What the group of operations changes.
        loaded: What the transaction has loaded. A rollout or an attempt that is not in it is new.
        server: Who writes.

    Returns:
        What is stored when the COMMIT is done.
    """
    writer = _Writer(connection, changes, loaded)
    await writer.load_what_is_changed()
    await writer.write(server)
    return writer.totals


@dataclass(slots=True)
class _Rollouts:
    """What is written of the rollouts that changed. A row is named by its number, a place by its position."""

    inserted: list[tuple[RolloutRecord, int, int]] = field(default_factory=list)
    """Each with its number and its span counter."""
    updated: list[tuple[RolloutRecord, int, int]] = field(default_factory=list)
    payloads: list[tuple[int, str, str | None]] = field(default_factory=list)
    left_labels: list[tuple[str, int]] = field(default_factory=list)
    labels: list[tuple[str, int]] = field(default_factory=list)
    left_queue: list[int] = field(default_factory=list)
    queue: list[tuple[int, int]] = field(default_factory=list)
    left_completions: list[int] = field(default_factory=list)
    completions: list[tuple[int, int]] = field(default_factory=list)


class _Writer:
    """One transaction's changes on their way."""

    def __init__(self, connection: Connection, changes: Changes, loaded: PostgresLoaded) -> None:
        self._connection = connection
        self._changes = changes
        self._loaded = loaded
        self._batch = Batch()
        self.totals = deepcopy(loaded.totals)
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

    async def write(self, server: str) -> None:
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
        put_log(self._batch, totals, server, Done(ended, deleted, self._queued, self._deadline))
        await self._batch.execute(self._connection)

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
        self._put_labels(
            [(label, loaded.numbers[one.rollout_id]) for one in records for label in labels_of(one.metadata_json)], ()
        )
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
                    changed.left_queue.append(old.queue_key)
                if old.completion_position is not None:
                    changed.left_completions.append(old.completion_position)
        for table, positions in (("queue", changed.left_queue), ("completions", changed.left_completions)):
            if positions:
                batch.add(f"DELETE FROM {table} WHERE position = ANY({batch.parameter(positions, 'bigint[]')})")
        self._write_rollouts(changed.inserted, changed.updated)
        if changed.payloads:
            numbers, inputs, metadata = zip(*changed.payloads, strict=True)
            batch.add(
                "INSERT INTO payloads SELECT * FROM unnest("
                f"{batch.parameter(numbers, 'bigint[]')}, {batch.parameter(inputs, 'text[]')},"
                f" {batch.parameter(metadata, 'text[]')})"
                " ON CONFLICT (rollout) DO UPDATE SET"
                " input_json = excluded.input_json, metadata_json = excluded.metadata_json"
            )
        self._put_labels(changed.left_labels, changed.labels)
        for table, places in (("queue", changed.queue), ("completions", changed.completions)):
            if places:
                keys, of = zip(*places, strict=True)
                batch.add(
                    f"INSERT INTO {table} SELECT * FROM unnest("
                    f"{batch.parameter(keys, 'bigint[]')}, {batch.parameter(of, 'bigint[]')})"
                )
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
            changed.labels += [(label, number) for label in sorted(set(labels_of(record.metadata_json)))]
            totals.rollouts += 1
            totals.other_bytes += record.size_bytes
        else:
            number = loaded.numbers[rollout_id]
            changed.updated.append((record, number, sequence))
            if record.input_json is not old.input_json or record.metadata_json is not old.metadata_json:
                changed.payloads.append((number, record.input_json, record.metadata_json))
                former, present = set(labels_of(old.metadata_json)), set(labels_of(record.metadata_json))
                changed.left_labels += [(label, number) for label in sorted(former - present)]
                changed.labels += [(label, number) for label in sorted(present - former)]
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
                changed.left_queue.append(former_key)
            if key is not None:
                changed.queue.append((key, number))
                self._queued += 1
        before = None if old is None else old.completion_position
        if before != record.completion_position:
            totals.completed += (record.completion_position is not None) - (before is not None)
            if before is not None:
                changed.left_completions.append(before)
            if record.completion_position is not None:
                changed.completions.append((record.completion_position, number))
                self._ended.append((record.completion_position, record.rollout_id))
        totals.last_queue_position = max(totals.last_queue_position, record.queue_position or 0)
        totals.last_completion_position = max(totals.last_completion_position, record.completion_position or 0)

    def _put_bounds(self, changed: _Rollouts) -> None:
        """Where the queue begins, as far as it was loaded, and the earliest deadline."""
        totals, left = self.totals, set(changed.left_queue)
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
        batch = self._batch
        span_bytes = self._span_bytes()
        if inserted:
            columns = ", ".join(rows.ROLLOUT_INSERTS)
            values = [
                rows.rollout_json(record, number, sequence, span_bytes.get(record.rollout_id, 0))
                for record, number, sequence in inserted
            ]
            batch.add(f"INSERT INTO rollouts ({columns}) SELECT {columns} FROM {batch.records('rollouts', values)}")
        if updated:
            values = [
                rows.rollout_json(
                    record,
                    number,
                    sequence,
                    self._loaded.span_bytes.get(record.rollout_id, 0) + span_bytes.get(record.rollout_id, 0),
                )
                for record, number, sequence in updated
            ]
            columns = ", ".join(f"{one} = n.{one}" for one in rows.ROLLOUT_UPDATES)
            batch.add(
                f"UPDATE rollouts r SET {columns} FROM {batch.records('rollouts', values)} n WHERE r.number = n.number"
            )

    def _put_labels(self, left: Sequence[tuple[str, int]], new: Sequence[tuple[str, int]]) -> None:
        for start, labels in (
            ("DELETE FROM labels WHERE (label, rollout) IN (", left),
            ("INSERT INTO labels (", new),
        ):
            if labels:
                texts = self._batch.parameter(all_escaped(label for label, _ in labels), "text[]")
                numbers = self._batch.parameter([number for _, number in labels], "bigint[]")
                self._batch.add(f"{start}SELECT * FROM unnest({texts}, {numbers}))")

    # --- Attempts and spans ------------------------------------------------------------------------------------------

    def _rollout_number(self, rollout_id: str) -> int | None:
        """None of a rollout that is deleted, or that there is not: what is said of it is void."""
        return None if rollout_id in self._deleted else self._loaded.numbers.get(rollout_id)

    def _put_attempts(self) -> None:
        loaded, totals, batch = self._loaded, self.totals, self._batch
        inserted, updated = [], []
        for key, record in self._changes.attempts.items():
            rollout = self._rollout_number(record.rollout_id)
            if rollout is None:
                continue
            if key in self._new_attempts:
                totals.last_attempt += 1
                loaded.attempt_numbers[key] = totals.last_attempt
                inserted.append(rows.attempt_json(record, totals.last_attempt, rollout))
                totals.attempts += 1
                totals.other_bytes += record.size_bytes
            else:
                updated.append(rows.attempt_json(record, loaded.attempt_numbers[key], rollout))
                old = loaded.attempts[key]
                if old is not None:
                    totals.other_bytes += record.size_bytes - old.size_bytes
        if inserted:
            columns = ", ".join(("number", "rollout", "size_bytes", *rows.ATTEMPT_COLUMNS))
            batch.add(f"INSERT INTO attempts ({columns}) SELECT {columns} FROM {batch.records('attempts', inserted)}")
        if updated:
            columns = ", ".join(f"{one} = n.{one}" for one in ("size_bytes", *rows.ATTEMPT_COLUMNS[1:]))
            batch.add(
                f"UPDATE attempts a SET {columns} FROM {batch.records('attempts', updated)} n WHERE a.number = n.number"
            )

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
        if inserted:
            kinds = (
                "bigint",
                "bigint",
                "bigint",
                "text",
                "text",
                "text",
                "text",
                "float8",
                "float8",
                "bigint",
                "bytea",
            )
            arrays = [
                batch.parameter(column, f"{kind}[]")
                for column, kind in zip(zip(*inserted, strict=True), kinds, strict=True)
            ]
            batch.add(
                f"INSERT INTO spans (number, rollout, attempt, {', '.join(rows.SPAN_COLUMNS)})"
                f" SELECT * FROM unnest({', '.join(arrays)})"
            )
        counters = []
        for rollout_id, size_bytes in added_bytes.items():
            rollout = self._rollout_number(rollout_id)
            if rollout is not None and rollout_id not in changes.rollouts:
                counters.append((rollout, changes.sequences.get(rollout_id), size_bytes))
        if counters:
            numbers, sequences, sizes = zip(*counters, strict=True)
            batch.add(
                "UPDATE rollouts r SET last_sequence = coalesce(n.sequence, r.last_sequence),"
                " span_bytes = r.span_bytes + n.size FROM unnest("
                f"{batch.parameter(numbers, 'bigint[]')}, {batch.parameter(sequences, 'bigint[]')},"
                f" {batch.parameter(sizes, 'bigint[]')}) AS n (number, sequence, size) WHERE r.number = n.number"
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
        gone = [(escaped(one), present[one][1]) for one in self._changes.workers if one in present]
        if gone:
            ids, versions = zip(*gone, strict=True)
            arrays = f"{batch.parameter(ids, 'text[]')}, {batch.parameter(versions, 'bigint[]')}"
            batch.add(f"DELETE FROM workers WHERE (worker_id, version) IN (SELECT * FROM unnest({arrays}))")
        version = self.totals.id + 1
        new: list[dict[str, Any]] = []
        known: list[dict[str, Any]] = []
        for worker_id, worker in self._changes.workers.items():
            if worker is not None:
                number, _ = present.get(worker_id, (None, 0))
                (new if number is None else known).append(rows.worker_json(worker, number, version))
        for columns, values in ((rows.WORKER_COLUMNS, new), (f"{rows.WORKER_COLUMNS}, number", known)):
            if values:
                batch.add(
                    f"INSERT INTO workers ({columns}, version) SELECT {columns}, version"
                    f" FROM {batch.records('workers', values)}"
                )

    def _put_resources(self) -> None:
        totals = self.totals
        for resources_id, resources in self._changes.resources.items():
            old = self._loaded.resources_by_id[resources_id]
            totals.resources += (resources is not None) - (old is not None)
            totals.other_bytes += _size_of(resources) - _size_of(old)
        stored = [rows.resources_json(one) for one in self._changes.resources.values() if one is not None]
        if stored:
            self._upsert("resources", rows.RESOURCES_COLUMNS, stored)
        self._delete_by("resources", "resources_id", _deleted(self._changes.resources))
        totals.latest_resources = self._changes.latest_resources or totals.latest_resources

    def _upsert(self, table: str, columns: str, values: Sequence[Mapping[str, Any]]) -> None:
        key, *others = columns.split(", ")
        self._batch.add(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {self._batch.records(table, values)}"
            f" ON CONFLICT ({key}) DO UPDATE SET {', '.join(f'{one} = excluded.{one}' for one in others)}"
        )

    def _delete_by(self, table: str, column: str, keys: Sequence[str]) -> None:
        if keys:
            place = self._batch.parameter(all_escaped(keys), "text[]")
            self._batch.add(f"DELETE FROM {table} WHERE {column} = ANY({place})")

    def _put_marks(self) -> None:
        marks = [
            (escaped(consumer), number, mark)
            for (consumer, rollout_id), mark in self._changes.marks.items()
            if (number := self._rollout_number(rollout_id)) is not None
        ]
        self._replace("consumed", "consumer", "rollout", "bigint", marks)
        checkpoints = [
            (escaped(consumer), escaped(name), number) for (consumer, name), number in self._changes.checkpoints.items()
        ]
        self._replace("checkpoints", "consumer", "checkpoint", "text", checkpoints)

    def _replace(
        self, table: str, first: str, second: str, kind: str, values: Sequence[tuple[str, Any, int | None]]
    ) -> None:
        """Insert, replace or, where the last value is None, delete rows of a table with two keys."""
        batch = self._batch
        gone = [one for one in values if one[2] is None]
        stored = [one for one in values if one[2] is not None]
        if gone:
            firsts = batch.parameter([one[0] for one in gone], "text[]")
            seconds = batch.parameter([one[1] for one in gone], f"{kind}[]")
            batch.add(f"DELETE FROM {table} WHERE ({first}, {second}) IN (SELECT * FROM unnest({firsts}, {seconds}))")
        if stored:
            arrays = (
                batch.parameter([one[0] for one in stored], "text[]"),
                batch.parameter([one[1] for one in stored], f"{kind}[]"),
                batch.parameter([one[2] for one in stored], "bigint[]"),
            )
            batch.add(
                f"INSERT INTO {table} ({first}, {second}, number) SELECT * FROM unnest({', '.join(arrays)})"
                f" ON CONFLICT ({first}, {second}) DO UPDATE SET number = excluded.number"
            )

    def _put_admissions(self) -> None:
        admissions = self._changes.admissions
        self._delete_by("admissions", "run", _deleted(admissions))
        stored = [one._asdict() | {"run": escaped(one.run)} for one in admissions.values() if one is not None]
        if stored:
            self._upsert("admissions", "run, max_open_groups, paused", stored)

    def _put_replies(self) -> None:
        batch = self._batch
        replies = [one.encoded() for one in self._changes.replies.values()]
        if replies:
            columns = (
                (all_escaped(one.request_id for one in replies), "text[]"),
                ([one.recorded_at for one in replies], "float8[]"),
                (all_escaped(one.signature for one in replies), "text[]"),
                ([one.refused for one in replies], "boolean[]"),
                ([one.body for one in replies], "bytea[]"),
            )
            arrays = ", ".join(batch.parameter(*column) for column in columns)
            batch.add(
                f"INSERT INTO replies ({rows.REPLY_COLUMNS}) SELECT * FROM unnest({arrays})"
                " ON CONFLICT (request_id) DO UPDATE SET number = excluded.number,"
                " recorded_at = excluded.recorded_at, signature = excluded.signature, refused = excluded.refused,"
                " body = excluded.body"
            )


async def expire_replies(connection: Connection, after: int, before: float, entries_max: int) -> int:
    """Delete recorded replies that are not kept any more, the oldest ones, in the open transaction.

    Args:
        connection: The one that writes.
        after: What this returned the last time; 0 if it was not called yet.
        before: Those that were recorded before this time, in seconds since the epoch, are deleted,
        entries_max: and those beyond so many.

    Returns:
        A number that all that are left exceed: the next look need not pass those that are deleted.
    """
    row = await connection.fetchrow("SELECT min(number), max(number) FROM replies WHERE number > $1", after)
    assert row is not None
    first, last = row
    if first is None:
        return after
    await connection.execute(
        "DELETE FROM replies WHERE number BETWEEN $1 AND $2 AND (recorded_at < $3 OR number <= $4)",
        first,
        first + EXPIRED_MAX,
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


def put_log(batch: Batch, totals: Totals, server: str, done: Done) -> None:
    """Write the next row of the log. Two transactions that do not see each other meet here, whatever has failed."""
    totals.id += 1
    values = ", ".join(
        batch.parameter(value, _LOG_KINDS.get(name, "bigint"))
        for name, value in zip(rows.TOTALS, totals.columns(), strict=True)
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


_LOG_KINDS: Final = {"latest_resources": "text", "tallies": "text", "newest_time": "float8", "due_from": "float8"}


def _size_of(record: WorkerRecord | ResourcesRecord | None) -> int:
    return 0 if record is None else record.size_bytes


def _deleted(table: Mapping[str, object | None]) -> list[str]:
    return [key for key, record in table.items() if record is None]


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
    totals = deepcopy(totals)
    totals.spans -= int(deleted.split()[-1])
    totals.span_bytes -= freed_bytes
    await connection.execute(
        "UPDATE rollouts SET span_bytes = 0, spans_evicted = TRUE WHERE number = ANY($1::bigint[])", numbers
    )
    batch = Batch()
    put_log(batch, totals, server, Done())
    await batch.execute(connection)
    return totals, [plain(row[1]) for row in found]
