"""A database that is slow, that ends transactions for the sake of others, and connections that die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import asyncpg
import grpc.aio
import pytest
import pytest_asyncio
from asyncpg import Connection
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lightning_store import CompletedRollout, StoreUnavailableError
from lightning_store.backends.postgres import following, storing
from lightning_store.backends.postgres.connections import APPLICATION, Connections, Settings
from lightning_store.engine.executor import TRIES_MAX
from lightning_store.engine.idempotency import request_scope
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store.wire.methods import SERVICE
from lightning_store_client import LightningStoreClient
from lightning_store_server.config import ServerConfig
from tests.postgres.proxy import PostgresProxy, proxy_to
from tests.postgres.serving import LIMIT_SECONDS, PATIENT, a_span, eventually, running, servers, serving
from tests.server.test_http_side import fetch
from tools.postgres_server import PostgresServer

pytestmark = pytest.mark.asyncio

HOLDS_LOCK = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted"
WAITS_FOR_LOCK = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest_asyncio.fixture(loop_scope="function")
async def session(postgres: PostgresServer) -> AsyncIterator[Connection]:
    """That of somebody else on the database, who is never the victim of a deadlock."""
    connection: Connection = await asyncpg.connect(postgres.dsn())
    await connection.execute("SET deadlock_timeout = '1h'")
    try:
        yield connection
    finally:
        await connection.close()


# --- Slow ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows other servers replaces a connection that is silent for less long than answers take here."""
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.05)


async def test_a_slow_database_makes_calls_slow_and_nothing_else(
    postgres: PostgresServer, namespace: str, impatient: None
) -> None:
    async with (
        proxy_to(postgres) as proxy,
        servers(proxy.dsn, namespace, 1) as (slow,),
        servers(postgres.dsn(), namespace, 1) as (other,),
        serving(slow) as endpoint,
        LightningStoreClient(endpoint) as client,
        asyncio.timeout(LIMIT_SECONDS),
    ):
        proxy.delay_seconds = 0.1
        away = asyncio.create_task(slow.engine.wait_for_availability(False))
        claiming = asyncio.create_task(client.dequeue_rollout(worker_id="w", max_wait=LIMIT_SECONDS))
        feed = cast(AsyncGenerator[CompletedRollout, None], slow.watch_rollouts())
        followed = asyncio.ensure_future(anext(feed))
        rollout = await other.enqueue_rollout({"a": 1})
        claimed = await claiming
        assert claimed is not None
        assert claimed.rollout_id == rollout.rollout_id
        await client.add_span(a_span(rollout.rollout_id, claimed.attempt.attempt_id))
        await other.update_attempt(rollout.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        assert (await followed).rollout.rollout_id == rollout.rollout_id
        await feed.aclose()

        again = []
        for _ in range(2):
            with request_scope("id-1", "", repeated=True):
                again.append((await slow.enqueue_rollout({"a": 2})).rollout_id)
        assert again[0] == again[1]
        assert len((await client.query_rollouts()).items) == 2
        assert await health_of(endpoint) == "SERVING"
        assert not away.done()
        away.cancel()


async def test_what_is_too_slow_fails_and_may_be_made_again(
    postgres: PostgresServer, namespace: str, session: Connection
) -> None:
    """Somebody holds a table, so that statements wait; what serves is fine but for that."""
    async with (
        servers(f"{postgres.dsn()}&lock_timeout=1000", namespace, 1, statement_timeout=2) as (store,),
        servers(postgres.dsn(), namespace, 1) as (other,),
        serving(store) as endpoint,
        LightningStoreClient(endpoint, timeout=LIMIT_SECONDS) as client,
    ):
        async with session.transaction():
            await session.execute(f"LOCK TABLE {store.schema}.rollouts")
            with request_scope("id-1", "", repeated=True), pytest.raises(StoreUnavailableError, match="slow.*57014"):
                await store.enqueue_rollout({"a": 1})
            with pytest.raises(StoreUnavailableError, match="slow.*55P03"):
                await store.query_rollouts()
            patient = asyncio.create_task(client.enqueue_rollout({"a": 2}))
        with request_scope("id-1", "", repeated=True):
            first = await other.enqueue_rollout({"a": 1})
        kept = {first.rollout_id, (await patient).rollout_id}
        assert {one.rollout_id for one in (await other.query_rollouts()).items} == kept


async def test_a_database_that_hangs(postgres: PostgresServer, namespace: str) -> None:
    async with (
        proxy_to(postgres) as proxy,
        servers(proxy.dsn, namespace, 1, statement_timeout=3, lock_timeout=4) as (store,),
        running(store, ServerConfig(port=0, http_port=0)) as server,
        asyncio.timeout(LIMIT_SECONDS),
    ):

        async def said() -> tuple[str, int]:
            status, _, _ = await asyncio.to_thread(fetch, f"http://localhost:{server.bound_http_port}/readyz")
            return await health_of(f"localhost:{server.bound_port}"), status

        async def is_away() -> bool:
            return await said() == ("NOT_SERVING", 503)

        async def is_back() -> bool:
            return await said() == ("SERVING", 200)

        await eventually(is_back)
        proxy.open.clear()
        with request_scope("id-1", "", repeated=True), pytest.raises(StoreUnavailableError):
            await store.enqueue_rollout({"a": 1})
        await eventually(is_away)

        proxy.open.set()
        await eventually(is_back)
        with request_scope("id-1", "", repeated=True):
            rollout = await store.enqueue_rollout({"a": 1})
        assert [one.rollout_id for one in (await store.query_rollouts()).items] == [rollout.rollout_id]


async def health_of(endpoint: str) -> str:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        found = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)


