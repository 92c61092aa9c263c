"""Stored rollouts and attempts as messages, and messages as what is to be stored: payloads go through as the text they
are. This is the server's way; a client makes and reads objects, with ``lightning_store.wire.codec``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from lightning_store import json_text
from lightning_store.backends.records import AttemptRecord, NewRollout, ResourcesRecord, RolloutRecord, RolloutRow
from lightning_store.model import GROUP_SIZE_MAX, PRIORITY_MAX, AttemptStatus, RolloutConfig, RolloutStatus
from lightning_store.reserved import with_reserved
from lightning_store.v1 import resources_pb2, rollout_pb2
from lightning_store.wire.checks import bounded_text, checked_json_object, invalid, required_text
from lightning_store.wire.codec import (
    CONFIGS_MAX,
    config_to_proto,
    named_resources_from_proto,
    shared_config_from_proto,
)
from lightning_store.wire.enums import ATTEMPT_STATUS, ROLLOUT_STATUS, mode_from_proto, mode_to_proto
from lightning_store.wire.requests import ATTEMPT_READERS, ROLLOUT_READERS, masked_fields
from lightning_store.wire.times import write_timestamp

KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Memory for rollouts whose bytes are kept: some 6,000 with inputs of a few hundred bytes. Not more, since some may be
deleted already."""
KEPT_ROW_BYTES_MAX: Final = 64 * 1024
"""A rollout that takes more is not kept: it would have the place of many."""
OBJECTS_RATIO: Final = 10
"""How many times as long as it is parsed a payload is worked on that becomes objects."""
NULL: Final = "null"
"""The input of a rollout that has none."""


def rollout_record_to_proto(record: RolloutRecord, latest: AttemptRecord | None = None) -> rollout_pb2.Rollout:
    message = rollout_pb2.Rollout(
        rollout_id=record.rollout_id,
        input_json=None if record.input_json == NULL else _as_utf8(record.input_json),
        mode=mode_to_proto(record.mode, "mode"),
        resources_id=record.resources_id,
        status=ROLLOUT_STATUS.to_proto(record.status, "status"),
        config=_config_to_proto(record.config),
        metadata_json=_as_utf8(record.metadata_json),
        latest_attempt=None if latest is None else attempt_record_to_proto(latest),
        end_reason=record.end_reason or "",
        priority=record.priority,
        group_id=record.group_id,
        group_size=record.group_size,
    )
    write_timestamp(message.start_time, record.start_time)
    write_timestamp(message.end_time, record.end_time)
    return message


def rollout_row_to_proto(row: RolloutRow) -> rollout_pb2.Rollout:
    return rollout_record_to_proto(row.rollout, row.attempt)


def attempt_record_to_proto(record: AttemptRecord) -> rollout_pb2.Attempt:
    message = rollout_pb2.Attempt(
        rollout_id=record.rollout_id,
        attempt_id=record.attempt_id,
        sequence_id=record.sequence_id,
        status=ATTEMPT_STATUS.to_proto(record.status, "status"),
        worker_id=record.worker_id,
        metadata_json=_as_utf8(record.metadata_json),
        counts=None if record.counts else False,
        resources_id=record.resources_id,
        resources_version=record.resources_version,
        policy_version=record.policy_version,
        policy_version_min=record.policy_version_min,
        policy_version_max=record.policy_version_max,
    )
    write_timestamp(message.start_time, record.start_time)
    write_timestamp(message.end_time, record.end_time)
    write_timestamp(message.last_heartbeat_time, record.last_heartbeat_time)
    return message


def resources_record_to_proto(record: ResourcesRecord) -> resources_pb2.Resources:
    named = json_text.loads(record.resources_json, "resources")
    message = resources_pb2.Resources(
        resources_id=record.resources_id,
        resources_json={name: _as_utf8(json_text.dumps(one, name)) for name, one in named.items()},
        version=record.version,
        policy_version=record.policy_version,
        run=record.run,
    )
    write_timestamp(message.create_time, record.create_time)
    write_timestamp(message.update_time, record.update_time)
    return message


def _as_utf8(text: str | None) -> Any:
    """For a string field. With a text that is not ASCII, Python would keep its UTF-8 form as long as the text."""
    return text if text is None or text.isascii() else text.encode()


def new_rollout_from_proto(message: rollout_pb2.NewRollout, field: str) -> NewRollout:
    """InvalidArgumentError names what is not legal, malformed JSON included."""
    input_json = message.input_json if message.HasField("input_json") else NULL
    json_text.checked(input_json, f"{field}.input_json")
    metadata_json = "{}"
    if message.HasField("metadata_json"):
        metadata_json = checked_json_object(message.metadata_json, f"{field}.metadata_json")
    new = NewRollout(
        input_json=input_json,
        mode=mode_from_proto(message.mode, f"{field}.mode"),
        resources_id=bounded_text(message.resources_id, f"{field}.resources_id")
        if message.HasField("resources_id")
        else None,
        config=shared_config_from_proto(message.config, f"{field}.config"),
        metadata_json=metadata_json,
        priority=_priority(message.priority, f"{field}.priority"),
        group_id=required_text(message.group_id, f"{field}.group_id") if message.HasField("group_id") else None,
        group_size=_group_size(message, field) if message.HasField("group_size") else None,
    )
    return with_reserved(new)


