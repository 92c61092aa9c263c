"""The servers of a namespace decide by the same rules; and what a database of an older format becomes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

import asyncpg
import pytest

from lightning_store import StoreUnavailableError
from lightning_store.backends.postgres import membership
from lightning_store.backends.postgres.membership import FLAGS
from lightning_store.backends.postgres.migrating import migrations
from lightning_store.engine.policy import Policy
from lightning_store.errors import UnsupportedError
from lightning_store.memory_limits import MemoryLimits
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store.testing import FakeClock
from lightning_store_server.cli.exit_codes import ExitCode, exit_code_of
from lightning_store_server.cli.serve import serve
from tests.durability.test_compatibility import DATA, WRITTEN_UNTIL, look
from tests.postgres.serving import PATIENT
from tools.postgres_server import PostgresServer

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _slow_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may not let a server that is alive say so for longer than ``GONE_SECONDS``."""
    monkeypatch.setattr(membership, "GONE_SECONDS", 600.0)


@asynccontextmanager
async def opened(postgres: PostgresServer, namespace: str, **options: Any) -> AsyncIterator[PostgresEngineStore]:
    store = await PostgresEngineStore.open(postgres.dsn(), namespace=namespace, **PATIENT, **options)
    try:
        yield store
    finally:
        await store.aclose()


async def execute(postgres: PostgresServer, statement: str) -> Any:
    connection = await asyncpg.connect(postgres.dsn())
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def stand_still(postgres: PostgresServer, store: PostgresEngineStore) -> None:
    """As a server that was stopped for an hour."""
    await store._backend._follower.stop()
    await execute(postgres, f"UPDATE {store.schema}.servers SET seen_at = seen_at - 3600")


REPLIES = ("replay_window_seconds", "replay_entries_max")
RULES: dict[str, dict[str, Any]] = {
    "strict": {"strict": True},
    "final_outcomes": {"final_outcomes": True},
    "fence_attempts": {"fence_attempts": "keep"},
    "worker_timeout_seconds": {"worker_timeout_seconds": 5.0},
    "worker_retention_seconds": {"worker_retention_seconds": 5.0},
    "retain_finished_seconds": {"retain_finished_seconds": 60.0},
    "retain_finished_count": {"retain_finished_count": 7},
    "retain_for": {"retain_for": ["trainer"]},
    "drop_spans": {"drop_spans": ["http.GET", "http.PUT"]},
    "replay_window_seconds": {"replay_window_seconds": 7.0},
    "replay_entries_max": {"replay_entries_max": 7},
    "limits": {"limits": MemoryLimits.of(1000, 500, memory_capacity_bytes=9000)},
}


async def test_each_rule_that_differs_is_refused(postgres: PostgresServer, namespace: str) -> None:
    async with opened(postgres, namespace, worker_timeout_seconds=120.0) as store:
        for rule, options in RULES.items():
            with pytest.raises(StoreUnavailableError) as refused:
                await PostgresEngineStore.open(
                    postgres.dsn(), namespace=namespace, **{"worker_timeout_seconds": 120.0, **options}
                )
            assert refused.value.details["field"] == rule
        message = "process .* --strict is on here, and off there; --worker-timeout is 5 here, and 120 there"
        with pytest.raises(StoreUnavailableError, match=message) as refused:
            await PostgresEngineStore.open(postgres.dsn(), namespace=namespace, strict=True, worker_timeout_seconds=5)
        assert exit_code_of(refused.value) is ExitCode.UNAVAILABLE
        await store.enqueue_rollout({})
        async with opened(postgres, namespace, worker_timeout_seconds=120) as same:
            assert await same.dequeue_rollout() is not None
    async with opened(postgres, namespace, **{name: value for one in RULES.values() for name, value in one.items()}):
        async with opened(postgres, namespace, adopt_rules=True) as adopting:
            assert adopting.engine.policy.strict
            assert adopting.engine.policy.drop_spans == {"http.GET", "http.PUT"}
            assert adopting._backend.replay_window_seconds == 7.0
        assert len(await execute(postgres, f"SELECT FROM {adopting.schema}.servers")) == 1
    assert await execute(postgres, f"SELECT FROM {adopting.schema}.servers") == []


async def test_each_rule_has_the_name_of_its_flag() -> None:
    assert {*FLAGS, "limits"} == {*RULES} == {*(one.name for one in fields(Policy)), *REPLIES, "limits"}
    assert {*FLAGS.values()} <= {flag for option in serve.params for flag in option.opts}


