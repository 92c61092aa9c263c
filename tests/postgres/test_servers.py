"""Several servers on one database, and what fails beneath them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, cast

import asyncpg
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lightning_store import CompletedRollout, RolloutConfig, StoreUnavailableError
from lightning_store.backends.postgres import reading
from lightning_store.backends.postgres.following import Follower
from lightning_store.engine.idempotency import request_scope
from lightning_store.errors import StoreError, UnsupportedError
from lightning_store.postgres_store import PostgresEngineStore
from lightning_store.queries import SpanQuery
from lightning_store.testing.linearizability import StoreModel, check_history
from lightning_store.wire.methods import SERVICE
from lightning_store_client import LightningStoreClient
from tests.chaos.test_linearizability import CUT
from tests.postgres.bouncer import bouncer_to
from tests.postgres.proxy import proxy_to
from tests.postgres.serving import LIMIT_SECONDS, a_span, calls_over_a_flaky_wire, eventually, servers, serving
from tools.postgres_server import PostgresServer

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["notified", "polling"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a server learns what another one did."""
    if request.param == "polling":
        monkeypatch.setattr(Follower, "notify", lambda self: None)


async def test_calls_on_three_servers_are_as_good_as_one_after_the_other(
    postgres: PostgresServer, namespace: str
) -> None:
    for seed in range(3):
        async with (
            servers(postgres.dsn(), f"{namespace}_{seed}", 3) as stores,
            calls_over_a_flaky_wire(stores, seed, CUT) as history,
        ):
            verdict = check_history(history.operations, StoreModel())
        assert verdict, verdict.explanation


