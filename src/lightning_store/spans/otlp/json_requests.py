"""OTLP's JSON encoding: protobuf's own with trace and span ids in hexadecimal and enums as integers.

* Unknown members are ignored, as OTLP asks. That holds for the original names of fields, such as ``trace_id``, too:
  OTLP/JSON has ``traceId`` only.
* Lone surrogates, and bytes that are not UTF-8, are replaced by U+FFFD.
* ``bytesValue`` must be base64. Enums must be integers or names that are known.
"""

from __future__ import annotations

import base64
import json
import re
import reprlib
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from pydantic_core import from_json

from lightning_store.errors import InvalidArgumentError
from lightning_store.json_text import check_values
from lightning_store.text import replace_surrogates

MessageT = TypeVar("MessageT", bound=Message)

DEPTH_MAX: Final = 400
"""Levels of objects and arrays in one part of a request that are looked at. protobuf takes fewer."""
INT_CHARS_MAX: Final = 40
"""No field of OTLP holds an integer of more characters."""

ENUM_MAX: Final = 2**31 - 1

_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})
_ENUMS: Final = frozenset({"kind", "code"})
_ENUM_NAMES: Final = frozenset({*OtlpSpan.SpanKind.keys(), *Status.StatusCode.keys()})
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})*")


def load(body: bytes) -> dict[str, Any]:
    """Parse the JSON text of a request.

    Args:
        body: The text.

    Returns:
        Its members. None of them has been checked.

    Raises:
        InvalidArgumentError: It is not a JSON object, or one of too many values.
    """
    check_values(body, "the body")
    try:
        request = from_json(body)
    except ValueError:
        request = _load_leniently(body)
    if not isinstance(request, dict):
        raise InvalidArgumentError("the body must be a JSON object, an ExportTraceServiceRequest")
    elements(request, "resourceSpans")
    return request


def _load_leniently(body: bytes) -> Any:
    """What one span has wrong must not matter to the others: this parser takes deep values and lone surrogates."""
    try:
        return json.loads(body.decode(errors="replace"), parse_int=_int)
    except RecursionError:
        raise InvalidArgumentError("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidArgumentError(f"the body is not valid JSON: {error}") from None


def _int(digits: str) -> int | str:
    return int(digits) if len(digits) <= INT_CHARS_MAX else digits


def dump(request: ExportTraceServiceRequest) -> str:
    """Write a request as JSON text on one line.

    Args:
        request: The message.

    Returns:
        The text.
    """
    written = json_format.MessageToDict(request, use_integers_for_enums=True)
    for span in _spans_in(written):
        for holder in (span, *span.get("links", ())):
            for name in _IDS & holder.keys():
                holder[name] = base64.b64decode(holder[name]).hex()
    return json.dumps(written, separators=(",", ":"))


def _spans_in(written: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource_spans in written.get("resourceSpans", ()):
        for scope_spans in resource_spans.get("scopeSpans", ()):
            yield from scope_spans.get("spans", ())


def elements(holder: Any, name: str) -> list[Any]:
    """Get the elements of a repeated field.

    Args:
        holder: The object that has the field.
        name: The field.

    Returns:
        The elements; none if the field is absent or null.

    Raises:
        InvalidArgumentError: ``holder`` is not an object, or the field not an array.
    """
    if not isinstance(holder, dict):
        raise InvalidArgumentError(f"must be an object, not {reprlib.repr(holder)}")
    found = holder.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise InvalidArgumentError(f"the body is not an ExportTraceServiceRequest: {name} must be an array", field=name)
    return found


def text(holder: dict[str, Any], name: str) -> str:
    """Get a text.

    Args:
        holder: The object that has it.
        name: Its name.

    Returns:
        The text; empty if it is absent or no text.
    """
    found = holder.get(name)
    return replace_surrogates(found) if isinstance(found, str) else ""


def parse(message: type[MessageT], value: Any) -> MessageT:
    """Parse a message.

    Args:
        message: Its type.
        value: Its JSON form.

    Returns:
        The message; an empty one if ``value`` is None.

    Raises:
        InvalidArgumentError: It is malformed.
    """
    made = message()
    if value is None:
        return made
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"must be an object, not {reprlib.repr(value)}")
    normal = _normal(value, 0)
    try:
        return json_format.ParseDict(normal, made, ignore_unknown_fields=True)
    except Exception as error:  # beside ParseError, whatever a value of another type than expected leads to
        raise InvalidArgumentError(f"is malformed: {error}") from None


def _normal(value: Any, depth: int) -> Any:
    """The form that protobuf's own JSON has, or an error where that would be lenient."""
    if depth > DEPTH_MAX:
        raise InvalidArgumentError("is nested too deeply")
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [_normal(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {name: _normal_member(name, item, depth + 1) for name, item in value.items() if "_" not in name}
    return value


def _normal_member(name: str, value: Any, depth: int) -> Any:
    if name in _IDS and isinstance(value, str):
        if not _HEX.fullmatch(value):
            raise _invalid(name, value, "it must be hexadecimal")
        return base64.b64encode(bytes.fromhex(value)).decode()
    if name == "bytesValue" and isinstance(value, str) and not _is_base64(value):
        raise _invalid(name, value, "it must be base64")
    if name in _ENUMS and not _is_enum(value):
        raise _invalid(name, value, "it must be an integer that is not negative")
    return _normal(value, depth)


def _is_enum(value: Any) -> bool:
    """Whether it is an integer, or a name as in protobuf's own JSON."""
    if isinstance(value, str):
        return value in _ENUM_NAMES
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= ENUM_MAX)


def _is_base64(value: str) -> bool:
    return _BASE64.fullmatch(value) is not None and len(value.rstrip("=")) % 4 != 1


def _invalid(name: str, value: Any, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} is {reprlib.repr(value)}; {problem}", field=name)
