"""List replies in pages, whole results as streams, and waits whose reply would be too large."""

from __future__ import annotations

import asyncio

import pytest

from lightning_store import LLM, InMemoryLightningStore
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import make_span
from lightning_store.v1 import query_pb2, resources_pb2, rollout_pb2, span_pb2, worker_pb2
from lightning_store_client import LightningStoreClient

ROWS = 7
TINY = {"page_rows_max": 3, "page_bytes_max": 200}
KINDS = {
    "rollouts": ("ListRollouts", rollout_pb2.ListRolloutsRequest),
    "attempts": ("ListAttempts", rollout_pb2.ListAttemptsRequest),
    "spans": ("ListSpans", span_pb2.ListSpansRequest),
    "resources": ("ListResources", resources_pb2.ListResourcesRequest),
    "workers": ("ListWorkers", worker_pb2.ListWorkersRequest),
}

each_kind = pytest.mark.parametrize("kind", KINDS)


async def fill(store):
    """Seven rows of each kind. Returns the rollout that has the attempts and the spans."""
    rollouts = [await store.enqueue_rollout({"number": number}) for number in range(ROWS)]
    for number in range(ROWS):
        attempted = await store.start_attempt(rollouts[0].rollout_id, worker_id=f"worker-{number}")
        await store.add_span(make_span(attempted, number + 1))
        await store.add_resources({"llm": LLM(endpoint="http://localhost", model=f"model-{number}")})
    return rollouts[0].rollout_id


class Filled:
    """A server with seven rows of each kind."""

    def __init__(self, serve, **config):
        self.store = InMemoryLightningStore(clock=FakeClock())
        self.rollout_id = asyncio.run(fill(self.store))
        self.served = serve(self.store, **config)

    def request(self, kind, **fields):
        of_rollout = {"rollout_id": self.rollout_id} if kind in {"attempts", "spans"} else {}
        return KINDS[kind][1](**of_rollout, **fields)

    def page(self, kind, **fields):
        return self.served.call(KINDS[kind][0], self.request(kind, **fields))

    def pages(self, kind, **fields):
        """All pages, each asked for with the token of the one before."""
        pages = [self.page(kind, **fields)]
        while pages[-1].next_page_token:
            assert len(pages) <= ROWS
            pages.append(self.page(kind, page_token=pages[-1].next_page_token, **fields))
        return pages

    def stream(self, kind, **fields):
        request = query_pb2.StreamQueryRequest(**{kind: self.request(kind, **fields)})
        replies = self.served.call("StreamQuery", request)
        assert {field.name for reply in replies for field, _ in reply.ListFields()} <= {kind, "total"}
        return replies


@pytest.fixture
def filled(serve):
    return Filled(serve)


@pytest.fixture
def tiny(serve):
    return Filled(serve, **TINY)


def rows_of(kind, pages):
    return [row for page in pages for row in getattr(page, kind)]


# --- Pages -----------------------------------------------------------------------------------------------------------


@each_kind
def test_one_page_holds_all_that_fits(filled, kind):
    page = filled.page(kind)
    assert (len(getattr(page, kind)), page.total, page.next_page_token) == (ROWS, ROWS, "")


@each_kind
@pytest.mark.parametrize("fields", [{}, {"sort_order": 2}, {"sort_by": ""}])
def test_pages_joined_are_the_whole_result(filled, kind, fields):
    whole = list(getattr(filled.page(kind, **fields), kind))
    pages = filled.pages(kind, page_size=2, **fields)
    assert [len(getattr(page, kind)) for page in pages] == [2, 2, 2, 1]
    assert {page.total for page in pages} == {ROWS}
    assert rows_of(kind, pages) == whole


@each_kind
@pytest.mark.parametrize(("limit", "offset"), [(0, 0), (1, 0), (4, 0), (5, 1), (100, 3), (4, 6), (4, 7), (4, 8)])
def test_limit_and_offset_count_over_all_pages(filled, kind, limit, offset):
    whole = list(getattr(filled.page(kind), kind))
    pages = filled.pages(kind, page_size=2, limit=limit, offset=offset)
    assert rows_of(kind, pages) == whole[offset : offset + limit]
    assert {page.total for page in pages} == {ROWS}


@each_kind
def test_the_largest_numbers_are_no_mistake(filled, kind):
    most, most_of_32_bits = 2**63 - 1, 2**31 - 1
    assert len(getattr(filled.page(kind, limit=most, offset=1, page_size=most_of_32_bits), kind)) == ROWS - 1
    assert len(rows_of(kind, filled.stream(kind, limit=most, offset=1))) == ROWS - 1
    for fields in ({"offset": most}, {"offset": most, "limit": most}, {"page_token": "9" * 18}):
        page = filled.page(kind, **fields)
        assert (len(getattr(page, kind)), page.total, page.next_page_token) == (0, ROWS, "")


@each_kind
def test_the_server_has_the_last_word_on_rows(serve, kind):
    filled = Filled(serve, page_rows_max=3)
    for page_size in (0, 100, 3):
        assert [len(getattr(page, kind)) for page in filled.pages(kind, page_size=page_size)] == [3, 3, 1]
    assert len(getattr(filled.page(kind, page_size=2), kind)) == 2


