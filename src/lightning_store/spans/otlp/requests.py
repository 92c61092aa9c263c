"""Export requests of OpenTelemetry exporters, span by span, in protobuf and in JSON; and requests made of spans.

Each span of a request has a result of its own: a document, or the reason why there is none. A malformed span never
keeps its neighbours from being stored.

Three attributes identify the owner of a span: ``agentlightning.rollout_id`` and ``agentlightning.attempt_id``, which
are required, and ``agentlightning.span_sequence_id``. Those of a resource apply to all of its spans; those of a span
override them one by one. They stay among the attributes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from lightning_store.backends.records import SpanRecord
from lightning_store.errors import InvalidArgumentError, StoreError
from lightning_store.items import check_items
from lightning_store.model import Span
from lightning_store.spans.document import encode_fields
from lightning_store.spans.labels import ATTEMPT_ID, LABELS, ROLLOUT_ID, SEQUENCE_ID
from lightning_store.spans.otlp import frames, json_requests
from lightning_store.spans.otlp.messages import (
    read_resource,
    read_scope,
    read_span,
    write_resource,
    write_scope,
    write_span,
)
from lightning_store.spans.otlp.values import INT64_MAX
from lightning_store.text import replace_surrogates

WHOLE_BYTES_MAX: Final = 1024 * 1024
"""A larger request is parsed span by span: as messages its spans may take a hundred times as much."""
PART_ITEMS_MAX: Final = 250_000
"""Items of one list in a span, a resource or a scope: the token ids of a long text are one list."""
PART_FIELDS_MAX: Final = 500_000
"""All its fields, nested ones included."""

MessageT = TypeVar("MessageT", bound=Message)
Part = Callable[[], MessageT]
"""Parses a part of a request; InvalidArgumentError if it is malformed."""


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span of a request, or a part of it in which no spans can be found."""

    path: str
    """Its place in the request, such as ``resource_spans[0].scope_spans[0].spans[7]``."""
    record: SpanRecord | None = None
    """None if it cannot be stored. Its ``sequence_id`` is None if the store is to allocate it."""
    complaint: str | None = None
    """Why there is no record, or what was ignored."""


# --- From requests ---------------------------------------------------------------------------------------------------


def received_spans(body: bytes) -> Iterator[ReceivedSpan]:
    """Read a request in protobuf.

    Args:
        body: A serialized ExportTraceServiceRequest.

    Returns:
        An iterator over all spans, in the order of the request.

    Raises:
        InvalidArgumentError: It is not such a request at all, or has too many spans.
    """
    check_items(body, frames.CountedRequest)
    if len(body) <= WHOLE_BYTES_MAX:
        try:
            return spans_of(ExportTraceServiceRequest.FromString(body))
        except DecodeError:
            pass
    try:
        request = frames.RequestFrame.FromString(body)
    except DecodeError as error:
        raise InvalidArgumentError(f"the body is not an ExportTraceServiceRequest: {error}") from None
    return _received(_framed_scopes(request))


def received_spans_from_json(body: bytes) -> Iterator[ReceivedSpan]:
    """Read a request in OTLP's JSON encoding; see :mod:`lightning_store.spans.otlp.json_requests`.

    Args:
        body: The JSON text.

    Returns:
        An iterator over all spans, in the order of the request.

    Raises:
        InvalidArgumentError: It is not such a request at all.
    """
    return _received(_json_scopes(json_requests.load(body)))


