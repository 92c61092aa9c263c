"""The span document: the JSON text in which a span is stored and sent.

A document is a JSON object (RFC 8259, UTF-8) with the fields of :class:`~lightning_store.model.Span`, extra fields
included, and without ``sequence_id``: the store may assign that, so it is kept beside the document. What JSON cannot
represent is described in :mod:`lightning_store.spans.exact`. ``docs/span_document.md`` specifies the format.

A writer calls :func:`encode`. A server calls :func:`validate` on what it receives, and stores the text unchanged. A
reader calls :func:`decode`. Whatever :func:`encode` returns or :func:`validate` accepts can be decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from lightning_store.backends.records import SpanRecord
from lightning_store.errors import InvalidArgumentError
from lightning_store.json_text import DIGITS_MAX, PATH_CHARS_MAX, check_values, outside_strings
from lightning_store.model import POLICY_VERSIONS, Counter, Span
from lightning_store.spans.exact import (
    DEPTH_MAX,
    EXACT_VALUES,
    Portable,
    restore,
    too_deep,
)
from lightning_store.spans.labels import POLICY_VERSION
from lightning_store.spans.schemas import EXACT, READER, RESTORED, WRITER
from lightning_store.text import ID_BYTES_MAX, column_text, has_surrogate, is_id

DOCUMENT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Default limit on the size of a document, that of a request."""

UTF8_BYTES_MAX: Final = 4
"""Of a character."""
FINDINGS_MAX: Final = 5
"""Problems of one document that an error lists."""
ID_FIELDS: Final = ("rollout_id", "attempt_id", "trace_id", "span_id", "parent_id")
"""Fields by which spans are looked up, so that every database has to hold them."""

PROJECTED: Final = (
    "rollout_id",
    "attempt_id",
    "trace_id",
    "span_id",
    "parent_id",
    "name",
    "start_time",
    "end_time",
    "status",
)
"""Members that a span keeps when only some of its attributes are read."""

_COUNTER: Final[TypeAdapter[int]] = TypeAdapter(Counter)
_LONG_NUMBER: Final = re.compile(rb"[-0-9][0-9]{%d}" % DIGITS_MAX)
_DIGITS_BLOCK: Final = DIGITS_MAX // 2
_NOT_JSON: Final = re.compile(rb"NaN|Infinity")
_BRACKETS: Final = b"[]{}"
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_BRACKETS))
_LEVELS: Final[Mapping[int, int]] = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NUMBERS: Final = re.compile(rb"\[[-+0-9.eE,\s]*+\]")
"""Arrays of numbers, and what looks like one within a string."""
_PLACEHOLDER: Final = re.compile(rb"\[([0-9]+)\]")


# --- Writing ---------------------------------------------------------------------------------------------------------


def encode(span: Span, field: str = "span", bytes_max: int = DOCUMENT_BYTES_MAX) -> SpanRecord:
    """Write a span as a document.

    The span is checked first, since its fields may have been assigned after it was validated.

    Args:
        span: The span. It is not changed.
        field: The path of the span, for error messages.
        bytes_max: Size of the document at most.

    Returns:
        The record of the span, to be stored or sent. Decoding its document returns an equal span.

    Raises:
        NotJsonError: A value is of a type that a document cannot hold, is nested too deeply, or is an integer of too
            many digits. This is a TypeError.
        InvalidArgumentError: A field is not legal, an id has a lone surrogate or U+0000, or the document is too large.
    """
    return _encode(span, field, bytes_max)


def encode_fields(fields: Mapping[str, Any], field: str = "span", bytes_max: int = DOCUMENT_BYTES_MAX) -> SpanRecord:
    """Write a span that is given as plain dicts, as ``model_dump`` returns it. It need not become a model first.

    Args:
        fields: The fields of the span; absent ones have their defaults.
        field: The path of the span, for error messages.
        bytes_max: Size of the document at most.

    Returns:
        As :func:`encode`.

    Raises:
        NotJsonError: As :func:`encode`.
        InvalidArgumentError: As :func:`encode`.
    """
    return _encode(dict(fields), field, bytes_max)


