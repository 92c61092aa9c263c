"""What has to be true of the data in a database: SQLite's own checks of the file, and what the store relies on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from sqlite3 import Connection, DatabaseError
from typing import Final

from lightning_store.backends.base import Violation
from lightning_store.backends.checking import (
    CONSUMERS_ARE_COUNTED,
    QUEUE_KEY,
    SPAN_COUNTERS_LEAD,
    UNCOUNTED_ATTEMPTS_ARE_COUNTED,
    Rule,
    in_sql,
    told,
)
from lightning_store.backends.records import (
    ATTEMPT_OVERHEAD_BYTES,
    RESOURCES_OVERHEAD_BYTES,
    ROLLOUT_OVERHEAD_BYTES,
    WORKER_OVERHEAD_BYTES,
    id_bytes,
    text_bytes,
)
from lightning_store.backends.sqlite.errors import is_damage
from lightning_store.labels import labels_of
from lightning_store.lifecycle import ACTIVE, QUEUED, TERMINAL

_QUEUED, _TERMINAL, _ACTIVE = map(in_sql, (QUEUED, TERMINAL, ACTIVE))


def _total(column: str, counted: str) -> Rule:
    text = f"totals.{column} is what is stored"
    return Rule(
        text,
        f"SELECT 'it is ' || {column} || ', stored is ' || ({counted}) FROM totals WHERE {column} IS NOT ({counted})",
    )


def _last(column: str, numbers: str) -> Rule:
    return Rule(
        f"totals.{column} is not below a number that is in use",
        f"SELECT 'it is ' || {column} || ', in use is ' || ({numbers}) FROM totals WHERE {column} < ({numbers})",
    )


_OTHER_BYTES: Final = f"""
    (SELECT coalesce(sum({ROLLOUT_OVERHEAD_BYTES} + text_bytes(input_json) + text_bytes(metadata_json)), 0)
        FROM payloads)
    + (SELECT coalesce(sum(id_bytes(resources_id)), 0) FROM rollouts)
    + (SELECT coalesce(sum({ATTEMPT_OVERHEAD_BYTES} + id_bytes(worker_id) + text_bytes(metadata_json)), 0)
        FROM attempts)
    + (SELECT coalesce(sum({RESOURCES_OVERHEAD_BYTES} + id_bytes(resources_id) + text_bytes(resources_json)), 0)
        FROM resources)
    + (SELECT coalesce(sum({WORKER_OVERHEAD_BYTES} + id_bytes(worker_id) + text_bytes(heartbeat_stats_json)), 0)
        FROM workers)