async def test_a_server_that_stood_still_does_nothing_by_rules_that_were_replaced(
    postgres: PostgresServer, namespace: str
) -> None:
    async with opened(postgres, namespace) as old:
        rollout = await old.enqueue_rollout({})
        await stand_still(postgres, old)
        async with opened(postgres, namespace, strict=True):
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="--strict is off here, and on there"):
                    await old.enqueue_rollout({})
                with pytest.raises(StoreUnavailableError, match="--strict"):
                    await old.get_rollout_by_id(rollout.rollout_id)
                await old.engine.wait_for_availability(False)
        await old.enqueue_rollout({})  # the other one is gone
        assert old.engine.available
        assert len((await old.query_rollouts()).items) == 2


async def test_a_server_that_stood_still_goes_on_by_the_same_rules(postgres: PostgresServer, namespace: str) -> None:
    async with opened(postgres, namespace) as old:
        await stand_still(postgres, old)
        async with opened(postgres, namespace) as other:
            await old.enqueue_rollout({})
            assert await other.dequeue_rollout() is not None
            await execute(postgres, f"DELETE FROM {old.schema}.servers")
            connection = await asyncpg.connect(postgres.dsn())
            for store in (old, other):
                await store._backend.membership.beat(connection)
            await connection.close()
            assert len(await execute(postgres, f"SELECT FROM {old.schema}.servers")) == 2


async def test_rules_of_a_newer_version_are_refused(postgres: PostgresServer, namespace: str) -> None:
    async with opened(postgres, namespace) as store:
        await store._backend._follower.stop()
        await execute(postgres, f"""UPDATE {store.schema}.servers SET rules = '{{"moods": true}}'""")
        with pytest.raises(StoreUnavailableError, match="moods is off here, and on there"):
            await PostgresEngineStore.open(postgres.dsn(), namespace=namespace)
        await execute(
            postgres,
            f"""UPDATE {store.schema}.servers SET rules =
                '{{"moods": true, "replay_window_seconds": 1, "replay_entries_max": 1}}'""",
        )
        with pytest.raises(UnsupportedError, match="moods"):
            await PostgresEngineStore.open(postgres.dsn(), namespace=namespace, adopt_rules=True)


OLD = {path.stem: path.read_text() for path in sorted(DATA.glob("postgres_*.sql"))}


async def test_there_is_a_database_of_each_format_before_this_one() -> None:
    assert list(OLD) == [f"postgres_{number}" for number in sorted(migrations())[:-1]]


@pytest.mark.parametrize("old", OLD)
async def test_a_database_of_an_older_format_opens_and_life_goes_on(
    postgres: PostgresServer, namespace: str, old: str
) -> None:
    await execute_script(postgres, OLD[old].replace("lightning_store_default", f"lightning_store_{namespace}"))
    async with opened(postgres, namespace, clock=FakeClock(WRITTEN_UNTIL)) as store:
        await look(store)
    async with opened(postgres, f"{namespace}_new") as made:
        assert await tables(postgres, store.schema) == await tables(postgres, made.schema)


async def test_a_format_that_living_servers_do_not_know_waits_until_they_are_gone(
    postgres: PostgresServer, namespace: str
) -> None:
    schema = f"lightning_store_{namespace}"
    await execute_script(postgres, OLD["postgres_2"].replace("lightning_store_default", schema))
    now = "extract(epoch FROM clock_timestamp())"
    await execute(postgres, f"INSERT INTO {schema}.servers VALUES ('a', 'process 1 on node', '{{}}', {now} - 10)")
    message = f"{namespace} has format 2, and is served by process 1 on node, which knows no newer one: stop all"
    with pytest.raises(StoreUnavailableError, match=message) as refused:
        await PostgresEngineStore.open(postgres.dsn(), namespace=namespace)
    assert exit_code_of(refused.value) is ExitCode.UNAVAILABLE
    await execute(postgres, f"UPDATE {schema}.servers SET seen_at = seen_at - 600")
    async with opened(postgres, namespace, clock=FakeClock(WRITTEN_UNTIL)) as store:
        await look(store)
        former = re.search(r"INSERT INTO \S+\.log VALUES \(.*\);", OLD["postgres_2"])  # by a server that stood still
        assert former is not None
        written = former[0].replace("lightning_store_default", schema).replace("log VALUES (", "log VALUES (1000000 + ")
        with pytest.raises(asyncpg.NotNullViolationError):
            await execute(postgres, written)


async def tables(postgres: PostgresServer, schema: str) -> Any:
    return await execute(
        postgres,
        f"""SELECT table_name, column_name, data_type, is_nullable, collation_name FROM information_schema.columns
            WHERE table_schema = '{schema}' UNION ALL
            SELECT tablename, replace(indexdef, '{schema}', ''), '', '', '' FROM pg_indexes
            WHERE schemaname = '{schema}' ORDER BY 1, 2""",
    )


async def execute_script(postgres: PostgresServer, script: str) -> None:
    connection = await asyncpg.connect(postgres.dsn())
    try:
        await connection.execute(script)
    finally:
        await connection.close()
