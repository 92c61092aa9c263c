"""Set-wise reads of a transaction: the needs of a group of operations as one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from asyncpg import Connection

from lightning_store.backends.base import AttemptKey, Due, Needs
from lightning_store.backends.loaded import LoadedRecords
from lightning_store.backends.postgres import rows
from lightning_store.backends.postgres.conditions import looked_up, row_of
from lightning_store.backends.postgres.membership import SELECT_MEMBERS
from lightning_store.backends.postgres.rows import Totals
from lightning_store.backends.postgres.text import all_escaped, escaped, plain
from lightning_store.backends.records import AdmissionRecord, OpenGroup

QUEUE_FROM: Final = "(SELECT queue_from FROM log ORDER BY id DESC LIMIT 1)"
DUE_FROM: Final = "(SELECT due_from FROM log ORDER BY id DESC LIMIT 1)"
"""Before which nothing is that is in the queue, or due: what was there may not be cleaned up yet."""
QUEUE_START: Final = -(2**63)
"""Comes before all keys of the queue."""
EXPENDABLE_MAX: Final = 50
"""Rollouts that are not retained which one transaction deletes: calls that are in it too wait for some milliseconds."""
EXPENDABLE_BYTES: Final = 4 * 1024 * 1024
"""Spans of rollouts that are not retained which one transaction deletes; one rollout may have more."""


class Statement:
    """One statement that has several results: for each part the rows of a select, as one array.

    The parts that a group does not need are left out, so that a server prepares some dozens of statements.
    """

    def __init__(self) -> None:
        self._with: list[str] = []
        self._parts: dict[str, str] = {}
        self._parameters: list[Any] = []

    def parameter(self, value: object, kind: str) -> str:
        """The place of a value of this type in the statement."""
        self._parameters.append(value)
        return f"${len(self._parameters)}::{kind}"

    def let(self, name: str, select: str) -> None:
        """Give a select a name that those that follow can use."""
        self._with.append(f"{name} AS MATERIALIZED ({select})")

    def part(self, name: str, select: str) -> None:
        self._parts[name] = select

    async def fetch(self, connection: Connection) -> dict[str, Sequence[Any]]:
        """The rows of each part."""
        if not self._parts:
            return {}
        with_ = f"WITH {', '.join(self._with)} " if self._with else ""
        arrays = (f"ARRAY(SELECT ROW(x.*) FROM ({select}) x)" for select in self._parts.values())
        row = await connection.fetchrow(f"{with_}SELECT {', '.join(arrays)}", *self._parameters)
        assert row is not None
        return dict(zip(self._parts, row, strict=True))


class PostgresLoaded(LoadedRecords):
    """What a transaction of this server has loaded, with the rows where it is."""

    __slots__ = (
        "attempt_numbers",
        "members",
        "numbers",
        "queue_keys",
        "server",
        "span_bytes",
        "totals",
        "worker_rows",
    )

    totals: Totals
    """As they are before the transaction, from its first load on."""
    members: set[str]
    """The servers that are alive, then."""

    def __init__(self, server: str) -> None:
        super().__init__()
        self.server = server
        self.numbers: dict[str, int] = {}
        """The rows of rollouts."""
        self.attempt_numbers: dict[AttemptKey, int] = {}
        self.span_bytes: dict[str, int] = {}
        self.worker_rows: dict[str, tuple[int, int]] = {}
        """Number and version."""
        self.queue_keys: list[int] = []
        """Those of ``queued``."""

    @property
    def last_queue_position(self) -> int:
        return self.totals.last_queue_position  # nobody else writes before this transaction ends

    @property
    def last_completion_position(self) -> int:
        return self.totals.last_completion_position


async def load(connection: Connection, needs: Needs, due: Due | None, into: PostgresLoaded) -> None:
    """Read what is needed and not loaded yet, with what comes along: one statement."""
    wanted = _Wanted(needs, due, into)
    found = await wanted.statement().fetch(connection)
    wanted.take(found)


class _Wanted:
    """The needs that are not loaded yet."""

    def __init__(self, needs: Needs, due: Due | None, into: PostgresLoaded) -> None:
        self._needs = needs
        self._due = due
        self._into = into
        self._attempts = {*needs.attempts, *(key[:2] for key in needs.spans)} - into.attempts.keys()
        self._rollouts = needs.rollouts - into.rollouts.keys()
        self._workers = (needs.workers | needs.held) - into.workers.keys()
        self._held = needs.held
        self._replies = needs.replies - into.replies.keys()
        self._spans = needs.spans - into.spans.keys()
        self._groups = needs.groups - into.group_members.keys()
        self._resources = needs.resources - into.resources_by_id.keys()
        self._holders = needs.holders - into.holder_ids.keys()
        self._marks = needs.marks - into.marks.keys()

    # --- The statement -----------------------------------------------------------------------------------------------

    def statement(self) -> Statement:
        s = Statement()
        needs, into = self._needs, self._into
        if not hasattr(into, "totals"):
            s.part("totals", rows.SELECT_TOTALS)
            s.part("members", SELECT_MEMBERS)
        numbers: list[str] = []  # selects of the numbers of rollouts
        attempts: list[str] = []  # and of attempts
        if self._rollouts:
            ids = s.parameter(all_escaped(self._rollouts), "text[]")
            numbers.append(f"SELECT number FROM rollouts WHERE rollout_id = ANY({ids})")
        if self._due is not None:
            self._add_due(s, self._due, numbers)
        if self._groups:
            ids = s.parameter(all_escaped(self._groups), "text[]")
            s.let("grouped", f"SELECT group_id, rollout_id, number FROM rollouts WHERE group_id = ANY({ids})")
            s.part("groups", "SELECT group_id, rollout_id FROM grouped ORDER BY number")
            numbers.append("SELECT number FROM grouped")
        if self._held:
            ids = s.parameter(all_escaped(self._held), "text[]")
            s.let(
                "held",
                f"SELECT r.number, w.current_attempt_id FROM unnest({ids}) AS k (worker_id)"
                f" CROSS JOIN LATERAL ({rows.present_worker('k.worker_id')}) w"
                f" JOIN rollouts r ON {looked_up('r.rollout_id', 'w.current_rollout_id')}",
            )
            numbers.append("SELECT number FROM held")
            attempts.append(
                "SELECT a.number FROM held h"
                f" {row_of('attempts', 'a', rollout='h.number', attempt_id='h.current_attempt_id')}"
            )
        if needs.claims:
            self._add_queue(s, numbers)
        if self._attempts:
            keys = list(self._attempts)
            ids = s.parameter(all_escaped(key[0] for key in keys), "text[]")
            names = s.parameter(all_escaped(key[1] for key in keys), "text[]")
            attempts.append(
                f"SELECT a.number FROM unnest({ids}, {names}) AS k (rollout_id, attempt_id)"
                f" JOIN rollouts r ON {looked_up('r.rollout_id', 'k.rollout_id')}"
                f" {row_of('attempts', 'a', rollout='r.number', attempt_id='k.attempt_id')}"
            )
        if numbers:
            s.let("wanted", " UNION ".join(numbers))
            s.part("rollouts", f"{rows.SELECT_ROLLOUTS} WHERE r.number = ANY (ARRAY(SELECT number FROM wanted))")
            attempts.append(
                f"SELECT a.number FROM wanted k JOIN rollouts r ON {looked_up('r.number', 'k.number')}"
                f" {row_of('attempts', 'a', rollout='r.number', attempt_id='r.latest_attempt_id')}"
            )
        self._add_attempts_and_workers(s, attempts)
        self._add_spans(s)
        self._add_others(s)
        return s

    def _add_due(self, s: Statement, due: Due, numbers: list[str]) -> None:
        s.let("overdue", overdue(s, due))
        s.part("overdue", "SELECT rollout_id FROM overdue")
        numbers.append("SELECT number FROM overdue")
        select = expendable(s, due)
        if select is not None:
            s.let("expendable", select)
            s.part("expendable", "SELECT rollout_id FROM expendable ORDER BY position")
            numbers.append("SELECT number FROM expendable")

    def _add_queue(self, s: Statement, numbers: list[str]) -> None:
        """As many more of the queue as are needed, and one if there is any."""
        tail = s.parameter(self._into.queue_keys[-1] if self._into.queue_keys else QUEUE_START, "bigint")
        claims = s.parameter(self._needs.claims, "bigint")
        size = s.parameter(self._needs.claim_bytes, "bigint")
        s.let(
            "queued",
            "SELECT number, position, payload_bytes, rollout_id, resources_id FROM ("
            " SELECT r.number, q.position, r.payload_bytes, r.rollout_id, r.resources_id,"
            "  sum(r.payload_bytes) OVER (ORDER BY q.position) - r.payload_bytes AS before"
            f" FROM (SELECT * FROM queue WHERE position > {tail} AND position >= {QUEUE_FROM}"
            f" ORDER BY position LIMIT {claims}) q"
            f" JOIN rollouts r ON {looked_up('r.number', 'q.rollout')}) sized WHERE before <= {size}",
        )
        s.part("queue", "SELECT rollout_id, position, payload_bytes FROM queued ORDER BY position")
        numbers.append("SELECT number FROM queued")

    def _add_attempts_and_workers(self, s: Statement, attempts: list[str]) -> None:
        named: list[str] = []  # selects of ids of workers
        if attempts:
            s.let("attempted", " UNION ".join(attempts))
            s.part("attempts", f"{rows.SELECT_ATTEMPTS} WHERE a.number = ANY (ARRAY(SELECT number FROM attempted))")
            named.append(
                f"SELECT a.worker_id FROM attempted k JOIN attempts a ON {looked_up('a.number', 'k.number')}"
                " WHERE a.worker_id IS NOT NULL"
            )
        holders: list[str] = []
        if self._holders:
            ids = s.parameter(all_escaped(self._holders), "text[]")
            holders.append(f"SELECT number, rollout_id FROM rollouts WHERE rollout_id = ANY({ids})")
        if self._due is not None and has_retention(self._due):
            holders.append("SELECT number, rollout_id FROM expendable")
        if holders:
            s.let(
                "holding",
                f"SELECT DISTINCT k.rollout_id, a.worker_id FROM ({' UNION '.join(holders)}) k"
                f" JOIN attempts a ON {looked_up('a.rollout', 'k.number')} WHERE a.worker_id IS NOT NULL",
            )
            s.part("holders", "SELECT rollout_id, worker_id FROM holding")
            named.append("SELECT worker_id FROM holding")
        if self._workers:
            named.append(f"SELECT unnest({s.parameter(all_escaped(self._workers), 'text[]')})")
        if named:
            s.let("named (worker_id)", " UNION ".join(named))
            s.part(
                "workers",
                f"SELECT w.* FROM named k CROSS JOIN LATERAL ({rows.present_worker('k.worker_id')}) w",
            )

    def _add_spans(self, s: Statement) -> None:
        if not self._spans:
            return
        by_attempt: dict[AttemptKey, list[str]] = {}
        for rollout_id, attempt_id, span_id in self._spans:
            by_attempt.setdefault((rollout_id, attempt_id), []).append(span_id)
        keys = [(place, span_id) for place, ids in enumerate(by_attempt.values()) for span_id in ids]
        rollout_ids = s.parameter(all_escaped(key[0] for key in by_attempt), "text[]")
        attempt_ids = s.parameter(all_escaped(key[1] for key in by_attempt), "text[]")
        places = s.parameter([place + 1 for place, _ in keys], "bigint[]")
        span_ids = s.parameter(all_escaped(span_id for _, span_id in keys), "text[]")
        s.let(
            "of_spans",
            "SELECT k.place, a.rollout, a.number, k.rollout_id, k.attempt_id"
            f" FROM unnest({rollout_ids}, {attempt_ids}) WITH ORDINALITY AS k (rollout_id, attempt_id, place)"
            f" JOIN rollouts r ON {looked_up('r.rollout_id', 'k.rollout_id')}"
            f" {row_of('attempts', 'a', rollout='r.number', attempt_id='k.attempt_id')}",
        )
        s.part(
            "spans",
            f"SELECT o.rollout_id, o.attempt_id, k.span_id FROM unnest({places}, {span_ids}) AS k (place, span_id)"
            " JOIN of_spans o ON o.place = k.place"
            f" {row_of('spans', 't', rollout='o.rollout', attempt='o.number', span_id='k.span_id')}",
        )

    def _add_others(self, s: Statement) -> None:
        needs, into = self._needs, self._into
        if self._replies:
            ids = s.parameter(all_escaped(self._replies), "text[]")
            s.part("replies", f"SELECT {', '.join(rows.REPLY_COLUMNS)} FROM replies WHERE request_id = ANY({ids})")
        wanted = [f"SELECT unnest({s.parameter(all_escaped(self._resources), 'text[]')})"] if self._resources else []
        if needs.claims:
            wanted.append("SELECT resources_id FROM queued WHERE resources_id IS NOT NULL")
        if wanted:
            s.part(
                "resources",
                f"SELECT {rows.RESOURCES_COLUMNS} FROM resources"
                f" WHERE resources_id = ANY (ARRAY({' UNION '.join(wanted)}))",
            )
        if needs.latest_resources and None not in into.latest:
            s.part(
                "latest",
                f"SELECT {rows.RESOURCES_COLUMNS} FROM resources"
                " WHERE resources_id = (SELECT latest_resources FROM log ORDER BY id DESC LIMIT 1)",
            )
        for place, run in enumerate(self._newest()):
            s.part(f"newest-{place}", newest_resources(s, run))
        if self._marks:
            keys = list(self._marks)
            consumers = s.parameter(all_escaped(key[0] for key in keys), "text[]")
            ids = s.parameter(all_escaped(key[1] for key in keys), "text[]")
            s.part(
                "marks",
                f"SELECT k.consumer, k.rollout_id, c.number FROM unnest({consumers}, {ids}) AS k (consumer, rollout_id)"
                f" JOIN rollouts r ON {looked_up('r.rollout_id', 'k.rollout_id')}"
                f" {row_of('consumed', 'c', consumer='k.consumer', rollout='r.number')}",
            )
        if checkpoints := needs.checkpoints - into.checkpoints_of.keys():
            ids = s.parameter(all_escaped(checkpoints), "text[]")
            s.part("checkpoints", f"SELECT consumer, checkpoint, number FROM checkpoints WHERE consumer = ANY({ids})")
        if since := list(needs.marks_from - into.marks_since.keys()):
            consumers = s.parameter(all_escaped(one[0] for one in since), "text[]")
            counts = s.parameter([one[1] for one in since], "bigint[]")
            s.part(
                "marks_from",
                "SELECT k.consumer, k.number, r.rollout_id"
                f" FROM unnest({consumers}, {counts}) AS k (consumer, number)"
                f" JOIN consumed c ON {looked_up('c.consumer', 'k.consumer')} AND c.number >= k.number"
                f" JOIN rollouts r ON {looked_up('r.number', 'c.rollout')} ORDER BY r.number",
            )
        if runs := needs.admissions - into.admissions.keys():
            ids = s.parameter(all_escaped(runs), "text[]")
            s.part("admissions", f"SELECT run, max_open_groups, paused FROM admissions WHERE run = ANY({ids})")
        if runs := needs.open_groups - into.open_groups_of.keys():
            s.part("open_groups", rows.open_groups(s.parameter(all_escaped(runs), "text[]")))

    def _newest(self) -> list[str | None]:
        return sorted(self._needs.newest_resources - self._into.newest.keys(), key=str)

    # --- What it found -----------------------------------------------------------------------------------------------

    def take(self, found: dict[str, Sequence[Any]]) -> None:
        needs, into = self._needs, self._into
        for row in found.get("totals", ()):
            into.totals = Totals(*row)
            into.members = {server for (server,) in found["members"]}
        for row in found.get("workers", ()):
            worker = rows.worker_of(row)
            into.workers[worker.worker_id] = worker
            into.worker_rows[worker.worker_id] = row[-2], row[-1]
        for row in found.get("rollouts", ()):
            entry = rows.rollout_entry(row)
            rollout_id = entry.rollout.rollout_id
            into.rollouts[rollout_id] = entry.rollout
            into.sequences[rollout_id] = entry.last_sequence
            into.numbers[rollout_id] = entry.number
            into.span_bytes[rollout_id] = entry.span_bytes
            if entry.rollout.latest_attempt_id is not None:
                into.attempts.setdefault((rollout_id, entry.rollout.latest_attempt_id), None)
        for row in found.get("attempts", ()):
            number, rollout, attempt = rows.attempt_entry(row)
            key = (attempt.rollout_id, attempt.attempt_id)
            into.attempts[key] = attempt
            into.attempt_numbers[key] = number
            into.numbers[attempt.rollout_id] = rollout
            if attempt.worker_id:
                into.workers.setdefault(attempt.worker_id, None)
        self._take_queue(found)
        if self._due is not None:
            into.overdue = [plain(rollout_id) for (rollout_id,) in found["overdue"]]
            if not into.overdue:
                into.totals.due_from = max(into.totals.due_from, self._due.now)
            into.expendable = [plain(rollout_id) for (rollout_id,) in found.get("expendable", ())]
        self._take_lists(found)
        self._take_absent(needs, into)
        self._take_others(found)

    def _take_queue(self, found: dict[str, Sequence[Any]]) -> None:
        needs, into = self._needs, self._into
        if not needs.claims:
            return
        payload_bytes = 0
        for rollout_id, position, size_bytes in found["queue"]:
            into.queued.append(plain(rollout_id))
            into.queue_keys.append(position)
            payload_bytes += size_bytes
        into.queue_end = len(found["queue"]) < needs.claims and payload_bytes <= needs.claim_bytes

    def _take_lists(self, found: dict[str, Sequence[Any]]) -> None:
        into = self._into
        members: dict[str, list[str]] = {group_id: [] for group_id in self._groups}
        for group_id, rollout_id in found.get("groups", ()):
            members[plain(group_id)].append(plain(rollout_id))
        into.group_members.update(members)
        held: dict[str, list[str]] = {one: [] for one in (*self._holders, *(into.expendable if self._due else ()))}
        for rollout_id, worker_id in found.get("holders", ()):
            held[plain(rollout_id)].append(plain(worker_id))
            into.workers.setdefault(plain(worker_id), None)
        into.holder_ids.update(held)

    def _take_absent(self, needs: Needs, into: PostgresLoaded) -> None:
        for rollout_id in self._rollouts:
            into.rollouts.setdefault(rollout_id, None)
        for worker_id in self._workers:
            into.workers.setdefault(worker_id, None)
        for worker_id in self._held:
            worker = into.workers[worker_id]
            if worker is not None and worker.current_rollout_id and worker.current_attempt_id:
                into.rollouts.setdefault(worker.current_rollout_id, None)
                into.attempts.setdefault((worker.current_rollout_id, worker.current_attempt_id), None)
        for key in self._attempts:
            into.attempts.setdefault(key, None)
        for span_key in self._spans:
            into.spans[span_key] = False

    def _take_others(self, found: dict[str, Sequence[Any]]) -> None:
        needs, into = self._needs, self._into
        for row in found.get("spans", ()):
            into.spans[plain(row[0]), plain(row[1]), plain(row[2])] = True
        into.replies.update(dict.fromkeys(self._replies))
        for row in found.get("replies", ()):
            reply = rows.reply_of(row)
            into.replies[reply.request_id] = reply
        for row in found.get("resources", ()):
            resources = rows.resources_of(row)
            into.resources_by_id[resources.resources_id] = resources
        bound = (into.rollouts[rollout_id] for rollout_id in into.queued) if needs.claims else ()
        for resources_id in (*self._resources, *(one.resources_id for one in bound if one is not None)):
            if resources_id is not None:
                into.resources_by_id.setdefault(resources_id, None)
        if "latest" in found:
            into.latest[None] = rows.resources_of(found["latest"][0]) if found["latest"] else None
        for place, run in enumerate(self._newest()):
            newest = found[f"newest-{place}"]
            into.newest[run] = rows.resources_of(newest[0]) if newest else None
        self._take_training(found)

    def _take_training(self, found: dict[str, Sequence[Any]]) -> None:
        """What is for groups, consumers and admission."""
        needs, into = self._needs, self._into
        into.marks.update(dict.fromkeys(self._marks))
        for consumer, rollout_id, number in found.get("marks", ()):
            into.marks[plain(consumer), plain(rollout_id)] = number
        checkpoints: dict[str, dict[str, int]] = {one: {} for one in needs.checkpoints - into.checkpoints_of.keys()}
        for consumer, checkpoint, number in found.get("checkpoints", ()):
            checkpoints[plain(consumer)][plain(checkpoint)] = number
        into.checkpoints_of.update(checkpoints)
        since: dict[tuple[str, int], list[str]] = {one: [] for one in needs.marks_from - into.marks_since.keys()}
        for consumer, number, rollout_id in found.get("marks_from", ()):
            since[plain(consumer), number].append(plain(rollout_id))
        into.marks_since.update(since)
        into.admissions.update(dict.fromkeys(needs.admissions - into.admissions.keys()))
        for run, max_open_groups, paused in found.get("admissions", ()):
            into.admissions[plain(run)] = AdmissionRecord(plain(run), max_open_groups, paused)
        groups: dict[str, list[OpenGroup]] = {one: [] for one in needs.open_groups - into.open_groups_of.keys()}
        for run, *group in found.get("open_groups", ()):
            groups[plain(run)].append(rows.open_group_of(group))
        into.open_groups_of.update(groups)


def newest_resources(s: Statement, run: str | None) -> str:
    """Selects the resources of a run that have the greatest policy version."""
    of_run = "run IS NULL" if run is None else f"run = {s.parameter(escaped(run), 'text')}"
    return f"SELECT {rows.RESOURCES_COLUMNS} FROM resources WHERE {of_run} ORDER BY policy_version DESC, number LIMIT 1"


# --- What is due -----------------------------------------------------------------------------------------------------


def overdue(s: Statement, due: Due) -> str:
    """Selects up to ``due.limit`` rollouts whose deadline has passed, the earliest first."""
    now, limit = s.parameter(due.now, "float8"), s.parameter(due.limit, "bigint")
    return (
        f"SELECT number, rollout_id FROM rollouts WHERE deadline >= {DUE_FROM} AND deadline < {now}"
        f" ORDER BY deadline, number LIMIT {limit}"
    )


def has_retention(due: Due) -> bool:
    return due.retain_count is not None or due.retain_since is not None


def expendable(s: Statement, due: Due) -> str | None:
    """Selects rollouts that are not to be retained, those that ended first: as many as one transaction should delete,
    and not more than ``due.limit``. None if all are retained."""
    if not has_retention(due):
        return None
    since = "NULL" if due.retain_since is None else s.parameter(due.retain_since, "float8")
    kept = "NULL" if due.retain_count is None else s.parameter(due.retain_count, "bigint")
    excess = f"coalesce((SELECT completed FROM log ORDER BY id DESC LIMIT 1) - {kept}, 0)"
    consumed = "".join(
        f" AND EXISTS (SELECT 1 FROM consumed k WHERE k.consumer = {name} AND k.rollout = c.rollout"
        " AND k.number < coalesce("
        f"(SELECT max(number) FROM checkpoints WHERE consumer = {name}), k.number + 1) OFFSET 0)"
        for name in (s.parameter(escaped(one), "text") for one in due.consumers)
    )
    limit = s.parameter(min(due.limit, EXPENDABLE_MAX), "bigint")
    # By number, the first ones; by age, those that ended before, which come first too. Some of them are not consumed.
    return f"""
        SELECT number, rollout_id, position FROM (
            SELECT *, sum(span_bytes) OVER (ORDER BY position) - span_bytes AS before FROM (
                SELECT r.number, r.rollout_id, c.position, r.span_bytes, r.completion_time,
                    row_number() OVER (ORDER BY c.position) AS place
                FROM completions c JOIN rollouts r ON {looked_up("r.number", "c.rollout")}
                WHERE (r.completion_time < {since} OR {kept} IS NOT NULL){consumed}
                ORDER BY c.position LIMIT {limit}
            ) first WHERE completion_time < {since} OR place <= {excess}
        ) sized WHERE before <= {EXPENDABLE_BYTES}
    """