@each_kind
def test_the_server_has_the_last_word_on_bytes(serve, kind):
    bytes_max = 2000 if kind == "spans" else 300
    filled = Filled(serve, page_bytes_max=bytes_max)
    pages = filled.pages(kind)
    assert len(pages) > 1
    assert len(rows_of(kind, pages)) == ROWS
    assert all(sum(row.ByteSize() for row in getattr(page, kind)) <= bytes_max for page in pages)


@each_kind
def test_a_row_over_the_limit_is_a_page_of_its_own(serve, kind):
    filled = Filled(serve, page_bytes_max=1)
    pages = filled.pages(kind)
    assert [len(getattr(page, kind)) for page in pages] == [1] * ROWS
    assert [len(getattr(page, kind)) for page in filled.stream(kind)] == [1] * ROWS


# --- Streams ---------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(("limit", "offset"), [(None, 0), (None, 2), (4, 0), (4, 5), (0, 0), (3, 100)])
def test_a_stream_is_the_whole_result(tiny, filled, kind, limit, offset):
    for source in (tiny, filled):
        whole = list(rows_of(kind, source.pages(kind)))
        pages = source.stream(kind, limit=limit, offset=offset)
        assert rows_of(kind, pages) == whole[offset : ROWS if limit is None else offset + limit]
        assert {page.total for page in pages} == {ROWS}


@each_kind
def test_each_message_of_a_stream_keeps_the_limits(tiny, kind):
    pages = tiny.stream(kind)
    assert len(pages) >= 3
    for page in pages:
        rows = getattr(page, kind)
        assert 1 <= len(rows) <= 3
        assert len(rows) == 1 or sum(row.ByteSize() for row in rows) <= 200


@each_kind
def test_a_stream_of_nothing_is_one_message(served, kind):
    fields = {"rollout_id": "ro-no"} if kind in {"attempts", "spans"} else {}
    [reply] = served.call("StreamQuery", query_pb2.StreamQueryRequest(**{kind: KINDS[kind][1](**fields)}))
    assert (list(getattr(reply, kind)), reply.total) == ([], 0)


@each_kind
def test_page_size_bounds_the_messages_of_a_stream(filled, kind):
    assert [len(getattr(page, kind)) for page in filled.stream(kind, page_size=2)] == [2, 2, 2, 1]


@each_kind
def test_a_stream_equals_the_query_in_process(tiny, kind):
    """Through the client, which turns to the stream as soon as one page is not enough."""

    async def scenario():
        ids = [tiny.rollout_id] if kind in {"attempts", "spans"} else []
        query = f"query_{kind}"
        async with LightningStoreClient(tiny.served.server.endpoint, retry_delays=()) as client:
            for fields in ({}, {"limit": 5, "offset": 1}, {"sort_order": "desc"}, {"limit": 0}, {"offset": 9}):
                expected = await getattr(tiny.store, query)(*ids, **fields)
                assert await getattr(client, query)(*ids, **fields) == expected

    asyncio.run(scenario())


def test_each_message_of_a_batch_keeps_the_limits(tiny):
    batch = span_pb2.SpanBatchRequest(rollout_ids=["ro-no", tiny.rollout_id], all_attempts=True)
    replies = tiny.served.call("StreamQuery", query_pb2.StreamQueryRequest(span_batch=batch))
    assert rows_of("spans", replies) == rows_of("spans", tiny.stream("spans"))
    assert {reply.total for reply in replies} == {ROWS}
    assert max(len(reply.spans) for reply in replies) <= 3
    assert all(len(reply.spans) == 1 or reply.ByteSize() <= 200 for reply in replies)


# --- Waits -----------------------------------------------------------------------------------------------------------


def test_a_wait_names_the_rollouts_that_do_not_fit(serve):
    filled = Filled(serve, page_bytes_max=200)
    store = filled.store
    rollouts = list(asyncio.run(store.query_rollouts()))
    for rollout in rollouts[1:]:
        asyncio.run(store.update_rollout(rollout.rollout_id, status="succeeded"))
    asked = [rollout.rollout_id for rollout in reversed(rollouts)]
    request = rollout_pb2.WaitForRolloutsRequest(rollout_ids=[*asked, "ro-no", *asked])
    request.wait.FromSeconds(0)
    reply = filled.served.call("WaitForRollouts", request)
    sent = [rollout.rollout_id for rollout in reply.rollouts]
    assert sent
    assert reply.omitted_rollout_ids
    assert [*sent, *reply.omitted_rollout_ids] == asked[:-1]
    assert not reply.complete
    assert sum(rollout.ByteSize() for rollout in reply.rollouts) <= 200


def test_a_client_asks_again_for_those(serve):
    filled = Filled(serve, page_bytes_max=1)
    rollouts = list(asyncio.run(filled.store.query_rollouts()))
    for rollout in rollouts:
        asyncio.run(filled.store.update_rollout(rollout.rollout_id, status="failed"))
    asked = [rollout.rollout_id for rollout in [*rollouts, *rollouts]]

    async def scenario():
        async with LightningStoreClient(filled.served.server.endpoint, retry_delays=()) as client:
            assert await client.wait_for_rollouts(rollout_ids=asked) == await filled.store.wait_for_rollouts(
                rollout_ids=asked
            )

    asyncio.run(scenario())
