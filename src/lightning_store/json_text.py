"""JSON text: the form in which user payloads (input, metadata, heartbeat_stats, resources) are kept and sent.

Anything JSON can hold comes back equal, integers of any size, NaN and the infinities (as Python writes them) and
unpaired surrogates included. Tuples come back as lists. What JSON cannot hold is refused with its path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from lightning_store.errors import InvalidArgumentError, NotJsonError

_JSON_VALUE: TypeAdapter[Any] = TypeAdapter(JsonValue)
DEPTH_MAX = 100
"""Levels of nesting a payload may have."""


def dumps(value: Any, path: str) -> str:
    """``value`` as JSON text; :class:`NotJsonError` names the place below ``path`` that JSON cannot hold."""
    try:
        checked = _JSON_VALUE.validate_python(value)
    except ValidationError:
        checked = _plain(value, path, 0)
    try:
        return to_json(checked, inf_nan_mode="constants").decode()
    except PydanticSerializationError:  # unpaired surrogates have no UTF-8 form, but JSON can escape them
        return json.dumps(checked, separators=(",", ":"))
    except ValueError as error:
        raise NotJsonError(f"{path} cannot be written as JSON: {error}", path=path) from error


def loads(text: str, path: str) -> Any:
    """The value of JSON ``text``; :class:`InvalidArgumentError` names ``path`` if it is malformed."""
    try:
        return from_json(text)
    except ValueError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path} is not valid JSON: {error}", field=path) from None


def _plain(value: Any, path: str, depth: int) -> Any:
    """``value`` in lists, dicts and scalars only, or an error that names the first place where that fails."""
    if depth > DEPTH_MAX:
        raise NotJsonError(f"{path} is nested more than {DEPTH_MAX} levels deep", path=path)
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
    raise NotJsonError(
        f"{path} holds a value of type {kind}, which is not JSON; give text, numbers, booleans, None, lists or dicts",
        path=path,
    )
