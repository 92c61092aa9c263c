"""What has to be true of the data of a namespace, whatever its servers have done."""

from __future__ import annotations

from typing import Final

from asyncpg import Connection

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
from lightning_store.backends.postgres.connections import Settings, close, migrations
from lightning_store.backends.postgres.errors import store_errors
from lightning_store.errors import UnsupportedError
from lightning_store.lifecycle import QUEUED, TERMINAL

_QUEUED, _TERMINAL = in_sql(QUEUED), in_sql(TERMINAL)


def _total(column: str, counted: str) -> Rule:
    return Rule(
        f"log.{column} is what is stored",
        f"SELECT 'it is ' || {column} || ', stored is ' || ({counted}) FROM t WHERE {column} <> ({counted})",
    )


def _last(column: str, numbers: str) -> Rule:
    return Rule(
        f"log.{column} is not below a number that is in use",
        f"SELECT 'it is ' || {column} || ', in use is ' || ({numbers}) FROM t WHERE {column} < ({numbers})",
    )


RULES: Final = (
    # ``t`` is the last row of the log.
    Rule(
        "the store has an id",
        "SELECT 'meta has none' WHERE NOT EXISTS (SELECT FROM meta WHERE name = 'store_id' AND value <> '')",
    ),
    Rule("the log has a row", "SELECT 'it has none' WHERE NOT EXISTS (SELECT FROM t)"),
    _total("rollouts", "SELECT count(*) FROM rollouts"),
    _total("completed", "SELECT count(*) FROM completions"),
    _total("attempts", "SELECT count(*) FROM attempts"),
    _total("spans", "SELECT count(*) FROM spans"),
    _total("resources", "SELECT count(*) FROM resources"),
    _total("workers", "SELECT count(*) FROM workers"),
    _total("span_bytes", "SELECT coalesce(sum(span_bytes), 0) FROM rollouts"),
    Rule(
        "log.tallies are what is stored",
        """
        SELECT kind || ' ' || status || ' ' || mode || ': ' || sum(told) || ', stored are ' || sum(stored) FROM (
            SELECT 'rollouts' AS kind, one->>0 AS status, coalesce(one->>1, '') AS mode, (one->>2)::bigint AS told,
                0 AS stored FROM t, json_array_elements(t.tallies::json->0) one
            UNION ALL SELECT 'workers', one->>0, '', (one->>1)::bigint, 0
                FROM t, json_array_elements(t.tallies::json->1) one
            UNION ALL SELECT 'rollouts', status, coalesce(mode, ''), 0, 1 FROM rollouts
            UNION ALL SELECT 'workers', status, '', 0, 1 FROM workers
        ) x GROUP BY kind, status, mode HAVING sum(told) <> sum(stored)
        """,
    ),
    _last("last_rollout", "SELECT max(number) FROM rollouts"),
    _last("last_attempt", "SELECT max(number) FROM attempts"),
    _last("last_span", "SELECT max(number) FROM spans"),
    _last("last_queue_position", "SELECT max(queue_position) FROM rollouts"),
    _last("last_completion_position", "SELECT max(completion_position) FROM rollouts"),
    Rule(
        "each rollout has its payloads",
        "SELECT rollout_id FROM rollouts r WHERE NOT EXISTS (SELECT FROM payloads p WHERE p.rollout = r.number)",
    ),
    Rule(
        "payloads, labels, attempts, spans and marks have their rollout",
        """
        SELECT kind || ' ' || number FROM (
            SELECT 'payloads of row' AS kind, rollout::text AS number, rollout FROM payloads
            UNION ALL SELECT 'label', label, rollout FROM labels
            UNION ALL SELECT 'attempt', attempt_id, rollout FROM attempts
            UNION ALL SELECT 'span', span_id, rollout FROM spans
            UNION ALL SELECT 'mark of', consumer, rollout FROM consumed
        ) x WHERE NOT EXISTS (SELECT FROM rollouts r WHERE r.number = x.rollout)
        """,
    ),
    Rule(
        "why a rollout did not succeed stands with it while it is failed or cancelled",
        """
        SELECT rollout_id || ' (' || status || ')' FROM rollouts
        WHERE (end_reason IS NOT NULL) <> (status IN ('failed', 'cancelled'))
            AND NOT (status = 'succeeded' AND end_reason IS NOT DISTINCT FROM 'stale')
        """,
    ),
    Rule(
        "a queued rollout is in the queue, in its place, or waits for its retry",
        f"""
        SELECT r.rollout_id || ' (' || r.status || ')' FROM rollouts r LEFT JOIN queue q ON q.position = {QUEUE_KEY}
        WHERE r.status IN ({_QUEUED}) AND q.rollout IS DISTINCT FROM r.number AND NOT r.held
            AND NOT (r.status = 'requeuing' AND r.queue_position IS NULL AND r.deadline IS NOT NULL)
        """,
    ),
    Rule(
        "what is in the queue is a queued rollout",
        f"""
        SELECT 'position ' || q.position || coalesce(': ' || r.rollout_id || ' (' || r.status || ')', '')
        FROM queue q LEFT JOIN rollouts r ON r.number = q.rollout
        WHERE r.status IS NULL OR r.status NOT IN ({_QUEUED}) OR {QUEUE_KEY} IS DISTINCT FROM q.position OR r.held
        """,
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
        "what is held is queued, in a group of a run that has bounds",
        f"""
        SELECT r.rollout_id FROM rollouts r WHERE r.held AND (
            r.group_id IS NULL OR r.status NOT IN ({_QUEUED}) OR r.run IS NULL
            OR NOT EXISTS (SELECT FROM admissions a WHERE a.run = r.run)
        )
        """,
    ),
    CONSUMERS_ARE_COUNTED,
    UNCOUNTED_ATTEMPTS_ARE_COUNTED,
    Rule(
        "a rollout names its latest attempt, if it has any",
        """
        SELECT r.rollout_id FROM rollouts r WHERE r.latest_attempt_id IS DISTINCT FROM (
            SELECT a.attempt_id FROM attempts a WHERE a.rollout = r.number ORDER BY a.sequence_id DESC LIMIT 1
        )
        """,
    ),
    Rule(
        "a span is of an attempt of its rollout",
        """
        SELECT s.span_id FROM spans s LEFT JOIN attempts a ON a.number = s.attempt
        WHERE a.rollout IS DISTINCT FROM s.rollout
        """,
    ),
    SPAN_COUNTERS_LEAD,
    Rule(
        "a rollout without spans counts no bytes of them",
        """
        SELECT r.rollout_id FROM rollouts r
        WHERE r.span_bytes <> 0 AND NOT EXISTS (SELECT FROM spans s WHERE s.rollout = r.number)
        """,
    ),
    Rule(
        "the latest resources exist",
        """
        SELECT coalesce(latest_resources, 'none are named') FROM t WHERE CASE WHEN latest_resources IS NULL
            THEN EXISTS (SELECT FROM resources)
            ELSE NOT EXISTS (SELECT FROM resources WHERE resources_id = latest_resources) END
        """,
    ),
    Rule(
        "a worker holds an attempt that exists, or none",
        """
        SELECT w.worker_id FROM workers w
        WHERE (w.current_rollout_id IS NULL) <> (w.current_attempt_id IS NULL)
            OR w.current_rollout_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM rollouts r JOIN attempts a ON a.rollout = r.number
                WHERE r.rollout_id = w.current_rollout_id AND a.attempt_id = w.current_attempt_id
            )
        """,
    ),
)