# --- Conflicts -------------------------------------------------------------------------------------------------------


async def add_trigger(session: Connection, schema: str, when: str, body: str, options: str = "") -> None:
    """Run ``body`` at a moment of each transaction, once. ``tries`` counts the transactions, also those that fail."""
    await session.execute(
        f"CREATE SEQUENCE {schema}.tries;"
        f" CREATE FUNCTION {schema}.meddle() RETURNS trigger LANGUAGE plpgsql AS $$"
        f" DECLARE try bigint := nextval('{schema}.tries'); BEGIN {body} RETURN NULL; END $$;"
        f" CREATE {when} {options} EXECUTE FUNCTION {schema}.meddle()"
    )


async def tries(session: Connection, schema: str) -> int:
    return int(cast(Any, await session.fetchval(f"SELECT last_value FROM {schema}.tries")))


@pytest.mark.parametrize("at", ["a statement", "COMMIT"])
@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_group_that_the_database_gives_up_is_done_again_once(
    postgres: PostgresServer, namespace: str, session: Connection, at: str, state: str
) -> None:
    async with servers(postgres.dsn(), namespace, 1) as (store,):
        await store.enqueue_rollout({"claimed": True})
        claimed = await store.dequeue_rollout(worker_id="w")
        assert claimed is not None
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        deferred = "DEFERRABLE INITIALLY DEFERRED" if at == "COMMIT" else ""
        await add_trigger(
            session,
            store.schema,
            f"CONSTRAINT TRIGGER meddles AFTER INSERT ON {store.schema}.log {deferred} FOR EACH ROW",
            f"IF try <= 2 THEN RAISE EXCEPTION 'given up' USING ERRCODE = '{state}'; END IF;",
        )
        first, second, span, *_ = await asyncio.gather(
            store.enqueue_rollout({"a": 1}),
            store.enqueue_rollout({"a": 2}),
            store.add_span(a_span(rollout_id, attempt_id)),
            store.update_worker("w", {"gpu": 1.0}),
            store.update_attempt(rollout_id, attempt_id, status="succeeded"),
        )
        assert await tries(session, store.schema) == 3  # all calls were in each of them
        assert span is not None
        stored = (await store.query_rollouts()).items
        assert {one.rollout_id for one in stored} == {rollout_id, first.rollout_id, second.rollout_id}
        assert [one.status for one in stored if one.rollout_id == rollout_id] == ["succeeded"]
        assert [one.span_id for one in (await store.query_spans(rollout_id)).items] == [span.span_id]
        assert [claim.rollout_id for claim in await store.dequeue_many_rollouts(limit=5)] == [
            first.rollout_id,
            second.rollout_id,
        ]


