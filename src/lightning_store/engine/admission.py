"""Admission: how far runners may go ahead with the groups of a run.

What may not begin yet is held: it keeps its place in the queue, and no claim finds it. So a claim decides nothing.
Whatever may change the room of a run notes that, and the transaction ends with a look at these runs.
"""

from __future__ import annotations

from typing import Final

from lightning_store.backends.base import Snapshot
from lightning_store.backends.records import AdmissionRecord, RolloutRecord
from lightning_store.engine.view import View
from lightning_store.lifecycle import QUEUED
from lightning_store.model import Admission, AdmissionState

IDS_MAX: Final = 1000
"""Ids of open groups that are told; more are counted."""


def set_admission(view: View, admission: AdmissionRecord) -> AdmissionRecord:
    """That of its run from now on; one that bounds nothing is none."""
    view.put_admission(admission.run, admission if admission.bounds else None)
    view.effects.runs[admission.run] = None
    return admission


async def admission_state(snapshot: Snapshot, run: str) -> AdmissionState:
    """How far the groups of a run have gone."""
    groups = await snapshot.open_groups(run)
    begun = sorted(one.group_id for one in groups if one.begun)
    record = next((one for one in await snapshot.admissions() if one.run == run), AdmissionRecord(run, None, False))
    return AdmissionState(Admission(*record), len(begun), len(groups) - len(begun), begun[:IDS_MAX])


def note(view: View, rollout: RolloutRecord) -> None:
    """The run of this rollout may have more or less room."""
    if rollout.group_id is not None and rollout.run is not None:
        view.effects.runs[rollout.run] = None


def readmit(view: View, run: str) -> None:
    """Let in as many groups of a run as there is room for, by their places in the queue, and hold the others. Those
    that have begun go on."""
    admission = view.admission(run)
    if admission is None and run not in view.changes.admissions:
        return
    groups = view.open_groups(run).values()
    begun = [one for one in groups if one.begun]
    waiting = sorted((one for one in groups if not one.begun), key=lambda one: one.place)
    room = len(waiting)
    if admission is not None and admission.paused:
        room = 0
    elif admission is not None and admission.max_open_groups is not None:
        room = max(0, admission.max_open_groups - len(begun))
    for group in [*begun, *waiting[:room]]:
        if group.any_held:
            _hold(view, group.group_id, held=False)
    for group in waiting[room:]:
        if not group.all_held:
            _hold(view, group.group_id, held=True)


def _hold(view: View, group_id: str, *, held: bool) -> None:
    for row in view.group(group_id).rows:
        rollout = row.rollout
        if rollout.held != held and rollout.status in QUEUED:
            view.put_rollout(rollout._replace(held=held))
            if not held:
                view.effects.queued.append(rollout.rollout_id)
