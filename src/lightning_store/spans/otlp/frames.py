"""OTLP's export request with its parts left serialized, so that each can be parsed by itself.

protobuf parses a message as a whole: one text in it that is not UTF-8, one value nested too deeply, or one span that is
cut off, and nothing of it can be read. The messages here have the field numbers of OTLP's, with ``bytes`` where those
have messages and text; on the wire the two are the same. Where OTLP's field is single, it is repeated here: protobuf
merges the occurrences of a single message, which is what parsing their concatenation does.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "lightning_store.otlp_frames"
_FIELDS: Final = {
    "Request": {"resource_spans": 1},
    "ResourceSpans": {"resource": 1, "scope_spans": 2, "schema_url": 3},
    "ScopeSpans": {"scope": 1, "spans": 2, "schema_url": 3},
    "CountedRequest": {"resource_spans": 1},
    "CountedResourceSpans": {"scope_spans": 2},
}
_MESSAGES: Final = {("CountedRequest", 1): "CountedResourceSpans", ("CountedResourceSpans", 2): "ScopeSpans"}
"""Fields that have messages after all: they tell how spans lie in a request, for whoever counts them."""


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number in fields.items():
            inside = _MESSAGES.get((name, number))
            of = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
            message.field.add(
                name=field,
                number=number,
                type=of if inside is None else descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
                type_name=None if inside is None else f".{_PACKAGE}.{inside}",
                label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
            )
    return file


_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


RequestFrame: Final = _message("Request")
ResourceSpansFrame: Final = _message("ResourceSpans")
ScopeSpansFrame: Final = _message("ScopeSpans")
CountedRequest: Final = _message("CountedRequest")