def _encode(span: Span | dict[str, Any], field: str, bytes_max: int) -> SpanRecord:
    try:
        fields = WRITER.validate_python(span, strict=True)
        sequence_id = fields.pop("sequence_id")
        document = to_json(fields)
    except (ValidationError, PydanticSerializationError):
        return _encode_unusual(span, field, bytes_max)
    if EXACT in fields or _exceeds_depth(document) or _has_long_number(document):
        return _encode_unusual(span, field, bytes_max)
    _check_size(document, field, bytes_max)
    return _record(fields, sequence_id, document, field)


def _encode_unusual(span: Span | dict[str, Any], field: str, bytes_max: int) -> SpanRecord:
    """Write a span that has something which JSON cannot represent, or find out why it cannot be written."""
    portable = Portable()
    fields = portable.convert_model(span, field) if isinstance(span, Span) else portable.convert_fields(span, field)
    if EXACT in fields:
        raise InvalidArgumentError(f"{field}.{EXACT} is a reserved name; use another one", field=f"{field}.{EXACT}")
    try:
        sequence_id = _COUNTER.validate_python(fields.pop("sequence_id", None), strict=True)
    except ValidationError as error:
        raise _invalid(error, f"{field}.sequence_id") from None
    if portable.exact:
        fields[EXACT] = portable.exact
    document = to_json(fields)
    return validate(document, sequence_id, field, bytes_max)


# --- Checking --------------------------------------------------------------------------------------------------------


def validate(
    document: bytes | str,
    sequence_id: int | None = None,
    field: str = "document_json",
    bytes_max: int = DOCUMENT_BYTES_MAX,
) -> SpanRecord:
    """Check a document that comes from outside.

    Absent fields have their defaults. Of members with equal keys the last one counts.

    Args:
        document: The text of the document.
        sequence_id: The sequence id of the span; None leaves it to the store.
        field: The path of the document, for error messages.
        bytes_max: Its size at most, in bytes of UTF-8.

    Returns:
        The record of the span. Every reader can decode its document.

    Raises:
        InvalidArgumentError: It is empty, too large, nested too deeply, not JSON, not a span, or has a ``sequence_id``.
            ``details["field"]`` is the path of the member at fault.
    """
    text = document.encode() if isinstance(document, str) else document
    if not text:
        raise InvalidArgumentError(f"{field} is missing; it must be the JSON document of a span", field=field)
    _check_size(text, field, bytes_max)
    check_values(text, field)
    try:
        fields = READER.validate_json(text, strict=True)
    except ValidationError as error:
        raise _invalid(error, field) from None
    if _has_constant(text):
        raise InvalidArgumentError(f"{field} is not JSON: NaN and Infinity are no JSON numbers", field=field)
    if _exceeds_depth(text):
        raise InvalidArgumentError(str(too_deep(field)), field=field)
    if _has_long_number(text):
        message = f"{field} has a number of more than {DIGITS_MAX} digits; give it as text"
        raise InvalidArgumentError(message, field=field)
    if EXACT in fields:
        fields = _restored(text, field)
    return _record(fields, sequence_id, text, field)


def _record(fields: Mapping[str, Any], sequence_id: int | None, document: bytes, field: str) -> SpanRecord:
    record = SpanRecord(
        fields["rollout_id"],
        fields["attempt_id"],
        fields["trace_id"],
        fields["span_id"],
        fields["parent_id"],
        column_text(fields["name"]),
        fields["start_time"],
        fields["end_time"],
        sequence_id,
        document,
        policy_versions(fields["attributes"].get(POLICY_VERSION)),
    )
    ids = f"{record.rollout_id}{record.attempt_id}{record.trace_id}{record.span_id}{record.parent_id}"
    if not record.rollout_id or not record.attempt_id or "\0" in ids or not ids.isascii() or len(ids) > ID_BYTES_MAX:
        for name in ID_FIELDS:
            _check_id(getattr(record, name), name, field)
    if len(record.name) > ID_BYTES_MAX // UTF8_BYTES_MAX:
        _check_length(record.name, "name", field)
    return record


