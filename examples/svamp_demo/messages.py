"""What the algorithm and the runners say to each other through the store: weights as a resource, tasks as inputs."""

from __future__ import annotations

import base64
import binascii
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from examples.svamp_demo.policy import FEATURE_COUNT, Vector
from examples.svamp_demo.problems import Problem
from lightning_store import Resource

POLICY: Final = "policy"
"""The name under which the weights are published."""

_FORMAT: Final = np.dtype("<f4")


class PolicyWeights(Resource):
    """The weights of one iteration. A store that does not know this type returns it as a plain ``Resource``."""

    resource_type: Literal["svamp_policy"] = "svamp_policy"
    iteration: int
    """Training steps behind these weights; 0 for the untrained policy."""
    weights_base64: str
    """FEATURE_COUNT little-endian 32-bit floats: about 11 kB of text."""

    @classmethod
    def pack(cls, weights: Vector, iteration: int) -> PolicyWeights:
        """The resource for ``weights``, rounded to 32 bits."""
        text = base64.b64encode(weights.astype(_FORMAT).tobytes()).decode("ascii")
        return cls(iteration=iteration, weights_base64=text)

    @classmethod
    def of(cls, resource: Resource) -> PolicyWeights:
        """From what a store returned. ``pydantic.ValidationError`` if it is something else."""
        return cls.model_validate(resource.model_dump())

    def unpack(self) -> Vector:
        """The weights. ValueError if the text does not hold FEATURE_COUNT floats."""
        try:
            weights = np.frombuffer(base64.b64decode(self.weights_base64, validate=True), dtype=_FORMAT)
        except binascii.Error as error:
            raise ValueError(f"weights_base64 is not base64 text: {error}") from error
        if weights.shape != (FEATURE_COUNT,):
            raise ValueError(f"the policy has {weights.size} weights, this program works with {FEATURE_COUNT}")
        return weights.astype(np.float64)


class Task(BaseModel):
    """The input of a rollout: a problem, and how to go about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: Problem
    tries: int
    """How many answers to give."""
    greedy: bool
    """Whether to give the best answer instead of drawn ones."""
    seed: int
    """Makes the draws the same whichever runner does them, in the first attempt or a later one."""
