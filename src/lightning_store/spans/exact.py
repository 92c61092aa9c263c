"""What JSON cannot represent: bytes, NaN and the infinities, and text with lone surrogates.

At its place in the document stands a substitute that any JSON reader understands. The exact value stands in the
reserved member ``$exact``, under the JSON pointer (RFC 6901) of that place:

=========================  ==================================  ====================================================
value                      substitute                          entry of ``$exact``
=========================  ==================================  ====================================================
bytes                      their base64 text                   ``{"bytes": base64}``
NaN, infinity, -infinity   ``null``                            ``{"float": "NaN" | "Infinity" | "-Infinity"}``
text with lone surrogates  the text, each replaced by U+FFFD   ``{"utf16": base64 of the text as UTF-16, big-endian}``
a key with them            the key, each replaced by U+FFFD,   ``{"key": base64 of the key as UTF-16, big-endian}``,
                           and U+FFFD appended to make it      beside the entry of the member's value if it has one
                           unique in its object
=========================  ==================================  ====================================================
"""

from __future__ import annotations

import base64
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from lightning_store.errors import InvalidArgumentError, NotJsonError
from lightning_store.json_text import DIGITS_MAX, PATH_CHARS_MAX
from lightning_store.spans.schemas import EXACT, NUMBERS
from lightning_store.text import REPLACEMENT, has_surrogate, replace_surrogates

DEPTH_MAX: Final = 128
"""Levels of objects and arrays in a document, the document itself included."""

_INT_MIN: Final = 1 - 10 ** (DIGITS_MAX - 1)
_INT_MAX: Final = 10**DIGITS_MAX - 1
"""Some readers count the sign as a digit."""
_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_INDEX: Final = re.compile("0|[1-9][0-9]{0,17}")


# --- To documents ----------------------------------------------------------------------------------------------------