async def violations(settings: Settings) -> list[Violation]:
    """What is wrong, in one state of the data, which servers may be changing.

    Args:
        settings: How to reach the database, and how long one rule may take.

    Raises:
        InvalidArgumentError: There is no such namespace.
        UnsupportedError: Another version of the program has written the tables.
        StoreUnavailableError: The database cannot be reached.
    """
    connection = await settings.connect()
    try:
        with store_errors():
            if not await connection.fetchval("SELECT to_regclass($1)::oid", f"{settings.schema}.format"):
                raise settings.missing()
            await connection.execute(settings.begin_snapshot)
            present, known = await connection.fetchval("SELECT max(version) FROM format"), max(migrations())
            if present != known:
                message = f"the format of {settings.schema} is {present}, and this program checks {known}"
                raise UnsupportedError(f"{message}; `migrate` brings an older one up to date")
            return [found for rule in RULES for found in await violations_of(connection, rule)]
    finally:
        await close(connection)


async def violations_of(connection: Connection, rule: Rule) -> list[Violation]:
    """Of one rule.

    Args:
        connection: One that reads a namespace.
        rule: What to look for.
    """
    rows = await connection.fetch(f"WITH t AS (SELECT * FROM log ORDER BY id DESC LIMIT 1) {rule.query}")
    return list(told(rule, rows))
