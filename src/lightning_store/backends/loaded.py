"""What a backend that loads set-wise hands to the engine: dictionaries of what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from itertools import count
from typing import Final, TypeVar

from lightning_store.backends.base import (
    PROVISIONAL,
    AttemptKey,
    Changes,
    Loaded,
    MarkKey,
    Needs,
    NotLoadedError,
    SpanKey,
)
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    OpenGroup,
    ReplyRecord,
    ResourcesRecord,
    RolloutRecord,
    WorkerRecord,
)

T = TypeVar("T")

_UNASKED: Final = object()


class LoadedRecords(Loaded):
    """Everything that a transaction has loaded, by key; None where there is no such thing.

    A backend fills the dictionaries with what :class:`Needs` asked for, the absent included. A look-up of a key that is
    in none of them raises NotLoadedError, upon which the engine loads it.
    """

    __slots__ = (
        "admissions",
        "attempts",
        "checkpoints_of",
        "group_members",
        "holder_ids",
        "latest",
        "marks",
        "marks_since",
        "newest",
        "open_groups_of",
        "queue_end",
        "queued",
        "replies",
        "resources_by_id",
        "rollouts",
        "sequences",
        "spans",
        "workers",
    )

    def __init__(self) -> None:
        super().__init__()
        self.replies: dict[str, ReplyRecord | None] = {}
        self.rollouts: dict[str, RolloutRecord | None] = {}
        self.attempts: dict[AttemptKey, AttemptRecord | None] = {}
        self.sequences: dict[str, int] = {}
        self.spans: dict[SpanKey, bool] = {}
        """Whether a span with this key is stored."""
        self.workers: dict[str, WorkerRecord | None] = {}
        self.holder_ids: dict[str, Sequence[str]] = {}
        self.resources_by_id: dict[str, ResourcesRecord | None] = {}
        self.group_members: dict[str, Sequence[str]] = {}
        self.checkpoints_of: dict[str, Mapping[str, int]] = {}
        self.marks: dict[MarkKey, int | None] = {}
        self.marks_since: dict[tuple[str, int], Sequence[str]] = {}
        self.admissions: dict[str, AdmissionRecord | None] = {}
        self.open_groups_of: dict[str, Sequence[OpenGroup]] = {}
        self.latest: dict[None, ResourcesRecord | None] = {}
        """The latest resources, once they are loaded."""
        self.newest: dict[str | None, ResourcesRecord | None] = {}
        """The resources with the greatest policy version, by run."""
        self.queued: list[str] = []
        self.queue_end = False
        """Whether ``queued`` goes to the tail of the queue."""

    def reply(self, request_id: str) -> ReplyRecord | None:
        return _asked(self.replies, request_id, replies={request_id})

    def rollout(self, rollout_id: str) -> RolloutRecord | None:
        return _asked(self.rollouts, rollout_id, rollouts={rollout_id})

    def attempt(self, rollout_id: str, attempt_id: str) -> AttemptRecord | None:
        if self.rollouts.get(rollout_id, _UNASKED) is None:
            return None
        key = (rollout_id, attempt_id)
        return _asked(self.attempts, key, attempts={key})

    def last_sequence(self, rollout_id: str) -> int:
        return _asked(self.sequences, rollout_id, rollouts={rollout_id})

    def has_span(self, rollout_id: str, attempt_id: str, span_id: str) -> bool:
        key = (rollout_id, attempt_id, span_id)
        return _asked(self.spans, key, spans={key})

    def worker(self, worker_id: str) -> WorkerRecord | None:
        return _asked(self.workers, worker_id, workers={worker_id})

    def holders(self, rollout_id: str) -> Iterable[str]:
        return _asked(self.holder_ids, rollout_id, holders={rollout_id})

    def resources(self, resources_id: str) -> ResourcesRecord | None:
        return _asked(self.resources_by_id, resources_id, resources={resources_id})

    def group(self, group_id: str) -> Iterable[str]:
        return _asked(self.group_members, group_id, groups={group_id})

    def checkpoints(self, consumer: str) -> Mapping[str, int]:
        return _asked(self.checkpoints_of, consumer, checkpoints={consumer})

    def mark_of(self, consumer: str, rollout_id: str) -> int | None:
        key = (consumer, rollout_id)
        return _asked(self.marks, key, marks={key})

    def marks_from(self, consumer: str, number: int) -> Iterable[str]:
        key = (consumer, number)
        return _asked(self.marks_since, key, marks_from={key})

    def admission(self, run: str) -> AdmissionRecord | None:
        return _asked(self.admissions, run, admissions={run})

    def open_groups(self, run: str) -> Iterable[OpenGroup]:
        return _asked(self.open_groups_of, run, open_groups={run})

    def latest_resources(self) -> ResourcesRecord | None:
        return _asked(self.latest, None, latest_resources=True)

    def newest_resources(self, run: str | None) -> ResourcesRecord | None:
        return _asked(self.newest, run, newest_resources={run})

    def queue(self) -> Iterable[str]:
        return self.queued

    @property
    def queue_is_whole(self) -> bool:
        return self.queue_end


KeyT = TypeVar("KeyT")


def _asked(table: dict[KeyT, T], key: KeyT, **needs: object) -> T:
    try:
        return table[key]
    except KeyError:
        raise NotLoadedError(Needs(**needs)) from None  # type: ignore[arg-type]


def with_positions(changes: Changes, last_queue_position: int, last_completion_position: int) -> Changes:
    """The changes with real positions in the place of provisional ones.

    Args:
        changes: What a group of operations writes.
        last_queue_position: The last position of the queue that was ever given to a rollout.
        last_completion_position: The last position of a completion that was ever given to a rollout.
    """
    rollouts = dict(changes.rollouts)
    records = [record for record in rollouts.values() if record is not None]
    queued = sorted(
        (record.queue_position, record.rollout_id)
        for record in records
        if record.queue_position is not None and record.queue_position > PROVISIONAL
    )
    completed = sorted(
        (record.completion_position, record.rollout_id)
        for record in records
        if record.completion_position is not None and record.completion_position > PROVISIONAL
    )
    for position, (_, rollout_id) in zip(count(last_queue_position + 1), queued, strict=False):
        rollouts[rollout_id] = _known(rollouts, rollout_id)._replace(queue_position=position)
    for position, (_, rollout_id) in zip(count(last_completion_position + 1), completed, strict=False):
        rollouts[rollout_id] = _known(rollouts, rollout_id)._replace(completion_position=position)
    positioned = copy(changes)
    positioned.rollouts = rollouts
    return positioned


def _known(rollouts: dict[str, RolloutRecord | None], rollout_id: str) -> RolloutRecord:
    record = rollouts[rollout_id]
    assert record is not None
    return record
