"""Rollouts as they are in a store: pages of them, and bringing them into another store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from lightning_store import lifecycle
from lightning_store.backends.base import Snapshot
from lightning_store.backends.matching import matches
from lightning_store.backends.records import (
    AdmissionRecord,
    AttemptRecord,
    CheckpointRecord,
    ResourcesRecord,
    SpanRecord,
    StoredRollout,
    WorkerRecord,
)
from lightning_store.engine import admission, workers
from lightning_store.engine.rules import first_deadline, queue_band
from lightning_store.engine.view import View
from lightning_store.errors import InvalidArgumentError
from lightning_store.queries import AttemptQuery, RolloutQuery, SpanQuery

PAGE_ROLLOUTS: Final = 200
"""Rollouts that a page is done with at the most."""
PAGE_BYTES: Final = 4 * 1024 * 1024
"""A page ends with the rollout that brings it to so many bytes. One that has more itself is cut into parts."""
PAGE_SPANS: Final = 5000
"""Spans of one rollout in a page: as many as an import takes in a request."""
SPANS_AT_ONCE: Final = 1000
"""Spans of one rollout that are read at a time."""


# --- Out of a store --------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a page begins: past this rollout, or in the middle of it."""

    place: int = 0
    spans: int = 0
    """If not 0, the rollout in ``place`` goes on after so many of its spans."""


class Page(NamedTuple):
    """Some of the rollouts of a store."""

    rollouts: Sequence[StoredRollout]
    seen: int
    """How many the page is done with, whether they were asked for or not."""
    total: int
    """How many are stored."""
    next: Place | None
    """None after the last."""
    checkpoints: Sequence[CheckpointRecord] = ()
    """On the first page: those of all consumers, before any of the rollouts was read."""
    admissions: Sequence[AdmissionRecord] = ()
    """On the first page: those of all runs."""


async def page_of(snapshot: Snapshot, which: RolloutQuery, begin: Place) -> Page:
    """The rollouts from ``begin`` on, as many as a page takes; on the first page also what belongs to none of them."""
    page = await _rollouts_of(snapshot, which, begin)
    if begin != Place():
        return page
    return page._replace(checkpoints=await snapshot.checkpoints(), admissions=await snapshot.admissions())


async def _rollouts_of(snapshot: Snapshot, which: RolloutQuery, begin: Place) -> Page:
    total = (await snapshot.counts()).rollouts
    placed = await snapshot.placed_rollouts(begin.place - 1 if begin.spans else begin.place, PAGE_ROLLOUTS)
    marks = await snapshot.marks([one.rollout.rollout_id for one in placed if one.rollout.consumers])
    of_attempt = any(one.of_attempt for one in which.filters)
    found: list[StoredRollout] = []
    size_bytes = seen = 0
    for one in placed:
        attempts = await _attempts(snapshot, one.rollout.rollout_id) if of_attempt else ()
        if matches(one.rollout, which, attempts[-1] if attempts else None):
            before = begin.spans if one.place == begin.place else 0
            spans, more = await _spans(snapshot, one.rollout.rollout_id, before)
            attempts = attempts or await _attempts(snapshot, one.rollout.rollout_id)
            consumed = marks.get(one.rollout.rollout_id, {})
            part = StoredRollout(one.rollout, attempts, spans, one.last_sequence, before, consumed)
            found.append(part)
            size_bytes += part.payload_bytes
            if more:
                return Page(found, seen, total, Place(one.place, before + len(spans)))
        seen += 1
        if size_bytes >= PAGE_BYTES:
            return Page(found, seen, total, Place(one.place))
    return Page(found, seen, total, Place(placed[-1].place) if len(placed) == PAGE_ROLLOUTS else None)


async def _attempts(snapshot: Snapshot, rollout_id: str) -> Sequence[AttemptRecord]:
    return (await snapshot.query_attempts(AttemptQuery(rollout_id=rollout_id))).items


async def _spans(snapshot: Snapshot, rollout_id: str, before: int) -> tuple[list[SpanRecord], bool]:
    """Spans of a rollout after as many, as many as go into a page, but one at least; and whether there are more."""
    found: list[SpanRecord] = []
    size_bytes = 0
    while True:
        query = SpanQuery(rollout_id=rollout_id, limit=SPANS_AT_ONCE, offset=before + len(found))
        rows = await snapshot.query_spans(query)
        for span in rows.items:
            if len(found) == PAGE_SPANS or (found and size_bytes + len(span.document) > PAGE_BYTES):
                return found, True
            found.append(span)
            size_bytes += len(span.document)
        if before + len(found) >= rows.total:
            return found, False