def spans_of(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    """Read a request that has been parsed.

    Args:
        request: The message.

    Returns:
        An iterator over all spans, in the order of the request.
    """
    return _received(_parsed_scopes(request))


class _Scope(NamedTuple):
    """The spans of one scope, and what they share."""

    path: str
    resource: Part[Resource]
    resource_schema_url: str
    scope: Part[InstrumentationScope]
    scope_schema_url: str
    spans: Iterable[Part[OtlpSpan]]


def _parsed_scopes(request: ExportTraceServiceRequest) -> Iterator[_Scope]:
    for i, of_resource in enumerate(request.resource_spans):
        for j, of_scope in enumerate(of_resource.scope_spans):
            yield _Scope(
                f"resource_spans[{i}].scope_spans[{j}]",
                partial(_itself, of_resource.resource),
                of_resource.schema_url,
                partial(_itself, of_scope.scope),
                of_scope.schema_url,
                (partial(_itself, span) for span in of_scope.spans),
            )


def _itself(message: MessageT) -> MessageT:
    return message


def _framed_scopes(request: Any) -> Iterator[_Scope | ReceivedSpan]:
    for i, resource_frame in enumerate(request.resource_spans):
        path = f"resource_spans[{i}]"
        try:
            of_resource = _parse(frames.ResourceSpansFrame, resource_frame)
        except InvalidArgumentError as error:
            yield ReceivedSpan(path, complaint=str(error))
            continue
        for j, scope_frame in enumerate(of_resource.scope_spans):
            scope_path = f"{path}.scope_spans[{j}]"
            try:
                of_scope = _parse(frames.ScopeSpansFrame, scope_frame)
            except InvalidArgumentError as error:
                yield ReceivedSpan(scope_path, complaint=str(error))
                continue
            yield _Scope(
                scope_path,
                partial(_parse, Resource, b"".join(of_resource.resource)),
                _last_text(of_resource.schema_url),
                partial(_parse, InstrumentationScope, b"".join(of_scope.scope)),
                _last_text(of_scope.schema_url),
                (partial(_parse, OtlpSpan, span) for span in of_scope.spans),
            )


def _parse(message: type[MessageT], data: bytes) -> MessageT:
    check_items(data, message, PART_ITEMS_MAX, fields_max=PART_FIELDS_MAX)
    try:
        return message.FromString(data)
    except DecodeError as error:
        problem = "is malformed: it is cut off, nested too deeply, or has text that is not UTF-8"
        raise InvalidArgumentError(f"{problem} ({error})") from None


def _last_text(values: Iterable[bytes]) -> str:
    return b"".join(list(values)[-1:]).decode(errors="replace")


def _json_scopes(request: Any) -> Iterator[_Scope | ReceivedSpan]:
    for i, of_resource in enumerate(json_requests.elements(request, "resourceSpans")):
        path = f"resource_spans[{i}]"
        try:
            scopes = json_requests.elements(of_resource, "scopeSpans")
        except InvalidArgumentError as error:
            yield ReceivedSpan(path, complaint=str(error))
            continue
        for j, of_scope in enumerate(scopes):
            scope_path = f"{path}.scope_spans[{j}]"
            try:
                spans = json_requests.elements(of_scope, "spans")
            except InvalidArgumentError as error:
                yield ReceivedSpan(scope_path, complaint=str(error))
                continue
            yield _Scope(
                scope_path,
                partial(json_requests.parse, Resource, of_resource.get("resource")),
                json_requests.text(of_resource, "schemaUrl"),
                partial(json_requests.parse, InstrumentationScope, of_scope.get("scope")),
                json_requests.text(of_scope, "schemaUrl"),
                [partial(json_requests.parse, OtlpSpan, span) for span in spans],
            )


# --- Spans of a scope ------------------------------------------------------------------------------------------------


def _received(scopes: Iterable[_Scope | ReceivedSpan]) -> Iterator[ReceivedSpan]:
    for scope in scopes:
        if isinstance(scope, ReceivedSpan):
            yield scope
            continue
        complaint, labels, shared = _shared(scope)
        for index, span in enumerate(scope.spans):
            path = f"{scope.path}.spans[{index}]"
            yield (
                _received_span(path, span, labels, shared)
                if complaint is None
                else ReceivedSpan(path, complaint=complaint)
            )


def _shared(scope: _Scope) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """What is wrong with resource or scope, the labels of the resource, and the fields that all spans have."""
    try:
        resource = scope.resource()
    except InvalidArgumentError as error:
        return f"its resource {error}", {}, {}
    try:
        instrumentation = scope.scope()
    except InvalidArgumentError as error:
        return f"its scope {error}", {}, {}
    fields = read_resource(resource, scope.resource_schema_url)
    shared = {"resource": fields, "scope": read_scope(instrumentation, scope.scope_schema_url)}
    return None, _labels(fields["attributes"]), shared


def _received_span(
    path: str, parse: Part[OtlpSpan], inherited: Mapping[str, Any], shared: Mapping[str, Any]
) -> ReceivedSpan:
    try:
        fields = read_span(parse())
        labels = {**inherited, **_labels(fields["attributes"])}
        sequence_id, complaint = _sequence_id(labels)
        ids = {"rollout_id": _id(labels, ROLLOUT_ID), "attempt_id": _id(labels, ATTEMPT_ID)}
        record = encode_fields({**fields, **shared, **ids, "sequence_id": sequence_id or 0})
    except StoreError as error:
        return ReceivedSpan(path, complaint=str(error))
    return ReceivedSpan(path, record if sequence_id is not None else record._replace(sequence_id=None), complaint)


def _labels(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attributes[name] for name in LABELS if name in attributes}


def _id(labels: Mapping[str, Any], name: str) -> str:
    value = labels.get(name)
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        problem = "is missing; set it as an attribute of the resource, or of the span"
    else:
        problem = f"is {reprlib.repr(value)}; it must be text"
    raise InvalidArgumentError(f"{name} {problem}", field=name)


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
    shown = reprlib.repr(value)
    return None, f"{SEQUENCE_ID} is {shown}, not an integer from 0 to {INT64_MAX}; the store allocated one"


# --- To requests -----------------------------------------------------------------------------------------------------


def export_request(spans: Iterable[Span]) -> ExportTraceServiceRequest:
    """Make a request of spans, for an OTLP receiver.

    Args:
        spans: The spans.

    Returns:
        The message. Spans with equal resources and scopes share them. Their rollout, attempt and sequence id are in it
        only where they are among the attributes.

    Raises:
        InvalidArgumentError: An id of a span has not the form of OpenTelemetry.
    """
    request = ExportTraceServiceRequest()
    resources: dict[tuple[bytes, str], Any] = {}
    scopes: dict[tuple[int, bytes, str], Any] = {}
    for span in spans:
        message = write_span(span)
        resource = write_resource(span.resource)
        resource_key = (resource.SerializeToString(deterministic=True), span.resource.schema_url)
        of_resource = resources.get(resource_key)
        if of_resource is None:
            schema_url = replace_surrogates(span.resource.schema_url)
            of_resource = request.resource_spans.add(resource=resource, schema_url=schema_url)
            resources[resource_key] = of_resource
        scope = None if span.scope is None else write_scope(span.scope)
        schema_url = "" if span.scope is None else replace_surrogates(span.scope.schema_url or "")
        scope_key = (id(of_resource), b"" if scope is None else scope.SerializeToString(deterministic=True), schema_url)
        of_scope = scopes.get(scope_key)
        if of_scope is None:
            of_scope = of_resource.scope_spans.add(scope=scope, schema_url=schema_url)
            scopes[scope_key] = of_scope
        of_scope.spans.append(message)
    return request
