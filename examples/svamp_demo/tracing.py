"""What a runner did, as OpenTelemetry spans: recorded by the SDK on the runner's side, read back by the algorithm.

One span "svamp.rollout" for the whole, and below it a span "svamp.try" for each answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

import lightning_store as ls
from examples.svamp_demo.arithmetic import Candidate
from examples.svamp_demo.problems import Problem

ROLLOUT_SPAN: Final = "svamp.rollout"
TRY_SPAN: Final = "svamp.try"

PROBLEM_ID: Final = "svamp.problem.id"
PROBLEM_TEXT: Final = "svamp.problem.text"
PROBLEM_ANSWER: Final = "svamp.problem.answer"
CHOICE: Final = "svamp.choice"
"""The index of the candidate."""
CHOICE_EXPRESSION: Final = "svamp.choice.expression"
CHOICE_PROBABILITY: Final = "svamp.choice.probability"
REWARD: Final = "svamp.reward"
"""1.0 for the right answer, 0.0 for a wrong one; of the rollout: the mean over its tries."""


@dataclass(frozen=True, slots=True)
class Try:
    """One answer and what it earned."""

    choice: int
    reward: float


class SpanCollector(SpanProcessor):
    """Keeps the spans that have ended until they are taken. For one thread."""

    def __init__(self) -> None:
        self._ended: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do: a span counts once it has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        self._ended.append(span)

    def take(self) -> list[ReadableSpan]:
        """The spans that ended since the last call, in the order in which they started, the root first."""
        taken, self._ended = self._ended, []
        return sorted(taken, key=lambda span: (span.parent is not None, span.start_time or 0))


class Recorder:
    """Records rollouts of one runner with a tracer provider of its own."""

    def __init__(self, worker_id: str) -> None:
        self._collector = SpanCollector()
        resource = Resource.create({"service.name": "svamp-runner", "service.instance.id": worker_id})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._collector)
        self._tracer: Tracer = provider.get_tracer("examples.svamp_demo")

    def record(
        self, problem: Problem, candidates: Sequence[Candidate], tries: Sequence[Try], likely: Sequence[float]
    ) -> list[ReadableSpan]:
        """The spans of one rollout: the root first. ``likely`` holds the probability of each candidate."""
        attributes: dict[str, AttributeValue] = {
            PROBLEM_ID: problem.problem_id,
            PROBLEM_TEXT: problem.text(),
            PROBLEM_ANSWER: problem.answer,
        }
        with self._tracer.start_as_current_span(ROLLOUT_SPAN, attributes=attributes) as root:
            for attempt in tries:
                self._record_try(attempt, candidates[attempt.choice].expression, float(likely[attempt.choice]))
            root.set_attribute(REWARD, sum(attempt.reward for attempt in tries) / len(tries))
            root.set_status(Status(StatusCode.OK))
        return self._collector.take()

    def _record_try(self, attempt: Try, expression: str, probability: float) -> None:
        with self._tracer.start_as_current_span(TRY_SPAN) as span:
            span.set_attribute(CHOICE, attempt.choice)
            span.set_attribute(CHOICE_EXPRESSION, expression)
            span.set_attribute(CHOICE_PROBABILITY, probability)
            span.set_attribute(REWARD, attempt.reward)


def read_tries(spans: Iterable[ls.Span]) -> list[Try]:
    """The tries among ``spans`` of one attempt, in their order. ValueError for one that lacks its attributes."""
    return [_read_try(span) for span in spans if span.name == TRY_SPAN]


def _read_try(span: ls.Span) -> Try:
    try:
        return Try(choice=int(span.attributes[CHOICE]), reward=float(span.attributes[REWARD]))
    except KeyError as missing:
        raise ValueError(f"span {span.span_id} of rollout {span.rollout_id} has no attribute {missing}") from None
