"""The stub of a model: for each prompt a choice among a few answers, one of which is right."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lightning_store import Resource

Matrix = NDArray[np.float64]

POLICY: Final = "policy"
"""The name under which the weights are published."""
RUN: Final = "grpo"
PROMPTS: Final = 64
ANSWERS: Final = 8
LEARNING_RATE: Final = 4.0

ANSWER: Final = "answer"
REWARD: Final = "reward"
"""Attributes of a sample's span."""
FREE_TIME: Final = "free_time"
"""When a runner was free whose sample was called off, in the metadata of its attempt."""


def right_answer(prompt: int) -> int:
    return prompt * 5 % ANSWERS


def untrained() -> Matrix:
    """Logits of each answer to each prompt."""
    return np.zeros((PROMPTS, ANSWERS))


def to_resource(logits: Matrix) -> Resource:
    return Resource.model_validate({"resource_type": "grpo_policy", "logits": np.round(logits, 6).tolist()})


def from_resource(resource: Resource) -> Matrix:
    fields: dict[str, Any] = resource.model_dump()
    return np.array(fields["logits"])


def probabilities(logits: Matrix, prompt: int) -> NDArray[np.float64]:
    weights = np.exp(logits[prompt] - logits[prompt].max())
    return np.asarray(weights / weights.sum())


def gradient(logits: Matrix, prompt: int, samples: list[tuple[int, float]]) -> NDArray[np.float64]:
    """Of one prompt, for its answers with their rewards: each counts by how much better it is than the others."""
    rewards = np.array([reward for _, reward in samples])
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    chosen = np.eye(ANSWERS)[[answer for answer, _ in samples]]
    return np.asarray((advantages[:, None] * (chosen - probabilities(logits, prompt))).mean(axis=0))
