"""A store that measures how long its callers wait for what needs no waiting."""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from lightning_store.forwarding import ForwardingStore
from lightning_store.store import LightningStore, LightningStoreCapabilities

SAMPLES_MAX: Final = 20_000


class Latencies:
    """How long calls took; of many of them a fair sample."""

    def __init__(self) -> None:
        self.count = 0
        self._sample: list[float] = []

    def note(self, seconds: float) -> None:
        self.count += 1
        if len(self._sample) < SAMPLES_MAX:
            self._sample.append(seconds)
        elif (place := random.randrange(self.count)) < SAMPLES_MAX:
            self._sample[place] = seconds

    def percentile(self, share: float) -> float:
        """The nearest rank, in seconds; NaN if there were no calls."""
        ranked = sorted(self._sample)
        return ranked[math.ceil(share * len(ranked)) - 1] if ranked else math.nan


class MeasuredStore(ForwardingStore):
    """Hands calls on to ``store``."""

    def __init__(self, store: LightningStore, latencies: Latencies) -> None:
        self._store = store
        self._latencies = latencies

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self._store.capabilities

    async def _forward(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        begun = time.perf_counter()
        result = await getattr(self._store, method)(*args, **kwargs)
        if method != "wait_for_rollouts" and "max_wait" not in kwargs:
            self._latencies.note(time.perf_counter() - begun)
        return result

    def _forward_stream(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        return getattr(self._store, method)(*args, **kwargs)
