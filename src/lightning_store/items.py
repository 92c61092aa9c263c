"""How many items a serialized request has, found out before it is parsed.

A message of two bytes takes a hundred in memory, and each one is work for the server, so a small request of many items
costs more than its size says. Parsing it to count them would be too late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.message import Message

from lightning_store.errors import InvalidArgumentError

T = TypeVar("T")

ITEMS_MAX: Final = 10_000
"""Items of one repeated field of a request, unless a server is told otherwise; a client sends more in several."""
FIELDS_RATIO: Final = 10
"""All fields of a request, nested ones included, may be so many times as many."""
DEPTH_MAX: Final = 100
"""Levels of messages that protobuf takes; it refuses more by itself."""

_VARINT, _LENGTH = 0, 2
_FIXED_BYTES: Final = {1: 8, 5: 4}
_MORE: Final = bytes(range(0x80, 0x100))
"""Bytes of a varint after which more of it follow."""


class _Field(NamedTuple):
    name: str
    repeated: bool
    packed: bool
    inside: Descriptor | None
    """Of a message that is looked into."""
    has_messages: bool
    """Whether a repeated field of messages or text is in it, at any depth: many of these fit into few bytes."""
    is_simple: bool
    """Whether all there is to do is to count it, …"""
    is_flat: bool
    """… or so unless it is large."""


def check_items(
    data: bytes, message: type[Message], items_max: int = ITEMS_MAX, *, fields_max: int | None = None
) -> None:
    """Refuse a request that has too many items.

    A request that is too small for as many is not looked at, so that most requests cost nothing here.

    Args:
        data: The request, serialized. It may be malformed: whoever parses it says so.
        message: Its type.
        items_max: Items of one repeated field at most.
        fields_max: Fields at most, nested ones included; None is :data:`FIELDS_RATIO` times as many.

    Raises:
        InvalidArgumentError: A repeated field has more than ``items_max`` items, or there are more than ``fields_max``
            fields.
    """
    if len(data) > items_max:
        fields_max = items_max * FIELDS_RATIO if fields_max is None else fields_max
        _Counter(data, items_max, fields_max).count(_shape_of(message.DESCRIPTOR), 0, len(data), "", {})


def parts(items: Sequence[T], items_max: int = ITEMS_MAX) -> list[Sequence[T]]:
    """Cut items into lists that fit into one request each.

    Args:
        items: The items.
        items_max: Items in one list at most.

    Returns:
        The lists, in order; an empty one for no items.
    """
    return [items[start : start + items_max] for start in range(0, max(len(items), 1), items_max)]


_Fields = Mapping[int, _Field]
"""By number."""


class _Counter:
    """Walks through one request."""

    def __init__(self, data: bytes, items_max: int, fields_max: int) -> None:
        self._data = data
        self._items_max = items_max
        self._fields_max = self._fields_left = fields_max
        self._depth = 0
        self._merged: dict[str, dict[str, int]] = {}
        """Counts of messages in fields that are not repeated, by path."""

    def count(  # each byte costs: no calls for what is usual
        self, fields: _Fields, place: int, end: int, path: str, counts: dict[str, int]
    ) -> None:
        """Count the fields of a message. ``counts`` has those of its earlier parts: protobuf merges the messages of a
        field that is not repeated."""
        data, items_max = self._data, self._items_max
        budget = self._fields_left
        while place < end:
            budget -= 1
            if budget < 0:
                raise self._refusal("the request", self._fields_max, "fields")
            tag = data[place]
            place += 1
            if tag > 0x7F:
                tag, place = self._varint(place - 1, end)
            kind = tag & 7
            if kind == _LENGTH and place + 1 < end and (data[place] <= 0x7F or data[place + 1] <= 0x7F):
                length = data[place]
                start = place + 1
                if length > 0x7F:
                    length += (data[start] - 1) << 7
                    start += 1
                place = start + length
            else:
                start, place = self._content(kind, place, end)
            field = fields.get(tag >> 3)
            if field is None or kind > _LENGTH:
                continue
            counted = counts.get(field.name, 0) + 1
            if counted <= items_max and (field.is_simple or (field.is_flat and place - start <= items_max)):
                counts[field.name] = counted
            else:
                self._fields_left = budget
                self._note(field, kind, start, min(place, end), path, counts)
                budget = self._fields_left
        self._fields_left = budget

    def _note(self, field: _Field, kind: int, start: int, end: int, path: str, counts: dict[str, int]) -> None:
        name = path + field.name
        if field.repeated:
            items = 1
            if field.packed and kind == _LENGTH:
                items = len(self._data[start:end].translate(None, _MORE))
            counts[field.name] = counts.get(field.name, 0) + items
            if counts[field.name] > self._items_max:
                raise self._refusal(name, self._items_max, "items")
        if field.inside is None or kind != _LENGTH or not (field.has_messages or end - start > self._items_max):
            return
        if self._depth == DEPTH_MAX:
            return
        inside = _shape_of(field.inside)
        self._depth += 1
        if field.repeated:
            self.count(inside, start, end, f"{name}[{counts[field.name] - 1}].", {})
        else:
            self.count(inside, start, end, f"{name}.", self._merged.setdefault(name, {}))
        self._depth -= 1

    def _content(self, kind: int, place: int, end: int) -> tuple[int, int]:
        """Where the content of a field begins and ends."""
        if kind == _LENGTH:
            length, place = self._varint(place, end)
            return place, place + length
        if kind == _VARINT:
            return place, self._varint(place, end)[1]
        return place, place + _FIXED_BYTES.get(kind, 0)

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        """The number that begins there, and the place after it."""
        value = shift = 0
        while place < end:
            byte = self._data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte <= 0x7F:
                break
            shift += 7
        return value, place

    @staticmethod
    def _refusal(name: str, maximum: int, what: str) -> InvalidArgumentError:
        message = f"{name} has more than {maximum} {what}; send them in several requests"
        return InvalidArgumentError(message, field=name, limit="request_items_max", maximum=str(maximum))


@cache
def _shape_of(descriptor: Descriptor) -> _Fields:
    """What is counted in a message: its fields that are repeated, or lead to some that are."""
    fields: dict[int, _Field] = {}
    described = DescriptorProto()
    descriptor.CopyToProto(described)
    for field in described.field:
        inside = descriptor.fields_by_number[field.number].message_type
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        if inside is not None and not _repeats(inside, frozenset()):
            inside = None
        if repeated or inside is not None:
            packed = repeated and field.type not in _NEVER_PACKED
            has_messages = inside is not None and _repeats(inside, frozenset(), packed_too=False)
            simple = repeated and not packed and inside is None
            flat = repeated and not packed and not has_messages
            fields[field.number] = _Field(field.name, repeated, packed, inside, has_messages, simple, flat)
    return fields


def _repeats(descriptor: Descriptor, above: frozenset[str], *, packed_too: bool = True) -> bool:
    """Whether a message has repeated fields, at any depth. ``above`` are the messages that it is in."""
    if descriptor.full_name in above:
        return False
    above |= {descriptor.full_name}
    described = DescriptorProto()
    descriptor.CopyToProto(described)
    for field in described.field:
        inside = descriptor.fields_by_number[field.number].message_type
        if field.label == FieldDescriptorProto.LABEL_REPEATED and (packed_too or field.type in _NEVER_PACKED):
            return True
        if inside is not None and _repeats(inside, above, packed_too=packed_too):
            return True
    return False


_NEVER_PACKED: Final = (
    FieldDescriptorProto.TYPE_MESSAGE,
    FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BYTES,
)