def policy_versions(value: Any) -> tuple[int, int] | None:
    """The least and the greatest policy version that a value of the attribute names; None if it names none."""
    named = value if isinstance(value, list | tuple) else [value]
    versions = [one for one in named if type(one) is int and 0 <= one < POLICY_VERSIONS]
    return (min(versions), max(versions)) if versions else None


def _check_id(value: str | None, name: str, field: str) -> None:
    path = f"{field}.{name}"
    if value == "" and name in ("rollout_id", "attempt_id"):
        raise InvalidArgumentError(f"{path} is missing; it must not be empty", field=path)
    if value is not None and "\0" in value:
        raise InvalidArgumentError(f"{path} has the character U+0000, which ids must not have", field=path)
    if value is not None and has_surrogate(value):
        raise InvalidArgumentError(f"{path} has a lone surrogate, which ids must not have", field=path)
    if value is not None:
        _check_length(value, name, field)


def _check_length(value: str, name: str, field: str) -> None:
    if not is_id(value):
        path = f"{field}.{name}"
        raise InvalidArgumentError(f"{path} has more than {ID_BYTES_MAX} bytes", field=path)


def _check_size(document: bytes, field: str, bytes_max: int) -> None:
    if len(document) > bytes_max:
        message = f"{field} has {len(document)} bytes as a document; at most {bytes_max} are taken"
        raise InvalidArgumentError(message, field=field)


def _exceeds_depth(document: bytes) -> bool:
    if len(document.translate(None, _NO_BRACKETS)) <= 2 * DEPTH_MAX:  # as a rule
        return False
    brackets = b"".join(outside_strings(document)).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_LEVELS.__getitem__, brackets))) > DEPTH_MAX


def _has_long_number(document: bytes) -> bool:
    """Whether a number has more digits in a row, or a sign and as many, than every reader takes."""
    if len(document) <= DIGITS_MAX:
        return False
    # So many digits fill one of these blocks, which is rare.
    blocks = (document[start : start + _DIGITS_BLOCK] for start in range(0, len(document), _DIGITS_BLOCK))
    return any(map(bytes.isdigit, blocks)) and _LONG_NUMBER.search(b"".join(outside_strings(document))) is not None


def _has_constant(document: bytes) -> bool:
    """Whether JSON text has one of the tokens that Python and JavaScript write and RFC 8259 does not have."""
    if (b"N" not in document or b"NaN" not in document) and (b"I" not in document or b"Infinity" not in document):
        return False
    return _NOT_JSON.search(b"".join(outside_strings(document))) is not None


# --- Reading ---------------------------------------------------------------------------------------------------------


def decode(document: bytes | str, sequence_id: int, field: str = "document_json") -> Span:
    """Read a document.

    Args:
        document: A document that :func:`encode` returned or :func:`validate` accepted.
        sequence_id: The sequence id of the span.
        field: The path of the document, for error messages.

    Returns:
        The span.

    Raises:
        InvalidArgumentError: It is not the document of a span.
    """
    text = document.encode() if isinstance(document, str) else document
    try:
        span = Span.model_validate_json(b'{"sequence_id":%d,%b' % (sequence_id, text[text.find(b"{") + 1 :]))
    except ValidationError as error:
        raise _invalid(error, field) from None
    if span.model_extra and EXACT in span.model_extra:
        return Span.model_validate({**_restored(text, field), "sequence_id": sequence_id})
    return span


def attribute_filter(names: Collection[str]) -> Callable[[str], bool]:
    """Choose attributes by name.

    Args:
        names: Names; one that ends with ``.*`` is that of all attributes below it.

    Returns:
        Whether an attribute of this name is chosen.
    """
    prefixes = tuple(name.removesuffix("*") for name in names if name.endswith(".*"))
    exact = frozenset(names)
    return lambda name: name in exact or name.startswith(prefixes)


