"""The agent: a softmax over all possible answers to a problem, linear in hashed features, and its gradients.

Shapes: a problem has C candidates (see ``arithmetic.candidates``) of at most F features each; the weights are a vector
of FEATURE_COUNT numbers. A candidate's score is the sum of the weights of its features.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from examples.svamp_demo.arithmetic import Candidate, candidates, is_number, number, tokens
from examples.svamp_demo.problems import Problem

FEATURE_COUNT: Final = 2048
"""Features are hashed into so many; the first stands for "no feature" and always weighs nothing."""

_NEAR_BEFORE: Final = 4
_NEAR_AFTER: Final = 4
"""How many tokens before and after a number count as its surroundings."""

_COMMON_WORDS: Final = frozenset(
    tokens(
        "a and are did do does had has have he how in is it many much of on she than that the there they to was were"
    )
)
"""Words that say nothing about which thing a question asks for."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EncodedProblem:
    """A problem in the form that the policy works on."""

    candidates: tuple[Candidate, ...]
    features: npt.NDArray[np.intp]
    """C x F feature numbers, filled up with 0."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What came of one rollout: the answers that were tried, and their rewards."""

    problem: EncodedProblem
    choices: tuple[int, ...]
    """Each the index of a candidate."""
    rewards: tuple[float, ...]


def initial_weights() -> Vector:
    """The untrained policy: every answer is as likely as every other."""
    return np.zeros(FEATURE_COUNT)


def probabilities(weights: Vector, problem: EncodedProblem) -> Vector:
    """The probability of each of the C candidates."""
    scores = weights[problem.features].sum(axis=1)
    odds = np.exp(scores - scores.max())
    return np.asarray(odds / odds.sum())


def sample(weights: Vector, problem: EncodedProblem, count: int, chance: np.random.Generator) -> list[int]:
    """``count`` candidates drawn by their probabilities, with repeats."""
    drawn = chance.choice(len(problem.candidates), size=count, p=probabilities(weights, problem))
    return [int(choice) for choice in drawn]


def best(weights: Vector, problem: EncodedProblem, chance: np.random.Generator) -> int:
    """The most probable candidate; ``chance`` decides among equals."""
    likely = probabilities(weights, problem)
    return int(chance.choice(np.flatnonzero(likely >= likely.max() - 1e-12)))


# --- Gradients -------------------------------------------------------------------------------------------------------


def log_probability_gradient(weights: Vector, problem: EncodedProblem, choice: int) -> Vector:
    """The gradient of log p(choice) by the weights."""
    by_score = -probabilities(weights, problem)
    by_score[choice] += 1.0
    return _by_weights(problem, by_score)


def entropy_gradient(weights: Vector, problem: EncodedProblem) -> Vector:
    """The gradient of the entropy of the choice (in nats) by the weights."""
    return _by_weights(problem, _entropy_by_score(probabilities(weights, problem)))


def policy_gradient(weights: Vector, episodes: Sequence[Episode], entropy_bonus: float) -> Vector:
    """The REINFORCE gradient of the mean reward plus ``entropy_bonus`` times the mean entropy.

    The baseline of each try is the mean reward of the other tries in its episode, which its own choice does not
    influence, so the estimate stays unbiased; an episode of a single try has the baseline 0.
    """
    total = np.zeros_like(weights)
    for episode in episodes:
        likely = probabilities(weights, episode.problem)
        by_score = entropy_bonus * _entropy_by_score(likely)
        advantages = _advantages(np.asarray(episode.rewards)) / len(episode.rewards)
        np.add.at(by_score, np.asarray(episode.choices), advantages)
        by_score -= advantages.sum() * likely
        total += _by_weights(episode.problem, by_score)
    return np.asarray(total / max(1, len(episodes)))


def _advantages(rewards: Vector) -> Vector:
    """Each reward less the mean of the others."""
    if len(rewards) < 2:
        return rewards
    return np.asarray((rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1))


def _entropy_by_score(likely: Vector) -> Vector:
    logs = np.log(np.maximum(likely, np.finfo(np.float64).tiny))
    return np.asarray(-likely * (logs - (likely * logs).sum()))


def _by_weights(problem: EncodedProblem, by_score: Vector) -> Vector:
    """From the gradient by the C scores to the gradient by the weights."""
    _, width = problem.features.shape
    gradient: Vector = np.zeros(FEATURE_COUNT)
    np.add.at(gradient, problem.features.ravel(), np.repeat(by_score, width))
    gradient[0] = 0.0
    return gradient


