"""Spans as OpenTelemetry exporters send them: an ExportTraceServiceRequest as span records, and the answer to it.

Whose span it is, its labels tell: the attributes ``agentlightning.rollout_id`` and ``agentlightning.attempt_id``, and
``agentlightning.span_sequence_id`` where the sender numbers its spans. A resource's labels hold for all of its spans,
those of a span win over them, each label for itself. Labels stay among the attributes where they were.
"""

from __future__ import annotations

import base64
import binascii
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from lightning_store import json_text
from lightning_store.backends.records import SpanRecord
from lightning_store.errors import InvalidArgumentError
from lightning_store.v1 import span_pb2
from lightning_store.wire.attributes import read_value
from lightning_store.wire.checks import invalid
from lightning_store.wire.span_parts import SPAN_ID_BYTES, TRACE_ID_BYTES
from lightning_store.wire.spans import span_record_from_proto
from lightning_store.wire.wire_format import INT64_MAX

ROLLOUT_ID: Final = "agentlightning.rollout_id"
ATTEMPT_ID: Final = "agentlightning.attempt_id"
SEQUENCE_ID: Final = "agentlightning.span_sequence_id"
LABELS: Final = frozenset({ROLLOUT_ID, ATTEMPT_ID, SEQUENCE_ID})

NO_IDS: Final = frozenset({bytes(TRACE_ID_BYTES), bytes(SPAN_ID_BYTES)})
"""Ids of zeros, which stand for "no id" in OpenTelemetry."""
CAUSES_MAX: Final = 3
CAUSE_CHARS_MAX: Final = 300
"""Of what an answer says; a sender logs it as one line."""


# --- From requests ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span of a request."""

    path: str
    """Where in the request it stands, such as ``resource_spans[0].scope_spans[0].spans[7]``."""
    record: SpanRecord | None
    """None if it cannot be stored. ``sequence_id`` is None where the store is to number it."""
    complaint: str | None = None
    """Why there is no record, or what was passed over to make one."""


def received_spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    """Every span of the request, in its order."""
    for i, of_resource in enumerate(request.resource_spans):
        inherited = _labels(of_resource.resource.attributes)
        for j, of_scope in enumerate(of_resource.scope_spans):
            envelope = _envelope(of_resource, of_scope)
            for k, span in enumerate(of_scope.spans):
                path = f"resource_spans[{i}].scope_spans[{j}].spans[{k}]"
                yield _received(span, inherited | _labels(span.attributes), envelope, path)


