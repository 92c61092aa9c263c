"""The agent: answers word problems with the policy in its resources. It runs in the runners' processes."""

from __future__ import annotations

from typing import Any, Final

import agentlightning as agl
import numpy as np
from opentelemetry import trace

from examples.agent_lightning.messages import unpack_prompt, unpack_weights
from examples.svamp_demo.arithmetic import Candidate
from examples.svamp_demo.messages import Task
from examples.svamp_demo.policy import best, encode, sample

ANSWER_SPAN: Final = "word_problem.chat.completion"
"""One for each answer, with the attributes that calls of a chat model have. The "tokens" of this model are the possible
answers to the problem, so an answer is one token."""

_SHAKY_EVERY: Final = 8
_BROKEN_EVERY: Final = 32


class WordProblemAgent(agl.LitAgent[dict[str, Any]]):
    """Its tasks are dumped :class:`~examples.svamp_demo.messages.Task` objects. A right answer earns 1.0, others 0.0.

    Whoever does a task, in whichever attempt, gives the same answers: the task has the seed of the draws.
    """

    def training_rollout(self, task: dict[str, Any], resources: agl.NamedResources, rollout: agl.Rollout) -> None:
        """Draws ``tries`` answers, and emits the reward of each after its span."""
        todo, weights = Task.model_validate(task), unpack_weights(resources)
        problem = encode(todo.problem)
        prompt = self._prompt(todo, resources)
        for number, choice in enumerate(sample(weights, problem, todo.tries, np.random.default_rng(todo.seed))):
            agl.emit_reward(self._answer(todo, prompt, number, choice, problem.candidates[choice]))

    def validation_rollout(self, task: dict[str, Any], resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        """Gives the best answer, and returns its reward."""
        todo, weights = Task.model_validate(task), unpack_weights(resources)
        problem = encode(todo.problem)
        choice = best(weights, problem, np.random.default_rng(todo.seed))
        return self._answer(todo, self._prompt(todo, resources), 0, choice, problem.candidates[choice])

    def _prompt(self, task: Task, resources: agl.NamedResources) -> str:
        return unpack_prompt(resources).format(body=task.problem.body, question=task.problem.question)

    def _answer(self, task: Task, prompt: str, number: int, choice: int, candidate: Candidate) -> float:
        """Leave the span of one answer; the reward that it earns."""
        with trace.get_tracer(__name__).start_as_current_span(ANSWER_SPAN) as span:
            span.set_attributes(
                {
                    "gen_ai.response.id": f"answer-{number}",
                    "gen_ai.prompt.0.role": "user",
                    "gen_ai.prompt.0.content": prompt,
                    "gen_ai.completion.0.role": "assistant",
                    "gen_ai.completion.0.content": f"{candidate.expression} = {candidate.value:g}",
                    "response_token_ids": [choice],
                }
            )
        return float(candidate.is_correct(task.problem.answer))


class ShakyAgent(WordProblemAgent):
    """Breaks down before it answers: in one of eight tasks, at the first attempt."""

    def training_rollout(self, task: dict[str, Any], resources: agl.NamedResources, rollout: agl.Rollout) -> None:
        self._break_down(task, rollout)
        super().training_rollout(task, resources, rollout)

    def validation_rollout(self, task: dict[str, Any], resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        self._break_down(task, rollout)
        return super().validation_rollout(task, resources, rollout)

    def _break_down(self, task: dict[str, Any], rollout: agl.Rollout) -> None:
        """Leave a span and raise ArithmeticError, if it is the turn of this attempt."""
        first = isinstance(rollout, agl.AttemptedRollout) and rollout.attempt.sequence_id == 1
        if self._breaks_down(Task.model_validate(task).seed, first):
            error = ArithmeticError("broken down, as planned")
            agl.emit_exception(error)
            raise error

    def _breaks_down(self, seed: int, first: bool) -> bool:
        return first and seed % _SHAKY_EVERY == 0


class UnreliableAgent(ShakyAgent):
    """Breaks down at each attempt in one of 32 tasks, too."""

    def _breaks_down(self, seed: int, first: bool) -> bool:
        return seed % _BROKEN_EVERY == 0 or super()._breaks_down(seed, first)
