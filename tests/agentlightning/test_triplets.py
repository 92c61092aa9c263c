"""The fast adapters make of the same spans what Agent Lightning's make, and one call reads all that they look at."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from agentlightning.adapter import LlmProxyTraceToTriplet, TracerTraceToTriplet
from agentlightning.adapter.triplet import RewardMatchPolicy
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_store import InMemoryLightningStore, Span
from lightning_store_agentlightning import convert
from lightning_store_agentlightning.triplets import FastLlmProxyTraceToTriplet, FastTracerTraceToTriplet

IDS = list(range(7))
CHOICE = {
    "message": {"content": 'it\'s "so"\n\\ \x00\u00e9', "tool_calls": None, "ok": True},
    "logprobs": {"content": [{"token": "token_ids", "logprob": -1e-05, "bytes": [1], "top_logprobs": []}] * 3},
    "token_ids": IDS,
}

literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("token_ids"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.just("token_ids") | st.text(max_size=2) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
ids = st.just(IDS) | st.lists(st.integers() | st.booleans(), max_size=3)
texts = (
    (ids | st.lists(ids, max_size=2) | literals | st.lists(st.fixed_dictionaries({"token_ids": ids}))).map(repr)
    | st.sampled_from(
        ["[1, 2,]", "[+1]", "[-0]", "[null]", "[1", "(1,)", "[True]", "'a' 'b'", "[0x10]", "[1.0]", "{1}"]
    )
    | st.sampled_from(["[NaN]", r"['\x']", "[b'a']", "[1] # one", " [1]", "[1]\n", "[1_0]", "[[1], 'it''s']", "[01]"])
)
values = texts | ids | st.none()
KEYS = [
    "llm.hosted_vllm.prompt_token_ids",
    "llm.hosted_vllm.response_token_ids",
    "llm.hosted_vllm.choices",
    "prompt_token_ids",
    "response_token_ids",
]
attributes = st.builds(
    lambda tokens, rest: tokens | rest,
    st.dictionaries(st.sampled_from(KEYS), values, min_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "gen_ai.response.id": st.sampled_from(["r1", "r2", "", 3]),
            "llm.hosted_vllm.id": st.sampled_from(["r1", "r3"]),
            "agentlightning.reward.0.name": st.just("primary"),
            "agentops.task.output": st.sampled_from(['{"type": "reward", "value": 0.5}', "{", '{"type": "x"}']),
            "reward": st.sampled_from([0.25, 1]),
        },
    ).map(
        lambda rest: rest | ({"agentlightning.reward.0.value": 1.0} if "agentlightning.reward.0.name" in rest else {})
    ),
)
names = st.sampled_from(
    ["raw_gen_ai_request", "litellm_request", "agentlightning.annotation", "openai.chat.completion"]
)


def a_span(number: int, name: str, of: dict[str, Any], sequence_id: int, parent: int | None = None) -> Span:
    return Span(
        rollout_id="ro-1",
        attempt_id="at-1",
        sequence_id=sequence_id,
        trace_id="a" * 32,
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        name=name,
        attributes=of,
        start_time=float(number),
        end_time=number + 0.5,
    )


def made(adapter: Any, spans: list[Any]) -> Any:
    """What it makes, or which error it raises."""
    try:
        return adapter.adapt(spans)
    except Exception as error:
        return type(error)


@given(st.lists(st.tuples(names, attributes, st.integers(1, 5)), max_size=5))
@example([("raw_gen_ai_request", {KEYS[0]: repr(IDS), KEYS[2]: repr([CHOICE])}, 1)])
@example([("raw_gen_ai_request", {KEYS[0]: repr(IDS), KEYS[2]: repr([CHOICE])[:-30]}, 1)])
@example([("raw_gen_ai_request", {KEYS[0]: repr(IDS), KEYS[2]: repr([{**CHOICE, "x": math.inf}])}, 1)])
def test_the_adapter_for_the_proxy_makes_the_same(given: list[tuple[str, dict[str, Any], int]]):
    spans = [a_span(number, *one) for number, one in enumerate(given)]
    theirs = made(LlmProxyTraceToTriplet(), [convert.span_to_agl(span) for span in spans])
    assert made(FastLlmProxyTraceToTriplet(), spans) == theirs


def test_what_the_literals_of_the_proxy_say_is_read():
    span = a_span(1, "raw_gen_ai_request", {KEYS[0]: repr(IDS), KEYS[2]: repr([CHOICE])}, 1)
    [triplet] = FastLlmProxyTraceToTriplet().adapt([span])
    assert (triplet.prompt, triplet.response) == ({"token_ids": IDS}, {"token_ids": IDS})


@pytest.mark.parametrize("parents", [[None, 0, 1, 1, 0, 0, 0], [None, 0, 0, 0, 0, 0, 0], [9, 0, None, 1, 2, None, 8]])
@pytest.mark.parametrize("reward_match", RewardMatchPolicy)
@pytest.mark.parametrize("agent_match", [None, "solver"])
def test_the_adapter_for_tracers_makes_the_same(
    parents: list[int | None], reward_match: RewardMatchPolicy, agent_match: str | None
):
    call = {
        "prompt_token_ids": IDS,
        "response_token_ids": IDS,
        "gen_ai.request.model": "m",
        "gen_ai.prompt.0.content": "hi",
        "logprobs.content": json.dumps([{"logprob": -0.5}]),
    }
    rewards = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 0.5}
    agent = {"agentops.span.kind": "agent", "operation.name": "solver"}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("session", {}),
        ("agent", agent),
        ("openai.chat.completion", {**call, "gen_ai.response.id": "r1"}),
        ("openai.chat.completion", {**call, "gen_ai.response.id": "r2"}),
        ("agentlightning.annotation", rewards),
        ("openai.chat.completion", call),
        ("agentlightning.annotation", {"reward": 0.25}),
    ]
    spans = [
        a_span(number, name, of, number, parent)
        for number, ((name, of), parent) in enumerate(zip(kinds, parents, strict=True))
    ]
    spans[1].end_time = 4.6  # encloses calls, to which the hierarchy can be repaired
    options: dict[str, Any] = {"reward_match": reward_match, "agent_match": agent_match}
    theirs = TracerTraceToTriplet(**options).adapt([convert.span_to_agl(span) for span in spans])
    assert FastTracerTraceToTriplet(**options).adapt(spans) == theirs
    assert agent_match is not None or len(theirs) == 3


def test_one_call_reads_all_that_the_adapter_for_the_proxy_looks_at():
    async def read():
        store = InMemoryLightningStore()
        started = await store.start_rollout("task")
        ids = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
        rewards = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 0.5}
        spans = [
            a_span(1, "raw_gen_ai_request", {KEYS[0]: repr(IDS), KEYS[2]: repr([CHOICE]), "prompt": "x"}, 1),
            a_span(2, "agentlightning.annotation", rewards, 2),
        ]
        await store.add_many_spans([span.model_copy(update=ids) for span in spans])
        adapter = FastLlmProxyTraceToTriplet()
        batch = await store.query_many_spans([started.rollout_id], attributes=adapter.attributes)
        assert "prompt" not in batch[started.rollout_id][0].attributes
        return adapter.adapt(batch[started.rollout_id]), adapter.adapt(spans)

    reduced, whole = asyncio.run(read())
    assert reduced == whole
    assert [triplet.reward for triplet in reduced] == [0.5]
