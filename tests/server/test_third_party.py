"""A store of somebody else's behind the server: the public methods only, perhaps for one thread only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

import pytest

from lightning_store import AttemptedRollout, InMemoryLightningStore, LightningStore, LightningStoreThreaded
from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStoreCapabilities
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.attempts import RevivalContract
from lightning_store.testing.contract.base import make_span
from lightning_store.testing.contract.deletion import DeletedContract, DeletionContract
from lightning_store.testing.contract.feed import FeedContract
from lightning_store.testing.contract.queries import SpanQueriesContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.contract.resources import ResourcesContract
from lightning_store.testing.contract.spans import (
    AddingSpansContract,
    OtelSpansContract,
    ReadingSpansContract,
    SpanNumbersContract,
)
from lightning_store.testing.contract.waiting import WaitingContract
from lightning_store.testing.contract.waiting_for_any import WaitingForAnyContract
from lightning_store.v1 import server_pb2, span_pb2
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer
from lightning_store_server.record_store import records_of
from tests.new_spans import new_span


class OneThreadStore(ForwardingStore):
    """Must be called from one thread only, and fails if it is not."""

    def __init__(self, inner: LightningStore) -> None:
        self.inner = inner
        self.threads: set[int] = set()

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {**self.inner.capabilities, "thread_safe": False, "async_safe": False}

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.threads.add(threading.get_ident())
        assert len(self.threads) == 1, "called from several threads"
        return await getattr(self.inner, method)(*args, **kwargs)

    async def _forward_stream(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        async with aclosing(getattr(self.inner, method)(*args, **kwargs)) as items:
            async for item in items:
                self.threads.add(threading.get_ident())
                yield item
        assert len(self.threads) == 1, "called from several threads"


class TestServesAnyStore(
    QueueContract,
    RevivalContract,
    AddingSpansContract,
    SpanNumbersContract,
    OtelSpansContract,
    ReadingSpansContract,
    SpanQueriesContract,
    ResourcesContract,
    WaitingContract,
    WaitingForAnyContract,
    FeedContract,
    DeletionContract,
    DeletedContract,
):
    deviations: ClassVar[Mapping[str, str]] = {
        "test_f21_a_duplicate_takes_no_number": "the store numbers a span before it is asked to add it",
        "test_f21_unknown_ids_are_refused": "the store numbers a span before it is asked to add it",
        "test_x_feed_from_now_on": "its feeds do not tell where they began",
        "test_x_feed_from_now_on_goes_on_from_then": "its feeds do not tell where they began",
        "test_x_feed_of_some_from_now_on": "its feeds do not tell where they began",
    }

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        store = OneThreadStore(InMemoryLightningStore(clock=clock, **options))
        async with (
            LightningStoreServer(store, port=0) as server,
            LightningStoreClient(server.endpoint, clock=clock) as client,
        ):
            yield client


WRAPPERS = {"one-thread": OneThreadStore, "threaded": LightningStoreThreaded}


@pytest.fixture(params=WRAPPERS)
def wrapped(request, serve):
    """The server of a store that is in another one, and a rollout with an attempt."""
    inner = InMemoryLightningStore(clock=FakeClock())
    rollout = asyncio.run(inner.start_rollout("task"))
    return serve(WRAPPERS[request.param](inner)), inner, rollout


def message(rollout, number, **fields):
    """A span whose number the server is to allocate."""
    span = new_span(make_span(rollout, number, **fields))
    span.ClearField("sequence_id")
    return span


def kinds(reply):
    return [outcome.WhichOneof("outcome") for outcome in reply.outcomes]


def test_numbers_are_allocated_for_each_span(wrapped):
    served, inner, rollout = wrapped
    spans = [message(rollout, number) for number in (1, 2, 3)]
    reply = served.call("AddSpans", span_pb2.AddSpansRequest(request_id="id", spans=spans))
    assert [outcome.stored.sequence_id for outcome in reply.outcomes] == [1, 2, 3]
    stored = asyncio.run(inner.query_spans(rollout.rollout_id))
    assert [(span.span_id, span.sequence_id) for span in stored] == [(f"{n:016x}", n) for n in (1, 2, 3)]


def test_a_span_without_its_rollout_does_not_keep_the_others_out(wrapped):
    served, inner, rollout = wrapped
    spans = [message(rollout, 1), message(rollout, 2, rollout_id="ro-no"), message(rollout, 3)]
    reply = served.call("AddSpans", span_pb2.AddSpansRequest(request_id="id", spans=spans))
    assert kinds(reply) == ["stored", "rejected", "stored"]
    assert reply.outcomes[1].rejected.reason == "ROLLOUT_NOT_FOUND"
    assert asyncio.run(inner.query_spans(rollout.rollout_id)).total == 2


def test_outcomes_stand_in_the_order_of_the_spans(wrapped):
    served, _, rollout = wrapped
    first, last = (new_span(make_span(rollout, number)) for number in (4, 6))
    unknown = message(rollout, 5, attempt_id="at-no")
    malformed = span_pb2.NewSpan(document_json="{}")
    spans = [first, malformed, unknown, first, last]
    reply = served.call("AddSpans", span_pb2.AddSpansRequest(request_id="id", spans=spans))
    assert kinds(reply) == ["stored", "rejected", "rejected", "duplicate", "stored"]
    assert [outcome.rejected.reason for outcome in reply.outcomes[1:3]] == ["INVALID_ARGUMENT", "ATTEMPT_NOT_FOUND"]
    assert [outcome.stored.sequence_id for outcome in reply.outcomes] == [4, 0, 0, 0, 6]


def test_it_is_called_from_one_thread_though_its_owner_calls_it_too(serve):
    store = OneThreadStore(InMemoryLightningStore())
    served = serve(store)

    async def own_calls():
        for _ in range(20):
            await served.server.enqueue_rollout("task")

    owner = threading.Thread(target=asyncio.run, args=(own_calls(),))
    owner.start()
    for _ in range(20):
        served.call("GetStatistics", server_pb2.GetStatisticsRequest())
    owner.join()
    assert len(store.threads) == 1
    assert served.call("GetStatistics", server_pb2.GetStatisticsRequest()).total_rollouts == 20


def test_what_it_cannot_do_it_does_not_promise(serve):
    info = serve(OneThreadStore(InMemoryLightningStore())).call("GetServerInfo", server_pb2.GetServerInfoRequest())
    assert not info.strict
    assert info.replay_window.ToNanoseconds() == 0


def test_a_store_is_as_strict_on_a_thread_of_its_own(serve):
    info = serve(LightningStoreThreaded(InMemoryLightningStore(strict=True))).call(
        "GetServerInfo", server_pb2.GetServerInfoRequest()
    )
    assert info.strict
    assert info.replay_window.ToNanoseconds() > 0


OVERRIDDEN: dict[str, Callable[[LightningStoreClient, AttemptedRollout], Awaitable[object]]] = {
    "start_rollout": lambda client, _: client.start_rollout("task"),
    "enqueue_many_rollouts": lambda client, _: client.enqueue_rollout("task"),
    "dequeue_many_rollouts": lambda client, _: client.dequeue_rollout(),
    "start_attempt": lambda client, one: client.start_attempt(one.rollout_id),
    "get_rollout_by_id": lambda client, one: client.get_rollout_by_id(one.rollout_id),
    "query_rollouts": lambda client, _: client.query_rollouts(),
    "update_attempt": lambda client, one: client.update_attempt(one.rollout_id, "latest", status="running"),
    "update_rollout": lambda client, one: client.update_rollout(one.rollout_id, mode="train"),
    "add_many_spans": lambda client, one: client.add_span(make_span(one, 1)),
    "query_spans": lambda client, one: client.query_spans(one.rollout_id),
}


@pytest.mark.parametrize("method", OVERRIDDEN)
def test_what_a_subclass_does_otherwise_is_done_so(serve, method):
    calls = []

    async def counted(store, *args, **kwargs):
        async with asyncio.timeout(60):  # which needs a task of its own
            calls.append(method)
            return await getattr(InMemoryLightningStore, method)(store, *args, **kwargs)

    store = type("Subclass", (InMemoryLightningStore,), {method: counted})()
    rollout = asyncio.run(store.start_rollout("task"))
    calls.clear()
    served = serve(store)

    async def call():
        async with LightningStoreClient(served.server.endpoint) as client:
            await OVERRIDDEN[method](client, rollout)

    asyncio.run(call())
    assert calls == [method]


def test_only_the_store_itself_is_served_by_its_engine():
    class Subclass(InMemoryLightningStore):
        pass

    store, subclassed = InMemoryLightningStore(), Subclass()
    assert records_of(store) is store.engine
    assert records_of(subclassed) is not subclassed.engine
