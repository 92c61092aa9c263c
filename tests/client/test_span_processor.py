"""LightningStoreSpanProcessor: whose spans they are, and when they are stored."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from lightning_store import InvalidTypeError, StoreUnavailableError
from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID
from lightning_store.testing import SAFETY_SECONDS
from lightning_store_client import LightningStoreSpanProcessor, attempt_scope, span_buffer


def tracer_of(client, **settings):
    provider = TracerProvider(shutdown_on_exit=False, **settings)
    provider.add_span_processor(LightningStoreSpanProcessor(client))
    return provider.get_tracer("agent")


async def names(store, rollout):
    return [span.name for span in await store.query_spans(rollout.rollout_id)]


def run(rig, scenario, **settings):
    """Run ``scenario(client, rollout)`` with a client and a rollout that has an attempt of worker "w"."""

    async def main():
        rollout = await rig.store.start_rollout("task", worker_id="w")
        return await scenario(rig.client(**settings), rollout)

    return asyncio.run(main())


async def report(client, rollout, status="succeeded"):
    return await client.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status=status)


# --- When they are stored --------------------------------------------------------------------------------------------


def test_all_is_stored_before_the_outcome_is_reported(rig):
    async def scenario(client, rollout):
        tracer = tracer_of(client)
        with attempt_scope(rollout):
            for number in range(5):
                with tracer.start_as_current_span(f"step {number}"):
                    pass
        await report(client, rollout)
        return await names(rig.store, rollout)

    assert run(rig, scenario) == [f"step {number}" for number in range(5)]
    order = [rpc for rpc in rig.proxy.order() if rpc in ("AddSpans", "UpdateAttempt")]
    assert order[-1] == "UpdateAttempt"
    assert set(order[:-1]) == {"AddSpans"}


def test_all_is_stored_before_hold_ends(rig):
    async def scenario(client, rollout):
        tracer = tracer_of(client)
        async with client.worker("w") as worker:
            async with worker.hold(rollout):
                with tracer.start_as_current_span("act"):
                    pass
            return await names(rig.store, rollout)

    assert run(rig, scenario) == ["act"]


def test_all_is_stored_before_the_client_is_closed(rig):
    async def scenario(client, rollout):
        with attempt_scope(rollout), tracer_of(client).start_as_current_span("act"):
            pass
        await client.close()
        return await names(rig.store, rollout)

    assert run(rig, scenario) == ["act"]


def test_spans_are_sent_by_themselves_after_a_while(rig):
    async def scenario(client, rollout):
        with attempt_scope(rollout), tracer_of(client).start_as_current_span("act"):
            pass
        await rig.proxy.until_sent("AddSpans")

    run(rig, scenario)


def test_a_full_batch_does_not_wait(make_rig, monkeypatch):
    from lightning_store.testing import FakeClock

    rig = make_rig()
    monkeypatch.setattr(span_buffer, "BATCH_SPANS", 4)

    async def scenario(client, rollout):
        tracer = tracer_of(client)
        with attempt_scope(rollout):
            for _ in range(4):
                tracer.start_span("s").end()
        await rig.proxy.until_sent("AddSpans")

    run(rig, scenario, clock=FakeClock())


def test_force_flush_and_shutdown_store_all_from_a_thread_without_a_loop(rig):
    provider = TracerProvider(shutdown_on_exit=False)
    rollout = asyncio.run(rig.store.start_rollout("task"))
    provider.add_span_processor(LightningStoreSpanProcessor(rig.client()))
    tracer = provider.get_tracer("agent")
    with attempt_scope(rollout):
        tracer.start_span("one").end()
        assert provider.force_flush()
        assert asyncio.run(names(rig.store, rollout)) == ["one"]
        tracer.start_span("two").end()
    provider.shutdown()
    assert asyncio.run(names(rig.store, rollout)) == ["one", "two"]


def test_numbers_follow_the_order_in_which_spans_end(rig, monkeypatch):
    monkeypatch.setattr(span_buffer, "BATCH_SPANS", 7)

    async def scenario(client, rollout):
        tracer = tracer_of(client)
        with attempt_scope(rollout):
            for number in range(50):
                tracer.start_span(str(number)).end()
        await client.flush_spans()
        return await rig.store.query_spans(rollout.rollout_id)

    stored = run(rig, scenario)
    assert [(span.sequence_id, span.name) for span in stored] == [(n + 1, str(n)) for n in range(50)]


# --- Whose they are --------------------------------------------------------------------------------------------------


def test_attempts_that_run_at_once_keep_their_spans_apart(rig):
    async def scenario(client, _):
        tracer = tracer_of(client)
        rollouts = [await rig.store.start_rollout(number) for number in range(10)]

        async def act(rollout):
            with attempt_scope(rollout):
                for number in range(5):
                    with tracer.start_as_current_span(f"{rollout.rollout_id} {number}"):
                        await asyncio.sleep(0)

        await asyncio.gather(*map(act, rollouts))
        await client.flush_spans()
        for rollout in rollouts:
            assert await names(rig.store, rollout) == [f"{rollout.rollout_id} {number}" for number in range(5)]

    run(rig, scenario)


def test_the_ids_are_attributes_and_others_see_them(rig):
    async def scenario(client, rollout):
        with attempt_scope(rollout):
            span = tracer_of(client).start_span("act")
        span.end()
        assert span.attributes == {ROLLOUT_ID: rollout.rollout_id, ATTEMPT_ID: rollout.attempt.attempt_id}
        await client.flush_spans()
        [stored] = await rig.store.query_spans(rollout.rollout_id)
        assert (stored.attempt_id, stored.attributes) == (rollout.attempt.attempt_id, dict(span.attributes))

    run(rig, scenario)


def test_a_span_on_a_thread_without_the_scope_belongs_to_the_attempt_of_its_parent(rig):
    async def scenario(client, rollout):
        tracer = tracer_of(client)
        with attempt_scope(rollout):
            parent = tracer.start_span("parent")
        within = trace.set_span_in_context(parent)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(contextvars.Context().run, lambda: tracer.start_span("child", within).end()).result()
        parent.end()
        await client.flush_spans()
        return await names(rig.store, rollout)

    assert run(rig, scenario) == ["child", "parent"]


def test_a_span_that_names_its_attempt_keeps_it(rig):
    async def scenario(client, rollout):
        other = await rig.store.start_rollout("other")
        labels = {ROLLOUT_ID: other.rollout_id, ATTEMPT_ID: other.attempt.attempt_id}
        with attempt_scope(rollout):
            tracer_of(client).start_span("labelled", attributes=labels).end()
        tracer_of(client, resource=Resource(labels)).start_span("of the resource").end()
        await client.flush_spans()
        assert await names(rig.store, rollout) == []
        assert await names(rig.store, other) == ["labelled", "of the resource"]

    run(rig, scenario)


def test_a_span_with_more_attributes_than_the_sdk_keeps_is_not_lost(rig):
    async def scenario(client, rollout):
        with attempt_scope(rollout):
            span = tracer_of(client, span_limits=SpanLimits(max_span_attributes=2)).start_span("act")
        span.set_attributes({"a": 1, "b": 2, "c": 3})
        span.end()
        await client.flush_spans()
        [stored] = await rig.store.query_spans(rollout.rollout_id)
        assert stored.attributes == {"b": 2, "c": 3}

    run(rig, scenario)


def test_spans_without_an_attempt_or_not_sampled_are_left_alone(rig):
    async def scenario(client, rollout):
        tracer_of(client).start_span("of nobody").end()
        with attempt_scope(rollout):
            tracer_of(client, sampler=ALWAYS_OFF).start_span("not sampled").end()
        await client.flush_spans()

    run(rig, scenario)
    assert rig.proxy.calls("AddSpans") == []


def test_scopes_nest_and_take_what_was_claimed(rig):
    async def scenario(client, rollout):
        tracer = tracer_of(client)
        inner = await rig.store.start_rollout("inner")
        with attempt_scope(rollout):
            with attempt_scope(inner):
                tracer.start_span("inner").end()
            tracer.start_span("outer").end()
        await client.flush_spans()
        assert (await names(rig.store, inner), await names(rig.store, rollout)) == (["inner"], ["outer"])
        with pytest.raises(InvalidTypeError, match="give the rollout that was claimed"):
            attempt_scope(rollout.rollout_id)

    run(rig, scenario)


# --- Failures --------------------------------------------------------------------------------------------------------


def test_spans_outlast_a_server_that_is_away(rig, broken):
    async def scenario(client, rollout):
        with attempt_scope(rollout):
            tracer_of(client).start_span("act").end()
        rig.proxy.breaks("AddSpans", broken(), broken(), broken(lose_reply=True), broken())
        with pytest.raises(StoreUnavailableError):
            await report(client, rollout)
        assert (await rig.store.get_latest_attempt(rollout.rollout_id)).status != "succeeded"
        rig.proxy.plan.clear()
        await report(client, rollout)
        return await names(rig.store, rollout)

    assert run(rig, scenario, retry_delays=(), health_retry_delays=()) == ["act"]


def test_spans_that_are_refused_are_logged_and_hold_up_nothing(rig, caplog):
    async def scenario(client, rollout):
        tracer = tracer_of(client)
        gone = await rig.store.start_rollout("gone")
        await rig.store.delete_rollouts([gone.rollout_id])
        with attempt_scope(gone):
            tracer.start_span("late").end()
        with attempt_scope(rollout):
            tracer.start_span("act").end()
        await report(client, rollout)
        assert await names(rig.store, rollout) == ["act"]
        return gone

    with caplog.at_level(logging.WARNING):
        gone = run(rig, scenario)
    assert f"spans were refused and are not stored: Rollout {gone.rollout_id} not found" in caplog.text


def test_a_batch_that_is_refused_whole_is_logged(rig, broken, caplog):
    async def scenario(client, rollout):
        with attempt_scope(rollout):
            tracer_of(client).start_span("act").end()
        rig.proxy.breaks("AddSpans", broken(grpc.StatusCode.UNIMPLEMENTED, "no spans here"))
        await client.flush_spans()

    with caplog.at_level(logging.WARNING):
        run(rig, scenario)
    assert "1 of 1 spans were refused and are not stored: no spans here" in caplog.text


def test_more_spans_than_are_held_are_counted(rig, monkeypatch, caplog):
    from lightning_store.testing import FakeClock

    monkeypatch.setattr(span_buffer, "SPANS_MAX", 3)

    async def scenario(client, rollout):
        tracer = tracer_of(client)
        with attempt_scope(rollout):
            for number in range(5):
                tracer.start_span(str(number)).end()
        await client.flush_spans()
        return await names(rig.store, rollout)

    with caplog.at_level(logging.ERROR):
        assert run(rig, scenario, clock=FakeClock()) == ["0", "1", "2"]
    assert "3 spans wait for the store, which cannot be reached; further ones are lost" in caplog.text
    assert "2 spans were lost while the store could not be reached" in caplog.text


def test_a_flush_that_is_cancelled_loses_nothing(rig):
    async def scenario(client, rollout):
        with attempt_scope(rollout):
            tracer_of(client).start_span("act").end()
        flush = asyncio.create_task(client.flush_spans())
        await asyncio.sleep(0)
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush
        await client.flush_spans()
        return await names(rig.store, rollout)

    assert run(rig, scenario) == ["act"]


# --- Threads and processes -------------------------------------------------------------------------------------------


def test_spans_may_end_on_any_thread(rig):
    async def scenario(client, rollout):
        tracer = tracer_of(client)

        def act(number):
            with attempt_scope(rollout):
                for _ in range(20):
                    tracer.start_span(str(number)).end()

        threads = [threading.Thread(target=act, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SAFETY_SECONDS)
        await client.flush_spans()
        return await names(rig.store, rollout)

    assert sorted(run(rig, scenario)) == sorted(str(number) for number in range(5) for _ in range(20))


def test_a_pickled_client_has_no_spans_to_send(rig):
    async def scenario(client, rollout):
        with attempt_scope(rollout):
            tracer_of(client).start_span("act").end()
        copy = pickle.loads(pickle.dumps(client.span_buffer))
        assert copy.is_empty
        assert not client.span_buffer.is_empty

    run(rig, scenario)


def test_the_spans_of_the_parent_are_not_the_childs(rig, monkeypatch):
    async def scenario(client, rollout):
        with attempt_scope(rollout):
            tracer_of(client).start_span("act").end()
        pid = os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid + 1)
            assert client.span_buffer.is_empty
        await client.flush_spans()
        return await names(rig.store, rollout)

    assert run(rig, scenario) == ["act"]
