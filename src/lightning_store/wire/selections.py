"""Which rollouts to delete, to watch and to export: the client's arguments as requests, and requests as the store's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Required, cast

from lightning_store.model import (
    TIME_MAX_SECONDS,
    Admission,
    AdmissionState,
    CompletedRollout,
    Group,
    GroupStatus,
    GroupTerms,
    RolloutFilters,
    RolloutStatus,
    WatchFilters,
)
from lightning_store.queries import ALL_ROLLOUTS, GroupQuery, RolloutQuery
from lightning_store.v1 import rollout_pb2, transfer_pb2
from lightning_store.wire.checks import optional_text_to_proto, require, required_text, text_to_proto
from lightning_store.wire.codec import rollout_from_proto, rollout_to_proto
from lightning_store.wire.enums import mode_from_proto
from lightning_store.wire.queries import (
    filters_from_proto,
    filters_to_proto,
    rollout_statuses_from_proto,
    rollout_statuses_to_proto,
    texts_to_proto,
)
from lightning_store.wire.times import (
    duration_from_proto,
    duration_to_proto,
    timestamp_from_proto,
)


class Deletion(RolloutFilters):
    """Keywords of ``delete_rollouts``."""

    rollout_ids: Required[Sequence[str] | None]
    older_than: Required[float | None]
    status_in: Required[Sequence[RolloutStatus] | None]


def cancellation_to_proto(
    request_id: str, rollout_ids: Sequence[str] | None, where: RolloutQuery
) -> rollout_pb2.CancelRolloutsRequest:
    return rollout_pb2.CancelRolloutsRequest(
        request_id=request_id,
        rollout_ids=[text_to_proto(one, "rollout_ids") for one in rollout_ids or ()],
        status_in=None if where.status_in is None else rollout_statuses_to_proto(where.status_in),
        filters=filters_to_proto(where),
    )


def cancellation_from_proto(request: rollout_pb2.CancelRolloutsRequest) -> tuple[list[str] | None, dict[str, Any]]:
    """The ids, None for all that the filters leave; and the filters that are there."""
    ids = [required_text(rollout_id, f"rollout_ids[{i}]") for i, rollout_id in enumerate(request.rollout_ids)]
    filters: dict[str, Any] = {**filters_from_proto(request)}
    if request.HasField("status_in"):
        filters["status_in"] = rollout_statuses_from_proto(request.status_in)
    return (None if filters and not ids else ids), filters


def deletion_to_proto(
    request_id: str, deletion: Deletion, where: RolloutQuery = ALL_ROLLOUTS
) -> rollout_pb2.DeleteRolloutsRequest:
    rollout_ids, older_than, status_in = deletion["rollout_ids"], deletion["older_than"], deletion["status_in"]
    return rollout_pb2.DeleteRolloutsRequest(
        request_id=request_id,
        rollout_id_in=None if rollout_ids is None else texts_to_proto(rollout_ids, "rollout_ids"),
        older_than=None if older_than is None else duration_to_proto(min(older_than, TIME_MAX_SECONDS)),
        status_in=None if status_in is None else rollout_statuses_to_proto(status_in),
        filters=filters_to_proto(where),
    )


def deletion_from_proto(request: rollout_pb2.DeleteRolloutsRequest) -> Deletion:
    older_than = duration_from_proto(request.older_than, "older_than") if request.HasField("older_than") else None
    status_in = rollout_statuses_from_proto(request.status_in) if request.HasField("status_in") else None
    return Deletion(
        rollout_ids=_ids_from_proto(request),
        older_than=older_than,
        status_in=status_in,
        **filters_from_proto(request),
    )


def watch_to_proto(
    rollout_ids: Collection[str] | None, after: str, where: RolloutQuery = ALL_ROLLOUTS, consumer: str | None = None
) -> rollout_pb2.WatchRolloutsRequest:
    return rollout_pb2.WatchRolloutsRequest(
        rollout_id_in=None if rollout_ids is None else texts_to_proto(list(rollout_ids), "rollout_ids"),
        after=text_to_proto(after, "after"),
        filters=filters_to_proto(where),
        consumer=optional_text_to_proto(consumer, "consumer"),
    )


def watched_from_proto(request: rollout_pb2.WatchRolloutsRequest) -> tuple[list[str] | None, WatchFilters]:
    """The rollouts to watch, None for all; and the filters that are there."""
    filters = cast(WatchFilters, filters_from_proto(request))
    if request.HasField("consumer"):
        filters["consumer"] = required_text(request.consumer, "consumer")
    return _ids_from_proto(request), filters


def completed_to_proto(completed: CompletedRollout) -> rollout_pb2.CompletedRollout:
    return rollout_pb2.CompletedRollout(rollout=rollout_to_proto(completed.rollout), cursor=completed.cursor)


def completed_from_proto(message: rollout_pb2.CompletedRollout, field: str) -> CompletedRollout:
    require(message, "rollout", f"{field}.rollout")
    rollout = rollout_from_proto(message.rollout, f"{field}.rollout")
    return CompletedRollout(rollout, required_text(message.cursor, f"{field}.cursor"))


def watch_groups_to_proto(
    group_ids: Collection[str] | None, terms: GroupQuery, told: Collection[str] = ()
) -> rollout_pb2.WatchGroupsRequest:
    deadline, timeout = terms.deadline, terms.timeout
    return rollout_pb2.WatchGroupsRequest(
        group_id_in=None if group_ids is None else texts_to_proto(list(group_ids), "group_ids"),
        run=optional_text_to_proto(terms.run, "run"),
        consumer=optional_text_to_proto(terms.consumer, "consumer"),
        min_done=terms.min_done,
        deadline=None if deadline is None else duration_to_proto(min(max(0.0, deadline), TIME_MAX_SECONDS)),
        cancel_partial=terms.on_partial == "cancel",
        told_group_ids=told,
        timeout=None if timeout is None else duration_to_proto(min(max(0.0, timeout), TIME_MAX_SECONDS)),
    )


def watched_groups_from_proto(request: rollout_pb2.WatchGroupsRequest) -> tuple[list[str] | None, GroupTerms]:
    """The groups to watch, None for all; and the terms."""
    has = request.HasField
    ids = None
    if has("group_id_in"):
        values = enumerate(request.group_id_in.values)
        ids = [required_text(group_id, f"group_id_in.values[{index}]") for index, group_id in values]
    return ids, GroupTerms(
        run=request.run if has("run") else None,
        consumer=required_text(request.consumer, "consumer") if has("consumer") else None,
        min_done=request.min_done if has("min_done") else None,
        deadline=duration_from_proto(request.deadline, "deadline") if has("deadline") else None,
        timeout=duration_from_proto(request.timeout, "timeout") if has("timeout") else None,
        on_partial="cancel" if request.cancel_partial else "keep",
    )


def group_to_proto(group: Group) -> rollout_pb2.Group:
    return rollout_pb2.Group(
        group_id=group.group_id,
        size=group.size,
        status=group.status,
        rollouts=map(rollout_to_proto, group.rollouts),
    )


def group_from_proto(message: rollout_pb2.Group, field: str) -> Group:
    rollouts = [rollout_from_proto(one, f"{field}.rollouts[{index}]") for index, one in enumerate(message.rollouts)]
    status = cast(GroupStatus, message.status)
    return Group(required_text(message.group_id, f"{field}.group_id"), message.size, status, rollouts)


def admission_to_proto(admission: Admission) -> rollout_pb2.Admission:
    return rollout_pb2.Admission(run=admission.run, max_open_groups=admission.max_open_groups, paused=admission.paused)


def admission_from_proto(message: rollout_pb2.Admission) -> Admission:
    bound = message.max_open_groups if message.HasField("max_open_groups") else None
    return Admission(required_text(message.run, "admission.run"), bound, message.paused)


def admission_state_to_proto(state: AdmissionState) -> rollout_pb2.GetAdmissionResponse:
    return rollout_pb2.GetAdmissionResponse(
        admission=admission_to_proto(state.admission),
        open_groups=state.open_groups,
        waiting_groups=state.waiting_groups,
        open_group_ids=state.open_group_ids,
    )


def admission_state_from_proto(message: rollout_pb2.GetAdmissionResponse) -> AdmissionState:
    admission = admission_from_proto(message.admission)
    return AdmissionState(admission, message.open_groups, message.waiting_groups, list(message.open_group_ids))


def exported_to_proto(which: RolloutQuery, page_token: str) -> transfer_pb2.ExportRolloutsRequest:
    return transfer_pb2.ExportRolloutsRequest(
        status_in=None if which.status_in is None else rollout_statuses_to_proto(which.status_in),
        page_token=page_token,
        filters=filters_to_proto(which),
    )


def exported_from_proto(request: transfer_pb2.ExportRolloutsRequest) -> RolloutQuery:
    """Which rollouts to export."""
    found: dict[str, Any] = {}
    if request.HasField("status_in"):
        found["status_in"] = rollout_statuses_from_proto(request.status_in)
    if request.mode_in:
        found["mode_in"] = [mode_from_proto(mode, f"mode_in[{index}]") for index, mode in enumerate(request.mode_in)]
    for name in ("start_time_min", "start_time_max"):
        if request.HasField(name):
            found[name] = timestamp_from_proto(getattr(request, name), name)
    return RolloutQuery(**{**found, **filters_from_proto(request)})


def _ids_from_proto(request: rollout_pb2.DeleteRolloutsRequest | rollout_pb2.WatchRolloutsRequest) -> list[str] | None:
    if not request.HasField("rollout_id_in"):
        return None
    values = enumerate(request.rollout_id_in.values)
    return [required_text(rollout_id, f"rollout_id_in.values[{index}]") for index, rollout_id in values]
