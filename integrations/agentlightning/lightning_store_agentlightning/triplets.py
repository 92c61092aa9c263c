"""Agent Lightning's triplet adapters, with the same output in a fraction of the time.

Each takes Agent Lightning's spans, and those of a ``LightningStore`` as they are, so that a batch is read in one call::

    adapter = FastLlmProxyTraceToTriplet()
    batch = await store.query_many_spans(rollout_ids, attributes=adapter.attributes)
    triplets = {rollout_id: adapter.adapt(spans) for rollout_id, spans in batch.items()}
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import agentlightning as agl
from agentlightning.adapter.triplet import RewardMatchPolicy, TraceToTripletBase, TraceTree
from agentlightning.emitter.reward import get_reward_value
from agentlightning.semconv import LightningSpanAttributes, RewardPydanticModel
from agentlightning.utils.otel import filter_and_unflatten_attributes
from pydantic import TypeAdapter
from pydantic_core import from_json

_REWARD: Final = LightningSpanAttributes.REWARD.value
_REWARDS: Final = TypeAdapter(list[RewardPydanticModel])
_STRING: Final = re.compile(
    r"""'(?:[^'\\\n]|\\(?:[\\'"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*+'"""
    r"""|"(?:[^"\\\n]|\\(?:[\\'"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*+\""""
)
"""A text as ``repr`` writes it."""
_CONSTANTS: Final = {"None": "null", "True": "true", "False": "false"}
TOKEN_IDS: Final = "token_ids"


class FastTracerTraceToTriplet(TraceToTripletBase):
    """``TracerTraceToTriplet``, whose arguments it takes."""

    def __init__(
        self,
        repair_hierarchy: bool = True,
        llm_call_match: str = r"openai\.chat\.completion",
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        reward_match: RewardMatchPolicy = RewardMatchPolicy.FIRST_OCCURRENCE,
    ) -> None:
        self.repair_hierarchy = repair_hierarchy
        self.llm_call_match = llm_call_match
        self.agent_match = agent_match
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.reward_match = reward_match

    def adapt(self, source: Sequence[Any], /) -> list[agl.Triplet]:
        tree = _Tree.from_spans(list(source))
        if self.repair_hierarchy:
            tree.repair_hierarchy()
        return tree.to_trajectory(
            llm_call_match=self.llm_call_match,
            agent_match=self.agent_match,
            exclude_llm_call_in_reward=self.exclude_llm_call_in_reward,
            reward_match=self.reward_match,
        )


class FastLlmProxyTraceToTriplet(TraceToTripletBase):
    """``LlmProxyTraceToTriplet``. That evaluates the replies of a model as Python, with all their logprobs."""

    attributes: Final = (
        "llm.hosted_vllm.prompt_token_ids",
        "llm.hosted_vllm.response_token_ids",
        "llm.hosted_vllm.choices",
        "llm.hosted_vllm.id",
        "gen_ai.response.id",
        "prompt_token_ids",
        "response_token_ids",
        f"{_REWARD}.*",
        "agentops.task.output",
        "agentops.entity.output",
        "reward",
    )
    """The attributes that it looks at."""

    def adapt(self, source: Sequence[Any], /) -> list[agl.Triplet]:
        spans = sorted(source, key=lambda span: (span.sequence_id, span.start_time))
        calls: list[tuple[Any, agl.Triplet]] = []
        seen: set[str] = set()
        for span in spans:
            read = _TOKENS.get(span.name)
            prompt, response = ([], []) if read is None else read(span.attributes or {})
            if not prompt or not response:
                continue
            response_id = _response_id(span.attributes)
            if response_id is not None and response_id in seen:
                continue
            if response_id is not None:
                seen.add(response_id)
            metadata = {"response_id": response_id}
            triplet = agl.Triplet(prompt={TOKEN_IDS: prompt}, response={TOKEN_IDS: response}, metadata=metadata)
            calls.append((span, triplet))
        _assign_rewards(spans, calls)
        return [triplet for _, triplet in calls]


class _Tree(TraceTree):
    def maybe_reward_dict(self) -> dict[str, Any]:
        value = reward_of(self.span)
        return {} if value is None else {"type": "reward", "value": value}


def reward_of(span: Any) -> float | None:
    """Agent Lightning's ``get_reward_value``, which makes a validator for each reward."""
    if span.attributes and any(key.startswith(_REWARD) for key in span.attributes):
        rewards = _REWARDS.validate_python(filter_and_unflatten_attributes(span.attributes, _REWARD))
        if rewards:
            return rewards[0].value
    return get_reward_value(span)


def _assign_rewards(spans: Sequence[Any], calls: Sequence[tuple[Any, agl.Triplet]]) -> None:
    """Give each reward to the last call before it that has none."""
    numbers = [span.sequence_id for span, _ in calls]
    rewards: dict[str, float] = {}
    for span in spans:
        value = reward_of(span)
        if value is None:
            continue
        before = bisect_left(numbers, span.sequence_id)
        free = (call.span_id for call, _ in reversed(calls[:before]) if call.span_id not in rewards)
        if (span_id := next(free, None)) is not None:
            rewards[span_id] = value
    for span, triplet in calls:
        triplet.reward = rewards.get(span.span_id)


# --- What a span says of a call --------------------------------------------------------------------------------------


def _response_id(attributes: Mapping[str, Any]) -> str | None:
    found = attributes.get("gen_ai.response.id") or attributes.get("llm.hosted_vllm.id")
    return found if isinstance(found, str) and found else None


def _of_raw_request(attributes: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    prompt = _evaluated(attributes.get("llm.hosted_vllm.prompt_token_ids"))
    responses = _evaluated(attributes.get("llm.hosted_vllm.response_token_ids"))
    response = _ids(responses[0]) if isinstance(responses, list) and responses else []
    if not response:
        choices = _evaluated(attributes.get("llm.hosted_vllm.choices"))
        first = choices[0] if isinstance(choices, list) and choices else None
        response = _ids(first.get(TOKEN_IDS)) if isinstance(first, dict) else []
    return _ids(prompt), response


def _of_litellm_request(attributes: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    return _ids(_evaluated(attributes.get("prompt_token_ids"))), _ids(_evaluated(attributes.get("response_token_ids")))


_TOKENS: Final[Mapping[str, Callable[[Mapping[str, Any]], tuple[list[int], list[int]]]]] = {
    "raw_gen_ai_request": _of_raw_request,
    "litellm_request": _of_litellm_request,
}
"""Names of spans that have tokens, and what reads them: those of the prompt and of the response."""


def _ids(value: Any) -> list[int]:
    return value if isinstance(value, list) and set(map(type, value)) <= {int, bool} else []


def _evaluated(value: Any) -> Any:
    """A text as ``ast.literal_eval`` has it, but for the texts in it that nobody looks at."""
    if not isinstance(value, str):
        return value
    short = _STRING.sub(lambda text: '"token_ids"' if text[0][1:-1] == TOKEN_IDS else '""', value)
    if not any(constant in short for constant in _CONSTANTS.values()):
        for constant, in_json in _CONSTANTS.items():
            short = short.replace(constant, in_json)
        try:
            return from_json(short, allow_inf_nan=False)
        except ValueError:
            pass
    try:
        return ast.literal_eval(value)
    except Exception:  # as theirs: it is no literal then
        return value