def _priority(priority: int, field: str) -> int:
    if abs(priority) > PRIORITY_MAX:
        raise invalid(field, f"is {priority}; it must be -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return priority


def _group_size(message: rollout_pb2.NewRollout, field: str) -> int:
    if not 1 <= message.group_size <= GROUP_SIZE_MAX:
        raise invalid(f"{field}.group_size", f"is {message.group_size}; it must be 1 to {GROUP_SIZE_MAX}")
    if not message.HasField("group_id"):
        raise invalid(f"{field}.group_id", "is missing; group_size needs it")
    return message.group_size


def attempt_change_from_proto(
    request: rollout_pb2.UpdateAttemptRequest,
) -> tuple[dict[str, Any], AttemptStatus | None]:
    """The columns to set, and the status if it is one of those."""
    columns = masked_fields(request.update, request.update_mask, _ATTEMPT_COLUMNS, _COLUMN_READERS)
    return columns, columns.pop("status", None)


def rollout_change_from_proto(
    request: rollout_pb2.UpdateRolloutRequest,
) -> tuple[dict[str, Any], RolloutStatus | None]:
    """The columns to set, and the status if it is one of those."""
    columns = masked_fields(request.update, request.update_mask, _ROLLOUT_COLUMNS, _ROLLOUT_COLUMN_READERS)
    return columns, columns.pop("status", None)


def _metadata_text(update: rollout_pb2.AttemptUpdate | rollout_pb2.RolloutUpdate, field: str) -> str | None:
    return checked_json_object(update.metadata_json, field) if update.HasField("metadata_json") else None


def _input_text(update: rollout_pb2.RolloutUpdate, field: str) -> str:
    return json_text.checked(update.input_json, field) if update.HasField("input_json") else NULL


def resources_json_from_proto(texts: Mapping[str, str], field: str) -> str:
    """The JSON text of named resources."""
    json_text.check_values(",".join(texts.values()), field, ratio=OBJECTS_RATIO)
    named = named_resources_from_proto(texts, field)
    return json_text.dumps({name: one.model_dump() for name, one in named.items()}, "resources")


_COLUMN_READERS: Final[Mapping[str, Callable[[rollout_pb2.AttemptUpdate, str], Any]]] = {
    **ATTEMPT_READERS,
    "metadata_json": _metadata_text,
}
_ROLLOUT_COLUMN_READERS: Final[Mapping[str, Callable[[rollout_pb2.RolloutUpdate, str], Any]]] = {
    "input_json": _input_text,
    **ROLLOUT_READERS,
    "metadata_json": _metadata_text,
}
_ROLLOUT_COLUMNS: Final = {path: path for path in _ROLLOUT_COLUMN_READERS}
_ATTEMPT_COLUMNS: Final = {path: path for path in _COLUMN_READERS}
"""Paths of a mask over AttemptUpdate: each is the name of its column."""


_messages_of: Final[dict[int, tuple[RolloutConfig, rollout_pb2.RolloutConfig]]] = {}
"""By the identity of the config, which nobody changes. It is kept, so no other gets its identity. By its values it is
0.83 µs rather than 0.08, of some 40 that an enqueue takes the server."""


def _config_to_proto(config: RolloutConfig) -> rollout_pb2.RolloutConfig:
    known = _messages_of.get(id(config))
    if known is None:
        values = (tuple(one) if isinstance(one, list) else one for one in vars(config).values())
        known = config, _known_config(*values)
        if len(_messages_of) >= CONFIGS_MAX:
            _messages_of.clear()
        _messages_of[id(config)] = known
    return known[1]


@lru_cache(CONFIGS_MAX)
def _known_config(*values: Any) -> rollout_pb2.RolloutConfig:
    return config_to_proto(RolloutConfig(**dict(zip(RolloutConfig.model_fields, values, strict=True))))


# --- Rows that are asked for again and again -------------------------------------------------------------------------


class _Kept(NamedTuple):
    row: RolloutRow
    data: bytes
    size_bytes: int
    """Of both: the store may have deleted or changed the row since."""


class RowsEncoder:
    """Serializes rollouts, and keeps the bytes of those that were asked for last: whoever follows a training run asks
    for the same rows over and over, and few of them have changed."""

    def __init__(self, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept_bytes = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        """Those that were asked for last come last."""

    def encode(self, row: RolloutRow) -> bytes:
        rollout_id = row.rollout.rollout_id
        kept = self._kept.get(rollout_id)
        # Records are never changed in place: the same objects are the same row.
        if kept is not None and kept.row.rollout is row.rollout and kept.row.attempt is row.attempt:
            self._kept.move_to_end(rollout_id)
            return kept.data
        data = rollout_row_to_proto(row).SerializeToString()
        attempt_bytes = 0 if row.attempt is None else row.attempt.size_bytes
        self._keep(rollout_id, _Kept(row, data, len(data) + row.rollout.size_bytes + attempt_bytes))
        return data

    def _keep(self, rollout_id: str, new: _Kept) -> None:
        former = self._kept.pop(rollout_id, None)
        if former is not None:
            self._kept_bytes -= former.size_bytes
        if new.size_bytes > KEPT_ROW_BYTES_MAX:
            return
        self._kept[rollout_id] = new
        self._kept_bytes += new.size_bytes
        while self._kept_bytes > self._kept_bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.size_bytes
