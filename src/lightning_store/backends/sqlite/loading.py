"""Set-wise loads: what a group of operations needs, in a few statements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sqlite3 import Connection
from typing import Any, Final

from lightning_store.backends.base import AttemptKey, Due, Needs
from lightning_store.backends.loaded import LoadedRecords
from lightning_store.backends.records import AdmissionRecord, ResourcesRecord
from lightning_store.backends.sqlite import rows
from lightning_store.backends.sqlite.replies import ReplyIndex
from lightning_store.backends.sqlite.rows import RolloutEntry, Totals
from lightning_store.loops import Slicer

QUEUE_START: Final = -(2**63)
"""Comes before all keys of the queue."""
STRETCH_SECONDS: Final = 0.002
"""How long the work of a transaction may hold the event loop at a stretch."""


EXPENDABLE_MAX: Final = 50
"""Rollouts that are not retained which one transaction deletes: calls that are in it too wait for some milliseconds."""
EXPENDABLE_BYTES: Final = 4 * 1024 * 1024
"""Spans of rollouts that are not retained which one transaction deletes; one rollout may have more."""


def pacer() -> Slicer:
    """Lets others in between the stretches of a transaction."""
    return Slicer(STRETCH_SECONDS, in_line=False)


class SqliteLoaded(LoadedRecords):
    """What a transaction has loaded, with the rows where it is.

    Args:
        totals: As they are before the transaction.
        deadline: No rollout has an earlier one; None if none has any.
    """

    __slots__ = ("attempt_numbers", "deadline", "numbers", "queue_tail", "span_bytes", "totals")

    def __init__(self, totals: Totals, deadline: float | None) -> None:
        super().__init__()
        self.totals = totals
        self.deadline = deadline
        self.numbers: dict[str, int] = {}
        """The rows of rollouts, also of some that were not asked for."""
        self.attempt_numbers: dict[AttemptKey, int] = {}
        self.span_bytes: dict[str, int] = {}
        """Of the rollouts that are loaded."""
        self.queue_tail = QUEUE_START
        """The key of the last of ``queued``."""

    @property
    def last_queue_position(self) -> int:
        return self.totals.last_queue_position  # nobody else writes before this transaction ends

    @property
    def last_completion_position(self) -> int:
        return self.totals.last_completion_position


async def load(
    connection: Connection, needs: Needs, due: Due | None, into: SqliteLoaded, replies: ReplyIndex, pacer: Slicer
) -> None:
    """Read what is needed and not loaded yet, with what comes along."""
    rollouts, attempts, workers = set(needs.rollouts), set(needs.attempts), set(needs.workers | needs.held)
    holders = set(needs.holders)
    if due is not None:
        if has_passed(into.deadline, due):
            into.overdue = overdue(connection, due)
            into.deadline = next_deadline(connection)
        into.expendable = expendable(connection, due)
        rollouts.update(into.overdue, into.expendable)
        holders.update(into.expendable)
    attempts.update(key[:2] for key in needs.spans if key[:2] not in into.attempts)
    _load_replies(connection, needs.replies, into, replies)
    await _load_workers(connection, workers, into, pacer)
    for worker_id in needs.held:
        worker = into.workers[worker_id]
        if worker is not None and worker.current_rollout_id and worker.current_attempt_id:
            rollouts.add(worker.current_rollout_id)
            attempts.add((worker.current_rollout_id, worker.current_attempt_id))
    _load_groups(connection, needs.groups, into, rollouts)
    named: set[str] = set()
    if needs.claims:
        _load_queue(connection, needs, into, named)
    for found in rows.select_in(connection, rows.SELECT_ROLLOUTS_BY_ID, rollouts - into.rollouts.keys()):
        for row in found:
            _add_entry(rows.rollout_entry(row), into, named)
        await pacer.breathe()
    for rollout_id in rollouts:
        into.rollouts.setdefault(rollout_id, None)
    _load_marks(connection, needs, into)
    _load_admissions(connection, needs, into)
    await _load_attempts(connection, attempts, into, named, pacer)
    await _load_holders(connection, holders, into, named, pacer)
    await _load_workers(connection, named, into, pacer)
    await _load_spans(connection, needs, into, pacer)
    _load_resources(connection, needs, into)


def _add_entry(entry: RolloutEntry, into: SqliteLoaded, named: set[str]) -> None:
    """A rollout with its latest attempt; ``named`` gets the worker that this names."""
    rollout, attempt = entry.rollout, entry.attempt
    rollout_id = rollout.rollout_id
    into.rollouts[rollout_id] = rollout
    into.sequences[rollout_id] = entry.last_sequence
    into.numbers[rollout_id] = entry.number
    into.span_bytes[rollout_id] = entry.span_bytes
    if rollout.latest_attempt_id is not None:
        key = (rollout_id, rollout.latest_attempt_id)
        into.attempts[key] = attempt
        if attempt is not None and entry.attempt_number is not None:
            into.attempt_numbers[key] = entry.attempt_number
            if attempt.worker_id:
                named.add(attempt.worker_id)


def _load_queue(connection: Connection, needs: Needs, into: SqliteLoaded, named: set[str]) -> None:
    """As many more of the queue as are needed, and one if there is any."""
    payload_bytes = 0
    cursor = connection.execute(rows.SELECT_QUEUE, (into.queue_tail, needs.claims))
    taken = 0
    for row in cursor:
        entry = rows.rollout_entry(row)
        rollout = entry.rollout
        _add_entry(entry, into, named)
        into.queued.append(rollout.rollout_id)
        assert rollout.queue_key is not None
        into.queue_tail = rollout.queue_key
        taken += 1
        payload_bytes += rollout.payload_bytes
        if payload_bytes > needs.claim_bytes:
            cursor.close()
            return
    into.queue_end = taken < needs.claims


def _load_groups(connection: Connection, group_ids: set[str], into: SqliteLoaded, rollouts: set[str]) -> None:
    """Which rollouts are members; ``rollouts`` gets them."""
    members: dict[str, list[str]] = {group_id: [] for group_id in group_ids - into.group_members.keys()}
    for found in rows.select_in(connection, rows.SELECT_GROUPS, members):
        for group_id, rollout_id in found:
            members[group_id].append(rollout_id)
            rollouts.add(rollout_id)
    into.group_members.update(members)


def _load_marks(connection: Connection, needs: Needs, into: SqliteLoaded) -> None:
    for consumer in needs.checkpoints - into.checkpoints_of.keys():
        statement = "SELECT checkpoint, number FROM checkpoints WHERE consumer = ?"
        into.checkpoints_of[consumer] = dict(rows.fetch(connection, statement, [consumer]))
    numbered = {
        key: (key[0], into.numbers[key[1]]) for key in needs.marks if key not in into.marks and key[1] in into.numbers
    }
    stored: dict[tuple[Any, ...], int] = {}
    for found in rows.select_values(connection, rows.SELECT_MARKS, numbered.values(), 2):
        stored.update((row[:2], row[2]) for row in found)
    for key in needs.marks - into.marks.keys():
        into.marks[key] = stored.get(numbered[key]) if key in numbered else None
    for consumer, number in needs.marks_from - into.marks_since.keys():
        found = rows.fetch(connection, rows.SELECT_MARKS_FROM, [consumer, number])
        into.marks_since[consumer, number] = [rollout_id for (rollout_id,) in found]


def _load_admissions(connection: Connection, needs: Needs, into: SqliteLoaded) -> None:
    for run in needs.admissions - into.admissions.keys():
        found = rows.fetch(connection, "SELECT max_open_groups, paused FROM admissions WHERE run = ?", [run])
        into.admissions[run] = AdmissionRecord(run, found[0][0], bool(found[0][1])) if found else None
    for run in needs.open_groups - into.open_groups_of.keys():
        into.open_groups_of[run] = rows.open_groups(connection, run)


async def _load_attempts(
    connection: Connection, keys: Iterable[AttemptKey], into: SqliteLoaded, named: set[str], pacer: Slicer
) -> None:
    missing = {key for key in keys if key not in into.attempts and into.rollouts.get(key[0], key) is not None}
    for found in rows.select_values(connection, rows.SELECT_ATTEMPTS_BY_KEY, missing, 2):
        for row in found:
            attempt = rows.attempt_of(row)
            into.numbers[attempt.rollout_id] = row[1]
            into.attempt_numbers[attempt.rollout_id, attempt.attempt_id] = row[0]
            into.attempts[attempt.rollout_id, attempt.attempt_id] = attempt
            if attempt.worker_id:
                named.add(attempt.worker_id)
        await pacer.breathe()
    for key in keys:
        into.attempts.setdefault(key, None)


async def _load_holders(
    connection: Connection, rollout_ids: set[str], into: SqliteLoaded, named: set[str], pacer: Slicer
) -> None:
    statement = """
        SELECT DISTINCT r.rollout_id, a.worker_id
        FROM rollouts r CROSS JOIN attempts a ON a.rollout = r.number
        WHERE r.rollout_id IN (?*) AND a.worker_id IS NOT NULL
    """
    missing = rollout_ids - into.holder_ids.keys()
    held: dict[str, list[str]] = {rollout_id: [] for rollout_id in missing}
    for found in rows.select_in(connection, statement, missing):
        for rollout_id, worker_id in found:
            held[rollout_id].append(worker_id)
            named.add(worker_id)
        await pacer.breathe()
    into.holder_ids.update(held)


async def _load_workers(connection: Connection, worker_ids: set[str], into: SqliteLoaded, pacer: Slicer) -> None:
    missing = worker_ids - into.workers.keys()
    for found in rows.select_in(connection, rows.SELECT_WORKERS_BY_ID, missing):
        for row in found:
            into.workers[row[0]] = rows.worker_of(row)
        await pacer.breathe()
    for worker_id in missing:
        into.workers.setdefault(worker_id, None)


async def _load_spans(connection: Connection, needs: Needs, into: SqliteLoaded, pacer: Slicer) -> None:
    missing = needs.spans - into.spans.keys()
    stored: set[tuple[Any, ...] | None] = set()
    numbered = {}
    for key in missing:
        rollout, attempt = into.numbers.get(key[0]), into.attempt_numbers.get(key[:2])
        if rollout is not None and attempt is not None:
            numbered[key] = (rollout, attempt, key[2])
    for found in rows.select_values(connection, rows.SELECT_SPANS_BY_KEY, numbered.values(), 3):
        stored.update(found)
        await pacer.breathe()
    for key in missing:
        into.spans[key] = numbered.get(key) in stored


def _load_resources(connection: Connection, needs: Needs, into: SqliteLoaded) -> None:
    bound = (into.rollouts[rollout_id] for rollout_id in into.queued) if needs.claims else ()
    wanted = needs.resources.union(
        one.resources_id for one in bound if one is not None and one.resources_id is not None
    )
    missing = wanted - into.resources_by_id.keys()
    for found in rows.select_in(connection, rows.SELECT_RESOURCES_BY_ID, missing):
        into.resources_by_id.update((row[0], rows.resources_of(row)) for row in found)
    for resources_id in missing:
        into.resources_by_id.setdefault(resources_id, None)
    if needs.latest_resources and None not in into.latest:
        row = connection.execute(rows.SELECT_LATEST_RESOURCES).fetchone()
        into.latest[None] = None if row is None else rows.resources_of(row)
    for run in needs.newest_resources - into.newest.keys():
        into.newest[run] = newest_resources(connection, run)


def newest_resources(connection: Connection, run: str | None) -> ResourcesRecord | None:
    """The resources of a run that have the greatest policy version."""
    [*found] = rows.fetch(connection, rows.SELECT_NEWEST_RESOURCES, [run])
    return rows.resources_of(found[0]) if found else None


def _load_replies(connection: Connection, request_ids: set[str], into: SqliteLoaded, replies: ReplyIndex) -> None:
    stored = []
    for request_id in request_ids:
        if request_id in into.replies:
            continue
        into.replies[request_id] = None
        number = replies.number(request_id)
        if number is not None:
            stored.append(number)
    for found in rows.select_in(connection, rows.SELECT_REPLIES, stored):
        into.replies.update((row[0], rows.reply_of(row)) for row in found)


# --- What is due -----------------------------------------------------------------------------------------------------


_CONSUMED: Final = """
    EXISTS (
        SELECT 1 FROM consumed k WHERE k.consumer = ? AND k.rollout = c.rollout
            AND k.number < coalesce((SELECT max(number) FROM checkpoints WHERE consumer = k.consumer), k.number + 1)
    )
