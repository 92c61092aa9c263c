"""Messages whose rows are left as bytes: to send rows that are serialized already, or to take a request apart.

On the wire the frame of a message type is the same as the type itself, so each can stand in for the other at the other
end. In Python, the fields of a frame hold bytes where those of the message hold messages.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message


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