class Adam:
    """The Adam optimizer (Kingma and Ba, 2015), going uphill."""

    def __init__(self, learning_rate: float, beta_1: float = 0.9, beta_2: float = 0.99, epsilon: float = 1e-3) -> None:
        self._learning_rate = learning_rate
        self._betas = (beta_1, beta_2)
        self._epsilon = epsilon
        """Large, so that features which only noise has moved stay small."""
        self._first = np.zeros(FEATURE_COUNT)
        self._second = np.zeros(FEATURE_COUNT)
        self._steps = 0

    def step(self, weights: Vector, gradient: Vector) -> Vector:
        """The weights after one step along ``gradient``."""
        beta_1, beta_2 = self._betas
        self._steps += 1
        self._first = beta_1 * self._first + (1 - beta_1) * gradient
        self._second = beta_2 * self._second + (1 - beta_2) * gradient**2
        mean = self._first / (1 - beta_1**self._steps)
        spread = np.sqrt(self._second / (1 - beta_2**self._steps))
        return np.asarray(weights + self._learning_rate * mean / (spread + self._epsilon))


# --- Features --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """A number in a text, and how far its surroundings speak of what is asked for."""

    value: float
    asked_before: int
    asked_after: int
    """How many of the question's words stand near before it and near after it."""
    unit: frozenset[str]
    """The words right after it."""
    in_question: bool


def encode(problem: Problem) -> EncodedProblem:
    """The candidates of a problem and the features of each. ValueError if its text has fewer than two numbers."""
    places = _places(problem)
    possible = candidates([place.value for place in places])
    if not possible:
        raise ValueError(f"problem {problem.problem_id} has fewer than two numbers: nothing can be computed")
    of_text = _text_features(problem, len(places))
    rows = [_numbered(candidate, of_text, _pair_features(candidate, places)) for candidate in possible]
    width = max(map(len, rows))
    features = np.zeros((len(rows), width), dtype=np.intp)
    for row, numbers in zip(features, rows, strict=True):
        row[: len(numbers)] = numbers
    return EncodedProblem(tuple(possible), features)


def _numbered(candidate: Candidate, of_text: Sequence[str], of_pair: Sequence[str]) -> list[int]:
    """Feature numbers of a candidate: the text and the pair as seen by its operation, and the pair by itself."""
    joined = [f"{candidate.operation}: {feature}" for feature in (*of_text, *of_pair)]
    return [1 + zlib.crc32(feature.encode()) % (FEATURE_COUNT - 1) for feature in (*joined, *of_pair)]


def _text_features(problem: Problem, numbers: int) -> list[str]:
    """What the words say, whichever numbers are meant: the same for all candidates."""
    body, question = _words(problem.body), _words(problem.question)
    pairs = {f"asks {first} {second}" for first, second in itertools.pairwise(question)}
    told, asked = {f"tells {word}" for word in body}, {f"asks {word}" for word in question}
    return sorted(pairs | told | asked | {"any", f"{numbers} numbers"})


def _pair_features(candidate: Candidate, places: Sequence[_Place]) -> list[str]:
    """What speaks for or against these two numbers, and how plausible the result is."""
    a, b = places[candidate.first], places[candidate.second]
    value = candidate.value
    return [
        f"numbers {candidate.first} and {candidate.second} of {len(places)}",
        f"asked after {min(a.asked_after, 2)} {min(b.asked_after, 2)}",
        f"asked before {min(a.asked_before, 2)} {min(b.asked_before, 2)}",
        f"asked near {min(a.asked_before + a.asked_after, 3)} {min(b.asked_before + b.asked_after, 3)}",
        f"first asked after {min(a.asked_after, 2)}",
        f"second asked after {min(b.asked_after, 2)}",
        f"in question {a.in_question} {b.in_question}",
        f"shared unit {len(a.unit & b.unit)}",
        f"negative {value < 0}",
        f"whole {value.is_integer()}",
        f"below one {value < 1}",
    ]


def _places(problem: Problem) -> list[_Place]:
    body, question = tokens(problem.body), tokens(problem.question)
    asked = set(_words(problem.question)) - _COMMON_WORDS
    everything = [*body, *question]
    return [
        _Place(
            value=number(token),
            asked_before=_count(asked, everything[max(0, index - _NEAR_BEFORE) : index]),
            asked_after=_count(asked, everything[index + 1 : index + 1 + _NEAR_AFTER]),
            unit=frozenset(_stem(word) for word in everything[index + 1 : index + 3]),
            in_question=index >= len(body),
        )
        for index, token in enumerate(everything)
        if is_number(token)
    ]


def _count(asked: set[str], surroundings: Sequence[str]) -> int:
    return sum(_stem(word) in asked for word in surroundings)


def _words(text: str) -> list[str]:
    return [_stem(token) for token in tokens(text) if not is_number(token)]


def _stem(word: str) -> str:
    """Without the plural s: "apples" and "apple" are the same feature."""
    return word.removesuffix("s") if len(word) > 3 else word
