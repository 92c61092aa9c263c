"""Spans of calls to a language model, as conversations.

Known are the conventions of OpenTelemetry (``gen_ai.input.messages`` and ``gen_ai.output.messages``, and the events
that came before them), the numbered attributes of OpenLLMetry and AgentOps, which Agent Lightning's tracers write
(``gen_ai.prompt.0.content``), those of OpenInference, and Agent Lightning's own messages and token ids.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lightning_store.model import Span

HINTS: Final = (b'"gen_ai.', b'"llm.', b'"agentlightning.message')
"""Where none of these is in a document, its span is no call of a language model."""
TEXT_CHARS_MAX: Final = 20_000
"""Characters of a message that are shown."""
TOKENS_MAX: Final = 10**12
"""A greater count is not shown: it is none."""
PROMPTS: Final = ("gen_ai.prompt.", "llm.input_messages.")
COMPLETIONS: Final = ("gen_ai.completion.", "llm.output_messages.")
MODELS: Final = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
TOKENS_IN: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
TOKENS_OUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
IDS_IN: Final = ("prompt_token_ids", "gen_ai.prompt.token_ids", "llm.prompt_token_ids")
IDS_OUT: Final = ("response_token_ids", "gen_ai.completion.token_ids", "llm.response_token_ids")


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody says."""

    role: str
    text: str
    is_answer: bool = False
    """Whether the model said it in this call."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a language model."""

    span: Span
    model: str
    messages: Sequence[Message]
    tokens_in: int | None
    tokens_out: int | None


def calls_of(spans: Iterable[Span]) -> list[Call]:
    """The spans among these that are calls of a language model, in their order."""
    return [call for call in map(call_of, spans) if call is not None]


def call_of(span: Span) -> Call | None:
    """A span as a call of a language model; None if it is none."""
    found = span.attributes
    messages = list(_messages(span))
    tokens_in, tokens_out = _count(found, TOKENS_IN, IDS_IN), _count(found, TOKENS_OUT, IDS_OUT)
    model = next((str(found[name]) for name in MODELS if found.get(name)), "")
    if not messages and (not model or tokens_out is None):
        return None
    return Call(span, model, messages, tokens_in, tokens_out)


def _messages(span: Span) -> Iterator[Message]:
    found = span.attributes
    if found.get("gen_ai.system_instructions"):
        yield Message("system", _clipped(_parts(_loaded(found["gen_ai.system_instructions"]))))
    yield from _structured(found.get("gen_ai.input.messages"), is_answer=False)
    yield from _numbered(found, PROMPTS, is_answer=False)
    yield from _of_events(span)
    yield from _structured(found.get("gen_ai.output.messages"), is_answer=True)
    yield from _numbered(found, COMPLETIONS, is_answer=True)
    body = found.get("agentlightning.message.body")
    if body is not None:
        yield Message(str(found.get("agentlightning.message.role", "message")), _clipped(_text(body)))


def _structured(value: Any, *, is_answer: bool) -> Iterator[Message]:
    """Of OpenTelemetry's attributes, a list of messages or its JSON text."""
    messages = _loaded(value)
    if isinstance(messages, list):
        for one in messages:
            if isinstance(one, Mapping):
                text = _parts(one["parts"]) if "parts" in one else _text(one.get("content", ""))
                yield Message(str(one.get("role", "")), _clipped(text), is_answer)


def _numbered(found: Mapping[str, Any], prefixes: Sequence[str], *, is_answer: bool) -> Iterator[Message]:
    by_number: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for name, value in found.items():
        for prefix in prefixes:
            digits, _, rest = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and digits.isdecimal() and len(digits) < 9:
                by_number[int(digits)][rest.removeprefix("message.")] = value
    for _, members in sorted(by_number.items()):
        text = _text(members.get("content", ""))
        calls = [f"{name}: {_text(value)}" for name, value in members.items() if name.startswith("tool_calls")]
        role = str(members.get("role", "assistant" if is_answer else "user"))
        yield Message(role, _clipped("\n".join(part for part in (text, *calls) if part)), is_answer)


def _of_events(span: Span) -> Iterator[Message]:
    for event in span.events:
        if not event.name.startswith("gen_ai."):
            continue
        role = event.name.removeprefix("gen_ai.").removesuffix(".message")
        body = event.attributes.get("content", event.attributes.get("gen_ai.event.content"))
        body = event.attributes.get("message", body)
        if body is None:
            continue
        loaded = _loaded(body)
        content = loaded.get("content", loaded) if isinstance(loaded, Mapping) else loaded
        is_answer = role == "choice"
        yield Message("assistant" if is_answer else role, _clipped(_text(content)), is_answer)


def _parts(parts: Any) -> str:
    if not isinstance(parts, list):
        return _text(parts)
    return "\n".join(
        _text(one.get("content", one.get("text", one))) if isinstance(one, Mapping) else _text(one) for one in parts
    )


def _loaded(value: Any) -> Any:
    """A value, or what its JSON text says."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _clipped(text: str) -> str:
    if len(text) <= TEXT_CHARS_MAX:
        return text
    return f"{text[:TEXT_CHARS_MAX]}… ({len(text) - TEXT_CHARS_MAX:,} characters more)"


def _count(found: Mapping[str, Any], names: Sequence[str], ids: Sequence[str]) -> int | None:
    for name in names:
        if isinstance(found.get(name), int):
            return min(max(0, int(found[name])), TOKENS_MAX)
    return next((len(found[name]) for name in ids if isinstance(found.get(name), list)), None)
