"""Calls for more items than a server takes in one request."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from lightning_store import EnqueueRolloutRequest
from lightning_store.items import parts
from lightning_store.testing.contract.base import make_span
from lightning_store_client import client as module
from lightning_store_client import span_sending


@pytest.fixture
def rig(make_rig, monkeypatch):
    """Server and client with a limit of three items."""
    monkeypatch.setattr(module, "parts", partial(parts, items_max=3))
    monkeypatch.setattr(span_sending, "ITEMS_MAX", 3)
    return make_rig(request_items_max=3)


def test_many_are_sent_in_several_requests_and_come_back_in_order(rig):
    async def scenario():
        async with rig.client() as client:
            queued = await client.enqueue_many_rollouts([EnqueueRolloutRequest(input=number) for number in range(8)])
            assert [one.input for one in queued] == list(range(8))
            ids = [one.rollout_id for one in queued]
            claimed = [await client.dequeue_rollout() for _ in range(8)]
            keys = [(one.rollout_id, one.attempt.attempt_id) for one in claimed]
            assert await client.get_many_span_sequence_ids([*keys, keys[0]]) == [1] * 8 + [2]
            spans = [make_span(claimed[0], number) for number in range(1, 9)]
            assert await client.add_many_spans(spans) == spans
            assert await client.wait_for_rollouts(rollout_ids=ids, timeout=0.0) == []
            cancelled = await client.cancel_rollouts(ids)
            assert [one.rollout_id for one in cancelled] == ids
            ended = await client.wait_for_rollouts(rollout_ids=ids[::-1])
            assert [one.rollout_id for one in ended] == ids[::-1]
            assert await client.mark_consumed("trainer", ids, checkpoint="step-1") == ids
            assert await client.rewind_consumer("trainer", checkpoint="step-1") == []
            assert await client.delete_rollouts(rollout_ids=ids) == ids

    asyncio.run(scenario())
    assert len(rig.proxy.calls("EnqueueRollouts")) == 3
