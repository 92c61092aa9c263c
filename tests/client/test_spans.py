"""Spans by the batch: how they are sent, and what becomes of one that is too large."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from lightning_store import MessageTooLargeError, SpansRejectedError
from lightning_store.errors import (
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    RolloutNotFoundError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from lightning_store.model import Span
from lightning_store.spans.document import encode
from lightning_store.testing.contract.base import make_span
from lightning_store.v1 import span_pb2
from lightning_store.wire.errors import to_status
from lightning_store_client import span_sending
from tests.new_spans import new_span


def run(rig, scenario, **settings):
    """Run ``scenario(client, rollout)`` with a client of these settings and a rollout that has an attempt."""

    async def main():
        rollout = await rig.store.start_rollout("task")
        return await scenario(rig.client(**settings), rollout), rollout

    return asyncio.run(main())


@pytest.mark.parametrize(("batch_bytes", "calls"), [(10_000, 1), (1000, 4), (1, 25)])
def test_spans_go_in_batches_and_come_back_in_order(rig, monkeypatch, batch_bytes, calls):
    monkeypatch.setattr(span_sending, "SPAN_BATCH_BYTES", batch_bytes)

    async def scenario(client, rollout):
        spans = [make_span(rollout, number, attributes={"text": "x" * 50}) for number in range(1, 26)]
        assert await client.add_many_spans([*spans, spans[3]]) == spans
        assert list(await rig.store.query_spans(rollout.rollout_id)) == spans

    run(rig, scenario)
    sent = rig.proxy.calls("AddSpans")
    assert len({one.message.request_id for one in sent}) == len(sent)
    assert len(sent) >= calls
    assert all(len(one.body) <= max(batch_bytes, 700) + 50 for one in sent)


def test_a_batch_that_lost_its_reply_is_stored_once(rig, broken, monkeypatch):
    monkeypatch.setattr(span_sending, "SPAN_BATCH_BYTES", 1000)
    rig.proxy.breaks("AddSpans", broken(lose_reply=True), broken(lose_reply=True))

    async def scenario(client, rollout):
        spans = [make_span(rollout, number) for number in range(1, 26)]
        assert await client.add_many_spans(spans) == spans  # none is taken for a duplicate of itself
        assert (await rig.store.query_spans(rollout.rollout_id)).total == 25

    run(rig, scenario)


def test_no_spans_no_call(rig):
    async def scenario(client, rollout):
        assert await client.add_many_spans([]) == []

    run(rig, scenario)
    assert rig.proxy.order() == []


def test_a_span_that_is_too_large_does_not_keep_the_others_out(rig):
    async def scenario(client, rollout):
        spans = [make_span(rollout, number) for number in (1, 2, 3)]
        spans[1].attributes["text"] = "x" * 5000
        with pytest.raises(SpansRejectedError, match="1 of 3 spans") as caught:
            await client.add_many_spans(spans)
        [rejected] = caught.value.rejected
        assert (rejected.index, rejected.span_id) == (1, spans[1].span_id)
        assert isinstance(rejected.error, MessageTooLargeError)
        assert "2000" in str(rejected.error)
        assert "--max-message-bytes" in str(rejected.error)
        assert rejected.error.details["limit_bytes"] == "2000"
        assert int(rejected.error.details["size_bytes"]) > 5000
        assert list(caught.value.stored) == [spans[0], spans[2]]
        assert list(await rig.store.query_spans(rollout.rollout_id)) == [spans[0], spans[2]]

    run(rig, scenario, max_message_bytes=2000)


def test_one_span_that_is_too_large(rig):
    async def scenario(client, rollout):
        with pytest.raises(MessageTooLargeError, match="--max-message-bytes"):
            await client.add_span(make_span(rollout, attributes={"text": "x" * 5000}))

    run(rig, scenario, max_message_bytes=2000)
    assert rig.proxy.order() == []


def test_spans_may_come_from_a_generator(rig):
    async def scenario(client, rollout):
        spans = [make_span(rollout, number) for number in range(3)]
        assert await client.add_many_spans(span for span in spans) == spans
        assert list(await rig.store.query_spans(rollout.rollout_id)) == spans

    run(rig, scenario)


def test_numbers_may_be_asked_for_by_a_generator(rig):
    async def scenario(client, rollout):
        keys = [(rollout.rollout_id, rollout.attempt.attempt_id)] * 3
        assert await client.get_many_span_sequence_ids(key for key in keys) == [1, 2, 3]
        with pytest.raises(InvalidArgumentError, match="attempt_id is empty"):
            await client.get_many_span_sequence_ids(key for key in [*keys, (rollout.rollout_id, "")])

    run(rig, scenario)


@pytest.mark.parametrize("beside", [0, 1, 3])
def test_near_the_limit_each_span_is_stored_or_refused_by_itself(make_rig, beside):
    """The limit holds for the whole message, so that what is around the span counts too."""
    limit = 1000
    rig = make_rig(max_message_bytes=limit)

    async def scenario(client, rollout):
        for number, size_bytes in enumerate(range(limit - 80, limit + 5)):
            large = span_of(rollout, 1000 * number, size_bytes)
            small = [make_span(rollout, 1000 * number + 1 + n) for n in range(beside)]
            try:
                stored = await client.add_many_spans([*small, large])
            except SpansRejectedError as error:
                refused, stored = [one.index for one in error.rejected], error.stored
            else:
                refused = []
            assert refused in ([], [beside])
            assert list(stored[:beside]) == small
            assert size_bytes > limit - 60 or large in stored
        assert all(len(sent.body) <= limit for sent in rig.proxy.calls("AddSpans"))

    run(rig, scenario, max_message_bytes=limit)


def span_of(rollout, number, size_bytes):
    """A span whose message has exactly so many bytes."""
    letters = size_bytes
    while True:
        span = make_span(rollout, number, attributes={"text": "x" * letters})
        excess = new_span(span).ByteSize() - size_bytes
        if excess == 0:
            return span
        letters -= excess


def test_rejections_of_all_batches_are_told_together(rig, monkeypatch):
    monkeypatch.setattr(span_sending, "SPAN_BATCH_BYTES", 200)

    async def scenario(client, rollout):
        spans = [make_span(rollout, number) for number in range(10)]
        for index in (2, 7):
            spans[index].rollout_id = f"ro-{index}"
        spans[4].attributes["bad"] = object()
        with pytest.raises(SpansRejectedError, match="3 of 10 spans") as caught:
            await client.add_many_spans(spans)
        assert [one.index for one in caught.value.rejected] == [2, 4, 7]
        assert [type(one.error).__name__ for one in caught.value.rejected] == [
            "RolloutNotFoundError",
            "NotJsonError",
            "RolloutNotFoundError",
        ]
        assert len(caught.value.stored) == 7

    run(rig, scenario)


# --- A server that takes less than the client sends ------------------------------------------------------------------


def test_a_batch_that_is_too_large_for_the_server_goes_in_smaller_ones(make_rig):
    limit = 2**17
    rig = make_rig(max_message_bytes=limit)

    async def scenario(client, rollout):
        spans = [make_span(rollout, number, attributes={"text": "x" * 3000}) for number in range(300)]
        assert await client.add_many_spans(spans) == spans
        assert list(await rig.store.query_spans(rollout.rollout_id)) == spans

    run(rig, scenario)
    sent = rig.proxy.calls("AddSpans")
    assert len({one.message.request_id for one in sent}) == len(sent)
    sizes = [len(one.body) for one in sent]
    taken = [size for size in sizes if size <= limit]
    assert sizes[-len(taken) :] == taken  # what the server takes is found out once
    assert min(taken[:-1]) > limit / 3
    assert len(sizes) - len(taken) < 5


@pytest.mark.parametrize("count", [1, 2, 40])
def test_of_spans_that_are_too_large_for_the_server_only_those_are_refused(make_rig, count):
    rig = make_rig(max_message_bytes=10_000)

    async def scenario(client, rollout):
        spans = [make_span(rollout, number, attributes={"text": "x" * 900}) for number in range(count)]
        spans[count // 2].attributes["text"] = "x" * 10_000
        with pytest.raises(SpansRejectedError, match=f"1 of {count} spans") as caught:
            await client.add_many_spans(spans)
        [rejected] = caught.value.rejected
        assert (rejected.index, rejected.span_id) == (count // 2, spans[count // 2].span_id)
        assert isinstance(rejected.error, MessageTooLargeError)
        assert rejected.error.details["limit_bytes"] == "10000"
        others = [span for span in spans if span.span_id != rejected.span_id]
        assert list(caught.value.stored) == others
        assert list(await rig.store.query_spans(rollout.rollout_id)) == others

    run(rig, scenario)


# --- A batch that fails after others were stored ---------------------------------------------------------------------


@pytest.fixture
def full(rig, broken, monkeypatch):
    """``full(batches)``: the server's memory is full when it has stored so many batches of ten spans."""
    monkeypatch.setattr(span_sending, "SPAN_BATCH_BYTES", 10 * 500)
    error = ResourceExhaustedError("the store is full", limit="memory_limit")
    error.retry_after_seconds = 5.0
    status = to_status(error)

    def full(batches):
        rig.proxy.breaks(
            "AddSpans", *[None] * batches, broken(status.code, status.message, metadata=status.trailing_metadata)
        )

    return full