async def test_a_group_that_the_database_gives_up_for_ever_fails_in_the_end(
    postgres: PostgresServer, namespace: str, session: Connection
) -> None:
    async with servers(postgres.dsn(), namespace, 1) as (store,):
        await add_trigger(
            session,
            store.schema,
            f"TRIGGER meddles AFTER INSERT ON {store.schema}.log FOR EACH ROW",
            "RAISE EXCEPTION 'given up' USING ERRCODE = '40001';",
        )
        with request_scope("id-1", "", repeated=True), pytest.raises(StoreUnavailableError, match="given up"):
            await store.enqueue_rollout({})
        assert await tries(session, store.schema) == TRIES_MAX
        assert (await store.query_rollouts()).items == []
        await session.execute(f"DROP TRIGGER meddles ON {store.schema}.log")
        with request_scope("id-1", "", repeated=True):
            rollout = await store.enqueue_rollout({})
        assert [one.rollout_id for one in (await store.query_rollouts()).items] == [rollout.rollout_id]


async def test_the_victim_of_a_deadlock_is_done_again(
    postgres: PostgresServer, namespace: str, session: Connection
) -> None:
    """Somebody holds a row that a server wants, and wants the lock that the server holds."""
    dsn = f"{postgres.dsn()}&deadlock_timeout=10"
    async with servers(dsn, namespace, 1) as (store,), asyncio.timeout(LIMIT_SECONDS):
        rollout = await store.enqueue_rollout({})
        await add_trigger(
            session,
            store.schema,
            f"TRIGGER meddles BEFORE UPDATE ON {store.schema}.rollouts FOR EACH STATEMENT",
            f"WHILE try = 1 AND NOT ({WAITS_FOR_LOCK}) LOOP PERFORM pg_sleep(0.01); END LOOP;",
        )
        async with session.transaction():
            await session.execute(
                f"SELECT 1 FROM {store.schema}.rollouts WHERE rollout_id = $1 FOR UPDATE", rollout.rollout_id
            )
            updating = asyncio.create_task(store.update_rollout(rollout.rollout_id, metadata={"a": 1}))

            async def holds_lock() -> bool:
                return bool(await session.fetchval(HOLDS_LOCK))

            await eventually(holds_lock)
            await session.execute(f"SELECT pg_advisory_xact_lock(hashtextextended('{store.schema}', 0))")
        assert (await updating).metadata == {"a": 1}
        assert await tries(session, store.schema) == 2


async def test_a_read_that_the_database_gives_up_may_be_made_again(
    postgres: PostgresServer, namespace: str, session: Connection
) -> None:
    async with (
        servers(postgres.dsn(), namespace, 1) as (store,),
        serving(store) as endpoint,
        LightningStoreClient(endpoint, timeout=LIMIT_SECONDS) as client,
    ):
        rollout = await client.enqueue_rollout({})
        schema = store.schema
        function = f"CREATE OR REPLACE FUNCTION {schema}.meddle() RETURNS boolean LANGUAGE plpgsql AS"
        await session.execute(
            f"{function} $$ BEGIN RAISE EXCEPTION 'given up' USING ERRCODE = '40P01'; END $$;"
            f" ALTER TABLE {schema}.payloads RENAME TO kept;"
            f" CREATE VIEW {schema}.payloads AS SELECT * FROM {schema}.kept WHERE {schema}.meddle()"
        )
        with pytest.raises(StoreUnavailableError, match="given up"):
            await store.get_rollout_by_id(rollout.rollout_id)
        reading = asyncio.create_task(client.get_rollout_by_id(rollout.rollout_id))
        await asyncio.sleep(0)
        await session.execute(f"{function} $$ BEGIN RETURN true; END $$")
        found = await reading
        assert found is not None
        assert found.rollout_id == rollout.rollout_id


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
async def test_a_database_with_another_isolation_by_default(
    postgres: PostgresServer, namespace: str, level: str
) -> None:
    dsn = f"{postgres.dsn()}&default_transaction_isolation={level.replace(' ', '%20')}"
    async with servers(dsn, namespace, 5) as stores:
        found = await asyncio.gather(*(stores[number % 5].enqueue_rollout(number) for number in range(20)))
        assert len({one.rollout_id for one in found}) == len((await stores[0].query_rollouts()).items) == 20