def _labels(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {key: read_value(pair.value) for pair in attributes if (key := pair.key) in LABELS}


def _envelope(of_resource: ResourceSpans, of_scope: ScopeSpans) -> span_pb2.Span:
    """What the spans of one scope have in common. A scope without a name says no more than that none is known."""
    envelope = span_pb2.Span(
        resource=of_resource.resource, resource_schema_url=of_resource.schema_url, has_context=True
    )
    if of_scope.scope.ByteSize() or of_scope.schema_url:
        envelope.scope.CopyFrom(of_scope.scope)
        envelope.scope_schema_url = of_scope.schema_url
    return envelope


def _received(span: OtlpSpan, labels: Mapping[str, Any], envelope: span_pb2.Span, path: str) -> ReceivedSpan:
    """The span in ``envelope``, which it fills anew."""
    sequence_id, complaint = _sequence_id(labels)
    try:
        envelope.rollout_id = _id(labels, ROLLOUT_ID)
        envelope.attempt_id = _id(labels, ATTEMPT_ID)
        for name in ("trace_id", "span_id"):
            if getattr(span, name) in NO_IDS:
                raise invalid(name, "is all zeros, which stands for no id")
        envelope.ClearField("sequence_id")
        if sequence_id is not None:
            envelope.sequence_id = sequence_id
        envelope.span.CopyFrom(span)
        if span.parent_span_id in NO_IDS:
            envelope.span.ClearField("parent_span_id")
        envelope.has_parent = bool(envelope.span.parent_span_id)
        return ReceivedSpan(path, span_record_from_proto(envelope, ""), complaint)
    except InvalidArgumentError as error:
        # The sender knows nothing of the envelope: its path is left out.
        return ReceivedSpan(path, None, str(error).removeprefix(".span."))


def _id(labels: Mapping[str, Any], name: str) -> str:
    value = labels.get(name)
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        raise invalid(name, "is missing; set it as an attribute of the resource, or of the span")
    raise invalid(name, f"is {reprlib.repr(value)}; it must be text")


def _sequence_id(labels: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """The number that the sender gave; without a legal one None, and then what is wrong with it."""
    value = labels.get(SEQUENCE_ID)
    if value is None:
        return None, None
    text = str(value)
    if isinstance(value, int | str) and text.isascii() and text.isdecimal() and len(text) <= len(str(INT64_MAX)):
        number = int(text)
        if number <= INT64_MAX:
            return number, None
    return None, f"{SEQUENCE_ID} is {reprlib.repr(value)}, no whole number from 0 to {INT64_MAX}; the store chose one"


# --- To answers ------------------------------------------------------------------------------------------------------


class ExportReport:
    """What became of the spans of one request, for its sender."""

    def __init__(self) -> None:
        self._rejected = _Complaints()
        self._passed_over = _Complaints()

    def rejected(self, path: str, cause: str) -> None:
        """The span at ``path`` is not stored, and never will be as it is."""
        self._rejected.add(path, cause)

    def passed_over(self, path: str, complaint: str) -> None:
        """The span at ``path`` is stored, though something about it is wrong."""
        self._passed_over.add(path, complaint)

    def response(self) -> ExportTraceServiceResponse:
        """The answer: empty if all is well, else with the number of spans that were rejected and the first causes."""
        response = ExportTraceServiceResponse()
        told = []
        if self._rejected.count:
            response.partial_success.rejected_spans = self._rejected.count
            told.append(f"{_spans(self._rejected.count)} rejected: {self._rejected}")
        if self._passed_over.count:
            told.append(f"{_spans(self._passed_over.count)} stored all the same: {self._passed_over}")
        if told:
            response.partial_success.error_message = ". ".join(told)
        return response


class _Complaints:
    """Complaints about spans, the same ones counted together."""

    def __init__(self) -> None:
        self.count = 0
        self._firsts: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, path: str, complaint: str) -> None:
        self.count += 1
        if complaint in self._firsts or len(self._firsts) < CAUSES_MAX:
            self._firsts.setdefault(complaint, path)
            self._counts[complaint] = self._counts.get(complaint, 0) + 1

    def __str__(self) -> str:
        told = []
        for complaint, path in self._firsts.items():
            count = self._counts[complaint]
            where = path if count == 1 else f"{_spans(count)}, the first is {path}"
            cut = complaint if len(complaint) <= CAUSE_CHARS_MAX else complaint[:CAUSE_CHARS_MAX] + "…"
            told.append(f"{cut} ({where})")
        if others := self.count - sum(self._counts.values()):
            told.append(f"and {_spans(others)} for other causes")
        return "; ".join(told)


def _spans(count: int) -> str:
    return "1 span" if count == 1 else f"{count} spans"


# --- JSON ------------------------------------------------------------------------------------------------------------


def request_from_json(body: bytes) -> ExportTraceServiceRequest:
    """The request in OTLP's JSON encoding: protobuf's own, but for trace and span ids, which are hexadecimal there.

    InvalidArgumentError: it is malformed. What is not known here is passed over, as OTLP asks.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"the body is not UTF-8: {error}") from None
    request = json_text.loads(text, "the body")
    if not isinstance(request, dict):
        raise InvalidArgumentError("the body must be a JSON object, an ExportTraceServiceRequest")
    for span in _members(request, "resourceSpans", "scopeSpans", "spans"):
        for holder in (span, *_members(span, "links")):
            _ids_to_base64(holder)
    try:
        return json_format.ParseDict(request, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except Exception as error:  # beside ParseError, whatever a value of another type than expected leads to
        raise InvalidArgumentError(f"the body is no ExportTraceServiceRequest: {error}") from None


def _members(holder: dict[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    """The objects of the list ``names[0]``, of those the objects of the list ``names[1]``, and so on."""
    values = holder.get(names[0])
    for value in values if isinstance(values, list) else ():
        if isinstance(value, dict):
            yield from _members(value, *names[1:]) if len(names) > 1 else (value,)


def _ids_to_base64(holder: dict[str, Any]) -> None:
    """As protobuf wants its bytes."""
    for name in ("traceId", "spanId", "parentSpanId"):
        value = holder.get(name)
        if isinstance(value, str):
            try:
                holder[name] = base64.b64encode(binascii.unhexlify(value)).decode()
            except ValueError:
                raise invalid(name, f"is {reprlib.repr(value)}; it must be hexadecimal") from None
