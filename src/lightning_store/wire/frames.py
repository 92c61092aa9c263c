"""Messages whose rows are left as bytes: to send rows that are serialized already (``with_rows``), or to take a request
apart (``frame_of``).

On the wire the frame of a message type is the same as the type itself. In Python, the fields of a frame hold bytes
where those of the message hold messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from lightning_store.wire.wire_format import delimited, tag_of


@cache
def frame_of(message: type[Message]) -> Any:
    """The frame class of a message class. Typed as Any: its fields are known at run time only."""
    descriptor = message.DESCRIPTOR
    frame = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(frame)
    for field in frame.field:
        if field.type == field.TYPE_MESSAGE:
            field.type = field.TYPE_BYTES
            field.ClearField("type_name")
    file = descriptor_pb2.FileDescriptorProto(name=descriptor.full_name, syntax="proto3", message_type=[frame])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(frame.name))


def with_rows(message: Message, field: str, rows: Sequence[bytes]) -> Any:
    """``message``, which has all but the rows of its ``field``, with these. It can be sent, and no more: of a thousand
    rows protobuf takes several times as long to put a frame together. Typed as Any, since it stands for the message."""
    return _WithRows(message, tag_of(type(message), field), rows)


class _WithRows:
    __slots__ = ("_message", "_rows", "_tag")

    def __init__(self, message: Message, tag: bytes, rows: Sequence[bytes]) -> None:
        self._message = message
        self._tag = tag
        self._rows = rows

    def SerializeToString(self) -> bytes:
        tag = self._tag
        return b"".join([*[delimited(tag, row) for row in self._rows], self._message.SerializeToString()])
