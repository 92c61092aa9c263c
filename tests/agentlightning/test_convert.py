"""Every type, there and back, with nothing lost."""

from __future__ import annotations

import logging

import agentlightning as agl
import pytest
from agentlightning.types import Event, Link, OtelResource, PaginatedResult, SpanContext, TraceStatus
from hypothesis import given
from hypothesis import strategies as st

from lightning_store import model
from lightning_store.testing import strategies
from lightning_store_agentlightning import convert
from lightning_store_agentlightning.convert import OpenLLM, OpenOtelResource, OpenResource
from tests.wire.same import assert_same

OURS = {
    "config": (strategies.rollout_configs(), convert.config_to_agl, convert.config_from_agl),
    "attempt": (strategies.attempts(), convert.attempt_to_agl, convert.attempt_from_agl),
    "rollout": (strategies.rollouts(), convert.rollout_to_agl, convert.rollout_from_agl),
    "attempted rollout": (strategies.attempted_rollouts(), convert.rollout_to_agl, convert.rollout_from_agl),
    "request": (strategies.enqueue_requests(), convert.request_to_agl, convert.request_from_agl),
    "odd span": (strategies.spans(), convert.span_to_agl, convert.span_from_agl),
    "usual span": (strategies.usual_spans(), convert.span_to_agl, convert.span_from_agl),
    "resources": (strategies.resources_updates(), convert.resources_to_agl, convert.resources_from_agl),
    "worker": (strategies.workers(), convert.worker_to_agl, convert.worker_from_agl),
}


@given(st.data())
@pytest.mark.parametrize(("values", "to_agl", "from_agl"), OURS.values(), ids=OURS)
def test_ours_there_and_back(values, to_agl, from_agl, data):
    value = data.draw(values)
    assert_same(from_agl(to_agl(value)), value)


def test_the_versions_of_an_attempt_are_members_of_its_metadata():
    stamps = {"resources_version": 1, "policy_version": 3, "policy_version_min": 2, "policy_version_max": 4}
    fields = {"rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 1, "start_time": 1.0, "metadata": {"n": 1}}
    attempt = model.Attempt.model_validate(fields | stamps)
    theirs = convert.attempt_to_agl(attempt)
    assert theirs.metadata == {"n": 1} | {f"lightning.{name}": value for name, value in stamps.items()}
    assert_same(convert.attempt_from_agl(theirs), attempt)


# --- Theirs ----------------------------------------------------------------------------------------------------------


def optional(values):
    return st.one_of(st.none(), values)


def attributes():
    """As their model declares them."""
    scalars = [st.text(max_size=5), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)]
    lists = [st.lists(values, max_size=3) for values in scalars]
    return st.dictionaries(st.text(max_size=5), st.one_of(*scalars, *lists), max_size=3)


def extras():
    """Some of them under names that are fields of ours, with values that fit there and values that do not."""
    kinds = st.sampled_from(["CLIENT", "SpanKind.INTERNAL", 3, 7, None, ""])
    scope = model.InstrumentationScope(name="library", version="1").model_dump()
    scopes = st.sampled_from([scope, {"name": "library"}, {**scope, "name": 1}, "library", None, [], {}])
    known = st.fixed_dictionaries({}, optional={"kind": kinds, "scope": scopes})
    more = st.dictionaries(st.text(min_size=1, max_size=5).map("x_{}".format), strategies.json_values(), max_size=2)
    return st.builds(lambda a, b: {**a, **b}, known, more)


def opened(cls, **fields):
    more = st.dictionaries(st.text(min_size=1, max_size=5).map("x_{}".format), strategies.json_values(), max_size=2)
    return st.builds(lambda a, b: cls(**a, **b), st.fixed_dictionaries(fields), more)


def contexts():
    state = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)
    ids = {"trace_id": strategies.hex_ids(32), "span_id": strategies.hex_ids(16)}
    return opened(SpanContext, **ids, is_remote=st.booleans(), trace_state=state)


def spans():
    codes = st.sampled_from(["UNSET", "OK", "ERROR"])
    fields = st.fixed_dictionaries(
        {
            "rollout_id": strategies.ids(),
            "attempt_id": strategies.ids(),
            "sequence_id": strategies.counters(),
            "trace_id": strategies.hex_ids(32),
            "span_id": strategies.hex_ids(16),
            "parent_id": optional(strategies.hex_ids(16)),
            "name": st.text(max_size=5),
            "status": opened(TraceStatus, status_code=codes, description=optional(st.text(max_size=5))),
            "attributes": attributes(),
            "events": st.lists(
                opened(
                    Event, name=st.text(max_size=5), attributes=attributes(), timestamp=optional(strategies.times())
                ),
                max_size=2,
            ),
            "links": st.lists(opened(Link, context=contexts(), attributes=optional(attributes())), max_size=2),
            "start_time": optional(strategies.times()),
            "end_time": optional(strategies.times()),
            "context": optional(contexts()),
            "parent": optional(contexts()),
            "resource": st.builds(OtelResource, attributes=attributes(), schema_url=st.text(max_size=5)),
        }
    )
    return st.builds(lambda a, b: agl.Span(**a, **b), fields, extras())


