"""The names that the model uses for statuses and the like, and the enum numbers of the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

from lightning_store.model import (
    AttemptStatus,
    FilterLogic,
    ReturnWhen,
    RolloutMode,
    RolloutStatus,
    SortOrder,
    WorkerStatus,
)
from lightning_store.v1 import common_pb2, rollout_pb2, worker_pb2
from lightning_store.wire.checks import invalid

NameT = TypeVar("NameT", bound=str)
NumberT = TypeVar("NumberT", bound=int)


class EnumTable(Generic[NameT, NumberT]):
    """One enum, in both directions."""

    def __init__(self, numbers: Mapping[NameT, NumberT]) -> None:
        self._numbers: Mapping[str, NumberT] = {str(name): number for name, number in numbers.items()}
        self._names: Mapping[int, NameT] = {int(number): name for name, number in numbers.items()}

    def __contains__(self, number: int) -> bool:
        return number in self._names

    def to_proto(self, name: NameT, field: str) -> NumberT:
        try:
            return self._numbers[name]
        except (KeyError, TypeError):
            legal = ", ".join(self._numbers)
            raise invalid(field, f"must be one of {legal}, not {name!r}") from None

    def from_proto(self, number: int, field: str) -> NameT:
        """The name; an InvalidArgumentError for 0 (unspecified) and for a number that is not known."""
        try:
            return self._names[number]
        except KeyError:
            legal = ", ".join(f"{number} ({name})" for number, name in self._names.items())
            given = "is unspecified" if number == 0 else f"has the unknown enum number {number}"
            raise invalid(field, f"{given}; give one of {legal}") from None


ROLLOUT_STATUS: Final = EnumTable[RolloutStatus, rollout_pb2.RolloutStatus.ValueType](
    {
        "queuing": rollout_pb2.ROLLOUT_STATUS_QUEUING,
        "preparing": rollout_pb2.ROLLOUT_STATUS_PREPARING,
        "running": rollout_pb2.ROLLOUT_STATUS_RUNNING,
        "failed": rollout_pb2.ROLLOUT_STATUS_FAILED,
        "succeeded": rollout_pb2.ROLLOUT_STATUS_SUCCEEDED,
        "cancelled": rollout_pb2.ROLLOUT_STATUS_CANCELLED,
        "requeuing": rollout_pb2.ROLLOUT_STATUS_REQUEUING,
    }
)
ATTEMPT_STATUS: Final = EnumTable[AttemptStatus, rollout_pb2.AttemptStatus.ValueType](
    {
        "preparing": rollout_pb2.ATTEMPT_STATUS_PREPARING,
        "running": rollout_pb2.ATTEMPT_STATUS_RUNNING,
        "failed": rollout_pb2.ATTEMPT_STATUS_FAILED,
        "succeeded": rollout_pb2.ATTEMPT_STATUS_SUCCEEDED,
        "unresponsive": rollout_pb2.ATTEMPT_STATUS_UNRESPONSIVE,
        "timeout": rollout_pb2.ATTEMPT_STATUS_TIMEOUT,
    }
)
WORKER_STATUS: Final = EnumTable[WorkerStatus, worker_pb2.WorkerStatus.ValueType](
    {
        "idle": worker_pb2.WORKER_STATUS_IDLE,
        "busy": worker_pb2.WORKER_STATUS_BUSY,
        "unknown": worker_pb2.WORKER_STATUS_UNKNOWN,
    }
)
_ROLLOUT_MODE: Final = EnumTable[RolloutMode, rollout_pb2.RolloutMode.ValueType](
    {
        "train": rollout_pb2.ROLLOUT_MODE_TRAIN,
        "val": rollout_pb2.ROLLOUT_MODE_VAL,
        "test": rollout_pb2.ROLLOUT_MODE_TEST,
    }
)
_FILTER_LOGIC: Final = EnumTable[FilterLogic, common_pb2.FilterLogic.ValueType](
    {"and": common_pb2.FILTER_LOGIC_AND, "or": common_pb2.FILTER_LOGIC_OR}
)
_RETURN_WHEN: Final = EnumTable[ReturnWhen, rollout_pb2.ReturnWhen.ValueType](
    {"all": rollout_pb2.RETURN_WHEN_ALL, "any": rollout_pb2.RETURN_WHEN_ANY}
)
_SORT_ORDER: Final = EnumTable[SortOrder, common_pb2.SortOrder.ValueType](
    {"asc": common_pb2.SORT_ORDER_ASC, "desc": common_pb2.SORT_ORDER_DESC}
)


def mode_to_proto(mode: RolloutMode | None, field: str) -> rollout_pb2.RolloutMode.ValueType:
    return rollout_pb2.ROLLOUT_MODE_UNSPECIFIED if mode is None else _ROLLOUT_MODE.to_proto(mode, field)


def mode_from_proto(number: rollout_pb2.RolloutMode.ValueType, field: str) -> RolloutMode | None:
    return _ROLLOUT_MODE.from_proto(number, field) if number else None


def filter_logic_to_proto(logic: FilterLogic) -> common_pb2.FilterLogic.ValueType:
    return _FILTER_LOGIC.to_proto(logic, "filter_logic")


def filter_logic_from_proto(number: common_pb2.FilterLogic.ValueType, field: str) -> FilterLogic:
    return _FILTER_LOGIC.from_proto(number, field) if number else "and"


def return_when_to_proto(return_when: ReturnWhen) -> rollout_pb2.ReturnWhen.ValueType:
    return _RETURN_WHEN.to_proto(return_when, "return_when")


def return_when_from_proto(number: rollout_pb2.ReturnWhen.ValueType, field: str) -> ReturnWhen:
    return _RETURN_WHEN.from_proto(number, field) if number else "all"


def sort_order_to_proto(order: SortOrder) -> common_pb2.SortOrder.ValueType:
    return _SORT_ORDER.to_proto(order, "sort_order")


def sort_order_from_proto(number: common_pb2.SortOrder.ValueType, field: str) -> SortOrder:
    return _SORT_ORDER.from_proto(number, field) if number else "asc"
