"""What consumers have consumed: sets of rollouts, which go back with the checkpoints of a model.

The checkpoints of a consumer are numbered. A mark has the number of checkpoints that there were when it was made, so
those that are not in checkpoint n have n or more.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_store.engine import admission
from lightning_store.engine.rules import known_rollout
from lightning_store.engine.view import View, gathered
from lightning_store.errors import CheckpointUnknownError


def mark_consumed(view: View, consumer: str, rollout_ids: Sequence[str], checkpoint: str | None) -> list[str]:
    """Mark these rollouts and the other members of their groups, without those that are gone; then record a checkpoint,
    if one is given. Returns those that were not marked before."""
    number = max(view.checkpoints(consumer).values(), default=0)
    known = [one for one in gathered(view.rollout, dict.fromkeys(rollout_ids)) if one is not None]
    groups = dict.fromkeys(one.group_id for one in known if one.group_id is not None)
    ids = dict.fromkeys(one.rollout_id for one in known)
    for group in gathered(view.group, groups):
        ids |= {one.rollout.rollout_id: None for one in group.rows}
    marks = gathered(lambda rollout_id: view.mark_of(consumer, rollout_id), ids)
    marked = [rollout_id for rollout_id, mark in zip(ids, marks, strict=True) if mark is None]
    for rollout_id in marked:
        _put_mark(view, consumer, rollout_id, number)
    if checkpoint is not None:
        view.put_checkpoint(consumer, checkpoint, number + 1)
    return marked


def rewind(view: View, consumer: str, checkpoint: str | None) -> list[str]:
    """Take back the marks that are not in a checkpoint, all for None, and forget the later checkpoints."""
    checkpoints = view.checkpoints(consumer)
    if checkpoint is not None and checkpoint not in checkpoints:
        raise CheckpointUnknownError.of(consumer, checkpoint)
    number = 0 if checkpoint is None else checkpoints[checkpoint]
    marked = gathered(view.rollout, view.marks_from(consumer, number))
    rollout_ids = [one.rollout_id for one in marked if one is not None]
    for rollout_id in rollout_ids:
        _put_mark(view, consumer, rollout_id, None)
    for later in [name for name, of in checkpoints.items() if of > number]:
        view.put_checkpoint(consumer, later, None)
    return rollout_ids


def _put_mark(view: View, consumer: str, rollout_id: str, number: int | None) -> None:
    rollout = known_rollout(view, rollout_id)
    view.put_mark(consumer, rollout_id, number)
    view.put_rollout(rollout._replace(consumers=rollout.consumers + (1 if number is not None else -1)))
    admission.note(view, rollout)
