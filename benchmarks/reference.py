"""What is stored and sent: one payload and one span, the same bytes in every run.

The span is what an instrumented LLM call leaves behind; a trainer's has the tokens too. Its text is filled up so that
its sizes are those that the published figures refer to.
"""

from __future__ import annotations

import json
from typing import Any, Final

SPAN_JSON_BYTES: Final = 2_093
"""Compact JSON of :func:`span_fields`, and so of the body of a request that carries it as JSON."""
SPAN_DOCUMENT_BYTES: Final = 2_102
"""The same span as a document, in which absent fields are written out."""
PROMPT_TOKENS: Final = 1_500
RESPONSE_TOKENS: Final = 500
"""Token ids in the attributes of :func:`trainer_span_fields`, with a logprob for each of the response."""
OUTPUT_TOKENS: Final = 128
"""``gen_ai.usage.output_tokens`` of every span, to know one by."""
ANSWER: Final = 7
"""``answer`` of every input, likewise."""
PAYLOAD_JSON_BYTES: Final = 200
"""Compact JSON of :func:`rollout_input`."""

_TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_PARENT_ID: Final = "53995c3f42cd8ad8"
_SYSTEM: Final = "You are a careful assistant. Solve the problem step by step and give the answer on the last line. "
_QUESTION: Final = "Ann had 12 apples and ate 5 of them. How many are left? "
_ANSWER: Final = "She starts with 12 and eats 5, so 12 - 5 = 7 are left. "
_SYSTEM_CHARACTERS, _QUESTION_CHARACTERS, _ANSWER_CHARACTERS = 180, 150, 236


def _fill(text: str, characters: int) -> str:
    """``text`` over and over, up to so many characters."""
    return (text * (characters // len(text) + 1))[:characters]


_RESOURCE: Final = {
    "service.name": "agent",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": "1.40.0",
    "host.name": "runner-0",
}
_ATTRIBUTES: Final[dict[str, Any]] = {
    "gen_ai.system": "openai",
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "Qwen/Qwen2.5-7B-Instruct",
    "gen_ai.response.model": "Qwen/Qwen2.5-7B-Instruct",
    "gen_ai.request.temperature": 0.7,
    "gen_ai.request.top_p": 0.95,
    "gen_ai.request.frequency_penalty": 0.5,
    "gen_ai.request.top_k": 40,
    "gen_ai.request.choice.count": 1,
    "gen_ai.request.max_tokens": 1024,
    "gen_ai.response.id": "chatcmpl-9f0c2b7e5d1a4c38",
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.usage.input_tokens": 412,
    "gen_ai.usage.output_tokens": OUTPUT_TOKENS,
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": _fill(_SYSTEM, _SYSTEM_CHARACTERS),
    "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": _fill(_QUESTION, _QUESTION_CHARACTERS),
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": _fill(_ANSWER, _ANSWER_CHARACTERS),
    "gen_ai.completion.0.finish_reason": "stop",
}


_VOCABULARY: Final = 151_936
"""Token ids are below this, spread over it: those of a model like the one that the span names."""
TOKENS: Final[dict[str, Any]] = {
    "prompt_token_ids": [number * 7_919 % _VOCABULARY for number in range(PROMPT_TOKENS)],
    "response_token_ids": [number * 104_729 % _VOCABULARY for number in range(RESPONSE_TOKENS)],
    "logprobs": [-(number * 7_919 % 9_973) / 3_001 for number in range(RESPONSE_TOKENS)],
}
"""The attributes of a trainer's span that a trainer learns from."""


def span_fields(rollout_id: str, attempt_id: str, number: int) -> dict[str, Any]:
    """The fields of the ``number``-th reference span, ready for ``Span.model_validate``; all but the ids are equal.

    The sizes above hold for the store's own ids and for a sequence id of one digit.
    """
    span_id = f"{number + 1:016x}"
    return {
        "rollout_id": rollout_id,
        "attempt_id": attempt_id,
        "sequence_id": number + 1,
        "trace_id": _TRACE_ID,
        "span_id": span_id,
        "parent_id": _PARENT_ID,
        "name": "openai.chat.completion",
        "status": {"status_code": "OK", "description": None},
        "attributes": _ATTRIBUTES,
        "events": [],
        "links": [],
        "start_time": 1767225600.25,
        "end_time": 1767225601.5,
        "context": _context(span_id),
        "parent": _context(_PARENT_ID),
        "resource": {"attributes": _RESOURCE, "schema_url": ""},
    }


def trainer_span_fields(rollout_id: str, attempt_id: str, number: int) -> dict[str, Any]:
    """The same with what a trainer learns from: the ids of prompt and response, and the logprobs of the response."""
    fields = span_fields(rollout_id, attempt_id, number)
    return {**fields, "attributes": {**_ATTRIBUTES, **TOKENS}}


def _context(span_id: str) -> dict[str, Any]:
    return {"trace_id": _TRACE_ID, "span_id": span_id, "is_remote": False, "trace_state": {}}


def rollout_input(number: int) -> dict[str, Any]:
    """The input of a rollout: :data:`PAYLOAD_JSON_BYTES` of JSON for any number of up to 8 digits."""
    fixed = {"task": f"{number:08}", "answer": ANSWER, "question": ""}
    return {**fixed, "question": _fill(_QUESTION, PAYLOAD_JSON_BYTES - json_bytes(fixed))}


def json_bytes(value: Any) -> int:
    """The size of compact JSON."""
    return len(json.dumps(value, separators=(",", ":")).encode())
