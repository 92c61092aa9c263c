"""Hypothesis strategies for everything that a store takes and returns, odd values included.

Use them to test a store or a codec of your own::

    @given(strategies.rollouts())
    def test_my_store_keeps_it(rollout): ...

What they make is legal by the model, and can be told apart after a round trip except for ``nan``, which equals nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from hypothesis import strategies as st

from lightning_store.model import (
    LLM,
    TIME_MAX_SECONDS,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    AttemptUpdate,
    EnqueueRolloutRequest,
    Event,
    InstrumentationScope,
    Link,
    OtelResource,
    PromptTemplate,
    ProxyLLM,
    Resource,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    RolloutUpdate,
    Span,
    SpanContext,
    SpanKind,
    SpanStatusCode,
    TemplateEngine,
    TraceStatus,
    Worker,
    WorkerStatus,
)
from lightning_store.wire.times import EXACT_FROM_SECONDS

T = TypeVar("T")

# --- Plain values ----------------------------------------------------------------------------------------------------


def texts() -> st.SearchStrategy[str]:
    """Any text that has a UTF-8 form."""
    return st.text(max_size=20)


def odd_texts() -> st.SearchStrategy[str]:
    """Any text that JSON can hold, unpaired surrogates included. (Two that make a pair are one character in JSON.)"""
    return st.text(st.characters(exclude_categories=()), max_size=20).map(_pairs_joined)


def ids() -> st.SearchStrategy[str]:
    """Ids of rollouts, attempts, workers and resources: any text that is not empty."""
    return st.one_of(_store_ids(), st.text(min_size=1, max_size=20))


def _store_ids() -> st.SearchStrategy[str]:
    return st.from_regex(r"[a-z]{2}-[0-9a-f]{8}", fullmatch=True)


def times() -> st.SearchStrategy[float]:
    """Seconds since the epoch, from April 1970 on."""
    return st.floats(EXACT_FROM_SECONDS, TIME_MAX_SECONDS)


def durations() -> st.SearchStrategy[float]:
    """Seconds, in whole nanoseconds where they are few."""
    return st.one_of(st.integers(0, 10**16).map(lambda nanos: nanos / 10**9), times())


def json_values() -> st.SearchStrategy[Any]:
    """Anything JSON can hold as Python writes it: integers of any size, nan and the infinities, any text."""
    return st.recursive(_scalars(), lambda items: st.one_of(_lists(items), _dicts(odd_texts(), items)), max_leaves=8)


def json_objects() -> st.SearchStrategy[dict[str, Any]]:
    """JSON values that are objects."""
    return _dicts(odd_texts(), json_values())


# --- Rollouts and attempts -------------------------------------------------------------------------------------------


def rollout_configs() -> st.SearchStrategy[RolloutConfig]:
    return st.builds(
        RolloutConfig,
        timeout_seconds=_optional(durations()),
        unresponsive_seconds=_optional(durations()),
        max_attempts=st.integers(1, 2**31 - 1),
        retry_condition=st.lists(st.sampled_from(get_args(AttemptStatus)), max_size=4),
    )


def attempts(rollout_id: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Attempt]:
    return st.builds(
        Attempt,
        rollout_id=ids() if rollout_id is None else rollout_id,
        attempt_id=ids(),
        sequence_id=counters(),
        start_time=times(),
        end_time=_optional(times()),
        status=st.sampled_from(get_args(AttemptStatus)),
        worker_id=_optional(texts()),
        last_heartbeat_time=_optional(times()),
        metadata=_optional(json_objects()),
    )


def rollouts() -> st.SearchStrategy[Rollout]:
    """Rollouts without an attempt."""
    return _rollout_fields().map(lambda fields: Rollout(**fields))


@st.composite
def attempted_rollouts(draw: st.DrawFn) -> AttemptedRollout:
    """Rollouts with their latest attempt."""
    fields = draw(_rollout_fields())
    return AttemptedRollout(**fields, attempt=draw(attempts(st.just(fields["rollout_id"]))))


def enqueue_requests() -> st.SearchStrategy[EnqueueRolloutRequest]:
    return st.builds(
        EnqueueRolloutRequest,
        input=json_values(),
        mode=_modes(),
        resources_id=_optional(texts()),
        config=_optional(rollout_configs()),
        metadata=_optional(json_objects()),
    )


def rollout_updates() -> st.SearchStrategy[RolloutUpdate]:
    """Updates of some fields; the others are not in ``model_fields_set``."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "input": json_values(),
        "mode": _modes(),
        "resources_id": _optional(texts()),
        "status": st.sampled_from(get_args(RolloutStatus)),
        "config": rollout_configs(),
        "metadata": _optional(json_objects()),
    }
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: RolloutUpdate(**given))