def project(record: SpanRecord, chosen: Callable[[str], bool]) -> SpanRecord:
    """Reduce a stored span to some of its attributes.

    Arrays of numbers, most of what trainers store, are copied as text: reading and writing them takes twice as long.

    Args:
        record: The span.
        chosen: Whether to keep an attribute of this name.

    Returns:
        The record with a document that has the ids, name, times and status of the span, and these attributes.
    """
    arrays: list[bytes] = []

    def put_aside(array: re.Match[bytes]) -> bytes:
        arrays.append(array[0])
        return b"[%d]" % (len(arrays) - 1)

    def put_back(text: bytes) -> bytes:
        return _PLACEHOLDER.sub(lambda place: arrays[int(place[1])], text)

    def is_chosen(name: str) -> bool:
        return chosen(put_back(name.encode()).decode() if "[" in name else name)

    short = _NUMBERS.sub(put_aside, record.document)
    if b"\\u00" in short:  # once read, an escaped bracket or digit looks like a placeholder
        return _project_unusual(record, chosen)
    members = from_json(short)
    if EXACT in members:
        return _project_unusual(record, chosen)
    document = to_json(_projected(members, is_chosen))
    if _has_constant(document):  # for a number beyond the range of a double
        return _project_unusual(record, chosen)
    return record._replace(document=put_back(document))


def _projected(members: Mapping[str, Any], chosen: Callable[[str], bool]) -> dict[str, Any]:
    kept = {name: members[name] for name in PROJECTED if name in members}
    kept["attributes"] = {name: value for name, value in members.get("attributes", {}).items() if chosen(name)}
    return kept


def _project_unusual(record: SpanRecord, chosen: Callable[[str], bool]) -> SpanRecord:
    """The same, value by value."""
    members = from_json(record.document)
    if EXACT in members:
        members = _restored(record.document, "document_json")
    kept = _projected(members, chosen)
    return encode(Span.model_validate({**kept, "sequence_id": record.sequence_id or 0}))


def _restored(document: bytes, field: str) -> dict[str, Any]:
    """The members of a document that has exact values, with these at their places."""
    members = from_json(document)
    try:
        restore(members, field)
        return cast(dict[str, Any], RESTORED.validate_python(members, strict=True))
    except ValidationError as error:
        raise _invalid(error, field) from None


def _invalid(error: ValidationError, field: str) -> InvalidArgumentError:
    """The findings of a validation, without the values that were given."""
    findings = error.errors(include_url=False, include_input=False)
    if findings[0]["type"] == "json_invalid":
        return InvalidArgumentError(f"{field} is not JSON: {findings[0]['ctx']['error']}", field=field)
    found = [(field + "".join(map(_step, finding["loc"])), finding["msg"]) for finding in findings[:FINDINGS_MAX]]
    listed = "; ".join(f"{path}: {message}" for path, message in found)
    more = f"; and {len(findings) - FINDINGS_MAX} more" if len(findings) > FINDINGS_MAX else ""
    return InvalidArgumentError(f"{listed}{more}", field=found[0][0])


def _step(step: int | str) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step[:PATH_CHARS_MAX]}"


# --- Specification ---------------------------------------------------------------------------------------------------


def document_schema() -> dict[str, Any]:
    """Generate the JSON Schema of documents from the model.

    Returns:
        A schema of draft 2020-12. It does not express the limits on size and depth, nor where the pointers of
        ``$exact`` may lead.
    """
    schema = Span.model_json_schema(mode="serialization")
    exact = EXACT_VALUES.json_schema(mode="validation", ref_template="#/$defs/{model}")
    definitions = {**schema.pop("$defs"), **exact.pop("$defs")}
    properties = {name: node for name, node in schema.pop("properties").items() if name != "sequence_id"}
    required = [name for name, field in Span.model_fields.items() if field.is_required() and name != "sequence_id"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Span document",
        "properties": {**properties, "sequence_id": False, EXACT: exact},
        "required": required,
        "$defs": definitions,
    }