def resources_updates():
    llm = {
        "endpoint": st.text(max_size=5),
        "model": st.text(max_size=5),
        "api_key": optional(st.text(max_size=5)),
        "sampling_parameters": strategies.json_objects(),
    }
    template = st.builds(
        agl.PromptTemplate, template=st.text(max_size=5), engine=st.sampled_from(["jinja", "f-string", "poml"])
    )
    resources = st.one_of(st.builds(agl.LLM, **llm), st.builds(agl.ProxyLLM, **llm), template)
    return st.builds(
        agl.ResourcesUpdate,
        resources_id=st.text(max_size=5),
        create_time=strategies.times(),
        update_time=strategies.times(),
        version=strategies.counters(),
        resources=st.dictionaries(st.text(max_size=5), resources, max_size=3),
    )


@given(spans())
def test_their_spans_there_and_back(span):
    assert_same(convert.span_to_agl(convert.span_from_agl(span)), span)


@given(spans())
def test_their_spans_are_legal_here(span):
    ours = convert.span_from_agl(span)
    assert_same(model.Span.model_validate(ours.model_dump()), ours)


@given(resources_updates())
def test_their_resources_there_and_back(update):
    assert_same(convert.resources_to_agl(convert.resources_from_agl(update)), update)


@given(st.lists(strategies.workers(), max_size=3), st.integers(-1, 9), st.integers(0, 9), st.integers(0, 9))
def test_pages_there_and_back(workers, limit, offset, total):
    page = model.PaginatedResult(workers, limit, offset, total)
    theirs = convert.page_to_agl(page, convert.worker_to_agl)
    assert type(theirs) is PaginatedResult
    assert list(theirs) == [convert.worker_to_agl(worker) for worker in workers]
    assert convert.page_from_agl(theirs, convert.worker_from_agl) == page


# --- What the types are ----------------------------------------------------------------------------------------------


def test_resources_are_of_their_classes():
    update = model.ResourcesUpdate(
        resources_id="rs-1",
        resources={
            "llm": model.LLM(endpoint="http://a", model="m"),
            "proxy": model.ProxyLLM(endpoint="http://a/v1", model="m"),
            "prompt": model.PromptTemplate(template="{x}", engine="f-string"),
        },
        create_time=1e9,
        update_time=1e9,
        version=1,
    )
    theirs = convert.resources_to_agl(update)
    assert type(theirs) is agl.ResourcesUpdate
    assert [type(one) for one in theirs.resources.values()] == [agl.LLM, agl.ProxyLLM, agl.PromptTemplate]
    assert theirs.resources["proxy"].get_base_url("r", "a") == "http://a/rollout/r/attempt/a/v1"
    assert theirs.resources["prompt"].format(x=1) == "1"
    assert theirs == agl.ResourcesUpdate.model_validate(theirs.model_dump())


def test_a_proxy_is_converted_without_its_warning(caplog):
    proxy = agl.ProxyLLM(endpoint="http://a", model="m")
    with caplog.at_level(logging.WARNING):
        convert.resource_to_agl(convert.named_resources_from_agl({"p": proxy})["p"])
    assert not caplog.records


def test_resources_may_be_given_as_mappings():
    [llm] = convert.named_resources_from_agl({"a": {"resource_type": "llm", "endpoint": "e", "model": "m"}}).values()
    assert llm == model.LLM(endpoint="e", model="m")


def test_what_their_types_cannot_hold_comes_in_subclasses():
    llm = convert.resource_to_agl(model.LLM(endpoint="e", model="m", region="eu"))
    assert isinstance(llm, agl.LLM)
    assert (type(llm), llm.model_extra) == (OpenLLM, {"region": "eu"})
    weights = convert.resource_to_agl(model.Resource(resource_type="weights", path="p"))
    assert (type(weights), weights.resource_type, weights.model_extra) == (OpenResource, "weights", {"path": "p"})
    span = model.Span(
        rollout_id="r",
        attempt_id="a",
        sequence_id=1,
        trace_id="0" * 32,
        span_id="0" * 16,
        name="n",
        attributes={"none": None, "nested": {"a": [1, 2.0, "x"]}},
        resource=model.OtelResource(entity="host"),
    )
    theirs = convert.span_to_agl(span)
    assert type(theirs.resource) is OpenOtelResource
    assert theirs.attributes == span.attributes


def test_extra_fields_of_any_name():
    extra = {"cls": 1, "self": 2, "_fields_set": 3, "values": 4, "model_fields": 5}
    ids = {"rollout_id": "r", "attempt_id": "a", "trace_id": "0" * 32, "span_id": "0" * 16}
    span = model.Span(**ids, sequence_id=1, name="n", status=model.TraceStatus(status_code="OK", **extra), **extra)
    theirs = convert.span_to_agl(span)
    assert theirs.model_extra == theirs.status.model_extra == extra
    assert convert.span_from_agl(theirs) == span


def test_what_is_not_legal_here_is_a_value_error():
    with pytest.raises(ValueError, match="timeout_seconds"):
        convert.config_from_agl(agl.RolloutConfig(timeout_seconds=-1))
    with pytest.raises(ValueError, match="resource_type"):
        convert.named_resources_from_agl({"a": {"endpoint": "e"}})
