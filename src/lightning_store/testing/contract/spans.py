"""Facts 17-22: adding spans, their numbers, and reading them back in order."""

from __future__ import annotations

from typing import Any, cast

import pytest
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope as SdkScope
from opentelemetry.trace import INVALID_SPAN, INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanKind, TraceFlags, TraceState
from opentelemetry.trace import Link as SdkLink
from opentelemetry.trace import SpanContext as SdkContext
from opentelemetry.trace.status import Status, StatusCode

from lightning_store.errors import RolloutNotFoundError, SpansRejectedError
from lightning_store.model import AttemptedRollout, Event, Link, OtelResource, Span, SpanContext, TraceStatus
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import (
    ContractBase,
    claim,
    drain,
    look,
    look_at_attempt,
    make_span,
    report,
    retrying,
    statuses,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


async def numbers(store: LightningStore, rollout: AttemptedRollout) -> list[int]:
    """The sequence numbers of the stored spans, in the default order of query_spans."""
    return [span.sequence_id for span in await store.query_spans(rollout.rollout_id)]


class AddingSpansContract(ContractBase):
    """Facts 17, 18, 20: add_span, add_many_spans."""

    async def test_f17_a_span_comes_back_as_given(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        span = make_full_span(started)
        assert await store.add_span(span) == span
        stored = (await store.query_spans(started.rollout_id))[0]
        assert stored == span
        assert type(stored) is Span

    async def test_f17_fields_that_are_not_declared_survive(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        extra: dict[str, Any] = {
            "reward": 0.5,
            "tags": ["a", None, {"deep": 12345678901234567}],
            "note": "\u00e9",
            "nothing": None,
        }
        await store.add_span(make_span(started, **extra))
        assert (await store.query_spans(started.rollout_id))[0].model_extra == extra

    async def test_f17_later_changes_of_a_span_do_not_show(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        span = make_span(started, attributes={"tags": ["a"]})
        unchanged = span.model_copy(deep=True)
        await store.add_span(span)
        span.attributes["tags"].append("b")
        found = (await store.query_spans(started.rollout_id))[0]
        found.attributes["more"] = True
        found.name = "changed"
        assert list(await store.query_spans(started.rollout_id)) == [unchanged]

    async def test_f17_a_span_sets_attempt_and_rollout_running(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        clock.advance(5)
        await store.add_span(make_span(started))
        running = started.attempt.model_copy(update={"status": "running", "last_heartbeat_time": clock.now()})
        assert await look(store, started) == started.model_copy(update={"status": "running", "attempt": running})

    async def test_f17_each_span_refreshes_the_heartbeat_by_the_stores_clock(
        self, store: LightningStore, clock: FakeClock
    ) -> None:
        started = await store.start_rollout("task")
        for number in (1, 2):
            clock.advance(5)
            await store.add_span(make_span(started, number, start_time=1.0, end_time=clock.now() + 1000))
            assert (await look_at_attempt(store, started)).last_heartbeat_time == clock.now()

    async def test_f17_a_span_does_not_set_the_heartbeat_back(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        ahead = clock.now() + 100
        await store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=ahead)
        await store.add_span(make_span(started))
        assert (await look_at_attempt(store, started)).last_heartbeat_time == ahead

    async def test_f17_a_span_of_an_older_attempt_does_not_move_the_rollout(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        await store.add_span(make_span(first))
        assert await look(store, first) == second
        assert len(await store.query_spans(first.rollout_id)) == 1

    async def test_f17_a_span_takes_a_rollout_out_of_requeuing(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.update_rollout(started.rollout_id, status="requeuing")
        await store.add_span(make_span(started))
        assert await statuses(store, started) == ("running", "running")
        assert await store.dequeue_rollout() is None

    async def test_f17_a_span_leaves_a_rollout_that_was_put_back_to_queuing(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.update_rollout(started.rollout_id, status="queuing")
        await store.add_span(make_span(started))
        assert await statuses(store, started) == ("queuing", "running")
        assert await drain(store) == [started.rollout_id]

    # --- Fact 18 -----------------------------------------------------------------------------------------------------

    async def test_f18_a_duplicate_changes_nothing(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        first = make_span(started, 1)
        await store.add_span(first)
        before = await look(store, started)
        clock.advance(5)
        assert await store.add_span(make_span(started, 50, span_id=first.span_id, name="other")) is None
        assert await look(store, started) == before
        assert list(await store.query_spans(started.rollout_id)) == [first]
        assert await store.get_next_span_sequence_id(started.rollout_id, started.attempt.attempt_id) == 2

    async def test_f18_a_duplicate_revives_nothing(self, store: LightningStore) -> None:
        started = await store.start_rollout("task", config=retrying())
        await store.add_span(make_span(started))
        await report(store, started, "unresponsive")
        assert await store.add_span(make_span(started)) is None
        assert await statuses(store, started) == ("requeuing", "unresponsive")

    async def test_f18_the_same_span_id_on_another_attempt_is_another_span(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        spans = [make_span(first, 1), make_span(second, 2, span_id=make_span(first, 1).span_id)]
        assert [await store.add_span(span) for span in spans] == spans
        assert list(await store.query_spans(first.rollout_id)) == spans

    async def test_f18_the_same_span_id_on_another_rollout_is_another_span(self, store: LightningStore) -> None:
        one, other = await store.start_rollout("one"), await store.start_rollout("other")
        assert await store.add_span(make_span(one)) == make_span(one)
        assert await store.add_span(make_span(other)) == make_span(other)
        assert list(await store.query_spans(other.rollout_id)) == [make_span(other)]

    # --- Fact 20 -----------------------------------------------------------------------------------------------------

    async def test_f20_add_many_takes_any_mix_in_the_order_given(self, store: LightningStore) -> None:
        one, other = await store.start_rollout("one"), await store.start_rollout("other")
        again = await store.start_attempt(one.rollout_id)
        spans = [make_span(again, 9), make_span(other, 1), make_span(one, 3), make_span(other, 2)]
        assert list(await store.add_many_spans(spans)) == spans
        assert await numbers(store, one) == [3, 9]
        assert await numbers(store, other) == [1, 2]
        assert await statuses(store, other) == ("running", "running")

    async def test_f20_add_many_skips_duplicates(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.add_span(make_span(started, 1))
        first, second = make_span(started, 2), make_span(started, 3)
        stored = await store.add_many_spans([make_span(started, 1), first, second, make_span(started, 2)])
        assert list(stored) == [first, second]
        assert await numbers(store, started) == [1, 2, 3]

    async def test_f20_add_many_of_nothing(self, store: LightningStore) -> None:
        assert list(await store.add_many_spans([])) == []

    async def test_f20_add_many_lists_what_it_rejected_and_keeps_the_rest(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        good, late = make_span(started, 1), make_span(started, 4)
        bad = [make_span(started, 2, rollout_id="ro-x"), make_span(started, 3, attempt_id="at-x")]
        with pytest.raises(SpansRejectedError) as raised:
            await store.add_many_spans([good, *bad, late])
        assert isinstance(raised.value, ValueError)
        assert [(rejected.index, rejected.span_id) for rejected in raised.value.rejected] == [
            (1, bad[0].span_id),
            (2, bad[1].span_id),
        ]
        assert [str(rejected.error) for rejected in raised.value.rejected] == [
            "Rollout ro-x not found",
            f"Attempt at-x not found for rollout {started.rollout_id}",
        ]
        assert "Rollout ro-x not found" in str(raised.value)
        assert list(raised.value.stored) == [good, late]
        assert list(await store.query_spans(started.rollout_id)) == [good, late]


class SpanNumbersContract(ContractBase):
    """Fact 19: get_next_span_sequence_id, get_many_span_sequence_ids, and numbers that spans bring along."""

    async def test_f19_one_counter_a_rollout_shared_by_its_attempts(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        other = await store.start_rollout("other")
        pairs = [(rollout.rollout_id, rollout.attempt.attempt_id) for rollout in (first, second, other, first, second)]
        assert [await store.get_next_span_sequence_id(*pair) for pair in pairs] == [1, 2, 1, 3, 4]

    async def test_f19_many_numbers_come_in_order(self, store: LightningStore) -> None:
        one, other = await store.start_rollout("one"), await store.start_rollout("other")
        pairs = [(rollout.rollout_id, rollout.attempt.attempt_id) for rollout in (one, other, one, one)]
        assert list(await store.get_many_span_sequence_ids(pairs)) == [1, 1, 2, 3]
        assert list(await store.get_many_span_sequence_ids(pairs)) == [4, 2, 5, 6]
        assert list(await store.get_many_span_sequence_ids([])) == []

    async def test_f19_an_explicit_number_is_kept_and_raises_the_counter(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.add_span(make_span(started, 10))
        assert await numbers(store, started) == [10]
        assert await store.get_next_span_sequence_id(started.rollout_id, started.attempt.attempt_id) == 11

    async def test_f19_a_lower_number_leaves_the_counter(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        await store.add_many_spans([make_span(started, 10), make_span(started, 3), make_span(started, 0)])
        assert await store.get_next_span_sequence_id(started.rollout_id, started.attempt.attempt_id) == 11

    async def test_f19_explicit_numbers_may_repeat(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        spans = [make_span(started, 5, span_id=f"{number:016x}") for number in (7, 6)]
        assert list(await store.add_many_spans(spans)) == spans
        assert await numbers(store, started) == [5, 5]

    async def test_f19_a_failed_add_leaves_the_counter(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        with pytest.raises(ValueError, match="not found"):
            await store.add_span(make_span(started, 50, attempt_id="at-x"))
        with pytest.raises(ValueError, match="not found"):
            await store.add_many_spans([make_span(started, 60, attempt_id="at-x")])
        assert await store.get_next_span_sequence_id(started.rollout_id, started.attempt.attempt_id) == 1

    async def test_f19_an_attempt_that_does_not_exist_yet_gets_numbers(self, store: LightningStore) -> None:
        made = await store.enqueue_rollout("task")
        assert await store.get_next_span_sequence_id(made.rollout_id, "at-soon") == 1
        assert list(await store.get_many_span_sequence_ids([(made.rollout_id, "at-soon")])) == [2]

    async def test_f19_an_unknown_rollout_gets_none_and_changes_nothing(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        pair = (started.rollout_id, started.attempt.attempt_id)
        with pytest.raises(RolloutNotFoundError, match="^Rollout ro-x not found$"):
            await store.get_many_span_sequence_ids([pair, ("ro-x", "at-x")])
        assert await store.get_next_span_sequence_id(*pair) == 1

    async def test_f19_a_retry_goes_on_counting(self, store: LightningStore) -> None:
        first = await store.start_rollout("task", config=retrying())
        await store.get_next_span_sequence_id(first.rollout_id, first.attempt.attempt_id)
        await report(store, first, "failed")
        second = await claim(store)
        assert await store.get_next_span_sequence_id(second.rollout_id, second.attempt.attempt_id) == 2


class OtelSpansContract(ContractBase):
    """Fact 21: add_otel_span."""

    async def test_f21_everything_that_the_sdk_recorded_is_kept(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        recorded = make_readable_span(1)
        added = await store.add_otel_span(started.rollout_id, started.attempt.attempt_id, recorded)
        assert added is not None
        assert list(await store.query_spans(started.rollout_id)) == [added]
        expected = make_full_span(started)
        assert added.model_dump(exclude={"scope", "flags"}) == expected.model_dump(exclude={"scope", "flags"})
        assert added.scope is not None
        scope = (added.scope.name, added.scope.version, added.scope.schema_url, added.scope.attributes)
        assert scope == ("agent", "1.2", "https://example.com/scope", {"s": "t"})

    async def test_f21_a_small_span(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        recorded = ReadableSpan("step", context=SdkContext(int(TRACE_ID, 16), 5, False), end_time=2 * 10**9)
        added = await store.add_otel_span(started.rollout_id, started.attempt.attempt_id, recorded)
        assert added is not None
        assert (added.trace_id, added.span_id, added.parent_id) == (TRACE_ID, f"{5:016x}", None)
        assert (added.start_time, added.end_time, added.status) == (None, 2.0, TraceStatus(status_code="UNSET"))

    async def test_f21_times_are_float_seconds(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        context = SdkContext(int(TRACE_ID, 16), 5, False)
        recorded = ReadableSpan("step", context=context, start_time=1_700_000_000_123_456_789, end_time=2_000_000_001)
        added = await store.add_otel_span(started.rollout_id, started.attempt.attempt_id, recorded)
        assert added is not None
        assert (added.start_time, added.end_time) == (1_700_000_000_123_456_789 / 1e9, 2_000_000_001 / 1e9)

    async def test_f21_a_number_is_allocated_when_none_is_given(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        ids = (started.rollout_id, started.attempt.attempt_id)
        given = [
            await store.add_otel_span(*ids, make_readable_span(n), sequence_id=s)
            for n, s in [(1, None), (2, 7), (3, None)]
        ]
        assert [span.sequence_id for span in given if span is not None] == [1, 7, 8]

    async def test_f21_a_duplicate_takes_no_number(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        ids = (started.rollout_id, started.attempt.attempt_id)
        assert await store.add_otel_span(*ids, make_readable_span(1)) is not None
        assert await store.add_otel_span(*ids, make_readable_span(1)) is None
        assert await store.get_next_span_sequence_id(*ids) == 2

    async def test_f21_only_a_finished_span_is_taken(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        ids = (started.rollout_id, started.attempt.attempt_id)
        context = SdkContext(int(TRACE_ID, 16), 5, False)
        recording_nothing = [
            INVALID_SPAN,
            NonRecordingSpan(context),
            ReadableSpan("bare", context=INVALID_SPAN_CONTEXT),
        ]
        for span in recording_nothing:
            with pytest.raises(ValueError, match="records nothing; take the tracer from a TracerProvider"):
                await store.add_otel_span(*ids, cast("Any", span))
        with pytest.raises(ValueError, match=r"'step' has not ended; call its end\(\)"):
            await store.add_otel_span(*ids, ReadableSpan("step", context=context, start_time=1))
        with pytest.raises(TypeError, match="readable_span is a str without a context; give a finished span"):
            await store.add_otel_span(*ids, cast("Any", "step"))
        assert list(await store.query_spans(started.rollout_id)) == []
        assert await statuses(store, started) == ("preparing", "preparing")

    async def test_f21_it_moves_the_attempt_as_any_span_does(self, store: LightningStore, clock: FakeClock) -> None:
        started = await store.start_rollout("task")
        clock.advance(5)
        await store.add_otel_span(started.rollout_id, started.attempt.attempt_id, make_readable_span(1))
        assert await statuses(store, started) == ("running", "running")
        assert (await look_at_attempt(store, started)).last_heartbeat_time == clock.now()

    async def test_f21_unknown_ids_are_refused(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        with pytest.raises(ValueError, match="^Rollout ro-x not found$"):
            await store.add_otel_span("ro-x", started.attempt.attempt_id, make_readable_span(1))
        with pytest.raises(ValueError, match="^Attempt at-x not found for rollout"):
            await store.add_otel_span(started.rollout_id, "at-x", make_readable_span(1))
        assert await store.get_next_span_sequence_id(started.rollout_id, started.attempt.attempt_id) == 1


class ReadingSpansContract(ContractBase):
    """Fact 22: query_spans, the attempts it covers, and its order."""

    async def test_f22_all_attempts_by_ascending_number(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        await store.add_many_spans(
            [make_span(first, 4), make_span(second, 3), make_span(first, 1), make_span(second, 2)]
        )
        assert await numbers(store, first) == [1, 2, 3, 4]

    async def test_f22_ties_stand_in_the_order_of_insertion(self, store: LightningStore) -> None:
        started = await store.start_rollout("task")
        names = ["c", "a", "b"]
        for index, name in enumerate(names):
            await store.add_span(make_span(started, 1, span_id=f"{9 - index:016x}", name=name))
        assert [span.name for span in await store.query_spans(started.rollout_id)] == names

    async def test_f22_one_attempt(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        second = await store.start_attempt(first.rollout_id)
        spans = [make_span(first, 1), make_span(second, 2)]
        await store.add_many_spans(spans)
        assert list(await store.query_spans(first.rollout_id, first.attempt.attempt_id)) == spans[:1]
        assert list(await store.query_spans(first.rollout_id, attempt_id="latest")) == spans[1:]
        assert list(await store.query_spans(first.rollout_id, "at-x")) == []

    async def test_f22_latest_is_the_newest_attempt_even_without_spans(self, store: LightningStore) -> None:
        first = await store.start_rollout("task")
        await store.add_span(make_span(first, 1))
        await store.start_attempt(first.rollout_id)
        assert list(await store.query_spans(first.rollout_id, "latest")) == []


# --- Making spans ----------------------------------------------------------------------------------------------------


def make_full_span(rollout: AttemptedRollout) -> Span:
    """A span with something in each field; ``make_readable_span(1)`` is the same span as the SDK records it."""
    attributes: dict[str, Any] = {"text": "\u00e9", "flag": True, "count": 2**40, "ratio": 0.1, "list": ["a", "b"]}
    return make_span(
        rollout,
        1,
        trace_id=TRACE_ID,
        parent_id=f"{0xABC:016x}",
        name="call",
        status=TraceStatus(status_code="ERROR", description="went wrong"),
        attributes=attributes,
        events=[Event(name="tick", attributes={"n": 1}, timestamp=1_700_000_000.5)],
        links=[Link(context=_context(0xDEF, is_remote=True), attributes={"l": 1.5})],
        start_time=1_700_000_000.25,
        end_time=1_700_000_000.75,
        context=_context(1),
        parent=_context(0xABC, is_remote=True),
        resource=OtelResource(attributes={"service.name": "agent"}, schema_url="https://example.com/resource"),
        kind="CLIENT",
    )


def _context(span_id: int, is_remote: bool = False) -> SpanContext:
    return SpanContext(trace_id=TRACE_ID, span_id=f"{span_id:016x}", is_remote=is_remote, trace_state={"k": "v"})


def make_readable_span(number: int) -> ReadableSpan:
    """A span as the OpenTelemetry SDK records it, with ``number`` as its span id."""
    return ReadableSpan(
        "call",
        context=_sdk_context(number),
        parent=_sdk_context(0xABC, is_remote=True),
        resource=SdkResource({"service.name": "agent"}, "https://example.com/resource"),
        attributes={"text": "\u00e9", "flag": True, "count": 2**40, "ratio": 0.1, "list": ("a", "b")},
        events=(SdkEvent("tick", attributes={"n": 1}, timestamp=1_700_000_000_500_000_000),),
        links=(SdkLink(_sdk_context(0xDEF, is_remote=True), attributes={"l": 1.5}),),
        kind=SpanKind.CLIENT,
        status=Status(StatusCode.ERROR, "went wrong"),
        start_time=1_700_000_000_250_000_000,
        end_time=1_700_000_000_750_000_000,
        instrumentation_scope=SdkScope("agent", "1.2", "https://example.com/scope", {"s": "t"}),
    )


def _sdk_context(span_id: int, is_remote: bool = False) -> SdkContext:
    return SdkContext(int(TRACE_ID, 16), span_id, is_remote, TraceFlags(1), TraceState([("k", "v")]))
