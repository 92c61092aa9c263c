"""What a rollout was rewarded with, as its spans tell it, and spans under each other."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from lightning_store.errors import SpansEvictedError
from lightning_store.model import AttemptedRollout, Rollout, Span
from lightning_store.store import LightningStore

S = TypeVar("S")

REWARD_SPANS: Final = 5
"""Spans of a rollout that are looked at for its reward, the last ones."""


async def rewards_of(store: LightningStore, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The reward of each rollout that has one, by its id."""
    rewards = await asyncio.gather(*(reward_of(store, rollout) for rollout in rollouts))
    found = zip(rollouts, rewards, strict=True)
    return {rollout.rollout_id: reward for rollout, reward in found if reward is not None}


async def reward_of(store: LightningStore, rollout: Rollout) -> float | None:
    """Looks at the spans that are named so first, then at the last few, which are not all that there may be."""
    if not isinstance(rollout, AttemptedRollout):
        return None
    for name in ("reward", None):
        try:
            spans = await store.query_spans(
                rollout.rollout_id,
                attempt_id=rollout.attempt.attempt_id,
                name_contains=name,
                sort_order="desc",
                limit=REWARD_SPANS,
            )
        except SpansEvictedError:
            return None
        reward = final_reward(spans[::-1])
        if reward is not None:
            return reward
    return None


def final_reward(spans: Sequence[Span]) -> float | None:
    """The last number in spans of one attempt that is called a reward."""
    for span in reversed(spans):
        for key, value in reversed(span.attributes.items()):
            if "reward" in key.lower() and isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    return float(value)
                except OverflowError:
                    return math.inf if value > 0 else -math.inf
    return None


def nested(spans: Sequence[S], ids_of: Callable[[S], tuple[str, str | None]]) -> Iterator[tuple[int, S]]:
    """Each span once with its depth, a parent before its children, siblings in the order given.

    A span whose parent is not here is a root. Of spans that are each other's parents, the first given counts as one.

    Args:
        spans: Of one attempt.
        ids_of: Tells the id of a span, and that of its parent.
    """
    ids = list(map(ids_of, spans))
    known = {span_id for span_id, _ in ids}
    children: defaultdict[str | None, list[int]] = defaultdict(list)
    for place, (_, parent_id) in enumerate(ids):
        children[parent_id if parent_id in known else None].append(place)
    seen: set[str] = set()
    for root in (*children[None], *range(len(spans))):
        stack = [(0, root)]
        while stack:
            depth, place = stack.pop()
            span_id = ids[place][0]
            if span_id not in seen:
                seen.add(span_id)
                yield depth, spans[place]
                stack.extend((depth + 1, child) for child in reversed(children[span_id]))