class Portable:
    """Converts values to what JSON represents, and collects what it does not."""

    def __init__(self) -> None:
        self.exact: dict[str, dict[str, str]] = {}
        """The entries by JSON pointer."""

    def convert_model(self, model: BaseModel, path: str, pointer: str = "", depth: int = 1) -> dict[str, Any]:
        """Convert a model and all that it contains.

        Args:
            model: The model. Models in its declared fields, and in lists there, are converted too.
            path: Where it is, for error messages, such as ``span.events[0]``.
            pointer: Where it is in the document.
            depth: Levels of objects and arrays, this one included.

        Returns:
            Dicts, lists and scalars that are safe to write as JSON.

        Raises:
            NotJsonError: Something in it is neither JSON nor in the table above.
        """
        declared = self._object(model.__dict__, path, pointer, depth, models=True)
        return declared | self._object(model.model_extra or {}, path, pointer, depth)

    def convert_fields(self, fields: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The same for a model that is given as plain dicts."""
        return self._object(fields, path, "", 1)

    def _convert(self, value: Any, path: str, pointer: str, depth: int, *, models: bool) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, pointer)
        if isinstance(value, int):
            return self._int(value, path)
        if isinstance(value, float):
            return self._float(value, pointer)
        if isinstance(value, bytes):
            text = base64.b64encode(value).decode()
            self._note(pointer, "bytes", text)
            return text
        if depth > DEPTH_MAX:
            raise too_deep(path)
        if isinstance(value, list | tuple):
            return self._list(value, path, pointer, depth, models=models)
        if isinstance(value, Mapping):
            return self._object(value, path, pointer, depth)
        if models and isinstance(value, BaseModel):
            return self.convert_model(value, path, pointer, depth)
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise NotJsonError(
            f"{path} holds a value of type {kind}; give text, numbers, booleans, None, bytes, lists or dicts", path=path
        )

    def _note(self, pointer: str, kind: str, value: str) -> None:
        self.exact.setdefault(pointer, {})[kind] = value

    def _text(self, text: str, pointer: str) -> str:
        if not has_surrogate(text):
            return text
        self._note(pointer, "utf16", _to_utf16(text))
        return replace_surrogates(text)

    def _int(self, number: int, path: str) -> int:
        if _INT_MIN <= number <= _INT_MAX:
            return number
        raise NotJsonError(f"{path} has an integer of more than {DIGITS_MAX} digits; give it as text", path=path)

    def _check_ints(self, numbers: Sequence[Any], path: str) -> None:
        if numbers and isinstance(numbers[0], int):
            self._int(max(numbers), path)
            self._int(min(numbers), path)

    def _float(self, number: float, pointer: str) -> float | None:
        if math.isfinite(number):
            return number
        self._note(pointer, "float", "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity")
        return None

    def _list(self, values: Sequence[Any], path: str, pointer: str, depth: int, *, models: bool) -> Sequence[Any]:
        if NUMBERS.isinstance_python(values):
            self._check_ints(values, path)
            return values
        return [
            item
            if type(item) is float and math.isfinite(item)  # most of a list that has a NaN
            else self._convert(item, f"{path}[{index}]", f"{pointer}/{index}", depth + 1, models=models)
            for index, item in enumerate(values)
        ]

    def _object(
        self, members: Mapping[Any, Any], path: str, pointer: str, depth: int, *, models: bool = False
    ) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in members.items():
            if not isinstance(key, str):
                kind = type(key).__name__
                raise NotJsonError(f"{path} has the key {key!r} of type {kind}; JSON keys are text", path=path)
            name = self._key(key, members, made, pointer)
            made[name] = self._convert(value, f"{path}.{key}", _below(pointer, name), depth + 1, models=models)
        return made

    def _key(self, key: str, members: Mapping[Any, Any], made: Mapping[str, Any], pointer: str) -> str:
        if not has_surrogate(key):
            return key
        name = replace_surrogates(key)
        while name in members or name in made:
            name += REPLACEMENT
        self._note(_below(pointer, name), "key", _to_utf16(key))
        return name


def too_deep(path: str) -> NotJsonError:
    """The error for a value nested too deeply at ``path``."""
    shown = path if len(path) <= PATH_CHARS_MAX else f"{path[:PATH_CHARS_MAX]}…"
    return NotJsonError(
        f"{shown} is nested too deeply: a span has at most {DEPTH_MAX} levels; make it flatter", path=shown
    )


def _below(pointer: str, name: str) -> str:
    return f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"


def _to_utf16(text: str) -> str:
    return base64.b64encode(text.encode("utf-16-be", "surrogatepass")).decode()


# --- From documents --------------------------------------------------------------------------------------------------


def _bytes_of(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise PydanticCustomError("base64", "Input should be base64") from None


def _text_of(value: Any) -> Any:
    raw = _bytes_of(value)
    if not isinstance(raw, bytes):
        return value
    try:
        return raw.decode("utf-16-be", "surrogatepass")
    except ValueError:
        raise PydanticCustomError("utf16", "Input should be base64 of UTF-16, big-endian") from None


_Base64 = Annotated[bytes, BeforeValidator(_bytes_of, json_schema_input_type=str)]
_Utf16 = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str)]


def _without_default(schema: dict[str, Any]) -> None:
    """Absent is absent: the defaults below are never read."""
    schema.pop("default", None)


class ExactValue(BaseModel):
    """An entry of $exact: one value, or the key of the member, or both."""

    model_config = ConfigDict(extra="forbid")

    bytes: _Base64 = Field(default=b"", description="Bytes, in base64.", json_schema_extra=_without_default)
    float: Literal["NaN", "Infinity", "-Infinity"] = Field(default="NaN", json_schema_extra=_without_default)
    utf16: _Utf16 = Field(
        default="", description="Text, as base64 of its UTF-16BE form.", json_schema_extra=_without_default
    )
    key: _Utf16 = Field(
        default="", description="Key of the member, as base64 of its UTF-16BE form.", json_schema_extra=_without_default
    )

    @model_validator(mode="after")
    def _one_value(self) -> ExactValue:
        if len(self.model_fields_set - {"key"}) > 1 or not self.model_fields_set:
            raise PydanticCustomError("exact_value", "Give one of bytes, float and utf16, or a key, or both")
        return self


EXACT_VALUES: Final = TypeAdapter(dict[str, ExactValue])
"""What ``$exact`` is: entries by JSON pointer."""


def restore(document: dict[str, Any], field: str) -> None:
    """Remove ``$exact`` from a parsed document and put the exact values where they belong.

    Args:
        document: The parsed document, which is changed in place.
        field: The path of the document, for error messages.

    Raises:
        pydantic.ValidationError: ``$exact`` is not a mapping of entries.
        InvalidArgumentError: A pointer leads nowhere, or a key is there already.
    """
    entries = EXACT_VALUES.validate_python(document.pop(EXACT, {}))
    places = [(_resolve(document, pointer, field), entry) for pointer, entry in entries.items()]
    keys: dict[int, tuple[dict[str, Any], dict[str, str]]] = {}
    for (holder, step), entry in places:
        for kind in entry.model_fields_set - {"key"}:
            holder[step] = _FLOATS[entry.float] if kind == "float" else getattr(entry, kind)
        if "key" in entry.model_fields_set:
            if not isinstance(holder, dict):
                raise _refused(field, "gives a key to an element of an array")
            keys.setdefault(id(holder), (holder, {}))[1][step] = entry.key
    for holder, renamed in keys.values():
        members = {renamed.get(name, name): value for name, value in holder.items()}
        if len(members) != len(holder):
            raise _refused(field, "gives two members of one object the same key")
        holder.clear()
        holder.update(members)


def _resolve(document: dict[str, Any], pointer: str, field: str) -> tuple[Any, Any]:
    """The object or array that holds the place, and the key or index of the place in it."""
    root, *tokens = pointer.split("/")
    holder: Any = None
    value: Any = document
    step: Any = None
    for token in tokens:
        holder, step = value, token.replace("~1", "/").replace("~0", "~")
        if isinstance(holder, list) and _INDEX.fullmatch(step) and int(step) < len(holder):
            step = int(step)
        elif not isinstance(holder, dict) or step not in holder:
            holder = None
            break
        value = holder[step]
    if root or holder is None:
        raise _refused(field, f"has the pointer {reprlib.repr(pointer)}, which leads nowhere")
    return holder, step


def _refused(field: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}.{EXACT} {problem}", field=f"{field}.{EXACT}")
