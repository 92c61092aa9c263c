"""Replies as bytes: the form in which a backend keeps them, and in which they outlive the process."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, Final, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from lightning_store.errors import ErrorRecord, StoreError
from lightning_store.outcomes import SpanOutcome

R = TypeVar("R")


class ReplyCodec(ABC, Generic[R]):
    """Turns the reply of an operation into bytes, which a backend keeps, and back."""

    @abstractmethod
    def encode(self, reply: R) -> bytes: ...

    @abstractmethod
    def decode(self, body: bytes) -> R:
        """``decode(encode(reply)) == reply`` for every reply."""


class RecordCodec(ReplyCodec[R]):
    """JSON of records, by pydantic.

    Args:
        type_: The type of the reply.
    """

    def __init__(self, type_: Any) -> None:
        self._adapter: TypeAdapter[R] = TypeAdapter(type_, config=ConfigDict(ser_json_inf_nan="constants"))

    def encode(self, reply: R) -> bytes:
        return self._adapter.dump_json(reply)

    def decode(self, body: bytes) -> R:
        return self._adapter.validate_json(body)


class SpanOutcomesCodec(ReplyCodec[list[SpanOutcome]]):
    """JSON of what became of each span of a batch."""

    _adapter: TypeAdapter[list[int | None | ErrorRecord]] = TypeAdapter(list[int | None | ErrorRecord])

    def encode(self, reply: list[SpanOutcome]) -> bytes:
        return _dump(self._adapter, [ErrorRecord.of(one) if isinstance(one, StoreError) else one for one in reply])

    def decode(self, body: bytes) -> list[SpanOutcome]:
        outcomes = _load(self._adapter, body)
        return [one.error() if isinstance(one, ErrorRecord) else one for one in outcomes]


_REFUSAL: Final[TypeAdapter[ErrorRecord]] = TypeAdapter(ErrorRecord)


def encode_refusal(error: StoreError) -> bytes:
    return _dump(_REFUSAL, ErrorRecord.of(error))


def decode_refusal(body: bytes) -> StoreError:
    """A new error of the class that was encoded."""
    return _load(_REFUSAL, body).error()


def _dump(adapter: TypeAdapter[R], value: R) -> bytes:
    """JSON of something that may have errors in it. These may name an id that has no UTF-8 form: that is escaped."""
    try:
        return adapter.dump_json(value)
    except PydanticSerializationError:
        return json.dumps(adapter.dump_python(value)).encode()


def _load(adapter: TypeAdapter[R], body: bytes) -> R:
    try:
        return adapter.validate_json(body)
    except ValidationError:  # pydantic reads no escaped surrogates
        return adapter.validate_python(json.loads(body))
