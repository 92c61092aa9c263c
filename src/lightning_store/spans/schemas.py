"""Compiled validators of span documents, derived from the core schema of :class:`~lightning_store.model.Span`.

All check the fields of the model, and none builds a model:

* :data:`WRITER` takes a span object and returns its fields as plain dicts. It accepts only what JSON text represents
  exactly, so that writing the result loses nothing.
* :data:`READER` takes JSON text and checks the declared fields. Attributes only have to be objects: JSON can hold
  anything in them, so their contents are parsed and not converted.
* :data:`RESTORED` checks the fields of a document that has exact values, once they are at their places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, LiteralString, NoReturn, cast

from pydantic_core import PydanticCustomError, SchemaValidator, core_schema
from pydantic_core.core_schema import CoreSchema

from lightning_store.model import Span
from lightning_store.spans.labels import POLICY_VERSION

EXACT: Final = "$exact"
"""The reserved member of a document, see :mod:`lightning_store.spans.exact`."""

# --- Values ----------------------------------------------------------------------------------------------------------

# A strict float schema also takes whatever has __float__, such as Decimal; it would come back as another type.
_FLOAT: Final = core_schema.chain_schema(
    [core_schema.is_instance_schema(float), core_schema.float_schema(strict=True, allow_inf_nan=False)]
)
_INT: Final = core_schema.int_schema(strict=True)
_TEXT: Final = core_schema.str_schema(strict=True)
_NUMBERS: Final = [core_schema.list_schema(number, strict=True, fail_fast=True) for number in (_INT, _FLOAT)]
_VALUE: Final = core_schema.definition_reference_schema("json-value")


def _json_value() -> CoreSchema:
    """Values that JSON represents exactly. Lists of one type come first: checking them takes a fifth of the time."""
    return core_schema.union_schema(
        [
            _TEXT,
            _INT,
            _FLOAT,
            core_schema.bool_schema(strict=True),
            core_schema.none_schema(),
            *_NUMBERS,
            core_schema.list_schema(_TEXT, strict=True, fail_fast=True),
            core_schema.list_schema(_VALUE, strict=True, fail_fast=True),
            core_schema.dict_schema(_TEXT, _VALUE, strict=True),
            core_schema.tuple_schema([_VALUE], variadic_item_index=0, strict=True),
        ],
        mode="left_to_right",
        ref="json-value",
    )


NUMBERS: Final = SchemaValidator(core_schema.union_schema([*_NUMBERS], mode="left_to_right"))
"""Lists of integers, or of finite floats."""

# --- Models ----------------------------------------------------------------------------------------------------------

_Fields = dict[str, core_schema.TypedDictField]


def _fields_of(value: Any) -> Any:
    """The fields of a model, declared and extra, as one dict. Anything else is returned as it is."""
    try:
        extra = value.__pydantic_extra__  # asking whether it is a BaseModel takes much longer
    except AttributeError:
        return value
    return {**value.__dict__, **extra} if extra else value.__dict__


def _written_model(fields: _Fields, ref: str | None) -> CoreSchema:
    members = core_schema.typed_dict_schema(fields, extra_behavior="allow", extras_schema=_VALUE)
    return core_schema.no_info_before_validator_function(_fields_of, members, ref=ref)


def _derived(node: Any, replacements: dict[str, CoreSchema], model: Callable[[_Fields, str | None], CoreSchema]) -> Any:
    """A core schema in which nodes are replaced by their type, and models by what ``model`` makes of their fields."""
    if isinstance(node, list):
        return [_derived(item, replacements, model) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "model":
        fields = {
            name: core_schema.typed_dict_field(
                _derived(field["schema"], replacements, model), required=field["schema"]["type"] != "default"
            )
            for name, field in node["schema"]["fields"].items()
        }
        return model(fields, node.get("ref"))
    if kind == "dict" and node["values_schema"]["type"] == "any" and "attributes" in replacements:
        return replacements["attributes"]
    if kind in replacements:
        return replacements[kind]
    return {key: _derived(value, replacements, model) for key, value in node.items()}


def _definitions(schema: dict[str, Any]) -> tuple[CoreSchema, list[CoreSchema]]:
    """A schema apart from the definitions that it refers to."""
    if schema["type"] != "definitions":
        return cast(CoreSchema, schema), []
    return schema["schema"], schema["definitions"]


def _writer() -> SchemaValidator:
    derived = _derived(Span.__pydantic_core_schema__, {"any": _VALUE}, _written_model)
    schema, definitions = _definitions(derived)
    return SchemaValidator(core_schema.definitions_schema(schema, [*definitions, _json_value()]))


def _refuse(kind: LiteralString, message: LiteralString) -> CoreSchema:
    """A schema that no value satisfies."""

    def refuse(_: Any) -> NoReturn:
        raise PydanticCustomError(kind, message)

    return core_schema.no_info_plain_validator_function(refuse)


_BESIDE: Final = _refuse("sequence_id_in_document", "Set it beside the document, not in the document")
_RESERVED: Final = _refuse("reserved_name", "This name is reserved")


def _reader(attributes: CoreSchema, extra: Literal["ignore", "allow"], exact: CoreSchema) -> SchemaValidator:
    more = {"sequence_id": _BESIDE, EXACT: exact}

    def read_model(fields: _Fields, ref: str | None) -> CoreSchema:
        if "sequence_id" in fields:  # the span itself
            fields |= {name: core_schema.typed_dict_field(schema, required=False) for name, schema in more.items()}
        return core_schema.typed_dict_schema(fields, extra_behavior=extra, ref=ref)

    derived = _derived(Span.__pydantic_core_schema__, {"attributes": attributes}, read_model)
    schema, definitions = _definitions(derived)
    return SchemaValidator(core_schema.definitions_schema(schema, definitions))


WRITER: Final = _writer()
"""``WRITER.validate_python(span, strict=True)`` returns all fields of the span, as dicts, lists and scalars."""
_ATTRIBUTES: Final = core_schema.typed_dict_schema(
    {POLICY_VERSION: core_schema.typed_dict_field(core_schema.any_schema(), required=False)}, extra_behavior="ignore"
)
READER: Final = _reader(_ATTRIBUTES, "ignore", core_schema.any_schema())
"""``READER.validate_json(text, strict=True)`` returns the declared fields and, where it is present, :data:`EXACT`."""
RESTORED: Final = _reader(core_schema.dict_schema(_TEXT), "allow", _RESERVED)
"""``RESTORED.validate_python(members, strict=True)`` returns all members of a document, in which exact values have
replaced their substitutes."""
