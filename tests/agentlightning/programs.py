"""A small Agent Lightning program, the same for every store, strategy and tracer: agents that add two numbers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import agentlightning as agl
from opentelemetry import trace

TASKS = [{"a": number, "b": 2 * number} for number in range(8)]
BROKEN_TASK = 5
"""Fails each time."""
SHAKY_TASK = 6
"""Fails the first time."""

RESOURCES: agl.NamedResources = {
    "prompt": agl.PromptTemplate(template="Add {a} and {b}.", engine="f-string"),
    "llm": agl.ProxyLLM(endpoint="http://localhost:8000/v1", model="adder", sampling_parameters={"temperature": 0.5}),
}
ONCE_MORE = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"])


class Adder(agl.LitAgent[dict[str, int]]):
    """Thinks in spans as a traced call of a chat model leaves them, and returns its reward."""

    def rollout(self, task: Any, resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        prompt, llm = resources["prompt"], resources["llm"]
        assert isinstance(prompt, agl.PromptTemplate)
        assert isinstance(rollout, agl.AttemptedRollout)
        llm.get_base_url(rollout.rollout_id, rollout.attempt.attempt_id)
        question, answer = prompt.format(**task), task["a"] + task["b"]
        with trace.get_tracer("adder").start_as_current_span("openai.chat.completion") as span:
            span.set_attributes(
                {
                    "gen_ai.request.model": llm.model,
                    "gen_ai.response.id": f"chat-{task['a']}-{rollout.attempt.sequence_id}",
                    "gen_ai.prompt.0.role": "user",
                    "gen_ai.prompt.0.content": question,
                    "gen_ai.completion.0.role": "assistant",
                    "gen_ai.completion.0.content": str(answer),
                    "prompt_token_ids": [task["a"], task["b"]],
                    "response_token_ids": [answer],
                }
            )
        if task["a"] == BROKEN_TASK or (task["a"] == SHAKY_TASK and rollout.attempt.sequence_id == 1):
            raise ArithmeticError(f"cannot add {task}")
        return answer / 100


class Lister(Adder):
    """Returns its spans, as programs do that have no tracer."""

    def rollout(self, task: Any, resources: agl.NamedResources, rollout: agl.Rollout) -> Any:
        status = agl.TraceStatus(status_code="OK")
        reward = super().rollout(task, resources, rollout)
        times = {"start_time": 1_700_000_000.25, "end_time": 1_700_000_000.5}
        think = agl.SpanCoreFields(name="think", status=status, attributes={"n": task["a"]}, **times)
        return [think, agl.emit_reward(reward, propagate=False)]


class NoTracer(agl.Tracer):
    """Records nothing."""

    @contextlib.asynccontextmanager
    async def trace_context(self, name: str | None = None, **_: Any) -> AsyncIterator[None]:
        yield

    def get_last_trace(self) -> list[agl.Span]:
        return []

    def create_span(self, name: str, attributes: Any = None, timestamp: Any = None, status: Any = None) -> Any:
        return agl.DummyTracer().create_span(name, attributes, timestamp, status)


class Summing(agl.Algorithm):
    """Enqueues the tasks, waits for them, and notes what came of each, ids and times aside."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[dict[str, Any]] = []

    def is_async(self) -> bool:
        return True

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        store = self.get_store()
        await store.add_resources(RESOURCES)
        requests = [agl.EnqueueRolloutRequest(input=task, mode="train", config=ONCE_MORE) for task in train_dataset]
        ids = [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(requests)]
        finished: list[agl.Rollout] = []
        while len(finished) < len(ids):
            finished = await store.wait_for_rollouts(rollout_ids=ids, timeout=0.5)
        by_id = {rollout.rollout_id: rollout for rollout in finished}
        self.outcomes = [await self._outcome(store, by_id[rollout_id]) for rollout_id in ids]

    async def _outcome(self, store: agl.LightningStore, rollout: agl.Rollout) -> dict[str, Any]:
        attempts = await store.query_attempts(rollout.rollout_id)
        spans = await store.query_spans(rollout.rollout_id, "latest")
        every = await store.query_spans(rollout.rollout_id)
        triplets = self.get_adapter().adapt(spans) if spans else []
        return {
            "input": rollout.input,
            "status": rollout.status,
            "attempts": [attempt.status for attempt in attempts],
            "spans": [(span.sequence_id, span.name, span.status.status_code) for span in every],
            "reward": agl.find_final_reward(spans),
            "triplets": [(one.prompt, one.response, one.reward) for one in triplets],
            "messages": agl.TraceToMessages().adapt(spans),
        }


def trained(
    store: agl.LightningStore | None,
    strategy: agl.ExecutionStrategy,
    tracer: agl.Tracer | None = None,
    agent: agl.LitAgent[Any] | None = None,
) -> list[dict[str, Any]]:
    """The outcomes of one training run."""
    tracer = agl.OtelTracer() if tracer is None else tracer
    algorithm = Summing()
    trainer = agl.Trainer(
        store=store, strategy=strategy, algorithm=algorithm, tracer=tracer, runner=quick_runner(tracer)
    )
    trainer.fit(Adder() if agent is None else agent, TASKS)
    return algorithm.outcomes


def quick_runner(tracer: agl.Tracer) -> agl.LitAgentRunner[Any]:
    """Asks for work often."""
    return agl.LitAgentRunner(tracer, poll_interval=0.05, interval_jitter=0.01)
