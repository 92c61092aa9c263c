"""Spans by the batch: how they are sent, and what becomes of one that is too large."""

from __future__ import annotations

import asyncio

import pytest

from lightning_store import MessageTooLargeError, SpansRejectedError
from lightning_store.errors import InternalError, InvalidArgumentError
from lightning_store.testing.contract.base import make_span
from lightning_store.v1 import span_pb2
from lightning_store.wire.spans import span_to_proto
from lightning_store_client import client as client_module


def run(rig, scenario, **settings):
    """Run ``scenario(client, rollout)`` with a client of these settings and a rollout that has an attempt."""

    async def main():
        rollout = await rig.store.start_rollout("task")
        return await scenario(rig.client(**settings), rollout), rollout

    return asyncio.run(main())


@pytest.mark.parametrize(("batch_bytes", "calls"), [(10_000, 1), (1000, 4), (1, 25)])
def test_spans_go_in_batches_and_come_back_in_order(rig, monkeypatch, batch_bytes, calls):
    monkeypatch.setattr(client_module, "SPAN_BATCH_BYTES", batch_bytes)

    async def scenario(client, rollout):
        spans = [make_span(rollout, number, attributes={"text": "x" * 50}) for number in range(1, 26)]
        assert await client.add_many_spans([*spans, spans[3]]) == spans
        assert list(await rig.store.query_spans(rollout.rollout_id)) == spans

    run(rig, scenario)
    sent = rig.proxy.calls("AddSpans")
    assert len({one.message.request_id for one in sent}) == len(sent)
    assert len(sent) >= calls
    assert all(len(one.body) <= max(batch_bytes, 300) + 50 for one in sent)


def test_a_batch_that_lost_its_reply_is_stored_once(rig, broken, monkeypatch):
    monkeypatch.setattr(client_module, "SPAN_BATCH_BYTES", 1000)
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
        excess = span_to_proto(span).ByteSize() - size_bytes
        if excess == 0:
            return span
        letters -= excess


def test_rejections_of_all_batches_are_told_together(rig, monkeypatch):
    monkeypatch.setattr(client_module, "SPAN_BATCH_BYTES", 200)

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


def test_an_answer_that_does_not_tell_of_each_span_is_an_error():
    class Calls:
        async def unary(self, method, request):
            return span_pb2.AddSpansResponse(outcomes=[span_pb2.SpanOutcome()])

    with pytest.raises(InternalError, match="told of 1 of 2 spans"):
        asyncio.run(client_module._send_spans(Calls(), [b"", b""]))