# --- Connections that die --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["silent", "terminated"])
async def test_what_waits_is_woken_when_the_connection_that_listens_dies(
    postgres: PostgresServer, namespace: str, session: Connection, impatient: None, way: str
) -> None:
    async with (
        proxy_to(postgres) as proxy,
        servers(proxy.dsn, namespace, 1, statement_timeout=3600) as (one,),
        servers(postgres.dsn(), namespace, 1) as (other,),
        asyncio.timeout(LIMIT_SECONDS),
    ):
        away = asyncio.create_task(one.engine.wait_for_availability(False))

        async def listens() -> bool:
            return bool(proxy.listeners - proxy.silent)

        for number in range(2):
            await eventually(listens)
            first = await other.enqueue_rollout({"number": number})
            claimed = await other.dequeue_rollout(worker_id="w")
            assert claimed is not None
            feed = cast(AsyncGenerator[CompletedRollout, None], one.watch_rollouts([first.rollout_id]))
            waits = [
                asyncio.ensure_future(one.dequeue_rollout(worker_id="v", max_wait=LIMIT_SECONDS)),
                asyncio.ensure_future(one.wait_for_rollouts([first.rollout_id], timeout=LIMIT_SECONDS)),
                asyncio.ensure_future(anext(feed)),
            ]
            await kill_listener(way, proxy, session, one)
            second = await other.enqueue_rollout({})
            await other.update_attempt(first.rollout_id, "latest", status="succeeded")
            claim, ended, completion = await asyncio.gather(*waits)
            assert claim.rollout_id == second.rollout_id
            assert [found.rollout_id for found in ended] == [first.rollout_id]
            assert completion.rollout.rollout_id == first.rollout_id
            await feed.aclose()
        await eventually(listens)  # a busy machine may be too slow for the connection that took its place, too
        assert not away.done()
        away.cancel()


async def test_a_connection_that_comes_back_while_the_store_closes_is_closed(
    postgres: PostgresServer, namespace: str
) -> None:
    settings = Settings(postgres.dsn(), namespace, statement_cache_size=0, **PATIENT)
    connections = Connections(settings, 1, settings.begin_snapshot)
    connection = await connections.begin()
    ending = asyncio.create_task(connections.end(connection))
    await asyncio.sleep(0)  # its ROLLBACK is under way
    await connections.close()
    await ending
    assert connection.is_closed()


async def kill_listener(way: str, proxy: PostgresProxy, session: Connection, store: PostgresEngineStore) -> None:
    if way == "silent":
        proxy.silent |= proxy.listeners
        return
    killed = await session.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND query ~ $2",
        APPLICATION,
        f"LISTEN.*{store.schema}|{store.schema}.log|pg_notify",
    )
    assert killed  # of either server


async def test_a_connection_that_the_database_ends_while_a_statement_begins(
    postgres: PostgresServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg says so by an error that is of no other kind."""
    execute = storing.Batch.execute
    ended = [asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")]

    async def end_once(batch: storing.Batch, connection: Connection) -> None:
        if ended:
            raise ended.pop()
        await execute(batch, connection)

    async with servers(postgres.dsn(), namespace, 1) as (store,):
        await store.enqueue_rollout(1)
        monkeypatch.setattr(storing.Batch, "execute", end_once)
        with pytest.raises(StoreUnavailableError, match="the database cannot be reached"):
            await store.enqueue_rollout(2)
        await store.enqueue_rollout(3)
        assert [one.input for one in (await store.query_rollouts()).items] == [1, 3]