async def test_waits_end_by_what_another_server_does(postgres: PostgresServer, namespace: str, way: None) -> None:
    async with servers(postgres.dsn(), namespace, 2) as (one, other), asyncio.timeout(LIMIT_SECONDS):
        claiming = asyncio.create_task(one.dequeue_rollout(worker_id="w", max_wait=LIMIT_SECONDS))
        rollout = await other.enqueue_rollout({"a": 1})
        claimed = await claiming
        assert claimed is not None
        assert claimed.rollout_id == rollout.rollout_id

        waiting = asyncio.create_task(one.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=LIMIT_SECONDS))
        feed = cast(AsyncGenerator[CompletedRollout, None], one.watch_rollouts())
        following = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0)
        await other.update_attempt(rollout.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        assert [found.status for found in await waiting] == ["succeeded"]
        completion = await following
        assert completion.rollout.rollout_id == rollout.rollout_id
        await feed.aclose()

        second = await one.enqueue_rollout({"a": 2})
        await one.update_rollout(second.rollout_id, status="cancelled")
        going_on = cast(AsyncGenerator[CompletedRollout, None], other.watch_rollouts(after=completion.cursor))
        assert (await anext(going_on)).rollout.rollout_id == second.rollout_id
        await going_on.aclose()


async def test_many_claims_on_three_servers_never_double(postgres: PostgresServer, namespace: str) -> None:
    async with servers(postgres.dsn(), namespace, 3) as stores:
        ids = {(await stores[number % 3].enqueue_rollout(number)).rollout_id for number in range(90)}

        async def claim(store: PostgresEngineStore, worker_id: str) -> list[str]:
            claimed = []
            while (found := await store.dequeue_rollout(worker_id=worker_id)) is not None:
                claimed.append(found.rollout_id)
            return claimed

        found = await asyncio.gather(*(claim(store, f"w{n}-{m}") for n, store in enumerate(stores) for m in range(4)))
        claimed = [rollout_id for some in found for rollout_id in some]
        assert sorted(claimed) == sorted(ids)


async def test_a_request_is_honoured_by_every_server(postgres: PostgresServer, namespace: str) -> None:
    async with servers(postgres.dsn(), namespace, 2) as (one, other):
        with request_scope("id-1", "", repeated=True):
            first = await one.enqueue_rollout({"a": 1})
        with request_scope("id-1", "", repeated=True):
            again = await other.enqueue_rollout({"a": 1})
        assert first.rollout_id == again.rollout_id
        assert len((await other.query_rollouts()).items) == 1


async def test_a_deadline_is_acted_on_when_the_server_that_set_it_is_gone(
    postgres: PostgresServer, namespace: str
) -> None:
    async with servers(postgres.dsn(), namespace, 2) as (one, other), asyncio.timeout(LIMIT_SECONDS):
        await one.enqueue_rollout({}, config=RolloutConfig(timeout_seconds=0.3))
        feed = cast(AsyncGenerator[CompletedRollout, None], other.watch_rollouts())
        following = asyncio.ensure_future(anext(feed))
        claimed = await one.dequeue_rollout(worker_id="w")
        assert claimed is not None
        await one.aclose()
        completion = await following
        assert (completion.rollout.rollout_id, completion.rollout.status) == (claimed.rollout_id, "failed")
        await feed.aclose()


async def test_a_machine_whose_clock_is_wrong(
    postgres: PostgresServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time = time.time  # noqa: TID251
    monkeypatch.setattr(time, "time", lambda: true_time() + 3600)
    async with servers(postgres.dsn(), namespace, 1) as (store,):
        rollout = await store.enqueue_rollout({})
        assert abs(rollout.start_time - true_time()) < 60


async def test_a_newer_format_is_refused(postgres: PostgresServer, namespace: str) -> None:
    async with servers(postgres.dsn(), namespace, 5) as stores:
        assert len({store.engine.store_id for store in stores}) == 1
        connection = await asyncpg.connect(postgres.dsn())
        await connection.execute(f"INSERT INTO {stores[0].schema}.format VALUES (999)")
        await connection.close()
    with pytest.raises(UnsupportedError, match="999"):
        await PostgresEngineStore.open(postgres.dsn(), namespace=namespace)


async def test_namespaces_do_not_see_each_other(postgres: PostgresServer, namespace: str) -> None:
    async with (
        servers(postgres.dsn(), f"{namespace}_a", 1) as (one,),
        servers(postgres.dsn(), f"{namespace}_b", 1) as (other,),
    ):
        await one.enqueue_rollout({})
        assert await other.dequeue_rollout() is None
        assert await one.dequeue_rollout() is not None


async def test_the_answer_to_a_commit_is_lost(postgres: PostgresServer, namespace: str) -> None:
    async with proxy_to(postgres) as proxy, servers(proxy.dsn, namespace, 1) as (store,):
        for _ in range(3):
            proxy.lost_commits = 1
            await store.enqueue_rollout({})
        assert proxy.lost_commits == 0
        assert len((await store.query_rollouts()).items) == 3


async def test_a_group_that_records_more_replies_than_are_kept_is_done_once(
    postgres: PostgresServer, namespace: str
) -> None:
    async with proxy_to(postgres) as proxy, servers(proxy.dsn, namespace, 1, replay_entries_max=1) as (store,):
        proxy.lost_commits = 1
        await asyncio.gather(*(store.enqueue_rollout({}) for _ in range(20)))
        assert proxy.lost_commits == 0
        assert len((await store.query_rollouts()).items) == 20


async def test_a_read_that_fails_fails_no_other_of_its_snapshot(
    postgres: PostgresServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def divide(connection: asyncpg.Connection, *_: Any) -> None:
        await connection.execute("SELECT 1 / 0")

    async with servers(postgres.dsn(), namespace, 1) as (store,):
        queued = [(await store.enqueue_rollout({})).rollout_id for _ in range(3)]
        monkeypatch.setattr(reading, "query_many_spans", divide)
        _, failed, *found = await asyncio.gather(
            store.get_rollout_by_id(queued[0]),  # the others are ready while it is read
            store.query_many_spans(queued[:1]),
            *map(store.query_attempts, queued),
            return_exceptions=True,
        )
        assert isinstance(failed, StoreError)
        assert [len(cast(Sequence[Any], one)) for one in found] == [0, 0, 0]


async def test_a_read_that_is_cancelled_before_it_begins_keeps_no_connection(
    postgres: PostgresServer, namespace: str
) -> None:
    async with servers(postgres.dsn(), namespace, 1, connections=3) as (store,):
        for turns in range(4):
            async with store._backend.snapshot() as snapshot:
                reading_spans = asyncio.create_task(snapshot.query_spans(SpanQuery(rollout_id="ro")))
                for _ in range(turns):
                    await asyncio.sleep(0)
                reading_spans.cancel()
            async with asyncio.timeout(LIMIT_SECONDS):
                assert await store.get_rollout_by_id("ro") is None


async def test_connections_are_used_up(postgres: PostgresServer, namespace: str) -> None:
    """What cannot be done says so, and what was begun goes on."""
    connection = await asyncpg.connect(postgres.dsn())
    role = f"few_{namespace}"
    try:
        await connection.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 3")
        await connection.execute(f"GRANT CREATE ON DATABASE postgres TO {role}")
        dsn = postgres.dsn().replace(postgres.user, role, 1)
        async with servers(dsn, namespace, 1, connections=10) as (store,):
            await store.enqueue_rollout({})
            async with asyncio.timeout(LIMIT_SECONDS):
                found = await asyncio.gather(*(store.query_rollouts() for _ in range(40)), return_exceptions=True)
            refused = [one for one in found if isinstance(one, BaseException)]
            assert {type(one) for one in refused} <= {StoreUnavailableError}
            assert 0 < len(refused) < 40
            assert "too many connections" in str(refused[0])
            await store.enqueue_rollout({})
            assert len((await store.query_rollouts()).items) == 2
        await connection.execute(f"DROP OWNED BY {role} CASCADE")
        await connection.execute(f"DROP ROLE {role}")
    finally:
        await connection.close()


async def test_a_pooler_gives_each_transaction_another_connection(postgres: PostgresServer, namespace: str) -> None:
    with bouncer_to(postgres) as dsn:

        async def is_listening() -> bool:
            try:
                await (await asyncpg.connect(dsn, statement_cache_size=0)).close()
            except OSError:
                return False
            return True

        await eventually(is_listening)
        async with servers(dsn, namespace, 2, statement_cache_size=0) as (one, other):
            waiting = [asyncio.create_task(one.dequeue_rollout(worker_id=f"w{n}", max_wait=60)) for n in range(8)]
            feed = cast(AsyncGenerator[CompletedRollout, None], one.watch_rollouts())
            first = asyncio.ensure_future(anext(feed))
            queued = {(await other.enqueue_rollout(number)).rollout_id for number in range(8)}
            async with asyncio.timeout(LIMIT_SECONDS):
                claims = await asyncio.gather(*waiting)
            assert {claim.rollout_id for claim in claims} == queued
            await asyncio.gather(
                *(other.update_attempt(claim.rollout_id, "latest", status="succeeded") for claim in claims)
            )
            async with asyncio.timeout(LIMIT_SECONDS):
                assert (await first).rollout.rollout_id in queued
            await feed.aclose()
            assert len(await one.wait_for_rollouts(list(queued), timeout=LIMIT_SECONDS)) == 8


async def test_connections_are_terminated(postgres: PostgresServer, namespace: str) -> None:
    async with servers(postgres.dsn(), namespace, 1) as (store,):
        await store.enqueue_rollout({})
        connection = await asyncpg.connect(postgres.dsn())
        try:
            others = await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'lightning-store-grpc' AND pid <> pg_backend_pid()"
            )
            assert others
        finally:
            await connection.close()
        await store.enqueue_rollout({})
        assert len((await store.query_rollouts()).items) == 2


async def test_round_trips_do_not_depend_on_the_number_of_operations(postgres: PostgresServer, namespace: str) -> None:
    async with proxy_to(postgres) as proxy, servers(proxy.dsn, namespace, 1) as (store,):
        await store.enqueue_rollout({})
        claimed = [await store.dequeue_rollout(worker_id="w")]
        follower = store._backend._follower
        await follower.stop()  # its polls are not part of the calls

        async def syncs(calls: list[Awaitable[Any]]) -> tuple[int, list[Any]]:
            before = proxy.sent["S"]
            found = await asyncio.gather(*calls)
            return proxy.sent["S"] - before, found

        for n in (1, 50):
            for _ in range(2):  # statements are prepared the first time
                counts = {}
                counts["enqueue"], _ = await syncs([store.enqueue_rollout({}) for _ in range(n)])
                counts["claim"], claimed = await syncs([store.dequeue_rollout(worker_id=f"w{m}") for m in range(n)])
                counts["spans"], _ = await syncs(
                    [store.add_span(a_span(one.rollout_id, one.attempt.attempt_id)) for one in claimed]
                )
                counts["heartbeats"], _ = await syncs([store.update_worker(f"w{m}", {"a": 1}) for m in range(n)])
                counts["finish"], _ = await syncs(
                    [store.update_attempt(one.rollout_id, "latest", status="succeeded") for one in claimed]
                )
            limits = {"enqueue": 2, "claim": 4, "spans": 4, "heartbeats": 2, "finish": 4}
            assert all(counts[name] <= limit for name, limit in limits.items()), (n, counts)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_database_that_is_restarted(mode: str) -> None:
    server = PostgresServer(durable=True)
    try:
        server.start()
        store = await PostgresEngineStore.open(server.dsn(), statement_timeout=5)
        try:
            async with serving(store) as endpoint:
                await _restart(server, mode, store, endpoint)
        finally:
            await store.aclose()
    finally:
        server.close()


async def _restart(server: PostgresServer, mode: str, store: PostgresEngineStore, endpoint: str) -> None:
    async with LightningStoreClient(endpoint) as client, grpc.aio.insecure_channel(endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(service: str = SERVICE) -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest(service=service))).status)

        kept = [(await client.enqueue_rollout(number)).rollout_id for number in range(5)]
        assert await status() == health_pb2.HealthCheckResponse.SERVING
        await asyncio.to_thread(server.stop, mode)

        async def is_out() -> bool:
            return await status() == health_pb2.HealthCheckResponse.NOT_SERVING

        await eventually(is_out)
        with pytest.raises(StoreUnavailableError):
            await store.enqueue_rollout("lost")
        with pytest.raises(StoreUnavailableError):
            await store.get_rollout_by_id(kept[0])
        waiting = asyncio.create_task(client.enqueue_rollout("while it is away"))
        await asyncio.to_thread(server.start)

        async def is_back() -> bool:
            return await status() == health_pb2.HealthCheckResponse.SERVING

        await eventually(is_back)
        with contextlib.suppress(StoreUnavailableError):  # its time was over
            kept.append((await waiting).rollout_id)
        found = [one.rollout_id for one in (await client.query_rollouts()).items]
        assert sorted(found) == sorted(kept)