def of_ten(rollout):
    """Thirty spans, ten to a batch."""
    return [span_of(rollout, number, 450) for number in range(30)]


def test_a_refusal_after_some_batches_names_what_is_stored_and_what_is_not(rig, full):
    full(batches=2)

    async def scenario(client, rollout):
        spans = of_ten(rollout)
        spans[3].rollout_id = "ro-3"
        with pytest.raises(SpansRejectedError, match="11 of 30 spans") as caught:
            await client.add_many_spans(spans)
        stored = [*spans[:3], *spans[4:20]]
        assert list(caught.value.stored) == stored
        assert list(await rig.store.query_spans(rollout.rollout_id)) == stored
        assert [one.index for one in caught.value.rejected] == [3, *range(20, 30)]
        unknown, *not_stored = [one.error for one in caught.value.rejected]
        assert isinstance(unknown, RolloutNotFoundError)
        for error in not_stored:
            assert isinstance(error, ResourceExhaustedError)
            assert (error.details["limit"], error.retry_after_seconds) == ("memory_limit", 5.0)

    run(rig, scenario, retry_delays=())
    assert len(rig.proxy.calls("AddSpans")) == 3


def test_nothing_more_is_sent_after_a_refusal(rig, full):
    full(batches=1)

    async def scenario(client, rollout):
        with pytest.raises(SpansRejectedError, match="20 of 30 spans"):
            await client.add_many_spans(of_ten(rollout))
        assert (await rig.store.query_spans(rollout.rollout_id)).total == 10

    run(rig, scenario, retry_delays=())
    assert len(rig.proxy.calls("AddSpans")) == 2


