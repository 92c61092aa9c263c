"""JSON text: the form in which user payloads (input, metadata, heartbeat_stats, resources) are kept and sent.

Anything JSON can hold comes back equal: integers of up to 4,300 digits, NaN and the infinities (as Python writes them),
unpaired surrogates. Tuples come back as lists. What JSON cannot hold is refused with its path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from lightning_store.errors import InvalidArgumentError, NotJsonError
from lightning_store.text import clipped

_JSON_VALUE: TypeAdapter[Any] = TypeAdapter(JsonValue)
DEPTH_MAX: Final = 200
"""Levels of nesting that a payload may have, which is what the parser takes."""

DIGITS_MAX: Final = 4300
"""Digits of an integer, which is what Python converts unless told otherwise."""
_LONG_NUMBER: Final = re.compile(rf"\d{{{DIGITS_MAX}}}")
LISTS_MAX: Final = 200_000
"""Lists and objects of a text from outside: an empty list has three bytes of text and sixty in memory. Nothing else
happens in a process while one text is parsed, so no more than the parser takes a fifth of a second for. …"""
MEMBERS_MAX: Final = 500_000
"""… Members of all of its objects likewise, …"""
COMMAS_MAX: Final = 2_500_000
"""… and its commas."""
_COUNTED: Final = (("[{", LISTS_MAX, "lists and objects"), (":", MEMBERS_MAX, "members"), (",", COMMAS_MAX, "commas"))
_SLICE: Final = re.compile(rb".{1,262144}+\\*+.?", re.DOTALL)
"""What is looked at closely at a stretch: other threads have their turn in between. No escape is cut."""
STEP_CHARS_MAX: Final = 100
"""Of each step on the way to a place that is shown."""
PATH_CHARS_MAX: Final = 80
"""Of the place that is too deep: an error need not show all the way there."""


def dumps(value: Any, path: str) -> str:
    """``value`` as JSON text; :class:`NotJsonError` names the place below ``path`` that JSON cannot hold."""
    try:
        checked = _JSON_VALUE.validate_python(value, strict=True)
    except ValidationError:
        checked = _plain(value, path, 0)
    try:
        text = to_text(checked)
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
        value = json.loads(text)  # this parser takes escaped surrogates that are not paired
        if text.count("[") + text.count("{") > DEPTH_MAX:
            _check_depth(value, path)
        return value
    except RecursionError:
        raise InvalidArgumentError(str(_too_deep(path)), field=path) from None
    except ValueError as error:
        message = _too_many_digits(path) if _is_about_digits(error) else f"{path} is not valid JSON: {error}"
        raise InvalidArgumentError(message, field=path) from None


def _check_depth(value: Any, path: str) -> None:
    """InvalidArgumentError if the value of a JSON text is nested too deeply. Level by level: nothing is copied."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [child for one in level for child in _children(one) if isinstance(child, list | dict)]
        if not level:
            return
    if any(level):
        raise InvalidArgumentError(str(_too_deep(path)), field=path)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_values(text: str | bytes, path: str, *, ratio: int = 1) -> None:
    """InvalidArgumentError if JSON text from outside has more values than should be parsed at a time. ``ratio`` is how
    many times as long they will be worked on."""
    if len(text) <= LISTS_MAX // ratio:  # as a rule
        return
    # All that there is, that in strings included: only what may be too much is looked at closely.
    if all(sum(map(partial(_count, text), chars)) <= maximum // ratio for chars, maximum, _ in _COUNTED):
        return
    counts = dict.fromkeys("[{:,", 0)
    for piece in outside_strings(text.encode() if isinstance(text, str) else text):
        for char in counts:
            counts[char] += _count(piece, char)
        for chars, maximum, what in _COUNTED:
            if sum(counts[char] for char in chars) > maximum // ratio:
                message = f"{path} has more than {maximum // ratio} {what}; give fewer values, or several payloads"
                raise InvalidArgumentError(message, field=path)


def outside_strings(text: bytes) -> Iterator[bytes]:
    """JSON text without what is between its quotes, some at a time."""
    place, inside = 0, 0
    while found := _SLICE.match(text, place):
        parts = found[0].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[inside::2])
        inside = (inside + len(parts) - 1) % 2
        place = found.end()


def _count(text: str | bytes, char: str) -> int:
    return text.count(char.encode()) if isinstance(text, bytes) else text.count(char)


def checked(text: str, path: str) -> str:
    """``text``, which comes from outside. InvalidArgumentError if it is no JSON, or has more values than should be
    parsed at a time."""
    check_values(text, path)
    try:
        # The value is not kept, so strings that are equal need not be the same one.
        from_json(text if text.isascii() else text.encode(), cache_strings="none")
    except ValueError:
        loads(text, path)
    return text


def to_text(value: Any) -> str:
    """``value``, which is lists, dicts and scalars, as JSON text. ValueError if an integer has too many digits."""
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
    """``value`` in lists, dicts and scalars only, or an error that names the first place where that fails. The path is
    put together only then: one for each value would take more memory than the values."""
    try:
        return _converted(value, depth)
    except _NotPlainError as error:
        raise error.at(path) from None


class _NotPlainError(Exception):
    """What is wrong with a value, and the steps that lead to it, the last one first."""

    def __init__(self, problem: str, *, is_too_deep: bool = False) -> None:
        super().__init__(problem)
        self.steps: list[str] = []
        self._is_too_deep = is_too_deep

    def at(self, path: str) -> NotJsonError:
        """The error for a value below ``path``."""
        path += "".join(clipped(step, STEP_CHARS_MAX) for step in reversed(self.steps))
        if self._is_too_deep:
            return _too_deep(f"{path[:PATH_CHARS_MAX]}…")
        return NotJsonError(f"{path} {self}", path=path)


def _converted(value: Any, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise _NotPlainError("", is_too_deep=True)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return _converted_list(value, depth + 1)
    if isinstance(value, Mapping):
        return _converted_members(value, depth + 1)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    give = "give text, numbers, booleans, None, lists or dicts"
    if kind.startswith(("numpy.", "torch.")):
        give = "give .item() of a number, .tolist() of an array"
    raise _NotPlainError(f"holds a value of type {kind}, which is not JSON; {give}")


def _converted_list(items: Sequence[Any], depth: int) -> list[Any]:
    index = 0
    made: list[Any] = [None] * len(items)
    try:
        for index, item in enumerate(items):
            made[index] = _converted(item, depth)
    except _NotPlainError as error:
        error.steps.append(f"[{index}]")
        raise
    return made


def _converted_members(members: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, item in members.items():
        if not isinstance(key, str):
            problem = (
                f"has the key {clipped(repr(key), STEP_CHARS_MAX)} of type {type(key).__name__}; JSON keys are text"
            )
            raise _NotPlainError(problem)
        try:
            made[key] = _converted(item, depth)
        except _NotPlainError as error:
            error.steps.append(f".{key}")
            raise
    return made
