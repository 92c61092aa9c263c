"""The store in this process's memory: the engine on the memory backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from lightning_store.backends.memory import REPLAY_ENTRIES_MAX as REPLAY_ENTRIES_MAX
from lightning_store.backends.memory import REPLAY_WINDOW_SECONDS as REPLAY_WINDOW_SECONDS
from lightning_store.backends.memory import MemoryBackend
from lightning_store.clock import Clock
from lightning_store.engine.policy import Fence, Policy
from lightning_store.engine.store import EngineStore
from lightning_store.memory_limits import MemoryLimits
from lightning_store.model import Span


class InMemoryLightningStore(EngineStore):
    """A LightningStore that lives and dies with the process. Safe to call from any thread and event loop.

    ``final_outcomes`` and ``fence_attempts`` decide what becomes of reports and spans that come too late; see
    ``docs/training.md``.
    ``worker_timeout_seconds`` gives up the attempts of workers that sent heartbeats and fell silent; 0 does not.
    ``worker_retention_seconds`` deletes workers that are at work on nothing and were silent for longer; None does not.
    ``eviction_memory_threshold`` and ``safe_memory_threshold`` bound the memory of spans: a ratio of total memory (a
    float up to 1) or bytes (an int); defaults 0.7 and 0.8 of the first. ``memory_limit`` (0.9) bounds the memory of
    everything; past it, calls that would store more are refused. ``span_size_estimator`` tells the bytes of a span.
    ``retain_finished_seconds`` and ``retain_finished_count`` delete the rollouts that have been terminal for longer, or
    those that ended first when there are more; None keeps them. What one of the consumers in ``retain_for`` has not
    consumed is kept. ``drop_spans`` has the names of spans that are not stored. ``replay_window_seconds`` and
    ``replay_entries_max`` bound the replies kept for repeated request ids.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        final_outcomes: bool = False,
        fence_attempts: Fence = "off",
        worker_timeout_seconds: float = 0.0,
        worker_retention_seconds: float | None = None,
        eviction_memory_threshold: float | int | None = None,
        safe_memory_threshold: float | int | None = None,
        span_size_estimator: Callable[[Span], int] | None = None,
        memory_capacity_bytes: int | None = None,
        memory_limit: float | int | None = None,
        retain_finished_seconds: float | None = None,
        retain_finished_count: int | None = None,
        retain_for: Sequence[str] = (),
        drop_spans: Collection[str] = (),
        replay_window_seconds: float = REPLAY_WINDOW_SECONDS,
        replay_entries_max: int = REPLAY_ENTRIES_MAX,
        clock: Clock | None = None,
    ) -> None:
        limits = MemoryLimits.of(
            eviction_memory_threshold, safe_memory_threshold, span_size_estimator, memory_capacity_bytes, memory_limit
        )
        backend = MemoryBackend(replay_window_seconds=replay_window_seconds, replay_entries_max=replay_entries_max)
        policy = Policy(
            strict=strict,
            final_outcomes=final_outcomes,
            fence_attempts=fence_attempts,
            worker_timeout_seconds=worker_timeout_seconds,
            worker_retention_seconds=worker_retention_seconds,
            retain_finished_seconds=retain_finished_seconds,
            retain_finished_count=retain_finished_count,
            retain_for=tuple(retain_for),
            drop_spans=drop_spans,
        )
        super().__init__(backend, policy=policy, clock=clock, memory=limits)