@pytest.mark.parametrize("batches", [0, 1])
def test_a_refusal_by_which_nothing_was_stored_is_raised_itself(rig, full, batches):
    full(batches)

    async def scenario(client, rollout):
        spans = of_ten(rollout)
        await rig.store.add_many_spans(spans[: 10 * batches])  # so that these are duplicates
        with pytest.raises(ResourceExhaustedError, match="the store is full"):
            await client.add_many_spans(spans)
        assert (await rig.store.query_spans(rollout.rollout_id)).total == 10 * batches

    run(rig, scenario, retry_delays=())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, StoreUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, StoreTimeoutError),
        (grpc.StatusCode.CANCELLED, StoreUnavailableError),
    ],
)
@pytest.mark.parametrize("lose_reply", [False, True])
def test_when_it_is_not_known_what_is_stored_all_may_be_added_again(rig, broken, monkeypatch, code, error, lose_reply):
    monkeypatch.setattr(span_sending, "SPAN_BATCH_BYTES", 10 * 500)
    rig.proxy.breaks("AddSpans", None, broken(code, lose_reply=lose_reply))

    async def scenario(client, rollout):
        spans = of_ten(rollout)
        with pytest.raises(error):
            await client.add_many_spans(spans)
        stored = 20 if lose_reply else 10
        assert list(await rig.store.query_spans(rollout.rollout_id)) == spans[:stored]
        assert await client.add_many_spans(spans) == spans[stored:]
        assert list(await rig.store.query_spans(rollout.rollout_id)) == spans

    run(rig, scenario, retry_delays=())


def test_an_answer_that_does_not_tell_of_each_span_is_an_error():
    class Calls:
        async def unary(self, method, request):
            return span_pb2.AddSpansResponse(outcomes=[span_pb2.SpanOutcome()])

    record = encode(Span(rollout_id="ro", attempt_id="at", sequence_id=1, trace_id="t", span_id="s", name="n"))
    with pytest.raises(InternalError, match="told of 1 of 2 spans"):
        asyncio.run(span_sending._send(Calls(), [record, record]))
