"""What every conversion from the wire checks, and how it says what is wrong.

Each error is an :class:`InvalidArgumentError` that begins with the path of the field in the message, such as
``rollouts[3].input_json``, and has it in ``details["field"]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError

from lightning_store import json_text
from lightning_store.errors import InvalidArgumentError, InvalidTypeError
from lightning_store.text import ID_BYTES_MAX, ID_CHARS_SAFE, has_surrogate, is_id

ModelT = TypeVar("ModelT", bound=BaseModel)

INT32_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1


def invalid(field: str, problem: str) -> InvalidArgumentError:
    """The error for a field; ``problem`` goes on where the field's path ends: "must not be negative; …"."""
    return InvalidArgumentError(f"{field} {problem}", field=field)


# --- To the wire -----------------------------------------------------------------------------------------------------


def text_to_proto(text: str, field: str) -> str:
    """``text`` itself; an error that names ``field`` if a protobuf string cannot hold it."""
    if not isinstance(text, str):
        raise InvalidTypeError(f"{field} is a {type(text).__name__}; it must be text", field=field)
    if has_surrogate(text):
        raise invalid(field, "has an unpaired surrogate, which only JSON payloads can carry")
    return text


def optional_text_to_proto(text: str | None, field: str) -> str | None:
    return None if text is None else text_to_proto(text, field)


def optional_json_to_proto(value: Any, field: str) -> str | None:
    """JSON text; None for None."""
    return None if value is None else json_text.dumps(value, field)


# --- From the wire ---------------------------------------------------------------------------------------------------


def required_text(text: str, field: str) -> str:
    if not text:
        raise invalid(field, "is missing; it must not be empty")
    return bounded_text(text, field)


def bounded_text(text: str, field: str) -> str:
    """An id or a name, which may be empty."""
    if len(text) > ID_CHARS_SAFE and not is_id(text):
        raise invalid(field, f"has more than {ID_BYTES_MAX} bytes")
    return text


def require(message: Message, name: str, field: str) -> None:
    """An error if the sub-message ``name``, whose path is ``field``, is not set."""
    if not message.HasField(name):
        raise invalid(field, "is missing; it must be set")


def not_negative(number: int, field: str) -> int:
    if number < 0:
        raise invalid(field, f"is {number}; it must not be negative")
    return number


def json_object(text: str, field: str) -> dict[str, Any]:
    """The JSON object that ``text`` is."""
    value = json_text.loads(text, field)
    if not isinstance(value, dict):
        raise invalid(field, f"must be the text of a JSON object, not of {_JSON_KINDS[type(value)]}")
    return value


def checked_json_object(text: str, field: str) -> str:
    """``text``, which comes from outside, if it is a JSON object that one may parse."""
    json_text.check_values(text, field)
    json_object(text, field)
    return text


_JSON_KINDS: Mapping[type[Any], str] = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "an array",
    type(None): "null",
}


def validated(model: type[ModelT], values: Mapping[str, Any], field: str) -> ModelT:
    """The model of ``values``, which came in the message at ``field``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise of_validation_error(error, field) from None


def of_validation_error(error: ValidationError, field: str = "") -> InvalidArgumentError:
    """The same complaints with the paths of their fields below ``field``, and without the values that were given."""
    found = [(_path(field, item["loc"]), item["msg"]) for item in error.errors(include_url=False, include_input=False)]
    listed = "; ".join(f"{path}: {message}" if path else message for path, message in found)
    return InvalidArgumentError(listed, field=found[0][0]) if found[0][0] else InvalidArgumentError(listed)


def _path(field: str, location: tuple[int | str, ...]) -> str:
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return field + steps if field else steps.removeprefix(".")