"""
"""Whether a consumer has consumed a completed rollout, before its last checkpoint if it has recorded any."""


def has_passed(deadline: float | None, due: Due) -> bool:
    """Whether a rollout may be overdue, given a lower bound of all deadlines. Mostly the database need not be asked."""
    return deadline is not None and deadline < due.now


def next_deadline(connection: Connection) -> float | None:
    """The earliest deadline of all rollouts."""
    deadline: float | None
    [deadline] = connection.execute("SELECT min(deadline) FROM rollouts WHERE deadline IS NOT NULL").fetchone()
    return deadline


def overdue(connection: Connection, due: Due) -> Sequence[str]:
    """Up to ``due.limit`` rollouts whose deadline has passed, the earliest first."""
    statement = "SELECT rollout_id FROM rollouts WHERE deadline < ? ORDER BY deadline, number LIMIT ?"
    return [rollout_id for (rollout_id,) in connection.execute(statement, (due.now, due.limit))]


def expendable(connection: Connection, due: Due) -> Sequence[str]:
    """Rollouts that are not to be retained, those that ended first: as many as one transaction should delete, and not
    more than ``due.limit``."""
    if due.retain_count is None and due.retain_since is None:
        return ()
    excess = 0
    if due.retain_count is not None:
        [completed] = connection.execute("SELECT completed FROM totals").fetchone()
        excess = completed - due.retain_count
    is_consumed = " AND ".join([_CONSUMED] * len(due.consumers)) or "TRUE"
    statement = f"""
        SELECT r.rollout_id, r.completion_time, r.span_bytes, {is_consumed}
        FROM completions c CROSS JOIN rollouts r ON r.number = c.rollout ORDER BY c.position
    """
    found: list[str] = []
    found_bytes = 0
    cursor = connection.execute(statement, tuple(due.consumers))
    for rollout_id, time, span_bytes, consumed in cursor:
        if len(found) >= excess and (due.retain_since is None or time is None or time >= due.retain_since):
            break  # those that follow ended later
        if not consumed:
            continue
        found_bytes += span_bytes
        if found and found_bytes > EXPENDABLE_BYTES:
            break
        found.append(rollout_id)
        if len(found) == min(due.limit, EXPENDABLE_MAX):
            break
    cursor.close()
    return found
