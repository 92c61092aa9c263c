"""Which of the rules hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_store.errors import InvalidArgumentError, InvalidTypeError
from lightning_store.text import column_text

Fence = Literal["off", "refuse", "keep"]
"""What becomes of the spans of an attempt that was cancelled or superseded: they count as any, are refused, or are kept
without any effect. Unless it is off, such an attempt gets no span numbers."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a store that change what its rules decide.

    Raises:
        InvalidArgumentError: A setting is out of its range.
    """

    strict: bool = False
    final_outcomes: bool = False
    """Whether a terminal rollout stays as it is until it is put back into the queue, as in strict mode."""
    fence_attempts: Fence = "off"
    worker_timeout_seconds: float = 0.0
    """An attempt whose worker has sent heartbeats and is silent for longer ends as unresponsive. 0: it does not."""
    worker_retention_seconds: float | None = None
    """A worker that is at work on nothing and has been silent for longer is deleted, within a minute or when somebody
    asks for workers. None: it is not."""
    retain_finished_seconds: float | None = None
    """A rollout is deleted when it has been terminal for longer. None: it is not."""
    retain_finished_count: int | None = None
    """So many terminal rollouts are kept, those that ended last. None: all of them."""
    retain_for: Sequence[str] = ()
    """Consumers: what one of them has not consumed is retained."""
    drop_spans: Collection[str] = ()
    """Spans with these names count as any, and are not stored."""

    def __post_init__(self) -> None:
        if self.fence_attempts not in get_args(Fence):
            legal = ", ".join(get_args(Fence))
            raise InvalidArgumentError(
                f"fence_attempts is {self.fence_attempts!r}; give one of {legal}", field="fence_attempts"
            )
        if not self.worker_timeout_seconds >= 0:
            message = f"worker_timeout_seconds is {self.worker_timeout_seconds}; give 0 or more"
            raise InvalidArgumentError(message, field="worker_timeout_seconds")
        for name in ("worker_retention_seconds", "retain_finished_seconds", "retain_finished_count"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgumentError(f"{name} is {value}; give more than 0, or None to keep all", field=name)
        if isinstance(self.drop_spans, str):
            raise InvalidTypeError(f"drop_spans is the text {self.drop_spans!r}; give a list", field="drop_spans")
        object.__setattr__(self, "drop_spans", frozenset(map(column_text, self.drop_spans)))

    @property
    def outcomes_are_final(self) -> bool:
        """Whether a terminal rollout can only be put back into the queue."""
        return self.strict or self.final_outcomes
