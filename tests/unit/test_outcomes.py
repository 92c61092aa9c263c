"""What becomes of each span of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_store.errors import InternalError, InvalidArgumentError, SpansRejectedError
from lightning_store.model import Span
from lightning_store.outcomes import SpanOutcome, add_legal, stored_number, stored_of

pytestmark = pytest.mark.asyncio


async def test_what_is_refused_already_is_not_added():
    refused = InvalidArgumentError("not legal")
    asked: list[Sequence[str]] = []

    async def add(legal: Sequence[str]) -> Sequence[SpanOutcome]:
        asked.append(legal)
        return [7, None]

    assert await add_legal([refused, "a", refused, "b"], add) == [refused, 7, refused, None]
    assert asked == [["a", "b"]]


@pytest.mark.parametrize("outcomes", [[], [1], [1, 2, 3]])
async def test_a_store_that_does_not_tell_of_each_is_broken(outcomes):
    async def add(_: Sequence[str]) -> Sequence[SpanOutcome]:
        return outcomes

    with pytest.raises(InternalError, match=f"told of {len(outcomes)} of 2 spans"):
        await add_legal(["a", "b"], add)


async def test_numbers_and_spans_of_outcomes():
    ids = {"rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 1, "trace_id": "ab" * 16}
    spans = [Span(**ids, span_id=f"{number:016x}", name="step") for number in range(3)]
    assert (stored_number(0), stored_number(None)) == (0, None)
    assert stored_of(spans, [0, None, 2]) == [spans[0], spans[2]]
    refused = InvalidArgumentError("not legal")
    with pytest.raises(InvalidArgumentError):
        stored_number(refused)
    with pytest.raises(SpansRejectedError) as caught:
        stored_of(spans, [1, refused, None])
    assert [one.index for one in caught.value.rejected] == [1]
    assert list(caught.value.stored) == [spans[0]]