def attempt_updates() -> st.SearchStrategy[AttemptUpdate]:
    """Updates of some fields; the others are not in ``model_fields_set``."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "status": st.sampled_from(get_args(AttemptStatus)),
        "worker_id": _optional(texts()),
        "last_heartbeat_time": _optional(times()),
        "metadata": _optional(json_objects()),
    }
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: AttemptUpdate(**given))


# --- Spans -----------------------------------------------------------------------------------------------------------


def hex_ids(digits: int) -> st.SearchStrategy[str]:
    """Ids as OpenTelemetry writes them."""
    return st.binary(min_size=digits // 2, max_size=digits // 2).map(bytes.hex)


def attributes() -> st.SearchStrategy[dict[str, Any]]:
    """Attributes as the model allows them: all of JSON, and bytes wherever OpenTelemetry allows them."""
    plain = st.recursive(
        st.one_of(_scalars(), st.binary(max_size=8)),
        lambda items: st.one_of(_lists(items), _dicts(texts(), items)),
        max_leaves=6,
    )
    return st.one_of(_dicts(texts(), plain), json_objects())


def span_ids(usual: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Ids of spans and of what they belong to: any text that is not empty and that every database holds."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.one_of(usual, st.text(characters, min_size=1, max_size=20))


def span_contexts() -> st.SearchStrategy[SpanContext]:
    state: st.SearchStrategy[dict[str, str]] = st.one_of(
        st.just({}), st.dictionaries(odd_texts(), odd_texts(), max_size=2)
    )
    flags = st.fixed_dictionaries({}, optional={"trace_flags": st.one_of(st.integers(0, 300), json_values())})
    return _open(
        SpanContext,
        st.fixed_dictionaries(
            {
                "trace_id": st.one_of(hex_ids(32), odd_texts()),
                "span_id": st.one_of(hex_ids(16), odd_texts()),
                "is_remote": st.booleans(),
                "trace_state": state,
            }
        ),
        flags,
    )


def spans() -> st.SearchStrategy[Span]:
    """Any span that the model allows, however odd."""
    fields = st.fixed_dictionaries(
        {
            "rollout_id": span_ids(_store_ids()),
            "attempt_id": span_ids(_store_ids()),
            "sequence_id": counters(),
            "trace_id": span_ids(hex_ids(32)),
            "span_id": span_ids(hex_ids(16)),
            "parent_id": _optional(span_ids(hex_ids(16))),
            "name": odd_texts(),
            "status": _trace_statuses(),
            "attributes": attributes(),
            "events": st.lists(_events(), max_size=2),
            "links": st.lists(_links(), max_size=2),
            "start_time": _optional(_any_times()),
            "end_time": _optional(_any_times()),
            "context": _optional(span_contexts()),
            "parent": _optional(span_contexts()),
            "resource": _otel_resources(),
            "kind": _optional(st.one_of(st.sampled_from(get_args(SpanKind)), st.integers(6, 2**31 - 1))),
            "scope": _optional(_scopes()),
        }
    )
    return _open(Span, fields, _counts("dropped_attributes_count", "dropped_events_count", "dropped_links_count"))


@st.composite
def usual_spans(draw: st.DrawFn) -> Span:
    """Spans as an OpenTelemetry SDK makes them."""
    trace_id, span_id, parent_id = draw(hex_ids(32)), draw(hex_ids(16)), draw(_optional(hex_ids(16)))
    remote = draw(st.booleans())
    start_time = draw(st.integers(10**18, 4 * 10**18)) / 10**9
    context = SpanContext(trace_id=trace_id, span_id=span_id, is_remote=False, trace_state={"vendor": "1"})
    parent = None if parent_id is None else context.model_copy(update={"span_id": parent_id, "is_remote": remote})
    link = SpanContext(trace_id=trace_id, span_id=span_id, is_remote=remote, trace_state={})
    values = draw(_dicts(texts(), _usual_attribute_values()))
    return Span(
        rollout_id=draw(span_ids(_store_ids())),
        attempt_id=draw(span_ids(_store_ids())),
        sequence_id=draw(counters()),
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        name=draw(texts()),
        status=TraceStatus(status_code="ERROR", description="it broke"),
        attributes=values,
        events=[Event(name="exception", attributes=values, timestamp=start_time)],
        links=[Link(context=link, attributes=values or None)],
        start_time=start_time,
        end_time=start_time + 1,
        context=context,
        parent=parent,
        resource=OtelResource(attributes={"service.name": "agent"}, schema_url=""),
        kind=draw(st.sampled_from(get_args(SpanKind))),
        scope=InstrumentationScope(name="library", version="1.2"),
    )


# --- Resources and workers -------------------------------------------------------------------------------------------


def resources() -> st.SearchStrategy[Resource]:
    """Resources of every known kind, and of kinds that are not known, with fields of their own."""
    llm = {"endpoint": odd_texts(), "model": odd_texts(), "api_key": _optional(odd_texts())}
    llm_fields = st.fixed_dictionaries({**llm, "sampling_parameters": json_objects()})
    template = {"template": odd_texts(), "engine": st.sampled_from(get_args(TemplateEngine))}
    generic = {"resource_type": st.sampled_from(["weights", "データ", "llm2"])}
    return st.one_of(
        _open(LLM, llm_fields),
        _open(ProxyLLM, llm_fields),
        _open(PromptTemplate, st.fixed_dictionaries(template)),
        _open(Resource, st.fixed_dictionaries(generic)),
    )


def resources_updates() -> st.SearchStrategy[ResourcesUpdate]:
    return st.builds(
        ResourcesUpdate,
        resources_id=ids(),
        resources=st.dictionaries(texts(), resources(), max_size=3),
        create_time=times(),
        update_time=times(),
        version=counters(),
    )


def workers() -> st.SearchStrategy[Worker]:
    return st.builds(
        Worker,
        worker_id=ids(),
        status=st.sampled_from(get_args(WorkerStatus)),
        heartbeat_stats=_optional(json_objects()),
        last_heartbeat_time=_optional(times()),
        last_dequeue_time=_optional(times()),
        last_busy_time=_optional(times()),
        last_idle_time=_optional(times()),
        current_rollout_id=_optional(texts()),
        current_attempt_id=_optional(texts()),
    )


# --- Parts -----------------------------------------------------------------------------------------------------------


def counters() -> st.SearchStrategy[int]:
    """Sequence numbers and versions."""
    return st.integers(0, 2**63 - 1)


def _optional(values: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    return st.one_of(st.none(), values)


def _pairs_joined(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _scalars() -> st.SearchStrategy[Any]:
    numbers = st.one_of(st.integers(-(2**70), 2**70), st.just(10**40), st.floats())
    return st.one_of(st.none(), st.booleans(), numbers, odd_texts())


def _lists(items: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(items, max_size=3)


def _dicts(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(keys, values, max_size=3)


def _modes() -> st.SearchStrategy[RolloutMode | None]:
    return _optional(st.sampled_from(get_args(RolloutMode)))


def _rollout_fields() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "rollout_id": ids(),
            "input": json_values(),
            "start_time": times(),
            "end_time": _optional(times()),
            "mode": _modes(),
            "resources_id": _optional(texts()),
            "status": st.sampled_from(get_args(RolloutStatus)),
            "config": rollout_configs(),
            "metadata": _optional(json_objects()),
        }
    )


def _open(
    model: type[T], fields: st.SearchStrategy[dict[str, Any]], more: st.SearchStrategy[dict[str, Any]] | None = None
) -> st.SearchStrategy[T]:
    """Objects of an open model, some of them with extra fields."""
    extra = st.dictionaries(st.text(min_size=1, max_size=8).map("x_{}".format), json_values(), max_size=2)
    known = st.just({}) if more is None else more
    return st.builds(lambda a, b, c: model(**a, **b, **c), fields, known, st.one_of(st.just({}), extra))


def _counts(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    count = st.one_of(st.integers(0, 3), st.integers(2**32 - 1, 2**32), json_values())
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, count))


def _any_times() -> st.SearchStrategy[float]:
    return st.floats(0, TIME_MAX_SECONDS)


def _trace_statuses() -> st.SearchStrategy[TraceStatus]:
    codes: st.SearchStrategy[Any] = st.one_of(st.sampled_from(get_args(SpanStatusCode)), st.integers(3, 2**31 - 1))
    return _open(TraceStatus, st.fixed_dictionaries({"status_code": codes, "description": _optional(odd_texts())}))


def _events() -> st.SearchStrategy[Event]:
    fields = {"name": odd_texts(), "attributes": attributes(), "timestamp": _optional(_any_times())}
    return _open(Event, st.fixed_dictionaries(fields), _counts("dropped_attributes_count"))


def _links() -> st.SearchStrategy[Link]:
    fields = st.fixed_dictionaries({"context": span_contexts(), "attributes": _optional(attributes())})
    return _open(Link, fields, _counts("dropped_attributes_count"))


def _otel_resources() -> st.SearchStrategy[OtelResource]:
    fields = st.fixed_dictionaries({"attributes": attributes(), "schema_url": odd_texts()})
    return _open(OtelResource, fields, _counts("dropped_attributes_count"))


def _scopes() -> st.SearchStrategy[InstrumentationScope]:
    fields = {
        "name": odd_texts(),
        "version": _optional(odd_texts()),
        "schema_url": _optional(odd_texts()),
        "attributes": _optional(attributes()),
    }
    return _open(InstrumentationScope, st.fixed_dictionaries(fields), _counts("dropped_attributes_count"))


def _usual_attribute_values() -> st.SearchStrategy[Any]:
    scalars: tuple[st.SearchStrategy[Any], ...] = (
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        texts(),
        st.binary(max_size=8),
    )
    return st.one_of(*scalars, *(st.lists(scalar, max_size=3) for scalar in scalars))
