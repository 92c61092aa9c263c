"""JSON text: the form in which user payloads (input, metadata, heartbeat_stats, resources) are kept and sent.

Anything JSON can hold comes back equal: integers of up to 4,300 digits, NaN and the infinities (as Python writes them),
unpaired surrogates. Tuples come back as lists. What JSON cannot hold is refused with its path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from lightning_store.errors import InvalidArgumentError, NotJsonError

_JSON_VALUE: TypeAdapter[Any] = TypeAdapter(JsonValue)
DEPTH_MAX: Final = 200
"""Levels of nesting that a payload may have, which is what the parser takes."""

DIGITS_MAX: Final = 4300
"""Digits of an integer, which is what Python converts unless told otherwise."""
_LONG_NUMBER: Final = re.compile(rf"\d{{{DIGITS_MAX}}}")
PATH_CHARS_MAX: Final = 80
"""Of the place that is too deep: an error need not show all the way there."""


def dumps(value: Any, path: str) -> str:
    """``value`` as JSON text; :class:`NotJsonError` names the place below ``path`` that JSON cannot hold."""
    try:
        checked = _JSON_VALUE.validate_python(value, strict=True)
    except ValidationError:
        checked = _plain(value, path, 0)
    try:
        text = _write(checked)
    except ValueError as error:
        if _is_about_digits(error):
            raise NotJsonError(_too_many_digits(path), path=path) from None
        raise NotJsonError(f"{path} cannot be written as JSON: {error}", path=path) from error
    if _may_be_unreadable(text):
        try:
            loads(text, path)
        except InvalidArgumentError as error:
            raise NotJsonError(str(error), path=path) from None
    return text


def loads(text: str, path: str) -> Any:
    """The value of JSON ``text``; :class:`InvalidArgumentError` names ``path`` if it is malformed."""
    try:
        # With a text that is not ASCII, Python would keep its UTF-8 form as long as the text itself.
        return from_json(text if text.isascii() else text.encode())
    except ValueError as error:
        if _is_recursion(error):
            raise InvalidArgumentError(str(_too_deep(path)), field=path) from None
    try:
        return _plain(json.loads(text), path, 0)  # this parser takes escaped surrogates that are not paired
    except NotJsonError as error:
        raise InvalidArgumentError(str(error), field=path) from None
    except RecursionError:
        raise InvalidArgumentError(str(_too_deep(path)), field=path) from None
    except ValueError as error:
        message = _too_many_digits(path) if _is_about_digits(error) else f"{path} is not valid JSON: {error}"
        raise InvalidArgumentError(message, field=path) from None


def _write(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except PydanticSerializationError:  # unpaired surrogates have no UTF-8 form, but JSON can escape them
        return json.dumps(value, separators=(",", ":"))


def _may_be_unreadable(text: str) -> bool:
    """Whether the text may be deeper, or have a number of more digits, than the parser takes."""
    if len(text) <= DEPTH_MAX:
        return False
    return text.count("[") + text.count("{") > DEPTH_MAX or _has_long_number(text)


def _has_long_number(text: str) -> bool:
    """Looks around every ``DIGITS_MAX``-th character, one of which such a number covers: a search takes much longer."""
    return any(
        text[place].isdigit() and _LONG_NUMBER.search(text, max(0, place - DIGITS_MAX), place + DIGITS_MAX)
        for place in range(DIGITS_MAX - 1, len(text), DIGITS_MAX)
    )


def _is_recursion(error: ValueError) -> bool:
    return str(error).startswith("recursion limit exceeded")


def _is_about_digits(error: ValueError) -> bool:
    return str(error).startswith("Exceeds the limit")


def _too_many_digits(path: str) -> str:
    """In place of Python's own words, which tell how this process could be set to take more."""
    return f"{path} has an integer of more than {DIGITS_MAX} digits; give it as text"


def _too_deep(path: str) -> NotJsonError:
    return NotJsonError(f"{path} is nested more than {DEPTH_MAX} levels deep; make it flatter", path=path)


def _plain(value: Any, path: str, depth: int) -> Any:
    """``value`` in lists, dicts and scalars only, or an error that names the first place where that fails."""
    if depth > DEPTH_MAX:
        raise _too_deep(f"{path[:PATH_CHARS_MAX]}…")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise NotJsonError(
                    f"{path} has the key {key!r} of type {type(key).__name__}; JSON keys are text", path=path
                )
        return {key: _plain(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    give = "give text, numbers, booleans, None, lists or dicts"
    if kind.startswith(("numpy.", "torch.")):
        give = "give .item() of a number, .tolist() of an array"
    raise NotJsonError(f"{path} holds a value of type {kind}, which is not JSON; {give}", path=path)
