"""What has to be true of stored data, as rules that hold for both databases.

A rule selects what violates it, in the SQL that SQLite and PostgreSQL share, with ``IS DISTINCT FROM`` for SQLite's
``IS NOT``. ``totals``, ``rollout_tallies`` and ``worker_tallies`` are tables of SQLite; in PostgreSQL they are what the
last row of ``log`` has. What SQL cannot tell, a function tells from the rows that are selected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias, get_args

from lightning_store.backends.base import Violation
from lightning_store.backends.configs import config_of
from lightning_store.backends.records import (
    ATTEMPT_OVERHEAD_BYTES,
    POSITIONS_PER_BAND,
    RESOURCES_OVERHEAD_BYTES,
    ROLLOUT_OVERHEAD_BYTES,
    WORKER_OVERHEAD_BYTES,
)
from lightning_store.labels import labels_of
from lightning_store.lifecycle import ACTIVE, QUEUED, TERMINAL, limits
from lightning_store.model import AttemptStatus, RolloutConfig, RolloutStatus, WorkerStatus

LISTED_MAX: Final = 10
"""Violations of one kind that are told; the others are counted."""

Sql: TypeAlias = Callable[[str], str]
"""Makes an expression of the name of a column."""


def _as_selected(found: object) -> Iterable[str]:
    return [str(found)]


class Rule(NamedTuple):
    """Something that the store relies on."""

    text: str
    query: str
    """Selects what violates it, in one column; or what :attr:`find` looks at."""
    find: Callable[..., Iterable[str]] = _as_selected
    """What violates it in a row with these columns."""


def told(rule: Rule, found: Iterable[str]) -> Iterator[Violation]:
    """The violations of a rule.

    Args:
        rule: The rule.
        found: What violates it.
    """
    more = 0
    for number, one in enumerate(found):
        if number < LISTED_MAX:
            yield Violation(rule.text, one)
        else:
            more += 1
    if more:
        yield Violation(rule.text, f"and {more} more")


def total(column: str, counted: str) -> Rule:
    """A total is what a query counts."""
    return Rule(
        f"totals.{column} is what is stored",
        f"SELECT 'it is ' || {column} || ', stored is ' || ({counted}) FROM totals WHERE {column} <> ({counted})",
    )


def last(column: str, numbers: str, table: str = "totals") -> Rule:
    """A number is not given again: the last one that was given is not below those that a query selects."""
    return Rule(
        f"{table}.{column} is not below a number that is in use",
        f"SELECT 'it is ' || {column} || ', in use is ' || ({numbers}) FROM {table} WHERE {column} < ({numbers})",
    )


def in_sql(statuses: Collection[str]) -> str:
    """Statuses as the list of an IN."""
    return ", ".join(f"'{one}'" for one in sorted(statuses))


_QUEUED, _TERMINAL, _ACTIVE = map(in_sql, (QUEUED, TERMINAL, ACTIVE))
_KNOWN: Final = [in_sql(get_args(one)) for one in (RolloutStatus, AttemptStatus, WorkerStatus)]
_QUEUE_KEY: Final = f"r.queue_band * {POSITIONS_PER_BAND} + r.queue_position"
"""Where rollout ``r`` stands in the queue."""
_WAITS: Final = "r.status = 'requeuing' AND r.queue_position IS NULL AND r.deadline IS NOT NULL"
"""Whether rollout ``r`` waits for its retry."""


# --- What SQL cannot tell --------------------------------------------------------------------------------------------


def _config_of(text: str | None) -> RolloutConfig | None:
    """None for a text that cannot be read."""
    try:
        return config_of(text)
    except (ValueError, TypeError):
        return None


def _unreadable(config: str) -> Iterator[str]:
    if _config_of(config) is None:
        yield config


def _watched_too_late(
    rollout_id: str,
    rollout_status: RolloutStatus,
    deadline: float | None,
    config: str | None,
    attempt_status: AttemptStatus,
    start_time: float,
    last_heartbeat_time: float | None,
    newest_time: float,
) -> Iterator[str]:
    """Silence that no server could hear does not count, and a server may have begun to listen until just now."""
    known = _config_of(config)
    if known is None:  # which is another violation
        return
    under = limits(rollout_status, attempt_status, start_time, last_heartbeat_time, known, watched_since=newest_time)
    earliest = min((one.time for one in under), default=None)
    if earliest is not None and (deadline is None or deadline > earliest):
        yield f"{rollout_id}: its deadline is {deadline}, and {earliest} is one"


def labels(collected: Sql, read: Callable[[Any], Iterable[str]]) -> Rule:
    """The index of metadata is complete, and has nothing else.

    Args:
        collected: Makes one value of all that a column has in a group of rows.
        read: The texts of such a value.
    """

    def differ(rollout_id: str, metadata_json: str | None, stored: Any) -> Iterator[str]:
        try:
            expected = set(labels_of(metadata_json))
        except (ValueError, AttributeError):
            yield f"the metadata of {rollout_id} cannot be read"
            return
        present = set() if stored is None else set(read(stored))
        for kind, found in (("missing is", expected - present), ("not to be there is", present - expected)):
            yield from (f"{kind} {label} of {rollout_id}" for label in sorted(found))

    query = f"""
        SELECT r.rollout_id, p.metadata_json, l.stored
        FROM rollouts r JOIN payloads p ON p.rollout = r.number
        LEFT JOIN (SELECT rollout, {collected("label")} AS stored FROM labels GROUP BY rollout) l
            ON l.rollout = r.number
        WHERE p.metadata_json IS NOT NULL OR l.stored IS NOT NULL
    """
    return Rule("the labels of rollouts are those of their metadata", query, differ)


def attempt_bytes(text_bytes: Sql, id_bytes: Sql) -> str:
    """What a row of attempts takes, as :attr:`AttemptRecord.size_bytes` has it."""
    return f"{ATTEMPT_OVERHEAD_BYTES} + {id_bytes('worker_id')} + {text_bytes('metadata_json')}"


def payload_bytes(text_bytes: Sql) -> str:
    """What a row of payloads takes, as :attr:`RolloutRecord.payload_bytes` has it."""
    return f"{text_bytes('input_json')} + {text_bytes('metadata_json')}"


def other_bytes(text_bytes: Sql, id_bytes: Sql) -> Rule:
    """What everything but spans takes, which is what memory it would take.

    Args:
        text_bytes: What a text takes, see :func:`lightning_store.backends.records.text_bytes`.
        id_bytes: What an id takes that a caller gives, likewise.
    """
    resources = f"{RESOURCES_OVERHEAD_BYTES} + {id_bytes('resources_id')} + {text_bytes('resources_json')}"
    workers = f"{WORKER_OVERHEAD_BYTES} + {id_bytes('worker_id')} + {text_bytes('heartbeat_stats_json')}"
    sums = {
        "payloads": f"{ROLLOUT_OVERHEAD_BYTES} + {payload_bytes(text_bytes)}",
        "rollouts": id_bytes("resources_id"),
        "attempts": attempt_bytes(text_bytes, id_bytes),
        "resources": resources,
        "workers": workers,
    }
    added = " + ".join(f"(SELECT coalesce(sum({one}), 0) FROM {table})" for table, one in sums.items())
    return total("other_bytes", f"SELECT {added}")


# --- The rules -------------------------------------------------------------------------------------------------------

RULES: Final = (
    Rule(
        "the store has an id",
        "SELECT 'meta has none' WHERE NOT EXISTS (SELECT 1 FROM meta WHERE name = 'store_id' AND value <> '')",
    ),
    Rule("totals has one row", "SELECT count(*) || ' rows' FROM totals HAVING count(*) <> 1"),
    total("rollouts", "SELECT count(*) FROM rollouts"),
    total("completed", "SELECT count(*) FROM completions"),
    total("attempts", "SELECT count(*) FROM attempts"),
    total("spans", "SELECT count(*) FROM spans"),
    total("resources", "SELECT count(*) FROM resources"),
    total("workers", "SELECT count(*) FROM workers"),
    total("span_bytes", "SELECT coalesce(sum(span_bytes), 0) FROM rollouts"),
    Rule(
        "rollout_tallies are what is stored",
        """
        SELECT status || ' ' || mode || ': ' || sum(told) || ', stored are ' || sum(stored) FROM (
            SELECT status, mode, rollouts AS told, 0 AS stored FROM rollout_tallies
            UNION ALL SELECT status, coalesce(mode, ''), 0, 1 FROM rollouts
        ) x GROUP BY status, mode HAVING sum(told) <> sum(stored)
        """,
    ),
    Rule(
        "worker_tallies are what is stored",
        """
        SELECT status || ': ' || sum(told) || ', stored are ' || sum(stored) FROM (
            SELECT status, workers AS told, 0 AS stored FROM worker_tallies
            UNION ALL SELECT status, 0, 1 FROM workers
        ) x GROUP BY status HAVING sum(told) <> sum(stored)
        """,
    ),
    last("last_rollout", "SELECT max(number) FROM rollouts"),
    last("last_attempt", "SELECT max(number) FROM attempts"),
    last("last_span", "SELECT max(number) FROM spans"),
    last("last_reply", "SELECT max(number) FROM replies"),
    last("last_queue_position", "SELECT max(queue_position) FROM rollouts"),
    last("last_completion_position", "SELECT max(completion_position) FROM rollouts"),
    Rule(
        "totals.newest_time is not before a reply was recorded",
        """
        SELECT 'it is ' || newest_time || ', recorded was ' || (SELECT max(recorded_at) FROM replies) FROM totals
        WHERE newest_time < (SELECT max(recorded_at) FROM replies)
        """,
    ),
    Rule(
        "statuses are those that the store knows",
        f"""
        SELECT kind || ': ' || status FROM (
            SELECT rollout_id AS kind, status FROM rollouts WHERE status NOT IN ({_KNOWN[0]})
            UNION ALL SELECT attempt_id, status FROM attempts WHERE status NOT IN ({_KNOWN[1]})
            UNION ALL SELECT worker_id, status FROM workers WHERE status NOT IN ({_KNOWN[2]})
        ) x
        """,
    ),
    Rule("configs can be read", "SELECT DISTINCT config FROM rollouts WHERE config IS NOT NULL", _unreadable),
    Rule(
        "each rollout has its payloads",
        "SELECT rollout_id FROM rollouts r WHERE NOT EXISTS (SELECT 1 FROM payloads p WHERE p.rollout = r.number)",
    ),
    Rule(
        "payloads, labels, attempts, spans and marks are of rollouts that exist",
        """
        SELECT kind || ' ' || name FROM (
            SELECT 'payloads of row' AS kind, CAST(rollout AS text) AS name, rollout FROM payloads
            UNION ALL SELECT 'label', label, rollout FROM labels
            UNION ALL SELECT 'attempt', attempt_id, rollout FROM attempts
            UNION ALL SELECT 'span', span_id, rollout FROM spans
            UNION ALL SELECT 'mark of', consumer, rollout FROM consumed
        ) x WHERE NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.number = x.rollout)
        """,
    ),
    Rule(
        "why a rollout did not succeed stands with it while it is failed or cancelled",
        """
        SELECT rollout_id || ' (' || status || ')' FROM rollouts
        WHERE (end_reason IS NOT NULL) <> (status IN ('failed', 'cancelled'))
            AND NOT (status = 'succeeded' AND end_reason = 'stale')
        """,
    ),
    Rule(
        "a queued rollout is in the queue, in its place, or waits for its retry",
        f"""
        SELECT r.rollout_id || ' (' || r.status || ')' FROM rollouts r LEFT JOIN queue q ON q.position = {_QUEUE_KEY}
        WHERE r.status IN ({_QUEUED}) AND q.rollout IS DISTINCT FROM r.number AND NOT r.held AND NOT ({_WAITS})
        """,
    ),
    Rule(
        "what is in the queue is a queued rollout",
        f"""
        SELECT 'position ' || q.position || coalesce(': ' || r.rollout_id || ' (' || r.status || ')', '')
        FROM queue q LEFT JOIN rollouts r ON r.number = q.rollout
        WHERE r.status IS NULL OR r.status NOT IN ({_QUEUED}) OR {_QUEUE_KEY} IS DISTINCT FROM q.position OR r.held
        """,
    ),
    Rule(
        "what is held is queued, in a group of a run that has bounds",
        f"""
        SELECT r.rollout_id FROM rollouts r WHERE r.held AND (
            r.group_id IS NULL OR r.status NOT IN ({_QUEUED}) OR r.run IS NULL
            OR NOT EXISTS (SELECT 1 FROM admissions a WHERE a.run = r.run)
        )
        """,
    ),
    Rule(
        "what is held keeps its place in the queue, or waits for its retry",
        f"SELECT r.rollout_id FROM rollouts r WHERE r.held AND r.queue_position IS NULL AND NOT ({_WAITS})",
    ),
    Rule(
        "a rollout is terminal if and only if it has a place among the completions, and has ended then",
        f"""
        SELECT r.rollout_id || ' (' || r.status || ')'
        FROM rollouts r LEFT JOIN completions c ON c.position = r.completion_position
        WHERE CASE WHEN r.status IN ({_TERMINAL})
            THEN c.rollout IS DISTINCT FROM r.number OR r.completion_time IS NULL OR r.end_time IS NULL
            ELSE r.completion_position IS NOT NULL END
        """,
    ),
    Rule(
        "what is among the completions is a rollout that has that place",
        """
        SELECT 'position ' || c.position || coalesce(': ' || r.rollout_id, '')
        FROM completions c LEFT JOIN rollouts r ON r.number = c.rollout
        WHERE r.completion_position IS DISTINCT FROM c.position
        """,
    ),
    Rule(
        "the attempts of a rollout are numbered 1, 2, 3, …",
        """
        SELECT r.rollout_id FROM attempts a JOIN rollouts r ON r.number = a.rollout
        GROUP BY r.rollout_id HAVING min(a.sequence_id) <> 1 OR max(a.sequence_id) <> count(*)
            OR count(DISTINCT a.sequence_id) <> count(*)
        """,
    ),
    Rule(
        "a rollout names its latest attempt, if it has any",
        """
        SELECT r.rollout_id FROM rollouts r WHERE r.latest_attempt_id IS DISTINCT FROM (
            SELECT a.attempt_id FROM attempts a WHERE a.rollout = r.number ORDER BY a.sequence_id DESC LIMIT 1
        )
        """,
    ),
    Rule(
        "a rollout knows how many of its attempts do not count",
        """
        SELECT r.rollout_id FROM rollouts r WHERE r.uncounted_attempts <> (
            SELECT count(*) FROM attempts a WHERE a.rollout = r.number AND NOT a.counts
        )
        """,
    ),
    Rule(
        "a member of a group knows when it was claimed first, if it was",
        """
        SELECT rollout_id FROM rollouts
        WHERE (first_claim_time IS NOT NULL) <> (group_id IS NOT NULL AND latest_attempt_id IS NOT NULL)
        """,
    ),
    Rule(
        "a rollout whose attempt has a limit of time has a deadline that is not after it",
        f"""
        SELECT r.rollout_id, r.status, r.deadline, r.config, a.status, a.start_time, a.last_heartbeat_time,
            t.newest_time
        FROM totals t CROSS JOIN rollouts r
        JOIN attempts a ON a.rollout = r.number AND a.attempt_id = r.latest_attempt_id
        WHERE r.status IN ({_ACTIVE}) AND a.status IN ({_ACTIVE})
        """,
        _watched_too_late,
    ),
    Rule(
        "a rollout knows how many consumers have consumed it",
        """
        SELECT r.rollout_id FROM rollouts r
        WHERE r.consumers <> (SELECT count(*) FROM consumed k WHERE k.rollout = r.number)
        """,
    ),
    Rule(
        "a mark is of no later time than the last checkpoint of its consumer",
        """
        SELECT k.consumer || ': ' || k.number || ' of row ' || k.rollout FROM consumed k
        WHERE k.number > (SELECT coalesce(max(c.number), 0) FROM checkpoints c WHERE c.consumer = k.consumer)
        """,
    ),
    Rule(
        "a span is of an attempt of its rollout",
        """
        SELECT s.span_id FROM spans s LEFT JOIN attempts a ON a.number = s.attempt
        WHERE a.rollout IS DISTINCT FROM s.rollout
        """,
    ),
    Rule(
        "a rollout's span counter is not below the number of a span",
        """
        SELECT r.rollout_id FROM rollouts r
        WHERE r.last_sequence < (SELECT max(s.sequence_id) FROM spans s WHERE s.rollout = r.number)
        """,
    ),
    Rule(
        "a rollout without spans counts no bytes of them",
        """
        SELECT r.rollout_id FROM rollouts r
        WHERE r.span_bytes <> 0 AND NOT EXISTS (SELECT 1 FROM spans s WHERE s.rollout = r.number)
        """,
    ),
    Rule(
        "the latest resources exist",
        """
        SELECT coalesce(latest_resources, 'none are named') FROM totals WHERE CASE WHEN latest_resources IS NULL
            THEN EXISTS (SELECT 1 FROM resources)
            ELSE NOT EXISTS (SELECT 1 FROM resources WHERE resources_id = latest_resources) END
        """,
    ),
    Rule(
        "a worker holds an attempt that exists, or none",
        """
        SELECT w.worker_id FROM workers w
        WHERE (w.current_rollout_id IS NULL) <> (w.current_attempt_id IS NULL)
            OR w.current_rollout_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM rollouts r JOIN attempts a ON a.rollout = r.number
                WHERE r.rollout_id = w.current_rollout_id AND a.attempt_id = w.current_attempt_id
            )
        """,
    ),
)
