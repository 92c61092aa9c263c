"""What transactions and look-ups do takes the same time however much is stored: each statement finds its rows by their
keys, also with a plan that was made when the tables were empty, and what is deleted and cannot be cleaned up is passed
by."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import asyncpg
import pytest

from lightning_store import EnqueueRolloutRequest
from lightning_store.backends.postgres.connections import Settings
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span, retrying, some_llm
from tools.postgres_server import PostgresServer

pytestmark = pytest.mark.asyncio

SCHEMA = "lightning_store_"
SMALL = frozenset({"servers", "meta", "format", "checkpoints", "admissions"})
"""Tables that do not grow with what is stored."""
PLANNED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[Any]]:
    """The statements that stores execute from now on, each with its last parameters."""
    statements: dict[str, Sequence[Any]] = {}
    connect: Callable[[Settings], Awaitable[asyncpg.Connection]] = Settings.connect

    async def connect_and_log(settings: Settings) -> asyncpg.Connection:
        connection = await connect(settings)
        connection.add_query_logger(lambda query: statements.update({query.query: query.args or ()}))
        return connection

    monkeypatch.setattr(Settings, "connect", connect_and_log)
    return statements


async def test_each_statement_finds_its_rows_by_their_keys(
    postgres: PostgresServer, namespace: str, executed: dict[str, Sequence[Any]]
) -> None:
    clock = FakeClock()
    options: dict[str, Any] = {"retain_finished_count": 1, "retain_for": ["trainer"]}
    store = await PostgresEngineStore.open(postgres.dsn(), namespace=namespace, clock=clock, **options)
    try:
        executed.clear()
        await work(store, clock)
    finally:
        await store.aclose()
    statements = {one: len(given) for one, given in executed.items() if one.strip().startswith(PLANNED)}
    connection = await asyncpg.connect(postgres.dsn())
    try:
        columns = await first_columns(connection, store.schema)
        for analyzed in (False, True):
            if analyzed:  # the planner knows how few rows there are
                for table in await connection.fetch(
                    "SELECT tablename FROM pg_tables WHERE schemaname = $1", store.schema
                ):
                    await connection.execute(f"ANALYZE {store.schema}.{table[0]}")
            wrong = {
                statement: found
                for statement, parameters in statements.items()
                if (found := [*walks(await plan(connection, store.schema, statement, parameters), columns)])
            }
            assert not wrong, analyzed
    finally:
        await connection.close()
    assert len(statements) > 30


async def work(store: PostgresEngineStore, clock: FakeClock) -> None:
    """Whatever a transaction or a look-up does."""
    await store.update_resources("prompts", some_llm(), policy_version=1, run="run")
    await store.set_admission("run", max_open_groups=5)
    for place in range(3):
        member = EnqueueRolloutRequest(
            input={}, group_id=f"group-{place}", group_size=1, metadata={"lightning.run": "run", "lightning.x": place}
        )
        [queued] = await store.enqueue_many_rollouts([member], idempotency_key=f"key-{place}")
        await store.update_rollout(queued.rollout_id, metadata={"lightning.run": "run", "lightning.x": -place})
        claimed = await store.dequeue_rollout(worker_id="worker")
        assert claimed is not None
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        await store.update_worker("worker", heartbeat_stats={"step": place})
        await store.get_next_span_sequence_id(rollout_id, attempt_id)
        await store.add_many_spans([make_span(claimed, number) for number in range(1, 4)])
        await store.get_rollout_by_id(rollout_id)
        await store.query_spans(rollout_id, attempt_id="latest")
        await store.query_attempts(rollout_id)
        await store.update_attempt(rollout_id, attempt_id, status="succeeded", metadata={"seen": True})
        await store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=0)
        assert [one async for one in store.watch_groups([f"group-{place}"], consumer="trainer")]
        await store.mark_consumed("trainer", [rollout_id], checkpoint=f"checkpoint-{place}")
        clock.advance(1.0)
    await store.get_latest_resources()
    await store.get_resources_by_id("prompts")
    await store.enqueue_rollout(input={}, config=retrying(timeout_seconds=5.0))
    assert await store.dequeue_rollout(worker_id="other") is not None
    clock.advance(6.0)
    assert await store.dequeue_rollout(worker_id="worker") is not None
    await store.query_many_spans([rollout_id])
    assert await store.delete_rollouts(older_than=0)


async def test_claims_do_not_walk_through_what_a_held_transaction_keeps(
    postgres: PostgresServer, namespace: str, executed: dict[str, Sequence[Any]]
) -> None:
    store = await PostgresEngineStore.open(postgres.dsn(), namespace=namespace)
    holder = await asyncpg.connect(postgres.dsn())
    try:
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.execute("SELECT pg_current_xact_id()")
        few = await blocks_of_a_claim(store, postgres, executed, calls=400, claims=1)
        many = await blocks_of_a_claim(store, postgres, executed, calls=1000, claims=1)
        more = await blocks_of_a_claim(store, postgres, executed, calls=20, claims=500)
    finally:
        await holder.close()
        await store.aclose()
    assert max(many, more) < few + 25  # indexes have become a level higher


async def blocks_of_a_claim(
    store: PostgresEngineStore, postgres: PostgresServer, executed: dict[str, Sequence[Any]], calls: int, claims: int
) -> int:
    """How many blocks of tables and indexes one more claim has to look at after so many calls with so many claims."""
    await store.enqueue_many_rollouts([EnqueueRolloutRequest(input={})] * (calls * claims + 5))
    for _ in range(calls):
        assert len(await store.dequeue_many_rollouts(limit=claims, worker_id="worker")) == claims
    executed.clear()
    assert await store.dequeue_rollout(worker_id="worker") is not None
    [(statement, parameters)] = [one for one in executed.items() if "AS MATERIALIZED" in one[0]]
    connection = await asyncpg.connect(postgres.dsn())
    try:
        await connection.execute(Settings("", store.schema.removeprefix(SCHEMA), 30.0, 10.0, 100).begin)
        [(text,)] = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *parameters)
    finally:
        await connection.close()
    top: Mapping[str, int] = json.loads(text)[0]["Plan"]
    return top["Shared Hit Blocks"] + top["Shared Read Blocks"]


async def plan(connection: asyncpg.Connection, schema: str, statement: str, parameters: int) -> Mapping[str, Any]:
    """The plan of a transaction that looks rows up."""
    settings = Settings("", schema.removeprefix(SCHEMA), 30.0, 10.0, 100)
    await connection.execute(settings.begin)
    try:
        await connection.execute(f"PREPARE statement AS {statement}")
        arguments = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
        [(text,)] = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE statement{arguments}")
        await connection.execute("DEALLOCATE statement")
        explained: Any = json.loads(text)
        return explained[0]["Plan"]
    finally:
        await connection.execute("ROLLBACK")


async def first_columns(connection: asyncpg.Connection, schema: str) -> dict[str, str]:
    """That of each index of a table that grows."""
    rows = await connection.fetch(
        """SELECT i.indexrelid::regclass::text, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
           JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
           WHERE c.relnamespace = $1::regnamespace AND c.relname <> ALL($2)""",
        schema,
        sorted(SMALL),
    )
    return {name.split(".")[-1]: column for name, column in rows}


def walks(node: Mapping[str, Any], columns: Mapping[str, str], *, limited: bool = False) -> Iterator[str]:
    """The parts of a plan that read as many rows as there are in a table that grows."""
    kind, index = node["Node Type"], node.get("Index Name")
    if kind in ("Seq Scan", "Bitmap Heap Scan") and node["Relation Name"] not in SMALL:
        yield f"{kind} on {node['Relation Name']}"  # the second reads all versions of a row, not the newest alone
    elif index is not None and index in columns:
        condition = node.get("Index Cond", "")
        if columns[index] not in condition and not (limited and not condition):
            yield f"{kind} of all of {index}, where {condition or node.get('Filter')}"
    limited = kind == "Limit" or (limited and kind in ("Subquery Scan", "Result", "WindowAgg", "Nested Loop"))
    for part in node.get("Plans", ()):
        yield from walks(part, columns, limited=limited)