# --- Into a store ----------------------------------------------------------------------------------------------------


class Counted(NamedTuple):
    """How many of each kind."""

    rollouts: int = 0
    spans: int = 0
    resources: int = 0
    workers: int = 0
    checkpoints: int = 0
    admissions: int = 0


class Imported(NamedTuple):
    """What an import came to."""

    imported: Counted
    """What was stored."""
    present: Counted
    """What was stored before, and what has nothing to belong to: it was left alone."""


def adopt_resources(view: View, resources: ResourcesRecord) -> bool:
    """Store resources unless their id is stored. They become the latest unless there are later ones."""
    if view.resources(resources.resources_id) is not None:
        return False
    latest = view.latest_resources()
    view.put_resources(resources, latest=latest is None or resources.update_time >= latest.update_time)
    return True


def adopt_checkpoint(view: View, record: CheckpointRecord) -> bool:
    """Store a checkpoint unless its consumer has recorded one of this name."""
    if record.checkpoint in view.checkpoints(record.consumer):
        return False
    view.put_checkpoint(*record)
    return True


def adopt_admission(view: View, record: AdmissionRecord) -> bool:
    """Bound a run unless it is bounded."""
    if view.admission(record.run) is not None:
        return False
    admission.set_admission(view, record)
    return True


def adopt_rollout(view: View, part: StoredRollout) -> bool:
    """Store a rollout with its attempts unless it is stored."""
    rollout = part.rollout
    if view.rollout(rollout.rollout_id) is not None:
        return False
    if rollout.status in lifecycle.TERMINAL and rollout.end_time is None:
        message = f"rollout {rollout.rollout_id} is {rollout.status} and has no end_time"
        raise InvalidArgumentError(message, rollout_id=rollout.rollout_id, field="end_time")
    for attempt in part.attempts:
        view.put_attempt(attempt)
    latest = part.attempts[-1] if part.attempts else None
    queued, terminal = rollout.status in lifecycle.QUEUED, rollout.status in lifecycle.TERMINAL
    reason = lifecycle.end_reason(rollout.status, None if latest is None else latest.status)
    view.put_rollout(
        rollout._replace(
            latest_attempt_id=None if latest is None else latest.attempt_id,
            end_reason="stale" if rollout.end_reason == "stale" and terminal else reason,
            queue_position=view.next_queue_position() if queued else None,
            queue_band=queue_band(rollout.priority),
            first_claim_time=part.attempts[0].start_time if rollout.group_id is not None and part.attempts else None,
            uncounted_attempts=sum(not one.counts for one in part.attempts),
            completion_position=view.next_completion_position() if terminal else None,
            completion_time=view.now if terminal else None,
            deadline=None if latest is None else first_deadline(view, rollout.status, rollout.config, latest),
            consumers=len(part.consumed),
        )
    )
    for consumer, number in part.consumed.items():
        # Not one of a checkpoint that is not here: the next one would not have it.
        last = max(view.checkpoints(consumer).values(), default=0)
        view.put_mark(consumer, rollout.rollout_id, min(number, last))
    admission.note(view, rollout)
    view.set_last_sequence(rollout.rollout_id, part.last_sequence)
    if queued:
        view.effects.queued.append(rollout.rollout_id)
    if terminal:
        view.effects.ended.append(rollout.rollout_id)
    return True


def adopt_span(view: View, span: SpanRecord, size_bytes: int) -> bool:
    """Store a span unless it is stored, or its attempt is not, or the spans of its rollout were dropped."""
    rollout = view.rollout(span.rollout_id)
    if rollout is None or rollout.spans_evicted or view.attempt(span.rollout_id, span.attempt_id) is None:
        return False
    key = (span.rollout_id, span.attempt_id, span.span_id)
    if view.has_span(key):
        return False
    assert span.sequence_id is not None
    view.insert_span(key, span, size_bytes)
    view.set_last_sequence(span.rollout_id, max(span.sequence_id, view.last_sequence(span.rollout_id)))
    return True


def adopt_worker(view: View, worker: WorkerRecord) -> bool:
    """Store a worker unless it is stored. It holds its attempt if that is stored."""
    if view.worker(worker.worker_id) is not None:
        return False
    rollout_id, attempt_id = worker.current_rollout_id, worker.current_attempt_id
    if rollout_id is not None and (
        attempt_id is None or view.rollout(rollout_id) is None or view.attempt(rollout_id, attempt_id) is None
    ):
        worker = workers.release(worker, view.now)
    view.put_worker(worker)
    return True
