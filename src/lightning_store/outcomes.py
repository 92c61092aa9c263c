"""What becomes of each span of a batch, for all who add spans: the engine, the server, the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

from lightning_store.errors import InternalError, RejectedSpan, SpansRejectedError, StoreError
from lightning_store.model import Span

T = TypeVar("T")

SpanOutcome: TypeAlias = int | StoreError | None
"""What became of one span: the sequence id under which it is stored, why it was refused, or None for a duplicate.

No class of its own: outcomes are kept for as long as calls may be repeated, one for each span."""


async def add_legal(
    given: Sequence[T | StoreError], add: Callable[[Sequence[T]], Awaitable[Sequence[SpanOutcome]]]
) -> list[SpanOutcome]:
    """Have ``add`` store what is not refused already; one outcome for each that was given, in order.

    InternalError if ``add`` has not one outcome for each.
    """
    legal = [one for one in given if not isinstance(one, StoreError)]
    outcomes = await add(legal)
    if len(outcomes) != len(legal):
        raise InternalError(f"the store told of {len(outcomes)} of {len(legal)} spans what became of them")
    added = iter(outcomes)
    return [one if isinstance(one, StoreError) else next(added) for one in given]


def stored_number(outcome: SpanOutcome) -> int | None:
    """The number under which a span is stored; None for a duplicate. A refusal is raised."""
    if isinstance(outcome, StoreError):
        raise outcome
    return outcome


def stored_of(spans: Sequence[Span], outcomes: Sequence[SpanOutcome]) -> list[Span]:
    """The spans that are stored now; SpansRejectedError if any was refused."""
    told = list(zip(spans, outcomes, strict=True))
    stored = [span for span, outcome in told if isinstance(outcome, int)]
    rejected = [
        RejectedSpan(index, span.span_id, outcome)
        for index, (span, outcome) in enumerate(told)
        if isinstance(outcome, StoreError)
    ]
    if rejected:
        raise SpansRejectedError.of(rejected, stored, len(told))
    return stored