"""

RULES: Final = (
    Rule(
        "the store has an id",
        "SELECT 'meta has none' WHERE NOT EXISTS (SELECT 1 FROM meta WHERE name = 'store_id' AND value <> '')",
    ),
    Rule("totals has one row", "SELECT count(*) || ' rows' FROM totals HAVING count(*) <> 1"),
    _total("rollouts", "SELECT count(*) FROM rollouts"),
    _total("completed", "SELECT count(*) FROM completions"),
    _total("attempts", "SELECT count(*) FROM attempts"),
    _total("spans", "SELECT count(*) FROM spans"),
    _total("resources", "SELECT count(*) FROM resources"),
    _total("workers", "SELECT count(*) FROM workers"),
    _total("span_bytes", "SELECT coalesce(sum(span_bytes), 0) FROM rollouts"),
    _total("other_bytes", f"SELECT {_OTHER_BYTES}"),
    Rule(
        "rollout_tallies are what is stored",
        """
        SELECT status || ' ' || mode || ': ' || sum(told) || ', stored are ' || sum(stored) FROM (
            SELECT status, mode, rollouts AS told, 0 AS stored FROM rollout_tallies
            UNION ALL SELECT status, coalesce(mode, ''), 0, 1 FROM rollouts
        ) GROUP BY status, mode HAVING sum(told) <> sum(stored)
        """,
    ),
    Rule(
        "worker_tallies are what is stored",
        """
        SELECT status || ': ' || sum(told) || ', stored are ' || sum(stored) FROM (
            SELECT status, workers AS told, 0 AS stored FROM worker_tallies
            UNION ALL SELECT status, 0, 1 FROM workers
        ) GROUP BY status HAVING sum(told) <> sum(stored)
        """,
    ),
    _last("last_rollout", "SELECT max(number) FROM rollouts"),
    _last("last_attempt", "SELECT max(number) FROM attempts"),
    _last("last_span", "SELECT max(number) FROM spans"),
    _last("last_reply", "SELECT max(number) FROM replies"),
    _last("last_queue_position", "SELECT max(queue_position) FROM rollouts"),
    _last("last_completion_position", "SELECT max(completion_position) FROM rollouts"),
    Rule(
        "each rollout has its payloads",
        "SELECT rollout_id FROM rollouts WHERE number NOT IN (SELECT rollout FROM payloads)",
    ),
    Rule(
        "payloads, attempts, spans and marks are of rollouts that exist",
        """
        SELECT kind || ' ' || number FROM (
            SELECT 'payloads of row' AS kind, rollout AS number, rollout FROM payloads
            UNION ALL SELECT 'attempt', attempt_id, rollout FROM attempts
            UNION ALL SELECT 'span', span_id, rollout FROM spans
            UNION ALL SELECT 'mark of', consumer, rollout FROM consumed
        ) WHERE rollout NOT IN (SELECT number FROM rollouts)
        """,
    ),
    Rule(
        "the labels of rollouts are those of their metadata",
        """
        SELECT kind || ' ' || label || ' of row ' || rollout FROM (
            SELECT 'missing is' AS kind, * FROM (
                SELECT l.value AS label, p.rollout FROM payloads p CROSS JOIN json_each(labels_of(p.metadata_json)) l
                EXCEPT SELECT label, rollout FROM labels
            )
            UNION ALL SELECT 'not to be there is', * FROM (
                SELECT label, rollout FROM labels
                EXCEPT SELECT l.value, p.rollout FROM payloads p CROSS JOIN json_each(labels_of(p.metadata_json)) l
            )
        )
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
        SELECT r.rollout_id || ' (' || r.status || ')'
        FROM rollouts r LEFT JOIN queue q ON q.position = {QUEUE_KEY}
        WHERE r.status IN ({_QUEUED}) AND q.rollout IS NOT r.number AND NOT r.held
            AND NOT (r.status = 'requeuing' AND r.queue_position IS NULL AND r.deadline IS NOT NULL)
        """,
    ),
    Rule(
        "what is in the queue is a queued rollout",
        f"""
        SELECT 'position ' || q.position || coalesce(': ' || r.rollout_id || ' (' || r.status || ')', '')
        FROM queue q LEFT JOIN rollouts r ON r.number = q.rollout
        WHERE r.status IS NULL OR r.status NOT IN ({_QUEUED}) OR {QUEUE_KEY} IS NOT q.position OR r.held
        """,
    ),
    Rule(
        "a rollout is terminal if and only if it has a place among the completions, and has ended then",
        f"""
        SELECT r.rollout_id || ' (' || r.status || ')'
        FROM rollouts r LEFT JOIN completions c ON c.position = r.completion_position
        WHERE CASE WHEN r.status IN ({_TERMINAL})
            THEN c.rollout IS NOT r.number OR r.completion_time IS NULL OR r.end_time IS NULL
            ELSE r.completion_position IS NOT NULL END
        """,
    ),
    Rule(
        "what is among the completions is a rollout that has that place",
        """
        SELECT 'position ' || c.position || coalesce(': ' || r.rollout_id, '')
        FROM completions c LEFT JOIN rollouts r ON r.number = c.rollout
        WHERE r.completion_position IS NOT c.position
        """,
    ),
    Rule(
        "the attempts of a rollout are numbered 1, 2, 3, …",
        """
        SELECT r.rollout_id FROM attempts a JOIN rollouts r ON r.number = a.rollout
        GROUP BY a.rollout HAVING min(a.sequence_id) <> 1 OR max(a.sequence_id) <> count(*)
            OR count(DISTINCT a.sequence_id) <> count(*)
        """,
    ),
    Rule(
        "what is held is queued, in a group of a run that has bounds",
        f"""
        SELECT r.rollout_id FROM rollouts r WHERE r.held AND (
            r.group_id IS NULL OR r.status NOT IN ({_QUEUED}) OR r.run IS NULL
            OR r.run NOT IN (SELECT run FROM admissions)
        )
        """,
    ),
    CONSUMERS_ARE_COUNTED,
    UNCOUNTED_ATTEMPTS_ARE_COUNTED,
    Rule(
        "a rollout names its latest attempt, if it has any",
        """
        SELECT r.rollout_id FROM rollouts r WHERE r.latest_attempt_id IS NOT (
            SELECT a.attempt_id FROM attempts a WHERE a.rollout = r.number ORDER BY a.sequence_id DESC LIMIT 1
        )
        """,
    ),
    Rule(
        "an attempt that has a limit of time is watched",
        f"""
        SELECT r.rollout_id FROM rollouts r
        JOIN attempts a ON a.rollout = r.number AND a.attempt_id = r.latest_attempt_id
        WHERE r.deadline IS NULL AND r.status IN ({_ACTIVE}) AND a.status IN ({_ACTIVE})
            AND json_valid(r.config) AND coalesce(
                json_extract(r.config, '$[0]'), json_extract(r.config, '$[1]')
            ) IS NOT NULL
        """,
    ),
    Rule(
        "a span is of an attempt of its rollout",
        """
        SELECT s.span_id FROM spans s LEFT JOIN attempts a ON a.number = s.attempt WHERE a.rollout IS NOT s.rollout
        """,
    ),
    SPAN_COUNTERS_LEAD,
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
            ELSE latest_resources NOT IN (SELECT resources_id FROM resources) END
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
    Rule(
        "a request has one recorded reply",
        "SELECT request_id FROM replies GROUP BY request_id HAVING count(*) > 1",
    ),
)


def violations(connection: Connection, *, quick: bool = False) -> Iterator[Violation]:
    """What is wrong, as it is found. First the file, then what the store relies on, in one state of the data.

    Args:
        connection: One that reads a database of the present format.
        quick: Whether to leave out what takes long: whether indexes agree with their tables.
    """
    connection.create_function("text_bytes", 1, text_bytes, deterministic=True)
    connection.create_function("id_bytes", 1, id_bytes, deterministic=True)
    connection.create_function("labels_of", 1, lambda text: json.dumps(labels_of(text)), deterministic=True)
    connection.execute("BEGIN")
    try:
        damage = _damage(connection, quick)
        for found in damage:
            yield Violation("the file is sound", found)
        if not damage:  # else the rules would tell of it in other words
            for rule in RULES:
                yield from told(rule, connection.execute(rule.query))
    finally:
        connection.execute("ROLLBACK")


def _damage(connection: Connection, quick: bool) -> list[str]:
    """What SQLite finds, up to a hundred lines."""
    try:
        rows = connection.execute("PRAGMA quick_check" if quick else "PRAGMA integrity_check").fetchall()
    except DatabaseError as error:
        if is_damage(error):
            return [str(error)]
        raise
    return [found for (found,) in rows if found != "ok"]
