"""Why a rollout did not succeed, in a line."""

from __future__ import annotations

from typing import Any, Final

from lightning_store.errors import SpansEvictedError
from lightning_store.model import AttemptedRollout, Rollout, Span
from lightning_store.store import LightningStore
from lightning_store_server.text import clip

KEYS: Final = ("error", "message", "exception", "reason", "detail")
"""Members of an attempt's metadata that tell of a failure, as runners write them."""
SPANS: Final = 5
"""Spans of an attempt that are looked at, the last ones."""
LINE_CHARS_MAX: Final = 160


async def cause_of(store: LightningStore, rollout: Rollout) -> str:
    """The first line of what its latest attempt, or one of its last spans, says of the failure; empty for nothing."""
    if not isinstance(rollout, AttemptedRollout):
        return ""
    metadata = rollout.attempt.metadata or {}
    for key in KEYS:
        if metadata.get(key):
            return first_line(metadata[key])
    try:
        spans = await store.query_spans(
            rollout.rollout_id, attempt_id=rollout.attempt.attempt_id, sort_order="desc", limit=SPANS
        )
    except SpansEvictedError:
        return ""
    return next((told for told in map(error_of, spans) if told), "")


def error_of(span: Span) -> str:
    """The first line of the error of a span; empty if it has none."""
    if span.status.status_code != "ERROR":
        return ""
    for event in span.events:
        if "exception.message" in event.attributes:
            kind = event.attributes.get("exception.type")
            message = event.attributes["exception.message"]
            return first_line(f"{kind}: {message}" if kind else message)
    return first_line(span.status.description or f"error in {span.name}")


def first_line(value: Any) -> str:
    """The first line of a text that has one."""
    lines = str(value).strip().splitlines()
    return clip(lines[0], LINE_CHARS_MAX) if lines else ""
