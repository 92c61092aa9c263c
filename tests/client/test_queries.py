"""Results that one message cannot hold."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from lightning_store import (
    LLM,
    InMemoryLightningStore,
    InternalError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.testing.contract.base import make_span

KINDS = ["rollouts", "attempts", "spans", "resources", "workers"]
ROWS = 12


async def fill(store):
    rollouts = [await store.enqueue_rollout({"number": number, "text": "x" * 100}) for number in range(ROWS)]
    for number in range(ROWS):
        attempted = await store.start_attempt(rollouts[0].rollout_id, worker_id=f"worker-{number}")
        await store.add_span(make_span(attempted, number + 1))
        await store.add_resources({"llm": LLM(endpoint="http://localhost", model=f"model-{number}")})
    return rollouts[0].rollout_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "query", [{}, {"limit": 7, "offset": 2}, {"sort_order": "desc"}, {"offset": 100}, {"limit": 0}]
)
@pytest.mark.parametrize("limits", [{"page_rows_max": 5}, {"page_bytes_max": 300}, {"page_bytes_max": 1}])
def test_the_result_is_whole_whatever_fits_into_a_message(make_rig, kind, query, limits):
    store = InMemoryLightningStore(clock=FakeClock())
    rig = make_rig(store, **limits)

    async def scenario():
        rollout_id = await fill(store)
        ids = [rollout_id] if kind in {"attempts", "spans"} else []
        expected = await getattr(store, f"query_{kind}")(*ids, **query)
        assert await getattr(rig.client(), f"query_{kind}")(*ids, **query) == expected

    asyncio.run(scenario())
    unary = f"List{kind.capitalize()}"
    assert rig.proxy.order() in ([unary], [unary, "StreamQuery"])
    if query in ({}, {"sort_order": "desc"}):
        assert rig.proxy.order() == [unary, "StreamQuery"]


def test_one_page_needs_one_call(rig):
    async def scenario():
        await fill(rig.store)
        assert len(await rig.client().query_rollouts()) == ROWS

    asyncio.run(scenario())
    assert rig.proxy.order() == ["ListRollouts"]


def test_a_stream_that_is_cancelled_leaves_the_client_usable(make_rig):
    rig = make_rig(page_rows_max=1)

    async def scenario():
        await fill(rig.store)
        client = rig.client()
        for number in range(5):
            query = asyncio.create_task(client.query_rollouts())
            await rig.proxy.until_sent("StreamQuery", number + 1)
            query.cancel()
            await asyncio.wait([query], timeout=SAFETY_SECONDS)
            assert query.done()  # the result may have been there already
        assert len(await client.query_rollouts()) == ROWS

    asyncio.run(scenario())


# --- How long a query may take ---------------------------------------------------------------------------------------


@pytest.fixture
def falling_silent(make_rig, monkeypatch):
    """``falling_silent(messages)``: a rig whose streams end in silence after so many messages."""
    over = threading.Event()

    def make(messages):
        rig = make_rig(page_rows_max=1)
        stream = rig.proxy._stream

        def silent(path, body, context):
            yield from itertools.islice(stream(path, body, context), messages)
            over.wait(SAFETY_SECONDS)

        monkeypatch.setattr(rig.proxy, "_stream", silent)
        return rig

    yield make
    over.set()


@pytest.mark.parametrize("messages", [0, 1, 5])
def test_a_stream_that_falls_silent_is_a_timeout(falling_silent, messages):
    rig = falling_silent(messages)

    async def scenario():
        await fill(rig.store)
        with pytest.raises(StoreTimeoutError, match="0.2 s"):
            await asyncio.wait_for(rig.client(timeout=0.2, retry_delays=()).query_rollouts(), SAFETY_SECONDS)

    asyncio.run(scenario())


def test_a_stream_may_take_longer_than_the_timeout_while_it_goes_on(make_rig, monkeypatch):
    rig = make_rig(page_rows_max=1)

    def a_second_later():
        rig.clock.time += 1.0
        return rig.clock.time

    async def scenario():
        await fill(rig.store)
        begun = rig.clock.time
        monkeypatch.setattr(rig.clock, "monotonic", a_second_later)
        assert len(await rig.client(timeout=8.0, retry_delays=()).query_rollouts()) == ROWS
        assert rig.clock.time - begun > 2 * 8.0

    asyncio.run(scenario())
    [stream] = rig.proxy.calls("StreamQuery")
    assert 200.0 < stream.seconds_left <= 300.0


def test_attempts_of_a_stream_share_the_timeout(make_rig, broken):
    rig = make_rig(page_rows_max=1)
    rig.proxy.breaks("StreamQuery", *[broken()] * 10)

    async def scenario():
        await fill(rig.store)
        with pytest.raises(StoreUnavailableError):
            await rig.client(timeout=10.0, retry_delays=[3.0] * 10, health_retry_delays=()).query_rollouts()

    asyncio.run(scenario())
    assert sum(rig.clock.slept) == pytest.approx(10.0)


def test_a_stream_without_a_message_is_a_failure_of_the_server(make_rig, monkeypatch):
    rig = make_rig(page_rows_max=1)
    monkeypatch.setattr(rig.proxy, "_stream", lambda path, body, context: iter(()))

    async def scenario():
        await fill(rig.store)
        with pytest.raises(InternalError, match="StreamQuery"):
            await rig.client().query_rollouts()

    asyncio.run(scenario())


def test_the_names_of_old_still_count(rig):
    async def scenario():
        first, second = [await rig.store.enqueue_rollout(number) for number in range(2)]
        await rig.store.update_rollout(first.rollout_id, status="cancelled")
        client = rig.client()
        assert [one.rollout_id for one in await client.query_rollouts(status=["queuing"])] == [second.rollout_id]
        assert [one.rollout_id for one in await client.query_rollouts(rollout_ids=[first.rollout_id])] == [
            first.rollout_id
        ]
        both = await client.query_rollouts(rollout_ids=[first.rollout_id], rollout_id_in=[second.rollout_id])
        assert [one.rollout_id for one in both] == [second.rollout_id]

    asyncio.run(scenario())
