"""What the algorithm publishes for the agents, in Agent Lightning's own types of resources."""

from __future__ import annotations

from typing import Final

import agentlightning as agl

from examples.svamp_demo.messages import POLICY, PolicyWeights
from examples.svamp_demo.policy import Vector

PROMPT: Final = "prompt"
"""The name of the template that a problem is put into words with."""


def pack(weights: Vector, step: int) -> agl.NamedResources:
    """The resources of training step ``step``: the prompt, and a "model" whose parameters are ``weights``."""
    parameters = PolicyWeights.pack(weights, step).model_dump()
    return {
        PROMPT: agl.PromptTemplate(template="{body} {question}", engine="f-string"),
        POLICY: agl.LLM(endpoint="in the agent", model="word-problem-policy", sampling_parameters=parameters),
    }


def unpack_weights(resources: agl.NamedResources) -> Vector:
    """The weights. ValueError if ``resources`` hold none."""
    policy = resources.get(POLICY)
    if not isinstance(policy, agl.LLM):
        raise ValueError(f"the resources hold no model {POLICY!r}")
    return PolicyWeights.model_validate(policy.sampling_parameters).unpack()


def unpack_prompt(resources: agl.NamedResources) -> agl.PromptTemplate:
    """The prompt. ValueError if ``resources`` hold none."""
    prompt = resources.get(PROMPT)
    if not isinstance(prompt, agl.PromptTemplate):
        raise ValueError(f"the resources hold no prompt template {PROMPT!r}")
    return prompt
